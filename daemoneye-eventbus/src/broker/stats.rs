//! What the broker tells about itself.

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use serde::Serialize;

use crate::event::Role;
use crate::topic::TopicPattern;

/// A publisher that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherInfo {
    /// Its name.
    pub client_id: String,
    /// What it publishes.
    pub stream: StreamId,
    /// The epoch it connected with.
    pub epoch: Epoch,
    /// Its process, where the platform tells.
    pub pid: Option<u32>,
}

/// A look inside the broker at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BrokerStats {
    /// Everybody who is connected and welcome.
    pub connections: Vec<ConnectionStats>,
    /// Every stream published since the broker began.
    pub streams: Vec<StreamStats>,
    /// Every durable consumer seen since the broker began.
    pub consumers: Vec<ConsumerStats>,
    /// Every live subscription.
    pub live: Vec<LiveStats>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionStats {
    /// Its number.
    pub connection: u64,
    /// Its name.
    pub client_id: String,
    /// What it may do.
    pub role: Role,
    /// Its process, where the platform tells.
    pub pid: Option<u32>,
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamStats {
    /// The stream.
    pub stream: StreamId,
    /// Who publishes it now.
    pub publisher: Option<String>,
    /// The greatest epoch that published it, as a number.
    pub epoch: u64,
    /// The last sequence received.
    pub last: Sequence,
    /// The last sequence acknowledged.
    pub acked: Sequence,
    /// Bytes of entries held for durable consumers.
    pub retained_bytes: u64,
    /// Events taken, duplicates apart.
    pub events_total: u64,
    /// Events dropped because they had been received before.
    pub duplicates_total: u64,
}

/// One durable consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsumerStats {
    /// Its name.
    pub name: String,
    /// Whether it has a member now.
    pub attached: bool,
    /// Its place in every stream that carries something it wants.
    pub cursors: Vec<CursorStats>,
}

/// A durable consumer's place in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CursorStats {
    /// The stream.
    pub stream: StreamId,
    /// Committed up to here.
    pub committed: Sequence,
    /// Delivered up to here.
    pub delivered: Sequence,
    /// Bytes delivered and not committed.
    pub in_flight_bytes: usize,
    /// Sequences received and not committed.
    pub lag: u64,
}

/// One live subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LiveStats {
    /// The number of its connection.
    pub connection: u64,
    /// Whose it is.
    pub client_id: String,
    /// Its number on the connection.
    pub subscription: u32,
    /// What it selects.
    pub patterns: Vec<TopicPattern>,
    /// Events and messages waiting.
    pub queued_events: usize,
    /// Bytes waiting.
    pub queued_bytes: usize,
    /// Events and messages dropped so far.
    pub missed_total: u64,
}
