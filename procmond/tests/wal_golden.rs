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
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, ProblemKind, WalOptions, WriteAheadLog, inspect};

#[path = "golden/decoder.rs"]
mod decoder;

use decoder::le;

const CASES: [&str; 7] = ["growing", "epochs", "torn", "header", "damaged", "zeros", "recycled"];
/// Made from `growing` by changing what its labels say of the rest of the file, and adding it.
const DERIVED: [&str; 2] = ["zeros", "recycled"];

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
        let segment = decoder::read(bytes, *number, next_first).unwrap();
        watermark = segment.watermark.max(watermark);
        let epoch = le(segment.label, 72, 8);
        for entry in &segment.entries {
            match *entry {
                decoder::Entry::Record(f) => {
                    record(&mut list, f.sequence, epoch, f.kind, f.time_ns, f.payload);
                }
                decoder::Entry::Lost { first, last, .. } => lost(&mut list, first, last),
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

/// How the files were made; `GOLDEN_DIR` says where to.
#[test]
#[ignore = "the golden files are made once"]
fn make_the_golden_files() {
    let Some(into) = std::env::var_os("GOLDEN_DIR").map(PathBuf::from) else {
        panic!("set GOLDEN_DIR to an empty directory")
    };
    let made = |case: &str| {
        let dir = into.join(case);
        fs::create_dir_all(&dir).unwrap();
        dir
    };
    let append = |log: &WriteAheadLog, commits: u32, records: u32| {
        for commit in 0..commits {
            let mut last = log.last();
            for index in 0..records {
                let payload = format!("record {index} of commit {commit}");
                last = log
                    .submit(1 + (index % 4) as u8, i64::from(commit) - 2, payload.as_bytes())
                    .unwrap();
            }
            log.durable_blocking(last).unwrap();
        }
    };
    let fill = |dir: &Path| {
        let (log, _) = WriteAheadLog::open(dir, options()).unwrap();
        append(&log, 20, 4);
        log.acknowledge(Sequence(7)).unwrap();
        log.close().unwrap();
    };
    let only = |dir: &Path| dir.join("procmond-00001.wal");
    fill(&made("growing"));
    let epochs = made("epochs");
    for _ in 0..3 {
        let (log, _) = WriteAheadLog::open(&epochs, options()).unwrap();
        append(&log, 40, 2);
        log.acknowledge(Sequence(3)).unwrap();
        log.close().unwrap();
    }
    let torn = made("torn");
    fill(&torn);
    let bytes = fs::read(only(&torn)).unwrap();
    // Behind the witness of the last commit, the beginning of another.
    let mut cut = bytes.clone();
    let frame = decoder::frame(&bytes, 224).unwrap();
    let mut next = bytes[frame.span.0..frame.span.1].to_vec();
    next[16..24].copy_from_slice(&81_u64.to_le_bytes());
    cut.extend(&next[..next.len() - 3]);
    fs::write(only(&torn), cut).unwrap();
    let header = made("header");
    fill(&header);
    let mut bytes = fs::read(only(&header)).unwrap();
    bytes[..512].fill(0);
    fs::write(only(&header), bytes).unwrap();
    let damaged = made("damaged");
    fill(&damaged);
    let mut bytes = fs::read(only(&damaged)).unwrap();
    bytes[1000] ^= 1;
    bytes[2000..2100].fill(0xff);
    fs::write(only(&damaged), bytes).unwrap();
    for case in CASES.into_iter().filter(|case| !DERIVED.contains(case)) {
        let dir = into.join(case);
        fs::remove_file(dir.join("procmond.lock")).unwrap();
        fs::write(dir.join("listing.txt"), by_the_document(&dir)).unwrap();
    }
}
