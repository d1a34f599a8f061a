//! A bus in a directory of its own, and peers for it.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::wire::{Frame, FrameDecoder, Hello, RawFrame};
use daemoneye_eventbus::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub(crate) const START: &str = "events.process.start";
pub(crate) const STOP: &str = "events.process.stop";

/// Waits for what must happen. The deadline is there to end a test that fails.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it happens in time")
}

/// Waits until `done` says so.
pub(crate) async fn until(mut done: impl FnMut() -> bool) {
    within(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

pub(crate) struct Bus {
    pub(crate) broker: Broker,
    pub(crate) directory: TempDir,
}

impl Bus {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut BrokerOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::again(directory, change).await
    }

    /// A broker where there was one before.
    pub(crate) async fn again(directory: TempDir, change: impl FnOnce(&mut BrokerOptions)) -> Self {
        let mut options = BrokerOptions::new(directory.path().join("bus.sock"));
        change(&mut options);
        let broker = Broker::bind(options).await.unwrap();
        Self { broker, directory }
    }

    /// Ends the broker without a word, as a kill does.
    pub(crate) async fn kill(self) -> TempDir {
        let socket = self.socket();
        drop(self.broker);
        until(|| !socket.exists()).await;
        self.directory
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.broker.socket().to_owned()
    }

    pub(crate) async fn client(&self, role: Role, id: &str) -> Client {
        within(Client::connect(&self.socket(), ClientOptions::new(id, role))).await.unwrap()
    }

    pub(crate) async fn subscriber(&self, id: &str) -> Client {
        self.client(Role::Subscriber, id).await
    }

    pub(crate) async fn live(&self, id: &str, pattern: &str) -> LiveSubscription {
        let patterns = [pattern.parse().unwrap()];
        let client = self.subscriber(id).await;
        within(client.subscribe(&patterns, LiveOptions::default())).await.unwrap()
    }

    pub(crate) async fn durable(
        &self,
        name: &str,
        pattern: &str,
        positions: Vec<(StreamId, Committed)>,
    ) -> DurableSubscription {
        let patterns = [pattern.parse().unwrap()];
        let client = self.subscriber(name).await;
        within(client.subscribe_durable(name, &patterns, positions)).await.unwrap()
    }

    pub(crate) async fn writer(&self, log: Log) -> Writer {
        within(self.try_writer(log)).await.unwrap()
    }

    pub(crate) async fn try_writer(&self, log: Log) -> Result<Writer, ConnectError> {
        let options = ClientOptions::new("procmond", Role::Collector);
        let position = log.position();
        let (client, publisher) =
            Client::connect_publisher(&self.socket(), options, position).await?;
        Ok(Writer { log, client, publisher })
    }
}

/// The publisher's side of the truth.
#[derive(Clone, Copy)]
pub(crate) struct Log {
    pub(crate) stream: StreamId,
    pub(crate) epoch: Epoch,
    pub(crate) last: u64,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { stream: StreamId::random(), epoch: Epoch::first(), last: 0 }
    }

    /// Nothing is acknowledged yet.
    pub(crate) fn position(&self) -> Position {
        Position {
            stream: self.stream,
            epoch: self.epoch,
            first_unacknowledged: Sequence(1),
            last: Sequence(self.last),
        }
    }

    pub(crate) fn entry(sequence: u64, topic: &str) -> Entry {
        Entry {
            topic: topic.parse().unwrap(),
            sequence: Sequence(sequence),
            span: 1,
            timestamp_ns: sequence as i64 * 1000,
            payload: Bytes::from(format!("event {sequence}")),
        }
    }

    pub(crate) fn batch(&self, after: u64, count: u64, topic: &str) -> Batch {
        let entries = (after + 1..=after + count).map(|s| Self::entry(s, topic)).collect();
        Batch {
            stream: self.stream,
            epoch: self.epoch,
            after: Sequence(after),
            entries,
            through: Sequence(after + count),
        }
    }

    pub(crate) fn at(&self, sequence: u64) -> (StreamId, Committed) {
        (self.stream, Committed { sequence: Sequence(sequence), epoch: self.epoch })
    }
}

pub(crate) struct Writer {
    pub(crate) log: Log,
    pub(crate) client: Client,
    pub(crate) publisher: Publisher,
}

impl Writer {
    /// Publishes `count` new events in one batch.
    pub(crate) async fn publish(&mut self, count: u64) {
        self.publish_on(count, START).await;
    }

    pub(crate) async fn publish_on(&mut self, count: u64, topic: &str) {
        let batch = self.log.batch(self.log.last, count, topic);
        within(self.publisher.publish(&batch)).await.unwrap();
        self.log.last += count;
    }

    /// Waits for an acknowledgement that reaches `sequence`.
    pub(crate) async fn acked(&mut self, sequence: u64) -> Ack {
        within(async {
            loop {
                let ack = self.publisher.acked().await.unwrap();
                assert!(ack.sequence.0 <= sequence, "{ack:?} is beyond {sequence}");
                if ack.sequence.0 == sequence {
                    return ack;
                }
            }
        })
        .await
    }
}

/// The next `count` events of a live subscription: their sequences.
pub(crate) async fn events(live: &mut LiveSubscription, count: usize) -> Vec<u64> {
    let mut sequences = Vec::new();
    while sequences.len() < count {
        match within(live.next()).await.expect("the subscription stands") {
            LiveItem::Event(event) => {
                assert_eq!(event.payload, format!("event {}", event.origin.sequence));
                sequences.push(event.origin.sequence.0);
            }
            other => panic!("an event, not {other:?}"),
        }
    }
    sequences
}

/// Deliveries until `through` is covered: the sequences they held. Nothing is committed.
pub(crate) async fn deliveries(durable: &mut DurableSubscription, through: u64) -> Vec<u64> {
    let mut sequences = Vec::new();
    loop {
        let delivery = within(durable.next()).await.expect("the subscription stands");
        sequences.extend(delivery.entries.iter().map(|entry| entry.sequence.0));
        if delivery.through.0 >= through {
            return sequences;
        }
    }
}

/// A peer that speaks frames by hand.
pub(crate) struct RawPeer {
    pub(crate) stream: UnixStream,
    pub(crate) decoder: FrameDecoder,
}

impl RawPeer {
    pub(crate) async fn connect(bus: &Bus) -> Self {
        let stream = UnixStream::connect(bus.socket()).await.unwrap();
        Self { stream, decoder: FrameDecoder::new(1 << 24) }
    }

    pub(crate) async fn hello(bus: &Bus, role: Role, id: &str) -> Self {
        let mut peer = Self::connect(bus).await;
        peer.say_hello(role, id, None).await;
        assert!(matches!(peer.next().await, Some(Frame::Welcome(_))));
        peer
    }

    pub(crate) async fn say_hello(&mut self, role: Role, id: &str, position: Option<Position>) {
        let client_id = id.to_owned();
        let hello = Hello { version_min: 1, version_max: 1, role, client_id, position };
        self.send(&Frame::Hello(hello)).await;
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        let mut bytes = bytes::BytesMut::new();
        frame.encode(&mut bytes);
        within(self.stream.write_all(&bytes)).await.unwrap();
    }

    /// The next frame but pings; `None` when the broker has closed.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some(raw) = self.decoder.next_frame().unwrap() {
                let raw: RawFrame = raw;
                match Frame::decode(raw).unwrap().unwrap() {
                    Frame::Ping { .. } => {}
                    frame => return Some(frame),
                }
            }
            match within(self.stream.read_buf(self.decoder.buffer())).await {
                Ok(1..) => {}
                _ => return None,
            }
        }
    }
}
