use std::collections::{BTreeMap, BTreeSet};

use daemoneye_tests::{
    Agent, AgentBuilder, Marked, Store, beside_others, lock_holder, signal_pid, until,
};
use rustix::process::Signal;

const ROUNDS: usize = 3;
const PROCESSES: usize = 8;

/// procmond is killed, and while it is away processes end and others begin: afterwards each has
/// exactly one start and one stop of the same key, and of those that ended meanwhile the stop is
/// marked as inferred.
#[test]
fn procmond_restart() {
    let _others = beside_others();
    let agent = AgentBuilder::default()
        .env("PROCMOND_MONITOR__INTERVAL_MS", 50)
        .env("DAEMONEYE_COLLECTORS__RESTART_MAX_MS", 100)
        .start();
    agent.monitoring();
    let store = agent.store();

    let mut marks = BTreeMap::new();
    for round in 0..ROUNDS {
        let tag = |which: &str| format!("reconciled-{}-{round}-{which}", std::process::id());
        let mut start = |which: &str| {
            let processes = Marked::start(&tag(which), PROCESSES, &[]);
            marks.extend(processes.pids().map(|(mark, pid)| (mark.to_owned(), pid)));
            processes
        };
        let (gone, stays) = (start("gone"), start("stays"));
        seen(&store, &tag("gone"));
        seen(&store, &tag("stays"));

        // Stopped, the agent cannot start another.
        agent.signal(Signal::STOP);
        kill_procmond(&agent);
        gone.end();
        let late = start("late");
        agent.signal(Signal::CONT);

        seen(&store, &tag("late"));
        let after = start("after");
        seen(&store, &tag("after"));
        for processes in [stays, late, after] {
            processes.end();
        }
        for which in ["gone", "stays", "late", "after"] {
            until("each process is seen to end", || ended(&store, &tag(which)) == PROCESSES);
        }
    }
    assert!(agent.stop().success());

    assert_eq!(marks.len(), ROUNDS * PROCESSES * 4);
    for (mark, pid) in marks {
        let keys = keys(&store, &mark);
        let key = keys.first().filter(|_| keys.len() == 1);
        let key = key.unwrap_or_else(|| panic!("{mark} has one key, not {keys:?}"));
        let rows = store.rows(&format!(
            "process_key = '{key}' AND topic IN ('events.process.start', 'events.process.stop')"
        ));
        let [start, stop] = &rows[..] else {
            panic!("{mark} has one start and one stop: {rows:?}")
        };
        assert_eq!(
            (&*start.topic, &*stop.topic),
            ("events.process.start", "events.process.stop"),
            "{mark}"
        );
        assert_eq!((start.pid, stop.pid), (Some(pid), Some(pid)), "{mark}");
        assert_eq!(start.event["existing"], false, "{mark}");
        assert_eq!(stop.event["inferred"], mark.contains("-gone-"), "{mark}");
    }
    // Nobody is told of us again after a restart.
    let ours = format!("topic = 'events.process.start' AND pid = {}", std::process::id());
    let ours = store.rows(&ours);
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert_eq!(ours[0].event["existing"], true);
    store.assert_contiguous();
}

/// The keys under which a process with this mark was described: in its start, or in a modify if
/// the look fell between fork and exec.
fn described(mark: &str) -> String {
    format!(
        "topic IN ('events.process.start', 'events.process.modify') AND cmdline LIKE '%{mark}%'"
    )
}

fn keys(store: &Store, mark: &str) -> BTreeSet<String> {
    store.rows(&described(mark)).into_iter().filter_map(|row| row.process_key).collect()
}

fn seen(store: &Store, tag: &str) {
    until("each process is seen with its arguments", || keys(store, tag).len() == PROCESSES);
}

fn ended(store: &Store, tag: &str) -> usize {
    let described = described(tag);
    let stops = store.rows(&format!(
        "topic = 'events.process.stop' AND process_key IN
         (SELECT process_key FROM events WHERE {described})"
    ));
    stops.len()
}

fn kill_procmond(agent: &Agent) {
    let wal_dir = agent.setup().wal_dir();
    let pid = lock_holder(&wal_dir).expect("a procmond runs");
    signal_pid(pid, Signal::KILL);
    until("procmond is dead", || lock_holder(&wal_dir).is_none());
}
