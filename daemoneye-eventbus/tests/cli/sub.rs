//! `eventbus sub`.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use daemoneye_eventbus::{Committed, Sequence};
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use rustix::process::Signal;
use serde_json::Value;

use crate::common::*;

#[test]
fn what_is_published_is_printed() {
    let bus = Bus::new();
    let mut json = bus.sub(&["--json", "--count", "3", "events.test.*", "events.other"]);
    let mut people = bus.sub(&["--count", "3", "events.#"]);
    let mut others = bus.sub(&["events.other"]);
    let said = succeeded(&bus.run(&["pub", "events.test.a", "one", "two\u{1b}[2J", "three"]));
    assert!(said.starts_with("3 events of stream "), "{said}");
    assert!(said.contains("accepted: no durable consumer wants them"), "{said}");
    json.ends_well();
    people.ends_well();
    let lines = json.json();
    assert_eq!(strings(&lines, "text"), ["one", "two\u{1b}[2J", "three"]);
    assert_eq!(strings(&lines, "topic"), ["events.test.a"; 3]);
    for (at, line) in lines.iter().enumerate() {
        assert_eq!((&line["sequence"], &line["span"]), (&(at as u64 + 1).into(), &1.into()));
        assert_eq!(line["stream"], said.split(' ').nth(4).unwrap());
        assert!(line["epoch"].as_u64().unwrap() > 0 && line["time_ns"].as_i64().unwrap() > 0);
    }
    let shown = people.out();
    assert!(shown[0].contains(" events.test.a ") && shown[0].ends_with(" one"), "{shown:?}");
    assert!(shown[1].ends_with(r" two\x1b[2J"), "{shown:?}");
    for line in shown.iter().chain(&json.out()) {
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    assert_eq!(others.out(), [""; 0]);
    others.signal(Signal::INT);
    others.ends_well();
}

#[test]
fn a_durable_consumer_goes_on_where_it_was() {
    let bus = Bus::new();
    let first = ["--json", "--durable", "store", "--count", "2", "events.#"];
    let mut store = bus.sub(&first);
    let mut publisher = bus.start(&["pub", "events.x", "a", "b", "c"]);
    store.ends_well();
    assert_eq!(strings(&store.json(), "text"), ["a", "b"]);
    assert!(publisher.child.try_wait().unwrap().is_none(), "one is not committed");
    until("the broker knows that it has left", || {
        let stat = bus.stat();
        let store = &stat["consumers"][0];
        (store["attached"] == false && store["cursors"][0]["lag"] == 1).then_some(())
    });
    let mut again = bus.start(&["sub", "--json", "--durable", "store", "--count", "1", "events.#"]);
    again.ends_well();
    assert_eq!(strings(&again.json(), "text"), ["c"]);
    publisher.ends_well();
    assert!(publisher.out()[0].contains("committed"), "{:?}", publisher.out());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_consumer_outlives_the_broker() {
    let bus = Bus::new();
    let store = bus.sub(&["--json", "--durable", "store", "events.#"]);
    let mut log = Log::new();
    let (_client, mut publisher) = log.connect(&bus).await;
    for text in ["a", "b", "c"] {
        log.publish(&publisher, text.into()).await;
    }
    while publisher.acked().await.unwrap().sequence < Sequence(3) {}

    let bus = Bus::again(bus.kill(), &["--require", "store"]);
    until("it is back", || (bus.stat()["consumers"][0]["attached"] == true).then_some(()));
    store.says("; connecting again");
    store.says("connected again");
    let (_client, mut publisher) = log.connect(&bus).await;
    // The consumer has told the new broker what is printed already.
    let committed = Committed { sequence: Sequence(3), epoch: log.epoch };
    assert_eq!(publisher.committed(), Some(committed));
    // The log has lost two: that is said.
    log.last = 5;
    log.publish(&publisher, "f".into()).await;
    while publisher.acked().await.unwrap().sequence < Sequence(6) {}
    store.lines(5);
    let lines = store.json();
    assert_eq!(strings(&lines, "text"), ["a", "b", "c", "", "f"]);
    assert_eq!(lines[3], serde_json::json!({ "missed": 2 }));
    store.says("2 events were missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn daemoneye_events_are_shown_for_what_they_are() {
    let bus = Bus::new();
    let json = bus.sub(&["--json", "events.process.*"]);
    let people = bus.sub(&["events.process.*"]);
    let mut log = Log::new();
    let (_client, publisher) = log.connect(&bus).await;
    let gap = GapEvent {
        missing: Some(3),
        ..GapEvent::new(GapReason::LogFull, 5, "no room\u{9b}2J left")
    };
    log.publish(&publisher, Event::from(gap).encode()).await;
    json.lines(1);
    let line = &json.json()[0];
    assert_eq!((&line["event"]["type"], &line["event"]["missing"]), (&"gap".into(), &3.into()));
    assert_eq!(line["event"]["detail"], "no room\u{9b}2J left");
    assert!(!json.out()[0].chars().any(char::is_control));
    let shown = &people.lines(1)[0];
    assert!(shown.ends_with(r"3 events missing: log_full, no room\u{9b}2J left"), "{shown}");
}

#[test]
fn a_slow_reader_is_told_what_it_missed() {
    const EVENTS: u64 = 20_000;
    let bus = Bus::new();
    let mut command = bus.command(&["sub", "--json", "--queue-events", "10", "events.#"]);
    let mut slow = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let err = Lines::of(slow.stderr.take().unwrap());
    until("it is subscribed", || (bus.subscriptions() == 1).then_some(()));
    let mut publisher = bus.start(&["pub", "events.many", "-"]);
    let mut input = publisher.child.stdin.take().unwrap();
    for n in 0..EVENTS {
        writeln!(input, "{n}").unwrap();
    }
    drop(input);
    // Nobody reads, and nobody is held up by that.
    publisher.ends_well();
    let mut lines = BufReader::new(slow.stdout.take().unwrap()).lines();
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < EVENTS {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        match line["missed"].as_u64() {
            Some(count) => missed += count,
            None => seen += 1,
        }
        assert!(
            line.get("text").is_none_or(|n| n == &Value::from((seen + missed - 1).to_string()))
        );
    }
    assert_eq!(seen + missed, EVENTS);
    assert!(missed > 0);
    let told = until("it is told on standard error", || {
        err.so_far().into_iter().find(|line| line.contains("missed"))
    });
    assert!(told.starts_with("eventbus: ") && told.ends_with(" missed"), "{told}");
    let _ = slow.kill();
    let _ = slow.wait();
}

#[test]
fn a_live_subscriber_says_that_it_was_away() {
    let bus = Bus::new();
    let mut sub = bus.sub(&["--json", "events.#"]);
    let bus = Bus::again(bus.kill(), &[]);
    until("it is back", || (bus.subscriptions() == 1).then_some(()));
    succeeded(&bus.run(&["pub", "events.x", "after"]));
    sub.lines(2);
    assert_eq!(sub.json()[0], serde_json::json!({ "missed": null }));
    assert_eq!(sub.json()[1]["text"], "after");
    sub.says("what was published meanwhile was missed");
    // An orderly end of the broker is a reason to wait, too.
    let mut once = bus.sub(&["--no-reconnect", "events.#"]);
    let mut bus = bus;
    bus.serve.signal(Signal::TERM);
    bus.serve.ends_well();
    assert_eq!(once.end().code(), Some(1));
    assert!(once.err().contains("the broker is shutting down"), "{}", once.err());
    assert!(sub.child.try_wait().unwrap().is_none());
    sub.signal(Signal::TERM);
    sub.ends_well();
}

#[test]
fn time_limits_are_kept() {
    let bus = Bus::new();
    assert_eq!(succeeded(&bus.run(&["sub", "--timeout", "0.05", "events.#"])), "");
    let said = failed(&bus.run(&["sub", "--timeout", "0.05", "--count", "2", "events.#"]), 1);
    assert!(said.contains("0 of 2 came within the time given"), "{said}");
}

#[test]
fn a_consumer_that_does_not_come_back_is_forgotten() {
    let bus = Bus::with(&["--require", "needed"]);
    let mut needed = bus.sub(&["--durable", "needed", "events.#"]);
    let mut once = bus.sub(&["--durable", "once", "--forget", "--count", "1", "events.#"]);
    let mut gone = bus.sub(&["--durable", "gone", "events.#"]);
    let names = || strings(bus.stat()["consumers"].as_array().unwrap(), "name").join(" ");
    assert_eq!(names(), "gone needed once");
    assert!(failed(&bus.run(&["forget", "gone"]), 1).contains("is attached already"));
    let mut publisher = bus.start(&["pub", "events.x", "a", "b"]);
    once.ends_well();
    until("it has forgotten itself", || (names() == "gone needed").then_some(()));
    gone.lines(2);
    gone.signal(Signal::TERM);
    gone.ends_well();
    publisher.ends_well();
    until("it is gone", || {
        let output = bus.run(&["forget", "gone"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("is attached already"), "{said}");
        output.status.success().then_some(())
    });
    assert_eq!(names(), "needed");
    assert!(failed(&bus.run(&["forget", "gone"]), 1).contains("knows no durable consumer gone"));
    needed.signal(Signal::TERM);
    needed.ends_well();
    let said = until("the broker knows that it has left", || {
        let said = failed(&bus.run(&["forget", "needed"]), 1);
        (!said.contains("attached already")).then_some(said)
    });
    assert!(said.contains("needed is required and cannot be forgotten"), "{said}");
    assert_eq!(names(), "needed");
}
