//! What the random histories have found, each once more by itself.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::stream::Sequence;

use super::super::archive::archive;
use super::super::segment::FileName;
use super::super::storage::sim::{Armed, Fault, SimDisk, Which};
use super::super::wait::block_on;
use super::super::{
    ArchiveOptions, Entry, NewRecord, Retire, SyncMode, WalError, WalOptions, WriteAheadLog,
};
use super::archives::read_archives;
use super::expect::log_bytes;
use super::history::{Action, How};
use super::run::Run;

const HOUR: Duration = Duration::from_secs(3600);

fn quick() -> WalOptions {
    WalOptions { segment_bytes: 4096, commit_delay: Duration::ZERO, ..WalOptions::default() }
}

fn open(disk: &SimDisk, dir: &Path, options: WalOptions) -> WriteAheadLog {
    WriteAheadLog::open_on(Arc::new(disk.clone()), dir, options).unwrap().0
}

fn append(log: &WriteAheadLog, byte: u8, len: usize) -> Result<Sequence, WalError> {
    let record = NewRecord { kind: 1, timestamp_ns: 0, payload: &vec![byte; len] };
    log.append_blocking(&[record]).map(|receipt| receipt.sequence)
}

/// The first byte of every record.
fn read(log: &WriteAheadLog) -> Vec<u8> {
    let mut reader = log.reader(Sequence::FIRST);
    let mut bytes = Vec::new();
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            return bytes;
        }
        bytes.extend(batch.into_iter().map(|entry| match entry {
            Entry::Record(record) => record.payload[0],
            lost @ Entry::Lost { .. } => panic!("{lost:?}"),
        }));
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(20), "{what}");
        thread::yield_now();
    }
}

/// The keeper syncs nothing any more by itself.
fn until_reserved(disk: &SimDisk) {
    until("there is a reserve", || disk.trace(u64::MAX).contains("Sync of procmond.reserve"));
}

fn fail(disk: &SimDisk, which: Which, after: u32) {
    disk.arm(Armed { which, after, fault: Fault::Error(ErrorKind::Other) });
}

/// A log with the records 0 to 3 that nothing has synced, on a disk that fails so many syncs.
fn unsynced(dir: &Path, failing: usize) -> (SimDisk, WriteAheadLog) {
    let sync = SyncMode::Interval { every: HOUR, bytes: 1 << 20 };
    let disk = SimDisk::new();
    let log = open(&disk, dir, WalOptions { sync, prepare: false, ..quick() });
    for n in 0..4 {
        append(&log, n, 700).unwrap();
    }
    until_reserved(&disk);
    for _ in 0..failing {
        fail(&disk, Which::Sync, 0);
    }
    (disk, log)
}

/// What was acknowledged went with the next commit, for which there was no room: never.
#[test]
fn w9_a_log_opened_beyond_its_budget_gets_its_room_back() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let log = open(&disk, dir.path(), quick());
    for n in 0..60 {
        append(&log, n, 500).unwrap();
    }
    log.retain_from(Sequence::FIRST);
    log.acknowledge(log.last()).unwrap();
    log.close().unwrap();

    let log = open(&disk, dir.path(), WalOptions { disk_budget_bytes: 16 << 10, ..quick() });
    let refused = append(&log, 60, 500);
    assert!(matches!(refused, Err(WalError::BudgetSpent { .. })), "{refused:?}");
    until("room comes back", || append(&log, 60, 500).is_ok());
}

/// A prepared segment stayed while records were refused for want of the room that it took.
#[test]
fn w9_what_is_prepared_makes_room_for_records() {
    const BUDGET: u64 = 20 << 10;
    // The block in reserve, headers and control records.
    const BESIDE: u64 = 4096 + 8 * 400;
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let log = open(&disk, dir.path(), WalOptions { disk_budget_bytes: BUDGET, ..quick() });
    for round in 0..6 {
        let mut taken = 0;
        while append(&log, round, 700 + 300 * usize::from(round)).is_ok() {
            taken += 1;
        }
        assert!(taken > 3, "{taken} in round {round}");
        until("within the budget", || log_bytes(&disk, dir.path()) <= BUDGET + BESIDE);
        log.acknowledge(log.last()).unwrap();
        block_on(log.flush()).unwrap();
        until("room comes back", || log.stats().used_bytes < 6000);
    }
}

/// In the mode that leaves syncing to the system, what could not be synced was passed over.
#[test]
fn w8_a_failed_late_sync_is_made_good() {
    for sync in [SyncMode::Os, SyncMode::Interval { every: HOUR, bytes: 1 << 20 }] {
        let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
        let log = open(&disk, dir.path(), WalOptions { sync, ..quick() });
        for n in 0..5 {
            append(&log, n, 100).unwrap();
        }
        fail(&disk, Which::Sync, 0);
        assert_eq!(block_on(log.flush()).unwrap(), Sequence(5));
        let then = disk.snapshot();
        log.close().unwrap();
        for luck in 0..12 {
            let after = then.snapshot();
            after.power_cut(luck);
            let log = open(&after, dir.path(), quick());
            assert_eq!(read(&log), [0, 1, 2, 3, 4], "{sync:?}, {luck}");
        }
    }
}

/// Records of the old stream that were not yet synced were written again into the new one.
#[test]
fn w6_a_new_stream_is_not_followed_by_the_old_ones_records() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let sync = SyncMode::Interval { every: HOUR, bytes: 1 << 20 };
    let log = open(&disk, dir.path(), WalOptions { sync, ..quick() });
    for n in 0..3 {
        append(&log, n, 100).unwrap();
    }
    block_on(log.begin_stream(None)).unwrap();
    append(&log, 3, 100).unwrap();
    // Syncing fails, and writing it again in place.
    fail(&disk, Which::Sync, 0);
    fail(&disk, Which::Sync, 1);
    assert_eq!(block_on(log.flush()).unwrap(), Sequence(4));
    log.close().unwrap();
    assert_eq!(read(&open(&disk, dir.path(), quick())), [0, 1, 2, 3]);
}

/// A disk that lied about the name of a new stream's first segment has the old stream again after
/// a power cut, and that stream's records are what they were. The model took them for lost.
#[test]
fn w4_a_stream_that_a_lying_disk_brings_back_is_as_it_was() {
    let mut brought_back = 0;
    for (seed, lasts) in (0..6).flat_map(|seed| (0..24).map(move |lasts| (seed, lasts))) {
        let mut run = Run::new(|_| quick(), seed);
        run.open(false).unwrap();
        run.act(&Action::Append(vec![500; 20], How::Each)).unwrap();
        run.act(&Action::Acknowledge(20)).unwrap();
        run.act(&Action::Flush).unwrap();
        let old = run.stream();
        // The first makes the temporary names durable, the two after it the final ones.
        for _ in 0..2 {
            run.arm(Armed { which: Which::SyncDir, after: 1, fault: Fault::Lie });
        }
        run.arm(Armed { which: Which::Change, after: lasts, fault: Fault::PowerCut });
        run.new_stream(true).unwrap();
        let begun = run.stream() != old;
        run.act(&Action::PowerCut).unwrap();
        brought_back += u32::from(begun && run.stream() == old);
        run.act(&Action::Reopen).unwrap();
    }
    assert!(brought_back > 0);
}

/// Somebody killed it, or the sync failed, after an archive had its name and before that was
/// durable: found again, it must be made so before the original goes.
#[test]
fn w7_an_archive_that_is_there_already_is_durable_before_the_original_goes() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let kept = ArchiveOptions::new(&dir.path().join("archive"));
    let options = WalOptions { retire: Retire::Archive(kept.clone()), ..quick() };
    let log = open(&disk, dir.path(), options.clone());
    for n in 0..8 {
        append(&log, n, 700).unwrap();
    }
    let second = log.inner.shared.lock().segments[1].first;
    let (before, records) = (disk.snapshot(), second.prev());
    log.close().unwrap();

    // What a kill leaves: the archive with its name, which no sync was asked for, and the segment.
    let segment = FileName::Segment(1).path(dir.path());
    before.arm(Armed { which: Which::SyncDir, after: 0, fault: Fault::Lie });
    archive(&before, &segment, 1, records, &kept).unwrap();
    before.kill();
    let log = open(&before, dir.path(), options.clone());
    log.acknowledge(records).unwrap();
    block_on(log.flush()).unwrap();
    until("the segment goes", || log.stats().deleted + log.stats().recycled > 0);
    for luck in 0..12 {
        let after = before.snapshot();
        after.power_cut(luck);
        let archived = read_archives(&after, &kept.dir).0;
        assert!(archived.len() == 1 && archived[0].last == records.0, "{luck}");
    }
}

/// What opening finds after a kill may be in the system's memory only, and after a failed sync no
/// other sync would write it: it must be on the disk before anybody is told of it.
#[test]
fn w1_what_a_kill_has_left_unsynced_is_durable_once_it_is_found() {
    let mut found_more = 0;
    for sync_fails in [false, true] {
        for lasts in 0..4 {
            let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
            let log = open(&disk, dir.path(), quick());
            for n in 0..3 {
                append(&log, n, 100).unwrap();
            }
            if sync_fails {
                fail(&disk, Which::Sync, 0);
            }
            disk.arm(Armed { which: Which::Change, after: lasts, fault: Fault::PowerCut });
            let told = append(&log, 3, 1000).is_ok();
            let _ = log.close();
            disk.kill();

            let log = open(&disk, dir.path(), quick());
            let last = log.last();
            found_more += u32::from(last == Sequence(4) && !told);
            let then = disk.snapshot();
            log.close().unwrap();
            for luck in 0..12 {
                let after = then.snapshot();
                after.power_cut(luck);
                let held = read(&open(&after, dir.path(), quick()));
                assert_eq!(held.len() as u64, last.0, "{sync_fails}, {lasts}, {luck}");
            }
        }
    }
    assert!(found_more > 0);
}

/// A segment of a new stream that could not get its name kept its temporary one. When what stood in
/// the others was acknowledged and gone, the next opening took it for a stream that had not begun,
/// and removed it.
#[test]
fn w1_a_new_stream_is_not_gone_with_its_first_segment() {
    for fails in 0..6 {
        let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
        let log = open(&disk, dir.path(), quick());
        for n in 0..14 {
            append(&log, n, 500).unwrap();
        }
        fail(&disk, Which::Name, fails);
        let begun = block_on(log.begin_stream(None));
        disk.disarm();
        let log = if log.inner.shared.lock().shut.is_some() {
            assert!(log.close().is_err(), "{begun:?}");
            open(&disk, dir.path(), quick())
        } else {
            log
        };
        let first = log.inner.shared.lock().segments[0].last;
        log.acknowledge(first).unwrap();
        block_on(log.flush()).unwrap();
        until("the first segment goes", || log.stats().deleted + log.stats().recycled > 0);
        let (stream, last) = (log.stream(), log.last());
        log.close().unwrap();
        let log = open(&disk, dir.path(), quick());
        assert_eq!((log.stream(), log.last()), (stream, last), "{fails}");
        assert_eq!(read(&log), (first.0 as u8..14).collect::<Vec<_>>(), "{fails}");
    }
}

/// On a full disk the next segment was begun in what is kept in reserve, to say what was
/// acknowledged, and its name could not be made durable. The writer went on in the segment before,
/// and the next opening took that one to end where the other begins.
#[test]
fn w1_nothing_is_written_behind_a_segment_that_may_have_its_name() {
    for kind in [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
        let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
        let log = open(&disk, dir.path(), WalOptions { prepare: false, ..quick() });
        for n in 0..12 {
            append(&log, n, 700).unwrap();
        }
        until_reserved(&disk);
        disk.set_capacity(disk.used_bytes());
        let refused = append(&log, 12, 700);
        assert!(matches!(refused, Err(WalError::DiskFull { .. })), "{refused:?}");
        let first = log.inner.shared.lock().segments[0].last;
        disk.arm(Armed { which: Which::SyncDir, after: 0, fault: Fault::Error(kind) });
        log.acknowledge(first).unwrap();
        let mut struck = Vec::new();
        until("the name is not durable", || {
            struck.extend(disk.take_struck());
            !struck.is_empty()
        });
        disk.set_capacity(u64::MAX);
        until("there is room", || append(&log, 13, 700).is_ok());
        let cut = disk.snapshot();
        log.close().unwrap();
        // What was acknowledged may be gone, or back.
        let held: Vec<_> = (first.0 as u8..14).collect();
        let found = read(&open(&disk, dir.path(), quick()));
        assert!(found.ends_with(&held), "{kind}: {found:?}");
        for luck in 0..12 {
            let after = cut.snapshot();
            after.power_cut(luck);
            let found = read(&open(&after, dir.path(), quick()));
            assert!(found.ends_with(&held), "{kind}, {luck}: {found:?}");
        }
    }
}

/// What a failed sync had left behind a segment's records was cut off, but not for good: a power cut
/// brought it back, and the log was beyond its budget until that segment was committed.
#[test]
fn w9_what_a_failed_commit_leaves_is_gone_for_good() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let log = open(&disk, dir.path(), WalOptions { prepare: false, ..quick() });
    append(&log, 0, 500).unwrap();
    until_reserved(&disk);
    fail(&disk, Which::Sync, 0);
    append(&log, 1, 3000).unwrap();
    assert_eq!(disk.take_struck().len(), 1);
    let segments = || log.inner.shared.lock().segments.clone();
    until("the rest is cut off", || segments()[0].file_bytes == segments()[0].bytes);
    let needed: u64 = segments().iter().map(|segment| segment.bytes).sum();
    let then = disk.snapshot();
    log.close().unwrap();
    for luck in 0..24 {
        let after = then.snapshot();
        after.power_cut(luck);
        assert_eq!(log_bytes(&after, dir.path()), needed, "{luck}");
        assert_eq!(read(&open(&after, dir.path(), quick())), [0, 1], "{luck}");
    }
}

/// Syncing failed, and so did writing it again in place. The next sync found nothing to do, and what
/// nothing had written was taken for durable.
#[test]
fn w1_a_sync_that_comes_after_a_failed_one_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, log) = unsynced(dir.path(), 2);
    assert_eq!(block_on(log.flush()).unwrap(), Sequence(4));
    assert_eq!(disk.take_struck().len(), 2);
    let then = disk.snapshot();
    log.close().unwrap();
    for luck in 0..12 {
        let after = then.snapshot();
        after.power_cut(luck);
        assert_eq!(read(&open(&after, dir.path(), quick())), [0, 1, 2, 3], "{luck}");
    }
}

/// A new stream's first segment had its name and that was not durable yet when the process was killed.
/// The next opening removed the old stream before it had made it so, and a power cut took the one
/// stream and kept the removal of the other.
#[test]
fn w1_a_new_stream_is_durable_before_the_old_one_goes() {
    let (disk, dir) = (SimDisk::new(), tempfile::tempdir().unwrap());
    let log = open(&disk, dir.path(), WalOptions { prepare: false, ..quick() });
    for n in 0..4 {
        append(&log, n, 700).unwrap();
    }
    // The first makes the temporary names durable.
    disk.arm(Armed { which: Which::SyncDir, after: 1, fault: Fault::PowerCut });
    assert!(block_on(log.begin_stream(None)).is_err());
    let _ = log.close();
    disk.kill();
    for (lasts, luck) in (0..8).flat_map(|lasts| (0..12).map(move |luck| (lasts, luck))) {
        let after = disk.snapshot();
        after.arm(Armed { which: Which::Change, after: lasts, fault: Fault::PowerCut });
        let opened = WriteAheadLog::open_on(Arc::new(after.clone()), dir.path(), quick());
        drop(opened);
        after.power_cut(luck);
        assert_eq!(read(&open(&after, dir.path(), quick())), [0, 1, 2, 3], "{lasts}, {luck}");
    }
}

/// What could not be synced goes into a fresh segment. Killed when that had its name and before the
/// records were in it, the log ended before them: they had receipts that promise to survive a kill.
#[test]
fn w1_records_written_again_are_there_when_their_segment_has_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, log) = unsynced(dir.path(), 3);
    disk.arm(Armed { which: Which::SyncDir, after: 0, fault: Fault::PowerCut });
    assert!(block_on(log.flush()).is_err());
    let _ = log.close();
    disk.kill();
    assert_eq!(read(&open(&disk, dir.path(), quick())), [0, 1, 2, 3]);
}
