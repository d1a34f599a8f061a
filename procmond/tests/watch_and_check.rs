//! `procmond watch` and `procmond check` as a user starts them.
#![cfg(test)]
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Only for a broken program: a good one is done in a fraction of it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Ends and reaps the process also when an assertion fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// The exit code, within the deadline.
    fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::yield_now();
        }
        panic!("it does not end");
    }
}

fn procmond(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_procmond"));
    command.args(args).env_remove("DAEMONEYE_BROKER_SOCKET").stdin(Stdio::null());
    command
}

fn watch() -> (Running, mpsc::Receiver<Value>) {
    let mut child = procmond(&["watch", "--json", "--interval", "0.05"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let (sender, events) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let event = serde_json::from_str(&line.unwrap()).unwrap();
            // Dropping the receiver closes the pipe.
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    (Running(child), events)
}

fn next(events: &mpsc::Receiver<Value>, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).expect("the event comes within the deadline");
        if wanted(&event) {
            return event;
        }
    }
}

#[test]
fn shows_a_process_from_start_to_stop_and_ends_on_a_signal() {
    for signal in [Signal::INT, Signal::TERM] {
        let (mut watch, events) = watch();
        // What is there already comes first, and this test is among it.
        let own = u64::from(std::process::id());
        let there = next(&events, |event| event["pid"] == own);
        assert_eq!((&there["kind"], &there["existing"]), (&"start".into(), &true.into()));
        let sleeper = Running(Command::new("/bin/sleep").args(["4242", "0"]).spawn().unwrap());
        let pid = u64::from(sleeper.0.id());
        let start = next(&events, |event| event["pid"] == pid);
        assert_eq!((&start["kind"], &start["existing"]), (&"start".into(), &false.into()));
        // Seen between fork and exec, it becomes what it is by a change.
        let argv = serde_json::json!(["/bin/sleep", "4242", "0"]);
        if start["argv"] != argv {
            let change = next(&events, |event| event["pid"] == pid);
            assert_eq!((&change["kind"], &change["argv"]), (&"modify".into(), &argv));
        }
        assert_eq!(start["parent_key"], there["process_key"]);
        drop(sleeper);
        let stop = next(&events, |event| event["pid"] == pid && event["kind"] == "stop");
        assert_eq!(stop["process_key"], start["process_key"]);

        watch.signal(signal);
        assert_eq!(watch.exit_code(), Some(0));
        let mut said = String::new();
        watch.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("procmond: watching "), "{said}");
        assert!(said.lines().last().unwrap().starts_with("procmond: saw "), "{said}");
    }
}

#[test]
fn ends_cleanly_when_nobody_reads_any_more() {
    let (mut watch, events) = watch();
    next(&events, |_| true);
    drop(events);
    let deadline = Instant::now() + DEADLINE;
    // Something must happen for it to be noticed.
    while watch.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        let _ = Running(Command::new("/bin/sleep").arg("0.1").spawn().unwrap()).0.wait();
    }
    assert_eq!(watch.exit_code(), Some(0));
}

#[test]
fn a_source_that_is_not_there_is_a_usage_error() {
    let Output { status, stderr, .. } =
        procmond(&["watch", "--source", "prayer"]).output().unwrap();
    assert_eq!(status.code(), Some(2));
    let said = String::from_utf8(stderr).unwrap();
    assert!(said.contains("use \"auto\", \"ebpf\", \"netlink\" or \"poll\""), "{said}");
}

#[test]
fn check_says_whether_run_would_work() {
    let dir = tempfile::tempdir().unwrap();
    let check = |args: &[&str], socket: Option<&str>| {
        let mut command = procmond(args);
        command.env("PROCMOND_WAL__DIR", dir.path().join("wal"));
        if let Some(socket) = socket {
            command.env("DAEMONEYE_BROKER_SOCKET", dir.path().join(socket));
        }
        let Output { status, stdout, .. } = command.output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap())
    };
    let (code, text) = check(&["check"], None);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("DAEMONEYE_BROKER_SOCKET is not set"), "{text}");
    assert!(text.ends_with("`procmond run` would not work\n"), "{text}");

    // A broker that is not there yet is no obstacle: the log keeps events for it.
    let (code, text) = check(&["check", "--json"], Some("b.sock"));
    assert_eq!(code, Some(0), "{text}");
    for line in text.lines() {
        let finding: Value = serde_json::from_str(line).unwrap();
        assert_ne!(finding["verdict"], "bad", "{finding}");
    }
    assert!(!dir.path().join("wal").exists(), "checking makes nothing");

    std::fs::write(dir.path().join("f.toml"), "[wal]\nsegment_bytes = 1\nnonsense = 2\n").unwrap();
    let file = dir.path().join("f.toml");
    let (code, text) = check(&["check", "--config", file.to_str().unwrap()], Some("b.sock"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("f.toml:2: ") && text.contains("f.toml:3: "), "{text}");
}
