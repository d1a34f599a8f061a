//! From what the kernel tells, one thing after another, to events.

use std::collections::HashMap;
use std::iter::successors;

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{Completeness, Exit, FieldChange, ProcessEventKind};

use super::{Birth, CENTI_NS, Ended, Entry, Look, Past, Tracker, was_there};
use crate::source::{Facts, Happening, Happenings, What};

/// One life of one pid: no other began in the same nanosecond.
type Life = (u32, u64);

/// How much later one source may be told of the same thing than another: what is this much older
/// than the last that another one told of is left out, and the rest is compared.
const SKEW_NS: u64 = 1_000_000;

/// For each happening, where the next program stands that its process runs.
fn next_programs(happenings: &[Happening]) -> Vec<Option<usize>> {
    let mut next = HashMap::with_capacity(happenings.len());
    let mut programs = vec![None; happenings.len()];
    for (index, happening) in happenings.iter().enumerate().rev() {
        programs[index] = match happening.what {
            What::Executed(_) => next.insert(happening.life(), index),
            _ => next.get(&happening.life()).copied(),
        };
    }
    programs
}

impl Tracker {
    /// A program that runs within the batch in which its process began is part of the start.
    pub(super) fn happened(&mut self, seen: Happenings) -> Vec<Event> {
        let Happenings { source, boot_id, wall_offset_ns, mut happenings } = seen;
        happenings.retain(|happening| happening.at_ns.saturating_add(SKEW_NS) > self.told_until_ns);
        let next_programs = next_programs(&happenings);
        // The programs that are part of a start: what came before one is among its facts.
        let mut begun = vec![false; happenings.len()];
        let mut events = Vec::with_capacity(happenings.len());
        let mut happenings: Vec<_> = happenings.into_iter().map(Some).collect();
        for index in 0..happenings.len() {
            let Some(happening) = happenings[index].take() else { continue };
            let life = happening.life();
            let look = Look {
                boot_id,
                precision: happening.precision,
                source,
                time_ns: wall_offset_ns.saturating_add_unsigned(happening.at_ns),
                uptime_ns: happening.at_ns,
                is_inferred: false,
            };
            events.extend(self.make_way(life, look));
            let program = next_programs[index];
            match happening.what {
                What::Forked { .. } if self.is_told(life, look) => {}
                What::Forked { forker, inherits_group, facts } => {
                    let mut facts = self.inherited(forker, inherits_group, *facts);
                    let taken = program.and_then(|at| happenings[at].take());
                    if let (Some(What::Executed(program)), Some(at)) =
                        (taken.map(|program| program.what), program)
                    {
                        begun[at] = program.completeness != Completeness::EnrichedLate;
                        facts = running(*program, facts);
                    }
                    events.push(self.begin(life, &facts, look));
                }
                What::Executed(facts) => {
                    events.extend(self.meet(life, &facts, look));
                    events.extend(self.run(life, look, *facts));
                }
                // Whoever runs a program is renamed first, and then tells everything.
                What::Renamed(_)
                    if successors(program, |at| next_programs[*at])
                        .any(|at| happenings[at].is_some()) => {}
                What::Renamed(_) | What::Changed(_) if program.is_some_and(|at| begun[at]) => {}
                What::Renamed(name) => {
                    events.extend(
                        self.change(life, look, |known| Facts { name: Some(name), ..known }),
                    );
                }
                What::Changed(facts) => {
                    let changed = |known: Facts| {
                        let completeness = known.completeness;
                        Facts { completeness, ..facts.or(known) }
                    };
                    events.extend(self.change(life, look, changed));
                }
                What::Moved { cgroup, container_id } => {
                    let moved = |known| Facts { cgroup: Some(cgroup), container_id, ..known };
                    events.extend(self.change(life, look, moved));
                }
                What::Found(facts) => {
                    events.extend(self.meet(life, &facts, look));
                    events.extend(self.told(life, look).and_then(|it| it.found(&facts, look)));
                }
                What::Exited(exit, facts) => {
                    events.extend(self.meet(life, &facts, look));
                    // What it became since it was last heard of, nobody has told yet.
                    events.extend(self.told(life, look).and_then(|it| it.found(&facts, look)));
                    events.extend(self.end(life, exit, look));
                }
            }
            if let Past::ThisRun { uptime_ns, .. } = &mut self.past {
                *uptime_ns = look.uptime_ns.max(*uptime_ns);
            }
        }
        events
    }

    /// Ends an earlier life of the pid, whose end was not told.
    fn make_way(&mut self, (pid, start_ns): Life, look: Look) -> Option<Event> {
        let other = self.processes.get(&pid).filter(|entry| !entry.is((pid, start_ns), look))?;
        if other.is_later_than(start_ns, look) {
            return None;
        }
        let other = self.processes.remove(&pid)?;
        self.ended.remember(other.ended(look.uptime_ns, true));
        (!other.is_over).then(|| other.stop(Exit::default(), Look { is_inferred: true, ..look }))
    }

    /// Whether its beginning was told, and perhaps its end.
    fn is_told(&self, (pid, start_ns): Life, look: Look) -> bool {
        let is_it = |ended: &Ended| match ended.start_ns {
            Some(known) => known == start_ns,
            // Another source told of it: what it is told of now was before its end.
            None => {
                Birth::told(pid, start_ns).is_of(&ended.key, None, look)
                    && ended.at_ns.is_some_and(|at_ns| look.uptime_ns <= at_ns)
            }
        };
        self.processes.contains_key(&pid) || self.ended.lives.get(&pid).is_some_and(is_it)
    }

    /// The start of a process of which nobody has heard; there may have been no room to tell.
    fn meet(&mut self, life: Life, facts: &Facts, look: Look) -> Option<Event> {
        let (pid, start_ns) = life;
        let has_ended = self.ended.lives.get(&pid).is_some_and(|ended| {
            let start_centis = start_ns / CENTI_NS;
            let key = ended.key;
            (key.boot_id, key.start_centis) == (look.boot_id, start_centis)
                && ended.start_ns.is_none_or(|known| known == start_ns)
        });
        if self.processes.contains_key(&pid) || has_ended {
            return None;
        }
        let mut event = self.begin(life, facts, look);
        let existing = was_there(self.past, start_ns / CENTI_NS, look);
        if let (Event::Process(start), Some(entry)) = (&mut event, self.processes.get_mut(&pid)) {
            start.kind = ProcessEventKind::Start { existing };
            start.inferred = !existing;
            entry.start.clone_from(start);
        }
        Some(event)
    }

    fn begin(&mut self, (pid, start_ns): Life, facts: &Facts, look: Look) -> Event {
        let start = self.start(Birth::told(pid, start_ns), Some(facts), false, look);
        let entry =
            Entry { start, start_ns: Some(start_ns), told_ns: look.uptime_ns, is_over: false };
        let key = entry.start.key;
        self.processes.insert(pid, Box::new(entry));
        let parent_key = self.parent_key(pid);
        let entry = self.processes.get_mut(&pid).filter(|entry| entry.start.key == key);
        let start = &mut entry.expect("it was just put there").start;
        start.parent_key = parent_key;
        start.clone().into()
    }

    /// What a process has from the one that made it, until it runs a program of its own.
    fn inherited(&self, forker: u32, inherits_group: bool, facts: Facts) -> Facts {
        let Some(forker) = self.processes.get(&forker).map(|forker| forker.facts()) else {
            return facts;
        };
        // What was missed of that process is missing here, too.
        let completeness = match facts.completeness {
            Completeness::EnrichedLate => Completeness::EnrichedLate,
            _ => forker.completeness,
        };
        let (cgroup, container_id) = (facts.cgroup.clone(), facts.container_id.clone());
        let facts = Facts { completeness, ..facts.or(forker) };
        if inherits_group { facts } else { Facts { cgroup, container_id, ..facts } }
    }

    fn change(
        &mut self,
        life: Life,
        look: Look,
        new: impl FnOnce(Facts) -> Facts,
    ) -> Option<Event> {
        let entry = self.told(life, look)?;
        let facts = new(entry.facts());
        entry.change(&facts, look)
    }

    /// Another program is run. That is told also where it was not seen which.
    fn run(&mut self, life: Life, look: Look, facts: Facts) -> Option<Event> {
        let is_unseen = facts.exe.is_none() && facts.argv.is_none();
        let known = is_unseen.then(|| self.told(life, look).map(|entry| entry.facts())).flatten();
        let changed = self.change(life, look, |known| running(facts, known));
        let Some(Facts { exe, argv, .. }) = known else { return changed };
        let entry = self.told(life, look)?;
        let mut changes = vec![FieldChange::Exe(exe), FieldChange::Argv(argv)];
        if let Some(Event::Process(event)) = changed
            && let ProcessEventKind::Modify { changes: others } = event.kind
        {
            changes.extend(others);
        }
        Some(entry.event(ProcessEventKind::Modify { changes }, look))
    }

    fn end(&mut self, life: Life, exit: Exit, look: Look) -> Option<Event> {
        self.told(life, look)?;
        let entry = self.processes.remove(&life.0)?;
        self.ended.remember(entry.ended(look.uptime_ns, true));
        (!entry.is_over).then(|| entry.stop(exit, look))
    }

    /// The process of which something is told.
    fn told(&mut self, life: Life, look: Look) -> Option<&mut Entry> {
        let entry = self.processes.get_mut(&life.0).filter(|entry| entry.is(life, look))?;
        // The source before this one has told it.
        if entry.start_ns.is_none() && look.uptime_ns <= entry.told_ns {
            return None;
        }
        entry.start_ns = Some(life.1);
        entry.told_ns = look.uptime_ns;
        Some(entry)
    }
}

/// Running a program leaves a process what it is but for the program: its control group, and of
/// one that was looked at too late everything that was not seen.
fn running(facts: Facts, known: Facts) -> Facts {
    match facts.completeness {
        Completeness::EnrichedLate => {
            let program_is_unknown = Facts {
                name: None,
                exe: None,
                exe_deleted: None,
                argv: None,
                capabilities: None,
                exe_sha256: None,
                ..known
            };
            facts.or(program_is_unknown)
        }
        _ if facts.cgroup.is_some() => facts,
        _ => Facts { cgroup: known.cgroup, container_id: known.container_id, ..facts },
    }
}

impl Happening {
    fn life(&self) -> Life {
        (self.pid, self.start_ns)
    }
}

impl Entry {
    fn is(&self, (pid, start_ns): Life, look: Look) -> bool {
        Birth::told(pid, start_ns).is_of(&self.start.key, self.start_ns, look)
    }

    /// Something told of an earlier life of the pid comes too late.
    fn is_later_than(&self, start_ns: u64, look: Look) -> bool {
        let key = self.start.key;
        key.boot_id == look.boot_id
            && match self.start_ns {
                Some(known) => known > start_ns,
                None => key.start_centis > start_ns / CENTI_NS,
            }
    }

    pub(super) fn ended(&self, at_ns: u64, is_told: bool) -> Ended {
        let Self { start_ns, .. } = *self;
        Ended { key: self.start.key, start_ns, at_ns: Some(at_ns), is_told }
    }
}
