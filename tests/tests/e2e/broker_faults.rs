//! The broker is killed, stopped and restarted under load.

use std::collections::BTreeMap;
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
use daemoneye_tests::{BrokerProcess, Random, beside_others, until};
use procmond::event_bus_connector::{BackpressureSignal, ConnectorOptions, EventBusConnector};
use procmond::wal::{WalOptions, WriteAheadLog};
use rustix::process::Signal;

/// The rounds of every test run; `E2E_ROUNDS` asks for more.
const ROUNDS: u64 = 12;
const PRODUCERS: u64 = 32;
/// Small, so that an outage of a fraction of a second fills it.
const WINDOW_BYTES: u64 = 100_000;
const HEARTBEAT_MS: u32 = 50;
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
    let connect_timeout = Duration::from_millis(400);
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

/// Signals alternate, Engage first.
#[derive(Default)]
struct Pressure {
    engaged: AtomicU64,
    released: AtomicU64,
}

/// Killed, stopped for longer and shorter than a heartbeat lasts, and restarted in order, while a
/// log is filled by many producers. Every event with a receipt is stored once and in order by a
/// consumer that itself dies now and then; live subscribers can account for every sequence of every
/// session; the window keeps its bound and pressure its order. At the end nothing is produced, and
/// what is left is delivered all the same.
#[test]
fn broker_killed_stopped_and_restarted_under_load() {
    let _others = beside_others();
    let given = std::env::var("E2E_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds = given.unwrap_or(ROUNDS);
    let mut random = Random::default();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("bus.sock");
    let start = || BrokerProcess::start(&socket, HEARTBEAT_MS, &["store"]);
    let mut broker = start();

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let guard = runtime.enter();
    let stored = Arc::new(Mutex::new(Stored::default()));
    let storing = tokio::spawn(store(socket.clone(), Arc::clone(&stored), 97));
    let (fast, slow) = (Arc::new(Counted::default()), Arc::new(Counted::default()));
    let plenty = LiveOptions { max_bytes: u32::MAX, max_count: u32::MAX };
    // A batch of what gathered during an outage is more than this.
    let few = LiveOptions { max_bytes: 1 << 20, max_count: 20 };
    let watching = [
        tokio::spawn(watch(socket.clone(), "fast", plenty, Arc::clone(&fast))),
        tokio::spawn(watch(socket.clone(), "slow", few, Arc::clone(&slow))),
    ];

    let (log, _) = WriteAheadLog::open(&directory.path().join("wal"), WalOptions::default())
        .expect("the log opens");
    let (connector, mut signals) = EventBusConnector::start(
        log,
        ConnectorOptions {
            socket: socket.clone(),
            client: options("feeder", Role::Collector),
            window_bytes_max: WINDOW_BYTES,
            topic_of: |_| "events.process.start".parse().expect("a topic"),
        },
    );
    let pressure = Arc::new(Pressure::default());
    let pressing = tokio::spawn({
        let pressure = Arc::clone(&pressure);
        async move {
            while let Some(signal) = signals.recv().await {
                let (engaged, released) = (
                    pressure.engaged.load(Ordering::Relaxed),
                    pressure.released.load(Ordering::Relaxed),
                );
                match signal {
                    BackpressureSignal::Engage { .. } => {
                        assert_eq!(engaged, released, "a second Engage");
                        pressure.engaged.store(engaged + 1, Ordering::Relaxed);
                    }
                    BackpressureSignal::Release { .. } => {
                        assert_eq!(engaged, released + 1, "a Release of nothing");
                        pressure.released.store(released + 1, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    let producing = Arc::new(AtomicBool::new(true));
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let (connector, producing) = (connector.clone(), Arc::clone(&producing));
            tokio::spawn(async move {
                let mut receipts = BTreeMap::new();
                let filler = "x".repeat(producer as usize * 20);
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
            })
        })
        .collect();

    let progress = || lock(&stored).fingerprints.len() as u64;
    let well = || {
        assert!(!storing.is_finished(), "the store has found something wrong");
        assert!(watching.iter().all(|task| !task.is_finished()), "a watcher has, too");
        assert!(!pressing.is_finished(), "the pressure is out of order");
    };
    let (mut kills, mut stops, mut restarts, mut stopped_kills) = (0, 0, 0, 0);
    for _ in 0..rounds {
        let before = progress();
        until("the store goes on", || {
            well();
            progress() >= before + EVENTS_BETWEEN
        });
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
    producing.store(false, Ordering::Relaxed);
    let mut receipts = BTreeMap::new();
    for producer in producers {
        receipts.extend(runtime.block_on(producer).expect("a producer ends well"));
    }
    let last = *receipts.last_key_value().expect("receipts").0;
    let mut broker = start();
    until("everything is stored and acknowledged", || {
        well();
        let stats = broker.stats();
        let acked = stats["streams"][0]["acked"].as_u64();
        progress() >= last && acked == Some(last)
    });
    for watcher in [&fast, &slow] {
        until("the watchers have seen the last", || watcher.last.load(Ordering::Relaxed) == last);
    }
    well();
    let health = connector.health();
    let drained = runtime.block_on(connector.shutdown(Duration::from_secs(20)));
    assert!(drained.expect("the log is well").delivered);
    // The connector has ended, and with it the signals.
    runtime.block_on(pressing).expect("the pressure was in order");
    broker.finish();

    let stored = lock(&stored);
    assert_eq!(stored.fingerprints.len() as u64, last, "no hole, no duplicate");
    assert_eq!(receipts.len() as u64, last, "every sequence has a receipt");
    for ((sequence, mark), stored) in receipts.iter().zip(&stored.fingerprints) {
        assert_eq!(mark, stored, "the event with sequence {sequence} is the one that was produced");
    }
    let (engaged, released) =
        (pressure.engaged.load(Ordering::Relaxed), pressure.released.load(Ordering::Relaxed));
    assert_eq!((health.engaged_total, health.released_total), (engaged, released));
    assert!(engaged > 0 && engaged == released, "engaged {engaged}, released {released}");
    assert!(health.window_bytes_peak <= WINDOW_BYTES, "{health:?}");
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(of(&fast.missed), 0);
    assert!(of(&slow.missed) > 0, "nothing was asked of the slow one");
    println!(
        "{rounds} rounds: {kills} kills, {stops} stops, {stopped_kills} kills of a stopped one, \
         {restarts} restarts; {last} events, 0 lost, 0 stored twice, {} delivered again, \
         {} sessions of the store; live: {} received in {} sessions, the slow one {} and {} missed; \
         {engaged} times pressure",
        stored.again,
        stored.sessions,
        of(&fast.received),
        of(&fast.sessions),
        of(&slow.received),
        of(&slow.missed),
    );
    drop(guard);
}
