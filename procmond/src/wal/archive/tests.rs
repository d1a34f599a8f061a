//! Archives are the segments they were made of, whatever fails on the way there.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use daemoneye_lib::stream::Sequence;
use jiff::Timestamp;

use super::super::format::{KIND_CONTROL, encode_frame, salt_frame};
use super::super::segment::{self, Ends};
use super::super::storage::OsStorage;
use super::super::storage::faulty::{Fault, Faulty, Op};
use super::super::{WalError, WalOptions, WriteAheadLog};
use super::*;

const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

/// Half past eleven on the last of January.
fn now() -> Timestamp {
    "2026-01-31T11:30:00Z".parse().unwrap()
}

fn payload(n: u64) -> Vec<u8> {
    format!("record {n} {}", "x".repeat((n % 50) as usize)).into_bytes()
}

/// A log directory whose first segment holds the records from 1 on, and what its last one is.
fn segment(dir: &Path) -> (PathBuf, Sequence) {
    let options =
        WalOptions { segment_bytes: 6000, commit_delay: Duration::ZERO, ..WalOptions::default() };
    let (log, _) = WriteAheadLog::open(dir, options).unwrap();
    while log.stats().segments < 2 {
        let next = log.last().next().0;
        log.submit(1, next as i64, &payload(next)).unwrap();
        log.durable_blocking(log.last()).unwrap();
    }
    drop(log);
    // The next begins behind what was written here.
    let second = dir.join("procmond-00002.wal");
    let file = OsStorage.open(&second, false).unwrap();
    let label = segment::read_label(&*file, &second, 2).unwrap().unwrap();
    (dir.join("procmond-00001.wal"), label.first.prev())
}

fn options(dir: &Path, compression: Compression) -> ArchiveOptions {
    ArchiveOptions { compression, ..ArchiveOptions::new(&dir.join("archive")) }
}

/// The records in an archive, and the last sequence it is there for.
fn read(path: &Path) -> (Vec<u64>, Sequence) {
    let archive = open_unpacked(&OsStorage, path).unwrap();
    let file = archive.file();
    assert!(segment::has_whole_header(file, path, 1).unwrap());
    let label = segment::read_label(file, path, 1).unwrap().unwrap();
    let contents = segment::read_contents(file, path, &label, Ends::Left).unwrap();
    for hole in &contents.damage {
        assert_eq!(hole.from, hole.to, "nothing in it is damaged");
        let mut head = [0; 32];
        file.read_some_at(&mut head, hole.to).unwrap();
        assert_eq!(head[12], KIND_CONTROL, "something bears witness to what is missing");
    }
    let lost: Vec<_> = contents.damage.iter().filter_map(|hole| hole.lost).collect();
    let records: Vec<u64> = (label.first.0..=contents.last.0)
        .filter(|&n| !lost.iter().any(|(from, to)| (from.0..=to.0).contains(&n)))
        .collect();
    assert_eq!(contents.records, records.len() as u64);
    let mut bytes = vec![0; contents.length as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += file.read_some_at(&mut bytes[filled..], filled as u64).unwrap();
    }
    for &n in &records {
        assert!(bytes.windows(payload(n).len()).any(|window| window == payload(n)));
    }
    assert_eq!(archive.fault(), None);
    (records, contents.last)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_archive_holds_the_records_under_the_time_and_the_number() {
    for (compression, name) in ALL.into_iter().zip([
        "procmond_20260131_113000-00001.wal",
        "procmond_20260131_113000-00001.wal.gz",
        "procmond_20260131_113000-00001.wal.zst",
    ]) {
        let dir = tempfile::tempdir().unwrap();
        let (path, upto) = segment(dir.path());
        let options = options(dir.path(), compression);
        let archived = archive_at(&OsStorage, &path, 1, upto, &options, now()).unwrap();
        assert_eq!(archived, options.dir.join(name));
        assert_eq!(names(&options.dir), [name]);
        assert_eq!(read(&archived), ((1..=upto.0).collect(), upto));
        assert!(path.exists(), "the original is the caller's to remove");
    }
}

/// Somebody appends to it faster than it is read.
struct Growing(AtomicUsize);

impl StorageFile for Growing {
    fn read_at(&self, buffer: &mut [u8], _offset: u64) -> std::io::Result<usize> {
        assert!(self.0.fetch_add(1, Ordering::Relaxed) < 100, "it is read for ever");
        buffer.fill(0x55);
        Ok(buffer.len())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _bytes: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok((1 + self.0.load(Ordering::Relaxed) as u64) << 20)
    }

    fn has_name(&self) -> std::io::Result<bool> {
        Ok(true)
    }

    fn allocate(&self, _bytes: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn a_file_that_grows_is_copied_to_where_it_ended() {
    let mut copy = Vec::new();
    let path = Path::new("growing");
    copy::write_bytes(&Growing(AtomicUsize::new(0)), path, &mut copy, path).unwrap();
    assert_eq!(copy, vec![0x55; 1 << 20]);
}

#[test]
#[cfg(unix)]
fn an_archive_is_not_written_through_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let (path, upto) = segment(dir.path());
    let options = options(dir.path(), Compression::None);
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    fs::create_dir(&options.dir).unwrap();
    let unfinished = options.dir.join("procmond_20260131_113000-00001.wal.new");
    std::os::unix::fs::symlink(&precious, unfinished).unwrap();
    let archived = archive_at(&OsStorage, &path, 1, upto, &options, now()).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&archived).unwrap().is_file());
    assert_eq!(read(&archived).1, upto);
}

#[test]
#[cfg(unix)]
fn archives_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (path, upto) = segment(dir.path());
    let options = options(dir.path(), Compression::None);
    let archived = archive(&OsStorage, &path, 1, upto, &options).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&options.dir), mode(&archived)), (0o700, 0o600));
}

#[test]
fn tools_of_others_unpack_to_the_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (path, upto) = segment(dir.path());
    let plain = archive(&OsStorage, &path, 1, upto, &options(dir.path(), ALL[0])).unwrap();
    let plain = fs::read(plain).unwrap();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let options = ArchiveOptions {
            compression,
            ..ArchiveOptions::new(&dir.path().join(format!("{compression:?}")))
        };
        let packed = fs::read(archive(&OsStorage, &path, 1, upto, &options).unwrap()).unwrap();
        let mut unpacked = Vec::new();
        match compression {
            Compression::Gzip => {
                flate2::bufread::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
            }
            _ => unpacked = zstd::decode_all(&packed[..]).unwrap(),
        }
        assert!(unpacked == plain, "{compression:?}");
        assert!(packed.len() < plain.len() / 2, "{compression:?}: {} bytes", packed.len());
    }
}

#[test]
fn the_archive_of_a_sound_segment_is_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() };
    let (log, _) = WriteAheadLog::open(dir.path(), options).unwrap();
    for n in 1..=50 {
        log.submit(1, n, &payload(n as u64)).unwrap();
        log.durable_blocking(log.last()).unwrap();
    }
    drop(log);
    let path = dir.path().join("procmond-00001.wal");
    let mut bytes = fs::read(&path).unwrap();
    bytes.resize(bytes.len() + 4096, 0);
    fs::write(&path, &bytes).unwrap();
    let options = self::options(dir.path(), Compression::None);
    let archived = archive(&OsStorage, &path, 1, Sequence(50), &options).unwrap();
    assert!(fs::read(archived).unwrap() == bytes[..bytes.len() - 4096]);
}

#[test]
fn what_is_no_whole_frame_of_the_segment_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (path, upto) = segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    // Record 3 is damaged, and behind the end stand zeros and a record that was written again in
    // the next segment.
    let at = bytes.windows(9).position(|window| window == b"record 3 ").unwrap();
    bytes[at] ^= 1;
    bytes.extend_from_slice(&[0; 100_000]);
    let file = OsStorage.open(&path, false).unwrap();
    let label = segment::read_label(&*file, &path, 1).unwrap().unwrap();
    let start = bytes.len();
    encode_frame(&mut bytes, 1, upto.next(), 0, 1, b"abandoned");
    salt_frame(&mut bytes[start..], label.salt);
    bytes.extend_from_slice(&[7; 100_000]);
    fs::write(&path, &bytes).unwrap();
    let archived =
        archive(&OsStorage, &path, 1, upto, &options(dir.path(), Compression::None)).unwrap();
    assert!(fs::metadata(&archived).unwrap().len() < 7000);
    let (records, last) = read(&archived);
    assert_eq!(records, (1..=upto.0).filter(|&n| n != 3).collect::<Vec<_>>());
    assert_eq!(last, upto);
}

#[test]
fn an_archive_knows_its_last_record_even_if_that_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (path, upto) = segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let last = format!("record {upto} ");
    let at = bytes.windows(last.len()).position(|window| window == last.as_bytes()).unwrap();
    bytes.truncate(at);
    fs::write(&path, &bytes).unwrap();
    for compression in ALL {
        let options = options(dir.path(), compression);
        let archived = archive(&OsStorage, &path, 1, upto, &options).unwrap();
        assert_eq!(read(&archived), ((1..upto.0).collect(), upto));
        fs::remove_file(archived).unwrap();
    }
}

#[test]
fn a_segment_with_a_lost_header_gets_one_and_one_that_nothing_names_is_kept_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, upto) = segment(dir.path());
    let good = fs::read(&path).unwrap();
    let mut bytes = good.clone();
    bytes[..64].fill(0);
    fs::write(&path, &bytes).unwrap();
    let archived = archive(&OsStorage, &path, 1, upto, &options(dir.path(), ALL[1])).unwrap();
    assert_eq!(read(&archived), ((1..=upto.0).collect(), upto));
    fs::remove_file(&archived).unwrap();

    fs::write(&path, vec![0x55; 5000]).unwrap();
    let archived = archive(&OsStorage, &path, 1, upto, &options(dir.path(), ALL[0])).unwrap();
    assert_eq!(fs::read(archived).unwrap(), vec![0x55; 5000]);
}

#[test]
fn asked_again_the_archive_that_is_there_is_found() {
    for compression in ALL {
        let dir = tempfile::tempdir().unwrap();
        let (path, upto) = segment(dir.path());
        let options = options(dir.path(), compression);
        let first = archive_at(&OsStorage, &path, 1, upto, &options, now()).unwrap();
        let later = now() + Duration::from_secs(3600);
        assert_eq!(archive_at(&OsStorage, &path, 1, upto, &options, later).unwrap(), first);
        assert_eq!(names(&options.dir).len(), 1);
    }
}

#[test]
fn an_archive_of_the_same_name_and_other_records_stays() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, upto) = segment(dir.path());
    let (theirs, theirs_upto) = segment(other.path());
    let options = options(dir.path(), Compression::None);
    let first = archive_at(&OsStorage, &theirs, 1, theirs_upto, &options, now()).unwrap();
    let kept = fs::read(&first).unwrap();
    let second = archive_at(&OsStorage, &path, 1, upto, &options, now()).unwrap();
    assert_ne!(first, second);
    assert_eq!(
        names(&options.dir),
        ["procmond_20260131_113000-00001.wal", "procmond_20260131_113001-00001.wal"]
    );
    assert_eq!(fs::read(&first).unwrap(), kept);
}

#[test]
fn a_damaged_archive_does_not_count_as_one() {
    for compression in ALL {
        let dir = tempfile::tempdir().unwrap();
        let (path, upto) = segment(dir.path());
        let options = options(dir.path(), compression);
        let first = archive_at(&OsStorage, &path, 1, upto, &options, now()).unwrap();
        let good = fs::read(&first).unwrap();
        let later = now() + Duration::from_secs(60);
        for at in [0, 50, 300, good.len() / 2, good.len() - 6] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&first, &bad).unwrap();
            let second = archive_at(&OsStorage, &path, 1, upto, &options, later).unwrap();
            assert_eq!(read(&second), ((1..=upto.0).collect(), upto));
            // Some bits of a packed file mean nothing.
            let may_count = compression != Compression::None;
            assert!(first != second || may_count, "{compression:?}: byte {at}");
            if first != second {
                fs::remove_file(second).unwrap();
            }
        }
        fs::write(&first, &good[..good.len() - 1]).unwrap();
        let second = archive_at(&OsStorage, &path, 1, upto, &options, later).unwrap();
        assert_ne!(first, second, "{compression:?}: cut short");
    }
}

/// The disk does not give back what it was given: the archive must not get its name.
#[test]
fn an_archive_that_reads_back_wrong_is_refused() {
    for compression in ALL {
        let dir = tempfile::tempdir().unwrap();
        let (path, upto) = segment(dir.path());
        let options = options(dir.path(), compression);
        let storage = Faulty::new(|_, _| None);
        // After the archive's last sync, before it is opened again, a byte of it changes.
        storage.replan(move |op, path| {
            if op == Op::Open && path.to_string_lossy().ends_with(".new") {
                let mut bytes = fs::read(path).unwrap();
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                fs::write(path, bytes).unwrap();
            }
            None
        });
        let error = archive(&storage, &path, 1, upto, &options).unwrap_err();
        assert!(matches!(error, WalError::Io { .. }), "{error}");
        assert!(error.to_string().contains("verify"), "{error}");
        assert_eq!(names(&options.dir), [""; 0], "nothing stays");
        assert!(path.exists());
    }
}

/// From the n-th operation on nothing works: what a crash leaves there. Then all works, and the
/// caller, who still has the original, asks again.
#[test]
fn a_crash_at_any_operation_leaves_the_original_or_both() {
    for compression in ALL {
        for stop in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let (path, upto) = segment(dir.path());
            let original = fs::read(&path).unwrap();
            let options = options(dir.path(), compression);
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            let storage = Faulty::new(move |_, _| {
                let fault = Fault::Short(100, std::io::ErrorKind::Other);
                (count.fetch_add(1, Ordering::Relaxed) >= stop).then_some(fault)
            });
            let result = archive_at(&storage, &path, 1, upto, &options, now());
            assert_eq!(fs::read(&path).unwrap(), original);
            if asked.load(Ordering::Relaxed) <= stop {
                assert!(stop > 8, "{stop} operations");
                assert_eq!(read(&result.unwrap()).1, upto);
                break;
            }
            // Only what has its name counts, and that is whole.
            assert!(result.is_err(), "{stop}");
            let names_left = if options.dir.exists() { names(&options.dir) } else { Vec::new() };
            for name in names_left.iter().filter(|name| ArchiveName::parse(name).is_some()) {
                assert_eq!(read(&options.dir.join(name)), ((1..=upto.0).collect(), upto));
            }
            let archived = archive_at(&OsStorage, &path, 1, upto, &options, now()).unwrap();
            assert_eq!(read(&archived), ((1..=upto.0).collect(), upto));
            assert_eq!(names(&options.dir).len(), 1, "operation {stop} of {compression:?}");
        }
    }
}

#[test]
fn a_full_disk_says_so_and_the_next_try_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let (path, upto) = segment(dir.path());
    let options = options(dir.path(), Compression::Zstd);
    let full = Fault::Short(10, std::io::ErrorKind::StorageFull);
    let storage = Faulty::new(move |op, _| (op == Op::Write).then_some(full));
    let error = archive(&storage, &path, 1, upto, &options).unwrap_err();
    assert!(matches!(error, WalError::DiskFull { .. }), "{error}");
    assert_eq!(names(&options.dir), [""; 0]);
    storage.heal();
    archive(&storage, &path, 1, upto, &options).unwrap();
}

#[test]
fn a_file_that_unpacks_without_end_ends() {
    // A gigabyte of zeros in a megabyte, many times one after the other.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.gz");
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    std::io::copy(&mut std::io::repeat(0).take(1 << 26), &mut member).unwrap();
    let member = member.finish().unwrap();
    fs::write(&path, member.repeat((UNPACKED_BYTES_MAX >> 26) as usize + 2)).unwrap();
    let opened = open_unpacked(&OsStorage, &path).unwrap();
    assert_eq!(opened.file().len().unwrap(), UNPACKED_BYTES_MAX);
    assert!(opened.fault().unwrap().contains("more than"));
}

#[test]
fn a_file_that_asks_for_much_memory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wide.zst");
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(200 << 20), &mut encoder).unwrap();
    fs::write(&path, encoder.finish().unwrap()).unwrap();
    let opened = open_unpacked(&OsStorage, &path).unwrap();
    assert_eq!(opened.file().len().unwrap(), 0);
    assert!(opened.fault().is_some());
}

#[test]
fn only_our_own_names_are_archives() {
    for (name, number, time) in [
        ("procmond_20260131_113000-00001.wal", 1, 1_769_859_000),
        ("procmond_20260131_113000-123456.wal.gz", 123_456, 1_769_859_000),
        ("procmond_19700101_000001-00002.wal.zst", 2, 1),
    ] {
        let parsed = ArchiveName::parse(name).unwrap();
        assert_eq!((parsed.number, parsed.time), (number, time));
        assert_eq!(parsed.to_string(), name);
        assert_eq!(ArchiveName::parse_unfinished(&format!("{name}.new")), Some(parsed));
    }
    for foreign in [
        "procmond-00001.wal",
        "procmond_20260131_113000-1.wal",
        "procmond_20260131_113000-00000.wal",
        "procmond_20260131_113000-00001.wal.bz2",
        "procmond_20260131_113000-00001.wal.new",
        "procmond_20260231_113000-00001.wal",
        "procmond_2026-131_113000-00001.wal",
        "procmond_20260131_113000_00001.wal",
        "procmond_20260131_113000-00001.wal.gz.gz",
        "procmond_20260131_11300é-00001.wal",
        "procmond_",
    ] {
        assert_eq!(ArchiveName::parse(foreign), None, "{foreign}");
    }
}

/// Archives made a day apart, of a hundred bytes each, and files of others.
fn retention(keep_for: Option<Duration>, keep_bytes: Option<u64>) -> (Pruned, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    for day in 10..20 {
        let name = format!("procmond_202601{day}_120000-{:05}.wal.gz", day - 9);
        fs::write(dir.path().join(name), [0; 100]).unwrap();
    }
    for foreign in ["procmond_20200101_000000-1.wal", "notes.txt", "procmond-00001.wal"] {
        fs::write(dir.path().join(foreign), [0; 100]).unwrap();
    }
    let left = dir.path().join("procmond_20260119_120000-00010.wal.gz.new");
    fs::write(&left, [0; 100]).unwrap();
    let options = ArchiveOptions { keep_for, keep_bytes, ..ArchiveOptions::new(dir.path()) };
    let now: Timestamp = "2026-01-19T18:00:00Z".parse().unwrap();
    let pruned = prune(&OsStorage, &options, SystemTime::from(now)).unwrap();
    let names = names(dir.path());
    assert_eq!(names.len() + pruned.archives, 13, "the foreign ones are all there");
    assert!(!left.exists(), "what a crash has left is gone");
    let archives = names.into_iter().filter(|name| ArchiveName::parse(name).is_some()).collect();
    (pruned, archives)
}

#[test]
fn archives_go_when_they_are_old_and_when_they_are_too_many() {
    let day = Duration::from_secs(24 * 3600);
    let (pruned, left) = retention(None, None);
    assert_eq!((pruned, left.len()), (Pruned::default(), 10));
    // On the 19th at six in the evening, noon of the 12th is a week and a quarter ago.
    let (pruned, left) = retention(Some(7 * day), None);
    assert_eq!((pruned.archives, left.len()), (3, 7));
    assert_eq!(left[0], "procmond_20260113_120000-00004.wal.gz");
    let (pruned, left) = retention(None, Some(350));
    assert_eq!(pruned, Pruned { archives: 7, bytes: 700 });
    assert_eq!(left[0], "procmond_20260117_120000-00008.wal.gz", "the oldest go first");
    let (pruned, left) = retention(Some(7 * day), Some(650));
    assert_eq!((pruned.archives, left.len()), (4, 6));
    let (pruned, left) = retention(Some(Duration::ZERO), Some(0));
    assert_eq!((pruned.archives, left.len()), (10, 0));
}

#[test]
fn an_archive_from_the_future_is_young_and_a_missing_directory_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("procmond_20990101_000000-00001.wal"), []).unwrap();
    let options = ArchiveOptions::new(dir.path());
    assert_eq!(prune(&OsStorage, &options, SystemTime::now()).unwrap(), Pruned::default());
    let nowhere = ArchiveOptions::new(&dir.path().join("nowhere"));
    assert_eq!(prune(&OsStorage, &nowhere, SystemTime::now()).unwrap(), Pruned::default());
}
