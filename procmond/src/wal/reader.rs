//! Reading records back, in bounded memory, while the writer writes on.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use daemoneye_lib::stream::{Epoch, Sequence};

use super::WalError;
use super::format::{FRAME_BYTES, HEADER_BYTES, KIND_CONTROL};
use super::scan::{Accept, Scanner, Step};
use super::state::{Segment, Shared, State};
use super::storage::{Storage, StorageFile};

/// A record read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the stream.
    pub sequence: Sequence,
    /// The opening of the log that wrote it.
    pub epoch: Epoch,
    /// The time it was appended with, in nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// The kind it was appended with.
    pub kind: u8,
    /// Its payload. The payloads of one batch share one allocation.
    pub payload: Bytes,
}

/// Why records cannot be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostReason {
    /// Their bytes are there but not what they were.
    Damaged,
    /// Their bytes are not there: a segment is missing, or sequences were left out because it was
    /// not known how far a damaged end had reached.
    Missing,
}

impl std::fmt::Display for LostReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Damaged => "damaged",
            Self::Missing => "missing",
        })
    }
}

/// What a reader finds at a place in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A record.
    Record(Record),
    /// Records that were appended and cannot be read back.
    Lost {
        /// The first of them.
        first: Sequence,
        /// The last of them.
        last: Sequence,
        /// Why.
        reason: LostReason,
    },
}

/// Reads durable records in order. Made by [`WriteAheadLog::reader`](super::WriteAheadLog::reader).
///
/// Holds one open file and a buffer of 256 KiB (more only while a longer record passes through).
/// It may outlive the log's handles, and keeps no segment from being deleted.
pub struct WalReader {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    generation: u64,
    next: Sequence,
    cursor: Option<Cursor>,
}

struct Cursor {
    number: u64,
    file: Box<dyn StorageFile>,
    scanner: Scanner,
}

/// What the catalogue says about the next record.
enum Place {
    CaughtUp,
    /// Nothing is held before this sequence; what was up to the watermark was acknowledged.
    Gap {
        upto: Sequence,
        watermark: Sequence,
    },
    In(Segment, Sequence),
}

impl WalReader {
    pub(super) fn new(shared: Arc<Shared>, storage: Arc<dyn Storage>, from: Sequence) -> Self {
        let generation = shared.lock().generation;
        Self { shared, storage, generation, next: from.max(Sequence::FIRST), cursor: None }
    }

    /// The next sequence it will return, lose or skip.
    #[must_use]
    pub fn position(&self) -> Sequence {
        self.next
    }

    /// The next entries, with about `max_bytes` of payload (at least one entry); none if
    /// everything durable has been read. Blocks on the disk, never on the writer.
    ///
    /// Records that were deleted because they were acknowledged are skipped without a word.
    ///
    /// # Errors
    /// [`WalError::StreamReplaced`] for good once a new stream has begun; [`WalError::Io`] when
    /// the system refuses to read, which may be tried again.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Vec<Entry>, WalError> {
        let mut batch = Batch::default();
        while batch.payloads.len() < max_bytes && batch.entries.len() < ENTRIES_MAX {
            match self.place()? {
                Place::CaughtUp => break,
                Place::Gap { upto, watermark } => {
                    self.skip_gone(&mut batch, upto, watermark);
                }
                Place::In(segment, watermark) => {
                    self.read_segment(&mut batch, &segment, watermark, max_bytes)?;
                }
            }
        }
        Ok(batch.finish())
    }

    fn place(&mut self) -> Result<Place, WalError> {
        let state = self.shared.lock();
        if state.generation != self.generation {
            return Err(WalError::StreamReplaced);
        }
        Ok(place(&state, self.next))
    }

    /// Moves past records whose file is gone. Those that were acknowledged are no loss.
    fn skip_gone(&mut self, batch: &mut Batch, upto: Sequence, watermark: Sequence) {
        let first = self.next.max(watermark.next());
        if first <= upto {
            batch.lose(first, upto, LostReason::Missing);
        }
        self.next = upto.next();
    }

    /// Reads on in a segment that holds the next record, to its end or until the batch is full.
    fn read_segment(
        &mut self,
        batch: &mut Batch,
        segment: &Segment,
        watermark: Sequence,
        max_bytes: usize,
    ) -> Result<(), WalError> {
        let Some(key) = segment.key else {
            batch.lose(self.next, segment.last, LostReason::Damaged);
            self.next = segment.last.next();
            return Ok(());
        };
        if self.cursor.as_ref().is_none_or(|cursor| cursor.number != segment.number) {
            let file = match self.storage.open(&segment.path, false) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.skip_gone(batch, segment.last, watermark);
                    return Ok(());
                }
                Err(source) => return Err(WalError::io("open", &segment.path, source)),
            };
            let scanner = Scanner::new(HEADER_BYTES as u64);
            self.cursor = Some(Cursor { number: segment.number, file, scanner });
        }
        let cursor = self.cursor.as_mut().expect("set above");
        let mut reason = LostReason::Missing;
        while batch.payloads.len() < max_bytes && batch.entries.len() < ENTRIES_MAX {
            let step = cursor
                .scanner
                .step(
                    &*cursor.file,
                    Accept::Of { salt: key.salt, first: segment.first },
                    segment.bytes,
                )
                .map_err(|source| WalError::io("read", &segment.path, source))?;
            match step {
                Step::Frame { head, .. } => {
                    let control = head.kind == KIND_CONTROL;
                    let next = if control { head.sequence.next() } else { head.sequence };
                    // Beyond the segment's last stand records that were written again elsewhere.
                    if head.sequence > segment.last || next < self.next {
                        continue;
                    }
                    if next > self.next {
                        batch.lose(self.next, next.prev(), reason);
                        self.next = next;
                    }
                    reason = LostReason::Missing;
                    if !control {
                        batch.push(head.sequence, key.epoch, head, cursor.scanner.payload());
                        self.next = next.next();
                    }
                }
                Step::Damage { .. } => reason = LostReason::Damaged,
                Step::Tail { from, to } => {
                    if from < to {
                        reason = LostReason::Damaged;
                    }
                    // What follows in this file, if anything, is not there yet.
                    cursor.scanner.jump(to);
                    if self.next <= segment.last {
                        batch.lose(self.next, segment.last, reason);
                        self.next = segment.last.next();
                    }
                }
            }
            if self.next > segment.last {
                break;
            }
        }
        Ok(())
    }
}

/// Entries in one batch, however small their payloads.
const ENTRIES_MAX: usize = 16 << 10;

fn place(state: &State, next: Sequence) -> Place {
    let last = state.segments.back().map_or(Sequence::NONE, |active| active.last);
    if next > last {
        return Place::CaughtUp;
    }
    let watermark = state.watermark;
    match state.segments.iter().find(|segment| segment.last >= next) {
        Some(segment) if segment.first <= next => Place::In(segment.clone(), watermark),
        Some(segment) => Place::Gap { upto: segment.first.prev(), watermark },
        None => Place::Gap { upto: last, watermark },
    }
}

/// Entries whose payloads are gathered in one allocation.
#[derive(Default)]
struct Batch {
    entries: Vec<(Entry, Range<usize>)>,
    payloads: Vec<u8>,
}

impl Batch {
    fn push(
        &mut self,
        sequence: Sequence,
        epoch: Epoch,
        head: super::format::FrameHead,
        payload: &[u8],
    ) {
        debug_assert_eq!(payload.len() + FRAME_BYTES, head.frame_bytes());
        let start = self.payloads.len();
        self.payloads.extend_from_slice(payload);
        let record = Record {
            sequence,
            epoch,
            timestamp_ns: head.timestamp_ns,
            kind: head.kind,
            payload: Bytes::new(),
        };
        self.entries.push((Entry::Record(record), start..self.payloads.len()));
    }

    fn lose(&mut self, first: Sequence, last: Sequence, reason: LostReason) {
        debug_assert!(first <= last);
        self.entries.push((Entry::Lost { first, last, reason }, 0..0));
    }

    fn finish(self) -> Vec<Entry> {
        let payloads = Bytes::from(self.payloads);
        self.entries
            .into_iter()
            .map(|(mut entry, range)| {
                if let Entry::Record(record) = &mut entry {
                    record.payload = payloads.slice(range);
                }
                entry
            })
            .collect()
    }
}
