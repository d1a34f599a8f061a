//! What damage costs: exactly the records it touches, every one of them reported, and never taken
//! for the torn tail of a crash.
//!
//! Each kind of damage is a row of a table: what is done to the files, which records are lost and
//! why, and what `procmond wal verify` says. The row is held against `verify`, against what is read
//! out of the files (`export`'s way), and against a log that is opened there, which has to say the
//! same three times, go on with a sequence that was never used, and say the same again when it is
//! opened once more.
#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{
    Entry, LogEntry, LogFiles, LostReason, NewRecord, ProblemKind, Progress, WalOptions,
    WriteAheadLog, inspect, read_files,
};
use serde_json::Value;
use tempfile::TempDir;

/// Lost records: the first, the last, and why.
type Lost = (u64, u64, &'static str);
/// A problem that `verify` names: the segment, its kind, and the lost records.
type Problem = (u64, &'static str, Option<(u64, u64)>);

const DAMAGED: &str = "damaged";
const MISSING: &str = "missing";

/// Bytes before a segment's records: the header and the first control record.
const BEFORE_RECORDS: usize = 224;
const HEADER: usize = 104;
const CONTROL: usize = 120;
const FRAME: usize = 32;

fn payload(sequence: u64) -> Vec<u8> {
    format!("payload {sequence:04}").into_bytes()
}

/// Bytes of each record's frame.
const RECORD: usize = FRAME + 12;

#[test]
fn what_damage_costs() {
    let sound = Case {
        what: "nothing",
        log: singles,
        hurt: |_| {},
        of: (1, 300),
        lost: &[],
        verify: &[],
        torn: false,
        why_opened: None,
    };
    sound.check();
    for case in [
        // A flipped bit; `every_byte_of_a_segment` has the rest of them.
        Case {
            what: "a flipped bit in a header",
            hurt: |files| files.flip(2, 50),
            verify: &[(2, "header", None)],
            ..sound
        },
        Case {
            what: "a flipped bit in a segment's first control record",
            hurt: |files| files.flip(2, HEADER + 40),
            verify: &[(2, "damaged", None)],
            ..sound
        },
        Case {
            what: "a flipped bit in a frame's head",
            hurt: |files| files.flip(2, files.record(2, 150) + 9),
            lost: &[(150, 150, DAMAGED)],
            verify: &[(2, "damaged", Some((150, 150)))],
            ..sound
        },
        Case {
            what: "a flipped bit in a payload",
            hurt: |files| files.flip(2, files.record(2, 150) + FRAME + 3),
            lost: &[(150, 150, DAMAGED)],
            verify: &[(2, "damaged", Some((150, 150)))],
            ..sound
        },
        Case {
            what: "a flipped bit in the newest segment, with commits after it",
            hurt: |files| files.flip(3, files.record(3, 290)),
            lost: &[(290, 290, DAMAGED)],
            verify: &[(3, "damaged", Some((290, 290)))],
            ..sound
        },
        Case {
            what: "a flipped bit in the very last record, which the log was closed after",
            hurt: |files| files.flip(3, files.record(3, 300)),
            lost: &[(300, 300, DAMAGED)],
            verify: &[(3, "damaged", Some((300, 300)))],
            ..sound
        },
        // Nothing proves that anything there was ever durable.
        Case {
            what: "the same after a crash",
            hurt: |files| {
                files.crash(3, 300);
                files.flip(3, files.record(3, 300));
            },
            of: (1, 299),
            verify: &[(3, "torn_tail", None)],
            torn: true,
            ..sound
        },
        Case {
            what: "a flipped bit in the last witness",
            hurt: |files| files.flip(3, files.record(3, 300) + RECORD + 1),
            verify: &[(3, "torn_tail", None)],
            torn: true,
            ..sound
        },
        // Pages and blocks.
        Case {
            what: "a first page of zeros, with a control record behind it",
            hurt: |files| files.zero(2, 0..4096),
            lost: &[(129, 216, DAMAGED)],
            verify: &[(2, "header", None), (2, "damaged", Some((129, 216)))],
            ..sound
        },
        Case {
            what: "a last page of zeros in a segment that another follows",
            hurt: |files| files.zero(2, 4096..8192),
            lost: &[(217, 256, DAMAGED)],
            verify: &[(2, "damaged", Some((217, 256)))],
            ..sound
        },
        Case {
            what: "the newest segment all zeros",
            hurt: |files| files.zero(3, 0..8192),
            // As many as have room in 2056 bytes: their sequences are not given again.
            of: (1, 320),
            lost: &[(257, 320, DAMAGED)],
            verify: &[(3, "unreadable", Some((257, 320)))],
            ..sound
        },
        Case {
            what: "two blocks swapped",
            hurt: |files| {
                files.change(2, |bytes| {
                    let (front, back) = bytes.split_at_mut(3072);
                    front[1024..1536].swap_with_slice(&mut back[..512]);
                });
            },
            // 194 to 204 stand where 147 to 158 were: those before them cannot come any more.
            lost: &[(147, 193, DAMAGED), (205, 205, DAMAGED)],
            verify: &[
                (2, "damaged", Some((147, 193))),
                // The ragged edges: what stood there is lost already, or comes too late.
                (2, "damaged", None),
                (2, "damaged", None),
                (2, "damaged", Some((205, 205))),
            ],
            ..sound
        },
        Case {
            what: "a block written in a second place",
            hurt: |files| files.change(2, |bytes| bytes.copy_within(1024..1536, 3072)),
            lost: &[(193, 205, DAMAGED)],
            verify: &[(2, "damaged", None), (2, "damaged", Some((193, 205)))],
            ..sound
        },
        // Files cut short.
        Case {
            what: "a middle segment cut within a record",
            hurt: |files| files.cut(2, files.record(2, 200) + 10),
            lost: &[(200, 256, DAMAGED)],
            verify: &[(2, "damaged", Some((200, 256)))],
            ..sound
        },
        Case {
            what: "a middle segment cut between two records",
            hurt: |files| files.cut(2, files.record(2, 200)),
            lost: &[(200, 256, MISSING)],
            verify: &[(2, "damaged", Some((200, 256)))],
            ..sound
        },
        Case {
            what: "a middle segment cut within its header",
            hurt: |files| files.cut(2, 60),
            lost: &[(129, 256, DAMAGED)],
            verify: &[(2, "unreadable", Some((129, 256)))],
            ..sound
        },
        Case {
            what: "the newest segment cut within a record",
            hurt: |files| files.cut(3, files.record(3, 290) + 40),
            of: (1, 289),
            verify: &[(3, "torn_tail", None)],
            torn: true,
            ..sound
        },
        // Segments that are not there.
        Case {
            what: "the first segment missing",
            hurt: |files| files.remove(1),
            lost: &[(1, 128, MISSING)],
            verify: &[(2, "predecessor_missing", Some((1, 128)))],
            ..sound
        },
        Case {
            what: "the first segment missing, committed in part",
            log: committed,
            hurt: |files| files.remove(1),
            of: (101, 300),
            lost: &[(101, 128, MISSING)],
            verify: &[(2, "predecessor_missing", Some((101, 128)))],
            ..sound
        },
        Case {
            what: "a middle segment missing",
            hurt: |files| files.remove(2),
            lost: &[(129, 256, MISSING)],
            verify: &[(3, "predecessor_missing", Some((129, 256)))],
            ..sound
        },
        // Nothing is left that says it has been there.
        Case {
            what: "the last segment missing",
            hurt: |files| files.remove(3),
            of: (1, 256),
            ..sound
        },
        // Files that are not what their names say.
        Case {
            what: "a second segment of a number, under the next one's name",
            hurt: |files| files.put(2, &files.bytes(1)),
            lost: &[(129, 256, DAMAGED)],
            verify: &[(2, "unreadable", Some((129, 256)))],
            ..sound
        },
        Case {
            what: "a second newest segment, under a number of its own",
            hurt: |files| files.put(4, &files.bytes(3)),
            of: (1, 364),
            lost: &[(301, 364, DAMAGED)],
            verify: &[(4, "unreadable", Some((301, 364)))],
            ..sound
        },
        Case {
            what: "a second segment of a number, under a name that no segment has",
            hurt: |files| {
                fs::copy(files.path(1), files.dir.path().join("procmond-000002.wal")).unwrap();
                fs::copy(files.path(1), files.dir.path().join("procmond-00002.wal.bak")).unwrap();
            },
            ..sound
        },
        Case {
            what: "another log's segment",
            hurt: |files| {
                files.put(2, &Files::of(stranger()).bytes(2));
            },
            lost: &[(129, 256, MISSING)],
            verify: &[(2, "foreign", None), (3, "predecessor_missing", Some((129, 256)))],
            ..sound
        },
        Case {
            what: "a file that is no segment",
            hurt: |files| files.put(2, "not what its name says\n".repeat(200).as_bytes()),
            lost: &[(129, 256, DAMAGED)],
            verify: &[(2, "unreadable", Some((129, 256)))],
            ..sound
        },
        Case {
            what: "a file that is no segment in the first one's place",
            hurt: |files| files.put(1, "not what its name says\n".repeat(200).as_bytes()),
            lost: &[(1, 128, DAMAGED)],
            verify: &[(1, "unreadable", Some((1, 128)))],
            ..sound
        },
    ] {
        case.check();
    }
}

#[test]
fn what_damage_costs_in_commits_of_many() {
    let sound = Case {
        what: "nothing",
        log: tens,
        hurt: |_| {},
        of: (1, 100),
        lost: &[],
        verify: &[],
        torn: false,
        why_opened: None,
    };
    sound.check();
    for case in [
        Case {
            what: "a record of a commit that another follows",
            hurt: |files| {
                files.crash(1, 100);
                files.flip(1, files.record(1, 85));
            },
            lost: &[(85, 85, DAMAGED)],
            verify: &[(1, "damaged", Some((85, 85)))],
            ..sound
        },
        Case {
            what: "a record of the last commit before the log was closed",
            hurt: |files| files.flip(1, files.record(1, 95)),
            lost: &[(95, 95, DAMAGED)],
            verify: &[(1, "damaged", Some((95, 95)))],
            ..sound
        },
        // Which a power cut leaves behind that had written only some of its sectors.
        Case {
            what: "a record of the last commit before a crash",
            hurt: |files| {
                files.crash(1, 100);
                files.flip(1, files.record(1, 95));
            },
            of: (1, 94),
            verify: &[(1, "torn_tail", None)],
            torn: true,
            ..sound
        },
        Case {
            what: "records of the last commit before a crash, and of the one before",
            hurt: |files| {
                files.crash(1, 100);
                files.zero(1, files.record(1, 85)..files.record(1, 96));
            },
            of: (1, 90),
            lost: &[(85, 90, DAMAGED)],
            verify: &[(1, "damaged", Some((85, 90))), (1, "torn_tail", None)],
            torn: true,
            why_opened: Some(MISSING),
            ..sound
        },
    ] {
        case.check();
    }
}

#[test]
fn what_damage_costs_with_an_earlier_life_behind_the_records() {
    let sound = Case {
        what: "nothing",
        log: recycled,
        hurt: |_| {},
        of: (71, 101),
        lost: &[],
        verify: &[],
        torn: false,
        why_opened: None,
    };
    let files = Files::of(recycled());
    let earlier = files.record(3, 20);
    assert!(earlier > files.record(3, 101), "record 20 of the earlier life is still in the file");
    sound.check();
    for case in [
        Case {
            what: "a record",
            hurt: |files| files.flip(3, files.record(3, 90)),
            lost: &[(90, 90, DAMAGED)],
            verify: &[(3, "damaged", Some((90, 90)))],
            ..sound
        },
        Case {
            what: "the header",
            hurt: |files| files.zero(3, 0..HEADER),
            verify: &[(3, "header", None)],
            ..sound
        },
        Case {
            what: "the last record, of which the head is left",
            hurt: |files| files.flip(3, files.record(3, 101) + FRAME),
            of: (71, 100),
            verify: &[(3, "torn_tail", None)],
            torn: true,
            ..sound
        },
        // As if it had never been written.
        Case {
            what: "the last record and its head",
            hurt: |files| files.zero(3, files.record(3, 101)..files.record(3, 101) + RECORD),
            of: (71, 100),
            ..sound
        },
        Case {
            what: "everything but the earlier life",
            hurt: |files| files.zero(3, 0..files.record(3, 101) + RECORD),
            of: (1, 0),
            verify: &[(3, "unreadable", None)],
            ..sound
        },
    ] {
        case.check();
    }
}

/// Whoever puts another log's segment behind ours has changed what the log is: the newest readable
/// segment says so. Ours are named, neither read nor touched, and come back when it is taken away.
#[test]
fn another_log_s_segment_as_the_newest_hides_the_log_and_harms_nothing() {
    let files = Files::of(singles());
    let before: Vec<_> = (1..=3).map(|segment| files.bytes(segment)).collect();
    let mut theirs = Files::of(stranger()).bytes(3);
    rename(&mut theirs, 4);
    files.put(4, &theirs);
    let (code, lines) = verify(files.dir.path());
    assert_eq!(code, 1);
    for segment in 1..=3 {
        let named = lines.iter().any(|line| line["number"] == segment && line["kind"] == "foreign");
        assert!(named, "segment {segment}: {lines:?}");
    }
    let (log, recovery) = open(files.dir.path());
    assert_eq!(recovery.foreign, (1..=3).map(|n| files.path(n)).collect::<Vec<_>>());
    log.close().unwrap();
    drop(log);
    let after: Vec<_> = (1..=3).map(|segment| files.bytes(segment)).collect();
    assert!(after == before, "not a byte of ours has changed");
    for theirs in 4..=5 {
        let _ = fs::remove_file(files.path(theirs));
    }
    assert_eq!(read_out(files.dir.path(), payload), expected((1, 300), &[]));
}

/// Gives a segment's header another number.
fn rename(segment: &mut [u8], number: u64) {
    segment[16 + 32..16 + 40].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32fast::hash(&[&segment[..12], &segment[16..HEADER]].concat());
    segment[12..16].copy_from_slice(&checksum.to_le_bytes());
}

/// A bit of a byte at a time: of each in the header, in the control records, and in the first and
/// last records; of one in each of the others. The frame that it is in is lost, if it is a record,
/// and no other.
#[test]
fn every_byte_of_a_segment_counts_for_its_own_frame_alone() {
    for (log, segment, (first, last), all) in
        [(singles(), 2, (129, 256), 300), (tens(), 1, (1, 100), 100)]
    {
        let files = Files::of(log);
        let dir = files.dir.path();
        let bytes = files.bytes(segment);
        let frames = frames(&bytes);
        let records = frames.iter().filter(|(_, sequence)| sequence.is_some());
        assert!(records.map(|(_, sequence)| sequence.unwrap()).eq(first..=last));
        let (witness, _) = frames.last().unwrap().clone();
        let chosen = frames.iter().enumerate().flat_map(|(index, (span, sequence))| {
            let each = sequence.is_none_or(|n| n <= first + 1 || n >= last - 1);
            let at = span.start + index * 7 % span.len();
            if each { span.clone() } else { at..at + 1 }
        });
        for at in (0..HEADER).chain(chosen) {
            files.flip(segment, at);
            let hit = frames.iter().find(|(span, _)| span.contains(&at));
            let lost = hit.and_then(|&(_, sequence)| Some((sequence?, sequence?, DAMAGED)));
            let told = read_out(dir, payload);
            assert_eq!(told, expected((1, all), lost.as_slice()), "byte {at}");
            // The end of the newest segment is waited for, and told in the table.
            if segment != 1 || !witness.contains(&at) {
                let seen = inspect(dir).unwrap();
                let problems: Vec<_> = seen
                    .segments
                    .iter()
                    .flat_map(|report| report.problems.iter().map(|it| (report.number, *it)))
                    .collect();
                let [(number, problem)] = problems[..] else { panic!("byte {at}: {problems:?}") };
                let span = hit.map_or(0..HEADER, |(span, _)| span.clone());
                let kind = if hit.is_some() { ProblemKind::Damaged } else { ProblemKind::Header };
                assert_eq!((number, problem.kind), (segment, kind), "byte {at}");
                assert_eq!((problem.from, problem.to), (span.start as u64, span.end as u64));
                let said = problem.lost.map(|lost| (lost.first.0, lost.last.0));
                assert_eq!(said, lost.map(|(first, last, _)| (first, last)), "byte {at}");
            }
            files.put(segment, &bytes);
        }
    }
}

/// Where the frames of a sound segment stand; the sequence of those that are records.
fn frames(bytes: &[u8]) -> Vec<(Range<usize>, Option<u64>)> {
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let mut frames = Vec::new();
    let mut at = HEADER;
    while at < bytes.len() && number(at, 4) == number(HEADER, 4) {
        let end = at + FRAME + number(at + 8, 4) as usize;
        frames.push((at..end, (bytes[at + 12] != 0).then(|| number(at + 16, 8))));
        at = end;
    }
    frames
}

/// The drill that the peers go through as well (`benches/peers`, `docs/damage.md`): ten thousand
/// records of 400 bytes in commits of 64, a crash, and damage around the record in the middle.
#[test]
fn ten_thousand_records_survive_as_many_as_are_whole() {
    const RECORDS: u64 = 10_000;
    const BYTES: usize = 400;
    fn payload(sequence: u64) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ sequence.wrapping_mul(0xd134_2543_de82_ef95);
        let words = (0..BYTES / 8).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.collect()
    }
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    for first in (1..=RECORDS).step_by(64) {
        append(&log, first, 64.min(RECORDS + 1 - first), payload);
    }
    // As it lies there while it is written, every record with a receipt.
    let crashed = image(dir.path());
    drop(log);
    let bytes = Files::of(&crashed).bytes(1);
    let frames = frames(&bytes);
    let at = |sequence: u64| find(&bytes, &payload(sequence));
    let (middle, last) = (at(RECORDS / 2 + 1), at(RECORDS));
    let end = frames.last().unwrap().0.end;

    // What is done, where, and how many survive by it at least.
    type Row<'a> = (&'a str, Range<usize>, &'a dyn Fn(&mut [u8]), usize);
    let zeros: &dyn Fn(&mut [u8]) = &|bytes| bytes.fill(0);
    let garbage: &dyn Fn(&mut [u8]) = &|bytes| {
        let other = (20_000..).flat_map(payload);
        bytes.iter_mut().zip(other).for_each(|(byte, other)| *byte = other);
    };
    let rows: [Row<'_>; 7] = [
        ("a flipped bit", middle + 12..middle + 13, &|bytes| bytes[0] ^= 4, 9_999),
        ("64 bytes of the segment's header wiped", 0..64, zeros, 10_000),
        ("64 bytes from the head of a frame wiped", middle - FRAME..middle + FRAME, zeros, 9_999),
        // Its head is 32 bytes long: the others are the end of the record before it.
        ("64 bytes before a payload wiped", middle - 64..middle, zeros, 9_998),
        ("a page of 4 KiB zeroed", middle & !4095..(middle & !4095) + 4096, zeros, 9_989),
        ("the tail zeroed", last + 200..end, zeros, 9_999),
        ("the tail overwritten", last + 200..end, garbage, 9_999),
    ];
    for (what, range, hurt, survivors) in rows {
        let files = Files::of(&crashed);
        files.change(1, |bytes| hurt(&mut bytes[range.clone()]));
        // Those records, and no others, that a changed byte is in.
        let touched =
            frames.iter().filter(|(span, _)| span.start < range.end && range.start < span.end);
        let gone: Vec<_> = touched.filter_map(|(_, sequence)| *sequence).collect();
        assert!(RECORDS as usize - gone.len() >= survivors, "{what}: {gone:?}");
        let torn = gone.last() == Some(&RECORDS);
        let whole = if torn { RECORDS - 1 } else { RECORDS };
        let lost: Vec<_> = match (gone.first(), gone.last()) {
            (Some(&first), Some(&last)) if !torn => vec![(first, last, DAMAGED)],
            _ => vec![],
        };
        let wanted = expected((1, whole), &lost);
        assert_eq!(read_out(files.dir.path(), payload), wanted, "{what}");
        let (_, lines) = verify(files.dir.path());
        let total = lines.last().unwrap();
        assert_eq!(total["records"], wanted.records.len(), "{what}");
        assert_eq!(total["lost"], if torn { 0 } else { gone.len() }, "{what}");
        let (log, recovery) = open(files.dir.path());
        assert_eq!(recovery.torn.is_some(), torn, "{what}");
        assert_eq!(read_back(&log, payload), wanted, "{what}");
    }

    // Cut short anywhere, every whole record is there.
    for cut in [middle, middle - FRAME, middle + BYTES, last + 1, 5_000, BEFORE_RECORDS, HEADER] {
        let files = Files::of(&crashed);
        files.cut(1, cut);
        let whole = frames.iter().take_while(|(span, _)| span.end <= cut);
        let whole = whole.filter_map(|(_, sequence)| *sequence).last().unwrap_or(0);
        let wanted = expected((1, whole), &[]);
        assert_eq!(read_out(files.dir.path(), payload), wanted, "cut at {cut}");
        let (log, recovery) = open(files.dir.path());
        assert_eq!(
            recovery.torn.is_some(),
            !frames.iter().any(|(span, _)| span.end == cut || span.start == cut),
            "cut at {cut}"
        );
        assert_eq!(read_back(&log, payload), wanted, "cut at {cut}");
    }
}

/// The files of a log that was written once.
type Image = Vec<(String, Vec<u8>)>;

fn image(dir: &Path) -> Image {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    files.map(|entry| (name(&entry), fs::read(entry.path()).unwrap())).collect()
}

/// A log directory that may be hurt.
struct Files {
    dir: TempDir,
}

impl Files {
    fn of(image: &Image) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in image {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        Self { dir }
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.dir.path().join(format!("procmond-{segment:05}.wal"))
    }

    fn bytes(&self, segment: u64) -> Vec<u8> {
        fs::read(self.path(segment)).unwrap()
    }

    fn change(&self, segment: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes(segment);
        change(&mut bytes);
        fs::write(self.path(segment), bytes).unwrap();
    }

    fn flip(&self, segment: u64, at: usize) {
        self.change(segment, |bytes| bytes[at] ^= 1 << (at % 8));
    }

    fn zero(&self, segment: u64, range: Range<usize>) {
        self.change(segment, |bytes| {
            let end = range.end.min(bytes.len());
            bytes[range.start..end].fill(0);
        });
    }

    fn cut(&self, segment: u64, at: usize) {
        self.change(segment, |bytes| bytes.truncate(at));
    }

    /// As a crash right after this record leaves it, without the witness of a clean close.
    fn crash(&self, segment: u64, last: u64) {
        self.cut(segment, self.record(segment, last) + RECORD);
    }

    fn put(&self, segment: u64, bytes: &[u8]) {
        fs::write(self.path(segment), bytes).unwrap();
    }

    fn remove(&self, segment: u64) {
        fs::remove_file(self.path(segment)).unwrap();
    }

    /// Where a record's frame begins.
    fn record(&self, segment: u64, sequence: u64) -> usize {
        find(&self.bytes(segment), &payload(sequence)) - FRAME
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).unwrap()
}

/// Writes a log of so many records by commits of so many, and closes it: a witness follows the
/// last record. Its segments come out as long as they should, or it is written again: where the
/// machine is so slow that the log falls idle between two commits, it says so in a frame more.
fn written(records: u64, commit: u64, lengths: &[usize]) -> Image {
    for _ in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = WriteAheadLog::open(dir.path(), small_segments()).unwrap();
        for first in (1..=records).step_by(commit as usize) {
            append(&log, first, commit, payload);
        }
        log.close().unwrap();
        drop(log);
        let found: Vec<_> = (1..=lengths.len() as u64)
            .filter_map(|n| fs::metadata(dir.path().join(format!("procmond-{n:05}.wal"))).ok())
            .map(|metadata| metadata.len() as usize)
            .collect();
        if found == lengths {
            return image(dir.path());
        }
    }
    panic!("the log never came out as {lengths:?}");
}

/// Appends records as one commit.
fn append(log: &WriteAheadLog, first: u64, count: u64, payload: Payload) {
    let payloads: Vec<_> = (first..first + count).map(payload).collect();
    let records: Vec<_> = (first..)
        .zip(&payloads)
        .map(|(n, payload)| NewRecord { kind: 1, timestamp_ns: n as i64, payload })
        .collect();
    let receipt = log.append_blocking(&records).unwrap();
    assert_eq!(receipt.sequence, Sequence(first + count - 1));
}

fn small_segments() -> WalOptions {
    WalOptions {
        segment_bytes: 6000,
        commit_delay: Duration::ZERO,
        prepare: false,
        ..WalOptions::default()
    }
}

/// Three segments with the records 1 to 128, 129 to 256 and 257 to 300, each a commit of its own.
/// The first two have a control record where they pass 4096 bytes.
fn singles() -> &'static Image {
    static LOG: OnceLock<Image> = OnceLock::new();
    LOG.get_or_init(singly)
}

/// Another log altogether, of the same shape.
fn stranger() -> &'static Image {
    static LOG: OnceLock<Image> = OnceLock::new();
    LOG.get_or_init(singly)
}

fn singly() -> Image {
    let full = BEFORE_RECORDS + 128 * RECORD + CONTROL;
    written(300, 1, &[full, full, BEFORE_RECORDS + 44 * RECORD + CONTROL])
}

/// `singles`, opened once more to acknowledge a hundred records.
fn committed() -> &'static Image {
    static LOG: OnceLock<Image> = OnceLock::new();
    let made = || {
        let files = Files::of(singles());
        let (log, _) = open(files.dir.path());
        log.acknowledge(Sequence(100)).unwrap();
        log.close().unwrap();
        drop(log);
        image(files.dir.path())
    };
    LOG.get_or_init(made)
}

/// One segment of a hundred records, in commits of ten.
fn tens() -> &'static Image {
    static LOG: OnceLock<Image> = OnceLock::new();
    LOG.get_or_init(|| written(100, 10, &[BEFORE_RECORDS + 100 * RECORD + 2 * CONTROL]))
}

/// One segment with the records 71 to 101, made out of another whose records stand behind them.
/// What came before was acknowledged. It was killed: no witness follows the last record.
fn recycled() -> &'static Image {
    static LOG: OnceLock<Image> = OnceLock::new();
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1/recycled"));
    LOG.get_or_init(|| image(golden))
}

/// A row of the table.
struct Case {
    what: &'static str,
    log: fn() -> &'static Image,
    hurt: fn(&Files),
    /// The first and the last sequence that is accounted for, lost or not.
    of: (u64, u64),
    lost: &'static [Lost],
    verify: &'static [Problem],
    /// Whether something is taken for a crash's torn tail, and cut off.
    torn: bool,
    /// Why the records are lost once the log was opened, if that is another reason: what was
    /// damaged at a torn end is cut off with it.
    why_opened: Option<&'static str>,
}

/// What one reader tells: records and losses in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    records: Vec<u64>,
    lost: Vec<(u64, u64, String)>,
}

impl Told {
    fn record(&mut self, sequence: Sequence, timestamp_ns: i64, bytes: &[u8], payload: Payload) {
        assert_eq!(bytes, payload(sequence.0), "record {sequence} is not what was written");
        assert_eq!(timestamp_ns, sequence.0 as i64);
        self.records.push(sequence.0);
    }

    fn lose(&mut self, first: Sequence, last: Sequence, reason: LostReason) {
        self.lost.push((first.0, last.0, reason.to_string()));
    }
}

type Payload = fn(u64) -> Vec<u8>;

/// What the files hold, without opening the log.
fn read_out(dir: &Path, payload: Payload) -> Told {
    let mut told = Told::default();
    let all = Sequence(0)..=Sequence(u64::MAX >> 1);
    read_files(&LogFiles::from(dir), all, &Progress::default(), &mut |entry| {
        match entry {
            LogEntry::Record { sequence, timestamp_ns, payload: bytes, .. } => {
                told.record(sequence, timestamp_ns, bytes, payload);
            }
            LogEntry::Lost { first, last, reason, .. } => told.lose(first, last, reason),
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    told
}

/// What a consumer gets from an open log.
fn read_back(log: &WriteAheadLog, payload: Payload) -> Told {
    let mut told = Told::default();
    let mut reader = log.reader(Sequence::FIRST);
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            return told;
        }
        for entry in batch {
            match entry {
                Entry::Record(r) => told.record(r.sequence, r.timestamp_ns, &r.payload, payload),
                Entry::Lost { first, last, reason } => told.lose(first, last, reason),
            }
        }
    }
}

/// What `procmond wal verify --json` says, and with which exit code.
fn verify(dir: &Path) -> (i32, Vec<Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_procmond"))
        .args(["wal", "verify", "--json", "--dir"])
        .arg(dir)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let out = String::from_utf8(output.stdout).unwrap();
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines)
}

fn open(dir: &Path) -> (WriteAheadLog, procmond::wal::Recovery) {
    WriteAheadLog::open(dir, small_segments()).unwrap()
}

/// Everything but for what is lost.
fn expected((first, last): (u64, u64), lost: &[Lost]) -> Told {
    let gone: BTreeSet<u64> = lost.iter().flat_map(|&(first, last, _)| first..=last).collect();
    Told {
        records: (first..=last).filter(|sequence| !gone.contains(sequence)).collect(),
        lost: lost.iter().map(|&(first, last, why)| (first, last, why.to_owned())).collect(),
    }
}

impl Case {
    fn check(&self) {
        let Self { what, lost, torn, .. } = *self;
        let mut wanted = expected(self.of, lost);
        let files = Files::of((self.log)());
        (self.hurt)(&files);
        let dir = files.dir.path();

        let (code, lines) = verify(dir);
        let (total, problems) = lines.split_last().unwrap();
        let said: Vec<_> = problems
            .iter()
            .map(|problem| {
                let lost = problem["first_lost"].as_u64().zip(problem["last_lost"].as_u64());
                (problem["number"].as_u64().unwrap(), problem["kind"].as_str().unwrap(), lost)
            })
            .collect();
        assert_eq!(said, self.verify, "{what}: verify");
        assert_eq!(code, i32::from(!self.verify.is_empty()), "{what}: verify's exit code");
        assert_eq!(total["records"], wanted.records.len() as u64, "{what}: verify's count");
        let missing: u64 = lost.iter().map(|(first, last, _)| last - first + 1).sum();
        assert_eq!(total["lost"], missing, "{what}: verify's count of lost records");

        assert_eq!(read_out(dir, payload), wanted, "{what}: read out of the files");

        if let Some(why) = self.why_opened {
            wanted.lost.iter_mut().for_each(|lost| lost.2 = why.to_owned());
        }
        let (log, recovery) = open(dir);
        assert_eq!(recovery.torn.is_some(), torn, "{what}: {:?}", recovery.torn);
        assert_eq!(recovery.last, Sequence(self.of.1), "{what}");
        assert_eq!(read_back(&log, payload), wanted, "{what}: read back by a consumer");
        let next = self.of.1 + 1;
        append(&log, next, 1, payload);
        drop(log);

        let (log, recovery) = open(dir);
        assert_eq!(recovery.torn, None, "{what}: there was no crash since");
        let again = Told { records: [&wanted.records[..], &[next]].concat(), ..wanted };
        assert_eq!(read_back(&log, payload), again, "{what}: opened once more");
    }
}
