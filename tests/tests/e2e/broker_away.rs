use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use daemoneye_tests::{
    AgentBuilder, Marked, alone, lock_holder, peak_resident_bytes, until, until_some,
};
use serde_json::Value;

/// 10 MB, the default of `buffer.max_bytes`.
const WINDOW_BYTES: u64 = 10_000_000;
/// Each start carries this much in one argument; a stop carries it again.
const ARGUMENT_BYTES: usize = 16 * 1024;
const PROCESSES: usize = 800;
const EVENTS: u64 = PROCESSES as u64;

/// The agent is away while more than 10 MB is produced. The window stays within its limit, there
/// is one Engage and one Release, and after the return everything arrives once, in order, the
/// first of it within a second.
#[test]
fn broker_away() {
    let _alone = alone();
    // What is produced is counted by its starts: a source that sees more tells some of them in two.
    // How much is logged is read off the files, so none is written ahead.
    let setup = AgentBuilder::default()
        .env("PROCMOND_WAL__PREPARE", "false")
        .env("PROCMOND_MONITOR__SOURCE", "poll")
        .env("PROCMOND_MONITOR__INTERVAL_MS", 100);
    let agent = setup.start();
    let pid = agent.monitoring();
    let before = agent.store().number("SELECT count(*) FROM events");

    // An ordinary end would take procmond along; this is an agent that crashed.
    let setup = agent.kill();
    let tag = format!("broker-away-{}", std::process::id());
    let filler = "x".repeat(ARGUMENT_BYTES);
    let marked = Marked::start(&tag, PROCESSES, &[&filler]);
    let log_bytes = || -> u64 {
        let entries = std::fs::read_dir(setup.wal_dir()).expect("the log directory");
        let sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
        sizes.sum()
    };
    until("more than the window is logged", || log_bytes() > WINDOW_BYTES + WINDOW_BYTES / 4);
    assert_eq!(lock_holder(&setup.wal_dir()), Some(pid), "procmond goes on alone");

    let agent = setup.start();
    let returned = until_some("the broker is back", || {
        UnixStream::connect(setup.socket()).ok().map(|_| Instant::now())
    });
    let store = setup.store();
    let first = until_some("the first event arrives", || {
        (store.number("SELECT count(*) FROM events") > before).then(Instant::now)
    });
    let after = first - returned;
    assert!(after <= Duration::from_secs(1), "the first event took {after:?}");

    assert_eq!(agent.monitoring(), pid, "the agent adopts the procmond that is there");
    let seen = format!("topic = 'events.process.%s' AND cmdline LIKE '%{tag}-%'");
    let count = |what: &str| {
        let condition = seen.replace("%s", what);
        store.number(&format!("SELECT count(*) FROM events WHERE {condition}"))
    };
    let collector = until_some("everything is delivered and pressure is over", || {
        let collector = agent.collector()?;
        (number(&collector, "backlog_bytes") < WINDOW_BYTES / 2 && count("start") == EVENTS)
            .then_some(collector)
    });
    assert_eq!(number(&collector, "engaged_total"), 1);
    assert_eq!(number(&collector, "released_total"), 1);
    let shed = &collector["health"]["shed"];
    assert_eq!(shed["argument_tails_total"].as_u64(), Some(0), "the log had room: {shed}");
    let peak = number(&collector, "window_bytes_peak");
    assert!(peak <= WINDOW_BYTES, "the window held {peak} bytes");
    assert!(peak > WINDOW_BYTES * 9 / 10, "the window was never full: {peak} bytes");
    let resident = peak_resident_bytes(pid);
    assert!(resident < 8 * WINDOW_BYTES, "procmond took {resident} bytes of memory");

    marked.end();
    until("every stop arrives", || count("stop") == EVENTS);
    assert!(agent.stop().success());

    assert_eq!((count("start"), count("stop")), (EVENTS, EVENTS));
    let streams = store.assert_contiguous();
    assert_eq!(streams.len(), 1);
    // Arrival order is the order of row ids.
    let disorder = "SELECT count(*) FROM events a JOIN events b ON b.rowid = a.rowid + 1
                    WHERE b.sequence <> a.sequence + 1";
    assert_eq!(store.number(disorder), 0, "everything arrives in order");
}

fn number(collector: &Value, name: &str) -> u64 {
    collector["health"]["connector"][name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} is a number in {collector}"))
}
