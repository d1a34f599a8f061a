//! A peer that sends whatever it likes: bytes, or frames that are nearly right.

use bytes::{Bytes, BytesMut};
use daemoneye_eventbus::fuzzing::{Connection, Decisions};
use daemoneye_eventbus::wire::{
    Frame, Hello, MessageFrame, Publish, SubscribeFrame, SubscribeKind, append_entry,
};
use daemoneye_eventbus::{
    Committed, Epoch, GoodbyeCode, Position, Role, Sequence, StreamId, Topic, TopicPattern,
};

use super::well_behaved::STORES;
use crate::input::Input;

const TOPICS: [&str; 10] = [
    "events.good.a",
    "events.good.b",
    "events.x",
    "events.x.y",
    "control.health.status",
    "control.broker.stats",
    "control.collector.registration",
    "control.health.heartbeat.x",
    "reply.1",
    "reply.4",
];
const PATTERNS: [&str; 6] = ["#", "events.#", "events.good.*", "*.*.a", "control.#", "events.x"];
const NAMES: [&str; 4] = ["x", "y", STORES[0], "Not a name"];

pub struct Stranger {
    connection: Connection,
    /// Sent in pieces: what is still to be sent.
    unsent: BytesMut,
    /// The last sequence it has published, so that it can go on from there.
    last: u64,
}

impl Stranger {
    pub fn new(bus: &mut Decisions) -> Self {
        Self { connection: bus.connect(false), unsent: BytesMut::new(), last: 0 }
    }

    /// Does one thing. Returns whether it has gone.
    pub fn act(&mut self, bus: &mut Decisions, input: &mut Input<'_>) -> bool {
        match input.u8() % 16 {
            0 => {
                bus.disconnect(&self.connection);
                return true;
            }
            1 | 2 => {
                // What it has left unread, it may have for ever.
                if !bus.output(&mut self.connection).1 {
                    bus.disconnect(&self.connection);
                    return true;
                }
            }
            3 => {
                let count = input.below(64);
                for _ in 0..count {
                    self.unsent.extend_from_slice(&[input.u8()]);
                }
            }
            4 => {
                let at = self.unsent.len();
                self.frame(input).encode(&mut self.unsent);
                let at = at + input.below(self.unsent.len() - at);
                self.unsent[at] ^= 1 << (input.u8() % 8);
            }
            _ => self.frame(input).encode(&mut self.unsent),
        }
        let count = match input.u8() {
            0 => input.below(self.unsent.len() + 1),
            _ => self.unsent.len(),
        };
        let piece = self.unsent.split_to(count);
        bus.receive(&mut self.connection, &piece);
        false
    }

    pub fn leave(self, bus: &mut Decisions) {
        bus.disconnect(&self.connection);
    }

    fn frame(&mut self, input: &mut Input<'_>) -> Frame {
        match input.u8() % 20 {
            0..4 => Frame::Hello(Hello {
                version_min: 1,
                version_max: 1,
                role: one_of(input, &[Role::Collector, Role::Subscriber, Role::Agent]),
                client_id: one_of(input, &NAMES).to_owned(),
                position: input.u8().is_multiple_of(2).then(|| Position {
                    stream: stream(input),
                    epoch: epoch(input),
                    first_unacknowledged: Sequence(input.odd()),
                    last: Sequence(input.odd()),
                }),
            }),
            4 | 5 => Frame::Declare { alias: u16::from(input.u8() % 8), topic: topic(input) },
            6..9 => self.publish(input),
            9 | 10 => subscribe(input),
            11 => Frame::Unsubscribe {
                subscription: subscription(input),
                forget: input.u8().is_multiple_of(2),
            },
            12 | 13 => Frame::Commit {
                subscription: subscription(input),
                stream: stream(input),
                position: at(input),
            },
            14..17 => Frame::Message(MessageFrame {
                subscription: subscription(input),
                correlation: u64::from(input.u8() % 4),
                retained: input.u8().is_multiple_of(4),
                topic: topic(input),
                reply_to: input.u8().is_multiple_of(2).then(|| topic(input)),
                payload: Bytes::from(vec![7; input.below(2000)]),
            }),
            17 => Frame::Ping { token: 3 },
            18 => Frame::Goodbye { code: GoodbyeCode::Done, reason: String::new() },
            _ => Frame::Missed { subscription: 1, count: 1 },
        }
    }

    fn publish(&mut self, input: &mut Input<'_>) -> Frame {
        let after = match input.u8() {
            0..16 => input.odd(),
            _ => self.last,
        };
        let mut through = after;
        let mut entries = BytesMut::new();
        let count = input.u8() % 8;
        for _ in 0..count {
            let span = match input.u8() {
                255 => input.odd(),
                _ => 1,
            };
            through = through.wrapping_add(span);
            let payload = vec![9; input.below(1000)];
            let alias = u16::from(input.u8() % 8);
            append_entry(&mut entries, Sequence(through), span, 0, alias, &payload);
        }
        self.last = through;
        Frame::Publish(Publish {
            epoch: epoch(input),
            after: Sequence(after),
            through: Sequence(through),
            count: u32::from(count),
            entries,
        })
    }
}

fn one_of<T: Copy>(input: &mut Input<'_>, of: &[T]) -> T {
    of[input.below(of.len())]
}

fn topic(input: &mut Input<'_>) -> Topic {
    match input.u8() {
        255 => Topic::new(&format!("events.n{}", input.number(2))),
        _ => Topic::new(one_of(input, &TOPICS)),
    }
    .expect("a topic")
}

fn stream(input: &mut Input<'_>) -> StreamId {
    StreamId::from_bytes([input.u8() % 2; 16])
}

fn at(input: &mut Input<'_>) -> Committed {
    Committed { sequence: Sequence(input.odd()), epoch: epoch(input) }
}

fn epoch(input: &mut Input<'_>) -> Epoch {
    match input.u8() {
        0..16 => Epoch::from_u64(input.odd()),
        _ => Epoch::from_u64(7),
    }
}

fn subscription(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        odd @ 0..32 => u32::from(odd % 8),
        _ => 1,
    }
}

fn subscribe(input: &mut Input<'_>) -> Frame {
    let patterns = (0..1 + input.u8() % 3)
        .map(|_| TopicPattern::new(one_of(input, &PATTERNS)).expect("a pattern"))
        .collect();
    let kind = match input.u8() % 2 {
        0 => SubscribeKind::Live { bytes_max: input.odd() as u32, count_max: input.odd() as u32 },
        _ => SubscribeKind::Durable {
            name: one_of(input, &NAMES).to_owned(),
            positions: (0..input.u8() % 3).map(|_| (stream(input), at(input))).collect(),
        },
    };
    Frame::Subscribe(SubscribeFrame { subscription: subscription(input), patterns, kind })
}
