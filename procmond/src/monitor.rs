//! The monitor: turns what a source observes into events and puts them into the log.
//!
//! It is an actor. [`MonitorHandle`]s send it messages through a bounded mailbox, each answered;
//! sources send it observations; the connector sends it backpressure. One task takes them one at a
//! time, so nothing here is shared or locked.

mod digest;
pub mod filter;
mod gate;
mod pressure;
mod recorder;
mod recovery;
mod sight;
pub mod snapshot;
mod storm;
pub mod tracker;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemoneye_lib::models::control::{CollectorHealth, LogHealth};
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::models::process::SourceName;
use daemoneye_lib::stream::{Sequence, StreamId, wall_clock_ns};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::event_bus_connector::{BackpressureSignal, EventBusConnector};
use crate::source::{Observation, SourceChoice, SourceError, SourceOptions};
use crate::wal::WalError;
use digest::Digester;
use filter::Filter;
use gate::Gate;
use pressure::Pressure;
use recorder::Recorder;
pub use recorder::Refused;
pub use recovery::Recovered;
use sight::{Change, Sight, Sighted};
use snapshot::Snapshot;
use tracker::Tracker;

/// Messages that wait for the monitor; senders wait beyond that.
const MAILBOX: usize = 100;
/// The limits of the interval between two looks at the process table.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// See [`INTERVAL_MIN`].
pub const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// The process table is written down when it is this old and has changed, or when the log has
/// grown this much: a restart reads the log from there on.
const SNAPSHOT_AGE: Duration = Duration::from_secs(60);
const SNAPSHOT_EVENTS: u64 = 50_000;
/// After so many events what they took is given back: after the first look at a large table that
/// is as much as the table itself.
pub(crate) const BURST: usize = 1000;
/// So much later, when they are in the log: what is still in use in between keeps the rest. It
/// takes milliseconds, so it is not done all the time either.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(5);

/// How often it is told what was left out in a storm.
const SUMMARY_EVERY: Duration = Duration::from_secs(1);

/// The monitor has ended; the reason is with whoever started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the monitor has ended")]
pub struct MonitorEnded;

/// Why a monitor ended.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// The log failed for good, or it could not take the last events before the end.
    #[error("{what}: {0}", what = what_failed(.0))]
    Log(#[from] WalError),
}

fn what_failed(error: &WalError) -> &'static str {
    if error.is_passing() {
        "the end came before the last events could be made durable (the next run finds out which \
         processes began and ended)"
    } else {
        "events can no longer be made durable"
    }
}

/// What a monitor needs.
pub struct MonitorOptions {
    /// What to see processes with.
    pub source: SourceChoice,
    /// How it sees.
    pub see: SourceOptions,
    /// What is told of what it sees.
    pub tell: TellOptions,
    /// Where the process table is written down between runs.
    pub snapshot_path: PathBuf,
}

/// What is told of what is seen: everything, by default.
#[derive(Clone, Debug, Default)]
pub struct TellOptions {
    /// Which processes are told of.
    pub filter: Filter,
    /// More starts a second in one control group are told as numbers.
    pub cgroup_starts_per_second: Option<NonZeroU32>,
    /// The SHA-256 of the programs that run, if they have at most so many bytes; `None`: of none.
    pub sha256_bytes_max: Option<u64>,
}

enum Message {
    Begin(oneshot::Sender<Result<(), String>>),
    SetInterval { interval: Duration, at_once: bool, reply: oneshot::Sender<Result<(), String>> },
    Health(oneshot::Sender<CollectorHealth>),
    Shutdown(oneshot::Sender<()>),
}

/// Sends messages to a monitor; clones share its mailbox.
#[derive(Clone)]
pub struct MonitorHandle {
    mailbox: mpsc::Sender<Message>,
}

impl MonitorHandle {
    /// Begins monitoring; does nothing if it has begun. The inner error says why it cannot.
    ///
    /// # Errors
    /// If the monitor has ended.
    pub async fn begin(&self) -> Result<Result<(), String>, MonitorEnded> {
        self.ask(Message::Begin).await
    }

    /// Changes the time between two looks, from now on. The inner error names the limits.
    ///
    /// # Errors
    /// If the monitor has ended.
    pub async fn set_interval(
        &self,
        interval: Duration,
    ) -> Result<Result<(), String>, MonitorEnded> {
        self.ask(|reply| Message::SetInterval { interval, at_once: true, reply }).await
    }

    /// Changes the time between two looks, after the next one. The inner error names the limits.
    ///
    /// # Errors
    /// If the monitor has ended.
    pub async fn update_interval(
        &self,
        interval: Duration,
    ) -> Result<Result<(), String>, MonitorEnded> {
        self.ask(|reply| Message::SetInterval { interval, at_once: false, reply }).await
    }

    /// How the collector is.
    ///
    /// # Errors
    /// If the monitor has ended.
    pub async fn health(&self) -> Result<CollectorHealth, MonitorEnded> {
        self.ask(Message::Health).await
    }

    /// Stops observing, makes the log durable, writes the process table down and ends.
    ///
    /// # Errors
    /// If the monitor has ended already.
    pub async fn shutdown(&self) -> Result<(), MonitorEnded> {
        self.ask(Message::Shutdown).await
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, MonitorEnded> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(message(reply)).await.map_err(|_| MonitorEnded)?;
        answer.await.map_err(|_| MonitorEnded)
    }
}

/// The actor.
pub struct ProcessMonitor {
    options: MonitorOptions,
    mailbox: mpsc::Receiver<Message>,
    signals: mpsc::Receiver<BackpressureSignal>,
    connector: EventBusConnector,
    recorder: Recorder,
    tracker: Tracker,
    gate: Gate,
    /// When it is told next what was left out in storms.
    summary_at: Option<tokio::time::Instant>,
    /// Events since memory was given back last, and when it is next.
    burst: usize,
    give_back_at: Option<tokio::time::Instant>,
    /// When something was observed last.
    observed_at: Instant,
    pressure: Pressure,
    digester: Option<Arc<Digester>>,
    sight: Sight,
    /// Told with the next look, which is when it ends.
    open_gap: Option<GapEvent>,
    /// An interval to take up after the next look.
    next_interval: Option<Duration>,
    saved: Saved,
    scans_total: u64,
    scan_errors_total: u64,
    unseen_max_total: u64,
}

/// When the process table was last written down.
struct Saved {
    stream: StreamId,
    sequence: Sequence,
    at: Instant,
}

impl ProcessMonitor {
    /// A monitor that continues from what an earlier run left.
    #[must_use]
    pub fn new(
        options: MonitorOptions,
        recovered: Recovered,
        connector: EventBusConnector,
        signals: mpsc::Receiver<BackpressureSignal>,
    ) -> (Self, MonitorHandle) {
        let (mailbox, messages) = mpsc::channel(MAILBOX);
        let Recovered { tracker, stream, sequence, refused } = recovered;
        let digester = options.tell.sha256_bytes_max.map(Digester::new).map(Arc::new);
        let monitor = Self {
            saved: Saved { stream, sequence, at: Instant::now() },
            recorder: Recorder::new(connector.clone(), refused),
            sight: Sight::new(options.source, digester.clone()),
            digester,
            gate: Gate::new(
                options.tell.filter.clone(),
                options.tell.cgroup_starts_per_second,
                &tracker,
            ),
            options,
            mailbox: messages,
            signals,
            connector,
            tracker,
            pressure: Pressure::default(),
            summary_at: None,
            burst: 0,
            give_back_at: None,
            observed_at: Instant::now(),
            open_gap: None,
            next_interval: None,
            scans_total: 0,
            scan_errors_total: 0,
            unseen_max_total: 0,
        };
        (monitor, MonitorHandle { mailbox })
    }

    /// Runs until it is told to shut down.
    ///
    /// # Errors
    /// If the log fails for good, or refuses the last events when it is told to shut down.
    pub async fn run(mut self) -> Result<(), MonitorError> {
        if self.connector.log().last() == Sequence::NONE {
            self.recorder.record(&stream_began(self.connector.log().stream())).await?;
        }
        self.recorder.settle().await?;
        loop {
            // In this order: a flood of observations must not keep control waiting.
            tokio::select! {
                biased;
                Some(message) = self.mailbox.recv() => {
                    if let Message::Shutdown(reply) = message {
                        self.finish().await?;
                        // Whoever asked may have gone.
                        let _ = reply.send(());
                        return Ok(());
                    }
                    self.take(message);
                }
                Some(signal) = self.signals.recv() => self.signalled(signal).await?,
                () = moment(self.summary_at) => self.summarise().await?,
                () = moment(self.give_back_at) => {
                    crate::heap::give_back();
                    (self.burst, self.give_back_at) = (0, None);
                }
                sighted = self.sight.next() => self.sighted(sighted).await?,
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Begin(reply) => {
                let result = self.begin().map_err(|error| error.to_string());
                let _ = reply.send(result);
            }
            Message::SetInterval { interval, at_once, reply } => {
                let legal = (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval);
                if legal && at_once {
                    // The later word counts, also against one that waits for its look.
                    self.next_interval = None;
                    self.set_interval(interval);
                } else if legal {
                    self.next_interval = Some(interval);
                }
                let _ = reply.send(legal.then_some(()).ok_or_else(|| {
                    format!(
                        "the interval must be between {} and {} ms",
                        INTERVAL_MIN.as_millis(),
                        INTERVAL_MAX.as_millis()
                    )
                }));
            }
            Message::Health(reply) => {
                let _ = reply.send(self.health());
            }
            Message::Shutdown(_) => {}
        }
    }

    fn begin(&mut self) -> Result<(), SourceError> {
        // What it takes to put a source in place is more than all that is kept.
        self.give_back_later();
        self.sight.begin(self.see())
    }

    /// How sources see now.
    fn see(&self) -> SourceOptions {
        let interval = self.pressure.interval(self.options.see.interval);
        SourceOptions { interval, ..self.options.see }
    }

    fn set_interval(&mut self, interval: Duration) {
        self.options.see.interval = interval;
        self.sight.set_interval(self.see().interval);
    }

    async fn signalled(&mut self, signal: BackpressureSignal) -> Result<(), MonitorError> {
        match signal {
            BackpressureSignal::Engage { level } => {
                warn!(
                    level,
                    "delivery has fallen behind: looking less often, and telling less when the log fills"
                );
            }
            BackpressureSignal::Release { level } => {
                info!(level, "delivery has caught up");
            }
        }
        if let Some(gap) = self.pressure.signal(signal) {
            self.recorder.record(&gap.into()).await?;
        }
        self.set_interval(self.options.see.interval);
        Ok(())
    }

    async fn sighted(&mut self, sighted: Sighted) -> Result<(), MonitorError> {
        let change = match sighted {
            Sighted::Observation(observation) => return self.observed(observation).await,
            Sighted::Ended => self.sight.ended(self.see()),
            Sighted::Due => {
                self.sight.due(self.see());
                None
            }
            Sighted::Tried(result) => self.sight.tried(result, self.see()),
        };
        match change {
            Some(Change::Takes { by, overlaps, gap }) => {
                self.tracker.change_source(overlaps);
                // It was started with the interval of that moment.
                self.set_interval(self.options.see.interval);
                if by == SourceName::Poll {
                    // It sees nothing before it has looked.
                    self.open_gap = Some(gap);
                } else {
                    self.recorder.record(&gap.into()).await?;
                }
            }
            Some(Change::Blind { gap }) => self.recorder.record(&gap.into()).await?,
            None => {}
        }
        Ok(())
    }

    /// Tells of a gap that ends then.
    async fn close_gap(&mut self, until_ns: i64) -> Result<(), MonitorError> {
        if let Some(gap) = self.open_gap.take() {
            let gap = GapEvent { until_ns: Some(until_ns), time_ns: until_ns, ..gap };
            self.recorder.record(&gap.into()).await?;
        }
        Ok(())
    }

    async fn observed(&mut self, observation: Observation) -> Result<(), MonitorError> {
        self.sight.note(&observation);
        match &observation {
            Observation::Snapshot(table) => {
                self.scans_total += 1;
                self.close_gap(table.time_ns).await?;
            }
            Observation::Unchanged { .. } => self.scans_total += 1,
            Observation::Seen(_) | Observation::Ended(_) => {}
            Observation::Unseen(unseen) => self.unseen_max_total += unseen.missing,
            Observation::Overrun(overrun) => {
                warn!(missing = overrun.missing, "the kernel had no room to tell of everything");
            }
            // Its end follows.
            Observation::Failed(SourceError::Broke { .. }) => {}
            Observation::Failed(error) => {
                self.scan_errors_total += 1;
                warn!(%error, "a look at the process table failed");
            }
        }
        self.observed_at = Instant::now();
        if self.pressure.is_on() {
            self.pressure.rise(self.connector.backlog_percent());
        }
        let events = self.tracker.observe(observation);
        self.burst += events.len();
        if self.burst >= BURST {
            self.give_back_later();
        }
        for event in events {
            let Some(event) = self.gate.pass(event) else { continue };
            if let Some(event) = self.pressure.press(event) {
                self.recorder.record(&event).await?;
            }
        }
        if self.gate.owes() {
            self.summary_at.get_or_insert_with(|| tokio::time::Instant::now() + SUMMARY_EVERY);
        }
        if let Some(interval) = self.next_interval.take() {
            self.set_interval(interval);
        }
        if self.snapshot_is_due() {
            match self.save_snapshot().await {
                // What is queued is written when there is room, and the table after it.
                Err(MonitorError::Log(error)) if error.is_passing() => {
                    debug!(%error, "the process table waits for the log");
                    self.saved.at = Instant::now();
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn give_back_later(&mut self) {
        let later = || tokio::time::Instant::now() + GIVE_BACK_AFTER;
        self.give_back_at.get_or_insert_with(later);
    }

    /// Tells what was left out in storms, and which of it is still there.
    async fn summarise(&mut self) -> Result<(), MonitorError> {
        for gap in self.gate.summaries() {
            self.recorder.record(&gap.into()).await?;
        }
        let passed_ns = u64::try_from(self.observed_at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let now_ns = self.tracker.seen_until_ns().saturating_add(passed_ns);
        for start in self.gate.survivors(&self.tracker, now_ns) {
            if let Some(start) = self.pressure.press(start) {
                self.recorder.record(&start).await?;
            }
        }
        self.summary_at = self.gate.owes().then(|| tokio::time::Instant::now() + SUMMARY_EVERY);
        Ok(())
    }

    fn snapshot_is_due(&self) -> bool {
        let log = self.connector.log();
        let new = log.last().since(self.saved.sequence);
        // Records that are committed but kept for the next start may be what takes the room.
        let in_the_way = self.recorder.owed().is_some() && log.watermark() > self.saved.sequence;
        self.saved.stream != log.stream()
            || new >= SNAPSHOT_EVENTS
            || (new > 0 && (in_the_way || self.saved.at.elapsed() >= SNAPSHOT_AGE))
    }

    /// Writes the process table down. Events are made durable first: a table that knew more than
    /// the log would keep them from ever being reported.
    async fn save_snapshot(&mut self) -> Result<(), MonitorError> {
        let log = self.connector.log().clone();
        let stream = log.stream();
        let sequence = log.flush().await?;
        if log.stream() != stream {
            // A new stream began meanwhile; the next look writes the table for that one.
            return Ok(());
        }
        let refused = self.recorder.owed();
        let table = self.tracker.encode(|key| self.gate.withholds(key));
        let snapshot = Snapshot { stream, sequence, refused, table };
        let path = self.options.snapshot_path.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let saved = snapshot.save(&path);
            drop(snapshot);
            // It was a copy of the whole table.
            crate::heap::give_back();
            saved
        });
        let saved = saved.await;
        match saved {
            Ok(Ok(())) => {
                log.retain_from(sequence.next());
                self.saved = Saved { stream, sequence, at: Instant::now() };
            }
            // The log is kept from the last snapshot on, so nothing is lost by trying later.
            Ok(Err(error)) => {
                warn!(%error, "the process table cannot be written down; trying again later");
                self.saved.at = Instant::now();
            }
            Err(error) => debug!(%error, "writing the process table was interrupted"),
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), MonitorError> {
        if let Some(gap) = self.sight.blind_gap() {
            self.recorder.record(&gap.into()).await?;
        }
        if let Some(mut observations) = self.sight.end() {
            // What the source had seen already is still to be recorded.
            while let Some(observation) = observations.recv().await {
                self.observed(observation).await?;
            }
        }
        self.close_gap(wall_clock_ns()).await?;
        if let Some(gap) = self.pressure.end() {
            self.recorder.record(&gap.into()).await?;
        }
        // Who lives on is told by the next run.
        for gap in self.gate.summaries() {
            self.recorder.record(&gap.into()).await?;
        }
        self.recorder.settle().await?;
        self.save_snapshot().await
    }

    fn health(&self) -> CollectorHealth {
        let log = self.connector.log();
        let stats = log.stats();
        CollectorHealth {
            state: self.sight.state(),
            source: self.sight.name(),
            failed: self.sight.failed(),
            source_failures_total: self.sight.failures_total(),
            interval_ms: millis(self.see().interval),
            processes: self.tracker.len() as u64,
            scans_total: self.scans_total,
            scan_errors_total: self.scan_errors_total,
            unseen_max_total: self.unseen_max_total,
            events: self.recorder.counts(),
            digests: self.digester.as_deref().map(Digester::counts),
            summarised: self.gate.summarised(),
            excluded: self.gate.excluded(),
            shed: self.pressure.shed_total(),
            log: LogHealth {
                stream: log.stream(),
                epoch: log.epoch(),
                last: log.last(),
                durable: log.last_durable(),
                watermark: log.watermark(),
                segments: stats.segments as u64,
                bytes: stats.used_bytes,
                refused_total: self.recorder.refused_total(),
            },
            connector: self.connector.health(),
        }
    }
}

/// Waits until then; for ever, without a moment. Cancel-safe.
async fn moment(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn stream_began(stream: StreamId) -> Event {
    let detail = format!("stream {stream} begins; of what happened before, it knows nothing");
    GapEvent::new(GapReason::StreamBegan, wall_clock_ns(), detail).into()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
