//! The task that carries out what the [`Machine`] decides.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use daemoneye_eventbus::{Client, ConnectError, Position, Publisher, RefusalCode};
use daemoneye_lib::models::control::{ConnectorHealth, ConnectorState};
use daemoneye_lib::stream::{Sequence, StreamId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tracing::{debug, info, warn};

use super::backpressure::{BackpressureSignal, PendingSignals};
use super::machine::{Command, Held, Input, LOG_RETRY, LogPosition, Machine};
use super::replay::Replay;
use super::session::Session;
use super::tail::Tail;
use super::window::Record;
use super::{ConnectorOptions, Drained, gap};
use crate::wal::{Receipt, WalError, WriteAheadLog};

/// What the handle and the driver share.
pub(super) struct Shared {
    pub(super) log: WriteAheadLog,
    pub(super) tail: Tail,
    health: Mutex<ConnectorHealth>,
}

impl Shared {
    pub(super) fn new(log: WriteAheadLog, window_bytes_max: u64) -> Self {
        let health = ConnectorHealth {
            state: ConnectorState::Disconnected,
            window_bytes: 0,
            window_bytes_peak: 0,
            backlog_bytes: 0,
            engaged_total: 0,
            released_total: 0,
            reconnects_total: 0,
            sent_through: log.watermark(),
            acked: log.watermark(),
        };
        let tail = Tail::new(window_bytes_max, log.last());
        Self { log, tail, health: Mutex::new(health) }
    }

    /// The backlog in percent of the log's disk budget.
    pub(super) fn backlog_percent(&self) -> u64 {
        self.lock().backlog_bytes.saturating_mul(100) / self.log.disk_budget_bytes().max(1)
    }

    pub(super) fn health(&self) -> ConnectorHealth {
        let mut health = self.lock().clone();
        (health.window_bytes, health.window_bytes_peak) = self.tail.window_bytes();
        health
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ConnectorHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request to end: by when, and where to report.
pub(super) struct Drain {
    pub(super) until: Instant,
    pub(super) done: oneshot::Sender<Drained>,
}

/// How the driver learns that more records are durable.
#[derive(Clone, Copy)]
enum LogWait {
    /// The log tells.
    Durable,
    /// The disk is full or may not be written: the log goes on by itself when it can.
    RetryAt(Instant),
    /// No record will become durable any more; what is durable is still delivered.
    Never,
}

impl LogWait {
    fn after(result: Result<Receipt, WalError>) -> Self {
        match result {
            Ok(_) => Self::Durable,
            Err(error) if error.is_passing() => Self::RetryAt(Instant::now() + LOG_RETRY),
            Err(error) => {
                // Producers are told the same by the log itself.
                debug!(%error, "the log takes no more records");
                Self::Never
            }
        }
    }
}

/// What the driver waits for.
enum Happened {
    Submitted,
    Durable(Result<Receipt, WalError>),
    Dialled(Result<(Client, Publisher), ConnectError>),
    Session(Input),
    Read(ReadResult),
    Replaced(Result<StreamId, WalError>),
    SignalRoom,
    /// `None`: nobody holds a handle any more.
    DrainAsked(Option<Drain>),
    Woken,
}

/// The reader comes back with what it read.
type ReadDone = (Replay, Result<Vec<Record>, WalError>);
type ReadResult = Result<ReadDone, JoinError>;
type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(super) struct Driver {
    shared: Arc<Shared>,
    options: ConnectorOptions,
    machine: Machine,
    dial: Option<Boxed<Result<(Client, Publisher), ConnectError>>>,
    session: Option<Session>,
    replay: Option<Replay>,
    reading: Option<JoinHandle<ReadDone>>,
    replacing: Option<Boxed<Result<StreamId, WalError>>>,
    pending_signals: PendingSignals,
    signals: mpsc::Sender<BackpressureSignal>,
    clients: watch::Sender<Option<Client>>,
    log_wait: LogWait,
    drains: mpsc::Receiver<Drain>,
    draining: Vec<oneshot::Sender<Drained>>,
    sessions: u64,
    /// The last reason for not being connected that was logged, so that a long outage is one line.
    logged: Option<String>,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        options: ConnectorOptions,
        signals: mpsc::Sender<BackpressureSignal>,
        clients: watch::Sender<Option<Client>>,
        drains: mpsc::Receiver<Drain>,
    ) -> Self {
        let position = position_of(&shared.log);
        Self {
            machine: Machine::new(options.window_bytes_max, position, Instant::now()),
            replay: Some(Replay::new(shared.log.clone())),
            shared,
            options,
            dial: None,
            session: None,
            reading: None,
            replacing: None,
            pending_signals: PendingSignals::default(),
            log_wait: LogWait::Durable,
            signals,
            clients,
            drains,
            draining: Vec::new(),
            sessions: 0,
            logged: None,
        }
    }

    /// Runs until drained, or for ever.
    pub(super) async fn run(mut self) {
        let mut inputs = VecDeque::from([Input::Tick]);
        loop {
            while let Some(input) = inputs.pop_front() {
                let mut commands = Vec::new();
                self.machine.step(input, Instant::now(), &mut commands);
                let read = |input: &Input| matches!(input, Input::Read(_));
                let reading = self.reading.is_some() || inputs.iter().any(read);
                self.shared.tail.set_window_bytes(self.machine.window().bytes(), reading);
                for command in commands {
                    if let Command::Finish = command {
                        return self.finish().await;
                    }
                    inputs.extend(self.carry_out(command));
                }
                self.publish_health();
            }
            let happened = self.happens().await;
            // Before what happened: an ack may be for records that have only just become durable.
            inputs.extend(self.newly_durable());
            inputs.extend(self.apply(happened));
        }
    }

    /// Waits for the next thing to happen. Cancel-safe, because its parts are.
    async fn happens(&mut self) -> Happened {
        // After what the machine knows of, not after what is durable by now: that would be waited
        // for no more, and told with the next thing that happens only.
        let next_durable = self.machine.log_last().next();
        let undurable = self.replacing.is_none() && self.shared.tail.last() >= next_durable;
        let (durable, retry_at) = match self.log_wait {
            LogWait::Durable if undurable => (Some(self.shared.log.durable(next_durable)), None),
            LogWait::RetryAt(at) => (None, Some(at)),
            LogWait::Durable | LogWait::Never => (None, None),
        };
        let wake_at = [self.machine.wake_at(), retry_at].into_iter().flatten().min();
        tokio::select! {
            () = self.shared.tail.changed() => Happened::Submitted,
            result = optional(durable) => Happened::Durable(result),
            result = optional(self.dial.as_mut()) => Happened::Dialled(result),
            input = session_input(&mut self.session) => Happened::Session(input),
            result = optional(self.reading.as_mut()) => Happened::Read(result),
            result = optional(self.replacing.as_mut()) => Happened::Replaced(result),
            _ = self.signals.reserve(), if !self.pending_signals.is_empty() => {
                Happened::SignalRoom
            }
            drain = self.drains.recv() => Happened::DrainAsked(drain),
            () = sleep_until(wake_at) => Happened::Woken,
        }
    }

    fn apply(&mut self, happened: Happened) -> Option<Input> {
        match happened {
            Happened::Submitted => None,
            Happened::Durable(result) => {
                self.log_wait = LogWait::after(result);
                None
            }
            Happened::Dialled(result) => {
                self.dial = None;
                Some(self.dialled(result))
            }
            Happened::Session(input) => {
                if let Input::Disconnected | Input::Fenced = input {
                    self.hang_up();
                }
                Some(input)
            }
            Happened::Read(result) => {
                self.reading = None;
                Some(self.read(result))
            }
            Happened::Replaced(result) => {
                self.replacing = None;
                Some(self.replaced(result))
            }
            Happened::SignalRoom => {
                if let Some(signal) = self.pending_signals.pop() {
                    // There is room, for we are the only sender, unless nobody listens any more.
                    let _ = self.signals.try_send(signal);
                }
                None
            }
            Happened::DrainAsked(Some(drain)) => {
                self.draining.push(drain.done);
                Some(Input::Drain { until: drain.until })
            }
            Happened::DrainAsked(None) => Some(Input::Drain { until: Instant::now() }),
            Happened::Woken => {
                if let LogWait::RetryAt(at) = self.log_wait
                    && at <= Instant::now()
                {
                    self.log_wait = LogWait::Durable;
                }
                Some(Input::Tick)
            }
        }
    }

    /// What has become durable since the last call.
    fn newly_durable(&mut self) -> Option<Input> {
        if self.replacing.is_some() {
            return None;
        }
        let through = self.shared.log.last_durable();
        let collected = self.shared.tail.collect(through);
        let news = through > self.machine.log_last() || !collected.records.is_empty();
        news.then_some(Input::Durable {
            records: collected.records,
            through,
            skipped_bytes: collected.skipped_bytes,
        })
    }

    fn carry_out(&mut self, command: Command) -> Option<Input> {
        match command {
            Command::Dial => {
                let log = &self.shared.log;
                let position = Position {
                    stream: log.stream(),
                    epoch: log.epoch(),
                    first_unacknowledged: log.watermark().next(),
                    last: log.last_durable(),
                };
                let (socket, client) = (self.options.socket.clone(), self.options.client.clone());
                self.dial = Some(Box::pin(async move {
                    Client::connect_publisher(&socket, client, position).await
                }));
            }
            Command::HangUp => self.hang_up(),
            Command::Send(unsent) => {
                let batch = unsent.into_batch(self.shared.log.stream(), self.options.topic_of);
                if let Some(session) = &self.session
                    && !session.send(batch)
                {
                    self.hang_up();
                    return Some(Input::Disconnected);
                }
            }
            Command::Read { from, bytes_max } => {
                self.shared.tail.reserve(bytes_max);
                let mut replay = match self.replay.take() {
                    Some(replay) => replay,
                    None => Replay::new(self.shared.log.clone()),
                };
                self.reading = Some(tokio::task::spawn_blocking(move || {
                    let records = replay.read(from, bytes_max);
                    (replay, records)
                }));
            }
            Command::Acknowledge(through) => {
                if let Err(error) = self.shared.log.acknowledge(through) {
                    // The consumers have it all the same; after a restart they say so again.
                    warn!(%error, %through, "the log cannot note what is committed");
                }
            }
            Command::BeginStream { committed } => self.begin_stream(committed),
            Command::Signal(signal) => {
                let mut health = self.shared.lock();
                match signal {
                    BackpressureSignal::Engage { .. } => health.engaged_total += 1,
                    BackpressureSignal::Release { .. } => health.released_total += 1,
                }
                drop(health);
                self.pending_signals.push(signal);
            }
            Command::Finish => {}
        }
        None
    }

    fn dialled(&mut self, result: Result<(Client, Publisher), ConnectError>) -> Input {
        let (client, publisher) = match result {
            Ok(session) => session,
            Err(error) => {
                if let ConnectError::Refused { code: RefusalCode::StaleEpoch, .. } = error {
                    warn!(%error, "another log has gone on with this stream");
                    return Input::Fenced;
                }
                let text = error.to_string();
                if self.logged.as_ref() != Some(&text) {
                    warn!("events wait in the log: {text}");
                    self.logged = Some(text);
                }
                return Input::Disconnected;
            }
        };
        self.logged = None;
        self.sessions += 1;
        if self.sessions > 1 {
            self.shared.lock().reconnects_total += 1;
        }
        let log = &self.shared.log;
        let committed = publisher.committed().map_or(Sequence::NONE, |at| at.sequence);
        let held = publisher
            .positions()
            .iter()
            .map(|at| Held {
                sequence: at.sequence,
                theirs: at.epoch,
                ours: log.epoch_at(at.sequence),
            })
            .collect();
        let credit_bytes = publisher.credit_bytes();
        info!(%committed, last = %log.last_durable(), "connected to the broker");
        self.clients.send_replace(Some(client.clone()));
        self.session = Some(Session::start(client, publisher));
        Input::Welcomed { committed, held, credit_bytes }
    }

    fn hang_up(&mut self) {
        if self.session.take().is_some() {
            self.clients.send_replace(None);
        }
        self.dial = None;
    }

    fn read(&mut self, result: ReadResult) -> Input {
        match result {
            Ok((replay, Ok(records))) => {
                self.replay = Some(replay);
                Input::Read(records)
            }
            Ok((_, Err(error))) => {
                warn!(%error, "the log cannot be read back; trying again");
                Input::Read(Vec::new())
            }
            Err(error) => {
                warn!(%error, "reading the log back was interrupted; trying again");
                Input::Read(Vec::new())
            }
        }
    }

    fn begin_stream(&mut self, committed: Option<Sequence>) {
        let log = self.shared.log.clone();
        let stream = log.stream();
        warn!(
            %stream,
            last = %log.last_durable(),
            committed = committed.map(|sequence| sequence.0),
            "the log does not continue what the consumers have stored: it was restored from a \
             copy, or another one has gone on in its place; a new stream begins"
        );
        // A read that is under way gives sequences of the old stream.
        if let Some(reading) = self.reading.take() {
            reading.abort();
        }
        self.replay = None;
        let gap = gap::replaced(stream, committed);
        self.replacing = Some(Box::pin(async move {
            let payload = gap.encode();
            let first = (gap.kind().as_u8(), gap.time_ns(), payload.as_slice());
            log.begin_stream(Some(first)).await
        }));
    }

    fn replaced(&mut self, result: Result<StreamId, WalError>) -> Input {
        let log = &self.shared.log;
        match result {
            Ok(stream) => {
                self.shared.tail.reset(log.last());
                info!(%stream, "the new stream has begun");
                let LogPosition { watermark, last, backlog_bytes } = position_of(log);
                Input::StreamBegan { watermark, last, backlog_bytes }
            }
            Err(error) => {
                warn!(%error, "a new stream cannot begin; trying again");
                Input::StreamFailed
            }
        }
    }

    fn publish_health(&self) {
        let mut health = self.shared.lock();
        health.state = self.machine.health_state();
        health.backlog_bytes = self.machine.backlog_bytes();
        health.sent_through = self.machine.window().sent_through();
        health.acked = self.machine.window().acked();
    }

    async fn finish(mut self) {
        if let Some(session) = self.session.take() {
            self.clients.send_replace(None);
            session.goodbye().await;
        }
        self.publish_health();
        let drained = Drained {
            delivered: self.machine.is_drained(),
            undelivered: self.machine.log_last().since(self.machine.window().acked()),
        };
        debug!(?drained, "the connector has ended");
        for done in self.draining.drain(..) {
            // Whoever asked need not wait for the answer.
            let _ = done.send(drained);
        }
    }
}

/// What the session has to say next; never, without one. Cancel-safe.
async fn session_input(session: &mut Option<Session>) -> Input {
    match session {
        Some(session) => session.next_input().await,
        None => pending().await,
    }
}

async fn optional<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}

fn position_of(log: &WriteAheadLog) -> LogPosition {
    LogPosition {
        watermark: log.watermark(),
        last: log.last_durable(),
        backlog_bytes: log.unacknowledged_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use daemoneye_eventbus::{ClientOptions, Role};
    use tokio::time::timeout;

    use super::*;
    use crate::wal::WalOptions;

    /// A record that became durable between a look and the wait for more was waited for no more,
    /// and delivered with the next thing that happened, if anything did.
    #[tokio::test]
    async fn d1_what_becomes_durable_before_it_is_waited_for_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        // Nothing is durable before it is flushed.
        let commit_delay = Duration::from_secs(3600);
        let options = WalOptions { commit_delay, ..WalOptions::default() };
        let (log, _) = WriteAheadLog::open(dir.path(), options).unwrap();
        let options = ConnectorOptions {
            socket: dir.path().join("nobody"),
            client: ClientOptions::new("procmond", Role::Collector),
            window_bytes_max: ConnectorOptions::WINDOW_BYTES_MAX,
            topic_of: |_| "events.process.start".parse().unwrap(),
        };
        let shared = Arc::new(Shared::new(log.clone(), options.window_bytes_max));
        let (signals, _signals) = mpsc::channel(1);
        let (clients, _clients) = watch::channel(None);
        let (_drains, drains) = mpsc::channel(1);
        let mut driver = Driver::new(Arc::clone(&shared), options, signals, clients, drains);

        shared.tail.submit(&log, 1, 0, Bytes::from_static(b"a record")).unwrap();
        // The clock asks for a connection all the while.
        while !matches!(driver.happens().await, Happened::Submitted) {}
        log.flush().await.unwrap();
        let told = async {
            for _ in 0..1000 {
                if matches!(driver.happens().await, Happened::Durable(Ok(_))) {
                    return true;
                }
            }
            false
        };
        assert_eq!(timeout(Duration::from_secs(20), told).await, Ok(true));
    }
}
