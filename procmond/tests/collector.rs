//! The collector's conversation with the agent, over a real broker and a real socket.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use daemoneye_eventbus::{
    BindError, Broker, BrokerOptions, Client, ClientOptions, DurableSubscription, LiveItem,
    LiveOptions, LiveSubscription, Message, Role, Topic, TopicPattern,
};
use daemoneye_lib::models::control::{
    CollectorHealth, CollectorRegistration, CollectorReply, CollectorState, Heartbeat,
};
use daemoneye_lib::topics::{self, CollectorId};
use procmond::collector::CollectorLink;
use procmond::event_bus_connector::{ConnectorOptions, EventBusConnector};
use procmond::logging::LogFilter;
use procmond::monitor::snapshot::SNAPSHOT_FILE;
use procmond::monitor::{MonitorHandle, MonitorOptions, ProcessMonitor, Recovered};
use procmond::source::{SourceChoice, SourceOptions};
use procmond::wal::{WalOptions, WriteAheadLog};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything may take that a test waits for; shorter than [`SELDOM`].
const DEADLINE: Duration = Duration::from_secs(60);
/// A time between heartbeats that no test lives to see the end of.
const SELDOM: Duration = Duration::from_secs(3600);
/// Between two looks at something that is waited for.
const MOMENT: Duration = Duration::from_millis(5);
const ID: &str = "collector-1";

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("it happens in time")
}

/// A monitor, its connector and its link, looking for a broker in a directory.
struct Collector {
    log: WriteAheadLog,
    monitor: MonitorHandle,
    link: JoinHandle<()>,
    shutdown_asked: mpsc::Receiver<()>,
    /// The log filters asked for.
    log_filters: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn start(directory: &TempDir, heartbeat: Duration) -> Self {
        let wal_dir = directory.path().join("wal");
        let (log, _) = WriteAheadLog::open(&wal_dir, WalOptions::default()).expect("a log");
        let options = MonitorOptions {
            source: SourceChoice::Poll,
            tell: procmond::monitor::TellOptions::default(),
            see: SourceOptions::every(Duration::from_millis(500)),
            snapshot_path: wal_dir.join(SNAPSHOT_FILE),
        };
        let recovered = Recovered::read(&options, &log).expect("an empty log can be read");
        let to_broker = ConnectorOptions {
            socket: directory.path().join("bus.sock"),
            client: ClientOptions::new(ID, Role::Collector),
            // The store here commits nothing, and a machine with many processes must not make the
            // backpressure that lengthens the interval.
            window_bytes_max: 1 << 30,
            topic_of: |_| "events.process.start".parse().expect("a topic"),
        };
        let (connector, signals) = EventBusConnector::start(log.clone(), to_broker);
        let clients = connector.client();
        let (actor, monitor) = ProcessMonitor::new(options, recovered, connector, signals);
        tokio::spawn(actor.run());
        let (shutdown, shutdown_asked) = mpsc::channel(1);
        let id = CollectorId::new(ID).expect("a name");
        let log_filters = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&log_filters);
        let set = Arc::new(move |filter: &LogFilter| {
            asked.lock().expect("no panic").push(filter.to_string());
        });
        let link = CollectorLink::new(id, monitor.clone(), clients, heartbeat, shutdown, set);
        Self { log, monitor, link: tokio::spawn(link.run()), shutdown_asked, log_filters }
    }

    async fn health(&self) -> CollectorHealth {
        self.monitor.health().await.expect("the monitor runs")
    }
}

/// The agent: its broker, which lets nobody publish before it listens itself.
struct Agent {
    broker: Broker,
    client: Client,
    inbox: LiveSubscription,
    _store: DurableSubscription,
}

impl Agent {
    async fn start(directory: &TempDir) -> Self {
        let mut options = BrokerOptions::new(directory.path().join("bus.sock"));
        options.required_consumers = vec!["store".to_owned()];
        let broker = within(async {
            loop {
                match Broker::bind(options.clone()).await {
                    Ok(broker) => return broker,
                    // One that was dropped lets go of it in a moment.
                    Err(BindError::InUse { .. }) => tokio::time::sleep(MOMENT).await,
                    Err(error) => panic!("the broker binds: {error}"),
                }
            }
        })
        .await;
        let options = ClientOptions::new("agent", Role::Agent);
        let client = broker.connect_in_process(options).await.expect("the agent connects");
        let patterns = [pattern(topics::REGISTRATION), pattern(topics::HEARTBEATS)];
        let inbox = client.subscribe(&patterns, LiveOptions::default()).await.expect("an inbox");
        let everything = [pattern(topics::EVENTS)];
        let store = client.subscribe_durable("store", &everything, Vec::new()).await;
        Self { broker, client, inbox, _store: store.expect("a store") }
    }

    async fn next(&mut self) -> Message {
        match within(self.inbox.next()).await {
            Some(LiveItem::Message(message)) => message,
            other => panic!("a message, not {other:?}"),
        }
    }

    async fn registration(&mut self) -> CollectorRegistration {
        let message = self.next().await;
        assert_eq!(message.topic.as_str(), topics::REGISTRATION, "it registers first of all");
        serde_json::from_slice(&message.payload).expect("a registration")
    }

    async fn heartbeat(&mut self) -> Heartbeat {
        let message = self.next().await;
        assert_eq!(message.topic.as_str(), "control.health.heartbeat.collector-1");
        serde_json::from_slice(&message.payload).expect("a heartbeat")
    }

    async fn tell(&self, message: &'static str) {
        let topic: Topic = topics::LIFECYCLE.parse().expect("a topic");
        self.client.send(&topic, Bytes::from_static(message.as_bytes())).await.expect("it is sent");
    }

    async fn ask(&self, request: impl Into<Bytes>) -> CollectorReply {
        let topic: Topic = "control.collector.collector-1".parse().expect("a topic");
        let reply = self.client.request(&topic, request.into(), DEADLINE).await;
        serde_json::from_slice(&reply.expect("an answer")).expect("a reply")
    }

    async fn ask_json(&self, request: Value) -> CollectorReply {
        self.ask(request.to_string()).await
    }

    /// Asks for what must be refused and gives the reason.
    async fn refusal(&self, request: Value) -> String {
        match self.ask_json(request.clone()).await {
            CollectorReply::Error { message } => message,
            other => panic!("{request} got {other:?}"),
        }
    }

    async fn health(&self) -> CollectorHealth {
        match self.ask_json(json!({ "request": "health" })).await {
            CollectorReply::Health(health) => *health,
            other => panic!("{other:?}"),
        }
    }
}

fn pattern(text: &str) -> TopicPattern {
    text.parse().expect("a pattern")
}

/// Waits until the collector's health is so.
async fn until(agent: &Agent, is_so: impl Fn(&CollectorHealth) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let health = agent.health().await;
        if is_so(&health) {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain: {health:?}");
        tokio::time::sleep(MOMENT).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_registers_in_every_session_and_begins_when_it_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let collector = Collector::start(&directory, SELDOM);
    let mut agent = Agent::start(&directory).await;

    let log = collector.health().await.log;
    let first = agent.registration().await;
    let expected = CollectorRegistration {
        collector_id: ID.to_owned(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        stream: collector.log.stream(),
        epoch: collector.log.epoch(),
        source: collector.health().await.source,
        state: CollectorState::Waiting,
    };
    assert_eq!(first, expected);
    assert_eq!((log.stream, log.epoch), (first.stream, first.epoch));
    let beat = agent.heartbeat().await;
    assert_eq!((&*beat.collector_id, beat.pid), (ID, std::process::id()));
    assert_eq!(beat.health.state, CollectorState::Waiting);
    assert_eq!((beat.health.interval_ms, beat.health.log.stream), (500, log.stream));

    // Nothing that cannot be understood ends the conversation.
    agent.tell("no JSON").await;
    agent.tell(r#"{"message":"dance"}"#).await;
    assert_eq!(agent.health().await.state, CollectorState::Waiting);
    agent.tell(r#"{"message":"begin_monitoring"}"#).await;
    until(&agent, |health| health.state == CollectorState::Monitoring).await;
    agent.tell(r#"{"message":"begin_monitoring"}"#).await;
    assert_eq!(agent.health().await.state, CollectorState::Monitoring);

    for gently in [true, false] {
        if gently {
            agent.broker.shutdown(DEADLINE).await;
        } else {
            drop(agent);
        }
        agent = Agent::start(&directory).await;
        let again = agent.registration().await;
        assert_eq!(
            again,
            CollectorRegistration { state: CollectorState::Monitoring, ..first.clone() }
        );
        assert_eq!(agent.heartbeat().await.health.state, CollectorState::Monitoring);
        assert_eq!(agent.health().await.state, CollectorState::Monitoring, "it answers again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_and_refusals_say_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut collector = Collector::start(&directory, SELDOM);
    let mut agent = Agent::start(&directory).await;
    agent.registration().await;

    for not_a_request in ["", "no JSON", "{}", r#"{"request":"explode"}"#] {
        match agent.ask(not_a_request).await {
            CollectorReply::Error { message } => {
                assert!(message.starts_with("not a request: "), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    let unknown = agent.refusal(json!({ "request": "explode" })).await;
    assert!(unknown.contains("explode"), "it says what it does not know: {unknown}");
    let unknown = agent.refusal(json!({ "request": "update_config", "colour": "red" })).await;
    assert!(unknown.contains("colour"), "{unknown}");

    for ms in [0, 9, 3_600_001, u64::MAX] {
        let set = json!({ "request": "set_interval", "interval_ms": ms });
        let update = json!({ "request": "update_config", "interval_ms": ms });
        for request in [set, update] {
            let refused = agent.refusal(request).await;
            assert!(refused.contains("between 10 and 3600000 ms"), "{refused}");
        }
    }
    for ms in [0, 99, 60_001, u64::MAX] {
        let update = json!({ "request": "update_config", "interval_ms": 20, "heartbeat_ms": ms });
        let refused = agent.refusal(update).await;
        assert!(refused.contains("heartbeat_ms must be between 100 and 60000"), "{refused}");
    }
    let set = json!({ "request": "set_interval", "interval_ms": 200 });
    assert_eq!(agent.ask_json(set).await, CollectorReply::Ok);
    assert_eq!(agent.health().await.interval_ms, 200);

    for _ in 0..2 {
        assert_eq!(agent.ask_json(json!({ "request": "begin" })).await, CollectorReply::Ok);
        assert_eq!(agent.health().await.state, CollectorState::Monitoring);
    }
    until(&agent, |health| health.scans_total > 0).await;
    let health = agent.health().await;
    assert_eq!(health.interval_ms, 200, "what was refused was not taken up: {health:?}");
    let update = json!({ "request": "update_config", "interval_ms": 30 });
    assert_eq!(agent.ask_json(update).await, CollectorReply::Ok);
    until(&agent, |health| health.interval_ms == 30).await;

    assert!(collector.shutdown_asked.try_recv().is_err(), "nobody has asked for an end yet");
    for _ in 0..3 {
        assert_eq!(agent.ask_json(json!({ "request": "shutdown" })).await, CollectorReply::Ok);
    }
    assert_eq!(collector.shutdown_asked.try_recv(), Ok(()));
}

/// A pace of heartbeats that was asked for was forgotten with the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pace_of_heartbeats_that_was_asked_for_outlives_the_session() {
    let directory = tempfile::tempdir().expect("a directory");
    let _collector = Collector::start(&directory, SELDOM);
    let mut agent = Agent::start(&directory).await;
    agent.registration().await;
    agent.heartbeat().await;
    let update = json!({ "request": "update_config", "heartbeat_ms": 100 });
    assert_eq!(agent.ask_json(update).await, CollectorReply::Ok);
    for _ in 0..3 {
        agent.heartbeat().await;
    }
    drop(agent);
    let mut agent = Agent::start(&directory).await;
    agent.registration().await;
    let mut times = Vec::new();
    for _ in 0..3 {
        times.push(agent.heartbeat().await.time_ns);
    }
    assert!(times.is_sorted(), "{times:?}");
}

/// Of an update with one part out of range, the other was taken up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_refused_update_nothing_is_taken_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let collector = Collector::start(&directory, Duration::from_millis(100));
    let mut agent = Agent::start(&directory).await;
    agent.registration().await;
    let update = json!({ "request": "update_config", "interval_ms": 1, "heartbeat_ms": 60_000 });
    let refused = agent.refusal(update).await;
    assert!(refused.contains("the interval must be"), "{refused}");
    let update = json!({ "request": "update_config", "interval_ms": 1, "log_level": "debug" });
    let refused = agent.refusal(update).await;
    assert!(refused.contains("the interval must be"), "{refused}");
    let update = json!({ "request": "update_config", "heartbeat_ms": 60_000, "log_level": "loud" });
    let refused = agent.refusal(update).await;
    assert!(refused.contains("log_level: not error, warn"), "{refused}");
    assert!(collector.log_filters.lock().expect("no panic").is_empty());
    // Had it been taken up, these would take minutes.
    for _ in 0..4 {
        agent.heartbeat().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_the_monitor() {
    let directory = tempfile::tempdir().expect("a directory");
    let collector = Collector::start(&directory, Duration::from_millis(100));
    let mut agent = Agent::start(&directory).await;
    agent.registration().await;
    collector.monitor.shutdown().await.expect("the monitor ends");
    within(collector.link).await.expect("the link ends at the next heartbeat");
}

/// Killed with the test, should that end early.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program itself: what it says of itself changes while it runs, and changes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_takes_up_another_log_level_and_ends_when_it_is_asked_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut agent = Agent::start(&directory).await;
    let said = directory.path().join("stderr");
    let program = Command::new(env!("CARGO_BIN_EXE_procmond"))
        .args(["run", "--wait-for-agent", "--source", "poll", "--wal-dir"])
        .arg(directory.path().join("wal"))
        .env("DAEMONEYE_BROKER_SOCKET", directory.path().join("bus.sock"))
        .env("PROCMOND_COLLECTOR__ID", ID)
        .env("PROCMOND_LOG__LEVEL", "error")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&said).expect("a file"))
        .spawn()
        .expect("procmond starts");
    let mut program = Guarded(program);
    agent.registration().await;
    let said = || std::fs::read_to_string(&said).expect("what it said");
    assert_eq!(said(), "", "nothing has gone wrong");

    let louder = json!({ "request": "update_config", "log_level": "warn,procmond=info" });
    assert_eq!(agent.ask_json(louder).await, CollectorReply::Ok);
    // It is said before the answer is sent.
    let heard = said();
    assert!(heard.contains("what is logged has been changed"), "{heard}");

    let quieter = json!({ "request": "update_config", "log_level": "off" });
    assert_eq!(agent.ask_json(quieter).await, CollectorReply::Ok);
    assert_eq!(agent.ask_json(json!({ "request": "shutdown" })).await, CollectorReply::Ok);
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = program.0.try_wait().expect("it is our child") {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        tokio::time::sleep(MOMENT).await;
    };
    assert!(status.success(), "{status}");
    assert_eq!(said(), heard, "and of that it said nothing any more");
}
