use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use daemoneye_lib::models::process::{Completeness, KeyPrecision, SourceName};
use daemoneye_lib::stream::wall_clock_ns;
use sha2::Digest;
use uuid::Uuid;

use super::*;
use crate::source::{Happening, Happenings, Overrun};

const DEADLINE: Duration = Duration::from_secs(60);
/// No process has it.
const NOBODY: u32 = 0x7fff_fff0;

fn sum(bytes: &[u8]) -> Sha256 {
    Sha256(sha2::Sha256::digest(bytes).into())
}

fn identity(path: impl AsRef<Path>) -> FileIdentity {
    FileIdentity::from(&fs::metadata(path).unwrap())
}

fn relay(bytes_max: u64, ahead: Duration) -> Relay {
    let shared = Arc::default();
    Relay { bytes_max, shared, readers: Vec::new(), ahead, counted: Instant::now() }
}

/// A relay that waits for what is to be read, as long as it takes.
fn patient() -> Relay {
    relay(1 << 30, DEADLINE)
}

/// What is known of a program that is run.
fn program(path: &Path, identity: FileIdentity) -> Facts {
    let mut facts = Facts::unknown(Completeness::Complete);
    facts.exe = Some(path.to_str().unwrap().into());
    facts.exe_file = Some(identity);
    facts
}

/// The digest for a program that was run so late that its file is settled.
fn settled(relay: &mut Relay, pid: u32, facts: &Facts) -> Option<Sha256> {
    relay.digest(pid, facts, i64::MAX)
}

/// A program that waits for its standard input to end, at a path of its own.
struct Running {
    child: Child,
    path: PathBuf,
}

impl Running {
    fn new(dir: &Path) -> Self {
        let path = dir.join("program");
        fs::copy("/bin/cat", &path).unwrap();
        let start = Instant::now();
        // A fork of another test may hold the copy open for writing for a moment.
        let child = loop {
            match Command::new(&path).stdin(Stdio::piped()).spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    assert!(start.elapsed() < DEADLINE, "{error}");
                }
                child => break child.unwrap(),
            }
        };
        Self { child, path }
    }

    /// What the kernel says that it runs.
    fn identity(&self) -> FileIdentity {
        identity(format!("/proc/{}/exe", self.child.id()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn a_file_that_was_put_in_the_place_of_another_is_never_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("program"), dir.path().join("other"));
    fs::write(&path, "one").unwrap();
    fs::write(&other, "two").unwrap();
    let one = identity(&path);
    let facts = program(&path, one);
    assert_eq!(settled(&mut patient(), NOBODY, &facts), Some(sum(b"one")), "still there");

    fs::rename(&other, &path).unwrap();
    let mut relay = patient();
    assert_eq!(settled(&mut relay, NOBODY, &facts), None);
    fs::remove_file(&path).unwrap();
    assert_eq!(settled(&mut relay, NOBODY, &facts), None);
    // What is no file is not even opened: a pipe would hold us for ever.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert_eq!(settled(&mut relay, NOBODY, &program(&path, identity(&path))), None);
    let shared = &relay.shared;
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!((of(&shared.changed), of(&shared.gone), of(&shared.read)), (2, 1, 0));
}

/// A file that is written, run, removed and replaced within one step of the file system's clock
/// may have the inode, the size and the time of the other.
#[test]
fn a_file_that_had_just_changed_is_believed_of_the_running_process_only() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::new(dir.path());
    let facts = program(&running.path, running.identity());
    let changed_ns = running.identity().ctime_sec * 1_000_000_000 + running.identity().ctime_nsec;
    let mut relay = patient();
    for time_ns in [changed_ns, changed_ns + CLOCK_STEP_NS] {
        assert_eq!(relay.digest(NOBODY, &facts, time_ns), None);
        assert!(relay.digest(running.child.id(), &facts, time_ns).is_some());
        assert_eq!(relay.digest(NOBODY, &facts, time_ns), None, "nor from the cache");
    }
    assert!(relay.digest(NOBODY, &facts, changed_ns + CLOCK_STEP_NS + 1).is_some());
}

#[test]
fn what_has_no_name_any_more_has_a_digest_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::new(dir.path());
    let wanted = sum(&fs::read("/bin/cat").unwrap());
    // Another file in its place is not read though it stands where the program was.
    fs::write(dir.path().join("other"), "other").unwrap();
    fs::rename(dir.path().join("other"), &running.path).unwrap();
    let facts = program(&running.path, running.identity());
    assert_eq!(settled(&mut patient(), running.child.id(), &facts), Some(wanted));

    let memory = rustix::fs::memfd_create("hidden", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut memory = File::from(memory);
    memory.write_all(&fs::read("/bin/cat").unwrap()).unwrap();
    memory.set_permissions(fs::Permissions::from_mode(0o700)).unwrap();
    let path =
        format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&memory));
    let mut child = Command::new(path).stdin(Stdio::piped()).spawn().unwrap();
    let identity = identity(format!("/proc/{}/exe", child.id()));
    let facts = program(Path::new("/memfd:hidden"), identity);
    assert_eq!(settled(&mut patient(), child.id(), &facts), Some(wanted));
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// Its device is known by another number inside the kernel than outside on some file systems.
#[test]
fn the_device_is_compared_where_only_a_path_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::new(dir.path());
    let elsewhere = FileIdentity { device: 1 << 40, ..running.identity() };
    let facts = program(&running.path, elsewhere);
    assert_eq!(settled(&mut patient(), NOBODY, &facts), None);
    let wanted = sum(&fs::read("/bin/cat").unwrap());
    assert_eq!(settled(&mut patient(), running.child.id(), &facts), Some(wanted));
}

#[test]
fn a_thousand_short_lives_read_their_program_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    fs::write(&path, "short").unwrap();
    let facts = program(&path, identity(&path));
    let digester = Digester::new(100);
    let (sender, observations) = mpsc::channel(4);
    let mut digested = digester.follow(observations).unwrap();
    let feeder = thread::spawn(move || {
        for batch in 0..10_u64 {
            let happening = |n| Happening {
                pid: NOBODY,
                start_ns: n,
                precision: KeyPrecision::Nanosecond,
                at_ns: batch * 100 + n,
                what: What::Executed(Box::new(facts.clone())),
            };
            let seen = Happenings {
                source: SourceName::Ebpf,
                boot_id: Uuid::nil(),
                wall_offset_ns: wall_clock_ns() + 1_000_000_000,
                happenings: (0..100).map(happening).collect(),
            };
            sender.blocking_send(Observation::Seen(seen)).unwrap();
            let overrun = Overrun { missing: batch, sorts: None, since_ns: 0, until_ns: 0 };
            sender.blocking_send(Observation::Overrun(overrun)).unwrap();
        }
    });
    let (mut count, mut order) = (0, Vec::new());
    while let Some(observation) = digested.blocking_recv() {
        match observation {
            Observation::Seen(seen) => {
                for happening in seen.happenings {
                    let What::Executed(facts) = happening.what else { panic!() };
                    assert_eq!((happening.at_ns, facts.exe_sha256), (count, Some(sum(b"short"))));
                    count += 1;
                }
            }
            Observation::Overrun(overrun) => order.push((overrun.missing, count)),
            other => panic!("{other:?}"),
        }
    }
    feeder.join().unwrap();
    assert_eq!(order, (0..10).map(|batch| (batch, (batch + 1) * 100)).collect::<Vec<_>>());
    let counts = digester.counts();
    assert_eq!(counts, Digests { read_total: 1, cached_total: 999, ..Digests::default() });
}

#[test]
fn a_file_that_changes_while_it_is_read_has_no_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    let mut buffer = [0; 4];
    let digest_as_of = |before: FileIdentity, buffer: &mut [u8]| {
        read::digest_of(File::open(&path).unwrap(), before, buffer)
    };
    fs::write(&path, "0123456789").unwrap();
    let before = identity(&path);
    assert_eq!(digest_as_of(before, &mut buffer), Ok(sum(b"0123456789")));
    // It has grown, and for ever would not be too long to be read.
    fs::write(&path, "0123456789".repeat(10)).unwrap();
    let file = File::open(&path).unwrap();
    let mut same = file.try_clone().unwrap();
    assert_eq!(read::digest_of(file, before, &mut buffer), Err(Missed::Changed));
    let read_to = same.stream_position().unwrap();
    assert!(read_to < 10 + buffer.len() as u64, "it was read to {read_to}");
    fs::write(&path, "0123").unwrap();
    assert_eq!(digest_as_of(before, &mut buffer), Err(Missed::Changed), "it has shrunk");
    let since = Instant::now();
    while identity(&path) == before || identity(&path).size != 10 {
        assert!(since.elapsed() < DEADLINE);
        fs::write(&path, "9876543210").unwrap();
    }
    assert_eq!(digest_as_of(before, &mut buffer), Err(Missed::Changed), "it was written anew");
}

#[test]
fn what_is_too_large_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    fs::write(&path, "0123456789").unwrap();
    let facts = program(&path, identity(&path));
    let mut relay = relay(9, DEADLINE);
    assert_eq!(settled(&mut relay, NOBODY, &facts), None);
    assert_eq!(relay.shared.too_large.load(Ordering::Relaxed), 1);
    relay.bytes_max = 10;
    assert!(settled(&mut relay, NOBODY, &facts).is_some());
}

/// Files that do not come would hold up what is told for ever.
#[test]
fn what_is_not_read_in_time_is_known_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let large = |name: &str| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        program(&path, identity(&path))
    };
    let programs: Vec<Facts> = (0..=READERS).map(|n| large(&n.to_string())).collect();
    let mut relay = relay(1 << 30, Duration::ZERO);
    for facts in &programs {
        assert_eq!(settled(&mut relay, NOBODY, facts), None);
    }
    assert!(relay.readers.len() <= READERS);
    let late = |relay: &Relay| relay.shared.late.load(Ordering::Relaxed);
    assert_eq!(late(&relay), programs.len() as u64);
    let since = Instant::now();
    // What no reader was free for is tried again, and still nobody waits.
    while !programs.iter().all(|facts| settled(&mut relay, NOBODY, facts).is_some()) {
        relay.ahead = Duration::ZERO;
        assert!(since.elapsed() < DEADLINE, "{} late", late(&relay));
        thread::yield_now();
    }
}
