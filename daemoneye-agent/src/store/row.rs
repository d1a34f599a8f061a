//! An event as it stands in the table `events`.

use daemoneye_eventbus::Delivery;
use daemoneye_lib::display::{chain, hex};
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::models::process::ProcessEvent;
use daemoneye_lib::stream::Sequence;

/// The columns drawn from an event's payload.
///
/// Text columns are for people: what a terminal could act upon is escaped in them. The exact
/// bytes are in `event`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) pid: Option<u32>,
    pub(super) ppid: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) name: Option<String>,
    pub(super) exe: Option<String>,
    pub(super) cmdline: Option<String>,
    pub(super) process_key: Option<String>,
    /// JSON.
    pub(super) event: String,
    /// Whether the payload could be read.
    pub(super) decoded: bool,
}

/// A delivery with the row of each of its entries, in order.
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    pub(super) delivery: Delivery,
    pub(super) rows: Vec<Row>,
}

impl From<Delivery> for Decoded {
    fn from(mut delivery: Delivery) -> Self {
        // The payloads are let go of: they keep the buffer they were read into.
        let rows = delivery.entries.iter_mut().map(|entry| std::mem::take(&mut entry.payload));
        let rows = rows.map(|payload| Row::from_payload(&payload)).collect();
        Self { delivery, rows }
    }
}

impl Row {
    /// Reads a payload. One that cannot be read is kept as hexadecimal digits, with the reason: it
    /// was acknowledged to its collector, so nobody else has it any more.
    pub(super) fn from_payload(payload: &[u8]) -> Self {
        match Event::decode(payload) {
            Ok(event) => Self::from_event(&event),
            Err(error) => Self::undecodable(payload, &error),
        }
    }

    /// The row that stands for sequences `first..=last` of a stream, which were sent before this
    /// store followed it or while nobody kept them, and are gone.
    pub(super) fn permanent_gap(first: Sequence, last: Sequence, time_ns: i64) -> Self {
        Self::from_event(&Event::from(GapEvent {
            missing: Some(last.since(first.prev())),
            first_sequence: Some(first),
            last_sequence: Some(last),
            ..GapEvent::new(
                GapReason::ConsumerBehind,
                time_ns,
                "the log and the broker no longer hold these events",
            )
        }))
    }

    fn from_event(event: &Event) -> Self {
        let json = match serde_json::to_string(event) {
            Ok(json) => json,
            Err(error) => return Self::undecodable(&event.encode(), &error),
        };
        let columns = match event {
            Event::Process(process) => Self::from_process(process),
            Event::Gap(_) => Self::default(),
        };
        Self { event: json, decoded: true, ..columns }
    }

    fn from_process(process: &ProcessEvent) -> Self {
        Self {
            pid: Some(process.pid()),
            ppid: process.ppid,
            uid: process.uid,
            name: process.name.as_ref().map(ToString::to_string),
            exe: process.exe.as_ref().map(ToString::to_string),
            cmdline: process.argv.as_ref().map(|argv| argv.command_line()),
            process_key: Some(process.key.to_string()),
            ..Self::default()
        }
    }

    fn undecodable(payload: &[u8], error: &dyn std::error::Error) -> Self {
        let event =
            serde_json::json!({ "undecodable": hex(payload), "error": chain(error) }).to_string();
        Self { event, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_kept_whole_with_the_reason() {
        let row = Row::from_payload(&[0xfe, 0x00, 0x1b]);
        let event: serde_json::Value = serde_json::from_str(&row.event).unwrap();
        assert_eq!(event["undecodable"], "fe001b");
        assert!(event["error"].as_str().unwrap().contains("254"), "{event}");
        assert!(!row.decoded);
        assert_eq!((row.pid, row.name, row.cmdline), (None, None, None));
        assert!(!Row::from_payload(&[]).decoded);
    }

    #[test]
    fn a_gap_names_its_bounds() {
        let row = Row::permanent_gap(Sequence(5), Sequence(9), 77);
        let event: serde_json::Value = serde_json::from_str(&row.event).unwrap();
        assert_eq!(event["first_sequence"], 5);
        assert_eq!(event["last_sequence"], 9);
        assert_eq!(event["missing"], 5);
        assert_eq!(event["reason"], "consumer_behind");
    }
}
