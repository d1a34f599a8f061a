use std::collections::BTreeMap;

use daemoneye_tests::{AgentBuilder, Marked, beside_others, until};

const PROCESSES: usize = 200;

/// Two hundred processes start and end: the store holds exactly their starts and stops, with
/// matching keys and the right facts, and no hole or duplicate anywhere.
#[test]
fn main_job() {
    let _others = beside_others();
    let agent = AgentBuilder::default().env("PROCMOND_MONITOR__INTERVAL_MS", 100).start();
    agent.monitoring();
    let store = agent.store();

    let tag = format!("main-job-{}", std::process::id());
    let marked = Marked::start(&tag, PROCESSES, &[]);
    let pids: BTreeMap<u32, String> =
        marked.pids().map(|(mark, pid)| (pid, mark.to_owned())).collect();
    let shell = std::fs::canonicalize("/bin/sh").expect("a shell");
    // A look that catches a process between fork and exec reports the rest as a modify.
    let seen = format!(
        "topic IN ('events.process.start', 'events.process.modify') AND cmdline LIKE '%{tag}-%'"
    );
    until("every process is seen with its arguments", || {
        store.number(&format!("SELECT count(DISTINCT pid) FROM events WHERE {seen}"))
            == PROCESSES as u64
    });
    marked.end();
    let keys = format!("SELECT process_key FROM events WHERE {seen}");
    let stops = format!("topic = 'events.process.stop' AND process_key IN ({keys})");
    until("every process is seen to end", || {
        store.number(&format!("SELECT count(*) FROM events WHERE {stops}")) == PROCESSES as u64
    });
    assert!(agent.stop().success());

    let starts = store.rows(&format!("topic = 'events.process.start' AND process_key IN ({keys})"));
    let stops = store.rows(&stops);
    assert_eq!((starts.len(), stops.len()), (PROCESSES, PROCESSES));
    let stops: BTreeMap<_, _> =
        stops.into_iter().map(|row| (row.process_key.clone(), row)).collect();
    assert_eq!(stops.len(), PROCESSES, "each stop has a key of its own");
    let described = store.rows(&seen);
    for start in &starts {
        let pid = start.pid.expect("a pid");
        let mark = &pids[&pid];
        let stop = &stops[&start.process_key];
        assert_eq!(stop.pid, Some(pid));
        assert!(stop.sequence > start.sequence);
        assert_eq!(start.event["existing"], false, "{mark}");
        let full = described
            .iter()
            .find(|row| row.process_key == start.process_key)
            .unwrap_or_else(|| panic!("{mark} is described"));
        let argv = serde_json::json!(["/bin/sh", "-c", "read line", mark]);
        assert_eq!(full.event["argv"], argv);
        for row in [full, stop] {
            assert_eq!(row.ppid, Some(std::process::id()), "{mark}");
            assert_eq!(row.uid, Some(rustix::process::getuid().as_raw()), "{mark}");
            assert_eq!(row.exe.as_deref(), shell.to_str(), "{mark}");
        }
    }
    store.assert_contiguous();
}
