//! Looking at a log without touching it: no lock is taken and nothing is written, so a live
//! directory may be looked at as well as a damaged one.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::format::{CONTROL_BYTES, FRAME_BYTES, FrameHead, HEADER_BYTES, KIND_CONTROL, Label};
use super::offline::catalogue::{Catalogue, Found, Group, Odd, Place, read_full};
use super::segment::{self, Contents, Ends};
use super::storage::{OsStorage, StorageFile};
use super::{Compression, LogFiles, LostRange, LostReason, Progress, WalError};

/// How long a live log's last write is waited for before its tail is called torn.
const TAIL_PATIENCE: Duration = Duration::from_millis(20);
const TAIL_LOOKS: usize = 10;
/// How often a directory is read again because segments went away while it was read.
const LOOKS_MAX: usize = 5;

/// A log as its files say.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// The stream of the log directory, or of the newest archives; none if no segment can be read.
    pub stream: Option<StreamId>,
    /// The highest watermark found in that stream.
    pub watermark: Sequence,
    /// The segments, oldest first; those of other streams before.
    pub segments: Vec<SegmentReport>,
}

/// One segment file.
#[derive(Debug, Clone)]
pub struct SegmentReport {
    /// The number in its name.
    pub number: u64,
    /// The file.
    pub path: PathBuf,
    /// Where its last whole frame ends. What follows has no meaning.
    pub bytes: u64,
    /// What the file takes on disk: more if it was written ahead, less if it is packed.
    pub file_bytes: u64,
    /// How it is packed.
    pub compression: Compression,
    /// Whether it is an archive, or a copy that stands with the archives.
    pub archived: bool,
    /// Whether it is the archive of a segment that is listed as well. Its records are not counted
    /// again.
    pub second: bool,
    /// What it says of itself, if anything in it still does.
    pub identity: Option<SegmentIdentity>,
    /// The first and the last sequence it is there for; none if it holds none.
    pub range: Option<(Sequence, Sequence)>,
    /// Whole records in it.
    pub records: u64,
    /// Why it could not be unpacked to its end, or what it is instead of a segment.
    pub fault: Option<String>,
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
    /// It has a segment's name and cannot be one: no file, or one that is too long. It is not
    /// opened.
    NotASegment,
    /// The segment before it is missing.
    PredecessorMissing,
    /// An archive that does not end as archives do.
    CutShort,
    /// It cannot be unpacked to its end.
    Packing,
    /// Records known to be lost: a control record bears witness to them. The segment is as it was
    /// written, and this alone does not make it unsound.
    Gap,
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
            Self::NotASegment => "not_a_segment",
            Self::PredecessorMissing => "predecessor_missing",
            Self::CutShort => "cut_short",
            Self::Packing => "packing",
            Self::Gap => "gap",
        }
    }
}

impl SegmentReport {
    /// Whether it is as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|problem| problem.kind == ProblemKind::Gap)
    }
}

impl Inspection {
    /// Whether everything is as it was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.segments.iter().all(SegmentReport::is_sound)
    }
}

/// Reads all of a log, in bounded memory. Segments that are deleted meanwhile are left out.
///
/// # Errors
/// [`WalError::Io`] if the directory or a file cannot be read, [`WalError::UnknownFormat`] if a
/// newer program wrote it. Damage is no error.
pub fn inspect(dir: &Path) -> Result<Inspection, WalError> {
    inspect_files(&dir.into(), &Progress::default())
}

/// Reads all of a log, of archives, or of both.
///
/// # Errors
/// As [`inspect()`].
pub fn inspect_files(files: &LogFiles, progress: &Progress) -> Result<Inspection, WalError> {
    for _ in 1..LOOKS_MAX {
        if let (inspection, false) = look(files, progress)? {
            return Ok(inspection);
        }
    }
    Ok(look(files, progress)?.0)
}

/// One look, and whether files went away during it.
fn look(files: &LogFiles, progress: &Progress) -> Result<(Inspection, bool), WalError> {
    let catalogue = Catalogue::look(&OsStorage, files, progress)?;
    let mut vanished = catalogue.vanished;
    let mut inspection = Inspection::default();
    for group in &catalogue.groups {
        let live = files.dir.is_some() && group.stream == catalogue.stream;
        let (reports, watermark) = report(group, live, progress, &mut vanished)?;
        inspection.segments.extend(reports);
        if group.stream.is_some() {
            (inspection.stream, inspection.watermark) = (group.stream, watermark);
        }
    }
    for found in &catalogue.foreign {
        let mut report = SegmentReport::of(found);
        if let Some(label) = &found.label {
            report.identify(label);
        }
        report.problem(ProblemKind::Foreign, 0, found.bytes, None);
        inspection.segments.push(report);
    }
    inspection.segments.extend(catalogue.odd.iter().map(SegmentReport::of_odd));
    if files.dir.is_some() && files.archives.is_empty() {
        inspection.segments.sort_by_key(|report| report.number);
    }
    Ok((inspection, vanished))
}

/// What there is to say about the segments of one stream, and its watermark.
fn report(
    group: &Group,
    live: bool,
    progress: &Progress,
    vanished: &mut bool,
) -> Result<(Vec<SegmentReport>, Sequence), WalError> {
    let mut reports: Vec<SegmentReport> = Vec::new();
    let mut watermark = Sequence::NONE;
    // The end of what has been read, once something has.
    let mut last: Option<Sequence> = None;
    // Where the first readable one begins, and which of the reports that is.
    let mut begins = None;
    for (index, found) in group.segments.iter().enumerate() {
        let mut report = SegmentReport::of(found);
        report.second = group.is_second(index);
        if let Some(label) = found.label {
            if let Some(last) = last.filter(|last| label.first > last.next()) {
                let kind = ProblemKind::PredecessorMissing;
                report.problem(
                    kind,
                    0,
                    0,
                    Some((last.next(), label.first.prev(), LostReason::Missing)),
                );
            }
            begins.get_or_insert((reports.len(), label.first));
            let ends = group.ends(index);
            let Some(read) = read(found, &label, ends, progress)? else {
                *vanished = true;
                continue;
            };
            report.fill(found, &label, ends, read);
            let upto = report.range.map_or(label.first.prev(), |(_, upto)| upto);
            last = Some(last.map_or(upto, |last| last.max(upto)));
            watermark = watermark.max(report.identity.map_or(watermark, |it| it.watermark));
        } else {
            let first = last.map(Sequence::next);
            let until = match group.following(index) {
                Some((_, label)) => Some(label.first.prev()),
                // Nobody knows how many; the next opening leaves out as many as have room in it.
                None => last.map(|last| Sequence(last.0 + found.room())),
            };
            let lost = match (first, until) {
                (Some(first), Some(until)) if first <= until => {
                    last = Some(until);
                    Some((first, until, LostReason::Damaged))
                }
                _ => None,
            };
            report.range = lost.map(|(first, until, _)| (first, until));
            report.problem(ProblemKind::Unreadable, 0, found.bytes, lost);
        }
        reports.push(report);
    }
    // Acknowledged segments are deleted one by one, and a crash may keep any of the deletions.
    for report in &mut reports {
        report.problems.retain(|problem| {
            problem.kind != ProblemKind::PredecessorMissing
                || problem.lost.is_none_or(|lost| lost.last > watermark)
        });
    }
    // Only what was acknowledged may be missing before the first.
    if let Some((at, first)) = begins.filter(|&(_, first)| live && first > watermark.next()) {
        let lost = (watermark.next(), first.prev());
        match reports[..at].last_mut() {
            Some(unreadable) => {
                unreadable.problems.clear();
                unreadable.range = Some(lost);
                let lost = Some((lost.0, lost.1, LostReason::Damaged));
                unreadable.problem(ProblemKind::Unreadable, 0, unreadable.file_bytes, lost);
            }
            None => {
                let lost = Some((lost.0, lost.1, LostReason::Missing));
                reports[at].problem(ProblemKind::PredecessorMissing, 0, 0, lost);
            }
        }
    }
    Ok((reports, watermark))
}

/// What was read of a segment.
struct Read {
    contents: Contents,
    compression: Compression,
    fault: Option<String>,
    cut_short: bool,
    /// Its holes that a control record stands behind.
    gaps: Vec<bool>,
}

/// Reads a segment, unless it is gone. The last one is read again for a while as long as its end
/// is not whole: a live log may be writing there.
fn read(
    found: &Found,
    label: &Label,
    ends: Ends,
    progress: &Progress,
) -> Result<Option<Read>, WalError> {
    let Some(opened) = found.open(&OsStorage, progress)? else { return Ok(None) };
    let file = opened.file();
    let mut contents = segment::read_contents(file, &found.path, label, ends)?;
    if found.place == Place::Log && ends == Ends::Open {
        contents = wait_for_end(found, file, label, contents)?;
    }
    if found.place == Place::Log && !found.is_there(&OsStorage)? {
        return Ok(None);
    }
    let failed = |source| WalError::io("read", &found.path, source);
    let mut gaps = Vec::with_capacity(contents.damage.len());
    for hole in &contents.damage {
        let witnessed = hole.from == hole.to && has_control_at(file, hole.to).map_err(failed)?;
        gaps.push(witnessed);
    }
    let mut cut_short = false;
    if found.place == Place::Archive && opened.compression() == Compression::None {
        let at = contents.torn.start.saturating_sub(CONTROL_BYTES as u64);
        cut_short = !has_control_at(file, at).map_err(failed)?;
    }
    let (compression, fault) = (opened.compression(), opened.fault());
    Ok(Some(Read { contents, compression, fault, cut_short, gaps }))
}

/// Reads the end of a segment again until it is whole, or has not moved for a while. One that
/// moves is being written, and is no torn one.
fn wait_for_end(
    found: &Found,
    file: &dyn StorageFile,
    label: &Label,
    mut contents: Contents,
) -> Result<Contents, WalError> {
    let before = contents.torn.start;
    for _ in 1..TAIL_LOOKS {
        if contents.torn.is_empty() {
            break;
        }
        thread::sleep(TAIL_PATIENCE);
        contents = segment::read_contents(file, &found.path, label, Ends::Open)?;
    }
    if contents.torn.start != before {
        contents.torn.end = contents.torn.start;
    }
    Ok(contents)
}

/// Whether the frame that stands here, whole if it is one, is a control record.
fn has_control_at(file: &dyn StorageFile, offset: u64) -> io::Result<bool> {
    let mut head = [0; FRAME_BYTES];
    let got = read_full(file, &mut head, offset)?;
    Ok(FrameHead::read(&head[..got]).is_some_and(|head| head.kind == KIND_CONTROL))
}

impl SegmentReport {
    fn of(found: &Found) -> Self {
        let archived = found.place != Place::Log;
        Self::new(found.number, &found.path, found.bytes, archived)
    }

    fn of_odd(odd: &Odd) -> Self {
        let mut report = Self::new(odd.number, &odd.path, 0, odd.archived);
        report.fault = Some(odd.what.to_owned());
        report.problem(ProblemKind::NotASegment, 0, 0, None);
        report
    }

    fn new(number: u64, path: &Path, bytes: u64, archived: bool) -> Self {
        Self {
            number,
            path: path.to_owned(),
            bytes,
            file_bytes: bytes,
            compression: Compression::None,
            archived,
            second: false,
            identity: None,
            range: None,
            records: 0,
            fault: None,
            problems: Vec::new(),
        }
    }

    fn identify(&mut self, label: &Label) {
        let Label { stream, epoch, watermark, .. } = *label;
        self.identity = Some(SegmentIdentity { stream, epoch, watermark });
    }

    fn fill(&mut self, found: &Found, label: &Label, ends: Ends, read: Read) {
        let contents = read.contents;
        self.identify(&contents.newest);
        self.bytes = contents.torn.start;
        self.compression = read.compression;
        self.records = contents.records;
        self.range = (contents.last >= label.first).then_some((label.first, contents.last));
        if !found.header_whole {
            self.problem(ProblemKind::Header, 0, HEADER_BYTES as u64, None);
        }
        for (damage, gap) in contents.damage.iter().zip(read.gaps) {
            // A hole without a damaged byte was left when a new stream could not carry them over.
            let reason =
                if damage.from < damage.to { LostReason::Damaged } else { LostReason::Missing };
            let lost = damage.lost.map(|(first, last)| (first, last, reason));
            let kind = if gap { ProblemKind::Gap } else { ProblemKind::Damaged };
            self.problem(kind, damage.from, damage.to, lost);
        }
        let Range { start, end } = contents.torn;
        if read.fault.is_some() {
            self.problem(ProblemKind::Packing, start, end, None);
            self.fault = read.fault;
        } else if read.cut_short {
            self.problem(ProblemKind::CutShort, start, end, None);
        } else if start < end && found.place == Place::Archive {
            self.problem(ProblemKind::Damaged, start, end, None);
        } else if start < end && ends == Ends::Open {
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
