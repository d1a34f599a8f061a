//! What gives way when delivery has fallen behind.

use std::time::Duration;

use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::stream::wall_clock_ns;

use crate::event_bus_connector::BackpressureSignal;

/// Under pressure one modify event in this many is kept.
const KEEP_ONE_IN: u64 = 4;

/// Pressure as the monitor feels it: a longer interval and thinner modify events. Starts and stops
/// are never left out.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    episode: Option<Episode>,
    shed_total: u64,
}

#[derive(Debug)]
struct Episode {
    since_ns: i64,
    modifies: u64,
    shed: u64,
}

impl Pressure {
    /// The interval in force where `interval` is asked for: half as long again under pressure.
    pub(super) fn interval(&self, interval: Duration) -> Duration {
        if self.episode.is_some() { interval.mul_f64(1.5) } else { interval }
    }

    /// Takes a signal; when pressure ends, gives the account of what was left out, if anything was.
    pub(super) fn signal(&mut self, signal: BackpressureSignal) -> Option<GapEvent> {
        match signal {
            BackpressureSignal::Engage { .. } => {
                self.episode.get_or_insert_with(|| Episode {
                    since_ns: wall_clock_ns(),
                    modifies: 0,
                    shed: 0,
                });
                None
            }
            BackpressureSignal::Release { .. } => self.end(),
        }
    }

    /// Ends the pressure, as [`BackpressureSignal::Release`] does.
    pub(super) fn end(&mut self) -> Option<GapEvent> {
        let episode = self.episode.take()?;
        let now = wall_clock_ns();
        (episode.shed > 0).then(|| GapEvent {
            reason: GapReason::Shed,
            missing: Some(episode.shed),
            first_sequence: None,
            last_sequence: None,
            since_ns: Some(episode.since_ns),
            until_ns: Some(now),
            time_ns: now,
            detail: format!(
                "delivery had fallen behind: {} of {} modify events were left out, starts and \
                 stops were not",
                episode.shed, episode.modifies
            ),
        })
    }

    /// Whether the event is to be recorded; counts it if not.
    pub(super) fn admits(&mut self, event: &Event) -> bool {
        let Some(episode) = &mut self.episode else { return true };
        if event.kind() != EventKind::Modify {
            return true;
        }
        let admitted = episode.modifies.is_multiple_of(KEEP_ONE_IN);
        episode.modifies += 1;
        if !admitted {
            episode.shed += 1;
            self.shed_total += 1;
        }
        admitted
    }

    /// Modify events left out so far.
    pub(super) fn shed_total(&self) -> u64 {
        self.shed_total
    }
}
