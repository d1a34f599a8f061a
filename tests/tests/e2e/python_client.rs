//! A client in another language, written from the protocol's document alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::{
    Broker, BrokerOptions, Client, ClientOptions, Committed, DurableSubscription, Entry, Epoch,
    LiveItem, LiveOptions, Role, Sequence, StreamId, Topic,
};
use daemoneye_tests::{AgentBuilder, Marked, Python, beside_others, until};
use procmond::event_bus_connector::{ConnectorOptions, EventBusConnector};
use procmond::wal::{WalOptions, WriteAheadLog};
use serde_json::Value;

const TOPIC: &str = "events.process.start";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// It sees what procmond sees: the starts and stops of our processes, and no sequence is missing.
#[test]
fn python_sees_processes_start_and_stop() {
    if !Python::is_here() {
        return;
    }
    let _others = beside_others();
    let agent = AgentBuilder::default().env("PROCMOND_MONITOR__INTERVAL_MS", 50).start();
    agent.monitoring();
    let socket = agent.setup().socket();
    let python = Python::start(&["live", text(&socket), "python", "events.process.*"]);
    python.says("ready");

    let tag = format!("python-{}", std::process::id());
    let marked = Marked::start(&tag, 5, &[]);
    let store = agent.store();
    let keys = format!(
        "SELECT process_key FROM events WHERE topic IN ('events.process.start',
         'events.process.modify') AND cmdline LIKE '%{tag}-%'"
    );
    let ours =
        |topic: &str| format!("topic = 'events.process.{topic}' AND process_key IN ({keys})");
    until("the starts are stored", || store.rows(&ours("start")).len() == 5);
    marked.end();
    until("the stops are stored", || store.rows(&ours("stop")).len() == 5);
    let expected = [store.rows(&ours("start")), store.rows(&ours("stop"))].concat();
    let last = expected.iter().map(|row| row.sequence).max().expect("ten of them");

    let mut seen = BTreeMap::new();
    while seen.last_key_value().is_none_or(|(sequence, _)| *sequence < last) {
        let event = python.next().expect("an event");
        let sequence = event["sequence"].as_u64().unwrap_or_else(|| panic!("an event: {event}"));
        if let Some((before, _)) = seen.last_key_value() {
            assert_eq!(sequence, before + event["span"].as_u64().expect("a span"));
        }
        seen.insert(sequence, event);
    }
    for row in expected {
        let event = &seen[&row.sequence];
        assert_eq!((&event["stream"], &event["topic"]), (&row.stream.into(), &row.topic.into()));
        assert_eq!(event["time"], row.event["time_ns"]);
    }
    python.finish();
    assert!(agent.stop().success());
}

/// Runs a test that needs no agent.
fn with_python(test: impl Future<Output = ()>) {
    if !Python::is_here() {
        return;
    }
    let _others = beside_others();
    // Two threads: looking at a Python blocks one, and the bus lives in the other.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

/// Takes what is delivered, without committing it, and gives the position behind it.
async fn next_through(
    store: &mut DurableSubscription,
    have: &mut Vec<Entry>,
    through: u64,
) -> Committed {
    loop {
        let delivery = store.next().await.expect("the subscription stands");
        assert_eq!(delivery.after.0, have.len() as u64);
        have.extend(delivery.entries);
        let at = Committed { sequence: delivery.through, epoch: delivery.epoch };
        if delivery.through.0 >= through {
            return at;
        }
    }
}

async fn connect(broker: &Broker, id: &str, role: Role) -> Client {
    Client::connect(broker.socket(), ClientOptions::new(id, role)).await.expect("a connection")
}

#[test]
fn python_publishes_and_resumes_where_the_consumer_is() {
    with_python(publishes());
}

async fn publishes() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::bind(BrokerOptions::new(directory.path().join("bus.sock")))
        .await
        .expect("a broker");
    let client = connect(&broker, "store", Role::Subscriber).await;
    let patterns = ["events.#".parse().expect("a pattern")];
    let mut store = client.subscribe_durable("store", &patterns, vec![]).await.expect("durable");

    let stream = StreamId::random();
    let publish = |epoch: Epoch| {
        let (stream, epoch) = (stream.to_string(), epoch.to_u64().to_string());
        let socket = text(broker.socket());
        Python::start(&["publish", socket, "python", &stream, &epoch, "500", TOPIC])
    };
    let first = Epoch::first();
    let python = publish(first);
    assert_eq!(python.says("resumed"), 0);
    let mut have = Vec::new();
    let at = next_through(&mut store, &mut have, 100).await;
    store.commit(stream, at.sequence, at.epoch).expect("a commit");
    assert_eq!(python.says("acked"), at.sequence.0);
    python.kill();
    // The same log, not opened anew: what is sent again was written in the same epoch.
    let python = publish(first);
    assert_eq!(python.says("resumed"), at.sequence.0);
    let at = next_through(&mut store, &mut have, 500).await;
    store.commit(stream, at.sequence, at.epoch).expect("a commit");
    let rest = python.finish();
    let last = rest.last().expect("an acknowledgement");
    assert_eq!((&last["acked"], &last["level"]), (&500.into(), &"committed".into()));

    assert_eq!(have.len(), 500);
    for (entry, sequence) in have.iter().zip(1..) {
        assert_eq!((entry.sequence, entry.span), (Sequence(sequence), 1));
        assert_eq!(entry.payload, format!("event {sequence}"));
        assert_eq!(entry.topic.to_string(), TOPIC);
        assert!(entry.timestamp_ns > 1_700_000_000_000_000_000, "{}", entry.timestamp_ns);
    }
    // The log's next opening finds nothing to do; who still writes in the one before is told.
    assert_eq!(publish(first.next()).says("resumed"), 500);
    let refused = publish(first).next().expect("a refusal");
    assert_eq!((&refused["ended"], &refused["code"]), (&"Refused".into(), &3.into()));
    broker.shutdown(Duration::from_secs(5)).await;
}

/// What is in the file: sequences and payloads, with the position checked line by line.
fn stored(file: &Path, stream: StreamId) -> Vec<(u64, String)> {
    let text = std::fs::read_to_string(file).expect("the store's file");
    let mut events = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("whole lines");
        assert_eq!(line["stream"], stream.to_string());
        assert_eq!(line["after"], events.len(), "{line}");
        for entry in line["entries"].as_array().expect("entries") {
            let field = |number: usize| entry[number].clone();
            assert_eq!(field(1), TOPIC);
            let payload = field(2).as_str().expect("text").to_owned();
            events.push((field(0).as_u64().expect("a sequence"), payload));
        }
        assert_eq!(line["through"], events.len(), "{line}");
    }
    events
}

#[test]
fn python_stores_what_rust_publishes_and_resumes_behind_what_it_stored() {
    with_python(stores());
}

async fn stores() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, file) = (directory.path().join("bus.sock"), directory.path().join("store"));
    let bind = || {
        let mut options = BrokerOptions::new(&socket);
        options.required_consumers = vec!["python".to_owned()];
        // Small: what is delivered ahead of the commits must not be all there is.
        options.in_flight_bytes = 2000;
        Broker::bind(options)
    };
    let broker = bind().await.expect("a broker");
    let (log, _) =
        WriteAheadLog::open(&directory.path().join("wal"), WalOptions::default()).expect("a log");
    let stream = log.stream();
    let options = ConnectorOptions {
        socket: socket.clone(),
        client: ClientOptions::new("rust", Role::Collector),
        window_bytes_max: ConnectorOptions::WINDOW_BYTES_MAX,
        topic_of: |_| TOPIC.parse().expect("a topic"),
    };
    let (connector, _signals) = EventBusConnector::start(log, options);
    // In groups: what comes at once may come in one delivery.
    let mut logged = 0_u64;
    let mut log_until = async |last: u64| {
        while logged < last {
            for _ in 0..20 {
                logged += 1;
                let payload = Bytes::from(format!("event {logged}"));
                connector.submit(1, 0, payload).expect("the log takes it");
            }
            connector.log().flush().await.expect("it is durable");
        }
    };

    let durable_ready = |count: &str| {
        let (socket, file) = (text(&socket), text(&file));
        let python = Python::start(&["durable", socket, "python", file, count, "events.#"]);
        python.says("ready");
        python
    };
    // It ends well, and was delivered what follows from what it had, however much was committed.
    let end = |python: Python, have: usize| {
        let said = python.finish();
        assert_eq!(said, [serde_json::json!({ "have": have, "after": have })]);
    };
    let python = durable_ready("100");
    log_until(300).await;
    end(python, 0);
    let first = stored(&file, stream).len() as u64;
    assert!((100..=300).contains(&first), "{first}");

    // Killed while it stores.
    let python = durable_ready("1000");
    log_until(400).await;
    until("it has stored more", || stored_until(&file) > first);
    log_until(600).await;
    python.kill();
    drop_half_a_line(&file);
    assert!(stored(&file, stream).len() as u64 > first);

    // And the broker: what it remembered is gone, what the client stored is not.
    drop(broker);
    until("the socket is free", || !socket.exists());
    let broker = bind().await.expect("another broker");
    log_until(800).await;
    let have = stored(&file, stream).len();
    end(durable_ready(&(800 - have).to_string()), have);
    // Only to say what it has.
    assert_eq!(durable_ready("0").finish(), [] as [Value; 0]);

    let events = stored(&file, stream);
    assert_eq!(events.len(), 800);
    for (event, number) in events.into_iter().zip(1..) {
        assert_eq!(event, (number, format!("event {number}")));
    }
    let drained = connector.shutdown(Duration::from_secs(20)).await.expect("the log is well");
    assert!(drained.delivered, "the last commit was acknowledged: {drained:?}");
    broker.shutdown(Duration::from_secs(5)).await;
}

/// The last position in the file, while its last line may be half written.
fn stored_until(file: &Path) -> u64 {
    let text = std::fs::read_to_string(file).expect("the store's file");
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.next_back().and_then(|line| line["through"].as_u64()).unwrap_or(0)
}

/// A kill may leave half of the last line.
fn drop_half_a_line(file: &Path) {
    let text = std::fs::read_to_string(file).expect("the store's file");
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    std::fs::write(file, &text[..whole]).expect("the store's file");
}

#[test]
fn python_asks_and_answers_and_pings() {
    with_python(asks_and_answers());
}

async fn asks_and_answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::bind(BrokerOptions::new(directory.path().join("bus.sock")))
        .await
        .expect("a broker");
    let socket = text(broker.socket());
    assert_eq!(Python::start(&["ping", socket]).says("pong"), true);

    const STATUS: &str = "control.health.status";
    let ask = || Python::start(&["request", socket, STATUS, "how are you?"]);
    let nobody = ask().next().expect("an answer");
    assert_eq!((&nobody["ended"], &nobody["code"]), (&"Refused".into(), &1.into()));

    let agent = broker.connect_in_process(ClientOptions::new("agent", Role::Agent));
    let agent = agent.await.expect("the agent's connection");
    let status: Topic = STATUS.parse().expect("a topic");
    let patterns = [STATUS.parse().expect("a pattern")];
    let mut questions =
        agent.subscribe(&patterns, LiveOptions::default()).await.expect("a subscription");
    let python = ask();
    match questions.next().await {
        Some(LiveItem::Message(question)) => {
            assert_eq!((&question.topic, &question.payload[..]), (&status, &b"how are you?"[..]));
            agent.reply(&question, "well".into()).await.expect("it is sent");
        }
        other => panic!("a question, not {other:?}"),
    }
    assert_eq!(python.says("answer"), "well");

    let topic = "control.collector.python";
    let python = Python::start(&["answer", socket, "python", topic]);
    python.says("ready");
    let topic: Topic = topic.parse().expect("a topic");
    let answer = agent.request(&topic, "echo".into(), Duration::from_secs(30)).await;
    assert_eq!(answer.expect("an answer"), "echo");
    assert_eq!(python.says("asked"), "echo");
    broker.shutdown(Duration::from_secs(5)).await;
}
