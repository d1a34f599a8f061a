//! Looking at the process table, on the real kernel.

#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};
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
