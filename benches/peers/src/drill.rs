//! The corruption drill: ten thousand records of 400 bytes in batches of 64, a crash, damage around
//! the record in the middle or behind the last one; how many come back, and does anybody say
//! anything? Ours goes through it as the others do.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml --features drill --bin drill
//! ```
//!
//! Prints a table for `docs/damage.md`. With names behind it only those are drilled. Each log is
//! written by a process of its own that ends without closing it, and each damaged copy is read by
//! one, which may panic, abort or hang without harm to the drill.

mod files;
#[expect(dead_code, reason = "the bench uses the rest")]
mod peer;
#[expect(dead_code, reason = "the bench uses the rest")]
#[path = "../../../procmond/benches/wal/workload.rs"]
mod workload;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use peer::{AnyError, Found, PEERS, Purpose};
use workload::{Payloads, RECORD_BYTES};

const OURS: &str = "procmond";
const RECORDS: u64 = 10_000;
const BATCH: u64 = 64;
/// How long a damaged log may take to be read.
const PATIENCE: Duration = Duration::from_secs(20);
/// No two records have these bytes in common, and no peer writes anything else there.
const NEEDLE: std::ops::Range<usize> = 16..48;

fn main() -> Result<(), AnyError> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--build", name, dir] => build(name, Path::new(dir)),
        ["--read", name, dir] => read(name, Path::new(dir)),
        ref names => drill(names),
    }
}

/// Writes the log and dies.
fn build(name: &str, dir: &Path) -> Result<(), AnyError> {
    let payloads = Payloads::new();
    let log = peer::open(name, dir, Purpose::Keep)?;
    for first in (0..RECORDS).step_by(BATCH as usize) {
        let count = BATCH.min(RECORDS - first) as usize;
        log.append(0, &payloads.records(first, count).collect::<Vec<_>>())?;
    }
    std::mem::forget(log);
    std::process::exit(0);
}

/// Reads a log; prints how many of the records it has, and how many that are none of them.
fn read(name: &str, dir: &Path) -> Result<(), AnyError> {
    log::set_logger(&Warnings)?;
    log::set_max_level(log::LevelFilter::Warn);
    let payloads = Payloads::new();
    // raft-engine puts its index in place of the first eight bytes.
    let mut wanted: HashSet<_> =
        (0..RECORDS).map(|record| payloads.run(record, 1)[8..].to_vec()).collect();
    let found = Found { kept: Some(Vec::new()), ..Found::default() };
    let kept = peer::read(name, dir, found)?.kept.unwrap_or_default();
    let good = kept
        .iter()
        .filter(|record| record.get(8..).is_some_and(|record| wanted.remove(record)))
        .count();
    println!("{good} {}", kept.len() - good);
    Ok(())
}

/// What a peer says by the `log` crate counts as said.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}: {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// What is done to a log.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    Bit,
    /// The 64 bytes before a record's payload.
    Head,
    /// The first 64 bytes of the file that a record is in.
    FileHead,
    Page,
    TornTail,
    Garbage,
}

impl Fault {
    const ALL: [(Self, &str); 7] = [
        (Self::None, "no damage"),
        (Self::Bit, "a flipped bit"),
        (Self::Head, "64 B before a payload wiped"),
        (Self::FileHead, "first 64 B of its file wiped"),
        (Self::Page, "4 KiB page zeroed"),
        (Self::TornTail, "tail zeroed"),
        (Self::Garbage, "tail overwritten"),
    ];

    fn hurt(self, dir: &Path, payloads: &Payloads) -> Result<(), AnyError> {
        let tail = matches!(self, Self::TornTail | Self::Garbage);
        let record = payloads.run(if tail { RECORDS - 1 } else { RECORDS / 2 }, 1);
        let mut places = Vec::new();
        find(dir, &record[NEEDLE], &mut places)?;
        if tail {
            // What was written last.
            places.drain(..places.len().saturating_sub(1));
        }
        if places.is_empty() {
            return Err("the record is not in the files as it is".into());
        }
        // SQLite has a record in its log and in its database: which of them counts is its affair.
        places.into_iter().try_for_each(|(path, at)| self.hurt_at(&path, at, payloads))
    }

    fn hurt_at(self, path: &Path, at: u64, payloads: &Payloads) -> Result<(), AnyError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let rest = (file.metadata()?.len() - at) as usize - RECORD_BYTES / 2;
        let middle = at + RECORD_BYTES as u64 / 2;
        match self {
            Self::None => {}
            Self::Bit => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at + 12)?;
                file.write_all_at(&[byte[0] ^ 4], at + 12)?;
            }
            Self::Head => file.write_all_at(&[0; 64], at - 64)?,
            Self::FileHead => file.write_all_at(&[0; 64], 0)?,
            Self::Page => file.write_all_at(&[0; 4096], at & !4095)?,
            Self::TornTail => file.write_all_at(&vec![0; rest], middle)?,
            Self::Garbage => {
                let garbage = payloads.run(12_345, 4);
                file.write_all_at(&garbage[..rest.min(garbage.len())], middle)?;
            }
        }
        Ok(())
    }
}

/// In which files a record stands, and where its payload begins.
fn find(dir: &Path, needle: &[u8], places: &mut Vec<(PathBuf, u64)>) -> Result<(), AnyError> {
    let mut entries = fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            find(&path, needle, places)?;
            continue;
        }
        let bytes = fs::read(&path)?;
        let mut from = 0;
        while let Some(next) = bytes[from..].iter().position(|&byte| byte == needle[0]) {
            let at = from + next;
            if bytes[at..].starts_with(needle) {
                places.push((path.clone(), (at - NEEDLE.start) as u64));
            }
            from = at + 1;
        }
    }
    Ok(())
}

fn drill(names: &[&str]) -> Result<(), AnyError> {
    let known = [&[OURS], &PEERS[..]].concat();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(format!("there is no peer {unknown}; there are {}", known.join(", ")).into());
    }
    let drilled = if names.is_empty() { known } else { names.to_vec() };
    let payloads = Payloads::new();
    let scratch = tempfile::tempdir()?;
    println!("| |{}", Fault::ALL.map(|(_, name)| format!(" {name} |")).concat());
    println!("|---|{}", "---|".repeat(Fault::ALL.len()));
    for name in drilled {
        let built = scratch.path().join(name);
        fs::create_dir(&built)?;
        let made = this(&["--build", name], &built)?.status()?;
        if !made.success() {
            return Err(format!("{name}: the log could not be written").into());
        }
        let mut row = format!("| {name} |");
        let mut usual = HashSet::new();
        for (fault, _) in Fault::ALL {
            let hurt = scratch.path().join("hurt");
            files::copy(&built, &hurt)?;
            fault.hurt(&hurt, &payloads)?;
            let (outcome, mut said) = outcome(&mut this(&["--read", name], &hurt)?)?;
            // What is said of a sound log says nothing of damage.
            said.retain(|line| !usual.contains(&without_digits(line)));
            if matches!(fault, Fault::None) {
                usual.extend(said.iter().map(|line| without_digits(line)));
            }
            eprintln!("{name}, {fault:?}: {outcome:?}, {}", said.first().map_or("", |line| line));
            row += &format!(" {} |", outcome.cell(!said.is_empty()));
            fs::remove_dir_all(&hurt)?;
        }
        println!("{row}");
    }
    Ok(())
}

fn this(args: &[&str], dir: &Path) -> Result<Command, AnyError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).arg(dir).env("RUST_BACKTRACE", "0");
    Ok(command)
}

fn without_digits(line: &str) -> String {
    line.chars().filter(|character| !character.is_ascii_digit()).collect()
}

/// What became of reading a damaged log.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Read { good: u64, wrong: u64 },
    Refused,
    Panicked,
    Hung,
}

/// How reading ended, and what was said.
fn outcome(command: &mut Command) -> Result<(Outcome, Vec<String>), AnyError> {
    // Files, so that no pipe is full while nobody reads it.
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child =
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?).spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok((Outcome::Hung, Vec::new()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (out, err) = (text(&mut out)?, text(&mut err)?);
    let said = err.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    let outcome = match status.code() {
        Some(0) => {
            let mut numbers = out.split_whitespace().map(str::parse);
            let (Some(good), Some(wrong)) = (numbers.next(), numbers.next()) else {
                return Err(format!("the reader said {out:?}").into());
            };
            Outcome::Read { good: good?, wrong: wrong? }
        }
        // What `main` ends with if it returns an error.
        Some(1) => Outcome::Refused,
        _ => Outcome::Panicked,
    };
    Ok((outcome, said))
}

fn text(file: &mut File) -> Result<String, AnyError> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(file)?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Outcome {
    fn cell(self, told: bool) -> String {
        match self {
            Self::Read { good, wrong } => {
                let harmed = good < RECORDS || wrong > 0;
                let (thousands, rest) = (good / 1000, good % 1000);
                let good =
                    if thousands > 0 { format!("{thousands},{rest:03}") } else { rest.to_string() };
                let bad = if wrong > 0 { format!(", {wrong} wrong") } else { String::new() };
                let silent = if harmed && !told { ", silent" } else { "" };
                format!("{good}{bad}{silent}")
            }
            Self::Refused => "refuses".to_owned(),
            Self::Panicked => "panics".to_owned(),
            Self::Hung => "hangs".to_owned(),
        }
    }
}
