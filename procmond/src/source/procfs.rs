//! The process table of Linux, read from `/proc`.
//!
//! `sysinfo` would do for a list of processes, but not for telling what became of them: it knows
//! start times to the second only, keeps the name a process had when it was first seen, and drops
//! empty arguments and the mark of a deleted executable.
//!
//! A known process costs one short read at each look, of how long it has run (`schedstat`): one
//! that has not run since has not changed itself, and has not ended. Of one that has run, `stat`
//! and `status` are read; the rest is read once, and again when the name, the memory layout (`exec`
//! makes a new one), the session, the users, the groups or the capabilities have changed. What
//! others can change about a process that does not run, its control group and the name of its first
//! thread, is looked at every [`CHECK_SECONDS`], at each look for a part of the processes.
//!
//! Between two reads a pid may pass to another process: the start time is read again after the last
//! one, and if it differs nothing of what was read in between is believed.
//!
//! A process that is about to run a program looks like its parent for a moment: between `fork` and
//! `exec` it has the parent's name, program and arguments. One that is found so in its first tenth
//! of a second is looked at again before the look ends, so that it gives one start with what it
//! is, not a start as its parent and a change.

mod again;
mod details;
mod files;
mod lives;
mod reading;
mod stat;

use std::collections::HashMap;
use std::fs;
use std::hash::BuildHasher;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Capabilities, Completeness, Exit, KeyPrecision, SourceName};
use daemoneye_lib::redaction::{RAW_ARGV_BYTES_MAX, RawArgv, RedactedArgv};
use daemoneye_lib::stream::wall_clock_ns;
use uuid::Uuid;

use super::clock::{since_boot_ns, wall_offset_ns};
use super::poll::Scan;
use super::{End, Ends, Facts, Observation, ObservedProcess, ProcessTable, SourceError};
use files::Files;
use lives::{Life, Lives, Ran, Reaped};
pub(super) use reading::Reading;
use rustix::fs::RawDir;
pub(super) use stat::TICK_NS;
use stat::{Ids, Stat};

/// A process that still looks like its parent at this age does so on purpose, in 10 ms units.
const FORK_CENTIS: u64 = 10;
/// How often such processes are looked at again, and how long after each other.
const FORK_LOOKS: u32 = 25;
const FORK_PAUSE: Duration = Duration::from_millis(2);
/// Within so many seconds every process is looked at whether it has run or not.
const CHECK_SECONDS: u64 = 30;
/// Names of processes are listed in parts of so many bytes.
const LIST_BYTES: usize = 32 << 10;

/// The process table below one mount of `/proc`.
pub(super) struct Procfs {
    files: Files,
    /// Lets a moment pass; for tests to use that moment.
    pause: Box<dyn FnMut() + Send>,
    boot_id: Uuid,
    known: HashMap<u32, Known>,
    /// Holds those that are known, where there is room.
    lives: Option<Lives>,
    /// Ends of held processes that are to be told.
    ends: Vec<End>,
    /// The number of the look, to find out who is gone.
    round: u64,
    /// When the last look began and when this one did, in seconds since boot.
    seconds: [u64; 2],
    /// This look has found something that was not so before.
    has_news: bool,
    /// When the first look began, in 10 ms units since boot.
    began_ticks: u64,
    /// Processes and threads that were seen and began after that.
    began: u64,
}

/// What a process looked like when its facts were last told.
struct Known {
    start_ticks: u64,
    /// `None` if what was read did not reach anybody.
    marks: Option<Marks>,
    /// Its end has been told; of one that is not held, with each table that it is in.
    has_ended: bool,
    /// When it ended, in nanoseconds since boot, if it did and how is not known yet.
    ended_ns: Option<u64>,
    life: Option<Life>,
    threads: u64,
    /// How long it had run before `marks` were read; `None` if that does not say whether it has
    /// changed.
    ran: Ran,
    round: u64,
}

/// What changes when facts have changed.
#[derive(PartialEq, Eq)]
struct Marks {
    name: Vec<u8>,
    layout: [u64; 3],
    session: u32,
    ids: Option<Ids>,
    /// What stands for the content of its `cgroup`.
    group: Option<u64>,
}

impl Procfs {
    /// A process's control group, and the container it names; `None` if it is gone.
    pub(super) fn cgroup_of(&mut self, pid: u32) -> Option<(ByteString, Option<Arc<str>>)> {
        details::cgroup(self.files.read(pid, "cgroup").ok()??)
    }

    /// The arguments of the process that has this pid and began in this nanosecond since boot, if
    /// they begin so: another program of the same process has others.
    pub(super) fn argv_of(
        &mut self,
        pid: u32,
        start_ns: u64,
        beginning: &[u8],
    ) -> Option<RedactedArgv> {
        self.files.fill(pid, "cmdline", RAW_ARGV_BYTES_MAX + 1).ok()?;
        let bytes = self.files.content().to_vec();
        let stat = self.stat(pid).ok()??;
        let is_it = stat.start_ticks == start_ns / stat::TICK_NS && bytes.starts_with(beginning);
        is_it.then(|| RawArgv::from_cmdline(bytes).redact())
    }

    /// What there is to know of the process that has this pid and began in this nanosecond since
    /// boot; `None` if it is gone.
    pub(super) fn facts_of(
        &mut self,
        pid: u32,
        start_ns: u64,
    ) -> Result<Option<Facts>, SourceError> {
        let is_it = |stat: &Stat| stat.start_ticks == start_ns / stat::TICK_NS && !stat.has_ended;
        let stat = match self.stat(pid) {
            Err(error) if is_refused(&error) => None,
            stat => stat?,
        };
        let Some(stat) = stat.filter(is_it) else { return Ok(None) };
        let ids = self.ids(pid)?;
        let facts = details::read(&mut self.files, pid, &stat, ids)
            .map_err(|(path, source)| unreadable(&path, source))?;
        // What was read may be another's by now.
        Ok(self.stat(pid)?.filter(is_it).map(|_| facts))
    }

    /// Begins to read a process as it is right now: its arguments, which go first when it ends.
    /// `None` if it is gone, or cannot be looked at.
    pub(super) fn begin_reading(&mut self, pid: u32) -> Option<Reading> {
        Reading::begin(&mut self.files, pid)
    }

    /// Reads the next part of it; false when there is no more.
    pub(super) fn read_on(&mut self, reading: &mut Reading) -> bool {
        reading.read_on(&mut self.files)
    }

    /// When the process that is read began, in 10 ms units since boot, if it is not gone.
    pub(super) fn begin_of(&mut self, reading: &mut Reading) -> Option<u64> {
        reading.read_entry(&mut self.files);
        reading.ticks()
    }

    /// A process as it is right now, and when it began, in 10 ms units since boot: what goes first
    /// when it ends is read first. `None` if it is gone, or cannot be looked at.
    pub(super) fn at_once(&mut self, pid: u32) -> Option<(u64, Facts)> {
        let mut reading = self.begin_reading(pid)?;
        while self.read_on(&mut reading) {}
        Some((reading.ticks()?, reading.into_facts()))
    }

    /// The same with what the list itself says, and whether it has ended; that takes least.
    pub(super) fn glimpse(&mut self, pid: u32) -> Option<(u64, bool, Facts)> {
        let stat = self.stat(pid).ok()??;
        Some((stat.start_ticks, stat.has_ended, first_sight(&stat, None)))
    }

    /// Its effective capabilities.
    pub(super) fn capabilities_of(&mut self, pid: u32) -> Option<Capabilities> {
        self.ids(pid).ok()??.capabilities
    }

    pub(super) fn boot_id(&self) -> Uuid {
        self.boot_id
    }

    pub(super) fn open(root: PathBuf) -> Result<Self, SourceError> {
        let path = root.join("sys/kernel/random/boot_id");
        let text = fs::read_to_string(&path).map_err(|source| unreadable(&path, source))?;
        let boot_id = text
            .trim()
            .parse()
            .map_err(|_| SourceError::NotAProcessTable { path: path.clone() })?;
        Ok(Self {
            files: Files::open(root)?,
            pause: Box::new(|| thread::sleep(FORK_PAUSE)),
            boot_id,
            known: HashMap::new(),
            lives: None,
            ends: Vec::new(),
            round: 0,
            seconds: [0; 2],
            has_news: false,
            began_ticks: 0,
            began: 0,
        })
    }

    /// To be looked at again and again.
    pub(super) fn again_and_again(self) -> again::Again {
        again::Again::new(self)
    }

    fn uptime_ns(&mut self) -> Result<u64, SourceError> {
        let uptime_ns = self.files.read_own("uptime")?.and_then(stat::uptime_ns);
        uptime_ns.ok_or_else(|| self.files.strange())
    }

    /// Whether it is this process's turn to be looked at though it has not run.
    fn is_due(&self, pid: u32) -> bool {
        let turns = |second: u64| (second + u64::from(pid) % CHECK_SECONDS) / CHECK_SECONDS;
        let [last, now] = self.seconds;
        turns(last) != turns(now)
    }

    /// One process; `None` if it is gone.
    fn look_at(&mut self, pid: u32) -> Result<Option<ObservedProcess>, SourceError> {
        let (round, is_due) = (self.round, self.is_due(pid));
        let held = self.known.get(&pid).and_then(|known| known.life.as_ref()).map(Life::ran);
        if let Some(Err(Reaped)) = held {
            if let Some(known) = self.known.get(&pid).filter(|known| known.round == round) {
                // This very look tells of it, and its end follows.
                return Ok(Some(known.unchanged(pid)));
            }
            self.give_up(pid);
        } else if self.known.get(&pid).is_some_and(|known| known.ended_ns.is_some()) {
            self.ended(pid, since_boot_ns(), true);
        }
        let lives = self.lives.as_ref().filter(|_| !self.known.contains_key(&pid));
        let life = lives.and_then(|lives| lives.hold(&mut self.files, pid));
        // First, so that whatever changes after this shows the next time.
        let ran = match held {
            Some(Ok(ran)) => ran,
            _ => self.ran(pid)?,
        };
        if let Some(known) = self.known.get_mut(&pid)
            && (known.is_over() || ran.is_some() && known.ran == ran && !is_due)
        {
            known.round = round;
            return Ok((!known.is_over()).then(|| known.unchanged(pid)));
        }
        let stat = match self.stat(pid) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(self.awaited(pid)),
            Err(error) if is_refused(&error) => return Ok(self.hidden(pid)),
            Err(error) => return Err(error),
        };
        if self.known.get(&pid).is_some_and(|known| known.start_ticks != stat.start_ticks) {
            // Another has its pid.
            self.give_up(pid);
            return self.look_at(pid);
        }
        let ids = self.ids(pid)?;
        if !self.has_pid(pid, life.as_ref()) {
            // Of one that is new, nothing is known that is certainly its own.
            return Ok(self.awaited(pid));
        }
        let group = match self.known.get(&pid).and_then(|known| known.marks.as_ref()) {
            Some(marks) if !is_due => marks.group,
            _ => self.group(pid)?,
        };
        let (name, layout, session) = (stat.name.clone(), stat.layout, stat.session);
        let marks = Marks { name, layout, session, ids, group };
        let mut observed = ObservedProcess {
            pid,
            start_centis: stat.start_ticks,
            start_ns: None,
            facts: None,
            ended: stat.has_ended.then(|| exit(&stat)),
        };
        if let Some(known) = self.known.get_mut(&pid) {
            known.round = round;
            known.ran = None;
            self.began += stat.threads.saturating_sub(known.threads);
            known.threads = stat.threads;
            if known.life.is_some() {
                // Its end is told when it comes.
                observed.ended = None;
            } else {
                self.has_news |= stat.has_ended && !known.has_ended;
                known.has_ended = stat.has_ended;
            }
            // Of one that has ended or is about to, nothing can be read any more that was not
            // known better.
            if let Some(told) = &known.marks
                && (stat.has_ended || stat.is_leaving(told.layout))
            {
                return Ok(Some(observed));
            }
            if known.marks.as_ref() == Some(&marks) {
                known.ran = ran;
                return Ok(Some(observed));
            }
        }
        let mut facts = details::read(&mut self.files, pid, &stat, ids)
            .map_err(|(path, source)| unreadable(&path, source))?;
        let mut ran = ran.filter(|_| !stat.has_ended);
        let after = self.stat(pid)?.filter(|after| after.start_ticks == stat.start_ticks);
        match after.filter(|_| self.has_pid(pid, life.as_ref())) {
            Some(after) if after.has_ended || after.is_leaving(stat.layout) => {
                // Its arguments may have gone while they were read.
                if self.known.get(&pid).is_some_and(|known| known.round == round) {
                    return Ok(Some(observed));
                }
                if facts.argv.as_ref().is_none_or(|argv| argv.iter().next().is_none()) {
                    facts = first_sight(&stat, ids);
                }
                ran = None;
            }
            Some(_) => {}
            None => {
                // It ended meanwhile, and what was read may be another's with the same pid.
                facts = first_sight(&stat, ids);
                observed.ended = Some(Exit::default());
                ran = None;
            }
        }
        let before = self.known.remove(&pid);
        // One of the same tick may have been counted by the kernel before we began.
        if before.is_none() && stat.start_ticks > self.began_ticks {
            self.began += stat.threads.max(1);
        }
        let life = life.or_else(|| before?.life);
        // The end of one that is held is told when it comes.
        observed.ended = observed.ended.filter(|_| life.is_none());
        observed.facts = Some(Box::new(facts));
        self.has_news = true;
        let known = Known {
            start_ticks: stat.start_ticks,
            marks: Some(marks),
            has_ended: observed.ended.is_some(),
            ended_ns: None,
            life,
            threads: stat.threads,
            ran,
            round,
        };
        self.known.insert(pid, known);
        Ok(Some(observed))
    }

    /// Whether what stands under the pid is still the life that is held; nothing says that it is
    /// not, of one that is not held.
    fn has_pid(&self, pid: u32, life: Option<&Life>) -> bool {
        life.or_else(|| self.known.get(&pid)?.life.as_ref()).is_none_or(Life::has_pid)
    }

    /// One that is held and has gone: it is there until its end is told.
    fn awaited(&mut self, pid: u32) -> Option<ObservedProcess> {
        let known = self.known.get_mut(&pid).filter(|known| known.life.is_some())?;
        known.round = self.round;
        Some(known.unchanged(pid))
    }

    /// Forgets one whose pid is another's, or free; if it is held, with its end.
    fn give_up(&mut self, pid: u32) {
        self.ended(pid, since_boot_ns(), true);
        self.has_news |= self.known.remove(&pid).is_some_and(|known| known.life.is_none());
    }

    /// Takes up the end of a process that is held. How it ended is known at once to those who may
    /// trace it, and to others when it is reaped: that is waited for, until the next look at most.
    fn ended(&mut self, pid: u32, at_ns: u64, is_final: bool) {
        let Some(known) = self.known.get(&pid) else { return };
        let (start_ticks, has_ended) = (known.start_ticks, known.has_ended);
        // Somebody else may have the pid since this was told.
        if has_ended || !known.life.as_ref().is_some_and(Life::has_ended) {
            return;
        }
        // What stands under the pid is its own as long as it is not reaped.
        let stat = self.stat(pid).ok().flatten().filter(|stat| stat.has_ended);
        let Some(known) = self.known.get_mut(&pid) else { return };
        let Some(life) = &known.life else { return };
        let has_pid = life.has_pid();
        let mut how = stat.filter(|_| has_pid).map(|stat| exit(&stat)).unwrap_or_default();
        if !has_pid && let Some(told) = life.exit() {
            how = Exit { cpu_time_ns: how.cpu_time_ns, ..told };
        }
        let at_ns = *known.ended_ns.get_or_insert(at_ns);
        let is_known = how.exit_code.is_some() || how.signal.is_some();
        if is_known || is_final || !has_pid {
            known.has_ended = true;
            self.ends.push(End { pid, start_centis: start_ticks, at_ns, exit: how });
        } else if let Some(lives) = &self.lives {
            lives.tell_when_reaped(pid, life);
        }
    }

    fn take_ends(&mut self) -> Option<Observation> {
        let ends = std::mem::take(&mut self.ends);
        let (wall_offset_ns, source, boot_id) = (wall_offset_ns(), SourceName::Poll, self.boot_id);
        (!ends.is_empty())
            .then(|| Observation::Ended(Ends { source, boot_id, wall_offset_ns, ends }))
    }

    /// Looks again at new processes that still look like their parents, until they do not.
    fn settle(
        &mut self,
        processes: &mut [ObservedProcess],
        uptime_centis: u64,
    ) -> Result<(), SourceError> {
        let mut forks: Vec<usize> = (0..processes.len())
            .filter(|at| {
                let process = &processes[*at];
                process.start_centis + FORK_CENTIS >= uptime_centis && self.is_fork(process)
            })
            .collect();
        for _ in 0..FORK_LOOKS {
            if forks.is_empty() {
                break;
            }
            (self.pause)();
            for at in &forks {
                let before = &mut processes[*at];
                match self.look_at(before.pid)? {
                    Some(now) if now.start_centis == before.start_centis => {
                        let facts = now.facts.or_else(|| before.facts.take());
                        *before = ObservedProcess { facts, ..now };
                    }
                    // Another with its pid is told with the next look.
                    _ => before.ended = Some(Exit::default()),
                }
            }
            forks.retain(|at| self.is_fork(&processes[*at]));
        }
        Ok(())
    }

    /// Whether it is alive, told for the first time or anew, and has its parent's memory layout.
    fn is_fork(&self, process: &ObservedProcess) -> bool {
        let (Some(facts), None) = (&process.facts, process.ended) else { return false };
        let layout = |pid: u32| Some(self.known.get(&pid)?.marks.as_ref()?.layout);
        let own = layout(process.pid);
        own.is_some_and(|layout| layout[2] != 0) && own == facts.ppid.and_then(layout)
    }

    /// One that is listed and may not be looked at (`hidepid`): what is known of it stays.
    fn hidden(&mut self, pid: u32) -> Option<ObservedProcess> {
        let known = self.known.get_mut(&pid)?;
        known.round = self.round;
        Some(known.unchanged(pid))
    }

    /// How long it has run, waited to run, and how often: nothing of that stays as it was when it
    /// runs. `None` if it is gone, or if the kernel does not count.
    fn ran(&mut self, pid: u32) -> Result<Ran, SourceError> {
        Ok(self.files.read_if_allowed(pid, "schedstat")?.and_then(stat::parse_ran))
    }

    fn group(&mut self, pid: u32) -> Result<Option<u64>, SourceError> {
        let hasher = self.known.hasher();
        Ok(self.files.read_if_allowed(pid, "cgroup")?.map(|bytes| hasher.hash_one(bytes)))
    }

    fn stat(&mut self, pid: u32) -> Result<Option<Stat>, SourceError> {
        // Gone between opening and reading leaves nothing.
        match self.files.read(pid, "stat")?.filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => match stat::parse(bytes) {
                Some(stat) => Ok(Some(stat)),
                None => Err(self.files.strange()),
            },
            None => Ok(None),
        }
    }

    fn ids(&mut self, pid: u32) -> Result<Option<Ids>, SourceError> {
        Ok(self.files.read_if_allowed(pid, "status")?.and_then(stat::parse_ids))
    }
}

/// What to look for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Among {
    /// Every process there is.
    All,
    /// Those that were there the last time; no other has begun.
    Known,
}

impl Procfs {
    /// Looks; afterwards `has_news` says whether anything is not as it was.
    fn look_among(&mut self, among: Among) -> Result<ProcessTable, SourceError> {
        let began = self.began;
        let looked = self.look_through(among);
        if looked.is_err() {
            // Those that it found count as unseen, too: that is the more careful account.
            self.began = began;
            // What was found so far reaches nobody, and is to be told with the next look.
            for known in self.known.values_mut() {
                known.marks = None;
                known.ran = None;
                known.has_ended &= known.life.is_some();
            }
        }
        looked
    }

    fn look_through(&mut self, among: Among) -> Result<ProcessTable, SourceError> {
        self.round += 1;
        self.has_news = false;
        let time_ns = wall_clock_ns();
        let uptime_ns = self.uptime_ns()?;
        if self.began_ticks == 0 {
            self.began_ticks = uptime_ns / stat::TICK_NS;
        }
        self.seconds = [self.seconds[1], uptime_ns / 1_000_000_000];
        let mut processes = Vec::with_capacity(self.known.len() + 16);
        match among {
            Among::All => {
                let list = self.files.list()?;
                let mut buffer = [MaybeUninit::uninit(); LIST_BYTES];
                let mut entries = RawDir::new(list, &mut buffer);
                while let Some(entry) = entries.next() {
                    let entry = entry.map_err(|error| self.files.unreadable_root(error))?;
                    let pid = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
                    if let Some(pid) = pid {
                        processes.extend(self.look_at(pid)?);
                    }
                }
            }
            Among::Known => {
                let pids: Vec<u32> = self.known.keys().copied().collect();
                for pid in pids {
                    processes.extend(self.look_at(pid)?);
                }
            }
        }
        self.settle(&mut processes, uptime_ns / stat::TICK_NS)?;
        let round = self.round;
        let were_known = self.known.len();
        self.known.retain(|_, known| known.round == round);
        self.has_news |= self.known.len() < were_known;
        Ok(ProcessTable {
            source: SourceName::Poll,
            is_told: false,
            boot_id: self.boot_id,
            precision: KeyPrecision::Tick,
            time_ns,
            uptime_ns,
            processes,
        })
    }
}

impl Known {
    /// It is held, and its end has been told: what is left of it waits to be reaped.
    fn is_over(&self) -> bool {
        self.has_ended && self.life.is_some()
    }

    fn unchanged(&self, pid: u32) -> ObservedProcess {
        ObservedProcess {
            pid,
            start_centis: self.start_ticks,
            start_ns: None,
            facts: None,
            ended: None,
        }
    }
}

impl Scan for Procfs {
    fn scan(&mut self) -> Result<ProcessTable, SourceError> {
        self.look_among(Among::All)
    }
}

/// What the list itself says, for a process that was gone before more could be read.
fn first_sight(stat: &Stat, ids: Option<Ids>) -> Facts {
    let mut facts = Facts::unknown(Completeness::EnrichedLate);
    facts.ppid = Some(stat.ppid);
    facts.name = Some(ByteString::new(stat.name.clone()));
    facts.session = Some(stat.session);
    if let Some(ids) = ids {
        facts.uid = Some(ids.uid);
        facts.euid = Some(ids.euid);
        facts.gid = Some(ids.gid);
        facts.egid = Some(ids.egid);
        facts.capabilities = ids.capabilities;
    }
    facts
}

/// How it ended, as its last entry tells: its status only to those who may trace it.
fn exit(stat: &Stat) -> Exit {
    Exit {
        cpu_time_ns: Some(stat.cpu_ticks.saturating_mul(stat::TICK_NS)),
        ..stat.wait_status.map_or_else(Exit::default, super::exit_of)
    }
}

/// Whether an error says that the process is not there any more.
fn is_gone(error: &io::Error) -> bool {
    // ESRCH, which std has no kind for.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3)
}

/// Whether we may not look, as under `hidepid`.
fn is_refused(error: &SourceError) -> bool {
    matches!(error, SourceError::Unreadable { source, .. }
        if source.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether an error is about us and not about what was read: ENOMEM, ENFILE, EMFILE.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(12 | 23 | 24))
}

fn unreadable(path: &Path, source: io::Error) -> SourceError {
    let advice = if is_exhaustion(&source) {
        "raise the limits of open files and memory"
    } else {
        "is /proc mounted, and may this user read it?"
    };
    SourceError::Unreadable { path: path.to_owned(), source, advice }
}

#[cfg(test)]
mod tests;
