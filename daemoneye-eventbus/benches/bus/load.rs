//! What is published, and how a subscriber counts it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) const PAYLOAD_BYTES: usize = 400;
/// What one write of a publisher holds at most.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
pub(crate) const TOPIC: &str = "events.process.start";
/// At a fixed rate, what is due is published every so often.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// What the roles of one run do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Messages unacknowledged at most, where there is no rate.
    pub(crate) window: u64,
    pub(crate) subscribers: u64,
    pub(crate) messages: u64,
    /// Messages a second; 0: as fast as the window lets them.
    pub(crate) rate: u64,
    /// Whether subscribers have bounded queues, and may miss some.
    pub(crate) bounded: bool,
}

impl Load {
    pub(crate) fn arguments(&self) -> [String; 5] {
        [self.window, self.subscribers, self.messages, self.rate, u64::from(self.bounded)]
            .map(|number| number.to_string())
    }

    pub(crate) fn from_arguments(arguments: &[String]) -> Option<Self> {
        let numbers: Option<Vec<u64>> =
            arguments.iter().map(|argument| argument.parse().ok()).collect();
        let [window, subscribers, messages, rate, bounded] = numbers?[..] else { return None };
        Some(Self { window, subscribers, messages, rate, bounded: bounded != 0 })
    }

    /// How many are due so long after the beginning.
    pub(crate) fn due(&self, since: Duration) -> u64 {
        (since.as_millis() as u64 * self.rate / 1000).min(self.messages)
    }
}

/// Nanoseconds, the same for all processes.
pub(crate) fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// Puts the time into a payload, if it is to be measured.
pub(crate) fn stamp(payload: &mut [u8], load: &Load) {
    if load.rate > 0 {
        payload[..8].copy_from_slice(&now_ns().to_le_bytes());
    }
}

/// What one subscription has received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) count: u64,
    load: Load,
    latencies_ns: Vec<u64>,
}

impl Received {
    pub(crate) fn new(load: Load) -> Self {
        let latencies_ns =
            Vec::with_capacity(if load.rate > 0 { load.messages as usize } else { 0 });
        Self { count: 0, load, latencies_ns }
    }

    pub(crate) fn message(&mut self, payload: &[u8]) {
        self.count += 1;
        if self.load.rate > 0
            && let Some(stamp) = payload.first_chunk::<8>()
        {
            self.latencies_ns.push(now_ns().saturating_sub(u64::from_le_bytes(*stamp)));
        }
    }

    pub(crate) fn all(&self) -> bool {
        self.count >= self.load.messages
    }
}

/// What the subscribers tell the conductor: when the last message came, and the p99 in
/// microseconds.
pub(crate) fn summary(received: Vec<Received>) -> String {
    let end = now_ns();
    let mut latencies: Vec<u64> =
        received.into_iter().flat_map(|received| received.latencies_ns).collect();
    latencies.sort_unstable();
    let p99 = latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default();
    format!("{end} {}", p99 as f64 / 1000.0)
}
