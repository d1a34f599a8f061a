use std::path::Path;

use daemoneye_tests::{
    Agent, AgentBuilder, Guarded, Marked, beside_others, bin, lock_holder, signal, until,
};
use rustix::process::Signal;

fn setup() -> AgentBuilder {
    AgentBuilder::default().env("PROCMOND_MONITOR__INTERVAL_MS", 50)
}

/// Runs processes with this tag and waits until the store has seen them come and go.
fn live_through(agent: &Agent, tag: &str) {
    agent.monitoring();
    let store = agent.store();
    let marked = Marked::start(tag, 5, &[]);
    let seen = |topic: &str| {
        let condition = format!("topic = 'events.process.{topic}' AND cmdline LIKE '%{tag}-%'");
        store.number(&format!("SELECT count(DISTINCT process_key) FROM events WHERE {condition}"))
    };
    until("the starts are stored", || seen("start") == 5);
    marked.end();
    until("the stops are stored", || seen("stop") == 5);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a new directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// The streams in the order in which they first reached the store.
fn streams(agent: &AgentBuilder) -> Vec<String> {
    let store = agent.store();
    let mut firsts: Vec<(u64, String)> = store
        .committed()
        .into_keys()
        .map(|stream| {
            let sql = format!("SELECT min(rowid) FROM events WHERE stream = '{stream}'");
            (store.number(&sql), stream)
        })
        .collect();
    firsts.sort();
    firsts.into_iter().map(|(_, stream)| stream).collect()
}

fn first_event(agent: &AgentBuilder, stream: &str) -> serde_json::Value {
    let rows = agent.store().rows(&format!("stream = '{stream}' AND sequence = 1"));
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].topic, "events.process.gap");
    rows[0].event.clone()
}

fn log_lines(agent: &AgentBuilder) -> String {
    std::fs::read_to_string(agent.log_path()).expect("the agent's log")
}

/// The log is wiped under a store that has it: another stream begins, and says so.
#[test]
fn log_replaced_by_nothing() {
    let _others = beside_others();
    let setup = setup();
    let agent = setup.start();
    live_through(&agent, "before-the-wipe");
    assert!(agent.stop().success());
    let before = setup.store().assert_contiguous();

    std::fs::remove_dir_all(setup.wal_dir()).expect("the log is wiped");
    let agent = setup.start();
    live_through(&agent, "after-the-wipe");
    assert!(agent.stop().success());

    let after = setup.store().assert_contiguous();
    assert_eq!(after.len(), 2);
    for (stream, committed) in &before {
        assert_eq!(after[stream], *committed, "what was stored stays as it is");
    }
    let streams = streams(&setup);
    assert_eq!(first_event(&setup, &streams[1])["reason"], "stream_began");
    let log = log_lines(&setup);
    assert!(log.contains("was replaced") && log.contains(&streams[0]), "{log}");
}

/// Lets a log and its store go on for two days and puts the first day's log back. Gives what the
/// store has.
fn yesterday_again(setup: &AgentBuilder) -> std::collections::BTreeMap<String, u64> {
    let yesterday = setup.state_dir().join("yesterday");
    let agent = setup.start();
    live_through(&agent, "yesterday");
    assert!(agent.stop().success());
    copy(&setup.wal_dir(), &yesterday);
    let agent = setup.start();
    live_through(&agent, "today");
    assert!(agent.stop().success());
    let before = setup.store().assert_contiguous();
    assert_eq!(before.len(), 1);

    std::fs::remove_dir_all(setup.wal_dir()).expect("the log is removed");
    copy(&yesterday, &setup.wal_dir());
    before
}

/// Yesterday's copy of the log takes its place, under a store that has gone on since.
#[test]
fn log_replaced_by_an_old_copy() {
    let _others = beside_others();
    let setup = setup();
    let before = yesterday_again(&setup);
    let agent = setup.start();
    live_through(&agent, "after-the-restore");
    assert!(agent.stop().success());
    the_break_is_visible(&setup, &before, "after-the-restore");
}

/// The copy goes on alone past everything the store has, before it meets the store: only the
/// epochs can tell that its sequences are not the ones the store knows.
#[test]
fn log_replaced_by_an_old_copy_that_went_on() {
    let _others = beside_others();
    let setup = setup();
    let before = yesterday_again(&setup);
    let last = *before.values().next().expect("a stream");
    let alone = std::process::Command::new(bin("procmond"))
        .args(["run", "--interval", "0.05", "--wal-dir"])
        .arg(setup.wal_dir())
        .env("DAEMONEYE_BROKER_SOCKET", setup.socket())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("procmond can be started");
    let mut alone = Guarded::new(alone);
    until("procmond runs alone", || lock_holder(&setup.wal_dir()) == Some(alone.id()));
    // Each round adds two events at least, until the copy is well past the store.
    let logged = || {
        let output = std::process::Command::new(bin("procmond"))
            .args(["wal", "inspect", "--json", "--dir"])
            .arg(setup.wal_dir())
            .output()
            .expect("inspect can be run");
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let lasts = text.lines().filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).ok()?["last"].as_u64()
        });
        lasts.max().unwrap_or(0)
    };
    until("the copy is past the store", || {
        Marked::start("alone", 20, &[]).end_after_a_look(logged);
        logged() > last + 10
    });
    signal(&alone, Signal::TERM);
    assert!(alone.wait().expect("procmond ends").success());

    let agent = setup.start();
    live_through(&agent, "after-the-fork");
    assert!(agent.stop().success());
    the_break_is_visible(&setup, &before, "alone");
}

fn the_break_is_visible(
    setup: &AgentBuilder,
    before: &std::collections::BTreeMap<String, u64>,
    new: &str,
) {
    let store = setup.store();
    let after = store.assert_contiguous();
    assert_eq!(after.len(), 2, "a new stream begins");
    for (stream, committed) in before {
        assert_eq!(after[stream], *committed, "what was stored stays as it is");
    }
    let streams = streams(setup);
    assert_eq!(first_event(setup, &streams[1])["reason"], "log_replaced");
    let condition = format!(
        "topic = 'events.process.start' AND cmdline LIKE '%{new}-%' AND stream = '{}'",
        streams[1]
    );
    assert!(
        store.number(&format!("SELECT count(*) FROM events WHERE {condition}")) >= 5,
        "nothing new was taken for old"
    );
    assert!(log_lines(setup).contains("was replaced"));
}
