//! From event to log: the only place where events are encoded.

use bytes::Bytes;
use daemoneye_lib::models::control::EventCounts;
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::stream::wall_clock_ns;
use tracing::{info, warn};

use crate::event_bus_connector::EventBusConnector;
use crate::wal::WalError;

/// Puts events into the log, in order, and accounts for those it had no room for.
pub(super) struct Recorder {
    connector: EventBusConnector,
    counts: EventCounts,
    refused_total: u64,
    refusals: Option<Refusals>,
}

/// Events the log refused since it last took one.
struct Refusals {
    missing: u64,
    since_ns: i64,
    until_ns: i64,
    why: String,
}

impl Recorder {
    pub(super) fn new(connector: EventBusConnector) -> Self {
        Self { connector, counts: EventCounts::default(), refused_total: 0, refusals: None }
    }

    /// Events in the log, by kind.
    pub(super) fn counts(&self) -> EventCounts {
        self.counts
    }

    /// Events the log had no room for.
    pub(super) fn refused_total(&self) -> u64 {
        self.refused_total
    }

    /// Puts an event into the log's queue, waiting while that is full.
    ///
    /// A log without room costs the event but not the account of it: as soon as there is room, a
    /// gap event says how many are missing and between which times.
    ///
    /// # Errors
    /// If the log has failed for good.
    pub(super) async fn record(&mut self, event: &Event) -> Result<(), WalError> {
        if let Some(gap) = self.refusals.as_ref().map(Refusals::gap) {
            let missing = gap.missing;
            match self.submit(&gap.into()).await {
                Ok(()) => {
                    info!(missing, "the log takes events again");
                    self.refusals = None;
                }
                Err(error) if is_refusal(&error) => {
                    self.refuse(event, &error);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        match self.submit(event).await {
            Err(error) if is_refusal(&error) => {
                self.refuse(event, &error);
                Ok(())
            }
            result => result,
        }
    }

    async fn submit(&mut self, event: &Event) -> Result<(), WalError> {
        let kind = event.kind();
        let payload = Bytes::from(event.encode());
        loop {
            match self.connector.submit(kind.as_u8(), event.time_ns(), payload.clone()) {
                Ok(_) => {
                    *count(&mut self.counts, kind) += 1;
                    return Ok(());
                }
                Err(WalError::Busy) => self.connector.log().room().await,
                Err(error) => return Err(error),
            }
        }
    }

    fn refuse(&mut self, event: &Event, error: &WalError) {
        self.refused_total += 1;
        let time_ns = event.time_ns();
        match &mut self.refusals {
            Some(refusals) => {
                refusals.missing += 1;
                refusals.until_ns = time_ns;
            }
            None => {
                warn!(%error, "events are lost until the log has room; they are counted");
                self.refusals = Some(Refusals {
                    missing: 1,
                    since_ns: time_ns,
                    until_ns: time_ns,
                    why: error.to_string(),
                });
            }
        }
    }
}

impl Refusals {
    fn gap(&self) -> GapEvent {
        GapEvent {
            reason: GapReason::LogFull,
            missing: Some(self.missing),
            first_sequence: None,
            last_sequence: None,
            since_ns: Some(self.since_ns),
            until_ns: Some(self.until_ns),
            time_ns: wall_clock_ns(),
            detail: self.why.clone(),
        }
    }
}

/// Whether the log may take events again later, so that this one is to be counted as lost.
fn is_refusal(error: &WalError) -> bool {
    matches!(
        error,
        WalError::BudgetSpent { .. } | WalError::DiskFull { .. } | WalError::TooLarge { .. }
    )
}

fn count(counts: &mut EventCounts, kind: EventKind) -> &mut u64 {
    match kind {
        EventKind::Start => &mut counts.start,
        EventKind::Stop => &mut counts.stop,
        EventKind::Modify => &mut counts.modify,
        EventKind::Gap => &mut counts.gap,
    }
}
