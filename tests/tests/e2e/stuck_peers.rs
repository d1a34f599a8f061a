//! Peers that are stuck in every way at once, and a broker that serves the others and stays small.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use daemoneye_eventbus::wire::{Frame, Hello, SubscribeFrame, SubscribeKind};
use daemoneye_eventbus::{
    Client, ClientOptions, ConnectError, DurableSubscription, Epoch, LiveItem, LiveOptions,
    Position, RefusalCode, Role, Sequence, StreamId, TopicPattern,
};
use daemoneye_tests::{BrokerProcess, beside_others, peak_resident_bytes, until};
use procmond::event_bus_connector::{ConnectorOptions, EventBusConnector};
use procmond::wal::{WalOptions, WriteAheadLog};

const STUCK: &str = "events.stuck.start";
const WELL: &str = "events.well.start";
const PAYLOAD_BYTES: usize = 1000;
/// Many times what all queues together hold.
const EVENTS: u64 = 30_000;
/// The broker's default credit.
const CREDIT_BYTES: u64 = 4 << 20;
/// Queues share the entries they hold, so nine full ones of 4 MiB, the credit of two streams and what
/// is being read and written are far less than one could add up.
const RESIDENT_BYTES_MAX: u64 = 40 << 20;

/// A peer that says what it has to say and never reads.
fn deaf(socket: &Path, frames: &[Frame]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("the broker listens");
    let mut bytes = BytesMut::new();
    for frame in frames {
        frame.encode(&mut bytes);
    }
    stream.write_all(&bytes).expect("the broker reads");
    stream
}

fn hello(role: Role, id: &str, position: Option<Position>) -> Frame {
    let client_id = id.to_owned();
    Frame::Hello(Hello { version_min: 1, version_max: 1, role, client_id, position })
}

fn subscribe(pattern: &str, kind: SubscribeKind) -> Frame {
    let patterns = vec![pattern.parse().expect("a pattern")];
    Frame::Subscribe(SubscribeFrame { subscription: 1, patterns, kind })
}

fn patterns(pattern: &str) -> [TopicPattern; 1] {
    [pattern.parse().expect("a pattern")]
}

fn connector(directory: &Path, id: &str, topic: &'static str) -> EventBusConnector {
    let (log, _) =
        WriteAheadLog::open(&directory.join(id), WalOptions::default()).expect("the log opens");
    let options = ConnectorOptions {
        socket: directory.join("bus.sock"),
        client: ClientOptions::new(id, Role::Collector),
        window_bytes_max: ConnectorOptions::WINDOW_BYTES_MAX,
        topic_of: match topic {
            STUCK => |_| STUCK.parse().expect("a topic"),
            _ => |_| WELL.parse().expect("a topic"),
        },
    };
    EventBusConnector::start(log, options).0
}

fn payload(number: u64) -> Bytes {
    let mut payload = format!("event {number} ").into_bytes();
    payload.resize(PAYLOAD_BYTES, b'.');
    payload.into()
}

/// Logs `EVENTS` events, a hundred durable at a time.
async fn log_all(connector: EventBusConnector) {
    for number in 1..=EVENTS {
        connector.submit(1, 0, payload(number)).expect("the log takes it");
        if number % 100 == 0 {
            connector.log().flush().await.expect("it is durable");
        }
    }
}

/// The durable consumer `name`.
async fn consumer(socket: &Path, name: &str, pattern: &str) -> (Client, DurableSubscription) {
    let options = ClientOptions::new(name, Role::Subscriber);
    let client = Client::connect(socket, options).await.expect("a connection");
    let durable = client.subscribe_durable(name, &patterns(pattern), vec![]).await;
    (client, durable.expect("a durable subscription"))
}

/// Takes and commits everything.
async fn store_all((client, mut durable): (Client, DurableSubscription)) {
    let mut have = 0;
    while have < EVENTS {
        let delivery = durable.next().await.expect("the broker stands");
        assert_eq!(delivery.after, Sequence(have));
        for entry in &delivery.entries {
            have += 1;
            assert_eq!((entry.sequence, &entry.payload), (Sequence(have), &payload(have)));
        }
        durable.commit(delivery.stream, delivery.through, delivery.epoch).expect("a commit");
    }
    client.goodbye().await;
}

#[test]
fn peers_that_are_stuck_stop_nobody_but_their_own_stream() {
    let _others = beside_others();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("bus.sock");
    let mut broker = BrokerProcess::start(&socket, 5000, &[]);

    let mut stuck = Vec::new();
    for number in 0..8 {
        // Live and never reading.
        let kind = SubscribeKind::Live { bytes_max: 4 << 20, count_max: 1 << 20 };
        let id = format!("live-{number}");
        stuck.push(deaf(&socket, &[hello(Role::Subscriber, &id, None), subscribe("#", kind)]));
    }
    for number in 0..50 {
        // Slow with its Hello, and stuck within a frame that is announced to be long.
        let mut slow = UnixStream::connect(&socket).expect("the broker listens");
        slow.write_all(&[60, 0, 0, 0]).expect("the broker reads");
        let id = format!("within-{number}");
        let position = Position {
            stream: StreamId::random(),
            epoch: Epoch::first(),
            first_unacknowledged: Sequence(1),
            last: Sequence(1),
        };
        let mut within = deaf(&socket, &[hello(Role::Collector, &id, Some(position))]);
        within.write_all(&[0, 0, 0xFF, 0, 5, 0, 0, 0, 1, 2, 3]).expect("the broker reads");
        stuck.extend([slow, within]);
    }
    let durable = SubscribeKind::Durable { name: "stuck".to_owned(), positions: vec![] };
    let durable = deaf(
        &socket,
        &[hello(Role::Subscriber, "stuck", None), subscribe("events.stuck.#", durable)],
    );
    until("they are all there", || {
        let stats = broker.stats();
        stats["live"].as_array().map(Vec::len) == Some(8)
            && stats["consumers"][0]["attached"] == true
            && stats["connections"].as_array().is_some_and(|all| all.len() == 8 + 50 + 1)
    });

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (ill, well) = runtime.block_on(async {
        let watcher = Client::connect(&socket, ClientOptions::new("watcher", Role::Subscriber));
        let watcher = watcher.await.expect("a connection");
        let plenty = LiveOptions { max_bytes: u32::MAX, max_count: u32::MAX };
        let mut live =
            watcher.subscribe(&patterns(WELL), plenty).await.expect("a live subscription");
        // Nothing is acknowledged before it is there.
        let store = consumer(&socket, "store", "events.well.#").await;
        let ill = connector(directory.path(), "ill", STUCK);
        let well = connector(directory.path(), "well", WELL);
        let logged = [tokio::spawn(log_all(ill.clone())), tokio::spawn(log_all(well.clone()))];
        store_all(store).await;
        for sequence in 1..=EVENTS {
            match live.next().await.expect("the broker stands") {
                LiveItem::Event(event) => assert_eq!(event.origin.sequence, Sequence(sequence)),
                other => panic!("an event, not {other:?}"),
            }
        }
        for logged in logged {
            logged.await.expect("everything is logged");
        }
        (ill, well)
    });
    assert_eq!(well.health().backlog_bytes, 0);

    let stats = broker.stats();
    let stream = ill.log().stream().to_string();
    let streams = stats["streams"].as_array().expect("streams");
    let ill_stream = streams.iter().find(|s| s["stream"] == stream).expect("the stuck one's");
    assert_eq!(ill_stream["acked"], 0);
    let retained = ill_stream["retained_bytes"].as_u64().expect("a number");
    assert!(retained > CREDIT_BYTES / 2 && retained <= CREDIT_BYTES, "{retained} of its credit");
    for live in stats["live"].as_array().expect("live subscriptions") {
        let missed = live["missed_total"].as_u64().expect("a number");
        let is_stuck = live["client_id"] != "watcher";
        assert_eq!(missed > EVENTS / 2, is_stuck, "{live}");
        assert!(live["queued_bytes"].as_u64().is_some_and(|bytes| bytes <= 4 << 20), "{live}");
    }
    let resident = peak_resident_bytes(broker.pid());
    println!("the broker took {resident} bytes at most");
    assert!(resident < RESIDENT_BYTES_MAX, "the broker took {resident} bytes");

    // Somebody else takes the stuck consumer's place: nothing is missing.
    drop(durable);
    until("the stuck one is gone", || {
        let stats = broker.stats();
        let consumers = stats["consumers"].as_array().expect("consumers");
        consumers.iter().any(|c| c["name"] == "stuck" && c["attached"] == false)
    });
    runtime.block_on(async {
        store_all(consumer(&socket, "stuck", "events.stuck.#").await).await;
        for connector in [ill, well] {
            let drained = connector.shutdown(Duration::from_secs(20)).await;
            assert!(drained.expect("the log is well").delivered);
        }
    });
    drop(stuck);
    broker.finish();
}

/// A process has fewer descriptors than the broker takes connections by default: whoever is beyond
/// them is told to come back, and nobody waits unheard.
#[test]
fn clients_beyond_the_descriptors_are_told_to_come_back() {
    const DESCRIPTORS: u32 = 200;
    const WELCOME: usize = 150;
    let _others = beside_others();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("bus.sock");
    let mut broker = BrokerProcess::start_with_descriptors(DESCRIPTORS, &socket, 5000);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let connect = |number: usize| {
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(60),
            ..ClientOptions::new(format!("client-{number}"), Role::Subscriber)
        };
        let socket = socket.clone();
        async move { Client::connect(&socket, options).await }
    };
    let (welcome, refused): (Vec<_>, Vec<_>) = runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for number in 0..2 * DESCRIPTORS as usize {
            all.spawn(connect(number));
        }
        all.join_all().await.into_iter().partition(Result::is_ok)
    });
    assert_eq!(welcome.len(), WELCOME);
    for refused in refused {
        match refused {
            Err(ConnectError::Refused { code: RefusalCode::Limit, retry: true, .. }) => {}
            other => panic!("a refusal, not {other:?}"),
        }
    }
    drop(welcome);
    until("their places are free", || {
        broker.stats()["connections"].as_array().is_some_and(Vec::is_empty)
    });
    runtime.block_on(connect(0)).expect("welcome");
    broker.finish();
}
