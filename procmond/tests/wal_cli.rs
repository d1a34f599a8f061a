//! `procmond wal inspect` and `verify` on sound, live, torn and damaged logs.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{WalOptions, WriteAheadLog};
use serde_json::Value;

/// Exit code, standard output and standard error.
fn procmond(args: &[&str], dir: &Path) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_procmond"))
        .arg("wal")
        .args(args)
        .arg("--dir")
        .arg(dir)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(args: &[&str], dir: &Path) -> (i32, Vec<Value>) {
    let (code, out, err) = procmond(&[args, &["--json"]].concat(), dir);
    assert_eq!(err, "");
    (code, out.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A log of 300 records in several segments, still open.
fn log(dir: &Path) -> WriteAheadLog {
    let options =
        WalOptions { segment_bytes: 6000, commit_delay: Duration::ZERO, ..WalOptions::default() };
    let (log, _) = WriteAheadLog::open(dir, options).unwrap();
    for n in 1..=300 {
        let sequence = log.submit(1, n, format!("payload {n:04}").as_bytes()).unwrap();
        log.durable_blocking(sequence).unwrap();
    }
    log
}

fn segment(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("procmond-{number:05}.wal"))
}

fn damage(path: &Path, needle: &[u8], with: u8) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at] = with;
    fs::write(path, bytes).unwrap();
    at
}

#[test]
fn a_sound_log_is_listed_and_verified_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(dir.path());
    let (code, segments) = json(&["inspect"], dir.path());
    assert_eq!(code, 0);
    let (total, segments) = segments.split_last().unwrap();
    assert_eq!(segments.len(), log.stats().segments);
    let mut next = 1;
    for (index, segment) in segments.iter().enumerate() {
        assert_eq!(segment["number"], index as u64 + 1);
        assert_eq!(segment["stream"], log.stream().to_string());
        assert_eq!(segment["epoch"], log.epoch().to_string());
        assert_eq!(segment["first"], next);
        assert_eq!(segment["sound"], true);
        next = segment["last"].as_u64().unwrap() + 1;
    }
    assert_eq!(next, 301);
    assert_eq!((&total["records"], &total["lost"]), (&300.into(), &0.into()));
    assert_eq!(total["last"], 300);
    let (code, out, _) = procmond(&["inspect"], dir.path());
    assert_eq!(code, 0);
    assert!(out.contains(&format!("stream {}", log.stream())), "{out}");
    assert!(out.contains("segments, 300 records, "), "{out}");
    assert!(out.ends_with(" bytes, 0 lost, last sequence 300\n"), "{out}");
    let (code, out, _) = procmond(&["verify"], dir.path());
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("sound: "), "{out}");
}

#[test]
fn the_watermark_and_the_epochs_of_several_openings_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let first = log(dir.path());
    first.acknowledge(Sequence(20)).unwrap();
    let first_epoch = first.epoch().to_string();
    drop(first);
    let (second, _) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    let (_, segments) = json(&["inspect"], dir.path());
    let (total, segments) = segments.split_last().unwrap();
    assert_eq!(total["watermark"], 20);
    assert_eq!(segments[0]["epoch"], first_epoch);
    assert_eq!(segments[segments.len() - 1]["epoch"], second.epoch().to_string());
    assert_eq!(segments[segments.len() - 1]["first"], Value::Null, "it has no record yet");
}

#[test]
fn damage_is_named_exactly() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let at = damage(&segment(dir.path(), 2), b"payload 0150", b'P') as u64;
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!(code, 1);
    let [problem, total] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(problem["kind"], "damaged");
    assert_eq!(problem["number"], 2);
    assert_eq!((&problem["first_lost"], &problem["last_lost"]), (&150.into(), &150.into()));
    // The frame begins 32 bytes before its payload of 12.
    assert_eq!((&problem["from"], &problem["to"]), (&(at - 32).into(), &(at + 12).into()));
    assert_eq!((&total["sound"], &total["lost"]), (&false.into(), &1.into()));
    let (code, out, _) = procmond(&["verify"], dir.path());
    assert_eq!(code, 1);
    assert!(out.contains("procmond-00002.wal: damaged from byte"), "{out}");
    assert!(out.contains("record 150 lost"), "{out}");
    let (code, out, _) = procmond(&["inspect"], dir.path());
    assert_eq!(code, 0, "inspect shows, verify judges");
    assert!(out.contains("record 150 lost"), "{out}");
}

#[test]
fn a_header_a_tail_and_a_missing_segment_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    damage(&segment(dir.path(), 1), b"DEYEWAL", 0);
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!((code, &problems[0]["kind"]), (1, &"header".into()));
    assert_eq!(problems[1]["lost"], 0);
    damage(&segment(dir.path(), 1), b"\0EYEWAL", b'D');
    assert_eq!(json(&["verify"], dir.path()).0, 0, "mended");

    let last = segment(dir.path(), 3);
    let whole = fs::read(&last).unwrap();
    fs::write(&last, &whole[..whole.len() - 125]).unwrap();
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!((code, &problems[0]["kind"]), (1, &"torn_tail".into()));
    assert_eq!(problems[0]["to"], whole.len() as u64 - 125);
    fs::write(&last, whole).unwrap();

    fs::remove_file(segment(dir.path(), 2)).unwrap();
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!((code, &problems[0]["kind"]), (1, &"predecessor_missing".into()));
    assert_eq!(problems[0]["number"], 3);
    let lost = problems[0]["last_lost"].as_u64().unwrap()
        - problems[0]["first_lost"].as_u64().unwrap()
        + 1;
    assert_eq!(problems[1]["lost"], lost);
    assert_eq!(problems[1]["records"].as_u64().unwrap() + lost, 300);
}

#[test]
fn nothing_is_changed_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let last = segment(dir.path(), 3);
    let whole = fs::read(&last).unwrap();
    fs::write(&last, &whole[..whole.len() - 125]).unwrap();
    let state = || {
        let mut files: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (fs::read(&path).unwrap(), path))
            .collect();
        files.sort();
        files
    };
    let before = state();
    procmond(&["inspect"], dir.path());
    procmond(&["verify"], dir.path());
    assert_eq!(state(), before);
}

#[test]
fn a_wrong_directory_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = procmond(&["verify"], &dir.path().join("nowhere"));
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("nowhere is not a directory"), "{err}");
    let (code, _, err) = procmond(&["inspect"], dir.path());
    assert_eq!(code, 2);
    assert!(err.contains("holds no log"), "{err}");
}
