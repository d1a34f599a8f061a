use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision, SourceName};
use uuid::Uuid;

use super::super::TableImage;
use super::*;
use crate::source::{Facts, Observation, ObservedProcess, ProcessTable};

/// A process with this parent, that began when its pid says; of the first, nothing came before.
fn process(pid: u32, ppid: u32) -> ObservedProcess {
    let mut facts = Facts::unknown(Completeness::Complete);
    facts.ppid = Some(ppid);
    facts.name = Some(format!("p{pid}").as_str().into());
    ObservedProcess {
        pid,
        start_centis: pid.into(),
        start_ns: None,
        facts: Some(Box::new(facts)),
        ended: None,
    }
}

fn over(pid: u32, ppid: u32) -> ObservedProcess {
    ObservedProcess { ended: Some(Exit::default()), ..process(pid, ppid) }
}

fn look(uptime_centis: u64, processes: Vec<ObservedProcess>) -> Observation {
    Observation::Snapshot(ProcessTable {
        source: SourceName::Poll,
        is_told: false,
        boot_id: Uuid::nil(),
        precision: KeyPrecision::Tick,
        time_ns: 0,
        uptime_ns: uptime_centis * 10_000_000,
        processes,
    })
}

fn names(ancestors: &[Ancestor<'_>]) -> Vec<String> {
    let name = |ancestor: &Ancestor<'_>| {
        ancestor.name.map_or_else(|| format!("?{}", ancestor.pid), ToString::to_string)
    };
    ancestors.iter().map(name).collect()
}

#[test]
fn a_chain_goes_from_the_parent_to_the_first_process() {
    let mut tracker = Tracker::new();
    tracker.observe(look(99, vec![process(1, 0), process(5, 1), process(9, 5), process(7, 1)]));
    assert_eq!(names(&tracker.ancestry(9)), ["p5", "p1"]);
    assert_eq!(names(&tracker.ancestry(7)), ["p1"]);
    assert!(tracker.ancestry(1).is_empty());
    assert!(tracker.ancestry(4711).is_empty(), "nobody has this pid");
    let json = serde_json::to_string(&tracker.ancestry(9)).unwrap();
    assert_eq!(
        json,
        r#"[{"pid":5,"name":"p5","process_key":"00000000-5-5.0"},{"pid":1,"name":"p1","process_key":"00000000-1-1.0"}]"#
    );
}

#[test]
fn a_parent_that_has_ended_ends_the_chain_unless_it_is_remembered() {
    let mut tracker = Tracker::new();
    let mut departed = Departed::default();
    tracker.observe(look(50, vec![process(1, 0), process(5, 1), process(9, 5)]));
    // Both in one look: who asks of the child is told by a table without its parent.
    let events = tracker.observe(look(99, vec![process(1, 0), over(9, 5)]));
    assert_eq!(events.len(), 2, "{events:#?}");
    let Some(Event::Process(child)) =
        events.iter().find(|event| matches!(event, Event::Process(event) if event.pid() == 9))
    else {
        panic!("{events:#?}")
    };
    assert_eq!(names(&tracker.ancestry_of(child, &departed)), ["?5"]);
    departed.note(&events);
    assert_eq!(names(&tracker.ancestry_of(child, &departed)), ["p5", "p1"]);
}

#[test]
fn another_process_with_the_parents_pid_is_not_the_parent() {
    let mut tracker = Tracker::new();
    tracker.observe(look(50, vec![process(1, 0), process(5, 1), process(9, 5)]));
    let mut reused = process(5, 1);
    reused.start_centis = 60;
    reused.facts.as_mut().unwrap().name = Some("intruder".into());
    tracker.observe(look(99, vec![process(1, 0), reused, process(9, 5)]));
    assert_eq!(names(&tracker.ancestry(5)), ["p1"]);
    assert_eq!(names(&tracker.ancestry(9)), ["?5"]);
}

/// No source gives such a table; a snapshot that somebody wrote may.
#[test]
fn a_table_that_goes_round_in_circles_does_not() {
    let mut tracker = Tracker::new();
    tracker.observe(look(
        99,
        vec![process(1, 0), process(2, 1), process(3, 2), process(4, 3), process(5, 4)],
    ));
    let TableImage { seen_until, mut starts, ended } = tracker.encode(|_| false);
    let key = |pid: u32| starts.iter().find(|start| start.pid() == pid).map(|start| start.key);
    let fourth = key(4);
    for start in &mut starts {
        match start.pid() {
            // 2 → 4 → 3 → 2, and 1 its own parent.
            2 => start.parent_key = fourth,
            1 => start.parent_key = Some(start.key),
            _ => {}
        }
    }
    let tracker = Tracker::restore(&TableImage { seen_until, starts, ended });
    assert_eq!(names(&tracker.ancestry(2)), ["p4", "p3"]);
    assert_eq!(names(&tracker.ancestry(3)), ["p2", "p4"]);
    assert_eq!(names(&tracker.ancestry(5)), ["p4", "p3", "p2"]);
    assert!(tracker.ancestry(1).is_empty());
}

#[test]
fn a_long_chain_is_cut_and_what_ended_long_ago_is_forgotten() {
    let mut tracker = Tracker::new();
    let last = ANCESTORS_MAX as u32 * 3;
    tracker.observe(look(999, (1..=last).map(|pid| process(pid, pid - 1)).collect()));
    let ancestry = tracker.ancestry(last);
    assert_eq!((ancestry.len(), ancestry[0].pid), (ANCESTORS_MAX, last - 1));

    let mut departed = Departed::default();
    let stops = tracker.observe(look(1000, Vec::new()));
    assert_eq!(stops.len(), last as usize);
    for round in 0..ENDED_MAX {
        let Event::Process(mut stop) = stops[round % stops.len()].clone() else { panic!("a gap") };
        stop.key.generation = round as u32;
        departed.note(&[Event::Process(stop)]);
    }
    departed.note(&stops[..1]);
    assert!(departed.links.len() <= ENDED_MAX && departed.order.len() <= ENDED_MAX);
    departed.note(&stops);
    assert_eq!(departed.links.len(), departed.order.len());
}
