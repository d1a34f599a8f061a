//! What the kernel tells of processes as it happens: tracepoints that write into a ring.
//!
//! Two threads. The reader takes records out of the ring and does nothing else, so that it is there
//! when there is more; the teller makes of them what the monitor takes, and looks at the process
//! table: once when the programs are in place, after every overrun, and every now and then for
//! what no tracepoint tells (`setuid`, `setsid`).
//!
//! A process most often runs a program right after it was made. The teller holds what happens back
//! for a few ticks behind a fork that is not followed by that yet, so that both are one start.
//!
//! When the teller is behind, the reader waits, and the ring fills; what finds no room in it is
//! counted by the kernel's side and told as an overrun.

mod heap;
mod record;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use daemoneye_lib::models::process::{Completeness, SourceName};
use daemoneye_lib::stream::wall_clock_ns;
use rustix::event::{PollFd, PollFlags};
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::sync::mpsc;

use super::poll::{Control, Scan, SourceHandle};
use super::procfs::Procfs;
use super::{Happening, Happenings, Observation, Overrun, SourceError, SourceOptions, What};
use record::{Kind, Record};

/// The programs, built from `bpf/capture.bpf.c` by `bpf/build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/capture.bpf.o");

/// Each program and its tracepoint.
const PROGRAMS: [(&str, &str); 5] = [
    ("on_fork", "sched_process_fork"),
    ("on_exec", "sched_process_exec"),
    ("on_rename", "task_rename"),
    ("on_move", "cgroup_attach_task"),
    ("on_exit", "sched_process_exit"),
];

/// Enough to find out whether the kernel takes the programs, on every page size.
const PROBE_RING_BYTES: u32 = 64 << 10;
/// How often the kernel is asked to check a program while signals keep it from it.
const CHECKS_MAX: u32 = 100;
/// Bytes taken out of the ring at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait for the teller: the ring is where things wait, and where it is known how many do not.
const CHUNKS: usize = 4;
/// How long the reader sleeps at most when there is nothing to read.
const IDLE: Duration = Duration::from_millis(100);
/// How long a fork waits for the program that it runs, in ticks.
const HELD_TICKS: u32 = 4;
/// How often the process table is looked at for what no tracepoint tells.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long after an overrun: there may be more of them.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The programs, in place for as long as this is there.
struct Programs {
    /// Detaches them when dropped.
    _loaded: Ebpf,
    ring: RingBuf<MapData>,
    lost: Array<MapData, u64>,
}

/// Puts the programs in place and begins to read.
pub(super) fn start(
    options: SourceOptions,
    observations: mpsc::Sender<Observation>,
) -> Result<SourceHandle, SourceError> {
    let Programs { _loaded, ring, lost } = load(options.ring_bytes)?;
    let table = super::new_poll()?;
    let (control, orders) = blocking::channel();
    let (chunks, taken) = blocking::sync_channel(CHUNKS);
    let drained = Arc::new(AtomicU64::new(0));
    let reader =
        Reader { _loaded, ring, tick: options.tick, chunks, drained: Arc::clone(&drained), orders };
    let teller = Teller {
        taken,
        drained,
        lost,
        told_lost: 0,
        last_ns: since_boot_ns(),
        observations,
        table,
        page_bytes: rustix::param::page_size() as u64,
        hold: options.tick * HELD_TICKS,
        pending: Vec::new(),
    };
    spawn("procmond-ebpf", move || reader.run())?;
    spawn("procmond-teller", move || teller.run())?;
    Ok(SourceHandle::new(control))
}

/// Finds out whether the programs can be put in place.
pub(super) fn probe() -> Result<(), SourceError> {
    load(PROBE_RING_BYTES).map(drop)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), SourceError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|source| SourceError::NoThread { name: SourceName::Ebpf, source })
}

fn load(ring_bytes: u32) -> Result<Programs, SourceError> {
    let programs = load_with(&Btf::from_sys_fs().map_err(refused)?, ring_bytes);
    // The kernel's types, tens of MB of small things, are not needed any more.
    heap::give_back();
    programs
}

fn load_with(btf: &Btf, ring_bytes: u32) -> Result<Programs, SourceError> {
    let mut loaded = EbpfLoader::new()
        .btf(Some(btf))
        .map_max_entries("events", ring_bytes)
        .load(OBJECT)
        .map_err(refused)?;
    for (name, tracepoint) in PROGRAMS {
        let program = loaded.program_mut(name).ok_or_else(|| missing(name))?;
        let program: &mut BtfTracePoint = program.try_into().map_err(refused)?;
        check(program, tracepoint, btf).map_err(refused)?;
        program.attach().map_err(refused)?;
    }
    let ring = loaded.take_map("events").ok_or_else(|| missing("events"))?;
    let lost = loaded.take_map("lost").ok_or_else(|| missing("lost"))?;
    Ok(Programs {
        ring: RingBuf::try_from(ring).map_err(refused)?,
        lost: Array::try_from(lost).map_err(refused)?,
        _loaded: loaded,
    })
}

/// Has the kernel check a program. It gives up when a signal comes, and is then asked again.
fn check(program: &mut BtfTracePoint, tracepoint: &str, btf: &Btf) -> Result<(), ProgramError> {
    for _ in 1..CHECKS_MAX {
        match program.load(tracepoint, btf) {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
    program.load(tracepoint, btf)
}

fn refused(source: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::NoEbpf { source: Box::new(source) }
}

fn missing(part: &str) -> SourceError {
    SourceError::NoEbpf { source: format!("{part} is not in the object").into() }
}

/// Takes records out of the ring.
struct Reader {
    _loaded: Ebpf,
    ring: RingBuf<MapData>,
    tick: Duration,
    chunks: blocking::SyncSender<Vec<u8>>,
    /// Everything that happened before this has been handed over, in nanoseconds since boot.
    drained: Arc<AtomicU64>,
    orders: blocking::Receiver<Control>,
}

impl Reader {
    fn run(mut self) {
        loop {
            // One that is not told to end is polled, and has no interval.
            let ends = loop {
                match self.orders.try_recv() {
                    Ok(Control::SetInterval(_)) => {}
                    Ok(Control::Stop) | Err(blocking::TryRecvError::Disconnected) => break true,
                    Err(blocking::TryRecvError::Empty) => break false,
                }
            };
            if !self.drain() || ends {
                return;
            }
            if self.is_ready_within(IDLE) && !self.tick.is_zero() {
                thread::sleep(self.tick);
            }
        }
    }

    /// Waits for a record, which may not be finished yet; says whether there is one.
    fn is_ready_within(&self, most: Duration) -> bool {
        let mut ready = [PollFd::new(&self.ring, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: most.subsec_nanos().into() };
        // Interrupted, it looks again.
        rustix::event::poll(&mut ready, Some(&timeout)).is_ok_and(|count| count > 0)
    }

    /// Hands over what is there; false if nobody takes it any more.
    fn drain(&mut self) -> bool {
        loop {
            let before_ns = since_boot_ns();
            let mut chunk = Vec::new();
            while chunk.len() < CHUNK_BYTES
                && let Some(record) = self.ring.next()
            {
                chunk.extend_from_slice(&(record.len() as u32).to_ne_bytes());
                chunk.extend_from_slice(&record);
            }
            let whole = chunk.len() < CHUNK_BYTES;
            if !chunk.is_empty() && self.chunks.send(chunk).is_err() {
                return false;
            }
            if whole {
                // Behind a record that another processor has not finished there may be others.
                if !self.is_ready_within(Duration::ZERO) {
                    self.drained.store(before_ns, Ordering::Release);
                }
                return true;
            }
        }
    }
}

/// Tells the monitor.
struct Teller {
    taken: blocking::Receiver<Vec<u8>>,
    drained: Arc<AtomicU64>,
    lost: Array<MapData, u64>,
    /// How many were told to be lost.
    told_lost: u64,
    /// When the last thing happened that was told, in nanoseconds since boot.
    last_ns: u64,
    observations: mpsc::Sender<Observation>,
    table: Procfs,
    page_bytes: u64,
    /// How long a fork waits for the program that it runs.
    hold: Duration,
    /// Not told yet.
    pending: Vec<Happening>,
}

impl Teller {
    fn run(mut self) {
        // Processes that are there come first. What happens to them meanwhile waits in the ring.
        let Some(()) = self.look(false) else { return };
        let mut look_at = Instant::now() + LOOK_EVERY;
        loop {
            let most = if self.pending.is_empty() { IDLE } else { self.hold };
            let wait = look_at.saturating_duration_since(Instant::now()).min(most);
            let told = match self.taken.recv_timeout(wait) {
                Ok(chunk) => self.take(&chunk),
                Err(blocking::RecvTimeoutError::Timeout) => self.take_rest(),
                Err(blocking::RecvTimeoutError::Disconnected) => {
                    // The reader has ended, and the monitor is told whatever it had read.
                    self.tell(self.pending.len());
                    self.take_rest();
                    return;
                }
            };
            // Whatever happened before this is either taken or waits to be.
            let drained_ns = self.drained.load(Ordering::Acquire);
            let Some(overrun) = told.zip(self.take_all()).map(|(one, all)| one | all) else {
                return;
            };
            let hold_ns = u64::try_from(self.hold.as_nanos()).unwrap_or(u64::MAX);
            let count = settled(&self.pending, drained_ns.saturating_sub(hold_ns));
            let Some(()) = self.tell(count) else { return };
            if overrun {
                look_at = look_at.min(Instant::now() + LOOK_AGAIN);
            }
            if Instant::now() >= look_at {
                look_at = Instant::now() + LOOK_EVERY;
                let Some(()) = self.look(true) else { return };
            }
        }
    }

    /// Looks at the process table. What happened while it was looked at is told first, if asked
    /// for: the table is then older than what is known. `None` if nobody listens any more.
    fn look(&mut self, told_first: bool) -> Option<()> {
        let observation = match self.table.scan() {
            Ok(mut table) => {
                table.is_told = true;
                Observation::Snapshot(table)
            }
            Err(error) => Observation::Failed(error),
        };
        let looked_ns = since_boot_ns();
        // A reader that has ended hands over nothing any more.
        while told_first && self.drained.load(Ordering::Acquire) < looked_ns {
            match self.taken.recv_timeout(IDLE) {
                Ok(chunk) => self.take(&chunk).map(drop)?,
                Err(blocking::RecvTimeoutError::Timeout) => {}
                Err(blocking::RecvTimeoutError::Disconnected) => break,
            }
        }
        if told_first {
            self.take_all()?;
        }
        self.tell(self.pending.len())?;
        self.observations.blocking_send(observation).ok()
    }

    /// Takes the chunks that are there, as many as can be, and says whether something had found no room.
    fn take_all(&mut self) -> Option<bool> {
        let mut overrun = false;
        for _ in 0..CHUNKS {
            let Ok(chunk) = self.taken.try_recv() else { break };
            overrun |= self.take(&chunk)?;
        }
        Some(overrun)
    }

    /// Takes what a chunk holds, and says whether something had found no room before it.
    fn take(&mut self, chunk: &[u8]) -> Option<bool> {
        let mut overrun = false;
        let mut rest = chunk;
        while let Some((length, bytes)) = rest.split_first_chunk() {
            let length = u32::from_ne_bytes(*length) as usize;
            let Some((bytes, behind)) = bytes.split_at_checked(length) else { break };
            rest = behind;
            let Some(record) = Record::read(bytes) else {
                tracing::error!(bytes = length, "a record of the kernel's ring cannot be read");
                continue;
            };
            if record.lost > self.told_lost {
                self.tell_overrun(record.lost, record.time_ns)?;
                overrun = true;
            }
            self.last_ns = self.last_ns.max(record.time_ns);
            let happening = self.happening(&record);
            self.pending.extend(happening);
        }
        Some(overrun)
    }

    /// Tells of what found no room and was followed by nothing that did.
    fn take_rest(&mut self) -> Option<bool> {
        let now_ns = since_boot_ns();
        let lost = self.lost.get(&0, 0).unwrap_or(self.told_lost);
        // What is still in the ring says better when it was.
        let is_read = self.drained.load(Ordering::Acquire) > self.last_ns;
        if lost <= self.told_lost || !is_read {
            return Some(false);
        }
        self.tell_overrun(lost, now_ns)?;
        Some(true)
    }

    fn tell_overrun(&mut self, lost: u64, until_ns: u64) -> Option<()> {
        self.tell(self.pending.len())?;
        let offset_ns = wall_offset_ns();
        let overrun = Overrun {
            missing: lost - self.told_lost,
            since_ns: offset_ns.saturating_add_unsigned(self.last_ns),
            until_ns: offset_ns.saturating_add_unsigned(until_ns),
        };
        self.told_lost = lost;
        self.last_ns = until_ns;
        self.observations.blocking_send(Observation::Overrun(overrun)).ok()
    }

    /// Tells the first of what was not told yet. `None` if nobody listens any more.
    fn tell(&mut self, count: usize) -> Option<()> {
        if count == 0 {
            return Some(());
        }
        let happenings = self.pending.drain(..count).collect();
        let seen = Happenings {
            source: SourceName::Ebpf,
            boot_id: self.table.boot_id(),
            wall_offset_ns: wall_offset_ns(),
            happenings,
        };
        self.observations.blocking_send(Observation::Seen(seen)).ok()
    }

    fn happening(&mut self, record: &Record<'_>) -> Option<Happening> {
        let pid = record.pid;
        let what = match record.kind {
            Kind::Fork => {
                let mut facts = record.facts();
                let inherits_group = !record.is_in_other_group();
                if !inherits_group && let Some((cgroup, container_id)) = self.table.cgroup_of(pid) {
                    facts.cgroup = Some(cgroup);
                    facts.container_id = container_id;
                }
                What::Forked { forker: record.forker, inherits_group, facts: Box::new(facts) }
            }
            Kind::Exec => {
                let mut facts = record.facts();
                // Of one that is still there all of them can be had.
                if let Some(beginning) = record.cut_argv()
                    && let Some(argv) = self.table.argv_of(pid, record.start_ns, beginning)
                {
                    let cut = argv.is_truncated() || record.is_path_cut();
                    facts.completeness =
                        if cut { Completeness::Truncated } else { Completeness::Complete };
                    facts.argv = Some(argv);
                }
                What::Executed(Box::new(facts))
            }
            Kind::Rename => What::Renamed(record.name()),
            Kind::Move => {
                // Of one that is gone already, its group is of no interest any more.
                let (cgroup, container_id) = self.table.cgroup_of(pid)?;
                What::Moved { cgroup, container_id }
            }
            Kind::Exit => What::Exited(record.exit(self.page_bytes), Box::new(record.facts())),
        };
        Some(Happening { pid, start_ns: record.start_ns, at_ns: record.time_ns, what })
    }
}

/// How many of the first happenings wait for nothing: no fork since then is among them without the
/// program that it runs.
fn settled(pending: &[Happening], since_ns: u64) -> usize {
    let mut program_at = HashMap::new();
    let mut settled = pending.len();
    for (index, happening) in pending.iter().enumerate().rev() {
        let life = (happening.pid, happening.start_ns);
        match happening.what {
            What::Executed(_) | What::Exited(..) => {
                program_at.insert(life, index);
            }
            What::Forked { .. }
                if happening.at_ns > since_ns
                    && program_at.get(&life).is_none_or(|at| *at >= settled) =>
            {
                settled = index;
            }
            _ => {}
        }
    }
    settled
}

fn wall_offset_ns() -> i64 {
    wall_clock_ns().saturating_sub_unsigned(since_boot_ns())
}

/// Time asleep included, as the kernel counts when a process began.
fn since_boot_ns() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    u64::try_from(tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::process::Exit;

    use super::super::Facts;
    use super::*;

    fn happenings(whats: &[(u32, &str)]) -> Vec<Happening> {
        let facts = || Box::new(Facts::unknown(Completeness::Complete));
        let what = |what| match what {
            "fork" => What::Forked { forker: 1, inherits_group: true, facts: facts() },
            "exec" => What::Executed(facts()),
            "exit" => What::Exited(Exit::default(), facts()),
            other => What::Renamed(other.into()),
        };
        let all = whats.iter().zip(1..);
        all.map(|(&(pid, word), at_ns)| Happening { pid, start_ns: 7, at_ns, what: what(word) })
            .collect()
    }

    #[test]
    fn a_fork_waits_for_its_program_and_everything_behind_it_waits_too() {
        let all = |whats: &[(u32, &str)]| settled(&happenings(whats), 0);
        assert_eq!(all(&[]), 0);
        assert_eq!(all(&[(2, "fork"), (2, "name"), (2, "exec"), (3, "exit")]), 4);
        assert_eq!(all(&[(3, "exit"), (2, "fork"), (4, "name")]), 1);
        assert_eq!(all(&[(2, "fork"), (2, "exit")]), 2, "it will run none");
        // The first one's program stands behind a fork that waits.
        assert_eq!(all(&[(9, "name"), (2, "fork"), (3, "fork"), (2, "exec")]), 1);
        assert_eq!(all(&[(2, "fork"), (2, "exec"), (3, "fork"), (2, "exec")]), 2);
    }

    #[test]
    fn nothing_waits_for_longer_than_it_may() {
        let forks = happenings(&[(2, "fork"), (3, "fork"), (2, "exec"), (4, "name")]);
        assert_eq!(settled(&forks, 0), 0);
        assert_eq!(settled(&forks, 1), 1, "the first is old");
        assert_eq!(settled(&forks, 2), 4);
    }
}
