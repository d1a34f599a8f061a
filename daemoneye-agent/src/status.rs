//! What a running agent says about itself on `control.health.status`.

use std::path::PathBuf;

use daemoneye_lib::models::control::CollectorHealth;
use daemoneye_lib::models::process::SourceName;
use daemoneye_lib::stream::{Epoch, StreamId};
use serde::{Deserialize, Serialize};

use crate::store::StoreFigures;
use crate::supervisor::SupervisorStatus;

/// The whole answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent itself.
    pub agent: AgentInfo,
    /// The collector the agent keeps running.
    pub supervisor: SupervisorStatus,
    /// Every collector that registered since the agent began.
    pub collectors: Vec<CollectorStatus>,
    /// The event store.
    pub store: StoreStatus,
    /// The broker's figures, as the event bus describes them.
    pub broker: serde_json::Value,
}

/// Which agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// How long it has run, in milliseconds.
    pub uptime_ms: u64,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its broker's socket.
    pub socket: PathBuf,
}

/// One collector, as it described itself last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorStatus {
    /// Its name.
    pub collector_id: String,
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The stream it writes.
    pub stream: StreamId,
    /// The opening of its log.
    pub epoch: Epoch,
    /// What it sees processes with.
    pub source: SourceName,
    /// Whether it publishes over a connection that is open.
    pub connected: bool,
    /// When it registered, in nanoseconds since 1970.
    pub registered_ns: i64,
    /// How long ago its last registration or heartbeat came, in milliseconds.
    pub heard_ms_ago: u64,
    /// Its figures, once it sent a heartbeat.
    pub health: Option<CollectorHealth>,
}

/// The event store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The database.
    pub database: PathBuf,
    /// Rows of each topic.
    pub topics: std::collections::BTreeMap<String, u64>,
    /// What the store has done, and its streams.
    #[serde(flatten)]
    pub figures: StoreFigures,
}

impl StoreStatus {
    /// Puts the figures of a store together.
    #[must_use]
    pub fn new(database: PathBuf, figures: StoreFigures) -> Self {
        Self { database, topics: figures.topics(), figures }
    }
}
