//! What every command does: errors, signals, readers that leave.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::common::*;

#[test]
fn wrong_usage_is_code_2() {
    let usage: &[&[&str]] = &[
        &["sub"],
        &["sub", "Events.#"],
        &["sub", "events.#", "--no-such-flag"],
        &["sub", "events.#", "--count", "0"],
        &["sub", "events.#", "--durable", "not a name"],
        &["sub", "events.#", "--timeout", "-1"],
        &["pub"],
        &["pub", "events.*", "x"],
        &["pub", "events.x"],
        &["pub", "events.x", "--request", "x"],
        &["stat", "--watch", "0"],
        &["stat", "--watch", "1", "--over", "1"],
        &["serve", "--frame-bytes-max", "99999999999"],
        &["serve", "--heartbeat", "0"],
        &["completions", "tcsh"],
        &["dance"],
    ];
    for arguments in usage {
        let output = eventbus(arguments).args(["--socket", "/nowhere/bus.sock"]).output().unwrap();
        assert!(!failed(&output, 2).is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_a_broker_it_is_said_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let commands: [&[&str]; 4] =
        [&["sub", "events.#"], &["pub", "events.x", "x"], &["stat"], &["stat", "--watch"]];
    for arguments in commands {
        let output = eventbus(arguments).arg("--socket").arg(&socket).output().unwrap();
        let said = failed(&output, 1);
        assert!(said.contains(socket.to_str().unwrap()), "{said}");
        assert!(said.contains("daemoneye-agent run") && said.contains("--socket"), "{said}");
    }
    // Where it is looked for otherwise.
    let output = eventbus(&["stat"]).env("DAEMONEYE_BROKER_SOCKET", &socket).output().unwrap();
    assert!(failed(&output, 1).contains(socket.to_str().unwrap()));
    let home = directory.path();
    let output =
        eventbus(&["stat"]).env_remove("XDG_STATE_HOME").env("HOME", home).output().unwrap();
    if rustix::process::geteuid().is_root() {
        // An agent may run here: then there is an answer.
        if !Path::new("/var/lib/daemoneye/broker.sock").exists() {
            assert!(failed(&output, 1).contains("/var/lib/daemoneye/broker.sock"));
        }
    } else {
        let usual = home.join(".local/state/daemoneye/broker.sock");
        assert!(failed(&output, 1).contains(usual.to_str().unwrap()));
    }
}

#[test]
fn a_held_reader_does_not_keep_it_from_ending() {
    let bus = Bus::new();
    let mut command = bus.command(&["sub", "events.#"]);
    let mut held = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    until("it is subscribed", || (bus.subscriptions() == 1).then_some(()));
    let much = "x".repeat(100_000);
    succeeded(&bus.run(&["pub", "events.x", &much, &much, &much]));
    let pipe = held.stdout.take().unwrap();
    let waiting = format!("/proc/{}/wchan", held.id());
    if Path::new(&waiting).exists() {
        until("it waits for its reader", || {
            std::fs::read_to_string(&waiting).ok().filter(|place| place.contains("pipe")).map(drop)
        });
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&held), Signal::INT).unwrap();
    let status = until("it ends", || held.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    drop(pipe);
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let bus = Bus::new();
    let mut sub = bus.command(&["sub", "events.#"]);
    let mut sub = sub.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let err = Lines::of(sub.stderr.take().unwrap());
    until("it is subscribed", || (bus.subscriptions() == 1).then_some(()));
    drop(sub.stdout.take());
    succeeded(&bus.run(&["pub", "events.x", "x"]));
    let status = until("it ends", || sub.try_wait().unwrap());
    assert_eq!((status.code(), err.whole().join("\n")), (Some(0), String::new()));

    let commands: [&[&str]; 4] =
        [&["stat"], &["stat", "--json"], &["completions", "bash"], &["pub", "events.x", "y"]];
    for arguments in commands {
        let mut child =
            bus.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said), (Some(0), String::new()), "{arguments:?}");
    }
}

#[test]
fn completions_know_every_flag() {
    for shell in ["bash", "zsh", "fish"] {
        let script = succeeded(&eventbus(&["completions", shell]).output().unwrap());
        for word in ["durable", "no-reconnect", "watch", "require", "socket", "request", "forget"] {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
    let script = succeeded(&eventbus(&["completions", "bash"]).output().unwrap());
    let mut bash = match Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn() {
        Ok(bash) => bash,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI has bash: {error}");
            eprintln!("not checked: the script for bash, because there is no bash here");
            return;
        }
    };
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}
