//! Writing: one writer at a time owns the active segment, writes, syncs and rotates.
//!
//! Usually that is the writer thread, which gathers what many tasks append. A thread that appends
//! and waits may do the writing itself if nobody else is at it: waking the writer and being woken
//! by it costs as much as a tenth of a sync.
//!
//! A failed write or sync leaves a file whose pages cannot be trusted: what had no receipt is
//! written again, once, into a fresh segment. If syncing fails there too the log is shut and
//! everybody is told. Where the system only refuses (a full disk, a read-only file system) nothing
//! is spoilt: what is queued stays queued, new records are refused, and the writer tries again
//! until it may write.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId, wall_clock_ns};

use super::error::{is_full, is_refusal};
use super::format::{CONTROL_BYTES, Label, Rest};
use super::group::{Group, Span};
use super::keeper::{Desk, Spare};
use super::lock::DirLock;
use super::reserve;
use super::segment::{self, EMPTY_BYTES, NotBegun};
use super::state::{NewStream, Segment, SegmentKey, Shared, State};
use super::storage::{Storage, StorageFile};
use super::{Rotation, SyncMode, WalError};

mod restream;

/// A control record follows after this many bytes without one, so that a segment whose first page
/// is lost can still say what it is.
const CONTROL_EVERY_BYTES: u64 = 64 << 10;
/// The first repetition stands on another page than the header.
const FIRST_CONTROL_AFTER_BYTES: u64 = 4 << 10;
/// How often a disk that refuses is tried again, if no acknowledgement comes before.
const REFUSED_RETRY: Duration = Duration::from_millis(250);
/// How long a group waits for the producers that the last one woke, when there is no commit delay.
const LINGER: Duration = Duration::from_micros(30);
/// When nothing has been written for so long, a control record says that all before it was
/// durable: damage to the last commit is then told from a torn one.
const SEAL_DELAY: Duration = Duration::from_millis(50);
/// A prepared segment is asked for when this part of the active one is written.
const PREPARE_AT: u64 = 4;
/// A segment that grows is left for a prepared one when it has this much, since every sync of it
/// writes the file's metadata as well; unless it holds little more than that anyway.
const GROWN_BYTES: u64 = 1 << 20;
const GROWN_PART: u64 = 8;

/// The segment being written.
pub(super) struct Active {
    pub(super) file: Box<dyn StorageFile>,
    pub(super) path: PathBuf,
    pub(super) label: Label,
    /// Where its frames end: the next write goes here.
    pub(super) offset: u64,
    /// The length of its file, where it was prepared.
    pub(super) prepared_bytes: u64,
    /// A control record is due when the offset gets here.
    pub(super) control_at: u64,
    /// The last record in it; the one before its first if there is none.
    pub(super) last: Sequence,
    /// The last frame is a control record that says what is true now, and proves that the records
    /// before it were durable when it was written.
    pub(super) sealed: bool,
    /// The watermark in its last control record, or header.
    pub(super) watermark: Sequence,
    pub(super) began: Rotation,
    /// The keeper was asked for the next one.
    pub(super) asked: bool,
    /// A sync has failed: the next one finds nothing to do, unless all is written again before.
    pub(super) unsyncable: bool,
}

impl Active {
    /// A segment that has just been begun.
    pub(super) fn new(
        file: Box<dyn StorageFile>,
        path: PathBuf,
        label: Label,
        prepared_bytes: u64,
    ) -> Self {
        Self {
            file,
            path,
            label,
            offset: EMPTY_BYTES,
            prepared_bytes,
            control_at: FIRST_CONTROL_AFTER_BYTES,
            last: label.first.prev(),
            sealed: true,
            watermark: label.watermark,
            began: Rotation::now(),
            asked: false,
            unsyncable: false,
        }
    }

    /// The catalogue's entry for it.
    pub(super) fn entry(&self) -> Segment {
        Segment {
            number: self.label.segment,
            path: self.path.clone(),
            first: self.label.first,
            last: self.last,
            bytes: self.offset,
            file_bytes: self.prepared_bytes,
            key: Some(SegmentKey { salt: self.label.salt, epoch: self.label.epoch }),
        }
    }

    fn is_empty(&self) -> bool {
        self.offset <= EMPTY_BYTES
    }
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) desk: Arc<Desk>,
    /// Nobody else writes the directory while it is held; gone when the log is closed.
    pub(super) lock: Option<Arc<DirLock>>,
    pub(super) active: Active,
    /// The last sequence written, and synced if that is what a receipt promises.
    pub(super) durable: Sequence,
    /// The last sequence synced.
    pub(super) synced: Sequence,
    /// The watermark that is synced.
    pub(super) watermark_synced: Sequence,
    /// What is being written, and what is written and not yet synced.
    pub(super) group: Group,
    /// Since when something is written and not synced.
    pub(super) unsynced_since: Option<Instant>,
    /// Records in the last group, while more than one: the cohort to linger for.
    pub(super) cohort: usize,
    /// The active segment has failed, or the next may have its name already: nothing is written to
    /// it again.
    pub(super) abandoned: bool,
    /// The system refuses to write.
    pub(super) refused: bool,
    /// The next segment is begun in what is kept in reserve if there is no room for it.
    pub(super) from_reserve: bool,
    /// The longest file the system has let this commit write, once it has said that one was too
    /// large.
    pub(super) file_limit: u64,
    /// How long the last sync took, until it is counted.
    pub(super) sync_took: Option<Duration>,
    /// Memory for the wakers of a commit.
    pub(super) ready: Vec<Waker>,
}

/// What the writer was called for, beside the records.
struct Task {
    watermark: Sequence,
    watermark_epoch: Option<Epoch>,
    /// Nothing was left in the queue behind a group that is tried again.
    all: bool,
    new_stream: bool,
    close: bool,
    /// A sync is asked for, whatever the log's mode.
    flush: bool,
}

/// Why a commit did not come about.
struct Failure {
    path: PathBuf,
    source: std::io::Error,
    kind: FailureKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// Nothing is spoilt: the file may be written on when the system lets us.
    Refused,
    /// Nothing is spoilt, but this file cannot be written on; a fresh one may.
    Left,
    /// The file's pages cannot be trusted.
    Spoilt,
    /// Nor can they be written again.
    Lost,
}

/// The writer thread: writes whenever something is due, until the log is closed or has failed for
/// good.
pub(super) fn run(shared: &Shared, writer: &Mutex<Writer>) {
    let delay = shared.options.commit_delay;
    let mut beat = None;
    loop {
        wait_until_due(shared, beat);
        let mut writer = lock(writer);
        writer.linger();
        if !writer.serve() {
            return;
        }
        // Where records came there will be more: what comes before the beat goes with it, and need
        // not wake this thread to say so.
        beat = (writer.cohort > 0 && !delay.is_zero()).then(|| Instant::now() + delay);
    }
}

/// A panic while it was held has shut the log.
pub(super) fn lock(writer: &Mutex<Writer>) -> MutexGuard<'_, Writer> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a call, the commit delay, or what else is due. What waits at the beat is due then.
fn wait_until_due(shared: &Shared, mut beat: Option<Instant>) {
    let options = &shared.options;
    let mut state = shared.lock();
    loop {
        let refusing = state.refusing.is_some() && !state.closing;
        let called = state.closing
            || state.hurry
            || state.flush
            || state.shut.is_some()
            || matches!(state.new_stream, NewStream::Asked(_))
            || state.group.pending_bytes() >= options.commit_bytes;
        if called && !refusing {
            return;
        }
        // While the system refuses, only another attempt is due.
        let waiting = state.waiting_since.filter(|_| !refusing).map(|s| s + options.commit_delay);
        let now = Instant::now();
        beat = beat.filter(|beat| waiting.is_some() || *beat > now);
        let next = [waiting, state.due, beat].into_iter().flatten().min();
        let timeout = next.map(|next| next.saturating_duration_since(now));
        if timeout.is_some_and(|left| left.is_zero()) {
            return;
        }
        state.wakes_at = next;
        state = shared.wait(state, timeout);
        if refusing && state.retry {
            return;
        }
    }
}

impl Writer {
    /// Without a commit delay, gives those whom the last group woke a moment to come back, so that
    /// they share the next one.
    fn linger(&self) {
        if !self.shared.options.commit_delay.is_zero() || self.cohort <= 1 {
            return;
        }
        let since = Instant::now();
        loop {
            {
                let state = self.shared.lock();
                if state.flush || state.closing || state.group.pending_records() >= self.cohort {
                    return;
                }
            }
            if since.elapsed() >= LINGER {
                return;
            }
            thread::yield_now();
        }
    }

    /// Writes what there is to write; false if the log is shut. What will be due by itself is left
    /// to the writer thread.
    pub(super) fn serve(&mut self) -> bool {
        let _told = ShutOnPanic(Arc::clone(&self.shared));
        let Some(task) = self.take_task() else { return false };
        self.shared.set_writing(true);
        let mut result = self.commit(&task);
        self.shared.set_writing(false);
        if result.is_ok() && task.new_stream {
            result = self.begin_stream();
        }
        let due = match result {
            Ok(()) if task.close && task.all => {
                self.leave();
                shut(&self.shared, WalError::Closed);
                return false;
            }
            Ok(()) => self.next_due(),
            Err(error) if error.is_passing() && !task.close => {
                self.refuse(error);
                Some(Instant::now() + REFUSED_RETRY)
            }
            Err(error) => {
                tracing::error!(%error, "the log is shut");
                shut(&self.shared, error);
                return false;
            }
        };
        let mut state = self.shared.lock();
        state.due = due;
        let oversleeps = due.is_some_and(|due| state.writer_sleeps_beyond(due));
        drop(state);
        if oversleeps {
            self.shared.call_writer();
        }
        true
    }

    /// Takes the queue; `None` if the log is shut.
    fn take_task(&mut self) -> Option<Task> {
        let queue_bytes = self.shared.options.queue_bytes;
        let mut state = self.shared.lock();
        if state.shut.is_some() {
            return None;
        }
        // Behind a group that is tried again the queue stays, and goes on waiting.
        let all = self.group.is_written();
        if all {
            self.cohort = state.group.pending_records();
            self.group.take(&mut state.group);
            state.waiting_since = None;
            state.hurry = false;
        }
        state.writing_bytes = self.group.pending_bytes() as u64;
        let watermark = state.watermark;
        let task = Task {
            watermark,
            watermark_epoch: state.epoch_at(watermark).or(self.active.label.watermark_epoch),
            all,
            new_stream: all && matches!(state.new_stream, NewStream::Asked(_)),
            close: state.closing,
            flush: all && std::mem::take(&mut state.flush),
        };
        // Taking the queue has made room in it.
        state.take_ready(queue_bytes, &mut self.ready);
        drop(state);
        self.ready.drain(..).for_each(Waker::wake);
        Some(task)
    }

    /// When there is something to do without being called.
    fn next_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let sync = match (self.unsynced_since, self.shared.options.sync) {
            (Some(since), SyncMode::Interval { every, .. }) => Some(since + every),
            _ => None,
        };
        let seals = !self.active.sealed && self.unsynced_since.is_none();
        let seal = seals.then(|| now + SEAL_DELAY);
        let rotation = (!self.active.is_empty())
            .then(|| self.active.began.left(self.shared.options.rotate))
            .flatten()
            .map(|left| now + left);
        [sync, seal, rotation].into_iter().flatten().min()
    }

    /// Makes the group and the watermark durable, as far as the log promises; on a first failure in
    /// a fresh segment.
    fn commit(&mut self, task: &Task) -> Result<(), WalError> {
        let label = &mut self.active.label;
        let idle = self.group.is_written();
        let seals = idle && !self.active.sealed && self.unsynced_since.is_none();
        let control = seals || task.watermark > label.watermark;
        let before = *label;
        label.watermark = task.watermark;
        label.watermark_epoch = task.watermark_epoch;
        let mut result = self.trying_again(|writer| writer.write(control, task));
        if let Err(WalError::DiskFull { .. }) = result {
            match self.retire_on_a_full_disk() {
                Ok(true) => return result,
                Ok(false) => {}
                Err(error) => result = Err(error),
            }
        }
        if result.is_err() {
            // Not said durably yet: to be said again.
            self.active.label.watermark = before.watermark;
            self.active.label.watermark_epoch = before.watermark_epoch;
        }
        result?;
        // It may be another one next time.
        self.file_limit = u64::MAX;
        if std::mem::take(&mut self.refused) {
            tracing::info!(dir = ?self.shared.dir, "records are taken again");
            self.shared.lock().refusing = None;
        }
        self.retire_acknowledged()?;
        self.make_room_by_rotating()
    }

    /// Does something that writes; if a file fails it, in a fresh segment, once.
    fn trying_again(
        &mut self,
        mut attempt: impl FnMut(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), WalError> {
        // A file that cannot be written on is left, and may be followed by one that fails.
        let (mut left, mut spoilt) = (false, false);
        loop {
            let Err(failure) = attempt(self) else { return Ok(()) };
            let before = match failure.kind {
                FailureKind::Refused | FailureKind::Lost => true,
                FailureKind::Left => std::mem::replace(&mut left, true),
                FailureKind::Spoilt => std::mem::replace(&mut spoilt, true),
            };
            if before {
                return Err(failure.said());
            }
            tracing::warn!(
                path = ?failure.path, error = %failure.source,
                "writing the log failed; what had no receipt goes into a fresh segment"
            );
            // Nothing more is written to that file.
            self.abandoned = true;
        }
    }

    fn write(&mut self, control: bool, task: &Task) -> Result<(), Failure> {
        self.write_group(control)?;
        if task.close && !self.active.sealed {
            self.sync()?;
            self.write_control()?;
            self.publish();
        }
        if self.sync_is_due(task) {
            self.sync()?;
            self.publish();
        }
        Ok(())
    }

    /// Writes what is left of the group, rotating where it does not fit, and a control record if
    /// asked for or due.
    fn write_group(&mut self, control: bool) -> Result<(), Failure> {
        let mut control = control;
        if self.abandoned || self.rotation_is_due() || self.has_better() {
            self.rotate()?;
            // The new segment's header says what the control record would.
            control = false;
        }
        while !self.group.is_written() {
            let longest = self.shared.options.segment_bytes.min(self.file_limit);
            let room = longest.saturating_sub(self.active.offset);
            let mut span = self.group.next_span(room);
            if self.group.is_empty(span) {
                if !self.active.is_empty() {
                    self.rotate()?;
                    control = false;
                    continue;
                }
                span = self.group.next_one();
            }
            let end = self.active.offset + self.group.len_of(span);
            let last_here = !self.group.has_more_after(span);
            let due = (control && last_here) || end >= self.active.control_at;
            self.write_span(span, due)?;
            control &= !last_here;
            self.publish();
        }
        if control {
            self.write_control()?;
            self.publish();
        }
        Ok(())
    }

    /// Writes one span, and makes it durable if a receipt promises that.
    fn write_span(&mut self, span: Span, control: bool) -> Result<(), Failure> {
        let active = &mut self.active;
        let last = self.group.last_of(span);
        let bytes = self.group.bytes_of(span, active.label.salt);
        let mut end = active.offset + bytes.len() as u64;
        let mut result = active.file.write_all_at(bytes, active.offset);
        if result.is_ok() && control {
            let in_commit = if self.shared.options.sync.is_always() {
                self.group.upto(span)
            } else {
                last.since(self.synced) as usize
            };
            let record = active.label.to_control(last, in_commit, wall_clock_ns());
            result = active.file.write_all_at(&record, end);
            end += CONTROL_BYTES as u64;
        }
        result.map_err(|source| self.not_written(source, span.frames()))?;
        self.written(end, control)?;
        // A control record of the same commit proves nothing about it.
        self.active.sealed = false;
        self.group.mark_written(span);
        if !matches!(self.shared.options.sync, SyncMode::Interval { .. }) {
            self.group.mark_done();
        }
        self.active.last = last;
        // Records that are written again had a receipt in some modes.
        self.durable = self.durable.max(last);
        if self.shared.options.sync.is_always() {
            self.synced = self.durable;
        }
        Ok(())
    }

    /// Writes a control record alone, and makes it durable if receipts promise that.
    fn write_control(&mut self) -> Result<(), Failure> {
        let active = &mut self.active;
        let unsynced = self.durable.since(self.synced) as usize;
        let record = active.label.to_control(self.durable, unsynced, wall_clock_ns());
        let result = active.file.write_all_at(&record, active.offset);
        result.map_err(|source| self.not_written(source, 0))?;
        self.written(self.active.offset + CONTROL_BYTES as u64, true)
    }

    /// Frames stand in the file up to `end`: syncs them if a receipt promises that.
    fn written(&mut self, end: u64, control: bool) -> Result<(), Failure> {
        if self.shared.options.sync.is_always() {
            self.sync_file()?;
        } else {
            self.check_name()?;
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        let active = &mut self.active;
        active.offset = end;
        if control {
            active.sealed = self.synced == self.durable;
            active.watermark = active.label.watermark;
            active.control_at = end + CONTROL_EVERY_BYTES;
        }
        if self.shared.options.sync.is_always() {
            self.watermark_synced = active.watermark;
        }
        let part = self.shared.options.segment_bytes / PREPARE_AT;
        let at = if active.prepared_bytes == 0 { part.min(GROWN_BYTES) } else { part };
        // Once: the keeper is a thread that has to be woken.
        if !active.asked && end - EMPTY_BYTES >= at {
            active.asked = true;
            self.desk.want_spare();
        }
        Ok(())
    }

    fn sync_is_due(&self, task: &Task) -> bool {
        let Some(since) = self.unsynced_since else { return false };
        match self.shared.options.sync {
            SyncMode::Always => false,
            SyncMode::Os => task.flush || task.close,
            SyncMode::Interval { every, bytes } => {
                task.flush
                    || task.close
                    || self.group.unsynced_bytes() as u64 >= bytes
                    || since.elapsed() >= every
            }
        }
    }

    /// Makes durable what is written.
    fn sync(&mut self) -> Result<(), Failure> {
        if self.unsynced_since.is_some() {
            if !self.active.unsyncable {
                match self.sync_file() {
                    Err(failure) if failure.kind == FailureKind::Spoilt => {
                        self.active.unsyncable = true;
                    }
                    other => other?,
                }
            }
            if self.active.unsyncable {
                self.write_from_cache()?;
                self.active.unsyncable = false;
            }
            self.unsynced_since = None;
            self.synced = self.durable;
            self.group.mark_done();
            self.watermark_synced = self.active.watermark;
        }
        Ok(())
    }

    /// Those who have receipts must find their records meanwhile, so what was to be synced is
    /// written again in place first, from the system's cache. That may be all that still holds it.
    fn write_from_cache(&self) -> Result<(), Failure> {
        let Active { file, path, offset, .. } = &self.active;
        tracing::warn!(?path, "syncing the log failed; what is not durable is written again");
        segment::rewrite(&**file, path, EMPTY_BYTES..*offset).map_err(|error| {
            let held = !matches!(self.shared.options.sync, SyncMode::Os);
            let kind = if held { FailureKind::Spoilt } else { FailureKind::Lost };
            Failure { kind, ..Failure::from(error) }
        })
    }

    fn sync_file(&mut self) -> Result<(), Failure> {
        let since = Instant::now();
        self.active.file.sync_data().map_err(|source| self.failed(source, FailureKind::Spoilt))?;
        let took = since.elapsed();
        self.check_name()?;
        self.sync_took = Some(took);
        Ok(())
    }

    /// A file without a name is written and synced without complaint, and lost.
    fn check_name(&self) -> Result<(), Failure> {
        match self.active.file.has_name() {
            Ok(true) => Ok(()),
            Ok(false) => {
                let source = std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "the segment was removed while it was written",
                );
                Err(self.failed(source, FailureKind::Left))
            }
            Err(source) => Err(self.failed(source, FailureKind::Spoilt)),
        }
    }

    fn failed(&self, source: std::io::Error, kind: FailureKind) -> Failure {
        Failure { path: self.active.path.clone(), source, kind }
    }

    /// What a failed write of so many frames means.
    fn not_written(&mut self, source: std::io::Error, frames: usize) -> Failure {
        let active = &self.active;
        let too_large = source.kind() == std::io::ErrorKind::FileTooLarge;
        if too_large && let Ok(bytes) = active.file.len() {
            // It was written up to the limit.
            self.file_limit = bytes.max(EMPTY_BYTES);
        }
        // Nothing was synced, so the pages before the offset are as they were. A prepared file
        // keeps its length; one that grows is as it was if the part that was written can be cut
        // off again.
        let restored =
            active.prepared_bytes > active.offset || active.file.set_len(active.offset).is_ok();
        // Another segment has room, or a part of the frames will find some in it.
        let elsewhere = too_large && (!active.is_empty() || frames > 1)
            || is_full(&source) && !active.is_empty() && self.desk.has_spare();
        let kind = if elsewhere {
            FailureKind::Left
        } else if is_refusal(&source) && restored {
            FailureKind::Refused
        } else {
            FailureKind::Spoilt
        };
        self.failed(source, kind)
    }

    fn rotation_is_due(&self) -> bool {
        !self.active.is_empty()
            && self.active.began.left(self.shared.options.rotate).is_some_and(|left| left.is_zero())
    }

    /// Whether the active segment grows and another need not.
    fn has_better(&self) -> bool {
        self.active.prepared_bytes == 0
            && self.active.asked
            && self.shared.options.segment_bytes >= GROWN_BYTES * GROWN_PART
            && self.desk.has_spare()
    }

    /// Begins the next segment.
    fn rotate(&mut self) -> Result<(), Failure> {
        // What is behind must not be less durable than what comes.
        match self.sync() {
            Err(failure) if failure.kind == FailureKind::Lost => return Err(failure),
            Err(failure) => {
                tracing::warn!(
                    path = ?failure.path, error = %failure.source,
                    "what could not be synced goes into a fresh segment"
                );
                self.abandoned = true;
                self.unsynced_since = None;
                self.group.rewind();
            }
            Ok(()) => {}
        }
        let spare = self.take_spare();
        let label = Label {
            segment: self.active.label.segment + 1,
            salt: random_salt(),
            first: self.durable_or_rewound().next(),
            rest: spare.as_ref().map_or(Rest::Nothing, |spare| spare.rest),
            ..self.active.label
        };
        // What has a receipt and is written again is there when its segment has its name: whoever
        // finds that looks nowhere else for it.
        let again = self.group.next_upto(self.durable);
        let frames = match self.group.is_empty(again) {
            true => Vec::new(),
            false => self.group.bytes_of(again, label.salt).to_vec(),
        };
        let mut active = self.begin_segment(label, spare, &frames).map_err(|failed| {
            self.abandoned |= failed.perhaps_named;
            Failure::from(failed.error)
        })?;
        if !frames.is_empty() {
            active.offset += frames.len() as u64;
            active.last = self.group.last_of(again);
            active.sealed = false;
            self.group.mark_written(again);
            self.group.mark_done();
            self.synced = self.durable;
        }
        let left = std::mem::replace(&mut self.active, active);
        // What failed may stand there.
        let left_bytes = if self.abandoned { left.file.len().ok() } else { None };
        {
            let mut state = self.shared.lock();
            if let Some(entry) = state.segments.back_mut() {
                entry.last = entry.last.min(label.first.prev());
                entry.file_bytes = left_bytes.unwrap_or(entry.file_bytes);
            }
            state.segments.push_back(self.active.entry());
            // Nobody may see the segment left out of what is used.
            state.recount();
            state.counters.rewrites += u64::from(self.abandoned);
            state.counters.rotations += 1;
        }
        if left.prepared_bytes > left.offset || self.abandoned {
            // That takes a while, and time is dear here.
            self.desk.trim(left);
        }
        self.abandoned = false;
        self.watermark_synced = label.watermark;
        self.publish();
        Ok(())
    }

    /// The last record that need not be written again.
    fn durable_or_rewound(&self) -> Sequence {
        self.group.next_pending().map_or(self.durable, |next| next.prev().min(self.durable))
    }

    /// A prepared segment, unless there is no room for what it has more than the records need, or
    /// its bytes are of a stream that has ended: their sequences say nothing then.
    fn take_spare(&self) -> Option<Spare> {
        let spare = self.desk.take_spare()?;
        let state = self.shared.lock();
        let told = spare.rest != Rest::Stale || spare.generation == state.generation;
        if told && state.used_bytes() <= self.shared.options.disk_budget_bytes {
            return Some(spare);
        }
        drop(state);
        self.desk.shed(spare);
        None
    }

    fn begin_segment(
        &mut self,
        label: Label,
        spare: Option<Spare>,
        frames: &[u8],
    ) -> Result<Active, NotBegun> {
        let dir = &self.shared.dir;
        let storage = &*self.storage;
        if let Some(lock) = &self.lock {
            lock.check(dir)?;
        }
        segment::check_number(dir, label.segment)?;
        match spare {
            None => match segment::create(storage, dir, &label, frames) {
                Ok((path, file)) => Ok(Active::new(file, path, label, 0)),
                Err(NotBegun { error: full @ WalError::DiskFull { .. }, perhaps_named })
                    if self.from_reserve =>
                {
                    self.desk.used_reserve();
                    reserve::begin_segment(storage, dir, label, frames).map_err(|failed| NotBegun {
                        error: full,
                        perhaps_named: perhaps_named || failed.perhaps_named,
                    })
                }
                Err(error) => Err(error),
            },
            Some(Spare { file, path, bytes, .. }) => {
                let adopted = segment::adopt(storage, dir, &label, &*file, &path, frames);
                if adopted.is_err() {
                    self.desk.discard(path);
                }
                let mut state = self.shared.lock();
                state.spare_bytes = state.spare_bytes.saturating_sub(bytes);
                drop(state);
                Ok(Active::new(file, adopted?, label, bytes))
            }
        }
    }

    /// The log is closed: the active segment ends where its records do.
    fn leave(&self) {
        if !self.abandoned && self.active.prepared_bytes > self.active.offset {
            let active = &self.active;
            if let Err(error) = active.file.set_len(active.offset) {
                tracing::debug!(path = ?active.path, %error, "a segment keeps more room than it needs");
            }
        }
    }

    /// Tells everybody what has a receipt now.
    fn publish(&mut self) {
        let watermark = self.watermark_synced;
        {
            let mut state = self.shared.lock();
            debug_assert!(self.durable >= state.durable, "receipts are not taken back");
            let entry = state.segments.back_mut().expect("the active segment is catalogued");
            debug_assert_eq!(entry.number, self.active.label.segment);
            entry.last = self.active.last;
            entry.bytes = self.active.offset;
            let records = self.durable.since(state.durable);
            if records > 0 {
                state.counters.commit_records.record(records);
            }
            state.durable = self.durable;
            self.shared.set_durable(self.durable);
            if self.unsynced_since.is_none() {
                state.synced = self.durable;
            }
            if let Some(took) = self.sync_took.take() {
                state.counters.sync_micros.record_time(took);
            }
            state.watermark_durable = watermark.max(state.watermark_durable);
            state.writing_bytes = self.group.pending_bytes() as u64;
            state.recount();
            state.take_ready(self.shared.options.queue_bytes, &mut self.ready);
        }
        self.ready.drain(..).for_each(Waker::wake);
    }

    /// Gives the segments that nobody needs to the keeper: everything in them is durably
    /// acknowledged and outside the part to retain.
    fn retire_acknowledged(&mut self) -> Result<(), WalError> {
        if self.unsynced_since.is_some() {
            let waits = {
                let state = self.shared.lock();
                state.is_retirable(self.active.label.watermark)
                    && !state.is_retirable(state.watermark_durable)
            };
            // Where syncs are rare this one is for the watermark: a segment must not be gone
            // before it is known that everything in it was acknowledged.
            if waits {
                self.trying_again(|writer| {
                    writer.write_group(false)?;
                    writer.sync()
                })?;
                self.publish();
            }
        }
        loop {
            let segment = {
                let mut state = self.shared.lock();
                if !state.is_retirable(state.watermark_durable) {
                    return Ok(());
                }
                let Some(front) = state.segments.pop_front() else { return Ok(()) };
                state.retired_bytes += front.disk_bytes();
                state.recount();
                front
            };
            self.desk.retire(segment);
        }
    }

    /// With no room left even for a control record: if the watermark, once durable, lets a segment
    /// go, it is said in the header of a segment for which there is a block in reserve. Says whether it was.
    fn retire_on_a_full_disk(&mut self) -> Result<bool, WalError> {
        let helps = {
            let state = self.shared.lock();
            let records = state.segments.len() > 1 || !self.active.is_empty();
            records && state.is_front_acknowledged(self.active.label.watermark)
        };
        if !helps {
            return Ok(false);
        }
        self.from_reserve = true;
        let rotated = self.rotate();
        self.from_reserve = false;
        match rotated {
            Ok(()) => {}
            Err(failure) if failure.kind == FailureKind::Lost => return Err(failure.said()),
            Err(failure) => {
                // What is refused anyway is tried again.
                if failure.kind == FailureKind::Spoilt {
                    self.abandoned = true;
                }
                return Ok(false);
            }
        }
        self.retire_acknowledged()?;
        Ok(true)
    }

    /// With the budget nearly spent and everything in the active segment acknowledged, its bytes
    /// can only be had by leaving it.
    fn make_room_by_rotating(&mut self) -> Result<(), WalError> {
        let options = &self.shared.options;
        let (needed, acknowledged) = {
            let state = self.shared.lock();
            let wanted = state.retain_from.is_some_and(|from| from <= state.durable);
            (state.needed_bytes(), state.watermark_durable >= state.durable && !wanted)
        };
        let near = needed.saturating_add(options.segment_bytes) > options.disk_budget_bytes;
        let worth = self.active.offset > EMPTY_BYTES + options.segment_bytes / 2;
        if near && worth && acknowledged {
            self.trying_again(Self::rotate)?;
            self.retire_acknowledged()?;
        }
        Ok(())
    }

    /// Refuses records until the queue has been written, and says so to those who wait.
    fn refuse(&mut self, error: WalError) {
        self.refused = true;
        {
            let mut state = self.shared.lock();
            if state.refusing.is_none() {
                tracing::warn!(%error, "records are refused");
            }
            state.refusing = Some(error);
            state.retry = false;
            state.take_ready(self.shared.options.queue_bytes, &mut self.ready);
        }
        self.ready.drain(..).for_each(Waker::wake);
    }
}

impl State {
    /// Whether the oldest segment is needed no more when this watermark is durable.
    pub(super) fn is_retirable(&self, watermark: Sequence) -> bool {
        self.segments.len() > 1 && self.is_front_acknowledged(watermark)
    }

    fn is_front_acknowledged(&self, watermark: Sequence) -> bool {
        self.segments.front().is_some_and(|front| {
            front.last <= watermark && self.retain_from.is_none_or(|from| front.last < from)
        })
    }
}

/// Shuts the log for good and wakes everybody.
fn shut(shared: &Shared, why: WalError) {
    let mut state = shared.lock();
    state.shut.get_or_insert(why);
    let waiters = std::mem::take(&mut state.waiters);
    drop(state);
    waiters.into_iter().for_each(|waiter| waiter.waker.wake());
    shared.call_writer();
}

/// Nobody waits for ever for a writer that is no more.
struct ShutOnPanic(Arc<Shared>);

impl Drop for ShutOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let source = std::io::Error::other("the writer panicked");
            shut(&self.0, WalError::io("write", &self.0.dir, source));
        }
    }
}

impl Failure {
    /// What those who wait are told when nothing more can be done about it.
    fn said(self) -> WalError {
        let full = is_full(&self.source);
        let refused = matches!(self.kind, FailureKind::Refused | FailureKind::Left);
        let (path, source) = (self.path, Arc::new(self.source));
        match (refused, full) {
            (true, true) => WalError::DiskFull { path, source },
            (true, false) => WalError::Unwritable { path, source },
            (false, _) => WalError::Poisoned { path, source },
        }
    }
}

impl From<WalError> for Failure {
    fn from(error: WalError) -> Self {
        match error {
            WalError::DiskFull { path, source } => {
                Self { path, source: unshare(source), kind: FailureKind::Refused }
            }
            WalError::Io { path, source, .. } => {
                let source = unshare(source);
                let refused = is_refusal(&source);
                let kind = if refused { FailureKind::Refused } else { FailureKind::Spoilt };
                Self { path, source, kind }
            }
            other => Self {
                path: PathBuf::new(),
                source: std::io::Error::other(other),
                kind: FailureKind::Spoilt,
            },
        }
    }
}

fn unshare(source: Arc<std::io::Error>) -> std::io::Error {
    Arc::try_unwrap(source).unwrap_or_else(|source| std::io::Error::new(source.kind(), source))
}

/// A salt that bytes from elsewhere are not written with.
pub(super) fn random_salt() -> u32 {
    let bytes = StreamId::random().to_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
