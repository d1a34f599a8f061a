//! The store behind a real broker on a real socket, with a publisher that is no procmond.

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use daemoneye_eventbus::{
    AckLevel, Batch, Client, ClientOptions, ConnectError, Entry, Publisher, Role, Topic,
    TopicPattern,
};
use daemoneye_lib::models::control::{
    CollectorRegistration, CollectorReply, CollectorState, Lifecycle,
};
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::models::{event::Event, process::SourceName};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use daemoneye_lib::topics;
use tokio::time::Instant;

use super::*;
use crate::status::AgentStatus;
use crate::store::StreamFigures;

const PATIENCE: Duration = Duration::from_secs(20);

/// A broker that requires the store, and the directory everything is in.
struct Bench {
    config: Config,
    broker: Arc<Broker>,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::load(crate::config::Sources {
            state_dir: Some(dir.path().to_owned()),
            ..Default::default()
        })
        .unwrap();
        let broker = Arc::new(bind(&config).await.unwrap());
        Self { config, broker, _dir: dir }
    }

    fn database(&self) -> PathBuf {
        self.config.state.database()
    }

    /// Attaches a store; dropping the trigger detaches it.
    async fn attach(&self) -> (ShutdownTrigger, JoinHandle<Store>) {
        let store = Store::open(&self.database()).unwrap();
        let consumer = Consumer::attach(&self.broker, store).await.unwrap();
        let (trigger, stop) = ShutdownTrigger::new();
        (trigger, tokio::spawn(consumer.run(Arc::clone(&self.broker), stop)))
    }

    async fn publisher(&self, log: &Log) -> Result<(Client, Publisher), ConnectError> {
        let options = ClientOptions::new("procmond", Role::Collector);
        let position = daemoneye_eventbus::Position {
            stream: log.stream,
            epoch: log.epoch,
            first_unacknowledged: Sequence(log.acked + 1),
            last: Sequence(log.last),
        };
        Client::connect_publisher(self.broker.socket(), options, position).await
    }
}

/// What a collector's log knows.
struct Log {
    stream: StreamId,
    epoch: Epoch,
    acked: u64,
    last: u64,
}

impl Log {
    fn new(last: u64) -> Self {
        Self { stream: StreamId::random(), epoch: Epoch::first(), acked: 0, last }
    }

    fn batch(&self, after: u64, through: u64) -> Batch {
        let event = Event::from(GapEvent {
            reason: GapReason::StreamBegan,
            missing: None,
            first_sequence: None,
            last_sequence: None,
            since_ns: None,
            until_ns: None,
            time_ns: 5,
            detail: String::new(),
        });
        let payload = Bytes::from(event.encode());
        let entry = |sequence| Entry {
            topic: Topic::new(topics::PROCESS_GAP).unwrap(),
            sequence: Sequence(sequence),
            span: 1,
            timestamp_ns: 5,
            payload: payload.clone(),
        };
        Batch {
            stream: self.stream,
            epoch: self.epoch,
            after: Sequence(after),
            entries: (after + 1..=through).map(entry).collect(),
            through: Sequence(through),
        }
    }
}

/// What a collector says of itself.
fn health(log: &Log) -> daemoneye_lib::models::control::CollectorHealth {
    use daemoneye_lib::models::control::{
        CollectorHealth, ConnectorHealth, ConnectorState, EventCounts, Excluded, LogHealth, Shed,
        Summarised,
    };
    CollectorHealth {
        state: CollectorState::Monitoring,
        source: SourceName::Poll,
        failed: None,
        source_failures_total: 0,
        interval_ms: 1000,
        processes: 1,
        scans_total: 1,
        scan_errors_total: 0,
        events: EventCounts::default(),
        digests: None,
        excluded: Excluded::default(),
        unseen_max_total: 0,
        summarised: Summarised::default(),
        shed: Shed::default(),
        log: LogHealth {
            stream: log.stream,
            epoch: log.epoch,
            last: Sequence(0),
            durable: Sequence(0),
            watermark: Sequence(0),
            segments: 1,
            bytes: 0,
            refused_total: 0,
        },
        connector: ConnectorHealth {
            state: ConnectorState::Connected,
            window_bytes: 0,
            window_bytes_peak: 0,
            backlog_bytes: 0,
            engaged_total: 0,
            released_total: 0,
            reconnects_total: 0,
            sent_through: Sequence(0),
            acked: Sequence(0),
        },
    }
}

/// The sequences of a stream that another connection can see, which are the committed ones.
fn stored(database: &Path, stream: StreamId) -> Vec<i64> {
    let mut sequences = Vec::new();
    let reader = EventReader::open(database).unwrap();
    reader
        .arrived(0, i64::MAX, &EventFilter::default(), |event| {
            if event.stream == stream.to_string() {
                sequences.push(event.sequence);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    sequences
}

async fn acked(publisher: &mut Publisher) -> u64 {
    let ack = timeout(PATIENCE, publisher.acked()).await.expect("an ack in time").unwrap();
    assert_eq!(ack.level, AckLevel::Committed);
    ack.sequence.0
}

#[tokio::test]
async fn nobody_publishes_before_the_store_is_attached() {
    let bench = Bench::new().await;
    let log = Log::new(1);
    let early = bench.publisher(&log).await;
    assert!(matches!(early, Err(ConnectError::Refused { retry: true, .. })), "{early:?}");
    let _attached = bench.attach().await;
    bench.publisher(&log).await.expect("let in when the store is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_published_event_is_stored_once_and_acked_after_its_commit() {
    let bench = Bench::new().await;
    let mut log = Log::new(0);
    let (_trigger, _task) = bench.attach().await;
    let (_client, mut publisher) = bench.publisher(&log).await.unwrap();
    let mut heard = 0;
    for round in 0..200 {
        let through = log.last + 1 + round % 17;
        publisher.publish(&log.batch(log.last, through)).await.unwrap();
        log.last = through;
        // Not after each, so that several deliveries share a transaction.
        if round % 5 == 0 {
            heard = acked(&mut publisher).await;
            let seen = stored(&bench.database(), log.stream);
            assert!(seen.len() as u64 >= heard, "acked to {heard}, stored {}", seen.len());
        }
    }
    while heard < log.last {
        heard = acked(&mut publisher).await;
    }
    let all: Vec<i64> = (1..=i64::try_from(log.last).unwrap()).collect();
    assert_eq!(stored(&bench.database(), log.stream), all);
}

/// While another program holds the database nothing can be committed, so nothing may be acked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_committed_is_not_acked() {
    let bench = Bench::new().await;
    let log = Log::new(3);
    let (_trigger, _task) = bench.attach().await;
    let (_client, mut publisher) = bench.publisher(&log).await.unwrap();
    let other = rusqlite::Connection::open(bench.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    publisher.publish(&log.batch(0, 3)).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while bench.broker.stats().consumers[0].cursors.iter().all(|cursor| cursor.delivered.0 < 3) {
        assert!(Instant::now() < deadline, "never delivered");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(consumer::lag(&bench.broker), 3);
    let early = timeout(Duration::from_millis(300), publisher.acked()).await;
    assert!(early.is_err(), "acked before it was stored: {early:?}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(acked(&mut publisher).await, 3);
    assert_eq!(stored(&bench.database(), log.stream), [1, 2, 3]);
    drain(&bench.broker).await;
    assert_eq!(consumer::lag(&bench.broker), 0);
}

/// The agent died after storing and before the broker heard of it; the publisher sends again what
/// was never acknowledged to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_welcomes_with_what_is_stored_and_skips_the_rest() {
    let mut log = Log::new(6);
    let first = Bench::new().await;
    let (trigger, task) = first.attach().await;
    let (_client, mut publisher) = first.publisher(&log).await.unwrap();
    publisher.publish(&log.batch(0, 4)).await.unwrap();
    assert_eq!(acked(&mut publisher).await, 4);
    trigger.request();
    close(task.await.unwrap()).await;
    let Bench { config, broker, _dir: dir } = first;
    drop(broker);

    // The socket's lock is free once the old broker's tasks are gone.
    let deadline = Instant::now() + PATIENCE;
    let broker = loop {
        match bind(&config).await {
            Ok(broker) => break Arc::new(broker),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let second = Bench { config, broker, _dir: dir };
    let (_trigger, _task) = second.attach().await;
    log.epoch = log.epoch.next();
    let (_client, mut publisher) = second.publisher(&log).await.unwrap();
    assert_eq!(publisher.committed().map(|at| at.sequence.0), Some(4), "what the store has");
    // A publisher that did not trim sends all of it again.
    publisher.publish(&log.batch(4, 6)).await.unwrap();
    while acked(&mut publisher).await < 6 {}
    assert_eq!(stored(&second.database(), log.stream), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_told_to_begin_and_shows_in_the_status() {
    let bench = Bench::new().await;
    let client = control::connect(&bench.broker).await.unwrap();
    let store = Store::open(&bench.database()).unwrap();
    let (_stop_control, stop) = ShutdownTrigger::new();
    let (_supervisor, supervised) =
        watch::channel(SupervisorStatus::new(SupervisorState::Disabled));
    let collectors = Collectors::default();
    let listening = Control {
        client: client.clone(),
        broker: Arc::clone(&bench.broker),
        collectors: collectors.clone(),
        store: store.handle(),
        supervised,
        config: bench.config.clone(),
        begun: Instant::now(),
    };
    tokio::spawn(listening.listen(stop.clone()).await.unwrap());
    let consumer = Consumer::attach(&bench.broker, store).await.unwrap();
    tokio::spawn(consumer.run(Arc::clone(&bench.broker), stop));

    let log = Log::new(0);
    let (collector, _publisher) = bench.publisher(&log).await.unwrap();
    let patterns = [topics::LIFECYCLE, "control.collector.procmond"]
        .map(|pattern| daemoneye_eventbus::TopicPattern::new(pattern).unwrap());
    let mut commands = collector.subscribe(&patterns, Default::default()).await.unwrap();
    let registration = CollectorRegistration {
        collector_id: "procmond".to_owned(),
        pid: std::process::id(),
        version: "9".to_owned(),
        stream: log.stream,
        epoch: log.epoch,
        source: SourceName::Poll,
        state: CollectorState::Waiting,
    };
    let topic = Topic::new(topics::REGISTRATION).unwrap();
    let payload = Bytes::from(serde_json::to_vec(&registration).unwrap());
    let reply = collector.request(&topic, payload, PATIENCE).await.unwrap();
    assert_eq!(serde_json::from_slice::<CollectorReply>(&reply).unwrap(), CollectorReply::Ok);
    let command = timeout(PATIENCE, commands.next()).await.expect("a command in time").unwrap();
    let daemoneye_eventbus::LiveItem::Message(begin) = command else { panic!("{command:?}") };
    assert_eq!(begin.topic.as_str(), topics::LIFECYCLE);
    let lifecycle: Lifecycle = serde_json::from_slice(&begin.payload).unwrap();
    assert_eq!(lifecycle, Lifecycle::BeginMonitoring);

    // Nonsense is answered, and hurts nobody.
    let nonsense = Bytes::from_static(b"{\"collector_id\":\"\x1b[2J");
    let reply = collector.request(&topic, nonsense, PATIENCE).await.unwrap();
    let reply = serde_json::from_slice::<CollectorReply>(&reply).unwrap();
    assert!(matches!(reply, CollectorReply::Error { .. }), "{reply:?}");

    // Nobody registers, or is alive, for somebody else.
    let options = ClientOptions::new("evil", Role::Collector);
    let evil = Client::connect(bench.broker.socket(), options).await.unwrap();
    let heartbeat = serde_json::json!({
        "collector_id": "procmond", "pid": std::process::id(), "time_ns": 1,
        "health": health(&log),
    });
    let evil_topic = Topic::new("control.health.heartbeat.evil").unwrap();
    evil.send(&evil_topic, heartbeat.to_string().into()).await.unwrap();
    for (name, stream) in [("procmond", StreamId::random()), ("evil", log.stream)] {
        let lie = CollectorRegistration {
            collector_id: name.to_owned(),
            stream,
            version: "evil".to_owned(),
            ..registration.clone()
        };
        let payload = Bytes::from(serde_json::to_vec(&lie).unwrap());
        let reply = evil.request(&topic, payload, PATIENCE).await.unwrap();
        match serde_json::from_slice::<CollectorReply>(&reply).unwrap() {
            CollectorReply::Error { message } => {
                assert!(message.contains("publishes stream"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    let known = collectors.statuses(&[]);
    assert_eq!(known.len(), 1);
    assert_eq!((&*known[0].version, &known[0].health), ("9", &None));
    let own_topic = Topic::new("control.health.heartbeat.procmond").unwrap();
    collector.send(&own_topic, heartbeat.to_string().into()).await.unwrap();

    let options = ClientOptions::new("anybody", Role::Subscriber);
    let asker = Client::connect(bench.broker.socket(), options).await.unwrap();
    let topic = Topic::new(topics::HEALTH_STATUS).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        let answer = asker.request(&topic, Bytes::new(), PATIENCE).await.unwrap();
        let status: AgentStatus = serde_json::from_slice(&answer).unwrap();
        // The store notes the registration a little later.
        if status.store.figures.streams.iter().any(|of: &StreamFigures| of.collector.is_some()) {
            break status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(status.agent.pid, std::process::id());
    assert_eq!(status.collectors[0].collector_id, "procmond");
    assert!(status.collectors[0].connected);
    assert!(status.collectors[0].health.is_some(), "its own heartbeat is taken");
    assert_eq!(status.store.figures.streams[0].stream, log.stream);
    assert!(status.broker["consumers"][0]["attached"].as_bool().unwrap());

    // However many there are to tell of, it stays a message.
    let mut crowd = Vec::new();
    let longest: TopicPattern = vec!["x".repeat(31); 8].join(".").parse().unwrap();
    for n in 0..3 {
        let options = ClientOptions::new(format!("crowd-{n}"), Role::Subscriber);
        let client = Client::connect(bench.broker.socket(), options).await.unwrap();
        for _ in 0..1000 {
            let patterns = [longest.clone()];
            crowd.push(client.subscribe(&patterns, Default::default()).await.unwrap());
        }
    }
    let answer = asker.request(&topic, Bytes::new(), PATIENCE).await.unwrap();
    let status: AgentStatus = serde_json::from_slice(&answer).unwrap();
    let told = status.broker["live"].as_array().unwrap().len() as u64;
    let left_out = status.broker["left_out"].as_u64().unwrap();
    assert!(told > 0 && left_out > 0 && told + left_out >= 3000, "{told} told, not {left_out}");
    drop(crowd);

    // Who only listens hears it without asking.
    let patterns = [TopicPattern::from(&topic)];
    let mut listener = asker.subscribe(&patterns, Default::default()).await.unwrap();
    let first = timeout(PATIENCE, listener.next()).await.expect("a status in time").unwrap();
    let daemoneye_eventbus::LiveItem::Message(said) = first else { panic!("{first:?}") };
    assert!(said.retained && said.reply_to.is_none(), "{said:?}");
    let said: AgentStatus = serde_json::from_slice(&said.payload).unwrap();
    assert_eq!(said.agent.pid, std::process::id());

    // Asked to end by the supervisor, over the bus.
    let connections = BusConnections::new(Arc::clone(&bench.broker), client, collectors);
    let own = std::process::id();
    assert!(crate::supervisor::Connections::is_connected(&connections, own));
    assert!(!crate::supervisor::Connections::is_connected(&connections, 1));
    let asking =
        tokio::spawn(
            async move { crate::supervisor::Connections::shut_down(&connections, own).await },
        );
    let command = timeout(PATIENCE, commands.next()).await.expect("a request in time").unwrap();
    let daemoneye_eventbus::LiveItem::Message(request) = command else { panic!("{command:?}") };
    assert_eq!(request.topic.as_str(), "control.collector.procmond");
    let ok = Bytes::from(serde_json::to_vec(&CollectorReply::Ok).unwrap());
    collector.reply(&request, ok).await.unwrap();
    assert!(timeout(PATIENCE, asking).await.expect("an answer in time").unwrap());
}
