//! What only the process connector tells, on the real kernel.

#![cfg(target_os = "linux")]

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{
    Completeness, FieldChange, KeyPrecision, ProcessEvent, ProcessEventKind, SourceName,
};
use procmond::monitor::tracker::Tracker;
use procmond::source::{Observation, SourceOptions, Started, probe_netlink, start};

const PATIENCE: Duration = Duration::from_secs(30);

/// The source, if it works here, and what it has seen first.
fn source() -> Option<(Started, Tracker)> {
    if let Err(error) = probe_netlink() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
        eprintln!("skipped: {error}");
        return None;
    }
    let options = SourceOptions::every(Duration::from_secs(1));
    let mut source = start(SourceName::Netlink, options).expect("it was probed");
    let first = source.observations.blocking_recv().expect("a look");
    assert!(matches!(first, Observation::Snapshot(_)), "{first:?}");
    let mut tracker = Tracker::new();
    tracker.observe(first);
    Some((source, tracker))
}

/// What becomes of one process, up to its stop.
fn life(source: &mut Started, tracker: &mut Tracker, pid: u32) -> Vec<ProcessEvent> {
    let since = Instant::now();
    let mut life: Vec<ProcessEvent> = Vec::new();
    while !life.last().is_some_and(|event| matches!(event.kind, ProcessEventKind::Stop(_))) {
        assert!(since.elapsed() < PATIENCE, "no stop: {life:#?}");
        let Ok(observation) = source.observations.try_recv() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        for event in tracker.observe(observation) {
            if let Event::Process(event) = event
                && event.pid() == pid
            {
                life.push(*event);
            }
        }
    }
    life
}

fn changes(life: &[ProcessEvent]) -> Vec<FieldChange> {
    let of = |event: &ProcessEvent| match &event.kind {
        ProcessEventKind::Modify { changes } => changes.clone(),
        _ => Vec::new(),
    };
    life.iter().flat_map(of).collect()
}

/// A child that goes on when it is told to.
fn waiting(script: &str) -> Child {
    Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).spawn().expect("python3")
}

fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no python3");
    if !found {
        eprintln!("skipped: no python3");
    }
    found
}

#[test]
fn a_process_that_takes_another_user_and_session_says_so() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let Some((mut source, mut tracker)) = source() else { return };
    if !has_python() {
        return;
    }
    let mut child = waiting(
        "import os,sys; sys.stdin.readline(); os.setsid(); os.setresgid(7,8,7); \
         os.setresuid(1234,1235,1234); os._exit(0)",
    );
    let pid = child.id();
    writeln!(child.stdin.take().unwrap(), "go").unwrap();
    child.wait().unwrap();
    let life = life(&mut source, &mut tracker, pid);
    let changes = changes(&life);
    let has = |change: &FieldChange| changes.contains(change);
    assert!(has(&FieldChange::Uid(Some(0))) && has(&FieldChange::Euid(Some(0))), "{life:#?}");
    assert!(has(&FieldChange::Gid(Some(0))) && has(&FieldChange::Egid(Some(0))), "{life:#?}");
    let last = &life[life.len() - 1];
    assert_eq!(
        (last.uid, last.euid, last.gid, last.egid),
        (Some(1234), Some(1235), Some(7), Some(8))
    );
    assert_eq!(last.session, Some(pid));
    assert_eq!(last.source, SourceName::Netlink);
}

/// The first thread ends before another does, and another thread runs a program: both are told as
/// an end of the first thread.
#[test]
fn c1_threads_are_not_processes() {
    let Some((mut source, mut tracker)) = source() else { return };
    if !has_python() {
        return;
    }
    let mut child = waiting(
        "import os,sys,threading,time; sys.stdin.readline()\n\
         for _ in range(5):\n \
         t=threading.Thread(target=time.sleep,args=(0.01,)); t.start(); t.join()\n\
         t=threading.Thread(target=os.execvp,args=('sleep',['sleep','0.1'])); t.start(); t.join()",
    );
    let pid = child.id();
    writeln!(child.stdin.take().unwrap(), "go").unwrap();
    assert!(child.wait().unwrap().success());
    let life = life(&mut source, &mut tracker, pid);
    let starts = life.iter().filter(|e| matches!(e.kind, ProcessEventKind::Start { .. })).count();
    let stops = life.iter().filter(|e| matches!(e.kind, ProcessEventKind::Stop(_))).count();
    assert_eq!((starts, stops), (1, 1), "{life:#?}");
    let last = &life[life.len() - 1];
    assert!(life.iter().all(|event| event.key == last.key));
    assert_eq!((&last.name, last.completeness), (&Some("sleep".into()), Completeness::Complete));
    let ProcessEventKind::Stop(exit) = last.kind else { panic!("{last:?}") };
    assert_eq!(exit.exit_code, Some(0));
    assert!(exit.run_time_ns > Some(100_000_000), "{exit:?}");
}

/// A process that is there before anybody listens, with threads that nobody was told of.
#[test]
fn c1_the_end_of_one_that_was_there_before_is_told() {
    if !has_python() {
        return;
    }
    let mut child = waiting(
        "import sys,threading; e=threading.Event()\n\
         ts=[threading.Thread(target=e.wait) for _ in range(3)]\n\
         for t in ts: t.start()\n\
         sys.stdin.readline(); e.set(); [t.join() for t in ts]; sys.exit(5)",
    );
    let Some((mut source, mut tracker)) = source() else {
        child.kill().unwrap();
        child.wait().unwrap();
        return;
    };
    let start = tracker.get(child.id()).expect("it was there").clone();
    assert_eq!(start.key_precision, KeyPrecision::Tick);
    writeln!(child.stdin.take().unwrap(), "go").unwrap();
    child.wait().unwrap();
    let life = life(&mut source, &mut tracker, child.id());
    let last = &life[life.len() - 1];
    let ProcessEventKind::Stop(exit) = last.kind else { panic!("{last:?}") };
    assert_eq!((last.key, exit.exit_code), (start.key, Some(5)));
    assert!(!last.inferred);
}
