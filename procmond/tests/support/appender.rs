//! A process that appends from several threads until it is ended, and says at once what it has been
//! promised; and the ledger that holds the log to these promises afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use procmond::wal::{Entry, NewRecord, WalError, WalOptions, WriteAheadLog};

use crate::random::Random;

const DIR: &str = "WAL_DRILL_DIR";
const SEED: &str = "WAL_DRILL_SEED";
const ROUND: &str = "WAL_DRILL_ROUND";
const SINGLES: u64 = 3;

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
    let (log, _) = match WriteAheadLog::open(Path::new(&dir), options) {
        Ok(opened) => opened,
        Err(error) => return say(&format!("e {error}\n")),
    };
    // No two records of any round are alike.
    let next = AtomicU64::new(number(ROUND) << 32);
    std::thread::scope(|scope| {
        for thread in 0..=SINGLES {
            let (log, next, random) = (&log, &next, Random::seeded(random.next()));
            scope.spawn(move || {
                let batches = thread == SINGLES;
                if let Err(error) = append(log, next, random, batches) {
                    say(&format!("e {error}\n"));
                }
            });
        }
    });
}

/// Small segments, so that they are rotated, reused and deleted all the time.
fn options(random: &mut Random) -> WalOptions {
    WalOptions {
        segment_bytes: random.pick(&[4 << 10, 16 << 10, 64 << 10, 1 << 20]),
        commit_delay: Duration::from_micros(random.pick(&[0, 0, 200, 1000])),
        ..WalOptions::default()
    }
}

fn append(
    log: &WriteAheadLog,
    next: &AtomicU64,
    mut random: Random,
    batches: bool,
) -> Result<(), WalError> {
    loop {
        let count = if batches { 1 + random.below(40) } else { 1 };
        let from = next.fetch_add(count, Ordering::Relaxed);
        let bodies: Vec<_> = (from..from + count).map(body).collect();
        let records: Vec<_> = (from..)
            .zip(&bodies)
            .map(|(id, payload)| NewRecord { kind: 1, timestamp_ns: id as i64, payload })
            .collect();
        let last = loop {
            match log.submit_all(&records) {
                Err(WalError::Busy) => std::thread::yield_now(),
                other => break other?,
            }
        };
        let receipt = log.durable_blocking(last)?;
        let first = receipt.sequence.0 - (count - 1);
        // With one call and below PIPE_BUF, so that only whole lines arrive.
        let lines: Vec<_> =
            (first..).zip(from..from + count).map(|(at, id)| format!("r {at} {id}\n")).collect();
        say(&lines.concat());

        if random.below(8) == 0 {
            let upto = first.saturating_sub(random.below(300));
            // Said before, because whatever happens it may be durable from then on.
            say(&format!("a {upto}\n"));
            log.acknowledge(Sequence(upto))?;
            say(&format!("w {}\n", log.stats().watermark_durable));
        }
    }
}

fn say(lines: &str) {
    std::io::stderr().write_all(lines.as_bytes()).unwrap();
}

/// What a record says, known from its number: mostly small, some longer than a page.
fn body(id: u64) -> Vec<u8> {
    let words = if id.is_multiple_of(97) { 1000 } else { 1 + id % 40 };
    id.to_le_bytes().repeat(words as usize)
}

/// What has been promised, and what was found to have been kept.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Receipts by sequence, with the record's number.
    receipts: BTreeMap<u64, u64>,
    /// What the last opening returned: it has been told to somebody, so it must stay.
    told: BTreeMap<u64, u64>,
    /// The highest acknowledgement made, and the highest said to be durable.
    acknowledged: u64,
    acknowledged_durably: u64,
    stream: Option<StreamId>,
    epoch: Option<Epoch>,
    /// Receipts heard of altogether.
    pub(crate) heard: u64,
}

impl Ledger {
    /// Listens to a process until `enough` receipts have come, or it has ended. Returns what else it
    /// said: errors.
    pub(crate) fn hear(
        &mut self,
        pipe: &mut BufReader<impl std::io::Read>,
        enough: u64,
    ) -> Vec<String> {
        let upto = self.heard.saturating_add(enough);
        let mut errors = Vec::new();
        let mut line = String::new();
        while self.heard < upto && pipe.read_line(&mut line).unwrap() > 0 {
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words.first() {
                Some(&"r") => {
                    let before = self.receipts.insert(number(1), number(2));
                    assert_eq!(before, None, "a second receipt for {}", words[1]);
                    self.heard += 1;
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
        let (log, recovery) = WriteAheadLog::open(dir, WalOptions::default()).unwrap();
        assert!(recovery.damage.is_empty(), "{round}: {:?}", recovery.damage);
        assert!(recovery.foreign.is_empty(), "{round}: {:?}", recovery.foreign);
        if recovery.new_stream {
            // Killed before the log had begun.
            assert_eq!((self.stream, self.heard), (None, 0), "{round}: another stream");
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
        let found = read(&log, recovery.watermark.next(), round);
        for (name, promised) in [("had a receipt", &self.receipts), ("was told", &self.told)] {
            for (sequence, id) in promised {
                let there = found.get(sequence);
                assert_eq!(there, Some(id), "{round}: {sequence} {name}, {} found", found.len());
            }
        }
        let distinct: BTreeSet<_> = found.values().collect();
        assert_eq!(distinct.len(), found.len(), "{round}: a record is there twice");
        assert_eq!(log.last().0, watermark + found.len() as u64, "{round}");
        self.told = found;
        log.close().unwrap();
        log.epoch()
    }
}

/// All records from a sequence on by sequence, contiguous and as they were written.
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
