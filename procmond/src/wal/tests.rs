//! The log on a storage that fails, and killed at every step.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::format::{FRAME_BYTES, HEADER_BYTES, Label, Rest, encode_frame, salt_frame};
use super::segment::EMPTY_BYTES;
use super::storage::faulty::{Fault, Faulty, Op};
use super::wait::block_on;
use super::{Entry, NewRecord, Recovery, WalError, WalOptions, WriteAheadLog, inspect};

fn quick() -> WalOptions {
    WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() }
}

fn small() -> WalOptions {
    WalOptions { segment_bytes: 4096, ..quick() }
}

fn open_on(storage: &Faulty, dir: &Path, options: WalOptions) -> (WriteAheadLog, Recovery) {
    WriteAheadLog::open_on(Arc::new(storage.clone()), dir, options).unwrap()
}

fn working() -> Faulty {
    Faulty::new(|_, _| None)
}

fn payload(n: u64) -> Vec<u8> {
    format!("record {n} {}", "x".repeat((n % 50) as usize)).into_bytes()
}

fn append(log: &WriteAheadLog, n: u64) -> Result<Sequence, WalError> {
    let sequence = log.submit(1, n as i64, &payload(n))?;
    log.durable_blocking(sequence).map(|receipt| receipt.sequence)
}

/// The payloads' numbers in order; anything lost fails.
fn read(log: &WriteAheadLog) -> Vec<u64> {
    let mut reader = log.reader(log.watermark().next());
    let mut sequence = log.watermark();
    let mut read = Vec::new();
    loop {
        let batch = reader.next_batch(500).unwrap();
        if batch.is_empty() {
            assert_eq!(sequence, log.last_durable());
            return read;
        }
        for entry in batch {
            let Entry::Record(record) = entry else { panic!("{entry:?}") };
            sequence = sequence.next();
            assert_eq!(record.sequence, sequence);
            assert_eq!(record.payload, payload(record.timestamp_ns as u64));
            assert_eq!(log.epoch_at(sequence), Some(record.epoch));
            read.push(record.timestamp_ns as u64);
        }
    }
}

fn numbers(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

/// Fails the n-th of the operations that match, and works before and after.
fn nth(wanted: Op, n: usize, fault: Fault) -> impl FnMut(Op, &Path) -> Option<Fault> + Send {
    let mut left = n;
    move |op, _| {
        if op != wanted {
            return None;
        }
        left = left.wrapping_sub(1);
        (left == usize::MAX).then_some(fault)
    }
}

const EIO: Fault = Fault::Error(ErrorKind::Other);
const ENOSPC: Fault = Fault::Error(ErrorKind::StorageFull);

/// Each was synced before the one that follows it was begun: to open a log takes as long as its last
/// segment does.
#[test]
fn opening_syncs_the_last_of_the_segments_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let storage = working();
    let (log, _) = open_on(&storage, dir.path(), small());
    for n in 1..=200 {
        append(&log, n).unwrap();
    }
    let segments = log.stats().segments;
    assert!(segments > 3);
    drop(log);
    let synced = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&synced);
    storage.replan(move |op, path| {
        if op == Op::Sync && path.extension().is_some_and(|extension| extension == "wal") {
            seen.lock().unwrap().push(path.to_owned());
        }
        None
    });
    let (log, recovery) = open_on(&storage, dir.path(), small());
    let last = dir.path().join(format!("procmond-{segments:05}.wal"));
    // Its end, which nothing proves, is written again.
    assert_eq!(*synced.lock().unwrap(), [last]);
    assert_eq!(recovery.records, 200);
    assert_eq!(read(&log), numbers(1, 200));
}

#[test]
fn w8_after_a_failed_sync_the_records_go_into_a_fresh_segment() {
    for (op, fault) in
        [(Op::Sync, EIO), (Op::Write, EIO), (Op::Write, Fault::Short(20, ErrorKind::Other))]
    {
        let dir = tempfile::tempdir().unwrap();
        let storage = working();
        let (log, _) = open_on(&storage, dir.path(), quick());
        for n in 1..=5 {
            append(&log, n).unwrap();
        }
        let touched = Arc::new(AtomicUsize::new(0));
        let mut fails = nth(op, 0, fault);
        let count = Arc::clone(&touched);
        let mut failed = false;
        storage.replan(move |op, path| {
            let first = path.ends_with("procmond-00001.wal.new");
            // The keeper cuts off what has failed, and syncs that.
            let cuts = op == Op::Sync && std::thread::current().name() == Some("wal-keeper");
            if failed && first && !cuts && (op == Op::Write || op == Op::Sync) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let fault = fails(op, path);
            failed |= fault.is_some();
            fault
        });
        for n in 6..=10 {
            assert_eq!(append(&log, n).unwrap(), Sequence(n));
        }
        assert_eq!(touched.load(Ordering::Relaxed), 0, "the failed file was written again");
        assert_eq!(log.stats().rewrites, 1);
        assert_eq!(log.stats().segments, 2);
        assert_eq!(read(&log), numbers(1, 10));
        drop(log);
        let (log, recovery) = open_on(&working(), dir.path(), quick());
        assert!(recovery.damage.is_empty());
        assert_eq!(read(&log), numbers(1, 10));
    }
}

#[test]
fn w8_a_second_failure_shuts_the_log_and_tells_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let storage = working();
    let (log, _) = open_on(&storage, dir.path(), WalOptions::default());
    for n in 1..=3 {
        append(&log, n).unwrap();
    }
    storage.replan(|op, _| (op == Op::Sync).then_some(EIO));
    let waiting: Vec<_> =
        (4..=6).map(|n| log.durable(log.submit(1, n, &payload(n as u64)).unwrap())).collect();
    for waiter in waiting {
        assert!(matches!(block_on(waiter), Err(WalError::Poisoned { .. })));
    }
    assert!(matches!(log.submit(1, 0, b"x"), Err(WalError::Poisoned { .. })));
    assert!(matches!(block_on(log.flush()), Err(WalError::Poisoned { .. })));
    assert!(matches!(log.acknowledge(Sequence(1)), Err(WalError::Poisoned { .. })));
    log.durable_blocking(Sequence(3)).unwrap();
    assert!(matches!(log.close(), Err(WalError::Poisoned { .. })));
    let (log, _) = open_on(&working(), dir.path(), quick());
    let read = read(&log);
    assert!(read.starts_with(&numbers(1, 3)) && read.len() <= 6);
}

#[test]
fn w8_a_full_disk_refuses_and_recovers() {
    for fault in [ENOSPC, Fault::Short(30, ErrorKind::StorageFull)] {
        for op in [Op::Write, Op::Sync, Op::Create] {
            let dir = tempfile::tempdir().unwrap();
            let storage = working();
            let (log, _) = open_on(&storage, dir.path(), growing());
            for n in 1..=60 {
                append(&log, n).unwrap();
            }
            storage.replan(move |asked, _| (asked == op).then_some(fault));
            let mut n = 60;
            let refused = loop {
                n += 1;
                match append(&log, n) {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert!(matches!(refused, WalError::DiskFull { .. }), "{refused}");
            assert!(matches!(log.submit(7, 0, b"x"), Err(WalError::DiskFull { .. })));
            assert_eq!(log.stats().refused, vec![(7, 1)]);
            assert_eq!(read(&log), numbers(1, n - 1), "what is there stays readable");
            storage.heal();
            // The one that was accepted becomes durable by itself.
            let deadline = Instant::now() + Duration::from_secs(20);
            while log.last_durable() < Sequence(n) || log.stats().refusing.is_some() {
                assert!(Instant::now() < deadline, "the log did not recover");
                std::thread::yield_now();
            }
            append(&log, n + 1).unwrap();
            assert_eq!(read(&log), numbers(1, n + 1));
            // Only a failed sync leaves a file that cannot be written on.
            assert_eq!(log.stats().rewrites, u64::from(op == Op::Sync));
            drop(log);
            let (log, recovery) = open_on(&working(), dir.path(), small());
            assert!(recovery.damage.is_empty() && recovery.torn.is_none(), "{recovery:?}");
            assert_eq!(read(&log), numbers(1, n + 1));
        }
    }
}

/// With the budget nearly spent a segment was left to get its room back, and the next one's name
/// could not be made durable. When there was room in another way the writer went on in the segment
/// before, and the next opening took that one to end where the other begins.
#[test]
fn w1_nothing_is_written_behind_a_segment_begun_to_make_room() {
    const BUDGET: u64 = 16 << 10;
    let dir = tempfile::tempdir().unwrap();
    let storage = working();
    let (log, _) =
        open_on(&storage, dir.path(), WalOptions { disk_budget_bytes: BUDGET, ..growing() });
    let append = |n: u64, bytes: usize| {
        let record = NewRecord { kind: 1, timestamp_ns: n as i64, payload: &vec![0; bytes] };
        log.append_blocking(&[record]).map(|receipt| receipt.sequence.0)
    };
    // Three full segments, and one that is worth leaving.
    for _ in 0..15 {
        append(0, 900).unwrap();
    }
    assert_eq!(log.stats().segments, 4);
    let (deleted, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    storage.replan({
        let (deleted, refused) = (Arc::clone(&deleted), Arc::clone(&refused));
        move |op, _| {
            let keeper = std::thread::current().name() == Some("wal-keeper");
            let failed = refused.load(Ordering::SeqCst) > 0;
            match op {
                // It goes when the writer has tried to have its room without.
                Op::Unlink if keeper && !failed => return Some(EIO),
                Op::Unlink if keeper => drop(deleted.fetch_add(1, Ordering::SeqCst)),
                Op::SyncDir if !keeper && deleted.load(Ordering::SeqCst) < 3 => {
                    refused.fetch_add(1, Ordering::SeqCst);
                    return Some(Fault::Error(ErrorKind::ReadOnlyFilesystem));
                }
                _ => {}
            }
            None
        }
    });
    log.acknowledge(log.last()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while log.stats().deleted < 3 || append(1, 100).is_err() {
        assert!(Instant::now() < deadline, "the log did not recover");
        std::thread::yield_now();
    }
    assert!(refused.load(Ordering::SeqCst) > 0);
    let last = append(2, 100).unwrap();
    log.close().unwrap();
    let (log, recovery) = open_on(&working(), dir.path(), small());
    assert_eq!(log.last(), Sequence(last), "{recovery:?}");
}

/// Without prepared segments: one of them would be written to where another has no room.
fn growing() -> WalOptions {
    WalOptions { prepare: false, ..small() }
}

/// One record refused for want of room, and one queued behind it.
fn one_behind_another(dir: &Path) -> (Faulty, WriteAheadLog) {
    let storage = working();
    let (log, _) = open_on(&storage, dir, quick());
    let (writes, is_writing) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    storage.replan(move |op, _| {
        if op == Op::Write {
            // Only the first write is held up; nobody is there to hold up the later ones.
            let _ = writes.send(());
            let _ = may_go_on.recv();
        }
        (op == Op::Write).then_some(ENOSPC)
    });
    log.submit(1, 1, &payload(1)).unwrap();
    is_writing.recv().unwrap();
    log.submit(1, 2, &payload(2)).unwrap();
    drop(go_on);
    let deadline = Instant::now() + Duration::from_secs(20);
    while log.stats().refusing.is_none() {
        assert!(Instant::now() < deadline, "the log did not notice");
        std::thread::yield_now();
    }
    (storage, log)
}

/// A record queued behind the write that found the disk full stayed in the queue when there was
/// room again, until something else was submitted: whoever waited for it waited for ever.
#[test]
fn w8_what_was_queued_when_the_disk_became_full_is_written_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, log) = one_behind_another(dir.path());
    storage.heal();
    let deadline = Instant::now() + Duration::from_secs(20);
    while log.last_durable() < Sequence(2) {
        assert!(Instant::now() < deadline, "the log did not recover");
        std::thread::yield_now();
    }
    assert_eq!(read(&log), numbers(1, 2));
}

/// Closing wrote what had been refused, and left what was queued behind it.
#[test]
fn w1_what_was_queued_when_the_disk_became_full_is_written_when_the_log_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, log) = one_behind_another(dir.path());
    storage.heal();
    log.close().unwrap();
    let (log, _) = open_on(&working(), dir.path(), quick());
    assert_eq!(read(&log), numbers(1, 2));
}

#[test]
fn w8_a_log_closed_on_a_full_disk_says_what_is_not_durable() {
    let dir = tempfile::tempdir().unwrap();
    let storage = working();
    let (log, _) = open_on(&storage, dir.path(), quick());
    append(&log, 1).unwrap();
    storage.replan(|op, _| (op == Op::Write).then_some(Fault::Short(20, ErrorKind::StorageFull)));
    append(&log, 2).unwrap_err();
    assert!(matches!(log.close(), Err(WalError::DiskFull { .. })));
    let (log, recovery) = open_on(&working(), dir.path(), quick());
    assert_eq!(recovery.torn, None, "what was not written whole was taken back");
    assert_eq!(read(&log), numbers(1, 1));
}

/// From the n-th operation on everything fails, as after a kill; and whether it came to that.
fn dead_from(n: usize) -> (impl FnMut(Op, &Path) -> Option<Fault> + Send, Arc<AtomicBool>) {
    let mut left = n;
    let died = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&died);
    let plan = move |_, _: &Path| {
        left = left.saturating_sub(1);
        flag.fetch_or(left == 0, Ordering::Relaxed);
        (left == 0).then_some(EIO)
    };
    (plan, died)
}

fn log_with_two_epochs(dir: &Path) -> StreamId {
    let (log, _) = open_on(&working(), dir, small());
    (1..=80).for_each(|n| assert_eq!(append(&log, n).unwrap(), Sequence(n)));
    log.acknowledge(Sequence(50)).unwrap();
    drop(log);
    let (log, _) = open_on(&working(), dir, small());
    (81..=200).for_each(|n| assert_eq!(append(&log, n).unwrap(), Sequence(n)));
    log.stream()
}

#[test]
fn a_new_stream_holds_what_was_not_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let old = log_with_two_epochs(dir.path());
    let (log, _) = open_on(&working(), dir.path(), small());
    let mut reader = log.reader(Sequence(60));
    reader.next_batch(10).unwrap();
    let first = payload(1000);
    let stream = block_on(log.begin_stream(Some((9, 1000, &first)))).unwrap();
    assert_ne!(stream, old);
    assert_eq!(log.stream(), stream);
    assert_eq!(log.epoch().count(), 1);
    assert_eq!(log.watermark(), Sequence::NONE);
    assert!(matches!(reader.next_batch(10), Err(WalError::StreamReplaced)));
    let expected = [vec![1000], numbers(51, 200)].concat();
    assert_eq!(read(&log), expected);
    assert_eq!(append(&log, 201).unwrap(), Sequence(152));
    log.acknowledge(Sequence(1)).unwrap();
    drop(log);
    let (log, recovery) = open_on(&working(), dir.path(), small());
    assert_eq!((log.stream(), recovery.new_stream), (stream, false));
    assert!(recovery.foreign.is_empty() && recovery.damage.is_empty());
    assert_eq!(read(&log), [&expected[1..], &[201]].concat());
}

#[test]
fn a_new_stream_interrupted_anywhere_is_wholly_old_or_wholly_new() {
    let (mut old_seen, mut new_seen) = (0, 0);
    for step in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let old = log_with_two_epochs(dir.path());
        let storage = working();
        let (log, _) = open_on(&storage, dir.path(), small());
        let first = payload(1000);
        let (plan, died) = dead_from(step);
        storage.replan(plan);
        let result = block_on(log.begin_stream(Some((9, 1000, &first))));
        drop(log);

        let (log, recovery) = open_on(&working(), dir.path(), small());
        assert!(recovery.damage.is_empty() && recovery.foreign.is_empty(), "step {step}");
        if log.stream() == old {
            assert!(result.is_err(), "step {step}");
            assert_eq!(read(&log), numbers(51, 200), "step {step}");
            old_seen += 1;
        } else {
            assert_eq!(read(&log), [vec![1000], numbers(51, 200)].concat(), "step {step}");
            new_seen += 1;
        }
        append(&log, 7).unwrap();
        let files = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|file| file.as_ref().unwrap().file_name() != "procmond.reserve")
            .count();
        assert_eq!(files, log.stats().segments + 1, "step {step}: its segments and the lock");
        if !died.load(Ordering::Relaxed) {
            break;
        }
    }
    assert!(old_seen > 10 && new_seen > 3, "{old_seen} old, {new_seen} new");
}

#[test]
fn an_opening_interrupted_anywhere_changes_nothing() {
    for step in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let stream = log_with_two_epochs(dir.path());
        // A torn tail, so that cutting it is among the steps.
        let last = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
            .max()
            .unwrap();
        let mut bytes = std::fs::read(&last).unwrap();
        bytes.extend_from_slice(&[0x77; 300]);
        std::fs::write(&last, bytes).unwrap();

        let (plan, died) = dead_from(step);
        drop(WriteAheadLog::open_on(Arc::new(Faulty::new(plan)), dir.path(), small()));
        let (log, recovery) = open_on(&working(), dir.path(), small());
        assert_eq!(log.stream(), stream, "step {step}");
        assert!(recovery.damage.is_empty(), "step {step}");
        assert_eq!(read(&log), numbers(51, 200), "step {step}");
        if !died.load(Ordering::Relaxed) {
            assert!(step > 20, "only {step} steps");
            break;
        }
    }
}

#[test]
fn segments_of_another_log_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let stream = log_with_two_epochs(dir.path());
    let (log, _) = open_on(&working(), dir.path(), small());
    log.acknowledge(Sequence(150)).unwrap();
    drop(log);
    let placed = dir.path().join("procmond-00001.wal");
    assert!(!placed.exists(), "acknowledged and deleted");
    let other = tempfile::tempdir().unwrap();
    log_with_two_epochs(other.path());
    std::fs::rename(other.path().join("procmond-00001.wal"), &placed).unwrap();
    for acknowledged in 150..153 {
        let (log, recovery) = open_on(&working(), dir.path(), small());
        assert_eq!(log.stream(), stream);
        assert_eq!(recovery.foreign, std::slice::from_ref(&placed));
        assert_eq!(read(&log), numbers(acknowledged + 1, 200));
        log.acknowledge(Sequence(acknowledged + 1)).unwrap();
    }
    assert!(placed.exists());
}

/// What a payload says that wants to be taken for a segment's label.
fn forged(segment: u64, replaces: Option<StreamId>) -> Label {
    Label {
        stream: StreamId::from_bytes([7; 16]),
        replaces,
        segment,
        salt: 77,
        first: Sequence(1),
        watermark: Sequence(1 << 40),
        watermark_epoch: None,
        epoch: Epoch::from_u64(u64::MAX),
        epoch_first: Sequence(1),
        rest: Rest::Nothing,
    }
}

/// A control record in a payload was taken for the segment's own when the header was lost: the log
/// became whatever the payload said.
#[test]
fn s1_a_payload_does_not_say_what_a_segment_is() {
    let dir = tempfile::tempdir().unwrap();
    let forged = forged(1, None);
    let mut payload = forged.to_control(Sequence(0), 0, 1).to_vec();
    let start = payload.len();
    encode_frame(&mut payload, 1, Sequence(1), 0, 1, &[b'x'; 2000]);
    salt_frame(&mut payload[start..], forged.salt);
    let (log, _) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    for _ in 0..3 {
        block_on(log.append(1, 0, &payload)).unwrap();
    }
    let stream = log.stream();
    log.close().unwrap();

    let path = dir.path().join("procmond-00001.wal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..EMPTY_BYTES as usize].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let (log, recovery) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    assert_eq!((log.stream(), log.last(), log.watermark()), (stream, Sequence(3), Sequence::NONE));
    assert!(recovery.damage.is_empty(), "{recovery:?}");
}

/// One that named the log's own stream as replaced had the log removed when it was opened.
#[test]
fn s1_a_payload_does_not_say_what_a_stream_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..WalOptions::default() };
    let (log, _) = WriteAheadLog::open(dir.path(), options.clone()).unwrap();
    for _ in 0..3 {
        block_on(log.append(1, 0, &[1; 3000])).unwrap();
    }
    let forged = forged(4, Some(log.stream()));
    let mut payload = vec![0; 3000];
    payload.extend(forged.to_control(Sequence(0), 0, 1));
    block_on(log.append(1, 0, &payload)).unwrap();
    let stream = log.stream();
    log.close().unwrap();

    let path = dir.path().join("procmond-00004.wal");
    let mut bytes = std::fs::read(&path).unwrap();
    let from = EMPTY_BYTES as usize + FRAME_BYTES;
    bytes[..from].fill(0);
    bytes.truncate(from + payload.len());
    std::fs::write(&path, bytes).unwrap();
    let inspection = inspect(dir.path()).unwrap();
    assert_eq!((inspection.stream, inspection.watermark), (Some(stream), Sequence::NONE));
    let (log, recovery) = WriteAheadLog::open(dir.path(), options).unwrap();
    assert_eq!((log.stream(), log.watermark()), (stream, Sequence::NONE), "{recovery:?}");
    assert!(recovery.first == Sequence(1) && recovery.damage[0].first == Sequence(4));
}

/// What was written over a segment's header was another segment's, and so the whole segment was
/// taken for lost, though its control records say what it is.
#[test]
fn w4_the_header_of_another_segment_costs_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..WalOptions::default() };
    let (log, _) = WriteAheadLog::open(dir.path(), options.clone()).unwrap();
    for _ in 0..20 {
        block_on(log.append(1, 0, &[1; 500])).unwrap();
    }
    log.close().unwrap();

    let path = |number| dir.path().join(format!("procmond-{number:05}.wal"));
    let mut bytes = std::fs::read(path(2)).unwrap();
    bytes[..HEADER_BYTES].copy_from_slice(&std::fs::read(path(1)).unwrap()[..HEADER_BYTES]);
    std::fs::write(path(2), bytes).unwrap();
    let (log, recovery) = WriteAheadLog::open(dir.path(), options).unwrap();
    assert!(recovery.foreign.is_empty(), "{recovery:?}");
    let mut reader = log.reader(Sequence::FIRST);
    let entries = reader.next_batch(1 << 20).unwrap();
    assert!(entries.iter().all(|entry| matches!(entry, Entry::Record(_))), "{entries:?}");
    assert_eq!(entries.len(), 20);
}

/// With the newest segment unreadable and the end of the one before damaged too, sequences that had
/// receipts were given again.
#[test]
fn w6_sequences_behind_a_damaged_end_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..WalOptions::default() };
    let (log, _) = WriteAheadLog::open(dir.path(), options.clone()).unwrap();
    for _ in 0..10 {
        block_on(log.append(1, 0, &[1; 500])).unwrap();
    }
    let last = log.last();
    assert_eq!(log.stats().segments, 2);
    log.close().unwrap();

    let path = |number| dir.path().join(format!("procmond-{number:05}.wal"));
    let mut bytes = std::fs::read(path(1)).unwrap();
    bytes[1000..].fill(0);
    std::fs::write(path(1), bytes).unwrap();
    std::fs::write(path(2), [0; 300]).unwrap();
    let (log, recovery) = WriteAheadLog::open(dir.path(), options).unwrap();
    assert!(log.last() >= last, "{recovery:?}");
}
