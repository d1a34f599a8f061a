//! What the kernel tells of processes as it happens: tracepoints that write into a ring.
//!
//! The [`Teller`] takes records out of the ring, makes of them what the monitor takes, and has
//! iterators pass over all processes: every second for what no tracepoint tells (`setuid`,
//! `setsid`), which goes into the ring, too; and for everything that is there instead of reading the
//! process table. The ring is where things wait while it is at something else, and what finds no
//! room there is counted by the kernel's side. Another thread to empty it would have to be woken,
//! and wake this one: that takes longer than what both do.

mod inventory;
mod record;
mod records;

use std::io;
use std::sync::mpsc as blocking;
use std::thread;
use std::time::Duration;

use aya::maps::{Array, MapData, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, EbpfLoader};
use daemoneye_lib::models::process::SourceName;
use tokio::sync::mpsc;

use super::clock::since_boot_ns;
use super::native::is_ready_within;
use super::poll::{self, Control, SourceHandle};
use super::procfs::Procfs;
use super::teller::{self, Feed, NoChunk, Teller};
use super::{Observation, SourceError, SourceOptions};
use inventory::Inventory;
use records::Records;

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
/// How long it is slept between two looks into the ring while every look finds something. To be
/// woken takes longer than to read what is there, and what was read waits for the log's sync.
const BUSY_TICKS: u32 = 2;
/// How long a fork waits for the program that it runs, in ticks.
const HELD_TICKS: u32 = 4;
/// The same without ticks: a start that is told by itself is in the way of its program, which is
/// run half a millisecond later.
const HELD_MIN: Duration = Duration::from_millis(1);

/// The programs, in place for as long as this is there.
struct Programs {
    /// Detaches them when dropped.
    inventory: Inventory,
    ring: RingBuf<MapData>,
    lost: Array<MapData, [u32; 3]>,
}

/// Puts the programs in place and begins to read.
pub(super) fn start(
    options: SourceOptions,
    observations: mpsc::Sender<Observation>,
) -> Result<SourceHandle, SourceError> {
    let Programs { inventory, ring, lost } = load(options.ring_bytes)?;
    let table = super::new_poll()?;
    let (control, orders) = blocking::channel();
    let intake = Intake::new(ring, options.tick, orders);
    let hold = HELD_MIN.max(options.tick * HELD_TICKS);
    let records = Records::new(lost, inventory);
    let teller = Teller::new(records, intake, table, hold, observations);
    poll::spawn(SourceName::Ebpf, "procmond-ebpf", move || teller.run())?;
    Ok(SourceHandle::new(control))
}

/// Passes over all processes, one at a time as they are asked for: for benches.
pub struct Passes {
    records: Records,
    table: Procfs,
    /// Sweeps write into it.
    _ring: RingBuf<MapData>,
}

impl Passes {
    /// Puts the programs in place.
    ///
    /// # Errors
    /// If the kernel does not take them, or there is no process table.
    pub fn new() -> Result<Self, SourceError> {
        let Programs { inventory, ring, lost } = load(8 << 20)?;
        let table = super::new_poll()?;
        Ok(Self { records: Records::new(lost, inventory), table, _ring: ring })
    }

    /// Every process that is there, with what is not known of it yet.
    ///
    /// # Errors
    /// If the process table cannot be read.
    pub fn look(&mut self) -> Result<Observation, SourceError> {
        self.records.look(&mut self.table).map(Observation::Snapshot)
    }

    /// Has every process told of that has changed since that was done last.
    pub fn sweep(&mut self) {
        self.records.sweep();
    }
}

/// Finds out whether the programs can be put in place.
pub(super) fn probe() -> Result<(), SourceError> {
    load(PROBE_RING_BYTES).map(drop)
}

fn load(ring_bytes: u32) -> Result<Programs, SourceError> {
    let programs = load_with(&Btf::from_sys_fs().map_err(refused)?, ring_bytes);
    // The kernel's types, tens of MB of small things, are not needed any more.
    crate::heap::give_back();
    programs
}

fn load_with(btf: &Btf, ring_bytes: u32) -> Result<Programs, SourceError> {
    let mut loaded = EbpfLoader::new()
        .btf(Some(btf))
        .map_max_entries("events", ring_bytes)
        // What is kept with each process is for the programs alone.
        .allow_unsupported_maps()
        .load(OBJECT)
        .map_err(refused)?;
    for (name, tracepoint) in PROGRAMS {
        let program = loaded.program_mut(name).ok_or_else(|| missing(name))?;
        let program: &mut BtfTracePoint = program.try_into().map_err(refused)?;
        check(|| program.load(tracepoint, btf)).map_err(refused)?;
        program.attach().map_err(refused)?;
    }
    let ring = loaded.take_map("events").ok_or_else(|| missing("events"))?;
    let lost = loaded.take_map("lost").ok_or_else(|| missing("lost"))?;
    Ok(Programs {
        ring: RingBuf::try_from(ring).map_err(refused)?,
        lost: Array::try_from(lost).map_err(refused)?,
        inventory: Inventory::new(loaded, btf),
    })
}

/// Has the kernel check a program. It gives up when a signal comes, and is then asked again.
fn check(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 1..CHECKS_MAX {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
    load()
}

fn refused(source: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::NoEbpf { source: Box::new(source) }
}

fn missing(part: &str) -> SourceError {
    SourceError::NoEbpf { source: format!("{part} is not in the object").into() }
}

/// Takes records out of the ring.
struct Intake {
    ring: RingBuf<MapData>,
    tick: Duration,
    orders: blocking::Receiver<Control>,
    state: State,
    /// Bytes of the last chunk: the next has about as many.
    chunk_bytes: usize,
    /// Everything that happened before this has been taken, in nanoseconds since boot.
    drained_ns: u64,
}

/// What the ring held when it was last looked into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing: whatever comes next says so.
    Quiet,
    /// Some, so that there will be more in a moment: that is not waited for, but slept over.
    Busy,
    /// More than a chunk.
    Full,
    /// It is not looked into again.
    Ended,
}

impl Intake {
    fn new(ring: RingBuf<MapData>, tick: Duration, orders: blocking::Receiver<Control>) -> Self {
        Self { ring, tick, orders, state: State::Quiet, chunk_bytes: 0, drained_ns: 0 }
    }

    /// What is there.
    fn drain(&mut self) -> Option<Vec<u8>> {
        let ends = teller::is_to_end(&self.orders);
        let before_ns = since_boot_ns();
        let mut chunk = Vec::with_capacity(self.chunk_bytes);
        // Whatever is there when it ends belongs to it.
        while (chunk.len() < CHUNK_BYTES || ends)
            && let Some(record) = self.ring.next()
        {
            chunk.extend_from_slice(&(record.len() as u32).to_ne_bytes());
            chunk.extend_from_slice(&record);
        }
        self.chunk_bytes = chunk.len();
        self.state = match chunk.len() {
            _ if ends => State::Ended,
            0 => State::Quiet,
            CHUNK_BYTES.. => State::Full,
            _ => State::Busy,
        };
        // Behind a record that another processor has not finished there may be others.
        if self.state != State::Full && !is_ready_within(&self.ring, Duration::ZERO) {
            self.drained_ns = before_ns;
        }
        (!chunk.is_empty()).then_some(chunk)
    }
}

impl teller::Intake for Intake {
    type Chunk = Vec<u8>;

    fn take(&mut self, most: Duration) -> Result<Vec<u8>, NoChunk> {
        match self.state {
            State::Ended => return Err(NoChunk::Ever),
            State::Full => {}
            State::Busy if !self.tick.is_zero() => thread::sleep(most.min(self.tick * BUSY_TICKS)),
            State::Quiet | State::Busy => {
                // A record that is there may not be finished yet.
                if is_ready_within(&self.ring, most) && !self.tick.is_zero() {
                    thread::sleep(self.tick);
                }
            }
        }
        self.drain().ok_or(NoChunk::Yet)
    }

    fn take_more(&mut self) -> Option<Vec<u8>> {
        if self.state == State::Full { self.drain() } else { None }
    }

    fn drained_ns(&self) -> u64 {
        self.drained_ns
    }
}

#[cfg(test)]
mod tests;
