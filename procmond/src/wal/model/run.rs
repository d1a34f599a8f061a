//! Lives a history, and takes every operation of it for the last one.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use daemoneye_lib::stream::{Sequence, StreamId};
use tempfile::TempDir;

use super::super::state::{Shared, State};
use super::super::storage::faulty::Op;
use super::super::storage::sim::{Armed, Dice, Fault, SimDisk, Which};
use super::super::{NewRecord, Promise, Retire, WalError, WalOptions, WriteAheadLog, writer};
use super::archives::read_archives;
use super::expect::{Checked, Expect, Known, Lie, NextStream, log_bytes, must, torn_tail_is_kept};
use super::history::{Action, History, How};

/// Longer than anything takes that is not stuck.
const STUCK: Duration = Duration::from_secs(30);
/// What segments may take beyond the budget, each: headers and control records are not counted when
/// a record is admitted.
const OVER_BUDGET_BYTES: u64 = 400;

/// And what is kept in reserve may become a segment.
const RESERVE_BYTES: u64 = 4096;

/// What a run came to, in numbers.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) histories: u64,
    pub(super) operations: u64,
    pub(super) openings: u64,
    pub(super) crash_points: u64,
    pub(super) records: u64,
    pub(super) faults: u64,
    /// The archives there are at the end.
    pub(super) archives: u64,
    /// Histories in which segments are left at their age.
    pub(super) aged: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.histories += more.histories;
        self.operations += more.operations;
        self.openings += more.openings;
        self.crash_points += more.crash_points;
        self.records += more.records;
        self.faults += more.faults;
        self.archives += more.archives;
        self.aged += more.aged;
    }
}

/// How many operations of a history are taken for its last one.
#[derive(Debug, Clone, Copy)]
pub(super) enum CrashPoints {
    All,
    AtMost(usize),
}

/// How a log's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    Killed,
    PowerCut,
}

/// A disk as it was before an operation, and what must be true of the log on it.
struct CrashPoint {
    /// The operation.
    nth: u64,
    at: String,
    disk: SimDisk,
    expect: Expect,
}

/// What the storage's operations may look at, on whatever thread they come.
#[derive(Default)]
struct Live {
    expect: Expect,
    log: Option<Arc<Shared>>,
    /// Crash points are taken.
    on: bool,
    points: Vec<CrashPoint>,
}

/// A log in the course of a history.
pub(super) struct Run {
    disk: SimDisk,
    dir: TempDir,
    live: Arc<Mutex<Live>>,
    log: Option<WriteAheadLog>,
    options: WalOptions,
    dice: Dice,
    next_id: u64,
    /// Segments from here on were asked to be kept when this was the oldest sequence held.
    retained: Option<u64>,
    /// What was durable before the action, and acknowledged durably.
    before: (u64, u64),
    /// A sync is to lie.
    lie_armed: bool,
    /// Faults since the log was opened that it may not survive.
    hard_faults: u32,
    capped: bool,
    /// What the log took when it was opened beyond its budget: a crash came before what a failed
    /// write had left was cut off. That counts, so nothing comes on top of it.
    opened_bytes: u64,
    tally: Tally,
}

fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// The options are for a directory of its own.
    pub(super) fn new(options: impl FnOnce(&Path) -> WalOptions, seed: u64) -> Self {
        let disk = SimDisk::new();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = options(dir.path());
        let live = Arc::new(Mutex::new(Live { on: true, ..Live::default() }));
        let (watched, seen) = (disk.clone(), Arc::clone(&live));
        disk.watch(Some(Arc::new(move |nth, op, path| {
            let mut live = relock(&seen);
            if !live.on || matches!(op, Op::Read | Op::Open | Op::List | Op::Len | Op::CreateDir) {
                return;
            }
            // What is durable before the snapshot is in it.
            let mut expect = live.expect.clone();
            if let Some(log) = &live.log {
                let state = log.lock();
                if Some(state.stream) != expect.stream {
                    let begun = expect.enter_next_stream(state.stream, Some(state.epoch));
                    debug_assert_eq!(begun, Ok(()));
                }
                expect.receipted = state.durable.0;
                if log.options.sync.is_always() {
                    expect.synced = state.durable.0;
                }
                expect.watermark_min = state.watermark_durable.0;
                expect.watermark_max = expect.watermark_max.max(state.watermark.0);
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let at = format!("{op:?} of {name}");
            live.points.push(CrashPoint { nth, at, disk: watched.snapshot(), expect });
        })));
        Self {
            disk,
            dir,
            live,
            log: None,
            options,
            dice: Dice::new(seed),
            next_id: 0,
            retained: None,
            before: (0, 0),
            lie_armed: false,
            hard_faults: 0,
            capped: false,
            opened_bytes: 0,
            tally: Tally::default(),
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        relock(&self.live)
    }

    fn log(&self) -> WriteAheadLog {
        self.log.clone().expect("open between actions")
    }

    fn state_of<T>(&self, see: impl FnOnce(&State) -> T) -> T {
        see(&self.log().inner.shared.lock())
    }

    pub(super) fn stream(&self) -> StreamId {
        self.log().stream()
    }

    /// Lives a history to its end and checks every crash point of it.
    pub(super) fn live_through(history: &History, points: CrashPoints) -> Checked<Tally> {
        let mut run = Self::new(|dir| history.setup.options(dir), history.seed);
        let mut dice = Dice::new(!history.seed);
        if dice.one_in(2) {
            run.disk.unsettle(dice.next());
        }
        let lived = run.live_to_the_end(history);
        lived.map_err(|wrong| format!("{wrong}, the disk's last changes:\n{}", run.trace()))?;
        run.check_crash_points(points)?;
        Ok(run.tally)
    }

    fn trace(&self) -> String {
        self.disk.trace(u64::MAX)
    }

    fn live_to_the_end(&mut self, history: &History) -> Checked {
        self.open(false)?;
        for (nth, action) in history.actions.iter().enumerate() {
            self.act(action).map_err(|wrong| format!("{wrong}\nafter action {nth}, {action:?}"))?;
        }
        self.end().map_err(|wrong| format!("{wrong}\nat the end"))
    }

    pub(super) fn act(&mut self, action: &Action) -> Checked {
        self.before = self.state_of(|state| (state.durable.0, state.watermark_durable.0));
        match action {
            Action::Append(lengths, how) => self.append(lengths, *how)?,
            Action::Acknowledge(percent) => self.acknowledge(*percent)?,
            Action::Retain(percent) => {
                let from = self.share(*percent).max(1);
                let log = self.log();
                // What is deleted already does not come back.
                let held = self.state_of(|state| state.segments.front().map(|s| s.first.0));
                log.retain_from(Sequence(from));
                self.retained = held.filter(|&held| held <= from).map(|_| from);
                // It may have been on its way out.
                self.retained = self.retained.filter(|&from| from > log.watermark().0);
            }
            Action::Flush => self.flush()?,
            Action::Read(percent, max_bytes) => {
                let from = self.share(*percent).max(1);
                let expect = self.live().expect.clone();
                let since = Instant::now();
                // What is written again after a failed sync is not there for a moment, or until the
                // disk has room.
                let patience = if self.options.sync.is_always() { Duration::ZERO } else { STUCK };
                let again =
                    || !self.options.sync.is_always() && self.state_of(|s| s.refusing.is_some());
                while self.disk.is_powered() && !again() {
                    let read = expect.read(&self.log(), from, usize::from(*max_bytes));
                    // The power may have gone meanwhile.
                    if read.is_ok() || !self.disk.is_powered() {
                        break;
                    }
                    if since.elapsed() >= patience {
                        read?;
                    }
                    thread::park_timeout(Duration::from_millis(1));
                }
                self.read_retained()?;
            }
            Action::NewStream(with_first) => self.new_stream(*with_first)?,
            Action::Reopen => self.reopen()?,
            Action::Kill => self.crash(false)?,
            Action::PowerCut => self.crash(true)?,
            Action::Arm(armed) => self.arm(*armed),
            Action::Full(bytes) => {
                self.capped = true;
                self.disk.set_capacity(self.disk.used_bytes() + u64::from(*bytes));
            }
            Action::Room => self.room()?,
        }
        self.settle()?;
        let budget = self.options.disk_budget_bytes;
        let at_most = budget.max(self.opened_bytes);
        let full = budget / self.options.segment_bytes.min(budget / 4) + 3;
        // Left at their age they may hold little.
        let segments = full.max(self.disk.names(self.dir.path()).len() as u64);
        let budget = at_most + RESERVE_BYTES + segments * OVER_BUDGET_BYTES;
        let since = Instant::now();
        loop {
            let used = log_bytes(&self.disk, self.dir.path());
            if used <= budget || !self.disk.is_powered() {
                break;
            }
            // What is needed no more is removed off the writer's path.
            must!(
                since.elapsed() < STUCK,
                "W9: {used} bytes on a budget of {budget}: {:?}, by its own account {:?}",
                self.disk.names(self.dir.path()),
                self.state_of(|s| (s.left_bytes, s.retired_bytes, s.spare_bytes, s.used_bytes())),
            );
            thread::park_timeout(Duration::from_millis(1));
        }
        must!(
            self.disk.read_bytes_max() <= 512 << 10,
            "W9: {} bytes read at once",
            self.disk.read_bytes_max()
        );
        let mut violations = self.disk.violations();
        // A file without records.
        violations.retain(|violation| !violation.contains("procmond.reserve"));
        must!(violations.is_empty(), "W3: written to what a crash has touched: {violations:?}");
        Ok(())
    }

    pub(super) fn arm(&mut self, armed: Armed) {
        if armed.fault == Fault::Lie {
            self.lie_armed = true;
            self.live().on = false;
        }
        self.disk.arm(armed);
    }

    /// A sequence at this share of what is durable.
    fn share(&self, percent: u8) -> u64 {
        self.log().last_durable().0 * u64::from(percent) / 100
    }

    /// What is to be submitted next, known before it is.
    fn known(&mut self, len: u16) -> Known {
        let known = Known::new(self.next_id, u32::from(len), self.log().epoch());
        self.next_id += 1;
        self.tally.records += 1;
        known
    }

    fn append(&mut self, lengths: &[u16], how: How) -> Checked {
        let log = self.log();
        if matches!(how, How::Together | How::Blocking) {
            return self.append_together(lengths, how);
        }
        let mut last = None;
        for &len in lengths {
            let known = self.known(len);
            let payload = known.payload();
            let sequence = loop {
                self.live().expect.records.push(known);
                match log.submit(known.kind(), known.timestamp_ns(), &payload) {
                    Ok(sequence) => break sequence,
                    Err(WalError::Busy) => {
                        self.live().expect.records.pop();
                        wait_for("room", log.room())?;
                    }
                    Err(error) => {
                        self.live().expect.records.pop();
                        return self.refused(error);
                    }
                }
            };
            let assigned = self.live().expect.last();
            must!(sequence.0 == assigned, "W6: {sequence} assigned, not {assigned}");
            last = Some(sequence);
            if how == How::Awaiting {
                self.wait_durable(sequence)?;
            }
        }
        match last {
            Some(last) if how == How::Each => self.wait_durable(last),
            _ => Ok(()),
        }
    }

    fn append_together(&mut self, lengths: &[u16], how: How) -> Checked {
        let log = self.log();
        let known: Vec<_> = lengths.iter().map(|&len| self.known(len)).collect();
        let payloads: Vec<_> = known.iter().map(Known::payload).collect();
        let records: Vec<_> = known
            .iter()
            .zip(&payloads)
            .map(|(known, payload)| NewRecord {
                kind: known.kind(),
                timestamp_ns: known.timestamp_ns(),
                payload,
            })
            .collect();
        loop {
            let before = self.live().expect.records.len();
            self.live().expect.records.extend(&known);
            if how == How::Blocking {
                let appended = log.append_blocking(&records);
                // What was taken is known by the sequences used.
                if log.last().0 == before as u64 {
                    self.live().expect.records.truncate(before);
                }
                return match appended {
                    Ok(receipt) => self.wait_durable(receipt.sequence),
                    Err(error) => self.refused(error),
                };
            }
            let error = match log.submit_all(&records) {
                Ok(last) => {
                    let assigned = self.live().expect.last();
                    must!(last.0 == assigned, "W6: {last} assigned, not {assigned}");
                    return self.wait_durable(last);
                }
                Err(error) => error,
            };
            self.live().expect.records.truncate(before);
            if !matches!(error, WalError::Busy) {
                return self.refused(error);
            }
            wait_for("room", log.room())?;
        }
    }

    fn wait_durable(&mut self, sequence: Sequence) -> Checked {
        let receipt = wait_for("a receipt", self.log().durable(sequence))?;
        if let Ok(receipt) = &receipt {
            let mut live = self.live();
            let expect = &mut live.expect;
            expect.receipted = expect.receipted.max(sequence.0);
            if receipt.promise == Promise::Synced {
                expect.synced = expect.synced.max(sequence.0);
            }
            let known = expect.records[sequence.prev().0 as usize];
            must!(
                receipt.sequence == sequence && Some(receipt.epoch) == known.epoch,
                "W6: {receipt:?} for {known:?}"
            );
        }
        self.judge(receipt.map(drop))
    }

    fn flush(&mut self) -> Checked {
        let log = self.log();
        let watermark = log.watermark().0;
        let flushed = wait_for("flush", log.flush())?;
        if let Ok(last) = flushed {
            let expect = &mut self.live().expect;
            expect.receipted = expect.receipted.max(last.0);
            expect.synced = expect.synced.max(last.0);
            expect.watermark_min = expect.watermark_min.max(watermark);
        }
        self.judge(flushed.map(drop))
    }

    /// A record was not taken.
    fn refused(&mut self, error: WalError) -> Checked {
        match error {
            WalError::BudgetSpent { .. } => {
                let (used, spent) = self.state_of(|s| {
                    let frames = 12 * (9000 + 32);
                    (s.used_bytes(), s.used_bytes() + frames > self.options.disk_budget_bytes)
                });
                must!(spent, "W9: refused at {used} of {}", self.options.disk_budget_bytes);
                // Consumers commit what there is.
                self.acknowledge(100)?;
                self.flush()
            }
            other => self.judge(Err(other)),
        }
    }

    /// Whether the log may say so.
    fn judge(&mut self, said: Result<(), WalError>) -> Checked {
        let Err(error) = said else { return Ok(()) };
        if !self.disk.is_powered() {
            return Ok(());
        }
        self.count_faults();
        match error {
            // To be settled when the action is over.
            WalError::Poisoned { .. } | WalError::Closed => {
                must!(self.hard_faults >= 2, "W8: {error} after {} faults", self.hard_faults);
                Ok(())
            }
            WalError::DiskFull { .. } | WalError::Unwritable { .. } => {
                must!(self.hard_faults > 0 || self.capped, "W8: {error} without a reason");
                Ok(())
            }
            other => Err(format!("the log said: {other}")),
        }
    }

    fn count_faults(&mut self) {
        for struck in self.disk.take_struck() {
            self.tally.faults += 1;
            match struck.fault {
                Fault::Error(_) | Fault::ShortThenFull(_) => self.hard_faults += 1,
                Fault::Lie => {
                    self.lie_armed = false;
                    let named = struck.path.extension().is_some_and(|it| it == "wal");
                    let upto = self.live().expect.last();
                    let (after, watermark) = self.before;
                    let lie = if struck.op == Op::Sync && named && self.log.is_some() {
                        Lie::About { after, upto, watermark }
                    } else {
                        Lie::Deep
                    };
                    self.live().expect.lies.push(lie);
                }
                _ => {}
            }
        }
    }

    fn acknowledge(&mut self, percent: u8) -> Checked {
        let upto = self.share(percent);
        let max = self.live().expect.watermark_max;
        self.live().expect.watermark_max = max.max(upto);
        self.judge(self.log().acknowledge(Sequence(upto)))
    }

    pub(super) fn new_stream(&mut self, with_first: bool) -> Checked {
        let log = self.log();
        let first = with_first.then(|| self.known(20));
        {
            let mut live = self.live();
            let watermark = log.watermark().0 as usize;
            let mut records: Vec<_> = first.into_iter().collect();
            records.extend(&live.expect.records[watermark..]);
            live.expect.next_stream = Some(NextStream { records });
        }
        let payload = first.map(|first| first.payload()).unwrap_or_default();
        let first = first.map(|first| (first.kind(), first.timestamp_ns(), &payload[..]));
        match wait_for("a new stream", log.begin_stream(first))? {
            Ok(stream) => {
                let epoch = log.epoch();
                self.retained = None;
                self.live().expect.enter_next_stream(stream, Some(epoch))
            }
            // Which stream it is is found out when the log is opened.
            Err(WalError::Poisoned { .. } | WalError::Closed) => {
                self.count_faults();
                must!(self.hard_faults > 0 || !self.disk.is_powered(), "W8: shut without a reason");
                Ok(())
            }
            Err(error) => {
                self.count_faults();
                must!(
                    self.hard_faults > 0 || self.capped || !self.disk.is_powered(),
                    "no new stream: {error}"
                );
                self.live().expect.next_stream = None;
                Ok(())
            }
        }
    }

    /// There is room again: the log notices by itself.
    fn room(&mut self) -> Checked {
        self.disk.set_capacity(u64::MAX);
        self.capped = false;
        // Whatever the writer is at has been told that there is none, and is about to say so.
        drop(writer::lock(&self.log().inner.writer));
        // Half of the time something is acknowledged, which makes it look at once.
        if self.dice.one_in(2) && self.disk.is_powered() {
            self.acknowledge(100)?;
        }
        let since = Instant::now();
        while self.disk.is_powered()
            && self.state_of(|state| {
                let at_work = state.writing_bytes > 0 || state.group.pending_records() > 0;
                state.shut.is_none() && (state.refusing.is_some() || at_work)
            })
        {
            must!(since.elapsed() < STUCK, "W8: there is room and the log does not notice");
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    fn read_retained(&self) -> Checked {
        let (Some(from), true) = (self.retained, self.disk.is_powered()) else { return Ok(()) };
        let log = self.log();
        let oldest = self.state_of(|state| state.segments.front().map(|segment| segment.first.0));
        must!(
            oldest.is_some_and(|oldest| oldest <= from) || log.last_durable().0 < from,
            "W7: {from} was to be kept and the oldest is {oldest:?}"
        );
        Ok(())
    }

    /// After an action: if the log is no more, it is opened again.
    fn settle(&mut self) -> Checked {
        // Looked at first: the power may go at any moment, and shuts the log.
        let shut = self.state_of(|state| state.shut.clone());
        self.count_faults();
        if !self.disk.is_powered() {
            return self.crash(true);
        }
        match shut {
            None => Ok(()),
            Some(WalError::Poisoned { .. }) => {
                must!(
                    self.hard_faults >= 2
                        || self.hard_faults == 1 && self.live().expect.next_stream.is_some(),
                    "W8: shut after {} faults",
                    self.hard_faults
                );
                if self.dice.one_in(2) { self.crash(true) } else { self.reopen() }
            }
            Some(other) => Err(format!("the log is shut: {other}")),
        }
    }

    /// Closes and opens.
    pub(super) fn reopen(&mut self) -> Checked {
        let log = self.log();
        let closed = log.close();
        let clean = closed.is_ok() && self.disk.is_powered();
        if let (Err(error), true) = (&closed, self.disk.is_powered()) {
            self.count_faults();
            must!(
                (error.is_passing() || matches!(error, WalError::Poisoned { .. }))
                    && (self.hard_faults > 0 || self.capped),
                "closing failed: {error}"
            );
        }
        self.ended(&log);
        if clean {
            let expect = &mut self.live().expect;
            must!(expect.receipted == expect.last(), "W1: closed, and {expect:?} is not durable");
            expect.synced = expect.receipted;
        }
        let power_cut = !self.disk.is_powered();
        if power_cut {
            self.power_cut();
        }
        self.open_after(power_cut, clean)
    }

    /// The process is killed, or the power goes.
    pub(super) fn crash(&mut self, power: bool) -> Checked {
        let log = self.log();
        // Nothing is done any more, whatever the log tries.
        self.disk.arm(Armed { which: Which::Any, after: 0, fault: Fault::PowerCut });
        let _ = log.close();
        self.ended(&log);
        if power {
            self.power_cut();
        } else {
            self.disk.kill();
        }
        self.open_after(power, false)
    }

    /// The disk, its directory and what is known of the log on it, after that has ended.
    pub(super) fn leave(mut self, end: End) -> Checked<(SimDisk, TempDir, Expect)> {
        let log = self.log();
        match end {
            End::Closed => {
                log.close().map_err(|error| format!("closing failed: {error}"))?;
                self.ended(&log);
            }
            End::Killed | End::PowerCut => {
                self.disk.arm(Armed { which: Which::Any, after: 0, fault: Fault::PowerCut });
                let _ = log.close();
                self.ended(&log);
                if end == End::Killed {
                    self.disk.kill();
                } else {
                    self.power_cut();
                }
            }
        }
        self.disk.watch(None);
        let expect = self.live().expect.clone();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().expect("a directory"));
        Ok((self.disk.clone(), dir, expect))
    }

    fn power_cut(&mut self) {
        let seed = self.dice.next();
        self.disk.power_cut(seed);
        self.live().expect.cut(self.options.sync);
    }

    /// A log that is closed has given its last receipt.
    fn ended(&mut self, log: &WriteAheadLog) {
        self.count_faults();
        self.log = None;
        self.retained = None;
        let mut live = self.live();
        live.log = None;
        let state = log.inner.shared.lock();
        let expect = &mut live.expect;
        if Some(state.stream) == expect.stream {
            expect.receipted = expect.receipted.max(state.durable.0);
            expect.watermark_min = expect.watermark_min.max(state.watermark_durable.0);
        } else if expect
            // A stream that it was opened with was written by another opening.
            .enter_next_stream(state.stream, (state.generation > 0).then_some(state.epoch))
            .is_ok()
        {
            expect.receipted = state.durable.0;
        }
        if self.options.sync.is_always() {
            expect.synced = expect.receipted;
        }
    }

    /// Opens the log, as often as the disk makes it necessary, and checks what it holds.
    pub(super) fn open(&mut self, clean: bool) -> Checked {
        self.open_after(false, clean)
    }

    fn open_after(&mut self, mut power_cut: bool, clean: bool) -> Checked {
        let mut tries = 0;
        let mut lies = self.lie_armed;
        let (log, recovery, before) = loop {
            let before = self.disk.snapshot();
            self.disk.seal();
            self.tally.openings += 1;
            let disk = Arc::new(self.disk.clone());
            match WriteAheadLog::open_on(disk, self.dir.path(), self.options.clone()) {
                Ok((log, recovery)) => break (log, recovery, before),
                Err(error) => {
                    self.count_faults();
                    if !self.disk.is_powered() {
                        self.power_cut();
                        power_cut = true;
                    } else if matches!(error, WalError::DiskFull { .. }) {
                        self.disk.set_capacity(u64::MAX);
                        self.capped = false;
                    } else {
                        must!(
                            matches!(error, WalError::Io { .. }) && tries < 20,
                            "the log does not open: {error}"
                        );
                    }
                    tries += 1;
                }
            }
        };
        self.count_faults();
        lies |= !self.live().expect.lies.is_empty();
        let mut expect = self.live().expect.clone();
        let before_it = expect.clone();
        let was_full = self.capped || self.hard_faults > 0;
        torn_tail_is_kept(&before, &self.disk, &recovery, was_full)?;
        must!(
            !clean || lies || tries > 0 || recovery.torn.is_none(),
            "W3: torn after a clean close: {recovery:?}"
        );
        // A fault may come while this is read.
        let mut checked = expect.opened(&log, &recovery, power_cut);
        if let (Ok(()), Retire::Archive(options)) = (&checked, &self.options.retire) {
            let archives = read_archives(&self.disk, &options.dir);
            self.tally.archives = archives.0.len() as u64;
            checked = expect.check_archives(archives, options.keep_bytes.is_none(), power_cut);
        }
        let fine = self.disk.is_powered();
        if fine {
            checked.map_err(|wrong| format!("{wrong}\n{recovery:?}"))?;
        } else {
            expect = before_it;
        }
        let opened_bytes = log_bytes(&self.disk, self.dir.path());
        self.opened_bytes = if self.hard_faults > 0 && fine {
            let counted = log.stats();
            let counted = counted.used_bytes + counted.prepared_bytes;
            must!(
                counted + OVER_BUDGET_BYTES >= opened_bytes || !recovery.foreign.is_empty(),
                "W9: {opened_bytes} bytes when opened, {counted} by its own account"
            );
            opened_bytes
        } else {
            self.opened_bytes.min(opened_bytes)
        };
        self.hard_faults = 0;
        {
            let mut live = self.live();
            live.log = Some(Arc::clone(&log.inner.shared));
            live.expect = expect;
            // Lies are over when what they hid is known.
            live.on = live.expect.lies.is_empty() && !self.lie_armed;
        }
        self.log = Some(log);
        if fine { Ok(()) } else { self.crash(true) }
    }

    /// Without faults the log does what it has to, and lets go of what nobody needs.
    fn end(&mut self) -> Checked {
        self.disk.disarm();
        self.room()?;
        self.settle()?;
        self.append(&[10], How::Each)?;
        self.flush()?;
        self.settle()?;
        self.reopen()?;
        self.append(&[10, 20], How::Each)?;
        self.acknowledge(100)?;
        let flushed = wait_for("flush", self.log().flush())?;
        must!(flushed.is_ok(), "a log without faults failed: {flushed:?}");
        let since = Instant::now();
        loop {
            let (held, watermark) =
                self.state_of(|s| (s.segments.front().map(|f| (f.number, f.last)), s.watermark));
            let only = self.state_of(|state| state.segments.len() == 1);
            if only || held.is_none_or(|(_, last)| last > watermark) {
                break;
            }
            must!(since.elapsed() < STUCK, "W7: {held:?} is acknowledged and stays");
            thread::park_timeout(Duration::from_millis(1));
        }
        self.rotate_by_age()?;
        if matches!(self.options.retire, Retire::Archive(_)) {
            // Without faults nothing stays that was to be archived.
            self.until("W7: what is acknowledged is not archived", |s| s.retired_bytes == 0)?;
        }
        self.reopen()?;
        let log = self.log();
        log.close().map_err(|error| format!("closing failed: {error}"))?;
        self.ended(&log);
        self.disk.watch(None);
        self.tally.operations += self.disk.operations();
        self.tally.histories += 1;
        Ok(())
    }

    /// A segment with records is left when its time is over, with nobody doing anything.
    fn rotate_by_age(&mut self) -> Checked {
        if self.options.rotate.is_none() {
            return Ok(());
        }
        self.tally.aged += 1;
        self.until("a segment is left at its age", |s| {
            s.segments.back().is_some_and(|active| active.last < active.first)
        })
    }

    fn until(&self, what: &str, holds: impl Fn(&State) -> bool) -> Checked {
        let since = Instant::now();
        while !self.state_of(&holds) {
            must!(since.elapsed() < STUCK, "{what}");
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Opens what each crash point may have left.
    fn check_crash_points(&mut self, count: CrashPoints) -> Checked {
        let mut points = std::mem::take(&mut self.live().points);
        if let CrashPoints::AtMost(most) = count {
            while points.len() > most {
                let drawn = self.dice.below(points.len() as u64) as usize;
                points.swap_remove(drawn);
            }
        }
        for point in points {
            self.tally.crash_points += 1;
            let (nth, at) = (point.nth, point.at.clone());
            self.check_crash_point(point).map_err(|wrong| {
                let before = self.disk.trace(nth);
                format!("{wrong}after a crash before operation {nth}, {at}; before it:\n{before}")
            })?;
        }
        Ok(())
    }

    fn check_crash_point(&mut self, point: CrashPoint) -> Checked {
        let mut after = Run {
            disk: point.disk,
            dir: tempfile::tempdir().expect("a temporary directory"),
            live: Arc::new(Mutex::new(Live { expect: point.expect, ..Live::default() })),
            log: None,
            options: self.options.clone(),
            dice: Dice::new(self.dice.next()),
            next_id: 1 << 32,
            retained: None,
            before: (0, 0),
            lie_armed: false,
            hard_faults: 0,
            capped: false,
            opened_bytes: 0,
            tally: Tally::default(),
        };
        // The disk knows the files by their whole paths.
        std::mem::swap(&mut after.dir, &mut self.dir);
        let checked = after.after_crash().map_err(|wrong| format!("{wrong}\n{}", after.trace()));
        std::mem::swap(&mut after.dir, &mut self.dir);
        self.tally.openings += after.tally.openings;
        checked
    }

    /// A crash, perhaps another one while the log is opened, and life goes on.
    fn after_crash(&mut self) -> Checked {
        let killed = self.dice.one_in(4);
        if killed {
            self.disk.kill();
        } else {
            self.power_cut();
        }
        if self.dice.one_in(3) {
            let after = self.dice.below(30) as u32;
            self.disk.arm(Armed { which: Which::Change, after, fault: Fault::PowerCut });
        }
        self.open_after(!killed, false)?;
        self.disk.disarm();
        self.append(&[30, 300], How::Each)?;
        self.settle()?;
        if self.dice.one_in(2) {
            self.crash(true)?;
        } else {
            self.reopen()?;
        }
        let log = self.log();
        log.close().map_err(|error| format!("closing failed: {error}"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // The watcher holds what holds it.
        self.disk.watch(None);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for something that must happen.
fn wait_for<F: Future>(what: &str, future: F) -> Checked<F::Output> {
    let since = Instant::now();
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Ok(output);
        }
        must!(since.elapsed() < STUCK, "{what} never came");
        thread::park_timeout(Duration::from_millis(100));
    }
}
