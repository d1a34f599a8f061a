//! One stream as the broker sees it: who publishes it, how far it has come, and the entries held
//! until every durable consumer has committed them.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use daemoneye_lib::stream::{Epoch, Sequence};

use super::ConnId;
use super::topics::{BatchTopics, TopicSet};
use crate::wire::{Entries, EntryHeader};

/// The entries of one publish, still encoded, with the broker's aliases.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) epoch: Epoch,
    pub(crate) after: Sequence,
    pub(crate) through: Sequence,
    pub(crate) count: u32,
    pub(crate) topics: BatchTopics,
    pub(crate) entries: Bytes,
}

/// A part of a chunk.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) count: u32,
    pub(crate) entries: Bytes,
}

impl Chunk {
    pub(crate) fn wants_any(&self, wanted: &TopicSet) -> bool {
        self.topics.iter().any(|topic| wanted.contains(topic))
    }

    /// The entries after `after` whose topics are wanted. A slice if that is all of them, else a
    /// copy: a few kept entries would otherwise pin a whole read buffer.
    pub(crate) fn part(&self, after: Sequence, wanted: &TopicSet) -> Part {
        let all_wanted = self.topics.iter().all(|topic| wanted.contains(topic));
        if all_wanted && after <= self.after {
            return Part { count: self.count, entries: self.entries.clone() };
        }
        let mut rest: &[u8] = &self.entries;
        let mut kept = BytesMut::new();
        let mut count = 0;
        while let Ok(header) = EntryHeader::read(rest) {
            let (entry, next) = rest.split_at(header.entry_bytes());
            if header.sequence > after {
                if all_wanted {
                    let at = self.entries.len() - rest.len();
                    let count = Entries::new(rest).count() as u32;
                    return Part { count, entries: self.entries.slice(at..) };
                }
                if wanted.contains(header.alias) {
                    kept.extend_from_slice(entry);
                    count += 1;
                }
            }
            rest = next;
        }
        Part { count, entries: kept.freeze() }
    }

    /// What it counts against the credit.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Forgets the entries up to and including `through`.
    fn trim(&mut self, through: Sequence) {
        while let Ok(header) = EntryHeader::read(&self.entries) {
            if header.sequence > through {
                break;
            }
            self.entries.advance(header.entry_bytes());
            self.count -= 1;
            self.after = header.sequence;
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The connection that publishes it, while there is one.
    pub(crate) publisher: Option<ConnId>,
    /// Whether the present publisher's first batch is still to come: only that one may leave
    /// sequences out, namely those an earlier life of the log has already got rid of.
    pub(crate) may_jump: bool,
    /// The greatest epoch that ever published it here.
    pub(crate) epoch: Epoch,
    /// The last sequence received, with the epoch it was written in.
    pub(crate) received: Option<(Sequence, Epoch)>,
    /// Up to here the publisher need not send again.
    pub(crate) acked: Sequence,
    /// The topics published on it so far.
    pub(crate) topics: Vec<u16>,
    /// Bytes of entries held.
    pub(crate) retained_bytes: u64,
    /// Entries taken, duplicates apart.
    pub(crate) entries_total: u64,
    /// Entries that had been received before.
    pub(crate) duplicates_total: u64,
    chunks: VecDeque<Chunk>,
}

impl Stream {
    pub(crate) fn new(epoch: Epoch, acked: Sequence) -> Self {
        Self {
            publisher: None,
            may_jump: true,
            epoch,
            received: None,
            acked,
            topics: Vec::new(),
            retained_bytes: 0,
            entries_total: 0,
            duplicates_total: 0,
            chunks: VecDeque::new(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.publisher.is_none() && self.chunks.is_empty()
    }

    /// Bytes it may come to hold, of which its publisher, if there is one, may use all its credit.
    pub(crate) fn may_hold(&self, credit_bytes: u64) -> u64 {
        let credit = if self.publisher.is_some() { credit_bytes } else { 0 };
        self.retained_bytes.max(credit)
    }

    /// The last sequence received or known to lie behind the publisher.
    pub(crate) fn last(&self) -> Sequence {
        self.received.map_or(self.acked, |(sequence, _)| sequence)
    }

    pub(crate) fn retain(&mut self, chunk: Chunk) {
        debug_assert!(
            self.chunks.back().is_none_or(|last| last.through <= chunk.after),
            "chunks are in order and do not overlap"
        );
        self.retained_bytes += chunk.bytes();
        self.chunks.push_back(chunk);
    }

    /// Moves the acknowledged position forward and forgets what lies before it. Returns whether it
    /// moved.
    pub(crate) fn acknowledge(&mut self, through: Sequence) -> bool {
        if through <= self.acked {
            return false;
        }
        self.acked = through;
        while let Some(front) = self.chunks.front_mut() {
            if front.through > through {
                if front.after < through {
                    let before = front.bytes();
                    front.trim(through);
                    self.retained_bytes -= before - front.bytes();
                }
                break;
            }
            self.retained_bytes -= front.bytes();
            self.chunks.pop_front();
        }
        true
    }

    /// The held chunks that reach beyond `position`, in order.
    pub(crate) fn chunks_after(&self, position: Sequence) -> impl Iterator<Item = &Chunk> {
        let first = self.chunks.partition_point(|chunk| chunk.through <= position);
        self.chunks.range(first..)
    }

    /// The epoch in which the held record at `sequence` was written.
    pub(crate) fn epoch_at(&self, sequence: Sequence) -> Option<Epoch> {
        self.chunks_after(sequence.prev())
            .next()
            .filter(|chunk| chunk.after < sequence)
            .map(|chunk| chunk.epoch)
    }
}
