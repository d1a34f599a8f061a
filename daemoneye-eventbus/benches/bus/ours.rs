//! Ours.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::*;

use crate::load::{CHUNK_BYTES, Load, PAYLOAD_BYTES, Received, TICK, TOPIC, stamp, summary};
use crate::process::{say, say_now};

pub(crate) async fn broker(socket: &Path, load: Load) {
    let mut options = BrokerOptions::new(socket);
    if !load.bounded {
        options.queue_bytes_max = usize::MAX;
    }
    let _broker = Broker::bind(options).await.expect("a free socket");
    say("ready");
    std::future::pending::<()>().await;
}

pub(crate) async fn subscriber(socket: &Path, load: Load, name: &str) {
    let mut tasks = Vec::new();
    for number in 0..load.subscribers {
        let options = ClientOptions::new(format!("{name}-{number}"), Role::Subscriber);
        let client = Client::connect(socket, options).await.expect("the broker is there");
        let patterns = ["events.process.*".parse().expect("a pattern")];
        let queue = if load.bounded {
            LiveOptions::default()
        } else {
            LiveOptions { max_bytes: u32::MAX, max_count: u32::MAX }
        };
        let live = client.subscribe(&patterns, queue).await.expect("a subscription");
        tasks.push(tokio::spawn(receive(live, load)));
    }
    say("ready");
    let mut received = Vec::new();
    for task in tasks {
        received.push(task.await.expect("every message"));
    }
    say(summary(received));
}

async fn receive(mut live: LiveSubscription, load: Load) -> Received {
    let mut received = Received::new(load);
    while !received.all() {
        match live.next_batch().await.expect("the broker is there") {
            LiveBatch::Events(events) => {
                for event in events.iter() {
                    received.message(event.payload);
                    assert_eq!(event.sequence.0, received.count);
                }
            }
            LiveBatch::Missed { count } if load.bounded => received.count += count,
            other => panic!("only events: {other:?}"),
        }
    }
    received
}

pub(crate) async fn publisher(socket: &Path, load: Load, name: &str) {
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let position = Position { stream, epoch, first_unacknowledged: Sequence(1), last: Sequence(0) };
    let options = ClientOptions::new(name, Role::Collector);
    let (client, publisher) =
        Client::connect_publisher(socket, options, position).await.expect("the broker is there");
    let topic = if name == "flood" { "events.filesystem.write" } else { TOPIC };
    let batch =
        Batch { stream, epoch, after: Sequence(0), entries: Vec::new(), through: Sequence(0) };
    let entry = Entry {
        topic: topic.parse().expect("a topic"),
        sequence: Sequence(0),
        span: 1,
        timestamp_ns: 0,
        payload: Bytes::from(vec![b'x'; PAYLOAD_BYTES]),
    };
    let mut publishing = Publishing { publisher, load, entry, batch, acked: 0 };
    say_now();
    if load.rate > 0 {
        publishing.paced().await;
    } else {
        publishing.windowed().await;
    }
    say_now();
    drop(client);
}

struct Publishing {
    publisher: Publisher,
    load: Load,
    entry: Entry,
    batch: Batch,
    acked: u64,
}

impl Publishing {
    fn sent(&self) -> u64 {
        self.batch.through.0
    }

    async fn publish(&mut self, count: u64) {
        let sent = self.sent();
        let Self { batch, load, entry, .. } = self;
        // The same entries again, as the relay's publisher has its message ready.
        batch.entries.resize(count as usize, entry.clone());
        for (entry, sequence) in batch.entries.iter_mut().zip(sent + 1..) {
            entry.sequence = Sequence(sequence);
            if load.rate > 0 {
                let mut stamped = vec![b'x'; PAYLOAD_BYTES];
                stamp(&mut stamped, load);
                entry.payload = stamped.into();
            }
        }
        batch.after = Sequence(sent);
        batch.through = Sequence(sent + count);
        self.publisher.publish(&self.batch).await.expect("the broker is there");
    }

    async fn windowed(&mut self) {
        let load = self.load;
        let batch_max = (CHUNK_BYTES / PAYLOAD_BYTES) as u64;
        while self.acked < load.messages {
            let sent = self.sent();
            let room = (load.window - (sent - self.acked)).min(load.messages - sent).min(batch_max);
            if room > 0 {
                self.publish(room).await;
            }
            // Waits only when there is nothing else to do.
            let full = self.sent() - self.acked == load.window || self.sent() == load.messages;
            tokio::select! {
                biased;
                ack = self.publisher.acked() => {
                    self.acked = ack.expect("the broker is there").sequence.0;
                }
                () = tokio::task::yield_now(), if !full => {}
            }
        }
    }

    async fn paced(&mut self) {
        let began = tokio::time::Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        while self.sent() < self.load.messages {
            ticks.tick().await;
            let due = self.load.due(began.elapsed()) - self.sent();
            if due > 0 {
                self.publish(due).await;
            }
        }
        while self.acked < self.load.messages {
            let acked = tokio::time::timeout(Duration::from_secs(10), self.publisher.acked());
            self.acked = acked.await.expect("an ack").expect("the broker is there").sequence.0;
        }
    }
}
