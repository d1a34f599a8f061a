//! One byte flipped at every position of a 100-record segment: the other records are read, the
//! loss is reported with its sequence, nothing panics.
#![cfg(test)]

use std::fs;
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, WalOptions, WriteAheadLog};

const RECORDS: u64 = 100;
const THREADS: usize = 4;

fn options() -> WalOptions {
    WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() }
}

/// Where record `n` stands in the segment, if its header, its first control record and the frames
/// are as docs/wal-format.md says.
fn frame_of(position: usize, whole: &[u8]) -> Option<u64> {
    let mut at = 104;
    loop {
        let length = u32::from_le_bytes(whole[at + 8..at + 12].try_into().unwrap()) as usize;
        let end = at + 32 + length;
        if (at..end).contains(&position) {
            let sequence = u64::from_le_bytes(whole[at + 16..at + 24].try_into().unwrap());
            return (whole[at + 12] != 0).then_some(sequence);
        }
        at = end;
    }
}

#[test]
fn flipped_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = WriteAheadLog::open(dir.path(), options()).unwrap();
    let mut last = Sequence::NONE;
    for n in 1..=RECORDS {
        last = log.submit(1, n as i64, &[n as u8]).unwrap();
    }
    log.durable_blocking(last).unwrap();
    let stream = log.stream();
    drop(log);
    let name = "procmond-00001.wal";
    let whole = fs::read(dir.path().join(name)).unwrap();

    let check = |position: usize| {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = whole.clone();
        bytes[position] ^= 0xff;
        fs::write(dir.path().join(name), &bytes).unwrap();
        let hit = (position >= 104).then(|| frame_of(position, &whole)).flatten();

        let (log, recovery) = WriteAheadLog::open(dir.path(), options()).unwrap();
        assert_eq!(log.stream(), stream, "byte {position}");
        assert_eq!(recovery.last, Sequence(RECORDS), "byte {position}");
        let reported: Vec<_> =
            recovery.damage.iter().map(|lost| (lost.first.0, lost.last.0)).collect();
        assert_eq!(reported, Vec::from_iter(hit.map(|n| (n, n))), "byte {position}");

        let mut expected = 1..=RECORDS;
        for entry in log.reader(Sequence::FIRST).next_batch(1 << 20).unwrap() {
            let n = expected.next().unwrap();
            match entry {
                Entry::Record(record) => {
                    assert_eq!((record.sequence, record.timestamp_ns), (Sequence(n), n as i64));
                    assert_eq!(record.payload[..], [n as u8]);
                    assert_ne!(hit, Some(n), "byte {position} was in this record");
                }
                Entry::Lost { first, last, .. } => {
                    assert_eq!((first, last), (Sequence(n), Sequence(n)), "byte {position}");
                    assert_eq!(hit, Some(n), "byte {position}");
                }
            }
        }
        assert_eq!(expected.next(), None, "byte {position}");
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (check, bytes) = (&check, whole.len());
            scope.spawn(move || (thread..bytes).step_by(THREADS).for_each(check));
        }
    });
}
