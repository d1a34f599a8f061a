//! What was told and is not believed yet.
//!
//! What is read about a process may be about the next one with its pid, or the next program, if that
//! was told of before: so it waits until everything is known that had happened when it was read.

use std::collections::{HashMap, VecDeque};

use daemoneye_lib::models::process::Completeness;

use crate::source::procfs::{Reading, TICK_NS};
use crate::source::teller::Told;
use crate::source::{Facts, What};

/// What is told this long after something was read may have been so already then.
const RACE_NS: u64 = 200_000;
/// What waits longer than this to be read is read before what came after it.
const PATIENCE_NS: u64 = 4_000_000;
/// So many things wait for a tick at most, and are handed over together.
pub(super) const THINGS_MAX: usize = 64;

/// Things told, in their order.
#[derive(Default)]
pub(super) struct Unsure {
    things: VecDeque<Thing>,
    /// How many were handed over before the first of them.
    handed: u64,
    /// Where those are, counted from the first ever, of which something was read.
    by_pid: HashMap<u32, Vec<u64>>,
    /// Where those are of which there is more to read.
    unread: VecDeque<u64>,
}

/// Something told, with what was read about it.
struct Thing {
    told: Told<u64>,
    /// When that had been read, in nanoseconds since boot.
    read_ns: Option<u64>,
    /// There is more to read.
    reading: Option<Reading>,
}

impl Unsure {
    /// Adds what was told last.
    pub(super) fn push(&mut self, told: Told<u64>, read_ns: Option<u64>, reading: Option<Reading>) {
        let at = self.handed + self.things.len() as u64;
        if let (Some(happening), Some(_)) = (&told.happening, read_ns) {
            self.by_pid.entry(happening.pid).or_default().push(at);
            if reading.is_some() {
                self.unread.push_back(at);
            }
        }
        self.things.push_back(Thing { told, read_ns, reading });
    }

    /// At this moment the pid passed on, or its process ran another program: what was read later
    /// is not believed, and nothing more is read.
    pub(super) fn doubt(&mut self, pid: u32, at_ns: u64) {
        for at in self.by_pid.get(&pid).into_iter().flatten() {
            let thing = &mut self.things[(at - self.handed) as usize];
            if thing.read_ns.is_some_and(|read_ns| at_ns <= read_ns + RACE_NS) {
                thing.reading = None;
                thing.forget();
            }
            thing.finish();
        }
    }

    /// A process has ended.
    pub(super) fn has_ended(&mut self, pid: u32) {
        for at in self.by_pid.get(&pid).into_iter().flatten() {
            let thing = &mut self.things[(at - self.handed) as usize];
            thing.reading.iter_mut().for_each(Reading::has_ended);
        }
    }

    /// Reads the next part of something, the newest first: it has most of its life before it.
    /// False if there is nothing to be read.
    pub(super) fn read_on(
        &mut self,
        now_ns: u64,
        read_on: impl FnOnce(&mut Reading) -> (bool, u64),
    ) -> bool {
        let Self { things, handed, unread, .. } = self;
        let place = |at: &u64| at.checked_sub(*handed).map(|at| at as usize);
        let to_read = |at: &u64| {
            let thing = things.get(place(at)?)?;
            thing.reading.is_some().then_some(thing.told.at_ns)
        };
        while unread.pop_back_if(|at| to_read(at).is_none()).is_some() {}
        while unread.pop_front_if(|at| to_read(at).is_none()).is_some() {}
        let is_late = |at: &&u64| to_read(at).is_some_and(|at_ns| at_ns + PATIENCE_NS < now_ns);
        let next = unread.front().filter(is_late).or(unread.back());
        let Some(thing) = next.and_then(place).and_then(|at| things.get_mut(at)) else {
            return false;
        };
        let Some(reading) = &mut thing.reading else { return false };
        let (has_more, read_ns) = read_on(reading);
        thing.read_ns = Some(read_ns);
        let start_ns = thing.told.happening.as_ref().map(|happening| happening.start_ns / TICK_NS);
        if reading.ticks().is_some_and(|ticks| Some(ticks) != start_ns) {
            // Another has its pid.
            thing.reading = None;
        } else if !has_more {
            thing.finish();
        }
        true
    }

    /// When the first of them is to be handed over, if nothing more is told: what is told within a
    /// tick goes together.
    pub(super) fn due_ns(&self, tick_ns: u64) -> Option<u64> {
        let first = self.things.front()?;
        let believed_ns = first.read_ns.map_or(0, |read_ns| read_ns + RACE_NS + 1);
        Some(believed_ns.max(first.told.at_ns + tick_ns))
    }

    /// Takes those that are believed by who knows everything that happened before a moment; none
    /// before they are due.
    pub(super) fn take(&mut self, until_ns: u64, now_ns: u64, tick_ns: u64) -> Vec<Told<u64>> {
        let is_due = self.due_ns(tick_ns).is_some_and(|due_ns| due_ns <= now_ns);
        if !is_due && self.things.len() < THINGS_MAX {
            return Vec::new();
        }
        let is_believed = |thing: &&Thing| {
            thing.reading.is_none()
                && thing.read_ns.is_none_or(|read_ns| read_ns.saturating_add(RACE_NS) < until_ns)
        };
        let count = self.things.iter().take_while(is_believed).count().min(THINGS_MAX);
        for thing in self.things.range(..count) {
            if let (Some(happening), Some(_)) = (&thing.told.happening, thing.read_ns)
                && let Some(places) = self.by_pid.get_mut(&happening.pid)
            {
                places.retain(|at| *at != self.handed);
                if places.is_empty() {
                    self.by_pid.remove(&happening.pid);
                }
            }
            self.handed += 1;
        }
        self.things.drain(..count).map(|thing| thing.told).collect()
    }

    /// Everything that happened before this has been handed over, if everything before a moment is
    /// known.
    pub(super) fn handed_over_ns(&self, known_ns: u64) -> u64 {
        // Processors may tell in another order than their clocks say.
        let first_ns = self.things.front().map(|first| first.told.at_ns.saturating_sub(RACE_NS));
        first_ns.map_or(known_ns, |first_ns| known_ns.min(first_ns))
    }
}

impl Thing {
    /// Keeps what was told, and nothing that was read.
    fn forget(&mut self) {
        let Some(happening) = &mut self.told.happening else { return };
        let unknown = || Facts::unknown(Completeness::EnrichedLate);
        match &mut happening.what {
            What::Forked { facts, .. } => **facts = Facts { ppid: facts.ppid, ..unknown() },
            What::Executed(facts) => **facts = unknown(),
            What::Changed(facts) => facts.capabilities = None,
            _ => {}
        }
    }

    /// Takes up what was read.
    fn finish(&mut self) {
        let Some(reading) = self.reading.take() else { return };
        if let Some(What::Executed(facts)) = self.told.happening.as_mut().map(|it| &mut it.what) {
            **facts = reading.into_facts();
        }
    }
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::process::KeyPrecision;

    use super::*;
    use crate::source::Happening;
    use crate::source::procfs::Procfs;

    const MS: u64 = 1_000_000;

    fn executed(pid: u32, at_ns: u64, uid: Option<u32>) -> Told<u64> {
        let facts = Facts { uid, ..Facts::unknown(Completeness::Complete) };
        let (precision, what) = (KeyPrecision::Tick, What::Executed(Box::new(facts)));
        let happening = Some(Happening { pid, start_ns: 7, precision, at_ns, what });
        Told { lost: 0, at_ns, happening }
    }

    fn uid(told: &Told<u64>) -> Option<u32> {
        match &told.happening.as_ref().unwrap().what {
            What::Executed(facts) => facts.uid,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_may_have_been_read_of_another_is_not_believed() {
        let mut unsure = Unsure::default();
        unsure.push(executed(5, MS, Some(1)), Some(MS + 10), None);
        unsure.push(executed(6, MS, Some(2)), Some(MS + 10), None);
        unsure.push(executed(5, 2 * MS, Some(3)), Some(2 * MS + 10), None);
        // Another program of 5 after the first was read, and before the second was.
        unsure.doubt(5, MS + 10 + RACE_NS + 1);
        let told = unsure.take(u64::MAX, u64::MAX, 0);
        assert_eq!(told.iter().map(uid).collect::<Vec<_>>(), [Some(1), Some(2), None]);
        assert!(unsure.by_pid.is_empty());
        unsure.push(executed(5, 3 * MS, Some(4)), Some(3 * MS + 10), None);
        unsure.doubt(5, 3 * MS + 10 + RACE_NS);
        assert_eq!(uid(&unsure.take(u64::MAX, u64::MAX, 0)[0]), None);
    }

    #[test]
    fn what_is_told_within_a_tick_goes_together_and_once_it_is_believed() {
        let mut unsure = Unsure::default();
        unsure.push(executed(5, MS, Some(1)), Some(MS + 10), None);
        unsure.push(executed(6, 2 * MS, Some(2)), Some(4 * MS), None);
        assert_eq!(unsure.due_ns(2 * MS), Some(3 * MS));
        assert!(unsure.take(3 * MS - 1, 3 * MS - 1, 2 * MS).is_empty(), "there may be more");
        assert_eq!(unsure.handed_over_ns(3 * MS), MS - RACE_NS);
        assert_eq!(unsure.take(3 * MS, 3 * MS, 2 * MS).len(), 1, "the other may be doubted");
        assert_eq!(unsure.due_ns(0), Some(4 * MS + RACE_NS + 1));
        // So many do not wait for a tick.
        for _ in 0..THINGS_MAX {
            unsure.push(executed(7, 5 * MS, None), None, None);
        }
        assert_eq!(unsure.take(5 * MS, 5 * MS, 100 * MS).len(), THINGS_MAX);
        assert_eq!(unsure.take(5 * MS, 200 * MS, 100 * MS).len(), 1);
        assert_eq!(unsure.handed_over_ns(9), 9);
    }

    #[test]
    fn the_newest_is_read_first_unless_another_waits_for_long() {
        let mut table = Procfs::open("/proc".into()).unwrap();
        let me = std::process::id();
        let start_ns = table.glimpse(me).unwrap().0 * TICK_NS;
        let mut unsure = Unsure::default();
        for at_ns in [10 * MS, 11 * MS, 12 * MS] {
            let mut told = executed(me, at_ns, None);
            // The one in the middle is another's.
            let other = u64::from(at_ns == 11 * MS) * TICK_NS;
            told.happening.as_mut().unwrap().start_ns = start_ns + other;
            unsure.push(told, Some(at_ns), table.begin_reading(me));
        }
        let mut parts = |unsure: &mut Unsure, now_ns| {
            unsure.read_on(now_ns, |reading| (table.read_on(reading), now_ns))
        };
        let is_read = |unsure: &Unsure| -> Vec<bool> {
            unsure.things.iter().map(|thing| thing.reading.is_none()).collect()
        };
        while !is_read(&unsure)[2] {
            assert!(parts(&mut unsure, 13 * MS));
        }
        assert_eq!(is_read(&unsure), [false, false, true]);
        while !is_read(&unsure)[0] {
            assert!(parts(&mut unsure, 10 * MS + PATIENCE_NS + 1));
        }
        assert_eq!(is_read(&unsure), [true, false, true]);
        assert!(unsure.take(u64::MAX, u64::MAX, 0).len() == 1, "the next is not read yet");
        while parts(&mut unsure, 14 * MS) {}
        let told = unsure.take(u64::MAX, u64::MAX, 0);
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(told.iter().map(uid).collect::<Vec<_>>(), [None, Some(own)]);
    }

    #[test]
    fn of_one_that_has_ended_what_was_read_is_kept() {
        let mut table = Procfs::open("/proc".into()).unwrap();
        let me = std::process::id();
        let mut unsure = Unsure::default();
        unsure.push(executed(me, MS, None), Some(MS), table.begin_reading(me));
        unsure.doubt(me, 2 * MS);
        assert!(!unsure.read_on(2 * MS, |_| panic!("it runs another program by now")));
        let told = unsure.take(u64::MAX, u64::MAX, 0);
        let What::Executed(facts) = &told[0].happening.as_ref().unwrap().what else { panic!() };
        assert_eq!(facts.completeness, Completeness::EnrichedLate);
        assert!(facts.argv.is_some());
    }
}
