//! `procmond wal`: looking into a log directory and archives, reading them out, mending and
//! compacting a log. Only the last two take the lock and change anything; the others may be used
//! while procmond is running.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use daemoneye_lib::display::escape;
use daemoneye_lib::stream::Sequence;
use serde_json::{Value, json};

use crate::wal::{
    Compression, Inspection, LogFiles, Problem, ProblemKind, Progress, SegmentReport, WalError,
    inspect_files,
};

mod export;
mod mend;
mod progress;
mod record;

const USAGE: u8 = 2;

/// Arguments of `procmond wal`.
#[derive(Args, Debug)]
pub struct WalArgs {
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Subcommand, Debug)]
enum WalCommand {
    /// List the segments: what they hold, how far they are committed, how they are
    Inspect(InspectArgs),
    /// Check every byte, and name the damage exactly
    #[command(after_help = "Exit code 0: the log is sound. 1: it is damaged, or cannot be read.")]
    Verify(FilesArgs),
    /// Mend a damaged log: nothing that can be read is lost, what cannot is accounted for
    #[command(after_help = "What is changed is copied into <DIR>/repair-<time> first.")]
    Repair(mend::MendArgs),
    /// Remove what is committed, and what files hold behind their last record
    Compact(mend::MendArgs),
    /// Print the events, and the gaps between them
    Export(export::ExportArgs),
}

#[derive(Args, Debug)]
struct InspectArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Explain one record, byte by byte
    #[arg(long, value_name = "SEQUENCE")]
    record: Option<u64>,
}

#[derive(Args, Debug)]
struct FilesArgs {
    /// The log directory
    #[arg(long, value_name = "DIR", required_unless_present = "archive")]
    dir: Option<PathBuf>,
    /// An archive directory or a segment file, packed or not; may be given several times
    #[arg(long, value_name = "PATH")]
    archive: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl FilesArgs {
    /// The files, if they are there.
    fn files(&self) -> Result<LogFiles, ExitCode> {
        if let Some(dir) = &self.dir
            && !dir.is_dir()
        {
            return Err(usage(&format!(
                "{} is not a directory; name a log directory with --dir",
                escape(dir.as_os_str().as_encoded_bytes())
            )));
        }
        if let Some(missing) = self.archive.iter().find(|path| !path.exists()) {
            return Err(usage(&format!(
                "{} is not there; name an archive directory or a segment file with --archive",
                escape(missing.as_os_str().as_encoded_bytes())
            )));
        }
        Ok(LogFiles { dir: self.dir.clone(), archives: self.archive.clone() })
    }

    /// Says that there is no segment.
    fn empty(&self) -> ExitCode {
        let path = self.dir.as_ref().or(self.archive.first());
        let shown = path.map(|path| escape(path.as_os_str().as_encoded_bytes()).to_string());
        usage(&format!(
            "{} holds no log: it has no file like procmond-00001.wal",
            shown.unwrap_or_default()
        ))
    }
}

/// Does what was asked.
#[must_use]
pub fn run(args: &WalArgs) -> ExitCode {
    let done = match &args.command {
        WalCommand::Inspect(InspectArgs { files, record: Some(sequence) }) => {
            record::explain(files, Sequence(*sequence))
        }
        WalCommand::Inspect(InspectArgs { files, record: None }) => look(files, false),
        WalCommand::Verify(files) => look(files, true),
        WalCommand::Repair(args) => mend::repair(args),
        WalCommand::Compact(args) => mend::compact(args),
        WalCommand::Export(args) => export::export(args),
    };
    done.unwrap_or_else(|code| code)
}

fn look(args: &FilesArgs, verify: bool) -> Result<ExitCode, ExitCode> {
    let files = args.files()?;
    let progress = Progress::default();
    let inspection = progress::shown(&progress, || inspect_files(&files, &progress));
    let inspection = inspection.map_err(|error| failed(&error))?;
    if inspection.segments.is_empty() {
        return Err(args.empty());
    }
    let mut out = io::stdout().lock();
    let printed = match (verify, args.json) {
        (false, false) => print_segments(&mut out, &inspection),
        (false, true) => print_segments_json(&mut out, &inspection),
        (true, false) => print_problems(&mut out, &inspection),
        (true, true) => print_problems_json(&mut out, &inspection),
    };
    written(printed.and_then(|()| out.flush()))?;
    let sound = !verify || inspection.is_sound();
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn usage(message: &str) -> ExitCode {
    eprintln!("procmond: {message}");
    ExitCode::from(USAGE)
}

fn failed(error: &WalError) -> ExitCode {
    eprintln!("procmond: {error}");
    ExitCode::FAILURE
}

/// Whoever reads standard output may have enough of it, `head` for instance.
fn written(result: io::Result<()>) -> Result<(), ExitCode> {
    result.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return ExitCode::SUCCESS;
        }
        eprintln!("procmond: cannot write to standard output: {error}");
        ExitCode::FAILURE
    })
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
            let problems = segment.problems.iter().map(|problem| describe(segment, problem));
            problems.collect::<Vec<_>>().join("; ")
        };
        let health = match (segment.archived, packed(segment)) {
            (true, Some(packing)) => format!("{health} (archive, {packing})"),
            (true, None) => format!("{health} (archive)"),
            _ => health,
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
            "file_bytes": segment.file_bytes,
            "packed": packed(segment),
            "archived": segment.archived,
            "second": segment.second,
            "sound": segment.is_sound(),
            "fault": segment.fault,
            "problems": segment.problems.iter().map(problem_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{}", export::one_line(&object))?;
    }
    writeln!(out, "{}", total_json(inspection))
}

fn print_problems(out: &mut impl Write, inspection: &Inspection) -> io::Result<()> {
    for segment in &inspection.segments {
        for problem in &segment.problems {
            writeln!(out, "{}: {}", name(segment), describe(segment, problem))?;
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
            object["fault"] = segment.fault.as_deref().into();
            writeln!(out, "{}", export::one_line(&object))?;
        }
    }
    writeln!(out, "{}", total_json(inspection))
}

/// How a segment is packed, if it is.
const fn packed(segment: &SegmentReport) -> Option<&'static str> {
    match segment.compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    }
}

fn name(segment: &SegmentReport) -> String {
    let name = segment.path.file_name().unwrap_or_default();
    escape(name.as_encoded_bytes()).to_string()
}

/// A problem in a sentence.
fn describe(segment: &SegmentReport, problem: &Problem) -> String {
    let fault = escape(segment.fault.as_deref().unwrap_or("no reason was given").as_bytes());
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
        ProblemKind::Gap => format!("known gap at byte {from}: {lost}"),
        ProblemKind::CutShort => format!("archive cut short at byte {from}: its end is missing"),
        ProblemKind::Packing => format!("cannot be unpacked beyond byte {from}: {fault}"),
        ProblemKind::NotASegment => format!("not read: {fault}"),
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
        // What is there twice counts once.
        let segments: Vec<_> =
            inspection.segments.iter().filter(|segment| !segment.second).collect();
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
