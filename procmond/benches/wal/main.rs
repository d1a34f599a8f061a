//! The log against the disk's limit and against other people's logs.
//!
//! ```sh
//! cargo bench -p procmond --bench wal [-- OPTIONS]
//!     --json           one JSON object a row, not a table
//!     --all-peers      each peer's figures, not only the best one's
//!     --no-peers       builds and runs no peers
//!     --quick          fewer and shorter rounds
//!     --rounds N
//!     --rows A,B       only the measurements whose name begins so
//!     --dir DIR        where to write; in the target directory otherwise
//! ```
//!
//! Figures move with the machine and with what else runs on it. So everything is measured in
//! rounds: in each round the limit, ours and every peer take their turn at a row, one right after
//! the other and in changing order. Medians over the rounds are printed, and their ratios. What
//! the limit of each row is stands in `docs/performance.md`.

mod limit;
mod ours;
mod peers;
mod report;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use procmond::wal::WalOptions;

use limit::{Limit, ReadLimit};
use ours::{Ours, ToOpen, ToRead};
use peers::Peers;
use report::{Report, Unit};
use workload::{Done, Payloads, RECORD_BYTES, quantile};

type AnyError = Box<dyn std::error::Error>;

const PRODUCERS: u64 = 64;
const PER_SECOND: u32 = 1000;
/// A stream is synced every so many bytes.
const SYNC_BYTES: usize = 4 << 20;
/// What a streaming producer may be ahead of what is durable: one part is being written, one waits,
/// one is being encoded.
const AHEAD_BYTES: usize = 3 * SYNC_BYTES;
/// Segments that are full several times a second at the fixed rate.
const SMALL_SEGMENT_BYTES: u64 = 128 << 10;
/// What a measurement could come to where batches are large.
const MANY_BYTES: u64 = 480 << 20;
const FEW_BYTES: u64 = 160 << 20;

struct Settings {
    dir: PathBuf,
    rounds: usize,
    /// How often the limit and ours take their turn in a round.
    turns: usize,
    /// How long each measurement of a rate takes, and how long it is warmed up.
    measured: Duration,
    warm: Duration,
    /// How long each measurement at a fixed rate takes.
    paced: Duration,
    read_records: u64,
    json: bool,
    peers: bool,
    all_peers: bool,
    rows: Vec<String>,
}

impl Settings {
    fn from_args() -> Result<Self, AnyError> {
        let mut settings = Self {
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
            rounds: 5,
            turns: 3,
            measured: Duration::from_millis(250),
            warm: Duration::from_millis(50),
            paced: Duration::from_millis(1000),
            read_records: 400_000,
            json: false,
            peers: true,
            all_peers: false,
            rows: Vec::new(),
        };
        let mut args = std::env::args().skip(1);
        let mut rounds = None;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--quick" => {
                    settings.rounds = 3;
                    settings.turns = 2;
                    settings.measured = Duration::from_millis(150);
                    settings.paced = Duration::from_millis(600);
                    settings.read_records = 200_000;
                }
                "--json" => settings.json = true,
                "--no-peers" => settings.peers = false,
                "--all-peers" => settings.all_peers = true,
                "--rounds" => rounds = Some(value()?.parse()?),
                "--rows" => settings.rows = value()?.split(',').map(str::to_owned).collect(),
                "--dir" => settings.dir = value()?.into(),
                // What cargo passes on.
                "--bench" => {}
                other => return Err(format!("unknown argument {other}").into()),
            }
        }
        settings.rounds = rounds.unwrap_or(settings.rounds);
        Ok(settings)
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| row.starts_with(wanted))
    }
}

fn main() -> Result<(), AnyError> {
    let settings = Settings::from_args()?;
    std::fs::create_dir_all(&settings.dir)?;
    let scratch = tempfile::tempdir_in(&settings.dir)?;
    let peers = if settings.peers { Peers::build(scratch.path()) } else { None };
    let payloads = Arc::new(Payloads::new());
    let mut bench = Bench {
        limit: Limit::new(scratch.path())?,
        at_once: Ours::in_steady_state(&scratch.path().join("log"), Ours::at_once(), &payloads)?,
        payloads,
        report: Report::default(),
        round: 0,
        peers,
        settings,
    };
    let mut measurements = bench.prepare(&scratch)?;
    for round in 0..bench.settings.rounds {
        bench.round = round;
        eprintln!("round {} of {}", round + 1, bench.settings.rounds);
        for measurement in &mut measurements {
            bench.measure(measurement)?;
        }
    }
    if bench.settings.json {
        bench.report.print_json(bench.settings.all_peers);
    } else {
        bench.report.print_table(bench.settings.all_peers);
    }
    Ok(())
}

/// Batches of one producer: how many records, and the rows they fill.
#[derive(Clone, Copy)]
struct Batches {
    batch: usize,
    row: &'static str,
    overlapped: Option<&'static str>,
    cpu: Option<&'static str>,
}

const BATCHES: [Batches; 3] = [
    Batches { batch: 1, row: "append_1", overlapped: None, cpu: None },
    Batches { batch: 64, row: "append_64", overlapped: None, cpu: None },
    Batches {
        batch: 1024,
        row: "append_1024",
        overlapped: Some("append_1024_overlapped"),
        cpu: Some("cpu_1024"),
    },
];

/// What is measured in a round, with what it needs beside the log that everybody uses.
enum Measurement {
    Batches(Batches),
    Stream(Ours),
    Producers,
    Latency,
    Rotation(Ours),
    Cpu(Ours),
    Read(ToRead, ReadLimit),
    Open(ToOpen),
}

struct Bench {
    settings: Settings,
    payloads: Arc<Payloads>,
    limit: Limit,
    /// Commits without delay.
    at_once: Ours,
    peers: Option<Peers>,
    report: Report,
    round: usize,
}

impl Bench {
    fn prepare(&mut self, scratch: &tempfile::TempDir) -> Result<Vec<Measurement>, AnyError> {
        let payloads = &self.payloads;
        let wants = |row| self.settings.wants(row);
        let dir = |name| scratch.path().join(name);
        let mut all = Vec::new();
        for batches in BATCHES {
            if wants(batches.row) {
                all.push(Measurement::Batches(batches));
            }
        }
        if wants("append_stream") {
            let options = Ours::streaming(SYNC_BYTES);
            let log = Ours::in_steady_state(&dir("stream"), options, payloads)?;
            all.push(Measurement::Stream(log));
        }
        if wants("append_64_producers") {
            all.push(Measurement::Producers);
        }
        if wants("latency_1000_per_s") {
            all.push(Measurement::Latency);
        }
        if wants("latency_rotation") {
            let options =
                WalOptions { segment_bytes: SMALL_SEGMENT_BYTES, ..WalOptions::default() };
            let log = Ours::in_steady_state(&dir("rotation"), options, payloads)?;
            all.push(Measurement::Rotation(log));
        }
        if wants("cpu_1000_per_s") {
            all.push(Measurement::Cpu(Ours::open(&dir("cpu"), WalOptions::default())?));
        }
        if wants("read_warm") {
            let records = self.settings.read_records;
            let ours = ToRead::new(&dir("read"), payloads, records)?;
            let limit = ReadLimit::new(scratch.path(), payloads, records)?;
            if let Some(peers) = &self.peers {
                for peer in peers.names() {
                    if let Err(error) = peers.fill(peer, records) {
                        eprintln!("{peer} has nothing to read: {error}");
                    }
                }
            }
            all.push(Measurement::Read(ours, limit));
        }
        if wants("open_10g") {
            all.push(Measurement::Open(ToOpen::new(scratch.path(), payloads)?));
        }
        Ok(all)
    }

    fn measure(&mut self, measurement: &mut Measurement) -> Result<(), AnyError> {
        match measurement {
            Measurement::Batches(batches) => self.batches(*batches),
            Measurement::Stream(ours) => self.stream(ours),
            Measurement::Producers => self.producers(),
            Measurement::Latency => self.latency(),
            Measurement::Rotation(ours) => self.rotation(ours),
            Measurement::Cpu(ours) => self.cpu(ours),
            Measurement::Read(ours, limit) => self.read(ours, limit),
            Measurement::Open(to_open) => {
                let opened = to_open.open(self.round.is_multiple_of(2))?;
                let millis = |took: Duration| took.as_secs_f64() * 1e3;
                self.report.ours("open_10g", Unit::Milliseconds, millis(opened.long));
                self.report.limit("open_10g", Unit::Milliseconds, millis(opened.alone));
                Ok(())
            }
        }
    }

    /// Runs the limit and ours in turn, several times, and the other way round in every other
    /// round.
    fn in_turn(
        &mut self,
        mut limit: impl FnMut(&mut Self) -> Result<(), AnyError>,
        mut ours: impl FnMut(&mut Self) -> Result<(), AnyError>,
    ) -> Result<(), AnyError> {
        settle();
        for _ in 0..self.settings.turns {
            if self.round.is_multiple_of(2) {
                limit(self)?;
                ours(self)?;
            } else {
                ours(self)?;
                limit(self)?;
            }
        }
        settle();
        Ok(())
    }

    /// Runs each peer. One that fails is left out of the row, aloud.
    fn each_peer(
        &mut self,
        row: &str,
        mut measure: impl FnMut(&Peers, &str, &mut Report) -> Result<(), AnyError>,
    ) {
        let Some(peers) = &self.peers else { return };
        let mut names: Vec<_> = peers.names().collect();
        let first = self.round % names.len().max(1);
        names.rotate_left(first);
        for name in names {
            if let Err(error) = measure(peers, name, &mut self.report) {
                eprintln!("{name} is missing from {row} in round {}: {error}", self.round + 1);
            }
            settle();
        }
    }

    fn batches(&mut self, batches: Batches) -> Result<(), AnyError> {
        let Batches { batch, row, overlapped, cpu } = batches;
        let (warm, measured) = (self.settings.warm, self.settings.measured);
        let payloads = Arc::clone(&self.payloads);
        self.in_turn(
            |bench| {
                let done = bench.limit.batches(&payloads, batch, warm, measured)?;
                bench.report.limit(row, Unit::RecordsPerSecond, done.per_second());
                if let Some(row) = overlapped {
                    bench.report.limit(row, Unit::RecordsPerSecond, done.per_second());
                }
                if let Some(row) = cpu {
                    let ns = done.cpu_ns_per_record();
                    bench.report.limit(row, Unit::NanosecondsOfCpu, ns);
                }
                Ok(())
            },
            |bench| {
                let done = bench.at_once.batches(&payloads, batch, warm, measured)?;
                bench.report.ours(row, Unit::RecordsPerSecond, done.per_second());
                if let Some(row) = cpu {
                    bench.report.ours(row, Unit::NanosecondsOfCpu, done.cpu_ns_per_record());
                }
                if let Some(row) = overlapped {
                    settle();
                    let done = bench.at_once.overlapped(&payloads, batch, warm, measured)?;
                    bench.report.ours(row, Unit::RecordsPerSecond, done.per_second());
                }
                Ok(())
            },
        )?;
        let most_bytes = if batch < 1024 { FEW_BYTES } else { MANY_BYTES };
        self.each_peer(row, |peers, peer, report| {
            let done = peers.append(peer, (1, batch, most_bytes), warm, measured)?;
            report.peer(row, Unit::RecordsPerSecond, peer, done.per_second);
            if let Some(row) = cpu {
                report.peer(row, Unit::NanosecondsOfCpu, peer, done.cpu_ns_per_record);
            }
            Ok(())
        });
        if let Some(row) = overlapped {
            // A peer's append blocks: two are under way when there are two producers.
            self.each_peer(row, |peers, peer, report| {
                let done = peers.append(peer, (2, batch, most_bytes), warm, measured)?;
                report.peer(row, Unit::RecordsPerSecond, peer, done.per_second);
                Ok(())
            });
        }
        Ok(())
    }

    fn stream(&mut self, ours: &mut Ours) -> Result<(), AnyError> {
        const ROW: &str = "append_stream";
        let (warm, measured) = (self.settings.warm, self.settings.measured);
        let payloads = Arc::clone(&self.payloads);
        self.in_turn(
            |bench| {
                let mut stream = |write_bytes| {
                    bench.limit.stream(&payloads, SYNC_BYTES, write_bytes, warm, measured)
                };
                let rate = |done: Done| done.per_second();
                let limit = rate(stream(1 << 20)?).max(rate(stream(SYNC_BYTES)?));
                bench.report.limit(ROW, Unit::RecordsPerSecond, limit);
                Ok(())
            },
            |bench| {
                let done = ours.stream(&payloads, AHEAD_BYTES, warm, measured)?;
                bench.report.ours(ROW, Unit::RecordsPerSecond, done.per_second());
                Ok(())
            },
        )?;
        // Two producers with half of the bytes each.
        let batch = SYNC_BYTES / 2 / RECORD_BYTES;
        self.each_peer(ROW, |peers, peer, report| {
            let done = peers.append(peer, (2, batch, MANY_BYTES), warm, measured)?;
            report.peer(ROW, Unit::RecordsPerSecond, peer, done.per_second);
            Ok(())
        });
        Ok(())
    }

    fn producers(&mut self) -> Result<(), AnyError> {
        const TASKS: &str = "append_64_producers";
        const THREADS: &str = "append_64_threads";
        let (warm, measured) = (self.settings.warm, self.settings.measured);
        let payloads = Arc::clone(&self.payloads);
        self.in_turn(
            |bench| {
                // One record from each of many producers can at best be one write for all of them.
                let done = bench.limit.batches(&payloads, PRODUCERS as usize, warm, measured)?;
                for row in [TASKS, THREADS] {
                    bench.report.limit(row, Unit::RecordsPerSecond, done.per_second());
                }
                Ok(())
            },
            |bench| {
                let done = bench.at_once.tasks(&payloads, PRODUCERS, warm, measured)?;
                bench.report.ours(TASKS, Unit::RecordsPerSecond, done.per_second());
                let done = bench.at_once.threads(&payloads, PRODUCERS, warm, measured)?;
                bench.report.ours(THREADS, Unit::RecordsPerSecond, done.per_second());
                Ok(())
            },
        )?;
        // The peers block a thread for each that waits.
        self.each_peer(TASKS, |peers, peer, report| {
            let done = peers.append(peer, (PRODUCERS, 1, FEW_BYTES), warm, measured)?;
            for row in [TASKS, THREADS] {
                report.peer(row, Unit::RecordsPerSecond, peer, done.per_second);
            }
            Ok(())
        });
        Ok(())
    }

    fn latency(&mut self) -> Result<(), AnyError> {
        const ROW: &str = "latency_1000_per_s";
        let during = self.settings.paced;
        let payloads = Arc::clone(&self.payloads);
        self.in_turn(
            |bench| {
                let took = bench.limit.paced(&payloads, PER_SECOND, during)?;
                latencies(took, |row, us| bench.report.limit(row, Unit::Microseconds, us));
                Ok(())
            },
            |bench| {
                let took = bench.at_once.paced(&payloads, PER_SECOND, during)?;
                latencies(took, |row, us| bench.report.ours(row, Unit::Microseconds, us));
                Ok(())
            },
        )?;
        self.each_peer(ROW, |peers, peer, report| {
            let took = peers.paced(peer, PER_SECOND, during)?;
            latencies(took, |row, us| report.peer(row, Unit::Microseconds, peer, us));
            Ok(())
        });
        Ok(())
    }

    /// Beyond the commit delay, while a segment is full every three hundred records.
    fn rotation(&mut self, ours: &mut Ours) -> Result<(), AnyError> {
        const ROW: &str = "latency_rotation";
        let during = self.settings.paced;
        let delay = WalOptions::default().commit_delay;
        let payloads = Arc::clone(&self.payloads);
        let beyond = |mut took: Vec<Duration>| {
            took.sort_unstable();
            quantile(&took, 0.999).saturating_sub(delay).as_secs_f64() * 1e6
        };
        self.in_turn(
            |bench| {
                let took = bench.limit.delayed(&payloads, PER_SECOND, during, delay)?;
                bench.report.limit(ROW, Unit::Microseconds, beyond(took));
                Ok(())
            },
            |bench| {
                let took = ours.delayed(&payloads, PER_SECOND, during)?;
                bench.report.ours(ROW, Unit::Microseconds, beyond(took));
                Ok(())
            },
        )
    }

    fn cpu(&mut self, ours: &mut Ours) -> Result<(), AnyError> {
        const ROW: &str = "cpu_1000_per_s";
        let during = self.settings.paced;
        let delay = WalOptions::default().commit_delay;
        let payloads = Arc::clone(&self.payloads);
        self.in_turn(
            |bench| {
                let part = bench.limit.cpu_of_paced(&payloads, PER_SECOND, during, delay)?;
                bench.report.limit(ROW, Unit::PercentOfACore, part * 100.0);
                Ok(())
            },
            |bench| {
                let part = ours.cpu_of_paced(&payloads, PER_SECOND, during)?;
                bench.report.ours(ROW, Unit::PercentOfACore, part * 100.0);
                Ok(())
            },
        )
    }

    fn read(&mut self, ours: &ToRead, limit: &ReadLimit) -> Result<(), AnyError> {
        const ROW: &str = "read_warm";
        const BATCHES: &str = "read_warm_batches";
        self.in_turn(
            |bench| {
                let rate = limit.read()?;
                for row in [ROW, BATCHES] {
                    bench.report.limit(row, Unit::RecordsPerSecond, rate);
                }
                Ok(())
            },
            |bench| {
                bench.report.ours(ROW, Unit::RecordsPerSecond, ours.read()?);
                bench.report.ours(BATCHES, Unit::RecordsPerSecond, ours.read_batches()?);
                Ok(())
            },
        )?;
        let records = self.settings.read_records;
        self.each_peer(ROW, |peers, peer, report| {
            let rate = peers.read(peer, records)?;
            for row in [ROW, BATCHES] {
                report.peer(row, Unit::RecordsPerSecond, peer, rate);
            }
            Ok(())
        });
        Ok(())
    }
}

/// The rows that latencies at a fixed rate fill.
fn latencies(mut took: Vec<Duration>, mut say: impl FnMut(&'static str, f64)) {
    took.sort_unstable();
    for (row, part) in [
        ("latency_1000_per_s", 0.99),
        ("latency_1000_per_s_p50", 0.5),
        ("latency_1000_per_s_p999", 0.999),
        ("latency_1000_per_s_max", 1.0),
    ] {
        say(row, quantile(&took, part).as_secs_f64() * 1e6);
    }
}

/// Lets what the one before has left in the background come to its end.
fn settle() {
    std::thread::sleep(Duration::from_millis(100));
}
