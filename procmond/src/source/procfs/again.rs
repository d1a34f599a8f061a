//! Looking again and again, as seldom and as little as the kernel's own count of processes allows.
//!
//! The kernel counts every process and thread that begins. While that number stays, no process can
//! be new, and only those that are known are looked at; all the same everything is listed every
//! [`CHECK_SECONDS`]. What the number grew by and was not seen is the most that can have lived
//! unseen.

use daemoneye_lib::stream::wall_clock_ns;

use super::lives::Lives;
use super::{Among, CHECK_SECONDS, Procfs, stat};
use crate::source::poll::Scan;
use crate::source::{Observation, Overrun, ProcessTable, SourceError};

/// What may have been missed is told at most this often.
const TELL_SECONDS: u64 = 60;

/// A process table that is looked at again and again.
pub(in crate::source) struct Again {
    pub(super) table: Procfs,
    /// What the kernel had counted before everything was listed last, and when that was, in
    /// seconds since boot.
    listed: Option<(u64, u64)>,
    unseen: Option<Unseen>,
}

/// The account of what may have lived unseen. Everything in it is since the first look.
struct Unseen {
    /// What the kernel had counted before the first look.
    base: u64,
    /// The most that was unseen at the last look.
    most: u64,
    /// When that was, by the wall clock.
    at_ns: i64,
    /// How many were told of.
    told: u64,
    /// Up to when, by the wall clock.
    told_ns: i64,
    /// Not to be told of before, in seconds since boot.
    next: u64,
}

impl Again {
    pub(super) fn new(table: Procfs) -> Self {
        Self { table, listed: None, unseen: None }
    }

    /// What the kernel has counted. Without, everything is listed each time and nothing is known
    /// of what was missed.
    fn forks(&mut self) -> Result<Option<u64>, SourceError> {
        Ok(self.table.files.read_own("stat")?.and_then(stat::forks))
    }
}

impl Scan for Again {
    fn scan(&mut self) -> Result<ProcessTable, SourceError> {
        self.table.scan()
    }

    fn look(&mut self) -> Result<Vec<Observation>, SourceError> {
        let before = self.forks()?;
        let began_ns = wall_clock_ns();
        let now = self.table.uptime_ns()? / 1_000_000_000;
        let has_forked = self.listed.is_none_or(|(count, at)| {
            before != Some(count) || now.saturating_sub(at) >= CHECK_SECONDS
        });
        let among = if has_forked { Among::All } else { Among::Known };
        let table = self.table.look_among(among)?;
        if has_forked {
            self.listed = before.map(|count| (count, now));
        }
        let Procfs { boot_id, has_news, began, .. } = self.table;
        // First, so that another life of such a pid is news.
        let mut seen: Vec<Observation> = self.table.take_ends().into_iter().collect();
        seen.push(if has_news {
            Observation::Snapshot(table)
        } else {
            let ProcessTable { uptime_ns, time_ns, .. } = table;
            Observation::Unchanged { boot_id, uptime_ns, time_ns }
        });
        // After the look: whoever began while it lasted is counted, and seen now or the next time.
        if let (Some(base), Some(count)) = (before, self.forks()?) {
            let unseen = self.unseen.get_or_insert_with(|| Unseen::since(base, began_ns));
            seen.extend(unseen.account(count, began, wall_clock_ns(), now));
        }
        Ok(seen)
    }

    fn tell_ends(&mut self, tell: impl Fn(Vec<u32>, u64) -> bool + Send + 'static) {
        self.table.lives = Lives::new(tell);
    }

    fn ended(&mut self, pids: &[u32], at_ns: u64) -> Option<Observation> {
        for pid in pids {
            self.table.ended(*pid, at_ns, false);
        }
        self.table.take_ends()
    }

    fn end(&mut self) -> Option<Observation> {
        let count = self.forks().ok()??;
        let began = self.table.began;
        let unseen = self.unseen.as_mut()?;
        unseen.look(count, began, wall_clock_ns());
        unseen.tell(unseen.most, unseen.at_ns)
    }
}

impl Unseen {
    fn since(base: u64, at_ns: i64) -> Self {
        Self { base, most: 0, at_ns, told: 0, told_ns: at_ns, next: 0 }
    }

    /// Takes up what the kernel has counted and how many of them have been seen, and tells of what
    /// is missing, if it is time.
    fn account(&mut self, count: u64, began: u64, at_ns: i64, now: u64) -> Option<Observation> {
        let Self { most, at_ns: until_ns, .. } = *self;
        self.look(count, began, at_ns);
        // Of those that were unseen a look ago some may have been found now.
        let missing = most.min(self.most);
        let observation = (now >= self.next).then(|| self.tell(missing, until_ns)).flatten()?;
        self.next = now + TELL_SECONDS;
        Some(observation)
    }

    fn look(&mut self, count: u64, began: u64, at_ns: i64) {
        self.most = count.saturating_sub(self.base).saturating_sub(began);
        self.at_ns = at_ns;
    }

    fn tell(&mut self, most: u64, until_ns: i64) -> Option<Observation> {
        let missing = most.checked_sub(self.told).filter(|missing| *missing > 0)?;
        let overrun = Overrun { missing, sorts: None, since_ns: self.told_ns, until_ns };
        self.told = most;
        self.told_ns = until_ns;
        Some(Observation::Unseen(overrun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(observation: Option<Observation>) -> Option<(u64, i64, i64)> {
        observation.map(|observation| match observation {
            Observation::Unseen(Overrun { missing, since_ns, until_ns, .. }) => {
                (missing, since_ns, until_ns)
            }
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_was_counted_and_not_seen_is_told_a_look_later_and_once_a_minute() {
        let mut unseen = Unseen::since(1000, 1);
        assert_eq!(told(unseen.account(1000, 0, 10, 100)), None);
        // Five began, two of them were found; the next look finds one more.
        assert_eq!(told(unseen.account(1005, 2, 20, 101)), None);
        assert_eq!(told(unseen.account(1005, 3, 30, 102)), Some((2, 1, 20)));
        // Those that come then wait for their minute.
        for now in 103..162 {
            assert_eq!(told(unseen.account(1015, 3, 40, now)), None);
        }
        assert_eq!(told(unseen.account(1016, 4, 50, 162)), Some((10, 20, 40)));
        assert_eq!(told(unseen.account(1016, 4, 60, 500)), None, "nothing is missing");
        // One that had been told of turns up: that does not make up for others.
        assert_eq!(told(unseen.account(1017, 6, 70, 600)), None);
        assert_eq!(told(unseen.account(1020, 6, 80, 700)), None);
        assert_eq!(told(unseen.account(1020, 6, 90, 701)), Some((2, 40, 80)));
    }
}
