//! Looking at the process table, on the real kernel.

#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::GapReason;
use daemoneye_lib::models::process::{ProcessEvent, ProcessEventKind};
use procmond::monitor::tracker::Tracker;
use procmond::source::{Observation, SourceChoice, SourceOptions, Started};
use tokio::sync::mpsc::error::TryRecvError;

const PATIENCE: Duration = Duration::from_secs(30);

/// The source and what it has made of the events so far.
struct Watch {
    source: Option<Started>,
    tracker: Tracker,
    events: Vec<Event>,
}

impl Watch {
    fn begin(interval: Duration) -> Self {
        let options = SourceOptions::every(interval);
        let source = SourceChoice::Poll.start(options).expect("the process table");
        let mut watch = Self { source: Some(source), tracker: Tracker::new(), events: Vec::new() };
        watch.until("what is there", |events| !events.is_empty());
        watch.events.clear();
        watch
    }

    fn take(&mut self, observation: Observation) {
        if let Observation::Failed(error) = &observation {
            panic!("{error}");
        }
        self.events.extend(self.tracker.observe(observation));
    }

    /// Observes until something is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&[Event]) -> bool) {
        let since = Instant::now();
        while !is_so(&self.events) {
            match self.source.as_mut().expect("a source").observations.try_recv() {
                Ok(observation) => self.take(observation),
                Err(TryRecvError::Disconnected) => panic!("the source has ended"),
                Err(TryRecvError::Empty) => {
                    let events = &self.events[self.events.len().saturating_sub(50)..];
                    assert!(since.elapsed() < PATIENCE, "no {what}: {events:#?}");
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Ends the source, and takes what it still has to tell.
    fn end(&mut self) {
        let Started { handle, mut observations, .. } = self.source.take().expect("a source");
        handle.stop();
        while let Some(observation) = observations.blocking_recv() {
            self.take(observation);
        }
    }

    fn starts(&self) -> impl Iterator<Item = &ProcessEvent> {
        processes(&self.events)
            .filter(|event| matches!(event.kind, ProcessEventKind::Start { existing: false }))
    }

    /// The most that may have lived unseen.
    fn unseen(&self) -> u64 {
        let gaps = self.events.iter().filter_map(|event| match event {
            Event::Gap(gap) if gap.reason == GapReason::Unseen => gap.missing,
            _ => None,
        });
        gaps.sum()
    }
}

fn processes(events: &[Event]) -> impl Iterator<Item = &ProcessEvent> {
    events.iter().filter_map(|event| match event {
        Event::Process(event) => Some(&**event),
        Event::Gap(_) => None,
    })
}

/// Of a thousand processes that live a millisecond few are seen, and no more are missing than is
/// said.
#[test]
fn c1_what_lives_between_two_looks_is_bounded() {
    const LIVES: u64 = 1000;
    let mut watch = Watch::begin(Duration::from_millis(100));
    for _ in 0..LIVES {
        let status = Command::new("true").stdin(Stdio::null()).status().expect("a process");
        assert!(status.success());
    }
    watch.end();
    let me = std::process::id();
    let mine = watch.starts().filter(|event| event.ppid == Some(me)).count() as u64;
    assert!(mine + watch.unseen() >= LIVES, "{mine} seen, at most {} unseen", watch.unseen());
    assert!(watch.unseen() > 0, "a look every 100 ms sees few of them");
}

/// Processes that sleep, and are not left behind.
struct Sleepers(Vec<Child>);

impl Sleepers {
    fn start(count: usize) -> Self {
        let sleep =
            |_| Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("a process");
        Self((0..count).map(sleep).collect())
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills all of them, half of them reaped at once, and gives the one stop of each.
fn stops_of_killed(watch: &mut Watch, sleepers: &mut Sleepers) -> HashMap<u32, ProcessEvent> {
    for (n, child) in sleepers.0.iter_mut().enumerate() {
        child.kill().expect("an end");
        if n % 2 == 0 {
            child.wait().expect("an end");
        }
    }
    let pids: Vec<u32> = sleepers.0.iter().map(Child::id).collect();
    let is_stop = |event: &&ProcessEvent| {
        matches!(event.kind, ProcessEventKind::Stop(_)) && pids.contains(&event.pid())
    };
    watch.until("every stop", |events| processes(events).filter(is_stop).count() >= pids.len());
    let stops: HashMap<_, _> =
        processes(&watch.events).filter(is_stop).map(|stop| (stop.pid(), stop.clone())).collect();
    assert_eq!(stops.len(), pids.len(), "one stop for each");
    stops
}

fn wait_for_starts(watch: &mut Watch, sleepers: &Sleepers) {
    let pids: Vec<u32> = sleepers.0.iter().map(Child::id).collect();
    let is_sleeper =
        |event: &&ProcessEvent| pids.contains(&event.pid()) && event.name == Some("sleep".into());
    watch.until("every sleeper", |events| {
        processes(events).filter(is_sleeper).count() >= pids.len()
    });
}

/// Whether all processes here can be held, by this test and by others that run beside it.
fn can_hold_all() -> bool {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("own limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let most: usize =
        files.split_whitespace().nth(4).and_then(|hard| hard.parse().ok()).unwrap_or(usize::MAX);
    let processes = std::fs::read_dir("/proc").expect("/proc").count();
    let can = processes < most / 8;
    if !can {
        eprintln!("skipped: {processes} processes, and {most} files may be open");
    }
    can
}

/// Without another look: the kernel tells of the end of each process that is known.
#[test]
fn c1_the_ends_of_known_processes_are_told_when_they_come() {
    if !can_hold_all() {
        return;
    }
    let mut watch = Watch::begin(Duration::from_millis(50));
    let mut sleepers = Sleepers::start(300);
    wait_for_starts(&mut watch, &sleepers);
    watch.source.as_ref().unwrap().handle.set_interval(Duration::from_secs(3600));
    let began_ns = daemoneye_lib::stream::wall_clock_ns();
    let stops = stops_of_killed(&mut watch, &mut sleepers);
    let now_ns = daemoneye_lib::stream::wall_clock_ns();
    for (pid, stop) in stops {
        let ProcessEventKind::Stop(exit) = stop.kind else { panic!("{stop:?}") };
        assert!((began_ns..=now_ns).contains(&stop.time_ns), "{pid}: {stop:?}");
        assert!(!stop.inferred);
        // Of one that was reaped before it was looked at, Linux 6.15 and later say it.
        assert!(exit.signal.is_none_or(|signal| signal == 9), "{pid}: {exit:?}");
    }
}

/// While looks come as often as they can: whoever finds the end first, it is told once.
#[test]
fn c1_ends_that_looks_and_the_kernel_tell_of_are_told_once() {
    let mut watch = Watch::begin(Duration::from_millis(10));
    for _ in 0..3 {
        let mut sleepers = Sleepers::start(50);
        wait_for_starts(&mut watch, &sleepers);
        stops_of_killed(&mut watch, &mut sleepers);
    }
    watch.end();
    let mut counts = HashMap::new();
    for event in processes(&watch.events) {
        if let ProcessEventKind::Stop(_) = event.kind {
            *counts.entry(event.key).or_insert(0) += 1;
        }
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}
