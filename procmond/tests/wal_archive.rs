//! A log that archives what is committed, and the commands that read its archives.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use daemoneye_lib::stream::Sequence;
use procmond::wal::{ArchiveOptions, Compression, Retire, WalOptions, WriteAheadLog};
use serde_json::Value;

const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

fn procmond(args: &[&str], paths: &[(&str, &Path)]) -> (i32, Vec<Value>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_procmond"));
    command.arg("wal").args(args).arg("--json");
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code().unwrap(), lines, String::from_utf8(output.stderr).unwrap())
}

fn until(what: &str, met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !met() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn archives(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| !path.to_string_lossy().ends_with(".new"));
    // By the segment: the names begin with the time.
    paths.sort_by_key(|path| path.to_string_lossy().split('-').next_back().map(str::to_owned));
    paths
}

fn options(dir: &Path, compression: Compression) -> WalOptions {
    let archive = ArchiveOptions { compression, ..ArchiveOptions::new(dir) };
    WalOptions {
        segment_bytes: 6000,
        commit_delay: Duration::ZERO,
        retire: Retire::Archive(archive),
        ..WalOptions::default()
    }
}

/// A log of 500 records, all but the last hundred committed, and where its archives are.
fn archiving(dir: &Path, compression: Compression) -> (WriteAheadLog, PathBuf) {
    let archive = dir.join("archive");
    let (log, _) = WriteAheadLog::open(dir, options(&archive, compression)).unwrap();
    for n in 1..=500 {
        let sequence = log.submit(1, n, format!("payload {n:04}").as_bytes()).unwrap();
        log.durable_blocking(sequence).unwrap();
    }
    log.acknowledge(Sequence(400)).unwrap();
    until("three segments are archived", || archives(&archive).len() == 3);
    until("and gone", || !dir.join("procmond-00003.wal").exists());
    (log, archive)
}

fn sequences(lines: &[Value]) -> Vec<u64> {
    assert!(lines.iter().all(|line| line["type"] == "event"), "{lines:?}");
    lines.iter().map(|line| line["sequence"].as_u64().unwrap()).collect()
}

#[test]
fn archives_and_the_log_together_hold_everything() {
    for compression in ALL {
        let dir = tempfile::tempdir().unwrap();
        let (_live, archive) = archiving(dir.path(), compression);
        let both = [("--dir", dir.path()), ("--archive", &*archive)];
        let (code, lines, err) = procmond(&["export"], &both);
        assert_eq!((code, err.as_str()), (0, ""), "{compression:?}");
        assert_eq!(sequences(&lines), (1..=500).collect::<Vec<_>>(), "{compression:?}");
        let (code, lines, _) = procmond(&["verify"], &both);
        assert_eq!(code, 0, "{lines:?}");
        assert_eq!(lines[0]["records"], 500);
        let (code, lines, _) = procmond(&["inspect"], &[("--archive", &archive)]);
        assert_eq!((code, lines.len()), (0, 4));
        assert_eq!(lines[0]["archived"], true);
        assert_eq!(lines[0]["first"], 1);
        let one = archives(&archive).remove(1);
        let (code, lines, _) = procmond(&["export"], &[("--archive", &one)]);
        assert_eq!(code, 0);
        assert_eq!(sequences(&lines)[0], 129, "one archive by itself");
        let (code, lines, _) =
            procmond(&["inspect", "--record", "130"], &[("--archive", &archive)]);
        assert_eq!((code, &lines[0]["segment"]), (0, &2.into()));
    }
}

#[test]
fn a_damaged_archive_is_named_and_the_rest_is_read() {
    for compression in ALL {
        let dir = tempfile::tempdir().unwrap();
        let (log, archive) = archiving(dir.path(), compression);
        drop(log);
        let path = archives(&archive).remove(1);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let at = bad.len() / 2;
        bad[at] ^= 0x10;
        for bytes in [&bad[..], &good[..good.len() - 150.min(good.len() / 2)]] {
            fs::write(&path, bytes).unwrap();
            let (code, lines, _) = procmond(&["verify"], &[("--archive", &archive)]);
            assert_eq!(code, 1, "{compression:?}: {lines:?}");
            assert!(lines.iter().any(|line| line["number"] == 2), "{compression:?}: {lines:?}");
            let both = [("--dir", dir.path()), ("--archive", &*archive)];
            let (code, lines, _) = procmond(&["export"], &both);
            assert_eq!(code, 0);
            let lost: u64 = lines.iter().filter_map(|line| line["missing"].as_u64()).sum();
            let read = lines.iter().filter(|line| line["type"] == "event").count() as u64;
            assert_eq!(read + lost, 500, "{compression:?}: what is lost is accounted for");
            assert!(lost <= 128, "{compression:?}: and no more than that segment: {lost}");
        }
    }
}

#[test]
fn an_archive_directory_that_cannot_be_made_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("blocked");
    fs::write(&blocked, "a file").unwrap();
    let wal = dir.path().join("wal");
    let (log, _) = WriteAheadLog::open(&wal, options(&blocked, Compression::Zstd)).unwrap();
    for n in 1..=300 {
        let sequence = log.submit(1, n, format!("payload {n:04}").as_bytes()).unwrap();
        log.durable_blocking(sequence).unwrap();
    }
    log.acknowledge(Sequence(300)).unwrap();
    until("the watermark is durable", || log.stats().watermark_durable == Sequence(300));
    log.close().unwrap();
    drop(log);
    assert!(wal.join("procmond-00001.wal").exists(), "it is kept until it is archived");
    fs::remove_file(&blocked).unwrap();
    let (log, _) = WriteAheadLog::open(&wal, options(&blocked, Compression::Zstd)).unwrap();
    let sequence = log.submit(1, 301, b"payload 0301").unwrap();
    log.durable_blocking(sequence).unwrap();
    log.acknowledge(sequence).unwrap();
    until("the archives are there", || archives(&blocked).len() >= 2);
    let both = [("--dir", &*wal), ("--archive", &*blocked)];
    until("all is there again", || {
        let (_, lines, _) = procmond(&["export"], &both);
        lines.iter().filter(|line| line["type"] == "event").count() == 301
    });
}

#[test]
fn a_path_that_is_not_there_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = procmond(&["export"], &[("--archive", &dir.path().join("nowhere"))]);
    assert_eq!(code, 2);
    assert!(err.contains("nowhere is not there"), "{err}");
    let (code, _, err) = procmond(&["export"], &[("--archive", dir.path())]);
    assert_eq!(code, 2);
    assert!(err.contains("holds no log"), "{err}");
}
