//! A durable consumer: its patterns, its one member and how far it is in every stream.

use std::collections::{BTreeMap, VecDeque};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::ConnId;
use super::topics::TopicSet;
use crate::event::Committed;
use crate::topic::TopicPattern;

/// Known from its first subscription until the broker ends, attached or not: while it is away its
/// cursors keep holding what it has not committed.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) patterns: Vec<TopicPattern>,
    /// The topics the patterns select.
    pub(crate) wanted: TopicSet,
    pub(crate) member: Option<(ConnId, u32)>,
    pub(crate) cursors: BTreeMap<StreamId, Cursor>,
}

/// A consumer's place in one stream.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) committed: Sequence,
    /// The epoch the consumer named with its commit; `None` while it has not committed anything.
    pub(crate) committed_epoch: Option<Epoch>,
    /// Delivered up to here.
    pub(crate) sent: Sequence,
    /// Whether the stream carries a topic the consumer wants. If not, the cursor only remembers.
    pub(crate) interested: bool,
    /// Delivered and not committed: where each delivery ends and what it weighs.
    in_flight: VecDeque<(Sequence, usize)>,
    in_flight_bytes: usize,
}

/// What a delivery weighs beside its entries, so that empty ones are bounded, too.
const DELIVERY_WEIGHT: usize = 64;

impl Cursor {
    /// At a position the consumer names itself.
    pub(crate) fn at(position: Committed) -> Self {
        Self {
            committed: position.sequence,
            committed_epoch: Some(position.epoch),
            sent: position.sequence,
            interested: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// At the place where the stream's held entries begin.
    pub(crate) fn from_start(acked: Sequence) -> Self {
        Self {
            committed: acked,
            committed_epoch: None,
            sent: acked,
            interested: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    pub(crate) fn position(&self) -> Option<Committed> {
        self.committed_epoch.map(|epoch| Committed { sequence: self.committed, epoch })
    }

    pub(crate) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    pub(crate) fn delivered(&mut self, through: Sequence, entries_bytes: usize) {
        let weight = entries_bytes + DELIVERY_WEIGHT;
        self.sent = through;
        self.in_flight.push_back((through, weight));
        self.in_flight_bytes += weight;
    }

    /// Returns whether the position moved.
    pub(crate) fn commit(&mut self, position: Committed) -> bool {
        if position.sequence <= self.committed {
            return false;
        }
        self.committed = position.sequence;
        self.committed_epoch = Some(position.epoch);
        while let Some((through, weight)) = self.in_flight.front() {
            if *through > position.sequence {
                break;
            }
            self.in_flight_bytes -= weight;
            self.in_flight.pop_front();
        }
        true
    }

    /// The member is gone: what it had not committed is delivered again to the next.
    pub(crate) fn rewind(&mut self) {
        self.sent = self.committed;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }
}

impl Consumer {
    /// The cursors of streams that carry something the consumer wants.
    pub(crate) fn cursor(&self, stream: &StreamId) -> Option<&Cursor> {
        self.cursors.get(stream).filter(|cursor| cursor.interested)
    }
}
