//! Publishing with acknowledgement through the broker, against a bare relay on the same kind of
//! socket.
//!
//! `cargo bench -p daemoneye-eventbus --bench bus [-- --json] [-- --quick]`
//!
//! Every role is a process of its own (this program again, with a role's name) on one tokio
//! thread; payloads are 400 bytes. The relay is the least a broker can do: it passes whole read
//! chunks on to every subscriber, and counts and acknowledges messages, without topics, sequences
//! or bounds for slow readers. A run ends when the publisher has its last acknowledgement *and*
//! every subscriber has every message, so that nothing is won by letting queues grow. Ours and the
//! relay take turns; the figures are medians over the rounds.

mod relay;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use daemoneye_eventbus::*;

pub(crate) const PAYLOAD_BYTES: usize = 400;
/// What one write of a publisher holds at most.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

struct Row {
    name: &'static str,
    window: u64,
    subscribers: u64,
    messages: u64,
}

const ROWS: [Row; 4] = [
    Row { name: "ack_window_1", window: 1, subscribers: 1, messages: 20_000 },
    Row { name: "ack_window_64", window: 64, subscribers: 1, messages: 400_000 },
    Row { name: "ack_window_1024", window: 1024, subscribers: 1, messages: 1_000_000 },
    Row { name: "fanout_8", window: 1024, subscribers: 8, messages: 300_000 },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if let [role, socket, window, subscribers, messages] = &arguments[..] {
        let number = |text: &str| text.parse().expect("a number");
        let load = Load {
            window: number(window),
            subscribers: number(subscribers),
            messages: number(messages),
        };
        play(role, Path::new(socket), load);
        return;
    }
    let rounds = if has("--quick") { 3 } else { 9 };
    if !has("--json") {
        println!("messages/s, {PAYLOAD_BYTES} bytes each, medians of {rounds} rounds");
        println!("{:<16} {:>12} {:>12} {:>7}", "row", "ours", "relay", "ratio");
    }
    for row in ROWS {
        let (mut ours, mut limit) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            limit.push(run("relay", &row));
            ours.push(run("bus", &row));
        }
        let (ours, limit) = (median(ours), median(limit));
        let ratio = ours / limit;
        if has("--json") {
            println!(
                "{{\"row\":\"{}\",\"ours\":{ours:.0},\"limit\":{limit:.0},\
                 \"ratio_limit\":{ratio:.3},\"peer\":null,\"ratio_peer\":null}}",
                row.name
            );
        } else {
            println!("{:<16} {ours:>12.0} {limit:>12.0} {ratio:>7.2}", row.name);
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) window: u64,
    pub(crate) subscribers: u64,
    pub(crate) messages: u64,
}

// ---- the conductor

/// One run: messages per second from the first publish to the last ack and the last receipt.
fn run(kind: &str, row: &Row) -> f64 {
    let directory = tempfile::tempdir().expect("a directory for the socket");
    let socket = directory.path().join("bus.sock");
    let role = |name: &str| Process::start(&format!("{kind}-{name}"), &socket, row);
    let mut broker = role("broker");
    broker.line();
    let mut subscriber = role("subscriber");
    subscriber.line();
    let mut publisher = role("publisher");
    let started: f64 = publisher.line().parse().expect("a time");
    let acked: f64 = publisher.line().parse().expect("a time");
    let received: f64 = subscriber.line().parse().expect("a time");
    row.messages as f64 / (acked.max(received) - started)
}

/// A child process with a role; ended when dropped.
struct Process {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(name: &str, socket: &Path, row: &Row) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("our own path"))
            .arg(name)
            .arg(socket)
            .args([row.window, row.subscribers, row.messages].map(|number| number.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process for a role");
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line from a role");
        assert!(!line.is_empty(), "a role ended early");
        line.trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- the roles

pub(crate) fn say(line: impl std::fmt::Display) {
    println!("{line}");
    std::io::stdout().flush().expect("the conductor listens");
}

/// Seconds, the same for all processes.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn play(role: &str, socket: &Path, load: Load) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a tokio runtime");
    runtime.block_on(async {
        match role {
            "bus-broker" => broker(socket).await,
            "bus-subscriber" => subscriber(socket, load).await,
            "bus-publisher" => publisher(socket, load).await,
            "relay-broker" => relay::broker(socket).await,
            "relay-subscriber" => relay::subscriber(socket, load).await,
            "relay-publisher" => relay::publisher(socket, load).await,
            other => panic!("no such role: {other}"),
        }
    });
}

async fn broker(socket: &Path) {
    let _broker = Broker::bind(BrokerOptions::new(socket)).await.expect("a free socket");
    say("ready");
    tokio::time::sleep(Duration::from_secs(600)).await;
}

async fn subscriber(socket: &Path, load: Load) {
    let mut tasks = Vec::new();
    for number in 0..load.subscribers {
        let options = ClientOptions::new(format!("subscriber-{number}"), Role::Subscriber);
        let client = Client::connect(socket, options).await.expect("the broker is there");
        let patterns = ["events.process.*".parse().expect("a pattern")];
        let no_bound = LiveOptions { max_bytes: u32::MAX, max_count: u32::MAX };
        let mut live = client.subscribe(&patterns, no_bound).await.expect("a subscription");
        tasks.push(tokio::spawn(async move {
            let mut received = 0;
            while received < load.messages {
                match live.next_batch().await.expect("the broker is there") {
                    LiveBatch::Events(events) => {
                        for event in events.iter() {
                            received += 1;
                            assert_eq!(event.sequence.0, received);
                        }
                    }
                    other => panic!("only events: {other:?}"),
                }
            }
        }));
    }
    say("ready");
    for task in tasks {
        task.await.expect("every message");
    }
    say(now());
}

async fn publisher(socket: &Path, load: Load) {
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let position = Position { stream, epoch, first_unacknowledged: Sequence(1), last: Sequence(0) };
    let options = ClientOptions::new("publisher", Role::Collector);
    let (_client, mut publisher) =
        Client::connect_publisher(socket, options, position).await.expect("the broker is there");
    let topic: Topic = "events.process.start".parse().expect("a topic");
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let batch_max = (CHUNK_BYTES / PAYLOAD_BYTES) as u64;
    let (mut sent, mut acked) = (0, 0);
    let mut batch =
        Batch { stream, epoch, after: Sequence(0), entries: Vec::new(), through: Sequence(0) };
    say(now());
    while acked < load.messages {
        let room = (load.window - (sent - acked)).min(load.messages - sent).min(batch_max);
        if room > 0 {
            batch.entries.clear();
            batch.entries.extend((sent + 1..=sent + room).map(|sequence| Entry {
                topic: topic.clone(),
                sequence: Sequence(sequence),
                span: 1,
                timestamp_ns: 0,
                payload: payload.clone(),
            }));
            batch.after = Sequence(sent);
            sent += room;
            batch.through = Sequence(sent);
            publisher.publish(&batch).await.expect("the broker is there");
        }
        // Waits only when there is nothing else to do.
        let full = sent - acked == load.window || sent == load.messages;
        tokio::select! {
            biased;
            ack = publisher.acked() => acked = ack.expect("the broker is there").sequence.0,
            () = tokio::task::yield_now(), if !full => {}
        }
    }
    say(now());
}
