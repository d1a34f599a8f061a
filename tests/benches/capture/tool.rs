//! What is the same for whatever sees processes.

use std::collections::{HashMap, HashSet};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::load::{Load, Truth};

/// How long a tool may take to see something.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Sees processes.
pub(crate) trait Tool {
    fn name(&self) -> &'static str;
    fn start(&self) -> Result<Box<dyn Watching>, String>;
}

/// A tool that runs; ended when dropped.
pub(crate) trait Watching {
    /// The process whose time and memory count.
    fn pid(&self) -> u32;
    /// Whether it has told of a process with this argument.
    fn has_seen(&self, mark: &str) -> bool;
    /// What it has told of the processes of a load.
    fn seen(&self, mark: &str) -> Seen;
    /// From just before a process was made to the subscriber's receiving it, where there is one.
    fn latencies_ns(&self, _mark: &str) -> Vec<u64> {
        Vec::new()
    }
}

/// What was told.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) starts: HashSet<u32>,
    /// `None`: it does not tell.
    pub(crate) stops: Option<HashSet<u32>>,
    /// The marks of which all arguments were told.
    pub(crate) whole: HashSet<String>,
}

/// What a tool made of a load.
pub(crate) struct Measured {
    pub(crate) truth: Truth,
    pub(crate) found: Found,
    pub(crate) cpu: Duration,
    pub(crate) kernel_time: Duration,
    /// Of the programs that it has in the kernel, if it has any.
    pub(crate) program_time: Option<Duration>,
    pub(crate) resident_kb: u64,
    pub(crate) latencies_ns: Vec<u64>,
}

/// How many of a load's processes were told of.
#[derive(PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) starts: usize,
    pub(crate) stops: Option<usize>,
    pub(crate) whole: usize,
}

impl Found {
    fn of(watching: &dyn Watching, mark: &str, truth: &Truth) -> Self {
        let seen = watching.seen(mark);
        let of_truth =
            |pids: &HashSet<u32>| truth.pids.iter().filter(|pid| pids.contains(pid)).count();
        Self {
            starts: of_truth(&seen.starts),
            stops: seen.stops.as_ref().map(of_truth),
            whole: seen.whole.len(),
        }
    }
}

/// Starts a tool, runs the load under it, and waits until it has told what it will.
pub(crate) fn measure(tool: &dyn Tool, load: &Load, round: usize) -> Result<Measured, String> {
    let watching = tool.start()?;
    let mark = |what: &str| format!("{what}-{}-{round}-{}", tool.name(), std::process::id());
    tell_apart(watching.as_ref(), &mark("begin"))?;
    let (cpu, kernel_time) = times(watching.pid());
    let program_time = program_time(watching.pid());
    let of_load = mark("load");
    let truth = load.run(&of_load)?;
    tell_apart(watching.as_ref(), &mark("done"))?;
    let (cpu_after, kernel_after) = times(watching.pid());
    let program_time =
        self::program_time(watching.pid()).zip(program_time).map(|(after, before)| after - before);
    let resident_kb = resident_kb(watching.pid());
    // The order in which things are told need not be that in which they happened.
    let mut seen = Found::of(watching.as_ref(), &of_load, &truth);
    until("it tells nothing new", || {
        let before = std::mem::replace(&mut seen, Found::of(watching.as_ref(), &of_load, &truth));
        before == seen
    })?;
    Ok(Measured {
        found: seen,
        cpu: cpu_after - cpu,
        kernel_time: kernel_after - kernel_time,
        program_time,
        resident_kb,
        latencies_ns: watching.latencies_ns(&of_load),
        truth,
    })
}

/// Runs a process that waits until the tool has told of it.
fn tell_apart(watching: &dyn Watching, mark: &str) -> Result<(), String> {
    let mut waiting: Vec<Guarded> = Vec::new();
    let since = Instant::now();
    let mut n = 0;
    loop {
        // A tool that is not ready yet does not see the first ones.
        if since.elapsed() >= Duration::from_secs(2) * n {
            waiting.push(Guarded::spawn(
                Command::new("sh")
                    .args(["-c", "read line", &format!("{mark}-{n}"), "end"])
                    .stdin(Stdio::piped()),
            )?);
            n += 1;
        }
        if (0..n).any(|n| watching.has_seen(&format!("{mark}-{n}"))) {
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            return Err(format!("it told of no process {mark}"));
        }
        thread::sleep(PAUSE);
    }
}

pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    let since = Instant::now();
    while !is_so() {
        if since.elapsed() > PATIENCE {
            return Err(format!("{what}: not in {PATIENCE:?}"));
        }
        thread::sleep(PAUSE * 5);
    }
    Ok(())
}

/// All of the processor time of a process's threads, and the part that was the kernel's.
fn times(pid: u32) -> (Duration, Duration) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let (mut all, mut kernel) = (0, 0);
    for task in tasks {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let ran = read("schedstat").split(' ').next().and_then(|word| word.parse::<u64>().ok());
        all += ran.unwrap_or(0);
        let stat = read("stat");
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: Vec<u64> = fields.skip(11).take(2).map_while(|word| word.parse().ok()).collect();
        // The scheduler's time, shared out as the ticks fell.
        if let [user, system] = ticks[..]
            && user + system > 0
        {
            kernel += ran.unwrap_or(0) * system / (user + system);
        }
    }
    (Duration::from_nanos(all), Duration::from_nanos(kernel))
}

/// Has the kernel measure the programs that run in it while this is there.
pub(crate) struct ProgramTimes {
    before: String,
}

impl ProgramTimes {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    pub(crate) fn measure() -> Option<Self> {
        let before = std::fs::read_to_string(Self::SWITCH).ok()?;
        std::fs::write(Self::SWITCH, "1").ok()?;
        Some(Self { before })
    }
}

impl Drop for ProgramTimes {
    fn drop(&mut self) {
        // Whoever may switch it on may switch it off.
        let _ = std::fs::write(Self::SWITCH, &self.before);
    }
}

/// What the kernel has spent in a process's programs since they were loaded.
fn program_time(pid: u32) -> Option<Duration> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    // A link to a program is a file, too, and has no times.
    let times: HashMap<u64, u64> = files
        .filter_map(|file| {
            let info = std::fs::read_to_string(file.path()).ok()?;
            let field = |name: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<u64>().ok()
            };
            field("prog_id:").zip(field("run_time_ns:"))
        })
        .collect();
    (!times.is_empty()).then(|| Duration::from_nanos(times.values().sum()))
}

fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A child that does not outlive this.
pub(crate) struct Guarded(Child);

impl Guarded {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self, String> {
        command.spawn().map(Self).map_err(|error| format!("{command:?}: {error}"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Asked first, as bpftrace and auditd leave things behind when killed.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let since = Instant::now();
        while !matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
            if since.elapsed() > Duration::from_secs(3) {
                let _ = self.0.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
