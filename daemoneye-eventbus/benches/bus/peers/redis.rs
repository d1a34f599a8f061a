//! A Redis stream with a consumer group for each subscriber.

use std::io::Write;

use super::{Socket, Wire, line, number};

#[derive(Default)]
pub(super) struct Redis {
    group: String,
}

fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    write!(out, "*{}\r\n", words.len()).expect("memory");
    for word in words {
        write!(out, "${}\r\n", word.len()).expect("memory");
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

enum Value<'a> {
    Text(&'a [u8]),
    List(Vec<Value<'a>>),
    Nothing,
}

impl<'a> Value<'a> {
    /// The first value of `bytes` and where the next begins.
    fn first(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (text, mut at) = line(bytes)?;
        let (kind, rest) = text.split_first()?;
        match kind {
            b'$' | b'*' if rest == b"-1" => Some((Self::Nothing, at)),
            b'$' => {
                let end = at + number(rest);
                (end + 2 <= bytes.len()).then(|| (Self::Text(&bytes[at..end]), end + 2))
            }
            b'*' => {
                let mut list = Vec::new();
                for _ in 0..number(rest) {
                    let (value, next) = Self::first(&bytes[at..])?;
                    list.push(value);
                    at += next;
                }
                Some((Self::List(list), at))
            }
            b'-' => panic!("{}", text.escape_ascii()),
            _ => Some((Self::Nothing, at)),
        }
    }

    fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    fn text(&self) -> &'a [u8] {
        match self {
            Self::Text(text) => text,
            _ => b"",
        }
    }
}

impl Redis {
    fn ask_for_more(&self, out: &mut Vec<u8>) {
        let group = self.group.as_bytes();
        let words: [&[u8]; 11] = [
            b"XREADGROUP",
            b"GROUP",
            group,
            b"c",
            b"BLOCK",
            b"30000",
            b"COUNT",
            b"512",
            b"STREAMS",
            b"s",
            b">",
        ];
        command(&words, out);
    }
}

impl Wire for Redis {
    fn begin_publishing(&mut self, _socket: &mut Socket) {}

    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        command(&[b"XADD", b"s", b"MAXLEN", b"~", b"1000000", b"*", b"d", payload], out);
    }

    fn acknowledged(&mut self, bytes: &[u8]) -> (usize, u64) {
        let (mut at, mut count) = (0, 0);
        while let Some((_, next)) = Value::first(&bytes[at..]) {
            at += next;
            count += 1;
        }
        (at, count)
    }

    fn subscribe(&mut self, socket: &mut Socket, number: u64) {
        self.group = format!("group-{number}");
        let mut out = Vec::new();
        command(&[b"XGROUP", b"CREATE", b"s", self.group.as_bytes(), b"$", b"MKSTREAM"], &mut out);
        let answer = socket.ask(&out, |answer| answer.ends_with(b"\r\n"));
        assert_eq!(answer, b"+OK\r\n", "{}", answer.escape_ascii());
        out.clear();
        self.ask_for_more(&mut out);
        socket.write_all(&out).expect("the broker is there");
    }

    fn messages(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]), out: &mut Vec<u8>) -> usize {
        let mut at = 0;
        while let Some((value, next)) = Value::first(&bytes[at..]) {
            at += next;
            // One stream, by its name; its entries; each an id and fields.
            let [stream] = value.list() else { continue };
            let [_, entries] = stream.list() else { continue };
            let mut acks: Vec<&[u8]> = vec![b"XACK", b"s", self.group.as_bytes()];
            for entry in entries.list() {
                let [id, fields] = entry.list() else { continue };
                acks.push(id.text());
                each(fields.list().get(1).map_or(b"", |payload| payload.text()));
            }
            command(&acks, out);
            self.ask_for_more(out);
        }
        at
    }
}
