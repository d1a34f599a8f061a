//! A disk whose power can be cut, under the real kernel.
//!
//! What is asked of a disk is what the log rests on: a write may stay in the disk's cache, and a
//! flush makes those before it durable. Here the disk is a file served by this process over FUSE,
//! with a loop device and a file system on it: every write and every flush that the file system and
//! the block layer really send arrive here. Writes are kept apart until a flush comes. When the
//! power goes, of the writes not flushed any subset survives, sector by sector, and from then on
//! everything is answered with an error, so that nobody can be told of durability any more.

//!
//! The disk is a process of its own, outside the test's mount namespace: when the test is killed, the
//! kernel must get an answer to what it still writes while it unmounts, or an error, but never wait
//! for a disk that is ending together with it.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::random::Random;

const SECTOR_BYTES: usize = 512;
const SEED: &str = "CUT_DISK_SEED";
/// The file with what is on the disk at first, and the directory it is to appear in.
const IMAGE: &str = "CUT_DISK_IMAGE";
const DIR: &str = "CUT_DISK_DIR";

/// The disk, from outside.
pub(crate) struct CutDisk {
    process: Child,
    asking: UnixStream,
    answers: BufReader<UnixStream>,
}

impl CutDisk {
    /// A disk with this content, off. It appears in a directory that exists.
    ///
    /// Starts this test binary again; it has a test named `disk` that calls [`be_a_disk`].
    pub(crate) fn new(image: &Path, dir: &Path, seed: u64) -> Self {
        let (asking, theirs) = UnixStream::pair().unwrap();
        let process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "disk", "--nocapture"])
            .env(SEED, seed.to_string())
            .env(IMAGE, image)
            .env(DIR, dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let answers = BufReader::new(asking.try_clone().unwrap());
        let mut disk = Self { process, asking, answers };
        disk.ask("hello");
        disk
    }

    /// The power comes on; the disk is this device until it goes off. Whoever has mounted it
    /// detaches it, so that it goes with the mount.
    pub(crate) fn turn_on(&mut self) -> PathBuf {
        PathBuf::from(self.ask("on"))
    }

    /// The power is to go after this many more writes and flushes.
    pub(crate) fn cut_after(&mut self, requests: u64) {
        self.ask(&format!("cut {requests}"));
    }

    /// Waits until the power has gone; if it is still there after a time it goes now.
    pub(crate) fn wait_for_cut(&mut self, at_most: Duration) {
        self.ask(&format!("wait {}", at_most.as_millis()));
    }

    /// Everything is flushed and the power goes, as when a machine is shut down. What is on the disk
    /// is put into the file it was made of.
    pub(crate) fn turn_off(&mut self) {
        self.ask("off");
    }

    /// Flushes since the disk was made.
    pub(crate) fn flushes(&mut self) -> u64 {
        self.ask("flushes").parse().unwrap()
    }

    fn ask(&mut self, what: &str) -> String {
        self.asking.write_all(format!("{what}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let answer = answer.strip_suffix('\n').expect("the disk has ended");
        answer.to_owned()
    }
}

impl Drop for CutDisk {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The disk, from inside; nothing to do when a person runs the tests.
pub(crate) fn be_a_disk() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let image = PathBuf::from(std::env::var_os(IMAGE).unwrap());
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let fuse = mount_fuse(&dir).unwrap();
    let content = fs::read(&image).unwrap();
    let state = State {
        current: content.clone(),
        durable: content,
        unsynced: Vec::new(),
        random: Random::seeded(seed),
        power: Power::Off,
        incarnation: 0,
        flushes: 0,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), off: Condvar::new() });
    let server = Arc::clone(&shared);
    let serving = thread::spawn(move || serve(fuse, &server));

    let asked = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut answers = asked.try_clone().unwrap();
    for line in BufReader::new(asked).lines() {
        let line = line.unwrap();
        let (what, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let answer = shared.ask(what, number.parse().unwrap(), &dir, &image);
        answers.write_all(format!("{answer}\n").as_bytes()).unwrap();
    }
    // The test has ended. What the kernel still wants to write gets its answer until the last of it
    // is unmounted.
    shared.lock().cut();
    unmount(dir.as_str(), UnmountFlags::DETACH).unwrap();
    serving.join().unwrap();
}

fn mount_fuse(dir: &str) -> io::Result<File> {
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let options = CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("cut-disk", dir, "fuse", flags, Some(options.as_c_str()))?;
    Ok(fuse)
}

struct Shared {
    state: Mutex<State>,
    off: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, what: &str, number: u64, dir: &str, image: &Path) -> String {
        let mut state = self.lock();
        match what {
            "hello" => String::new(),
            "on" => {
                assert!(matches!(state.power, Power::Off));
                state.power = Power::On;
                state.incarnation += 1;
                let file = format!("{dir}/{NAME}{}", state.incarnation);
                // The kernel asks this process about the file.
                drop(state);
                let losetup = Command::new("losetup").args(["-f", "--show", &file]).output();
                let device = String::from_utf8(losetup.unwrap().stdout).unwrap();
                device.trim_end().to_owned()
            }
            "cut" => {
                state.power = Power::Until(number);
                String::new()
            }
            "wait" => {
                let at_most = Duration::from_millis(number);
                let is_on = |state: &mut State| !matches!(state.power, Power::Off);
                let waited = self.off.wait_timeout_while(state, at_most, is_on);
                let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if is_on(&mut state) {
                    state.cut();
                }
                String::new()
            }
            "off" => {
                state.flush();
                state.cut();
                fs::write(image, &state.durable).unwrap();
                String::new()
            }
            "flushes" => state.flushes.to_string(),
            other => panic!("asked for {other}"),
        }
    }
}

struct State {
    /// What survives.
    durable: Vec<u8>,
    /// What is read: the same with the writes that were not flushed.
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    random: Random,
    power: Power,
    /// How often the power has come on: each time the file is another, so that no page the kernel
    /// has kept of the last one is taken for what is on the disk.
    incarnation: u64,
    flushes: u64,
}

enum Power {
    On,
    /// The power goes with this many more writes and flushes.
    Until(u64),
    Off,
}

impl State {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.current[at..at + bytes.len()].copy_from_slice(bytes);
        self.unsynced.push((at, bytes.to_vec()));
    }

    fn flush(&mut self) {
        for (at, bytes) in self.unsynced.drain(..) {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        self.flushes += 1;
    }

    fn cut(&mut self) {
        // None of it, all of it, a few sectors, most of them.
        let share = self.random.pick(&[0, 5, 50, 95, 100]);
        for (at, bytes) in std::mem::take(&mut self.unsynced) {
            for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if self.random.below(100) < share {
                    let at = at + index * SECTOR_BYTES;
                    self.durable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        self.current.clone_from(&self.durable);
        self.power = Power::Off;
    }

    /// Counts a write or flush; whether there is still power for it.
    fn has_power(&mut self) -> bool {
        match &mut self.power {
            Power::On => true,
            Power::Off => false,
            Power::Until(0) => {
                self.cut();
                false
            }
            Power::Until(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// The file's name but for its number.
const NAME: &str = "disk-";
const ROOT: u64 = 1;
/// The node of the file is this and its number.
const FILE: u64 = 1 << 32;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;

// The kernel's names for what it asks: include/uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const IN_HEADER_BYTES: usize = 40;
const WRITE_IN_BYTES: usize = 40;
const WRITE_BYTES_MAX: usize = 256 << 10;

/// Answers the kernel until the file system is gone.
fn serve(mut fuse: File, shared: &Shared) {
    let mut buffer = vec![0; IN_HEADER_BYTES + WRITE_IN_BYTES + WRITE_BYTES_MAX];
    while let Ok(got) = fuse.read(&mut buffer) {
        let request = &buffer[..got];
        let code = u32_at(request, 4);
        if matches!(code, FORGET | BATCH_FORGET | INTERRUPT) {
            continue;
        }
        let mut state = shared.lock();
        let answer = answer(&mut state, code, u64_at(request, 16), &request[IN_HEADER_BYTES..]);
        if matches!(state.power, Power::Off) {
            shared.off.notify_all();
        }
        drop(state);
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let mut out = Vec::with_capacity(16 + body.len());
        out.extend_from_slice(&(16 + body.len() as u32).to_le_bytes());
        out.extend_from_slice(&error.to_le_bytes());
        out.extend_from_slice(&request[8..16]);
        out.extend_from_slice(&body);
        // Whoever asked may have been interrupted and no longer want to know.
        let _ = fuse.write_all(&out);
    }
}

fn answer(state: &mut State, code: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
    // A file of an earlier life of the disk has no power for ever.
    let current = node == FILE + state.incarnation;
    match code {
        INIT => Ok(init()),
        LOOKUP => {
            let name = body.strip_suffix(b"\0").and_then(|name| str::from_utf8(name).ok());
            let number = name.and_then(|name| name.strip_prefix(NAME)?.parse::<u64>().ok());
            let number = number.filter(|&number| number == state.incarnation).ok_or(ENOENT)?;
            let mut out = Vec::new();
            push(&mut out, &[FILE + number, 0, 0, 0]);
            out.extend_from_slice(&[0; 8]);
            out.extend(attributes(FILE + number, state.current.len() as u64));
            Ok(out)
        }
        GETATTR => {
            let mut out = vec![0; 16];
            out.extend(attributes(node, state.current.len() as u64));
            Ok(out)
        }
        OPEN => Ok(vec![0; 16]),
        RELEASE | FLUSH => Ok(Vec::new()),
        READ => {
            if !current || matches!(state.power, Power::Off) {
                return Err(EIO);
            }
            let from = usize::try_from(u64_at(body, 8)).map_err(|_| EINVAL)?;
            let from = from.min(state.current.len());
            let to = (from + u32_at(body, 16) as usize).min(state.current.len());
            Ok(state.current[from..to].to_vec())
        }
        WRITE => {
            let at = usize::try_from(u64_at(body, 8)).map_err(|_| EINVAL)?;
            let bytes = &body[WRITE_IN_BYTES..];
            if at + bytes.len() > state.current.len() {
                return Err(EINVAL);
            }
            if !current || !state.has_power() {
                return Err(EIO);
            }
            state.write(at, bytes);
            let mut out = (bytes.len() as u32).to_le_bytes().to_vec();
            out.extend_from_slice(&[0; 4]);
            Ok(out)
        }
        FSYNC => {
            if !current || !state.has_power() {
                return Err(EIO);
            }
            state.flush();
            Ok(Vec::new())
        }
        _ => Err(ENOSYS),
    }
}

/// Version 7.31, and writes of many pages at once.
fn init() -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let mut out = Vec::new();
    for word in [7, 31, 0, BIG_WRITES | MAX_PAGES] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    // Background requests at most, and from when on they are many.
    out.extend_from_slice(&16u16.to_le_bytes());
    out.extend_from_slice(&12u16.to_le_bytes());
    out.extend_from_slice(&(WRITE_BYTES_MAX as u32).to_le_bytes());
    // The granularity of times, then the pages of one request.
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&((WRITE_BYTES_MAX / 4096) as u16).to_le_bytes());
    out.resize(64, 0);
    out
}

fn attributes(node: u64, bytes: u64) -> Vec<u8> {
    const DIRECTORY: u32 = 0o40_700;
    const REGULAR: u32 = 0o100_600;
    let (mode, links) = if node == ROOT { (DIRECTORY, 2) } else { (REGULAR, 1) };
    let mut out = Vec::new();
    push(&mut out, &[node, bytes, bytes.div_ceil(512), 0, 0, 0]);
    for word in [0, 0, 0, mode, links, 0, 0, 0, 4096, 0] {
        out.extend_from_slice(&u32::to_le_bytes(word));
    }
    out
}

fn push(out: &mut Vec<u8>, words: &[u64]) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the kernel's requests are whole"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the kernel's requests are whole"))
}
