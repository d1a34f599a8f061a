//! Reading the log back where the window does not reach.

use bytes::Bytes;
use daemoneye_lib::stream::{Epoch, Sequence};

use super::gap;
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
    let gap = gap::damaged(first, last);
    Record {
        sequence: last,
        span: last.since(first.prev()),
        epoch,
        timestamp_ns: gap.time_ns(),
        kind: gap.kind().as_u8(),
        payload: Bytes::from(gap.encode()),
    }
}
