//! The collectors that came to our broker: who they are, how they are, and telling them to begin.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use daemoneye_lib::models::control::{
    CollectorHealth, CollectorRegistration, CollectorState, Heartbeat,
};
use daemoneye_lib::stream::wall_clock_ns;
use daemoneye_lib::topics::{BadCollectorId, CollectorId};
use tokio::time::Instant;

use crate::status::CollectorStatus;

/// How many collectors are remembered. We start one; the rest is room for those to come.
const COLLECTORS_MAX: usize = 64;

/// A collector that has not been heard of for so long is worth a warning.
pub const SILENT_AFTER: Duration = Duration::from_secs(30);

/// Who registered. Clones see the same collectors.
#[derive(Clone, Debug, Default)]
pub struct Collectors(Arc<Mutex<BTreeMap<String, Known>>>);

#[derive(Debug)]
struct Known {
    id: CollectorId,
    registration: CollectorRegistration,
    registered_ns: i64,
    heard: Instant,
    silent: bool,
    health: Option<CollectorHealth>,
}

/// Why a message of a collector is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Its name cannot be part of a topic.
    #[error(transparent)]
    BadId(#[from] BadCollectorId),
    /// There are too many already.
    #[error("{COLLECTORS_MAX} collectors are registered, and no more are taken")]
    TooMany,
    /// A heartbeat of somebody who never registered, or registered as another process.
    #[error("a heartbeat of {id} from process {pid}, which is not registered under that name")]
    Unregistered {
        /// The name it gives.
        id: CollectorId,
        /// Its process id.
        pid: u32,
    },
}

/// Whether a collector waits for the word to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// It waits.
    Begin,
    /// Nothing.
    Nothing,
}

/// What changed about hearing from a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Its name.
    pub collector_id: String,
    /// Its process id.
    pub pid: u32,
}

impl Collectors {
    /// Takes a registration; a collector that registers again replaces what was known of it.
    ///
    /// # Errors
    /// When the name is unfit or there are too many collectors.
    pub fn register(&self, registration: CollectorRegistration) -> Result<Wants, NotTaken> {
        let id = CollectorId::new(&registration.collector_id)?;
        let wants = wants(registration.state);
        let mut known = self.lock();
        if known.len() >= COLLECTORS_MAX && !known.contains_key(id.as_str()) {
            return Err(NotTaken::TooMany);
        }
        let fresh = Known {
            registration,
            registered_ns: wall_clock_ns(),
            heard: Instant::now(),
            silent: false,
            health: None,
            id: id.clone(),
        };
        known.insert(id.as_str().to_owned(), fresh);
        Ok(wants)
    }

    /// Takes a heartbeat.
    ///
    /// # Errors
    /// When its sender is not registered under the name it gives.
    pub fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Wants, NotTaken> {
        let id = CollectorId::new(&heartbeat.collector_id)?;
        let mut known = self.lock();
        let known = known
            .get_mut(id.as_str())
            .filter(|known| known.registration.pid == heartbeat.pid)
            .ok_or(NotTaken::Unregistered { id, pid: heartbeat.pid })?;
        known.heard = Instant::now();
        known.silent = false;
        let wants = wants(heartbeat.health.state);
        known.health = Some(heartbeat.health);
        Ok(wants)
    }

    /// The collectors that have just been silent for too long, each told once.
    pub fn newly_silent(&self) -> Vec<Silence> {
        let mut known = self.lock();
        known
            .values_mut()
            .filter(|known| !known.silent && known.heard.elapsed() >= SILENT_AFTER)
            .map(|known| {
                known.silent = true;
                let registration = &known.registration;
                Silence { collector_id: registration.collector_id.clone(), pid: registration.pid }
            })
            .collect()
    }

    /// The collector that is this process.
    #[must_use]
    pub fn by_pid(&self, pid: u32) -> Option<CollectorId> {
        let known = self.lock();
        known.values().find(|known| known.registration.pid == pid).map(|known| known.id.clone())
    }

    /// What there is to show, with `connected` telling which process ids have a connection.
    #[must_use]
    pub fn statuses(&self, connected: &[u32]) -> Vec<CollectorStatus> {
        let known = self.lock();
        known
            .values()
            .map(|Known { registration, registered_ns, heard, health, .. }| CollectorStatus {
                collector_id: registration.collector_id.clone(),
                pid: registration.pid,
                version: registration.version.clone(),
                // A heartbeat knows better: a log may begin a new stream while it is open.
                stream: health.as_ref().map_or(registration.stream, |health| health.log.stream),
                epoch: health.as_ref().map_or(registration.epoch, |health| health.log.epoch),
                source: health.as_ref().map_or(registration.source, |health| health.source),
                connected: connected.contains(&registration.pid),
                registered_ns: *registered_ns,
                heard_ms_ago: u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX),
                health: health.clone(),
            })
            .collect()
    }

    /// Held for a look or a change of the map, never across an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wants(state: CollectorState) -> Wants {
    match state {
        CollectorState::Waiting => Wants::Begin,
        CollectorState::Monitoring | CollectorState::Blind | CollectorState::Stopping => {
            Wants::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::control::{
        ConnectorHealth, ConnectorState, EventCounts, Excluded, LogHealth, Shed, Summarised,
    };
    use daemoneye_lib::models::process::SourceName;
    use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

    use super::*;

    fn registration(id: &str, pid: u32, state: CollectorState) -> CollectorRegistration {
        CollectorRegistration {
            collector_id: id.to_owned(),
            pid,
            version: "0.1.0".to_owned(),
            stream: StreamId::random(),
            epoch: Epoch::first(),
            source: SourceName::Poll,
            state,
        }
    }

    fn heartbeat(of: &CollectorRegistration, state: CollectorState) -> Heartbeat {
        Heartbeat {
            collector_id: of.collector_id.clone(),
            pid: of.pid,
            time_ns: 1,
            health: CollectorHealth {
                state,
                source: of.source,
                failed: None,
                source_failures_total: 0,
                interval_ms: 1_000,
                processes: 3,
                scans_total: 1,
                scan_errors_total: 0,
                events: EventCounts::default(),
                digests: None,
                excluded: Excluded::default(),
                unseen_max_total: 0,
                summarised: Summarised::default(),
                shed: Shed::default(),
                log: LogHealth {
                    stream: of.stream,
                    epoch: of.epoch,
                    last: Sequence(1),
                    durable: Sequence(1),
                    watermark: Sequence(0),
                    segments: 1,
                    bytes: 100,
                    refused_total: 0,
                },
                connector: ConnectorHealth {
                    state: ConnectorState::Connected,
                    window_bytes: 0,
                    window_bytes_peak: 0,
                    backlog_bytes: 0,
                    engaged_total: 0,
                    released_total: 0,
                    reconnects_total: 0,
                    sent_through: Sequence(1),
                    acked: Sequence(0),
                },
            },
        }
    }

    #[test]
    fn a_collector_that_waits_is_told_to_begin() {
        let collectors = Collectors::default();
        let waiting = registration("procmond", 7, CollectorState::Waiting);
        assert_eq!(collectors.register(waiting.clone()).unwrap(), Wants::Begin);
        // The word may have been lost: its heartbeats ask again.
        let asking = heartbeat(&waiting, CollectorState::Waiting);
        assert_eq!(collectors.heartbeat(asking).unwrap(), Wants::Begin);
        let content = heartbeat(&waiting, CollectorState::Monitoring);
        assert_eq!(collectors.heartbeat(content).unwrap(), Wants::Nothing);
        let status = &collectors.statuses(&[7])[0];
        assert!(status.connected);
        assert_eq!(status.health.as_ref().unwrap().state, CollectorState::Monitoring);
        assert_eq!(collectors.by_pid(7).unwrap().as_str(), "procmond");
        assert_eq!(collectors.by_pid(8), None);
    }

    #[test]
    fn strangers_are_not_taken() {
        let collectors = Collectors::default();
        let state = CollectorState::Monitoring;
        let evil = registration("\u{1b}[2J", 7, state);
        assert!(matches!(collectors.register(evil), Err(NotTaken::BadId(_))));
        let first = registration("procmond", 7, state);
        let unknown = collectors.heartbeat(heartbeat(&first, state));
        assert!(matches!(unknown, Err(NotTaken::Unregistered { pid: 7, .. })));
        collectors.register(first.clone()).unwrap();
        // An earlier process's last heartbeat must not speak for the new one.
        let late = Heartbeat { pid: 6, ..heartbeat(&first, state) };
        assert!(matches!(collectors.heartbeat(late), Err(NotTaken::Unregistered { pid: 6, .. })));
        for n in 1..COLLECTORS_MAX {
            collectors.register(registration(&format!("c{n}"), 100, state)).unwrap();
        }
        let one_more = collectors.register(registration("x", 8, state));
        assert!(matches!(one_more, Err(NotTaken::TooMany)));
        collectors.register(registration("procmond", 9, state)).expect("known ones may come back");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_once() {
        let collectors = Collectors::default();
        let first = registration("procmond", 7, CollectorState::Monitoring);
        collectors.register(first.clone()).unwrap();
        assert!(collectors.newly_silent().is_empty());
        tokio::time::advance(SILENT_AFTER).await;
        assert_eq!(collectors.newly_silent().len(), 1);
        assert!(collectors.newly_silent().is_empty());
        collectors.heartbeat(heartbeat(&first, CollectorState::Monitoring)).unwrap();
        tokio::time::advance(SILENT_AFTER).await;
        assert_eq!(collectors.newly_silent().len(), 1, "and again after it was heard");
    }
}
