//! The log where the system does not let it write: it refuses, says why, loses nothing that had a
//! receipt, and writes on by itself when it may. All on real file systems and with real processes.
#![cfg(test)]
#![cfg(target_os = "linux")]

#[path = "support/account.rs"]
mod account;
#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/remote.rs"]
mod remote;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use daemoneye_lib::models::event::EventKind;
use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, LostReason, Record, SyncMode, WalError, WalOptions, WriteAheadLog};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use account::{Account, Appended};
use mounts::{Mounted, in_private_mounts, kernel_lacks, knows_file_system, make_ext4, run};
use remote::Remote;

#[test]
fn remote() {
    remote::serve();
}

const DISK_BYTES: u64 = 16 << 20;
const SEGMENT_BYTES: u64 = 64 << 10;

fn open(dir: &Path, segment_bytes: u64, prepare: bool) -> WriteAheadLog {
    let options = WalOptions {
        segment_bytes,
        prepare,
        commit_delay: Duration::ZERO,
        ..WalOptions::default()
    };
    WriteAheadLog::open(dir, options).unwrap().0
}

#[test]
fn w8_a_file_system_filled_by_others_refuses_and_recovers_by_itself() {
    with_ext4("defaults", |disk| {
        for prepare in [false, true] {
            let dir = disk.at.join(format!("log-{prepare}"));
            let log = open(&dir, SEGMENT_BYTES, prepare);
            let mut account = Account::default();
            account.append_receipted(&mut &log, 300, 200);
            let hog = disk.at.join("hog");
            fill(&hog);

            let why = account.append_until_kept(&mut &log, 300);
            assert_says(&why, &[&dir.display().to_string(), "No space left on device"]);
            let again = account.append_refused(&mut &log, 10);
            assert_says(&again, &[&dir.display().to_string(), "No space left on device"]);
            let stats = log.stats();
            assert!(matches!(stats.refusing, Some(WalError::DiskFull { .. })), "{stats:?}");
            assert_eq!(stats.refused, [(1, 10)]);
            account.check_records(&log, false);
            account.check_copy(&dir);

            fs::remove_file(&hog).unwrap();
            until("the log writes again", || log.stats().refusing.is_none());
            assert_kept_is_durable(&log, &account);
            // In the same place, for nothing was spoilt.
            assert_eq!(log.stats().rewrites, 0);
            account.append_receipted(&mut &log, 300, 300);
            assert_eq!(log.stats().refused, [(1, 10)]);
            log.close().unwrap();
            account.check(&dir, true);
        }
    });
}

#[test]
fn w8_a_file_system_filled_by_the_log_has_room_again_when_consumers_have_committed() {
    with_ext4("defaults", |disk| {
        // The records end at different places of the last block that there was.
        for (bytes, prepare) in [(100, true), (997, false), (2049, true), (4064, false)] {
            let dir = disk.at.join(format!("log-{bytes}"));
            let log = open(&dir, SEGMENT_BYTES, prepare);
            let mut account = Account::default();
            account.append_receipted(&mut &log, bytes, 200);
            // The log gets the end of the disk.
            let hog = disk.at.join("hog");
            fill(&hog);
            let hogged = fs::metadata(&hog).unwrap().len();
            File::options().write(true).open(&hog).unwrap().set_len(hogged - (300 << 10)).unwrap();

            let why = account.append_until_kept(&mut &log, bytes);
            assert_says(&why, &[&dir.display().to_string(), "No space left on device"]);
            account.append_refused(&mut &log, 1);
            let (&last, _) = account.receipts.last_key_value().unwrap();
            let acknowledged = log.stats().segments as u64;
            log.acknowledge(Sequence(last)).unwrap();
            until("the log writes again", || log.stats().refusing.is_none());
            assert_kept_is_durable(&log, &account);
            // The room comes back one after the other.
            until("the segments are gone", || gone(&log) >= acknowledged);
            until("the log writes on", || log.stats().refusing.is_none());
            account.append_receipted(&mut &log, bytes, 20);
            log.close().unwrap();
            account.check(&dir, true);
            fs::remove_dir_all(&dir).unwrap();
            fs::remove_file(&hog).unwrap();
        }
    });
}

#[test]
fn w8_a_log_that_filled_its_file_system_can_be_opened_and_drained() {
    with_ext4("defaults", |disk| {
        let dir = disk.at.join("log");
        let mut remote = Remote::open(&dir, SEGMENT_BYTES).unwrap();
        let mut account = Account::default();
        account.append_receipted(&mut remote, 300, 500);
        fill(&disk.at.join("hog"));
        account.append_until_kept(&mut remote, 300);
        remote.kill();
        // What was tried last has been cut off again.
        fill(&disk.at.join("another hog"));

        let log = open(&dir, SEGMENT_BYTES, true);
        account.check_records(&log, false);
        let acknowledged = log.stats().segments as u64 - 1;
        log.acknowledge(log.last()).unwrap();
        until("the segments are gone", || gone(&log) >= acknowledged);
        until("the log writes on", || log.stats().refusing.is_none());
        account.append_receipted(&mut &log, 300, 100);
        log.close().unwrap();
        account.check(&dir, false);
    });
}

#[test]
fn w8_a_log_that_ends_on_a_full_file_system_has_every_receipt() {
    with_ext4("defaults", |disk| {
        let dir = disk.at.join("log");
        let mut remote = Remote::open(&dir, SEGMENT_BYTES).unwrap();
        let mut account = Account::default();
        account.append_receipted(&mut remote, 300, 50);
        let hog = disk.at.join("hog");
        fill(&hog);
        account.append_until_kept(&mut remote, 300);
        account.append_refused(&mut remote, 3);
        remote.kill();
        // What was tried last has been cut off again.
        fill(&disk.at.join("another"));

        // An opening begins a segment. Whether there is room hangs on what was prepared.
        match WriteAheadLog::open(&dir, WalOptions::default()) {
            Ok((log, _)) => account.check_records(&log, false),
            Err(error) => {
                assert!(matches!(error, WalError::DiskFull { .. }), "{error}");
                let part = dir.display().to_string();
                assert_says(&error.to_string(), &[&part, "No space left on device"]);
            }
        }
        fs::remove_file(&hog).unwrap();
        account.check(&dir, false);
    });
}

#[test]
fn w8_a_directory_removed_under_us_gets_no_receipt() {
    for prepare in [false, true] {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("log");
        let log = open(&dir, SEGMENT_BYTES, prepare);
        let mut account = Account::default();
        account.append_receipted(&mut &log, 300, 100);
        remove_all(&dir);

        let said = account.append(&mut &log, 300);
        let Appended::Kept(_, why) = said else { panic!("{said:?} for a file nobody finds") };
        assert_says(&why, &[&dir.display().to_string(), "removed"]);
        account.append_refused(&mut &log, 3);
        assert_eq!(log.last_durable(), Sequence(100));
        assert!(matches!(log.stats().refusing, Some(WalError::Unwritable { .. })));

        // A directory of that name, but not ours: nobody is kept out of it by the lock we hold.
        fs::create_dir(&dir).unwrap();
        for_two_retries("nothing is created there", || names(&dir).is_empty());
        assert_says(&account.append_refused(&mut &log, 1), &["removed or replaced", "restart"]);
        log.close().unwrap_err();
        assert_eq!(names(&dir), [""; 0]);
    }
}

#[test]
fn w8_a_directory_removed_under_us_gets_no_receipt_that_is_not_for_a_power_cut_either() {
    let hour = Duration::from_secs(3600);
    for sync in [SyncMode::Os, SyncMode::Interval { every: hour, bytes: 1 << 20 }] {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("log");
        let options = WalOptions { sync, commit_delay: Duration::ZERO, ..WalOptions::default() };
        let (log, _) = WriteAheadLog::open(&dir, options).unwrap();
        let mut account = Account::default();
        account.append_receipted(&mut &log, 300, 10);
        remove_all(&dir);
        let said = account.append(&mut &log, 300);
        assert!(matches!(said, Appended::Kept(..)), "{said:?} for a file nobody finds");
    }
}

#[test]
fn w8_a_segment_removed_under_us_gets_no_receipt_and_costs_only_its_own_records() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("log");
    let log = open(&dir, SEGMENT_BYTES, false);
    let mut account = Account::default();
    // More than one segment, so that not all is lost.
    account.append_receipted(&mut &log, 300, 300);
    let segments = names(&dir);
    let newest = segments.iter().rfind(|name| name.ends_with(".wal")).unwrap();
    let removed = dir.join(newest);
    assert!(segments.len() > 2, "{segments:?}");
    fs::remove_file(&removed).unwrap();

    // The directory is ours, so there is a fresh segment, and this one can be found.
    account.append_receipted(&mut &log, 300, 100);
    assert_eq!(log.stats().rewrites, 1);
    log.close().unwrap();

    let (log, _) = WriteAheadLog::open(&dir, WalOptions::default()).unwrap();
    let (found, lost) = read(&log);
    let [(first, 300, LostReason::Missing)] = lost[..] else { panic!("{lost:?}") };
    let found: Vec<_> = found.into_iter().map(|record| record.sequence.0).collect();
    assert_eq!(found, (1..first).chain(301..=400).collect::<Vec<_>>());
}

#[test]
fn w8_a_directory_put_in_our_place_is_left_alone_and_ours_is_known_when_it_is_back() {
    for prepare in [false, true] {
        let base = tempfile::tempdir().unwrap();
        let [dir, ours, theirs] = ["log", "ours", "theirs"].map(|name| base.path().join(name));
        let log = open(&dir, SEGMENT_BYTES, prepare);
        let mut account = Account::default();
        // Several segments, which their log will have under the same names.
        account.append_receipted(&mut &log, 300, 500);
        fs::rename(&dir, &ours).unwrap();
        let mut other = Remote::open(&dir, SEGMENT_BYTES).unwrap();
        let mut other_account = Account::default();
        other_account.append_receipted(&mut other, 300, 500);
        // What it keeps beside its records may come and go.
        let segments = || names(&dir).into_iter().filter(|name| name.ends_with(".wal"));
        let before: Vec<_> = segments().collect();

        // Ours to delete, if the directory were.
        log.acknowledge(Sequence(400)).unwrap();
        let why = account.append_until_kept(&mut &log, 300);
        assert_says(&why, &[&dir.display().to_string(), "removed or replaced"]);
        account.append_refused(&mut &log, 3);
        for_two_retries("their segments stay as they are", || {
            segments().eq(before.iter().cloned())
        });
        other_account.append_receipted(&mut other, 300, 100);
        other.close().unwrap();
        other_account.check(&dir, true);

        fs::rename(&dir, &theirs).unwrap();
        fs::rename(&ours, &dir).unwrap();
        until("the log writes again", || log.stats().refusing.is_none());
        assert_kept_is_durable(&log, &account);
        account.append_receipted(&mut &log, 300, 500);
        until("what was acknowledged is gone", || gone(&log) > 0);
        log.close().unwrap();
        account.check(&dir, true);
    }
}

#[test]
fn w8_a_directory_moved_away_and_back_loses_nothing() {
    let base = tempfile::tempdir().unwrap();
    let [dir, away] = ["log", "away"].map(|name| base.path().join(name));
    let log = open(&dir, SEGMENT_BYTES, false);
    let mut account = Account::default();
    account.append_receipted(&mut &log, 300, 50);
    fs::rename(&dir, &away).unwrap();
    let why = account.append_until_kept(&mut &log, 300);
    assert_says(&why, &[&dir.display().to_string(), "removed or replaced"]);
    account.check_copy(&away);
    fs::rename(&away, &dir).unwrap();
    until("the log writes again", || log.stats().refusing.is_none());
    assert_kept_is_durable(&log, &account);
    account.append_receipted(&mut &log, 300, 300);
    log.close().unwrap();
    account.check(&dir, true);
}

#[test]
fn w8_a_read_only_directory_refuses_and_recovers_when_it_is_writable() {
    in_private_mounts(|| {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("log");
        let log = open(&dir, SEGMENT_BYTES, false);
        let mut account = Account::default();
        account.append_receipted(&mut &log, 300, 50);
        // The file that is open for writing stays writable, and nothing else.
        mount_bind(&dir, &dir).unwrap();
        mount_remount(&dir, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        let why = account.append_until_kept(&mut &log, 300);
        assert_says(&why, &[&dir.display().to_string(), "Read-only file system"]);
        assert_says(&account.append_refused(&mut &log, 5), &["Read-only file system"]);
        let stats = log.stats();
        assert!(matches!(stats.refusing, Some(WalError::Unwritable { .. })), "{stats:?}");
        assert_eq!(stats.refused, [(1, 5)]);
        account.check_records(&log, false);
        account.check_copy(&dir);

        unmount(&dir, UnmountFlags::DETACH).unwrap();
        until("the log writes again", || log.stats().refusing.is_none());
        assert_kept_is_durable(&log, &account);
        account.append_receipted(&mut &log, 300, 300);
        log.close().unwrap();
        account.check(&dir, true);
    });
}

#[test]
fn w8_a_file_system_that_turns_read_only_after_an_error_keeps_every_receipt() {
    const OPTIONS: &str = "errors=remount-ro";
    with_ext4(OPTIONS, |disk| {
        let trigger = Path::new("/sys/fs/ext4").join(disk.device.file_name().unwrap());
        let trigger = trigger.join("trigger_fs_error");
        let Ok(mut trigger) = File::options().write(true).open(trigger) else {
            return kernel_lacks("trigger_fs_error for ext4");
        };
        let dir = disk.at.join("log");
        let log = open(&dir, SEGMENT_BYTES, true);
        let mut account = Account::default();
        account.append_receipted(&mut &log, 300, 300);
        trigger.write_all(b"of a test").unwrap();
        let why = account.append_until_kept(&mut &log, 300);
        assert_says(&why, &[&dir.display().to_string(), "Read-only file system"]);
        account.append_refused(&mut &log, 5);
        account.check_records(&log, false);
        account.check_copy(&dir);
        // It ends with a record that has no receipt, and says so.
        log.close().unwrap_err();
        drop(log);

        // Such a file system is writable again when it has been checked.
        let Disk { image, at, mounted, .. } = disk;
        mounted.unmount();
        // Exits with 1: it has corrected something.
        Command::new("e2fsck").arg("-fp").arg(&image).stdout(Stdio::null()).status().unwrap();
        run("e2fsck", &[OsStr::new("-fn"), image.as_os_str()]);
        let _mounted = Disk::mount(image, at, OPTIONS);
        account.check(&dir, false);
    });
}

#[test]
fn w8_at_a_limit_of_file_size_a_segment_with_records_is_left_for_the_next() {
    const LIMIT: u64 = 512 << 10;
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("log");
    let mut remote = Remote::open(&dir, 1 << 20).unwrap();
    limit_file_size(remote.raw_pid(), Some(LIMIT));
    let mut account = Account::default();
    // Beyond a quarter of a segment the next is wanted ahead, which is larger than may be.
    account.append_receipted(&mut remote, 4000, 500);
    assert_eq!(remote.counters(), [0, 0], "segments were prepared, or records refused");
    assert!(segments(&dir) >= 4, "{} segments hold what needs four", segments(&dir));
    account.check_copy(&dir);

    limit_file_size(remote.raw_pid(), None);
    account.append_receipted(&mut remote, 4000, 100);
    until("a segment is prepared", || remote.counters()[0] > 0);
    account.append_receipted(&mut remote, 4000, 500);
    remote.close().unwrap();
    account.check(&dir, true);
}

#[test]
fn w8_a_limit_too_small_for_a_record_refuses_and_recovers_when_it_is_raised() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("log");
    let mut remote = Remote::open(&dir, SEGMENT_BYTES).unwrap();
    let mut account = Account::default();
    account.append_receipted(&mut remote, 4000, 10);
    // Enough for a segment's header, and for nothing else.
    for limit in [1000, 100, 0] {
        limit_file_size(remote.raw_pid(), Some(limit));
        let why = account.append_until_kept(&mut remote, 4000);
        assert_says(&why, &[&dir.display().to_string(), "File too large", "limits"]);
        assert_says(&account.append_refused(&mut remote, 5), &["File too large"]);
        let before = segments(&dir);
        for_two_retries("no segments pile up", || segments(&dir) == before);
        limit_file_size(remote.raw_pid(), None);
        until("the log writes again", || remote.refusing().is_empty());
        account.append_receipted(&mut remote, 4000, 10);
    }
    assert_eq!(remote.counters()[1], account.refused);
    remote.close().unwrap();
    account.check(&dir, true);
}

#[test]
fn w8_a_limit_that_was_raised_is_forgotten() {
    let base = tempfile::tempdir().unwrap();
    for limit in [512 << 10, 1000, 100] {
        let dir = base.path().join(format!("log-{limit}"));
        let mut remote = Remote::open(&dir, 1 << 20).unwrap();
        let mut account = Account::default();
        account.append_receipted(&mut remote, 4000, 10);
        limit_file_size(remote.raw_pid(), Some(limit));
        // Until the limit shows: the large one lets a segment be left for the next.
        while segments(&dir) == 1 && remote.refusing().is_empty() {
            account.append(&mut remote, 4000);
        }
        limit_file_size(remote.raw_pid(), None);
        until("the log writes again", || remote.refusing().is_empty());
        let before = segments(&dir);
        // As much as three segments hold, the one being written included.
        account.append_receipted(&mut remote, 4000, 500);
        let after = segments(&dir);
        assert!(after <= before + 3, "{before} segments were {after} after two MB");
        remote.close().unwrap();
        account.check(&dir, true);
    }
}

#[test]
fn w8_a_limit_too_small_for_a_commit_but_not_for_a_record_refuses_nothing() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("log");
    let mut remote = Remote::open(&dir, 1 << 20).unwrap();
    limit_file_size(remote.raw_pid(), Some(32 << 10));
    let said = remote.append_all(1, 1000, 100);
    assert_eq!(said, Appended::Receipt(100));
    remote.close().unwrap();
    let (log, _) = WriteAheadLog::open(&dir, WalOptions::default()).unwrap();
    assert_eq!(read(&log).0.len(), 100);
}

#[test]
fn w8_procmond_outlives_a_limit_of_file_size_and_says_why_nothing_is_logged() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("log");
    // One block of 512 bytes: a segment can be begun, and the first look at the processes not be
    // written.
    let mut procmond = Guarded::start(
        Command::new("sh")
            .args(["-c", "ulimit -S -f 1; exec \"$0\" run --source poll --interval 0.02"])
            .arg(env!("CARGO_BIN_EXE_procmond"))
            .env("PROCMOND_WAL__DIR", &dir)
            .env("PROCMOND_SHUTDOWN__TIMEOUT_MS", "100")
            .env("DAEMONEYE_BROKER_SOCKET", base.path().join("nobody"))
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped()),
    );
    let mut said = BufReader::new(procmond.0.stderr.take().unwrap());
    let mut read_until = |part: &str| {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it has ended without: {part}");
        }
        line
    };
    let why = read_until("records are refused");
    assert_says(&why, &["procmond-", ".wal", "File too large", "limits"]);
    let _seen = Guarded::start(Command::new("sleep").arg("600"));
    read_until("events are lost until the log has room");

    let pid = Pid::from_child(&procmond.0);
    limit_file_size(pid, None);
    read_until("the log takes events again");
    kill_process(pid, Signal::TERM).unwrap();
    assert!(procmond.0.wait().unwrap().success());

    let (log, recovery) = WriteAheadLog::open(&dir, WalOptions::default()).unwrap();
    assert!(recovery.damage.is_empty(), "{:?}", recovery.damage);
    let kinds: Vec<_> = read(&log).0.into_iter().map(|record| record.kind).collect();
    let [start, gap] = [EventKind::Start, EventKind::Gap].map(EventKind::as_u8);
    assert!(kinds.contains(&start) && kinds.contains(&gap), "{kinds:?}");
}

#[test]
fn w8_a_second_process_is_refused_with_the_pid_of_the_first_while_that_lives() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("log");
    let mut first = Remote::open(&dir, SEGMENT_BYTES).unwrap();
    let mut account = Account::default();
    account.append_receipted(&mut first, 300, 50);
    let pid = first.pid();
    let refused = || {
        let why = Remote::open(&dir, SEGMENT_BYTES).err().expect("two processes have the log");
        assert_says(&why, &[&dir.display().to_string(), &format!("pid {pid};")]);
        // The program says so too.
        let output = Command::new(env!("CARGO_BIN_EXE_procmond"))
            .args(["run", "--source", "poll"])
            .env("PROCMOND_WAL__DIR", &dir)
            .env("DAEMONEYE_BROKER_SOCKET", base.path().join("nobody"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_says(&String::from_utf8_lossy(&output.stderr), &[&format!("pid {pid};")]);
    };
    refused();
    // One that is stopped has not let go: it writes on as soon as it goes on.
    first.stop();
    refused();
    first.go_on();
    account.append_receipted(&mut first, 300, 300);

    first.stop();
    first.kill();
    assert_eq!(fs::read_to_string(dir.join("procmond.lock")).unwrap().trim(), pid.to_string());
    let mut second = Remote::open(&dir, SEGMENT_BYTES).unwrap();
    account.append_receipted(&mut second, 300, 50);
    second.close().unwrap();
    account.check(&dir, true);
}

/// A small ext4, mounted.
struct Disk {
    image: PathBuf,
    device: PathBuf,
    at: PathBuf,
    mounted: Mounted,
}

impl Disk {
    fn mount(image: PathBuf, at: PathBuf, options: &str) -> Self {
        let losetup = Command::new("losetup").args(["-f", "--show"]).arg(&image).output().unwrap();
        let device = PathBuf::from(String::from_utf8(losetup.stdout).unwrap().trim_end());
        let mounted = Mounted::device(&device, &at, options);
        Self { image, device, at, mounted }
    }
}

/// Runs a test with such a disk, where that is possible.
fn with_ext4(options: &str, test: impl FnOnce(Disk) + Send) {
    in_private_mounts(|| {
        if !knows_file_system("ext4") {
            return kernel_lacks("ext4");
        }
        if !Path::new("/dev/loop-control").exists() {
            return kernel_lacks("/dev/loop-control");
        }
        let scratch = tempfile::tempdir().unwrap();
        let [image, at] = ["image", "mounted"].map(|name| scratch.path().join(name));
        make_ext4(&image, DISK_BYTES);
        fs::create_dir(&at).unwrap();
        test(Disk::mount(image, at, options));
    });
}

/// Takes all the room there is.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for step in [1 << 20, 4096, 1] {
        let bytes = vec![1; step];
        // Room that is promised to others may come back meanwhile.
        while file.write_all(&bytes).is_ok() {}
        let _ = file.sync_all();
    }
    file.write_all(&[1]).expect_err("there is room left");
}

/// As `rm -rf` does: by what it sees, while others may still create.
fn remove_all(dir: &Path) {
    until("the directory is gone", || fs::remove_dir_all(dir).is_ok());
}

fn limit_file_size(pid: Pid, bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn segments(dir: &Path) -> usize {
    names(dir).iter().filter(|name| name.ends_with(".wal")).count()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// All records of a log, and what it says is lost.
fn read(log: &WriteAheadLog) -> (Vec<Record>, Vec<(u64, u64, LostReason)>) {
    let mut reader = log.reader(Sequence(1));
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            return (found, lost);
        }
        for entry in batch {
            match entry {
                Entry::Record(record) => found.push(record),
                Entry::Lost { first, last, reason } => lost.push((first.0, last.0, reason)),
            }
        }
    }
}

/// A process that does not outlive the test, however that ends.
struct Guarded(Child);

impl Guarded {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What could not be written at once has its receipt now.
fn assert_kept_is_durable(log: &WriteAheadLog, account: &Account) {
    for &sequence in account.kept.keys() {
        until("it is durable", || log.last_durable() >= Sequence(sequence));
        assert_eq!(log.durable_blocking(Sequence(sequence)).unwrap().sequence.0, sequence);
    }
}

/// Segments deleted, or kept to be used again.
fn gone(log: &WriteAheadLog) -> u64 {
    let stats = log.stats();
    stats.deleted + stats.recycled
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !met() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Something that must not end while the log tries again, which it does four times a second.
fn for_two_retries(what: &str, holds: impl Fn() -> bool) {
    let over = Instant::now() + Duration::from_millis(600);
    while Instant::now() < over {
        assert!(holds(), "no longer so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
