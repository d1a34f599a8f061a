//! What an event's JSON says beyond its columns, in words.

use daemoneye_lib::display;
use serde_json::Value;

/// The kind as people call it: the last segment of the topic, and `exists` for the start of a
/// process that was there before monitoring began.
pub(super) fn kind(topic: &str, event: &Value) -> String {
    if event["existing"] == true {
        return "exists".to_owned();
    }
    topic.rsplit('.').next().unwrap_or(topic).to_owned()
}

/// Whether it is the start of a process that was there before monitoring began.
pub(super) fn is_existing(topic: &str, json: &str) -> bool {
    // Most events are none of these: a look at the text saves reading it.
    topic.ends_with(".start")
        && json.contains("existing")
        && serde_json::from_str::<Value>(json).is_ok_and(|event| event["existing"] == true)
}

/// How a process ended, what changed, what is missing. Empty if there is nothing to say.
pub(super) fn details(event: &Value) -> String {
    let mut parts = Vec::new();
    if event["type"] == "gap" {
        gap(event, &mut parts);
    } else if !event["undecodable"].is_null() {
        parts.push(format!("cannot be decoded: {}", text(&event["error"])));
    } else {
        exit(event, &mut parts);
        changes(event, &mut parts);
        if event["inferred"] == true {
            parts.push("inferred".to_owned());
        }
    }
    parts.join(", ")
}

fn gap(event: &Value, parts: &mut Vec<String>) {
    let reason = text(&event["reason"]);
    parts.push(match &event["missing"] {
        Value::Null => reason,
        count if *count == 1 => format!("1 event missing: {reason}"),
        count => format!("{} events missing: {reason}", text(count)),
    });
    if let (Value::Number(first), Value::Number(last)) =
        (&event["first_sequence"], &event["last_sequence"])
    {
        parts.push(format!("sequences {first} to {last}"));
    }
    if event["detail"].as_str().is_some_and(|detail| !detail.is_empty()) {
        parts.push(text(&event["detail"]));
    }
}

fn exit(event: &Value, parts: &mut Vec<String>) {
    if !event["signal"].is_null() {
        parts.push(format!("signal {}", text(&event["signal"])));
    } else if !event["exit_code"].is_null() {
        parts.push(format!("exit code {}", text(&event["exit_code"])));
    }
    if let Some(ran) = event["run_time_ns"].as_u64() {
        parts.push(format!("ran {}", duration(ran)));
    }
}

fn changes(event: &Value, parts: &mut Vec<String>) {
    for change in event["changes"].as_array().into_iter().flatten() {
        let old = match &change["old"] {
            Value::Null => "unknown".to_owned(),
            Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
            old => text(old),
        };
        parts.push(format!("{} was {old}", text(&change["field"])));
    }
}

/// A JSON value as text a terminal may have.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => display::escape(text.as_bytes()).to_string(),
        other => display::escape(other.to_string().as_bytes()).to_string(),
    }
}

/// A length of time in the unit a person would choose.
pub(crate) fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        0 if ns < 1_000_000 => format!("{} µs", ns / 1_000),
        0 => format!("{} ms", ns / 1_000_000),
        1..60 => format!("{}.{:02} s", seconds, ns % 1_000_000_000 / 10_000_000),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_told_as_people_tell_them() {
        let second = 1_000_000_000;
        let told = [900_000, 42_000_000, 3 * second + 50_000_000, 61 * second, 7_260 * second]
            .map(duration);
        assert_eq!(told, ["900 µs", "42 ms", "3.05 s", "1 min 01 s", "2 h 01 min"]);
        assert_eq!(duration(90_000 * second), "1 d 01 h");
    }
}
