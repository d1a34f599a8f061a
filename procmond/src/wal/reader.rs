//! Reading records back, in bounded memory, while the writer writes on.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
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
    /// Its payload. The payloads of one batch share memory, and one of them keeps it.
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

/// A [`Record`] in the reader's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Its place in the stream.
    pub sequence: Sequence,
    /// The opening of the log that wrote it.
    pub epoch: Epoch,
    /// The time it was appended with, in nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// The kind it was appended with.
    pub kind: u8,
    /// Its payload, until the reader is used again.
    pub payload: &'a [u8],
}

/// An [`Entry`] in the reader's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryRef<'a> {
    /// A record.
    Record(RecordRef<'a>),
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
/// Holds one open file and a buffer of 1 MiB (more only while a longer record passes through).
/// It may outlive the log's handles, and keeps no segment from being deleted. While records are
/// being written it holds back between reads from the disk, for a millisecond each at most.
pub struct WalReader {
    shared: Arc<Shared>,
    storage: Arc<dyn Storage>,
    generation: u64,
    next: Sequence,
    cursor: Option<Cursor>,
}

/// A segment being read, as the catalogue knew it when it was looked up last.
struct Cursor {
    segment: Segment,
    accept: Accept,
    epoch: Epoch,
    file: Box<dyn StorageFile>,
    scanner: Scanner,
    /// Why the next records are lost, if they turn out to be.
    reason: LostReason,
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

/// What was found.
enum Found {
    /// The record that the cursor stands behind.
    Record,
    Lost(Sequence, Sequence, LostReason),
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

    /// The next entry; `None` if everything durable has been read. Copies nothing. Blocks on the
    /// disk, never on the writer.
    ///
    /// Records that were deleted because they were acknowledged are skipped without a word.
    ///
    /// # Errors
    /// [`WalError::StreamReplaced`] for good once a new stream has begun; [`WalError::Io`] when
    /// the system refuses to read, which may be tried again.
    #[expect(
        clippy::should_implement_trait,
        reason = "an Iterator's items cannot borrow from it, and this one fails"
    )]
    pub fn next(&mut self) -> Result<Option<EntryRef<'_>>, WalError> {
        let Some(found) = self.find()? else { return Ok(None) };
        Ok(Some(match (found, &self.cursor) {
            (Found::Record, Some(cursor)) => EntryRef::Record(cursor.record()),
            (Found::Record, None) => unreachable!("{IN_A_SEGMENT}"),
            (Found::Lost(first, last, reason), _) => EntryRef::Lost { first, last, reason },
        }))
    }

    /// The next entries, with about `max_bytes` of payload (at least one entry); none if
    /// everything durable has been read. Blocks on the disk, never on the writer.
    ///
    /// # Errors
    /// As [`WalReader::next`], once the entries before it have been returned.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Vec<Entry>, WalError> {
        let mut batch = Batch::default();
        while batch.bytes < max_bytes && batch.entries.len() < ENTRIES_MAX {
            match (self.find(), &self.cursor) {
                (Ok(Some(Found::Record)), Some(cursor)) => {
                    batch.push(&cursor.record(), max_bytes, cursor.bytes_ahead());
                }
                (Ok(Some(Found::Record)), None) => unreachable!("{IN_A_SEGMENT}"),
                (Ok(Some(Found::Lost(first, last, reason))), _) => {
                    batch.entries.push(Entry::Lost { first, last, reason });
                }
                (Ok(None), _) => break,
                (Err(_), _) if !batch.entries.is_empty() => break,
                (Err(error), _) => return Err(error),
            }
        }
        Ok(batch.entries)
    }

    #[inline]
    fn find(&mut self) -> Result<Option<Found>, WalError> {
        if self.is_at_hand() { Ok(Some(Found::Record)) } else { self.seek() }
    }

    /// Steps onto the next record if nothing has to be looked up, read or checked for it.
    #[inline]
    fn is_at_hand(&mut self) -> bool {
        let Some(cursor) = &mut self.cursor else { return false };
        let at_hand = self.shared.generation() == self.generation
            && self.next <= cursor.segment.last
            && cursor.scanner.step_onto(self.next);
        if at_hand {
            cursor.reason = LostReason::Missing;
            self.next = self.next.next();
        }
        at_hand
    }

    fn seek(&mut self) -> Result<Option<Found>, WalError> {
        loop {
            if self.shared.generation() != self.generation {
                return Err(WalError::StreamReplaced);
            }
            if let Some(cursor) = &mut self.cursor
                && self.next <= cursor.segment.last
            {
                let found = cursor
                    .find(&self.shared, &mut self.next)
                    .map_err(|source| WalError::io("read", &cursor.segment.path, source))?;
                match found {
                    Some(Found::Lost(first, ..)) if self.is_gone() => {
                        // What was read may be the file's next life already.
                        self.next = first;
                        self.cursor = None;
                    }
                    Some(found) => return Ok(Some(found)),
                    None => {}
                }
                continue;
            }
            match self.place()? {
                Place::CaughtUp => return Ok(None),
                Place::Gap { upto, watermark } => {
                    if let Some(lost) = self.skip_gone(upto, watermark) {
                        return Ok(Some(lost));
                    }
                }
                Place::In(segment, watermark) => {
                    if let Some(lost) = self.turn_to(segment, watermark)? {
                        return Ok(Some(lost));
                    }
                }
            }
        }
    }

    fn place(&mut self) -> Result<Place, WalError> {
        let state = self.shared.lock();
        if state.generation != self.generation {
            return Err(WalError::StreamReplaced);
        }
        Ok(place(&state, self.next))
    }

    /// Whether the segment under the cursor is no longer the log's.
    fn is_gone(&self) -> bool {
        let state = self.shared.lock();
        let number = self.cursor.as_ref().map(|cursor| cursor.segment.number);
        state.segments.front().map(|front| front.number) > number
    }

    /// Moves past records whose file is gone. Those that were acknowledged are no loss.
    fn skip_gone(&mut self, upto: Sequence, watermark: Sequence) -> Option<Found> {
        let first = self.next.max(watermark.next());
        self.next = upto.next();
        (first <= upto).then_some(Found::Lost(first, upto, LostReason::Missing))
    }

    /// Goes on in a segment that holds the next record.
    fn turn_to(
        &mut self,
        segment: Segment,
        watermark: Sequence,
    ) -> Result<Option<Found>, WalError> {
        let Some(key) = segment.key else {
            let lost = Found::Lost(self.next, segment.last, LostReason::Damaged);
            self.next = segment.last.next();
            return Ok(Some(lost));
        };
        if let Some(cursor) = &mut self.cursor
            && cursor.segment.number == segment.number
        {
            cursor.segment = segment;
            return Ok(None);
        }
        let file = match self.storage.open(&segment.path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(self.skip_gone(segment.last, watermark));
            }
            Err(source) => return Err(WalError::io("open", &segment.path, source)),
        };
        self.cursor = Some(Cursor {
            accept: Accept::Of { salt: key.salt, first: segment.first },
            epoch: key.epoch,
            scanner: Scanner::new(HEADER_BYTES as u64),
            reason: LostReason::Missing,
            segment,
            file,
        });
        Ok(None)
    }
}

impl Cursor {
    /// The record that was found last.
    fn record(&self) -> RecordRef<'_> {
        let head = self.scanner.head();
        RecordRef {
            sequence: head.sequence,
            epoch: self.epoch,
            timestamp_ns: head.timestamp_ns,
            kind: head.kind,
            payload: self.scanner.payload(),
        }
    }

    /// What the segment holds behind it.
    fn bytes_ahead(&self) -> u64 {
        self.segment.bytes.saturating_sub(self.scanner.offset())
    }

    /// The next record of the segment from `next` on, or what is lost before it; `None` if only
    /// the catalogue knows how to go on.
    fn find(&mut self, shared: &Shared, next: &mut Sequence) -> io::Result<Option<Found>> {
        let last = self.segment.last;
        let file = &*self.file;
        let mut read = |buffer: &mut [u8], offset: u64| {
            shared.give_way();
            file.read_some_at(buffer, offset)
        };
        while *next <= last {
            match self.scanner.step_by(&mut read, self.accept, self.segment.bytes)? {
                Step::Frame { head, .. } => {
                    let here = head.place();
                    // Beyond the segment's last stand records that were written again elsewhere.
                    if head.sequence > last || here < *next {
                        continue;
                    }
                    if here > *next {
                        self.scanner.step_back();
                        return Ok(Some(self.lose(next, here.prev())));
                    }
                    self.reason = LostReason::Missing;
                    if head.kind != KIND_CONTROL {
                        *next = here.next();
                        return Ok(Some(Found::Record));
                    }
                }
                Step::Damage { .. } => self.reason = LostReason::Damaged,
                Step::Tail { from, to } => {
                    if from < to {
                        self.reason = LostReason::Damaged;
                    }
                    // What follows in this file, if anything, is not there yet.
                    self.scanner.jump(to);
                    return Ok(Some(self.lose(next, last)));
                }
            }
        }
        Ok(None)
    }

    fn lose(&mut self, next: &mut Sequence, upto: Sequence) -> Found {
        let lost = Found::Lost(*next, upto, self.reason);
        self.reason = LostReason::Missing;
        *next = upto.next();
        lost
    }
}

const IN_A_SEGMENT: &str = "a record is found in a segment";

/// Entries in one batch, however small their payloads.
const ENTRIES_MAX: usize = 16 << 10;
/// Payloads that share memory, if there are so many.
const ROOM_BYTES: usize = 1 << 20;

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

/// Owned entries, whose payloads share memory.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    /// Of payload.
    bytes: usize,
    /// Room for the next payloads.
    room: BytesMut,
}

impl Batch {
    /// Takes a record, with room for those that will come if `ahead` bytes of them are there.
    fn push(&mut self, record: &RecordRef<'_>, max_bytes: usize, ahead: u64) {
        let length = record.payload.len();
        if self.room.capacity() < length {
            let more = (max_bytes - self.bytes).min(ROOM_BYTES);
            let more = usize::try_from(ahead).map_or(more, |ahead| more.min(ahead));
            self.room = BytesMut::with_capacity(length + more);
            let entries = 1 + more / (FRAME_BYTES + length);
            self.entries.reserve(entries.min(ENTRIES_MAX - self.entries.len()));
        }
        self.room.extend_from_slice(record.payload);
        self.bytes += length;
        let RecordRef { sequence, epoch, timestamp_ns, kind, .. } = *record;
        let payload = self.room.split().freeze();
        self.entries.push(Entry::Record(Record { sequence, epoch, timestamp_ns, kind, payload }));
    }
}
