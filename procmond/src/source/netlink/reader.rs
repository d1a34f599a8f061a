//! The thread that takes what the kernel tells, and reads more about it.
//!
//! Of a program that is run, the arguments are read before anything else is done, even before what
//! was told with it is looked into; the rest is read part by part, and between any two parts the
//! socket is asked whether another program was run.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self as blocking, TrySendError};
use std::time::Duration;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision, SourceName};
use tokio::sync::mpsc;

use super::asleep::Asleep;
use super::lives::Lives;
use super::losses::Losses;
use super::message::{self, Message};
use super::rusage::Usages;
use super::socket::{Received, Socket};
use super::unsure::{THINGS_MAX, Unsure};
use super::{FORK_NS, Tellings, priority};
use crate::source::clock::since_boot_ns;
use crate::source::poll::Control;
use crate::source::procfs::{Procfs, Reading, TICK_NS};
use crate::source::teller::{self, Feed, IDLE, Told};
use crate::source::{Facts, Happening, Observation, SourceError, What, exit_of};

/// Messages that wait to be looked into; more wait in the socket.
const MESSAGES_MAX: usize = 4096;
/// Messages looked into before anything is handed over.
const MESSAGES_AT_ONCE: usize = 64;
/// How long it is until a teller that had no room is asked again.
const PAUSE: Duration = Duration::from_millis(2);

/// Takes what the kernel tells, and reads more about it.
pub(super) struct Reader {
    /// For its last word only: the teller's end is the source's.
    pub(super) observations: mpsc::WeakSender<Observation>,
    pub(super) socket: Socket,
    pub(super) usages: Option<Usages>,
    pub(super) orders: blocking::Receiver<Control>,
    /// Processes that a look has found, and when they began.
    pub(super) tables: blocking::Receiver<Vec<(u32, u64)>>,
    pub(super) tellings: blocking::SyncSender<Vec<Told<u64>>>,
    /// Everything that happened before this has been handed over, in nanoseconds since boot.
    pub(super) drained: Arc<AtomicU64>,
    pub(super) lost: Arc<AtomicU64>,
    pub(super) table: Procfs,
    /// What is told within this time is handed over together.
    pub(super) tick_ns: u64,
    pub(super) heard: Heard,
    pub(super) lives: Lives,
    pub(super) losses: Losses,
    pub(super) asleep: Asleep,
    pub(super) unsure: Unsure,
    /// What the teller has no room for yet.
    pub(super) outgoing: VecDeque<Vec<Told<u64>>>,
}

/// What was heard and not looked into yet.
#[derive(Default)]
pub(super) struct Heard {
    news: VecDeque<News>,
    /// How many beginnings of processes with this pid are among them, and, where that is said, of
    /// further threads.
    beginnings: HashMap<(u32, bool), usize>,
    /// Everything that happened before this has been heard, in nanoseconds since boot.
    until_ns: u64,
    /// There was nothing more to hear then.
    is_all: bool,
}

/// A message, and what was read when it was heard.
struct News {
    message: Message,
    /// Of a program that is run, the beginning of what is read about it, and when that was.
    read: Option<(Reading, u64)>,
    /// Of a process that begins, how many messages later it runs a program that was read about.
    runs_after: Option<usize>,
}

/// Something that happened, and what was read about it when.
struct LookedInto {
    happening: Option<Happening>,
    read_ns: Option<u64>,
    /// There is more to read.
    reading: Option<Reading>,
}

impl Reader {
    /// Reads until it is told to end, or nobody takes what it hands over any more.
    pub(super) fn run(mut self) {
        priority::be_early();
        if let Err(source) = self.read_until_end() {
            let broke = SourceError::Broke { name: SourceName::Netlink, source: source.into() };
            // The teller tells what was read before, and ends.
            if let Some(observations) = self.observations.upgrade() {
                let _ = observations.blocking_send(Observation::Failed(broke));
            }
        }
    }

    fn read_until_end(&mut self) -> io::Result<()> {
        let mut ends = false;
        let mut found = None;
        loop {
            ends |= teller::is_to_end(&self.orders);
            found = found.or_else(|| self.tables.try_recv().ok());
            self.hear()?;
            for _ in 0..MESSAGES_AT_ONCE {
                let Some(news) = self.heard.next() else { break };
                if self.look_into(news) {
                    self.hear()?;
                }
            }
            let is_behind = !self.heard.news.is_empty() || self.read_on();
            if self.heard.is_looked_into() {
                self.count_lost();
                // Whoever was found and has ended since was told to have, just now.
                if let Some(found) = found.take() {
                    self.take_up(found);
                }
            }
            self.lost.store(self.losses.total(), Ordering::Release);
            if !self.hand_over(ends && !is_behind) {
                return Ok(());
            }
            if is_behind {
                continue;
            }
            if ends {
                return Ok(());
            }
            let most = if self.outgoing.is_empty() { IDLE } else { PAUSE };
            let wait = self.unsure.due_ns(self.tick_ns).map_or(most, |due_ns| {
                Duration::from_nanos(due_ns.saturating_sub(since_boot_ns())).min(most)
            });
            self.socket.is_ready_within(wait);
        }
    }

    /// Takes what was told, and begins to read about programs that are run.
    fn hear(&mut self) -> io::Result<()> {
        let before = self.heard.news.len();
        self.heard.is_all = false;
        self.heard.until_ns = since_boot_ns();
        let mut asleep_ns = None;
        let mut has_ends = false;
        while self.heard.news.len() < MESSAGES_MAX {
            match self.socket.receive()? {
                Received::Datagram(bytes) => {
                    let asleep_ns = *asleep_ns.get_or_insert_with(|| self.asleep.now());
                    for message in message::messages(bytes) {
                        has_ends |= matches!(message.what, message::Told::Exited { .. });
                        let at_ns = message.at_ns.saturating_add(asleep_ns);
                        self.heard.add(Message { at_ns, ..message });
                    }
                }
                Received::Foreign => {}
                Received::Overrun => self.losses.has_more = true,
                Received::Nothing => {
                    self.heard.is_all = true;
                    break;
                }
            }
        }
        if !self.heard.is_all
            && let Some(last) = self.heard.news.back()
        {
            self.heard.until_ns = last.message.at_ns;
        }
        self.begin_reading(before);
        // What a process used is told before its end is.
        if has_ends
            && let Some(usages) = &mut self.usages
            && let Err(error) = usages.take()
        {
            tracing::warn!(%error, "ends are told without processor time and memory from now on");
            self.usages = None;
        }
        Ok(())
    }

    /// Begins to read about the programs that are run, the newest first: the others may have ended
    /// already, and some of them are said to have.
    fn begin_reading(&mut self, from: usize) {
        // What runs next under each pid, and where in the news that is; nothing if it has ended.
        let mut next: HashMap<u32, Option<usize>> = HashMap::new();
        let Heard { news, beginnings, .. } = &mut self.heard;
        let has_new_threads = |pid| beginnings.contains_key(&(pid, true));
        for (at, news) in news.iter_mut().enumerate().skip(from).rev() {
            let pid = news.message.pid;
            if news.message.tid != pid {
                continue;
            }
            match news.message.what {
                message::Told::Executed => {
                    next.entry(pid).or_insert_with(|| {
                        let reading = self.table.begin_reading(pid);
                        news.read = reading.map(|reading| (reading, since_boot_ns()));
                        news.read.is_some().then_some(at)
                    });
                }
                // The end of a thread that was the first one until another ran a program is none.
                message::Told::Exited { .. }
                    if has_new_threads(pid) || self.lives.has_threads(pid) => {}
                message::Told::Exited { .. } => {
                    next.entry(pid).or_insert(None);
                }
                message::Told::Forked { .. } => {
                    let program = next.insert(pid, None).flatten();
                    news.runs_after = program.map(|program| program - at);
                }
                _ => {}
            }
        }
    }

    /// Makes a happening of what was heard; says whether that took a look at the process.
    fn look_into(&mut self, News { message, read, runs_after }: News) -> bool {
        if self.losses.count(&message) {
            self.lives.lost_some();
        }
        let passes_on =
            matches!(message.what, message::Told::Forked { .. } | message::Told::Executed);
        if passes_on && message.tid == message.pid {
            self.unsure.doubt(message.pid, message.at_ns);
        }
        let has_read = read.is_none();
        let LookedInto { happening, read_ns, reading } = self.happening(&message, read, runs_after);
        let told = Told { lost: self.losses.total(), at_ns: message.at_ns, happening };
        self.unsure.push(told, read_ns, reading);
        has_read && read_ns.is_some()
    }

    /// Reads the next part of what there is to read; false if there is none.
    fn read_on(&mut self) -> bool {
        let table = &mut self.table;
        self.unsure.read_on(self.heard.until_ns, |reading| {
            let has_more = table.read_on(reading);
            (has_more, since_boot_ns())
        })
    }

    /// What a message says, and what was read about it.
    fn happening(
        &mut self,
        message: &Message,
        read: Option<(Reading, u64)>,
        runs_after: Option<usize>,
    ) -> LookedInto {
        use message::Told;
        let &Message { tid, pid, at_ns, .. } = message;
        let told = |start_ns, precision, what| Happening { pid, start_ns, precision, at_ns, what };
        let tick = KeyPrecision::Tick;
        if tid != pid {
            match message.what {
                Told::Forked { .. } => self.lives.thread_began(pid),
                Told::Exited { .. } => {
                    let exited = self.exited(message);
                    return exited.map(|(start_ns, what)| told(start_ns, tick, what)).into();
                }
                // A thread's users and name are its own.
                _ => {}
            }
            return None.into();
        }
        match message.what {
            Told::Forked { parent } => {
                let (start_ns, precision, facts, read_ns) =
                    self.forked(message, parent, runs_after);
                let start_ns = self.lives.began(pid, start_ns, TICK_NS);
                let facts = Box::new(facts);
                let what = What::Forked { forker: parent, inherits_group: true, facts };
                let happening = Some(told(start_ns, precision, what));
                LookedInto { happening, read_ns, reading: None }
            }
            Told::Executed => {
                self.lives.executed(pid);
                let Some(start_ns) = self.start_of(message) else { return None.into() };
                let happening = told(start_ns, tick, What::Executed(Box::new(unknown())));
                let (reading, read_ns) = read.unzip();
                LookedInto { happening: Some(happening), read_ns, reading }
            }
            Told::Users { real, effective } => {
                let (uid, euid) = (Some(real), Some(effective));
                self.changed(message, Facts { uid, euid, ..unknown() })
            }
            Told::Groups { real, effective } => {
                let (gid, egid) = (Some(real), Some(effective));
                self.changed(message, Facts { gid, egid, ..unknown() })
            }
            Told::Session => self.changed(message, Facts { session: Some(pid), ..unknown() }),
            Told::Named(name) => {
                let start_ns = self.start_of(message);
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let what = What::Renamed(ByteString::new(name));
                start_ns.map(|start_ns| told(start_ns, tick, what)).into()
            }
            Told::Exited { .. } => {
                if self.lives.start_of(pid).is_none() && self.heard.is_newest(pid) {
                    // Its parent may not have noticed yet.
                    let found = self.table.glimpse(pid).filter(|(_, has_ended, _)| *has_ended);
                    self.found(message, found.map(|(ticks, ..)| ticks));
                }
                let exited = self.exited(message);
                exited.map(|(start_ns, what)| told(start_ns, tick, what)).into()
            }
            Told::Answered { .. } | Told::Other => None.into(),
        }
    }

    /// When a process began of which something is told, from whoever knows.
    fn start_of(&mut self, message: &Message) -> Option<u64> {
        let pid = message.pid;
        if let Some(start_ns) = self.lives.start_of(pid) {
            // One that was found since is another.
            return Some(start_ns).filter(|start_ns| *start_ns <= message.at_ns);
        }
        let ticks = self.table.glimpse(pid).map(|(ticks, ..)| ticks);
        self.found(message, ticks)
    }

    /// Takes up a process of which something is told, and that is found to have begun then.
    fn found(&mut self, message: &Message, ticks: Option<u64>) -> Option<u64> {
        let start_ns = ticks?.saturating_mul(TICK_NS);
        if start_ns > message.at_ns {
            return None;
        }
        self.lives.found(message.pid, start_ns);
        Some(start_ns)
    }

    /// When a process began of which that is told, how exactly this is known, what the process
    /// table says of it, and when that was read.
    fn forked(
        &mut self,
        message: &Message,
        parent: u32,
        runs_after: Option<usize>,
    ) -> (u64, KeyPrecision, Facts, Option<u64>) {
        let mut facts = Facts::unknown(Completeness::Complete);
        let mut read_ns = None;
        let is_newest = self.heard.is_newest(message.pid);
        let program = runs_after.and_then(|after| self.heard.news.get_mut(after - 1));
        let ticks = match program.and_then(|program| program.read.as_mut()) {
            Some((reading, read_ns)) => {
                let ticks = self.table.begin_of(reading);
                *read_ns = since_boot_ns();
                ticks
            }
            None if is_newest => {
                let found = self.table.glimpse(message.pid);
                read_ns = Some(since_boot_ns());
                found.map(|(ticks, _, read)| {
                    let (name, session) = (read.name, read.session);
                    facts = Facts { name, session, ..Facts::unknown(Completeness::Complete) };
                    ticks
                })
            }
            None => None,
        };
        facts.ppid = Some(parent);
        let (start_ns, precision) = beginning(message.at_ns, ticks);
        (start_ns, precision, facts, read_ns)
    }

    fn changed(&mut self, message: &Message, facts: Facts) -> LookedInto {
        let &Message { pid, at_ns, .. } = message;
        let Some(start_ns) = self.start_of(message) else { return None.into() };
        let is_newest = self.heard.is_newest(pid);
        let capabilities = is_newest.then(|| self.table.capabilities_of(pid)).flatten();
        let what = What::Changed(Box::new(Facts { capabilities, ..facts }));
        let precision = KeyPrecision::Tick;
        let happening = Some(Happening { pid, start_ns, precision, at_ns, what });
        LookedInto { happening, read_ns: Some(since_boot_ns()), reading: None }
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
        self.unsure.has_ended(pid);
        let exit = Exit {
            run_time_ns: Some(at_ns.saturating_sub(start_ns)),
            cpu_time_ns: usage.and_then(|usage| usage.cpu_ns),
            peak_memory_bytes: usage.and_then(|usage| usage.peak_bytes),
            ..exit_of(wait_status.cast_signed())
        };
        Some((start_ns, What::Exited(exit, Box::new(unknown()))))
    }

    /// Asks the socket how much found no room, if it has said that something did.
    fn count_lost(&mut self) {
        if std::mem::take(&mut self.losses.has_more) {
            let before = self.losses.total();
            self.losses.dropped = self.socket.dropped().unwrap_or(self.losses.dropped);
            if self.losses.total() > before {
                self.lives.lost_some();
            }
        }
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

    /// Hands over what is believed and due, or everything if it ends; false if nobody takes it any
    /// more.
    fn hand_over(&mut self, ends: bool) -> bool {
        let (until_ns, now_ns) = match self.heard.news.front() {
            _ if ends => (u64::MAX, u64::MAX),
            Some(next) => (next.message.at_ns, self.heard.until_ns),
            None => (self.heard.until_ns, self.heard.until_ns),
        };
        loop {
            let told = self.unsure.take(until_ns, now_ns, self.tick_ns);
            match self.outgoing.back_mut() {
                _ if told.is_empty() => break,
                Some(last) if last.len() + told.len() <= THINGS_MAX => last.extend(told),
                _ => self.outgoing.push_back(told),
            }
        }
        while let Some(told) = self.outgoing.pop_front() {
            // While this waits for the teller, processes end that it has not looked at.
            let is_full = ends || self.outgoing.len() >= Tellings::CHUNKS;
            let sent = if is_full {
                self.tellings.send(told).map_err(|error| TrySendError::Disconnected(error.0))
            } else {
                self.tellings.try_send(told)
            };
            match sent {
                Ok(()) => {}
                Err(TrySendError::Full(told)) => {
                    self.outgoing.push_front(told);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        if self.heard.is_looked_into() && self.outgoing.is_empty() {
            let handed_over_ns = self.unsure.handed_over_ns(self.heard.until_ns);
            self.drained.fetch_max(handed_over_ns, Ordering::Release);
        }
        true
    }
}

impl Heard {
    fn add(&mut self, message: Message) {
        if let Some(beginning) = message.beginning() {
            *self.beginnings.entry(beginning).or_default() += 1;
        }
        self.news.push_back(News { message, read: None, runs_after: None });
    }

    fn next(&mut self) -> Option<News> {
        let news = self.news.pop_front()?;
        if let Some(beginning) = news.message.beginning()
            && let Some(beginnings) = self.beginnings.get_mut(&beginning)
        {
            *beginnings -= 1;
            if *beginnings == 0 {
                self.beginnings.remove(&beginning);
            }
        }
        Some(news)
    }

    /// Whether the pid has not passed on, as far as was heard, since what is looked into now.
    fn is_newest(&self, pid: u32) -> bool {
        !self.beginnings.contains_key(&(pid, false))
    }

    /// Whether all that has happened was heard and looked into.
    fn is_looked_into(&self) -> bool {
        self.is_all && self.news.is_empty()
    }
}

impl Message {
    /// The process that begins with it, and whether that is a further thread.
    fn beginning(&self) -> Option<(u32, bool)> {
        let begins = matches!(self.what, message::Told::Forked { .. });
        begins.then_some((self.pid, self.tid != self.pid))
    }
}

impl From<Option<Happening>> for LookedInto {
    fn from(happening: Option<Happening>) -> Self {
        Self { happening, read_ns: None, reading: None }
    }
}

/// When a process began that was told to have at a moment: the moment, and the tick that the process
/// table says, if that can be this process's. Without, the tick may be the one before.
pub(super) fn beginning(at_ns: u64, ticks: Option<u64>) -> (u64, KeyPrecision) {
    const SECOND_TICKS: u64 = 100;
    let at_ticks = at_ns / TICK_NS;
    match ticks.filter(|ticks| (at_ticks.saturating_sub(SECOND_TICKS)..=at_ticks).contains(ticks)) {
        Some(ticks) if ticks == at_ticks => (at_ns, KeyPrecision::Tick),
        Some(ticks) => ((ticks + 1) * TICK_NS - 1, KeyPrecision::Tick),
        None if at_ns % TICK_NS >= FORK_NS => (at_ns, KeyPrecision::Tick),
        None => (at_ns, KeyPrecision::Second),
    }
}

fn unknown() -> Facts {
    Facts::unknown(Completeness::EnrichedLate)
}
