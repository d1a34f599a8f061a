//! The topics that programs agree on.

use std::fmt;

use thiserror::Error;

/// A process started, or was there already.
pub const PROCESS_START: &str = "events.process.start";
/// A process ended.
pub const PROCESS_STOP: &str = "events.process.stop";
/// A process changed.
pub const PROCESS_MODIFY: &str = "events.process.modify";
/// Events are known to be missing.
pub const PROCESS_GAP: &str = "events.process.gap";
/// A pattern for all process events, gaps included.
pub const PROCESS_EVENTS: &str = "events.process.*";
/// A pattern for all events.
pub const EVENTS: &str = "events.#";
/// Agent to all collectors: [`crate::models::control::Lifecycle`].
pub const LIFECYCLE: &str = "control.collector.lifecycle";
/// Collector to agent: [`crate::models::control::CollectorRegistration`].
pub const REGISTRATION: &str = "control.collector.registration";
/// What the topic of a heartbeat begins with; the collector's name follows.
pub const HEARTBEAT_PREFIX: &str = "control.health.heartbeat.";
/// A pattern for the heartbeats of all collectors.
pub const HEARTBEATS: &str = "control.health.heartbeat.*";
/// Requests to the agent for the health of everything.
pub const HEALTH_STATUS: &str = "control.health.status";
/// Requests to the broker for a look inside.
pub const BROKER_STATS: &str = "control.broker.stats";

/// The longest name a collector may have, in bytes.
pub const COLLECTOR_ID_BYTES_MAX: usize = 64;

/// The name of a collector: it makes one segment of a topic, so it is 1 to 64 of `a-z`, `0-9`,
/// `_` and `-`, and not a name that `control.collector.` has another meaning for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CollectorId(String);

/// A text that cannot name a collector.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "{id:?} cannot name a collector: use 1 to {COLLECTOR_ID_BYTES_MAX} of a-z, 0-9, _ and -, and \
     neither \"lifecycle\" nor \"registration\""
)]
pub struct BadCollectorId {
    id: String,
}

impl CollectorId {
    /// Checks the name.
    ///
    /// # Errors
    /// If it would not make a segment of its own in a topic.
    pub fn new(id: &str) -> Result<Self, BadCollectorId> {
        let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        let taken = matches!(id, "lifecycle" | "registration");
        if id.is_empty() || id.len() > COLLECTOR_ID_BYTES_MAX || !id.bytes().all(legal) || taken {
            // Cut, so that a hostile name does not fill the message with itself.
            return Err(BadCollectorId { id: id.chars().take(COLLECTOR_ID_BYTES_MAX).collect() });
        }
        Ok(Self(id.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where this collector takes requests.
    #[must_use]
    pub fn topic(&self) -> String {
        format!("control.collector.{}", self.0)
    }

    /// Where this collector says that it is alive.
    #[must_use]
    pub fn heartbeat_topic(&self) -> String {
        format!("{HEARTBEAT_PREFIX}{}", self.0)
    }
}

impl fmt::Display for CollectorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_id_is_one_segment_and_no_other_topic() {
        let id = CollectorId::new("procmond-1_a").unwrap();
        assert_eq!(id.topic(), "control.collector.procmond-1_a");
        assert_eq!(id.heartbeat_topic(), "control.health.heartbeat.procmond-1_a");
        for bad in ["", "a.b", "A", "#", "*", "ä", "lifecycle", "registration", &"a".repeat(65)] {
            assert!(CollectorId::new(bad).is_err(), "{bad:?}");
        }
    }
}
