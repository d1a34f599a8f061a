use daemoneye_lib::models::process::{Completeness, FieldChange};
use daemoneye_lib::redaction::RawArgv;
use proptest::prelude::*;

use super::*;
use crate::source::{Happening, Happenings, What};

mod source_change;

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
    ObservedProcess {
        pid,
        start_centis,
        start_ns: None,
        facts: facts(1, &format!("p{pid}")),
        ended: None,
    }
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
        source: SourceName::Poll,
        is_told: false,
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
    Tracker::new()
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
fn a_look_that_found_nothing_new_leaves_everything_as_it_is() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(1, 0), alive(20, 500)]));
    let unchanged =
        Observation::Unchanged { boot_id: BOOT, uptime_ns: 1100 * CENTI_NS, time_ns: 0 };
    assert_eq!(tracker.observe(unchanged), []);
    assert_eq!(tracker.len(), 2);
    // A later run knows up to when everything was seen: what began before is not news.
    let mut later = through_bytes(&tracker);
    let events = later.observe(look(1200, vec![alive(1, 0), alive(30, 1050), alive(40, 1150)]));
    assert_eq!(short(&events), ["?20@500.0", "=30@1050.0", "+40@1150.0"]);
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

/// The end of one that is held is found while the look goes on that shows the next.
#[test]
fn a_life_that_begins_in_the_tick_of_one_that_a_look_found_ended_is_another() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(1, 0)]));
    tracker.observe(look(1004, vec![unchanged(1, 0), alive(30, 1003)]));
    let end = End { pid: 30, start_centis: 1003, at_ns: 1006 * CENTI_NS, exit: Exit::default() };
    let ended = tracker.observe(Observation::Ended(Ends {
        source: SourceName::Poll,
        boot_id: BOOT,
        wall_offset_ns: 0,
        ends: vec![end],
    }));
    assert_eq!(short(&ended), ["-30@1003.0"]);
    let next = tracker.observe(look(1005, vec![unchanged(1, 0), alive(30, 1003)]));
    assert_eq!(short(&next), ["+30@1003.1"]);
    assert_eq!(short(&tracker.observe(look(1010, vec![unchanged(1, 0)]))), ["-30@1003.1"]);
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
    tracker.observe(look(3001, vec![]));
    assert!(tracker.ended.lives.is_empty());
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

/// Threads of the kernel have names of which a tracepoint tells the beginning and `/proc` all.
#[test]
fn a_name_that_is_seen_cut_is_no_other_name() {
    let (whole, cut) = ("kworker/R-kvfree_rcu_reclaim", "kworker/R-kvfre");
    let named = |name: &str| Facts { name: Some(name.into()), ..*facts(2, name).unwrap() };
    let mut tracker = told();
    let life = (9, 2_000_000);
    let events = tracker.observe(seen(vec![at(2000, life, forked(1, cut))]));
    assert_eq!(process(&events[0]).name, Some(cut.into()));
    let mut observe = |micros, what| tracker.observe(seen(vec![at(micros, life, what)]));
    assert_eq!(observe(3000, What::Changed(Box::new(named(whole)))), []);
    assert_eq!(observe(4000, What::Found(Box::new(named(cut)))), []);
    let events = observe(5000, What::Found(Box::new(named("kworker/R-other"))));
    let ProcessEventKind::Modify { changes } = &process(&events[0]).kind else { panic!() };
    assert_eq!(changes, &[FieldChange::Name(Some(whole.into()))], "all of it is kept");
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
    tracker.encode(|_| false).encode_into(&mut bytes);
    Tracker::restore(&TableImage::decode(&bytes).unwrap())
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
    let image = first.encode(|_| false);
    logged.clear();
    let mut renamed = alive(1, 0);
    renamed.facts.as_mut().unwrap().name = Some("systemd".into());
    logged.extend(first.observe(look(1100, vec![renamed, unchanged(20, 500), alive(30, 1050)])));
    logged.extend(first.observe(look(1200, vec![unchanged(1, 0), unchanged(30, 1050)])));
    assert_eq!(logged.len(), 3);

    // Killed here. The next run knows what the first knew when it last told something.
    let mut second = Tracker::restore(&image);
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

/// Under pressure events are logged without their parents' keys and with their arguments cut.
#[test]
fn what_the_log_has_in_part_is_found_whole_again_and_is_no_change() {
    let child = || {
        let mut child = alive(20, 500);
        let argv = RawArgv::from_args(["tool", "with", "arguments"]).redact();
        child.facts.as_mut().unwrap().argv = Some(argv);
        child
    };
    let mut first = new();
    let logged = first.observe(look(1000, vec![alive(1, 0), child()]));
    let mut second = new();
    for event in &logged {
        let Event::Process(mut event) = event.clone() else { panic!("{event:?}") };
        event.parent_key = None;
        event.argv.as_mut().map(|argv| argv.cut(8));
        second.apply_logged(&Event::Process(event.clone()));
        event.kind = ProcessEventKind::Modify { changes: Vec::new() };
        second.apply_logged(&Event::Process(event));
    }
    assert_eq!(short(&second.observe(look(1100, vec![alive(1, 0), child()]))), [""; 0]);
    let stop = second.observe(look(1200, vec![unchanged(1, 0)]));
    let stop = process(&stop[0]);
    assert_eq!(stop.parent_key.map(|key| key.pid), Some(1));
    assert_eq!(stop.argv, process(&logged[1]).argv);
    let mut other = child();
    other.facts.as_mut().unwrap().argv = Some(RawArgv::from_args(["tool"]).redact());
    second.observe(look(1300, vec![child()]));
    assert_eq!(short(&second.observe(look(1400, vec![other]))), ["~20@500.1"]);
}

#[test]
fn other_bytes_are_not_a_table() {
    let mut tracker = new();
    tracker.observe(look(1000, vec![alive(1, 0), alive(20, 500)]));
    let mut bytes = Vec::new();
    tracker.encode(|_| false).encode_into(&mut bytes);
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

/// Something that happened so many microseconds after the first second since boot.
fn at(micros: u64, (pid, start_ns): (u32, u64), what: What) -> Happening {
    let precision = KeyPrecision::Nanosecond;
    Happening { pid, start_ns, precision, at_ns: 1_000_000_000 + micros * 1000, what }
}

fn seen(happenings: Vec<Happening>) -> Observation {
    let wall_offset_ns = 1_000_000_000_000;
    Observation::Seen(Happenings {
        source: SourceName::Ebpf,
        boot_id: BOOT,
        wall_offset_ns,
        happenings,
    })
}

fn forked(forker: u32, name: &str) -> What {
    let facts = facts(forker, name).unwrap();
    What::Forked { forker, inherits_group: true, facts }
}

fn executed(name: &str) -> What {
    let mut facts = facts(1, name).unwrap();
    facts.exe = Some(format!("/bin/{name}").as_str().into());
    What::Executed(facts)
}

fn exited(code: i32) -> What {
    let exit = Exit { exit_code: Some(code), ..Exit::default() };
    What::Exited(exit, Box::new(Facts::unknown(Completeness::Complete)))
}

/// A look by one who is told of what happens, begun so many microseconds after the first second.
fn look_of_told(micros: u64, processes: Vec<ObservedProcess>) -> Observation {
    let Observation::Snapshot(table) = look(100, processes) else { unreachable!() };
    let uptime_ns = 1_000_000_000 + micros * 1000;
    Observation::Snapshot(ProcessTable { is_told: true, uptime_ns, ..table })
}

/// A table that knows processes 1 and 20, from a look before anything else.
fn told() -> Tracker {
    let mut tracker = new();
    let first = tracker.observe(look_of_told(0, vec![alive(1, 0), alive(20, 50)]));
    assert_eq!(short(&first), ["=1@0.0", "=20@50.0"]);
    tracker
}

/// A life of pid 30 that began 1.001 s after boot.
const LIFE: (u32, u64) = (30, 1_001_000_000);

#[test]
fn a_program_that_was_not_seen_is_a_change_all_the_same() {
    let mut tracker = told();
    let first = vec![at(1000, LIFE, forked(20, "p20")), at(1200, LIFE, executed("tool"))];
    tracker.observe(seen(first));
    let before = tracker.get(30).unwrap().clone();
    let late = What::Executed(Box::new(Facts::unknown(Completeness::EnrichedLate)));
    let events = tracker.observe(seen(vec![at(2000, LIFE, late)]));
    assert_eq!(short(&events), ["~30@100.0"]);
    let event = process(&events[0]);
    let ProcessEventKind::Modify { changes } = &event.kind else { panic!("{event:?}") };
    assert!(changes.contains(&FieldChange::Exe(Some("/bin/tool".into()))), "{changes:?}");
    assert_eq!((&event.exe, &event.argv, &event.name), (&None, &None, &None));
    assert_eq!(
        (event.uid, event.ppid),
        (before.uid, before.ppid),
        "a program changes none of these"
    );
    assert_eq!(event.completeness, Completeness::EnrichedLate);
}

#[test]
fn what_is_told_of_changes_and_the_rest_stays() {
    let mut tracker = told();
    let first = vec![at(1000, LIFE, forked(20, "p20")), at(1200, LIFE, executed("tool"))];
    tracker.observe(seen(first));
    let before = tracker.get(30).unwrap().clone();
    let facts = Facts { uid: Some(77), ..Facts::unknown(Completeness::EnrichedLate) };
    let events = tracker.observe(seen(vec![at(2000, LIFE, What::Changed(Box::new(facts)))]));
    let event = process(&events[0]);
    let changes = vec![FieldChange::Uid(before.uid)];
    assert_eq!(event.kind, ProcessEventKind::Modify { changes });
    assert_eq!(
        (event.uid, &event.exe, event.completeness),
        (Some(77), &before.exe, before.completeness)
    );
}

#[test]
fn a_fork_and_the_program_it_runs_are_one_start() {
    let mut tracker = told();
    let rename = What::Renamed("tool".into());
    let events = tracker.observe(seen(vec![
        at(1000, LIFE, forked(20, "p20")),
        at(1100, LIFE, rename),
        at(1200, LIFE, executed("tool")),
        at(1300, LIFE, exited(3)),
    ]));
    assert_eq!(short(&events), ["+30@100.0", "-30@100.0"]);
    let start = process(&events[0]);
    assert_eq!(
        (start.name.clone(), start.exe.clone()),
        (Some("tool".into()), Some("/bin/tool".into()))
    );
    assert_eq!(start.parent_key.map(|key| key.pid), Some(1), "what the program's record says");
    assert_eq!((start.monotonic_ns, start.time_ns), (Some(1_001_000_000), 1_001_001_000_000));
    assert_eq!(start.key_precision, KeyPrecision::Nanosecond);
    let ProcessEventKind::Stop(exit) = process(&events[1]).kind else { panic!("a stop") };
    assert_eq!(exit.exit_code, Some(3));
    assert_eq!(tracker.len(), 2);
}

#[test]
fn a_fork_that_runs_no_program_has_what_its_maker_has() {
    let mut tracker = told();
    tracker.observe(seen(vec![at(100, (20, 500_000_000), executed("shell"))]));
    let events = tracker.observe(seen(vec![at(1000, LIFE, forked(20, "shell"))]));
    assert_eq!(short(&events), ["+30@100.0"]);
    let start = process(&events[0]);
    assert_eq!(start.exe, Some("/bin/shell".into()));
    assert_eq!(start.parent_key.map(|key| key.pid), Some(20));
    // A program in a later batch is a change, with what was before.
    let events = tracker.observe(seen(vec![at(1100, LIFE, executed("tool"))]));
    assert_eq!(short(&events), ["~30@100.0"]);
    let ProcessEventKind::Modify { changes } = &process(&events[0]).kind else { panic!() };
    assert!(changes.contains(&FieldChange::Exe(Some("/bin/shell".into()))), "{changes:?}");
}

#[test]
fn a_second_program_and_a_new_name_are_changes() {
    let mut tracker = told();
    let events = tracker.observe(seen(vec![
        at(1000, LIFE, forked(20, "p20")),
        at(1100, LIFE, executed("one")),
        at(1200, LIFE, executed("two")),
        at(1300, LIFE, What::Renamed("worker".into())),
        at(1400, LIFE, What::Renamed("worker".into())),
        at(1500, LIFE, What::Moved { cgroup: "/box".into(), container_id: None }),
    ]));
    assert_eq!(short(&events), ["+30@100.0", "~30@100.0", "~30@100.0", "~30@100.0"]);
    let known = tracker.get(30).unwrap();
    assert_eq!(
        (known.name.clone(), known.cgroup.clone()),
        (Some("worker".into()), Some("/box".into()))
    );
}

/// No tracepoint tells of another user: it is told by whatever is told next.
#[test]
fn what_a_process_has_become_is_told_before_it_ends() {
    let became = |uid| {
        let mut facts = Facts::unknown(Completeness::Complete);
        facts.uid = Some(uid);
        Box::new(facts)
    };
    let mut tracker = told();
    tracker.observe(seen(vec![at(1000, LIFE, forked(20, "p20"))]));
    let events = tracker.observe(seen(vec![
        at(1100, LIFE, executed("tool")),
        at(1200, LIFE, What::Found(became(7))),
        at(1250, LIFE, What::Found(became(7))),
        at(1300, LIFE, What::Exited(Exit::default(), became(0))),
    ]));
    assert_eq!(short(&events), ["~30@100.0", "~30@100.0", "~30@100.0", "-30@100.0"]);
    let changes = |event| match &process(event).kind {
        ProcessEventKind::Modify { changes } => changes.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(changes(&events[1]), [FieldChange::Uid(Some(1000))]);
    assert_eq!(changes(&events[2]), [FieldChange::Uid(Some(7))]);
    let stop = process(&events[3]);
    assert_eq!((stop.uid, stop.name.clone()), (Some(0), Some("tool".into())));
    assert_eq!(stop.exe, Some("/bin/tool".into()), "what is not of the process stays");
}

/// A look that knows nanoseconds tells two lives apart that began within the same 10 ms, and knows
/// the one that was told.
#[test]
fn c2_a_look_in_nanoseconds_knows_which_life_it_sees() {
    let listed = |pid, start_ns| ObservedProcess {
        start_ns: Some(start_ns),
        ..unchanged(pid, start_ns / CENTI_NS)
    };
    let mut tracker = new();
    let there = vec![listed(20, 500_000_000), listed(21, 500_000_001)];
    assert_eq!(short(&tracker.observe(look_of_told(0, there))), ["=20@50.0", "=21@50.0"]);
    tracker.observe(seen(vec![at(1000, LIFE, forked(20, "p20"))]));
    let there = vec![listed(20, 500_000_000), listed(21, 500_000_002), listed(30, LIFE.1)];
    let events = tracker.observe(look_of_told(30_000, there));
    assert_eq!(short(&events), ["?21@50.0", "!21@50.1"]);
    // Something that is told is of the life that was listed.
    let events = tracker.observe(seen(vec![
        at(50_000, (20, 500_000_000), exited(0)),
        at(50_001, (21, 500_000_002), exited(0)),
    ]));
    assert_eq!(short(&events), ["-20@50.0", "-21@50.1"]);
}

/// Two lives of one pid that began within the same 10 ms.
#[test]
fn c2_lives_that_began_in_one_tick_are_told_apart() {
    let mut tracker = told();
    let again = (30, LIFE.1 + 1);
    let events = tracker.observe(seen(vec![
        at(1000, LIFE, forked(20, "p20")),
        at(1100, LIFE, exited(0)),
        at(1200, again, forked(20, "p20")),
        // Two threads that end at once may both tell.
        at(1250, LIFE, exited(0)),
        at(1300, again, exited(1)),
        at(1400, again, exited(1)),
    ]));
    assert_eq!(short(&events), ["+30@100.0", "-30@100.0", "+30@100.1", "-30@100.1"]);
}

#[test]
fn c2_a_pid_whose_end_was_not_told_is_ended_by_the_next_life() {
    let mut tracker = told();
    let again = (30, LIFE.1 + 20_000_000);
    let events = tracker.observe(seen(vec![
        at(1000, LIFE, forked(20, "p20")),
        at(22_000, again, forked(20, "p20")),
        at(22_100, LIFE, What::Renamed("late".into())),
    ]));
    assert_eq!(short(&events), ["+30@100.0", "?30@100.0", "+30@102.0"]);
}

/// What was not told shows in a look, and is marked.
#[test]
fn c1_a_look_makes_up_for_what_nobody_could_be_told() {
    let mut tracker = told();
    tracker.observe(seen(vec![at(1000, LIFE, forked(20, "p20"))]));
    let overrun = Overrun { missing: 5, sorts: None, since_ns: 7, until_ns: 9 };
    let [Event::Gap(gap)] = &tracker.observe(Observation::Overrun(overrun))[..] else { panic!() };
    assert_eq!((gap.reason, gap.missing), (GapReason::CaptureOverrun, Some(5)));
    assert_eq!((gap.since_ns, gap.until_ns), (Some(7), Some(9)));
    let sorts = Some(Missing { starts: 1, changes: 2, stops: 3 });
    let overrun = Overrun { missing: 6, sorts, ..overrun };
    let [Event::Gap(gap)] = &tracker.observe(Observation::Overrun(overrun))[..] else { panic!() };
    assert!(gap.detail.contains("tell of 1 starts, 3 ends and 2 changes;"), "{}", gap.detail);
    let there = vec![unchanged(1, 0), unchanged(20, 50), alive(40, 101), over(41, 101)];
    let events = tracker.observe(look_of_told(30_000, there.clone()));
    assert_eq!(short(&events), ["?30@100.0", "!40@101.0"]);
    assert_eq!(short(&tracker.observe(look_of_told(40_000, there))), [""; 0]);
    // One that was found so is the same when something is told of it.
    let events = tracker.observe(seen(vec![at(50_000, (40, 1_010_000_123), exited(0))]));
    assert_eq!(short(&events), ["-40@101.0"]);
}

/// A look takes a while, and what happens meanwhile is told before what it saw.
#[test]
fn c1_a_look_that_is_older_than_what_was_told_changes_nothing() {
    let mut tracker = told();
    tracker.observe(seen(vec![at(100, (50, 900_000_000), forked(1, "p1"))]));
    let began = 5000;
    let events = tracker.observe(seen(vec![
        // Began after its place in the list had been passed.
        at(6000, LIFE, forked(20, "p20")),
        // Ended after it was listed, as did another life of a pid that lives again.
        at(6100, (50, 900_000_000), exited(0)),
        at(6200, (20, 500_000_000), exited(0)),
        at(6300, (20, 1_006_300_000), forked(1, "p1")),
    ]));
    assert_eq!(short(&events), ["+30@100.0", "-50@90.0", "-20@50.0", "+20@100.0"]);
    let listed = vec![alive(1, 0), alive(20, 50), alive(50, 90)];
    assert_eq!(short(&tracker.observe(look_of_told(began, listed))), [""; 0]);
    assert_eq!(tracker.len(), 3);
}

/// What the first look found ended is not told of; what it had done just before that was.
#[test]
fn c1_of_what_had_ended_before_the_first_look_nothing_is_told() {
    let mut tracker = new();
    assert_eq!(
        short(&tracker.observe(look_of_told(500, vec![alive(1, 0), over(30, 100)]))),
        ["=1@0.0"]
    );
    let events = tracker.observe(seen(vec![
        at(100, LIFE, executed("tool")),
        at(200, LIFE, What::Renamed("other".into())),
        at(300, LIFE, exited(0)),
    ]));
    assert_eq!(short(&events), [""; 0]);
}

#[test]
fn c1_what_is_told_of_a_process_before_the_first_look_shows_that_it_was_there() {
    let mut tracker = new();
    let events = tracker
        .observe(seen(vec![at(10, (20, 500_000_000), exited(0)), at(20, LIFE, forked(1, "p1"))]));
    assert_eq!(short(&events), ["=20@50.0", "-20@50.0", "+30@100.0"]);
    // Of one whose start found no room, there is a start as well.
    let mut tracker = told();
    let events = tracker.observe(seen(vec![at(2000, LIFE, exited(0))]));
    assert_eq!(short(&events), ["!30@100.0", "-30@100.0"]);
}
