//! Makes of the kernel's records what the monitor takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData};
use daemoneye_lib::models::process::{Completeness, SourceName};
use tokio::sync::mpsc;

use super::inventory::Inventory;
use super::record::{Kind, Lost, Record};
use super::{CHUNKS, IDLE, since_boot_ns, wall_offset_ns};
use crate::source::poll::Scan;
use crate::source::procfs::Procfs;
use crate::source::{Facts, Happening, Happenings, Observation, Overrun, What};

/// How often the process table is looked at for what was missed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long after an overrun: there may be more of them.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How often processes are compared with what was last told of them, for what no tracepoint
/// tells: users, groups, capabilities, sessions.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How much longer than a sweep takes there is none.
const SWEEP_REST: u32 = 20;

/// Tells the monitor.
pub(super) struct Teller {
    taken: blocking::Receiver<Vec<u8>>,
    drained: Arc<AtomicU64>,
    lost: Array<MapData, [u32; 3]>,
    /// How many were told to be lost.
    told_lost: Lost,
    /// When the last thing happened that was told, in nanoseconds since boot.
    last_ns: u64,
    observations: mpsc::Sender<Observation>,
    inventory: Inventory,
    table: Procfs,
    page_bytes: u64,
    /// How long a fork waits for the program that it runs.
    hold: Duration,
    /// Not told yet.
    pending: Vec<Happening>,
}

impl Teller {
    /// Tells, of what the reader hands over, as much as it says to have handed over; a fork waits
    /// this long for the program that it runs.
    pub(super) fn new(
        (taken, drained): (blocking::Receiver<Vec<u8>>, Arc<AtomicU64>),
        lost: Array<MapData, [u32; 3]>,
        inventory: Inventory,
        table: Procfs,
        hold: Duration,
        observations: mpsc::Sender<Observation>,
    ) -> Self {
        Self {
            taken,
            drained,
            lost,
            told_lost: Lost::default(),
            last_ns: since_boot_ns(),
            observations,
            inventory,
            table,
            page_bytes: rustix::param::page_size() as u64,
            hold,
            pending: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        // Processes that are there come first. What happens to them meanwhile waits in the ring.
        let Some(()) = self.look(false) else { return };
        let mut look_at = Instant::now() + LOOK_EVERY;
        let mut sweep_at = Instant::now() + SWEEP_EVERY;
        loop {
            let most = if self.pending.is_empty() { IDLE } else { self.hold };
            let wait = look_at.min(sweep_at).saturating_duration_since(Instant::now()).min(most);
            let told = match self.taken.recv_timeout(wait) {
                Ok(chunk) => self.take(&chunk),
                Err(blocking::RecvTimeoutError::Timeout) => self.take_rest(),
                Err(blocking::RecvTimeoutError::Disconnected) => {
                    // The reader has ended, and the monitor is told whatever it had read.
                    self.tell(self.pending.len());
                    self.take_rest();
                    return;
                }
            };
            // Whatever happened before this is either taken or waits to be.
            let drained_ns = self.drained.load(Ordering::Acquire);
            let Some(overrun) = told.zip(self.take_all()).map(|(one, all)| one | all) else {
                return;
            };
            let hold_ns = u64::try_from(self.hold.as_nanos()).unwrap_or(u64::MAX);
            let count = settled(&self.pending, drained_ns.saturating_sub(hold_ns));
            let Some(()) = self.tell(count) else { return };
            if overrun {
                look_at = look_at.min(Instant::now() + LOOK_AGAIN);
            }
            let now = Instant::now();
            if now >= sweep_at {
                self.inventory.sweep();
                sweep_at = Instant::now() + SWEEP_EVERY.max(now.elapsed() * SWEEP_REST);
            }
            if now >= look_at {
                look_at = Instant::now() + LOOK_EVERY;
                let Some(()) = self.look(true) else { return };
            }
        }
    }

    /// Looks at the process table. What happened while it was looked at is told first, if asked
    /// for: the table is then older than what is known. `None` if nobody listens any more.
    fn look(&mut self, told_first: bool) -> Option<()> {
        let listed = self.inventory.list(&mut self.table).transpose();
        let observation = match listed.unwrap_or_else(|| self.table.scan()) {
            Ok(mut table) => {
                table.is_told = true;
                Observation::Snapshot(table)
            }
            Err(error) => Observation::Failed(error),
        };
        let looked_ns = since_boot_ns();
        // A reader that has ended hands over nothing any more.
        while told_first && self.drained.load(Ordering::Acquire) < looked_ns {
            match self.taken.recv_timeout(IDLE) {
                Ok(chunk) => self.take(&chunk).map(drop)?,
                Err(blocking::RecvTimeoutError::Timeout) => {}
                Err(blocking::RecvTimeoutError::Disconnected) => break,
            }
        }
        if told_first {
            self.take_all()?;
        }
        self.tell(self.pending.len())?;
        self.observations.blocking_send(observation).ok()
    }

    /// Takes the chunks that are there, as many as can be, and says whether something had found no room.
    fn take_all(&mut self) -> Option<bool> {
        let mut overrun = false;
        for _ in 0..CHUNKS {
            let Ok(chunk) = self.taken.try_recv() else { break };
            overrun |= self.take(&chunk)?;
        }
        Some(overrun)
    }

    /// Takes what a chunk holds, and says whether something had found no room before it.
    fn take(&mut self, chunk: &[u8]) -> Option<bool> {
        let mut overrun = false;
        let mut rest = chunk;
        while let Some((length, bytes)) = rest.split_first_chunk() {
            let length = u32::from_ne_bytes(*length) as usize;
            let Some((bytes, behind)) = bytes.split_at_checked(length) else { break };
            rest = behind;
            let Some(record) = Record::read(bytes) else {
                tracing::error!(bytes = length, "a record of the kernel's ring cannot be read");
                continue;
            };
            overrun |= self.tell_overrun(record.lost, record.time_ns)?;
            self.last_ns = self.last_ns.max(record.time_ns);
            let happening = self.happening(&record);
            self.pending.extend(happening);
        }
        Some(overrun)
    }

    /// Tells of what found no room and was followed by nothing that did.
    fn take_rest(&mut self) -> Option<bool> {
        let now_ns = since_boot_ns();
        let lost = self.lost.get(&0, 0).map_or(self.told_lost, Lost);
        // What is still in the ring says better when it was.
        let is_read = self.drained.load(Ordering::Acquire) > self.last_ns;
        if is_read { self.tell_overrun(lost, now_ns) } else { Some(false) }
    }

    /// Tells of what found no room and was not told yet, and says whether there is any. `None` if
    /// nobody listens any more.
    fn tell_overrun(&mut self, lost: Lost, until_ns: u64) -> Option<bool> {
        let missing = lost.since(self.told_lost);
        if missing.total() == 0 {
            return Some(false);
        }
        self.tell(self.pending.len())?;
        let offset_ns = wall_offset_ns();
        let overrun = Overrun {
            missing: missing.total(),
            sorts: Some(missing),
            since_ns: offset_ns.saturating_add_unsigned(self.last_ns),
            until_ns: offset_ns.saturating_add_unsigned(until_ns),
        };
        self.told_lost = self.told_lost.and(missing);
        self.last_ns = until_ns;
        self.observations.blocking_send(Observation::Overrun(overrun)).ok().map(|()| true)
    }

    /// Tells the first of what was not told yet. `None` if nobody listens any more.
    fn tell(&mut self, count: usize) -> Option<()> {
        if count == 0 {
            return Some(());
        }
        let happenings = self.pending.drain(..count).collect();
        let seen = Happenings {
            source: SourceName::Ebpf,
            boot_id: self.table.boot_id(),
            wall_offset_ns: wall_offset_ns(),
            happenings,
        };
        self.observations.blocking_send(Observation::Seen(seen)).ok()
    }

    fn happening(&mut self, record: &Record<'_>) -> Option<Happening> {
        let pid = record.pid;
        let what = match record.kind {
            Kind::Fork => {
                self.inventory.take(record);
                let inherits_group = !record.is_in_other_group();
                let facts = self.with_group(record);
                What::Forked { forker: record.forker, inherits_group, facts: Box::new(facts) }
            }
            Kind::Exec => {
                self.inventory.take(record);
                let mut facts = record.facts();
                // Of one that is still there all of them can be had.
                if let Some(beginning) = record.cut_argv()
                    && let Some(argv) = self.table.argv_of(pid, record.start_ns, beginning)
                {
                    let cut = argv.is_truncated() || record.is_path_cut();
                    facts.completeness =
                        if cut { Completeness::Truncated } else { Completeness::Complete };
                    facts.argv = Some(argv);
                }
                What::Executed(Box::new(facts))
            }
            Kind::Rename => What::Renamed(record.name()),
            Kind::Move => {
                // Of one that is gone already, its group is of no interest any more.
                let (cgroup, container_id) = self.table.cgroup_of(pid)?;
                What::Moved { cgroup, container_id }
            }
            Kind::Look if self.inventory.knows(record) => {
                What::Found(Box::new(self.with_group(record)))
            }
            // What it runs found no room to be told.
            Kind::Look => {
                let facts = self.table.facts_of(pid, record.start_ns).ok().flatten()?;
                self.inventory.take(record);
                What::Executed(Box::new(facts))
            }
            Kind::Exit => {
                self.inventory.forget(record);
                What::Exited(record.exit(self.page_bytes), Box::new(record.facts()))
            }
        };
        Some(Happening { pid, start_ns: record.start_ns, at_ns: record.time_ns, what })
    }

    /// What the record says, with the control group where that is another than was told.
    fn with_group(&mut self, record: &Record<'_>) -> Facts {
        let mut facts = record.facts();
        if record.is_in_other_group()
            && let Some((cgroup, container_id)) = self.table.cgroup_of(record.pid)
        {
            facts.cgroup = Some(cgroup);
            facts.container_id = container_id;
        }
        facts
    }
}

/// How many of the first happenings wait for nothing: no fork since then is among them without the
/// program that it runs.
fn settled(pending: &[Happening], since_ns: u64) -> usize {
    let mut program_at = HashMap::new();
    let mut settled = pending.len();
    for (index, happening) in pending.iter().enumerate().rev() {
        let life = (happening.pid, happening.start_ns);
        match happening.what {
            What::Executed(_) | What::Exited(..) => {
                program_at.insert(life, index);
            }
            What::Forked { .. }
                if happening.at_ns > since_ns
                    && program_at.get(&life).is_none_or(|at| *at >= settled) =>
            {
                settled = index;
            }
            _ => {}
        }
    }
    settled
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::process::Exit;

    use super::*;

    fn happenings(whats: &[(u32, &str)]) -> Vec<Happening> {
        let facts = || Box::new(Facts::unknown(Completeness::Complete));
        let what = |what| match what {
            "fork" => What::Forked { forker: 1, inherits_group: true, facts: facts() },
            "exec" => What::Executed(facts()),
            "exit" => What::Exited(Exit::default(), facts()),
            other => What::Renamed(other.into()),
        };
        let all = whats.iter().zip(1..);
        all.map(|(&(pid, word), at_ns)| Happening { pid, start_ns: 7, at_ns, what: what(word) })
            .collect()
    }

    #[test]
    fn a_fork_waits_for_its_program_and_everything_behind_it_waits_too() {
        let all = |whats: &[(u32, &str)]| settled(&happenings(whats), 0);
        assert_eq!(all(&[]), 0);
        assert_eq!(all(&[(2, "fork"), (2, "name"), (2, "exec"), (3, "exit")]), 4);
        assert_eq!(all(&[(3, "exit"), (2, "fork"), (4, "name")]), 1);
        assert_eq!(all(&[(2, "fork"), (2, "exit")]), 2, "it will run none");
        // The first one's program stands behind a fork that waits.
        assert_eq!(all(&[(9, "name"), (2, "fork"), (3, "fork"), (2, "exec")]), 1);
        assert_eq!(all(&[(2, "fork"), (2, "exec"), (3, "fork"), (2, "exec")]), 2);
    }

    #[test]
    fn nothing_waits_for_longer_than_it_may() {
        let forks = happenings(&[(2, "fork"), (3, "fork"), (2, "exec"), (4, "name")]);
        assert_eq!(settled(&forks, 0), 0);
        assert_eq!(settled(&forks, 1), 1, "the first is old");
        assert_eq!(settled(&forks, 2), 4);
    }
}
