//! One segment's bytes: what the library says of them against what an independent reader says, and
//! against what was written.

use std::ops::Range;

use procmond::wal::WalError;
use procmond::wal::fuzzing::{Contents, read_segment};

use crate::allocations::bounded;
use crate::decoder::{self, Entry, Refusal, Segment};
use crate::input::Input;
use crate::mutate::mutate;
use crate::written::{self, Label, Log, frame};

pub fn segment_reader(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => anything(&mut input),
        1 => forged(&mut input),
        _ => damaged(&mut input),
    }
}

/// Bytes that nobody wrote.
fn anything(input: &mut Input<'_>) {
    let number = input.number(1);
    let read_bytes_max = 1 + input.number(2) as usize;
    compare(input.rest(), number, None, read_bytes_max);
}

/// Frames whose checksums are right and whose fields are not.
fn forged(input: &mut Input<'_>) {
    let label = Label {
        stream: written::STREAM,
        replaces: [input.u8(); 16],
        number: input.number(1),
        salt: 0x1234_5678,
        codec: if input.u8() == 9 { 2 } else { 1 },
        rest: u16::from(input.u8() % 4),
        first: if input.u8() < 200 { 1 } else { input.odd() },
        watermark: input.odd(),
        watermark_epoch: input.odd(),
        epoch: input.odd(),
        epoch_first: input.odd(),
    };
    let mut bytes = match input.u8() {
        0 => vec![0; 104],
        1 => label.header(2, 104),
        _ => label.header(1, 104),
    };
    let mut sequence = label.first;
    for _ in 0..64 {
        if input.is_done() {
            break;
        }
        let choice = input.u8();
        sequence = match choice % 8 {
            0 => sequence.wrapping_sub(u64::from(input.u8())),
            1 => sequence.wrapping_add(u64::from(input.u8())),
            2 => input.odd(),
            _ => sequence,
        };
        let before_in_commit = if choice & 8 == 0 { 0 } else { input.odd() & 0xff_ffff };
        let salt = if choice & 16 == 0 { label.salt } else { !label.salt };
        if choice & 32 != 0 {
            let inner = Label { watermark: input.odd(), salt, ..label.clone() };
            bytes.extend(frame(
                salt,
                0,
                before_in_commit,
                sequence.wrapping_sub(1),
                0,
                &inner.bytes(),
            ));
        } else {
            let payload = vec![choice; usize::from(input.u8() % 64)];
            bytes.extend(frame(salt, choice >> 6, before_in_commit, sequence, 0, &payload));
            sequence = sequence.wrapping_add(1);
        }
        if choice == 255 {
            bytes.push(input.u8());
        }
    }
    let next_first = match input.u8() {
        0 => Some(u64::MAX),
        1 => Some(label.first.saturating_add(input.number(1))),
        _ => None,
    };
    compare(&bytes, label.number, next_first, 1 + input.number(2) as usize);
}

/// What a writer wrote and a disk has damaged.
fn damaged(input: &mut Input<'_>) {
    let next = input.u8() % 4;
    let read_bytes_max = 1 + input.number(2) as usize;
    let log = written::log(input, 1);
    let file = &log.files[0];
    let last = file.frames.iter().map(|frame| frame.sequence).max().unwrap_or(0);
    let next_first = match next {
        0 => Some(last + 1),
        1 => Some(u64::MAX),
        _ => None,
    };
    let mut bytes = file.bytes.clone();
    let untouched = input.is_done();
    let in_place = mutate(input, &mut bytes, 8);
    let Some(read) = compare(&bytes, file.number, next_first, read_bytes_max) else {
        assert!(!untouched, "what a writer wrote can be read");
        return;
    };
    if untouched {
        assert_eq!(read.last, last, "everything is there");
        assert_eq!(read.torn, read.torn.start..read.torn.start, "and nothing is torn");
    }
    check(&log, &bytes, &read, next_first, in_place);
}

/// Has the bytes read by both, and compares all they say.
fn compare(
    bytes: &[u8],
    number: u64,
    next_first: Option<u64>,
    read_bytes_max: usize,
) -> Option<Segment<'_>> {
    // A chunk, and what there is twice: no length in the bytes may ask for more.
    let bytes_max = (512 << 10) + 2 * bytes.len();
    let ours = bounded(bytes_max, || read_segment(bytes, number, next_first, read_bytes_max));
    let independent = decoder::label(bytes, number).map(|label| {
        // No segment ends before it begins, whatever the next one says.
        let first = decoder::le(label, 48, 8);
        decoder::read(bytes, label, next_first.map(|next| next.max(first)))
    });
    match (ours, independent) {
        (Err(WalError::UnknownFormat { .. }), Err(Refusal::Newer))
        | (Ok(None), Err(Refusal::Unreadable)) => None,
        (Ok(Some(ours)), Ok(segment)) => {
            assert_eq!(summary(&ours, next_first), expected(&segment, next_first));
            Some(segment)
        }
        (ours, independent) => panic!("we say {ours:?}, the other {independent:?}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Summary {
    first: u64,
    last: u64,
    records: usize,
    watermark: u64,
    lost: Vec<(u64, u64, bool)>,
    torn: Option<Range<u64>>,
}

fn summary(contents: &Contents, next_first: Option<u64>) -> Summary {
    Summary {
        first: contents.first,
        last: contents.last,
        records: contents.records as usize,
        watermark: contents.watermark,
        lost: contents
            .damage
            .iter()
            .filter_map(|(span, lost)| lost.map(|(first, last)| (first, last, !span.is_empty())))
            .collect(),
        torn: next_first.is_none().then(|| contents.torn.clone()),
    }
}

fn expected(segment: &Segment<'_>, next_first: Option<u64>) -> Summary {
    let lost = |entry: &Entry<'_>| match *entry {
        Entry::Lost { first, last, damaged } => Some((first, last, damaged)),
        Entry::Record(_) => None,
    };
    let torn = segment.torn.start as u64..segment.torn.end as u64;
    let lost: Vec<_> = segment.entries.iter().filter_map(lost).collect();
    Summary {
        first: decoder::le(segment.label, 48, 8),
        last: segment.last,
        records: segment.entries.len() - lost.len(),
        watermark: segment.watermark,
        lost,
        torn: next_first.is_none().then_some(torn),
    }
}

/// Compares what was read with what was written.
fn check(log: &Log, bytes: &[u8], read: &Segment<'_>, next_first: Option<u64>, in_place: bool) {
    let file = &log.files[0];
    let first = decoder::le(read.label, 48, 8);
    assert!(read.watermark <= log.watermark, "no watermark that nobody wrote");
    let mut next = first;
    for entry in &read.entries {
        match *entry {
            Entry::Record(frame) => {
                assert_eq!(frame.sequence, next, "one after the other, none twice");
                let record = &log.records[&frame.sequence];
                assert_eq!(
                    (frame.kind, frame.time_ns, frame.payload),
                    (record.kind, record.time_ns, &record.payload[..])
                );
                next += 1;
            }
            Entry::Lost { first, last, .. } => {
                assert_eq!(first, next);
                assert!(last >= first);
                next = last + 1;
            }
        }
    }
    assert_eq!(next, read.last + 1, "the account is whole");
    if !in_place {
        return;
    }
    // What stands where it was written, as it was written, is not lost.
    let intact = |placed: &&written::Placed| {
        bytes.get(placed.start..placed.end) == Some(&file.bytes[placed.start..placed.end])
    };
    for placed in file.frames.iter().filter(intact) {
        let lost = |entry: &Entry<'_>| matches!(*entry, Entry::Lost { first, last, .. } if (first..=last).contains(&placed.sequence));
        let control = placed.kind == 0;
        assert!(control || !read.entries.iter().any(lost), "{placed:?} is intact");
        assert!(read.last >= placed.proves, "{placed:?} proves what came before");
        if next_first.is_some() {
            assert!(read.last >= placed.sequence);
        }
    }
}
