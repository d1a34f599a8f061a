use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use daemoneye_tests::{AgentBuilder, Guarded, Marked, beside_others, bin, signal, until};
use rustix::process::Signal;
use serde_json::Value;

/// The lines that are whole, as JSON.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// `eventbus` beside a running agent: `sub` prints a process that starts, in both forms, and `stat`
/// shows procmond and the store, which has committed what there is.
#[test]
fn eventbus_command() {
    let _others = beside_others();
    let agent = AgentBuilder::default().env("PROCMOND_MONITOR__INTERVAL_MS", 100).start();
    agent.monitoring();
    let setup = agent.setup().clone();
    let eventbus = |arguments: &[&str]| {
        let mut command = Command::new(bin("eventbus"));
        command.args(arguments).env("DAEMONEYE_BROKER_SOCKET", setup.socket());
        command.stdin(Stdio::null());
        command
    };
    let stat = || -> Value {
        let output = eventbus(&["stat", "--json", "--over", "0"]).output().expect("stat runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("stat prints JSON")
    };
    let sub = |arguments: &[&str], to: &Path| {
        let out = File::create(to).expect("a file");
        Guarded::new(eventbus(arguments).stdout(out).spawn().expect("sub can be started"))
    };
    let json = setup.state_dir().join("sub.json");
    let text = setup.state_dir().join("sub.text");
    let mut subs = [
        sub(&["sub", "--json", "events.process.*"], &json),
        sub(&["sub", "events.process.*"], &text),
    ];
    until("both are subscribed", || {
        let live = stat()["live"].as_array().cloned().unwrap_or_default();
        live.iter().filter(|row| row["client_id"] == "eventbus-sub").count() == 2
    });

    let mark = format!("eventbus-command-{}", std::process::id());
    let marked = Marked::start(&mark, 1, &[]);
    let (argument, pid) = marked.pids().next().expect("one process");
    let argv = serde_json::json!(["/bin/sh", "-c", "read line", argument]);
    until("its start is printed, and its arguments", || {
        let lines = lines(&json);
        // A look between fork and exec tells the arguments in a modify.
        let of = |line: &&Value| line["event"]["pid"] == pid;
        lines.iter().filter(of).any(|line| line["topic"] == "events.process.start")
            && lines.iter().filter(of).any(|line| line["event"]["argv"] == argv)
    });
    until("people see it, too", || {
        let text = std::fs::read_to_string(&text).unwrap_or_default();
        text.lines().any(|line| {
            line.contains(&format!(" {pid} ")) && line.contains(&format!("'read line' {argument}"))
        })
    });
    until("the store has committed it", || {
        let stat = stat();
        let store = &stat["consumers"][0];
        assert_eq!((&store["name"], &store["attached"]), (&"event-store".into(), &true.into()));
        store["cursors"][0]["lag"] == 0
    });
    let publisher = stat()["streams"][0]["publisher"].clone();
    assert_eq!(publisher, "procmond");
    marked.end();
    for sub in &mut subs {
        signal(sub, Signal::INT);
        assert!(sub.wait().expect("it ends").success());
    }
    assert!(agent.stop().success());
}
