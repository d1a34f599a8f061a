//! The durable path of the bus's bench (`daemoneye-eventbus/benches/bus/durable.rs`): the roles that
//! need procmond's log or the agent's store.
//!
//! `durable-bus log <directory> <events>` appends; `durable-bus collector <directory> <events>
//! <socket>` appends and delivers; both print when they begin and when all is durable, or committed,
//! in nanoseconds since 1970. `durable-bus memory|sqlite <directory> <events> <socket>` is the broker
//! with a consumer that commits at once, or when SQLite has it on the disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use daemoneye_agent::store::Store;
use daemoneye_eventbus::{
    Broker, BrokerOptions, ClientOptions, Committed, DurableSubscription, Role, Topic, TopicPattern,
};
use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{
    Completeness, KeyPrecision, ProcessEvent, ProcessEventKind, ProcessKey, SourceName,
};
use daemoneye_lib::redaction::RawArgv;
use daemoneye_lib::stream::{Sequence, wall_clock_ns};
use daemoneye_lib::topics;
use procmond::event_bus_connector::{ConnectorOptions, EventBusConnector};
use procmond::wal::{NewRecord, WalError, WalOptions, WriteAheadLog};

/// The size of an encoded event.
const EVENT_BYTES: usize = 400;
/// Records submitted to the log at once, and how many may wait for the disk.
const BATCH: usize = 512;
const AHEAD: u64 = 4096;
const CONSUMER: &str = "store";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("missing: {what}"));
    let role = next("role");
    let directory = PathBuf::from(next("directory"));
    let events: u64 = next("events").parse().expect("a number of events");
    if role == "log" {
        return append(&directory, events).await;
    }
    let socket = PathBuf::from(next("socket"));
    match role.as_str() {
        "collector" => collect(&directory, socket, events).await,
        "memory" => commit_in_memory(attach(socket, vec![]).await).await,
        "sqlite" => store(&directory, socket).await,
        other => panic!("no such role: {other}"),
    }
}

fn open_log(directory: &Path) -> WriteAheadLog {
    let (log, _) =
        WriteAheadLog::open(&directory.join("wal"), WalOptions::default()).expect("a new log");
    log
}

/// A process that began, with a long command line.
fn event() -> Event {
    let of_length = |bytes: usize| {
        let argument = "a".repeat(bytes);
        Event::from(ProcessEvent {
            kind: ProcessEventKind::Start { existing: false },
            key: ProcessKey {
                boot_id: "3f2a9c1e-0000-4000-8000-000000000000".parse().expect("an id"),
                pid: 4711,
                start_centis: 123_456,
                generation: 0,
            },
            key_precision: KeyPrecision::Second,
            ppid: Some(1),
            parent_key: None,
            name: Some(ByteString::from("cc1plus")),
            exe: Some(ByteString::from("/usr/lib/gcc/x86_64-linux-gnu/12/cc1plus")),
            exe_deleted: Some(false),
            argv: Some(RawArgv::from_args(["cc1plus", "-O2", "-quiet", &argument]).redact()),
            cwd: Some(ByteString::from("/home/somebody/project")),
            uid: Some(501),
            euid: Some(501),
            gid: Some(20),
            egid: Some(20),
            login_uid: Some(501),
            session: Some(3),
            cgroup: None,
            container_id: None,
            namespaces: None,
            start_time_ns: Some(wall_clock_ns()),
            time_ns: wall_clock_ns(),
            monotonic_ns: Some(1_234_560_000_000),
            source: SourceName::Poll,
            completeness: Completeness::Complete,
            inferred: false,
            capabilities: None,
            exe_sha256: None,
        })
    };
    let rest = EVENT_BYTES.saturating_sub(of_length(0).encode().len());
    of_length(rest)
}

// ---- the log's side

async fn append(directory: &Path, events: u64) {
    let log = open_log(directory);
    let event = event();
    let (payload, kind) = (event.encode(), event.kind().as_u8());
    let record = NewRecord { kind, timestamp_ns: event.time_ns(), payload: &payload };
    println!("{}", wall_clock_ns());
    let mut submitted = 0;
    while submitted < events {
        let batch = BATCH.min((events - submitted) as usize);
        match log.submit_all(&vec![record; batch]) {
            Ok(_) => submitted += batch as u64,
            Err(WalError::Busy) => log.room().await,
            Err(error) => panic!("the log refuses: {error}"),
        }
        if let Some(durable) = submitted.checked_sub(AHEAD).filter(|durable| *durable > 0) {
            log.durable(Sequence(durable)).await.expect("the disk takes it");
            log.acknowledge(Sequence(durable)).expect("the log is open");
        }
    }
    log.flush().await.expect("the disk takes it");
    println!("{}", wall_clock_ns());
}

async fn collect(directory: &Path, socket: PathBuf, events: u64) {
    let options = ConnectorOptions {
        socket,
        client: ClientOptions::new("collector", Role::Collector),
        window_bytes_max: ConnectorOptions::WINDOW_BYTES_MAX,
        topic_of: |_| Topic::new(topics::PROCESS_START).expect("a topic"),
    };
    let (connector, _signals) = EventBusConnector::start(open_log(directory), options);
    let event = event();
    let (payload, kind) = (Bytes::from(event.encode()), event.kind().as_u8());
    let mut session = connector.client();
    session.wait_for(Option::is_some).await.expect("the connector runs");
    println!("{}", wall_clock_ns());
    let mut submitted = 0;
    while submitted < events {
        match connector.submit(kind, event.time_ns(), payload.clone()) {
            Ok(Sequence(sequence)) => submitted = sequence,
            Err(WalError::Busy) => connector.log().room().await,
            Err(error) => panic!("the log refuses: {error}"),
        }
        if submitted % BATCH as u64 == 0 {
            // What is far ahead of the commits would be read back from the disk.
            while submitted.saturating_sub(connector.log().watermark().0) > 4 * AHEAD {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::task::yield_now().await;
        }
    }
    connector.log().flush().await.expect("the disk takes it");
    while connector.log().watermark() < Sequence(events) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("{}", wall_clock_ns());
}

// ---- the consumer's side

async fn attach(
    socket: PathBuf,
    positions: Vec<(daemoneye_lib::stream::StreamId, Committed)>,
) -> (Broker, DurableSubscription) {
    let mut options = BrokerOptions::new(socket);
    options.required_consumers = vec![CONSUMER.to_owned()];
    let broker = Broker::bind(options).await.expect("a free socket");
    let client = ClientOptions::new("agent", Role::Agent);
    let client = broker.connect_in_process(client).await.expect("the broker is there");
    let patterns: [TopicPattern; 1] = ["events.#".parse().expect("a pattern")];
    let subscription =
        client.subscribe_durable(CONSUMER, &patterns, positions).await.expect("a subscription");
    println!("ready");
    (broker, subscription)
}

async fn commit_in_memory((_broker, mut subscription): (Broker, DurableSubscription)) {
    while let Some(delivery) = subscription.next().await {
        subscription
            .commit(delivery.stream, delivery.through, delivery.epoch)
            .expect("the broker is there");
    }
}

async fn store(directory: &Path, socket: PathBuf) {
    let mut store = Store::open(&directory.join("events.db")).expect("a new store");
    let handle = store.handle();
    let (_broker, mut subscription) = attach(socket, vec![]).await;
    loop {
        tokio::select! {
            Some(commit) = store.committed() => {
                let Committed { sequence, epoch } = commit.committed;
                subscription.commit(commit.stream, sequence, epoch).expect("the broker is there");
            }
            queued = async {
                let slot = handle.slot().await.ok()?;
                slot.store(subscription.next().await?);
                Some(())
            } => queued.expect("the broker and the store are there"),
        }
    }
}
