//! Lets through the events of processes that are to be told of.
//!
//! A process is judged once when it starts, and again when it runs another program, or has another
//! user or control group, as long as its start has not been told: then its start is told at that
//! moment. Once the start has been told, everything is, to the end: whoever hears a stop has heard
//! the start, and the other way round.
//!
//! If a control group begins more processes than the limit allows, those beyond it are counted
//! instead. One that is still alive when there is room again is told then, as one that was there
//! already: who floods a group must not hide behind that for ever.
//!
//! The process table knows them all, so that parents have their keys. Of processes that are not
//! told of, nothing is kept for a later run, which judges them anew.

use std::collections::HashMap;
use std::num::NonZeroU32;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::control::{Excluded, Summarised};
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::models::gap::GapEvent;
use daemoneye_lib::models::process::{FieldChange, ProcessEvent, ProcessEventKind, ProcessKey};

use super::filter::{Filter, Subject};
use super::storm::Storms;
use super::tracker::{CENTI_NS, Tracker};

/// Judges processes, and remembers what it held back.
#[derive(Debug, Default)]
pub(super) struct Gate {
    filter: Filter,
    storms: Option<Storms>,
    /// What living processes run; kept only if rules ask for parents.
    programs: Option<HashMap<ProcessKey, ByteString>>,
    /// Living processes whose start was not told.
    withheld: HashMap<ProcessKey, Withheld>,
    /// Something was left out in a storm since that was last told, or lives on untold.
    owes: bool,
    excluded: Excluded,
}

/// What is to be known of a process whose start may be told later.
#[derive(Debug)]
struct Withheld {
    /// It was there when monitoring began.
    existing: bool,
    /// What its parent ran when it began, if rules ask for that.
    parent_exe: Option<ByteString>,
    /// Not a rule but the limit of its control group holds it back.
    in_storm: bool,
}

/// What becomes of an event.
enum Verdict {
    Tell,
    /// A rule leaves it out.
    Exclude,
    /// It is counted as one of these, and told as part of a number.
    Summarise(EventKind),
}

impl Gate {
    /// A gate for the events of a tracker: what that has already, was told.
    pub(super) fn new(
        filter: Filter,
        cgroup_starts_per_second: Option<NonZeroU32>,
        tracker: &Tracker,
    ) -> Self {
        let programs = filter.asks_for_parents().then(|| {
            let running = |event: &ProcessEvent| Some((event.key, event.exe.clone()?));
            tracker.processes().filter_map(running).collect()
        });
        let storms = cgroup_starts_per_second.map(Storms::new);
        Self { filter, storms, programs, ..Self::default() }
    }

    /// What is to be told for an event: the event, the start of a process that has become one to
    /// be told of, or nothing.
    pub(super) fn pass(&mut self, event: Event) -> Option<Event> {
        if self.filter.is_empty() && self.storms.is_none() {
            return Some(event);
        }
        match event {
            Event::Process(event) => self.judge(event).map(Event::Process),
            gap @ Event::Gap(_) => Some(gap),
        }
    }

    /// Whether the process is one that is not told of.
    pub(super) fn withholds(&self, key: ProcessKey) -> bool {
        self.withheld.contains_key(&key)
    }

    /// What was left out so far.
    pub(super) const fn excluded(&self) -> Excluded {
        self.excluded
    }

    /// What was left out since the beginning because there was too much of it.
    pub(super) fn summarised(&self) -> Summarised {
        self.storms.as_ref().map(Storms::total).unwrap_or_default()
    }

    /// Whether there is something to summarise, or a process that may be told of later.
    pub(super) const fn owes(&self) -> bool {
        self.owes
    }

    /// What was left out since the last time, and how much.
    pub(super) fn summaries(&mut self) -> Vec<GapEvent> {
        self.owes = self.withheld.values().any(|withheld| withheld.in_storm);
        self.storms.as_mut().map(Storms::summarise).unwrap_or_default()
    }

    /// The starts of processes that were left out, are alive, and for which there is room now, so
    /// many nanoseconds after boot; the oldest first.
    pub(super) fn survivors(&mut self, tracker: &Tracker, now_ns: u64) -> Vec<Event> {
        let in_storm = self.withheld.iter().filter(|(_, withheld)| withheld.in_storm);
        let mut keys: Vec<ProcessKey> = in_storm.map(|(key, _)| *key).collect();
        keys.sort_unstable_by_key(|key| (key.start_centis, key.pid));
        let mut starts = Vec::new();
        for key in keys {
            let known = tracker.get(key.pid).filter(|start| start.key == key);
            let Some((start, withheld)) = known.zip(self.withheld.get_mut(&key)) else { continue };
            // It may run another program by now.
            if !self.filter.admits(&Subject::new(start, withheld.parent_exe.as_ref())) {
                withheld.in_storm = false;
                self.excluded.processes_total += 1;
                continue;
            }
            let cgroup = start.cgroup.as_ref();
            if self.storms.as_mut().is_none_or(|storms| storms.admits(cgroup, now_ns)) {
                let kind = ProcessEventKind::Start { existing: true };
                starts.push(ProcessEvent { kind, ..start.clone() }.into());
                self.withheld.remove(&key);
            }
        }
        starts
    }

    fn judge(&mut self, mut event: Box<ProcessEvent>) -> Option<Box<ProcessEvent>> {
        let key = event.key;
        if let (Some(programs), Some(exe)) = (&mut self.programs, &event.exe)
            && programs.get(&key) != Some(exe)
        {
            programs.insert(key, exe.clone());
        }
        let verdict = match &event.kind {
            ProcessEventKind::Start { existing } => self.begins(&event, *existing),
            ProcessEventKind::Modify { changes } => match self.withheld.get_mut(&key) {
                None => Verdict::Tell,
                Some(Withheld { in_storm: true, .. }) => Verdict::Summarise(EventKind::Modify),
                Some(withheld) => {
                    let existing = withheld.existing;
                    let subject = Subject::new(&event, withheld.parent_exe.as_ref());
                    if !may_matter(changes) || !self.filter.admits(&subject) {
                        Verdict::Exclude
                    } else if existing || has_room(&mut self.storms, &event) {
                        event.kind = ProcessEventKind::Start { existing };
                        self.withheld.remove(&key);
                        Verdict::Tell
                    } else {
                        withheld.in_storm = true;
                        Verdict::Summarise(EventKind::Start)
                    }
                }
            },
            ProcessEventKind::Stop(_) => {
                if let Some(programs) = &mut self.programs {
                    programs.remove(&key);
                }
                match self.withheld.remove(&key) {
                    None => Verdict::Tell,
                    Some(Withheld { in_storm: true, .. }) => Verdict::Summarise(EventKind::Stop),
                    Some(_) => Verdict::Exclude,
                }
            }
        };
        match (verdict, &mut self.storms) {
            (Verdict::Tell, _) => return Some(event),
            (Verdict::Summarise(kind), Some(storms)) => {
                storms.leave_out(event.cgroup.as_ref(), kind, event.time_ns, began_ns(key));
                self.owes = true;
            }
            (Verdict::Exclude | Verdict::Summarise(_), _) => self.excluded.events_total += 1,
        }
        None
    }

    fn begins(&mut self, event: &ProcessEvent, existing: bool) -> Verdict {
        let running = |key: ProcessKey| self.programs.as_ref()?.get(&key);
        let parent_exe = event.parent_key.and_then(running);
        let is_wanted = self.filter.admits(&Subject::new(event, parent_exe));
        let parent_exe = parent_exe.cloned();
        // What was there before is no storm.
        if is_wanted && (existing || has_room(&mut self.storms, event)) {
            return Verdict::Tell;
        }
        self.withheld.insert(event.key, Withheld { existing, parent_exe, in_storm: is_wanted });
        if is_wanted {
            return Verdict::Summarise(EventKind::Start);
        }
        self.excluded.processes_total += 1;
        Verdict::Exclude
    }
}

/// Whether the limit of its control group lets a process be told of.
fn has_room(storms: &mut Option<Storms>, event: &ProcessEvent) -> bool {
    let Some(storms) = storms else { return true };
    storms.admits(event.cgroup.as_ref(), began_ns(event.key))
}

const fn began_ns(key: ProcessKey) -> u64 {
    key.start_centis.saturating_mul(CENTI_NS)
}

/// Whether something has changed that rules ask for.
fn may_matter(changes: &[FieldChange]) -> bool {
    changes.iter().any(|change| match change {
        FieldChange::Exe(_) | FieldChange::Argv(_) => true,
        FieldChange::Uid(_) | FieldChange::Cgroup(_) => true,
        FieldChange::Name(_)
        | FieldChange::Euid(_)
        | FieldChange::Gid(_)
        | FieldChange::Egid(_)
        | FieldChange::LoginUid(_)
        | FieldChange::Session(_)
        | FieldChange::Capabilities(_) => false,
    })
}

#[cfg(test)]
mod tests;
