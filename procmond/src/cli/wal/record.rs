//! `procmond wal inspect --record`: one record, byte by byte.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use daemoneye_lib::display::{escape, hex};
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::stream::Sequence;
use jiff::Timestamp;
use serde_json::json;

use super::export::event_json;
use super::{FilesArgs, failed, progress, written};
use crate::wal::{FoundRecord, LogEntry, Progress, find_record, read_files};

/// Bytes of a payload shown in a line.
const LINE_BYTES: usize = 16;

pub(super) fn explain(args: &FilesArgs, sequence: Sequence) -> Result<ExitCode, ExitCode> {
    let files = args.files()?;
    let progress = Progress::default();
    let found = progress::shown(&progress, || find_record(&files, sequence, &progress))
        .map_err(|error| failed(&error))?;
    let Some(record) = found else {
        let mut why = "not in these files: committed and deleted, or not written yet".to_owned();
        let mut visit = |entry: LogEntry<'_>| {
            if let LogEntry::Lost { reason, .. } = entry {
                why = reason.to_string();
            }
            ControlFlow::Continue(())
        };
        read_files(&files, sequence..=sequence, &Progress::default(), &mut visit)
            .map_err(|error| failed(&error))?;
        eprintln!("procmond: record {sequence} is {why}");
        return Ok(ExitCode::FAILURE);
    };
    let mut out = io::stdout().lock();
    let printed = if args.json { print_json(&mut out, &record) } else { print(&mut out, &record) };
    written(printed.and_then(|()| out.flush()))?;
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, record: &FoundRecord) -> io::Result<()> {
    let path = escape(record.path.as_os_str().as_encoded_bytes());
    writeln!(out, "{path}, segment {:05}, at byte {}", record.segment, record.offset)?;
    writeln!(out, "stream {}, epoch {}", record.stream, record.epoch)?;
    for field in record.fields() {
        let bytes = hex(&record.frame[field.at..field.at + field.bytes]);
        let value = match field.name {
            "kind" => {
                let name = EventKind::from_u8(record.kind()).map_or("unknown", kind_name);
                format!("{}, {name}", field.value)
            }
            "time" => format!("{}{}", field.value, date(&record.frame[24..32])),
            _ => field.value,
        };
        writeln!(out, "{:>8}  {bytes:<16}  {:<15}  {value}", field.at, field.name)?;
    }
    for (index, line) in record.payload().chunks(LINE_BYTES).enumerate() {
        let at = record.frame.len() - record.payload().len() + index * LINE_BYTES;
        let text: String = line
            .iter()
            .map(|&byte| if (b' '..=b'~').contains(&byte) { byte as char } else { '.' })
            .collect();
        let name = if index == 0 { "payload" } else { "" };
        writeln!(out, "{at:>8}  {:<32}  {text:<16}  {name}", hex(line))?;
    }
    let event = event_json(record.payload());
    let shown = serde_json::to_string_pretty(&event).unwrap_or_default();
    for line in shown.lines() {
        // JSON has escaped what it must; a terminal acts upon more than that.
        let parts: Vec<_> =
            line.split('\\').map(|part| escape(part.as_bytes()).to_string()).collect();
        writeln!(out, "{}", parts.join("\\"))?;
    }
    Ok(())
}

fn print_json(out: &mut impl Write, record: &FoundRecord) -> io::Result<()> {
    let fields: Vec<_> = record
        .fields()
        .into_iter()
        .map(|field| {
            let bytes = hex(&record.frame[field.at..field.at + field.bytes]);
            json!({"name": field.name, "at": field.at, "bytes": bytes, "value": field.value})
        })
        .collect();
    let object = json!({
        "type": "record",
        "stream": record.stream.to_string(),
        "epoch": record.epoch.to_string(),
        "segment": record.segment,
        "path": record.path.to_string_lossy(),
        "offset": record.offset,
        "fields": fields,
        "payload": hex(record.payload()),
        "event": event_json(record.payload()),
    });
    writeln!(out, "{}", super::export::one_line(&object))
}

const fn kind_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Start => "start",
        EventKind::Stop => "stop",
        EventKind::Modify => "modify",
        EventKind::Gap => "gap",
    }
}

fn date(bytes: &[u8]) -> String {
    let ns = bytes.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
    Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| String::new(), |t| format!(", {t}"))
}

/// The event in a payload, if it is one.
pub(super) fn decoded(payload: &[u8]) -> Result<Event, String> {
    Event::decode(payload).map_err(|error| error.to_string())
}
