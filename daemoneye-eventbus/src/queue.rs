//! The bounded queue of a live subscription. Both ends use it: the broker in front of the socket,
//! the client in front of the application.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use crate::wire::EntryHeader;

/// Slices of a read buffer shorter than this are copied when they are to wait. As a slice, each
/// would keep the whole block it was read into: a queue of 4 MiB could pin gigabytes.
const DETACH_BYTES: usize = 16 * 1024;

/// `bytes`, copied if they are short.
pub(crate) fn detached(bytes: Bytes) -> Bytes {
    if bytes.len() < DETACH_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes }
}

/// Consecutive entries of one publish, still encoded. The bytes have been checked: walking them
/// cannot fail.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) stream: StreamId,
    pub(crate) epoch: Epoch,
    pub(crate) after: Sequence,
    pub(crate) through: Sequence,
    pub(crate) count: u32,
    pub(crate) entries: Bytes,
}

impl Run {
    /// Copies the entries if they are a small part of what they would keep in memory.
    pub(crate) fn detach(&mut self) {
        self.entries = detached(std::mem::take(&mut self.entries));
    }

    /// Takes the first entry off: its header and payload.
    pub(crate) fn pop(&mut self) -> Option<(EntryHeader, Bytes)> {
        let header = EntryHeader::read(&self.entries).ok()?;
        let mut entry = self.entries.split_to(header.entry_bytes());
        entry.advance(crate::wire::ENTRY_HEADER_BYTES);
        self.after = header.sequence;
        self.count -= 1;
        Some((header, entry))
    }
}

/// What a queue holds and how much it may hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueLimits {
    pub(crate) bytes_max: usize,
    pub(crate) count_max: usize,
}

#[derive(Debug)]
enum Item<M> {
    Run(Run),
    Message { message: M, bytes: usize },
    Missed(u64),
}

/// What comes out of a queue.
#[derive(Debug)]
pub(crate) enum Popped<M> {
    /// Nothing to see here: this many were dropped.
    Missed(u64),
    Run(Run),
    Message(M),
}

/// Oldest out first; when full, the oldest are dropped and counted.
#[derive(Debug)]
pub(crate) struct LiveQueue<M> {
    limits: QueueLimits,
    items: VecDeque<Item<M>>,
    bytes: usize,
    count: usize,
    /// Dropped in front of the first item and not reported yet.
    missed: u64,
    missed_total: u64,
}

impl<M> LiveQueue<M> {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self { limits, items: VecDeque::new(), bytes: 0, count: 0, missed: 0, missed_total: 0 }
    }

    /// Changes the bound in bytes, dropping what it no longer leaves room for.
    pub(crate) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.limits.bytes_max = bytes_max;
        self.shrink();
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Everything ever dropped here.
    pub(crate) fn missed_total(&self) -> u64 {
        self.missed_total
    }

    pub(crate) fn push_run(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        self.bytes += run.entries.len();
        self.count += run.count as usize;
        self.items.push_back(Item::Run(run));
        self.shrink();
    }

    pub(crate) fn push_message(&mut self, message: M, bytes: usize) {
        self.bytes += bytes;
        self.count += 1;
        self.items.push_back(Item::Message { message, bytes });
        self.shrink();
    }

    /// The sender of this queue's contents dropped `count` at this point.
    pub(crate) fn push_missed(&mut self, count: u64) {
        if self.items.is_empty() {
            self.missed += count;
        } else if let Some(Item::Missed(last)) = self.items.back_mut() {
            *last += count;
        } else {
            self.items.push_back(Item::Missed(count));
        }
        self.missed_total += count;
    }

    pub(crate) fn pop(&mut self) -> Option<Popped<M>> {
        while let Some(Item::Missed(count)) = self.items.front() {
            self.missed += count;
            self.items.pop_front();
        }
        if self.missed > 0 {
            return Some(Popped::Missed(std::mem::take(&mut self.missed)));
        }
        Some(match self.items.pop_front()? {
            Item::Missed(count) => Popped::Missed(count),
            Item::Run(run) => {
                self.bytes -= run.entries.len();
                self.count -= run.count as usize;
                Popped::Run(run)
            }
            Item::Message { message, bytes } => {
                self.bytes -= bytes;
                self.count -= 1;
                Popped::Message(message)
            }
        })
    }

    /// Drops the oldest until both bounds hold: an entry at a time, but what must go as a whole
    /// without looking at it, for it is long out of the caches.
    fn shrink(&mut self) {
        let QueueLimits { bytes_max, count_max } = self.limits;
        while self.bytes > bytes_max || self.count > count_max {
            let Some(front) = self.items.front_mut() else { return };
            match front {
                Item::Run(run)
                    if self.bytes.saturating_sub(run.entries.len()) >= bytes_max
                        || self.count.saturating_sub(run.count as usize) >= count_max =>
                {
                    self.bytes -= run.entries.len();
                    self.count -= run.count as usize;
                    self.missed += u64::from(run.count);
                    self.missed_total += u64::from(run.count);
                    self.items.pop_front();
                }
                Item::Run(run) => {
                    let before = run.entries.len();
                    let popped = run.pop().is_some();
                    debug_assert!(popped, "a queued run holds whole entries");
                    self.bytes -= before - run.entries.len();
                    self.count -= 1;
                    self.missed += 1;
                    self.missed_total += 1;
                    if run.count == 0 {
                        self.items.pop_front();
                    }
                }
                Item::Message { bytes, .. } => {
                    self.bytes -= *bytes;
                    self.count -= 1;
                    self.missed += 1;
                    self.missed_total += 1;
                    self.items.pop_front();
                }
                Item::Missed(count) => {
                    self.missed += *count;
                    self.items.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::wire::append_entry;

    fn run(first: u64, count: u64, payload: usize) -> Run {
        let mut entries = BytesMut::new();
        for sequence in first..first + count {
            append_entry(&mut entries, Sequence(sequence), 1, 0, 0, &vec![b'x'; payload]);
        }
        Run {
            stream: StreamId::from_bytes([1; 16]),
            epoch: Epoch::from_u64(1),
            after: Sequence(first - 1),
            through: Sequence(first + count - 1),
            count: count as u32,
            entries: entries.freeze(),
        }
    }

    fn drain(queue: &mut LiveQueue<&'static str>) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(popped) = queue.pop() {
            match popped {
                Popped::Missed(count) => seen.push(format!("missed {count}")),
                Popped::Message(message) => seen.push(message.to_owned()),
                Popped::Run(mut run) => {
                    while let Some((header, _)) = run.pop() {
                        seen.push(header.sequence.to_string());
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn the_oldest_are_dropped_one_by_one_and_counted() {
        let mut queue = LiveQueue::new(QueueLimits { bytes_max: 1 << 20, count_max: 4 });
        queue.push_run(run(1, 3, 8));
        queue.push_message("hello", 10);
        queue.push_run(run(4, 2, 8));
        assert_eq!(queue.count(), 4);
        assert_eq!(drain(&mut queue), ["missed 2", "3", "hello", "4", "5"]);
        assert_eq!((queue.bytes(), queue.count(), queue.missed_total()), (0, 0, 2));
    }

    #[test]
    fn what_must_go_as_a_whole_is_counted_as_a_whole() {
        let mut queue = LiveQueue::new(QueueLimits { bytes_max: 1 << 20, count_max: 4 });
        queue.push_run(run(1, 3, 8));
        queue.push_run(run(4, 3, 8));
        assert_eq!((queue.bytes(), queue.count(), queue.missed_total()), (160, 4, 2));
        queue.push_run(run(7, 4, 8));
        assert_eq!((queue.bytes(), queue.count(), queue.missed_total()), (160, 4, 6));
        assert_eq!(drain(&mut queue), ["missed 6", "7", "8", "9", "10"]);
    }

    #[test]
    fn a_run_larger_than_the_queue_keeps_its_newest() {
        let mut queue = LiveQueue::new(QueueLimits { bytes_max: 100, count_max: 1000 });
        queue.push_run(run(1, 10, 8));
        assert_eq!(queue.bytes(), 80);
        assert_eq!(drain(&mut queue), ["missed 8", "9", "10"]);
        queue.push_run(run(11, 1, 200));
        assert_eq!(drain(&mut queue), ["missed 1"]);
    }

    #[test]
    fn what_the_sender_dropped_adds_up_with_what_is_dropped_here() {
        let mut queue = LiveQueue::new(QueueLimits { bytes_max: 1 << 20, count_max: 2 });
        queue.push_run(run(1, 2, 8));
        queue.push_missed(5);
        queue.push_run(run(8, 1, 8));
        assert_eq!(drain(&mut queue), ["missed 1", "2", "missed 5", "8"]);
        queue.push_run(run(9, 2, 8));
        queue.push_missed(5);
        queue.push_run(run(16, 2, 8));
        assert_eq!(drain(&mut queue), ["missed 7", "16", "17"]);
    }
}
