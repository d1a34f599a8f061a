//! What the agent and its collectors say to each other, as JSON.
//!
//! A collector announces itself with a [`CollectorRegistration`], waits for
//! [`Lifecycle::BeginMonitoring`], answers [`CollectorRequest`]s and sends a [`Heartbeat`] now and
//! then. Numbers are counts since the collector started unless their name says otherwise.

use serde::{Deserialize, Serialize};

use super::event::EventKind;
use super::process::SourceName;
use crate::stream::{Epoch, Sequence, StreamId};

/// A collector is there. Sent on [`crate::topics::REGISTRATION`], collector to agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CollectorRegistration {
    /// Its name in topics: see [`crate::topics::CollectorId`].
    pub collector_id: String,
    /// Its process.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// The stream its log holds.
    pub stream: StreamId,
    /// The opening of that stream.
    pub epoch: Epoch,
    /// What it sees processes with.
    pub source: SourceName,
    /// Whether it needs to be told to begin.
    pub state: CollectorState,
}

/// What a collector is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectorState {
    /// Ready, and waiting to be told to begin.
    Waiting,
    /// Watching processes.
    Monitoring,
    /// Seeing nothing: the source has failed, and no other works. It is tried again and again.
    Blind,
    /// Ending: no more events are collected, the last are being delivered.
    Stopping,
}

impl CollectorState {
    /// The state as JSON spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Monitoring => "monitoring",
            Self::Blind => "blind",
            Self::Stopping => "stopping",
        }
    }
}

/// To all collectors, on [`crate::topics::LIFECYCLE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Lifecycle {
    /// Everybody who must store events is there: begin.
    BeginMonitoring,
}

/// A request to one collector, on its [`crate::topics::CollectorId::topic`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum CollectorRequest {
    /// Begin monitoring; does nothing if it has begun.
    Begin,
    /// Look at the process table this often, from now on.
    SetInterval {
        /// Milliseconds between two looks.
        interval_ms: u64,
    },
    /// Take up these settings with the next look.
    UpdateConfig(ConfigUpdate),
    /// Tell how you are.
    Health,
    /// End cleanly: make the log durable, deliver what is left for a bounded time.
    Shutdown,
}

/// Settings that can change while a collector runs; what is absent stays as it is.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigUpdate {
    /// Milliseconds between two looks at the process table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Milliseconds between two heartbeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// What the collector says of itself: a level or a filter, as its option `log.level`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
}

/// The answer to a [`CollectorRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum CollectorReply {
    /// Done.
    Ok,
    /// How the collector is.
    Health(Box<CollectorHealth>),
    /// Not done, and why.
    Error {
        /// For people.
        message: String,
    },
}

/// A collector is alive. Sent on its [`crate::topics::CollectorId::heartbeat_topic`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its name in topics.
    pub collector_id: String,
    /// Its process.
    pub pid: u32,
    /// When: wall clock, nanoseconds since 1970.
    pub time_ns: i64,
    /// How it is.
    pub health: CollectorHealth,
}

/// How a collector is, in numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CollectorHealth {
    /// What it is doing.
    pub state: CollectorState,
    /// What it sees processes with, or saw last.
    pub source: SourceName,
    /// The source that should see, where it has failed while it ran.
    #[serde(default)]
    pub failed: Option<FailedSource>,
    /// How often a source has failed while it ran.
    #[serde(default)]
    pub source_failures_total: u64,
    /// Milliseconds between two looks, as in force now: longer under backpressure.
    pub interval_ms: u64,
    /// Processes alive at the last look.
    pub processes: u64,
    /// Looks at the process table.
    pub scans_total: u64,
    /// Looks that failed.
    pub scan_errors_total: u64,
    /// At most so many processes lived unseen between two looks, as far as that was told: the gaps
    /// with the reason `unseen`.
    pub unseen_max_total: u64,
    /// Events put into the log.
    pub events: EventCounts,
    /// What was read to tell the SHA-256 of programs, where that was asked for.
    pub digests: Option<Digests>,
    /// What the filters in the configuration left out.
    pub excluded: Excluded,
    /// What was left out of control groups that began more processes than the limit allows.
    pub summarised: Summarised,
    /// What was left out because delivery had fallen behind.
    pub shed: Shed,
    /// The log.
    pub log: LogHealth,
    /// The way to the broker.
    pub connector: ConnectorHealth,
}

/// A source that has failed while it ran, and will see again when it works.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FailedSource {
    /// Which.
    pub source: SourceName,
    /// What went wrong last, for people.
    pub why: String,
    /// When it is tried next: wall clock, nanoseconds since 1970. `None`: right now.
    pub next_try_ns: Option<i64>,
}

/// Events by kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventCounts {
    /// Processes that started or were there.
    pub start: u64,
    /// Processes that ended.
    pub stop: u64,
    /// Changes of processes.
    pub modify: u64,
    /// Known losses.
    pub gap: u64,
}

/// What became of the programs whose SHA-256 was asked for. One that was read or kept gives it;
/// of the others there is none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digests {
    /// Files that were read as a whole.
    pub read_total: u64,
    /// Programs that were read before.
    pub cached_total: u64,
    /// The process had ended, and the file was not where it had been.
    pub gone_total: u64,
    /// The file had been changed or replaced, or was, while it was read.
    pub changed_total: u64,
    /// The file is larger than `monitor.sha256_max_bytes`.
    pub too_large_total: u64,
    /// The file was not read in time. It may be known when it runs again.
    pub late_total: u64,
    /// The system did not let us read it.
    pub unreadable_total: u64,
}

/// What filters left out.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Excluded {
    /// Processes whose start was not told. One may be told later, when it runs another program.
    pub processes_total: u64,
    /// Events: starts, stops and changes.
    pub events_total: u64,
}

/// What was left out because delivery had fallen behind, in the order in which it gives way.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shed {
    /// Events without their parent's key.
    pub parents_total: u64,
    /// Events whose arguments were cut.
    pub argument_tails_total: u64,
    /// Modify events.
    pub modifies_total: u64,
}

/// Events that were left out one by one and told as numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Summarised {
    /// Processes that began.
    pub starts_total: u64,
    /// Processes that ended.
    pub stops_total: u64,
    /// Changes of processes.
    pub modifies_total: u64,
}

impl Summarised {
    /// Counts an event; a gap is none of these.
    pub const fn count(&mut self, kind: EventKind) {
        match kind {
            EventKind::Start => self.starts_total += 1,
            EventKind::Stop => self.stops_total += 1,
            EventKind::Modify => self.modifies_total += 1,
            EventKind::Gap => {}
        }
    }
}

/// How the write-ahead log is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogHealth {
    /// The stream it holds.
    pub stream: StreamId,
    /// This opening of it.
    pub epoch: Epoch,
    /// The newest sequence given.
    pub last: Sequence,
    /// The newest sequence on disk.
    pub durable: Sequence,
    /// Everything up to here is committed by every durable consumer.
    pub watermark: Sequence,
    /// Segment files.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events the log had no room for.
    pub refused_total: u64,
}

/// How the way to the broker is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectorHealth {
    /// Whether there is a broker.
    pub state: ConnectorState,
    /// Payload bytes in the in-memory window.
    pub window_bytes: u64,
    /// The most there have been.
    pub window_bytes_peak: u64,
    /// Payload bytes that are not committed yet, in the window or only in the log.
    pub backlog_bytes: u64,
    /// How often collecting was asked to slow down.
    pub engaged_total: u64,
    /// How often it was asked to return to normal.
    pub released_total: u64,
    /// Connections made after the first.
    pub reconnects_total: u64,
    /// The newest sequence sent on this connection.
    pub sent_through: Sequence,
    /// The newest sequence the broker says is committed.
    pub acked: Sequence,
}

/// Whether a collector has a broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectorState {
    /// No broker, trying.
    Disconnected,
    /// There is a broker that is not ready to take events.
    Waiting,
    /// Delivering.
    Connected,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_are_written() {
        let request = CollectorRequest::UpdateConfig(ConfigUpdate {
            interval_ms: Some(500),
            heartbeat_ms: None,
            log_level: None,
        });
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(json, r#"{"request":"update_config","interval_ms":500}"#);
        assert_eq!(serde_json::from_str::<CollectorRequest>(&json).unwrap(), request);
        assert_eq!(
            serde_json::to_string(&Lifecycle::BeginMonitoring).unwrap(),
            r#"{"message":"begin_monitoring"}"#
        );
        assert_eq!(
            serde_json::from_str::<CollectorRequest>(r#"{"request":"health"}"#).unwrap(),
            CollectorRequest::Health
        );
        for bad in ["", "{}", r#"{"request":"explode"}"#, r#"{"request":"set_interval"}"#] {
            assert!(serde_json::from_str::<CollectorRequest>(bad).is_err(), "{bad}");
        }
    }
}
