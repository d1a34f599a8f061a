//! A scanner against what anybody can see who has all the bytes at once.

use super::super::format::{Label, Rest, encode_frame, salt_frame};
use super::*;
use daemoneye_lib::stream::{Epoch, StreamId};

const SALT: u32 = 0x0bad_cafe;
const ACCEPT: Accept = Accept::Of { salt: SALT, first: Sequence(1) };
/// Where frames begin in the files that these tests make up.
const START: u64 = 104;

/// Numbers without a pattern, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

fn label() -> Label {
    Label {
        stream: StreamId::from_bytes([7; 16]),
        replaces: None,
        segment: 1,
        salt: SALT,
        first: Sequence(1),
        watermark: Sequence::NONE,
        watermark_epoch: None,
        epoch: Epoch::from_u64(1 << 32),
        epoch_first: Sequence(1),
        rest: Rest::Nothing,
    }
}

/// Control records among so many records in [`file`].
fn controls(records: usize) -> usize {
    (records + 31) / 37
}

/// A segment's file, with a control record now and then.
fn file(payloads: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut bytes = vec![0; START as usize];
    for (index, length) in payloads.into_iter().enumerate() {
        let sequence = Sequence(index as u64 + 1);
        if index % 37 == 5 {
            bytes.extend_from_slice(&label().to_control(sequence.prev(), 0, 9));
        }
        let start = bytes.len();
        let payload: Vec<u8> = (0..length).map(|at| (at * at + index * 31) as u8).collect();
        encode_frame(&mut bytes, 1, sequence, 0, index as i64, &payload);
        salt_frame(&mut bytes[start..], SALT);
    }
    bytes
}

/// What a file's steps are by their definition, one frame at a time.
fn expected(bytes: &[u8]) -> Vec<Step> {
    let whole_at = |at: usize| {
        let head = FrameHead::read(&bytes[at..])?;
        let frame = bytes.get(at..at + head.frame_bytes())?;
        (implied_salt(frame) == SALT && head.place() >= Sequence(1)).then_some(head)
    };
    let mut steps = Vec::new();
    let mut at = START as usize;
    loop {
        if let Some(head) = whole_at(at) {
            steps.push(Step::Frame { offset: at as u64, head });
            at += head.frame_bytes();
            continue;
        }
        let from = at as u64;
        match (at..bytes.len()).find(|&later| whole_at(later).is_some()) {
            Some(later) => {
                steps.push(Step::Damage { from, to: later as u64 });
                at = later;
            }
            None => {
                steps.push(Step::Tail { from, to: bytes.len() as u64 });
                return steps;
            }
        }
    }
}

/// What the scanner says, if every read returns no more than this; and that its bytes are the file's.
fn scanned(bytes: &[u8], read_bytes_max: usize) -> Vec<Step> {
    let mut scanner = Scanner::new(START);
    let mut steps = Vec::new();
    loop {
        let step = step(&mut scanner, bytes, read_bytes_max, bytes.len());
        steps.push(step);
        match step {
            Step::Frame { offset, head } => {
                let at = offset as usize;
                assert_eq!(scanner.frame(), &bytes[at..at + head.frame_bytes()]);
                assert_eq!(*scanner.head(), head);
            }
            Step::Damage { .. } => {}
            Step::Tail { .. } => return steps,
        }
    }
}

fn step(scanner: &mut Scanner, bytes: &[u8], read_bytes_max: usize, limit: usize) -> Step {
    let mut read = |buffer: &mut [u8], offset: u64| {
        let rest = &bytes[offset as usize..];
        let length = rest.len().min(buffer.len()).min(read_bytes_max);
        assert!(offset as usize + buffer.len() <= limit, "nothing beyond the limit");
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    };
    scanner.step_by(&mut read, ACCEPT, limit as u64).unwrap()
}

#[test]
fn steps_are_the_same_however_the_bytes_come() {
    let mut dice = Dice(1);
    // Longer than the buffer, with a frame that is longer than a read and one that is longer than
    // the buffer.
    let lengths: Vec<_> = (0..3000)
        .map(|index| match index {
            900 => READ_BYTES + 5,
            1700 => BUFFER_BYTES + 77,
            _ => dice.roll(700),
        })
        .collect();
    let bytes = file(lengths);
    assert!(bytes.len() > 2 * BUFFER_BYTES);
    let expected = expected(&bytes);
    assert_eq!(expected.len(), 3000 + controls(3000) + 1, "frames, controls and the end");
    for read_bytes_max in [usize::MAX, READ_BYTES - 1, 4096, 1000] {
        assert!(scanned(&bytes, read_bytes_max) == expected, "by {read_bytes_max} bytes");
    }
}

#[test]
fn steps_around_damage_are_those_of_the_definition() {
    let mut dice = Dice(2);
    let mut damaged = 0;
    for round in 0..150 {
        let lengths: Vec<_> = (0..1 + dice.roll(300)).map(|_| dice.roll(90)).collect();
        let mut bytes = file(lengths);
        for _ in 0..dice.roll(4) {
            let at = START as usize + dice.roll(bytes.len() - START as usize);
            let upto = bytes.len().min(at + 1 + dice.roll(300));
            match dice.roll(4) {
                0 => bytes[at] ^= 1 << dice.roll(8),
                1 => bytes[at..upto].fill(0),
                2 => drop(bytes.drain(at..upto)),
                _ => {
                    // Twice.
                    let copy = bytes[at..upto].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
        let expected = expected(&bytes);
        damaged += expected.iter().filter(|step| matches!(step, Step::Damage { .. })).count();
        let read_bytes_max = [usize::MAX, 500, 7][dice.roll(3)];
        assert_eq!(scanned(&bytes, read_bytes_max), expected, "round {round}");
    }
    assert!(damaged > 100, "{damaged}");
}

#[test]
fn what_follows_is_seen_when_the_limit_has_moved() {
    let bytes = file((0..400).map(|index| index % 50));
    let mut scanner = Scanner::new(START);
    let mut frames = 0;
    let mut limit = START as usize;
    while limit < bytes.len() {
        limit = bytes.len().min(limit + 97);
        loop {
            match step(&mut scanner, &bytes, usize::MAX, limit) {
                Step::Frame { .. } => frames += 1,
                Step::Tail { from, to } => {
                    assert_eq!((from, to), (scanner.offset(), limit as u64));
                    break;
                }
                Step::Damage { .. } => panic!("nothing is damaged"),
            }
        }
    }
    assert_eq!(frames, 400 + controls(400));
}

#[test]
fn a_step_is_taken_back_and_taken_again() {
    // One of each: the first of a run, one in it, and one that is checked for itself.
    let bytes = file([10, 20, BUFFER_BYTES, 30, 40]);
    let mut scanner = Scanner::new(START);
    for _ in 0..5 {
        let taken = step(&mut scanner, &bytes, usize::MAX, bytes.len());
        assert!(matches!(taken, Step::Frame { .. }));
        scanner.step_back();
        assert_eq!(step(&mut scanner, &bytes, usize::MAX, bytes.len()), taken);
    }
    assert!(matches!(step(&mut scanner, &bytes, usize::MAX, bytes.len()), Step::Tail { .. }));
}

#[test]
fn a_step_is_taken_onto_the_next_record_only_and_only_if_it_was_checked() {
    let bytes = file([1; 20]);
    let mut scanner = Scanner::new(START);
    for sequence in 1..=2 {
        assert!(!scanner.step_onto(Sequence(sequence)), "nothing has been checked ahead");
        let first = step(&mut scanner, &bytes, usize::MAX, bytes.len());
        assert!(matches!(first, Step::Frame { head, .. } if head.sequence == Sequence(sequence)));
    }
    assert!(!scanner.step_onto(Sequence(4)), "another comes first");
    for sequence in 3..=5 {
        assert!(scanner.step_onto(Sequence(sequence)));
        assert_eq!((scanner.head().sequence, scanner.payload().len()), (Sequence(sequence), 1));
    }
    assert!(!scanner.step_onto(Sequence(5)), "the control record that says 5 is next");
    assert!(!scanner.step_onto(Sequence(6)), "a control record is next");
    let control = step(&mut scanner, &bytes, usize::MAX, bytes.len());
    assert!(matches!(control, Step::Frame { head, .. } if head.kind == KIND_CONTROL));
    assert!(scanner.step_onto(Sequence(6)));
    let offset = scanner.offset();
    scanner.jump(offset);
    assert!(!scanner.step_onto(Sequence(7)), "behind a jump nothing is known");
    let next = step(&mut scanner, &bytes, usize::MAX, bytes.len());
    assert!(matches!(next, Step::Frame { head, .. } if head.sequence == Sequence(7)));
}

#[test]
fn one_damaged_frame_is_found_among_many() {
    let whole = file([50; 1100]);
    let frames = expected(&whole);
    for hit in [1, 2, 511, 512, 513, 800, 1099] {
        let Step::Frame { offset, .. } = frames[hit] else { panic!("all are whole") };
        let mut bytes = whole.clone();
        bytes[offset as usize + 35] ^= 0x40;
        let Step::Frame { offset: next, .. } = frames[hit + 1] else { panic!("all are whole") };
        let steps = scanned(&bytes, usize::MAX);
        assert_eq!(steps[..hit], frames[..hit]);
        assert_eq!(steps[hit], Step::Damage { from: offset, to: next });
        assert_eq!(steps[hit + 1..], frames[hit + 1..]);
    }
}
