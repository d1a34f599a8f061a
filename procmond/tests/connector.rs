//! The connector, the real log and a real broker over a real socket.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::{
    Broker, BrokerOptions, Client, ClientOptions, Committed, Delivery, DurableSubscription, Epoch,
    Role, Sequence, StreamId,
};
use procmond::event_bus_connector::{BackpressureSignal, ConnectorOptions, EventBusConnector};
use procmond::wal::{WalOptions, WriteAheadLog};
use tempfile::TempDir;
use tokio::time::timeout;

/// How long anything may take that a test waits for.
const DEADLINE: Duration = Duration::from_secs(60);

struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("bus.sock")
    }

    /// A broker that lets publishers in once the consumer is there.
    async fn broker(&self) -> Broker {
        let mut options = BrokerOptions::new(self.socket());
        options.required_consumers = vec!["store".to_owned()];
        Broker::bind(options).await.expect("the broker binds")
    }

    fn log(&self) -> WriteAheadLog {
        self.open(&self.directory.path().join("wal"))
    }

    fn open(&self, directory: &Path) -> WriteAheadLog {
        let options = WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() };
        WriteAheadLog::open(directory, options).expect("the log opens").0
    }

    fn options(&self) -> ConnectorOptions {
        ConnectorOptions {
            socket: self.socket(),
            client: ClientOptions::new("collector", Role::Collector),
            window_bytes_max: 1_000_000,
            topic_of: |kind| format!("events.test.k{kind}").parse().expect("a topic"),
        }
    }
}

async fn consumer(broker: &Broker, positions: Vec<(StreamId, Committed)>) -> DurableSubscription {
    let options = ClientOptions::new("consumer", Role::Subscriber);
    let client = Client::connect(broker.socket(), options).await.expect("a client connects");
    let patterns = ["events.#".parse().expect("a pattern")];
    client.subscribe_durable("store", &patterns, positions).await.expect("a subscription")
}

async fn next(consumer: &mut DurableSubscription) -> Delivery {
    let delivery = timeout(DEADLINE, consumer.next()).await.expect("a delivery in time");
    delivery.expect("the broker is there")
}

/// Takes and commits deliveries until the sequence is reached; gives what was delivered after
/// `from`, which must be contiguous.
async fn take(
    consumer: &mut DurableSubscription,
    from: Sequence,
    until: Sequence,
) -> (Vec<Bytes>, Committed) {
    let mut payloads = Vec::new();
    let mut at = Committed { sequence: from, epoch: Epoch::from_u64(0) };
    while at.sequence < until {
        let delivery = next(consumer).await;
        assert_eq!(delivery.after, at.sequence, "D2: deliveries follow one another");
        payloads.extend(delivery.entries.into_iter().map(|entry| entry.payload));
        at = Committed { sequence: delivery.through, epoch: delivery.epoch };
        consumer.commit(delivery.stream, at.sequence, at.epoch).expect("the commit is sent");
    }
    (payloads, at)
}

async fn publish(connector: &EventBusConnector, numbers: std::ops::Range<u64>, bytes: usize) {
    for number in numbers {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(bytes.max(8), 0);
        loop {
            match connector.submit(1, 0, payload.clone().into()) {
                Ok(_) => break,
                Err(procmond::wal::WalError::Busy) => connector.log().room().await,
                Err(error) => panic!("the log takes events: {error}"),
            }
        }
    }
    connector.log().flush().await.expect("the log is durable");
}

fn numbers(payloads: &[Bytes]) -> Vec<u64> {
    let number = |payload: &Bytes| u64::from_le_bytes(payload[..8].try_into().expect("8 bytes"));
    payloads.iter().map(number).collect()
}

async fn acknowledged(log: &WriteAheadLog, sequence: Sequence) {
    let reached = async {
        while log.watermark() < sequence {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, reached).await.expect("the watermark follows the commits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_is_forgotten_and_only_that() {
    let bench = Bench::new();
    let broker = bench.broker().await;
    let mut store = consumer(&broker, Vec::new()).await;
    let log = bench.log();
    let (connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    publish(&connector, 0..100, 8).await;
    let first = next(&mut store).await;
    assert_eq!(log.watermark(), Sequence::NONE, "delivered is not committed");
    store.commit(first.stream, first.through, first.epoch).expect("the commit is sent");
    take(&mut store, first.through, Sequence(100)).await;
    acknowledged(&log, Sequence(100)).await;
    let drained = connector.shutdown(DEADLINE).await.expect("the log is durable");
    assert!(drained.delivered, "{drained:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_d2_restarts_of_the_broker_cost_nothing() {
    let bench = Bench::new();
    let log = bench.log();
    let (connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    let mut at = Committed { sequence: Sequence::NONE, epoch: log.epoch() };
    let mut delivered = Vec::new();
    for round in 0..10 {
        publish(&connector, round * 100..(round + 1) * 100, 64).await;
        let broker = bench.broker().await;
        let positions = match at.sequence {
            Sequence::NONE => Vec::new(),
            _ => vec![(log.stream(), at)],
        };
        let mut store = consumer(&broker, positions).await;
        // The commit of the last half may or may not get through before the broker goes.
        let (payloads, reached) = take(&mut store, at.sequence, Sequence(round * 100 + 50)).await;
        delivered.extend(payloads);
        at = reached;
        broker.shutdown(Duration::from_millis(100)).await;
    }
    let broker = bench.broker().await;
    let mut store = consumer(&broker, vec![(log.stream(), at)]).await;
    if at.sequence < Sequence(1000) {
        delivered.extend(take(&mut store, at.sequence, Sequence(1000)).await.0);
    }
    assert_eq!(numbers(&delivered), (0..1000).collect::<Vec<_>>());
    acknowledged(&log, Sequence(1000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_an_outage_engages_once_and_releases_once() {
    let bench = Bench::new();
    let log = bench.log();
    let (connector, mut signals) = EventBusConnector::start(log.clone(), bench.options());
    // Ten windows.
    publish(&connector, 0..10_000, 1000).await;
    let engage = timeout(DEADLINE, signals.recv()).await.expect("a signal in time");
    assert!(matches!(engage, Some(BackpressureSignal::Engage { .. })), "{engage:?}");
    let broker = bench.broker().await;
    let mut store = consumer(&broker, Vec::new()).await;
    let (payloads, _) = take(&mut store, Sequence::NONE, Sequence(10_000)).await;
    assert_eq!(numbers(&payloads), (0..10_000).collect::<Vec<_>>());
    let release = timeout(DEADLINE, signals.recv()).await.expect("a signal in time");
    assert!(matches!(release, Some(BackpressureSignal::Release { .. })), "{release:?}");
    acknowledged(&log, Sequence(10_000)).await;
    assert!(connector.shutdown(DEADLINE).await.expect("the log is durable").delivered);
    let health = connector.health();
    assert_eq!((health.engaged_total, health.released_total), (1, 1));
    assert_eq!(health.backlog_bytes, 0);
    assert!(health.window_bytes_peak <= 1_000_000, "{}", health.window_bytes_peak);
    assert_eq!(signals.recv().await, None, "nothing was signalled behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_reads_what_is_undelivered_from_the_log() {
    let bench = Bench::new();
    let log = bench.log();
    let stream = log.stream();
    let (connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    publish(&connector, 0..500, 100).await;
    let drained = connector.shutdown(Duration::ZERO).await.expect("the log is durable");
    assert_eq!((drained.delivered, drained.undelivered), (false, 500));
    log.close().expect("the log closes");
    drop((connector, log));

    let log = bench.log();
    assert_eq!(log.stream(), stream);
    let (connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    publish(&connector, 500..600, 100).await;
    let broker = bench.broker().await;
    let mut store = consumer(&broker, Vec::new()).await;
    let (payloads, _) = take(&mut store, Sequence::NONE, Sequence(600)).await;
    assert_eq!(numbers(&payloads), (0..600).collect::<Vec<_>>());
    acknowledged(&log, Sequence(600)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_log_behind_its_consumer_begins_a_new_stream() {
    let bench = Bench::new();
    let log = bench.log();
    let stream = log.stream();
    let (connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    publish(&connector, 0..50, 8).await;
    let broker = bench.broker().await;
    // Another opening of this stream, as often opened as ours, has gone on to 60.
    let ahead = Committed { sequence: Sequence(60), epoch: Epoch::first() };
    let mut store = consumer(&broker, vec![(stream, ahead)]).await;
    publish(&connector, 50..70, 8).await;

    let mut delivered = Vec::new();
    let mut at = Sequence::NONE;
    // The gap that tells of the break, and the seventy events.
    while at < Sequence(71) {
        let delivery = next(&mut store).await;
        assert_ne!(delivery.stream, stream, "nothing new goes into the old stream");
        assert_eq!(delivery.after, at);
        delivered.extend(delivery.entries);
        at = delivery.through;
        store.commit(delivery.stream, at, delivery.epoch).expect("the commit is sent");
    }
    let gap = daemoneye_lib::models::event::Event::decode(&delivered[0].payload);
    assert!(format!("{gap:?}").contains("LogReplaced"), "{gap:?}");
    let payloads: Vec<Bytes> = delivered[1..].iter().map(|entry| entry.payload.clone()).collect();
    assert_eq!(numbers(&payloads), (0..70).collect::<Vec<_>>());
    acknowledged(&log, Sequence(71)).await;
    assert_ne!(log.stream(), stream);
}

/// The consumer that is ahead comes while the session stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_a_consumer_that_turns_out_to_be_ahead_ends_the_stream() {
    let bench = Bench::new();
    let log = bench.log();
    let stream = log.stream();
    let broker = Broker::bind(BrokerOptions::new(bench.socket())).await.expect("it binds");
    let (connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    let connected = async {
        while connector.client().borrow().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, connected).await.expect("a session in time");
    let ahead = Committed { sequence: Sequence(60), epoch: Epoch::first() };
    let mut store = consumer(&broker, vec![(stream, ahead)]).await;
    publish(&connector, 0..10, 8).await;
    // What was published before anybody was ahead had no consumer to wait for.
    let mut kept = 0;
    while kept < 10 {
        let delivery = next(&mut store).await;
        assert_ne!(delivery.stream, stream, "nothing new goes into the old stream");
        kept += delivery.entries.iter().filter(|entry| entry.payload.len() == 8).count();
        store.commit(delivery.stream, delivery.through, delivery.epoch).expect("it is sent");
    }
    assert_ne!(log.stream(), stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_records_arrive_as_one_gap_in_their_place() {
    let bench = Bench::new();
    let log = bench.log();
    let (connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    publish(&connector, 0..30, 100).await;
    connector.shutdown(Duration::ZERO).await.expect("the log is durable");
    log.close().expect("the log closes");
    drop((connector, log));
    let segment = bench.directory.path().join("wal/procmond-00001.wal");
    let mut bytes = std::fs::read(&segment).expect("the segment");
    // Records ten to twelve carry the numbers nine to eleven in their payloads.
    for number in 9_u64..12 {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(100, 0);
        let at = bytes.windows(100).position(|window| window == payload).expect("the payload");
        bytes[at + 50] ^= 1;
    }
    std::fs::write(&segment, bytes).expect("the segment");

    let log = bench.log();
    let (_connector, _signals) = EventBusConnector::start(log.clone(), bench.options());
    let broker = bench.broker().await;
    let mut store = consumer(&broker, Vec::new()).await;
    let mut entries = Vec::new();
    let mut at = Sequence::NONE;
    while at < Sequence(30) {
        let delivery = next(&mut store).await;
        at = delivery.through;
        entries.extend(delivery.entries);
        store.commit(delivery.stream, at, delivery.epoch).expect("the commit is sent");
    }
    let sequences: Vec<(u64, u64)> =
        entries.iter().map(|entry| (entry.sequence.0, entry.span)).collect();
    let expected: Vec<(u64, u64)> =
        (1..=9).map(|s| (s, 1)).chain([(12, 3)]).chain((13..=30).map(|s| (s, 1))).collect();
    assert_eq!(sequences, expected);
    acknowledged(&log, Sequence(30)).await;
}
