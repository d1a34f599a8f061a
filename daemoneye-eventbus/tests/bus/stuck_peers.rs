//! Peers that are slow or stuck, on both sides: what they hold up is their own, and bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use daemoneye_eventbus::wire::{Frame, Hello, Welcome};
use daemoneye_eventbus::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use crate::common::*;

/// The time is for the whole of the Hello, not for each of its bytes.
#[tokio::test]
async fn a_hello_that_trickles_in_comes_too_late() {
    let bus = Bus::with(|options| options.handshake = Duration::from_millis(50)).await;
    let mut peer = RawPeer::connect(&bus).await;
    let mut hello = BytesMut::new();
    Frame::Hello(Hello {
        version_min: 1,
        version_max: 1,
        role: Role::Subscriber,
        client_id: "x".repeat(64),
        position: None,
    })
    .encode(&mut hello);
    for byte in hello {
        tokio::time::sleep(Duration::from_millis(5)).await;
        // The broker may have closed by now.
        if peer.stream.write_all(&[byte]).await.is_err() {
            break;
        }
    }
    assert!(matches!(peer.next().await, Some(Frame::Goodbye { code: GoodbyeCode::Silent, .. })));
    assert_eq!(peer.next().await, None);
}

#[tokio::test]
async fn places_taken_by_peers_that_say_nothing_become_free() {
    let bus = Bus::with(|options| {
        options.handshake = Duration::from_millis(50);
        options.connections_max = 3;
    })
    .await;
    let mut mute = Vec::new();
    for _ in 0..3 {
        mute.push(RawPeer::connect(&bus).await);
    }
    let connect =
        || Client::connect(bus.broker.socket(), ClientOptions::new("x", Role::Subscriber));
    within(async {
        while let Err(error) = connect().await {
            assert!(error.may_retry(), "{error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    for mut peer in mute {
        let goodbye = peer.next().await;
        assert!(matches!(goodbye, Some(Frame::Goodbye { code: GoodbyeCode::Silent, .. })));
    }
}

/// What an application does not take waits in the broker once its share is in flight, and other
/// subscriptions of the same connection go on.
#[tokio::test]
async fn an_application_that_takes_no_deliveries_holds_up_no_other_subscription() {
    const IN_FLIGHT: usize = 1000;
    let bus = Bus::with(|options| options.in_flight_bytes = IN_FLIGHT).await;
    let client = bus.subscriber("one").await;
    let patterns = ["events.#".parse().unwrap()];
    let mut idle = within(client.subscribe_durable("idle", &patterns, vec![])).await.unwrap();
    let mut busy = within(client.subscribe_durable("busy", &patterns, vec![])).await.unwrap();
    let mut live = within(client.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let mut writer = bus.writer(Log::new()).await;
    let Log { stream, epoch, .. } = writer.log;
    for _ in 0..100 {
        writer.publish(10).await;
        let last = writer.log.last;
        assert_eq!(deliveries(&mut busy, last).await.len(), 10);
        busy.commit(stream, Sequence(last), epoch).unwrap();
        assert_eq!(events(&mut live, 10).await[9], last);
    }
    let stats = bus.broker.stats();
    let consumer = stats.consumers.iter().find(|consumer| consumer.name == "idle").unwrap();
    let cursor = &consumer.cursors[0];
    // The last delivery may go beyond.
    assert!(cursor.in_flight_bytes < 2 * IN_FLIGHT, "{cursor:?}");
    assert_eq!(stats.streams[0].acked, Sequence(0));
    let mut taken = Vec::new();
    while taken.len() < 1000 {
        let delivery = within(idle.next()).await.unwrap();
        taken.extend(delivery.entries.iter().map(|entry| entry.sequence.0));
        idle.commit(stream, delivery.through, epoch).unwrap();
    }
    assert!(taken.into_iter().eq(1..=1000));
    writer.acked(1000).await;
}

/// A broker that welcomes its one client and then never reads. It goes on pinging if it is told to.
struct DeafBroker {
    directory: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl DeafBroker {
    fn start(heartbeat: Duration, pings: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&socket, private).unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _): (UnixStream, _) = listener.accept().await.unwrap();
            let mut frames = BytesMut::new();
            Frame::Welcome(Welcome {
                version: 1,
                connection: 1,
                credit_bytes: u64::MAX,
                frame_bytes_max: 1 << 20,
                heartbeat_ms: heartbeat.as_millis() as u32,
                committed: None,
                positions: vec![],
            })
            .encode(&mut frames);
            stream.write_all(&frames).await.unwrap();
            let mut ping = BytesMut::new();
            Frame::Ping { token: 1 }.encode(&mut ping);
            while !pings || stream.write_all(&ping).await.is_ok() {
                tokio::time::sleep(heartbeat).await;
            }
        });
        Self { directory, task }
    }

    async fn writer(&self) -> Writer {
        let log = Log::new();
        let position = log.position();
        let options = ClientOptions::new("procmond", Role::Collector);
        let socket = self.directory.path().join("bus.sock");
        let connected = Client::connect_publisher(&socket, options, position);
        let (client, publisher) = within(connected).await.unwrap();
        Writer { log, client, publisher }
    }
}

impl Drop for DeafBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The outbox takes 256 KiB, the socket about as much, and a batch more may be on its way.
const UNREAD_BYTES_MAX: u64 = 2 << 20;
const EVENT_BYTES: u64 = 10_000;

/// Publishes until it fails, and counts what was taken.
async fn publish_on_and_on(mut writer: Writer, taken: Arc<AtomicU64>) -> PublishError {
    loop {
        let mut batch = writer.log.batch(writer.log.last, 1, START);
        batch.entries[0].payload = vec![0; EVENT_BYTES as usize].into();
        match writer.publisher.publish(&batch).await {
            Ok(()) => writer.log.last += 1,
            Err(error) => return error,
        }
        taken.fetch_add(EVENT_BYTES, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_broker_that_neither_reads_nor_speaks_is_given_up_with_little_taken() {
    let broker = DeafBroker::start(Duration::from_millis(50), false);
    let writer = broker.writer().await;
    let client = writer.client.clone();
    let taken = Arc::new(AtomicU64::new(0));
    match within(publish_on_and_on(writer, Arc::clone(&taken))).await {
        PublishError::Disconnected(Disconnected(CloseReason::Silent)) => {}
        other => panic!("the broker is silent, not {other:?}"),
    }
    assert!(matches!(within(client.closed()).await, CloseReason::Silent));
    let taken = taken.load(Ordering::Relaxed);
    assert!(taken > 0 && taken < UNREAD_BYTES_MAX, "{taken} bytes were taken");
}

/// It is alive, so it is waited for; but who publishes knows that it waits, and may leave.
#[tokio::test]
async fn a_broker_that_does_not_read_makes_publishers_wait_and_lets_them_go() {
    let broker = DeafBroker::start(Duration::from_millis(20), true);
    let writer = broker.writer().await;
    let client = writer.client.clone();
    let taken = Arc::new(AtomicU64::new(0));
    let publishing = tokio::spawn(publish_on_and_on(writer, Arc::clone(&taken)));
    // Nothing more for many heartbeats: it waits.
    let (mut before, mut quiet) = (0, 0);
    until(|| {
        let now = taken.load(Ordering::Relaxed);
        quiet = if now > 0 && now == before { quiet + 1 } else { 0 };
        before = now;
        quiet > 200
    })
    .await;
    assert!(before < UNREAD_BYTES_MAX, "{before} bytes were taken");
    assert!(!publishing.is_finished() && !client.is_closed());
    publishing.abort();
    within(client.goodbye()).await;
}
