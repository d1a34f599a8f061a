//! What must always hold of the log, each promise by its name, on real files.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use daemoneye_lib::stream::{Epoch, Sequence};
use procmond::wal::{
    ArchiveOptions, Entry, LostReason, NewRecord, Promise, Recovery, Retire, RotateEvery, SyncMode,
    WalError, WalOptions, WriteAheadLog,
};

/// Commits at once, so that tests do not wait.
fn quick() -> WalOptions {
    WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() }
}

fn open(dir: &Path, options: WalOptions) -> (WriteAheadLog, Recovery) {
    WriteAheadLog::open(dir, options).unwrap()
}

fn payload(sequence: u64) -> Vec<u8> {
    format!("record {sequence} {}", "x".repeat((sequence % 50) as usize)).into_bytes()
}

/// Appends until the last sequence is `upto`, every payload made from its sequence.
fn fill(log: &WriteAheadLog, upto: u64) {
    while log.last().0 < upto {
        let next = log.last().next().0;
        let sequence = log.submit(1, next as i64, &payload(next)).unwrap();
        assert_eq!(sequence.0, next);
        log.durable_blocking(sequence).unwrap();
    }
}

/// Everything from a sequence on: the sequences read (payloads checked) and the losses.
fn read(log: &WriteAheadLog, from: u64) -> (Vec<u64>, Vec<(u64, u64, LostReason)>) {
    let mut reader = log.reader(Sequence(from));
    let (mut read, mut lost) = (Vec::new(), Vec::new());
    loop {
        let batch = reader.next_batch(1000).unwrap();
        if batch.is_empty() {
            return (read, lost);
        }
        for entry in batch {
            match entry {
                Entry::Record(record) => {
                    assert_eq!(record.payload, payload(record.sequence.0));
                    assert_eq!(record.timestamp_ns, record.sequence.0 as i64);
                    read.push(record.sequence.0);
                }
                Entry::Lost { first, last, reason } => lost.push((first.0, last.0, reason)),
            }
        }
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    paths.sort();
    paths
}

/// What a crash leaves: the files as they are, without the lock and without a clean close.
fn crash_copy(dir: &Path) -> tempfile::TempDir {
    loop {
        let copy = tempfile::tempdir().unwrap();
        let copied = fs::read_dir(dir).unwrap().try_for_each(|entry| {
            let entry = entry?;
            fs::copy(entry.path(), copy.path().join(entry.file_name())).map(drop)
        });
        match copied {
            Ok(()) => return copy,
            // The log was just removing what it needs no more: a crash comes at one moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits for what the writer does after it has told everybody.
fn until(what: &str, met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !met() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

#[test]
fn w1_what_has_a_receipt_is_there_without_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 100);
    let crashed = crash_copy(dir.path());
    let (reopened, recovery) = open(crashed.path(), quick());
    assert_eq!(recovery.last, Sequence(100));
    assert!(recovery.torn.is_none() && recovery.damage.is_empty());
    assert_eq!(read(&reopened, 1), (range(1, 100), vec![]));
}

#[test]
fn w2_a_crash_leaves_a_prefix_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 20);
    let bytes = fs::read(&segments(dir.path())[0]).unwrap();
    for cut in (224..bytes.len()).step_by(7) {
        let crashed = crash_copy(dir.path());
        fs::write(&segments(crashed.path())[0], &bytes[..cut]).unwrap();
        let (reopened, recovery) = open(crashed.path(), quick());
        let (read, lost) = read(&reopened, 1);
        assert_eq!(read, range(1, recovery.last.0), "cut at {cut}");
        assert_eq!(lost, vec![], "cut at {cut}");
    }
}

#[test]
fn w3_torn_tail_is_cut_before_the_next_append() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 10);
    let crashed = crash_copy(dir.path());
    let torn = segments(crashed.path())[0].clone();
    let whole = fs::read(&torn).unwrap();
    // Record 10 has lost its last byte: less than one record, so no copy.
    fs::write(&torn, &whole[..whole.len() - 1]).unwrap();
    let (log, recovery) = open(crashed.path(), quick());
    let tail = recovery.torn.unwrap();
    assert_eq!(tail.path, torn);
    assert_eq!(tail.copy, None);
    assert_eq!(fs::metadata(&torn).unwrap().len(), tail.offset);
    assert_eq!(recovery.last, Sequence(9));
    fill(&log, 12);
    assert_eq!(read(&log, 1), (range(1, 12), vec![]));
    drop(log);
    let (log, recovery) = open(crashed.path(), quick());
    assert!(recovery.torn.is_none());
    assert_eq!(read(&log, 1), (range(1, 12), vec![]));
}

#[test]
fn w3_more_than_a_record_is_copied_before_it_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 10);
    let crashed = crash_copy(dir.path());
    let torn = segments(crashed.path())[0].clone();
    let mut bytes = fs::read(&torn).unwrap();
    let end = bytes.len();
    bytes.extend_from_slice(&[0x5a; 5000]);
    fs::write(&torn, &bytes).unwrap();
    let (_log, recovery) = open(crashed.path(), quick());
    let tail = recovery.torn.unwrap();
    assert_eq!((tail.offset, tail.bytes), (end as u64, 5000));
    let copy = tail.copy.unwrap();
    assert!(copy.file_name().unwrap().to_str().unwrap().starts_with("procmond-00001.torn-"));
    assert_eq!(fs::read(copy).unwrap(), vec![0x5a; 5000]);
}

#[test]
fn w4_damage_in_the_middle_costs_only_what_it_hits() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 1000);
    drop(log);
    let path = segments(dir.path())[0].clone();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(11).position(|window| window == b"record 500 ").unwrap();
    bytes[at..at + 4096].fill(0);
    fs::write(&path, &bytes).unwrap();

    let (log, recovery) = open(dir.path(), quick());
    let (read, lost) = read(&log, 1);
    let [(first, last, LostReason::Damaged)] = lost[..] else { panic!("{lost:?}") };
    assert_eq!(first, 500);
    assert!(last - first < 4096 / 40, "a page holds no more than that");
    assert_eq!(read, [range(1, 499), range(last + 1, 1000)].concat());
    assert_eq!(recovery.damage.len(), 1);
    assert_eq!((recovery.damage[0].first.0, recovery.damage[0].last.0), (first, last));
    assert!(recovery.torn.is_none(), "valid records follow");
    assert_eq!(recovery.last, Sequence(1000));
}

#[test]
fn w4_a_wiped_header_costs_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 300);
    log.acknowledge(Sequence(7)).unwrap();
    let (stream, epoch) = (log.stream(), log.epoch());
    drop(log);
    let path = segments(dir.path())[0].clone();
    let whole = fs::read(&path).unwrap();

    // The header alone; then the first page, with the header, its copy and the records there.
    for (wiped, records_hit) in [(64, 0), (104, 0), (4096, 80)] {
        let mut bytes = whole.clone();
        bytes[..wiped].fill(0);
        let damaged = tempfile::tempdir().unwrap();
        fs::write(damaged.path().join(path.file_name().unwrap()), &bytes).unwrap();
        let (log, recovery) = open(damaged.path(), quick());
        assert_eq!(log.stream(), stream, "{wiped} wiped");
        assert_eq!(log.epoch().count(), epoch.count() + 1);
        assert_eq!(recovery.watermark, Sequence(7));
        assert_eq!(recovery.last, Sequence(300));
        let (read, lost) = read(&log, 1);
        let hit: u64 = lost.iter().map(|(first, last, _)| last - first + 1).sum();
        assert!(hit <= records_hit, "{wiped} wiped: {lost:?}");
        assert_eq!(read.len() as u64 + hit, 300);
    }
}

#[test]
fn w4_a_log_that_was_never_closed_knows_itself_without_its_first_page() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 300);
    let crashed = crash_copy(dir.path());
    let path = segments(crashed.path())[0].clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[..4096].fill(0);
    fs::write(&path, bytes).unwrap();
    let (reopened, recovery) = open(crashed.path(), quick());
    assert_eq!(reopened.stream(), log.stream());
    assert_eq!((recovery.new_stream, recovery.last), (false, Sequence(300)));
    let (read, lost) = read(&reopened, 1);
    let [(1, last, LostReason::Damaged)] = lost[..] else { panic!("{lost:?}") };
    assert_eq!(read, range(last + 1, 300));
}

#[test]
fn w4_damage_to_the_last_record_of_a_closed_log_is_no_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 10);
    drop(log);
    let path = segments(dir.path())[0].clone();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(10).position(|window| window == b"record 10 ").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (log, recovery) = open(dir.path(), quick());
    assert_eq!((recovery.torn, recovery.last), (None, Sequence(10)));
    assert_eq!(read(&log, 1), (range(1, 9), vec![(10, 10, LostReason::Damaged)]));
}

#[test]
fn w4_a_missing_segment_is_reported_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let (log, _) = open(dir.path(), options.clone());
    fill(&log, 400);
    drop(log);
    let paths = segments(dir.path());
    assert!(paths.len() > 4);
    fs::remove_file(&paths[2]).unwrap();
    let (log, recovery) = open(dir.path(), options);
    let (read, lost) = read(&log, 1);
    let [(first, last, LostReason::Missing)] = lost[..] else { panic!("{lost:?}") };
    assert_eq!(read, [range(1, first - 1), range(last + 1, 400)].concat());
    let [found] = recovery.damage[..] else { panic!("{:?}", recovery.damage) };
    assert_eq!((found.first.0, found.last.0), (first, last));
}

#[test]
fn w4_an_acknowledged_segment_missing_in_the_middle_is_no_loss() {
    // A power cut may keep the deletion of the second of two acknowledged segments and not that of
    // the first.
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let (log, _) = open(dir.path(), options.clone());
    log.retain_from(Sequence::FIRST);
    fill(&log, 400);
    log.acknowledge(Sequence(300)).unwrap();
    drop(log);
    fs::remove_file(&segments(dir.path())[1]).unwrap();
    let (log, recovery) = open(dir.path(), options);
    assert_eq!(recovery.damage, []);
    assert_eq!(read(&log, 301), (range(301, 400), vec![]));
    assert_eq!(read(&log, 1).1, vec![], "acknowledged and gone is not lost");
}

#[test]
fn w4_an_unreadable_last_segment_never_gives_its_sequences_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let (log, _) = open(dir.path(), options.clone());
    fill(&log, 200);
    drop(log);
    let last_segment = segments(dir.path()).pop().unwrap();
    let bytes = fs::metadata(&last_segment).unwrap().len();
    fs::write(&last_segment, vec![0xff; bytes as usize]).unwrap();
    let (log, recovery) = open(dir.path(), options.clone());
    assert!(recovery.last >= Sequence(200));
    let [lost] = recovery.damage[..] else { panic!("{:?}", recovery.damage) };
    assert_eq!(lost.last, recovery.last);
    let next = log.submit(1, 0, b"next").unwrap();
    assert_eq!(next, recovery.last.next());
    drop(log);
    let (log, _) = open(dir.path(), options);
    let entries = log.reader(lost.first).next_batch(1 << 20).unwrap();
    let reported = Entry::Lost { first: lost.first, last: lost.last, reason: LostReason::Damaged };
    assert_eq!(entries[0], reported);
    assert!(matches!(&entries[1], Entry::Record(record) if record.sequence == next));
}

#[test]
fn w5_a_copy_of_another_segment_is_not_read_for_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let (log, _) = open(dir.path(), options.clone());
    fill(&log, 400);
    drop(log);
    let paths = segments(dir.path());
    fs::copy(&paths[1], &paths[3]).unwrap();
    let (log, _) = open(dir.path(), options);
    let (read, lost) = read(&log, 1);
    let [(first, last, LostReason::Damaged)] = lost[..] else { panic!("{lost:?}") };
    assert_eq!(read, [range(1, first - 1), range(last + 1, 400)].concat());
}

#[test]
fn w6_sequences_go_on_across_restarts_and_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let mut epochs: Vec<(u64, Epoch)> = Vec::new();
    let mut stream = None;
    for opening in 1..=5 {
        let (log, recovery) = open(dir.path(), options.clone());
        assert_eq!(recovery.new_stream, opening == 1);
        assert_eq!(*stream.get_or_insert(log.stream()), log.stream());
        assert_eq!(log.epoch().count(), opening as u32);
        fill(&log, opening * 150);
        epochs.push((opening * 150, log.epoch()));
        for &(last, epoch) in &epochs {
            assert_eq!(log.epoch_at(Sequence(last)), Some(epoch));
            assert_eq!(log.epoch_at(Sequence(last - 149)), Some(epoch));
        }
        assert_eq!(log.epoch_at(log.last().next()), None);
        assert_eq!(read(&log, 1), (range(1, opening * 150), vec![]));
    }
    assert!(segments(dir.path()).len() > 10);
}

#[test]
fn w6_openings_that_write_nothing_leave_no_files_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    for _ in 0..5 {
        let (log, _) = open(dir.path(), quick());
        assert!(last < Some(log.epoch()), "every opening has a later epoch");
        last = Some(log.epoch());
    }
    assert_eq!(segments(dir.path()).len(), 1);
}

#[tokio::test]
async fn w7_the_watermark_survives_a_crash_once_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 50);
    log.acknowledge(Sequence(30)).unwrap();
    log.acknowledge(Sequence(20)).unwrap();
    assert_eq!(log.watermark(), Sequence(30), "forward only");
    log.flush().await.unwrap();
    assert_eq!(log.stats().watermark_durable, Sequence(30));
    let crashed = crash_copy(dir.path());
    let (reopened, recovery) = open(crashed.path(), quick());
    assert_eq!(recovery.watermark, Sequence(30));
    assert_eq!(recovery.records, 20);
    assert_eq!(reopened.epoch_at(Sequence(30)), Some(log.epoch()));
    assert!(matches!(
        log.acknowledge(Sequence(51)),
        Err(WalError::AheadOfLog { durable: Sequence(50), .. })
    ));
}

#[test]
fn w7_an_acknowledgement_alone_becomes_durable_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), WalOptions::default());
    fill(&log, 3);
    log.acknowledge(Sequence(3)).unwrap();
    until("the watermark is durable", || log.stats().watermark_durable == Sequence(3));
}

#[tokio::test]
async fn w7_segments_go_when_the_watermark_has_passed_their_last_record() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let (log, _) = open(dir.path(), options.clone());
    fill(&log, 500);
    let mut held = segments(dir.path()).len();
    for acknowledged in (10..=500).step_by(10) {
        log.acknowledge(Sequence(acknowledged)).unwrap();
        log.flush().await.unwrap();
        let (read, lost) = read(&log, 1);
        assert_eq!(lost, vec![], "what was acknowledged is no loss");
        // Segments may go while this reads.
        let kept = read.partition_point(|&sequence| sequence <= acknowledged);
        assert_eq!(read[kept..], range(acknowledged + 1, 500));
        let now = segments(dir.path()).len();
        assert!(now <= held);
        held = now;
    }
    until("one segment is left", || segments(dir.path()).len() == 1);
    assert_eq!(log.unacknowledged_bytes(), 0);
    let epoch = log.epoch();
    drop(log);
    let (log, recovery) = open(dir.path(), options);
    assert_eq!((recovery.last, recovery.watermark), (Sequence(500), Sequence(500)));
    assert_eq!(log.epoch_at(Sequence(500)), Some(epoch), "known though its record may be gone");
}

#[tokio::test]
async fn w7_what_is_to_be_retained_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let (log, _) = open(dir.path(), options);
    log.retain_from(Sequence(250));
    fill(&log, 500);
    log.acknowledge(Sequence(500)).unwrap();
    log.flush().await.unwrap();
    let (read, _) = read(&log, 1);
    assert!(read[0] <= 250, "from {}", read[0]);
    until("what is older is gone", || self::read(&log, 1).0[0] > 200);
    assert!(self::read(&log, 1).0[0] <= 250);
}

#[tokio::test]
async fn w9_at_the_budget_appends_are_refused_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 8192, disk_budget_bytes: 32_768, ..quick() };
    let (log, _) = open(dir.path(), options.clone());
    for round in 1..=3 {
        let before = log.last();
        let refused = loop {
            let next = log.last().next().0;
            assert!(log.last().since(before) < 10_000, "the budget is not kept");
            match log.submit(3, next as i64, &payload(next)) {
                Ok(_) => {}
                Err(WalError::Busy) => log.room().await,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, WalError::BudgetSpent { budget_bytes: 32_768, .. }));
        assert!(log.last().since(before) > 100, "only {} were taken", log.last().since(before));
        log.flush().await.unwrap();
        let on_disk: u64 =
            segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(on_disk <= 32_768 + 8192, "{on_disk} bytes");
        assert_eq!(log.stats().refused, vec![(3, round)]);
        // Everything has been committed by the consumers: the room comes back by itself.
        log.acknowledge(log.last()).unwrap();
        until("there is room", || log.stats().used_bytes < 16_384);
    }
}

#[test]
fn w9_room_comes_back_even_from_the_segment_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), WalOptions { disk_budget_bytes: 16_384, ..quick() });
    for _ in 0..3 {
        let sequence = log.submit(1, 0, &[1; 12_000]).unwrap();
        log.durable_blocking(sequence).unwrap();
        assert!(matches!(log.submit(1, 0, &[1; 12_000]), Err(WalError::BudgetSpent { .. })));
        log.acknowledge(sequence).unwrap();
        until("there is room", || log.stats().used_bytes < 1000);
    }
}

#[test]
fn w9_a_batch_ends_at_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    let big = vec![7; 1 << 20];
    for _ in 0..12 {
        let sequence = log.submit(1, 0, &big).unwrap();
        log.durable_blocking(sequence).unwrap();
    }
    let mut reader = log.reader(Sequence::FIRST);
    let mut records = 0;
    loop {
        let batch = reader.next_batch(64 << 10).unwrap();
        if batch.is_empty() {
            break;
        }
        assert_eq!(batch.len(), 1, "one record at least, and no more than fit");
        records += 1;
    }
    assert_eq!(records, 12);
}

#[test]
fn a_second_opener_is_refused_with_the_holders_pid() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    let Err(error) = WriteAheadLog::open(dir.path(), quick()) else { panic!("opened twice") };
    assert!(matches!(error, WalError::LockHeld { .. }));
    let message = error.to_string();
    assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    log.close().unwrap();
    open(dir.path(), quick());
}

#[tokio::test]
async fn a_closed_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), quick());
    fill(&log, 3);
    log.close().unwrap();
    log.close().unwrap();
    assert!(matches!(log.submit(1, 0, b"x"), Err(WalError::Closed)));
    assert!(matches!(log.acknowledge(Sequence(1)), Err(WalError::Closed)));
    log.durable(Sequence(3)).await.unwrap();
    log.flush().await.unwrap();
    assert!(matches!(log.begin_stream(None).await, Err(WalError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_from_many_tasks_share_syncs_and_get_contiguous_receipts() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 20_000, ..WalOptions::default() };
    let (log, _) = open(dir.path(), options);
    let tasks: Vec<_> = (0..64u64)
        .map(|task| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut sequences = Vec::new();
                for n in 0..20u64 {
                    let body = (task << 32 | n).to_le_bytes();
                    let receipt = log.append(1, 0, &body).await.unwrap();
                    assert!(receipt.sequence <= log.last_durable());
                    sequences.push((receipt.sequence.0, task << 32 | n));
                }
                assert!(sequences.is_sorted(), "one task's receipts come in order");
                sequences
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    let mut reader = log.reader(Sequence::FIRST);
    let mut expected = all.iter();
    loop {
        let batch = reader.next_batch(1 << 16).unwrap();
        if batch.is_empty() {
            break;
        }
        for entry in batch {
            let Entry::Record(record) = entry else { panic!("{entry:?}") };
            let body = u64::from_le_bytes(record.payload[..].try_into().unwrap());
            assert_eq!(expected.next(), Some(&(record.sequence.0, body)));
        }
    }
    assert_eq!(expected.next(), None);
    assert_eq!(all.len(), 1280);
    assert!(log.stats().sync_micros.count < 1280 / 4, "{:?}", log.stats());
}

#[tokio::test]
async fn the_queue_is_bounded_and_room_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { queue_bytes: 10_000, ..WalOptions::default() };
    let (log, _) = open(dir.path(), options);
    let mut busy = 0;
    for _ in 0..500 {
        while let Err(error) = log.submit(1, 0, &[1; 1000]) {
            assert!(matches!(error, WalError::Busy), "{error}");
            assert!(log.stats().queued_bytes < 11_100);
            busy += 1;
            log.room().await;
        }
    }
    assert!(busy > 0);
    log.flush().await.unwrap();
    assert_eq!(log.last_durable(), Sequence(500));
}

#[tokio::test]
async fn wrong_calls_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), WalOptions { max_record_bytes: 10, ..quick() });
    assert!(matches!(log.submit(0, 0, b"x"), Err(WalError::ReservedKind)));
    assert!(matches!(
        log.submit(1, 0, b"01234567890"),
        Err(WalError::TooLarge { bytes: 11, max_bytes: 10 })
    ));
    assert!(matches!(log.durable(Sequence(1)).await, Err(WalError::NotAppended { .. })));
    assert_eq!(log.last(), Sequence::NONE);
    assert_eq!(log.flush().await.unwrap(), Sequence::NONE);
    for bad in [
        WalOptions { segment_bytes: 100, ..quick() },
        WalOptions { disk_budget_bytes: 100, ..quick() },
        WalOptions { max_record_bytes: u32::MAX, ..quick() },
        WalOptions { queue_bytes: 0, ..quick() },
    ] {
        let other = tempfile::tempdir().unwrap();
        let refused = WriteAheadLog::open(other.path(), bad);
        assert!(matches!(refused, Err(WalError::BadOption { .. })));
    }
}

#[test]
fn reading_goes_on_while_the_log_is_written_rotated_and_deleted() {
    const RECORDS: u64 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 8192, ..quick() };
    let (log, _) = open(dir.path(), options);
    let mut reader = log.reader(Sequence::FIRST);
    let writer = std::thread::spawn({
        let log = log.clone();
        move || {
            while log.last().0 < RECORDS {
                let next = log.last().next().0;
                if let Err(error) = log.submit(1, next as i64, &payload(next)) {
                    assert!(matches!(error, WalError::Busy), "{error}");
                }
            }
        }
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut expected = 1;
    while expected <= RECORDS {
        assert!(Instant::now() < deadline, "stuck at {expected}");
        for entry in reader.next_batch(3000).unwrap() {
            let Entry::Record(record) = entry else { panic!("{entry:?}") };
            assert_eq!(record.sequence.0, expected);
            assert_eq!(record.payload, payload(expected));
            expected += 1;
        }
        // What was read is acknowledged, and so deleted behind and under the reader.
        log.acknowledge(Sequence(expected - 1)).unwrap();
    }
    writer.join().unwrap();
    log.close().unwrap();
    assert!(log.stats().segments < 20);
}

#[test]
fn a_slow_reader_is_not_told_of_losses_when_acknowledged_segments_go() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 4096, ..quick() };
    let (log, _) = open(dir.path(), options);
    fill(&log, 300);
    let mut reader = log.reader(Sequence::FIRST);
    reader.next_batch(10).unwrap();
    log.acknowledge(Sequence(250)).unwrap();
    log.close().unwrap();
    let mut seen = Vec::new();
    loop {
        let batch = reader.next_batch(1 << 16).unwrap();
        if batch.is_empty() {
            break;
        }
        for entry in batch {
            let Entry::Record(record) = entry else { panic!("{entry:?}") };
            seen.push(record.sequence.0);
        }
    }
    assert!(seen.is_sorted());
    assert!(seen.ends_with(&range(251, 300)));
    assert!(seen.len() < 299);
}

#[cfg(unix)]
#[test]
fn everything_is_private_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/log");
    let (log, _) = open(&dir, quick());
    fill(&log, 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
    }
}

#[test]
fn w5_a_recycled_segment_never_shows_its_earlier_life() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), WalOptions { segment_bytes: 4096, ..quick() });
    let deadline = Instant::now() + Duration::from_secs(60);
    // Segments are left nearly full, and acknowledged, until several have been used again.
    while log.stats().recycled < 5 {
        assert!(Instant::now() < deadline, "{:?}", log.stats());
        let last = log.last().0;
        fill(&log, last + 40);
        log.acknowledge(Sequence(last + 20)).unwrap();
    }
    let first = log.watermark().next();
    let expected = range(first.0, log.last().0);
    assert_eq!(read(&log, first.0), (expected.clone(), Vec::new()));
    // The active segment's file is longer than its records, and what follows them is stale.
    let copy = crash_copy(dir.path());
    let (log, recovery) = open(copy.path(), quick());
    assert_eq!((recovery.torn, recovery.damage), (None, Vec::new()));
    assert_eq!(read(&log, first.0), (expected, Vec::new()));
}

#[test]
fn threads_that_append_and_wait_get_contiguous_receipts() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), WalOptions { segment_bytes: 20_000, ..WalOptions::default() });
    let mut sequences: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let log = &log;
                scope.spawn(move || {
                    (0..50)
                        .map(|_| {
                            let payload = [thread; 30];
                            let record = NewRecord { kind: 1, timestamp_ns: 0, payload: &payload };
                            let receipt = log.append_blocking(&[record, record]).unwrap();
                            assert_eq!(receipt.promise, Promise::Synced);
                            assert!(log.last_durable() >= receipt.sequence);
                            receipt.sequence.0
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=400).map(|n| 2 * n).collect::<Vec<_>>());
}

#[test]
fn receipts_say_what_they_promise_and_a_flush_keeps_more() {
    let dir = tempfile::tempdir().unwrap();
    let every = Duration::from_secs(3600);
    for sync in [SyncMode::Interval { every, bytes: 1 << 20 }, SyncMode::Os] {
        let (log, _) = open(dir.path(), WalOptions { sync, ..quick() });
        let last = log.last();
        let syncs = log.stats().sync_micros.count;
        let record = NewRecord { kind: 1, timestamp_ns: 0, payload: b"written" };
        let receipt = log.append_blocking(&[record]).unwrap();
        assert_eq!((receipt.sequence, receipt.promise), (last.next(), Promise::Written));
        assert_eq!(log.stats().sync_micros.count, syncs, "{sync:?}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(log.flush()).unwrap();
        assert!(log.stats().sync_micros.count > syncs, "{sync:?}");
    }
}

#[test]
fn what_is_written_is_synced_after_its_interval_or_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (every, bytes) in [(Duration::from_millis(1), u64::MAX), (Duration::from_secs(3600), 1000)]
    {
        let sync = SyncMode::Interval { every, bytes };
        let (log, _) = open(dir.path(), WalOptions { sync, ..quick() });
        let record = NewRecord { kind: 1, timestamp_ns: 0, payload: &[7; 2000] };
        log.append_blocking(&[record]).unwrap();
        until("it is synced", || log.stats().sync_micros.count > 0);
    }
}

#[test]
fn a_segment_with_records_is_left_at_its_age() {
    let dir = tempfile::tempdir().unwrap();
    let rotate = Some(RotateEvery::Age(Duration::from_millis(20)));
    let (log, _) = open(dir.path(), WalOptions { rotate, ..quick() });
    fill(&log, 1);
    until("it is left", || log.stats().rotations == 1);
    // An empty one stays.
    assert_eq!(log.stats().segments, 2);
    assert_eq!(read(&log, 1), (vec![1], Vec::new()));
}

/// As long as a segment grows, every sync writes the file's metadata as well: the first one of an
/// opening is not kept for so long.
#[test]
fn a_segment_that_grows_is_left_for_a_prepared_one_before_it_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), WalOptions { segment_bytes: 8 << 20, ..quick() });
    let append = |payload: &[u8]| {
        log.append_blocking(&[NewRecord { kind: 1, timestamp_ns: 0, payload }]).unwrap();
    };
    for _ in 0..6 {
        append(&[7; 200 << 10]);
    }
    until("one is prepared and taken", || {
        append(b"another");
        log.stats().rotations == 1
    });
    let first = fs::metadata(&segments(dir.path())[0]).unwrap().len();
    assert!((1 << 20..8 << 20).contains(&first), "it was left with {first} bytes");
    assert!(log.stats().prepared_bytes > 7 << 20, "{:?}", log.stats());
}

#[test]
fn acknowledged_segments_are_archived_before_they_go() {
    let dir = tempfile::tempdir().unwrap();
    let archives = tempfile::tempdir().unwrap();
    let options = ArchiveOptions::new(archives.path());
    let retire = Retire::Archive(options);
    let (log, _) = open(dir.path(), WalOptions { segment_bytes: 4096, retire, ..quick() });
    fill(&log, 300);
    log.acknowledge(Sequence(300)).unwrap();
    until("all but the active one are archived", || log.stats().segments == 1);
    until("and gone", || {
        let stats = log.stats();
        stats.archived > 1 && stats.archived == stats.deleted + stats.recycled
    });
    let archived = segments(archives.path()).len() as u64;
    assert_eq!(archived, log.stats().archived);
}

/// Whoever waits on its own thread must not wait for the commit delay; it was taken for a wish to
/// sync, so that a log that leaves syncing to the system synced with nearly every commit.
#[test]
fn w8_appending_on_ones_own_thread_syncs_no_more_than_the_mode_says() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), WalOptions { sync: SyncMode::Os, ..quick() });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let record = NewRecord { kind: 1, timestamp_ns: 0, payload: b"x" };
                    let receipt = log.append_blocking(&[record]).unwrap();
                    assert_eq!(receipt.promise, Promise::Written);
                }
            });
        }
    });
    assert_eq!(log.last_durable(), Sequence(800));
    assert_eq!(log.stats().sync_micros.count, 0);
}

/// A link under a name that the log uses was followed, and what it led to was overwritten.
#[cfg(unix)]
#[test]
fn s1_links_in_the_directory_lead_nowhere() {
    let base = tempfile::tempdir().unwrap();
    let (dir, precious) = (base.path().join("log"), base.path().join("precious"));
    fs::create_dir(&dir).unwrap();
    fs::write(&precious, "precious").unwrap();
    let unharmed = || assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");

    std::os::unix::fs::symlink(&precious, dir.join("procmond.lock")).unwrap();
    let refused = WriteAheadLog::open(&dir, quick()).unwrap_err().to_string();
    assert!(refused.contains("procmond.lock") && refused.contains("regular file"), "{refused}");
    unharmed();
    fs::remove_file(dir.join("procmond.lock")).unwrap();

    for name in ["procmond-00001.wal.new", "procmond-00001.wal.spare", "procmond.reserve"] {
        std::os::unix::fs::symlink(&precious, dir.join(name)).unwrap();
    }
    // What cannot be used is said, or removed; a segment is not begun behind a link.
    let opened = WriteAheadLog::open(&dir, WalOptions { segment_bytes: 4096, ..quick() });
    match opened {
        Ok((log, _)) => fill(&log, 200),
        Err(error) => assert!(error.to_string().contains("regular file"), "{error}"),
    }
    unharmed();
}
