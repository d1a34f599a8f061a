//! The write-ahead log: records are durable before anybody hears of them, and forgotten only when
//! everybody has.
//!
//! A log is a directory of segments (`docs/wal-format.md`) that one process at a time holds. It
//! stores opaque payloads under a kind byte and gives each a *sequence*: contiguous from 1 within
//! a *stream*, never used twice. Appends from many tasks are gathered, written with one write and
//! made durable with one fdatasync by one named thread; then everybody gets a receipt. The
//! *watermark*, up to which all consumers have committed, is written into the log itself and rides
//! the next commit; segments wholly below it are deleted.
//!
//! ```
//! use procmond::wal::{Entry, WalOptions, WriteAheadLog};
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # runtime.block_on(async {
//! let (log, recovery) = WriteAheadLog::open(dir, WalOptions::default())?;
//! assert!(recovery.new_stream);
//! let receipt = log.append(1, 1_700_000_000_000_000_000, b"a start").await?;
//!
//! // Whatever happens from here on, the record is there.
//! let mut reader = log.reader(receipt.sequence);
//! for entry in reader.next_batch(1 << 20)? {
//!     match entry {
//!         Entry::Record(record) => assert_eq!(&record.payload[..], b"a start"),
//!         Entry::Lost { first, last, .. } => eprintln!("lost {first} to {last}"),
//!     }
//! }
//! log.acknowledge(receipt.sequence)?;
//! log.close()?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

mod archive;
mod error;
mod format;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod histogram;
mod inspect;
mod keeper;
mod lock;
#[cfg(test)]
mod model;
mod offline;
mod policy;
mod reader;
mod recovery;
mod reserve;
mod scan;
mod segment;
mod state;
mod storage;
#[cfg(test)]
mod tests;
mod wait;
mod writer;

pub use archive::{ArchiveOptions, Compression, Retire};
pub use error::WalError;
pub use histogram::{BUCKETS, Histogram};
pub use inspect::{
    Inspection, Problem, ProblemKind, SegmentIdentity, SegmentReport, inspect, inspect_files,
};
pub use offline::{
    Compaction, Field, FoundRecord, LogEntry, LogFiles, Progress, Repair, RepairAction, compact,
    find_record, read_files, repair,
};
pub use policy::{RotateEvery, SyncMode};
pub use reader::{Entry, EntryRef, LostReason, Record, RecordRef, WalReader};
#[cfg(test)]
pub(crate) use storage::faulty;
pub use wait::Durable;

use group::Group;
use keeper::{Desk, Keeper};
use lock::DirLock;
use policy::Rotation;
use state::{Counters, NewStream, Shared, State, Wants};
use storage::{OsStorage, Storage};
use wait::{Wait, block_on};
use writer::Writer;

/// How a log behaves. The defaults are the product's.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// A segment is left for the next when it would grow beyond this. Lowered to a quarter of the
    /// disk budget, so that room can come back in parts. At least 4 KiB.
    pub segment_bytes: u64,
    /// How long a record or an acknowledgement may wait for others to share its fdatasync. Zero
    /// writes at once.
    pub commit_delay: Duration,
    /// As soon as this many bytes wait they are written, whatever the delay.
    pub commit_bytes: usize,
    /// At this many bytes in queue [`WriteAheadLog::submit`] says [`WalError::Busy`]. What is in
    /// memory is at most twice this and one submission.
    pub queue_bytes: usize,
    /// What the segments may take of the disk; appends are refused beyond it. Headers of segments
    /// to come and control records are written even then.
    pub disk_budget_bytes: u64,
    /// The longest payload taken, at most 16 MiB.
    pub max_record_bytes: u32,
    /// When what is written is made durable, and so what a receipt promises.
    pub sync: SyncMode,
    /// When a segment is left for the next though it is not full.
    pub rotate: Option<RotateEvery>,
    /// What happens to a segment when everything in it was acknowledged. While it cannot be
    /// archived it stays, and counts in the budget.
    pub retire: Retire,
    /// Whether segments are written ahead with zeros, or made out of those that nobody needs any
    /// more, on file systems where that makes syncs cheaper. Costs the disk up to two segments
    /// more than the records need, within the budget.
    pub prepare: bool,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 80_000_000,
            commit_delay: Duration::from_millis(5),
            commit_bytes: 64 << 10,
            queue_bytes: 4 << 20,
            disk_budget_bytes: 1 << 30,
            max_record_bytes: 1 << 20,
            sync: SyncMode::Always,
            rotate: None,
            retire: Retire::Delete,
            prepare: true,
        }
    }
}

impl WalOptions {
    fn checked(mut self) -> Result<Self, WalError> {
        const SEGMENT_BYTES_MIN: u64 = 4 << 10;
        let bad = |name, value, must| Err(WalError::BadOption { name, value, must });
        if self.segment_bytes < SEGMENT_BYTES_MIN {
            return bad("segment_bytes", self.segment_bytes, "at least 4096");
        }
        if self.disk_budget_bytes < 4 * SEGMENT_BYTES_MIN {
            return bad("disk_budget_bytes", self.disk_budget_bytes, "at least 16384");
        }
        if self.max_record_bytes > format::PAYLOAD_BYTES_MAX {
            let value = u64::from(self.max_record_bytes);
            return bad("max_record_bytes", value, "at most 16777216");
        }
        if self.queue_bytes == 0 {
            return bad("queue_bytes", 0, "at least 1");
        }
        self.segment_bytes = self.segment_bytes.min(self.disk_budget_bytes / 4);
        Ok(self)
    }
}

/// Proof that a record and everything before it is in the log's files. What that means depends on
/// [`Receipt::promise`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The record's place in the stream.
    pub sequence: Sequence,
    /// The opening of the log that wrote it.
    pub epoch: Epoch,
    /// What they survive.
    pub promise: Promise,
}

/// What records with a receipt survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Kill -9 and a power cut: they are synced.
    Synced,
    /// Kill -9. A power cut or a crash of the system may take what [`SyncMode`] says.
    Written,
}

/// A record to append.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// What it is, 1 to 255; the log only stores it.
    pub kind: u8,
    /// When it happened, in nanoseconds since 1970; the log only stores it.
    pub timestamp_ns: i64,
    /// Its payload.
    pub payload: &'a [u8],
}

/// What opening a log found.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// The directory held no log, or none that says who it is.
    pub new_stream: bool,
    /// The oldest sequence still held, acknowledged ones included; one after `last` if none is.
    pub first: Sequence,
    /// The last sequence used.
    pub last: Sequence,
    /// Everything up to here was acknowledged.
    pub watermark: Sequence,
    /// Records not acknowledged, lost ones included.
    pub records: u64,
    /// Segment files, the one this opening has begun included.
    pub segments: usize,
    /// What was cut off the end.
    pub torn: Option<TornTail>,
    /// Records found lost. Only the last segment is read as a whole when a log is opened; a reader
    /// finds out about the others.
    pub damage: Vec<LostRange>,
    /// Segments that belong to another log or to none; they are neither read nor removed.
    pub foreign: Vec<PathBuf>,
}

/// Bytes after the last whole record, left by a write that a crash cut short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: PathBuf,
    /// Where it was cut.
    pub offset: u64,
    /// How much was cut off.
    pub bytes: u64,
    /// Where the bytes are kept, if they were more than one record cut short.
    pub copy: Option<PathBuf>,
}

/// Records that cannot be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostRange {
    /// The first of them.
    pub first: Sequence,
    /// The last of them.
    pub last: Sequence,
    /// Why.
    pub reason: LostReason,
}

/// A log in numbers.
#[derive(Debug, Clone)]
pub struct WalStats {
    /// The stream.
    pub stream: StreamId,
    /// This opening.
    pub epoch: Epoch,
    /// The last sequence assigned.
    pub last: Sequence,
    /// The last sequence that is durable.
    pub durable: Sequence,
    /// Acknowledged up to here.
    pub watermark: Sequence,
    /// Acknowledged up to here, and a restart will know.
    pub watermark_durable: Sequence,
    /// Segment files.
    pub segments: usize,
    /// Bytes of records in them and on their way there: what the budget is compared with.
    pub used_bytes: u64,
    /// Bytes of the disk that are prepared for records to come. With the records within the budget.
    pub prepared_bytes: u64,
    /// Bytes of records waiting for the writer.
    pub queued_bytes: usize,
    /// Records taken since the log was opened.
    pub appended: u64,
    /// Their payload bytes.
    pub appended_bytes: u64,
    /// How long syncs took, in microseconds. Its count is how often something was made durable.
    pub sync_micros: Histogram,
    /// Records made durable at once.
    pub commit_records: Histogram,
    /// How often a segment was left for the next.
    pub rotations: u64,
    /// Segments prepared with zeros.
    pub prepared: u64,
    /// Segments made out of retired ones.
    pub recycled: u64,
    /// Segments deleted because everything in them was acknowledged.
    pub deleted: u64,
    /// Segments archived, before they were deleted or used again.
    pub archived: u64,
    /// How often a failed write or sync was made good in a fresh segment.
    pub rewrites: u64,
    /// How often [`WalError::Busy`] was said.
    pub busy: u64,
    /// Records refused because the budget was spent or the system would not write, by kind.
    pub refused: Vec<(u8, u64)>,
    /// Why the system does not let the log write at the moment.
    pub refusing: Option<WalError>,
}

/// A log open for writing. Clones are handles on the same log; the last one dropped closes it.
#[derive(Clone)]
pub struct WriteAheadLog {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    writer: Arc<Mutex<Writer>>,
    desk: Arc<Desk>,
    /// Until closed.
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

impl WriteAheadLog {
    /// Opens the log in a directory, creating it (0700) if it is not there. Blocks on the disk for
    /// about as long as it takes to read the last segment.
    ///
    /// # Errors
    /// [`WalError::LockHeld`] if a process has it open, [`WalError::UnknownFormat`] if a newer
    /// program wrote it, [`WalError::Io`] and [`WalError::DiskFull`] as the system says. Damage is
    /// no error: it is in the [`Recovery`], and readers tell where it is.
    pub fn open(dir: &Path, options: WalOptions) -> Result<(Self, Recovery), WalError> {
        Self::open_on(Arc::new(OsStorage), dir, options)
    }

    pub(crate) fn open_on(
        storage: Arc<dyn Storage>,
        dir: &Path,
        options: WalOptions,
    ) -> Result<(Self, Recovery), WalError> {
        let options = options.checked()?;
        storage.create_dir(dir).map_err(|source| WalError::io("create", dir, source))?;
        let lock = Arc::new(DirLock::take(dir)?);
        let recovered = recovery::recover(&*storage, dir)?;
        let mut state = State {
            stream: recovered.stream,
            generation: 0,
            epoch: recovered.epoch,
            epochs: recovered.epochs,
            last: recovered.last,
            durable: recovered.last,
            synced: recovered.last,
            watermark: recovered.watermark,
            watermark_durable: recovered.watermark,
            retain_from: None,
            group: Group::default(),
            writing_bytes: 0,
            waiting_since: None,
            hurry: false,
            flush: false,
            closing: false,
            due: None,
            wakes_at: None,
            new_stream: NewStream::No,
            shut: None,
            refusing: None,
            retry: false,
            segments: recovered.segments,
            left_bytes: 0,
            retired_bytes: 0,
            spare_bytes: 0,
            waiters: Vec::new(),
            next_waiter: 0,
            counters: Counters::default(),
        };
        state.recount();
        let shared = Arc::new(Shared::new(dir.to_owned(), options, state));
        let prepares = shared.options.prepare && storage.overwrites_in_place(dir);
        let desk = Arc::new(Desk::new(prepares));
        let writer = Arc::new(Mutex::new(Writer {
            shared: Arc::clone(&shared),
            storage: Arc::clone(&storage),
            desk: Arc::clone(&desk),
            lock: Some(Arc::clone(&lock)),
            active: recovered.active,
            durable: recovered.last,
            synced: recovered.last,
            watermark_synced: recovered.watermark,
            group: Group::default(),
            unsynced_since: None,
            cohort: 0,
            abandoned: false,
            refused: false,
            from_reserve: false,
            file_limit: u64::MAX,
            sync_took: None,
            ready: Vec::new(),
        }));
        let keeper = Keeper {
            shared: Arc::clone(&shared),
            storage: Arc::clone(&storage),
            desk: Arc::clone(&desk),
            lock,
            archived: None,
            made: 0,
            failing: false,
        };
        let not_started =
            |source| WalError::io("start the threads that write the log in", dir, source);
        let keeper = keeper.spawn().map_err(not_started)?;
        let started = thread::Builder::new().name("wal-writer".to_owned()).spawn({
            let (shared, writer) = (Arc::clone(&shared), Arc::clone(&writer));
            move || writer::run(&shared, &writer)
        });
        let thread = started.map_err(|source| {
            desk.close();
            not_started(source)
        })?;
        let threads = Mutex::new(Some(Threads { writer: thread, keeper }));
        let inner = Arc::new(Inner { shared, storage, writer, desk, threads });
        Ok((Self { inner }, recovered.report))
    }

    /// Appends a record and waits until it is durable; waits for room in the queue before.
    ///
    /// Dropping the future before it resolves leaves it open whether the record was appended.
    ///
    /// # Errors
    /// As [`WriteAheadLog::submit`] (except [`WalError::Busy`]) and [`WriteAheadLog::durable`].
    pub async fn append(
        &self,
        kind: u8,
        timestamp_ns: i64,
        payload: &[u8],
    ) -> Result<Receipt, WalError> {
        loop {
            match self.submit(kind, timestamp_ns, payload) {
                Err(WalError::Busy) => self.room().await,
                other => return self.durable(other?).await,
            }
        }
    }

    /// Assigns the next sequence to a record and queues it. Does not wait and does no I/O.
    ///
    /// # Errors
    /// The record was not taken and no sequence was used: [`WalError::Busy`] when the queue is full
    /// (or a new stream is being written), [`WalError::BudgetSpent`] or [`WalError::DiskFull`] for
    /// want of disk (counted in [`WalStats::refused`]), [`WalError::TooLarge`],
    /// [`WalError::ReservedKind`], and [`WalError::Closed`] or [`WalError::Poisoned`] for good.
    pub fn submit(
        &self,
        kind: u8,
        timestamp_ns: i64,
        payload: &[u8],
    ) -> Result<Sequence, WalError> {
        self.submit_all(&[NewRecord { kind, timestamp_ns, payload }])
    }

    /// Queues several records under one lock, all or none, and returns the last one's sequence
    /// (the last assigned, if there are none).
    ///
    /// # Errors
    /// As [`WriteAheadLog::submit`].
    pub fn submit_all(&self, records: &[NewRecord<'_>]) -> Result<Sequence, WalError> {
        let (last, call) = self.enqueue(records)?;
        if call {
            self.inner.shared.call_writer();
        }
        Ok(last)
    }

    /// Appends records and makes them durable at once, without the commit delay; waits for room in
    /// the queue before. Returns the last one's receipt. Blocks on the disk: this thread writes,
    /// unless another is just doing so.
    ///
    /// # Errors
    /// As [`WriteAheadLog::submit`] (except [`WalError::Busy`]) and [`WriteAheadLog::durable`].
    pub fn append_blocking(&self, records: &[NewRecord<'_>]) -> Result<Receipt, WalError> {
        let last = loop {
            match self.enqueue(records) {
                Err(WalError::Busy) => block_on(self.room()),
                other => break other?.0,
            }
        };
        let durable = self.durable(last);
        match self.inner.writer.try_lock() {
            Ok(mut writer) => {
                writer.serve();
            }
            Err(_) => {
                self.inner.shared.lock().hurry = true;
                self.inner.shared.call_writer();
            }
        }
        block_on(durable)
    }

    /// Queues records; says whether the writer has to be called for them.
    fn enqueue(&self, records: &[NewRecord<'_>]) -> Result<(Sequence, bool), WalError> {
        let shared = &*self.inner.shared;
        let options = &shared.options;
        let mut bytes = 0;
        for record in records {
            if record.kind == format::KIND_CONTROL {
                return Err(WalError::ReservedKind);
            }
            if record.payload.len() > options.max_record_bytes as usize {
                return Err(WalError::TooLarge {
                    bytes: record.payload.len(),
                    max_bytes: options.max_record_bytes,
                });
            }
            bytes += Group::frame_bytes(record.payload.len()) as u64;
        }
        let mut state = shared.lock();
        state.admit(shared, records, bytes)?;
        if records.is_empty() {
            return Ok((state.last, false));
        }
        let always = options.sync.is_always();
        let before = state.group.pending_bytes();
        for record in records {
            let sequence = state.last.next();
            let NewRecord { kind, timestamp_ns, payload } = *record;
            // A commit is written when the one before is durable, or else what was synced is known.
            let in_commit = if always {
                state.group.pending_records()
            } else {
                state.last.since(state.synced) as usize
            };
            state.group.push(kind, sequence, in_commit, timestamp_ns, payload);
            state.last = sequence;
            state.counters.appended += 1;
            state.counters.appended_bytes += record.payload.len() as u64;
        }
        if state.spare_bytes > 0 && !state.may_prepare(0, options) {
            self.inner.desk.shed_spare();
        }
        let last = state.last;
        let call = state.wait_for_commit(options.commit_delay);
        let after = state.group.pending_bytes();
        let full = before < options.commit_bytes && after >= options.commit_bytes;
        Ok((last, call || full))
    }

    /// Resolves when a sequence is durable. May be dropped and asked again.
    ///
    /// # Errors
    /// [`WalError::NotAppended`] if it has not been assigned. [`WalError::DiskFull`] if it has to
    /// wait for room: the record stays queued and becomes durable when there is some.
    /// [`WalError::Poisoned`] and [`WalError::Closed`] if it may never be.
    pub fn durable(&self, sequence: Sequence) -> Durable {
        let shared = &self.inner.shared;
        // Asked now, because the sequence is this stream's.
        let state = shared.lock();
        let wait = if sequence > state.last {
            Err(WalError::NotAppended { sequence, last: state.last })
        } else {
            Ok(Wait::new(Arc::clone(shared), Wants::Durable(sequence), state.generation))
        };
        let epoch = state.epoch_at(sequence).unwrap_or(state.epoch);
        let promise = shared.options.sync.promise();
        Durable::new(wait, Receipt { sequence, epoch, promise })
    }

    /// [`WriteAheadLog::durable`] for a thread.
    ///
    /// # Errors
    /// As [`WriteAheadLog::durable`].
    pub fn durable_blocking(&self, sequence: Sequence) -> Result<Receipt, WalError> {
        block_on(self.durable(sequence))
    }

    /// Resolves when [`WriteAheadLog::submit`] would not say [`WalError::Busy`], or would say
    /// something worse.
    pub async fn room(&self) {
        // Whatever stands against it, submit says it better.
        let _ = self.wait(Wants::Room).await;
    }

    /// Makes everything submitted and acknowledged so far durable now, without the commit delay,
    /// and returns the last durable sequence.
    ///
    /// # Errors
    /// As [`WriteAheadLog::durable`].
    pub async fn flush(&self) -> Result<Sequence, WalError> {
        let (last, watermark) = {
            let mut state = self.inner.shared.lock();
            if state.last > state.synced || state.watermark > state.watermark_durable {
                state.flush = true;
            }
            (state.last, state.watermark)
        };
        self.inner.shared.call_writer();
        self.wait(Wants::Synced(last)).await?;
        self.wait(Wants::Watermark(watermark)).await?;
        Ok(last)
    }

    /// The last sequence assigned; [`Sequence::NONE`] in a new stream.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.inner.shared.lock().last
    }

    /// The last sequence that is durable.
    #[must_use]
    pub fn last_durable(&self) -> Sequence {
        self.inner.shared.lock().durable
    }

    /// Up to where everything was acknowledged. Durable a commit later.
    #[must_use]
    pub fn watermark(&self) -> Sequence {
        self.inner.shared.lock().watermark
    }

    /// Every consumer has committed everything up to this sequence: it may be forgotten.
    ///
    /// Becomes durable with the next commit, or within the commit delay if there is none; then
    /// segments wholly below are deleted. An older sequence than the watermark changes nothing.
    ///
    /// # Errors
    /// [`WalError::AheadOfLog`] beyond what is durable, [`WalError::Closed`] or
    /// [`WalError::Poisoned`] if the log is shut.
    pub fn acknowledge(&self, sequence: Sequence) -> Result<(), WalError> {
        let mut state = self.inner.shared.lock();
        if let Some(why) = &state.shut {
            return Err(why.clone());
        }
        if sequence > state.durable {
            return Err(WalError::AheadOfLog { sequence, durable: state.durable });
        }
        if sequence > state.watermark {
            state.watermark = sequence;
            let call = state.wait_for_commit(self.inner.shared.options.commit_delay);
            // A disk that refuses is tried again at once: this may be what makes room.
            let refused = state.refusing.is_some();
            state.retry |= refused;
            let call = call || refused;
            drop(state);
            if call {
                self.inner.shared.call_writer();
            }
        }
        Ok(())
    }

    /// Keeps the segments that hold records from this sequence on, acknowledged or not. Only
    /// until the log is closed or a new stream begins.
    pub fn retain_from(&self, sequence: Sequence) {
        let mut state = self.inner.shared.lock();
        state.retain_from = Some(sequence);
        // Segments may be free to go now: the writer looks, as after an acknowledgement.
        let call = state.wait_for_commit(self.inner.shared.options.commit_delay);
        drop(state);
        if call {
            self.inner.shared.call_writer();
        }
    }

    /// The most that the log takes on the disk, as it was opened with.
    #[must_use]
    pub fn disk_budget_bytes(&self) -> u64 {
        self.inner.shared.options.disk_budget_bytes
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        self.inner.shared.lock().stream
    }

    /// This opening of the stream.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.shared.lock().epoch
    }

    /// Which opening wrote the record at a sequence. Known for every record not yet acknowledged
    /// and for the one at the watermark; `None` for older ones that were deleted, and for those
    /// not yet written.
    #[must_use]
    pub fn epoch_at(&self, sequence: Sequence) -> Option<Epoch> {
        self.inner.shared.lock().epoch_at(sequence)
    }

    /// Reads durable records from a sequence on.
    #[must_use]
    pub fn reader(&self, from: Sequence) -> WalReader {
        WalReader::new(Arc::clone(&self.inner.shared), Arc::clone(&self.inner.storage), from)
    }

    /// Durable bytes of records that were not acknowledged, as good as segment lengths tell.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> u64 {
        self.inner.shared.lock().unacknowledged_bytes()
    }

    /// The log in numbers.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        let state = self.inner.shared.lock();
        let counters = state.counters.clone();
        WalStats {
            stream: state.stream,
            epoch: state.epoch,
            last: state.last,
            durable: state.durable,
            watermark: state.watermark,
            watermark_durable: state.watermark_durable,
            segments: state.segments.len(),
            used_bytes: state.needed_bytes(),
            prepared_bytes: state.used_bytes() - state.needed_bytes(),
            queued_bytes: state.group.pending_bytes(),
            appended: counters.appended,
            appended_bytes: counters.appended_bytes,
            sync_micros: counters.sync_micros,
            commit_records: counters.commit_records,
            rotations: counters.rotations,
            prepared: counters.prepared,
            recycled: counters.recycled,
            deleted: counters.deleted,
            archived: counters.archived,
            rewrites: counters.rewrites,
            busy: counters.busy,
            refused: counters.refused,
            refusing: state.refusing.clone(),
        }
    }

    /// Begins a new stream: the log was found not to continue what consumers have.
    ///
    /// Everything that was not acknowledged is written again from sequence 1, after `first` (kind,
    /// timestamp and payload of a record that says what happened), and the old stream's segments
    /// are deleted. A crash in between leaves wholly the one or wholly the other. Records that are
    /// lost in the old stream are as many sequences lost in the new one. Until the old segments are
    /// deleted the disk holds both, whatever the budget. Appends wait meanwhile;
    /// waits for old sequences are over when it begins, because they are durable by then.
    ///
    /// Dropping the future leaves it open whether the stream begins.
    ///
    /// # Errors
    /// The old stream goes on: [`WalError::DiskFull`], [`WalError::Io`], [`WalError::Busy`] if
    /// somebody else is at it, and what [`WriteAheadLog::submit`] says about `first`. After
    /// [`WalError::Poisoned`] the next opening finds out which stream it is.
    pub async fn begin_stream(
        &self,
        first: Option<(u8, i64, &[u8])>,
    ) -> Result<StreamId, WalError> {
        let shared = &self.inner.shared;
        if let Some((kind, _, payload)) = first {
            let max_bytes = shared.options.max_record_bytes;
            if kind == format::KIND_CONTROL {
                return Err(WalError::ReservedKind);
            }
            if payload.len() > max_bytes as usize {
                return Err(WalError::TooLarge { bytes: payload.len(), max_bytes });
            }
        }
        let generation = {
            let mut state = shared.lock();
            if state.new_stream.is_under_way() {
                return Err(WalError::Busy);
            }
            let first = first.map(|(kind, time, payload)| (kind, time, payload.to_vec()));
            state.new_stream = NewStream::Asked(first);
            state.generation
        };
        shared.call_writer();
        let waited = Wait::new(Arc::clone(shared), Wants::Stream, generation).await;
        let mut state = shared.lock();
        if state.generation != generation {
            return Ok(state.stream);
        }
        match std::mem::take(&mut state.new_stream) {
            NewStream::Failed(error) => Err(error),
            _ => Err(waited.err().unwrap_or(WalError::Closed)),
        }
    }

    /// Makes everything durable, ends the writer and lets go of the directory. Other handles find
    /// the log closed. Blocks on the disk.
    ///
    /// # Errors
    /// What kept the last records from becoming durable.
    pub fn close(&self) -> Result<(), WalError> {
        self.inner.close()
    }

    async fn wait(&self, wants: Wants) -> Result<(), WalError> {
        let generation = self.inner.shared.lock().generation;
        Wait::new(Arc::clone(&self.inner.shared), wants, generation).await
    }
}

impl std::fmt::Debug for WriteAheadLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.inner.shared.lock();
        f.debug_struct("WriteAheadLog")
            .field("dir", &self.inner.shared.dir)
            .field("stream", &state.stream)
            .field("epoch", &state.epoch)
            .field("durable", &state.durable)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn close(&self) -> Result<(), WalError> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Threads { writer, keeper }) = threads.take() {
            self.shared.lock().closing = true;
            self.shared.call_writer();
            // If one panicked, it has said so in the state.
            let _ = writer.join();
            self.desk.close();
            let _ = keeper.join();
            drop(writer::lock(&self.writer).lock.take());
        }
        match &self.shared.lock().shut {
            None | Some(WalError::Closed) => Ok(()),
            Some(why) => Err(why.clone()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(dir = ?self.shared.dir, %error, "the log did not close cleanly");
        }
    }
}

impl State {
    /// Whether these records may be queued.
    fn admit(
        &mut self,
        shared: &Shared,
        records: &[NewRecord<'_>],
        bytes: u64,
    ) -> Result<(), WalError> {
        if let Some(why) = &self.shut {
            return Err(why.clone());
        }
        if self.closing {
            return Err(WalError::Closed);
        }
        let options = &shared.options;
        let used_bytes = self.needed_bytes();
        let refused = if let Some(why) = &self.refusing {
            Some(why.clone())
        } else if used_bytes + bytes > options.disk_budget_bytes {
            if self.is_retirable(self.watermark_durable) {
                // An opening retires nothing before its first commit, and there may be none without
                // the room.
                self.due = Some(Instant::now());
                shared.call_writer();
            }
            Some(WalError::BudgetSpent {
                dir: shared.dir.clone(),
                used_bytes,
                budget_bytes: options.disk_budget_bytes,
            })
        } else {
            None
        };
        if let Some(why) = refused {
            records.iter().for_each(|record| self.counters.refuse(record.kind));
            return Err(why);
        }
        if !self.has_room(options.queue_bytes) {
            self.counters.busy += 1;
            return Err(WalError::Busy);
        }
        Ok(())
    }
}
