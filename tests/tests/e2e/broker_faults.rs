//! Under load the broker is killed, stopped and restarted, and connections are cut and stall.

use std::collections::BTreeMap;
use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::{
    Client, ClientOptions, Committed, Epoch, LiveItem, LiveOptions, Role, Sequence, StreamId,
    SubscribeError, TopicPattern,
};
use daemoneye_tests::{BrokerProcess, Random, beside_others, until, until_some};
use procmond::event_bus_connector::{BackpressureSignal, ConnectorOptions, EventBusConnector};
use procmond::wal::{WalOptions, WriteAheadLog};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

/// The rounds of every test run; `E2E_ROUNDS` asks for more.
const ROUNDS: u64 = 12;
const PRODUCERS: usize = 32;
/// Small, so that an outage of a fraction of a second fills it.
const WINDOW_BYTES: u64 = 100_000;
const HEARTBEAT_MS: u32 = 100;
/// What must be stored between two faults: otherwise they would only hit a bus that is dead already.
const EVENTS_BETWEEN: u64 = 200;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fingerprint(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

fn options(id: &str, role: Role) -> ClientOptions {
    // A stopped broker lets connect and says nothing.
    let connect_timeout = Duration::from_secs(1);
    ClientOptions { connect_timeout, ..ClientOptions::new(id, role) }
}

async fn connect(socket: &Path, id: &str) -> Client {
    loop {
        match Client::connect(socket, options(id, Role::Subscriber)).await {
            Ok(client) => return client,
            Err(error) if error.may_retry() => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{id} can connect again: {error}"),
        }
    }
}

fn everything() -> [TopicPattern; 1] {
    ["events.#".parse().expect("a pattern")]
}

/// What a durable consumer has on its disk: the data and the position change together.
#[derive(Default)]
struct Stored {
    stream: Option<StreamId>,
    /// Of the event with sequence 1, 2, ...
    fingerprints: Vec<u64>,
    epoch: Option<Epoch>,
    /// Deliveries of what it had already.
    again: u64,
    sessions: u64,
}

/// Stores everything in order, and commits; now and then it dies between the two.
async fn store(socket: PathBuf, stored: Arc<Mutex<Stored>>, deaths: u64) {
    let mut deliveries = 0_u64;
    loop {
        let client = connect(&socket, "store").await;
        let positions = {
            let mut stored = lock(&stored);
            stored.sessions += 1;
            let sequence = Sequence(stored.fingerprints.len() as u64);
            let position = stored.epoch.map(|epoch| Committed { sequence, epoch });
            stored.stream.zip(position).into_iter().collect()
        };
        let mut durable = match client.subscribe_durable("store", &everything(), positions).await {
            Ok(durable) => durable,
            Err(SubscribeError::Refused { retry: true, .. } | SubscribeError::Disconnected(_)) => {
                continue;
            }
            Err(error) => panic!("the store can subscribe again: {error}"),
        };
        while let Some(delivery) = durable.next().await {
            {
                let mut stored = lock(&stored);
                assert_eq!(*stored.stream.get_or_insert(delivery.stream), delivery.stream);
                let have = stored.fingerprints.len() as u64;
                assert!(delivery.after.0 <= have, "LOST: {have} to {}", delivery.after);
                let mut last = delivery.after.0;
                for entry in &delivery.entries {
                    assert_eq!((entry.sequence.0, entry.span), (last + 1, 1), "in order");
                    last = entry.sequence.0;
                    if last <= have {
                        stored.again += 1;
                    } else {
                        stored.fingerprints.push(fingerprint(&entry.payload));
                    }
                }
                assert_eq!(last, delivery.through.0);
                stored.epoch = Some(delivery.epoch);
            }
            deliveries += 1;
            if deliveries.is_multiple_of(deaths)
                || durable.commit(delivery.stream, delivery.through, delivery.epoch).is_err()
            {
                break;
            }
        }
    }
}

/// What live subscribers have counted.
#[derive(Default)]
struct Counted {
    received: AtomicU64,
    missed: AtomicU64,
    sessions: AtomicU64,
    last: AtomicU64,
}

/// Within a session nothing is left out unsaid, nothing comes twice or out of order.
async fn watch(socket: PathBuf, id: &'static str, limits: LiveOptions, counted: Arc<Counted>) {
    loop {
        let client = connect(&socket, id).await;
        let mut live = match client.subscribe(&everything(), limits).await {
            Ok(live) => live,
            Err(SubscribeError::Disconnected(_)) => continue,
            Err(error) => panic!("{id} can subscribe again: {error}"),
        };
        counted.sessions.fetch_add(1, Ordering::Relaxed);
        let mut next = None;
        while let Some(item) = live.next().await {
            match item {
                LiveItem::Event(event) => {
                    let sequence = event.origin.sequence.0;
                    assert_eq!(*next.get_or_insert(sequence), sequence, "{id}");
                    next = Some(sequence + 1);
                    counted.received.fetch_add(1, Ordering::Relaxed);
                    counted.last.store(sequence, Ordering::Relaxed);
                }
                LiveItem::Missed { count } => {
                    next = next.map(|next| next + count);
                    counted.missed.fetch_add(count, Ordering::Relaxed);
                }
                LiveItem::Message(message) => panic!("an event, not {message:?}"),
            }
        }
    }
}

/// Signals alternate, Engage first: how many of them there were in all.
async fn feel_pressure(mut signals: Receiver<BackpressureSignal>) -> (u64, u64) {
    let (mut engaged, mut released) = (0, 0);
    while let Some(signal) = signals.recv().await {
        match signal {
            BackpressureSignal::Engage { .. } => {
                assert_eq!(engaged, released, "a second Engage");
                engaged += 1;
            }
            BackpressureSignal::Release { .. } => {
                assert_eq!(engaged, released + 1, "a Release of nothing");
                released += 1;
            }
        }
    }
    (engaged, released)
}

/// Publishes until told to end; gives the receipts: by sequence, what was published.
async fn produce(
    connector: EventBusConnector,
    producer: usize,
    producing: Arc<AtomicBool>,
) -> BTreeMap<u64, u64> {
    let mut receipts = BTreeMap::new();
    let filler = "x".repeat(producer * 20);
    for number in 0_u64.. {
        if !producing.load(Ordering::Relaxed) {
            break;
        }
        let payload = Bytes::from(format!("{producer} {number} {filler}"));
        let mark = fingerprint(&payload);
        let receipt = connector.publish(1, 0, payload).await.expect("a receipt");
        receipts.insert(receipt.sequence.0, mark);
    }
    receipts
}

/// A log that is filled by many producers, its connector, a consumer that stores everything and
/// itself dies now and then, and live subscribers, a fast and a slow one.
struct Load {
    runtime: Runtime,
    connector: EventBusConnector,
    producing: Arc<AtomicBool>,
    producers: Vec<JoinHandle<BTreeMap<u64, u64>>>,
    pressing: JoinHandle<(u64, u64)>,
    stored: Arc<Mutex<Stored>>,
    storing: JoinHandle<()>,
    fast: Arc<Counted>,
    slow: Arc<Counted>,
    watching: [JoinHandle<()>; 2],
}

impl Load {
    fn start(wal: &Path, socket: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        let stored = Arc::new(Mutex::new(Stored::default()));
        let storing = tokio::spawn(store(socket.to_owned(), Arc::clone(&stored), 97));
        let (fast, slow) = (Arc::new(Counted::default()), Arc::new(Counted::default()));
        let plenty = LiveOptions { max_bytes: u32::MAX, max_count: u32::MAX };
        // A batch of what gathered during an outage is more than this.
        let few = LiveOptions { max_bytes: 1 << 20, max_count: 20 };
        let watching = [
            tokio::spawn(watch(socket.to_owned(), "fast", plenty, Arc::clone(&fast))),
            tokio::spawn(watch(socket.to_owned(), "slow", few, Arc::clone(&slow))),
        ];
        let (log, _) = WriteAheadLog::open(wal, WalOptions::default()).expect("the log opens");
        let options = ConnectorOptions {
            socket: socket.to_owned(),
            client: options("feeder", Role::Collector),
            window_bytes_max: WINDOW_BYTES,
            topic_of: |_| "events.process.start".parse().expect("a topic"),
        };
        let (connector, signals) = EventBusConnector::start(log, options);
        let pressing = tokio::spawn(feel_pressure(signals));
        let producing = Arc::new(AtomicBool::new(true));
        let producers = (0..PRODUCERS)
            .map(|producer| {
                tokio::spawn(produce(connector.clone(), producer, Arc::clone(&producing)))
            })
            .collect();
        drop(entered);
        Self {
            runtime,
            connector,
            producing,
            producers,
            pressing,
            stored,
            storing,
            fast,
            slow,
            watching,
        }
    }

    fn progress(&self) -> u64 {
        lock(&self.stored).fingerprints.len() as u64
    }

    /// Nobody has found anything wrong so far.
    fn is_well(&self) {
        assert!(!self.storing.is_finished(), "the store has found something wrong");
        assert!(self.watching.iter().all(|task| !task.is_finished()), "a watcher has, too");
        assert!(!self.pressing.is_finished(), "the pressure is out of order");
    }

    /// Waits until some more has been stored.
    fn goes_on(&self) {
        let before = self.progress();
        until("the store goes on", || {
            self.is_well();
            self.progress() >= before + EVENTS_BETWEEN
        });
    }

    /// Waits until the live subscribers are there: one that is connecting again while the last event
    /// passes never sees it.
    fn is_watched(&self) {
        let before = self.progress();
        for watcher in [&self.fast, &self.slow] {
            until("a watcher is there", || watcher.last.load(Ordering::Relaxed) > before);
        }
    }

    /// Nothing is produced any more; gives all receipts.
    fn end_producing(&mut self) -> BTreeMap<u64, u64> {
        self.producing.store(false, Ordering::Relaxed);
        let mut receipts = BTreeMap::new();
        for producer in self.producers.drain(..) {
            receipts.extend(self.runtime.block_on(producer).expect("a producer ends well"));
        }
        receipts
    }

    /// Waits until everything is stored and acknowledged, and counts. Gives how often there was
    /// pressure, and a line about all of it.
    fn settles(self, broker: &mut BrokerProcess, receipts: &BTreeMap<u64, u64>) -> (u64, String) {
        let last = *receipts.last_key_value().expect("receipts").0;
        until("everything is stored and acknowledged", || {
            self.is_well();
            let stats = broker.stats();
            self.progress() >= last && stats["streams"][0]["acked"].as_u64() == Some(last)
        });
        for watcher in [&self.fast, &self.slow] {
            until("a watcher has seen the last", || watcher.last.load(Ordering::Relaxed) == last);
        }
        self.is_well();
        // The broker has told of the last acknowledgement; the connector may not have heard yet.
        let health = until_some("the pressure is over", || {
            let health = self.connector.health();
            (health.engaged_total == health.released_total).then_some(health)
        });
        let drained = self.runtime.block_on(self.connector.shutdown(Duration::from_secs(20)));
        assert!(drained.expect("the log is well").delivered);
        // The connector has ended, and with it the signals.
        let (engaged, released) =
            self.runtime.block_on(self.pressing).expect("the pressure was in order");

        let stored = lock(&self.stored);
        assert_eq!(stored.fingerprints.len() as u64, last, "no hole, no duplicate");
        assert_eq!(receipts.len() as u64, last, "every sequence has a receipt");
        for ((sequence, mark), stored) in receipts.iter().zip(&stored.fingerprints) {
            assert_eq!(mark, stored, "the event {sequence} is the one that was produced");
        }
        assert_eq!((health.engaged_total, health.released_total), (engaged, released));
        assert_eq!(engaged, released, "it is over");
        assert!(health.window_bytes_peak <= WINDOW_BYTES, "{health:?}");
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(of(&self.fast.missed), 0);
        assert!(of(&self.slow.missed) > 0, "nothing was asked of the slow one");
        let line = format!(
            "{last} events, 0 lost, 0 stored twice, {} delivered again, {} sessions of the store; \
             live: {} received in {} sessions, the slow one {} and {} missed; {engaged} times \
             pressure, {} reconnections",
            stored.again,
            stored.sessions,
            of(&self.fast.received),
            of(&self.fast.sessions),
            of(&self.slow.received),
            of(&self.slow.missed),
            health.reconnects_total,
        );
        (engaged, line)
    }
}

fn rounds(usual: u64) -> u64 {
    let given = std::env::var("E2E_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    given.unwrap_or(usual)
}

/// Killed, stopped for longer and shorter than a heartbeat lasts, and restarted in order. Every event
/// with a receipt is stored once and in order; live subscribers can account for every sequence of
/// every session; the window keeps its bound and pressure its order. At the end nothing is produced,
/// and what is left is delivered all the same.
#[test]
fn broker_killed_stopped_and_restarted_under_load() {
    let _others = beside_others();
    let rounds = rounds(ROUNDS);
    let mut random = Random::default();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("bus.sock");
    let start = || BrokerProcess::start(&socket, HEARTBEAT_MS, &["store"]);
    let mut broker = start();
    let mut load = Load::start(&directory.path().join("wal"), &socket);

    let (mut kills, mut stops, mut restarts, mut stopped_kills) = (0, 0, 0, 0);
    for _ in 0..rounds {
        load.goes_on();
        random.moment(Duration::from_millis(100));
        match random.below(4) {
            0 => {
                kills += 1;
                broker.kill();
                random.moment(Duration::from_millis(100));
                broker = start();
            }
            1 => {
                stops += 1;
                broker.signal(Signal::STOP);
                // Three heartbeats of silence are its end for the others.
                random.moment(Duration::from_millis(u64::from(HEARTBEAT_MS) * 8));
                broker.signal(Signal::CONT);
            }
            2 => {
                stopped_kills += 1;
                broker.signal(Signal::STOP);
                random.moment(Duration::from_millis(u64::from(HEARTBEAT_MS) * 8));
                broker.kill();
                broker = start();
            }
            _ => {
                restarts += 1;
                broker.finish();
                random.moment(Duration::from_millis(100));
                broker = start();
            }
        }
    }

    // Nothing is produced any more, and the broker is away once more: what was not delivered by
    // then needs no new event to come.
    broker.kill();
    let receipts = load.end_producing();
    let mut broker = start();
    let (engaged, counted) = load.settles(&mut broker, &receipts);
    assert!(engaged > 0, "no outage was long enough");
    println!(
        "{rounds} rounds: {kills} kills, {stops} stops, {stopped_kills} kills of a stopped one, \
         {restarts} restarts; {counted}"
    );
    broker.finish();
}

/// What becomes of the connections that go through a proxy.
struct Faults {
    random: Mutex<Random>,
    /// No more of them: connections last.
    over: AtomicBool,
    cuts: AtomicU64,
    stalls: AtomicU64,
}

/// Passes every connection on to the broker until its fault.
async fn proxy(listener: UnixListener, broker: PathBuf, faults: Arc<Faults>) {
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        let (broker, faults) = (broker.clone(), Arc::clone(&faults));
        tokio::spawn(async move {
            let Ok(broker) = UnixStream::connect(&broker).await else { return };
            let (bytes, stalls) = {
                let mut random = lock(&faults.random);
                // As often within the first frames as anywhere else. What has gathered comes in one
                // frame as large as the window: some must get through.
                let most = if random.below(2) == 0 { 300 } else { 10 * WINDOW_BYTES };
                (random.below(most), random.below(3) == 0)
            };
            let left = AtomicU64::new(bytes);
            let (from_client, to_client) = client.into_split();
            let (from_broker, to_broker) = broker.into_split();
            // When one direction ends the connection is over.
            tokio::select! {
                () = pump(from_client, to_broker, &left, stalls, &faults) => {}
                () = pump(from_broker, to_client, &left, stalls, &faults) => {}
            }
        });
    }
}

/// Passes bytes on until there are none, or until those that are `left` to both directions have
/// passed: then it returns, or stalls for ever with both ends open.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    left: &AtomicU64,
    stalls: bool,
    faults: &Faults,
) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let over = faults.over.load(Ordering::Relaxed);
        let most = if over { u64::MAX } else { left.load(Ordering::Relaxed) };
        if most == 0 {
            if stalls {
                faults.stalls.fetch_add(1, Ordering::Relaxed);
                return pending().await;
            }
            faults.cuts.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let most = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let Ok(read @ 1..) = from.read(&mut buffer[..most]).await else { return };
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        // Both directions are in one task, so nothing is counted in between.
        let rest = left.load(Ordering::Relaxed).saturating_sub(read as u64);
        left.store(rest, Ordering::Relaxed);
    }
}

/// Every connection, of whomever, is cut or stalls after some bytes, within a Hello as well as in the
/// middle of the traffic.
#[test]
fn connections_cut_and_stalled_under_load() {
    let _others = beside_others();
    let rounds = rounds(3 * ROUNDS);
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, proxied) = (directory.path().join("bus.sock"), directory.path().join("proxy"));
    let mut broker = BrokerProcess::start(&socket, HEARTBEAT_MS, &["store"]);
    let faults = Arc::new(Faults {
        random: Mutex::default(),
        over: AtomicBool::new(false),
        cuts: AtomicU64::new(0),
        stalls: AtomicU64::new(0),
    });
    let runtime = Runtime::new().expect("a runtime");
    let listener = runtime.block_on(async { UnixListener::bind(&proxied) }).expect("a socket");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&proxied, private).expect("a mode");
    runtime.spawn(proxy(listener, socket, Arc::clone(&faults)));

    let mut load = Load::start(&directory.path().join("wal"), &proxied);
    let count = || {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&faults.cuts), of(&faults.stalls))
    };
    until("there were enough faults", || {
        load.is_well();
        let (cuts, stalls) = count();
        cuts + stalls >= rounds
    });
    load.goes_on();
    faults.over.store(true, Ordering::Relaxed);
    load.is_watched();
    let receipts = load.end_producing();
    let (_, counted) = load.settles(&mut broker, &receipts);
    let (cuts, stalls) = count();
    println!("{cuts} cuts and {stalls} stalls; {counted}");
    assert!(cuts > 0 && stalls > 0);
    broker.finish();
}
