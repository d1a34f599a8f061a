//! The SHA-256 of the programs that processes run.
//!
//! A thread stands between the source and the monitor and hands on what is observed, in order, with
//! digests put in. It reads no file itself: a program may lie on a file system whose server never
//! answers. Others read, and it waits for them, but not for long and not all the time, so that the
//! source is never held up until it loses something; what came too late is in the cache for the
//! next process that runs it. Nothing is told of a program that was not read in time.
//!
//! The source says which file the process runs: device, inode, size and time of change. Only a
//! file that is that one before and after it was read gives a digest, by whatever path it was
//! found: that of the process, as long as it runs, or else the program's. A digest is kept under
//! the file's identity; a program that runs a thousand times is read once. A file that was changed
//! within the file system's clock before it was run can have the identity of another: of such a
//! one neither the path nor the cache is believed, only the running process.

mod cache;
mod read;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::models::control::Digests;
use daemoneye_lib::models::process::Sha256;
use tokio::sync::mpsc;

use crate::source::{Facts, FileIdentity, Observation, What};
use cache::Cache;
use read::Missed;

/// Observations that wait for the monitor behind the thread; in front of it as many wait again.
const OBSERVATIONS: usize = 4;
/// Threads that read, so that one file that does not come leaves the others to be read.
const READERS: usize = 4;
/// The longest wait for one program.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// All waits together take at most half of the time, after a first stretch of this length: what
/// happens meanwhile has room with the source.
const WAITS_AHEAD: Duration = Duration::from_secs(2);
/// File systems' clocks move in steps shorter than this.
const CLOCK_STEP_NS: i64 = 20_000_000;

/// What is read, and by whom.
#[derive(Clone, Debug)]
struct Job {
    pid: u32,
    /// The path, if the file had one.
    path: Option<Vec<u8>>,
    identity: FileIdentity,
    /// No other file can have this identity.
    is_settled: bool,
}

/// Puts digests into what is observed.
#[derive(Debug)]
pub(super) struct Digester {
    bytes_max: u64,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    cache: Mutex<Cache>,
    read: AtomicU64,
    cached: AtomicU64,
    gone: AtomicU64,
    changed: AtomicU64,
    too_large: AtomicU64,
    late: AtomicU64,
    unreadable: AtomicU64,
}

/// The thread between the source and the monitor.
struct Relay {
    bytes_max: u64,
    shared: Arc<Shared>,
    readers: Vec<Reader>,
    /// How long it may still wait.
    ahead: Duration,
    counted: Instant,
}

/// A thread that reads, and whether it does so now.
struct Reader {
    jobs: blocking::SyncSender<Job>,
    results: blocking::Receiver<Result<Sha256, Missed>>,
    is_busy: bool,
}

impl Digester {
    /// Digests of programs of at most so many bytes.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, shared: Arc::default() }
    }

    /// Starts a thread behind a source. It ends when the source does, or when nobody takes what it
    /// hands on.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub(super) fn follow(
        &self,
        mut observations: mpsc::Receiver<Observation>,
    ) -> io::Result<mpsc::Receiver<Observation>> {
        let (sender, receiver) = mpsc::channel(OBSERVATIONS);
        let mut relay = Relay {
            bytes_max: self.bytes_max,
            shared: Arc::clone(&self.shared),
            readers: Vec::new(),
            ahead: WAITS_AHEAD,
            counted: Instant::now(),
        };
        thread::Builder::new().name("procmond-digest".to_owned()).spawn(move || {
            while let Some(mut observation) = observations.blocking_recv() {
                relay.put_in(&mut observation);
                if sender.blocking_send(observation).is_err() {
                    return;
                }
            }
        })?;
        Ok(receiver)
    }

    /// What was read and what was not.
    pub(super) fn counts(&self) -> Digests {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let shared = &self.shared;
        Digests {
            read_total: of(&shared.read),
            cached_total: of(&shared.cached),
            gone_total: of(&shared.gone),
            changed_total: of(&shared.changed),
            too_large_total: of(&shared.too_large),
            late_total: of(&shared.late),
            unreadable_total: of(&shared.unreadable),
        }
    }
}

impl Relay {
    fn put_in(&mut self, observation: &mut Observation) {
        match observation {
            Observation::Snapshot(table) => {
                let time_ns = table.time_ns;
                for process in &mut table.processes {
                    if let Some(facts) = &mut process.facts {
                        facts.exe_sha256 = self.digest(process.pid, facts, time_ns);
                    }
                }
            }
            Observation::Seen(seen) => {
                for happening in &mut seen.happenings {
                    let time_ns = seen.wall_offset_ns.saturating_add_unsigned(happening.at_ns);
                    // A process that was made has the digest of its maker.
                    if let What::Executed(facts) = &mut happening.what {
                        facts.exe_sha256 = self.digest(happening.pid, facts, time_ns);
                    }
                }
            }
            Observation::Unchanged { .. }
            | Observation::Ended(_)
            | Observation::Unseen(_)
            | Observation::Overrun(_)
            | Observation::Failed(_) => {}
        }
    }

    /// The digest of what a process ran at a time; counts why there is none. What runs no file
    /// (the kernel's own) and what we may not look at has no identity.
    fn digest(&mut self, pid: u32, facts: &Facts, time_ns: i64) -> Option<Sha256> {
        let identity = facts.exe_file?;
        let changed_ns = identity.ctime_sec.saturating_mul(1_000_000_000) + identity.ctime_nsec;
        let is_settled = changed_ns.saturating_add(CLOCK_STEP_NS) < time_ns;
        if is_settled && let Some(known) = self.shared.cache().get(&identity) {
            self.shared.cached.fetch_add(1, Ordering::Relaxed);
            return Some(known);
        }
        let result = if identity.size > self.bytes_max {
            Err(Missed::TooLarge)
        } else {
            let named = facts.exe.as_ref().filter(|_| facts.exe_deleted != Some(true));
            let path = named.map(|path| path.as_bytes().to_vec());
            self.read(Job { pid, path, identity, is_settled })
        };
        if let Err(missed) = result {
            self.shared.of(missed).fetch_add(1, Ordering::Relaxed);
        }
        result.ok()
    }

    /// Has a file read, and waits for that as long as may be.
    fn read(&mut self, job: Job) -> Result<Sha256, Missed> {
        let now = Instant::now();
        let earned = now.duration_since(self.counted) / 2;
        self.ahead = (self.ahead + earned).min(WAITS_AHEAD);
        self.counted = now;
        let wait = self.ahead.min(WAIT_MAX);
        let reader = self.idle_reader().ok_or(Missed::Late)?;
        // Never full: it is idle.
        reader.jobs.try_send(job).map_err(|_| Missed::Late)?;
        let result = reader.results.recv_timeout(wait);
        reader.is_busy = result.is_err();
        let waited = now.elapsed();
        self.ahead = self.ahead.saturating_sub(waited);
        self.counted += waited;
        result.unwrap_or(Err(Missed::Late))
    }

    /// A thread that has nothing to do, if there can be one.
    fn idle_reader(&mut self) -> Option<&mut Reader> {
        for reader in &mut self.readers {
            // What it finishes after its time is in the cache already.
            reader.is_busy = reader.is_busy && reader.results.try_recv().is_err();
        }
        let idle = self.readers.iter().position(|reader| !reader.is_busy);
        if idle.is_none() && self.readers.len() < READERS {
            self.readers.push(Reader::start(Arc::clone(&self.shared)).ok()?);
            return self.readers.last_mut();
        }
        self.readers.get_mut(idle?)
    }
}

impl Reader {
    fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (jobs, todo) = blocking::sync_channel::<Job>(1);
        let (done, results) = blocking::sync_channel(1);
        thread::Builder::new().name("procmond-hash".to_owned()).spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            for job in todo {
                let result = read::digest(&job, &mut buffer);
                if let Ok(digest) = &result {
                    shared.read.fetch_add(1, Ordering::Relaxed);
                    if job.is_settled {
                        shared.cache().put(job.identity, *digest);
                    }
                }
                if done.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, results, is_busy: false })
    }
}

impl Shared {
    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn of(&self, missed: Missed) -> &AtomicU64 {
        match missed {
            Missed::Gone => &self.gone,
            Missed::Changed => &self.changed,
            Missed::TooLarge => &self.too_large,
            Missed::Late => &self.late,
            Missed::Unreadable => &self.unreadable,
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
