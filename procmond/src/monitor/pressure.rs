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
        let detail = format!(
            "delivery had fallen behind: {} of {} modify events were left out, starts and stops \
             were not",
            episode.shed, episode.modifies
        );
        (episode.shed > 0).then(|| GapEvent {
            missing: Some(episode.shed),
            since_ns: Some(episode.since_ns),
            until_ns: Some(now),
            ..GapEvent::new(GapReason::Shed, now, detail)
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

#[cfg(test)]
mod tests {
    use super::super::tests::life;
    use super::*;

    const ENGAGE: BackpressureSignal = BackpressureSignal::Engage { level: 71 };
    const RELEASE: BackpressureSignal = BackpressureSignal::Release { level: 50 };
    const SECOND: Duration = Duration::from_secs(1);

    /// Which of so many modify events are admitted.
    fn modifies(pressure: &mut Pressure, count: usize) -> Vec<bool> {
        let [_, modify, _] = life();
        (0..count).map(|_| pressure.admits(&modify)).collect()
    }

    #[test]
    fn without_pressure_everything_is_admitted_at_the_usual_pace() {
        let mut pressure = Pressure::default();
        assert!(life().iter().all(|event| pressure.admits(event)));
        assert_eq!(modifies(&mut pressure, 9), [true; 9]);
        assert_eq!(pressure.interval(SECOND), SECOND);
        assert_eq!(pressure.signal(RELEASE), None);
        assert_eq!(pressure.shed_total(), 0);
    }

    #[test]
    fn c4_starts_and_stops_are_admitted_and_one_modify_in_four() {
        let before = wall_clock_ns();
        let mut pressure = Pressure::default();
        assert_eq!(pressure.signal(ENGAGE), None);
        let [start, _, stop] = life();
        let gap = GapEvent {
            reason: GapReason::LogFull,
            missing: None,
            first_sequence: None,
            last_sequence: None,
            since_ns: None,
            until_ns: None,
            time_ns: 0,
            detail: String::new(),
        };
        let mut kept = Vec::new();
        for _ in 0..10 {
            assert!(
                [&start, &stop, &gap.clone().into()].iter().all(|event| pressure.admits(event))
            );
            kept.append(&mut modifies(&mut pressure, 1));
            // The channel may say again what it said before.
            assert_eq!(pressure.signal(ENGAGE), None);
        }
        let (t, f) = (true, false);
        assert_eq!(kept, [t, f, f, f, t, f, f, f, t, f]);
        assert_eq!(pressure.shed_total(), 7);

        let gap = pressure.signal(RELEASE).unwrap();
        assert_eq!((gap.reason, gap.missing), (GapReason::Shed, Some(7)));
        let times = [before, gap.since_ns.unwrap(), gap.until_ns.unwrap(), gap.time_ns];
        assert!(times.is_sorted(), "{times:?}");
        assert!(gap.detail.contains("7 of 10 modify events"), "{}", gap.detail);
        assert_eq!(pressure.signal(RELEASE), None, "it is told once");
        assert_eq!(modifies(&mut pressure, 9), [true; 9]);
    }

    #[test]
    fn each_time_of_pressure_has_an_account_of_its_own() {
        let mut pressure = Pressure::default();
        for (modify_count, missing) in [(4, Some(3)), (1, None), (0, None), (9, Some(6))] {
            pressure.signal(ENGAGE);
            modifies(&mut pressure, modify_count);
            assert_eq!(pressure.end().and_then(|gap| gap.missing), missing);
        }
        assert_eq!(pressure.shed_total(), 9);
    }

    #[test]
    fn the_interval_is_half_as_long_again_while_it_lasts() {
        let mut pressure = Pressure::default();
        pressure.signal(ENGAGE);
        pressure.signal(ENGAGE);
        assert_eq!(pressure.interval(SECOND), Duration::from_millis(1500));
        pressure.signal(RELEASE);
        assert_eq!(pressure.interval(SECOND), SECOND);
    }
}
