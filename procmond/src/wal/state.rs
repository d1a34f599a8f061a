//! What the handles, the readers and the writer thread share: one mutex, held for short sections
//! that never wait and never do I/O.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::group::Group;
use super::histogram::Histogram;
use super::{WalError, WalOptions};

/// A segment as the catalogue knows it.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    /// The sequences it is there for. `last` precedes `first` while it has none.
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
    /// Bytes up to which it may be read: everything before has a receipt.
    pub(crate) bytes: u64,
    /// Bytes of its file, where that is longer.
    pub(crate) file_bytes: u64,
    /// The key to its frames and who wrote them; `None` if nothing in it names them any more.
    pub(crate) key: Option<SegmentKey>,
}

impl Segment {
    /// What it takes of the disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.bytes.max(self.file_bytes)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentKey {
    pub(crate) salt: u32,
    pub(crate) epoch: Epoch,
}

/// Counters since the log was opened.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counters {
    pub(crate) appended: u64,
    pub(crate) appended_bytes: u64,
    pub(crate) sync_micros: Histogram,
    pub(crate) commit_records: Histogram,
    pub(crate) rotations: u64,
    pub(crate) prepared: u64,
    pub(crate) recycled: u64,
    pub(crate) deleted: u64,
    pub(crate) archived: u64,
    pub(crate) rewrites: u64,
    pub(crate) busy: u64,
    /// Records refused for want of disk, by kind.
    pub(crate) refused: Vec<(u8, u64)>,
}

impl Counters {
    pub(crate) fn refuse(&mut self, kind: u8) {
        match self.refused.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.refused.push((kind, 1)),
        }
    }
}

pub(crate) struct State {
    pub(crate) stream: StreamId,
    /// Counts the streams begun while open: a reader of an older one is told.
    pub(crate) generation: u64,
    pub(crate) epoch: Epoch,
    /// Which opening wrote what: each holds from its first sequence to the next entry's.
    pub(crate) epochs: Vec<(Sequence, Epoch)>,
    /// The last sequence assigned.
    pub(crate) last: Sequence,
    /// The last sequence with a receipt.
    pub(crate) durable: Sequence,
    /// The last sequence that survives a power cut.
    pub(crate) synced: Sequence,
    /// Acknowledged, perhaps not durably yet.
    pub(crate) watermark: Sequence,
    pub(crate) watermark_durable: Sequence,
    /// Segments with records from here on are kept; `None` keeps none for this reason.
    pub(crate) retain_from: Option<Sequence>,
    /// Records encoded and not yet taken by the writer.
    pub(crate) group: Group,
    /// Bytes the writer has taken and not yet made durable.
    pub(crate) writing_bytes: u64,
    /// Since when the oldest queued record, or the oldest acknowledgement, waits.
    pub(crate) waiting_since: Option<Instant>,
    /// What is queued must not wait for the commit delay.
    pub(crate) hurry: bool,
    /// What is written must be synced, whatever the log's mode. Nor may it wait.
    pub(crate) flush: bool,
    pub(crate) closing: bool,
    /// When there is something to write without being called.
    pub(crate) due: Option<Instant>,
    /// Until when the writer thread sleeps if it is not called; `None` for ever.
    pub(crate) wakes_at: Option<Instant>,
    pub(crate) new_stream: NewStream,
    /// The log is shut for good: closed or poisoned.
    pub(crate) shut: Option<WalError>,
    /// The system refuses to write: nothing is taken until the queue has been written.
    pub(crate) refusing: Option<WalError>,
    /// Something has changed that may let the system take more.
    pub(crate) retry: bool,
    /// The active one last.
    pub(crate) segments: VecDeque<Segment>,
    /// What all but the active one take of the disk: [`State::recount`] after every change to them.
    pub(crate) left_bytes: u64,
    /// What segments take that are no longer read and not yet gone.
    pub(crate) retired_bytes: u64,
    /// What is prepared for the next segments.
    pub(crate) spare_bytes: u64,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) next_waiter: u64,
    pub(crate) counters: Counters,
}

/// Whether a new stream is about to begin. Appends wait meanwhile: their sequences would be the old
/// stream's.
#[derive(Debug, Default)]
pub(crate) enum NewStream {
    /// No, or the last attempt failed for this reason.
    #[default]
    No,
    Failed(WalError),
    /// Asked for, with the record to put first.
    Asked(Option<(u8, i64, Vec<u8>)>),
    /// The writer is at it.
    Running,
}

impl NewStream {
    pub(crate) const fn is_under_way(&self) -> bool {
        matches!(self, Self::Asked(_) | Self::Running)
    }
}

/// Somebody to wake when the state has changed enough.
pub(crate) struct Waiter {
    pub(crate) id: u64,
    pub(crate) wants: Wants,
    pub(crate) waker: Waker,
}

/// What a waiter waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// This sequence durable.
    Durable(Sequence),
    /// This sequence synced.
    Synced(Sequence),
    /// This watermark durable.
    Watermark(Sequence),
    /// Room in the queue.
    Room,
    /// No new stream under way.
    Stream,
}

impl State {
    /// Whether a waiter's wait is over, and how.
    pub(crate) fn outcome(&self, wants: Wants, queue_bytes: usize) -> Option<Result<(), WalError>> {
        let met = match wants {
            Wants::Durable(sequence) => sequence <= self.durable,
            Wants::Synced(sequence) => sequence <= self.synced,
            Wants::Watermark(sequence) => sequence <= self.watermark_durable,
            Wants::Room => self.has_room(queue_bytes),
            Wants::Stream => !self.new_stream.is_under_way(),
        };
        if met {
            return Some(Ok(()));
        }
        self.shut.clone().or_else(|| self.refusing.clone()).map(Err)
    }

    /// Whether the writer thread has to be called to be there then.
    pub(crate) fn writer_sleeps_beyond(&self, at: Instant) -> bool {
        self.wakes_at.is_none_or(|wakes_at| wakes_at > at)
    }

    /// Something waits for the next commit from now on; says whether the writer thread has to be
    /// called for that.
    pub(crate) fn wait_for_commit(&mut self, delay: Duration) -> bool {
        if self.waiting_since.is_some() {
            return false;
        }
        let now = Instant::now();
        self.waiting_since = Some(now);
        self.writer_sleeps_beyond(now + delay)
    }

    pub(crate) fn has_room(&self, queue_bytes: usize) -> bool {
        !self.new_stream.is_under_way() && self.group.pending_bytes() < queue_bytes
    }

    /// Takes out the waiters whose wait is over, to be woken without the lock.
    pub(crate) fn take_ready(&mut self, queue_bytes: usize, ready: &mut Vec<Waker>) {
        let mut waiters = std::mem::take(&mut self.waiters);
        let done = waiters
            .extract_if(.., |waiter| self.outcome(waiter.wants, queue_bytes).is_some())
            .map(|waiter| waiter.waker);
        ready.extend(done);
        self.waiters = waiters;
    }

    /// Bytes of records, on disk or on their way there.
    pub(crate) fn needed_bytes(&self) -> u64 {
        self.left_bytes + self.retired_bytes + self.active_bytes()
    }

    /// Bytes on disk or on their way there, with what is prepared ahead of the records.
    pub(crate) fn used_bytes(&self) -> u64 {
        let prepared = self.segments.back().map_or(0, |active| active.file_bytes);
        let active = self.active_bytes().max(prepared);
        self.left_bytes + self.retired_bytes + active + self.spare_bytes
    }

    /// Whether so many bytes more could be prepared and leave room for records to come meanwhile.
    pub(crate) fn may_prepare(&self, bytes: u64, options: &WalOptions) -> bool {
        let ahead = bytes.saturating_add(options.segment_bytes / 4);
        self.used_bytes().saturating_add(ahead) <= options.disk_budget_bytes
    }

    fn active_bytes(&self) -> u64 {
        let written = self.segments.back().map_or(0, |active| active.bytes);
        written + self.writing_bytes + self.group.pending_bytes() as u64
    }

    pub(crate) fn recount(&mut self) {
        let left = self.segments.len().saturating_sub(1);
        self.left_bytes = self.segments.iter().take(left).map(Segment::disk_bytes).sum();
    }

    pub(crate) fn epoch_at(&self, sequence: Sequence) -> Option<Epoch> {
        if sequence > self.last {
            return None;
        }
        let after = self.epochs.partition_point(|&(first, _)| first <= sequence);
        Some(self.epochs[after.checked_sub(1)?].1)
    }

    /// Durable bytes of records above the watermark: exact for whole segments, in proportion for
    /// the one in which the watermark stands.
    pub(crate) fn unacknowledged_bytes(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| {
                let records = segment.last.since(segment.first.prev());
                let open = segment.last.since(self.watermark).min(records);
                if records == 0 {
                    return 0;
                }
                (u128::from(segment.bytes) * u128::from(open) / u128::from(records)) as u64
            })
            .sum()
    }
}

/// The state, and how the writer is called.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) options: WalOptions,
    state: Mutex<State>,
    work: Condvar,
    /// A commit is being written.
    writing: AtomicBool,
    /// [`State::generation`], for those who only look.
    generation: AtomicU64,
    /// [`State::durable`], for those who only look: every record's producer does, once a commit.
    durable: AtomicU64,
}

impl Shared {
    pub(crate) fn new(dir: PathBuf, options: WalOptions, state: State) -> Self {
        Self {
            dir,
            options,
            state: Mutex::new(state),
            work: Condvar::new(),
            writing: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            durable: AtomicU64::new(0),
        }
    }

    /// The state. A panic elsewhere while it was held cannot have left it half changed: sections
    /// that change more than one field do not panic.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many streams have begun while open.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether this sequence of that generation is durable. If not, the state knows better.
    pub(crate) fn is_durable(&self, sequence: Sequence, generation: u64) -> bool {
        // A stream that begins changes the generation last, to a lower durable sequence.
        sequence.0 <= self.durable.load(Ordering::Acquire) && self.generation() == generation
    }

    /// Up to here everything is durable; the state says so too.
    pub(crate) fn set_durable(&self, sequence: Sequence) {
        self.durable.store(sequence.0, Ordering::Release);
    }

    /// Another stream has begun; the state says so too.
    pub(crate) fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
    }

    /// The writer says whether it is writing.
    pub(crate) fn set_writing(&self, writing: bool) {
        // Nothing else hangs on it.
        self.writing.store(writing, Ordering::Relaxed);
    }

    /// A reader lets the writer have the disk first, for a while.
    pub(crate) fn give_way(&self) {
        const LOOKS: u32 = 4;
        const LOOK: Duration = Duration::from_micros(250);
        for _ in 0..LOOKS {
            if !self.writing.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(LOOK);
        }
    }

    /// Calls the writer.
    pub(crate) fn call_writer(&self) {
        self.work.notify_one();
    }

    /// The writer waits to be called.
    pub(crate) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match timeout {
            None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.work.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}
