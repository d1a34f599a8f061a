use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Parser;
use procmond::monitor::tracker::Tracker;
use procmond::source::{EbpfPasses, SourceChoice, SourceOptions, probe_ebpf};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::time::{ClockId, clock_gettime};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// Between two looks, as by default: what is due less often costs its part.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Args {
    /// How many processes sleep.
    #[arg(long, value_delimiter = ',', default_value = "2000,10000")]
    sleepers: Vec<usize>,
    /// How often each way has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How often it looks in a turn, after the first time.
    #[arg(long, default_value_t = 8)]
    looks: u32,
    /// Looks in this way and prints what it cost.
    #[arg(long, hide = true)]
    way: Option<String>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The first is the floor, the second the limit.
const WAYS: [&str; 9] = [
    "names only",
    "raw stat",
    "poll",
    "poll, with its table",
    "ebpf",
    "ebpf, with its table",
    "ebpf, sweep",
    "sysinfo",
    "ps -e",
];

/// What one turn cost: milliseconds of processor time for the first look and for one after it, and
/// the resident KiB in the end.
#[derive(Clone, Copy)]
struct Cost {
    first: f64,
    later: f64,
    kib: f64,
}

pub(super) fn main() {
    let args = Args::parse();
    if let Some(way) = &args.way {
        let Cost { first, later, kib } = measure(way, args.looks);
        println!("{first} {later} {kib}");
        return;
    }
    let has_ebpf = probe_ebpf().inspect_err(|error| println!("{error}\n")).is_ok();
    let ways = WAYS.into_iter().filter(|way| !way.starts_with("ebpf") || has_ebpf);
    let ways: Vec<&str> = ways.collect();
    println!("Milliseconds of processor time for a look; medians of {} turns.\n", args.rounds);
    println!("| processes | way | first | later | to raw stat | resident MB |");
    println!("|---|---|---|---|---|---|");
    for count in &args.sleepers {
        let sleepers = Sleepers::start(*count);
        let mut costs = vec![Vec::new(); ways.len()];
        for round in 0..args.rounds {
            for turn in 0..ways.len() {
                let at = (turn + round) % ways.len();
                costs[at].push(in_own_process(ways[at], args.looks));
            }
        }
        let medians: Vec<Cost> = costs.iter().map(|costs| median_cost(costs)).collect();
        for (way, cost) in ways.iter().zip(&medians) {
            let Cost { first, later, kib } = cost;
            let (ratio, mb) = (later / medians[1].later, kib / 1024.0);
            println!("| {count} | {way} | {first:.1} | {later:.1} | {ratio:.2} | {mb:.1} |");
        }
        drop(sleepers);
    }
}

fn in_own_process(way: &str, looks: u32) -> Cost {
    let program = std::env::current_exe().expect("a program");
    let output = Command::new(program)
        .args(["--way", way, "--looks", &looks.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("a process of its own");
    let text = String::from_utf8(output.stdout).expect("text");
    let numbers: Vec<f64> =
        text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let [first, later, kib] = numbers[..] else { panic!("{way}: {text:?}") };
    Cost { first, later, kib }
}

fn measure(way: &str, looks: u32) -> Cost {
    let (first, later) = match way {
        "names only" => {
            let mut proc = Proc::open();
            look_again(looks, || proc.names(|_, _| {}))
        }
        "raw stat" => {
            let mut proc = Proc::open();
            look_again(looks, || proc.names(read_stat))
        }
        "poll" => poll(looks, None),
        "poll, with its table" => poll(looks, Some(Tracker::new())),
        "ebpf" => ebpf(looks, |passes| drop(passes.look().expect("a look"))),
        "ebpf, with its table" => {
            let mut table = Tracker::new();
            ebpf(looks, |passes| drop(table.observe(passes.look().expect("a look"))))
        }
        "ebpf, sweep" => ebpf(looks, EbpfPasses::sweep),
        "sysinfo" => {
            let mut system = System::new().expect("a system");
            let kind = ProcessRefreshKind::nothing().without_tasks();
            look_again(looks, || {
                system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
            })
        }
        "ps -e" => ps(looks),
        other => panic!("no way {other:?}"),
    };
    let status = fs::read_to_string("/proc/self/status").expect("own status");
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    Cost { first, later, kib: kib.expect("a size").parse().expect("a number") }
}

fn look_again(looks: u32, mut look: impl FnMut()) -> (f64, f64) {
    let before = cpu_ms();
    look();
    let first = cpu_ms();
    for _ in 0..looks {
        look();
    }
    (first - before, (cpu_ms() - first) / f64::from(looks))
}

/// The source as the monitor has it, with its thread and its channel.
fn poll(looks: u32, mut table: Option<Tracker>) -> (f64, f64) {
    let before = cpu_ms();
    let mut source =
        SourceChoice::Poll.start(SourceOptions::every(INTERVAL)).expect("the process table");
    let mut look = || {
        let observation = source.observations.blocking_recv().expect("a look");
        if let Some(table) = &mut table {
            table.observe(observation);
        }
    };
    look();
    let first = cpu_ms();
    for _ in 0..looks {
        look();
    }
    (first - before, (cpu_ms() - first) / f64::from(looks))
}

/// With the programs in place: putting them there is not what is measured.
fn ebpf(looks: u32, mut look: impl FnMut(&mut EbpfPasses)) -> (f64, f64) {
    let mut passes = EbpfPasses::new().expect("it was probed");
    look_again(looks, || look(&mut passes))
}

/// In hundredths of a second is what the kernel says of children.
fn ps(looks: u32) -> (f64, f64) {
    let children_ms = || {
        let stat = fs::read_to_string("/proc/self/stat").expect("own times");
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let ticks = |at: usize| -> f64 {
            fields.split_whitespace().nth(at - 3).and_then(|n| n.parse().ok()).expect("a number")
        };
        (ticks(16) + ticks(17)) * 10.0
    };
    let run = || {
        Command::new("ps").arg("-e").stdout(Stdio::null()).status().expect("ps");
    };
    run();
    let before = children_ms();
    (0..looks).for_each(|_| run());
    let later = (children_ms() - before) / f64::from(looks);
    (later, later)
}

fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

struct Proc {
    dir: OwnedFd,
    list: Box<[MaybeUninit<u8>]>,
}

impl Proc {
    fn open() -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open("/proc", flags, Mode::empty()).expect("/proc");
        Self { dir, list: Box::new_uninit_slice(64 << 10) }
    }

    fn names(&mut self, mut each: impl FnMut(&OwnedFd, &[u8])) {
        rustix::fs::seek(&self.dir, SeekFrom::Start(0)).expect("its beginning");
        let mut entries = RawDir::new(&self.dir, &mut self.list);
        while let Some(entry) = entries.next() {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_bytes();
            if name[0].is_ascii_digit() {
                each(&self.dir, name);
            }
        }
    }
}

/// Opens, reads and closes, and does nothing with what it has read.
fn read_stat(dir: &OwnedFd, name: &[u8]) {
    let mut path = [0; 32];
    path[..name.len()].copy_from_slice(name);
    path[name.len()..name.len() + 5].copy_from_slice(b"/stat");
    let path = &path[..name.len() + 5];
    if let Ok(file) = rustix::fs::openat(dir, path, OFlags::RDONLY, Mode::empty()) {
        let mut buffer = [0_u8; 1024];
        // One that ends meanwhile has nothing to read.
        let _ = rustix::io::read(&file, &mut buffer);
    }
}

/// Processes that do nothing, and end by themselves if they are forgotten.
struct Sleepers(Vec<Child>);

impl Sleepers {
    fn start(count: usize) -> Self {
        let mut sleepers = Self(Vec::with_capacity(count));
        for _ in 0..count {
            let args = ["1800", "0", "0", "0"];
            match Command::new("sleep").args(args).stdin(Stdio::null()).spawn() {
                Ok(child) => sleepers.0.push(child),
                Err(error) => {
                    println!("only {} processes can be started: {error}", sleepers.0.len());
                    break;
                }
            }
        }
        sleepers
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn median_cost(costs: &[Cost]) -> Cost {
    let median = |figure: fn(&Cost) -> f64| {
        let mut figures: Vec<f64> = costs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Cost { first: median(|c| c.first), later: median(|c| c.later), kib: median(|c| c.kib) }
}
