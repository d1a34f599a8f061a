//! What the kernel tells of processes through its process connector, a netlink socket.
//!
//! It tells that something happened, and not what of: arguments and paths are read from `/proc`,
//! and have to be read before the process has ended. So the reader is woken by everything that
//! happens, beginnings included, which come some hundred microseconds before the program that
//! follows; it runs before others where it may; and it reads what there is to read of the newest
//! things before it reads anything else. What came too late is marked.
//!
//! Between two lives of a pid there may be less time than reading takes. What was read is believed
//! only if nothing that was told since says that the pid had passed on, or runs another program:
//! so it waits until the kernel has been asked once more.
//!
//! What finds no room in the socket's buffer is counted twice: by the socket, and by holes in the
//! numbers that each processor gives to what it tells.

mod asleep;
mod framing;
#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod lives;
mod losses;
mod message;
mod priority;
mod reader;
mod rusage;
mod socket;
mod unsure;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use daemoneye_lib::models::process::{Completeness, SourceName};
use rustix::net::netlink::CONNECTOR;
use tokio::sync::mpsc;

use super::poll::{self, Scan, SourceHandle};
use super::procfs::{Procfs, TICK_NS};
use super::teller::{Feed, HandedOver, Teller, Told};
use super::{Facts, Happening, Observation, ProcessTable, SourceError, SourceOptions, What};
use asleep::Asleep;
use lives::Lives;
use losses::Losses;
use message::PROCESSES;
use reader::{Heard, Reader};
use rusage::Usages;
use socket::{ANSWER, Received, Socket};
use unsure::Unsure;

/// A process begins this long before it is told of, at most, if nothing holds its maker up.
const FORK_NS: u64 = 1_000_000;
/// How long a fork waits for the program that it runs.
const HOLD: Duration = Duration::from_millis(8);

/// Begins to listen.
pub(super) fn start(
    options: SourceOptions,
    observations: mpsc::Sender<Observation>,
) -> Result<SourceHandle, SourceError> {
    let socket = listen(options.socket_bytes)?;
    let usages = Usages::listen(options.socket_bytes)
        .inspect_err(|error| {
            tracing::info!(%error, "ends are told without processor time and memory: TASKSTATS needs CAP_NET_ADMIN");
        })
        .ok();
    let (control, orders) = blocking::channel();
    let (tellings, taken) = blocking::sync_channel(Tellings::CHUNKS);
    let (found, tables) = blocking::channel();
    let drained = Arc::new(AtomicU64::new(0));
    let lost = Arc::new(AtomicU64::new(0));
    let feed = Tellings { found, lost: Arc::clone(&lost) };
    let intake = HandedOver { chunks: taken, drained: Arc::clone(&drained) };
    let reader = Reader {
        observations: observations.downgrade(),
        socket,
        usages,
        orders,
        tables,
        tellings,
        drained,
        lost,
        table: super::new_poll()?,
        tick_ns: u64::try_from(options.tick.as_nanos()).unwrap_or(u64::MAX),
        heard: Heard::default(),
        lives: Lives::default(),
        losses: Losses::default(),
        asleep: Asleep::default(),
        unsure: Unsure::default(),
        outgoing: VecDeque::new(),
    };
    let teller = Teller::new(feed, intake, super::new_poll()?, HOLD, observations);
    poll::spawn(SourceName::Netlink, "procmond-netlink", move || reader.run())?;
    poll::spawn(SourceName::Netlink, "procmond-teller", move || teller.run())?;
    Ok(SourceHandle::new(control))
}

/// Finds out whether the kernel tells us; and whether it tells what processes used.
pub(super) fn probe() -> Result<bool, SourceError> {
    listen(0)?;
    Ok(Usages::listen(0).is_ok())
}

/// A socket to which the kernel says that it will tell.
fn listen(room_bytes: u32) -> Result<Socket, SourceError> {
    let refused = |source| SourceError::NoNetlink { source };
    let mut socket = Socket::open(CONNECTOR, PROCESSES).map_err(refused)?;
    if room_bytes > 0 {
        socket.make_room(room_bytes).map_err(refused)?;
    }
    socket.send(&message::listen()).map_err(refused)?;
    let until = Instant::now() + ANSWER;
    while Instant::now() < until && socket.is_ready_within(ANSWER) {
        let Received::Datagram(bytes) = socket.receive().map_err(refused)? else { continue };
        let answer = message::messages(bytes).find_map(|message| match message.what {
            message::Told::Answered { error } => Some(error.cast_signed()),
            _ => None,
        });
        match answer {
            Some(0) => return Ok(socket),
            Some(error) => return Err(refused(io::Error::from_raw_os_error(error))),
            None => {}
        }
    }
    Err(refused(io::Error::new(
        io::ErrorKind::TimedOut,
        "the kernel does not answer from here (this is not its first user and pid namespace)",
    )))
}

/// What the reader hands over.
struct Tellings {
    found: blocking::Sender<Vec<(u32, u64)>>,
    lost: Arc<AtomicU64>,
}

impl Feed for Tellings {
    const NAME: SourceName = SourceName::Netlink;
    type Intake = HandedOver<Vec<Told<u64>>>;
    type Lost = u64;
    const CHUNKS: usize = 64;

    fn unpack(&mut self, told: Vec<Told<u64>>, _: &mut Procfs) -> Vec<Told<u64>> {
        told
    }

    fn lost(&self) -> Result<u64, SourceError> {
        Ok(self.lost.load(Ordering::Acquire))
    }

    fn look(&mut self, table: &mut Procfs) -> Result<ProcessTable, SourceError> {
        let table = table.scan()?;
        let there = table.processes.iter().filter(|process| process.ended.is_none());
        // A reader that has ended needs nothing any more.
        let _ = self.found.send(there.map(|p| (p.pid, p.start_centis * TICK_NS)).collect());
        Ok(table)
    }

    /// A process that runs no program of its own is looked at when it has had the time for one.
    fn complete(&mut self, happenings: &mut [Happening], table: &mut Procfs) {
        let mut runs_next = HashMap::new();
        for happening in happenings.iter_mut().rev() {
            let pid = happening.pid;
            match &mut happening.what {
                What::Forked { inherits_group, facts, .. } => {
                    let next = runs_next.insert(pid, false);
                    let read = next.is_none().then(|| table.at_once(pid)).flatten();
                    match read {
                        Some((ticks, read)) if ticks == happening.start_ns / TICK_NS => {
                            *inherits_group = read.cgroup.is_none();
                            let ppid = facts.ppid;
                            **facts = Facts { ppid, ..read };
                        }
                        // What it has from the one that made it is what is known of it.
                        _ if next != Some(true) => facts.completeness = Completeness::EnrichedLate,
                        _ => {}
                    }
                }
                What::Executed(_) => drop(runs_next.insert(pid, true)),
                What::Exited(..) => drop(runs_next.insert(pid, false)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
