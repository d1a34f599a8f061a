//! `procmond wal`: looking into a log directory. Takes no lock and changes nothing, so it may be
//! used while procmond is running.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use daemoneye_lib::display::escape;
use daemoneye_lib::stream::Sequence;
use serde_json::{Value, json};

use crate::wal::{Inspection, Problem, ProblemKind, SegmentReport, inspect};

/// Arguments of `procmond wal`.
#[derive(Args, Debug)]
pub struct WalArgs {
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Subcommand, Debug)]
enum WalCommand {
    /// List the segments: what they hold, how far they are committed, how they are
    Inspect(DirArgs),
    /// Check every byte, and name the damage exactly
    #[command(after_help = "Exit code 0: the log is sound. 1: it is damaged, or cannot be read.")]
    Verify(DirArgs),
}

#[derive(Args, Debug)]
struct DirArgs {
    /// The log directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Looks into a log directory.
#[must_use]
pub fn run(args: &WalArgs) -> ExitCode {
    const USAGE: u8 = 2;
    let (WalCommand::Inspect(args) | WalCommand::Verify(args), verify) = match &args.command {
        command @ WalCommand::Inspect(_) => (command, false),
        command @ WalCommand::Verify(_) => (command, true),
    };
    let shown = escape(args.dir.as_os_str().as_encoded_bytes());
    if !args.dir.is_dir() {
        eprintln!("procmond: {shown} is not a directory; name a log directory with --dir");
        return ExitCode::from(USAGE);
    }
    let inspection = match inspect(&args.dir) {
        Ok(inspection) => inspection,
        Err(error) => {
            eprintln!("procmond: {error}");
            return ExitCode::FAILURE;
        }
    };
    if inspection.segments.is_empty() {
        eprintln!("procmond: {shown} holds no log: it has no file like procmond-00001.wal");
        return ExitCode::from(USAGE);
    }
    let mut out = io::stdout().lock();
    let printed = match (verify, args.json) {
        (false, false) => print_segments(&mut out, &inspection),
        (false, true) => print_segments_json(&mut out, &inspection),
        (true, false) => print_problems(&mut out, &inspection),
        (true, true) => print_problems_json(&mut out, &inspection),
    };
    match printed.and_then(|()| out.flush()) {
        Ok(()) if verify && !inspection.is_sound() => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has enough, `head` for instance.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("procmond: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_segments(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    let stream = inspection.stream.map_or_else(|| "unknown".to_owned(), |s| s.to_string());
    writeln!(out, "stream {stream}, watermark {}", inspection.watermark)?;
    writeln!(
        out,
        "{:>7}  {:>24}  {:>9}  {:>10}  {:>10}  {:<14}  HEALTH",
        "SEGMENT", "SEQUENCES", "RECORDS", "BYTES", "WATERMARK", "EPOCH"
    )?;
    for segment in &inspection.segments {
        let range =
            segment.range.map_or_else(|| "-".to_owned(), |(first, last)| format!("{first}-{last}"));
        let (watermark, epoch) = segment.identity.map_or_else(
            || ("-".to_owned(), "-".to_owned()),
            |identity| (identity.watermark.to_string(), identity.epoch.to_string()),
        );
        let health = if segment.problems.is_empty() {
            "good".to_owned()
        } else {
            segment.problems.iter().map(describe).collect::<Vec<_>>().join("; ")
        };
        writeln!(
            out,
            "{:>7}  {range:>24}  {:>9}  {:>10}  {watermark:>10}  {epoch:<14}  {health}",
            format!("{:05}", segment.number),
            segment.records,
            segment.bytes,
        )?;
    }
    let total = Total::of(inspection);
    writeln!(
        out,
        "{} segments, {} records, {} bytes, {} lost, last sequence {}",
        inspection.segments.len(),
        total.records,
        total.bytes,
        total.lost,
        total.last
    )
}

fn print_segments_json(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    for segment in &inspection.segments {
        let identity = segment.identity;
        let object = json!({
            "type": "segment",
            "number": segment.number,
            "path": segment.path.to_string_lossy(),
            "stream": identity.map(|identity| identity.stream.to_string()),
            "epoch": identity.map(|identity| identity.epoch.to_string()),
            "first": segment.range.map(|(first, _)| first),
            "last": segment.range.map(|(_, last)| last),
            "records": segment.records,
            "bytes": segment.bytes,
            "watermark": identity.map(|identity| identity.watermark),
            "sound": segment.problems.is_empty(),
            "problems": segment.problems.iter().map(problem_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{object}")?;
    }
    writeln!(out, "{}", total_json(inspection))
}

fn print_problems(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    for segment in &inspection.segments {
        for problem in &segment.problems {
            writeln!(out, "{}: {}", name(segment), describe(problem))?;
        }
    }
    let total = Total::of(inspection);
    let verdict = if inspection.is_sound() { "sound" } else { "not sound" };
    writeln!(
        out,
        "{verdict}: {} segments, {} records, {} lost",
        inspection.segments.len(),
        total.records,
        total.lost
    )
}

fn print_problems_json(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    for segment in &inspection.segments {
        for problem in &segment.problems {
            let mut object = problem_json(problem);
            object["type"] = "problem".into();
            object["number"] = segment.number.into();
            object["path"] = segment.path.to_string_lossy().into();
            writeln!(out, "{object}")?;
        }
    }
    writeln!(out, "{}", total_json(inspection))
}

fn name(segment: &SegmentReport) -> String {
    let name = segment.path.file_name().unwrap_or_default();
    escape(name.as_encoded_bytes()).to_string()
}

/// A problem in a sentence.
fn describe(problem: &Problem) -> String {
    let Problem { kind, from, to, lost } = problem;
    let lost = lost.map_or_else(
        || "no record lost".to_owned(),
        |lost| match lost.last.since(lost.first) {
            0 => format!("record {} lost", lost.first),
            more => format!("records {} to {} lost ({})", lost.first, lost.last, more + 1),
        },
    );
    match kind {
        ProblemKind::Header => "header damaged, read by its copy; no record lost".to_owned(),
        ProblemKind::Damaged if from == to => format!("hole at byte {from}: {lost}"),
        ProblemKind::TornTail => format!(
            "torn tail, bytes {from} to {to} are no whole record; the next start cuts them off"
        ),
        ProblemKind::Unreadable => format!("nothing in it says what it is: {lost}"),
        ProblemKind::Foreign => "belongs to another log and is not read".to_owned(),
        ProblemKind::PredecessorMissing => format!("the segment before it is missing: {lost}"),
        _ => format!("damaged from byte {from} to {to}: {lost}"),
    }
}

fn problem_json(problem: &Problem) -> Value {
    json!({
        "kind": problem.kind.as_str(),
        "from": problem.from,
        "to": problem.to,
        "first_lost": problem.lost.map(|lost| lost.first),
        "last_lost": problem.lost.map(|lost| lost.last),
    })
}

fn total_json(inspection: &Inspection) -> Value {
    let total = Total::of(inspection);
    json!({
        "type": "total",
        "stream": inspection.stream.map(|stream| stream.to_string()),
        "segments": inspection.segments.len(),
        "records": total.records,
        "bytes": total.bytes,
        "lost": total.lost,
        "last": total.last,
        "watermark": inspection.watermark,
        "sound": inspection.is_sound(),
    })
}

struct Total {
    records: u64,
    bytes: u64,
    lost: u64,
    last: Sequence,
}

impl Total {
    fn of(inspection: &Inspection) -> Self {
        let segments = &inspection.segments;
        let problems = segments.iter().flat_map(|segment| &segment.problems);
        let ranges = segments.iter().filter_map(|segment| segment.range);
        Self {
            records: segments.iter().map(|segment| segment.records).sum(),
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            lost: problems
                .filter_map(|problem| problem.lost)
                .map(|lost| lost.last.since(lost.first.prev()))
                .sum(),
            last: ranges.map(|(_, last)| last).max().unwrap_or(inspection.watermark),
        }
    }
}
