//! A log cut at every byte of its last three records reopens with exactly the whole ones, takes
//! appends, and reads all of them back.
#![cfg(test)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, WalOptions, WriteAheadLog};

const RECORDS: u64 = 20;
/// Bytes of a frame before its payload (docs/wal-format.md).
const FRAME_BYTES: usize = 32;

fn options() -> WalOptions {
    WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() }
}

fn payload(n: u64) -> Vec<u8> {
    format!("payload {n} {}", "y".repeat(n as usize % 7)).into_bytes()
}

fn append(log: &WriteAheadLog, n: u64) {
    let sequence = log.submit(1, n as i64, &payload(n)).unwrap();
    assert_eq!(sequence, Sequence(n), "sequences go on where the whole records end");
    log.durable_blocking(sequence).unwrap();
}

fn read_all(log: &WriteAheadLog) -> Vec<u64> {
    let entries = log.reader(Sequence::FIRST).next_batch(1 << 20).unwrap();
    entries
        .into_iter()
        .map(|entry| {
            let Entry::Record(record) = entry else { panic!("{entry:?}") };
            assert_eq!(record.payload, payload(record.sequence.0));
            record.sequence.0
        })
        .collect()
}

#[test]
fn torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = WriteAheadLog::open(dir.path(), options()).unwrap();
    (1..=RECORDS).for_each(|n| append(&log, n));
    // Copied while it is open: as a crash leaves it, with the last record at the very end.
    let name = Path::new("procmond-00001.wal");
    let whole = fs::read(dir.path().join(name)).unwrap();
    drop(log);

    // Where each of the last three records ends, from the back.
    let mut ends = vec![(RECORDS, whole.len())];
    for n in (RECORDS - 2..=RECORDS).rev() {
        ends.push((n - 1, ends[ends.len() - 1].1 - FRAME_BYTES - payload(n).len()));
    }
    let earliest = ends[3].1;
    for cut in earliest..=whole.len() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), &whole[..cut]).unwrap();
        let left = ends.iter().find(|(_, end)| *end <= cut).unwrap();

        let (log, recovery) = WriteAheadLog::open(dir.path(), options()).unwrap();
        assert_eq!(recovery.last, Sequence(left.0), "cut at {cut}");
        assert_eq!(recovery.torn.map(|torn| torn.offset), (left.1 < cut).then_some(left.1 as u64));
        assert!(recovery.damage.is_empty(), "a torn tail is no damage");
        assert_eq!(fs::metadata(dir.path().join(name)).unwrap().len(), left.1 as u64);
        assert_eq!(read_all(&log), (1..=left.0).collect::<Vec<_>>(), "cut at {cut}");
        (left.0 + 1..=left.0 + 3).for_each(|n| append(&log, n));
        assert_eq!(read_all(&log), (1..=left.0 + 3).collect::<Vec<_>>());
        drop(log);

        let (log, recovery) = WriteAheadLog::open(dir.path(), options()).unwrap();
        assert!(recovery.torn.is_none() && recovery.damage.is_empty());
        assert_eq!(read_all(&log), (1..=left.0 + 3).collect::<Vec<_>>(), "cut at {cut}");
    }
}
