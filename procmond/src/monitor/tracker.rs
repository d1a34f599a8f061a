//! The process table in memory: turns what a source observes into events.
//!
//! Pure: no clock, no I/O. A process is known by its pid; the same pid with another start time, or
//! there again after it ended, is another process. What one run leaves behind, as an image of the
//! table and the events logged after it, the next takes up, and then reports what happened in
//! between: ends as inferred, beginnings as starts.

mod ancestry;
mod change;
mod happened;
mod image;

use std::collections::HashMap;

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::models::process::{
    Exit, KeyPrecision, ProcessEvent, ProcessEventKind, ProcessKey, SourceName,
};
use uuid::Uuid;

use crate::source::{
    End, Ends, Facts, Missing, Observation, ObservedProcess, Overrun, ProcessTable,
};
pub use ancestry::{ANCESTORS_MAX, Ancestor, Departed};
pub use image::{ImageError, TableImage};

/// Start times in keys are kept in units of this many nanoseconds.
pub(super) const CENTI_NS: u64 = 10_000_000;

/// A life that ended can be taken for a later one of the same pid only if both began this close
/// together, in 10 ms units: two seconds, for sources that know only seconds.
const NEAR_CENTIS: u64 = 200;

/// How long a life that was told to end is remembered for looks that began before and last, in
/// 10 ms units.
const LOOK_CENTIS: u64 = 1000;

/// Ended lives kept before those that cannot be mistaken any more are looked for.
const ENDED_MIN: usize = 4096;

/// The process table.
#[derive(Debug, Default)]
pub struct Tracker {
    /// Boxed: a map has room for nearly twice what is in it.
    processes: HashMap<u32, Box<Entry>>,
    ended: EndedLives,
    past: Past,
    /// The source has changed since the last look: what the next one shows was missed.
    was_blind: bool,
    /// Up to when the source before this one has told of everything, in nanoseconds since boot.
    told_until_ns: u64,
}

/// What is known of the time before the next observation.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Past {
    /// Nothing: processes that are there were there before.
    #[default]
    Unknown,
    /// What an earlier run left, and the moment up to which it saw.
    EarlierRun { boot_id: Uuid, uptime_ns: u64 },
    /// This run has looked, the last time at this moment.
    ThisRun { boot_id: Uuid, uptime_ns: u64 },
}

/// A process and what was last told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    /// Always a start event, with the newest facts: stops and changes are told from it.
    start: ProcessEvent,
    /// When it began, in nanoseconds since boot, where a source knew.
    start_ns: Option<u64>,
    /// When something was last told of it as it happened, in nanoseconds since boot.
    told_ns: u64,
    /// Its stop has been told, or was never ours to tell; the system still lists it.
    is_over: bool,
}

/// Lives that ended a moment ago, by pid.
#[derive(Debug, Default)]
struct EndedLives {
    lives: HashMap<u32, Ended>,
    prune_at: usize,
}

/// A life that ended.
#[derive(Clone, Copy, Debug)]
struct Ended {
    key: ProcessKey,
    /// When it began, in nanoseconds since boot, where a source knew.
    start_ns: Option<u64>,
    /// When it ended, in nanoseconds since boot, or a little later; if this run has seen that.
    at_ns: Option<u64>,
    /// A look that comes after that was told may have begun before it, and show the process still.
    /// What shows after an end that a look has found is another one.
    is_told: bool,
}

impl Ended {
    /// One whose end an earlier run has told.
    const fn in_earlier_run(key: ProcessKey) -> Self {
        Self { key, start_ns: None, at_ns: None, is_told: false }
    }
}

/// The moment and the means of an observation.
#[derive(Clone, Copy)]
struct Look {
    boot_id: Uuid,
    precision: KeyPrecision,
    source: SourceName,
    time_ns: i64,
    uptime_ns: u64,
    /// What it shows happened at some time since it was last known.
    is_inferred: bool,
}

/// A pid, and when the process that has it began.
#[derive(Clone, Copy)]
struct Birth {
    pid: u32,
    /// In 10 ms units since boot.
    start_centis: u64,
    /// In nanoseconds, where a source knew.
    start_ns: Option<u64>,
}

impl Birth {
    fn of(process: &ObservedProcess) -> Self {
        let ObservedProcess { pid, start_centis, start_ns, .. } = *process;
        Self { pid, start_centis, start_ns }
    }

    fn told(pid: u32, start_ns: u64) -> Self {
        Self { pid, start_centis: start_ns / CENTI_NS, start_ns: Some(start_ns) }
    }

    /// Whether it is that of a process with this key that began then.
    fn is_of(self, key: &ProcessKey, start_ns: Option<u64>, look: Look) -> bool {
        (key.boot_id, key.pid, key.start_centis) == (look.boot_id, self.pid, self.start_centis)
            && self.start_ns.zip(start_ns).is_none_or(|(one, other)| one == other)
    }

    fn ns(self) -> u64 {
        self.start_ns.unwrap_or(self.start_centis.saturating_mul(CENTI_NS))
    }
}

impl Tracker {
    /// A table that knows nothing: the first observation gives starts marked `existing`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A table as an earlier run left it.
    #[must_use]
    pub fn restore(image: &TableImage) -> Self {
        let mut tracker = Self::new();
        if let Some((boot_id, uptime_ns)) = image.seen_until {
            tracker.past = Past::EarlierRun { boot_id, uptime_ns };
        }
        for start in &image.starts {
            tracker.insert(start.clone());
        }
        for key in &image.ended {
            tracker.ended.remember(Ended::in_earlier_run(*key));
        }
        tracker
    }

    /// The table for a later run, which finds anew what is alive and left out of it. The lives that
    /// are over are not in it.
    #[must_use]
    pub fn encode(&self, is_left_out: impl Fn(ProcessKey) -> bool) -> TableImage {
        let seen_until = match self.past {
            Past::Unknown => None,
            Past::EarlierRun { boot_id, uptime_ns } | Past::ThisRun { boot_id, uptime_ns } => {
                Some((boot_id, uptime_ns))
            }
        };
        let live = self.processes().filter(|start| !is_left_out(start.key));
        TableImage {
            seen_until,
            starts: live.cloned().collect(),
            ended: self.ended.lives.values().map(|ended| ended.key).collect(),
        }
    }

    /// Takes up an event that an earlier run had logged. Call it in the log's order.
    pub fn apply_logged(&mut self, event: &Event) {
        let Event::Process(event) = event else { return };
        if let Some(seen_ns) = event.monotonic_ns {
            let boot_id = event.key.boot_id;
            let before = match self.past {
                Past::EarlierRun { boot_id: same, uptime_ns } if same == boot_id => uptime_ns,
                _ => 0,
            };
            // A stop inferred after a reboot carries the key of the boot before, and so says
            // nothing about when that one was last seen.
            if !event.inferred {
                self.past = Past::EarlierRun { boot_id, uptime_ns: before.max(seen_ns) };
            }
        }
        match &event.kind {
            ProcessEventKind::Start { .. } => {
                self.insert((**event).clone());
                // Under pressure it is told without.
                if event.parent_key.is_none() {
                    let parent_key = self.parent_key(event.pid());
                    if let Some(entry) = self.processes.get_mut(&event.pid()) {
                        entry.start.parent_key = parent_key;
                    }
                }
            }
            ProcessEventKind::Modify { .. } => {
                let mut start = (**event).clone();
                start.kind = ProcessEventKind::Start { existing: false };
                let known = self.processes.get(&event.pid()).map(|entry| &entry.start);
                if let Some(known) = known.filter(|known| known.key == start.key) {
                    start.parent_key = start.parent_key.or(known.parent_key);
                }
                self.insert(start);
            }
            ProcessEventKind::Stop(_) => {
                let pid = event.pid();
                if self.processes.get(&pid).is_some_and(|entry| entry.start.key == event.key) {
                    self.processes.remove(&pid);
                }
                self.ended.remember(Ended::in_earlier_run(event.key));
            }
        }
    }

    /// To be called when all that a source has told was observed and another takes its place, which
    /// has another clock for when processes began. `overlaps`: it was in place before the first one
    /// ended, and tells again what that has told.
    pub fn change_source(&mut self, overlaps: bool) {
        self.told_until_ns = match self.past {
            Past::ThisRun { uptime_ns, .. } if overlaps => uptime_ns,
            _ => 0,
        };
        for entry in self.processes.values_mut() {
            entry.start_ns = None;
            // Otherwise whatever it sees is newer, even if its clock has only 10 ms.
            entry.told_ns = if overlaps { entry.told_ns } else { 0 };
        }
        for ended in self.ended.lives.values_mut() {
            ended.start_ns = None;
            ended.at_ns = ended.at_ns.filter(|_| overlaps);
            // The other one's first look may have begun before it.
            ended.is_told = true;
        }
        self.was_blind = true;
    }

    /// Up to which moment everything was seen, in nanoseconds since boot.
    #[must_use]
    pub(super) const fn seen_until_ns(&self) -> u64 {
        match self.past {
            Past::Unknown => 0,
            Past::EarlierRun { uptime_ns, .. } | Past::ThisRun { uptime_ns, .. } => uptime_ns,
        }
    }

    /// How many processes are alive, as far as is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.processes().count()
    }

    /// The newest that is known of each process that is alive, as a start event.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessEvent> {
        self.processes.values().filter(|entry| !entry.is_over).map(|entry| &entry.start)
    }

    /// Whether none is known to be alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest that is known of the process with this pid, as a start event.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<&ProcessEvent> {
        self.processes.get(&pid).map(|entry| &entry.start)
    }

    /// What an observation means. Processes that are gone come first, so that the next life of a
    /// pid follows the one before; then starts, the oldest first, so that parents come before
    /// their children; then changes; then the ends of processes that are still listed.
    pub fn observe(&mut self, observation: Observation) -> Vec<Event> {
        match observation {
            Observation::Snapshot(table) => self.compare(table),
            Observation::Seen(seen) => self.happened(seen),
            Observation::Unchanged { boot_id, uptime_ns, .. } => {
                self.past = Past::ThisRun { boot_id, uptime_ns };
                Vec::new()
            }
            Observation::Ended(ends) => self.ended(&ends),
            Observation::Overrun(overrun) => vec![overrun_gap(overrun).into()],
            Observation::Unseen(unseen) => vec![unseen_gap(unseen).into()],
            Observation::Failed(_) => Vec::new(),
        }
    }

    fn compare(&mut self, table: ProcessTable) -> Vec<Event> {
        let past = self.past;
        let was_blind = std::mem::take(&mut self.was_blind);
        // The source before this one saw longer than this look began, and knows better.
        if was_blind && table.uptime_ns <= self.told_until_ns {
            return Vec::new();
        }
        // What only this look shows was missed.
        let is_missed = table.is_told || was_blind;
        let look = Look {
            boot_id: table.boot_id,
            precision: table.precision,
            source: table.source,
            time_ns: table.time_ns,
            uptime_ns: table.uptime_ns,
            is_inferred: match past {
                Past::Unknown => false,
                Past::EarlierRun { .. } => true,
                Past::ThisRun { .. } => is_missed,
            },
        };
        let mut observed = table.processes;
        observed
            .sort_unstable_by_key(|process| (process.start_centis, process.start_ns, process.pid));

        let mut events = self.stop_missing(&observed, look);
        let (mut began, mut changes, mut stops) = (Vec::new(), Vec::new(), Vec::new());
        for process in observed {
            let birth = Birth::of(&process);
            if self.is_outdated(birth, look) {
                continue;
            }
            let ObservedProcess { pid, start_centis, start_ns, facts, ended } = process;
            if !self.processes.contains_key(&pid) {
                let existing = was_there(past, start_centis, look);
                let is_missed = is_missed && !existing;
                // Its end was told; or it is among what nobody could be told of, and counted.
                if is_missed && !was_blind && ended.is_some() {
                    continue;
                }
                let is_told = existing || was_blind && self.was_seen(birth, past, look);
                let is_over = is_told && ended.is_some();
                let mut start = self.start(birth, facts.as_deref(), existing, look);
                start.inferred = is_missed && matches!(past, Past::ThisRun { .. });
                let entry = Entry { start, start_ns, told_ns: 0, is_over };
                self.processes.insert(pid, Box::new(entry));
                if !is_over {
                    began.push(pid);
                }
            } else if let Some(entry) = self.processes.get_mut(&pid) {
                entry.start_ns = entry.start_ns.or(start_ns);
                if let (Some(facts), None) = (&facts, ended) {
                    changes.extend(entry.change(facts, look));
                }
            }
            if let (Some(exit), Some(entry)) = (ended, self.processes.get_mut(&pid))
                && !entry.is_over
            {
                entry.is_over = true;
                stops.push(entry.stop(exit, look));
            }
        }
        // Only now are all parents in the table, whatever the order of pids.
        for pid in began {
            let parent_key = self.parent_key(pid);
            if let Some(entry) = self.processes.get_mut(&pid) {
                entry.start.parent_key = parent_key;
                events.push(entry.start.clone().into());
            }
        }
        for stop in &mut stops {
            if let Event::Process(stop) = stop {
                let Some(entry) = self.processes.get(&stop.pid()) else { continue };
                stop.parent_key = entry.start.parent_key;
                self.ended.remember(entry.ended(look.uptime_ns, false));
            }
        }
        events.append(&mut changes);
        events.append(&mut stops);
        self.past = Past::ThisRun { boot_id: look.boot_id, uptime_ns: look.uptime_ns };
        self.ended.forget_before(look.uptime_ns / CENTI_NS);
        events
    }

    /// Ends of processes that a look had shown.
    fn ended(&mut self, ends: &Ends) -> Vec<Event> {
        let mut events = Vec::with_capacity(ends.ends.len());
        for &End { pid, start_centis, at_ns, exit } in &ends.ends {
            let is_it = |entry: &Entry| {
                (entry.start.key.boot_id, entry.start.key.start_centis)
                    == (ends.boot_id, start_centis)
            };
            if !self.processes.get(&pid).is_some_and(|entry| is_it(entry)) {
                continue;
            }
            let Some(entry) = self.processes.remove(&pid) else { continue };
            self.ended.remember(entry.ended(at_ns, false));
            let look = Look {
                boot_id: ends.boot_id,
                precision: entry.start.key_precision,
                source: ends.source,
                time_ns: ends.wall_offset_ns.saturating_add_unsigned(at_ns),
                uptime_ns: at_ns,
                is_inferred: false,
            };
            if !entry.is_over {
                events.push(entry.stop(exit, look));
            }
        }
        events
    }

    /// Whether more is known of a process than a look can have seen that began then: what happens
    /// while it lasts is told first.
    fn is_outdated(&self, birth: Birth, look: Look) -> bool {
        match self.processes.get(&birth.pid) {
            Some(entry) => {
                entry.told_ns >= look.uptime_ns
                    || !birth.is_of(&entry.start.key, entry.start_ns, look)
            }
            None => self.ended.lives.get(&birth.pid).is_some_and(|ended| {
                ended.is_told
                    && birth.is_of(&ended.key, ended.start_ns, look)
                    && ended.at_ns.is_some_and(|at_ns| at_ns >= look.uptime_ns)
            }),
        }
    }

    /// Whether the source before this one has told of the start and the end of a process that has
    /// ended and is not in the table.
    fn was_seen(&self, birth: Birth, past: Past, look: Look) -> bool {
        let is_before = matches!(past, Past::ThisRun { uptime_ns, .. }
            if birth.start_centis < uptime_ns / CENTI_NS);
        let ended = self.ended.lives.get(&birth.pid);
        is_before || ended.is_some_and(|ended| birth.is_of(&ended.key, ended.start_ns, look))
    }

    /// Takes out what is not there any more, and tells those ends that were not told.
    fn stop_missing(&mut self, observed: &[ObservedProcess], look: Look) -> Vec<Event> {
        let there: HashMap<u32, Birth> =
            observed.iter().map(|process| (process.pid, Birth::of(process))).collect();
        let is_gone = |_: &u32, entry: &mut Box<Entry>| {
            let key = &entry.start.key;
            let is_there =
                there.get(&key.pid).is_some_and(|birth| birth.is_of(key, entry.start_ns, look));
            // One that began while the others were looked at may have come too late.
            key.boot_id != look.boot_id || !is_there && entry.told_ns < look.uptime_ns
        };
        let mut gone: Vec<Box<Entry>> =
            self.processes.extract_if(is_gone).map(|(_, entry)| entry).collect();
        gone.sort_unstable_by_key(|entry| entry.start.key);
        let mut events = Vec::new();
        for entry in gone {
            self.ended.remember(entry.ended(look.uptime_ns, false));
            if !entry.is_over {
                events.push(entry.stop(Exit::default(), look));
            }
        }
        events
    }

    fn start(
        &self,
        birth: Birth,
        facts: Option<&Facts>,
        existing: bool,
        look: Look,
    ) -> ProcessEvent {
        let Birth { pid, start_centis, .. } = birth;
        let mut key = ProcessKey { boot_id: look.boot_id, pid, start_centis, generation: 0 };
        if let Some(Ended { key: before, .. }) = self.ended.lives.get(&pid)
            && (before.boot_id, before.start_centis) == (key.boot_id, start_centis)
        {
            key.generation = before.generation.saturating_add(1);
        }
        change::start_event(key, birth.ns(), facts, existing, look)
    }

    /// The key of the parent, if what has the parent's pid now was there before the child.
    fn parent_key(&self, pid: u32) -> Option<ProcessKey> {
        let child = &self.processes.get(&pid)?.start;
        let parent = self.processes.get(&child.ppid?)?.start.key;
        (parent.start_centis <= child.key.start_centis && parent.pid != pid).then_some(parent)
    }

    fn insert(&mut self, start: ProcessEvent) {
        let entry = Entry { start, start_ns: None, told_ns: 0, is_over: false };
        self.processes.insert(entry.start.pid(), Box::new(entry));
    }
}

fn overrun_gap(overrun: Overrun) -> GapEvent {
    let Overrun { missing, sorts, since_ns, until_ns } = overrun;
    let what = sorts.map_or_else(
        || format!("{missing} starts, ends or changes"),
        |Missing { starts, changes, stops }| {
            format!("{starts} starts, {stops} ends and {changes} changes")
        },
    );
    let detail = format!(
        "the kernel had no room to tell of {what}; what a look at the process table shows of them \
         follows, marked as inferred"
    );
    GapEvent {
        missing: Some(missing),
        since_ns: Some(since_ns),
        until_ns: Some(until_ns),
        ..GapEvent::new(GapReason::CaptureOverrun, until_ns, detail)
    }
}

fn unseen_gap(unseen: Overrun) -> GapEvent {
    let Overrun { missing, since_ns, until_ns, .. } = unseen;
    let detail = format!(
        "at most {missing} processes lived unseen between two looks at the process table: the \
         kernel counted so many more than were seen, threads among them"
    );
    GapEvent {
        missing: Some(missing),
        since_ns: Some(since_ns),
        until_ns: Some(until_ns),
        ..GapEvent::new(GapReason::Unseen, until_ns, detail)
    }
}

/// Whether a process that is not in the table was there when this run, or the one before it,
/// looked: it is not news then.
fn was_there(past: Past, start_centis: u64, look: Look) -> bool {
    match past {
        Past::Unknown => true,
        Past::EarlierRun { boot_id, uptime_ns } => {
            boot_id == look.boot_id && start_centis < uptime_ns / CENTI_NS
        }
        Past::ThisRun { .. } => false,
    }
}

impl EndedLives {
    fn remember(&mut self, ended: Ended) {
        self.lives.insert(ended.key.pid, ended);
        if self.lives.len() > self.prune_at.max(ENDED_MIN) {
            let starts = self.lives.values().map(|ended| ended.key.start_centis);
            let newest = starts.max().unwrap_or(0);
            self.forget_before(newest);
            self.prune_at = self.lives.len() * 2;
        }
    }

    /// Forgets lives that cannot be mistaken for one that begins now.
    fn forget_before(&mut self, now_centis: u64) {
        self.lives.retain(|_, ended| {
            let told_centis = ended.at_ns.unwrap_or(0) / CENTI_NS;
            ended.key.start_centis.saturating_add(NEAR_CENTIS) >= now_centis
                || told_centis.saturating_add(LOOK_CENTIS) >= now_centis
        });
    }
}

#[cfg(test)]
mod tests;
