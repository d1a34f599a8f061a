//! One event or message as one line.

use std::io::Write;

use anstyle::Style;
use daemoneye_eventbus::{Delivered, Epoch, Message, Sequence, StreamId};
use daemoneye_lib::describe;
use daemoneye_lib::display::{cut, escape, escape_json, hex, plain, time};
use daemoneye_lib::models::event::Event;
use daemoneye_lib::stream::wall_clock_ns;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::terminal::{Terminal, say};

/// Bytes of a payload that is not text shown to people; JSON has all of them.
const BYTES_SHOWN: usize = 64;
/// The width of most topics.
const TOPIC_WIDTH: usize = 22;

/// How lines look.
pub(super) enum Form {
    /// One JSON object a line.
    Json,
    /// Time, topic and what there is to say.
    Lines(Terminal),
}

/// Prints and counts.
pub(super) struct Printer<W> {
    out: W,
    form: Form,
    zone: TimeZone,
    printed: u64,
    wanted: Option<u64>,
}

/// What a payload is found to be.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Payload {
    Event(Event),
    Json(Value),
    Text(String),
    Hex(String),
}

#[derive(Serialize)]
struct EventLine<'a> {
    topic: &'a str,
    stream: StreamId,
    sequence: Sequence,
    span: u64,
    epoch: Epoch,
    time_ns: i64,
    #[serde(flatten)]
    payload: Payload,
}

#[derive(Serialize)]
struct MessageLine<'a> {
    topic: &'a str,
    time_ns: i64,
    reply_to: Option<&'a str>,
    correlation: u64,
    retained: bool,
    #[serde(flatten)]
    payload: Payload,
}

#[derive(Serialize)]
struct MissedLine {
    missed: Option<u64>,
}

impl<W: Write> Printer<W> {
    /// A printer that is done when it has printed as many as are `wanted`.
    pub(super) fn new(out: W, form: Form, wanted: Option<u64>) -> Self {
        Self { out, form, zone: TimeZone::system(), printed: 0, wanted }
    }

    /// How many events and messages have been printed.
    pub(super) const fn printed(&self) -> u64 {
        self.printed
    }

    pub(super) fn is_done(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.printed >= wanted)
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(Failure::output)
    }

    pub(super) fn event(&mut self, event: &Delivered) -> Result<(), Failure> {
        self.printed += 1;
        let payload = event_payload(&event.payload);
        match self.form {
            Form::Json => self.json(&EventLine {
                topic: event.topic.as_str(),
                stream: event.origin.stream,
                sequence: event.origin.sequence,
                span: event.origin.span,
                epoch: event.origin.epoch,
                time_ns: event.timestamp_ns,
                payload,
            }),
            Form::Lines(terminal) => {
                let text = told(&payload, event.payload.len());
                self.line(terminal, event.timestamp_ns, event.topic.as_str(), &text)
            }
        }
    }

    pub(super) fn message(&mut self, message: &Message) -> Result<(), Failure> {
        self.printed += 1;
        let time_ns = wall_clock_ns();
        let payload = message_payload(&message.payload);
        match self.form {
            Form::Json => self.json(&MessageLine {
                topic: message.topic.as_str(),
                time_ns,
                reply_to: message.reply_to.as_ref().map(|topic| topic.as_str()),
                correlation: message.correlation,
                retained: message.retained,
                payload,
            }),
            Form::Lines(terminal) => {
                let text = told(&payload, message.payload.len());
                self.line(terminal, time_ns, message.topic.as_str(), &text)
            }
        }
    }

    /// Says that `count` were missed here; nobody knows how many if it is `None`.
    pub(super) fn missed(&mut self, count: Option<u64>) -> Result<(), Failure> {
        if let Form::Json = self.form {
            self.json(&MissedLine { missed: count })?;
        }
        // In its place among the lines where both go to one terminal.
        self.flush()?;
        match count {
            Some(1) => say("1 event was missed"),
            Some(count) => say(&format!("{count} events were missed")),
            None => say("what was published meanwhile was missed"),
        }
        Ok(())
    }

    fn json(&mut self, line: &impl Serialize) -> Result<(), Failure> {
        let json = serde_json::to_string(line).map_err(Failure::failed)?;
        writeln!(self.out, "{}", escape_json(json)).map_err(Failure::output)
    }

    fn line(
        &mut self,
        terminal: Terminal,
        time_ns: i64,
        topic: &str,
        text: &str,
    ) -> Result<(), Failure> {
        let time = terminal.paint(Style::new().dimmed(), &time(time_ns, self.zone.clone()));
        writeln!(self.out, "{time} {topic:<TOPIC_WIDTH$} {text}").map_err(Failure::output)
    }
}

fn event_payload(payload: &[u8]) -> Payload {
    Event::decode(payload).map_or_else(|_| raw(payload), Payload::Event)
}

/// Control messages are JSON, mostly.
fn message_payload(payload: &[u8]) -> Payload {
    serde_json::from_slice(payload).map_or_else(|_| raw(payload), Payload::Json)
}

fn raw(payload: &[u8]) -> Payload {
    match std::str::from_utf8(payload) {
        Ok(text) => Payload::Text(text.to_owned()),
        Err(_) => Payload::Hex(hex(payload)),
    }
}

/// A payload for people.
fn told(payload: &Payload, bytes: usize) -> String {
    match payload {
        Payload::Event(event) => told_event(event),
        Payload::Json(json) => plain(&escape_json(json.to_string())),
        Payload::Text(text) => escape(text.as_bytes()).to_string(),
        Payload::Hex(hex) => format!("{bytes} bytes {}", cut(hex.clone(), 2 * BYTES_SHOWN)),
    }
}

/// Pid and command, and what this kind of event has to say.
fn told_event(event: &Event) -> String {
    let mut parts = Vec::new();
    if let Event::Process(process) = event {
        parts.push(format!("{:>7}", process.pid()));
        parts.push(match (&process.argv, &process.name) {
            (Some(argv), _) if !argv.is_empty() => plain(&argv.command_line()),
            (_, Some(name)) => format!("[{}]", plain(&name.to_string())),
            (_, None) => "?".to_owned(),
        });
    }
    let json = serde_json::to_value(event).unwrap_or_default();
    if json["existing"] == true {
        parts.push(" was there already".to_owned());
    }
    let details = describe::details(&json);
    if !details.is_empty() {
        parts.push(format!(" {details}"));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use daemoneye_eventbus::Origin;
    use daemoneye_lib::models::gap::{GapEvent, GapReason};

    use super::*;

    fn event(payload: impl Into<Bytes>) -> Delivered {
        Delivered {
            origin: Origin {
                stream: StreamId::from_bytes([1; 16]),
                epoch: Epoch::from_u64(7),
                sequence: Sequence(3),
                span: 1,
            },
            topic: "events.x.y".parse().unwrap(),
            timestamp_ns: 1_700_000_000_123_000_000,
            payload: payload.into(),
        }
    }

    fn shown(form: Form, print: impl Fn(&mut Printer<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, form, None);
        printer.zone = TimeZone::UTC;
        print(&mut printer);
        String::from_utf8(out).unwrap()
    }

    fn lines() -> Form {
        Form::Lines(Terminal::plain())
    }

    #[test]
    fn a_line_has_time_topic_and_text() {
        let line = shown(lines(), |printer| printer.event(&event("hello")).unwrap());
        assert_eq!(line, "2023-11-14 22:13:20.123 events.x.y             hello\n");
    }

    #[test]
    fn json_says_where_it_comes_from_and_what_it_is() {
        let json = |payload: Bytes| {
            let line = shown(Form::Json, |printer| printer.event(&event(payload.clone())).unwrap());
            serde_json::from_str::<Value>(&line).unwrap()
        };
        let gap = Event::from(GapEvent::new(GapReason::LogFull, 5, "full"));
        let line = json(gap.encode().into());
        assert_eq!(line["event"]["reason"], "log_full");
        assert_eq!((&line["topic"], &line["sequence"]), (&"events.x.y".into(), &3.into()));
        assert_eq!((&line["epoch"], &line["span"]), (&7.into(), &1.into()));
        assert_eq!(line["stream"], "01010101-0101-0101-0101-010101010101");
        assert_eq!(line["time_ns"], 1_700_000_000_123_000_000_i64);
        assert_eq!(json("text".into())["text"], "text");
        assert_eq!(json(Bytes::from_static(&[0xff, 0]))["hex"], "ff00");
    }

    #[test]
    fn messages_are_json_where_they_are() {
        let message = |payload: &'static str| Message {
            topic: "control.health.status".parse().unwrap(),
            payload: payload.into(),
            reply_to: Some("reply.7".parse().unwrap()),
            correlation: 9,
            retained: true,
        };
        let line = shown(Form::Json, |printer| {
            printer.message(&message("{\"a\":1}")).unwrap();
            printer.message(&message("{a")).unwrap();
        });
        let lines: Vec<Value> = line.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((&lines[0]["json"]["a"], &lines[1]["text"]), (&1.into(), &"{a".into()));
        assert_eq!(lines[0]["retained"], true);
        assert_eq!(
            (&lines[0]["reply_to"], &lines[0]["correlation"]),
            (&"reply.7".into(), &9.into())
        );
    }

    #[test]
    fn nothing_reaches_a_terminal_that_it_would_act_upon() {
        let evil = "\u{1b}]0;x\u{7}\u{9b}2J\n\u{202e}\u{7f}";
        let gap = Event::from(GapEvent::new(GapReason::LogFull, 5, evil));
        let payloads: [Bytes; 3] =
            [evil.into(), gap.encode().into(), Bytes::from_static(b"\x1b[2J\xff")];
        for payload in payloads {
            let message = Message {
                topic: "control.x".parse().unwrap(),
                payload: serde_json::json!({ "a": evil }).to_string().into(),
                reply_to: None,
                correlation: 0,
                retained: false,
            };
            for json in [true, false] {
                let line = shown(if json { Form::Json } else { lines() }, |printer| {
                    printer.event(&event(payload.clone())).unwrap();
                    printer.message(&message).unwrap();
                });
                assert_eq!(line.lines().count(), 2, "{line:?}");
                let acts = |c: char| c.is_control() || (!json && c == '\u{202e}');
                assert!(!line.replace('\n', "").chars().any(acts), "{line:?}");
            }
        }
    }

    #[test]
    fn what_is_no_text_is_cut_for_people() {
        let line = shown(lines(), |printer| printer.event(&event(vec![0xff; 1000])).unwrap());
        assert!(line.ends_with("…\n") && line.contains(" 1000 bytes ffff"), "{line}");
        assert!(line.chars().count() < 200);
    }
}
