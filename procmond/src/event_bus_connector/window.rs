//! The tail of the log that is held in memory.

use std::collections::VecDeque;

use bytes::Bytes;
use daemoneye_eventbus::wire::ENTRY_HEADER_BYTES;
use daemoneye_eventbus::{Batch, Entry, Topic};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

/// A durable record on its way to the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: Sequence,
    /// How many sequences the record stands for, ending at its own: more than one only where it
    /// reports records that the log has lost.
    pub(super) span: u64,
    pub(super) epoch: Epoch,
    pub(super) timestamp_ns: i64,
    pub(super) kind: u8,
    pub(super) payload: Bytes,
}

impl Record {
    fn bytes(&self) -> u64 {
        self.payload.len() as u64
    }

    /// What it counts against the broker's credit: a record without payload is not free.
    fn credit(&self) -> u64 {
        self.bytes() + ENTRY_HEADER_BYTES as u64
    }
}

/// Unacknowledged records in order, without holes, at most `bytes_max` of payload.
///
/// What does not fit stays in the log and is read back when there is room. The window therefore
/// always holds the *oldest* unacknowledged records: those are sent next.
#[derive(Debug)]
pub(super) struct Window {
    bytes_max: u64,
    bytes: u64,
    records: VecDeque<Record>,
    /// Everything up to here has been acknowledged.
    acked: Sequence,
    /// How many records from the front have been sent in this session, and the credit they take.
    sent_records: usize,
    sent_credit: u64,
}

impl Window {
    pub(super) fn new(bytes_max: u64, acked: Sequence) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            records: VecDeque::new(),
            acked,
            sent_records: 0,
            sent_credit: 0,
        }
    }

    /// Everything up to here has been acknowledged.
    pub(super) fn acked(&self) -> Sequence {
        self.acked
    }

    /// The last record held, or the last acknowledged one if none is.
    pub(super) fn end(&self) -> Sequence {
        self.records.back().map_or(self.acked, |record| record.sequence)
    }

    /// The last record sent in this session, or the last acknowledged one.
    pub(super) fn sent_through(&self) -> Sequence {
        match self.sent_records.checked_sub(1) {
            Some(last) => self.records[last].sequence,
            None => self.acked,
        }
    }

    /// Payload bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Payload bytes that still fit.
    pub(super) fn room(&self) -> u64 {
        self.bytes_max.saturating_sub(self.bytes)
    }

    /// Takes the record if it is the next one and fits.
    pub(super) fn push(&mut self, record: Record) -> bool {
        let follows = record.sequence.0.checked_sub(record.span) == Some(self.end().0);
        // An empty window takes anything: a record larger than the window must still move.
        if !follows || (record.bytes() > self.room() && !self.records.is_empty()) {
            return false;
        }
        self.bytes += record.bytes();
        self.records.push_back(record);
        true
    }

    /// Forgets everything up to `through`.
    pub(super) fn acknowledge(&mut self, through: Sequence) {
        while self.records.front().is_some_and(|record| record.sequence <= through) {
            let Some(record) = self.records.pop_front() else { break };
            self.bytes -= record.bytes();
            if self.sent_records > 0 {
                self.sent_records -= 1;
                self.sent_credit -= record.credit();
            }
        }
        // A position inside a gap record's span cannot be resumed at: the gap is sent again whole,
        // and a consumer skips what it has.
        let held_from =
            self.records.front().map(|record| Sequence(record.sequence.0 - record.span));
        self.acked = self.acked.max(held_from.unwrap_or(through));
    }

    /// Forgets everything: the log is another stream, acknowledged up to `acked`.
    pub(super) fn reset(&mut self, acked: Sequence) {
        *self = Self::new(self.bytes_max, acked);
    }

    /// Nothing has been sent in the session that begins now.
    pub(super) fn rewind(&mut self) {
        self.sent_records = 0;
        self.sent_credit = 0;
    }

    /// The next records to send: of one epoch, at most `records_max` of them and, but for the
    /// first, `bytes_max` of payload, and no more than the credit leaves. Marks them sent.
    pub(super) fn take_unsent(
        &mut self,
        credit_bytes: u64,
        records_max: usize,
        bytes_max: u64,
    ) -> Option<Unsent> {
        let first = self.records.get(self.sent_records)?;
        let epoch = first.epoch;
        let after = self.sent_through();
        let mut bytes = 0;
        let mut in_flight = self.sent_credit;
        let mut batch = Vec::new();
        for record in self.records.iter().skip(self.sent_records).take(records_max) {
            // With nothing in flight one record may go whatever its size, or it never would.
            let over_credit = in_flight + record.credit() > credit_bytes && in_flight > 0;
            let over_batch = bytes + record.bytes() > bytes_max && !batch.is_empty();
            if record.epoch != epoch || over_credit || over_batch {
                break;
            }
            bytes += record.bytes();
            in_flight += record.credit();
            batch.push(record.clone());
        }
        self.sent_records += batch.len();
        self.sent_credit = in_flight;
        (!batch.is_empty()).then_some(Unsent { epoch, after, records: batch })
    }
}

/// A run of records of one epoch that follows `after`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unsent {
    pub(super) epoch: Epoch,
    pub(super) after: Sequence,
    pub(super) records: Vec<Record>,
}

impl Unsent {
    /// The records as they go over the bus.
    pub(super) fn into_batch(self, stream: StreamId, topic_of: fn(u8) -> Topic) -> Batch {
        let through = self.records.last().map_or(self.after, |record| record.sequence);
        let entry = |record: Record| Entry {
            topic: topic_of(record.kind),
            sequence: record.sequence,
            span: record.span,
            timestamp_ns: record.timestamp_ns,
            payload: record.payload,
        };
        let entries = self.records.into_iter().map(entry).collect();
        Batch { stream, epoch: self.epoch, after: self.after, entries, through }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn record(sequence: u64, bytes: usize, epoch: Epoch) -> Record {
        Record {
            sequence: Sequence(sequence),
            span: 1,
            epoch,
            timestamp_ns: sequence as i64,
            kind: 1,
            payload: Bytes::from(vec![sequence as u8; bytes]),
        }
    }

    fn sequences(unsent: Option<Unsent>) -> Vec<u64> {
        unsent.map_or(Vec::new(), |unsent| {
            unsent.records.iter().map(|record| record.sequence.0).collect()
        })
    }

    #[test]
    fn takes_only_the_next_record_and_only_what_fits() {
        let epoch = Epoch::first();
        let mut window = Window::new(100, Sequence(4));
        assert!(!window.push(record(6, 10, epoch)), "a hole");
        assert!(window.push(record(5, 60, epoch)));
        assert!(!window.push(record(6, 41, epoch)), "over the limit");
        assert!(window.push(record(6, 40, epoch)));
        assert_eq!((window.bytes(), window.room(), window.end()), (100, 0, Sequence(6)));
        window.acknowledge(Sequence(5));
        assert_eq!((window.bytes(), window.acked()), (40, Sequence(5)));
    }

    #[test]
    fn a_record_larger_than_the_window_still_moves() {
        let mut window = Window::new(100, Sequence::NONE);
        let epoch = Epoch::first();
        assert!(window.push(Record { span: 1, ..record(1, 100, epoch) }));
        window.acknowledge(Sequence(1));
        assert!(window.push(record(2, 0, epoch)));
    }

    #[test]
    fn sends_in_order_within_credit_batch_and_epoch() {
        let (first, second) = (Epoch::first(), Epoch::first().next());
        let mut window = Window::new(1000, Sequence::NONE);
        for sequence in 1..=6 {
            assert!(window.push(record(sequence, 10, if sequence < 5 { first } else { second })));
        }
        assert_eq!(sequences(window.take_unsent(1000, 3, 1000)), [1, 2, 3], "records a batch");
        assert_eq!(sequences(window.take_unsent(1000, 9, 1000)), [4], "one epoch a batch");
        assert_eq!(sequences(window.take_unsent(5 * 42, 9, 1000)), [5], "credit");
        assert_eq!(window.take_unsent(5 * 42, 9, 1000), None);
        window.acknowledge(Sequence(1));
        assert_eq!(sequences(window.take_unsent(5 * 42, 9, 1000)), [6], "credit comes back");
        window.rewind();
        let again = window.take_unsent(1000, 9, 25).expect("unsent records");
        assert_eq!((again.after, again.epoch), (Sequence(1), first));
        assert_eq!(sequences(Some(again)), [2, 3], "bytes a batch");
    }

    #[test]
    fn an_acknowledgement_inside_a_gap_keeps_the_gap() {
        let mut window = Window::new(1000, Sequence(2));
        let gap = Record { span: 5, ..record(7, 10, Epoch::first()) };
        assert!(window.push(gap));
        window.acknowledge(Sequence(4));
        assert_eq!((window.acked(), window.end()), (Sequence(2), Sequence(7)));
        window.acknowledge(Sequence(7));
        assert_eq!((window.acked(), window.bytes()), (Sequence(7), 0));
    }
}
