//! The broker's decisions, without sockets or time.

use bytes::{Bytes, BytesMut};
use daemoneye_lib::stream::{Epoch, Sequence};

mod look;

use super::*;
use crate::broker::ForgetError;
use crate::event::{AckLevel, Committed, Position, Role};
use crate::topic::Topic;
use crate::wire::{
    ALIASES_MAX, Entries, FrameDecoder, Hello, MESSAGE_BYTES_MAX, MessageFrame, Publish,
    SubscribeFrame, SubscribeKind, UndeliverableCode, append_entry,
};

struct Bus {
    core: Core,
}

fn limits() -> CoreLimits {
    CoreLimits {
        required_consumers: Vec::new(),
        credit_bytes: 1000,
        in_flight_bytes: 10_000,
        frame_bytes_max: 1 << 20,
        heartbeat_ms: 5000,
        subscriptions_max: 4,
        queue_bytes_max: 1 << 20,
        held_bytes_max: 1 << 30,
        request_rate: 1000,
        request_burst: 10_000,
        control_bytes_max: 4096,
    }
}

const EPOCH: Epoch = Epoch::from_u64(5 << 32 | 7);

fn stream() -> StreamId {
    StreamId::from_bytes([9; 16])
}

fn at(sequence: u64) -> Committed {
    Committed { sequence: Sequence(sequence), epoch: EPOCH }
}

fn topic(text: &str) -> Topic {
    Topic::new(text).unwrap()
}

/// A frame, shortened for comparing.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Ack(u64, AckLevel),
    /// after, through, sequences
    Deliver(u64, u64, Vec<u64>),
    Missed(u64),
    Refused(RefusalCode),
    Goodbye(GoodbyeCode),
    Message(String),
    Retained(String),
    Undeliverable(UndeliverableCode),
    Subscribed,
    Welcome(Option<u64>, Vec<u64>),
}

impl Bus {
    fn new(limits: CoreLimits) -> Self {
        Self { core: Core::new(limits) }
    }

    fn send(&mut self, id: ConnId, frame: &Frame) -> Flow {
        let mut decoder = FrameDecoder::new(1 << 20);
        frame.encode(decoder.buffer());
        let raw = decoder.next_frame().unwrap().unwrap();
        self.core.receive(id, raw)
    }

    fn seen(&mut self, id: ConnId) -> Vec<Seen> {
        let mut out = Output::default();
        self.core.take_output(id, &mut out);
        let mut decoder = FrameDecoder::new(1 << 20);
        for piece in out.pieces {
            decoder.buffer().extend_from_slice(&piece);
        }
        let mut seen = Vec::new();
        while let Some(raw) = decoder.next_frame().unwrap() {
            seen.push(match Frame::decode(raw).unwrap().unwrap() {
                Frame::Ack(ack) => Seen::Ack(ack.sequence.0, ack.level),
                Frame::Deliver(d) => Seen::Deliver(
                    d.after.0,
                    d.through.0,
                    Entries::new(&d.entries).map(|e| e.unwrap().0.sequence.0).collect(),
                ),
                Frame::Missed { count, .. } => Seen::Missed(count),
                Frame::Refused(r) => Seen::Refused(r.code),
                Frame::Goodbye { code, .. } => Seen::Goodbye(code),
                Frame::Message(m) if m.retained => Seen::Retained(m.topic.to_string()),
                Frame::Message(m) => Seen::Message(m.topic.to_string()),
                Frame::Undeliverable(u) => Seen::Undeliverable(u.code),
                Frame::Subscribed { .. } => Seen::Subscribed,
                Frame::Welcome(w) => Seen::Welcome(
                    w.committed.map(|c| c.sequence.0),
                    w.positions.iter().map(|p| p.sequence.0).collect(),
                ),
                Frame::Declare { .. } | Frame::Pong { .. } => continue,
                other => panic!("a broker sent {other:?}"),
            });
        }
        assert!(!decoder.is_mid_frame());
        seen
    }

    fn hello(&mut self, role: Role, client_id: &str, position: Option<Position>) -> ConnId {
        let id = self.core.connect(Arc::new(Notify::new()), None, role == Role::Agent);
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            role,
            client_id: client_id.to_owned(),
            position,
        };
        self.send(id, &Frame::Hello(hello));
        id
    }

    fn client(&mut self, role: Role, client_id: &str) -> ConnId {
        let id = self.hello(role, client_id, None);
        assert_eq!(self.seen(id), [Seen::Welcome(None, vec![])]);
        id
    }

    fn publisher_at(&mut self, epoch: Epoch, first: u64, last: u64) -> ConnId {
        self.hello(
            Role::Collector,
            "procmond",
            Some(Position {
                stream: stream(),
                epoch,
                first_unacknowledged: Sequence(first),
                last: Sequence(last),
            }),
        )
    }

    fn publisher(&mut self) -> ConnId {
        let id = self.publisher_at(EPOCH, 1, 0);
        assert!(matches!(self.seen(id)[..], [Seen::Welcome(..)]));
        self.declare(id);
        id
    }

    /// 0 is start, 1 is stop.
    fn declare(&mut self, id: ConnId) {
        for (alias, name) in [(0, "events.process.start"), (1, "events.process.stop")] {
            self.send(id, &Frame::Declare { alias, topic: topic(name) });
        }
    }

    fn publish_as(
        &mut self,
        id: ConnId,
        epoch: Epoch,
        after: u64,
        aliases: &[u16],
        payload: usize,
    ) -> Flow {
        let mut entries = BytesMut::new();
        for (n, alias) in aliases.iter().enumerate() {
            let sequence = Sequence(after + 1 + n as u64);
            append_entry(&mut entries, sequence, 1, 0, *alias, &vec![7; payload]);
        }
        let count = aliases.len() as u32;
        self.send(
            id,
            &Frame::Publish(Publish {
                epoch,
                after: Sequence(after),
                through: Sequence(after + u64::from(count)),
                count,
                entries,
            }),
        )
    }

    fn publish(&mut self, id: ConnId, after: u64, aliases: &[u16]) -> Flow {
        self.publish_as(id, EPOCH, after, aliases, 10)
    }

    fn subscribe(&mut self, id: ConnId, patterns: &[&str], kind: SubscribeKind) -> Vec<Seen> {
        let patterns = patterns.iter().map(|p| p.parse().unwrap()).collect();
        let frame = SubscribeFrame { subscription: 1, patterns, kind };
        self.send(id, &Frame::Subscribe(frame));
        self.seen(id)
    }

    fn live(&mut self, patterns: &[&str], count_max: u32) -> ConnId {
        let id = self.client(Role::Subscriber, "live");
        let kind = SubscribeKind::Live { bytes_max: 1 << 20, count_max };
        assert_eq!(self.subscribe(id, patterns, kind), [Seen::Subscribed]);
        id
    }

    fn durable(&mut self, name: &str, patterns: &[&str], position: Option<u64>) -> ConnId {
        let id = self.client(Role::Subscriber, name);
        let positions = position.map(|p| (stream(), at(p))).into_iter().collect();
        let kind = SubscribeKind::Durable { name: name.to_owned(), positions };
        assert_eq!(self.subscribe(id, patterns, kind)[0], Seen::Subscribed);
        id
    }

    fn commit(&mut self, id: ConnId, sequence: u64) -> Flow {
        let stream = stream();
        self.send(id, &Frame::Commit { subscription: 1, stream, position: at(sequence) })
    }
}

use AckLevel::{Accepted, Committed as All};

#[test]
fn without_durable_consumers_events_are_accepted_once_handed_out() {
    let mut bus = Bus::new(limits());
    let publisher = bus.publisher();
    let all = bus.live(&["#"], 100);
    let starts = bus.live(&["events.process.start"], 100);
    let nothing = bus.live(&["events.filesystem.*"], 100);
    bus.publish(publisher, 0, &[0, 1, 0]);
    assert_eq!(bus.seen(publisher), [Seen::Ack(3, Accepted)]);
    assert_eq!(bus.seen(all), [Seen::Deliver(0, 3, vec![1, 2, 3])]);
    assert_eq!(bus.seen(starts), [Seen::Deliver(0, 3, vec![1, 3])]);
    assert_eq!(bus.seen(nothing), []);
    assert_eq!(bus.core.stats().streams[0].retained_bytes, 0);
}

#[test]
fn a_topic_declared_after_the_subscription_reaches_it() {
    let mut bus = Bus::new(limits());
    let live = bus.live(&["events.process.*"], 100);
    let durable = bus.durable("store", &["events.#"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0, 1]);
    assert_eq!(bus.seen(live), [Seen::Deliver(0, 2, vec![1, 2])]);
    assert_eq!(bus.seen(durable), [Seen::Deliver(0, 2, vec![1, 2])]);
}

#[test]
fn acknowledged_is_what_every_durable_consumer_has_committed() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["events.#"], None);
    let forwarder = bus.durable("forwarder", &["events.process.*"], None);
    let elsewhere = bus.durable("files", &["events.filesystem.*"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0; 4]);
    assert_eq!(bus.seen(publisher), []);
    assert_eq!(bus.seen(store), [Seen::Deliver(0, 4, vec![1, 2, 3, 4])]);
    assert_eq!(bus.seen(forwarder), [Seen::Deliver(0, 4, vec![1, 2, 3, 4])]);
    assert_eq!(bus.seen(elsewhere), [], "a stream without a wanted topic is none of its business");
    bus.commit(store, 4);
    assert_eq!(bus.seen(publisher), []);
    bus.commit(forwarder, 2);
    assert_eq!(bus.seen(publisher), [Seen::Ack(2, All)]);
    assert_eq!(bus.core.stats().streams[0].retained_bytes, 2 * 42);
    bus.commit(forwarder, 1);
    assert_eq!(bus.seen(publisher), [], "a late commit moves nothing");
    bus.core.disconnect(forwarder);
    bus.publish(publisher, 4, &[0]);
    bus.seen(store);
    bus.commit(store, 5);
    assert_eq!(bus.seen(publisher), [], "a consumer that is away still holds what it has not got");
    let forwarder = bus.durable("forwarder", &["events.process.*"], None);
    assert_eq!(bus.seen(forwarder), []);
}

#[test]
fn a_consumer_that_returns_gets_again_what_it_had_not_committed() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["events.#"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0; 3]);
    bus.publish(publisher, 3, &[0; 2]);
    assert_eq!(bus.seen(store).len(), 2);
    bus.commit(store, 2);
    bus.core.disconnect(store);

    // It names what it has stored, which is what counts.
    let id = bus.client(Role::Subscriber, "store");
    let kind =
        SubscribeKind::Durable { name: "store".to_owned(), positions: vec![(stream(), at(4))] };
    assert_eq!(
        bus.subscribe(id, &["events.#"], kind),
        [Seen::Subscribed, Seen::Deliver(4, 5, vec![5])]
    );
    assert_eq!(bus.seen(publisher), [Seen::Ack(4, All)]);
    bus.core.disconnect(id);

    // It names nothing: what the broker remembers stands.
    let id = bus.client(Role::Subscriber, "store");
    let kind = SubscribeKind::Durable { name: "store".to_owned(), positions: vec![] };
    assert_eq!(
        bus.subscribe(id, &["events.#"], kind),
        [Seen::Subscribed, Seen::Deliver(4, 5, vec![5])]
    );
}

#[test]
fn a_consumer_has_one_member() {
    let mut bus = Bus::new(limits());
    bus.durable("store", &["#"], None);
    let second = bus.client(Role::Subscriber, "second");
    let kind = SubscribeKind::Durable { name: "store".to_owned(), positions: vec![] };
    assert_eq!(bus.subscribe(second, &["#"], kind), [Seen::Refused(RefusalCode::Occupied)]);
    assert_eq!(
        bus.send(second, &Frame::Ping { token: 1 }),
        Flow::Open,
        "only the subscription is refused"
    );
}

#[test]
fn events_of_no_interest_are_covered_so_that_they_can_be_committed() {
    let mut bus = Bus::new(limits());
    let stops = bus.durable("stops", &["events.process.stop"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0, 0]);
    bus.publish(publisher, 2, &[0]);
    bus.publish(publisher, 3, &[0, 1]);
    bus.publish(publisher, 5, &[0]);
    assert_eq!(
        bus.seen(stops),
        [Seen::Deliver(0, 3, vec![]), Seen::Deliver(3, 5, vec![5]), Seen::Deliver(5, 6, vec![]),]
    );
    bus.commit(stops, 6);
    assert_eq!(bus.seen(publisher), [Seen::Ack(6, All)]);
}

#[test]
fn a_stuck_durable_consumer_holds_acks_and_nothing_else() {
    let mut bus = Bus::new(CoreLimits { in_flight_bytes: 100, ..limits() });
    let stuck = bus.durable("stuck", &["#"], None);
    let live = bus.live(&["#"], 1000);
    let publisher = bus.publisher();
    for n in 0..10 {
        bus.publish(publisher, n, &[0]);
    }
    assert_eq!(bus.seen(live).len(), 10);
    // One delivery weighs 42 + 64 bytes: after the first no more until it commits.
    assert_eq!(bus.seen(stuck), [Seen::Deliver(0, 1, vec![1])]);
    assert_eq!(bus.seen(stuck), []);
    bus.commit(stuck, 1);
    assert_eq!(bus.seen(stuck), [Seen::Deliver(1, 2, vec![2])]);
    assert_eq!(bus.seen(publisher), [Seen::Ack(1, All)]);
}

#[test]
fn a_slow_live_subscriber_loses_its_oldest_and_is_told_how_many() {
    let mut bus = Bus::new(limits());
    let slow = bus.live(&["#"], 3);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0; 4]);
    bus.publish(publisher, 4, &[0; 4]);
    assert_eq!(bus.seen(slow), [Seen::Missed(5), Seen::Deliver(5, 8, vec![6, 7, 8])]);
    let stats = bus.core.stats();
    assert_eq!((stats.live[0].missed_total, stats.live[0].queued_events), (5, 0));
}

#[test]
fn duplicates_are_dropped_and_acknowledged_again() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["#"], None);
    let first = bus.publisher();
    bus.publish(first, 0, &[0; 3]);
    assert_eq!(bus.seen(store), [Seen::Deliver(0, 3, vec![1, 2, 3])]);
    bus.commit(store, 2);
    bus.core.disconnect(first);
    assert_eq!(bus.core.stats().streams[0].retained_bytes, 42, "held while the publisher is away");

    let second = bus.publisher_at(EPOCH, 1, 5);
    assert_eq!(bus.seen(second), [Seen::Welcome(Some(2), vec![2, 3])]);
    bus.declare(second);
    bus.publish(second, 1, &[0]);
    assert_eq!(bus.seen(second), [Seen::Ack(2, All)]);
    bus.publish(second, 2, &[0; 3]);
    assert_eq!(bus.seen(store), [Seen::Deliver(3, 5, vec![4, 5])]);
    bus.commit(store, 5);
    assert_eq!(bus.seen(second), [Seen::Ack(5, All)]);
    let stats = &bus.core.stats().streams[0];
    assert_eq!((stats.events_total, stats.duplicates_total), (5, 2));
}

#[test]
fn an_entry_standing_for_sequences_on_both_sides_of_what_was_received_is_shortened() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["#"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0; 3]);
    bus.seen(store);
    let mut entries = BytesMut::new();
    append_entry(&mut entries, Sequence(8), 7, 0, 0, b"lost");
    let (after, through) = (Sequence(1), Sequence(8));
    let publish = Publish { epoch: EPOCH, after, through, count: 1, entries };
    assert_eq!(bus.send(publisher, &Frame::Publish(publish)), Flow::Open);
    assert_eq!(bus.seen(store), [Seen::Deliver(3, 8, vec![8])]);
    assert_eq!(bus.core.stats().streams[0].last, Sequence(8));
}

#[test]
fn publishers_wait_for_the_required_consumers() {
    let required_consumers = vec!["store".to_owned()];
    let mut bus = Bus::new(CoreLimits { required_consumers, ..limits() });
    let early = bus.publisher_at(EPOCH, 1, 0);
    assert_eq!(bus.seen(early), [Seen::Refused(RefusalCode::NotReady)]);
    let store = bus.durable("store", &["#"], Some(7));
    let publisher = bus.publisher_at(EPOCH, 6, 9);
    assert_eq!(bus.seen(publisher), [Seen::Welcome(Some(7), vec![7])]);
    bus.declare(publisher);
    bus.core.disconnect(store);
    bus.publish(publisher, 7, &[0, 0]);
    assert_eq!(bus.seen(publisher), [], "nothing is acknowledged while it is away");
}

#[test]
fn resuming_behind_a_known_position_delivers_nothing_twice() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["#"], Some(7));
    let publisher = bus.publisher_at(EPOCH, 4, 9);
    bus.seen(publisher);
    bus.declare(publisher);
    bus.publish(publisher, 3, &[0; 6]);
    assert_eq!(bus.seen(store), [Seen::Deliver(7, 9, vec![8, 9])]);
    assert_eq!(bus.core.stats().streams[0].retained_bytes, 2 * 42);
}

#[test]
fn a_consumer_behind_what_is_left_sees_the_hole() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["#"], Some(2));
    let publisher = bus.publisher_at(EPOCH, 6, 9);
    bus.seen(publisher);
    bus.declare(publisher);
    bus.publish(publisher, 5, &[0]);
    assert_eq!(bus.seen(store), [Seen::Deliver(5, 6, vec![6])]);
    bus.commit(store, 6);
    assert_eq!(bus.seen(publisher), [Seen::Ack(6, All)]);
}

#[test]
fn of_two_writers_the_later_epoch_wins() {
    let mut bus = Bus::new(limits());
    let old = bus.publisher();
    let later = Epoch::from_u64(6 << 32);
    let new = bus.publisher_at(later, 1, 0);
    assert_eq!(bus.seen(old), [Seen::Goodbye(GoodbyeCode::Superseded)]);
    assert_eq!(bus.seen(new), [Seen::Welcome(None, vec![])]);
    assert_eq!(bus.publish(old, 0, &[0]), Flow::Close, "it is not listened to any more");
    bus.core.disconnect(old);
    assert_eq!(bus.core.publishers().len(), 1);
    bus.core.disconnect(new);
    let stale = bus.publisher_at(EPOCH, 1, 0);
    assert_eq!(bus.seen(stale), [Seen::Refused(RefusalCode::StaleEpoch)]);
}

#[test]
fn the_same_epoch_takes_over_from_a_half_open_connection() {
    let mut bus = Bus::new(limits());
    let old = bus.publisher();
    let new = bus.publisher();
    assert_eq!(bus.seen(old), [Seen::Goodbye(GoodbyeCode::Superseded)]);
    bus.core.disconnect(old);
    bus.publish(new, 0, &[0]);
    assert_eq!(bus.seen(new), [Seen::Ack(1, Accepted)]);
}

/// The position passed for a commit: what was published up to it was acknowledged and its holder
/// never saw it.
#[test]
fn a_consumer_that_is_ahead_makes_the_publisher_compare() {
    let mut bus = Bus::new(limits());
    let publisher = bus.publisher();
    let _store = bus.durable("store", &["#"], Some(60));
    assert_eq!(bus.seen(publisher), [Seen::Goodbye(GoodbyeCode::Reposition)]);
    assert_eq!(bus.publish(publisher, 0, &[0]), Flow::Close, "it is not listened to any more");
    bus.core.disconnect(publisher);
    let again = bus.publisher_at(EPOCH, 1, 0);
    assert_eq!(bus.seen(again), [Seen::Welcome(Some(60), vec![60])]);
}

#[test]
fn a_log_that_grew_differently_is_refused() {
    let mut bus = Bus::new(limits());
    let _store = bus.durable("store", &["#"], None);
    let first = bus.publisher();
    bus.publish(first, 0, &[0; 3]);
    bus.core.disconnect(first);
    let later = Epoch::from_u64(6 << 32);
    let second = bus.publisher_at(later, 1, 2);
    assert_eq!(bus.seen(second), [Seen::Welcome(None, vec![3])]);
    bus.declare(second);
    bus.publish_as(second, later, 2, &[0, 0], 1);
    assert_eq!(bus.seen(second), [Seen::Refused(RefusalCode::Diverged)]);
}

#[test]
fn credit_is_counted_in_unacknowledged_entries() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["#"], None);
    let publisher = bus.publisher();
    assert_eq!(bus.publish_as(publisher, EPOCH, 0, &[0; 2], 368), Flow::Open);
    bus.seen(store);
    bus.commit(store, 1);
    assert_eq!(bus.publish_as(publisher, EPOCH, 2, &[0], 568), Flow::Open);
    assert_eq!(bus.core.stats().streams[0].retained_bytes, 1000);
    assert_eq!(bus.publish_as(publisher, EPOCH, 3, &[0], 0), Flow::Close);
    assert_eq!(bus.seen(publisher), [Seen::Refused(RefusalCode::Credit)]);
    // Alone, a batch may exceed it.
    let mut bus = Bus::new(limits());
    let _store = bus.durable("store", &["#"], None);
    let publisher = bus.publisher();
    assert_eq!(bus.publish_as(publisher, EPOCH, 0, &[0], 5000), Flow::Open);
}

#[test]
fn broken_publishes_are_refused_with_their_reason() {
    type Break = fn(&mut Publish);
    let breaks: &[(&str, Break)] = &[
        ("another count", |p| p.count = 3),
        ("another end", |p| p.through = Sequence(3)),
        ("another beginning", |p| p.after = Sequence(1)),
        ("an alias nobody declared", |p| p.entries[28] = 9),
        ("a payload that ends early", |p| p.entries.truncate(p.entries.len() - 1)),
        ("a span of 0", |p| p.entries[8] = 0),
        ("a span beyond the sequence", |p| p.entries[8] = 3),
        ("no entries", |p| {
            p.entries.clear();
            p.count = 0;
            p.through = p.after;
        }),
        ("a later epoch", |p| p.epoch = Epoch::from_u64(9 << 32)),
    ];
    for (what, break_it) in breaks {
        let mut bus = Bus::new(limits());
        let publisher = bus.publisher();
        let mut entries = BytesMut::new();
        append_entry(&mut entries, Sequence(1), 1, 0, 0, b"a");
        append_entry(&mut entries, Sequence(2), 1, 0, 0, b"b");
        let mut publish =
            Publish { epoch: EPOCH, after: Sequence(0), through: Sequence(2), count: 2, entries };
        break_it(&mut publish);
        assert_eq!(bus.send(publisher, &Frame::Publish(publish)), Flow::Close, "{what}");
        assert_eq!(bus.seen(publisher), [Seen::Refused(RefusalCode::Protocol)], "{what}");
    }
    let mut bus = Bus::new(limits());
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0]);
    assert_eq!(bus.publish(publisher, 2, &[0]), Flow::Close, "a sequence left out");
}

#[test]
fn the_first_frame_is_a_hello_and_only_the_first() {
    let mut bus = Bus::new(limits());
    let id = bus.core.connect(Arc::new(Notify::new()), None, false);
    assert_eq!(bus.send(id, &Frame::Ping { token: 1 }), Flow::Close);
    assert_eq!(bus.seen(id), [Seen::Refused(RefusalCode::Protocol)]);
    let id = bus.hello(Role::Agent, "agent", None);
    bus.seen(id);
    let over_a_socket = bus.core.connect(Arc::new(Notify::new()), None, false);
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        role: Role::Agent,
        client_id: "x".to_owned(),
        position: None,
    };
    bus.send(over_a_socket, &Frame::Hello(hello.clone()));
    assert_eq!(bus.seen(over_a_socket), [Seen::Refused(RefusalCode::NotAllowed)]);
    for (hello, code) in [
        (Hello { version_min: 2, version_max: 3, ..hello.clone() }, RefusalCode::Version),
        (Hello { client_id: "Not a segment".to_owned(), ..hello.clone() }, RefusalCode::Protocol),
        (Hello { client_id: "x".repeat(65), ..hello.clone() }, RefusalCode::Protocol),
    ] {
        let id = bus.core.connect(Arc::new(Notify::new()), None, true);
        bus.send(id, &Frame::Hello(hello));
        assert_eq!(bus.seen(id), [Seen::Refused(code)]);
    }
    let id = bus.client(Role::Subscriber, "twice");
    let hello = Hello { role: Role::Subscriber, client_id: "twice".to_owned(), ..hello };
    assert_eq!(bus.send(id, &Frame::Hello(hello)), Flow::Close);
}

#[test]
fn commits_beyond_what_was_delivered_are_refused() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["#"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0]);
    bus.seen(store);
    assert_eq!(bus.commit(store, 2), Flow::Close);
    assert_eq!(bus.seen(publisher), []);
}

fn message(topic_name: &str, reply_to: Option<String>) -> Frame {
    Frame::Message(MessageFrame {
        subscription: 0,
        correlation: 3,
        retained: false,
        topic: topic(topic_name),
        reply_to: reply_to.map(|text| topic(&text)),
        payload: Bytes::from_static(b"?"),
    })
}

#[test]
fn requests_find_their_responder_and_replies_their_requester() {
    let mut bus = Bus::new(limits());
    let agent = bus.client(Role::Agent, "agent");
    let asker = bus.client(Role::Subscriber, "asker");
    let reply = format!("reply.{}", asker.0);
    let ask = message("control.health.status", Some(reply.clone()));
    bus.send(asker, &ask);
    assert_eq!(bus.seen(asker), [Seen::Undeliverable(UndeliverableCode::NoResponder)]);

    // A subscriber that listens in cannot answer.
    let listener = bus.live(&["control.#"], 10);
    bus.send(asker, &ask);
    assert_eq!(bus.seen(asker), [Seen::Undeliverable(UndeliverableCode::NoResponder)]);
    assert_eq!(bus.seen(listener).len(), 1);

    let kind = SubscribeKind::Live { bytes_max: 1000, count_max: 10 };
    bus.subscribe(agent, &["control.health.status"], kind);
    bus.send(asker, &ask);
    assert_eq!(bus.seen(agent), [Seen::Message("control.health.status".to_owned())]);
    bus.send(agent, &message(&reply, None));
    assert_eq!(bus.seen(asker), [Seen::Message(reply)]);

    bus.send(asker, &message("control.health.status", Some("reply.99".to_owned())));
    assert_eq!(bus.seen(asker), [Seen::Undeliverable(UndeliverableCode::NotAllowed)]);
    bus.send(asker, &message("control.collector.lifecycle", None));
    assert_eq!(bus.seen(asker), [Seen::Undeliverable(UndeliverableCode::NotAllowed)]);
    assert_eq!(bus.send(asker, &Frame::Ping { token: 1 }), Flow::Open, "it stays connected");
}

#[test]
fn a_peer_that_does_not_read_its_replies_is_cut_off() {
    let mut bus = Bus::new(limits());
    let asker = bus.client(Role::Subscriber, "asker");
    let ask = message("control.health.status", Some(format!("reply.{}", asker.0)));
    let sent = (0..1000).take_while(|_| bus.send(asker, &ask) == Flow::Open).count();
    assert!((10..1000).contains(&sent), "{sent}");
    assert_eq!(bus.seen(asker), [Seen::Goodbye(GoodbyeCode::Overflow)]);
}

#[test]
fn events_on_control_topics_are_refused() {
    let mut bus = Bus::new(limits());
    let publisher = bus.publisher();
    let declare = Frame::Declare { alias: 9, topic: topic("control.collector.lifecycle") };
    assert_eq!(bus.send(publisher, &declare), Flow::Close);
    assert_eq!(bus.seen(publisher), [Seen::Refused(RefusalCode::NotAllowed)]);
}

#[test]
fn limits_are_limits() {
    let mut bus = Bus::new(limits());
    let id = bus.client(Role::Subscriber, "many");
    for subscription in 1..=5 {
        let kind = SubscribeKind::Live { bytes_max: 1, count_max: 1 };
        let patterns = vec!["#".parse().unwrap()];
        bus.send(id, &Frame::Subscribe(SubscribeFrame { subscription, patterns, kind }));
    }
    assert_eq!(bus.seen(id)[4], Seen::Refused(RefusalCode::Limit));
    bus.send(id, &Frame::Unsubscribe { subscription: 2, forget: false });
    assert_eq!(bus.core.stats().live.len(), 3);

    let publisher = bus.publisher();
    let mut flow = Flow::Open;
    for n in 2..=ALIASES_MAX {
        let topic = topic(&format!("events.x{n}"));
        flow = bus.send(publisher, &Frame::Declare { alias: n, topic });
        if flow == Flow::Close {
            assert_eq!(n, ALIASES_MAX);
        }
    }
    assert_eq!(flow, Flow::Close);
}

#[test]
fn shutdown_lets_peers_take_what_is_queued() {
    let mut bus = Bus::new(limits());
    let live = bus.live(&["#"], 100);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0; 2]);
    bus.core.drain_all(GoodbyeCode::Shutdown, "bye");
    assert_eq!(bus.seen(live), [Seen::Deliver(0, 2, vec![1, 2])]);
    assert_eq!(bus.seen(live), [Seen::Goodbye(GoodbyeCode::Shutdown)]);
    assert_eq!(bus.seen(publisher), [Seen::Ack(2, Accepted)]);
    assert_eq!(bus.seen(publisher), [Seen::Goodbye(GoodbyeCode::Shutdown)]);
}

#[test]
fn a_consumer_that_is_forgotten_holds_nothing_back() {
    let mut bus = Bus::new(limits());
    let store = bus.durable("store", &["#"], None);
    let gone = bus.durable("gone", &["#"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0; 3]);
    bus.seen(store);
    bus.commit(store, 2);
    assert_eq!(bus.seen(publisher), []);
    let attached = ForgetError::Attached { name: "gone".to_owned() };
    assert_eq!(bus.core.forget("gone"), Err(attached));
    bus.send(gone, &Frame::Unsubscribe { subscription: 1, forget: false });
    assert_eq!(bus.seen(publisher), [], "it is known as long as nobody says otherwise");
    assert_eq!(bus.core.forget("gone"), Ok(()));
    assert_eq!(bus.seen(publisher), [Seen::Ack(2, All)]);
    let unknown = ForgetError::Unknown { name: "gone".to_owned() };
    assert_eq!(bus.core.forget("gone"), Err(unknown));

    // The last one ends its own life.
    assert_eq!(bus.send(store, &Frame::Unsubscribe { subscription: 1, forget: true }), Flow::Open);
    assert_eq!(bus.seen(publisher), [Seen::Ack(3, Accepted)]);
    let stats = bus.core.stats();
    assert_eq!((stats.consumers.len(), stats.streams[0].retained_bytes), (0, 0));

    // Should it come back after all, it is a new one: it gets what comes from now on.
    let store = bus.durable("store", &["#"], None);
    bus.publish(publisher, 3, &[0]);
    assert_eq!(bus.seen(store), [Seen::Deliver(3, 4, vec![4])]);
}

#[test]
fn a_required_consumer_is_not_forgotten() {
    let required_consumers = vec!["store".to_owned()];
    let mut bus = Bus::new(CoreLimits { required_consumers, ..limits() });
    let store = bus.durable("store", &["#"], None);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0]);
    assert_eq!(bus.send(store, &Frame::Unsubscribe { subscription: 1, forget: true }), Flow::Close);
    bus.core.disconnect(store);
    assert!(matches!(bus.core.forget("store"), Err(ForgetError::Required { .. })));
    assert_eq!(bus.seen(publisher), [], "what it has not got is still held for it");
}

fn say(topic_name: &str, retained: bool, payload: &[u8]) -> Frame {
    Frame::Message(MessageFrame {
        subscription: 0,
        correlation: 0,
        retained,
        topic: topic(topic_name),
        reply_to: None,
        payload: Bytes::copy_from_slice(payload),
    })
}

#[test]
fn who_subscribes_later_gets_the_last_retained_message_at_once() {
    let status = || "control.health.status".to_owned();
    let mut bus = Bus::new(limits());
    let early = bus.live(&["control.health.*"], 10);
    let agent = bus.client(Role::Agent, "agent");
    bus.send(agent, &say(&status(), true, b"one"));
    bus.send(agent, &say(&status(), true, b"two"));
    bus.send(agent, &say("control.collector.lifecycle", false, b"begin"));
    let news = [Seen::Message(status()), Seen::Message(status())];
    assert_eq!(bus.seen(early), news, "to those who are there it is news");

    // It outlives the connection that said it.
    bus.core.disconnect(agent);
    let late = bus.client(Role::Subscriber, "late");
    let kind = SubscribeKind::Live { bytes_max: 1 << 20, count_max: 10 };
    assert_eq!(
        bus.subscribe(late, &["control.#"], kind.clone()),
        [Seen::Subscribed, Seen::Retained(status())]
    );
    let elsewhere = bus.client(Role::Subscriber, "elsewhere");
    assert_eq!(
        bus.subscribe(elsewhere, &["control.collector.*"], kind.clone()),
        [Seen::Subscribed]
    );

    let agent = bus.client(Role::Agent, "agent");
    bus.send(agent, &say(&status(), true, b""));
    assert_eq!(bus.seen(late), [Seen::Message(status())]);
    let latest = bus.client(Role::Subscriber, "latest");
    assert_eq!(
        bus.subscribe(latest, &["control.#"], kind),
        [Seen::Subscribed],
        "it was taken back"
    );
}

#[test]
fn only_the_agent_retains_and_only_what_is_no_request() {
    let mut bus = Bus::new(limits());
    let agent = bus.client(Role::Agent, "agent");
    let collector = bus.client(Role::Collector, "me");
    bus.send(collector, &say("control.health.heartbeat.me", true, b"x"));
    assert_eq!(bus.seen(collector), [Seen::Undeliverable(UndeliverableCode::NotAllowed)]);
    bus.send(agent, &say("reply.1", true, b"x"));
    assert_eq!(bus.seen(agent), [Seen::Undeliverable(UndeliverableCode::NotAllowed)]);
    bus.send(agent, &say("events.process.start", true, b"x"));
    assert_eq!(bus.seen(agent), [Seen::Undeliverable(UndeliverableCode::NotAllowed)]);
    let Frame::Message(request) = message("control.a", Some(format!("reply.{}", agent.0))) else {
        unreachable!("it is a message")
    };
    bus.send(agent, &Frame::Message(MessageFrame { retained: true, ..request }));
    assert_eq!(bus.seen(agent), [Seen::Undeliverable(UndeliverableCode::NotAllowed)]);
    let late = bus.client(Role::Subscriber, "late");
    let kind = SubscribeKind::Live { bytes_max: 1 << 20, count_max: 10 };
    assert_eq!(bus.subscribe(late, &["#"], kind), [Seen::Subscribed], "nothing is kept");
}

#[test]
fn requests_beyond_the_rate_are_turned_down_and_a_flood_is_refused() {
    use UndeliverableCode::{Limit, NoResponder};
    let mut bus = Bus::new(CoreLimits { request_rate: 10, request_burst: 3, ..limits() });
    let asker = bus.client(Role::Subscriber, "asker");
    let other = bus.client(Role::Subscriber, "other");
    let ask = |id: ConnId| message("control.health.status", Some(format!("reply.{}", id.0)));
    let times = |bus: &mut Bus, id, times: usize| {
        let flows: Vec<Flow> = (0..times).map(|_| bus.send(id, &ask(id))).collect();
        (bus.seen(id), flows.last() == Some(&Flow::Open))
    };
    let answers = |codes: &[UndeliverableCode]| -> Vec<Seen> {
        codes.iter().map(|code| Seen::Undeliverable(*code)).collect()
    };
    let some = answers(&[NoResponder, NoResponder, NoResponder, Limit]);
    assert_eq!(times(&mut bus, asker, 4), (some, true));
    // A subscription is a request, too; a ping is not.
    let kind = SubscribeKind::Live { bytes_max: 1000, count_max: 10 };
    assert_eq!(bus.subscribe(asker, &["#"], kind), [Seen::Refused(RefusalCode::Limit)]);
    assert_eq!(bus.send(asker, &Frame::Ping { token: 1 }), Flow::Open);
    let (answered, open) = times(&mut bus, other, 3);
    assert_eq!((answered, open), (answers(&[NoResponder; 3]), true), "to each its own");

    bus.core.set_time(Duration::from_millis(350));
    assert_eq!(times(&mut bus, asker, 2), (answers(&[NoResponder, Limit]), true));
    let (seen, open) = times(&mut bus, asker, 10);
    assert_eq!((seen.last(), open), (Some(&Seen::Refused(RefusalCode::Limit)), false));

    let agent = bus.client(Role::Agent, "agent");
    let many = answers(&[NoResponder; 20]);
    assert_eq!(times(&mut bus, agent, 20), (many, true), "the host's own process is not limited");
}

/// A collector could fill the reply queue of any other connection until that was cut off.
#[test]
fn answers_nobody_awaits_reach_nobody() {
    let mut bus = Bus::new(limits());
    let asker = bus.client(Role::Subscriber, "asker");
    let agent = bus.client(Role::Agent, "agent");
    let collector = bus.client(Role::Collector, "me");
    let kind = SubscribeKind::Live { bytes_max: 1000, count_max: 10 };
    bus.subscribe(agent, &["control.health.status"], kind);
    let reply = format!("reply.{}", asker.0);
    for _ in 0..1000 {
        bus.send(collector, &message(&reply, None));
    }
    assert_eq!(bus.seen(asker), []);
    bus.send(asker, &message("control.health.status", Some(reply.clone())));
    for _ in 0..1000 {
        bus.send(agent, &message(&reply, None));
    }
    assert_eq!(bus.seen(asker), [Seen::Message(reply)], "the first answer is the answer");
}

#[test]
fn messages_have_a_greatest_length() {
    let mut bus = Bus::new(limits());
    let agent = bus.client(Role::Agent, "agent");
    let live = bus.live(&["#"], 10);
    let mut long = vec![0; MESSAGE_BYTES_MAX + 1];
    let frame = |payload: &[u8]| say("control.x", false, payload);
    // As it comes from a decoder with a larger limit than the test's.
    let mut bytes = BytesMut::new();
    frame(&long).encode(&mut bytes);
    let mut decoder = FrameDecoder::new(1 << 24);
    decoder.buffer().extend_from_slice(&bytes);
    let raw = decoder.next_frame().unwrap().unwrap();
    bus.core.receive(agent, raw);
    assert_eq!(bus.seen(agent), [Seen::Undeliverable(UndeliverableCode::Limit)]);
    assert_eq!(bus.seen(live), []);
    long.clear();
    bus.send(agent, &frame(&long));
    assert_eq!(bus.seen(live), [Seen::Message("control.x".to_owned())]);
}

#[test]
fn the_queues_of_a_connection_share_its_bytes() {
    let mut bus = Bus::new(CoreLimits { queue_bytes_max: 1000, ..limits() });
    let id = bus.client(Role::Subscriber, "many");
    let subscribe = |bus: &mut Bus, subscription, bytes_max| {
        let kind = SubscribeKind::Live { bytes_max, count_max: 1000 };
        let patterns = vec!["#".parse().unwrap()];
        bus.send(id, &Frame::Subscribe(SubscribeFrame { subscription, patterns, kind }));
    };
    let queued = |bus: &Bus| -> Vec<usize> {
        bus.core.stats().live.iter().map(|live| live.queued_bytes).collect()
    };
    subscribe(&mut bus, 1, u32::MAX);
    let publisher = bus.publisher();
    for n in 0..100 {
        bus.publish(publisher, n, &[0]);
    }
    assert_eq!(queued(&bus), [23 * 42], "no more than the connection may hold");
    subscribe(&mut bus, 2, u32::MAX);
    assert_eq!(queued(&bus), [11 * 42, 0], "room is made for the second");
    for n in 100..200 {
        bus.publish(publisher, n, &[0]);
    }
    assert_eq!(queued(&bus), [11 * 42, 11 * 42]);
    bus.send(id, &Frame::Unsubscribe { subscription: 1, forget: false });
    for n in 200..300 {
        bus.publish(publisher, n, &[0]);
    }
    assert_eq!(queued(&bus), [23 * 42], "what the first had is the second's");
    subscribe(&mut bus, 3, 100);
    subscribe(&mut bus, 4, 100);
    let missed: u64 = bus.core.stats().live.iter().map(|live| live.missed_total).sum();
    assert_eq!(missed, 300 - 23 - 100, "and what was dropped is counted");
}

/// One publisher's topics filled the queues of control frames, and every reader was cut off.
#[test]
fn declarations_do_not_cut_off_their_readers() {
    let mut bus = Bus::new(CoreLimits { control_bytes_max: 500, ..limits() });
    let live = bus.live(&["#"], 10);
    let publisher = bus.publisher();
    for alias in 2..200 {
        let topic = topic(&format!("events.n{alias}"));
        bus.send(publisher, &Frame::Declare { alias, topic });
    }
    bus.publish(publisher, 0, &[0]);
    assert_eq!(bus.send(live, &Frame::Ping { token: 1 }), Flow::Open);
    bus.send(live, &Frame::Unsubscribe { subscription: 7, forget: false });
    let kind = SubscribeKind::Live { bytes_max: 1000, count_max: 10 };
    let again = bus.subscribe(live, &["#"], kind);
    let expected = [Seen::Refused(RefusalCode::Protocol), Seen::Deliver(0, 1, vec![1])];
    assert_eq!(again, expected, "its number is taken; it stays connected");
}

#[test]
fn publishers_are_let_in_as_long_as_their_credit_fits() {
    let mut bus = Bus::new(CoreLimits { held_bytes_max: 2500, ..limits() });
    let store = bus.durable("store", &["#"], None);
    let other = |bus: &mut Bus, n: u8| {
        let position = Position {
            stream: StreamId::from_bytes([n; 16]),
            epoch: EPOCH,
            first_unacknowledged: Sequence(1),
            last: Sequence(0),
        };
        let id = bus.hello(Role::Collector, "other", Some(position));
        (id, bus.seen(id))
    };
    let first = bus.publisher();
    bus.publish_as(first, EPOCH, 0, &[0], 900);
    let (second, seen) = other(&mut bus, 1);
    assert_eq!(seen, [Seen::Welcome(None, vec![])]);
    assert_eq!(other(&mut bus, 2).1, [Seen::Refused(RefusalCode::Limit)]);
    // Whoever leaves takes its credit along, but not what is held of it.
    bus.core.disconnect(second);
    bus.core.disconnect(first);
    let (third, seen) = other(&mut bus, 2);
    assert_eq!(seen, [Seen::Welcome(None, vec![])]);
    assert_eq!(other(&mut bus, 3).1, [Seen::Refused(RefusalCode::Limit)]);
    // A stream that is known comes back whatever is held.
    let first = bus.publisher_at(EPOCH, 1, 1);
    assert_eq!(bus.seen(first), [Seen::Welcome(None, vec![1])]);
    bus.core.disconnect(third);
    bus.seen(store);
    bus.commit(store, 1);
    assert_eq!(other(&mut bus, 3).1, [Seen::Welcome(None, vec![])]);

    // However little may be held, one gets in.
    let mut bus = Bus::new(CoreLimits { held_bytes_max: 1, ..limits() });
    assert_eq!(other(&mut bus, 1).1, [Seen::Welcome(None, vec![])]);
    assert_eq!(other(&mut bus, 2).1, [Seen::Refused(RefusalCode::Limit)]);
}

#[test]
fn patterns_consumers_and_streams_are_limited() {
    let mut bus = Bus::new(limits());
    let patterns =
        |count: usize| -> Vec<String> { (0..count).map(|n| format!("a.n{n}")).collect() };
    for (count, answer) in [(256, Seen::Subscribed), (257, Seen::Refused(RefusalCode::Limit))] {
        let id = bus.client(Role::Subscriber, "many");
        let patterns = patterns(count);
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let kind = SubscribeKind::Live { bytes_max: 1, count_max: 1 };
        assert_eq!(bus.subscribe(id, &patterns, kind), [answer]);
    }

    // Of consumers that have gone, too, for they are still awaited.
    for n in 0..256 {
        let id = bus.durable(&format!("n{n}"), &["#"], None);
        bus.core.disconnect(id);
    }
    let one_more = bus.client(Role::Subscriber, "more");
    let kind = SubscribeKind::Durable { name: "more".to_owned(), positions: vec![] };
    let refused = [Seen::Refused(RefusalCode::Limit)];
    assert_eq!(bus.subscribe(one_more, &["#"], kind.clone()), refused);
    bus.core.forget("n7").unwrap();
    assert_eq!(bus.subscribe(one_more, &["#"], kind), [Seen::Subscribed]);

    let mut bus = Bus::new(limits());
    let publisher = |bus: &mut Bus, n: u128| {
        let position = Position {
            stream: StreamId::from_bytes(n.to_le_bytes()),
            epoch: EPOCH,
            first_unacknowledged: Sequence(1),
            last: Sequence(0),
        };
        let id = bus.hello(Role::Collector, "x", Some(position));
        (id, bus.seen(id).pop())
    };
    let first = publisher(&mut bus, 0).0;
    for n in 1..1024 {
        assert!(matches!(publisher(&mut bus, n).1, Some(Seen::Welcome(..))), "{n}");
    }
    assert_eq!(publisher(&mut bus, 1024).1, Some(Seen::Refused(RefusalCode::Limit)));
    // One that nobody publishes and that holds nothing makes room.
    bus.core.disconnect(first);
    assert!(matches!(publisher(&mut bus, 1024).1, Some(Seen::Welcome(..))));
}
