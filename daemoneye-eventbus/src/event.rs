//! What travels: entries, batches, deliveries and the positions that acknowledge them.

use bytes::Bytes;
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use serde::{Deserialize, Serialize};

use crate::topic::Topic;

/// One event as it moves over the bus. The payload is opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is about.
    pub topic: Topic,
    /// Its place in its stream.
    pub sequence: Sequence,
    /// How many sequences it stands for, ending at its own: 1 but for an entry that replaces lost
    /// ones.
    pub span: u64,
    /// Wall clock of the event in nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// The encoded event.
    pub payload: Bytes,
}

/// Consecutive entries of one stream, all written in one epoch, as a publisher hands them over.
///
/// There are no holes: the first entry follows `after`, each entry follows the one before
/// (`entry.sequence - entry.span` is the previous sequence) and the last one is `through`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The stream.
    pub stream: StreamId,
    /// The opening of the log in which these entries were written.
    pub epoch: Epoch,
    /// The sequence before the first entry.
    pub after: Sequence,
    /// The entries in order; at least one.
    pub entries: Vec<Entry>,
    /// The sequence of the last entry.
    pub through: Sequence,
}

/// What a durable subscription receives: everything of one stream in `(after, through]` that its
/// patterns select.
///
/// Sequences in that range without an entry belong to events the patterns do not select (possibly
/// all of them: then there are no entries, and `through` is still to be committed). If `after` is
/// greater than what the consumer has, the events between are gone for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The stream.
    pub stream: StreamId,
    /// The opening of the log in which these entries were written; to be given to
    /// [`DurableSubscription::commit`](crate::DurableSubscription::commit).
    pub epoch: Epoch,
    /// The sequence before the first one covered.
    pub after: Sequence,
    /// The last sequence covered.
    pub through: Sequence,
    /// The selected entries in order.
    pub entries: Vec<Entry>,
}

/// Where an event came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The stream.
    pub stream: StreamId,
    /// The opening of the log in which it was written.
    pub epoch: Epoch,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// How many sequences it stands for, ending at its own.
    pub span: u64,
}

/// An event as a live subscription receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Where it came from.
    pub origin: Origin,
    /// What it is about.
    pub topic: Topic,
    /// Wall clock of the event in nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// The encoded event.
    pub payload: Bytes,
}

/// What a live subscription yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveItem {
    /// An event.
    Event(Delivered),
    /// A control message; answer it with [`Client::reply`](crate::Client::reply) if it asks for
    /// that.
    Message(Message),
    /// Events or messages were dropped here, oldest first, because the subscriber was too slow.
    Missed {
        /// How many.
        count: u64,
    },
}

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub topic: Topic,
    /// Its contents, opaque to the bus.
    pub payload: Bytes,
    /// Where the sender awaits the answer, if it awaits one.
    pub reply_to: Option<Topic>,
    /// The sender's number for this request; 0 if none.
    pub correlation: u64,
    /// It was sent before the subscription began, and is the last of its topic.
    pub retained: bool,
}

/// A committed position. It lies on a log's history only if the log's record at `sequence` was
/// written in `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// Everything up to here is committed.
    pub sequence: Sequence,
    /// The epoch of the record at `sequence`.
    pub epoch: Epoch,
}

/// What a publisher says about its log when it connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The stream it publishes.
    pub stream: StreamId,
    /// The current opening of the log.
    pub epoch: Epoch,
    /// The first sequence not yet acknowledged.
    pub first_unacknowledged: Sequence,
    /// The last sequence in the log.
    pub last: Sequence,
}

/// The broker's cumulative acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ack {
    /// Everything up to here need not be sent again.
    pub sequence: Sequence,
    /// What was done with it.
    pub level: AckLevel,
}

/// What an acknowledgement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AckLevel {
    /// No durable consumer wants this stream; it was handed to the live subscribers.
    Accepted,
    /// Every durable consumer of the stream has committed it.
    Committed,
}

/// What a connection is allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Subscribes, and may ask `control.health.status` and `control.broker.stats`.
    Subscriber,
    /// Publishes `events.*`, registers, sends its own heartbeat and answers requests.
    Collector,
    /// The process that hosts the broker: everything under `control.*`. Only over
    /// [`Broker::connect_in_process`](crate::Broker::connect_in_process).
    Agent,
}
