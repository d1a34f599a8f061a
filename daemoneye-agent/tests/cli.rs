//! The `daemoneye-agent` command as people meet it, without procmond.

#![cfg(unix)]

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// The command in an environment that says nothing.
fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daemoneye-agent"));
    command.args(arguments).stdin(Stdio::null()).env_clear();
    command
}

fn output(arguments: &[&str]) -> Output {
    agent(arguments).output().expect("the command runs")
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// A running agent without collectors; killed when dropped.
struct Running(Child);

impl Running {
    fn start(state: &Path) -> Self {
        let child = agent(&["run", "--no-collectors", "--state-dir", path(state)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let running = Self(child);
        let deadline = Instant::now() + PATIENCE;
        while !output(&["status", "--json", "--state-dir", path(state)]).status.success() {
            assert!(Instant::now() < deadline, "the agent never answers");
        }
        running
    }

    fn end(mut self, signal: rustix::process::Signal) -> (Option<i32>, String, String) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("it can be signalled");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "the agent never ends");
            std::thread::sleep(Duration::from_millis(5));
        };
        let (mut out, mut err) = (String::new(), String::new());
        let pipes = (self.0.stdout.take(), self.0.stderr.take());
        pipes.0.expect("piped").read_to_string(&mut out).expect("text");
        pipes.1.expect("piped").read_to_string(&mut err).expect("text");
        (status.code(), out, err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_runs_answers_and_ends_in_order() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = path(state.path());
    let running = Running::start(state.path());

    let status = output(&["status", "--state-dir", dir]);
    assert_ends(&status, 0, &[]);
    let table = String::from_utf8(status.stdout).expect("text");
    for part in ["agent", "runs, pid", "--no-collectors", "events.db", "no events yet"] {
        assert!(table.contains(part), "{part:?} is not in: {table}");
    }
    let json = output(&["status", "--json", "--state-dir", dir]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).expect("one JSON object");
    assert_eq!(json["agent"]["pid"], running.0.id());
    assert_eq!(json["supervisor"]["state"], "disabled");
    assert_eq!(json["collectors"], serde_json::json!([]));

    // Reading works beside it, and shows nothing yet.
    let events = output(&["events", "--state-dir", dir]);
    assert_ends(&events, 0, &[]);
    assert!(events.stdout.is_empty());

    // A second one is refused, and names the first.
    let second = output(&["run", "--no-collectors", "--state-dir", dir]);
    assert_ends(&second, 1, &["already runs", &running.0.id().to_string(), "--state-dir"]);
    assert!(second.stdout.is_empty());

    let (code, out, err) = running.end(rustix::process::Signal::TERM);
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    assert!(err.contains("ended"), "{err}");
    assert!(!state.path().join("broker.sock").exists(), "its socket goes with it");

    // What is left says so itself.
    let status = output(&["status", "--state-dir", dir]);
    assert_ends(&status, 1, &["no daemoneye-agent answers", "daemoneye-agent run"]);
    let table = String::from_utf8(status.stdout).expect("text");
    assert!(table.contains("does not run") && table.contains("events.db"), "{table}");
    let again = Running::start(state.path());
    assert_eq!(again.end(rustix::process::Signal::INT).0, Some(0));
}

#[test]
fn a_killed_agent_is_no_obstacle_to_the_next() {
    let state = tempfile::tempdir().expect("a directory");
    drop(Running::start(state.path()));
    let (code, _, err) = Running::start(state.path()).end(rustix::process::Signal::TERM);
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn without_a_store_commands_say_where_they_looked() {
    let state = tempfile::tempdir().expect("a directory");
    let dir = path(state.path());
    assert_ends(&output(&["events", "--state-dir", dir]), 1, &["events.db", "daemoneye-agent run"]);
    let status = output(&["status", "--json", "--state-dir", dir]);
    assert_ends(&status, 1, &["no daemoneye-agent answers"]);
    let json: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(json, serde_json::json!({ "agent": null, "store": null }));
    assert!(std::fs::read_dir(state.path()).expect("a directory").next().is_none());
}

#[test]
fn a_socket_path_of_108_bytes_is_refused() {
    let state = tempfile::tempdir().expect("a directory");
    let socket = format!("/{}", "s".repeat(107));
    let run = ["run", "--no-collectors", "--state-dir", path(state.path()), "--socket", &socket];
    assert_ends(&output(&run), 2, &["108", "107", "--socket"]);
}

#[test]
fn a_missing_procmond_is_named_with_the_ways_out() {
    let state = tempfile::tempdir().expect("a directory");
    let run = |arguments: &[&str]| {
        output(&[&["run", "--state-dir", path(state.path())], arguments].concat())
    };
    let says = ["/nowhere/procmond", "cargo build -p procmond", "--procmond", "--no-collectors"];
    assert_ends(&run(&["--procmond", "/nowhere/procmond"]), 2, &says);
    assert!(!state.path().join("events.db").exists(), "nothing was begun");
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let parent = tempfile::tempdir().expect("a directory");
    let file = parent.path().join("file");
    std::fs::write(&file, "").expect("a file");
    // Not even root can make a directory below a file.
    let below = file.join("state");
    let run = output(&["run", "--no-collectors", "--state-dir", path(&below)]);
    assert_ends(&run, 1, &[path(&below), "--state-dir"]);

    if rustix::process::geteuid().is_root() {
        eprintln!("not run as root: root writes to directories without write permission");
        return;
    }
    let locked = parent.path().join("locked");
    std::fs::create_dir(&locked).expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o500);
    std::fs::set_permissions(&locked, mode).expect("permissions");
    let run = output(&["run", "--no-collectors", "--state-dir", path(&locked)]);
    assert_ends(&run, 1, &[path(&locked), "Permission denied", "--state-dir"]);
}

#[test]
fn a_socket_directory_others_can_write_is_refused() {
    let state = tempfile::tempdir().expect("a directory");
    let open = state.path().join("open");
    std::fs::create_dir(&open).expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&open, mode).expect("permissions");
    let socket = open.join("broker.sock");
    let run = output(&[
        "run",
        "--no-collectors",
        "--state-dir",
        path(state.path()),
        "--socket",
        path(&socket),
    ]);
    assert_ends(&run, 1, &[path(&open), "0700"]);
}

#[test]
fn three_mistakes_in_the_configuration_are_told_at_once() {
    let state = tempfile::tempdir().expect("a directory");
    let file = state.path().join("agent.toml");
    std::fs::write(&file, "[broker]\ncredit_bytes = \"lots\"\n[collectors]\nenable = true\n")
        .expect("a file");
    let run = agent(&["run", "--state-dir", path(state.path()), "--config", path(&file)])
        .env("DAEMONEYE_LOG__LEVEL", "loud")
        // procmond's variable: not a mistake of ours.
        .env("DAEMONEYE_BROKER_SOCKET", "/nowhere")
        .output()
        .expect("the command runs");
    assert_ends(
        &run,
        2,
        &["3 mistakes", "credit_bytes", "lots", "collectors.enabled", "DAEMONEYE_LOG__LEVEL"],
    );
    assert!(run.stdout.is_empty(), "complaints belong on standard error");
    let missing = output(&["run", "--state-dir", path(state.path()), "--config", "/nowhere.toml"]);
    assert_ends(&missing, 2, &["/nowhere.toml", "--config"]);
}

#[test]
fn nonsense_on_the_command_line_is_a_usage_error() {
    for arguments in [
        &["events", "--topic", "Events.#.x"][..],
        &["events", "--since", "yesterday"],
        &["events", "--pid", "-1"],
        &["run", "--json"],
        &["frobnicate"],
        &[],
    ] {
        assert_eq!(output(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let homeless = output(&["status"]);
    if rustix::process::geteuid().is_root() {
        // Root has a fixed place.
        assert_eq!(homeless.status.code(), Some(1));
    } else {
        assert_ends(&homeless, 2, &["HOME", "--state-dir"]);
    }
}

/// The reader of the events goes away: the agent ends in order, without a complaint.
#[test]
fn a_closed_output_ends_quietly() {
    let state = tempfile::tempdir().expect("a directory");
    drop(Running::start(state.path()));
    let database = rusqlite::Connection::open(state.path().join("events.db")).expect("the store");
    database
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO events(stream, sequence, topic, time_ns, event)
             SELECT 'x', i, 'events.process.start', i, '{}' FROM n",
        )
        .expect("rows");
    for arguments in
        [&["events"][..], &["events", "--json"], &["events", "--follow", "--limit", "9999"]]
    {
        let mut child = agent(arguments)
            .args(["--state-dir", path(state.path())])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut out = child.stdout.take().expect("piped");
        out.read_exact(&mut [0; 100]).expect("it prints");
        drop(out);
        if arguments.contains(&"--follow") {
            // It notices with the next event it has to print.
            let _ = database.execute(
                "INSERT INTO events(stream, sequence, topic, time_ns, event)
                 VALUES('x', 20001, 'events.process.start', 1, '{}')",
                [],
            );
        }
        let ended = child.wait_with_output().expect("it ends");
        assert_ends(&ended, 0, &[]);
        assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
}
