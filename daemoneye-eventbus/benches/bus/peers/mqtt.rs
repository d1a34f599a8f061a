//! MQTT 3.1.1 with QoS 1.

use super::{Socket, Wire};

const TOPIC: &str = "events/process/start";
const PUBACK: u8 = 0x40;
const PUBLISH: u8 = 0x30;
const QOS_1: u8 = 0x02;

#[derive(Default)]
pub(super) struct Mqtt {
    packet: u16,
}

/// Type, length in sevens of bits, body.
fn frame(kind: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
    out.push(kind);
    let mut left: usize = parts.iter().map(|part| part.len()).sum();
    while left >= 128 {
        out.push((left % 128) as u8 | 128);
        left /= 128;
    }
    out.push(left as u8);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// The first frame of `bytes`: its type, its body and where the next begins.
fn first(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (mut length, mut at) = (0, 1);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 127) << (7 * (at - 1));
        at += 1;
        if byte & 128 == 0 {
            break;
        }
    }
    Some((bytes[0], bytes.get(at..at + length)?, at + length))
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn connect(socket: &mut Socket, id: &str) {
    let mut out = Vec::new();
    // Version 4, a clean session, a minute of silence at most.
    frame(0x10, &[&text("MQTT"), &[4, 2, 0, 60], &text(id)], &mut out);
    let answer = socket.ask(&out, |answer| answer.len() >= 4);
    assert_eq!((answer[0], answer[3]), (0x20, 0), "the connection is accepted");
}

impl Wire for Mqtt {
    fn begin_publishing(&mut self, socket: &mut Socket) {
        connect(socket, "publisher");
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.packet = self.packet.checked_add(1).unwrap_or(1);
        let packet = self.packet.to_be_bytes();
        let length = (TOPIC.len() as u16).to_be_bytes();
        frame(PUBLISH | QOS_1, &[&length, TOPIC.as_bytes(), &packet, payload], out);
    }

    fn acknowledged(&mut self, bytes: &[u8]) -> (usize, u64) {
        let (mut at, mut count) = (0, 0);
        while let Some((kind, _, next)) = first(&bytes[at..]) {
            assert_eq!(kind, PUBACK);
            at += next;
            count += 1;
        }
        (at, count)
    }

    fn subscribe(&mut self, socket: &mut Socket, number: u64) {
        connect(socket, &format!("subscriber-{number}"));
        let mut out = Vec::new();
        frame(0x82, &[&[0, 1], &text("events/process/+"), &[1]], &mut out);
        let answer = socket.ask(&out, |answer| answer.len() >= 5);
        assert_eq!((answer[0], answer[4]), (0x90, 1), "the subscription is accepted");
    }

    fn messages(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]), out: &mut Vec<u8>) -> usize {
        let mut at = 0;
        while let Some((kind, body, next)) = first(&bytes[at..]) {
            if kind & 0xf0 == PUBLISH {
                let packet = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
                frame(PUBACK, &[&body[packet..packet + 2]], out);
                each(&body[packet + 2..]);
            }
            at += next;
        }
        at
    }
}
