//! The three that keep to the protocol, and what they know to be true.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use daemoneye_eventbus::fuzzing::{Connection, Decisions};
use daemoneye_eventbus::wire::{
    ENTRY_HEADER_BYTES, Entries, Frame, FrameDecoder, Hello, Publish, SubscribeFrame,
    SubscribeKind, VERSION, append_entry,
};
use daemoneye_eventbus::{
    AckLevel, BrokerOptions, Committed, Epoch, GoodbyeCode, Position, Role, Sequence, StreamId,
};

/// The durable consumers.
pub const STORES: [&str; 2] = ["store", "forwarder"];
const TOPICS: [&str; 2] = ["events.good.a", "events.good.b"];

/// The publisher's log.
pub struct Truth {
    stream: StreamId,
    /// The openings, each with the sequence before its first record.
    epochs: Vec<(u64, Epoch)>,
    last: u64,
    /// Committed, by consumer.
    stored: [u64; STORES.len()],
}

impl Truth {
    /// The stream's name follows from all of the data, so that strangers do not find it in there.
    pub fn new(data: &[u8]) -> Self {
        let salt = u64::from(crc32fast::hash(data)) << 32 | data.len() as u64;
        let half = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        let stream = StreamId::from_bytes(std::array::from_fn(|at| half[at % 8] ^ at as u8));
        Self {
            stream,
            epochs: vec![(0, Epoch::from_u64(1 << 32))],
            last: 0,
            stored: [0; STORES.len()],
        }
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    /// What may be acknowledged.
    fn committed(&self) -> u64 {
        self.stored.into_iter().min().unwrap_or_default()
    }

    /// The log is opened again.
    pub fn reopen(&mut self) {
        let epoch = Epoch::from_u64((self.epochs.len() as u64 + 1) << 32);
        self.epochs.push((self.last, epoch));
    }

    fn epoch(&self) -> Epoch {
        self.epochs.last().expect("it is open").1
    }

    fn epoch_of(&self, sequence: u64) -> Epoch {
        let before = self.epochs.partition_point(|(after, _)| *after < sequence);
        self.epochs[before.saturating_sub(1)].1
    }

    fn payload(sequence: u64) -> Vec<u8> {
        vec![sequence as u8; (sequence % 7) as usize * 20]
    }

    fn entry_bytes(sequence: u64) -> u64 {
        (ENTRY_HEADER_BYTES + Self::payload(sequence).len()) as u64
    }

    fn topic(sequence: u64) -> u16 {
        sequence.is_multiple_of(3).into()
    }
}

/// A connection and what the broker has said on it.
struct Link {
    connection: Connection,
    decoder: FrameDecoder,
    topics: HashMap<u16, String>,
}

impl Link {
    fn new(bus: &mut Decisions, role: Role, id: &str, position: Option<Position>) -> Self {
        let connection = bus.connect(false);
        let decoder = FrameDecoder::new(1 << 20);
        let mut link = Self { connection, decoder, topics: HashMap::new() };
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            role,
            client_id: id.to_owned(),
            position,
        };
        link.send(bus, &Frame::Hello(hello));
        link
    }

    fn send(&mut self, bus: &mut Decisions, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        bus.receive(&mut self.connection, &bytes);
        assert!(self.connection.is_open(), "{frame:?} was refused");
    }

    /// Everything that waits, but the declarations.
    fn frames(&mut self, bus: &mut Decisions) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let (pieces, goes_on) = bus.output(&mut self.connection);
            let done = pieces.is_empty();
            for piece in pieces {
                self.decoder.buffer().extend_from_slice(&piece);
            }
            while let Some(raw) = self.decoder.next_frame().expect("the broker's frames") {
                match Frame::decode(raw).expect("the broker's frames").expect("of known kinds") {
                    Frame::Declare { alias, topic } => {
                        self.topics.insert(alias, topic.to_string());
                    }
                    frame => frames.push(frame),
                }
            }
            if done || !goes_on {
                assert!(!self.decoder.is_mid_frame());
                return frames;
            }
        }
    }

    fn hears_goodbye(mut self, bus: &mut Decisions) {
        let last = self.frames(bus).pop();
        assert!(matches!(last, Some(Frame::Goodbye { code: GoodbyeCode::Shutdown, .. })));
        bus.disconnect(&self.connection);
    }

    /// The entries of a Deliver: sequence and payload, with the topic checked.
    fn entries(&self, entries: &Bytes) -> Vec<u64> {
        let entry = |entry: Result<_, _>| {
            let (header, payload): (daemoneye_eventbus::wire::EntryHeader, &[u8]) =
                entry.expect("whole entries");
            let sequence = header.sequence.0;
            assert_eq!(payload, Truth::payload(sequence));
            let topic = &self.topics[&header.alias];
            assert_eq!(topic, TOPICS[usize::from(Truth::topic(sequence))]);
            sequence
        };
        Entries::new(entries).map(entry).collect()
    }
}

pub struct Publisher {
    link: Link,
    sent: u64,
    acked: u64,
}

impl Publisher {
    pub fn connect(bus: &mut Decisions, truth: &Truth, acked: u64) -> Self {
        let position = Position {
            stream: truth.stream,
            epoch: truth.epoch(),
            first_unacknowledged: Sequence(acked + 1),
            last: Sequence(truth.last),
        };
        let mut link = Link::new(bus, Role::Collector, "procmond", Some(position));
        let mut frames = link.frames(bus).into_iter();
        let Some(Frame::Welcome(welcome)) = frames.next() else { panic!("it is not let in") };
        for position in &welcome.positions {
            assert!(position.sequence.0 <= truth.last, "{position:?} is beyond the log");
            assert_eq!(position.epoch, truth.epoch_of(position.sequence.0), "{position:?}");
        }
        let resume = welcome.committed.map_or(acked, |committed| committed.sequence.0);
        assert!(resume <= truth.committed(), "{resume}, of {:?} stored", truth.stored);
        for (alias, topic) in (0..).zip(TOPICS) {
            link.send(bus, &Frame::Declare { alias, topic: topic.parse().expect("a topic") });
        }
        Self { link, sent: resume, acked: acked.max(resume) }
    }

    pub fn acked(&self) -> u64 {
        self.acked
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Appends `count` records to the log and sends what the credit allows, in one batch.
    pub fn publish(
        &mut self,
        bus: &mut Decisions,
        truth: &mut Truth,
        count: usize,
        options: &BrokerOptions,
    ) {
        truth.last += count as u64;
        let mut in_flight: u64 = (self.acked + 1..=self.sent).map(Truth::entry_bytes).sum();
        let epoch = truth.epoch_of(self.sent + 1);
        let after = self.sent;
        let mut entries = BytesMut::new();
        while self.sent < truth.last && truth.epoch_of(self.sent + 1) == epoch {
            let next = self.sent + 1;
            in_flight += Truth::entry_bytes(next);
            if in_flight > options.credit_bytes {
                break;
            }
            let (topic, payload) = (Truth::topic(next), Truth::payload(next));
            append_entry(&mut entries, Sequence(next), 1, 0, topic, &payload);
            self.sent = next;
        }
        if self.sent > after {
            let publish = Publish {
                epoch,
                after: Sequence(after),
                through: Sequence(self.sent),
                count: (self.sent - after) as u32,
                entries,
            };
            self.link.send(bus, &Frame::Publish(publish));
        }
    }

    pub fn read(&mut self, bus: &mut Decisions, truth: &Truth) {
        for frame in self.link.frames(bus) {
            let Frame::Ack(ack) = frame else { panic!("{frame:?}") };
            assert!(self.acked <= ack.sequence.0, "{ack:?} goes back");
            assert!(ack.sequence.0 <= truth.committed(), "{ack:?}, of {:?} stored", truth.stored);
            assert_eq!(ack.level, AckLevel::Committed);
            self.acked = ack.sequence.0;
            // What was sent again may have been behind what is acknowledged.
            self.sent = self.sent.max(self.acked);
        }
    }

    pub fn leave(&mut self, bus: &mut Decisions) {
        bus.disconnect(&self.link.connection);
    }

    pub fn is_superseded(&mut self, bus: &mut Decisions) {
        let last = self.link.frames(bus).pop();
        assert!(matches!(last, Some(Frame::Goodbye { code: GoodbyeCode::Superseded, .. })));
        bus.disconnect(&self.link.connection);
    }

    pub fn hears_goodbye(self, bus: &mut Decisions) {
        self.link.hears_goodbye(bus);
    }
}

/// A durable consumer.
pub struct Store {
    link: Link,
    /// Which of [`STORES`].
    which: usize,
    committed: u64,
    /// The ends of what was delivered and is not committed.
    delivered: Vec<u64>,
}

impl Store {
    pub fn attach(bus: &mut Decisions, truth: &Truth, which: usize, names_position: bool) -> Self {
        let stored = truth.stored[which];
        let mut link = Link::new(bus, Role::Subscriber, "agent", None);
        let mut positions = Vec::new();
        if names_position && stored > 0 {
            let (sequence, epoch) = (Sequence(stored), truth.epoch_of(stored));
            positions.push((truth.stream, Committed { sequence, epoch }));
        }
        let subscribe = SubscribeFrame {
            subscription: 1,
            patterns: vec!["events.good.#".parse().expect("a pattern")],
            kind: SubscribeKind::Durable { name: STORES[which].to_owned(), positions },
        };
        link.send(bus, &Frame::Subscribe(subscribe));
        let mut store = Self { link, which, committed: stored, delivered: Vec::new() };
        let frames = store.link.frames(bus);
        assert!(matches!(frames[..2], [Frame::Welcome(_), Frame::Subscribed { .. }]), "{frames:?}");
        frames.into_iter().skip(2).for_each(|frame| store.take(truth, frame));
        store
    }

    pub fn committed(&self) -> u64 {
        self.committed
    }

    fn take(&mut self, truth: &Truth, frame: Frame) {
        let Frame::Deliver(deliver) = frame else { panic!("{frame:?}") };
        if deliver.stream != truth.stream {
            return;
        }
        let have = self.delivered.last().copied().unwrap_or(self.committed);
        assert_eq!(deliver.after.0, have, "it follows what was delivered");
        assert!(deliver.through.0 <= truth.last);
        assert_eq!(deliver.epoch, truth.epoch_of(deliver.through.0));
        let all: Vec<u64> = (have + 1..=deliver.through.0).collect();
        assert_eq!(self.link.entries(&deliver.entries), all);
        self.delivered.push(deliver.through.0);
    }

    pub fn read(&mut self, bus: &mut Decisions, truth: &Truth) {
        for frame in self.link.frames(bus) {
            self.take(truth, frame);
        }
    }

    /// Commits all that was delivered but the last `but` deliveries.
    pub fn commit(&mut self, bus: &mut Decisions, truth: &mut Truth, but: usize) {
        let count = self.delivered.len().saturating_sub(but);
        let Some(through) = self.delivered.drain(..count).next_back() else { return };
        (self.committed, truth.stored[self.which]) = (through, through);
        let position = Committed { sequence: Sequence(through), epoch: truth.epoch_of(through) };
        let stream = truth.stream;
        self.link.send(bus, &Frame::Commit { subscription: 1, stream, position });
    }

    pub fn leave(&mut self, bus: &mut Decisions) {
        bus.disconnect(&self.link.connection);
    }

    pub fn hears_goodbye(self, bus: &mut Decisions) {
        self.link.hears_goodbye(bus);
    }
}

/// The live subscriber; it wants one topic of the two.
pub struct LiveReader {
    link: Link,
    last: u64,
    seen: u64,
    missed: u64,
}

impl LiveReader {
    pub fn attach(bus: &mut Decisions) -> Self {
        let mut link = Link::new(bus, Role::Subscriber, "watch", None);
        link.send(
            bus,
            &Frame::Subscribe(SubscribeFrame {
                subscription: 1,
                patterns: vec!["events.*.a".parse().expect("a pattern")],
                kind: SubscribeKind::Live { bytes_max: 2000, count_max: 20 },
            }),
        );
        let frames = link.frames(bus);
        assert!(matches!(frames[..], [Frame::Welcome(_), Frame::Subscribed { .. }]), "{frames:?}");
        Self { link, last: 0, seen: 0, missed: 0 }
    }

    pub fn read(&mut self, bus: &mut Decisions, truth: &Truth) {
        for frame in self.link.frames(bus) {
            match frame {
                Frame::Missed { count, .. } => self.missed += count,
                Frame::Deliver(deliver) if deliver.stream == truth.stream => {
                    for sequence in self.link.entries(&deliver.entries) {
                        assert!(self.last < sequence, "{sequence} after {}", self.last);
                        assert_eq!(Truth::topic(sequence), 0, "it did not ask for {sequence}");
                        (self.last, self.seen) = (sequence, self.seen + 1);
                    }
                }
                Frame::Deliver(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Strangers may publish what it asked for, so that it may have missed more.
    pub fn has_seen_or_missed(&self, truth: &Truth) {
        let published = (1..=truth.last).filter(|&n| Truth::topic(n) == 0).count() as u64;
        let (seen, missed) = (self.seen, self.missed);
        assert!(seen + missed >= published, "{seen} seen and {missed} missed of {published}");
    }

    pub fn hears_goodbye(self, bus: &mut Decisions) {
        self.link.hears_goodbye(bus);
    }
}
