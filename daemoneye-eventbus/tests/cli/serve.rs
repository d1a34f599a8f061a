//! `eventbus serve`.

use std::os::unix::net::UnixStream;

use rustix::process::Signal;

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
