//! The NATS text protocol, plain and with JetStream.

use std::io::Write;

use super::{Socket, Wire, line, number};
use crate::load::TOPIC;

fn connect(socket: &mut Socket, verbose: bool) {
    let connect = format!(
        "CONNECT {{\"verbose\":{verbose},\"pedantic\":false,\"lang\":\"raw\",\"version\":\"0\",\
         \"protocol\":1}}\r\nPING\r\n"
    );
    pong(socket, &connect);
}

/// Says `lines`, the last of which is a PING, and waits for its answer. The server's own PING may
/// come with it, and can go unanswered for minutes.
fn pong(socket: &mut Socket, lines: &str) {
    socket.ask(lines.as_bytes(), |answer| {
        answer.ends_with(b"\r\n") && answer.windows(6).any(|word| word == b"PONG\r\n")
    });
}

/// Goes over whole server lines. `each` gets the words behind MSG and the payload.
fn walk(bytes: &[u8], mut each: impl FnMut(&[&[u8]], &[u8]), mut ok: impl FnMut()) -> usize {
    let mut at = 0;
    while let Some((text, next)) = line(&bytes[at..]) {
        if let Some(words) = text.strip_prefix(b"MSG ") {
            let words: Vec<&[u8]> = words.split(|byte| *byte == b' ').collect();
            let begin = at + next;
            let end = begin + number(words[words.len() - 1]);
            if end + 2 > bytes.len() {
                break;
            }
            each(&words, &bytes[begin..end]);
            at = end + 2;
            continue;
        }
        assert!(!text.starts_with(b"-ERR"), "{}", text.escape_ascii());
        if text.starts_with(b"+OK") {
            ok();
        }
        at += next;
    }
    at
}

pub(super) struct Core;

impl Wire for Core {
    fn begin_publishing(&mut self, socket: &mut Socket) {
        connect(socket, true);
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        write!(out, "PUB {TOPIC} {}\r\n", payload.len()).expect("memory");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn acknowledged(&mut self, bytes: &[u8]) -> (usize, u64) {
        let mut count = 0;
        (walk(bytes, |_, _| {}, || count += 1), count)
    }

    fn subscribe(&mut self, socket: &mut Socket, _number: u64) {
        connect(socket, false);
        pong(socket, "SUB events.process.* 1\r\nPING\r\n");
    }

    fn messages(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]), _out: &mut Vec<u8>) -> usize {
        walk(bytes, |_, payload| each(payload), || {})
    }
}

/// Publishes with an inbox, and consumes with cumulative acknowledgements.
pub(super) struct JetStream;

impl JetStream {
    fn request(socket: &mut Socket, subject: &str, body: &str) {
        let request = format!("PUB $JS.API.{subject} _INBOX.api {}\r\n{body}\r\n", body.len());
        let answer = socket.ask(request.as_bytes(), |answer| {
            let mut found = false;
            walk(answer, |_, _| found = true, || {});
            found
        });
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(!answer.contains("\"error\""), "{answer}");
    }
}

impl Wire for JetStream {
    fn begin_publishing(&mut self, socket: &mut Socket) {
        connect(socket, false);
        pong(socket, "SUB _INBOX.acks 1\r\nPING\r\n");
    }

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        write!(out, "PUB {TOPIC} _INBOX.acks {}\r\n", payload.len()).expect("memory");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn acknowledged(&mut self, bytes: &[u8]) -> (usize, u64) {
        let mut count = 0;
        let each = |_: &[&[u8]], answer: &[u8]| {
            assert!(
                !answer.windows(7).any(|word| word == b"\"error\""),
                "{}",
                answer.escape_ascii()
            );
            count += 1;
        };
        (walk(bytes, each, || {}), count)
    }

    fn subscribe(&mut self, socket: &mut Socket, _number: u64) {
        connect(socket, false);
        pong(socket, "SUB _INBOX.api 1\r\nSUB deliver.store 2\r\nPING\r\n");
        Self::request(
            socket,
            "STREAM.CREATE.events",
            "{\"name\":\"events\",\"subjects\":[\"events.>\"],\"storage\":\"file\",\
             \"retention\":\"limits\",\"discard\":\"old\",\"num_replicas\":1,\"max_consumers\":-1,\
             \"max_msgs\":-1,\"max_bytes\":-1,\"max_age\":0,\"duplicate_window\":0}",
        );
        Self::request(
            socket,
            "CONSUMER.DURABLE.CREATE.events.store",
            "{\"stream_name\":\"events\",\"config\":{\"durable_name\":\"store\",\
             \"deliver_subject\":\"deliver.store\",\"deliver_policy\":\"all\",\
             \"ack_policy\":\"all\",\"max_ack_pending\":20000,\"replay_policy\":\"instant\"}}",
        );
    }

    fn messages(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]), out: &mut Vec<u8>) -> usize {
        let mut last = Vec::new();
        let deliver = |words: &[&[u8]], payload: &[u8]| {
            each(payload);
            // Subject, subscription, where to acknowledge, length.
            last = words[2].to_vec();
        };
        let taken = walk(bytes, deliver, || {});
        if !last.is_empty() {
            out.extend_from_slice(b"PUB ");
            out.extend_from_slice(&last);
            out.extend_from_slice(b" 4\r\n+ACK\r\n");
        }
        taken
    }
}
