//! What gives way when delivery has fallen behind.
//!
//! What cannot be delivered waits in the log, and it is the log's room that runs out: as long as
//! there is enough of it, everything is told. Then, in this order, as the backlog grows: the parents' keys, which the store can work out again;
//! the tails of long arguments; then most modify events. Starts and stops are told whatever comes.
//! What has given way stays so until delivery has caught up.

use std::time::Duration;

use daemoneye_lib::models::control::Shed;
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::models::process::{Completeness, FieldChange, ProcessEvent, ProcessEventKind};
use daemoneye_lib::stream::wall_clock_ns;

use crate::event_bus_connector::BackpressureSignal;

/// From this backlog on, in percent of the log's disk budget, parents' keys are left out.
const PARENTS_FROM: u64 = 50;
/// From this backlog on arguments are cut.
const CUT_FROM: u64 = 70;
/// From this backlog on modify events are left out. At 100 and a little less, as records take more
/// room than what they hold, the log refuses all.
const THIN_FROM: u64 = 85;
/// What is left of arguments.
const ARGV_BYTES: usize = 256;
/// One modify event in this many is kept.
const KEEP_ONE_IN: u64 = 4;

/// Pressure as the monitor feels it: a longer interval, and events that say less.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    episode: Option<Episode>,
    total: Shed,
}

#[derive(Debug)]
struct Episode {
    since_ns: i64,
    /// The highest backlog so far, in percent of the log's disk budget.
    level: u64,
    modifies: u64,
    shed: Shed,
}

impl Pressure {
    /// The interval in force where `interval` is asked for: half as long again under pressure.
    pub(super) fn interval(&self, interval: Duration) -> Duration {
        if self.is_on() { interval.mul_f64(1.5) } else { interval }
    }

    /// Whether delivery has fallen behind.
    pub(super) const fn is_on(&self) -> bool {
        self.episode.is_some()
    }

    /// Takes a signal; when pressure ends, gives the account of what was left out, if anything was.
    pub(super) fn signal(&mut self, signal: BackpressureSignal) -> Option<GapEvent> {
        match signal {
            BackpressureSignal::Engage { .. } => {
                self.episode.get_or_insert_with(|| Episode {
                    since_ns: wall_clock_ns(),
                    level: 0,
                    modifies: 0,
                    shed: Shed::default(),
                });
                None
            }
            BackpressureSignal::Release { .. } => self.end(),
        }
    }

    /// Takes the backlog, in percent of the log's disk budget. A lower one than before changes nothing.
    pub(super) fn rise(&mut self, level: u64) {
        if let Some(episode) = &mut self.episode {
            episode.level = episode.level.max(level);
        }
    }

    /// Ends the pressure, as [`BackpressureSignal::Release`] does.
    pub(super) fn end(&mut self) -> Option<GapEvent> {
        let Episode { since_ns, modifies, shed, .. } = self.episode.take()?;
        let now = wall_clock_ns();
        let Shed { parents_total, argument_tails_total, modifies_total } = shed;
        let detail = format!(
            "delivery had fallen behind: {modifies_total} of {modifies} modify events were left \
             out, starts and stops were not; {parents_total} events lack their parent's key, and \
             {argument_tails_total} the end of their arguments"
        );
        (shed != Shed::default()).then(|| GapEvent {
            missing: Some(modifies_total),
            since_ns: Some(since_ns),
            until_ns: Some(now),
            ..GapEvent::new(GapReason::Shed, now, detail)
        })
    }

    /// What is left of an event; counts what is not.
    pub(super) fn press(&mut self, mut event: Event) -> Option<Event> {
        let (Some(episode), Event::Process(process)) = (&mut self.episode, &mut event) else {
            return Some(event);
        };
        if episode.level >= THIN_FROM && matches!(process.kind, ProcessEventKind::Modify { .. }) {
            let is_kept = episode.modifies.is_multiple_of(KEEP_ONE_IN);
            episode.modifies += 1;
            if !is_kept {
                episode.shed.modifies_total += 1;
                self.total.modifies_total += 1;
                return None;
            }
        }
        if episode.level >= PARENTS_FROM && process.parent_key.take().is_some() {
            episode.shed.parents_total += 1;
            self.total.parents_total += 1;
        }
        if episode.level >= CUT_FROM && cut_arguments(process) {
            episode.shed.argument_tails_total += 1;
            self.total.argument_tails_total += 1;
        }
        Some(event)
    }

    /// What was left out so far.
    pub(super) const fn shed_total(&self) -> Shed {
        self.total
    }
}

/// Cuts the arguments an event holds; says whether there was something to cut.
fn cut_arguments(event: &mut ProcessEvent) -> bool {
    let mut is_cut = event.argv.as_mut().is_some_and(|argv| argv.cut(ARGV_BYTES));
    if is_cut && event.completeness == Completeness::Complete {
        event.completeness = Completeness::Truncated;
    }
    if let ProcessEventKind::Modify { changes } = &mut event.kind {
        for change in changes {
            if let FieldChange::Argv(Some(before)) = change {
                is_cut |= before.cut(ARGV_BYTES);
            }
        }
    }
    is_cut
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::process::Exit;
    use daemoneye_lib::redaction::RawArgv;

    use super::super::tests::life;
    use super::*;

    const ENGAGE: BackpressureSignal = BackpressureSignal::Engage { level: 100 };
    const RELEASE: BackpressureSignal = BackpressureSignal::Release { level: 50 };
    const SECOND: Duration = Duration::from_secs(1);

    /// Which of so many modify events are admitted.
    fn modifies(pressure: &mut Pressure, count: usize) -> Vec<bool> {
        let [_, modify, _] = life();
        (0..count).map(|_| pressure.press(modify.clone()).is_some()).collect()
    }

    #[test]
    fn without_pressure_everything_is_admitted_at_the_usual_pace() {
        let mut pressure = Pressure::default();
        assert!(life().into_iter().all(|event| pressure.press(event.clone()) == Some(event)));
        assert_eq!(modifies(&mut pressure, 9), [true; 9]);
        assert_eq!(pressure.interval(SECOND), SECOND);
        assert_eq!(pressure.signal(RELEASE), None);
        assert_eq!(pressure.shed_total(), Shed::default());
    }

    #[test]
    fn c4_starts_and_stops_are_admitted_and_one_modify_in_four() {
        let before = wall_clock_ns();
        let mut pressure = Pressure::default();
        assert_eq!(pressure.signal(ENGAGE), None);
        pressure.rise(100);
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
                [start.clone(), stop.clone(), gap.clone().into()]
                    .into_iter()
                    .all(|event| pressure.press(event.clone()) == Some(event))
            );
            kept.append(&mut modifies(&mut pressure, 1));
            // The channel may say again what it said before.
            assert_eq!(pressure.signal(ENGAGE), None);
        }
        let (t, f) = (true, false);
        assert_eq!(kept, [t, f, f, f, t, f, f, f, t, f]);
        assert_eq!(pressure.shed_total().modifies_total, 7);

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
            pressure.rise(100);
            modifies(&mut pressure, modify_count);
            assert_eq!(pressure.end().and_then(|gap| gap.missing), missing);
        }
        assert_eq!(pressure.shed_total().modifies_total, 9);
    }

    /// A start with everything that can be left out, or a change of arguments.
    fn long(kind: ProcessEventKind) -> Event {
        let [Event::Process(mut event), ..] = life() else { panic!("a start") };
        event.kind = kind;
        event.parent_key = Some(event.key);
        event.argv = Some(RawArgv::from_args(["tool", &"x".repeat(1000)]).redact());
        event.completeness = Completeness::Complete;
        Event::Process(event)
    }

    #[test]
    fn c4_what_gives_way_gives_way_in_order_and_none_of_it_is_a_start_or_a_stop() {
        let bytes = |event: &Event| event.encode().len();
        let of = |event: &Option<Event>| match event {
            Some(Event::Process(event)) => {
                let argv = event.argv.as_ref().unwrap();
                Some((event.parent_key.is_some(), argv.is_truncated(), event.completeness))
            }
            _ => None,
        };
        let start = long(ProcessEventKind::Start { existing: false });
        let stop = long(ProcessEventKind::Stop(Exit::default()));
        let before = RawArgv::from_args(["tool", &"y".repeat(1000)]).redact();
        let modify =
            long(ProcessEventKind::Modify { changes: vec![FieldChange::Argv(Some(before))] });
        let mut pressure = Pressure::default();
        pressure.signal(ENGAGE);
        // The window is full, and the log is not.
        pressure.rise(49);
        assert_eq!(pressure.press(start.clone()), Some(start.clone()));
        let mut sizes = Vec::new();
        for (level, cut, modifies) in [(50, false, 4), (69, false, 4), (70, true, 4), (85, true, 1)]
        {
            pressure.rise(level);
            // It does not rise again for what has sunk meanwhile.
            pressure.rise(40);
            let completeness = if cut { Completeness::Truncated } else { Completeness::Complete };
            for event in [&start, &stop] {
                let left = pressure.press(event.clone());
                assert_eq!(of(&left), Some((false, cut, completeness)), "at {level}");
                sizes.push(bytes(&left.unwrap()));
            }
            let left = (0..4).filter_map(|_| pressure.press(modify.clone()));
            let sizes: Vec<_> = left.map(|event| bytes(&event)).collect();
            assert_eq!(sizes.len(), modifies, "at {level}");
            assert!(sizes.iter().all(|size| (*size < 1000) == cut), "{sizes:?}");
        }
        assert!(sizes[0] + 18 < bytes(&start), "{sizes:?} of {}", bytes(&start));
        assert!(sizes[4] + 700 < sizes[2], "{sizes:?}");
        let shed = Shed { parents_total: 21, argument_tails_total: 9, modifies_total: 3 };
        assert_eq!(pressure.shed_total(), shed);
        let gap = pressure.end().unwrap();
        assert_eq!(gap.missing, Some(3));
        for part in ["3 of 4 modify events", "21 events lack", "and 9 the end"] {
            assert!(gap.detail.contains(part), "{}", gap.detail);
        }
        assert_eq!(pressure.press(start.clone()), Some(start), "all is told again");
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
