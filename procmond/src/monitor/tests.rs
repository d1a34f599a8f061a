//! The actor on a real log, with and without real processes.

use std::sync::Arc;

use daemoneye_eventbus::{ClientOptions, Role};
use daemoneye_lib::models::control::{CollectorState, EventCounts, Summarised};
use daemoneye_lib::models::process::{
    Completeness, KeyPrecision, ProcessEvent, ProcessEventKind, SourceName,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::snapshot::SNAPSHOT_FILE;
use super::*;
use crate::event_bus_connector::ConnectorOptions;
use crate::source::{Facts, ObservedProcess, Overrun, ProcessTable};
use crate::wal::faulty::{Fault, Faulty, Op};
use crate::wal::{Entry, WalOptions, WriteAheadLog};

const DEADLINE: Duration = Duration::from_secs(60);
const ENGAGE: BackpressureSignal = BackpressureSignal::Engage { level: 100 };
const RELEASE: BackpressureSignal = BackpressureSignal::Release { level: 50 };

/// A directory for a log, and what is made on it. There is no broker.
pub(super) struct Bench {
    directory: TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// Small segments, no commit delay.
    pub(super) fn options() -> WalOptions {
        WalOptions { segment_bytes: 4096, commit_delay: Duration::ZERO, ..WalOptions::default() }
    }

    fn wal_dir(&self) -> PathBuf {
        self.directory.path().join("wal")
    }

    fn snapshot_path(&self) -> PathBuf {
        self.wal_dir().join(SNAPSHOT_FILE)
    }

    /// Opens the log as soon as the one before has let go of it.
    pub(super) async fn open(&self, options: WalOptions) -> WriteAheadLog {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match WriteAheadLog::open(&self.wal_dir(), options.clone()) {
                Ok((log, _)) => return log,
                Err(WalError::LockHeld { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(super) fn connector(&self, log: &WriteAheadLog) -> EventBusConnector {
        let options = ConnectorOptions {
            socket: self.directory.path().join("nobody.sock"),
            client: ClientOptions::new("monitor", Role::Collector),
            window_bytes_max: ConnectorOptions::WINDOW_BYTES_MAX,
            topic_of: |_| "events.process.start".parse().unwrap(),
        };
        EventBusConnector::start(log.clone(), options).0
    }

    /// As [`Bench::monitor`], for some processes only.
    fn monitor_of(
        &self,
        log: &WriteAheadLog,
        filter: Filter,
    ) -> (ProcessMonitor, MonitorHandle, mpsc::Sender<BackpressureSignal>) {
        let options = MonitorOptions {
            tell: TellOptions { filter, ..TellOptions::default() },
            ..self.monitor_options(Duration::from_millis(10))
        };
        self.monitor_with(log, options)
    }

    /// A monitor that looks this often, its handle and the sending end of its signals.
    fn monitor(
        &self,
        log: &WriteAheadLog,
        interval: Duration,
    ) -> (ProcessMonitor, MonitorHandle, mpsc::Sender<BackpressureSignal>) {
        self.monitor_with(log, self.monitor_options(interval))
    }

    pub(super) fn monitor_with(
        &self,
        log: &WriteAheadLog,
        options: MonitorOptions,
    ) -> (ProcessMonitor, MonitorHandle, mpsc::Sender<BackpressureSignal>) {
        let (signals, signals_out) = mpsc::channel(4);
        let recovered = Recovered::read(&options, log).unwrap();
        let connector = self.connector(log);
        let (monitor, handle) = ProcessMonitor::new(options, recovered, connector, signals_out);
        (monitor, handle, signals)
    }

    pub(super) fn monitor_options(&self, interval: Duration) -> MonitorOptions {
        let snapshot_path = self.snapshot_path();
        MonitorOptions {
            source: SourceChoice::Poll,
            see: SourceOptions::every(interval),
            tell: TellOptions::default(),
            snapshot_path,
        }
    }

    /// Has everything committed, and waits until the log has forgotten what it may.
    pub(super) async fn forget(&self, log: &WriteAheadLog) {
        let last = log.flush().await.unwrap();
        log.acknowledge(last).unwrap();
        until(async || log.stats().used_bytes < 4096).await;
    }
}

/// Waits until it holds.
pub(super) async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The events in the log from a sequence on. Anything lost fails.
pub(super) fn records(log: &WriteAheadLog, from: Sequence) -> Vec<(Sequence, Event)> {
    let mut reader = log.reader(from);
    let mut events = Vec::new();
    let mut next = from;
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            return events;
        }
        for entry in batch {
            let Entry::Record(record) = entry else { panic!("{entry:?}") };
            assert_eq!(record.sequence, next, "sequences are contiguous");
            next = next.next();
            events.push((record.sequence, Event::decode(&record.payload).unwrap()));
        }
    }
}

/// A look at processes that have these pids and names.
fn look(centis: u64, processes: impl IntoIterator<Item = (u32, String)>) -> Observation {
    let observed = |(pid, name): (u32, String)| {
        let mut facts = Facts::unknown(Completeness::Complete);
        facts.name = Some(name.as_str().into());
        let facts = Some(Box::new(facts));
        ObservedProcess { pid, start_centis: 1, start_ns: None, facts, ended: None }
    };
    Observation::Snapshot(ProcessTable {
        source: SourceName::Poll,
        is_told: false,
        boot_id: Uuid::from_u128(7),
        precision: KeyPrecision::Tick,
        time_ns: i64::try_from(centis).unwrap() * 10_000_000,
        uptime_ns: centis * 10_000_000,
        processes: processes.into_iter().map(observed).collect(),
    })
}

/// A look at `count` processes.
fn crowd(centis: u64, count: u32) -> Observation {
    look(centis, (1..=count).map(|pid| (pid, format!("process-{pid}"))))
}

/// The start, a change and the end of a process.
pub(super) fn life() -> [Event; 3] {
    let mut tracker = Tracker::new();
    let mut one = |processes| {
        let mut events = tracker.observe(processes);
        assert_eq!(events.len(), 1);
        events.remove(0)
    };
    let named = |centis, name: &str| look(centis, [(7, name.to_owned())]);
    [one(named(2, "before")), one(named(3, "after")), one(look(4, []))]
}

fn set(monitor: &mut ProcessMonitor, ms: u64, at_once: bool) -> Result<(), String> {
    let (reply, mut answer) = oneshot::channel();
    let interval = Duration::from_millis(ms);
    monitor.take(Message::SetInterval { interval, at_once, reply });
    answer.try_recv().unwrap()
}

#[tokio::test]
async fn an_interval_out_of_range_is_refused_with_the_range() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, Duration::from_secs(1));
    for at_once in [true, false] {
        for ms in [0, 9, 3_600_001, u64::MAX] {
            let refused = set(&mut monitor, ms, at_once).unwrap_err();
            assert!(refused.contains("between 10 and 3600000 ms"), "{refused}");
        }
        monitor.observed(look(2, [])).await.unwrap();
        assert_eq!(monitor.health().interval_ms, 1000, "a refusal changes nothing");
    }
    for ms in [10, 3_600_000] {
        assert_eq!(set(&mut monitor, ms, true), Ok(()));
        assert_eq!(monitor.health().interval_ms, ms);
    }
}

#[tokio::test]
async fn an_update_waits_for_the_next_look() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, Duration::from_secs(1));
    set(&mut monitor, 50, false).unwrap();
    assert_eq!(monitor.health().interval_ms, 1000);
    monitor.observed(look(2, [])).await.unwrap();
    assert_eq!(monitor.health().interval_ms, 50);
    set(&mut monitor, 60, true).unwrap();
    monitor.observed(look(3, [])).await.unwrap();
    assert_eq!(monitor.health().interval_ms, 60, "it was taken up once");
}

/// An interval that was asked for later gave way, at the next look, to one that was asked for
/// earlier and had waited for it.
#[tokio::test]
async fn the_later_interval_counts() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, Duration::from_secs(1));
    set(&mut monitor, 50, false).unwrap();
    set(&mut monitor, 70, true).unwrap();
    monitor.observed(look(2, [])).await.unwrap();
    assert_eq!(monitor.health().interval_ms, 70);
    // Backpressure is not a later word: it lengthens whatever is in force.
    set(&mut monitor, 80, false).unwrap();
    monitor.signalled(ENGAGE).await.unwrap();
    assert_eq!(monitor.health().interval_ms, 105);
    monitor.observed(look(3, [])).await.unwrap();
    assert_eq!(monitor.health().interval_ms, 120);
    monitor.signalled(RELEASE).await.unwrap();
    assert_eq!(monitor.health().interval_ms, 80);
}

#[tokio::test]
async fn beginning_again_does_not_begin_again() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, INTERVAL_MAX);
    assert_eq!(monitor.health().state, CollectorState::Waiting);
    monitor.begin().unwrap();
    let first = monitor.sight.next().await;
    monitor.sighted(first).await.unwrap();
    assert_eq!(monitor.health().state, CollectorState::Monitoring);
    monitor.begin().unwrap();
    // A source that has just been started looks before it ends.
    monitor.finish().await.unwrap();
    assert_eq!(monitor.health().scans_total, 1);
}

#[tokio::test]
async fn the_source_is_told_what_backpressure_makes_of_the_interval() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, INTERVAL_MAX);
    monitor.begin().unwrap();
    monitor.sight.next().await;
    for signal in [ENGAGE, RELEASE] {
        // It looks once an hour, and again only if it is told.
        monitor.options.see.interval = INTERVAL_MIN;
        monitor.signalled(signal).await.unwrap();
        tokio::time::timeout(DEADLINE, monitor.sight.next()).await.expect("a look");
        set(&mut monitor, 3_600_000, true).unwrap();
        while tokio::time::timeout(Duration::ZERO, monitor.sight.next()).await.is_ok() {}
    }
}

#[tokio::test]
async fn c4_what_is_shed_is_in_the_health_and_in_one_gap() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, Duration::from_secs(1));
    monitor.observed(look(2, [(1, "a".to_owned())])).await.unwrap();
    monitor.signalled(ENGAGE).await.unwrap();
    monitor.pressure.rise(100);
    for round in 0..6 {
        let others = (0..=round).map(|pid| (pid + 10, "x".to_owned()));
        let renamed = [(1, format!("a{round}"))].into_iter().chain(others);
        monitor.observed(look(3 + u64::from(round), renamed)).await.unwrap();
    }
    monitor.observed(look(20, [(1, "a5".to_owned())])).await.unwrap();
    monitor.signalled(RELEASE).await.unwrap();
    let health = monitor.health();
    let expected = EventCounts { start: 7, stop: 6, modify: 2, gap: 1 };
    assert_eq!((health.events, health.shed.modifies_total, health.processes), (expected, 4, 1));
    log.flush().await.unwrap();
    let (last, Event::Gap(gap)) = records(&log, Sequence(1)).pop().unwrap() else {
        panic!("a gap at last")
    };
    assert_eq!((gap.reason, gap.missing), (GapReason::Shed, Some(4)));
    assert_eq!((health.log.last, last), (Sequence(16), Sequence(16)));
}

#[tokio::test]
async fn c1_what_may_have_lived_unseen_is_in_the_health_and_in_a_gap() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, Duration::from_secs(1));
    monitor.observed(look(2, [(1, "a".to_owned())])).await.unwrap();
    for missing in [5, 7] {
        let unseen = Overrun { missing, sorts: None, since_ns: 3, until_ns: 4 };
        monitor.observed(Observation::Unseen(unseen)).await.unwrap();
    }
    let health = monitor.health();
    assert_eq!((health.unseen_max_total, health.events.gap), (12, 2));
    log.flush().await.unwrap();
    let (_, Event::Gap(gap)) = records(&log, Sequence(1)).pop().unwrap() else { panic!("a gap") };
    assert_eq!((gap.reason, gap.missing), (GapReason::Unseen, Some(7)));
    assert_eq!((gap.since_ns, gap.until_ns, gap.time_ns), (Some(3), Some(4), 4));
    assert!(gap.detail.contains("at most 7 processes"), "{}", gap.detail);
}

#[tokio::test]
async fn an_end_under_pressure_accounts_for_what_was_shed() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, Duration::from_secs(1));
    monitor.signalled(ENGAGE).await.unwrap();
    monitor.pressure.rise(100);
    for (at, name) in [(2, "a"), (3, "b"), (4, "c")] {
        monitor.observed(look(at, [(1, name.to_owned())])).await.unwrap();
    }
    monitor.finish().await.unwrap();
    let (_, Event::Gap(gap)) = records(&log, Sequence(1)).pop().unwrap() else {
        panic!("a gap at last")
    };
    assert_eq!((gap.reason, gap.missing), (GapReason::Shed, Some(1)));
}

#[tokio::test]
async fn shutdown_makes_everything_durable_and_writes_the_table_down() {
    let bench = Bench::new();
    // Without the flush nothing would be durable for an hour.
    let log = bench
        .open(WalOptions { commit_delay: Duration::from_secs(3600), ..Bench::options() })
        .await;
    let (monitor, handle, signals) = bench.monitor(&log, Duration::from_millis(10));
    let running = tokio::spawn(monitor.run());
    handle.begin().await.unwrap().unwrap();
    until(async || handle.health().await.unwrap().scans_total >= 2).await;

    let waiting = handle.health().await.unwrap();
    assert!(waiting.log.last > waiting.log.durable, "{:?}", waiting.log);
    signals.send(ENGAGE).await.unwrap();
    until(async || handle.health().await.unwrap().interval_ms == 15).await;
    signals.send(RELEASE).await.unwrap();
    until(async || handle.health().await.unwrap().interval_ms == 10).await;

    handle.shutdown().await.unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(handle.health().await, Err(MonitorEnded));
    assert_eq!(handle.shutdown().await, Err(MonitorEnded));
    assert_eq!(log.last_durable(), log.last());
    let snapshot = Snapshot::load(&bench.snapshot_path()).unwrap();
    assert_eq!((snapshot.stream, snapshot.sequence), (log.stream(), log.last()));
    let tracker = Tracker::restore(&snapshot.table);
    assert!(tracker.get(std::process::id()).is_some(), "we are in it");
}

#[tokio::test]
async fn a_log_that_fails_for_good_ends_the_monitor() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (monitor, handle, _signals) = bench.monitor(&log, Duration::from_millis(10));
    log.close().unwrap();
    let error = monitor.run().await.unwrap_err();
    assert!(matches!(error, MonitorError::Log(WalError::Closed)), "{error}");
    assert_eq!(handle.begin().await, Err(MonitorEnded));
}

/// The monitor ended when the time came to write the table down and the disk was full.
#[tokio::test]
async fn w8_a_full_disk_costs_events_and_not_the_monitor() {
    let bench = Bench::new();
    let storage = Faulty::new(|_, _| None);
    let opened =
        WriteAheadLog::open_on(Arc::new(storage.clone()), &bench.wal_dir(), Bench::options());
    let (log, _) = opened.unwrap();
    let (mut monitor, _handle, _signals) = bench.monitor(&log, Duration::from_secs(1));
    monitor.observed(crowd(2, 10)).await.unwrap();
    log.flush().await.unwrap();
    let full = Fault::Error(std::io::ErrorKind::StorageFull);
    storage.replan(move |op, _| matches!(op, Op::Write | Op::Create).then_some(full));

    let mut count = 10;
    while monitor.health().log.refused_total == 0 {
        count += 1;
        monitor.observed(crowd(u64::from(count), count)).await.unwrap();
    }
    // The table is due, and cannot be valid at what is not durable.
    monitor.saved.at = Instant::now().checked_sub(SNAPSHOT_AGE).unwrap();
    assert!(monitor.snapshot_is_due());
    monitor.observed(crowd(u64::from(count) + 1, count + 1)).await.unwrap();
    assert_eq!(Snapshot::load(&bench.snapshot_path()), None);
    assert!(!monitor.snapshot_is_due(), "it is tried again later, not at every look");
    let error = monitor.finish().await.unwrap_err();
    assert!(matches!(error, MonitorError::Log(WalError::DiskFull { .. })), "{error}");
    // The log's own text says that it goes on when there is room.
    let text = error.to_string();
    assert!(text.contains("the next run finds out") && !text.contains("no longer"), "{text}");

    storage.heal();
    until(async || log.last_durable() == log.last() && log.stats().refusing.is_none()).await;
    monitor.observed(crowd(u64::from(count) + 2, count + 2)).await.unwrap();
    monitor.finish().await.unwrap();
    let events = records(&log, Sequence(1));
    let gaps: Vec<u64> = events
        .iter()
        .filter_map(|(_, event)| if let Event::Gap(gap) = event { gap.missing } else { None })
        .collect();
    assert_eq!(gaps, [2]);
    assert_eq!(events.len() as u64, u64::from(count) + 2 - 2 + 1, "the rest is there");
    assert_eq!(Snapshot::load(&bench.snapshot_path()).unwrap().sequence, log.last());
}

/// What the log had refused when a run ended was forgotten: the saved table knew of it, so the
/// next run told neither the events nor the gap.
#[tokio::test]
async fn w9_what_was_refused_when_a_run_ended_is_told_by_the_next() {
    let bench = Bench::new();
    let log = bench.open(WalOptions { disk_budget_bytes: 16 << 10, ..Bench::options() }).await;
    let (mut monitor, handle, _signals) = bench.monitor(&log, INTERVAL_MAX);
    monitor.observed(crowd(2, 300)).await.unwrap();
    let refused = monitor.health().log.refused_total;
    assert!(refused > 0);
    monitor.finish().await.unwrap();
    assert_eq!(monitor.health().events.gap, 0, "there was no room to tell");
    let last = log.last();
    assert_eq!(last.0 + refused, 300);
    drop((monitor, handle, log));

    let log = bench.open(Bench::options()).await;
    let (monitor, handle, _signals) = bench.monitor(&log, INTERVAL_MAX);
    let running = tokio::spawn(monitor.run());
    until(async || handle.health().await.unwrap().events.gap == 1).await;
    log.flush().await.unwrap();
    let told = records(&log, last.next());
    let [(_, Event::Gap(gap))] = &told[..] else { panic!("{told:?}") };
    assert_eq!((gap.reason, gap.missing), (GapReason::LogFull, Some(refused)));
    kill(running).await;
    drop(log);

    let log = bench.open(Bench::options()).await;
    let recovered = Recovered::read(&bench.monitor_options(INTERVAL_MAX), &log).unwrap();
    assert_eq!(recovered.refused, None, "the saved table is older than the gap");
    assert_eq!(recovered.tracker.len(), 300);
}

/// A log whose budget was taken by records that were committed, and kept for the next start only,
/// refused events until the table was written down for its age; and even then nobody told the
/// writer that the records could go.
#[tokio::test]
async fn w9_room_comes_back_when_what_is_in_the_way_is_only_kept_for_the_next_start() {
    let bench = Bench::new();
    let log = bench.open(WalOptions { disk_budget_bytes: 16 << 10, ..Bench::options() }).await;
    let (mut monitor, _handle, _signals) = bench.monitor(&log, INTERVAL_MAX);
    monitor.observed(crowd(2, 300)).await.unwrap();
    let refused = monitor.health().log.refused_total;
    assert!(refused > 0);
    log.acknowledge(log.flush().await.unwrap()).unwrap();
    log.flush().await.unwrap();
    let last = log.last();
    monitor.observed(crowd(3, 301)).await.unwrap();
    assert_eq!(log.last(), last, "the table is written down after the look");
    until(async || log.stats().used_bytes < 4096).await;
    monitor.observed(crowd(4, 302)).await.unwrap();
    log.flush().await.unwrap();
    let told = records(&log, last.next());
    let [(_, Event::Gap(gap)), (_, Event::Process(start))] = &told[..] else { panic!("{told:?}") };
    assert_eq!((gap.missing, start.pid()), (Some(refused + 1), 302));
}

/// What was delivered and committed between the opening of the log and the reading of it was
/// forgotten: the processes in it were taken for new ones.
#[tokio::test]
async fn what_the_table_needs_of_the_log_is_kept_from_the_first_moment_on() {
    let bench = Bench::new();
    let log = bench.open(Bench::options()).await;
    let (mut monitor, handle, _signals) = bench.monitor(&log, INTERVAL_MAX);
    monitor.observed(crowd(2, 200)).await.unwrap();
    log.flush().await.unwrap();
    drop((monitor, handle, log));
    for _ in 0..2 {
        let log = bench.open(Bench::options()).await;
        let segments = log.stats().segments;
        assert!(segments > 2, "{segments}");
        let recovered = Recovered::read(&bench.monitor_options(INTERVAL_MAX), &log).unwrap();
        assert_eq!(recovered.tracker.len(), 200);
        log.acknowledge(log.last()).unwrap();
        log.flush().await.unwrap();
        log.close().unwrap();
    }
}

/// As kill -9 would: nothing more is done.
async fn kill(running: tokio::task::JoinHandle<Result<(), MonitorError>>) {
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
}

#[cfg(unix)]
pub(super) mod real {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that lives until it is told to end.
    pub(in crate::monitor) struct Life(Child);

    impl Life {
        pub(in crate::monitor) fn begin() -> Self {
            Self::of("line")
        }

        /// One that has a word among its arguments.
        fn of(word: &str) -> Self {
            let mut shell = Command::new("/bin/sh");
            let child = shell.args(["-c", "read line", word]).stdin(Stdio::piped()).spawn();
            Self(child.unwrap())
        }

        pub(in crate::monitor) fn pid(&self) -> u32 {
            self.0.id()
        }

        pub(in crate::monitor) fn end(mut self) -> u32 {
            drop(self.0.stdin.take());
            self.0.wait().unwrap();
            self.0.id()
        }
    }

    impl Drop for Life {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            // Ended and waited for already, if the test got so far.
            let _ = self.0.wait();
        }
    }

    /// Starts and stops of a process.
    pub(in crate::monitor) fn of(events: &[(Sequence, Event)], pid: u32) -> Vec<ProcessEvent> {
        let events = events.iter().filter_map(|(_, event)| match event {
            Event::Process(event) if event.pid() == pid => Some((**event).clone()),
            _ => None,
        });
        let is_modify =
            |event: &ProcessEvent| matches!(event.kind, ProcessEventKind::Modify { .. });
        events.filter(|event| !is_modify(event)).collect()
    }

    pub(in crate::monitor) async fn seen(
        log: &WriteAheadLog,
        from: Sequence,
        pid: u32,
        count: usize,
    ) {
        until(async || {
            log.flush().await.unwrap();
            of(&records(log, from), pid).len() >= count
        })
        .await;
    }

    const NEW: ProcessEventKind = ProcessEventKind::Start { existing: false };
    const EXISTING: ProcessEventKind = ProcessEventKind::Start { existing: true };

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c1_c2_lives_are_told_once_and_those_before_ours_as_existing() {
        let bench = Bench::new();
        let log = bench.open(WalOptions::default()).await;
        let (monitor, handle, _signals) = bench.monitor(&log, Duration::from_millis(10));
        let running = tokio::spawn(monitor.run());
        let before = Life::begin();
        assert_eq!(handle.begin().await, Ok(Ok(())));
        seen(&log, Sequence(1), before.pid(), 1).await;
        let after = Life::begin();
        seen(&log, Sequence(1), after.pid(), 1).await;
        let looks = handle.health().await.unwrap().scans_total;
        assert_eq!(handle.begin().await, Ok(Ok(())));
        until(async || handle.health().await.unwrap().scans_total >= looks + 3).await;
        let after = after.end();
        seen(&log, Sequence(1), after, 2).await;

        let health = handle.health().await.unwrap();
        assert_eq!((health.state, health.interval_ms), (CollectorState::Monitoring, 10));
        assert!(health.processes >= 2 && health.scan_errors_total == 0, "{health:?}");
        assert_eq!((health.log.stream, health.log.epoch), (log.stream(), log.epoch()));
        handle.shutdown().await.unwrap();
        running.await.unwrap().unwrap();

        let events = records(&log, Sequence(1));
        let (_, Event::Gap(first)) = &events[0] else { panic!("{:?}", events[0]) };
        assert_eq!(first.reason, GapReason::StreamBegan);
        for pid in [before.pid(), std::process::id()] {
            let [start] = &of(&events, pid)[..] else { panic!("one start") };
            assert_eq!(start.kind, EXISTING);
        }
        let [start, stop] = &of(&events, after)[..] else { panic!("a start and a stop") };
        assert_eq!((&start.kind, start.key), (&NEW, stop.key));
        assert!(matches!(stop.kind, ProcessEventKind::Stop(_)) && !stop.inferred);
        assert_eq!(start.ppid, Some(std::process::id()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c3_what_rules_leave_out_is_in_no_event_before_and_after_a_restart() {
        let mine = format!("mine-{}", std::process::id());
        let rules = format!(
            "include = [{{ argv = '{mine}' }}]\nexclude = [{{ argv = '{mine} excluded' }}]"
        );
        let filter = super::super::filter::tests::filter(&rules).unwrap();
        let word = |word: &str| format!("{mine} {word}");
        let bench = Bench::new();
        let log = bench.open(WalOptions::default()).await;
        let (monitor, handle, _signals) = bench.monitor_of(&log, filter.clone());
        let running = tokio::spawn(monitor.run());
        let before = Life::of(&word("excluded"));
        handle.begin().await.unwrap().unwrap();
        until(async || handle.health().await.unwrap().scans_total > 0).await;
        let (ends, stays) = (Life::of(&word("told")), Life::of(&word("told")));
        seen(&log, Sequence(1), ends.pid(), 1).await;
        seen(&log, Sequence(1), stays.pid(), 1).await;
        let excluded = handle.health().await.unwrap().excluded;
        assert!(excluded.processes_total > 0 && excluded.events_total > 0, "{excluded:?}");
        handle.shutdown().await.unwrap();
        running.await.unwrap().unwrap();
        drop((handle, log));
        let (before, ended) = (before.end(), ends.end());
        let (other, begun) = (Life::of(&word("excluded")), Life::of(&word("told")));

        let log = bench.open(WalOptions::default()).await;
        let (monitor, handle, _signals) = bench.monitor_of(&log, filter);
        let running = tokio::spawn(monitor.run());
        handle.begin().await.unwrap().unwrap();
        seen(&log, Sequence(1), begun.pid(), 1).await;
        let (other, begun) = (other.end(), begun.end());
        seen(&log, Sequence(1), begun, 2).await;
        handle.shutdown().await.unwrap();
        running.await.unwrap().unwrap();

        let events = records(&log, Sequence(1));
        for pid in [ended, begun] {
            let [start, stop] = &of(&events, pid)[..] else { panic!("{:?}", of(&events, pid)) };
            assert_eq!((&start.kind, start.key), (&NEW, stop.key));
            assert!(matches!(stop.kind, ProcessEventKind::Stop(_)));
            assert_eq!(stop.inferred, pid == ended);
        }
        let [start] = &of(&events, stays.pid())[..] else { panic!("told once") };
        assert_eq!(start.kind, NEW);
        let ours = [ended, begun, stays.pid()];
        assert!(!ours.contains(&before) && !ours.contains(&other));
        let told = events.iter().filter_map(|(_, event)| match event {
            Event::Process(event) => Some(event.pid()),
            Event::Gap(_) => None,
        });
        assert!(told.into_iter().all(|pid| ours.contains(&pid)), "and nothing of any other");
    }

    /// Whether tracepoints can be used here.
    #[cfg(target_os = "linux")]
    pub(in crate::monitor) fn can_use_ebpf() -> bool {
        match crate::source::probe_ebpf() {
            Ok(()) => true,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
                eprintln!("skipped: {error}");
                false
            }
        }
    }

    /// A monitor that looks with tracepoints, and is told of processes with this argument alone:
    /// whatever else runs has no part in what is counted.
    #[cfg(target_os = "linux")]
    async fn told_of(
        bench: &Bench,
        log: &WriteAheadLog,
        mark: &str,
        tell: TellOptions,
    ) -> (MonitorHandle, tokio::task::JoinHandle<Result<(), MonitorError>>) {
        let rules = format!("include = [{{ argv = '{mark}' }}]");
        let filter = super::super::filter::tests::filter(&rules).unwrap();
        let options = MonitorOptions {
            source: SourceChoice::Ebpf,
            tell: TellOptions { filter, ..tell },
            ..bench.monitor_options(Duration::from_secs(1))
        };
        let (monitor, handle, _signals) = bench.monitor_with(log, options);
        let running = tokio::spawn(monitor.run());
        handle.begin().await.unwrap().unwrap();
        until(async || handle.health().await.unwrap().scans_total > 0).await;
        (handle, running)
    }

    /// A shell that starts one program after another, faster than its group may.
    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c4_what_is_told_of_a_fork_bomb_and_what_is_summarised_is_all_of_it() {
        if !can_use_ebpf() {
            return;
        }
        let count: u64 = std::env::var("E2E_ROUNDS").map_or(200, |count| count.parse().unwrap());
        let mark = format!("bomb-{}", std::process::id());
        let most = NonZeroU32::new(10);
        let tell = TellOptions { cgroup_starts_per_second: most, ..TellOptions::default() };
        let bench = Bench::new();
        let log = bench.open(WalOptions::default()).await;
        let (handle, running) = told_of(&bench, &log, &mark, tell).await;
        let script = "i=0; while [ $i -lt $1 ]; do /bin/true $0; i=$((i+1)); done; read line";
        let mut bomb = Command::new("sh");
        bomb.args(["-c", script, &mark, &count.to_string()]).stdin(Stdio::piped());
        let mut bomb = bomb.spawn().unwrap();
        let began = async || {
            let health = handle.health().await.unwrap();
            (health.events, health.summarised)
        };
        until(async || {
            let (events, summarised) = began().await;
            events.stop + summarised.stops_total == count
        })
        .await;
        drop(bomb.stdin.take());
        bomb.wait().unwrap();
        until(async || {
            let (events, summarised) = began().await;
            events.stop + summarised.stops_total == count + 1
        })
        .await;
        let (_, summarised) = began().await;
        handle.shutdown().await.unwrap();
        running.await.unwrap().unwrap();

        let events = records(&log, Sequence(1));
        let (mut starts, mut stops, mut open) = (0, 0, std::collections::HashSet::new());
        let (mut left_out, mut summaries) = (0, 0);
        for (_, event) in &events {
            match event {
                Event::Process(event) => match event.kind {
                    ProcessEventKind::Start { existing } => {
                        starts += u64::from(!existing);
                        assert!(open.insert(event.key), "{event:?}");
                    }
                    ProcessEventKind::Stop(_) => {
                        stops += 1;
                        assert!(open.remove(&event.key), "{event:?}");
                    }
                    ProcessEventKind::Modify { .. } => assert!(open.contains(&event.key)),
                },
                Event::Gap(gap) if gap.reason == GapReason::Shed => {
                    assert!(gap.since_ns <= gap.until_ns && gap.until_ns <= Some(gap.time_ns));
                    assert!(gap.detail.contains("control group"), "{}", gap.detail);
                    left_out += gap.missing.unwrap();
                    summaries += 1;
                }
                Event::Gap(_) => {}
            }
        }
        assert_eq!(starts + summarised.starts_total, count + 1);
        assert_eq!(stops + summarised.stops_total, count + 1);
        let Summarised { starts_total, stops_total, modifies_total } = summarised;
        assert_eq!(left_out, starts_total + stops_total + modifies_total);
        assert!(open.is_empty(), "{open:?}");
        assert!(starts < count && summaries > 0, "{starts} told, {summaries} summaries");
        eprintln!("{starts} starts and {stops} stops told, {left_out} events in {summaries} gaps");
    }

    /// Programs that are gone before anybody can look, most of them.
    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_short_life_has_the_digest_of_what_it_ran() {
        use daemoneye_lib::models::process::Sha256;
        use sha2::Digest;
        const LIVES: usize = 100;
        if !can_use_ebpf() {
            return;
        }
        let mark = format!("digest-{}", std::process::id());
        let tell = TellOptions { sha256_bytes_max: Some(64 << 20), ..TellOptions::default() };
        let bench = Bench::new();
        let log = bench.open(WalOptions::default()).await;
        let (handle, running) = told_of(&bench, &log, &mark, tell).await;
        let run = |count: usize| {
            let mark = mark.clone();
            tokio::task::spawn_blocking(move || {
                for _ in 0..count {
                    assert!(Command::new("true").arg(&mark).status().unwrap().success());
                }
            })
        };
        let stops = || -> Vec<Box<ProcessEvent>> {
            let stop = |(_, event): (Sequence, Event)| match event {
                Event::Process(event) if matches!(event.kind, ProcessEventKind::Stop(_)) => {
                    Some(event)
                }
                _ => None,
            };
            records(&log, Sequence(1)).into_iter().filter_map(stop).collect()
        };
        // The first may wait for a machine that is busy, and others come while it does.
        let mut first = 0;
        let deadline = Instant::now() + DEADLINE;
        while stops().last().is_none_or(|stop| stop.exe_sha256.is_none()) {
            assert!(Instant::now() < deadline, "{:?}", handle.health().await.unwrap().digests);
            run(1).await.unwrap();
            first += 1;
            until(async || stops().len() >= first).await;
        }
        run(LIVES).await.unwrap();
        until(async || stops().len() >= first + LIVES).await;
        let digests = handle.health().await.unwrap().digests.unwrap();
        handle.shutdown().await.unwrap();
        running.await.unwrap().unwrap();

        let path =
            ["/usr/bin/true", "/bin/true"].into_iter().find_map(|path| std::fs::read(path).ok());
        let wanted = Sha256(sha2::Sha256::digest(path.unwrap()).into());
        let stops = stops();
        assert_eq!(stops.len(), first + LIVES);
        for (number, stop) in stops.iter().enumerate() {
            // Once it has been read, it is known.
            let is_late = stop.exe_sha256.is_none() && number < first;
            let is_it = stop.exe_sha256 == Some(wanted) || is_late;
            assert!(is_it, "{number}: {stop:?} of {digests:?}");
        }
        assert!(digests.cached_total >= LIVES as u64, "{digests:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn c3_after_a_kill_what_happened_meanwhile_is_told_and_nothing_else() {
        for with_snapshot in [false, true] {
            reconciles(with_snapshot).await;
        }
    }

    async fn reconciles(with_snapshot: bool) {
        let bench = Bench::new();
        let interval = Duration::from_millis(10);
        let log = bench.open(WalOptions::default()).await;
        let (mut monitor, handle, _signals) = bench.monitor(&log, interval);
        if with_snapshot {
            // Due at once; after that the log tells the rest.
            monitor.saved.at = Instant::now().checked_sub(SNAPSHOT_AGE).unwrap();
        }
        let running = tokio::spawn(monitor.run());
        handle.begin().await.unwrap().unwrap();
        until(async || handle.health().await.unwrap().scans_total > 0).await;
        let (ends, stays) = (Life::begin(), Life::begin());
        seen(&log, Sequence(1), ends.pid(), 1).await;
        seen(&log, Sequence(1), stays.pid(), 1).await;
        kill(running).await;
        assert_eq!(bench.snapshot_path().exists(), with_snapshot);
        let before = records(&log, Sequence(1));
        let last = log.last();
        drop((handle, log));
        let ended = ends.end();
        let begun = Life::begin();

        let log = bench.open(WalOptions::default()).await;
        let (monitor, handle, _signals) = bench.monitor(&log, interval);
        assert!(monitor.tracker.get(stays.pid()).is_some());
        let running = tokio::spawn(monitor.run());
        handle.begin().await.unwrap().unwrap();
        seen(&log, last.next(), begun.pid(), 1).await;
        handle.shutdown().await.unwrap();
        running.await.unwrap().unwrap();

        let after = records(&log, last.next());
        let [start] = &of(&before, ended)[..] else { panic!("one start before") };
        let [stop] = &of(&after, ended)[..] else { panic!("one stop after") };
        assert!(matches!(stop.kind, ProcessEventKind::Stop(_)) && stop.inferred, "{stop:?}");
        assert_eq!(stop.key, start.key);
        let [start] = &of(&after, begun.pid())[..] else { panic!("one start after") };
        assert_eq!(start.kind, NEW);
        for pid in [stays.pid(), std::process::id()] {
            assert_eq!(of(&before, pid).len(), 1);
            assert_eq!(of(&after, pid), [], "nothing happened to it");
        }
        let existing = |(_, event): &&(Sequence, Event)| matches!(event, Event::Process(event) if event.kind == EXISTING);
        assert_eq!(after.iter().find(existing), None);
    }
}
