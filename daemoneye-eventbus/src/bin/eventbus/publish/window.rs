//! The stream of one run: what is to be sent, and what is sent and not acknowledged.

use std::collections::VecDeque;

use bytes::Bytes;
use daemoneye_eventbus::wire::ENTRY_HEADER_BYTES;
use daemoneye_eventbus::{Ack, Batch, Entry, Epoch, Sequence, StreamId, Topic};
use daemoneye_lib::stream::wall_clock_ns;

use crate::failure::Failure;

/// A batch is no longer than this, unless a single entry is.
const BATCH_BYTES: usize = 256 * 1024;
/// Room in a frame for what is not entries.
const FRAME_HEAD_BYTES: usize = 64;

/// See the module.
pub(super) struct Window {
    stream: StreamId,
    epoch: Epoch,
    credit_bytes: u64,
    batch_bytes_max: usize,
    /// Taken and not sent.
    entries: Vec<Entry>,
    entries_bytes: usize,
    /// Sent or about to be, and not acknowledged: sequence and size.
    open: VecDeque<(Sequence, usize)>,
    open_bytes: u64,
    last: Sequence,
    sent: Sequence,
}

impl Window {
    pub(super) fn new(
        stream: StreamId,
        epoch: Epoch,
        credit_bytes: u64,
        frame_bytes: usize,
    ) -> Self {
        Self {
            stream,
            epoch,
            credit_bytes,
            batch_bytes_max: BATCH_BYTES.min(frame_bytes.saturating_sub(FRAME_HEAD_BYTES)),
            entries: Vec::new(),
            entries_bytes: 0,
            open: VecDeque::new(),
            open_bytes: 0,
            last: Sequence::NONE,
            sent: Sequence::NONE,
        }
    }

    /// Takes an event if it fits into the batch and the credit, and gives it back if it does not
    /// yet. One that never would is taken where nothing else is: the broker says what is wrong.
    pub(super) fn take(&mut self, topic: &Topic, payload: Bytes) -> Option<Bytes> {
        let bytes = ENTRY_HEADER_BYTES + payload.len();
        let batch_full =
            !self.entries.is_empty() && self.entries_bytes + bytes > self.batch_bytes_max;
        let credit_spent =
            self.open_bytes > 0 && self.open_bytes + bytes as u64 > self.credit_bytes;
        if batch_full || credit_spent {
            return Some(payload);
        }
        self.last = self.last.next();
        self.entries_bytes += bytes;
        self.open_bytes += bytes as u64;
        self.open.push_back((self.last, bytes));
        self.entries.push(Entry {
            topic: topic.clone(),
            sequence: self.last,
            span: 1,
            timestamp_ns: wall_clock_ns(),
            payload,
        });
        None
    }

    /// What has been taken since the last batch, to be sent.
    pub(super) fn batch(&mut self) -> Option<Batch> {
        if self.entries.is_empty() {
            return None;
        }
        self.entries_bytes = 0;
        let after = std::mem::replace(&mut self.sent, self.last);
        let entries = std::mem::take(&mut self.entries);
        Some(Batch { stream: self.stream, epoch: self.epoch, after, entries, through: self.last })
    }

    pub(super) fn acknowledged(&mut self, through: Sequence) {
        while let Some((_, bytes)) = self.open.pop_front_if(|(sequence, _)| *sequence <= through) {
            self.open_bytes -= bytes as u64;
        }
    }

    /// Whether everything is sent and acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// How many events there have been.
    pub(super) const fn events(&self) -> u64 {
        self.last.0
    }

    /// Why not everything is acknowledged, and what is.
    pub(super) fn failure(&self, newest: Option<Ack>, why: &str) -> Failure {
        let acknowledged = newest.map_or(0, |ack| ack.sequence.0);
        let last = self.last.0;
        Failure::Failed(format!("{why}; {acknowledged} of {last} events are acknowledged"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(credit: u64) -> Window {
        Window::new(StreamId::from_bytes([1; 16]), Epoch::from_u64(1), credit, 1 << 20)
    }

    fn topic() -> Topic {
        "events.x".parse().unwrap()
    }

    #[test]
    fn no_more_is_open_than_the_credit() {
        let mut window = window(2 * (ENTRY_HEADER_BYTES as u64 + 10));
        let payload = Bytes::from_static(&[0; 10]);
        assert!(window.take(&topic(), payload.clone()).is_none());
        assert!(window.take(&topic(), payload.clone()).is_none());
        assert_eq!(window.take(&topic(), payload.clone()), Some(payload.clone()));
        let batch = window.batch().unwrap();
        assert_eq!(
            (batch.after, batch.through, batch.entries.len()),
            (Sequence(0), Sequence(2), 2)
        );
        assert!(window.batch().is_none() && !window.is_settled());
        window.acknowledged(Sequence(1));
        assert!(window.take(&topic(), payload.clone()).is_none());
        assert!(window.take(&topic(), payload).is_some());
        assert_eq!(window.batch().unwrap().after, Sequence(2));
        window.acknowledged(Sequence(3));
        assert!(window.is_settled());
        assert_eq!(window.events(), 3);
    }

    #[test]
    fn what_exceeds_the_credit_goes_alone() {
        let mut window = window(10);
        assert!(window.take(&topic(), Bytes::from_static(&[0; 100])).is_none());
        assert!(window.take(&topic(), Bytes::new()).is_some());
    }

    #[test]
    fn batches_stay_below_a_frame() {
        let mut window =
            Window::new(StreamId::from_bytes([1; 16]), Epoch::from_u64(1), 1 << 30, 200);
        let payload = Bytes::from_static(&[0; 30]);
        let fits = (0..).take_while(|_| window.take(&topic(), payload.clone()).is_none()).count();
        assert_eq!(fits, (200 - FRAME_HEAD_BYTES) / (ENTRY_HEADER_BYTES + 30));
    }
}
