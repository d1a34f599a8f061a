//! Every figure of a look, against what really passed.

use super::*;
use crate::broker::core::look::{
    CONNECTION_BYTES, CONSUMER_BYTES, CURSOR_BYTES, LIVE_BYTES, STREAM_BYTES,
};
use crate::broker::stats::{
    BrokerStats, ConnectionStats, ConsumerStats, CursorStats, LiveStats, StreamStats, Traffic,
};

/// What one peer sent and got, counted on the wire.
#[derive(Default)]
struct Wire {
    sent: Traffic,
}

impl Wire {
    fn send(&mut self, bus: &mut Bus, id: ConnId, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.sent.frames_in_total += 1;
        self.sent.bytes_in_total += bytes.len() as u64;
        bus.send(id, frame);
    }

    fn take(&mut self, bus: &mut Bus, id: ConnId) {
        let mut out = Output::default();
        bus.core.take_output(id, &mut out);
        let mut decoder = FrameDecoder::new(1 << 20);
        for piece in out.pieces {
            self.sent.bytes_out_total += piece.len() as u64;
            decoder.buffer().extend_from_slice(&piece);
        }
        while let Some(raw) = decoder.next_frame().unwrap() {
            self.sent.frames_out_total += 1;
            if let Some(Frame::Deliver(deliver)) = Frame::decode(raw).unwrap() {
                self.sent.events_out_total += u64::from(deliver.count);
            }
        }
    }
}

fn of(stats: &BrokerStats, id: ConnId) -> Traffic {
    let conn = stats.connections.iter().find(|conn| conn.connection == id.0);
    conn.expect("it is connected").traffic
}

fn publish(after: u64, count: u64) -> Frame {
    let mut entries = BytesMut::new();
    for sequence in after + 1..=after + count {
        append_entry(&mut entries, Sequence(sequence), 1, 0, 0, &[7; 10]);
    }
    let (after, through) = (Sequence(after), Sequence(after + count));
    Frame::Publish(Publish { epoch: EPOCH, after, through, count: count as u32, entries })
}

fn hello(role: Role, client_id: &str, position: Option<Position>) -> Frame {
    let client_id = client_id.to_owned();
    Frame::Hello(Hello { version_min: 1, version_max: 1, role, client_id, position })
}

#[test]
fn traffic_is_what_was_on_the_wire() {
    let mut bus = Bus::new(limits());
    let mut wires: Vec<Wire> = (0..3).map(|_| Wire::default()).collect();
    let ids: Vec<ConnId> =
        (0..3).map(|_| bus.core.connect(Arc::new(Notify::new()), Some(4711), false)).collect();
    let position = Position {
        stream: stream(),
        epoch: EPOCH,
        first_unacknowledged: Sequence(1),
        last: Sequence(0),
    };
    let subscribe = |kind| {
        let patterns = vec!["events.#".parse().unwrap()];
        Frame::Subscribe(SubscribeFrame { subscription: 1, patterns, kind })
    };
    let live = SubscribeKind::Live { bytes_max: 1 << 20, count_max: 2 };
    let durable = SubscribeKind::Durable { name: "store".to_owned(), positions: vec![] };
    let declare = Frame::Declare { alias: 0, topic: topic("events.process.start") };
    let frames = [
        (0, hello(Role::Collector, "procmond", Some(position))),
        (0, declare),
        (1, hello(Role::Subscriber, "live", None)),
        (1, subscribe(live)),
        (2, hello(Role::Subscriber, "store", None)),
        (2, subscribe(durable)),
        // The live one keeps two of five; the first two come again.
        (0, publish(0, 5)),
        (0, publish(3, 4)),
        (0, Frame::Ping { token: 1 }),
        (1, Frame::Ping { token: 2 }),
    ];
    for (who, frame) in &frames {
        wires[*who].send(&mut bus, ids[*who], frame);
    }
    bus.core.ping(ids[2], 9);
    for who in [0, 1, 2, 0, 1, 2] {
        wires[who].take(&mut bus, ids[who]);
    }
    let commit = Frame::Commit { subscription: 1, stream: stream(), position: at(6) };
    wires[2].send(&mut bus, ids[2], &commit);
    wires[0].take(&mut bus, ids[0]);

    let stats = bus.core.stats();
    let taken = Traffic { events_in_total: 9, ..wires[0].sent };
    assert_eq!(of(&stats, ids[0]), taken);
    assert_eq!(of(&stats, ids[1]), wires[1].sent);
    assert_eq!(of(&stats, ids[2]), wires[2].sent);
    assert_eq!((wires[1].sent.events_out_total, wires[2].sent.events_out_total), (2, 7));
    let mut all = taken;
    all += wires[1].sent;
    all += wires[2].sent;
    assert_eq!(stats.traffic, all);
    assert_eq!((stats.connections_total, stats.credit_bytes), (3, 1000));
    assert_eq!((stats.missed_total, stats.live[0].missed_total), (5, 5));
    let figures = &stats.streams[0];
    assert_eq!((figures.events_total, figures.duplicates_total), (7, 2));
    assert_eq!((figures.last, figures.acked), (Sequence(7), Sequence(6)));
    assert_eq!(figures.retained_bytes, 10 + 32, "the credit in use");
    let cursor = &stats.consumers[0].cursors[0];
    assert_eq!((cursor.committed, cursor.delivered, cursor.lag), (Sequence(6), Sequence(7), 1));
    assert!(cursor.in_flight_bytes > 10);

    // What is gone still counts in the sums.
    for id in ids {
        bus.core.disconnect(id);
    }
    let stats = bus.core.stats();
    assert_eq!((stats.traffic, stats.missed_total), (all, 5));
    assert!(stats.connections.is_empty() && stats.live.is_empty());
    assert_eq!(stats.consumers[0].cursors[0].lag, 1, "a consumer that is away lags");
    assert!(!stats.consumers[0].attached);
}

#[test]
fn what_an_ended_subscription_missed_still_counts() {
    let mut bus = Bus::new(limits());
    let live = bus.live(&["events.#"], 1);
    let publisher = bus.publisher();
    bus.publish(publisher, 0, &[0, 0, 0]);
    assert_eq!((bus.core.stats().live[0].queued_events, bus.core.stats().missed_total), (1, 2));
    bus.send(live, &Frame::Unsubscribe { subscription: 1, forget: false });
    let stats = bus.core.stats();
    assert!(stats.live.is_empty());
    assert_eq!(stats.missed_total, 2);
}

#[test]
fn refusals_and_goodbyes_are_counted_by_reason() {
    let mut bus = Bus::new(limits());
    let stranger = bus.core.connect(Arc::new(Notify::new()), None, false);
    bus.send(stranger, &hello(Role::Agent, "stranger", None));
    let rude = bus.client(Role::Subscriber, "rude");
    bus.send(rude, &hello(Role::Subscriber, "again", None));
    let garbage = bus.client(Role::Subscriber, "garbage");
    bus.core.refuse_bytes(garbage, WireError::UnknownKind { kind: 99 });
    let old = bus.publisher();
    bus.publisher();
    assert_eq!(
        bus.core.stats().refused,
        BTreeMap::from([(RefusalCode::NotAllowed, 1), (RefusalCode::Protocol, 2)])
    );
    assert!(bus.core.stats().ended.is_empty(), "not gone yet");
    bus.core.disconnect(old);
    assert_eq!(bus.core.stats().ended, BTreeMap::from([(GoodbyeCode::Superseded, 1)]));
}

/// What the broker answers to a request for a look.
fn asked(bus: &mut Bus, asker: ConnId) -> Bytes {
    let reply = format!("reply.{}", asker.0);
    bus.send(asker, &message("control.broker.stats", Some(reply.clone())));
    let mut out = Output::default();
    assert_eq!(bus.core.take_output(asker, &mut out), Flow::Open);
    let mut decoder = FrameDecoder::new(1 << 20);
    for piece in out.pieces {
        decoder.buffer().extend_from_slice(&piece);
    }
    match Frame::decode(decoder.next_frame().unwrap().unwrap()).unwrap() {
        Some(Frame::Message(answer)) => {
            assert_eq!((answer.topic, answer.subscription), (topic(&reply), 0));
            answer.payload
        }
        other => panic!("a message, not {other:?}"),
    }
}

#[test]
fn the_broker_answers_for_itself() {
    let mut bus = Bus::new(limits());
    let curious = bus.live(&["control.#"], 10);
    let asker = bus.client(Role::Subscriber, "asker");
    let answer: BrokerStats = serde_json::from_slice(&asked(&mut bus, asker)).unwrap();
    let ids: Vec<u64> = answer.connections.iter().map(|conn| conn.connection).collect();
    assert_eq!(ids, [curious.0, asker.0]);
    assert_eq!((answer.pid, answer.left_out), (std::process::id(), 0));
    assert_eq!(bus.seen(curious), [], "the request is nobody else's");
    bus.send(asker, &message("control.broker.stats", None));
    assert_eq!(bus.seen(asker), [], "nobody waits for an answer");
}

#[test]
fn an_answer_has_bounds_whatever_there_is_to_tell() {
    let mut bus = Bus::new(limits());
    let asker = bus.client(Role::Subscriber, "asker");
    bus.durable("store", &["events.#"], None);
    bus.publisher();
    let longest = vec![vec!["x".repeat(31); 8].join("."); 4];
    let longest: Vec<&str> = longest.iter().map(String::as_str).collect();
    for n in 0..50 {
        let name = "n".repeat(62) + &format!("{n:02}");
        let id = bus.client(Role::Subscriber, &name);
        let kind = SubscribeKind::Live { bytes_max: 1000, count_max: 10 };
        bus.subscribe(id, &longest, kind);
    }
    let rows = |stats: &BrokerStats| {
        let cursors = stats.consumers.iter().map(|consumer| consumer.cursors.len()).sum::<usize>();
        let lists = stats.connections.len() + stats.live.len() + stats.streams.len();
        (stats.consumers.len() + cursors + lists) as u64
    };
    let whole = bus.core.stats();
    assert_eq!((rows(&whole), whole.left_out), (53 + 50 + 1 + 1 + 1, 0));
    let bytes_max = limits().control_bytes_max / 4 * 3;
    let answer = asked(&mut bus, asker);
    assert!(answer.len() <= bytes_max + 1000, "{} bytes", answer.len());
    let told: BrokerStats = serde_json::from_slice(&answer).unwrap();
    assert_eq!(rows(&told) + told.left_out, rows(&whole));
    assert_eq!((told.consumers.len(), told.streams.len()), (1, 1), "these come first");
    assert!(!told.connections.is_empty());
}

#[test]
fn no_row_is_longer_than_it_is_taken_for() {
    let traffic = Traffic {
        frames_in_total: u64::MAX,
        bytes_in_total: u64::MAX,
        events_in_total: u64::MAX,
        frames_out_total: u64::MAX,
        bytes_out_total: u64::MAX,
        events_out_total: u64::MAX,
    };
    let name = "n".repeat(NAME_BYTES_MAX);
    let most = Sequence(u64::MAX);
    let connection = ConnectionStats {
        connection: u64::MAX,
        client_id: name.clone(),
        role: Role::Subscriber,
        pid: Some(u32::MAX),
        connected_ms: u64::MAX,
        control_bytes: usize::MAX,
        traffic,
    };
    let figures = StreamStats {
        stream: stream(),
        publisher: Some(name.clone()),
        epoch: u64::MAX,
        last: most,
        acked: most,
        retained_bytes: u64::MAX,
        events_total: u64::MAX,
        duplicates_total: u64::MAX,
    };
    let cursor = CursorStats {
        stream: stream(),
        committed: most,
        delivered: most,
        in_flight_bytes: usize::MAX,
        lag: u64::MAX,
    };
    let consumer = ConsumerStats { name: name.clone(), attached: false, cursors: vec![] };
    let live = LiveStats {
        connection: u64::MAX,
        client_id: name,
        subscription: u32::MAX,
        patterns: vec![],
        queued_events: usize::MAX,
        queued_bytes: usize::MAX,
        missed_total: u64::MAX,
    };
    let bytes = |row: serde_json::Value| row.to_string().len() + 1;
    let rows = [
        (bytes(serde_json::to_value(&connection).unwrap()), CONNECTION_BYTES),
        (bytes(serde_json::to_value(&figures).unwrap()), STREAM_BYTES),
        (bytes(serde_json::to_value(&cursor).unwrap()), CURSOR_BYTES),
        (bytes(serde_json::to_value(&consumer).unwrap()), CONSUMER_BYTES),
        (bytes(serde_json::to_value(&live).unwrap()), LIVE_BYTES),
    ];
    for (bytes, most) in rows {
        assert!(bytes <= most, "{rows:?}");
    }
}
