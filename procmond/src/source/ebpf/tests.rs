use std::collections::HashSet;
use std::process::{Child, Command};
use std::time::Instant;

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::record::{Kind, Record};
use super::*;
use crate::source::ObservedProcess;
use crate::source::poll::Scan;

const PATIENCE: Duration = Duration::from_secs(60);

/// The programs, if they can be used here.
fn loaded() -> Option<Programs> {
    match load(8 << 20) {
        Ok(programs) => Some(programs),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Processes that do nothing.
struct Sleepers(Vec<Child>);

impl Sleepers {
    fn start(count: usize) -> Self {
        let sleep = |_| Command::new("sleep").arg("1000").spawn().expect("a process");
        Self((0..count).map(sleep).collect())
    }

    fn pids(&self) -> HashSet<u32> {
        self.0.iter().map(Child::id).collect()
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for sleeper in &mut self.0 {
            // One that is gone already needs nothing.
            let _ = sleeper.kill();
            let _ = sleeper.wait();
        }
    }
}

/// The processor time that this thread takes for it, in milliseconds.
fn cost<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let cpu_ns = || {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
        tv_sec * 1_000_000_000 + tv_nsec
    };
    let before = cpu_ns();
    let result = run();
    eprintln!("{what:>24}: {:.2} ms", (cpu_ns() - before) as f64 / 1e6);
    result
}

/// The kernel names a process on the way to its program: that is no record of its own.
#[test]
fn a_process_that_runs_a_program_is_three_records() {
    let Some(Programs { mut ring, inventory: _in_place, .. }) = loaded() else { return };
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let mut told = Vec::new();
    let since = Instant::now();
    while told.last() != Some(&Kind::Exit) {
        assert!(since.elapsed() < PATIENCE, "{told:?}");
        while let Some(bytes) = ring.next() {
            let record = Record::read(&bytes).unwrap();
            told.extend((record.pid == child.id()).then_some(record.kind));
        }
    }
    assert_eq!(told, [Kind::Fork, Kind::Exec, Kind::Exit]);
}

/// Also says what it costs: `docs/performance.md` has the command.
#[test]
fn what_is_known_is_not_read_or_told_again() {
    let Some(Programs { mut inventory, mut ring, .. }) = loaded() else { return };
    let count = std::env::var("E2E_PROCESSES").map_or(30, |count| count.parse().unwrap());
    let mut procfs = crate::source::new_poll().unwrap();
    let sleepers = Sleepers::start(count);
    let pids = sleepers.pids();
    let mut list = |what: &str| -> Vec<ObservedProcess> {
        let table = cost(what, || inventory.list(&mut procfs)).unwrap().unwrap();
        table.processes.into_iter().filter(|process| pids.contains(&process.pid)).collect()
    };
    let first = list("inventory, first");
    assert_eq!(first.len(), count);
    assert!(first.iter().all(|process| process.facts.is_some()));
    // Whoever starts a process goes on a moment before its program has its number.
    let mut again = list("inventory, again");
    let since = Instant::now();
    while again.iter().any(|process| process.facts.is_some()) {
        assert!(since.elapsed() < PATIENCE, "what is known is read again");
        again = list("inventory, again");
    }
    for (process, again) in first.iter().zip(&again) {
        assert_eq!((again.pid, again.start_ns), (process.pid, process.start_ns));
    }
    // What the tracepoints tell meanwhile is there, too.
    let found = |ring: &mut RingBuf<MapData>| {
        let mut found = HashSet::new();
        while let Some(bytes) = ring.next() {
            let record = Record::read(&bytes).unwrap();
            if record.kind == Kind::Look && pids.contains(&record.pid) {
                found.insert((record.pid, Some(record.start_ns)));
            }
        }
        found
    };
    // Whoever is younger is not told of yet.
    let mut all = HashSet::new();
    let since = Instant::now();
    while all.len() < count {
        assert!(since.elapsed() < PATIENCE, "{} found", all.len());
        cost("sweep, first", || inventory.sweep());
        all.extend(found(&mut ring));
    }
    assert_eq!(all, first.iter().map(|process| (process.pid, process.start_ns)).collect());
    for _ in 0..5 {
        cost("sweep, again", || inventory.sweep());
    }
    assert_eq!(found(&mut ring), HashSet::new(), "nothing has changed");
    cost("/proc, first", || procfs.scan()).unwrap();
    cost("/proc, again", || procfs.scan()).unwrap();
}

/// A kernel that does not take the iterators has its process table read.
#[test]
fn without_iterators_the_process_table_is_read() {
    let Some(Programs { mut inventory, ring, lost }) = loaded() else { return };
    inventory.give_up(&missing("on_look"));
    let procfs = crate::source::new_poll().unwrap();
    let (sender, mut observations) = mpsc::channel(1);
    let (control, orders) = blocking::channel();
    let tick = Duration::ZERO;
    let intake = Intake::new(ring, tick, orders);
    let records = Records::new(lost, inventory);
    let teller = Teller::new(records, intake, procfs, tick, sender);
    let teller = thread::spawn(move || teller.run());
    let Some(Observation::Snapshot(table)) = observations.blocking_recv() else { panic!() };
    assert_eq!((table.source, table.is_told), (SourceName::Poll, true));
    assert!(table.processes.iter().any(|process| process.pid == std::process::id()));
    // Nobody listens: on a busy machine there is always more to tell.
    drop((control, observations));
    teller.join().unwrap();
}
