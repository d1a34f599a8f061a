//! `eventbus stat`.

use rustix::process::Signal;
use serde_json::Value;

use crate::common::*;

#[test]
fn stat_tells_all_that_goes_on() {
    let bus = Bus::with(&["--credit-bytes", "4096"]);
    let mut store = bus.sub(&["--durable", "store", "--count", "1", "events.#"]);
    let _live = bus.sub(&["--id", "watcher", "events.*"]);
    let _publisher = bus.start(&["pub", "--id", "writer", "events.x", "abc", "de", "f"]);
    store.ends_well();
    let stat = until("the consumer has left", || {
        Some(bus.stat()).filter(|stat| stat["consumers"][0]["attached"] == false)
    });
    let names: Vec<&str> = strings(stat["connections"].as_array().unwrap(), "client_id");
    assert_eq!(names, ["watcher", "writer", "eventbus-stat"]);
    let roles = strings(stat["connections"].as_array().unwrap(), "role");
    assert_eq!(roles, ["subscriber", "collector", "subscriber"]);
    assert_eq!(stat["connections"][1]["traffic"]["events_in_total"], 3);
    assert_eq!(stat["connections"][0]["traffic"]["events_out_total"], 3);
    assert_eq!(stat["live"][0]["client_id"], "watcher");
    assert_eq!(stat["live"][0]["patterns"], serde_json::json!(["events.*"]));
    assert_eq!(stat["credit_bytes"], 4096);
    let stream = &stat["streams"][0];
    assert_eq!((&stream["publisher"], &stream["last"]), (&"writer".into(), &3.into()));
    assert_eq!((&stream["acked"], &stream["retained_bytes"]), (&1.into(), &(2 * 32 + 3).into()));
    let cursor = &stat["consumers"][0]["cursors"][0];
    assert_eq!((&cursor["committed"], &cursor["lag"]), (&1.into(), &2.into()));
    assert_eq!(cursor["stream"], stream["stream"]);
    assert!(stat.get("rates").is_none(), "one look has no rates");

    let twice: Value =
        serde_json::from_str(&succeeded(&bus.run(&["stat", "--json", "--over", "0.05"]))).unwrap();
    assert!(twice["rates"]["over_ms"].as_u64().unwrap() > 0);
    assert!(twice["rates"]["bytes_out_per_s"].as_f64().unwrap() > 0.0, "the first answer");

    let shown = succeeded(&bus.run(&["stat", "--over", "0"]));
    let row = |name: &str| {
        let line = shown.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name} in {shown}")).split_whitespace().collect::<Vec<_>>()
    };
    let store = row("store");
    assert_eq!((store[1], *store.last().unwrap()), ("NO", "2"));
    assert_eq!(row("watcher")[3], "subscriber");
    assert!(shown.starts_with("broker   pid "), "{shown}");
    assert!(!shown.contains('\u{1b}'));
}

#[test]
fn stat_watches_until_it_is_told_to_end() {
    let bus = Bus::new();
    let mut watch = bus.start(&["stat", "--json", "--watch", "0.02"]);
    watch.lines(3);
    let looks = watch.json();
    let uptime = |look: &Value| look["uptime_ms"].as_u64().unwrap();
    assert!(looks.windows(2).all(|two| uptime(&two[0]) < uptime(&two[1])));
    assert!(looks[0].get("rates").is_none() && looks[2]["rates"]["over_ms"].is_u64());

    // It outlives the broker, and says that the next one is another.
    let bus = Bus::again(bus.kill(), &[]);
    let before = watch.lines(4).len();
    until("it sees the new broker", || {
        let looks = watch.json();
        let pid = u64::from(bus.serve.child.id());
        looks.iter().skip(before).any(|look| look["pid"] == pid).then_some(())
    });
    let pid = u64::from(bus.serve.child.id());
    let first = watch.json().into_iter().find(|look| look["pid"] == pid).unwrap();
    assert!(first.get("rates").is_none(), "counters of another broker make no rates");
    watch.signal(Signal::INT);
    watch.ends_well();
}
