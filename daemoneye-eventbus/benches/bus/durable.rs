//! The whole durable path: log, fdatasync, publish, deliver, commit.
//!
//! The log is procmond's and the store daemoneye-agent's, and this crate knows neither. So their
//! side is a program of the workspace's tests, built here when it is needed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::load::Load;
use crate::peers::{self, Peer};
use crate::process::{Process, Run};
use crate::report::{Report, Row, Unit};
use crate::{Settings, Side, take_rounds};

/// Events of a run: a second's worth, more or less.
const EVENTS: u64 = 200_000;

const ROWS: [(&str, &str); 2] = [("durable_memory", "memory"), ("durable_sqlite", "sqlite")];

pub(crate) fn measure(settings: &Settings, peers: &[Peer], report: &mut Report) {
    let wanted: Vec<_> = ROWS.into_iter().filter(|(row, _)| settings.wants(row)).collect();
    if wanted.is_empty() {
        return;
    }
    let program = match build() {
        Ok(program) => program,
        Err(problem) => {
            eprintln!("without the durable rows: {problem}");
            return;
        }
    };
    let load = Load { window: 1024, subscribers: 1, messages: 0, rate: 0, bounded: false };
    for (row, store) in wanted {
        let mut sides = vec![
            Side { name: "relay", run: Box::new(|| log_alone(&program)) },
            Side { name: "ours", run: Box::new(|| whole_path(&program, store)) },
        ];
        for peer in peers.iter().copied().filter(|peer| peer.is_durable()) {
            let run = move || peers::run(peer, &peer.scaled(&load));
            sides.push(Side { name: peer.name(), run: Box::new(run) });
        }
        let medians = take_rounds(settings.rounds, &sides, row);
        report.row(Row::from_sides(row, Unit::PerSecond, &medians, |run| run.per_second));
    }
}

fn build() -> Result<PathBuf, String> {
    eprintln!("building the log and the store for the durable rows");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let name = "durable-bus";
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "-p", "daemoneye-tests", "--bin", name])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .stdout(Stdio::null())
        .status()
        .map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("cargo: {status}"));
    }
    // We are <target>/release/deps/bus-<hash>.
    let ours = std::env::current_exe().map_err(|error| error.to_string())?;
    let release = ours.parent().and_then(Path::parent).ok_or("our own path is short")?;
    Ok(release.join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}

fn directory() -> Result<tempfile::TempDir, String> {
    // On the disk the peer's store is on, too.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())
}

/// Appending to the log, and nothing else.
fn log_alone(program: &Path) -> Result<Run, String> {
    let directory = directory()?;
    let events = EVENTS.to_string();
    let mut log =
        Process::start(Command::new(program).arg("log").arg(directory.path()).arg(events))?;
    let (started, ended) = (log.number::<u64>()?, log.number::<u64>()?);
    Ok(rate(started, ended))
}

/// From the log in one process to the consumer in another, and back.
fn whole_path(program: &Path, store: &str) -> Result<Run, String> {
    let directory = directory()?;
    let (_socket_directory, socket) = crate::process::place()?;
    let events = EVENTS.to_string();
    let role = |name: &str| {
        let mut command = Command::new(program);
        command.arg(name).arg(directory.path()).arg(&events).arg(&socket);
        command
    };
    let mut agent = Process::start(&mut role(store))?;
    agent.line()?;
    let mut collector = Process::start(&mut role("collector"))?;
    let (started, ended) = (collector.number::<u64>()?, collector.number::<u64>()?);
    Ok(rate(started, ended))
}

fn rate(started: u64, ended: u64) -> Run {
    let seconds = ended.saturating_sub(started) as f64 / 1e9;
    Run { per_second: EVENTS as f64 / seconds, ..Run::default() }
}
