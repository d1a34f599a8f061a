//! Reading a log out of its files, live or not, archives included.

use std::collections::HashMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::PathBuf;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::super::format::{
    FRAME_BYTES, FrameHead, HEADER_BYTES, KIND_CONTROL, Label, implied_salt,
};
use super::super::scan::{Accept, Scanner, Step};
use super::super::segment::{self, Ends};
use super::super::storage::OsStorage;
use super::super::{LostReason, WalError};
use super::catalogue::{Catalogue, Found, Group, Place};
use super::{LogFiles, Progress};

/// How often the files are looked at again because some went away while they were read.
const LOOKS_MAX: usize = 20;

/// What stands at a place in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEntry<'a> {
    /// A record.
    Record {
        /// The stream.
        stream: StreamId,
        /// Its place in the stream.
        sequence: Sequence,
        /// The opening of the log that wrote it.
        epoch: Epoch,
        /// The time it was appended with, in nanoseconds since 1970.
        timestamp_ns: i64,
        /// The kind it was appended with.
        kind: u8,
        /// Its payload.
        payload: &'a [u8],
    },
    /// Records that cannot be read.
    Lost {
        /// The stream.
        stream: StreamId,
        /// The first of them.
        first: Sequence,
        /// The last of them.
        last: Sequence,
        /// Why.
        reason: LostReason,
        /// Whether all consumers had committed them. Then nothing need have gone wrong: segments
        /// are deleted when they are committed.
        committed: bool,
    },
}

/// Reads records in order, and what is lost between them: stream by stream, the log directory's
/// own last. A segment that is committed and taken away meanwhile is looked for among the
/// archives. Returns the files that have a segment's name and were not read, and why, in words.
///
/// # Errors
/// [`WalError::Io`] if the directory or a file cannot be read, [`WalError::UnknownFormat`] if a
/// newer program wrote it. Damage is no error.
pub fn read_files(
    files: &LogFiles,
    range: RangeInclusive<Sequence>,
    progress: &Progress,
    visit: &mut dyn FnMut(LogEntry<'_>) -> ControlFlow<()>,
) -> Result<Vec<(PathBuf, &'static str)>, WalError> {
    let mut reading = Reading { range, progress, visit, next: HashMap::new() };
    let mut look = 0;
    loop {
        look += 1;
        let catalogue = Catalogue::look(&OsStorage, files, progress)?;
        let mut flow = Flow::On;
        for group in &catalogue.groups {
            flow = reading.read_group(group, group.stream == catalogue.stream)?;
            if flow != Flow::On {
                break;
            }
        }
        if flow != Flow::Vanished || look >= LOOKS_MAX {
            return Ok(not_read(&catalogue));
        }
    }
}

fn not_read(catalogue: &Catalogue) -> Vec<(PathBuf, &'static str)> {
    let unreadable = catalogue.groups.iter().flat_map(|group| &group.segments);
    let unreadable = unreadable.filter(|found| found.label.is_none());
    let unreadable = unreadable.map(|found| (&found.path, "nothing in it says what it is"));
    let foreign = catalogue.foreign.iter().map(|found| (&found.path, "it belongs to another log"));
    let odd = catalogue.odd.iter().map(|odd| (&odd.path, odd.what));
    let all = unreadable.chain(foreign).chain(odd);
    let mut all: Vec<_> = all.map(|(path, why)| (path.clone(), why)).collect();
    all.sort();
    all
}

/// A record with all its bytes.
#[derive(Debug, Clone)]
pub struct FoundRecord {
    /// The stream.
    pub stream: StreamId,
    /// The opening of the log that wrote it.
    pub epoch: Epoch,
    /// The segment's number.
    pub segment: u64,
    /// The segment's file.
    pub path: PathBuf,
    /// Where the frame begins in the segment (unpacked, if it is packed).
    pub offset: u64,
    /// The segment's salt.
    pub salt: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

/// A field of a frame, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Where it begins in the frame.
    pub at: usize,
    /// Its length in bytes.
    pub bytes: usize,
    /// What it says.
    pub value: String,
}

impl FoundRecord {
    /// The kind byte.
    #[must_use]
    pub fn kind(&self) -> u8 {
        FrameHead::read(&self.frame).map_or(0, |head| head.kind)
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.frame[FRAME_BYTES.min(self.frame.len())..]
    }

    /// The fields before the payload.
    #[must_use]
    pub fn fields(&self) -> Vec<Field> {
        let Some(head) = FrameHead::read(&self.frame) else { return Vec::new() };
        let stored = u32::from_le_bytes([4, 5, 6, 7].map(|at| self.frame[at]));
        let computed = crc32fast::hash(&self.frame[8..]);
        let right = if implied_salt(&self.frame) == self.salt { "right" } else { "wrong" };
        let field = |name, at, bytes, value| Field { name, at, bytes, value };
        vec![
            field("magic", 0, 4, "a frame begins".to_owned()),
            field(
                "checksum",
                4,
                4,
                format!(
                    "{stored:08x}, {right}: CRC-32 of bytes 8 to {} is {computed:08x}, XOR salt {:08x}",
                    self.frame.len(),
                    self.salt
                ),
            ),
            field("payload length", 8, 4, format!("{} bytes", head.payload_bytes)),
            field("kind", 12, 1, head.kind.to_string()),
            field(
                "place in commit",
                13,
                3,
                format!(
                    "{} records before it: all up to {} were durable when it was written",
                    head.in_commit,
                    head.proves()
                ),
            ),
            field("sequence", 16, 8, head.sequence.to_string()),
            field("time", 24, 8, format!("{} ns since 1970", head.timestamp_ns)),
        ]
    }
}

/// Finds a record: in the log directory, or failing that in the newest archives. `None` if it
/// cannot be read.
///
/// # Errors
/// As [`read_files`].
pub fn find_record(
    files: &LogFiles,
    sequence: Sequence,
    progress: &Progress,
) -> Result<Option<FoundRecord>, WalError> {
    let catalogue = Catalogue::look(&OsStorage, files, progress)?;
    for group in catalogue.groups.iter().rev() {
        for (index, found) in group.segments.iter().enumerate() {
            let Some(label) = found.label.filter(|label| label.first <= sequence) else { continue };
            if matches!(group.ends(index), Ends::At(last) if last < sequence) {
                continue;
            }
            if let Some(record) = find_in(found, label, sequence, progress)? {
                return Ok(Some(record));
            }
        }
    }
    Ok(None)
}

fn find_in(
    found: &Found,
    label: Label,
    sequence: Sequence,
    progress: &Progress,
) -> Result<Option<FoundRecord>, WalError> {
    let Some(opened) = found.open(&OsStorage, progress)? else { return Ok(None) };
    let file = opened.file();
    let failed = |source| WalError::io("read", &found.path, source);
    let length = file.len().map_err(failed)?;
    let accept = Accept::Of { salt: label.salt, first: label.first };
    let mut scanner = Scanner::new(HEADER_BYTES as u64);
    loop {
        match scanner.step(file, accept, length).map_err(failed)? {
            Step::Frame { offset, head } => {
                if head.kind != KIND_CONTROL && head.sequence == sequence {
                    return Ok(Some(FoundRecord {
                        stream: label.stream,
                        epoch: label.epoch,
                        segment: label.segment,
                        path: found.path.clone(),
                        offset,
                        salt: label.salt,
                        frame: scanner.frame().to_vec(),
                    }));
                }
            }
            Step::Damage { .. } => {}
            Step::Tail { .. } => return Ok(None),
        }
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    /// A file went away: what was read counts, the rest is elsewhere by now.
    Vanished,
    Enough,
}

/// The last segment of a stream that says what it is.
fn newest(group: &Group) -> Option<(usize, &Found, Label)> {
    let segments = group.segments.iter().enumerate().rev();
    segments.into_iter().find_map(|(index, found)| Some((index, found, found.label?)))
}

struct Reading<'a> {
    range: RangeInclusive<Sequence>,
    progress: &'a Progress,
    visit: &'a mut dyn FnMut(LogEntry<'_>) -> ControlFlow<()>,
    /// What comes next in each stream of which something has been read.
    next: HashMap<StreamId, Sequence>,
}

/// Where in a stream, and what is known of it.
struct Position {
    stream: StreamId,
    next: Sequence,
    watermark: Sequence,
}

impl Reading<'_> {
    /// Reads a stream. In a log directory it is known where it has to begin.
    fn read_group(&mut self, group: &Group, live: bool) -> Result<Flow, WalError> {
        let Some(stream) = group.stream else { return Ok(Flow::On) };
        let labels = group.segments.iter().filter_map(|found| found.label);
        let mut watermark = labels.map(|label| label.watermark).max().unwrap_or_default();
        let oldest = group.segments.iter().find_map(|found| found.label);
        // The headers are older than the last acknowledgements, which stand in the newest segment.
        if live
            && oldest.is_some_and(|oldest| oldest.first > watermark.next())
            && let Some((index, found, label)) = newest(group)
            && let Some(opened) = found.open(&OsStorage, self.progress)?
        {
            let ends = group.ends(index);
            let contents = segment::read_contents(opened.file(), &found.path, &label, ends)?;
            watermark = watermark.max(contents.newest.watermark);
        }
        let begun = self.next.get(&stream).copied();
        let next = begun.or(live.then_some(watermark.next())).unwrap_or(Sequence::NONE);
        let mut position = Position { stream, next, watermark };
        let mut reason = LostReason::Missing;
        let mut first = begun.is_none();
        for (index, found) in group.segments.iter().enumerate() {
            if position.next > *self.range.end() && !first {
                break;
            }
            let Some(label) = found.label else {
                reason = LostReason::Damaged;
                if !first && live && group.following(index).is_none() {
                    let upto = Sequence(position.next.prev().0 + found.room());
                    if upto >= position.next && self.lose(&mut position, upto, reason) != Flow::On {
                        return Ok(Flow::Enough);
                    }
                    self.next.insert(stream, position.next);
                }
                continue;
            };
            let ends = group.ends(index);
            if std::mem::take(&mut first) && (!live || label.first < position.next) {
                position.next = label.first;
            }
            if matches!(ends, Ends::At(last) if last < position.next.max(*self.range.start())) {
                if let Ends::At(last) = ends {
                    position.next = position.next.max(last.next());
                }
                self.next.insert(stream, position.next);
                continue;
            }
            if label.first > position.next {
                let flow = self.lose(&mut position, label.first.prev(), reason);
                if flow != Flow::On {
                    return Ok(flow);
                }
            }
            reason = LostReason::Missing;
            let flow = self.read_segment(found, &label, ends, &mut position)?;
            self.next.insert(stream, position.next);
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn read_segment(
        &mut self,
        found: &Found,
        label: &Label,
        ends: Ends,
        position: &mut Position,
    ) -> Result<Flow, WalError> {
        let Some(opened) = found.open(&OsStorage, self.progress)? else {
            return Ok(Flow::Vanished);
        };
        let file = opened.file();
        let failed = |source| WalError::io("read", &found.path, source);
        // Where nothing follows, it takes all of it to tell a torn end from damage.
        let (limit, last) = match ends {
            Ends::Open => {
                let contents = segment::read_contents(file, &found.path, label, ends)?;
                (contents.torn.start, Some(contents.last))
            }
            Ends::At(last) => (file.len().map_err(failed)?, Some(last)),
            Ends::Left => (file.len().map_err(failed)?, None),
        };
        let accept = Accept::Of { salt: label.salt, first: label.first };
        let mut scanner = Scanner::new(HEADER_BYTES as u64);
        let mut reason = LostReason::Missing;
        loop {
            let step = scanner.step(file, accept, limit).map_err(failed)?;
            let lost = match step {
                Step::Frame { head, .. } if last.is_some_and(|last| head.sequence > last) => None,
                Step::Frame { head, .. } if head.kind == KIND_CONTROL => Some(head.sequence),
                Step::Frame { head, .. } => Some(head.sequence.prev()),
                Step::Damage { .. } => {
                    reason = LostReason::Damaged;
                    continue;
                }
                Step::Tail { from, to } => {
                    // What is lost at an open end was durable, and is not whole any more.
                    if from < to || opened.fault().is_some() || ends == Ends::Open {
                        reason = LostReason::Damaged;
                    }
                    last
                }
            };
            if let Some(upto) = lost.filter(|&upto| upto >= position.next) {
                // What was read may be the file's next life already.
                if found.place == Place::Log && !found.is_there(&OsStorage)? {
                    return Ok(Flow::Vanished);
                }
                let flow = self.lose(position, upto, reason);
                if flow != Flow::On {
                    return Ok(flow);
                }
            }
            reason = LostReason::Missing;
            match step {
                Step::Tail { .. } => return Ok(Flow::On),
                Step::Frame { head, .. }
                    if head.kind != KIND_CONTROL
                        && head.sequence == position.next
                        && last.is_none_or(|last| head.sequence <= last) =>
                {
                    position.next = head.sequence.next();
                    if head.sequence > *self.range.end() {
                        return Ok(Flow::On);
                    }
                    let record = LogEntry::Record {
                        stream: label.stream,
                        sequence: head.sequence,
                        epoch: label.epoch,
                        timestamp_ns: head.timestamp_ns,
                        kind: head.kind,
                        payload: scanner.payload(),
                    };
                    if self.range.contains(&head.sequence) && (self.visit)(record).is_break() {
                        return Ok(Flow::Enough);
                    }
                }
                Step::Frame { .. } | Step::Damage { .. } => {}
            }
        }
    }

    /// What is lost from the position on.
    fn lose(&mut self, position: &mut Position, upto: Sequence, reason: LostReason) -> Flow {
        let first = position.next.max(*self.range.start());
        let last = upto.min(*self.range.end());
        position.next = upto.next();
        if first > last {
            return Flow::On;
        }
        let Position { stream, watermark, .. } = *position;
        let lost = LogEntry::Lost { stream, first, last, reason, committed: upto <= watermark };
        if (self.visit)(lost).is_break() { Flow::Enough } else { Flow::On }
    }
}
