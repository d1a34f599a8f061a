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

mod framing;
#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod lives;
mod message;
mod priority;
mod rusage;
mod socket;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision, SourceName};
use rustix::net::netlink::CONNECTOR;
use tokio::sync::mpsc;

use super::clock::{awake_ns, since_boot_ns};
use super::poll::{self, Control, Scan, SourceHandle};
use super::procfs::{Procfs, TICK_NS};
use super::teller::{self, Feed, HandedOver, IDLE, Teller, Told};
use super::{
    Facts, Happening, Observation, ProcessTable, SourceError, SourceOptions, What, exit_of,
};
use lives::Lives;
use message::{Message, PROCESSES};
use rusage::Usages;
use socket::{ANSWER, Received, Socket};

/// Messages taken before what they say is looked into.
const MESSAGES: usize = 4096;
/// What is told this long after something was read may have been so already then.
const RACE_NS: u64 = 200_000;
/// A process begins this long before it is told of, at most, if nothing holds its maker up.
const FORK_NS: u64 = 1_000_000;
/// A hole wider than this is none: no buffer is filled up so often in between.
const HOLE_MAX: u32 = 1 << 28;
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
        lives: Lives::default(),
        losses: Losses::default(),
        asleep: Asleep::default(),
        waiting: Vec::new(),
        taken_ns: 0,
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
    type Intake = HandedOver<Told<u64>>;
    type Lost = u64;
    // While the reader waits, processes end that it has not looked at.
    const CHUNKS: usize = 4096;

    fn unpack(&mut self, told: Told<u64>, _: &mut Procfs) -> Vec<Told<u64>> {
        vec![told]
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

/// Something told, with what was read about it.
struct Waiting {
    told: Told<u64>,
    /// When that had been read, in nanoseconds since boot.
    read_ns: Option<u64>,
}

/// What of the kernel's words has not reached us.
#[derive(Default)]
struct Losses {
    /// The number that each processor gives next.
    next: HashMap<u32, u32>,
    holes: u64,
    /// How many found no room, as the socket counts.
    dropped: u64,
    /// The socket has said that there are more.
    has_more: bool,
}

impl Losses {
    /// Takes a message's number; says whether some before it are missing.
    fn count(&mut self, message: &Message) -> bool {
        let next = self.next.entry(message.cpu).or_insert(message.sequence);
        let hole = message.sequence.wrapping_sub(*next);
        // Not every kernel numbers its answers; they then have any number.
        if hole > HOLE_MAX {
            return false;
        }
        *next = message.sequence.wrapping_add(1);
        let before = self.total();
        self.holes += u64::from(hole);
        self.total() > before
    }

    /// The same things are counted in two ways, each of which may know of them later, or not at
    /// all: a processor that tells nothing more shows no hole, and what the kernel had no memory
    /// for is not counted by the socket.
    fn total(&self) -> u64 {
        self.holes.max(self.dropped)
    }
}

/// Takes what the kernel tells, and reads more about it.
struct Reader {
    /// For its last word only: the teller's end is the source's.
    observations: mpsc::WeakSender<Observation>,
    socket: Socket,
    usages: Option<Usages>,
    orders: blocking::Receiver<Control>,
    tables: blocking::Receiver<Vec<(u32, u64)>>,
    tellings: blocking::SyncSender<Told<u64>>,
    drained: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    table: Procfs,
    lives: Lives,
    losses: Losses,
    asleep: Asleep,
    /// Not handed over yet.
    waiting: Vec<Waiting>,
    /// Everything that happened before this has been taken, in nanoseconds since boot.
    taken_ns: u64,
}

impl Reader {
    fn run(mut self) {
        priority::be_early();
        loop {
            let ends = teller::is_to_end(&self.orders);
            match self.read() {
                Ok(until_ns) if self.hand_over(if ends { u64::MAX } else { until_ns }) => {}
                Ok(_) => return,
                Err(error) => {
                    let source = error.into();
                    let broke = SourceError::Broke { name: SourceName::Netlink, source };
                    // The teller tells what was read before, and ends.
                    if let Some(observations) = self.observations.upgrade() {
                        let _ = observations.blocking_send(Observation::Failed(broke));
                    }
                    return;
                }
            }
            if ends {
                return;
            }
            let most = if self.waiting.is_empty() { IDLE } else { Duration::from_nanos(RACE_NS) };
            self.socket.is_ready_within(most);
        }
    }

    /// Takes what is there, and reads what there is to read about it. Gives the moment before which
    /// all that happened has been taken.
    fn read(&mut self) -> io::Result<u64> {
        let found = self.tables.try_recv();
        let before_ns = since_boot_ns();
        let mut messages = Vec::new();
        let is_all = self.receive(&mut messages)?;
        let until_ns = match messages.last() {
            Some(last) if !is_all => last.at_ns,
            _ => before_ns,
        };
        if let Some(usages) = &mut self.usages
            && let Err(error) = usages.take()
        {
            tracing::warn!(%error, "ends are told without processor time and memory from now on");
            self.usages = None;
        }
        self.doubt(&messages);
        self.look_into(&messages);
        if is_all {
            self.taken_ns = before_ns;
            if std::mem::take(&mut self.losses.has_more) {
                let before = self.losses.total();
                self.losses.dropped = self.socket.dropped().unwrap_or(self.losses.dropped);
                if self.losses.total() > before {
                    self.lives.lost_some();
                }
            }
        }
        // Whoever was found and has ended since was told to have, just now.
        if let Ok(found) = found {
            self.take_up(found);
        }
        self.lost.store(self.losses.total(), Ordering::Release);
        Ok(until_ns)
    }

    /// Takes messages, and says whether there are no more now.
    fn receive(&mut self, messages: &mut Vec<Message>) -> io::Result<bool> {
        let asleep_ns = self.asleep.now();
        while messages.len() < MESSAGES {
            match self.socket.receive()? {
                Received::Datagram(bytes) => {
                    messages.extend(message::messages(bytes).map(|message| Message {
                        at_ns: message.at_ns.saturating_add(asleep_ns),
                        ..message
                    }));
                }
                Received::Foreign => {}
                Received::Overrun => self.losses.has_more = true,
                Received::Nothing => return Ok(true),
            }
        }
        Ok(false)
    }

    /// What was read about a process after its pid had passed on, or it had run another program,
    /// is not believed.
    fn doubt(&mut self, messages: &[Message]) {
        let mut passed_on: HashMap<u32, u64> = HashMap::new();
        for message in messages.iter().rev().filter(|message| message.tid == message.pid) {
            if matches!(message.what, message::Told::Forked { .. } | message::Told::Executed) {
                passed_on.insert(message.pid, message.at_ns);
            }
        }
        for Waiting { told, read_ns } in &mut self.waiting {
            let (Some(happening), Some(at_ns)) = (&mut told.happening, *read_ns) else { continue };
            let passed_ns = passed_on.get(&happening.pid);
            if passed_ns.is_none_or(|passed_ns| *passed_ns > at_ns + RACE_NS) {
                continue;
            }
            match &mut happening.what {
                What::Forked { facts, .. } => {
                    let ppid = facts.ppid;
                    **facts = Facts { ppid, ..unknown() };
                }
                What::Executed(facts) => **facts = unknown(),
                What::Changed(facts) => facts.capabilities = None,
                _ => {}
            }
        }
    }

    /// Makes happenings of messages, and reads what they do not say.
    fn look_into(&mut self, messages: &[Message]) {
        let mut programs = self.programs(messages);
        let mut passed_on: HashMap<u32, usize> = HashMap::new();
        for (index, message) in messages.iter().enumerate() {
            if matches!(message.what, message::Told::Forked { .. }) {
                passed_on.insert(message.pid, index);
            }
        }
        for (index, message) in messages.iter().enumerate() {
            if self.losses.count(message) {
                self.lives.lost_some();
            }
            let is_newest = passed_on.get(&message.pid).is_none_or(|last| *last <= index);
            let (happening, read_ns) = self.happening(message, is_newest, &mut programs);
            let told = Told { lost: self.losses.total(), at_ns: message.at_ns, happening };
            self.waiting.push(Waiting { told, read_ns });
        }
    }

    /// Reads about the programs that are run, the newest first: the others may have ended already,
    /// and some of them are said to have.
    fn programs(&mut self, messages: &[Message]) -> HashMap<u32, Program> {
        let mut programs = HashMap::new();
        for message in messages.iter().rev().filter(|message| message.tid == message.pid) {
            let pid = message.pid;
            match message.what {
                message::Told::Executed if !programs.contains_key(&pid) => {
                    let read = self.table.at_once(pid);
                    let read_ns = since_boot_ns();
                    programs.insert(pid, Some(Program { of_ns: message.at_ns, read, read_ns }));
                }
                // The end of a thread that was the first one until another ran a program is none.
                message::Told::Exited { .. } if self.lives.has_threads(pid) => {}
                message::Told::Forked { .. } | message::Told::Exited { .. } => {
                    programs.entry(pid).or_insert(None);
                }
                _ => {}
            }
        }
        programs.into_iter().filter_map(|(pid, program)| Some((pid, program?))).collect()
    }

    /// What a message says, and when that was read which it does not say. `is_newest`: the pid has
    /// not passed on since.
    fn happening(
        &mut self,
        message: &Message,
        is_newest: bool,
        programs: &mut HashMap<u32, Program>,
    ) -> (Option<Happening>, Option<u64>) {
        use message::Told;
        let &Message { tid, pid, at_ns, .. } = message;
        let told = |start_ns, precision, what| Happening { pid, start_ns, precision, at_ns, what };
        let tick = KeyPrecision::Tick;
        if tid != pid {
            match message.what {
                Told::Forked { .. } => self.lives.thread_began(pid),
                Told::Exited { .. } => {
                    let exited = self.exited(message);
                    return (exited.map(|(start_ns, what)| told(start_ns, tick, what)), None);
                }
                // A thread's users and name are its own.
                _ => {}
            }
            return (None, None);
        }
        match message.what {
            Told::Forked { parent } => {
                let (start_ns, precision, facts, read_ns) =
                    self.forked(message, parent, is_newest, programs.get(&pid));
                let start_ns = self.lives.began(pid, start_ns, TICK_NS);
                let facts = Box::new(facts);
                let what = What::Forked { forker: parent, inherits_group: true, facts };
                (Some(told(start_ns, precision, what)), read_ns)
            }
            Told::Executed => {
                let is_it = programs.get(&pid).is_some_and(|program| program.of_ns == at_ns);
                let program = is_it.then(|| programs.remove(&pid)).flatten();
                let read_ns = program.as_ref().map(|program| program.read_ns);
                let read = program.and_then(|program| program.read);
                self.lives.executed(pid);
                let found = read.as_ref().map(|(ticks, _)| *ticks);
                let Some(start_ns) = self.start_of(pid, at_ns, |_| found) else {
                    return (None, None);
                };
                let read = read.filter(|(ticks, _)| *ticks == start_ns / TICK_NS);
                let facts = read.map_or_else(unknown, |(_, facts)| facts);
                (Some(told(start_ns, tick, What::Executed(Box::new(facts)))), read_ns)
            }
            Told::Users { real, effective } => {
                let (uid, euid) = (Some(real), Some(effective));
                self.changed(message, is_newest, Facts { uid, euid, ..unknown() })
            }
            Told::Groups { real, effective } => {
                let (gid, egid) = (Some(real), Some(effective));
                self.changed(message, is_newest, Facts { gid, egid, ..unknown() })
            }
            Told::Session => {
                self.changed(message, is_newest, Facts { session: Some(pid), ..unknown() })
            }
            Told::Named(name) => {
                let start_ns = self.start_of(pid, at_ns, |table| begun(table, pid));
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let what = What::Renamed(ByteString::new(name));
                (start_ns.map(|start_ns| told(start_ns, tick, what)), None)
            }
            Told::Exited { .. } => {
                if self.lives.start_of(pid).is_none() {
                    // Its parent may not have noticed yet.
                    let found = self.table.glimpse(pid);
                    let found = found.filter(|(_, has_ended, _)| *has_ended && is_newest);
                    self.start_of(pid, at_ns, |_| found.map(|(ticks, ..)| ticks));
                }
                let exited = self.exited(message);
                (exited.map(|(start_ns, what)| told(start_ns, tick, what)), None)
            }
            Told::Answered { .. } | Told::Other => (None, None),
        }
    }

    /// When a process began of which something is told, from whoever knows.
    fn start_of(
        &mut self,
        pid: u32,
        at_ns: u64,
        found: impl FnOnce(&mut Procfs) -> Option<u64>,
    ) -> Option<u64> {
        if let Some(start_ns) = self.lives.start_of(pid) {
            // One that was found since is another.
            return Some(start_ns).filter(|start_ns| *start_ns <= at_ns);
        }
        let start_ns = found(&mut self.table)?.saturating_mul(TICK_NS);
        if start_ns > at_ns {
            return None;
        }
        self.lives.found(pid, start_ns);
        Some(start_ns)
    }

    /// When a process began of which that is told, how exactly this is known, and what the process
    /// table says of it.
    fn forked(
        &mut self,
        message: &Message,
        parent: u32,
        is_newest: bool,
        program: Option<&Program>,
    ) -> (u64, KeyPrecision, Facts, Option<u64>) {
        let mut facts = Facts::unknown(Completeness::Complete);
        let mut read_ns = None;
        let ticks = match program {
            Some(Program { read: Some((ticks, _)), .. }) if is_newest => Some(*ticks),
            _ if is_newest => {
                let found = self.table.glimpse(message.pid);
                read_ns = Some(since_boot_ns());
                found.map(|(ticks, _, read)| {
                    let (name, session) = (read.name, read.session);
                    facts = Facts { name, session, ..Facts::unknown(Completeness::Complete) };
                    ticks
                })
            }
            _ => None,
        };
        facts.ppid = Some(parent);
        let (start_ns, precision) = beginning(message.at_ns, ticks);
        (start_ns, precision, facts, read_ns)
    }

    fn changed(
        &mut self,
        message: &Message,
        is_newest: bool,
        facts: Facts,
    ) -> (Option<Happening>, Option<u64>) {
        let &Message { pid, at_ns, .. } = message;
        let Some(start_ns) = self.start_of(pid, at_ns, |table| begun(table, pid)) else {
            return (None, None);
        };
        let capabilities = is_newest.then(|| self.table.capabilities_of(pid)).flatten();
        let what = What::Changed(Box::new(Facts { capabilities, ..facts }));
        let precision = KeyPrecision::Tick;
        (Some(Happening { pid, start_ns, precision, at_ns, what }), Some(since_boot_ns()))
    }

    /// The end of a process, if a thread's is that.
    fn exited(&mut self, message: &Message) -> Option<(u64, What)> {
        let &Message { tid, pid, at_ns, what, .. } = message;
        let message::Told::Exited { wait_status } = what else { return None };
        // One that was found since is another.
        if self.lives.start_of(pid).is_some_and(|start_ns| start_ns > at_ns) {
            return None;
        }
        let table = &mut self.table;
        let has_ended = |start_ns: u64| {
            table
                .glimpse(pid)
                .is_none_or(|(ticks, has_ended, _)| has_ended || ticks != start_ns / TICK_NS)
        };
        let over = self.lives.ended(tid, pid, has_ended);
        let id = if over.is_some() { pid } else { tid };
        let usage = self.usages.as_mut().and_then(|usages| usages.of(id));
        let start_ns = over?;
        let exit = Exit {
            run_time_ns: Some(at_ns.saturating_sub(start_ns)),
            cpu_time_ns: usage.and_then(|usage| usage.cpu_ns),
            peak_memory_bytes: usage.and_then(|usage| usage.peak_bytes),
            ..exit_of(wait_status.cast_signed())
        };
        Some((start_ns, What::Exited(exit, Box::new(unknown()))))
    }

    /// Takes up processes that a look has found, if they are still there.
    fn take_up(&mut self, found: Vec<(u32, u64)>) {
        let table = &mut self.table;
        let mut is_there = |pid, start_ns: u64| {
            table
                .glimpse(pid)
                .is_some_and(|(ticks, has_ended, _)| !has_ended && ticks == start_ns / TICK_NS)
        };
        for (pid, start_ns) in found {
            if self.lives.start_of(pid).is_none() && is_there(pid, start_ns) {
                self.lives.found(pid, start_ns);
            }
        }
        self.lives.forget(|pid, start_ns| !is_there(pid, start_ns));
    }

    /// Hands over what is believed, knowing all that happened before a moment; false if nobody
    /// takes it any more.
    fn hand_over(&mut self, until_ns: u64) -> bool {
        let is_believed = |waiting: &Waiting| {
            waiting.read_ns.is_none_or(|read_ns| read_ns.saturating_add(RACE_NS) < until_ns)
        };
        let count = self.waiting.iter().take_while(|waiting| is_believed(waiting)).count();
        for waiting in self.waiting.drain(..count) {
            if self.tellings.send(waiting.told).is_err() {
                return false;
            }
        }
        let drained_ns = match self.waiting.first() {
            // Processors may tell in another order than their clocks say.
            Some(first) => self.taken_ns.min(first.told.at_ns.saturating_sub(RACE_NS)),
            None => self.taken_ns,
        };
        self.drained.fetch_max(drained_ns, Ordering::Release);
        true
    }
}

/// What was read about a program that is run.
struct Program {
    /// When it was run, in nanoseconds since boot.
    of_ns: u64,
    /// When the process began, in ticks since boot, and the rest; `None` if it was gone.
    read: Option<(u64, Facts)>,
    /// When that had been read.
    read_ns: u64,
}

/// When a process began that was told to have at a moment: the moment, and the tick that the process
/// table says, if that can be this process's. Without, the tick may be the one before.
fn beginning(at_ns: u64, ticks: Option<u64>) -> (u64, KeyPrecision) {
    const SECOND_TICKS: u64 = 100;
    let at_ticks = at_ns / TICK_NS;
    match ticks.filter(|ticks| (at_ticks.saturating_sub(SECOND_TICKS)..=at_ticks).contains(ticks)) {
        Some(ticks) if ticks == at_ticks => (at_ns, KeyPrecision::Tick),
        Some(ticks) => ((ticks + 1) * TICK_NS - 1, KeyPrecision::Tick),
        None if at_ns % TICK_NS >= FORK_NS => (at_ns, KeyPrecision::Tick),
        None => (at_ns, KeyPrecision::Second),
    }
}

fn begun(table: &mut Procfs, pid: u32) -> Option<u64> {
    table.glimpse(pid).map(|(ticks, ..)| ticks)
}

fn unknown() -> Facts {
    Facts::unknown(Completeness::EnrichedLate)
}

/// How long the machine has slept: the connector's clock stands still then.
#[derive(Default)]
struct Asleep {
    ns: u64,
}

impl Asleep {
    /// Keeps what it was unless it is another by more than clocks can be told apart: the moments of
    /// things must not change places.
    fn now(&mut self) -> u64 {
        const APART_NS: u64 = 20_000;
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            let before_ns = since_boot_ns();
            let awake_ns = awake_ns();
            let after_ns = since_boot_ns();
            // Otherwise somebody else ran in between.
            if after_ns - before_ns < APART_NS {
                let asleep_ns = before_ns.saturating_sub(awake_ns);
                if asleep_ns.abs_diff(self.ns) > FORK_NS {
                    self.ns = asleep_ns;
                }
                break;
            }
        }
        self.ns
    }
}

#[cfg(test)]
mod tests;
