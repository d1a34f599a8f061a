//! A process that appends in every way there is until it is ended, and says at once what it has been
//! promised; and the ledger that holds the log to these promises afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use procmond::wal::{
    Entry, NewRecord, Promise, Receipt, SyncMode, WalError, WalOptions, WriteAheadLog,
};

use crate::random::Random;

const DIR: &str = "WAL_DRILL_DIR";
const SEED: &str = "WAL_DRILL_SEED";
const ROUND: &str = "WAL_DRILL_ROUND";
/// Half of the power cut's disk.
const BUDGET_BYTES: u64 = 16 << 20;
const FRAME_BYTES: u64 = 32;
const BATCH_RECORDS: u64 = 40;
const TASKS: u64 = 3;
/// The most that goes into one commit: every producer waits for what it has appended.
const COMMIT_BYTES: u64 = (BATCH_RECORDS + 1 + BLOCKING_RECORDS + TASKS) * 400 + 5 * LONGEST_BYTES;
const BLOCKING_RECORDS: u64 = 4;
const LONGEST_BYTES: u64 = 8000 + FRAME_BYTES;

/// The process that appends. It does not outlive the test, however that ends.
pub(crate) struct Appender(Child);

impl Appender {
    /// Starts this test binary again as that process; it has a test named `child` that calls
    /// [`append_until_ended`]. What it says comes out of the pipe.
    pub(crate) fn start(dir: &Path, seed: u64, round: u64) -> (Self, BufReader<ChildStderr>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR, dir)
            .env(SEED, seed.to_string())
            .env(ROUND, round.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = BufReader::new(child.stderr.take().unwrap());
        (Self(child), pipe)
    }

    /// Kills it, with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process that is ended; nothing to do when a person runs the tests.
pub(crate) fn append_until_ended() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let mut random = Random::seeded(number(SEED));
    let options = options(&mut random);
    say(&format!("o {} {}\n", mode_name(options.sync), loss_bytes(&options)));
    let (log, _) = match WriteAheadLog::open(Path::new(&dir), options) {
        Ok(opened) => opened,
        Err(error) => return say(&format!("e {error}\n")),
    };
    // No two records of any round are alike.
    let next = AtomicU64::new(number(ROUND) << 32);
    if log.unacknowledged_bytes() > BUDGET_BYTES / 4 {
        // Earlier processes have left it all.
        say(&format!("a {}\n", log.last()));
        if let Err(error) = log.acknowledge(log.last()) {
            return say(&format!("e {error}\n"));
        }
    }
    let acknowledges = random.below(2) == 0;
    let flushes = random.below(4) == 0;
    std::thread::scope(|scope| {
        // Those that block have others synced as well.
        let ways = [append_and_wait, append_batches, append_in_tasks, append_blocking];
        for how in ways.into_iter().take(random.pick(&[3, 4])) {
            let random = random.next();
            let producer = Producer { log: &log, next: &next, acknowledges, flushes, random };
            scope.spawn(move || {
                if let Err(error) = how(&producer) {
                    say(&format!("e {error}\n"));
                }
            });
        }
    });
}

/// Mostly small segments, so that they are rotated, reused and deleted all the time.
fn options(random: &mut Random) -> WalOptions {
    // With the longest only the bytes bound what is not synced.
    let every = Duration::from_millis(random.pick(&[1, 20, 60_000]));
    let interval = SyncMode::Interval { every, bytes: random.pick(&[4 << 10, 4 << 10, 64 << 10]) };
    WalOptions {
        segment_bytes: random.pick(&[4 << 10, 16 << 10, 64 << 10, 1 << 20, 1 << 20]),
        commit_delay: Duration::from_micros(random.pick(&[0, 0, 200, 1000])),
        sync: random.pick(&[SyncMode::Always, interval, SyncMode::Os]),
        disk_budget_bytes: BUDGET_BYTES,
        ..WalOptions::default()
    }
}

fn mode_name(sync: SyncMode) -> &'static str {
    match sync {
        SyncMode::Always => "always",
        SyncMode::Interval { .. } => "interval",
        SyncMode::Os => "os",
    }
}

/// How much with a receipt a power cut may take.
fn loss_bytes(options: &WalOptions) -> u64 {
    match options.sync {
        SyncMode::Always => 0,
        SyncMode::Interval { bytes, .. } => bytes + COMMIT_BYTES,
        // A segment is synced when it is left.
        SyncMode::Os => options.segment_bytes.max(LONGEST_BYTES),
    }
}

struct Producer<'a> {
    log: &'a WriteAheadLog,
    next: &'a AtomicU64,
    /// Whether it acknowledges now and then. What is acknowledged is not missed.
    acknowledges: bool,
    /// Whether it flushes now and then. What is flushed is not lost.
    flushes: bool,
    random: u64,
}

impl Producer<'_> {
    /// Numbers for the next records.
    fn ids(&self, count: u64) -> std::ops::Range<u64> {
        let from = self.next.fetch_add(count, Ordering::Relaxed);
        from..from + count
    }

    /// Says what was promised of records that were appended together.
    fn say_receipts(&self, receipt: Receipt, ids: std::ops::Range<u64>) {
        let promise = match receipt.promise {
            Promise::Synced => 'r',
            Promise::Written => 'v',
        };
        let first = receipt.sequence.0 + 1 - (ids.end - ids.start);
        // With one call and below PIPE_BUF, so that only whole lines arrive.
        let lines: Vec<_> =
            (first..).zip(ids).map(|(at, id)| format!("{promise} {at} {id}\n")).collect();
        say(&lines.concat());
    }

    /// Acknowledges something of what has a receipt.
    fn acknowledge(&self, random: &mut Random, sequence: Sequence) -> Result<(), WalError> {
        if self.acknowledges && random.below(8) == 0 {
            let upto = sequence.0.saturating_sub(1 + random.below(300));
            // Said before, because whatever happens it may be durable from then on.
            say(&format!("a {upto}\n"));
            self.log.acknowledge(Sequence(upto))?;
            say(&format!("w {}\n", self.log.stats().watermark_durable));
        }
        Ok(())
    }
}

fn append_and_wait(producer: &Producer<'_>) -> Result<(), WalError> {
    submit_and_wait(producer, |_| 1)
}

fn append_batches(producer: &Producer<'_>) -> Result<(), WalError> {
    submit_and_wait(producer, |random| 1 + random.below(BATCH_RECORDS))
}

fn submit_and_wait(
    producer: &Producer<'_>,
    count: impl Fn(&mut Random) -> u64,
) -> Result<(), WalError> {
    let mut random = Random::seeded(producer.random);
    loop {
        let ids = producer.ids(count(&mut random));
        let last = with_records(&ids, |records| {
            loop {
                match producer.log.submit_all(records) {
                    Err(WalError::Busy) => std::thread::yield_now(),
                    other => return other,
                }
            }
        })?;
        let receipt = producer.log.durable_blocking(last)?;
        producer.say_receipts(receipt, ids);
        producer.acknowledge(&mut random, receipt.sequence)?;
    }
}

fn append_blocking(producer: &Producer<'_>) -> Result<(), WalError> {
    let mut random = Random::seeded(producer.random);
    loop {
        let ids = producer.ids(1 + random.below(BLOCKING_RECORDS));
        let receipt = with_records(&ids, |records| producer.log.append_blocking(records))?;
        producer.say_receipts(receipt, ids);
        producer.acknowledge(&mut random, receipt.sequence)?;
    }
}

fn append_in_tasks(producer: &Producer<'_>) -> Result<(), WalError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let [one, two, three] = [1, 2, 3].map(|task| append_in_task(producer, task));
    runtime.block_on(async { tokio::try_join!(one, two, three) }).map(drop)
}

async fn append_in_task(producer: &Producer<'_>, task: u64) -> Result<(), WalError> {
    let mut random = Random::seeded(producer.random + task);
    loop {
        let ids = producer.ids(1);
        let payload = body(ids.start);
        let receipt = producer.log.append(1, ids.start as i64, &payload).await?;
        producer.say_receipts(receipt, ids);
        producer.acknowledge(&mut random, receipt.sequence)?;
        if producer.flushes && random.below(30) == 0 {
            let synced = producer.log.flush().await?;
            say(&format!("s {synced}\n"));
        }
    }
}

fn with_records<T>(ids: &std::ops::Range<u64>, append: impl FnOnce(&[NewRecord<'_>]) -> T) -> T {
    let bodies: Vec<_> = ids.clone().map(body).collect();
    let records: Vec<_> = (ids.start..)
        .zip(&bodies)
        .map(|(id, payload)| NewRecord { kind: 1, timestamp_ns: id as i64, payload })
        .collect();
    append(&records)
}

fn say(lines: &str) {
    std::io::stderr().write_all(lines.as_bytes()).unwrap();
}

/// What a record says, known from its number: mostly small, some longer than a page.
fn body(id: u64) -> Vec<u8> {
    let words = if id.is_multiple_of(97) { 1000 } else { 1 + id % 40 };
    id.to_le_bytes().repeat(words as usize)
}

/// A record that was promised to be there.
#[derive(Debug, Clone, Copy)]
struct Promised {
    id: u64,
    /// Whatever happens; otherwise as long as the power stays.
    synced: bool,
}

/// What has been promised, and what was found to have been kept.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Receipts by sequence.
    receipts: BTreeMap<u64, Promised>,
    /// What the last opening returned: it has been told to somebody, so it must stay.
    told: BTreeMap<u64, u64>,
    /// The highest acknowledgement made, and the highest said to be durable.
    acknowledged: u64,
    acknowledged_durably: u64,
    stream: Option<StreamId>,
    epoch: Option<Epoch>,
    /// How the process that was heard last syncs, and how much of what it has written a power cut
    /// may take.
    mode: String,
    loss_bytes: u64,
    /// Whether processes end because the power goes, rather than by a kill.
    power_goes: bool,
    /// Receipts heard of altogether, by mode.
    pub(crate) heard: BTreeMap<String, u64>,
    /// Receipts that power cuts have taken, by mode. Nothing else takes any.
    pub(crate) taken: BTreeMap<String, u64>,
}

impl Ledger {
    pub(crate) fn new(power_goes: bool) -> Self {
        Self { power_goes, ..Self::default() }
    }

    /// Receipts heard of.
    pub(crate) fn receipts_heard(&self) -> u64 {
        self.heard.values().sum()
    }

    /// Listens to a process until `enough` receipts have come, or it has ended. Returns what else it
    /// said: errors.
    pub(crate) fn hear(
        &mut self,
        pipe: &mut BufReader<impl std::io::Read>,
        enough: u64,
    ) -> Vec<String> {
        let mut left = enough;
        let mut errors = Vec::new();
        let mut line = String::new();
        while left > 0 && pipe.read_line(&mut line).unwrap() > 0 {
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words.first() {
                Some(&promise @ ("r" | "v")) => {
                    let promised = Promised { id: number(2), synced: promise == "r" };
                    let before = self.receipts.insert(number(1), promised);
                    assert!(before.is_none(), "a second receipt for {}", words[1]);
                    *self.heard.entry(self.mode.clone()).or_default() += 1;
                    left -= 1;
                }
                Some(&"s") => {
                    for (_, promised) in self.receipts.range_mut(..=number(1)) {
                        promised.synced = true;
                    }
                }
                Some(&"o") => {
                    self.mode = words[1].to_owned();
                    self.loss_bytes = number(2);
                }
                Some(&"a") => self.acknowledged = self.acknowledged.max(number(1)),
                Some(&"w") => {
                    self.acknowledged_durably = self.acknowledged_durably.max(number(1));
                }
                _ => errors.push(line.trim_end().to_owned()),
            }
            line.clear();
        }
        errors
    }

    /// Opens the log and compares: W1, W2, W6 and W7.
    pub(crate) fn check(&mut self, dir: &Path, round: &str) {
        let epoch = self.check_at(dir, round);
        assert!(self.epoch < Some(epoch), "{round}: {epoch:?} after {:?}", self.epoch);
        self.epoch = Some(epoch);
    }

    /// The same with a copy, so that the next process finds the log as it was left, and may itself
    /// be ended while it mends that.
    pub(crate) fn check_copy(&mut self, dir: &Path, round: &str) {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        self.check_at(copy.path(), round);
    }

    fn check_at(&mut self, dir: &Path, round: &str) -> Epoch {
        let round = &format!("{round}, {}", self.mode);
        let (log, recovery) = WriteAheadLog::open(dir, WalOptions::default()).unwrap();
        assert!(recovery.damage.is_empty(), "{round}: {:?}", recovery.damage);
        assert!(recovery.foreign.is_empty(), "{round}: {:?}", recovery.foreign);
        if recovery.new_stream {
            // Ended before the log had begun.
            assert_eq!((self.stream, self.receipts_heard()), (None, 0), "{round}: another stream");
        } else {
            assert_eq!(*self.stream.get_or_insert(log.stream()), log.stream(), "{round}");
        }
        let watermark = recovery.watermark.0;
        let before = self.acknowledged_durably;
        assert!(watermark >= before, "{round}: the watermark went from {before} to {watermark}");
        assert!(watermark <= self.acknowledged, "{round}: acknowledged by nobody: {watermark}");
        self.acknowledged_durably = watermark;

        // What was acknowledged may be gone.
        self.receipts = self.receipts.split_off(&(watermark + 1));
        self.told = self.told.split_off(&(watermark + 1));
        let records = read(&log, recovery.watermark.next(), round);
        for (sequence, id) in &self.told {
            let there = records.get(sequence);
            assert_eq!(there, Some(id), "{round}: {sequence} was told, {} found", records.len());
        }
        self.check_receipts(&records, round);
        let distinct: BTreeSet<_> = records.values().collect();
        assert_eq!(distinct.len(), records.len(), "{round}: a record is there twice");
        assert_eq!(log.last().0, watermark + records.len() as u64, "{round}");
        self.told = records;
        // What lies beyond is gone, and its sequences are given again.
        self.receipts.retain(|sequence, _| self.told.contains_key(sequence));
        // What an opening has found is synced.
        self.receipts.values_mut().for_each(|promised| promised.synced = true);
        self.loss_bytes = 0;
        log.close().unwrap();
        log.epoch()
    }

    /// Every receipt was true, as far as it went.
    fn check_receipts(&mut self, records: &BTreeMap<u64, u64>, round: &str) {
        let mut taken_bytes = 0;
        let mut taken = 0;
        for (sequence, promised) in &self.receipts {
            match records.get(sequence) {
                Some(id) => assert_eq!(*id, promised.id, "{round}: another record is {sequence}"),
                None => {
                    let may_be = self.power_goes && !promised.synced;
                    assert!(may_be, "{round}: {sequence} had a receipt, {} found", records.len());
                    taken += 1;
                    taken_bytes += FRAME_BYTES + body(promised.id).len() as u64;
                }
            }
        }
        let at_most = self.loss_bytes;
        assert!(taken_bytes <= at_most, "{round}: {taken_bytes} bytes lost, {at_most} may be");
        if !self.mode.is_empty() {
            *self.taken.entry(self.mode.clone()).or_default() += taken;
        }
    }
}

/// The numbers of all records from a sequence on by sequence, contiguous and as they were written.
fn read(log: &WriteAheadLog, from: Sequence, round: &str) -> BTreeMap<u64, u64> {
    let mut reader = log.reader(from);
    let mut found = BTreeMap::new();
    let mut expected = from;
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            return found;
        }
        for entry in batch {
            let Entry::Record(record) = entry else { panic!("{round}: {entry:?}") };
            assert_eq!(record.sequence, expected, "{round}");
            let id = record.timestamp_ns as u64;
            assert_eq!(record.payload, body(id), "{round}: record {expected}");
            found.insert(expected.0, id);
            expected = expected.next();
        }
    }
}
