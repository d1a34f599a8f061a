//! The writer thread: it alone owns the active segment, writes, syncs, rotates and deletes.
//!
//! A failed write or sync leaves a file whose pages cannot be trusted: what had no receipt is
//! written again, once, into a fresh segment. If that fails too the log is shut and everybody is
//! told. A full disk is different: what is queued stays queued, new records are refused, and the
//! writer tries again until there is room.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId, wall_clock_ns};

use super::WalError;
use super::error::is_full;
use super::format::{CONTROL_BYTES, Label};
use super::group::{Group, Span};
use super::segment::{self, EMPTY_BYTES};
use super::state::{NewStream, Segment, SegmentKey, Shared};
use super::storage::{Storage, StorageFile};

mod restream;

/// A control record follows after this many bytes without one, so that a segment whose first page
/// is lost can still say what it is.
const CONTROL_EVERY_BYTES: u64 = 64 << 10;
/// The first repetition stands on another page than the header.
const FIRST_CONTROL_AFTER_BYTES: u64 = 4 << 10;
/// How often a full disk is tried again, if no acknowledgement comes before.
const FULL_RETRY: Duration = Duration::from_millis(250);
/// How long a group waits for the producers that the last one woke, when there is no commit delay.
const LINGER: Duration = Duration::from_micros(30);

/// The segment being written.
pub(super) struct Active {
    pub(super) file: Box<dyn StorageFile>,
    pub(super) path: PathBuf,
    pub(super) label: Label,
    /// Where the durable frames end: the next write goes here.
    pub(super) offset: u64,
    /// A control record is due when the offset gets here.
    pub(super) control_at: u64,
    /// The last frame is a control record that says what is true now.
    pub(super) sealed: bool,
}

impl Active {
    /// A segment that has just been created.
    pub(super) fn new(file: Box<dyn StorageFile>, path: PathBuf, label: Label) -> Self {
        let control_at = FIRST_CONTROL_AFTER_BYTES;
        Self { file, path, label, offset: EMPTY_BYTES, control_at, sealed: true }
    }

    /// The catalogue's entry for it, while it is empty.
    pub(super) fn entry(&self) -> Segment {
        Segment {
            number: self.label.segment,
            path: self.path.clone(),
            first: self.label.first,
            last: self.label.first.prev(),
            bytes: self.offset,
            key: Some(SegmentKey { salt: self.label.salt, epoch: self.label.epoch }),
        }
    }
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) active: Active,
    /// The last durable sequence.
    pub(super) durable: Sequence,
    /// The group being written; empty between commits.
    pub(super) group: Group,
    /// Records in the last group, while more than one: the cohort to linger for.
    pub(super) cohort: usize,
    /// The active segment has failed: nothing is written to it again.
    pub(super) abandoned: bool,
}

/// What the writer was called for, beside the group it took.
struct Task {
    watermark: Sequence,
    watermark_epoch: Option<Epoch>,
    new_stream: bool,
    close: bool,
}

/// Why a commit did not come about.
struct Failure {
    path: PathBuf,
    source: std::io::Error,
    /// Only a lack of room: the file may be written on.
    only_full: bool,
}

impl Writer {
    /// Writes until the log is closed or has failed for good.
    pub(super) fn run(mut self) {
        let _told = ShutOnPanic(Arc::clone(&self.shared));
        loop {
            let task = self.wait_for_work();
            let mut result = self.commit(&task);
            if result.is_ok() && task.new_stream {
                result = self.begin_stream();
            }
            match result {
                Ok(()) if task.close => return shut(&self.shared, WalError::Closed),
                Ok(()) => {}
                Err(error @ WalError::DiskFull { .. }) if !task.close => self.disk_full(error),
                Err(error) => {
                    tracing::error!(%error, "the log is shut");
                    return shut(&self.shared, error);
                }
            }
        }
    }

    /// Waits until a commit is due and takes what it is for.
    fn wait_for_work(&mut self) -> Task {
        let options = &self.shared.options;
        let mut state = self.shared.lock();
        if state.full.is_some() && !state.closing {
            state = self.shared.wait(state, Some(FULL_RETRY));
        } else {
            loop {
                let now = Instant::now();
                if state.closing
                    || state.flush
                    || matches!(state.new_stream, NewStream::Asked(_))
                    || state.group.pending_bytes() >= options.commit_bytes
                {
                    break;
                }
                let timeout = match state.waiting_since {
                    None => None,
                    Some(since) => match (since + options.commit_delay).checked_duration_since(now)
                    {
                        Some(left) if !left.is_zero() => Some(left),
                        _ => break,
                    },
                };
                state = self.shared.wait(state, timeout);
            }
            if options.commit_delay.is_zero() && self.cohort > 1 && !state.flush && !state.closing {
                let since = Instant::now();
                while state.group.pending_records() < self.cohort && since.elapsed() < LINGER {
                    drop(state);
                    thread::yield_now();
                    state = self.shared.lock();
                }
            }
        }
        if self.group.is_done() {
            self.group.clear();
            std::mem::swap(&mut self.group, &mut state.group);
            self.cohort = self.group.pending_records();
        }
        state.writing_bytes = self.group.pending_bytes() as u64;
        // Behind a group that is tried again the queue stays, and goes on waiting.
        if state.group.pending_records() == 0 {
            state.waiting_since = None;
        }
        state.flush = false;
        let watermark = state.watermark;
        let task = Task {
            watermark,
            watermark_epoch: state.epoch_at(watermark).or(self.active.label.watermark_epoch),
            new_stream: matches!(state.new_stream, NewStream::Asked(_)),
            close: state.closing,
        };
        // Taking the queue has made room in it.
        let mut ready = Vec::new();
        state.take_ready(options.queue_bytes, &mut ready);
        drop(state);
        ready.into_iter().for_each(Waker::wake);
        task
    }

    /// Makes the group and the watermark durable; on a first failure in a fresh segment.
    fn commit(&mut self, task: &Task) -> Result<(), WalError> {
        let label = &mut self.active.label;
        let control = task.close && !self.active.sealed || task.watermark > label.watermark;
        let before = *label;
        label.watermark = task.watermark;
        label.watermark_epoch = task.watermark_epoch;
        let result = self.write_group(control).or_else(|failure| {
            if failure.only_full {
                return Err(failure.said());
            }
            tracing::warn!(
                path = ?failure.path, error = %failure.source,
                "writing the log failed; what had no receipt goes into a fresh segment"
            );
            self.abandoned = true;
            self.write_group(control).map_err(Failure::said)
        });
        if result.is_err() {
            // Not said durably yet: to be said again.
            self.active.label.watermark = before.watermark;
            self.active.label.watermark_epoch = before.watermark_epoch;
        }
        result?;
        self.shared.lock().full = None;
        self.delete_acknowledged();
        self.make_room_by_rotating()
    }

    /// Writes and syncs what is left of the group, rotating where it does not fit, and a control
    /// record if asked for or due.
    fn write_group(&mut self, control: bool) -> Result<(), Failure> {
        let mut control = control;
        if self.abandoned {
            self.rotate()?;
            // The new segment's header says what the control record would.
            control = false;
        }
        while !self.group.is_done() {
            let room = self.shared.options.segment_bytes.saturating_sub(self.active.offset);
            let mut span = self.group.next_span(room);
            if self.group.is_empty(span) {
                if self.active.offset > EMPTY_BYTES {
                    self.rotate()?;
                    control = false;
                    continue;
                }
                span = self.group.next_one();
            }
            let end = self.active.offset + self.group.bytes_of(span).len() as u64;
            let last_here = !self.group.has_more_after(span);
            let due = (control && last_here) || end >= self.active.control_at;
            self.write_span(span, due)?;
            self.group.mark_done(span);
            control &= !last_here;
            self.publish();
        }
        if control {
            self.write_control()?;
            self.publish();
        }
        Ok(())
    }

    /// Writes one span and makes it durable.
    fn write_span(&mut self, span: Span, control: bool) -> Result<(), Failure> {
        let active = &mut self.active;
        let last = self.group.last_of(span);
        debug_assert!(last > self.durable, "a record is written once");
        self.group.salt(span, active.label.salt);
        let bytes = self.group.bytes_of(span);
        let mut end = active.offset + bytes.len() as u64;
        let mut result = active.file.write_all_at(bytes, active.offset);
        if result.is_ok() && control {
            let record = active.label.to_control(last, self.group.upto(span), wall_clock_ns());
            result = active.file.write_all_at(&record, end);
            end += CONTROL_BYTES as u64;
        }
        let result = finish(active, result);
        // Whatever segment they go to next, they are salted anew.
        self.group.salt(span, self.active.label.salt);
        result?;
        self.active.offset = end;
        self.active.sealed = control;
        if control {
            self.active.control_at = end + CONTROL_EVERY_BYTES;
        }
        self.durable = last;
        Ok(())
    }

    /// Writes a control record alone and makes it durable.
    fn write_control(&mut self) -> Result<(), Failure> {
        let active = &mut self.active;
        let record = active.label.to_control(self.durable, 0, wall_clock_ns());
        let result = active.file.write_all_at(&record, active.offset);
        finish(active, result)?;
        active.offset += CONTROL_BYTES as u64;
        active.control_at = active.offset + CONTROL_EVERY_BYTES;
        active.sealed = true;
        Ok(())
    }

    /// Begins the next segment.
    fn rotate(&mut self) -> Result<(), Failure> {
        let label = Label {
            segment: self.active.label.segment + 1,
            salt: random_salt(),
            first: self.durable.next(),
            ..self.active.label
        };
        let dir = &self.shared.dir;
        let (path, file) = segment::create(&*self.storage, dir, &label).map_err(Failure::from)?;
        self.active = Active::new(file, path, label);
        {
            let mut state = self.shared.lock();
            state.segments.push_back(self.active.entry());
            state.counters.rewrites += u64::from(self.abandoned);
        }
        self.abandoned = false;
        self.publish();
        Ok(())
    }

    /// Tells everybody what is durable now.
    fn publish(&mut self) {
        let mut ready = Vec::new();
        {
            let mut state = self.shared.lock();
            debug_assert!(self.durable >= state.durable, "durable moves forward only");
            let entry = state.segments.back_mut().expect("the active segment is catalogued");
            debug_assert_eq!(entry.number, self.active.label.segment);
            entry.last = self.durable;
            entry.bytes = self.active.offset;
            state.durable = self.durable;
            state.watermark_durable = self.active.label.watermark.max(state.watermark_durable);
            state.writing_bytes = self.group.pending_bytes() as u64;
            state.recount();
            state.counters.syncs += 1;
            state.take_ready(self.shared.options.queue_bytes, &mut ready);
        }
        ready.into_iter().for_each(Waker::wake);
    }

    /// Deletes the segments that nobody needs: everything in them is durably acknowledged and
    /// outside the part to retain.
    fn delete_acknowledged(&mut self) {
        let mut gone = 0;
        loop {
            let path = {
                let mut state = self.shared.lock();
                if gone > 0 {
                    state.segments.pop_front();
                    state.recount();
                }
                match state.segments.front() {
                    Some(front)
                        if front.number != self.active.label.segment
                            && front.last <= state.watermark_durable
                            && state.retain_from.is_none_or(|from| front.last < from) =>
                    {
                        front.path.clone()
                    }
                    _ => break,
                }
            };
            match self.storage.unlink(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(?path, %error, "cannot delete an acknowledged segment");
                    break;
                }
                _ => gone += 1,
            }
        }
        if gone > 0
            && let Err(error) = self.storage.sync_dir(&self.shared.dir)
        {
            // A segment that comes back after a power cut is acknowledged still.
            tracing::warn!(dir = ?self.shared.dir, %error, "cannot sync the log directory");
        }
    }

    /// With the budget nearly spent and everything in the active segment acknowledged, its bytes
    /// can only be had by leaving it.
    fn make_room_by_rotating(&mut self) -> Result<(), WalError> {
        let options = &self.shared.options;
        let (used, acknowledged) = {
            let state = self.shared.lock();
            let wanted = state.retain_from.is_some_and(|from| from <= state.durable);
            (state.used_bytes(), state.watermark_durable >= state.durable && !wanted)
        };
        let near = used.saturating_add(options.segment_bytes) > options.disk_budget_bytes;
        let worth = self.active.offset > EMPTY_BYTES + options.segment_bytes / 2;
        if near && worth && acknowledged {
            self.rotate().map_err(Failure::said)?;
            self.delete_acknowledged();
        }
        Ok(())
    }

    /// Refuses records until the queue has been written, and says so to those who wait.
    fn disk_full(&mut self, error: WalError) {
        let mut ready = Vec::new();
        {
            let mut state = self.shared.lock();
            if state.full.is_none() {
                tracing::warn!(%error, "records are refused");
            }
            state.full = Some(error);
            state.take_ready(self.shared.options.queue_bytes, &mut ready);
        }
        ready.into_iter().for_each(Waker::wake);
    }
}

/// Shuts the log for good and wakes everybody.
fn shut(shared: &Shared, why: WalError) {
    let mut state = shared.lock();
    state.shut = Some(why);
    let waiters = std::mem::take(&mut state.waiters);
    drop(state);
    waiters.into_iter().for_each(|waiter| waiter.waker.wake());
}

/// Nobody waits for ever for a writer that is no more.
struct ShutOnPanic(Arc<Shared>);

impl Drop for ShutOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let source = std::io::Error::other("the writer thread panicked");
            shut(&self.0, WalError::io("write", &self.0.dir, source));
        }
    }
}

/// Syncs after a write, and says what kind of failure it was.
fn finish(active: &mut Active, written: std::io::Result<()>) -> Result<(), Failure> {
    let Err(source) = written else {
        return active.file.sync_data().map_err(|source| Failure {
            path: active.path.clone(),
            source,
            only_full: false,
        });
    };
    // Nothing was synced, so the pages before the offset are as they were. Only if the part that
    // was written can be cut off again is the file as it was.
    let cut = active.file.set_len(active.offset);
    Err(Failure { path: active.path.clone(), only_full: is_full(&source) && cut.is_ok(), source })
}

impl Failure {
    /// What those who wait are told when nothing more can be done about it.
    fn said(self) -> WalError {
        let (path, source) = (self.path, Arc::new(self.source));
        if self.only_full {
            WalError::DiskFull { path, source }
        } else {
            WalError::Poisoned { path, source }
        }
    }
}

impl From<WalError> for Failure {
    fn from(error: WalError) -> Self {
        match error {
            WalError::DiskFull { path, source } => {
                Self { path, source: unshare(source), only_full: true }
            }
            WalError::Io { path, source, .. } => {
                Self { path, source: unshare(source), only_full: false }
            }
            other => Self {
                path: PathBuf::new(),
                source: std::io::Error::other(other),
                only_full: false,
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
