//! Opening a log: what the last writer left, whatever ended it.
//!
//! 1. Files that were never finished are removed, and a new stream that had its first segment
//!    in place is completed ([`settle`]).
//! 2. Every segment is asked who it is. Only the last is read as a whole: the others end where the
//!    next begins, and a reader finds out about damage in them when it gets there.
//! 3. The last segment's torn tail is cut off. It is never written to again: every opening begins
//!    a segment of its own, so that each segment has one epoch and no file that an unknown crash
//!    has touched is written on.
//! 4. What was relied on is synced before it is trusted: a record that only the page cache still
//!    knows must not be told to anybody. A segment that another follows was synced before that one
//!    was begun, so opening takes no longer for a longer log.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::format::{FRAME_BYTES, FrameHead, Label, Rest};
use super::reader::LostReason;
use super::reserve;
use super::segment::{self, EMPTY_BYTES, Ends, FileName, NotBegun};
use super::state::{Segment, SegmentKey};
use super::storage::{Storage, StorageFile};
use super::writer::{Active, random_salt};
use super::{LostRange, Recovery, TornTail, WalError};

/// Copies of torn tails kept in the directory; older ones are removed.
const TORN_COPIES_MAX: usize = 4;

/// A log ready to be written on.
pub(crate) struct Recovered {
    pub(crate) stream: StreamId,
    pub(crate) epoch: Epoch,
    pub(crate) epochs: Vec<(Sequence, Epoch)>,
    pub(crate) last: Sequence,
    pub(crate) watermark: Sequence,
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) active: Active,
    pub(crate) report: Recovery,
}

/// A segment file and what it says of itself.
struct Found {
    number: u64,
    path: PathBuf,
    bytes: u64,
    label: Option<Label>,
}

impl Found {
    /// Opened when needed: there may be more segments than files a process may have open.
    fn open(&self, storage: &dyn Storage) -> Result<Box<dyn StorageFile>, WalError> {
        storage.open(&self.path, true).map_err(|source| WalError::io("open", &self.path, source))
    }
}

pub(crate) fn recover(storage: &dyn Storage, dir: &Path) -> Result<Recovered, WalError> {
    let mut found = settle(storage, dir)?;
    let highest = found.last().map_or(0, |segment| segment.number);
    let newest = found.iter().rev().find_map(|segment| segment.label);
    let stream = newest.map(|label| label.stream);
    // Segments of another stream were put here by somebody: they are not read, and not removed.
    let mut report = Recovery { new_stream: stream.is_none(), ..Recovery::default() };
    found.retain(|segment| {
        let ours =
            stream.is_some() && segment.label.is_none_or(|label| Some(label.stream) == stream);
        if !ours {
            report.foreign.push(segment.path.clone());
        }
        ours
    });

    let mut log = Reading::default();
    for index in 0..found.len() {
        let next_first = found[index + 1..].iter().find_map(|later| later.label).map(|l| l.first);
        log.take(storage, dir, &found[index], found.get(index + 1), next_first, &mut report)?;
    }
    drop(found);

    let previous = log.newest;
    let stream = stream.unwrap_or_else(StreamId::random);
    let epoch = previous.map_or_else(Epoch::first, |label| label.epoch.next());
    // Everything below the oldest segment was acknowledged, or a reader is told that it is missing.
    let (watermark, watermark_epoch) =
        previous.map_or((Sequence::NONE, None), |label| (label.watermark, label.watermark_epoch));
    // Acknowledged segments are deleted one by one, and a crash may keep any of the deletions.
    // And what was acknowledged is no loss.
    report.damage.retain(|lost| lost.last > watermark);
    for lost in &mut report.damage {
        lost.first = lost.first.max(watermark.next());
    }
    if let Some(first) = log.segments.front().map(|segment| segment.first)
        && first > watermark.next()
    {
        let reason = LostReason::Missing;
        report.damage.insert(0, LostRange { first: watermark.next(), last: first.prev(), reason });
    }
    let last = log.last.max(watermark);
    let mut epochs = log.epochs;
    if let Some(epoch) = watermark_epoch
        && epochs.first().is_none_or(|&(first, _)| first > watermark)
    {
        epochs.insert(0, (watermark, epoch));
    }
    // Openings that wrote nothing have left no record to be asked about.
    epochs.retain(|&(first, _)| first <= last);
    epochs.push((last.next(), epoch));

    // A segment without records gives its number to the one that takes its place.
    let reused = log.segments.pop_back_if(|segment| {
        segment.number == highest && segment.last < segment.first && segment.key.is_some()
    });
    let label = Label {
        stream,
        replaces: previous.and_then(|label| label.replaces),
        segment: reused.map_or(highest + 1, |segment| segment.number),
        salt: random_salt(),
        first: last.next(),
        watermark,
        watermark_epoch,
        epoch,
        epoch_first: last.next(),
        rest: Rest::Nothing,
    };
    segment::check_number(dir, label.segment)?;
    let active = match segment::create(storage, dir, &label, &[]) {
        Ok((path, file)) => Active::new(file, path, label, 0),
        // Whoever is to drain the log has to open it.
        Err(NotBegun { error: full @ WalError::DiskFull { .. }, .. }) => {
            reserve::begin_segment(storage, dir, label, &[]).map_err(|_| full)?
        }
        Err(failed) => return Err(failed.error),
    };

    report.first = log.segments.front().map_or(label.first, |segment| segment.first);
    report.last = last;
    report.watermark = watermark;
    report.records = last.since(watermark);
    let mut segments = log.segments;
    segments.push_back(active.entry());
    report.segments = segments.len();
    Ok(Recovered { stream, epoch, epochs, last, watermark, segments, active, report })
}

/// What the segments say, taken together in order.
#[derive(Default)]
struct Reading {
    segments: VecDeque<Segment>,
    epochs: Vec<(Sequence, Epoch)>,
    last: Sequence,
    /// Records that may have stood behind that one, if the end of its segment is damaged.
    beyond: u64,
    /// The label with the highest watermark, of the newest epoch.
    newest: Option<Label>,
}

impl Reading {
    fn take(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
        found: &Found,
        follower: Option<&Found>,
        next_first: Option<Sequence>,
        report: &mut Recovery,
    ) -> Result<(), WalError> {
        let Some(label) = found.label else {
            self.take_unreadable(found, next_first, report);
            return Ok(());
        };
        if self.segments.is_empty() {
            self.last = label.first.prev();
        } else if label.first > self.last.next() {
            // A segment between them is gone.
            self.lose(self.last.next(), label.first.prev(), LostReason::Missing, report);
        }
        self.learn(&label);
        let mut bytes = found.bytes;
        let mut beyond = 0;
        // A segment before the end, before an unreadable or a missing one has to be read: nothing
        // else says where it ends.
        let next = follower.filter(|follower| follower.number == found.number + 1);
        let last = match next.and_then(|next| next.label) {
            Some(next) => next.first.prev().max(label.first.prev()),
            None => {
                let file = found.open(storage)?;
                let ends = if follower.is_none() { Ends::Open } else { Ends::Left };
                let contents = segment::read_contents(&*file, &found.path, &label, ends)?;
                self.learn(&contents.newest);
                for damage in &contents.damage {
                    if let Some((first, last)) = damage.lost {
                        report.damage.push(LostRange { first, last, reason: LostReason::Damaged });
                    }
                }
                if !segment::has_whole_header(&*file, &found.path, found.number)? {
                    // Its label was found in a control record, which may be cut off now.
                    segment::mend_header(&*file, &found.path, &label)?;
                }
                bytes = contents.torn.start;
                beyond = (contents.length - bytes) / FRAME_BYTES as u64;
                // A kill may have left it to the page cache, a failed sync so that no other writes it.
                if contents.unproven < bytes {
                    segment::rewrite(&*file, &found.path, contents.unproven..bytes)?;
                }
                if follower.is_none() && bytes < contents.length {
                    if !contents.torn.is_empty() {
                        let torn = contents.torn.clone();
                        report.torn = Some(keep_torn(storage, dir, found, &*file, torn)?);
                    }
                    cut(found, &*file, bytes)?;
                }
                contents.last
            }
        };
        self.segments.push_back(Segment {
            number: found.number,
            path: found.path.clone(),
            first: label.first,
            last,
            bytes,
            file_bytes: bytes,
            key: Some(SegmentKey { salt: label.salt, epoch: label.epoch }),
        });
        self.last = self.last.max(last);
        self.beyond = beyond;
        Ok(())
    }

    /// A segment that nothing in it names. Its header was durable before it had its name, so this
    /// is damage and not a crash; the sequences that may have stood in it are not used again.
    fn take_unreadable(
        &mut self,
        found: &Found,
        next_first: Option<Sequence>,
        report: &mut Recovery,
    ) {
        let records = found.bytes.saturating_sub(EMPTY_BYTES) / FRAME_BYTES as u64;
        let mut first = self.last.next();
        let last = match next_first {
            Some(next) => next.prev().max(self.last),
            None => Sequence(self.last.0 + self.beyond + records),
        };
        if self.segments.is_empty() && next_first.is_some() {
            // Nothing says where it began: it is the oldest.
            first = first.max(Sequence(last.0.saturating_sub(records)).next());
        }
        if first > last {
            // No record of this stream can have stood in it.
            report.foreign.push(found.path.clone());
            return;
        }
        report.damage.push(LostRange { first, last, reason: LostReason::Damaged });
        self.segments.push_back(Segment {
            number: found.number,
            path: found.path.clone(),
            first,
            last,
            bytes: found.bytes,
            file_bytes: found.bytes,
            key: None,
        });
        self.last = last;
        self.beyond = 0;
    }

    fn lose(&mut self, first: Sequence, last: Sequence, reason: LostReason, report: &mut Recovery) {
        report.damage.push(LostRange { first, last, reason });
        self.last = last;
    }

    fn learn(&mut self, label: &Label) {
        if self.newest.is_none_or(|newest| label.watermark >= newest.watermark) {
            let epoch = self.newest.map_or(label.epoch, |newest| newest.epoch.max(label.epoch));
            self.newest = Some(Label { epoch, ..*label });
        } else if let Some(newest) = &mut self.newest {
            newest.epoch = newest.epoch.max(label.epoch);
        }
        if self.epochs.last().is_none_or(|&(first, _)| first < label.epoch_first) {
            self.epochs.push((label.epoch_first, label.epoch));
        } else if let Some(last) = self.epochs.last_mut()
            && last.0 == label.epoch_first
        {
            // An opening that wrote nothing was followed by another.
            last.1 = last.1.max(label.epoch);
        }
    }
}

/// Ends a segment's file where its records end, before anything relies on it.
fn cut(found: &Found, file: &dyn StorageFile, end: u64) -> Result<(), WalError> {
    let failed = |source| WalError::io("cut the torn tail of", &found.path, source);
    file.set_len(end).and_then(|()| file.sync_data()).map_err(failed)
}

/// Says what will be cut off, and keeps a copy of it if it is more than one record cut short.
fn keep_torn(
    storage: &dyn Storage,
    dir: &Path,
    found: &Found,
    file: &dyn StorageFile,
    tail: Range<u64>,
) -> Result<TornTail, WalError> {
    let bytes = tail.end - tail.start;
    let failed = |source| WalError::io("read", &found.path, source);
    let mut head = [0; FRAME_BYTES];
    let got = file.read_full_at(&mut head, tail.start).map_err(failed)?;
    let one_record =
        FrameHead::read(&head[..got]).map_or(FRAME_BYTES as u64, |head| head.frame_bytes() as u64);
    let copy = if bytes > one_record {
        match copy_tail(storage, dir, found, file, tail.clone()) {
            Err(error @ WalError::DiskFull { .. }) => {
                tracing::warn!(%error, "a torn tail is cut off without a copy of it");
                None
            }
            copy => Some(copy?),
        }
    } else {
        None
    };
    Ok(TornTail { path: found.path.clone(), offset: tail.start, bytes, copy })
}

fn copy_tail(
    storage: &dyn Storage,
    dir: &Path,
    found: &Found,
    file: &dyn StorageFile,
    tail: Range<u64>,
) -> Result<PathBuf, WalError> {
    const CHUNK_BYTES: usize = 64 << 10;
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
    let path = dir.join(format!("procmond-{:05}.torn-{time}", found.number));
    let failed = |source| WalError::io("copy a torn tail to", &path, source);
    let copy = storage.create(&path).map_err(failed)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = tail.start;
    while at < tail.end {
        let want = buffer.len().min((tail.end - at) as usize);
        let got = file.read_some_at(&mut buffer[..want], at).map_err(failed)?;
        if got == 0 {
            break;
        }
        copy.write_all_at(&buffer[..got], at - tail.start).map_err(failed)?;
        at += got as u64;
    }
    copy.sync_data().map_err(failed)?;
    storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source))?;
    remove_old_copies(storage, dir)?;
    Ok(path)
}

/// The copies are for people to look at, and must not fill the disk.
fn remove_old_copies(storage: &dyn Storage, dir: &Path) -> Result<(), WalError> {
    let names = storage.list(dir).map_err(|source| WalError::io("list", dir, source))?;
    let mut copies: Vec<_> = names
        .into_iter()
        .filter_map(|name| {
            let (_, time) = name.strip_prefix("procmond-")?.split_once(".torn-")?;
            Some((time.to_owned(), name))
        })
        .collect();
    copies.sort();
    let old = copies.len().saturating_sub(TORN_COPIES_MAX);
    for (_, name) in copies.drain(..old) {
        let path = dir.join(name);
        storage
            .unlink(&path)
            .map_err(|source| WalError::io("remove an old copy of a torn tail", &path, source))?;
    }
    Ok(())
}

/// Brings the directory to one state after a crash in the middle of making a segment or of
/// beginning a stream, and asks its segments who they are, in order.
fn settle(storage: &dyn Storage, dir: &Path) -> Result<Vec<Found>, WalError> {
    let names = storage.list(dir).map_err(|source| WalError::io("list", dir, source))?;
    let mut files: Vec<_> = names.iter().filter_map(|name| FileName::parse(name)).collect();
    files.sort();
    let mut segments = Vec::new();
    let mut waiting = Vec::new();
    for name in files {
        match name {
            FileName::Segment(number) => segments.push(ask(storage, name.path(dir), number)?),
            FileName::Next(number) => waiting.push(ask(storage, name.path(dir), number)?),
            FileName::Unfinished(_) | FileName::Spare(_) => {
                unlink(storage, &name.path(dir))?;
            }
        }
    }
    doubt(storage, &mut segments)?;
    // A new stream has begun once its first segment has its name: the rest follows, and the stream
    // it replaces goes. Before that it never was.
    let newest = segments.iter().rev().find_map(|segment| segment.label);
    for mut next in waiting {
        let of_newest = newest
            .is_some_and(|newest| next.label.is_some_and(|label| label.stream == newest.stream));
        let taken = segments.iter().any(|segment| segment.number == next.number);
        if of_newest && !taken {
            let path = FileName::Segment(next.number).path(dir);
            storage
                .rename(&next.path, &path)
                .map_err(|source| WalError::io("rename a segment to", &path, source))?;
            next.path = path;
            segments.push(next);
        } else {
            unlink(storage, &next.path)?;
        }
    }
    segments.sort_by_key(|segment| segment.number);
    let sync = || storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source));
    if let Some(replaced) = newest.and_then(|newest| newest.replaces) {
        let old: Vec<_> = segments
            .extract_if(.., |segment| segment.label.is_some_and(|l| l.stream == replaced))
            .collect();
        if !old.is_empty() {
            // A kill may have left the names of the new one to the system's memory.
            sync()?;
        }
        for segment in old {
            unlink(storage, &segment.path)?;
        }
    }
    sync()?;
    Ok(segments)
}

/// Believes no control record about what stream its segment is of, against what headers say: with
/// the header and the control records of a segment gone, one may be found in a payload.
fn doubt(storage: &dyn Storage, segments: &mut [Found]) -> Result<(), WalError> {
    let mut streams = segments.iter().filter_map(|segment| segment.label).map(|l| l.stream);
    let first = streams.next();
    if streams.all(|stream| Some(stream) == first) {
        return Ok(());
    }
    let mut vouched = Vec::new();
    for segment in &*segments {
        let file = segment.open(storage)?;
        if segment::has_whole_header(&*file, &segment.path, segment.number)? {
            vouched.extend(segment.label.map(|label| label.stream));
        }
    }
    for segment in segments {
        if !vouched.is_empty() && segment.label.is_some_and(|l| !vouched.contains(&l.stream)) {
            let file = segment.open(storage)?;
            let (path, number) = (&segment.path, segment.number);
            segment.label = segment::label_of_controls(&*file, path, number, &vouched)?;
        }
    }
    Ok(())
}

/// Asks a segment who it is.
fn ask(storage: &dyn Storage, path: PathBuf, number: u64) -> Result<Found, WalError> {
    let mut found = Found { number, path, bytes: 0, label: None };
    let file = found.open(storage)?;
    found.bytes = file.len().map_err(|source| WalError::io("look at", &found.path, source))?;
    found.label = segment::read_label(&*file, &found.path, number)?;
    Ok(found)
}

fn unlink(storage: &dyn Storage, path: &Path) -> Result<(), WalError> {
    storage.unlink(path).map_err(|source| WalError::io("remove", path, source))
}
