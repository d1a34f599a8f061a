//! The bytes of docs/bus-protocol.md, and what happens to any other bytes.

use bytes::{Bytes, BytesMut};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use proptest::prelude::*;

use super::*;
use crate::event::{Ack, AckLevel, Committed, Position, Role};
use crate::topic::{Topic, TopicPattern};

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.to_vec()
}

fn decoded(bytes: &[u8]) -> Result<Option<Frame>, WireError> {
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    decoder.buffer().extend_from_slice(bytes);
    let raw = decoder.next_frame()?.expect("a whole frame");
    assert!(!decoder.is_mid_frame());
    Frame::decode(raw)
}

fn topic(text: &str) -> Topic {
    Topic::new(text).unwrap()
}

const AT: Committed = Committed { sequence: Sequence(0x0102), epoch: Epoch::from_u64(3 << 32 | 4) };
const AT_BYTES: [u8; 16] = [2, 1, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];

/// Header and body of a frame, from parts.
fn frame(kind: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [&(body.len() as u32).to_le_bytes()[..], &[kind, 0, 0, 0], &body].concat()
}

#[test]
fn every_frame_has_the_bytes_of_the_specification() {
    let stream = StreamId::from_bytes([0xAA; 16]);
    let mut entries = BytesMut::new();
    append_entry(&mut entries, Sequence(7), 2, -1, 5, b"hi");
    let entry: &[u8] = &[
        7, 0, 0, 0, 0, 0, 0, 0, // sequence
        2, 0, 0, 0, 0, 0, 0, 0, // span
        255, 255, 255, 255, 255, 255, 255, 255, // timestamp
        2, 0, 0, 0, // payload length
        5, 0, // alias
        0, 0, // reserved
        b'h', b'i',
    ];
    let cases: Vec<(Frame, Vec<u8>)> = vec![
        (
            Frame::Hello(Hello {
                version_min: 1,
                version_max: 2,
                role: Role::Collector,
                client_id: "pm".to_owned(),
                position: Some(Position {
                    stream,
                    epoch: AT.epoch,
                    first_unacknowledged: Sequence(8),
                    last: Sequence(9),
                }),
            }),
            frame(
                1,
                &[
                    b"DEYE",
                    &[1, 0, 2, 0, 1, 1],
                    &[0xAA; 16],
                    &AT_BYTES[8..],
                    &[8, 0, 0, 0, 0, 0, 0, 0],
                    &[9, 0, 0, 0, 0, 0, 0, 0],
                    &[2, 0, b'p', b'm'],
                ],
            ),
        ),
        (
            Frame::Hello(Hello {
                version_min: 1,
                version_max: 1,
                role: Role::Subscriber,
                client_id: "s".to_owned(),
                position: None,
            }),
            frame(1, &[b"DEYE", &[1, 0, 1, 0, 0, 0], &[1, 0, b's']]),
        ),
        (
            Frame::Welcome(Welcome {
                version: 1,
                connection: 2,
                credit_bytes: 3,
                frame_bytes_max: 4,
                heartbeat_ms: 5,
                committed: Some(AT),
                positions: vec![AT],
            }),
            frame(
                2,
                &[
                    &[1, 0],
                    &[2, 0, 0, 0, 0, 0, 0, 0],
                    &[3, 0, 0, 0, 0, 0, 0, 0],
                    &[4, 0, 0, 0],
                    &[5, 0, 0, 0],
                    &[1],
                    &AT_BYTES,
                    &[1, 0, 0, 0],
                    &AT_BYTES,
                ],
            ),
        ),
        (
            Frame::Refused(Refused {
                subscription: 6,
                code: RefusalCode::NotReady,
                retry: true,
                reason: "no".to_owned(),
            }),
            frame(3, &[&[6, 0, 0, 0], &[2, 0], &[1], &[2, 0, b'n', b'o']]),
        ),
        (Frame::Declare { alias: 5, topic: topic("a.b") }, frame(4, &[&[5, 0], &[3, 0], b"a.b"])),
        (
            Frame::Publish(Publish {
                epoch: AT.epoch,
                after: Sequence(5),
                through: Sequence(7),
                count: 1,
                entries: entries.clone(),
            }),
            frame(
                5,
                &[
                    &AT_BYTES[8..],
                    &[5, 0, 0, 0, 0, 0, 0, 0],
                    &[7, 0, 0, 0, 0, 0, 0, 0],
                    &[1, 0, 0, 0],
                    entry,
                ],
            ),
        ),
        (
            Frame::Ack(Ack { sequence: Sequence(7), level: AckLevel::Accepted }),
            frame(6, &[&[7, 0, 0, 0, 0, 0, 0, 0], &[1]]),
        ),
        (
            Frame::Ack(Ack { sequence: Sequence(7), level: AckLevel::Committed }),
            frame(6, &[&[7, 0, 0, 0, 0, 0, 0, 0], &[2]]),
        ),
        (
            Frame::Subscribe(SubscribeFrame {
                subscription: 1,
                patterns: vec!["a.#".parse::<TopicPattern>().unwrap()],
                kind: SubscribeKind::Live { bytes_max: 2, count_max: 3 },
            }),
            frame(
                7,
                &[
                    &[1, 0, 0, 0],
                    &[1, 0, 0, 0],
                    &[3, 0],
                    b"a.#",
                    &[0],
                    &[2, 0, 0, 0],
                    &[3, 0, 0, 0],
                ],
            ),
        ),
        (
            Frame::Subscribe(SubscribeFrame {
                subscription: 1,
                patterns: vec!["a.*".parse::<TopicPattern>().unwrap()],
                kind: SubscribeKind::Durable {
                    name: "db".to_owned(),
                    positions: vec![(stream, AT)],
                },
            }),
            frame(
                7,
                &[
                    &[1, 0, 0, 0],
                    &[1, 0, 0, 0],
                    &[3, 0],
                    b"a.*",
                    &[1],
                    &[2, 0],
                    b"db",
                    &[1, 0, 0, 0],
                    &[0xAA; 16],
                    &AT_BYTES,
                ],
            ),
        ),
        (Frame::Subscribed { subscription: 1 }, frame(8, &[&[1, 0, 0, 0]])),
        (Frame::Unsubscribe { subscription: 1, forget: true }, frame(9, &[&[1, 0, 0, 0], &[1]])),
        (
            Frame::Deliver(Deliver {
                subscription: 1,
                stream,
                epoch: AT.epoch,
                after: Sequence(5),
                through: Sequence(7),
                count: 1,
                entries: entries.freeze(),
            }),
            frame(
                10,
                &[
                    &[1, 0, 0, 0],
                    &[1, 0, 0, 0],
                    &[0xAA; 16],
                    &AT_BYTES[8..],
                    &[5, 0, 0, 0, 0, 0, 0, 0],
                    &[7, 0, 0, 0, 0, 0, 0, 0],
                    entry,
                ],
            ),
        ),
        (
            Frame::Commit { subscription: 1, stream, position: AT },
            frame(11, &[&[1, 0, 0, 0], &[0xAA; 16], &AT_BYTES]),
        ),
        (
            Frame::Missed { subscription: 1, count: 2 },
            frame(12, &[&[1, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0]]),
        ),
        (
            Frame::Message(MessageFrame {
                subscription: 0,
                correlation: 9,
                retained: true,
                topic: topic("a"),
                reply_to: Some(topic("reply.1")),
                payload: Bytes::from_static(b"{}"),
            }),
            frame(
                13,
                &[
                    &[0, 0, 0, 0],
                    &[9, 0, 0, 0, 0, 0, 0, 0],
                    &[1],
                    &[1, 0, b'a'],
                    &[7, 0],
                    b"reply.1",
                    b"{}",
                ],
            ),
        ),
        (
            Frame::Undeliverable(Undeliverable {
                correlation: 9,
                code: UndeliverableCode::NoResponder,
                topic: topic("a"),
                reason: "x".to_owned(),
            }),
            frame(14, &[&[9, 0, 0, 0, 0, 0, 0, 0], &[1, 0], &[1, 0, b'a'], &[1, 0, b'x']]),
        ),
        (Frame::Ping { token: 1 }, frame(15, &[&[1, 0, 0, 0, 0, 0, 0, 0]])),
        (Frame::Pong { token: 1 }, frame(16, &[&[1, 0, 0, 0, 0, 0, 0, 0]])),
        (
            Frame::Goodbye { code: GoodbyeCode::Superseded, reason: String::new() },
            frame(17, &[&[2, 0], &[0, 0]]),
        ),
    ];
    let mut kinds: Vec<u8> = Vec::new();
    for (frame, bytes) in cases {
        assert_eq!(encoded(&frame), bytes, "{frame:?}");
        kinds.push(frame.kind().number());
        assert_eq!(decoded(&bytes), Ok(Some(frame)));
    }
    kinds.dedup();
    assert_eq!(kinds, (1..=17).collect::<Vec<u8>>(), "every kind is spelled out above");
}

#[test]
fn a_frame_arrives_whole_or_not_at_all() {
    let mut bytes = encoded(&Frame::Declare { alias: 1, topic: topic("events.a") });
    bytes.extend(encoded(&Frame::Ping { token: 2 }));
    let mut decoder = FrameDecoder::new(64);
    let mut frames = Vec::new();
    for byte in bytes {
        decoder.buffer().extend_from_slice(&[byte]);
        while let Some(raw) = decoder.next_frame().unwrap() {
            frames.push(Frame::decode(raw).unwrap().unwrap());
        }
    }
    let expected =
        [Frame::Declare { alias: 1, topic: topic("events.a") }, Frame::Ping { token: 2 }];
    assert_eq!(frames, expected);
}

/// The place where the next bytes go, which is in the processor's caches if it is the same again.
fn place(decoder: &mut FrameDecoder) -> *const u8 {
    decoder.buffer().spare_capacity_mut().as_ptr().cast()
}

#[test]
fn a_block_is_read_into_from_its_front_again_once_its_frames_are_gone() {
    let frame = encoded(&Frame::Ping { token: 7 });
    let mut decoder = FrameDecoder::new(1024);
    let front = place(&mut decoder);
    for _ in 0..10_000 {
        assert_eq!(place(&mut decoder), front);
        decoder.buffer().extend_from_slice(&frame);
        assert!(decoder.next_frame().unwrap().is_some());
    }
    // A frame that is kept stays as it is, and what follows goes elsewhere.
    decoder.buffer().extend_from_slice(&frame);
    let kept = decoder.next_frame().unwrap().unwrap();
    assert_ne!(place(&mut decoder), front);
    decoder.buffer().extend_from_slice(&[0xff; 16]);
    assert_eq!(Frame::decode(kept).unwrap(), Some(Frame::Ping { token: 7 }));
}

#[test]
fn blocks_that_are_used_up_are_used_again() {
    let frame = encoded(&Frame::Ping { token: 7 });
    let mut decoder = FrameDecoder::new(1024);
    let mut places = std::collections::HashSet::new();
    let mut kept = std::collections::VecDeque::new();
    for _ in 0..10_000 {
        decoder.buffer().extend_from_slice(&frame);
        kept.push_back(decoder.next_frame().unwrap().unwrap());
        if kept.len() > 700 {
            kept.pop_front();
        }
        places.insert(place(&mut decoder) as usize / 65536);
    }
    assert!(places.len() <= 4, "always new memory: {places:?}");
}

#[test]
fn an_announced_length_is_checked_before_memory_is_taken() {
    let mut decoder = FrameDecoder::new(1000);
    decoder.buffer().extend_from_slice(&[0xE9, 3, 0, 0, 5, 0, 0, 0]);
    assert_eq!(decoder.next_frame(), Err(WireError::FrameTooLong { bytes: 1001, limit: 1000 }));
    // Allowed, but most of it never comes.
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    decoder.buffer().extend_from_slice(&[0, 0, 0, 1, 5, 0, 0, 0]);
    assert_eq!(decoder.next_frame(), Ok(None));
    assert!(decoder.buffer().capacity() < 256 * 1024);
}

#[test]
fn an_announced_count_is_checked_before_memory_is_taken() {
    let bytes = frame(7, &[&[1, 0, 0, 0], &[255, 255, 255, 255]]);
    assert!(matches!(decoded(&bytes), Err(WireError::Malformed { kind: Kind::Subscribe, .. })));
}

#[test]
fn unknown_kinds_are_skipped_only_if_they_may_be() {
    let mut bytes = frame(200, &[b"what is this"]);
    assert_eq!(decoded(&bytes), Err(WireError::UnknownKind { kind: 200 }));
    bytes[5] = OPTIONAL;
    assert_eq!(decoded(&bytes), Ok(None));
}

#[test]
fn bytes_behind_the_last_field_and_missing_ones_are_refused() {
    let whole = encoded(&Frame::Ping { token: 1 });
    assert!(decoded(&frame(15, &[&whole[8..], &[0]])).is_err());
    assert!(decoded(&frame(15, &[&whole[8..15]])).is_err());
}

#[test]
fn texts_from_peers_lose_their_control_characters() {
    let refused = Refused {
        subscription: 0,
        code: RefusalCode::Protocol,
        retry: false,
        reason: "a\u{1b}[31m\n".to_owned(),
    };
    let Ok(Some(Frame::Refused(read))) = decoded(&encoded(&Frame::Refused(refused))) else {
        panic!("it is a refusal");
    };
    assert_eq!(read.reason, "a\u{fffd}[31m\u{fffd}");
}

proptest! {
    #[test]
    fn entries_come_back_as_they_went(
        entries in prop::collection::vec(
            (1_u64.., any::<i64>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..50)),
            0..20,
        )
    ) {
        let mut bytes = BytesMut::new();
        for (sequence, timestamp_ns, alias, payload) in &entries {
            append_entry(&mut bytes, Sequence(*sequence), 1, *timestamp_ns, *alias, payload);
        }
        let read: Vec<_> = Entries::new(&bytes)
            .map(|entry| entry.map(|(h, payload)| {
                (h.sequence.0, h.timestamp_ns, h.alias, payload.to_vec())
            }))
            .collect::<Result<_, _>>()
            .unwrap();
        prop_assert_eq!(read, entries);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0_u8..20,
    ) {
        let mut decoder = FrameDecoder::new(1 << 16);
        decoder.buffer().extend_from_slice(&bytes);
        while let Ok(Some(raw)) = decoder.next_frame() {
            let _ = Frame::decode(raw);
        }
        // Straight into the bodies, which random headers seldom reach.
        let body = BytesMut::from(&bytes[..]);
        if let Ok(Some(frame)) = Frame::decode(RawFrame { kind, flags: 0, body }) {
            // Whatever is understood can be said again and means the same.
            prop_assert_eq!(decoded(&encoded(&frame)), Ok(Some(frame)));
        }
        for entry in Entries::new(&bytes) {
            let _ = entry;
        }
    }

    #[test]
    fn one_wrong_byte_never_panics(at in 0_usize..200, byte in any::<u8>()) {
        let mut bytes = encoded(&Frame::Subscribe(SubscribeFrame {
            subscription: 1,
            patterns: vec!["events.process.*".parse().unwrap(), "a.#".parse().unwrap()],
            kind: SubscribeKind::Durable {
                name: "db".to_owned(),
                positions: vec![(StreamId::from_bytes([3; 16]), AT); 3],
            },
        }));
        let at = at % bytes.len();
        bytes[at] = byte;
        let mut decoder = FrameDecoder::new(1 << 16);
        decoder.buffer().extend_from_slice(&bytes);
        while let Ok(Some(raw)) = decoder.next_frame() {
            let _ = Frame::decode(raw);
        }
    }
}
