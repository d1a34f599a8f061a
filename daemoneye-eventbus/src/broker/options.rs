//! How a broker behaves.

use std::path::PathBuf;
use std::time::Duration;

use crate::transport;
use crate::wire::FRAME_BYTES_MAX;

/// See the fields; [`BrokerOptions::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Where to listen: a path of at most 107 bytes in a directory only we can write to (made
    /// with mode 0700 if missing), or a pipe's name on Windows.
    pub socket: PathBuf,
    /// The users who may connect, by the credentials the system gives with a connection. Our own
    /// and root by default. If others are named the socket's mode is 0666 and not 0600; the
    /// directory must let them pass, and their clients name our user in
    /// [`ClientOptions::trusted_uids`](crate::ClientOptions::trusted_uids). Unused where users have
    /// no numbers.
    pub allowed_uids: Vec<u32>,
    /// Durable consumers that must be attached before any publisher is let in. None by default.
    pub required_consumers: Vec<String>,
    /// Bytes of entries, their headers included, that a publisher may have unacknowledged. 4 MiB
    /// by default.
    pub credit_bytes: u64,
    /// Bytes delivered to a durable consumer and not committed, per stream. 1 MiB by default; one
    /// delivery may exceed it.
    pub in_flight_bytes: usize,
    /// The longest frame taken. 16 MiB by default.
    pub frame_bytes_max: usize,
    /// Each side sends something at least this often; whoever is silent three times is dropped.
    /// 5 s by default.
    pub heartbeat: Duration,
    /// How long a new connection may take to say Hello. 5 s by default.
    pub handshake: Duration,
    /// Connections at most. 1024 by default, and never more than three quarters of the file
    /// descriptors our process may have: the rest is for whatever else it does.
    pub connections_max: usize,
    /// Subscriptions of one connection at most. 1024 by default.
    pub subscriptions_max: usize,
    /// Bytes that all live subscriptions of one connection may hold together. If they ask for more,
    /// each gets its share of this. 32 MiB by default.
    pub queue_bytes_max: usize,
    /// Bytes of entries held for durable consumers, of all streams together: a publisher of a new
    /// stream is let in only if its credit fits beside what is held and what those who are in may
    /// still send, or if that is nothing. 1 GiB by default.
    pub held_bytes_max: u64,
    /// Requests (messages, subscriptions and their ends) of one connection in a second; 1000 by
    /// default. Beyond it they are turned down, and who goes on regardless is refused. Clients
    /// within our process are not limited.
    pub request_rate: u32,
    /// How many requests may come at once, after a time without any. 2048 by default.
    pub request_burst: u32,
    /// Bytes of unread control frames (replies, subscription answers and the like) after which a
    /// peer is cut off. 4 MiB by default.
    pub control_bytes_max: usize,
}

impl BrokerOptions {
    /// Listens on `socket`, everything else by default.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            allowed_uids: transport::own_uids(),
            required_consumers: Vec::new(),
            credit_bytes: 4 * 1024 * 1024,
            in_flight_bytes: 1024 * 1024,
            frame_bytes_max: FRAME_BYTES_MAX,
            heartbeat: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            connections_max: 1024,
            subscriptions_max: 1024,
            queue_bytes_max: 32 * 1024 * 1024,
            held_bytes_max: 1024 * 1024 * 1024,
            request_rate: 1000,
            request_burst: 2048,
            control_bytes_max: 4 * 1024 * 1024,
        }
    }
}
