//! What an event's JSON says, in words that a terminal may have.

use serde_json::Value;

use crate::display::{self, duration};

/// The kind as people call it: the last segment of the topic, and `exists` for the start of a
/// process that was there before monitoring began.
#[must_use]
pub fn kind(topic: &str, event: &Value) -> String {
    if event["existing"] == true {
        return "exists".to_owned();
    }
    topic.rsplit('.').next().unwrap_or(topic).to_owned()
}

/// Whether it is the start of a process that was there before monitoring began.
#[must_use]
pub fn is_existing(topic: &str, json: &str) -> bool {
    // Most events are none of these: a look at the text saves reading it.
    topic.ends_with(".start")
        && json.contains("existing")
        && serde_json::from_str::<Value>(json).is_ok_and(|event| event["existing"] == true)
}

/// How a process ended, what changed, what is missing. Empty if there is nothing to say.
#[must_use]
pub fn details(event: &Value) -> String {
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
