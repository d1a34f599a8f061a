//! Reading the log back where the window does not reach.

use bytes::Bytes;
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::stream::{Epoch, Sequence, wall_clock_ns};

use super::window::Record;
use crate::wal::{Entry, WalError, WalReader, WriteAheadLog};

/// A reader of the log that remembers where it is, so that reading on costs no new search.
pub(super) struct Replay {
    log: WriteAheadLog,
    at: Option<(Sequence, WalReader)>,
}

impl Replay {
    pub(super) fn new(log: WriteAheadLog) -> Self {
        Self { log, at: None }
    }

    /// Reads on from `from`, about `bytes_max` of payload. Blocks on the disk.
    ///
    /// Records that the log has lost appear as one gap event that stands for all of them.
    pub(super) fn read(&mut self, from: Sequence, bytes_max: u64) -> Result<Vec<Record>, WalError> {
        let mut reader = match self.at.take() {
            Some((next, reader)) if next == from => reader,
            _ => self.log.reader(from),
        };
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let entries = reader.next_batch(bytes_max)?;
        let records: Vec<Record> = entries.into_iter().map(|entry| self.to_record(entry)).collect();
        if let Some(last) = records.last() {
            self.at = Some((last.sequence.next(), reader));
        }
        Ok(records)
    }

    fn to_record(&self, entry: Entry) -> Record {
        match entry {
            Entry::Record(record) => Record {
                sequence: record.sequence,
                span: 1,
                epoch: record.epoch,
                timestamp_ns: record.timestamp_ns,
                kind: record.kind,
                payload: record.payload,
            },
            Entry::Lost { first, last, .. } => {
                lost(first, last, self.log.epoch_at(last).unwrap_or_else(|| self.log.epoch()))
            }
        }
    }
}

fn lost(first: Sequence, last: Sequence, epoch: Epoch) -> Record {
    let missing = last.since(first.prev());
    let now = wall_clock_ns();
    let gap = Event::Gap(GapEvent {
        reason: GapReason::LogDamaged,
        missing: Some(missing),
        first_sequence: Some(first),
        last_sequence: Some(last),
        since_ns: None,
        until_ns: None,
        time_ns: now,
        detail: format!("records {first} to {last} of the log are damaged and cannot be read"),
    });
    Record {
        sequence: last,
        span: missing,
        epoch,
        timestamp_ns: now,
        kind: EventKind::Gap.as_u8(),
        payload: Bytes::from(gap.encode()),
    }
}
