//! Which lives the pids have, as far as the kernel told: pure.
//!
//! The kernel tells of threads. A process has ended when all of its threads have, in whatever order:
//! its first one may go before others, and if one of the others runs a program, that becomes the
//! first one, without being told of as begun.
//!
//! The end of a life is told a moment after its parent may know of it, and so possibly after the
//! pid's next life has begun.

use std::collections::HashMap;

/// The lives there are.
#[derive(Debug, Default)]
pub(super) struct Lives {
    by_pid: HashMap<u32, Life>,
}

/// One life of a pid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Life {
    /// When it began, in nanoseconds since boot.
    start_ns: u64,
    /// This was found in the process table, to 10 ms only.
    is_found: bool,
    /// Threads besides the first, if they were all told of.
    others: Option<u32>,
    /// Its first thread has ended.
    first_ended: bool,
    /// Nothing was lost since it is known: its end will be told.
    is_sure: bool,
    /// Ends of earlier lives of this pid that are yet to be told.
    ends_owed: u32,
}

impl Lives {
    /// When the one that has this pid now began.
    pub(super) fn start_of(&self, pid: u32) -> Option<u64> {
        self.by_pid.get(&pid).map(|life| life.start_ns)
    }

    /// A process began; gives the moment by which it is known.
    pub(super) fn began(&mut self, pid: u32, start_ns: u64, unit_ns: u64) -> u64 {
        let before = self.by_pid.get(&pid);
        // It was found before its beginning was read.
        if let Some(life) = before.filter(|life| life.is_found)
            && life.start_ns / unit_ns == start_ns / unit_ns
        {
            return life.start_ns;
        }
        let ends_owed = before.filter(|life| life.is_sure).map_or(0, |life| life.ends_owed + 1);
        let (is_found, is_sure) = (false, true);
        let life =
            Life { start_ns, is_found, others: Some(0), first_ended: false, is_sure, ends_owed };
        self.by_pid.insert(pid, life);
        start_ns
    }

    /// A process was found in the process table.
    pub(super) fn found(&mut self, pid: u32, start_ns: u64) {
        let (is_found, is_sure) = (true, true);
        let life =
            Life { start_ns, is_found, others: None, first_ended: false, is_sure, ends_owed: 0 };
        self.by_pid.entry(pid).or_insert(life);
    }

    /// A thread of a process began.
    pub(super) fn thread_began(&mut self, pid: u32) {
        if let Some(Life { others: Some(others), .. }) = self.by_pid.get_mut(&pid) {
            *others += 1;
        }
    }

    /// A process runs a program: whichever thread wanted that is its first and only one now. The
    /// ends of the others may be told only after this, that of the first one before it included.
    pub(super) fn executed(&mut self, pid: u32) {
        if let Some(life) = self.by_pid.get_mut(&pid) {
            let was_alone = life.others == Some(u32::from(life.first_ended));
            life.others = was_alone.then_some(0);
            life.first_ended = false;
        }
    }

    /// Whether it has threads besides its first one, or may have.
    pub(super) fn has_threads(&self, pid: u32) -> bool {
        self.by_pid.get(&pid).is_some_and(|life| life.others != Some(0))
    }

    /// A thread of a process ended. If the process has with it, gives when it began. What is not
    /// known of the other threads is asked: whether the life that began then has ended.
    pub(super) fn ended(
        &mut self,
        tid: u32,
        pid: u32,
        has_ended: impl FnOnce(u64) -> bool,
    ) -> Option<u64> {
        let life = self.by_pid.get_mut(&pid)?;
        if tid == pid {
            if life.ends_owed > 0 {
                life.ends_owed -= 1;
                return None;
            }
            life.first_ended = true;
        } else if let Some(others) = &mut life.others {
            *others = others.saturating_sub(1);
        }
        let is_over = life.first_ended
            && life.others.map_or_else(|| has_ended(life.start_ns), |others| others == 0);
        is_over.then(|| self.by_pid.remove(&pid)).flatten().map(|life| life.start_ns)
    }

    /// Some things were not told: threads and ends among them, perhaps.
    pub(super) fn lost_some(&mut self) {
        for life in self.by_pid.values_mut() {
            life.others = None;
            life.is_sure = false;
            life.ends_owed = 0;
        }
    }

    /// Forgets those that are gone and of whose end may not have been told.
    pub(super) fn forget(&mut self, mut is_gone: impl FnMut(u32, u64) -> bool) {
        self.by_pid.retain(|pid, life| life.is_sure || !is_gone(*pid, life.start_ns));
        for life in self.by_pid.values_mut() {
            life.is_sure = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 10;

    fn never(_: u64) -> bool {
        panic!("it is known")
    }

    #[test]
    fn a_process_ends_with_the_last_of_its_threads() {
        let mut lives = Lives::default();
        assert_eq!(lives.began(5, 105, TICK), 105);
        lives.thread_began(5);
        lives.thread_began(5);
        assert_eq!(lives.ended(7, 5, never), None);
        assert_eq!(lives.ended(5, 5, never), None, "another is left");
        assert_eq!(lives.start_of(5), Some(105));
        assert_eq!(lives.ended(6, 5, never), Some(105));
        assert_eq!(lives.start_of(5), None);
        assert_eq!(lives.ended(5, 5, never), None, "nobody has it");
    }

    #[test]
    fn a_thread_that_runs_a_program_becomes_the_process() {
        let mut lives = Lives::default();
        lives.began(5, 105, TICK);
        lives.thread_began(5);
        assert_eq!(lives.ended(5, 5, never), None);
        lives.executed(5);
        assert_eq!(lives.ended(5, 5, never), Some(105));
        // The end of what was the first thread is told after the program that another runs.
        lives.began(6, 205, TICK);
        lives.thread_began(6);
        assert!(lives.has_threads(6));
        lives.executed(6);
        assert_eq!(lives.ended(6, 6, |_| false), None, "it is alive");
        assert_eq!(lives.ended(7, 6, |_| false), None);
        assert_eq!(lives.ended(6, 6, |_| true), Some(205));
    }

    #[test]
    fn of_one_that_was_found_its_threads_are_asked_for() {
        let mut lives = Lives::default();
        lives.found(5, 100);
        lives.thread_began(5);
        assert_eq!(lives.ended(5, 5, |start_ns| start_ns != 100), None);
        assert_eq!(lives.ended(6, 5, |_| true), Some(100));
        // Its beginning waits to be read.
        lives.found(8, 100);
        assert_eq!(lives.began(8, 104, TICK), 100);
        assert_eq!(lives.began(8, 114, TICK), 114, "another one");
    }

    #[test]
    fn an_end_that_comes_late_is_not_the_next_lifes() {
        let mut lives = Lives::default();
        lives.began(5, 105, TICK);
        lives.began(5, 106, TICK);
        lives.began(5, 107, TICK);
        assert_eq!(lives.ended(5, 5, never), None);
        assert_eq!(lives.ended(5, 5, never), None);
        assert_eq!(lives.ended(5, 5, never), Some(107));
    }

    #[test]
    fn after_a_loss_nothing_is_owed_and_what_is_gone_is_forgotten() {
        let mut lives = Lives::default();
        lives.began(5, 105, TICK);
        lives.began(6, 105, TICK);
        lives.lost_some();
        lives.began(5, 205, TICK);
        assert_eq!(lives.ended(5, 5, never), Some(205), "the end of the first was lost");
        lives.began(7, 205, TICK);
        lives.forget(|pid, start_ns| (pid, start_ns) == (6, 105) || pid == 7);
        assert_eq!((lives.start_of(6), lives.start_of(7)), (None, Some(205)));
    }
}
