//! How a broker behaves.

use std::path::PathBuf;
use std::time::Duration;

use crate::wire::FRAME_BYTES_MAX;

/// See the fields; [`BrokerOptions::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Where to listen: a path of at most 107 bytes in a directory only we can write to (made
    /// with mode 0700 if missing), or a pipe's name on Windows.
    pub socket: PathBuf,
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
    /// Connections at most. 1024 by default.
    pub connections_max: usize,
    /// Subscriptions of one connection at most. 1024 by default.
    pub subscriptions_max: usize,
    /// Bytes of unread control frames (replies, subscription answers and the like) after which a
    /// peer is cut off. 1 MiB by default.
    pub control_bytes_max: usize,
}

impl BrokerOptions {
    /// Listens on `socket`, everything else by default.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            required_consumers: Vec::new(),
            credit_bytes: 4 * 1024 * 1024,
            in_flight_bytes: 1024 * 1024,
            frame_bytes_max: FRAME_BYTES_MAX,
            heartbeat: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            connections_max: 1024,
            subscriptions_max: 1024,
            control_bytes_max: 1024 * 1024,
        }
    }
}
