//! Showing stored events: columns for people, JSON lines for programs.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use daemoneye_lib::describe;
use daemoneye_lib::display::{cut, escape_json, plain, time};
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::store::StoredEvent;

/// Where the command begins.
const COMMAND_AT: usize = 70;

/// What is left of a command however narrow the terminal is.
const COMMAND_MIN: usize = 20;

/// How events are printed.
#[derive(Clone, Debug)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Aligned columns.
    Columns {
        /// Whether kinds are coloured.
        colour: bool,
        /// The zone times are shown in.
        zone: TimeZone,
        /// Whether lines are cut to the width of the terminal that standard output is.
        cut: bool,
    },
}

impl Format {
    /// The format for standard output: coloured on a terminal unless `NO_COLOR` says otherwise,
    /// in the system's time zone.
    #[must_use]
    pub fn for_stdout(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        let terminal = io::stdout().is_terminal();
        let colour = wants_colour(
            terminal,
            std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
            std::env::var_os("TERM").is_some_and(|term| term == "dumb"),
        );
        Self::Columns { colour, zone: TimeZone::system(), cut: terminal }
    }
}

const fn wants_colour(terminal: bool, no_color: bool, dumb: bool) -> bool {
    terminal && !no_color && !dumb
}

/// Prints events to a writer.
#[derive(Debug)]
pub struct EventPrinter<W> {
    out: W,
    format: Format,
    headed: bool,
    folds: bool,
    folded: Option<Folded>,
}

/// Processes that were there before monitoring began, not printed yet.
#[derive(Debug)]
struct Folded {
    count: u64,
    time_ns: i64,
}

impl<W: Write> EventPrinter<W> {
    /// A printer that has printed nothing yet.
    pub const fn new(out: W, format: Format) -> Self {
        Self { out, format, headed: false, folds: false, folded: None }
    }

    /// In columns, processes that were there before monitoring began are shown as one line with
    /// their number: somebody who waits for what happens is not flooded with what was.
    #[must_use]
    pub fn folding_existing(mut self) -> Self {
        self.folds = true;
        self
    }

    /// Prints one event; columns are headed before the first.
    ///
    /// # Errors
    /// When the writer fails, for example because the reader of a pipe is gone.
    pub fn print(&mut self, event: &StoredEvent) -> io::Result<()> {
        match &self.format {
            Format::Json => json_line(&mut self.out, event),
            Format::Columns { colour, zone, cut } => {
                let (colour, zone) = (*colour, zone.clone());
                if self.folds && describe::is_existing(&event.topic, &event.event) {
                    let folded =
                        self.folded.get_or_insert(Folded { count: 0, time_ns: event.time_ns });
                    folded.count += 1;
                    return Ok(());
                }
                // Asked for each line: a window may be resized.
                let width = cut.then(terminal_width).flatten();
                self.unfold()?;
                self.head(colour)?;
                columns(&mut self.out, event, colour, zone, width)
            }
        }
    }

    /// Passes on what is buffered.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.unfold()?;
        self.out.flush()
    }

    fn unfold(&mut self) -> io::Result<()> {
        let (Some(Folded { count, time_ns }), Format::Columns { colour, zone, .. }) =
            (self.folded.take(), &self.format)
        else {
            return Ok(());
        };
        let (colour, zone) = (*colour, zone.clone());
        self.head(colour)?;
        let (dim, undim) = paint(Style::new().dimmed(), colour);
        let what = match count {
            1 => "1 process was there already".to_owned(),
            several => format!("{several} processes were there already"),
        };
        writeln!(
            self.out,
            "{dim}{:<23} {:<6} {:>40}{what}{undim}",
            time(time_ns, zone),
            "exists",
            ""
        )
    }

    fn head(&mut self, colour: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.headed, true) {
            return Ok(());
        }
        let (on, off) = paint(Style::new().dimmed(), colour);
        writeln!(
            self.out,
            "{on}{:<23} {:<6} {:>7} {:>7} {:>6} {:<15} COMMAND{off}",
            "TIME", "KIND", "PID", "PPID", "UID", "NAME"
        )
    }
}

/// The switches around a piece of styled text; empty without colour.
fn paint(style: Style, colour: bool) -> (String, String) {
    if colour {
        (style.render().to_string(), style.render_reset().to_string())
    } else {
        (String::new(), String::new())
    }
}

fn columns(
    out: &mut impl Write,
    event: &StoredEvent,
    colour: bool,
    zone: TimeZone,
    width: Option<usize>,
) -> io::Result<()> {
    // The text comes from our own writer, but a file can be edited: what is not JSON is shown
    // with nothing known about it.
    let json: Value = serde_json::from_str(&event.event).unwrap_or_default();
    let kind = describe::kind(&event.topic, &json);
    let (on, off) = paint(style(&kind), colour);
    let (dim, undim) = paint(Style::new().dimmed(), colour);
    let text = |column: &Option<String>| column.as_deref().map_or_else(String::new, plain);
    write!(
        out,
        "{dim}{:<23}{undim} {on}{:<6}{off} {:>7} {:>7} {:>6} {:<15} ",
        time(event.time_ns, zone),
        plain(&kind),
        number(event.pid),
        number(event.ppid),
        number(event.uid),
        text(&event.name),
    )?;
    let command = match &event.cmdline {
        Some(line) if !line.is_empty() => plain(line),
        _ => text(&event.exe),
    };
    let details = describe::details(&json);
    let (command, details) = fit(command, details, width);
    match (command.is_empty(), details.is_empty()) {
        (_, true) => writeln!(out, "{command}"),
        (true, false) => writeln!(out, "{on}{details}{off}"),
        (false, false) => writeln!(out, "{command}  {dim}{details}{undim}"),
    }
}

/// Cuts the command, and failing that the details, so that the line ends at `width`.
fn fit(command: String, details: String, width: Option<usize>) -> (String, String) {
    let Some(width) = width else { return (command, details) };
    let room = width.saturating_sub(COMMAND_AT).max(COMMAND_MIN);
    let details = cut(details, room);
    // Two blanks between them.
    let taken = if details.is_empty() { 0 } else { details.chars().count() + 2 };
    (cut(command, room.saturating_sub(taken).max(COMMAND_MIN)), details)
}

#[cfg(unix)]
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(not(unix))]
const fn terminal_width() -> Option<usize> {
    None
}

fn style(kind: &str) -> Style {
    let colour = match kind {
        "start" => AnsiColor::Green,
        "stop" => AnsiColor::Red,
        "modify" => AnsiColor::Yellow,
        "exists" => return Style::new().dimmed(),
        "gap" => return AnsiColor::Magenta.on_default().bold(),
        _ => return Style::new(),
    };
    colour.on_default()
}

fn number(column: Option<i64>) -> String {
    column.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// One line of JSON: where the event is stored, and the event as it is stored.
fn json_line(out: &mut impl Write, event: &StoredEvent) -> io::Result<()> {
    let quoted = |text: &str| Value::from(text).to_string();
    let line = format!(
        r#"{{"stream":{},"sequence":{},"topic":{},"time_ns":{},"event":{}}}"#,
        quoted(&event.stream),
        event.sequence,
        quoted(&event.topic),
        event.time_ns,
        one_line(&event.event),
    );
    writeln!(out, "{}", escape_json(line))
}

/// The stored JSON if it is that and on one line; what somebody has edited is put in order.
fn one_line(json: &str) -> String {
    let ordinary =
        !json.contains(['\n', '\r']) && serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok();
    if ordinary {
        return json.to_owned();
    }
    match serde_json::from_str::<Value>(json) {
        Ok(value) => value.to_string(),
        Err(error) => {
            serde_json::json!({ "unreadable": json, "error": error.to_string() }).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(topic: &str, event: Value) -> StoredEvent {
        StoredEvent {
            rowid: 1,
            stream: "3f2a9c1e-0000-4000-8000-000000000000".into(),
            sequence: 7,
            topic: topic.into(),
            time_ns: 1_700_000_000_123_000_000,
            pid: Some(4711),
            ppid: Some(1),
            uid: Some(1000),
            name: Some("sleep".into()),
            exe: Some("/usr/bin/sleep".into()),
            cmdline: Some("sleep 10".into()),
            process_key: None,
            event: event.to_string(),
        }
    }

    fn show(event: &StoredEvent, format: Format) -> String {
        let mut out = Vec::new();
        EventPrinter::new(&mut out, format).print(event).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn columns_without_colour(event: &StoredEvent) -> String {
        let shown = show(event, Format::Columns { colour: false, zone: TimeZone::UTC, cut: false });
        shown.lines().nth(1).unwrap_or_default().to_owned()
    }

    #[test]
    fn events_stand_in_columns() {
        let event = stored(
            "events.process.start",
            serde_json::json!({ "type": "process", "kind": "start", "existing": false }),
        );
        let shown =
            show(&event, Format::Columns { colour: false, zone: TimeZone::UTC, cut: false });
        assert_eq!(
            shown,
            "TIME                    KIND       PID    PPID    UID NAME            COMMAND\n\
             2023-11-14 22:13:20.123 start     4711       1   1000 sleep           sleep 10\n"
        );
        let existing = stored(
            "events.process.start",
            serde_json::json!({ "type": "process", "kind": "start", "existing": true }),
        );
        assert!(columns_without_colour(&existing).contains(" exists "));
    }

    #[test]
    fn what_was_there_already_is_one_line_for_those_who_follow() {
        let exists = stored(
            "events.process.start",
            serde_json::json!({ "type": "process", "kind": "start", "existing": true }),
        );
        let start = stored("events.process.start", serde_json::json!({ "existing": false }));
        let format = Format::Columns { colour: false, zone: TimeZone::UTC, cut: false };
        let mut out = Vec::new();
        let mut printer = EventPrinter::new(&mut out, format).folding_existing();
        for event in [&exists, &exists, &start, &exists] {
            printer.print(event).unwrap();
        }
        printer.flush().unwrap();
        let shown = String::from_utf8(out).unwrap();
        let lines: Vec<_> = shown.lines().map(|line| line.get(24..).unwrap_or(line)).collect();
        assert_eq!(lines.len(), 4, "{shown}");
        assert!(
            lines[1].starts_with("exists") && lines[1].ends_with("2 processes were there already")
        );
        assert!(lines[2].starts_with("start"));
        assert!(lines[3].ends_with("1 process was there already"));
    }

    #[test]
    fn a_stop_says_how_and_a_gap_says_what() {
        let stop = stored(
            "events.process.stop",
            serde_json::json!({
                "type": "process", "kind": "stop", "exit_code": 3, "run_time_ns": 1_250_000_000,
                "inferred": true,
            }),
        );
        assert!(
            columns_without_colour(&stop).ends_with("sleep 10  exit code 3, ran 1.25 s, inferred")
        );
        let mut gap = stored(
            "events.process.gap",
            serde_json::json!({
                "type": "gap", "reason": "log_damaged", "missing": 3, "first_sequence": 5,
                "last_sequence": 7, "detail": "a record \u{1b}[2J does not check",
            }),
        );
        (gap.pid, gap.ppid, gap.uid) = (None, None, None);
        (gap.name, gap.exe, gap.cmdline) = (None, None, None);
        let shown = columns_without_colour(&gap);
        assert!(
            shown.ends_with(
                r"3 events missing: log_damaged, sequences 5 to 7, a record \x1b[2J does not check"
            ),
            "{shown}"
        );
    }

    #[test]
    fn a_change_names_the_old_value() {
        let modify = stored(
            "events.process.modify",
            serde_json::json!({
                "type": "process", "kind": "modify",
                "changes": [{"field": "uid", "old": 0}, {"field": "name", "old": null}],
            }),
        );
        let shown = columns_without_colour(&modify);
        assert!(shown.ends_with("uid was 0, name was unknown"), "{shown}");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        // As an edited database, or a payload nobody could decode, might have them.
        let evil = "\u{1b}]0;x\u{7}\u{9b}2J\n\u{202e}";
        let mut event = stored(evil, serde_json::json!({ "undecodable": "00", "error": evil }));
        event.name = Some(evil.into());
        event.cmdline = Some(evil.into());
        event.stream = evil.into();
        let formats =
            [Format::Json, Format::Columns { colour: false, zone: TimeZone::UTC, cut: false }];
        for raw in [event.event.clone(), evil.to_owned(), format!("{{\"a\":\n\"{evil}\"}}")] {
            event.event = raw;
            for format in formats.clone() {
                let shown = show(&event, format);
                let lines: Vec<_> = shown.lines().collect();
                assert!(lines.len() <= 2, "{shown:?}");
                assert!(!lines.concat().chars().any(char::is_control), "{shown:?}");
            }
        }
    }

    #[test]
    fn json_says_where_the_event_is_stored_and_keeps_it_whole() {
        let event = stored("events.process.start", serde_json::json!({ "name": "a\u{9b}b" }));
        let shown = show(&event, Format::Json);
        let line: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(line["stream"], "3f2a9c1e-0000-4000-8000-000000000000");
        assert_eq!(line["sequence"], 7);
        assert_eq!(line["topic"], "events.process.start");
        assert_eq!(line["time_ns"], 1_700_000_000_123_000_000_i64);
        assert_eq!(line["event"]["name"], "a\u{9b}b");
    }

    #[test]
    fn lines_end_where_the_terminal_does() {
        let event = stored("events.process.stop", serde_json::json!({ "exit_code": 3 }));
        let shown = |width| {
            let mut out = Vec::new();
            columns(&mut out, &event, false, TimeZone::UTC, Some(width)).unwrap();
            String::from_utf8(out).unwrap()[COMMAND_AT..].trim_end().to_owned()
        };
        assert_eq!(shown(200), "sleep 10  exit code 3");
        assert_eq!(fit("é".repeat(50), "exit".into(), Some(110)).0, "é".repeat(33) + "…");
        assert_eq!(fit("c".into(), "d".repeat(90), Some(90)).1.chars().count(), 20);
        assert_eq!(fit("c".repeat(50), String::new(), Some(10)).0.chars().count(), COMMAND_MIN);
    }

    #[test]
    fn colour_only_where_it_is_wanted() {
        assert!(wants_colour(true, false, false));
        assert!(!wants_colour(false, false, false));
        assert!(!wants_colour(true, true, false));
        assert!(!wants_colour(true, false, true));
        let event = stored("events.process.stop", Value::Null);
        let shown = show(&event, Format::Columns { colour: true, zone: TimeZone::UTC, cut: false });
        assert!(shown.contains("\u{1b}[31mstop"), "{shown:?}");
    }
}
