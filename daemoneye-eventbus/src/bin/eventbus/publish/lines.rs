//! What to publish: the arguments, or the lines of standard input.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, Read};

use bytes::Bytes;
use daemoneye_eventbus::wire::FRAME_BYTES_MAX;
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Lines read ahead.
const AHEAD: usize = 1024;

/// One thing to publish, or why there are no more.
#[derive(Debug)]
pub(super) enum Line {
    Payload(Bytes),
    Failed(String),
}

/// See the module.
pub(super) enum Lines {
    Arguments(VecDeque<Bytes>),
    Input(mpsc::Receiver<Line>),
}

impl Lines {
    /// No arguments at all stand for one empty payload.
    pub(super) fn new(arguments: &[OsString]) -> Result<Self, Failure> {
        if arguments == ["-"] {
            let (lines, received) = mpsc::channel(AHEAD);
            // A thread of its own: standard input may say nothing for ever.
            std::thread::Builder::new()
                .name("eventbus-in".to_owned())
                .spawn(move || read_lines(io::stdin().lock(), FRAME_BYTES_MAX, &lines))
                .map_err(Failure::failed)?;
            return Ok(Self::Input(received));
        }
        if arguments.is_empty() {
            return Ok(Self::Arguments(VecDeque::from([Bytes::new()])));
        }
        let bytes = |argument: &OsString| Bytes::copy_from_slice(argument.as_encoded_bytes());
        Ok(Self::Arguments(arguments.iter().map(bytes).collect()))
    }

    /// The next; `None` after the last. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Line> {
        match self {
            Self::Arguments(left) => left.pop_front().map(Line::Payload),
            Self::Input(received) => received.recv().await,
        }
    }

    /// The next, if it is there already.
    pub(super) fn at_hand(&mut self) -> Option<Line> {
        match self {
            Self::Arguments(left) => left.pop_front().map(Line::Payload),
            Self::Input(received) => received.try_recv().ok(),
        }
    }
}

/// Hands over line after line, without what ends them, until there are no more or nobody wants
/// them. A line is read no further than `bytes_max`.
fn read_lines(mut input: impl BufRead, bytes_max: usize, lines: &mpsc::Sender<Line>) {
    let mut number = 0_u64;
    loop {
        number += 1;
        let mut line = Vec::new();
        let read = (&mut input).take(bytes_max as u64 + 1).read_until(b'\n', &mut line);
        let line = match read {
            Ok(0) => return,
            Ok(_) if line.len() > bytes_max => {
                Line::Failed(format!("line {number} is longer than {bytes_max} bytes"))
            }
            Ok(_) => {
                line.pop_if(|last| *last == b'\n');
                Line::Payload(line.into())
            }
            Err(error) => Line::Failed(format!("standard input cannot be read: {error}")),
        };
        let last = matches!(line, Line::Failed(_));
        if lines.blocking_send(line).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8], bytes_max: usize) -> Vec<Result<Bytes, String>> {
        let (lines, mut received) = mpsc::channel(AHEAD);
        read_lines(input, bytes_max, &lines);
        drop(lines);
        let mut all = Vec::new();
        while let Ok(line) = received.try_recv() {
            all.push(match line {
                Line::Payload(payload) => Ok(payload),
                Line::Failed(error) => Err(error),
            });
        }
        all
    }

    #[test]
    fn each_line_is_one_payload() {
        let lines = read(b"a\n\n\xff b\r\nlast", 100);
        let payloads: Vec<&[u8]> =
            lines.iter().map(|line| line.as_ref().unwrap().as_ref()).collect();
        assert_eq!(payloads, [b"a".as_slice(), b"", b"\xff b\r", b"last"]);
        assert!(read(b"", 100).is_empty());
    }

    #[test]
    fn a_line_without_an_end_takes_no_more_memory_than_a_frame() {
        let lines = read(b"ab\nabcdefgh\nx\n", 5);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], Err("line 2 is longer than 5 bytes".to_owned()));
    }
}
