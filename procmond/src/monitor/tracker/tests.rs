use daemoneye_lib::models::process::{Completeness, FieldChange};
use proptest::prelude::*;

use super::*;

const BOOT: Uuid = Uuid::from_u128(0x3f2a_9c1e_0102_4304_8506_0708_090a_0b0c);

fn facts(ppid: u32, name: &str) -> Option<Box<Facts>> {
    let mut facts = Facts::unknown(Completeness::Complete);
    facts.ppid = Some(ppid);
    facts.name = Some(name.into());
    facts.uid = Some(1000);
    Some(Box::new(facts))
}

/// A process with facts made from its pid and start.
fn alive(pid: u32, start_centis: u64) -> ObservedProcess {
    ObservedProcess { pid, start_centis, facts: facts(1, &format!("p{pid}")), ended: None }
}

fn unchanged(pid: u32, start_centis: u64) -> ObservedProcess {
    ObservedProcess { facts: None, ..alive(pid, start_centis) }
}

fn over(pid: u32, start_centis: u64) -> ObservedProcess {
    let exit = Exit { exit_code: Some(3), ..Exit::default() };
    ObservedProcess { ended: Some(exit), ..alive(pid, start_centis) }
}

fn look(uptime_centis: u64, processes: Vec<ObservedProcess>) -> Observation {
    look_on(BOOT, uptime_centis, processes)
}

fn look_on(boot_id: Uuid, uptime_centis: u64, processes: Vec<ObservedProcess>) -> Observation {
    Observation::Snapshot(ProcessTable {
        boot_id,
        precision: KeyPrecision::Tick,
        time_ns: 1_000_000_000_000 + i64::try_from(uptime_centis * CENTI_NS).unwrap(),
        uptime_ns: uptime_centis * CENTI_NS,
        processes,
    })
}

/// Events in short: `+` start, `=` existing start, `-` stop, `?` inferred stop, `~` modify, `^`
/// inferred modify; then pid, start and generation.
fn short(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| {
            let Event::Process(event) = event else { panic!("{event:?}") };
            let sign = match (&event.kind, event.inferred) {
                (ProcessEventKind::Start { existing: true }, false) => '=',
                (ProcessEventKind::Start { existing: false }, false) => '+',
                (ProcessEventKind::Start { .. }, true) => '!',
                (ProcessEventKind::Stop(_), false) => '-',
                (ProcessEventKind::Stop(_), true) => '?',
                (ProcessEventKind::Modify { .. }, false) => '~',
                (ProcessEventKind::Modify { .. }, true) => '^',
            };
            let key = event.key;
            format!("{sign}{}@{}.{}", key.pid, key.start_centis, key.generation)
        })
        .collect()
}

fn new() -> Tracker {
    Tracker::new(SourceName::Poll)
}

fn process(event: &Event) -> &ProcessEvent {
    match event {
        Event::Process(event) => event,
        Event::Gap(_) => panic!("{event:?}"),
    }
}

#[test]
fn each_process_gives_one_start_and_one_stop_with_the_same_key() {
    let mut tracker = new();
    let first = tracker.observe(look(1000, vec![alive(1, 0), alive(20, 500)]));
    assert_eq!(short(&first), ["=1@0.0", "=20@500.0"], "what was there is marked");
    let second =
        tracker.observe(look(1100, vec![unchanged(1, 0), unchanged(20, 500), alive(30, 1050)]));
    assert_eq!(short(&second), ["+30@1050.0"]);
    assert_eq!(tracker.len(), 3);
    let third = tracker.observe(look(1200, vec![unchanged(1, 0), unchanged(20, 500)]));
    assert_eq!(short(&third), ["-30@1050.0"]);
    let stop = process(&third[0]);
    assert_eq!(stop.key, process(&second[0]).key);
    assert_eq!(stop.name, Some("p30".into()), "a stop can be read without its start");
    let exit = match stop.kind {
        ProcessEventKind::Stop(exit) => exit,
        _ => panic!(),
    };
    assert_eq!(exit, Exit { run_time_ns: Some(150 * CENTI_NS), ..Exit::default() });
    assert_eq!(
        short(&tracker.observe(look(1300, vec![unchanged(1, 0), unchanged(20, 500)]))),
        [""; 0]
    );
}

#[test]
fn start_times_and_event_times_are_told_apart() {
    let mut tracker = new();
    let events = tracker.observe(look(1000, vec![alive(20, 400)]));
    let start = process(&events[0]);
    assert_eq!(start.time_ns, 1_010_000_000_000);
    assert_eq!(start.start_time_ns, Some(1_004_000_000_000));
    assert_eq!(start.monotonic_ns, Some(10_000_000_000));
}

#[test]
fn parents_are_known_by_key_and_come_first() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(1, 0)]));
    let child = ObservedProcess { facts: facts(50, "child"), ..alive(40, 1020) };
    let stranger = ObservedProcess { facts: facts(60, "stranger"), ..alive(45, 1010) };
    let events = tracker.observe(look(
        1100,
        vec![unchanged(1, 0), child, stranger, alive(50, 1015), alive(60, 1090)],
    ));
    assert_eq!(short(&events), ["+45@1010.0", "+50@1015.0", "+40@1020.0", "+60@1090.0"]);
    assert_eq!(process(&events[2]).parent_key, Some(process(&events[1]).key));
    assert_eq!(process(&events[0]).parent_key, None, "what is younger is not the parent");
    assert_eq!(process(&events[0]).ppid, Some(60));
    // Adopted by another when its parent ends: still the child of the first.
    let adopted = ObservedProcess { facts: facts(1, "renamed"), ..alive(40, 1020) };
    let events = tracker.observe(look(1200, vec![unchanged(1, 0), adopted]));
    let renamed = process(events.iter().find(|event| process(event).pid() == 40).unwrap());
    assert_eq!(renamed.ppid, Some(50));
}

#[test]
fn a_reused_pid_is_a_stop_and_a_start() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(20, 500)]));
    let events = tracker.observe(look(1100, vec![alive(20, 1050)]));
    assert_eq!(short(&events), ["-20@500.0", "+20@1050.0"]);
}

#[test]
fn lives_within_one_tick_have_generations() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![]));
    assert_eq!(short(&tracker.observe(look(1100, vec![alive(20, 1099)]))), ["+20@1099.0"]);
    assert_eq!(short(&tracker.observe(look(1101, vec![]))), ["-20@1099.0"]);
    assert_eq!(short(&tracker.observe(look(1102, vec![alive(20, 1099)]))), ["+20@1099.1"]);
    assert_eq!(short(&tracker.observe(look(1103, vec![]))), ["-20@1099.1"]);
    // Also by the next run, and no longer than it can matter.
    let mut tracker = through_bytes(&tracker);
    assert_eq!(short(&tracker.observe(look(1104, vec![alive(20, 1103)]))), ["+20@1103.0"]);
    let mut tracker = new();
    tracker.observe(look(1100, vec![alive(20, 1100)]));
    tracker.observe(look(1100, vec![]));
    let mut tracker = through_bytes(&tracker);
    assert_eq!(short(&tracker.observe(look(1101, vec![alive(20, 1100)]))), ["+20@1100.1"]);
    tracker.observe(look(2000, vec![]));
    assert!(tracker.ended.keys.is_empty());
}

#[test]
fn one_that_ended_but_is_listed_is_told_once() {
    let mut tracker = new();
    let first = tracker.observe(look(1000, vec![over(10, 100), alive(20, 500)]));
    assert_eq!(short(&first), ["=20@500.0"], "what ended before we began is not our event");
    let second = tracker.observe(look(1100, vec![over(10, 100), over(20, 500), over(30, 1050)]));
    assert_eq!(short(&second), ["+30@1050.0", "-20@500.0", "-30@1050.0"]);
    assert!(matches!(
        process(&second[1]).kind,
        ProcessEventKind::Stop(Exit { exit_code: Some(3), .. })
    ));
    assert!(tracker.is_empty());
    let third = tracker.observe(look(1200, vec![over(10, 100), over(20, 500), over(30, 1050)]));
    assert_eq!(short(&third), [""; 0]);
    assert_eq!(short(&tracker.observe(look(1300, vec![]))), [""; 0]);
}

#[test]
fn changes_carry_old_and_new_values() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(20, 500)]));
    let mut changed = alive(20, 500);
    let facts = changed.facts.as_mut().unwrap();
    facts.name = Some("new".into());
    facts.uid = Some(0);
    facts.cgroup = Some("/x".into());
    facts.exe = None;
    let events = tracker.observe(look(1100, vec![changed.clone()]));
    assert_eq!(short(&events), ["~20@500.0"]);
    let event = process(&events[0]);
    assert_eq!((event.name.clone(), event.uid), (Some("new".into()), Some(0)));
    assert_eq!(
        event.kind,
        ProcessEventKind::Modify {
            changes: vec![
                FieldChange::Name(Some("p20".into())),
                FieldChange::Uid(Some(1000)),
                FieldChange::Cgroup(None),
            ]
        }
    );
    assert_eq!(short(&tracker.observe(look(1200, vec![changed]))), [""; 0], "told once");
    let stop = tracker.observe(look(1300, vec![]));
    assert_eq!(process(&stop[0]).name, Some("new".into()));
}

#[test]
fn a_failed_look_means_nothing() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(20, 500)]));
    let failed = Observation::Failed(crate::source::SourceError::NotAProcessTable {
        path: "/proc/uptime".into(),
    });
    assert_eq!(short(&tracker.observe(failed)), [""; 0]);
    assert_eq!(tracker.len(), 1);
}

fn through_bytes(tracker: &Tracker) -> Tracker {
    let mut bytes = Vec::new();
    tracker.encode().encode_into(&mut bytes);
    Tracker::restore(SourceName::Poll, &TableImage::decode(&bytes).unwrap())
}

#[test]
fn a_restart_reports_what_happened_meanwhile() {
    let mut before = new();
    before.observe(look(1000, vec![alive(1, 0), alive(20, 500), alive(21, 501), over(22, 502)]));
    let mut after = through_bytes(&before);
    assert_eq!(after.len(), 3);
    let mut renamed = alive(21, 501);
    renamed.facts.as_mut().unwrap().name = Some("other".into());
    let events = after.observe(look(
        5000,
        // 22 was told by the run before and still waits for its parent; 23 was there and not
        // known; 30 began and ended meanwhile.
        vec![alive(1, 0), renamed, over(22, 502), alive(23, 503), over(30, 3000), alive(20, 4000)],
    ));
    assert_eq!(
        short(&events),
        ["?20@500.0", "=23@503.0", "+30@3000.0", "+20@4000.0", "^21@501.0", "?30@3000.0"]
    );
    let ProcessEventKind::Stop(exit) = process(&events[0]).kind else { panic!() };
    assert_eq!(exit.run_time_ns, None, "nobody knows when it ended");
    let next = after.observe(look(5100, vec![unchanged(1, 0)]));
    assert_eq!(short(&next), ["-20@4000.0", "-21@501.0", "-23@503.0"]);
}

#[test]
fn after_a_reboot_everything_has_ended_and_everything_is_new() {
    let mut before = new();
    before.observe(look(100_000, vec![alive(1, 0), alive(20, 500)]));
    let mut after = through_bytes(&before);
    let other_boot = Uuid::from_u128(1);
    let events = after.observe(look_on(other_boot, 300, vec![alive(1, 0), alive(25, 200)]));
    assert_eq!(short(&events), ["?1@0.0", "?20@500.0", "+1@0.0", "+25@200.0"]);
}

#[test]
fn the_log_rolls_the_table_forward() {
    let mut first = new();
    let mut logged = first.observe(look(1000, vec![alive(1, 0), alive(20, 500)]));
    let image = first.encode();
    logged.clear();
    let mut renamed = alive(1, 0);
    renamed.facts.as_mut().unwrap().name = Some("systemd".into());
    logged.extend(first.observe(look(1100, vec![renamed, unchanged(20, 500), alive(30, 1050)])));
    logged.extend(first.observe(look(1200, vec![unchanged(1, 0), unchanged(30, 1050)])));
    assert_eq!(logged.len(), 3);

    // Killed here. The next run knows what the first knew when it last told something.
    let mut second = Tracker::restore(SourceName::Poll, &image);
    for event in &logged {
        second.apply_logged(event);
    }
    assert_eq!(second.get(1).unwrap().name, Some("systemd".into()));
    let mut systemd = alive(1, 0);
    systemd.facts.as_mut().unwrap().name = Some("systemd".into());
    let events = second.observe(look(1300, vec![systemd, alive(30, 1050), alive(40, 1250)]));
    assert_eq!(short(&events), ["+40@1250.0"]);
}

#[test]
fn a_log_without_an_image_is_enough_for_what_it_tells() {
    let mut first = new();
    let logged = first.observe(look(1000, vec![alive(1, 0), alive(20, 500)]));
    let mut second = new();
    for event in &logged {
        second.apply_logged(event);
    }
    let events = second.observe(look(1300, vec![alive(1, 0), alive(30, 1200)]));
    assert_eq!(short(&events), ["?20@500.0", "+30@1200.0"]);
}

#[test]
fn other_bytes_are_not_a_table() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(1, 0), alive(20, 500)]));
    let mut bytes = Vec::new();
    tracker.encode().encode_into(&mut bytes);
    assert_eq!(TableImage::decode(&bytes).unwrap().len(), 2);
    for cut in 0..bytes.len() {
        assert!(TableImage::decode(&bytes[..cut]).is_err(), "{cut}");
    }
    assert!(matches!(TableImage::decode(&[&bytes[..], &[0]].concat()), Err(ImageError::Length)));
    assert!(TableImage::decode(&[0, 255, 255, 255, 255]).is_err());
}

proptest! {
    /// Whatever is seen, and wherever the program is killed and continues: lives are told in
    /// pairs, and the starts without a stop are those that are alive.
    #[test]
    fn starts_and_stops_pair_up(
        looks in proptest::collection::vec(
            (proptest::collection::vec((1_u32..6, 0_u8..3, any::<bool>()), 0..5), any::<bool>()),
            1..12,
        ),
    ) {
        let mut tracker = new();
        let mut open = std::collections::BTreeMap::new();
        let mut closed = std::collections::BTreeSet::new();
        let mut now = 1000;
        for (processes, restart) in looks {
            let last = now;
            now += 10;
            let mut seen = std::collections::BTreeMap::new();
            for (pid, life, ended) in processes {
                // The same life as before, one since the last look, or one in its very tick.
                let start = match (life, tracker.get(pid)) {
                    (0, Some(before)) => before.key.start_centis,
                    (1, _) => last,
                    _ => now - 5,
                };
                seen.insert(pid, if ended { over(pid, start) } else { alive(pid, start) });
            }
            for event in tracker.observe(look(now, seen.into_values().collect())) {
                let event = process(&event);
                match event.kind {
                    ProcessEventKind::Start { .. } => {
                        prop_assert!(!closed.contains(&event.key), "{} again", event.key);
                        prop_assert!(open.insert(event.key, ()).is_none(), "{} twice", event.key);
                    }
                    ProcessEventKind::Stop(_) => {
                        prop_assert!(open.remove(&event.key).is_some(), "{} unknown", event.key);
                        closed.insert(event.key);
                    }
                    ProcessEventKind::Modify { .. } => prop_assert!(open.contains_key(&event.key)),
                }
            }
            prop_assert_eq!(open.len(), tracker.len());
            if restart {
                tracker = through_bytes(&tracker);
            }
        }
    }
}
