//! Processes that are gone within a millisecond, seen by the kernel's tracepoints.

#![cfg(target_os = "linux")]

use std::process::Command;
use std::thread;

use daemoneye_tests::{Agent, AgentBuilder, beside_others, signal_pid, until};
use rustix::process::Signal;

const WORKERS: usize = 4;

/// Whether the kernel lets us in; where it must and does not, that is a failure.
fn can_use_ebpf() -> bool {
    let Err(error) = procmond::source::probe_ebpf() else { return true };
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true" || !is_root()), "{error}");
    eprintln!("skipped: {error}");
    false
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn count() -> usize {
    std::env::var("E2E_PROCESSES").map_or(10_000, |count| count.parse().expect("a number"))
}

/// Four workers run so many processes to their ends, each with a mark and a number.
fn spawn(mark: &str, count: usize) -> Vec<thread::JoinHandle<()>> {
    (0..WORKERS)
        .map(|worker| {
            let mark = mark.to_owned();
            thread::spawn(move || {
                for n in (worker..count).step_by(WORKERS) {
                    let status = Command::new("/bin/true").args([&mark, &n.to_string()]).status();
                    assert!(status.expect("/bin/true runs").success());
                }
            })
        })
        .collect()
}

/// Every one has one start and one stop in the store, with all of its arguments.
fn is_complete(agent: &Agent, mark: &str, count: usize) {
    let store = agent.store();
    let ours = format!("cmdline LIKE '/bin/true {mark} %'");
    let stops = format!("topic = 'events.process.stop' AND {ours}");
    until("every stop is in the store", || {
        store.number(&format!("SELECT count(*) FROM events WHERE {stops}")) >= count as u64
    });
    let each = |what: &str| {
        let distinct = format!("SELECT count(DISTINCT {what}) FROM events WHERE {stops}");
        store.number(&distinct)
    };
    assert_eq!(each("cmdline"), count as u64, "every process with its arguments");
    assert_eq!(each("process_key"), count as u64, "and a key of its own");
    let keys = format!("SELECT process_key FROM events WHERE {stops}");
    let of_them = |topic: &str| {
        let rows = format!("topic = 'events.process.{topic}' AND process_key IN ({keys})");
        store.number(&format!("SELECT count(*) FROM events WHERE {rows}"))
    };
    assert_eq!((of_them("start"), of_them("stop")), (count as u64, count as u64));
    let losses = "topic = 'events.process.gap' AND event LIKE '%capture_overrun%'";
    assert_eq!(store.number(&format!("SELECT count(*) FROM events WHERE {losses}")), 0);
}

#[test]
fn c1_every_short_life_is_in_the_store() {
    if !can_use_ebpf() {
        return;
    }
    let _others = beside_others();
    let agent = AgentBuilder::default().env("PROCMOND_MONITOR__SOURCE", "ebpf").start();
    agent.monitoring();
    let (mark, count) = (format!("short-{}", std::process::id()), count());
    for worker in spawn(&mark, count) {
        worker.join().expect("the worker ends");
    }
    is_complete(&agent, &mark, count);
    assert!(agent.stop().success());
}

/// A procmond that is stopped for a while finds what happened meanwhile in the kernel's ring.
#[test]
fn c1_a_stopped_procmond_misses_nothing_that_the_ring_holds() {
    if !can_use_ebpf() {
        return;
    }
    let _others = beside_others();
    let agent = AgentBuilder::default()
        .env("PROCMOND_MONITOR__SOURCE", "ebpf")
        .env("PROCMOND_MONITOR__RING_BYTES", 16 << 20)
        .start();
    let procmond = agent.monitoring();
    let (mark, count) = (format!("stopped-{}", std::process::id()), count() / 4);
    signal_pid(procmond, Signal::STOP);
    for worker in spawn(&mark, count) {
        worker.join().expect("the worker ends");
    }
    signal_pid(procmond, Signal::CONT);
    is_complete(&agent, &mark, count);
    assert!(agent.stop().success());
}
