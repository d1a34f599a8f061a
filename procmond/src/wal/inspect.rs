//! Looking at a log without touching it: no lock is taken and nothing is written, so a live
//! directory may be looked at as well as a damaged one.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::format::Label;
use super::segment::{self, Contents, Ends, FileName};
use super::storage::{OsStorage, Storage};
use super::{LostRange, LostReason, WalError};

/// How long a live log's last write is waited for before its tail is called torn.
const TAIL_PATIENCE: Duration = Duration::from_millis(20);
const TAIL_LOOKS: usize = 10;
/// How often a directory is read again because segments went away while it was read.
const LOOKS_MAX: usize = 5;

/// A log as its files say.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// The stream its newest readable segment belongs to; none if no segment can be read.
    pub stream: Option<StreamId>,
    /// The highest watermark found.
    pub watermark: Sequence,
    /// The segments, oldest first.
    pub segments: Vec<SegmentReport>,
}

/// One segment file.
#[derive(Debug, Clone)]
pub struct SegmentReport {
    /// The number in its name.
    pub number: u64,
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it says of itself, if anything in it still does.
    pub identity: Option<SegmentIdentity>,
    /// The first and the last sequence it is there for; none if it holds none.
    pub range: Option<(Sequence, Sequence)>,
    /// Whole records in it.
    pub records: u64,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentIdentity {
    /// Its stream.
    pub stream: StreamId,
    /// The opening that wrote it.
    pub epoch: Epoch,
    /// The highest watermark in it.
    pub watermark: Sequence,
}

/// Something wrong with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// What it is.
    pub kind: ProblemKind,
    /// The bytes concerned, from here...
    pub from: u64,
    /// ...up to before this offset.
    pub to: u64,
    /// The records that cannot be read for it.
    pub lost: Option<LostRange>,
}

/// What can be wrong with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The header is damaged. A copy further on says the same, so this alone loses no record.
    Header,
    /// Bytes that are no whole record, with whole records after them.
    Damaged,
    /// Bytes after the last whole record: a write that a crash cut short, or damage at the very
    /// end, which look the same. The next opening cuts them off.
    TornTail,
    /// Nothing in the file says what it is, so nothing in it can be read.
    Unreadable,
    /// It belongs to another log, and is not read.
    Foreign,
    /// The segment before it is missing.
    PredecessorMissing,
}

impl ProblemKind {
    /// Its name in machine-readable output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Damaged => "damaged",
            Self::TornTail => "torn_tail",
            Self::Unreadable => "unreadable",
            Self::Foreign => "foreign",
            Self::PredecessorMissing => "predecessor_missing",
        }
    }
}

impl Inspection {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.segments.iter().all(|segment| segment.problems.is_empty())
    }
}

/// Reads all of a log, in bounded memory. Segments that are deleted meanwhile are left out.
///
/// # Errors
/// [`WalError::Io`] if the directory or a file cannot be read, [`WalError::UnknownFormat`] if a
/// newer program wrote it. Damage is no error.
pub fn inspect(dir: &Path) -> Result<Inspection, WalError> {
    for _ in 1..LOOKS_MAX {
        if let (inspection, false) = look(dir)? {
            return Ok(inspection);
        }
    }
    Ok(look(dir)?.0)
}

struct Found {
    number: u64,
    path: PathBuf,
    bytes: u64,
    header_whole: bool,
    label: Option<Label>,
}

/// One look, and whether files went away during it.
fn look(dir: &Path) -> Result<(Inspection, bool), WalError> {
    let storage = OsStorage;
    let names = storage.list(dir).map_err(|source| WalError::io("list", dir, source))?;
    let mut numbers: Vec<_> = names
        .iter()
        .filter_map(|name| match FileName::parse(name) {
            Some(FileName::Segment(number)) => Some(number),
            _ => None,
        })
        .collect();
    numbers.sort_unstable();
    let mut found = Vec::new();
    let mut vanished = false;
    for number in numbers {
        let path = FileName::Segment(number).path(dir);
        let file = match storage.open(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                vanished = true;
                continue;
            }
            Err(source) => return Err(WalError::io("open", &path, source)),
        };
        let header_whole = segment::has_whole_header(&*file, &path)?;
        let label = segment::read_label(&*file, &path, number)?;
        let bytes = file.len().map_err(|source| WalError::io("read", &path, source))?;
        found.push(Found { number, path, bytes, header_whole, label });
    }
    let inspection = report(&found, &mut vanished)?;
    Ok((inspection, vanished))
}

fn report(found: &[Found], vanished: &mut bool) -> Result<Inspection, WalError> {
    let newest = found.iter().rev().find_map(|segment| segment.label);
    let mut inspection =
        Inspection { stream: newest.map(|label| label.stream), ..Inspection::default() };
    // The end of what has been read, once something has.
    let mut last: Option<Sequence> = None;
    for (index, segment) in found.iter().enumerate() {
        let replaced = newest.and_then(|newest| newest.replaces);
        if replaced.is_some() && segment.label.map(|label| label.stream) == replaced {
            // The rest of a stream that has ended; the next opening removes it.
            continue;
        }
        let bytes = segment.bytes;
        let mut report = SegmentReport {
            number: segment.number,
            path: segment.path.clone(),
            bytes,
            identity: None,
            range: None,
            records: 0,
            problems: Vec::new(),
        };
        let following = found[index + 1..]
            .iter()
            .find(|later| later.label.is_some_and(|l| Some(l.stream) == inspection.stream));
        match segment.label {
            Some(label) if Some(label.stream) == inspection.stream => {
                if let Some(last) = last.filter(|last| label.first > last.next()) {
                    let kind = ProblemKind::PredecessorMissing;
                    let lost = Some((last.next(), label.first.prev(), LostReason::Missing));
                    report.problem(kind, 0, 0, lost);
                }
                let ends = following
                    .filter(|following| following.number == segment.number + 1)
                    .and_then(|following| following.label)
                    .map(|following| Ends::At(following.first.prev().max(label.first.prev())))
                    .unwrap_or(if following.is_none() { Ends::Open } else { Ends::Left });
                let Some(contents) = read(segment, &label, ends)? else {
                    *vanished = true;
                    continue;
                };
                report.fill(segment, &label, &contents, following.is_none());
                last = Some(contents.last);
                inspection.watermark = inspection.watermark.max(contents.newest.watermark);
            }
            Some(label) => {
                report.identify(&label);
                report.problem(ProblemKind::Foreign, 0, bytes, None);
            }
            None => {
                let first = last.map(Sequence::next);
                let until = following.and_then(|following| following.label).map(|l| l.first.prev());
                let lost = match (first, until) {
                    (Some(first), Some(until)) if first <= until => {
                        last = Some(until);
                        Some((first, until, LostReason::Damaged))
                    }
                    _ => None,
                };
                report.range = lost.map(|(first, until, _)| (first, until));
                report.problem(ProblemKind::Unreadable, 0, bytes, lost);
            }
        }
        inspection.segments.push(report);
    }
    // Acknowledged segments are deleted one by one, and a crash may keep any of the deletions.
    let watermark = inspection.watermark;
    for segment in &mut inspection.segments {
        segment.problems.retain(|problem| {
            problem.kind != ProblemKind::PredecessorMissing
                || problem.lost.is_none_or(|lost| lost.last > watermark)
        });
    }
    Ok(inspection)
}

/// Reads a segment, unless it is gone; the last one again for a while as long as its end is not whole, because a live
/// log may be writing there.
fn read(segment: &Found, label: &Label, ends: Ends) -> Result<Option<Contents>, WalError> {
    let file = match OsStorage.open(&segment.path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(WalError::io("open", &segment.path, source)),
    };
    let mut contents = segment::read_contents(&*file, &segment.path, label, ends)?;
    for _ in 1..TAIL_LOOKS {
        if ends != Ends::Open || contents.torn.is_empty() {
            break;
        }
        thread::sleep(TAIL_PATIENCE);
        contents = segment::read_contents(&*file, &segment.path, label, ends)?;
    }
    Ok(Some(contents))
}

impl SegmentReport {
    fn identify(&mut self, label: &Label) {
        let Label { stream, epoch, watermark, .. } = *label;
        self.identity = Some(SegmentIdentity { stream, epoch, watermark });
    }

    fn fill(&mut self, segment: &Found, label: &Label, contents: &Contents, newest: bool) {
        self.identify(&contents.newest);
        self.bytes = contents.length;
        self.records = contents.records;
        self.range = (contents.last >= label.first).then_some((label.first, contents.last));
        if !segment.header_whole {
            self.problem(ProblemKind::Header, 0, super::format::HEADER_BYTES as u64, None);
        }
        for damage in &contents.damage {
            // A hole without a damaged byte was left when a new stream could not carry them over.
            let reason =
                if damage.from < damage.to { LostReason::Damaged } else { LostReason::Missing };
            let lost = damage.lost.map(|(first, last)| (first, last, reason));
            self.problem(ProblemKind::Damaged, damage.from, damage.to, lost);
        }
        if newest && !contents.torn.is_empty() {
            let Range { start, end } = contents.torn;
            self.problem(ProblemKind::TornTail, start, end, None);
        }
    }

    fn problem(
        &mut self,
        kind: ProblemKind,
        from: u64,
        to: u64,
        lost: Option<(Sequence, Sequence, LostReason)>,
    ) {
        let lost = lost.map(|(first, last, reason)| LostRange { first, last, reason });
        self.problems.push(Problem { kind, from, to, lost });
    }
}
