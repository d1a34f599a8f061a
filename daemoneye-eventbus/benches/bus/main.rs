//! The bus against a bare relay on the same kind of socket and against other people's brokers.
//!
//! ```sh
//! cargo bench -p daemoneye-eventbus --bench bus [-- OPTIONS]
//!     --json        one JSON object a row, not a table
//!     --quick       3 rounds, not 7
//!     --rounds N
//!     --no-peers    starts no other brokers
//!     --rows A,B    only the rows whose name begins so
//! ```
//!
//! Every role is a process of its own: this program again with a role's name, on one tokio thread;
//! payloads are 400 bytes. The relay is the least a broker can do: it passes whole read chunks on
//! to every subscriber, and counts and acknowledges messages, without topics, sequences or bounds
//! for slow readers. A run ends when the publisher has its last acknowledgement *and* every
//! subscriber has every message, so that nothing is won by letting queues grow.
//!
//! Figures move with the machine and with what else runs on it. So everything is measured in
//! rounds: in each round the relay, ours and every peer take their turn at a row, one right after
//! the other and in changing order. Medians over the rounds are printed, and their ratios. What
//! each row is stands in `docs/performance.md`.

mod durable;
mod load;
mod ours;
mod peers;
mod process;
mod relay;
mod report;

use std::path::Path;

use load::Load;
use peers::Peer;
use process::{Run, System, run};
use report::{Report, Row, Unit};

/// What a measurement of a round is taken with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Messages a second by ours, the relay and the peers.
    Rate,
    /// The p99 of the way from publisher to subscriber at a fixed rate, and the broker's processor
    /// time for it.
    Paced,
    /// Ours with a second subscriber that is stopped, and without.
    Stalled,
    /// The p99 of ours while another client publishes as fast as it can, and in quiet.
    Flood,
    /// The broker's greatest memory, against so many MB.
    Memory(u32),
}

struct Measurement {
    name: &'static str,
    kind: Kind,
    load: Load,
}

const fn rate(name: &'static str, window: u64, subscribers: u64, messages: u64) -> Measurement {
    let load = Load { window, subscribers, messages, rate: 0, bounded: false };
    Measurement { name, kind: Kind::Rate, load }
}

const fn paced(name: &'static str, kind: Kind, rate: u64, seconds: u64) -> Measurement {
    let load = Load { window: 0, subscribers: 1, messages: rate * seconds, rate, bounded: false };
    Measurement { name, kind, load }
}

const fn memory(name: &'static str, subscribers: u64, megabytes: u32) -> Measurement {
    let load = Load { window: 1024, subscribers, messages: 1_000_000, rate: 0, bounded: true };
    Measurement { name, kind: Kind::Memory(megabytes), load }
}

const MEASUREMENTS: [Measurement; 11] = [
    rate("ack_window_1", 1, 1, 20_000),
    rate("ack_window_64", 64, 1, 400_000),
    rate("ack_window_1024", 1024, 1, 1_000_000),
    rate("fanout_8_window_64", 64, 8, 200_000),
    rate("fanout_8", 1024, 8, 300_000),
    paced("1k", Kind::Paced, 1000, 2),
    paced("20k", Kind::Paced, 20_000, 1),
    Measurement { name: "stalled_subscriber", kind: Kind::Stalled, ..rate("", 1024, 1, 1_000_000) },
    paced("flood", Kind::Flood, 1000, 2),
    memory("memory_1", 1, 12),
    memory("memory_8", 8, 32),
];

/// How the command was given.
struct Settings {
    rounds: usize,
    json: bool,
    peers: bool,
    rows: Vec<String>,
}

impl Settings {
    fn from_arguments(arguments: &[String]) -> Result<Self, String> {
        let mut settings = Self { rounds: 7, json: false, peers: true, rows: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--json" => settings.json = true,
                "--quick" => settings.rounds = 3,
                "--no-peers" => settings.peers = false,
                "--rounds" => {
                    settings.rounds = value()?.parse().map_err(|_| "--rounds needs a number")?;
                }
                "--rows" => settings.rows.extend(value()?.split(',').map(str::to_owned)),
                // Cargo's own.
                "--bench" => {}
                other => return Err(format!("unknown option {other}")),
            }
        }
        if settings.rounds == 0 {
            return Err("at least one round is needed".to_owned());
        }
        Ok(settings)
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| row.starts_with(wanted.as_str()))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, address, load @ ..] = &arguments[..]
        && let Some(load) = Load::from_arguments(load)
    {
        process::play(role, Path::new(address), load);
        return;
    }
    let settings = Settings::from_arguments(&arguments).unwrap_or_else(|problem| {
        eprintln!("{problem}");
        std::process::exit(2)
    });
    let peers = if settings.peers { peers::installed() } else { Vec::new() };
    let mut report = Report::begin(settings.json, settings.rounds);
    for measurement in &MEASUREMENTS {
        measure(measurement, &settings, &peers, &mut report);
    }
    durable::measure(&settings, &peers, &mut report);
}

fn measure(measurement: &Measurement, settings: &Settings, peers: &[Peer], report: &mut Report) {
    let Measurement { name, kind, load } = measurement;
    let rounds = |sides: &[Side<'_>]| take_rounds(settings.rounds, sides, name);
    let own = |system: System| move || run(system, load);
    match kind {
        Kind::Rate if settings.wants(name) => {
            let mut sides: Vec<Side<'_>> = vec![
                Side { name: "relay", run: Box::new(own(System::Relay)) },
                Side { name: "ours", run: Box::new(own(System::Bus)) },
            ];
            for peer in swift_peers(peers) {
                let run = move || peers::run(peer, &peer.scaled(load));
                sides.push(Side { name: peer.name(), run: Box::new(run) });
            }
            let medians = rounds(&sides);
            report.row(Row::from_sides(name, Unit::PerSecond, &medians, |run| run.per_second));
        }
        Kind::Paced => {
            let (latency, cpu) = (format!("latency_{name}"), format!("cpu_{name}"));
            if !settings.wants(&latency) && !settings.wants(&cpu) {
                return;
            }
            let mut sides: Vec<Side<'_>> = vec![
                Side { name: "relay", run: Box::new(own(System::Relay)) },
                Side { name: "ours", run: Box::new(own(System::Bus)) },
            ];
            for peer in swift_peers(peers) {
                sides.push(Side {
                    name: peer.name(),
                    run: Box::new(move || peers::run(peer, load)),
                });
            }
            let medians = rounds(&sides);
            report.row(Row::from_sides(&latency, Unit::Microseconds, &medians, |run| run.p99_us));
            report.row(Row::from_sides(&cpu, Unit::CpuMicroseconds, &medians, |run| run.cpu_us));
        }
        Kind::Stalled if settings.wants(name) => {
            let sides = [
                Side { name: "relay", run: Box::new(own(System::Bus)) },
                Side { name: "ours", run: Box::new(|| process::run_beside_stalled(load)) },
            ];
            let medians = rounds(&sides);
            report.row(Row::from_sides(name, Unit::PerSecond, &medians, |run| run.per_second));
        }
        Kind::Flood if settings.wants(name) => {
            let sides = [
                Side { name: "relay", run: Box::new(own(System::Bus)) },
                Side { name: "ours", run: Box::new(|| process::run_beside_flood(load)) },
            ];
            let medians = rounds(&sides);
            report.row(Row::from_sides(name, Unit::Microseconds, &medians, |run| run.p99_us));
        }
        Kind::Memory(megabytes) if settings.wants(name) => {
            let sides = [Side { name: "ours", run: Box::new(own(System::Bus)) }];
            let mut medians = rounds(&sides);
            let limit = Run { peak_mb: f64::from(*megabytes), ..Run::default() };
            medians.push(("relay", vec![limit]));
            report.row(Row::from_sides(name, Unit::Megabytes, &medians, |run| run.peak_mb));
        }
        _ => {}
    }
}

fn swift_peers(peers: &[Peer]) -> impl Iterator<Item = Peer> {
    peers.iter().copied().filter(|peer| !peer.is_durable())
}

/// One of those that take turns.
pub(crate) struct Side<'a> {
    pub(crate) name: &'static str,
    pub(crate) run: Box<dyn Fn() -> Result<Run, String> + 'a>,
}

/// Every side's runs. A side that fails is left out from then on, and that is said.
pub(crate) fn take_rounds(
    rounds: usize,
    sides: &[Side<'_>],
    row: &str,
) -> Vec<(&'static str, Vec<Run>)> {
    let mut runs: Vec<(&'static str, Vec<Run>)> =
        sides.iter().map(|side| (side.name, Vec::new())).collect();
    let mut failed = vec![false; sides.len()];
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            if failed[at] {
                continue;
            }
            match (sides[at].run)() {
                Ok(run) => runs[at].1.push(run),
                Err(problem) => {
                    eprintln!("{row}: {} is left out: {problem}", sides[at].name);
                    failed[at] = true;
                    runs[at].1.clear();
                }
            }
        }
    }
    runs
}
