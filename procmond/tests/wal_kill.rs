//! A process that appends from several threads is killed again and again: every record it had a
//! receipt for is there, once, as it was.
#![cfg(all(test, unix))]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, WalOptions, WriteAheadLog};

const ROUNDS: u64 = 60;
const THREADS: u64 = 4;
const DIR_VARIABLE: &str = "WAL_KILL_TEST_DIR";

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 32 << 10,
        commit_delay: Duration::from_micros(200),
        ..WalOptions::default()
    }
}

/// The process that is killed; nothing to do when the tests are run by a person.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else { return };
    let (log, _) = WriteAheadLog::open(Path::new(&dir), options()).unwrap();
    let next = AtomicU64::new(u64::from(log.epoch().count()) << 32);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    let sequence = log.submit(1, id as i64, &body(id)).unwrap();
                    let receipt = log.durable_blocking(sequence).unwrap();
                    // Written with one call, so that only whole lines are read at the other end.
                    let line = format!("{} {id}\n", receipt.sequence);
                    std::io::stderr().write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

fn body(id: u64) -> Vec<u8> {
    id.to_le_bytes().repeat(1 + (id % 40) as usize)
}

#[test]
fn every_receipt_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut receipts = BTreeMap::new();
    let mut watermark = Sequence::NONE;
    let mut seed = u64::from(std::process::id());
    for round in 1..=ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = BufReader::new(child.stderr.take().unwrap());
        // Killed after a random number of receipts, which is a random moment of a commit.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        let mut text = String::new();
        for _ in 0..1 + (seed >> 33) % 120 {
            assert!(pipe.read_line(&mut text).unwrap() > 0, "the child ended: {text}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        pipe.read_to_string(&mut text).unwrap();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            let (sequence, id) = line.split_once(' ').unwrap();
            let sequence: u64 = sequence.parse().unwrap();
            let id: u64 = id.parse().unwrap();
            assert_eq!(receipts.insert(sequence, id), None, "{sequence} was given twice");
        }

        let (log, recovery) = WriteAheadLog::open(dir.path(), options()).unwrap();
        assert!(recovery.damage.is_empty(), "round {round}: {:?}", recovery.damage);
        assert!(recovery.watermark >= watermark, "round {round}: the watermark went back");
        let mut reader = log.reader(recovery.watermark.next());
        let mut expected = recovery.watermark;
        loop {
            let batch = reader.next_batch(1 << 20).unwrap();
            if batch.is_empty() {
                break;
            }
            for entry in batch {
                let Entry::Record(record) = entry else { panic!("round {round}: {entry:?}") };
                expected = expected.next();
                assert_eq!(record.sequence, expected, "round {round}");
                let id = record.timestamp_ns as u64;
                assert_eq!(record.payload, body(id));
                if let Some(receipted) = receipts.get(&record.sequence.0) {
                    assert_eq!(*receipted, id, "round {round}");
                }
            }
        }
        assert_eq!(expected, log.last());
        let (last, _) = receipts.last_key_value().unwrap();
        assert!(expected.0 >= *last, "round {round}: {last} had a receipt, {expected} is the last");
        // Some is acknowledged, so that there is something to delete as well.
        log.acknowledge(Sequence(expected.0 - expected.0 % 100)).unwrap();
        watermark = log.watermark();
        log.close().unwrap();
    }
}
