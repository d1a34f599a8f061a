//! `eventbus serve`.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::common::*;

#[test]
fn serve_does_what_its_flags_say() {
    let bus = Bus::with(&["--connections-max", "1", "--handshake", "60", "--require", "store"]);
    let held = UnixStream::connect(bus.socket()).unwrap();
    let said = failed(&bus.run(&["stat", "--over", "0"]), 1);
    assert!(said.contains("1 connections are open"), "{said}");
    drop(held);
    let said = until("the place is free again", || {
        let output = bus.run(&["pub", "events.x", "x"]);
        let said = failed(&output, 1);
        (!said.contains("connections are open")).then_some(said)
    });
    assert!(said.contains("the required consumer store is not attached yet"), "{said}");

    let second = bus.run(&["serve"]);
    let said = failed(&second, 1);
    assert!(said.contains(&format!("another broker (pid {})", bus.serve.child.id())), "{said}");

    let mut serve = bus.serve;
    serve.signal(Signal::INT);
    serve.ends_well();
    assert!(!bus.directory.path().join("bus.sock").exists());
}

#[test]
fn serve_lets_peers_take_what_is_left() {
    let mut bus = Bus::new();
    let mut store = bus.sub(&["--json", "--no-reconnect", "--durable", "store", "events.#"]);
    succeeded(&bus.run(&["pub", "events.x", "a", "b"]));
    bus.serve.signal(Signal::TERM);
    bus.serve.ends_well();
    assert_eq!(store.end().code(), Some(1));
    assert_eq!(strings(&store.json(), "text"), ["a", "b"]);
    assert!(store.err().contains("the broker is shutting down"), "{}", store.err());
}

#[test]
fn other_users_are_let_in_by_name_only() {
    const OTHER: u32 = 65534;
    let bus = Bus::with(&["--allow-uid", "65534"]);
    // Where it was built others may not come.
    let program = bus.directory.path().join("eventbus");
    std::fs::copy(env!("CARGO_BIN_EXE_eventbus"), &program).unwrap();
    let stranger = |number: u32, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        let number = number.to_string();
        command.args(["--reuid", &*number, "--regid", &*number, "--clear-groups", "--"]);
        let eventbus = bus.command(&[&["stat", "--json", "--over", "0"], arguments].concat());
        command.arg(&program).args(eventbus.get_args());
        command.env_remove("DAEMONEYE_BROKER_SOCKET").output()
    };
    let can = rustix::process::geteuid().is_root() && stranger(OTHER, &["--help"]).is_ok();
    if !can {
        let in_ci = std::env::var_os("CI").is_some() && rustix::process::geteuid().is_root();
        assert!(!in_ci, "CI as root has setpriv");
        eprintln!("not run: another user's connection, which takes root and setpriv");
        return;
    }
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bus.directory.path(), mode).unwrap();
    let said = failed(&stranger(OTHER, &[]).unwrap(), 1);
    assert!(said.contains("is not trusted"), "{said}");
    let seen = succeeded(&stranger(OTHER, &["--trust-uid", "0"]).unwrap());
    assert!(seen.contains("eventbus-stat"), "{seen}");
    let said = failed(&stranger(OTHER - 1, &["--trust-uid", "0"]).unwrap(), 1);
    assert!(said.contains("user 65533 may not talk to this broker"), "{said}");
    let own = bus.run(&["stat", "--json", "--over", "0", "--trust-uid", "0"]);
    let own: Value = serde_json::from_str(&succeeded(&own)).unwrap();
    assert_eq!(own["refused"]["not_allowed"], 1);
}
