//! Logs of format version 1 that must be readable for ever, each read by the library and by a
//! reader written from `docs/wal-format.md` alone, which must agree with each other and with the
//! listing beside the files.
//!
//! The files were made once, by `make_the_golden_files`, and are not made again: what it writes
//! today may differ, what was written then must still be read.
#![cfg(test)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, ProblemKind, WalOptions, WriteAheadLog, inspect};

#[path = "golden/decoder.rs"]
mod decoder;

use decoder::le;

const CASES: [&str; 7] = ["growing", "epochs", "torn", "header", "damaged", "zeros", "recycled"];

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(case)
}

/// The segments of a directory: number and bytes.
fn segments(dir: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut segments: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?.to_owned();
            let number = name.strip_prefix("procmond-")?.strip_suffix(".wal")?.parse().ok()?;
            Some((number, fs::read(&path).unwrap()))
        })
        .collect();
    segments.sort();
    segments
}

fn record(list: &mut String, sequence: u64, epoch: u64, kind: u8, time_ns: i64, payload: &[u8]) {
    let text = String::from_utf8_lossy(payload);
    writeln!(list, "{sequence} epoch {epoch:016x} kind {kind} time {time_ns} {text:?}").unwrap();
}

fn lost(list: &mut String, first: u64, last: u64) {
    writeln!(list, "{first} to {last} lost").unwrap();
}

/// What the independent reader finds.
fn by_the_document(dir: &Path) -> String {
    let segments = segments(dir);
    let (mut list, mut watermark) = (String::new(), 0);
    for (index, (number, bytes)) in segments.iter().enumerate() {
        let next = segments.get(index + 1);
        let next_first =
            next.map(|(number, bytes)| le(decoder::label(bytes, *number).unwrap(), 48, 8));
        let epoch = le(decoder::label(bytes, *number).unwrap(), 72, 8);
        let segment = decoder::read(bytes, *number, next_first).unwrap();
        watermark = segment.watermark.max(watermark);
        for (_, sequences, frame) in &segment.entries {
            match frame {
                Some(f) => {
                    let time_ns = le(f, 24, 8) as i64;
                    record(&mut list, sequences.start, epoch, f[12], time_ns, &f[32..]);
                }
                None => lost(&mut list, sequences.start, sequences.end - 1),
            }
        }
        if next.is_none() && !segment.torn.is_empty() {
            writeln!(list, "torn: {} to {}", segment.torn.start, segment.torn.end).unwrap();
        }
    }
    writeln!(list, "watermark {watermark}").unwrap();
    list
}

/// What the library finds: by looking at it, and by opening a copy.
fn by_the_library(dir: &Path) -> String {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let seen = inspect(copy.path()).unwrap();
    let (log, recovery) = WriteAheadLog::open(copy.path(), options()).unwrap();
    let mut list = String::new();
    let mut reader = log.reader(Sequence::FIRST);
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            break;
        }
        for entry in batch {
            match entry {
                Entry::Record(r) => {
                    let (sequence, epoch) = (r.sequence.0, r.epoch.to_u64());
                    record(&mut list, sequence, epoch, r.kind, r.timestamp_ns, &r.payload);
                }
                Entry::Lost { first, last, .. } => lost(&mut list, first.0, last.0),
            }
        }
    }
    let problems = seen.segments.iter().flat_map(|segment| &segment.problems);
    for torn in problems.filter(|problem| problem.kind == ProblemKind::TornTail) {
        assert_eq!(recovery.torn.as_ref().unwrap().offset, torn.from);
        writeln!(list, "torn: {} to {}", torn.from, torn.to).unwrap();
    }
    assert_eq!(seen.watermark, recovery.watermark);
    writeln!(list, "watermark {}", recovery.watermark).unwrap();
    list
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 8192,
        commit_delay: Duration::ZERO,
        prepare: false,
        ..WalOptions::default()
    }
}

#[test]
fn golden_logs_are_read_as_they_always_were() {
    for case in CASES {
        let listing = fs::read_to_string(golden(case).join("listing.txt")).unwrap();
        assert_eq!(by_the_document(&golden(case)), listing, "{case}, by the document");
        assert_eq!(by_the_library(&golden(case)), listing, "{case}, by the library");
    }
}

#[test]
fn golden_files_are_small_and_of_every_kind() {
    let mut rests = [false; 3];
    for case in CASES {
        for (number, bytes) in segments(&golden(case)) {
            assert!(bytes.len() <= 20 << 10, "{case} {number}");
            let label = decoder::label(&bytes, number).unwrap();
            rests[le(label, 46, 2) as usize] = true;
        }
    }
    assert_eq!(rests, [true; 3], "files that grew, were filled with zeros, were recycled");
}

/// How the files were made; `GOLDEN_DIR` says where to, on a file system that overwrites in place.
/// `GOLDEN_CASES` makes some of them only.
#[test]
#[ignore = "the golden files are made once"]
fn make_the_golden_files() {
    let Some(into) = std::env::var_os("GOLDEN_DIR").map(PathBuf::from) else {
        panic!("set GOLDEN_DIR to an empty directory")
    };
    let wanted = std::env::var("GOLDEN_CASES").unwrap_or_else(|_| CASES.join(","));
    for case in wanted.split(',') {
        let dir = into.join(case);
        fs::create_dir_all(&dir).unwrap();
        match case {
            "growing" => fill(&dir),
            "epochs" => fill_in_epochs(&dir),
            "torn" => {
                fill(&dir);
                change(&dir, begin_another_record);
            }
            "header" => {
                fill(&dir);
                change(&dir, |bytes| bytes[..512].fill(0));
            }
            "damaged" => {
                fill(&dir);
                change(&dir, |bytes| {
                    bytes[1000] ^= 1;
                    bytes[2000..2100].fill(0xff);
                });
            }
            "zeros" => fill_prepared(&dir, 1),
            "recycled" => fill_prepared(&dir, 2),
            _ => panic!("there is no golden case {case}"),
        }
        fs::remove_file(dir.join("procmond.lock")).unwrap();
        fs::write(dir.join("listing.txt"), by_the_document(&dir)).unwrap();
    }
}

fn append(log: &WriteAheadLog, commits: u32, records: u32) {
    for commit in 0..commits {
        let mut last = log.last();
        for index in 0..records {
            let payload = format!("record {index} of commit {commit}");
            let kind = 1 + (index % 4) as u8;
            last = log.submit(kind, i64::from(commit) - 2, payload.as_bytes()).unwrap();
        }
        log.durable_blocking(last).unwrap();
    }
}

/// Eighty records in twenty commits, in one segment that grew.
fn fill(dir: &Path) {
    let (log, _) = WriteAheadLog::open(dir, options()).unwrap();
    append(&log, 20, 4);
    log.acknowledge(Sequence(7)).unwrap();
    log.close().unwrap();
}

fn fill_in_epochs(dir: &Path) {
    for _ in 0..3 {
        let (log, _) = WriteAheadLog::open(dir, options()).unwrap();
        append(&log, 40, 2);
        log.acknowledge(Sequence(3)).unwrap();
        log.close().unwrap();
    }
}

/// Writes until the newest segment is one that was written ahead, and then some records into it,
/// and copies the log as it lies there: closing it would cut off what was written ahead. To have
/// one made out of another, records are acknowledged as it goes.
fn fill_prepared(into: &Path, rest: u64) {
    const RECORDS: u64 = 30;
    let dir = into.with_extension("live");
    let dir = dir.as_path();
    let options = WalOptions { segment_bytes: 6000, prepare: true, ..options() };
    let (log, _) = WriteAheadLog::open(dir, options).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut ends = u64::MAX;
    while log.last().0 < ends {
        let n = log.last().0 + 1;
        let payload = format!("payload {n:04}");
        let sequence = log.submit(1, n as i64, payload.as_bytes()).unwrap();
        log.durable_blocking(sequence).unwrap();
        let (number, newest) = segments(dir).pop().unwrap();
        let label = decoder::label(&newest, number).unwrap();
        if ends == u64::MAX {
            if rest == 2 {
                log.acknowledge(sequence).unwrap();
            }
            if le(label, 46, 2) == rest {
                ends = n + RECORDS;
            }
        }
        assert!(Instant::now() < deadline, "is this a file system that overwrites in place?");
    }
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "spare") {
            fs::copy(&path, into.join(path.file_name().unwrap())).unwrap();
        }
    }
    drop(log);
    fs::remove_dir_all(dir).unwrap();
}

fn change(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join("procmond-00001.wal");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Behind the witness of the last commit, the beginning of another.
fn begin_another_record(bytes: &mut Vec<u8>) {
    let length = 32 + le(bytes, 224 + 8, 4) as usize;
    let mut next = bytes[224..224 + length].to_vec();
    next[16..24].copy_from_slice(&81_u64.to_le_bytes());
    bytes.extend(&next[..length - 3]);
}
