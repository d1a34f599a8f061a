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

/// What every record that can be read says, by its sequence, and the gaps.
fn exported(dir: &Path, more: &[&str]) -> (Vec<u64>, Vec<(u64, u64, String)>) {
    let (code, lines) = json(&[&["export"], more].concat(), dir);
    assert_eq!(code, 0);
    let (mut records, mut gaps) = (Vec::new(), Vec::new());
    for line in lines {
        if line["type"] == "gap" {
            let number = |name: &str| line[name].as_u64().unwrap();
            let reason = line["reason"].as_str().unwrap().to_owned();
            gaps.push((number("first_sequence"), number("last_sequence"), reason));
        } else {
            let sequence = line["sequence"].as_u64().unwrap();
            let payload: String = format!("payload {sequence:04}")
                .bytes()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(line["event"]["undecodable"], payload, "these are no events");
            assert_eq!(line["time_ns"], sequence);
            records.push(sequence);
        }
    }
    (records, gaps)
}

#[test]
fn records_are_exported_with_the_gaps_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let live = log(dir.path());
    assert_eq!(exported(dir.path(), &[]), ((1..=300).collect(), vec![]), "a live log");
    assert_eq!(
        exported(dir.path(), &["--from", "99", "--to", "201"]).0,
        (99..=201).collect::<Vec<_>>()
    );
    assert_eq!(exported(dir.path(), &["--since", "1970-01-01T00:00:00.000000250Z"]).0.len(), 51);
    assert_eq!(exported(dir.path(), &["--kind", "start"]).0.len(), 300, "kind 1 is a start");
    assert_eq!(exported(dir.path(), &["--kind", "stop,gap"]).0.len(), 0);
    drop(live);
    damage(&segment(dir.path(), 2), b"payload 0150", b'P');
    let (records, gaps) = exported(dir.path(), &[]);
    assert_eq!(records, (1..=300).filter(|&n| n != 150).collect::<Vec<_>>());
    assert_eq!(gaps, [(150, 150, "damaged".to_owned())]);
    fs::remove_file(segment(dir.path(), 2)).unwrap();
    let (records, gaps) = exported(dir.path(), &[]);
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].2, "missing");
    assert_eq!(records.len() as u64 + gaps[0].1 - gaps[0].0 + 1, 300);
    let (code, out, _) = procmond(&["export"], dir.path());
    assert_eq!(code, 0);
    assert!(out.contains(&format!("records up to {} are missing --", gaps[0].1)), "{out}");
}

#[test]
fn one_record_is_explained_byte_by_byte() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let (code, lines) = json(&["inspect", "--record", "150"], dir.path());
    assert_eq!(code, 0);
    let [record] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(record["segment"], 2);
    let bytes = fs::read(segment(dir.path(), 2)).unwrap();
    let offset = record["offset"].as_u64().unwrap() as usize;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut at = 0;
    for field in record["fields"].as_array().unwrap() {
        assert_eq!(field["at"], at, "no byte is left out");
        let length = field["bytes"].as_str().unwrap().len() / 2;
        assert_eq!(field["bytes"], hex(&bytes[offset + at..offset + at + length]));
        at += length;
    }
    assert_eq!(at, 32);
    assert_eq!(record["payload"], hex(b"payload 0150"));
    let (code, out, _) = procmond(&["inspect", "--record", "150"], dir.path());
    assert_eq!(code, 0);
    assert!(out.contains("right: CRC-32 of bytes 8 to 44"), "{out}");
    let (code, _, err) = procmond(&["inspect", "--record", "301"], dir.path());
    assert_eq!(code, 1);
    assert!(err.contains("record 301 is not in these files"), "{err}");
    damage(&segment(dir.path(), 2), b"payload 0150", b'P');
    let (code, _, err) = procmond(&["inspect", "--record", "150"], dir.path());
    assert_eq!((code, err.as_str()), (1, "procmond: record 150 is damaged\n"));
}

/// Repairs, and checks that all is accounted for and stays so when the log is opened.
fn repaired(dir: &Path) -> Vec<(u64, u64)> {
    let before = exported(dir, &[]);
    let (code, out, err) = procmond(&["repair"], dir);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(procmond(&["verify"], dir).0, 0, "{out}");
    let after = exported(dir, &[]);
    assert_eq!(after.0, before.0, "{out}");
    let gaps: Vec<_> = after.1.iter().map(|(first, last, _)| (*first, *last)).collect();
    let lost: Vec<_> = before.1.iter().map(|(first, last, _)| (*first, *last)).collect();
    assert_eq!(gaps[..lost.len()], lost, "{out}");
    let (_, again, _) = procmond(&["repair"], dir);
    assert!(again.starts_with("sound: ") || again.contains("known gap"), "{again}");
    assert!(!again.contains("kept in"), "nothing is left to mend: {again}");
    let (log, recovery) = WriteAheadLog::open(dir, WalOptions::default()).unwrap();
    assert_eq!(recovery.torn, None);
    let first = log.last().next();
    let sequence = log.submit(1, first.0 as i64, format!("payload {first:04}").as_bytes()).unwrap();
    log.durable_blocking(sequence).unwrap();
    drop(log);
    let (mut records, _) = exported(dir, &[]);
    assert_eq!(records.pop(), Some(sequence.0));
    assert_eq!(records, before.0);
    gaps
}

#[test]
fn repair_keeps_every_record_that_can_be_read() {
    type Case = (&'static str, fn(&Path), &'static [(u64, u64)]);
    let cases: [Case; 6] = [
        (
            "a record",
            |dir| {
                damage(&segment(dir, 2), b"payload 0150", b'P');
            },
            &[(150, 150)],
        ),
        (
            "a header",
            |dir| {
                damage(&segment(dir, 1), b"DEYEWAL", 0);
            },
            &[],
        ),
        (
            "a torn tail",
            |dir| {
                let whole = fs::read(segment(dir, 3)).unwrap();
                fs::write(segment(dir, 3), &whole[..whole.len() - 125]).unwrap();
            },
            &[],
        ),
        (
            "a foreign file",
            |dir| {
                let other = tempfile::tempdir().unwrap();
                drop(log(other.path()));
                fs::copy(segment(other.path(), 1), segment(dir, 1)).unwrap();
            },
            &[(1, 128)],
        ),
        ("a missing segment", |dir| fs::remove_file(segment(dir, 2)).unwrap(), &[(129, 256)]),
        (
            "a segment that nothing names",
            |dir| fs::write(segment(dir, 2), [0x55; 6000]).unwrap(),
            &[(129, 256)],
        ),
    ];
    for (what, hurt, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        drop(log(dir.path()));
        hurt(dir.path());
        let state: Vec<_> = (1..=3).map(|n| fs::read(segment(dir.path(), n)).ok()).collect();
        assert_eq!(procmond(&["verify"], dir.path()).0, 1, "{what}");
        let gaps = repaired(dir.path());
        assert_eq!(gaps.len(), expected.len(), "{what}: {gaps:?}");
        for (gap, expected) in gaps.iter().zip(expected) {
            assert_eq!(gap, expected, "{what}");
        }
        // Each file that is not what it was is among the copies.
        let copies: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("repair-"))
            .collect();
        let [copies] = &copies[..] else { panic!("{what}: {copies:?}") };
        for (index, before) in state.iter().enumerate() {
            let path = segment(dir.path(), index as u64 + 1);
            let now = fs::read(&path).ok();
            if before.is_some() && &now != before {
                let copy = fs::read(copies.join(path.file_name().unwrap())).ok();
                assert!(&copy == before, "{what}: {path:?}");
            }
        }
    }
}

#[test]
fn a_lost_newest_segment_gives_no_sequence_twice() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let bytes = fs::metadata(segment(dir.path(), 3)).unwrap().len();
    fs::write(segment(dir.path(), 3), vec![0x55; bytes as usize]).unwrap();
    let gaps = repaired(dir.path());
    assert_eq!(gaps.len(), 1);
    assert!(gaps[0].0 == 257 && gaps[0].1 >= 300, "{gaps:?}");
}

#[test]
fn repair_and_compact_refuse_a_directory_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _live = log(dir.path());
    for command in ["repair", "compact"] {
        let (code, out, err) = procmond(&[command], dir.path());
        assert_eq!((code, out.as_str()), (1, ""), "{command}");
        let pid = format!("the process with pid {}", std::process::id());
        assert!(err.contains(&pid), "{command}: {err}");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(procmond(&[command], empty.path()).0, 2);
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "no lock file is left");
    }
}

#[test]
fn compacting_leaves_what_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let live = log(dir.path());
    live.acknowledge(Sequence(200)).unwrap();
    live.close().unwrap();
    let (stream, epoch) = (live.stream(), live.epoch_at(Sequence(200)));
    drop(live);
    let (code, lines) = json(&["compact"], dir.path());
    assert_eq!(code, 0);
    assert_eq!(lines[0]["watermark"], 200);
    assert!(lines[0]["bytes_after"].as_u64() < lines[0]["bytes_before"].as_u64());
    assert_eq!(procmond(&["verify"], dir.path()).0, 0);
    assert_eq!(exported(dir.path(), &[]), ((201..=300).collect(), vec![]));
    let (again, recovery) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    assert_eq!((again.stream(), again.epoch_at(Sequence(200))), (stream, epoch));
    assert_eq!((recovery.watermark, recovery.last), (Sequence(200), Sequence(300)));
    assert_eq!(recovery.damage, []);
    again.acknowledge(Sequence(300)).unwrap();
    again.close().unwrap();
    assert_eq!(procmond(&["compact"], dir.path()).0, 0);
    assert_eq!(exported(dir.path(), &[]), (vec![], vec![]));
    let (empty, recovery) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    assert_eq!(empty.stream(), stream);
    assert_eq!((recovery.watermark, recovery.last), (Sequence(300), Sequence(300)));
    drop(empty);

    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    damage(&segment(dir.path(), 2), b"payload 0150", b'P');
    let (code, out, err) = procmond(&["compact"], dir.path());
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is damaged"), "{err}");
}
