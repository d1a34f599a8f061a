//! Telling the monitor what the kernel tells.
//!
//! What the kernel tells comes in chunks, with the moment up to which everything has been taken; the
//! teller makes of that what the monitor takes, and looks at the process table: once when the
//! source is in place, after every overrun, and every now and then for what the kernel does not
//! tell. Chunks are taken by itself, or come from a reader, which is another thread.
//!
//! A process most often runs a program right after it was made. The teller holds what happens back
//! for a moment behind a fork that is not followed by that yet, so that both are one start.
//!
//! When the teller is behind, the kernel's room fills; what finds none is counted there and told as
//! an overrun.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use daemoneye_lib::models::process::SourceName;
use tokio::sync::mpsc;

use super::clock::{since_boot_ns, wall_offset_ns};
use super::poll::Control;
use super::procfs::Procfs;
use super::{
    Happening, Happenings, Missing, Observation, Overrun, ProcessTable, SourceError, What,
};

/// How long a reader and the teller sleep at most when there is nothing to do.
pub(super) const IDLE: Duration = Duration::from_millis(100);
/// How often the process table is looked at for what the kernel does not tell.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long after an overrun: there may be more of them.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How often the kernel is asked for what it tells only then.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How much longer than that takes it is left alone: it is at most a hundredth of a core.
const SWEEP_REST: u32 = 100;

/// Why there is no chunk.
pub(super) enum NoChunk {
    /// Nothing has come yet.
    Yet,
    /// Nothing comes any more.
    Ever,
}

/// Where chunks are taken from.
pub(super) trait Intake: Send + 'static {
    /// What is taken at once.
    type Chunk;

    /// The next chunk, if it comes within this time.
    fn take(&mut self, most: Duration) -> Result<Self::Chunk, NoChunk>;

    /// One that was there already when the last was taken.
    fn take_more(&mut self) -> Option<Self::Chunk>;

    /// Everything that happened before this has been taken or is taken next, in nanoseconds since
    /// boot.
    fn drained_ns(&self) -> u64;
}

/// Chunks that a reader hands over.
pub(super) struct HandedOver<C> {
    pub(super) chunks: blocking::Receiver<C>,
    /// Everything that happened before this has been handed over.
    pub(super) drained: Arc<AtomicU64>,
}

impl<C: Send + 'static> Intake for HandedOver<C> {
    type Chunk = C;

    fn take(&mut self, most: Duration) -> Result<C, NoChunk> {
        self.chunks.recv_timeout(most).map_err(|why| match why {
            blocking::RecvTimeoutError::Timeout => NoChunk::Yet,
            blocking::RecvTimeoutError::Disconnected => NoChunk::Ever,
        })
    }

    fn take_more(&mut self) -> Option<C> {
        self.chunks.try_recv().ok()
    }

    fn drained_ns(&self) -> u64 {
        self.drained.load(Ordering::Acquire)
    }
}

/// What a source's chunks mean.
pub(super) trait Feed: Send + 'static {
    /// The source.
    const NAME: SourceName;
    /// Where its chunks come from.
    type Intake: Intake;
    /// How many of them are taken before anything is told.
    const CHUNKS: usize;

    /// What a chunk holds, one thing after another.
    fn unpack(
        &mut self,
        chunk: <Self::Intake as Intake>::Chunk,
        table: &mut Procfs,
    ) -> Vec<Told<Self::Lost>>;

    /// What is counted that found no room.
    type Lost: Lost;

    /// How many things have found no room by now.
    ///
    /// # Errors
    /// If that cannot be found out any more: who cannot say what is missing sees nothing.
    fn lost(&self) -> Result<Self::Lost, SourceError>;

    /// Looks at the process table.
    fn look(&mut self, table: &mut Procfs) -> Result<ProcessTable, SourceError>;

    /// Has the kernel tell what it tells only when it is asked.
    fn sweep(&mut self) {}

    /// Adds to what is told next whatever can be known only then.
    fn complete(&mut self, _: &mut [Happening], _: &mut Procfs) {}
}

/// How many things have found no room, in all.
pub(super) trait Lost: Copy + Default + Send + 'static {
    /// How many more these are than those told before, and of which sorts, if that is known.
    fn since(self, told: Self) -> (u64, Option<Missing>);

    /// The more of the two, of each sort.
    fn or_told(self, told: Self) -> Self;
}

impl Lost for u64 {
    fn since(self, told: Self) -> (u64, Option<Missing>) {
        (self.saturating_sub(told), None)
    }

    fn or_told(self, told: Self) -> Self {
        self.max(told)
    }
}

/// Something that the kernel told.
pub(super) struct Told<L> {
    /// How many things had found no room before this one.
    pub(super) lost: L,
    /// When it happened, in nanoseconds since boot.
    pub(super) at_ns: u64,
    /// What it was, if it is of interest.
    pub(super) happening: Option<Happening>,
}

/// Tells the monitor.
pub(super) struct Teller<F: Feed> {
    feed: F,
    intake: F::Intake,
    /// How many were told to be lost.
    told_lost: F::Lost,
    /// When the last thing happened that was told, in nanoseconds since boot.
    last_ns: u64,
    observations: mpsc::Sender<Observation>,
    table: Procfs,
    /// How long a fork waits for the program that it runs.
    hold: Duration,
    /// Not told yet.
    pending: Vec<Happening>,
}

impl<F: Feed> Teller<F> {
    /// One that tells what `intake` gives, and holds a fork back for as long as `hold` at most.
    pub(super) fn new(
        feed: F,
        intake: F::Intake,
        table: Procfs,
        hold: Duration,
        observations: mpsc::Sender<Observation>,
    ) -> Self {
        Self {
            feed,
            intake,
            told_lost: F::Lost::default(),
            last_ns: since_boot_ns(),
            observations,
            table,
            hold,
            pending: Vec::new(),
        }
    }

    /// Tells until nothing comes any more or nobody listens.
    pub(super) fn run(mut self) {
        // Processes that are there come first. What happens to them meanwhile waits in the ring.
        let Some(()) = self.look(false) else { return };
        let mut look_at = Instant::now() + LOOK_EVERY;
        let mut sweep_at = Instant::now() + SWEEP_EVERY;
        loop {
            let most = if self.pending.is_empty() { IDLE } else { self.hold };
            let wait = look_at.min(sweep_at).saturating_duration_since(Instant::now()).min(most);
            let told = match self.intake.take(wait) {
                Ok(chunk) => self.take(chunk),
                Err(NoChunk::Yet) => self.take_rest(),
                Err(NoChunk::Ever) => {
                    // The monitor is told whatever there was.
                    self.tell(self.pending.len());
                    self.take_rest();
                    return;
                }
            };
            // Whatever happened before this is either taken or waits to be.
            let drained_ns = self.intake.drained_ns();
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
                // There may have been something to take all the time.
                let Some(_) = self.lost() else { return };
                self.feed.sweep();
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
        let observation = match self.feed.look(&mut self.table) {
            Ok(mut table) => {
                table.is_told = true;
                Observation::Snapshot(table)
            }
            Err(error) => Observation::Failed(error),
        };
        let looked_ns = since_boot_ns();
        while told_first && self.intake.drained_ns() < looked_ns {
            match self.intake.take(IDLE) {
                Ok(chunk) => self.take(chunk).map(drop)?,
                Err(NoChunk::Yet) => {}
                Err(NoChunk::Ever) => break,
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
        for _ in 0..F::CHUNKS {
            let Some(chunk) = self.intake.take_more() else { break };
            overrun |= self.take(chunk)?;
        }
        Some(overrun)
    }

    /// Takes what a chunk holds, and says whether something had found no room before it.
    fn take(&mut self, chunk: <F::Intake as Intake>::Chunk) -> Option<bool> {
        let mut overrun = false;
        for told in self.feed.unpack(chunk, &mut self.table) {
            overrun |= self.tell_overrun(told.lost, told.at_ns)?;
            self.last_ns = self.last_ns.max(told.at_ns);
            self.pending.extend(told.happening);
        }
        Some(overrun)
    }

    /// Tells of what found no room and was followed by nothing that did.
    fn take_rest(&mut self) -> Option<bool> {
        let now_ns = since_boot_ns();
        let lost = self.lost()?;
        // What is still in the ring says better when it was.
        let is_read = self.intake.drained_ns() > self.last_ns;
        if is_read { self.tell_overrun(lost, now_ns) } else { Some(false) }
    }

    /// How many things have found no room by now. `None` if that is not known any more, which is
    /// told, or nobody listens.
    fn lost(&self) -> Option<F::Lost> {
        let tell = |error| drop(self.observations.blocking_send(Observation::Failed(error)));
        self.feed.lost().map_err(tell).ok()
    }

    /// Tells of what found no room and was not told yet, and says whether there is any. `None` if
    /// nobody listens any more.
    fn tell_overrun(&mut self, lost: F::Lost, until_ns: u64) -> Option<bool> {
        let (missing, sorts) = lost.since(self.told_lost);
        if missing == 0 {
            return Some(false);
        }
        self.tell(self.pending.len())?;
        let offset_ns = wall_offset_ns();
        let overrun = Overrun {
            missing,
            sorts,
            since_ns: offset_ns.saturating_add_unsigned(self.last_ns),
            until_ns: offset_ns.saturating_add_unsigned(until_ns),
        };
        self.told_lost = lost.or_told(self.told_lost);
        self.last_ns = until_ns;
        self.observations.blocking_send(Observation::Overrun(overrun)).ok().map(|()| true)
    }

    /// Tells the first of what was not told yet. `None` if nobody listens any more.
    fn tell(&mut self, count: usize) -> Option<()> {
        if count == 0 {
            return Some(());
        }
        self.feed.complete(&mut self.pending[..count], &mut self.table);
        let happenings = self.pending.drain(..count).collect();
        let seen = Happenings {
            source: F::NAME,
            boot_id: self.table.boot_id(),
            wall_offset_ns: wall_offset_ns(),
            happenings,
        };
        self.observations.blocking_send(Observation::Seen(seen)).ok()
    }
}

/// How many of the first happenings wait for nothing: no fork since then is among them without the
/// program that it runs.
fn settled(pending: &[Happening], since_ns: u64) -> usize {
    let mut program_at = HashMap::with_capacity(pending.len());
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

/// Whether a reader is to end.
pub(super) fn is_to_end(orders: &blocking::Receiver<Control>) -> bool {
    loop {
        match orders.try_recv() {
            // One that is told is not polled, and has no interval.
            Ok(Control::SetInterval(_)) => {}
            Ok(Control::Stop) | Err(blocking::TryRecvError::Disconnected) => return true,
            Err(blocking::TryRecvError::Empty) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision};

    use super::super::Facts;
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
        all.map(|(&(pid, word), at_ns)| Happening {
            pid,
            start_ns: 7,
            precision: KeyPrecision::Nanosecond,
            at_ns,
            what: what(word),
        })
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
