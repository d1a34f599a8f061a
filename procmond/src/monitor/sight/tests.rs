//! Sources that fail: on a clock that does not run by itself, and on the real kernel.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::KeyPrecision;
use daemoneye_lib::stream::Sequence;

use super::super::tests::{Bench, records};
use super::*;
use crate::source::ProcessTable;

const EBPF: SourceName = SourceName::Ebpf;
const NETLINK: SourceName = SourceName::Netlink;
const POLL: SourceName = SourceName::Poll;

fn see() -> SourceOptions {
    SourceOptions::every(Duration::from_secs(1))
}

/// Sources that work or do not, as a test wants, and end when it says so.
#[derive(Default)]
struct Scripted {
    broken: Mutex<Vec<SourceName>>,
    running: Mutex<HashMap<SourceName, mpsc::Sender<Observation>>>,
    tried: Mutex<Vec<SourceName>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scripted {
    fn sight(self: &Arc<Self>, choice: SourceChoice) -> Sight {
        let script = Arc::clone(self);
        let open = move |name, _| {
            lock(&script.tried).push(name);
            if lock(&script.broken).contains(&name) {
                let source = format!("{name} is broken").into();
                return Err(SourceError::Broke { name, source });
            }
            let (source, sender) = Started::scripted(name);
            lock(&script.running).insert(name, sender);
            Ok(source)
        };
        Sight { open: Arc::new(open), ..Sight::new(choice, None) }
    }

    fn breaks(&self, names: &[SourceName]) {
        *lock(&self.broken) = names.to_vec();
    }

    /// Ends a source that runs.
    fn end(&self, name: SourceName) {
        assert!(lock(&self.running).remove(&name).is_some(), "{name} runs");
    }

    /// What was tried since this was asked last.
    fn tried(&self) -> Vec<SourceName> {
        std::mem::take(&mut lock(&self.tried))
    }
}

impl Sight {
    /// Does what the monitor does with what comes next. Time passes when nothing else can happen.
    async fn step(&mut self) -> Option<Change> {
        match self.next().await {
            Sighted::Observation(observation) => {
                self.note(&observation);
                None
            }
            Sighted::Ended => self.ended(see()),
            Sighted::Due => {
                self.due(see());
                None
            }
            Sighted::Tried(result) => self.tried(result, see()),
        }
    }

    async fn change(&mut self) -> Change {
        loop {
            if let Some(change) = self.step().await {
                return change;
            }
        }
    }

    /// Another source takes over; gives which, and the gap.
    async fn takes(&mut self) -> (SourceName, GapEvent) {
        match self.change().await {
            Change::Takes { by, overlaps, gap } => {
                assert_eq!(overlaps, gap.missing == Some(0), "{gap:?}");
                (by, gap)
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Seconds that have passed.
fn since(began: Instant) -> u64 {
    began.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn the_better_source_is_tried_after_30_seconds_and_then_half_as_often_each_time() {
    let script = Arc::new(Scripted::default());
    let mut sight = script.sight(SourceChoice::Auto);
    sight.begin(see()).unwrap();
    assert_eq!((sight.name(), sight.failed()), (EBPF, None));
    script.breaks(&[EBPF, NETLINK]);
    script.end(EBPF);
    let (by, gap) = sight.takes().await;
    assert_eq!((by, gap.reason), (POLL, GapReason::SourceChanged));
    assert_eq!(script.tried(), [EBPF, NETLINK, POLL]);
    let mut before = Instant::now();
    for seconds in [30, 60, 120, 240, 480, 600, 600] {
        let failed = sight.failed().unwrap();
        assert_eq!(failed.source, EBPF);
        let ahead_ns = failed.next_try_ns.unwrap() - wall_clock_ns();
        assert!((seconds - 5..=seconds).contains(&(ahead_ns as u64 / 1_000_000_000)), "{ahead_ns}");
        // It is due, and then has been tried.
        sight.step().await;
        assert_eq!(sight.failed().unwrap().next_try_ns, None, "it is being tried");
        sight.step().await;
        assert_eq!(script.tried(), [EBPF, NETLINK]);
        assert_eq!(since(before), seconds);
        assert!(sight.failed().unwrap().why.contains("netlink is broken"));
        before = Instant::now();
    }
    // The second best is better than the third, and the best is tried again all the same.
    script.breaks(&[EBPF]);
    sight.step().await;
    sight.step().await;
    script.end(POLL);
    assert_eq!(sight.takes().await.0, NETLINK);
    script.tried();
    script.breaks(&[]);
    sight.step().await;
    assert_eq!(since(before), 1200);
    sight.step().await;
    assert_eq!(script.tried(), [EBPF]);
    script.end(NETLINK);
    let (by, gap) = sight.takes().await;
    assert_eq!((by, gap.missing, gap.since_ns), (EBPF, Some(0), None));
    assert_eq!((sight.failed(), sight.failures_total()), (None, 1));
}

/// A source that works for a moment whenever it is tried does not bring the gaps of every change
/// every 30 seconds.
#[tokio::test(start_paused = true)]
async fn a_source_that_fails_again_soon_is_tried_less_and_less_often() {
    let script = Arc::new(Scripted::default());
    let mut sight = script.sight(SourceChoice::Auto);
    sight.begin(see()).unwrap();
    let ran = [1, 1, 1, 599, 601, 1];
    for (ran, wait) in ran.into_iter().zip([30, 60, 120, 240, 30, 60]) {
        tokio::time::advance(Duration::from_secs(ran)).await;
        script.end(EBPF);
        script.breaks(&[EBPF]);
        assert_eq!(sight.takes().await.0, NETLINK);
        script.breaks(&[]);
        let before = Instant::now();
        sight.step().await;
        assert_eq!(since(before), wait);
        sight.step().await;
        script.end(NETLINK);
        assert_eq!(sight.takes().await.0, EBPF);
    }
    assert_eq!(sight.failures_total(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_source_asked_for_by_name_is_tried_again_and_no_other() {
    let script = Arc::new(Scripted::default());
    let mut sight = script.sight(SourceChoice::Netlink);
    sight.begin(see()).unwrap();
    script.breaks(&[NETLINK]);
    script.end(NETLINK);
    let Change::Blind { gap } = sight.change().await else { panic!("nobody sees") };
    assert!(gap.since_ns.is_some() && gap.until_ns.is_none(), "{gap:?}");
    assert!(gap.detail.contains("nothing is seen"), "{}", gap.detail);
    assert_eq!((sight.state(), sight.name()), (CollectorState::Blind, NETLINK));
    let mut before = Instant::now();
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        assert!(sight.step().await.is_none());
        assert!(sight.step().await.is_none(), "that is told once");
        assert_eq!(since(before), seconds);
        before = Instant::now();
    }
    assert_eq!(script.tried(), [NETLINK; 9]);
    assert!(sight.blind_gap().unwrap().until_ns.is_some());
    script.breaks(&[]);
    let (by, gap) = sight.takes().await;
    assert_eq!((by, sight.state()), (NETLINK, CollectorState::Monitoring));
    assert!(gap.since_ns <= gap.until_ns && gap.until_ns.is_some(), "{gap:?}");
    assert!(gap.detail.contains("seen with netlink again"), "{}", gap.detail);
    assert_eq!((sight.failed(), sight.blind_gap()), (None, None));
}

/// What did not work when monitoring began lacks a privilege or a kernel, and is left alone.
#[tokio::test(start_paused = true)]
async fn what_was_refused_at_the_beginning_is_not_tried_again() {
    let script = Arc::new(Scripted::default());
    let mut sight = script.sight(SourceChoice::Auto);
    script.breaks(&[EBPF]);
    sight.begin(see()).unwrap();
    script.tried();
    assert_eq!((sight.name(), sight.failed()), (NETLINK, None));
    script.breaks(&[NETLINK]);
    script.end(NETLINK);
    assert_eq!(sight.takes().await.0, POLL);
    sight.step().await;
    sight.step().await;
    assert_eq!(script.tried(), [POLL, NETLINK]);
    // The last one that there is fails as well: all are tried again.
    script.end(POLL);
    assert_eq!(sight.takes().await.0, POLL);
    assert_eq!(script.tried(), [NETLINK, POLL]);
}

/// What sees fails just when the better one is tried, and that does not work: the others are tried
/// before anybody says that nothing is seen.
#[tokio::test(start_paused = true)]
async fn one_that_fails_while_a_better_one_is_tried_is_followed_by_another() {
    let script = Arc::new(Scripted::default());
    let mut sight = script.sight(SourceChoice::Auto);
    sight.begin(see()).unwrap();
    script.breaks(&[EBPF]);
    script.end(EBPF);
    assert_eq!(sight.takes().await.0, NETLINK);
    assert!(matches!(sight.next().await, Sighted::Due));
    sight.due(see());
    // Before the attempt is heard of.
    script.breaks(&[EBPF, NETLINK]);
    script.end(NETLINK);
    assert!(sight.ended(see()).is_none());
    let (by, gap) = sight.takes().await;
    assert_eq!((by, gap.since_ns.is_some()), (POLL, true));
}

/// One that is held up by the process table does not keep the better one from being heard.
#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_end_is_not_waited_for() {
    let script = Arc::new(Scripted::default());
    let mut sight = script.sight(SourceChoice::Auto);
    sight.begin(see()).unwrap();
    script.breaks(&[EBPF, NETLINK]);
    script.end(EBPF);
    assert_eq!(sight.takes().await.0, POLL);
    script.breaks(&[]);
    sight.step().await;
    sight.step().await;
    assert_eq!((sight.name(), sight.failed().is_some()), (POLL, true));
    let before = Instant::now();
    let Change::Takes { by, overlaps, gap } = sight.change().await else { panic!("it takes over") };
    assert_eq!((by, overlaps, since(before)), (EBPF, true, 10));
    assert_eq!((gap.missing, gap.since_ns.is_some(), gap.until_ns.is_some()), (None, true, true));
    assert_eq!((sight.name(), sight.failed()), (EBPF, None));
    assert!(!lock(&script.running).contains_key(&NETLINK));
    assert!(lock(&script.running)[&POLL].is_closed(), "nobody listens to it");
}

#[tokio::test(start_paused = true)]
async fn why_a_source_has_failed_is_what_it_told_last() {
    let script = Arc::new(Scripted::default());
    let mut sight = script.sight(SourceChoice::Auto);
    sight.begin(see()).unwrap();
    let until_ns = 7;
    for (observation, why) in [
        (
            Observation::Failed(SourceError::Broke { name: EBPF, source: "out of luck".into() }),
            "out of luck",
        ),
        (
            Observation::Unchanged { boot_id: uuid::Uuid::nil(), uptime_ns: 5, time_ns: until_ns },
            "without a reason",
        ),
    ] {
        let name = sight.name();
        let sender = lock(&script.running).get(&name).unwrap().clone();
        sender.send(observation).await.unwrap();
        drop(sender);
        sight.step().await;
        script.end(name);
        let (_, gap) = sight.takes().await;
        assert!(
            gap.detail.contains(why) && gap.detail.contains(&name.to_string()),
            "{}",
            gap.detail
        );
        assert_eq!(gap.since_ns == Some(until_ns), why == "without a reason");
    }
}

/// A source that looks sees nothing before it has looked: the gap ends with its first look, or with
/// the run.
#[tokio::test(start_paused = true)]
async fn a_gap_that_poll_ends_ends_with_its_first_look() {
    for looks in [true, false] {
        let script = Arc::new(Scripted::default());
        let bench = Bench::new();
        let log = bench.open(Bench::options()).await;
        let options = bench.monitor_options(Duration::from_secs(1));
        let (mut monitor, _handle, _signals) = bench.monitor_with(&log, options);
        monitor.sight = script.sight(SourceChoice::Auto);
        monitor.begin().unwrap();
        script.breaks(&[EBPF, NETLINK]);
        script.end(EBPF);
        while monitor.sight.state() != CollectorState::Monitoring || monitor.sight.name() != POLL {
            let sighted = monitor.sight.next().await;
            monitor.sighted(sighted).await.unwrap();
        }
        let look_ns = wall_clock_ns() + 1_000_000_000;
        assert_eq!(monitor.health().events.gap, 0);
        if looks {
            monitor
                .observed(Observation::Snapshot(ProcessTable {
                    source: POLL,
                    is_told: false,
                    boot_id: uuid::Uuid::nil(),
                    precision: KeyPrecision::Tick,
                    time_ns: look_ns,
                    uptime_ns: 5,
                    processes: Vec::new(),
                }))
                .await
                .unwrap();
            assert_eq!(monitor.health().events.gap, 1);
        }
        script.end(POLL);
        monitor.finish().await.unwrap();
        let records = records(&log, Sequence(1));
        let [(_, Event::Gap(gap))] = &records[..] else { panic!("{records:?}") };
        assert_eq!(gap.until_ns == Some(look_ns), looks, "{gap:?}");
        assert!(gap.since_ns < gap.until_ns, "{gap:?}");
    }
}

/// Real sources that are cut off from the monitor when a test says so.
#[cfg(target_os = "linux")]
mod real {
    use std::collections::BTreeMap;
    use std::process::Command;
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicBool, Ordering};

    use daemoneye_lib::models::process::{ProcessEvent, ProcessEventKind, ProcessKey};
    use tokio::sync::oneshot;

    use super::super::super::tests::real::{Life, can_use_ebpf, of, seen};
    use super::super::super::tests::until;
    use super::super::super::{MonitorOptions, TellOptions};
    use super::*;
    use crate::source::probe_netlink;
    use crate::wal::WalOptions;

    /// Whether a source can be started.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Mode {
        Works,
        Refused,
        /// Starting it takes until this changes.
        Waits,
    }

    #[derive(Default)]
    struct Faults {
        modes: Mutex<HashMap<SourceName, Mode>>,
        changed: Condvar,
        cuts: Mutex<HashMap<SourceName, oneshot::Sender<()>>>,
    }

    impl Faults {
        fn set(&self, name: SourceName, mode: Mode) {
            lock(&self.modes).insert(name, mode);
            self.changed.notify_all();
        }

        fn cut(&self, name: SourceName) {
            lock(&self.cuts).remove(&name).expect("it runs").send(()).expect("it still does");
        }

        fn open(&self, name: SourceName, see: SourceOptions) -> Result<Started, SourceError> {
            let waits = |modes: &mut HashMap<_, _>| modes.get(&name) == Some(&Mode::Waits);
            let modes = lock(&self.modes);
            let (modes, _) =
                self.changed.wait_timeout_while(modes, Duration::from_secs(60), waits).unwrap();
            if modes.get(&name) == Some(&Mode::Refused) {
                return Err(SourceError::Broke { name, source: "it is kept from it".into() });
            }
            drop(modes);
            let mut source = source::start(name, see)?;
            let (sender, observations) = mpsc::channel(1);
            let mut real = std::mem::replace(&mut source.observations, observations);
            let (cut, mut is_cut) = oneshot::channel();
            lock(&self.cuts).insert(name, cut);
            tokio::spawn(async move {
                loop {
                    let observation = tokio::select! {
                        observation = real.recv() => observation,
                        _ = &mut is_cut => return,
                    };
                    let Some(observation) = observation else { return };
                    if sender.send(observation).await.is_err() {
                        return;
                    }
                }
            });
            Ok(source)
        }
    }

    fn is_stop(event: &ProcessEvent) -> bool {
        matches!(event.kind, ProcessEventKind::Stop(_))
    }

    /// The start and the stop of a process, which are all there is of it.
    fn life(events: &[(Sequence, Event)], pid: u32) -> [ProcessEvent; 2] {
        let life: [ProcessEvent; 2] = of(events, pid).try_into().unwrap();
        let [start, stop] = &life;
        assert!(start.key == stop.key && !is_stop(start) && is_stop(stop), "{life:#?}");
        life
    }

    fn gaps(events: &[(Sequence, Event)], reason: GapReason) -> Vec<GapEvent> {
        let gaps = events.iter().filter_map(|(_, event)| match event {
            Event::Gap(gap) if gap.reason == reason => Some(gap.clone()),
            _ => None,
        });
        gaps.collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c1_netlink_takes_the_place_of_ebpf_and_gives_it_back_without_a_loss() {
        if let Err(error) = probe_netlink() {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
            eprintln!("skipped: {error}");
            return;
        }
        fails_over_to(NETLINK).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c1_poll_takes_the_place_of_ebpf_and_gives_it_back() {
        fails_over_to(POLL).await;
    }

    async fn fails_over_to(second: SourceName) {
        if !can_use_ebpf() {
            return;
        }
        let faults = Arc::new(Faults::default());
        if second == POLL {
            faults.set(NETLINK, Mode::Refused);
        }
        let bench = Bench::new();
        let log = bench.open(WalOptions::default()).await;
        let options = MonitorOptions {
            source: SourceChoice::Auto,
            tell: TellOptions { sha256_bytes_max: Some(64 << 20), ..TellOptions::default() },
            ..bench.monitor_options(Duration::from_millis(10))
        };
        let (mut monitor, handle, _signals) = bench.monitor_with(&log, options);
        let open = Arc::clone(&faults);
        monitor.sight.open = Arc::new(move |name, see| open.open(name, see));
        monitor.sight.retry = Backoff::new(Duration::from_millis(50), RETRY_MAX);
        let running = tokio::spawn(monitor.run());
        handle.begin().await.unwrap().unwrap();
        let health = async || handle.health().await.unwrap();
        let all = Sequence(1);
        // The log grows while the storm rages, and is long.
        let from_now = || log.last().next();

        let (stays, ends) = (Life::begin(), Life::begin());
        seen(&log, all, stays.pid(), 1).await;
        seen(&log, all, ends.pid(), 1).await;
        let before = health().await;
        assert_eq!((before.source, before.failed), (EBPF, None));
        faults.set(EBPF, Mode::Waits);
        faults.set(second, Mode::Waits);
        faults.cut(EBPF);
        until(async || health().await.state == CollectorState::Blind).await;

        // Nobody sees.
        let blind_since_ns = wall_clock_ns();
        let ends = ends.end();
        let meanwhile = Life::begin();
        let unseen = Life::begin().end();
        let blind_until_ns = wall_clock_ns();
        faults.set(second, Mode::Works);
        seen(&log, all, meanwhile.pid(), 1).await;
        let during = health().await;
        assert_eq!((during.source, during.state), (second, CollectorState::Monitoring));
        assert_eq!(during.source_failures_total, 1);
        let failed = during.failed.unwrap();
        assert_eq!((failed.source, failed.why.contains("without a reason")), (EBPF, true));
        let after = Life::begin();
        seen(&log, all, after.pid(), 1).await;

        // The better one works again, while one process follows the other.
        let is_back = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_back);
        let storm = tokio::task::spawn_blocking(move || {
            let mut pids = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let mut child = Command::new("true").spawn().unwrap();
                pids.push(child.id());
                child.wait().unwrap();
            }
            pids
        });
        faults.set(EBPF, Mode::Works);
        until(async || {
            let health = health().await;
            health.source == EBPF && health.failed.is_none()
        })
        .await;
        let last = loop {
            let from = from_now();
            let last = Life::begin();
            seen(&log, from, last.pid(), 1).await;
            // What began before its first look is found by that.
            if of(&records(&log, from), last.pid()).iter().all(|event| !event.inferred) {
                break last;
            }
        };
        is_back.store(true, Ordering::Relaxed);
        let storm = storm.await.unwrap();
        let from = from_now();
        let lives = [stays.end(), meanwhile.end(), after.end(), last.end()];
        for pid in lives {
            // Everything before that has been told as well.
            seen(&log, from, pid, 1).await;
        }
        handle.shutdown().await.unwrap();
        running.await.unwrap().unwrap();

        let events = records(&log, all);
        let [stays, meanwhile, after, last] = lives.map(|pid| life(&events, pid));
        let [_, ended] = life(&events, ends);
        assert!(ended.inferred && meanwhile[0].inferred, "{ended:#?} {meanwhile:#?}");
        let others =
            [&stays[0], &stays[1], &meanwhile[1], &after[0], &after[1], &last[0], &last[1]];
        assert!(others.iter().all(|event| !event.inferred), "{others:#?}");
        assert_eq!((after[0].source, last[0].source, stays[1].source), (second, EBPF, EBPF));
        assert!(others.iter().all(|event| event.exe_sha256.is_some()), "{others:#?}");
        assert_eq!(of(&events, unseen), [], "it is among what the gap says");
        // It was not taken for a change that another source saw it.
        let changes = events.iter().filter(|(_, event)| match event {
            Event::Process(event) => {
                event.key == stays[0].key && matches!(event.kind, ProcessEventKind::Modify { .. })
            }
            Event::Gap(_) => false,
        });
        let after_start = |(_, event): &&(Sequence, Event)| matches!(event, Event::Process(event) if event.source != EBPF);
        assert_eq!(changes.clone().find(after_start), None);

        let [to, back] = &gaps(&events, GapReason::SourceChanged)[..] else {
            panic!("two changes")
        };
        assert!(to.since_ns.unwrap() <= blind_since_ns, "{to:?} {blind_since_ns}");
        assert!(to.until_ns.unwrap() >= blind_until_ns, "{to:?} {blind_until_ns}");
        assert!(to.until_ns.unwrap() <= ended.time_ns.max(to.time_ns), "{to:?}");
        for part in ["the source ebpf has failed", &format!("seen with {second} instead")] {
            assert!(to.detail.contains(part), "{}", to.detail);
        }
        assert_eq!((back.missing, back.since_ns, back.until_ns), (Some(0), None, None));
        assert!(
            back.detail.contains(&format!("ebpf again instead of {second}")),
            "{}",
            back.detail
        );

        // No process of the whole machine has two starts or two stops.
        let mut told: BTreeMap<ProcessKey, (u32, u32)> = BTreeMap::new();
        for (_, event) in &events {
            let Event::Process(event) = event else { continue };
            let (starts, stops) = told.entry(event.key).or_default();
            match event.kind {
                ProcessEventKind::Start { .. } => *starts += 1,
                ProcessEventKind::Stop(_) => *stops += 1,
                ProcessEventKind::Modify { .. } => {}
            }
            assert!(*starts == 1 && *stops <= 1, "{starts} starts, {stops} stops: {event:#?}");
        }
        let seen = storm.iter().filter(|pid| of(&events, **pid).len() == 2).count();
        eprintln!("{second}: {seen} of {} seen that ran while the source changed", storm.len());
        if second == NETLINK && gaps(&events, GapReason::CaptureOverrun).is_empty() {
            for pid in &storm {
                life(&events, *pid);
            }
        }
    }
}
