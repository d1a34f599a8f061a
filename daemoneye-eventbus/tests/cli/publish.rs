//! `eventbus pub`.

use std::io::Write;

use rustix::process::Signal;
use serde_json::Value;

use crate::common::*;

#[test]
fn lines_of_standard_input_are_published_as_they_come() {
    let bus = Bus::new();
    let sub = bus.sub(&["--json", "events.#"]);
    let mut publisher = bus.start(&["pub", "--json", "events.lines", "-"]);
    let mut input = publisher.child.stdin.take().unwrap();
    input.write_all(b"first\n").unwrap();
    // It is there before the input ends.
    assert!(sub.lines(1)[0].contains("first"));
    input.write_all(b"\xff\x00\n\nlast without an end").unwrap();
    drop(input);
    publisher.ends_well();
    sub.lines(4);
    let lines = sub.json();
    assert_eq!(strings(&lines, "text"), ["first", "", "", "last without an end"]);
    assert_eq!(lines[1]["hex"], "ff00");
    let said: Value = serde_json::from_str(&publisher.out()[0]).unwrap();
    assert_eq!(said["events"], 4);
    assert_eq!(said["acknowledged"], 4);
    assert_eq!(said["level"], "accepted");
    assert_eq!(said["stream"], lines[0]["stream"]);
}

#[test]
fn no_more_is_open_than_the_credit() {
    // 50 entries of 132 bytes against a credit of 1000, with a consumer that is away.
    let bus = Bus::with(&["--credit-bytes", "1000"]);
    drop(bus.sub(&["--durable", "store", "events.#"]));
    let mut publisher = bus.start(&["pub", "events.many", "-"]);
    let mut input = publisher.child.stdin.take().unwrap();
    for n in 0..50 {
        writeln!(input, "{n:0>100}").unwrap();
    }
    drop(input);
    let held = || bus.stat()["streams"][0]["retained_bytes"].as_u64().unwrap_or(0);
    until("the credit is used up", || (held() > 1000 - 132).then_some(()));
    assert!(held() <= 1000, "{}", held());
    assert!(publisher.child.try_wait().unwrap().is_none());

    let mut store =
        bus.start(&["sub", "--json", "--durable", "store", "--count", "50", "events.#"]);
    publisher.ends_well();
    store.ends_well();
    assert!(publisher.out()[0].contains("50 events of stream"), "{:?}", publisher.out());
    assert!(publisher.out()[0].contains("committed: every durable consumer"));
    let sequences: Vec<u64> =
        store.json().iter().map(|line| line["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=50).collect::<Vec<u64>>());
}

#[test]
fn rights_say_why_not() {
    let bus = Bus::new();
    let said = failed(&bus.run(&["pub", "control.collector.lifecycle", "{}"]), 1);
    assert!(said.contains("control.collector.lifecycle is not allowed"), "{said}");
    assert!(said.contains("a collector sends"), "{said}");
    let said = failed(&bus.run(&["pub", "--request", "control.health.status"]), 1);
    assert!(said.contains("nobody answers requests on control.health.status"), "{said}");
    let answer = succeeded(&bus.run(&["pub", "--request", "control.broker.stats"]));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["connections"][0]["client_id"], "eventbus-pub");

    let listener = bus.sub(&["--json", "control.#"]);
    let beat = ["pub", "--id", "me", "control.health.heartbeat.me", "{\"well\":true}", "no json"];
    let said = succeeded(&bus.run(&beat));
    assert_eq!(said, "2 sent; messages are not acknowledged\n");
    listener.lines(2);
    let heard = listener.json();
    assert_eq!(strings(&heard, "topic"), ["control.health.heartbeat.me"; 2]);
    assert_eq!((&heard[0]["json"]["well"], &heard[1]["text"]), (&true.into(), &"no json".into()));
}

#[test]
fn what_nobody_commits_is_not_waited_for_for_ever() {
    let bus = Bus::new();
    drop(bus.sub(&["--durable", "store", "events.#"]));
    let said = failed(&bus.run(&["pub", "--timeout", "0.1", "events.x", "a", "b"]), 1);
    assert!(said.contains("no acknowledgement within 100ms"), "{said}");
    assert!(said.contains("0 of 2 events are acknowledged"), "{said}");
    // A signal ends the waiting, too.
    let mut waiting = bus.start(&["pub", "events.x", "c"]);
    until("it is there", || {
        let streams = bus.stat()["streams"].as_array().cloned().unwrap();
        streams.iter().any(|stream| stream["publisher"] == "eventbus-pub").then_some(())
    });
    waiting.signal(Signal::INT);
    assert_eq!(waiting.end().code(), Some(1));
    assert!(waiting.err().contains("interrupted; 0 of 1 events"), "{}", waiting.err());
}

#[test]
fn an_input_that_cannot_be_read_is_no_end_of_it() {
    let bus = Bus::new();
    let directory = std::fs::File::open(bus.directory.path()).unwrap();
    let output = bus.command(&["pub", "events.x", "-"]).stdin(directory).output().unwrap();
    let said = failed(&output, 1);
    assert!(said.contains("standard input cannot be read"), "{said}");
    assert!(said.contains("0 of 0 events are acknowledged"), "{said}");
}
