//! `procmond wal export`: the events in a log, and what is missing between them.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use daemoneye_lib::display::{escape, escape_json, hex, plain};
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::since::parse_since;
use daemoneye_lib::stream::{Sequence, wall_clock_ns};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::record::decoded;
use super::{FilesArgs, failed, progress, written};
use crate::wal::{LogEntry, Progress, read_files};

#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// From this sequence on
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Up to this sequence
    #[arg(long, value_name = "SEQUENCE")]
    to: Option<u64>,
    /// Only events at or after T: RFC 3339 (2026-01-31T12:00:00Z) or so long ago (30s, 10m, 2h, 1d)
    #[arg(long, value_name = "T", value_parser = since_now)]
    since: Option<i64>,
    /// Only events of this kind; may be given several times, or as a list with commas
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Start,
    Stop,
    Modify,
    Gap,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Start => EventKind::Start.as_u8(),
            Self::Stop => EventKind::Stop.as_u8(),
            Self::Modify => EventKind::Modify.as_u8(),
            Self::Gap => EventKind::Gap.as_u8(),
        }
    }
}

pub(super) fn export(args: &ExportArgs) -> Result<ExitCode, ExitCode> {
    let files = args.files.files()?;
    let range = Sequence(args.from.unwrap_or(0))..=Sequence(args.to.unwrap_or(u64::MAX >> 1));
    let mut out = BufWriter::new(io::stdout().lock());
    let mut printed = Ok(());
    let mut visit = |entry: LogEntry<'_>| {
        let Some(line) = line(args, entry) else { return ControlFlow::Continue(()) };
        printed = writeln!(out, "{line}");
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let progress = Progress::default();
    let read = progress::shown(&progress, || read_files(&files, range, &progress, &mut visit));
    written(printed.and_then(|()| out.flush()))?;
    let not_read = read.map_err(|error| failed(&error))?;
    for (path, why) in &not_read {
        eprintln!("procmond: {} is not read: {why}", escape(path.as_os_str().as_encoded_bytes()));
    }
    if not_read.is_empty() && progress.bytes().1 == 0 {
        return Err(args.files.empty());
    }
    Ok(ExitCode::SUCCESS)
}

/// What is printed for an entry, if anything is.
fn line(args: &ExportArgs, entry: LogEntry<'_>) -> Option<String> {
    match entry {
        LogEntry::Record { stream, sequence, epoch, timestamp_ns, kind, payload } => {
            let wanted = args.since.is_none_or(|since| timestamp_ns >= since)
                && (args.kind.is_empty() || args.kind.iter().any(|wanted| wanted.byte() == kind));
            if !wanted {
                return None;
            }
            let topic = EventKind::from_u8(kind).map(EventKind::topic);
            if args.files.json {
                return Some(one_line(&json!({
                    "type": "event",
                    "stream": stream.to_string(),
                    "sequence": sequence,
                    "epoch": epoch.to_string(),
                    "topic": topic,
                    "kind": kind,
                    "time_ns": timestamp_ns,
                    "event": event_json(payload),
                })));
            }
            Some(format!("{sequence:>10}  {:<30}  {}", time(timestamp_ns), told(kind, payload)))
        }
        LogEntry::Lost { stream, first, last, reason, committed } => {
            let missing = last.since(first.prev());
            if args.files.json {
                return Some(one_line(&json!({
                    "type": "gap",
                    "stream": stream.to_string(),
                    "first_sequence": first,
                    "last_sequence": last,
                    "missing": missing,
                    "reason": reason.to_string(),
                    "committed": committed,
                })));
            }
            let known = if committed { ", all of them committed" } else { "" };
            Some(format!("{first:>10}  -- {missing} records up to {last} are {reason}{known} --"))
        }
    }
}

/// An event for people.
fn told(kind: u8, payload: &[u8]) -> String {
    match decoded(payload) {
        Ok(Event::Process(event)) => {
            let command = match &event.argv {
                Some(argv) if !argv.is_empty() => argv.command_line(),
                _ => event.name.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string),
            };
            let word = EventKind::from_u8(kind)
                .map_or("?", |kind| kind.topic().rsplit('.').next().unwrap_or_default());
            format!("{word:<6} {:>7}  {}", event.pid(), plain(&command))
        }
        Ok(Event::Gap(gap)) => {
            let missing =
                gap.missing.map_or_else(String::new, |missing| format!("{missing} missing, "));
            format!("gap    {missing}{}: {}", gap.reason.as_str(), plain(&gap.detail))
        }
        Err(error) => {
            format!("kind {kind}, {} bytes that are no event: {}", payload.len(), plain(&error))
        }
    }
}

/// JSON on one line that a terminal may have.
pub(super) fn one_line(value: &Value) -> String {
    escape_json(value.to_string())
}

/// A payload as JSON: the event, or what it is if it is none.
pub(super) fn event_json(payload: &[u8]) -> Value {
    match decoded(payload) {
        Ok(event) => serde_json::to_value(event).unwrap_or_default(),
        Err(error) => json!({"undecodable": hex(payload), "error": error}),
    }
}

fn time(time_ns: i64) -> String {
    Timestamp::from_nanosecond(i128::from(time_ns))
        .map_or_else(|_| format!("{time_ns} ns"), |time| format!("{time:.6}"))
}

fn since_now(text: &str) -> Result<i64, String> {
    parse_since(text, wall_clock_ns())
}
