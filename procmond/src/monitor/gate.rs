//! Lets through the events of processes that are to be told of.
//!
//! A process is judged once when it starts, and again when it runs another program, as long as its
//! start has not been told: then its start is told at that moment. Once the start has been told,
//! everything is, to the end: whoever hears a stop has heard the start, and the other way round.
//!
//! The process table knows them all, so that parents have their keys. Of processes that are not
//! told of, nothing is kept for a later run, which judges them anew.

use std::collections::HashMap;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::control::Excluded;
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{FieldChange, ProcessEvent, ProcessEventKind, ProcessKey};

use super::filter::{Filter, Subject};
use super::tracker::Tracker;

/// Judges processes, and remembers what it held back.
#[derive(Debug, Default)]
pub(super) struct Gate {
    filter: Filter,
    /// What living processes run; kept only if rules ask for parents.
    programs: Option<HashMap<ProcessKey, ByteString>>,
    /// Living processes whose start was not told.
    withheld: HashMap<ProcessKey, Withheld>,
    excluded: Excluded,
}

/// What is to be known of a process whose start may be told later.
#[derive(Debug)]
struct Withheld {
    /// It was there when monitoring began.
    existing: bool,
    /// What its parent ran when it began, if rules ask for that.
    parent_exe: Option<ByteString>,
}

impl Gate {
    /// A gate for the events of a tracker: what that has already, was told.
    pub(super) fn new(filter: Filter, tracker: &Tracker) -> Self {
        let programs = filter.asks_for_parents().then(|| {
            let running = |event: &ProcessEvent| Some((event.key, event.exe.clone()?));
            tracker.processes().filter_map(running).collect()
        });
        Self { filter, programs, ..Self::default() }
    }

    /// What is to be told for an event: the event, the start of a process that has become one to
    /// be told of, or nothing.
    pub(super) fn pass(&mut self, event: Event) -> Option<Event> {
        if self.filter.is_empty() {
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

    fn judge(&mut self, mut event: Box<ProcessEvent>) -> Option<Box<ProcessEvent>> {
        let key = event.key;
        if let (Some(programs), Some(exe)) = (&mut self.programs, &event.exe)
            && programs.get(&key) != Some(exe)
        {
            programs.insert(key, exe.clone());
        }
        let is_told = match &event.kind {
            ProcessEventKind::Start { existing } => {
                let existing = *existing;
                let running = |key: ProcessKey| self.programs.as_ref()?.get(&key);
                let parent_exe = event.parent_key.and_then(running);
                let is_told = self.filter.admits(&Subject::new(&event, parent_exe));
                if !is_told {
                    let parent_exe = parent_exe.cloned();
                    self.withheld.insert(key, Withheld { existing, parent_exe });
                    self.excluded.processes_total += 1;
                }
                is_told
            }
            ProcessEventKind::Modify { changes } => match self.withheld.get(&key) {
                None => true,
                Some(Withheld { existing, parent_exe }) => {
                    let existing = *existing;
                    let subject = Subject::new(&event, parent_exe.as_ref());
                    let is_told = runs_another(changes) && self.filter.admits(&subject);
                    if is_told {
                        event.kind = ProcessEventKind::Start { existing };
                        self.withheld.remove(&key);
                    }
                    is_told
                }
            },
            ProcessEventKind::Stop(_) => {
                if let Some(programs) = &mut self.programs {
                    programs.remove(&key);
                }
                self.withheld.remove(&key).is_none()
            }
        };
        if is_told {
            return Some(event);
        }
        self.excluded.events_total += 1;
        None
    }
}

/// Whether it runs another program than before, or the same anew.
fn runs_another(changes: &[FieldChange]) -> bool {
    changes.iter().any(|change| matches!(change, FieldChange::Exe(_) | FieldChange::Argv(_)))
}

#[cfg(test)]
mod tests;
