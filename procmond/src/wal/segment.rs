//! Segment files: their names, making one, and finding out what one is.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use daemoneye_lib::stream::{Sequence, StreamId, wall_clock_ns};

use super::WalError;
use super::format::{
    CONTROL_BYTES, FORMAT_VERSION, FRAME_BYTES, FrameHead, HEADER_BYTES, Header, KIND_CONTROL,
    Label, PAYLOAD_CODEC, Rest, codec_of, read_header, self_describing_label,
};
use super::scan::{Accept, Scanner, Step};
use super::storage::{Storage, StorageFile};

/// Bytes of a segment without records: its header and its first control record.
pub(crate) const EMPTY_BYTES: u64 = (HEADER_BYTES + CONTROL_BYTES) as u64;

/// Segment numbers stay below this, so that counting on from a file's name never overflows.
const NUMBER_LIMIT: u64 = 1_000_000_000_000;

/// A file of the log, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileName {
    /// `procmond-00001.wal`
    Segment(u64),
    /// `procmond-00001.wal.new`: not finished, so without meaning after a crash.
    Unfinished(u64),
    /// `procmond-00001.wal.spare`: prepared for a segment to come, without meaning after a crash.
    Spare(u64),
    /// `procmond-00001.wal.next`: part of a stream that takes over once one of its segments has its
    /// name.
    Next(u64),
}

impl FileName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("procmond-")?;
        let digits = rest.split('.').next()?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number = digits.parse().ok()?;
        let kind = match &rest[digits.len()..] {
            ".wal" => Self::Segment(number),
            ".wal.new" => Self::Unfinished(number),
            ".wal.spare" => Self::Spare(number),
            ".wal.next" => Self::Next(number),
            _ => return None,
        };
        // One number, one name: `procmond-0001.wal` is somebody else's file.
        (number > 0 && number < NUMBER_LIMIT && kind.to_string() == name).then_some(kind)
    }

    pub(crate) fn path(self, dir: &Path) -> PathBuf {
        dir.join(self.to_string())
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Segment(number) => write!(f, "procmond-{number:05}.wal"),
            Self::Unfinished(number) => write!(f, "procmond-{number:05}.wal.new"),
            Self::Spare(number) => write!(f, "procmond-{number:05}.wal.spare"),
            Self::Next(number) => write!(f, "procmond-{number:05}.wal.next"),
        }
    }
}

/// Why a segment was not begun.
pub(crate) struct NotBegun {
    pub(crate) error: WalError,
    /// Its file may have its final name all the same, now or after a power cut. Whoever finds it
    /// takes the segment before to end where this one begins: nothing may be written there.
    pub(crate) perhaps_named: bool,
}

impl From<WalError> for NotBegun {
    fn from(error: WalError) -> Self {
        Self { error, perhaps_named: false }
    }
}

impl From<NotBegun> for WalError {
    fn from(failed: NotBegun) -> Self {
        failed.error
    }
}

/// Creates a segment with these frames under its final name, durably: whoever finds the name finds
/// a whole header, and them.
pub(crate) fn create(
    storage: &dyn Storage,
    dir: &Path,
    label: &Label,
    frames: &[u8],
) -> Result<(PathBuf, Box<dyn StorageFile>), NotBegun> {
    let unfinished = FileName::Unfinished(label.segment).path(dir);
    let path = FileName::Segment(label.segment).path(dir);
    let made = create_as(storage, &unfinished, label, frames)
        .map_err(NotBegun::from)
        .and_then(|file| name(storage, dir, &unfinished, &path).map(|()| file));
    match made {
        Ok(file) => Ok((path, file)),
        Err(error) => {
            // Best effort: opening removes what stays.
            let _ = storage.unlink(&unfinished);
            Err(error)
        }
    }
}

/// Makes a prepared file a segment with these frames under its final name, durably. After an error
/// the file is good for nothing, whether it has its old name or the new one.
pub(crate) fn adopt(
    storage: &dyn Storage,
    dir: &Path,
    label: &Label,
    file: &dyn StorageFile,
    prepared: &Path,
    frames: &[u8],
) -> Result<PathBuf, NotBegun> {
    let path = FileName::Segment(label.segment).path(dir);
    begin(file, prepared, label, frames)?;
    name(storage, dir, prepared, &path)?;
    Ok(path)
}

/// Checks that a segment may have this number: one more must not be taken for another file.
pub(crate) fn check_number(dir: &Path, number: u64) -> Result<(), WalError> {
    if number < NUMBER_LIMIT {
        return Ok(());
    }
    Err(WalError::NumbersSpent { path: FileName::Segment(number - 1).path(dir) })
}

/// Writes part of a segment again as it is, and makes it durable. After a failed sync the system
/// shows what was to be written as if it had been, and the next sync finds nothing to do.
pub(crate) fn rewrite(
    file: &dyn StorageFile,
    path: &Path,
    part: Range<u64>,
) -> Result<(), WalError> {
    const CHUNK_BYTES: u64 = 256 << 10;
    let failed = |source| WalError::io("write again the end of", path, source);
    let mut at = part.start;
    let mut buffer = vec![0; CHUNK_BYTES.min(part.end.saturating_sub(at)) as usize];
    while at < part.end {
        let want = buffer.len().min((part.end - at) as usize);
        let got = file.read_full_at(&mut buffer[..want], at).map_err(failed)?;
        if got == 0 {
            break;
        }
        file.write_all_at(&buffer[..got], at).map_err(failed)?;
        at += got as u64;
    }
    file.sync_data().map_err(failed)
}

/// Writes a segment's header again where it is damaged and a copy of it was found.
pub(crate) fn mend_header(
    file: &dyn StorageFile,
    path: &Path,
    label: &Label,
) -> Result<(), WalError> {
    file.write_all_at(&label.to_header(), 0)
        .and_then(|()| file.sync_data())
        .map_err(|source| WalError::io("mend the header of", path, source))
}

/// Gives a segment its final name, durably.
fn name(storage: &dyn Storage, dir: &Path, from: &Path, path: &Path) -> Result<(), NotBegun> {
    storage
        .rename(from, path)
        .map_err(|source| WalError::io("rename a segment to", path, source))
        .and_then(|()| storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source)))
        .map_err(|error| NotBegun { error, perhaps_named: true })
}

/// Creates a segment under a temporary name; its bytes are durable, its name is not.
pub(crate) fn create_as(
    storage: &dyn Storage,
    path: &Path,
    label: &Label,
    frames: &[u8],
) -> Result<Box<dyn StorageFile>, WalError> {
    let file =
        storage.create(path).map_err(|source| WalError::io("create the segment", path, source))?;
    begin(&*file, path, label, frames)?;
    Ok(file)
}

/// Writes what every segment begins with, and these frames, durably.
fn begin(
    file: &dyn StorageFile,
    path: &Path,
    label: &Label,
    frames: &[u8],
) -> Result<(), WalError> {
    let mut bytes = label.to_header().to_vec();
    bytes.extend_from_slice(&label.to_control(label.first.prev(), 0, wall_clock_ns()));
    debug_assert_eq!(bytes.len() as u64, EMPTY_BYTES);
    bytes.extend_from_slice(frames);
    file.write_all_at(&bytes, 0)
        .and_then(|()| file.sync_data())
        .map_err(|source| WalError::io("write the header of", path, source))
}

/// What a segment's header says, or failing that its control records; `None` if nothing in the
/// file says what it is.
pub(crate) fn read_label(
    file: &dyn StorageFile,
    path: &Path,
    number: u64,
) -> Result<Option<Label>, WalError> {
    match header_of(file, path)? {
        Header::Whole(label) if label.segment == number => Ok(Some(label)),
        Header::Unknown { version, codec } => {
            Err(WalError::UnknownFormat { path: path.to_owned(), version, codec })
        }
        // A block of another segment may have been written over this one's. A copy of that segment
        // has only records that belong to it.
        Header::Whole(_) | Header::Damaged => label_of_controls(file, path, number, &[]),
    }
}

/// What a segment's control records say, those of these streams if there are any.
///
/// A control record names the salt that it is written with, so what somebody has put into a payload
/// may look like one. But payloads stand in frames: of several labels the one is right whose
/// frames enclose the others', and so come to more bytes.
pub(crate) fn label_of_controls(
    file: &dyn StorageFile,
    path: &Path,
    number: u64,
    streams: &[StreamId],
) -> Result<Option<Label>, WalError> {
    /// Each takes reading the file.
    const LABELS_MAX: usize = 8;
    let failed = |source| WalError::io("read", path, source);
    let limit = file.len().map_err(failed)?;
    let mut labels: Vec<Label> = Vec::new();
    let mut unknown = None;
    let mut scanner = Scanner::new(0);
    loop {
        match scanner.step(file, Accept::Controls { segment: number }, limit).map_err(failed)? {
            Step::Frame { .. } => {
                if let Some(codec) = codec_of(scanner.frame()).filter(|&c| c != PAYLOAD_CODEC) {
                    unknown = unknown.or(Some(codec));
                } else if let Some(label) = scanner.label()
                    && (streams.is_empty() || streams.contains(&label.stream))
                    && labels.len() < LABELS_MAX
                    && labels.iter().all(|known| known.salt != label.salt)
                {
                    labels.push(label);
                }
            }
            Step::Damage { .. } => {}
            Step::Tail { .. } => break,
        }
    }
    if let (true, Some(codec)) = (labels.is_empty(), unknown) {
        let version = FORMAT_VERSION;
        return Err(WalError::UnknownFormat { path: path.to_owned(), version, codec });
    }
    if labels.len() < 2 {
        return Ok(labels.pop());
    }
    let mut right = None;
    for label in labels {
        let accept = Accept::Of { salt: label.salt, first: label.first };
        let mut scanner = Scanner::new(HEADER_BYTES as u64);
        let mut bytes = 0;
        loop {
            match scanner.step(file, accept, limit).map_err(failed)? {
                Step::Frame { head, .. } => bytes += head.frame_bytes(),
                Step::Damage { .. } => {}
                Step::Tail { .. } => break,
            }
        }
        if right.is_none_or(|(most, _)| bytes > most) {
            right = Some((bytes, label));
        }
    }
    Ok(right.map(|(_, label)| label))
}

/// Whether a segment's label stands in its header, and not only in a copy of it.
pub(crate) fn has_whole_header(
    file: &dyn StorageFile,
    path: &Path,
    number: u64,
) -> Result<bool, WalError> {
    Ok(matches!(header_of(file, path)?, Header::Whole(label) if label.segment == number))
}

fn header_of(file: &dyn StorageFile, path: &Path) -> Result<Header, WalError> {
    let mut header = [0; HEADER_BYTES];
    let filled =
        file.read_full_at(&mut header, 0).map_err(|source| WalError::io("read", path, source))?;
    Ok(read_header(&header[..filled]))
}

/// The newest that a segment's frames say.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    /// The label with the highest watermark found in it.
    pub(crate) newest: Label,
    /// The highest sequence that a whole frame bears witness to, the one before the segment's
    /// first if there is none.
    pub(crate) last: Sequence,
    /// Whole records.
    pub(crate) records: u64,
    pub(crate) damage: Vec<Damage>,
    /// What a write that a crash cut short has left at the end; empty if there is nothing. Its
    /// start is where the segment ends.
    pub(crate) torn: Range<u64>,
    /// From here on nothing proves that what stands there was ever synced.
    pub(crate) unproven: u64,
    /// Where the file ends.
    pub(crate) length: u64,
}

/// Bytes that are not what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// The records that stood there, if any.
    pub(crate) lost: Option<(Sequence, Sequence)>,
}

/// A hole, and what was known before it.
struct Hole {
    damage: Damage,
    records: u64,
}

/// What is known of a segment's end before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It is the newest: a crash may have torn its end.
    Open,
    /// There is a later one, so everything in it was durable once.
    Left,
    /// The next begins behind this record. Frames beyond it were written again there after a
    /// failure.
    At(Sequence),
}

/// Reads all of a segment.
///
/// A hole is damage if something proves that what stood there was durable: a later segment, or a
/// frame of a later commit. Otherwise it is where a crash has torn the last commit, of which any
/// part may be there: nobody has a receipt for it, and the segment ends at the hole.
pub(crate) fn read_contents(
    file: &dyn StorageFile,
    path: &Path,
    label: &Label,
    ends: Ends,
) -> Result<Contents, WalError> {
    let failed = |source| WalError::io("read", path, source);
    let length = file.len().map_err(failed)?;
    let mut newest = *label;
    let mut seen = label.first.prev();
    let mut records = 0;
    let (last, mut proven) = match ends {
        Ends::Open => (None, Sequence::NONE),
        Ends::Left => (None, Sequence(u64::MAX)),
        Ends::At(last) => (Some(last), last),
    };
    let mut holes: Vec<Hole> = Vec::new();
    let mut end = HEADER_BYTES as u64;
    let mut unproven = end;
    let mut hurt = None;
    let accept = Accept::Of { salt: label.salt, first: label.first };
    let mut scanner = Scanner::new(end);
    loop {
        match scanner.step(file, accept, length).map_err(failed)? {
            Step::Frame { offset, head } => {
                let control = head.kind == KIND_CONTROL;
                // A control record bears witness to the record before it.
                let next = head.place();
                if last.is_some_and(|last| head.sequence > last) {
                    continue;
                }
                let lost = (next > seen.next()).then(|| (seen.next(), next.prev()));
                if hurt.is_some() || lost.is_some() {
                    let (from, to) = hurt.take().unwrap_or((offset, offset));
                    holes.push(Hole { damage: Damage { from, to, lost }, records });
                }
                if head.proves() >= seen {
                    unproven = offset;
                }
                proven = proven.max(head.proves());
                // Blocks in a wrong place repeat or come late; readers pass such records by.
                let counts = !control && head.sequence > seen;
                records += u64::from(counts);
                seen = seen.max(head.sequence);
                if control
                    && let Some(label) = scanner.label()
                    && label.watermark >= newest.watermark
                {
                    newest = label;
                }
                end = scanner.offset();
            }
            Step::Damage { from, to } => hurt = Some((from, to)),
            Step::Tail { from, to } => {
                if let Some(last) = last.filter(|&last| seen < last) {
                    let from = hurt.map_or(from, |(from, _)| from);
                    let damage = Damage { from, to, lost: Some((seen.next(), last)) };
                    holes.push(Hole { damage, records });
                    seen = last;
                }
                break;
            }
        }
    }
    let mut torn = end..torn_upto(file, label, end..length, seen).map_err(failed)?;
    let first_torn =
        holes.iter().position(|hole| hole.damage.lost.is_some_and(|(_, upto)| upto > proven));
    if let Some(index) = first_torn {
        let hole = &mut holes[index];
        torn.start = hole.damage.from;
        records = hole.records;
        let whole = hole.damage.lost.map_or(seen, |(first, _)| first.prev());
        seen = whole.max(proven);
        // What was durable of it is damaged.
        hole.damage.lost = (seen > whole).then(|| (whole.next(), seen));
        holes.truncate(index + usize::from(seen > whole));
    }
    let damage = holes.into_iter().map(|hole| hole.damage).collect();
    Ok(Contents { newest, last: seen, records, damage, torn, unproven, length })
}

/// How far a torn write reaches behind a segment's last whole frame, as far as can be seen.
fn torn_upto(
    file: &dyn StorageFile,
    label: &Label,
    rest: Range<u64>,
    last: Sequence,
) -> io::Result<u64> {
    const CHUNK_BYTES: u64 = 256 << 10;
    match label.rest {
        Rest::Nothing => Ok(rest.end),
        Rest::Zeros => {
            let mut buffer = vec![0; CHUNK_BYTES.min(rest.end - rest.start) as usize];
            let mut upto = rest.start;
            let mut at = rest.start;
            while at < rest.end {
                let want = buffer.len().min((rest.end - at) as usize);
                let got = file.read_some_at(&mut buffer[..want], at)?;
                if got == 0 {
                    break;
                }
                if let Some(nonzero) = buffer[..got].iter().rposition(|&byte| byte != 0) {
                    upto = at + nonzero as u64 + 1;
                }
                at += got as u64;
            }
            Ok(upto)
        }
        // Stale bytes are no sign of a write; the beginning of the next frame is.
        Rest::Stale => {
            let mut head = [0; FRAME_BYTES];
            let got = file.read_full_at(&mut head, rest.start)?;
            let next = FrameHead::read(&head[..got]).filter(|head| {
                let control = head.kind == KIND_CONTROL;
                head.sequence == if control { last } else { last.next() }
            });
            let bytes = next.map_or(0, |head| head.frame_bytes() as u64);
            Ok((rest.start + bytes).min(rest.end))
        }
    }
}

const _: () = assert!(PAYLOAD_CODEC == 1, "WalError::UnknownFormat names the codec we read");

impl Scanner {
    /// The label in the control record the last step returned.
    pub(crate) fn label(&self) -> Option<Label> {
        self_describing_label(self.frame())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_segments() {
        assert_eq!(FileName::parse("procmond-00001.wal"), Some(FileName::Segment(1)));
        assert_eq!(FileName::parse("procmond-123456.wal"), Some(FileName::Segment(123_456)));
        assert_eq!(FileName::parse("procmond-00002.wal.new"), Some(FileName::Unfinished(2)));
        assert_eq!(FileName::parse("procmond-00003.wal.next"), Some(FileName::Next(3)));
        assert_eq!(FileName::parse("procmond-00004.wal.spare"), Some(FileName::Spare(4)));
        for foreign in [
            "procmond-00000.wal",
            "procmond-1.wal",
            "procmond-000001.wal",
            "procmond-+0001.wal",
            "procmond-00001.torn-20260101T000000Z",
            "procmond-00001.wal.bak",
            "procmond-99999999999999999999999.wal",
            "procmond-.wal",
            "procmond.lock",
        ] {
            assert_eq!(FileName::parse(foreign), None, "{foreign}");
        }
    }
}
