//! What the broker tells about itself.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use serde::{Deserialize, Serialize};

use crate::event::Role;
use crate::topic::TopicPattern;
use crate::wire::{GoodbyeCode, RefusalCode};

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
///
/// Two looks make rates: the difference of a `_total` over that of [`uptime_ms`](Self::uptime_ms).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerStats {
    /// The process that hosts the broker.
    pub pid: u32,
    /// How long ago it began, in milliseconds.
    pub uptime_ms: u64,
    /// Bytes of entries a publisher may have unacknowledged.
    pub credit_bytes: u64,
    /// Connections taken; those refused at once, for their user or their number, are not among
    /// them.
    pub connections_total: u64,
    /// Through all connections that ever were.
    pub traffic: Traffic,
    /// Events and messages dropped in front of slow live subscriptions, gone ones included.
    pub missed_total: u64,
    /// Connections refused, by reason.
    pub refused: BTreeMap<RefusalCode, u64>,
    /// Connections the broker has ended with a goodbye and that are gone, by reason.
    pub ended: BTreeMap<GoodbyeCode, u64>,
    /// Rows missing from the lists below. 0 in [`Broker::stats`](crate::Broker::stats); a message
    /// has only so much room.
    pub left_out: u64,
    /// Everybody who is connected and welcome.
    pub connections: Vec<ConnectionStats>,
    /// Every stream published since the broker began.
    pub streams: Vec<StreamStats>,
    /// Every durable consumer seen since the broker began.
    pub consumers: Vec<ConsumerStats>,
    /// Every live subscription.
    pub live: Vec<LiveStats>,
}

/// What has passed through a connection since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames taken.
    pub frames_in_total: u64,
    /// Bytes taken, headers included.
    pub bytes_in_total: u64,
    /// Events taken, those dropped as duplicates included.
    pub events_in_total: u64,
    /// Frames given.
    pub frames_out_total: u64,
    /// Bytes given, headers included.
    pub bytes_out_total: u64,
    /// Events given.
    pub events_out_total: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.frames_in_total += other.frames_in_total;
        self.bytes_in_total += other.bytes_in_total;
        self.events_in_total += other.events_in_total;
        self.frames_out_total += other.frames_out_total;
        self.bytes_out_total += other.bytes_out_total;
        self.events_out_total += other.events_out_total;
    }
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStats {
    /// Its number.
    pub connection: u64,
    /// Its name.
    pub client_id: String,
    /// What it may do.
    pub role: Role,
    /// Its process, where the platform tells.
    pub pid: Option<u32>,
    /// How long it has been connected, in milliseconds.
    pub connected_ms: u64,
    /// Bytes of frames other than events that wait for it.
    pub control_bytes: usize,
    /// What has passed through it.
    pub traffic: Traffic,
}

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Bytes of entries held for durable consumers: the part of the publisher's credit in use.
    pub retained_bytes: u64,
    /// Events taken, duplicates apart.
    pub events_total: u64,
    /// Events dropped because they had been received before.
    pub duplicates_total: u64,
}

/// One durable consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerStats {
    /// Its name.
    pub name: String,
    /// Whether it has a member now.
    pub attached: bool,
    /// Its place in every stream that carries something it wants.
    pub cursors: Vec<CursorStats>,
}

/// A durable consumer's place in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
