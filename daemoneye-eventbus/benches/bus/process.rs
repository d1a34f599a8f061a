//! The roles' processes, and one run of them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::load::{Load, now_ns};
use crate::{ours, peers, relay};

/// A role that takes longer has met something that stands still.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whose broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Relay,
    Bus,
}

impl System {
    fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Bus => "bus",
        }
    }
}

/// What one run came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    /// Messages a second, from the first publish to the last acknowledgement and receipt.
    pub(crate) per_second: f64,
    /// From publisher to subscriber.
    pub(crate) p99_us: f64,
    /// The broker's processor time for a message.
    pub(crate) cpu_us: f64,
    /// The broker's greatest memory.
    pub(crate) peak_mb: f64,
}

/// A child process; ended when dropped.
pub(crate) struct Process {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let stdout = child.stdout.take().ok_or("its output is not piped")?;
        Ok(Self { child, lines: BufReader::new(stdout) })
    }

    /// This program again.
    pub(crate) fn role(name: &str, address: &Path, load: &Load) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        Self::start(Command::new(program).arg(name).arg(address).args(load.arguments()))
    }

    pub(crate) fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(|error| error.to_string())?;
        if line.is_empty() {
            return Err("a role ended early".to_owned());
        }
        Ok(line.trim().to_owned())
    }

    pub(crate) fn number<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let line = self.line()?;
        line.parse().map_err(|_| format!("a number was awaited, not {line:?}"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processor time it has used, by all of its threads.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = format!("/proc/{}/task", self.child.id());
        let Ok(threads) = std::fs::read_dir(tasks) else { return Duration::ZERO };
        let nanoseconds = threads.flatten().filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    fn peak_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let peak = status.unwrap_or_default().lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok()
        });
        peak.unwrap_or_default() / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for a socket, and the socket's path.
pub(crate) fn place() -> Result<(tempfile::TempDir, PathBuf), String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let socket = directory.path().join("bus.sock");
    Ok((directory, socket))
}

/// One run of ours or of the relay.
pub(crate) fn run(system: System, load: &Load) -> Result<Run, String> {
    run_beside(system, load, |_| Ok(()))
}

/// One run of ours beside a subscriber that is stopped as soon as it has subscribed.
pub(crate) fn run_beside_stalled(load: &Load) -> Result<Run, String> {
    run_beside(System::Bus, load, |socket| {
        let stalled = Load { bounded: true, ..*load };
        let mut stalled = Process::role("bus-stalled", socket, &stalled)?;
        stalled.line()?;
        let stop = Command::new("kill").args(["-STOP", &stalled.id().to_string()]).status();
        match stop {
            Ok(status) if status.success() => Ok(stalled),
            other => Err(format!("the subscriber cannot be stopped: {other:?}")),
        }
    })
}

/// One run of ours beside a publisher of something else that never pauses.
pub(crate) fn run_beside_flood(load: &Load) -> Result<Run, String> {
    run_beside(System::Bus, load, |socket| {
        let flood = Load { window: 1024, rate: 0, messages: u64::MAX, ..*load };
        let mut flood = Process::role("bus-flood", socket, &flood)?;
        flood.line()?;
        Ok(flood)
    })
}

fn run_beside<T>(
    system: System,
    load: &Load,
    beside: impl FnOnce(&Path) -> Result<T, String>,
) -> Result<Run, String> {
    let (_directory, socket) = place()?;
    let role = |name: &str| Process::role(&format!("{}-{name}", system.name()), &socket, load);
    let mut broker = role("broker")?;
    broker.line()?;
    let mut subscriber = role("subscriber")?;
    subscriber.line()?;
    let _beside = beside(&socket)?;
    drive(&broker, subscriber, || role("publisher"), load)
}

/// The rest of a run, the same for all systems: `subscriber` is ready.
pub(crate) fn drive(
    broker: &Process,
    mut subscriber: Process,
    publisher: impl FnOnce() -> Result<Process, String>,
    load: &Load,
) -> Result<Run, String> {
    let cpu_before = broker.cpu();
    let mut publisher = publisher()?;
    let started: u64 = publisher.number()?;
    let acked: u64 = publisher.number()?;
    let summary = subscriber.line()?;
    let (received, p99_us) = summary
        .split_once(' ')
        .and_then(|(end, p99)| Some((end.parse::<u64>().ok()?, p99.parse().ok()?)))
        .ok_or("a subscriber's summary is not one")?;
    let seconds = acked.max(received).saturating_sub(started) as f64 / 1e9;
    Ok(Run {
        per_second: load.messages as f64 / seconds,
        p99_us,
        cpu_us: (broker.cpu() - cpu_before).as_secs_f64() * 1e6 / load.messages as f64,
        peak_mb: broker.peak_mb(),
    })
}

// ---- on the roles' side

pub(crate) fn say(line: impl std::fmt::Display) {
    println!("{line}");
    std::io::stdout().flush().expect("the conductor listens");
}

pub(crate) fn say_now() {
    say(now_ns());
}

pub(crate) fn play(role: &str, address: &Path, load: Load) {
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        eprintln!("a role took longer than {PATIENCE:?}");
        std::process::exit(1);
    });
    if peers::play(role, address, load) {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a tokio runtime");
    let (role, address) = (role.to_owned(), address.to_owned());
    // A task like others: waking the one that block_on runs itself costs two system calls.
    let role = runtime.spawn(async move {
        let address = &address;
        match role.as_str() {
            "bus-broker" => ours::broker(address, load).await,
            "bus-subscriber" => ours::subscriber(address, load, "subscriber").await,
            "bus-stalled" => ours::subscriber(address, load, "stalled").await,
            "bus-publisher" => ours::publisher(address, load, "publisher").await,
            "bus-flood" => ours::publisher(address, load, "flood").await,
            "relay-broker" => relay::broker(address).await,
            "relay-subscriber" => relay::subscriber(address, load).await,
            "relay-publisher" => relay::publisher(address, load).await,
            other => panic!("no such role: {other}"),
        }
    });
    runtime.block_on(role).expect("the role is played");
}
