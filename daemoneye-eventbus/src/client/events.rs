//! Events as they were received: many in one frame, taken apart only when looked at.

use std::sync::Arc;

use bytes::Bytes;
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use crate::event::{Delivered, Message, Origin};
use crate::queue::Run;
use crate::topic::Topic;
use crate::wire::{Entries, EntryHeader};

/// The broker's aliases.
pub(crate) type Topics = Arc<Vec<Option<Topic>>>;

/// What a live subscription yields, events by the batch.
#[derive(Debug, Clone)]
pub enum LiveBatch {
    /// One or more events.
    Events(Events),
    /// A control message; see [`LiveItem::Message`](crate::LiveItem::Message).
    Message(Message),
    /// Events or messages were dropped here, oldest first, because the subscriber was too slow.
    Missed {
        /// How many.
        count: u64,
    },
}

/// Events of one stream, in order, as they came in one frame. They share one allocation, which
/// lives as long as this does.
#[derive(Debug, Clone)]
pub struct Events {
    run: Run,
    topics: Topics,
}

/// One of [`Events`].
#[derive(Debug, Clone, Copy)]
pub struct EventRef<'a> {
    /// Its place in the stream.
    pub sequence: Sequence,
    /// How many sequences it stands for, ending at its own.
    pub span: u64,
    /// What it is about.
    pub topic: &'a Topic,
    /// Wall clock of the event in nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// The encoded event.
    pub payload: &'a [u8],
}

impl Events {
    pub(super) fn new(run: Run, topics: Topics) -> Self {
        Self { run, topics }
    }

    /// The stream they belong to.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        self.run.stream
    }

    /// The opening of the log in which they were written.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.run.epoch
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.run.count as usize
    }

    /// Whether there are none; never so for what a subscription yields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.run.count == 0
    }

    /// The events in order. Copies and allocates nothing.
    pub fn iter(&self) -> impl Iterator<Item = EventRef<'_>> {
        // The entries were checked when they came.
        Entries::new(&self.run.entries).map_while(|entry| {
            let (header, payload) = entry.ok()?;
            let EntryHeader { sequence, span, timestamp_ns, .. } = header;
            let topic = topic(&self.topics, header.alias)?;
            Some(EventRef { sequence, span, topic, timestamp_ns, payload })
        })
    }

    /// The bytes of `event`, one of these, to be kept longer than these. Keeps what all of them
    /// share in memory.
    #[must_use]
    pub fn payload(&self, event: &EventRef<'_>) -> Bytes {
        self.run.entries.slice_ref(event.payload)
    }

    /// Takes the first one out.
    pub(super) fn pop(&mut self) -> Option<Delivered> {
        let (header, payload) = self.run.pop()?;
        Some(Delivered {
            origin: Origin {
                stream: self.run.stream,
                epoch: self.run.epoch,
                sequence: header.sequence,
                span: header.span,
            },
            topic: topic(&self.topics, header.alias)?.clone(),
            timestamp_ns: header.timestamp_ns,
            payload,
        })
    }
}

pub(super) fn topic(topics: &Topics, alias: u16) -> Option<&Topic> {
    topics.get(usize::from(alias))?.as_ref()
}
