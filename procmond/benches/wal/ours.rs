//! Our log, driven through its public interface.

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, EntryRef, NewRecord, WalError, WalOptions, WriteAheadLog};

use super::AnyError;
use super::workload::{Done, Payloads, RECORD_BYTES, cpu_secs, paced, repeat};

/// What is acknowledged is recycled, so that the log stays within its budget.
const ACKNOWLEDGE_EVERY: u64 = 1 << 16;
/// A record on disk: its payload behind a head.
const FRAME_BYTES: usize = RECORD_BYTES + 32;

/// A log that somebody appends to and, some way behind, acknowledges.
pub(crate) struct Ours {
    log: WriteAheadLog,
    turn: u64,
    acknowledged: u64,
}

impl Ours {
    pub(crate) fn open(dir: &Path, options: WalOptions) -> Result<Self, AnyError> {
        let (log, _) = WriteAheadLog::open(dir, options)?;
        Ok(Self { log, turn: 0, acknowledged: 0 })
    }

    /// Opens a log and writes until its segments are recycled ones, as those of a log are that has
    /// been in use for a while.
    pub(crate) fn in_steady_state(
        dir: &Path,
        options: WalOptions,
        payloads: &Payloads,
    ) -> Result<Self, AnyError> {
        const SEGMENTS: u64 = 6;
        let in_segment = options.segment_bytes / FRAME_BYTES as u64;
        let batch = in_segment.clamp(1, 1024) as usize;
        let mut ours = Self::open(dir, options)?;
        while ours.turn < SEGMENTS * in_segment {
            let records = new_records(payloads, ours.turn, batch);
            let last = ours.log.append_blocking(&records)?.sequence;
            ours.done(last, batch)?;
        }
        Ok(ours)
    }

    /// Options for producers that say themselves how many records come together.
    pub(crate) fn at_once() -> WalOptions {
        WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() }
    }

    /// Options for a producer that runs ahead of the disk: `sync_bytes` are written while as many
    /// are gathered.
    pub(crate) fn streaming(sync_bytes: usize) -> WalOptions {
        WalOptions {
            commit_bytes: sync_bytes,
            queue_bytes: 4 * sync_bytes,
            ..WalOptions::default()
        }
    }

    fn done(&mut self, last: Sequence, batch: usize) -> Result<(), WalError> {
        self.turn += batch as u64;
        if last.0 >= self.acknowledged + ACKNOWLEDGE_EVERY {
            self.log.acknowledge(last)?;
            self.acknowledged = last.0;
        }
        Ok(())
    }

    /// Each batch is awaited before the next.
    pub(crate) fn batches(
        &mut self,
        payloads: &Payloads,
        batch: usize,
        warm: Duration,
        measured: Duration,
    ) -> Result<Done, AnyError> {
        let mut records = Vec::with_capacity(batch);
        repeat(warm, measured, || {
            records.clear();
            records.extend(payloads.records(self.turn, batch).map(new_record));
            let receipt = self.log.append_blocking(&records)?;
            self.done(receipt.sequence, batch)?;
            Ok(batch as u64)
        })
    }

    /// While a batch is made durable the next one is handed over; never more than two are under
    /// way.
    pub(crate) fn overlapped(
        &mut self,
        payloads: &Payloads,
        batch: usize,
        warm: Duration,
        measured: Duration,
    ) -> Result<Done, AnyError> {
        let mut records = Vec::with_capacity(batch);
        let mut before = None;
        let done = repeat(warm, measured, || {
            records.clear();
            records.extend(payloads.records(self.turn, batch).map(new_record));
            let last = self.log.submit_all(&records)?;
            if let Some(before) = before.replace(last) {
                self.log.durable_blocking(before)?;
                self.done(before, batch)?;
            }
            Ok::<_, AnyError>(batch as u64)
        })?;
        self.log.durable_blocking(self.log.last())?;
        Ok(done)
    }

    /// A producer that is up to `ahead_bytes` ahead of what is durable.
    pub(crate) fn stream(
        &mut self,
        payloads: &Payloads,
        ahead_bytes: usize,
        warm: Duration,
        measured: Duration,
    ) -> Result<Done, AnyError> {
        const AT_A_TIME: usize = 256;
        let most = ahead_bytes / RECORD_BYTES / AT_A_TIME;
        let mut records = Vec::with_capacity(AT_A_TIME);
        let mut under_way = VecDeque::with_capacity(most);
        let done = repeat(warm, measured, || {
            if under_way.len() == most
                && let Some(oldest) = under_way.pop_front()
            {
                self.log.durable_blocking(oldest)?;
                self.done(oldest, AT_A_TIME)?;
            }
            records.clear();
            let turn = self.turn + (under_way.len() * AT_A_TIME) as u64;
            records.extend(payloads.records(turn, AT_A_TIME).map(new_record));
            under_way.push_back(self.log.submit_all(&records)?);
            Ok::<_, AnyError>(AT_A_TIME as u64)
        })?;
        self.log.durable_blocking(self.log.last())?;
        Ok(done)
    }

    /// Tasks that each await the receipt of their one record.
    pub(crate) fn tasks(
        &mut self,
        payloads: &Arc<Payloads>,
        producers: u64,
        warm: Duration,
        measured: Duration,
    ) -> Result<Done, AnyError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
        self.many(warm, measured, |records, stop| {
            let log = self.log.clone();
            let payloads = Arc::clone(payloads);
            let tasks: Vec<_> = (0..producers)
                .map(|producer| {
                    let (log, payloads) = (log.clone(), Arc::clone(&payloads));
                    let (records, stop) = (Arc::clone(records), Arc::clone(stop));
                    runtime.spawn(async move {
                        let mut turn = producer;
                        while !stop.load(Ordering::Relaxed) {
                            let receipt = log.append(1, 0, payloads.run(turn, 1)).await?;
                            records.fetch_add(1, Ordering::Relaxed);
                            if receipt.sequence.0.is_multiple_of(ACKNOWLEDGE_EVERY) {
                                log.acknowledge(receipt.sequence)?;
                            }
                            turn += producers;
                        }
                        Ok::<_, WalError>(())
                    })
                })
                .collect();
            let runtime = &runtime;
            move || {
                runtime.block_on(async {
                    for task in tasks {
                        task.await??;
                    }
                    Ok(())
                })
            }
        })
    }

    /// The same from threads.
    pub(crate) fn threads(
        &mut self,
        payloads: &Arc<Payloads>,
        producers: u64,
        warm: Duration,
        measured: Duration,
    ) -> Result<Done, AnyError> {
        self.many(warm, measured, |records, stop| {
            let threads: Vec<_> = (0..producers)
                .map(|producer| {
                    let (log, payloads) = (self.log.clone(), Arc::clone(payloads));
                    let (records, stop) = (Arc::clone(records), Arc::clone(stop));
                    std::thread::spawn(move || {
                        let mut turn = producer;
                        while !stop.load(Ordering::Relaxed) {
                            let record = new_record(payloads.run(turn, 1));
                            let receipt = log.append_blocking(&[record])?;
                            records.fetch_add(1, Ordering::Relaxed);
                            if receipt.sequence.0.is_multiple_of(ACKNOWLEDGE_EVERY) {
                                log.acknowledge(receipt.sequence)?;
                            }
                            turn += producers;
                        }
                        Ok::<_, WalError>(())
                    })
                })
                .collect();
            move || {
                for thread in threads {
                    thread.join().map_err(|_| "a producer panicked")??;
                }
                Ok(())
            }
        })
    }

    /// Starts producers, lets them work and counts, and waits for their end.
    fn many<E: FnOnce() -> Result<(), AnyError>>(
        &self,
        warm: Duration,
        measured: Duration,
        start: impl FnOnce(&Arc<AtomicU64>, &Arc<AtomicBool>) -> E,
    ) -> Result<Done, AnyError> {
        let records = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let end = start(&records, &stop);
        std::thread::sleep(warm);
        let (since, cpu) = (Instant::now(), cpu_secs());
        let before = records.load(Ordering::Relaxed);
        std::thread::sleep(measured);
        let done = Done {
            records: records.load(Ordering::Relaxed) - before,
            secs: since.elapsed().as_secs_f64(),
            cpu_secs: cpu_secs() - cpu,
        };
        stop.store(true, Ordering::Relaxed);
        end()?;
        Ok(done)
    }

    /// One record at a time at a fixed rate, each awaited.
    pub(crate) fn paced(
        &mut self,
        payloads: &Payloads,
        per_second: u32,
        during: Duration,
    ) -> Result<Vec<Duration>, AnyError> {
        paced(per_second, during, || {
            let receipt = self.log.append_blocking(&[new_record(payloads.run(self.turn, 1))])?;
            self.done(receipt.sequence, 1)?;
            Ok(())
        })
    }

    /// Records come at a fixed rate and the log says when each is durable: how long each took, from
    /// its coming. Each is acknowledged as soon as it is durable.
    pub(crate) fn delayed(
        &mut self,
        payloads: &Payloads,
        per_second: u32,
        during: Duration,
    ) -> Result<Vec<Duration>, AnyError> {
        let (come, came) = mpsc::channel::<(Instant, Sequence)>();
        std::thread::scope(|scope| {
            let log = self.log.clone();
            let waiter = scope.spawn(move || {
                let mut took = Vec::new();
                while let Ok((since, sequence)) = came.recv() {
                    log.durable_blocking(sequence)?;
                    took.push(since.elapsed());
                    log.acknowledge(sequence)?;
                }
                Ok::<_, WalError>(took)
            });
            paced(per_second, during, move || {
                let since = Instant::now();
                let sequence = self.log.submit(1, 0, payloads.run(self.turn, 1))?;
                self.turn += 1;
                come.send((since, sequence))?;
                Ok::<_, AnyError>(())
            })?;
            Ok(waiter.join().map_err(|_| "the waiter panicked")??)
        })
    }

    /// The processor time of this process while records come at a fixed rate, as part of a core.
    pub(crate) fn cpu_of_paced(
        &mut self,
        payloads: &Payloads,
        per_second: u32,
        during: Duration,
    ) -> Result<f64, AnyError> {
        let (start, cpu) = (Instant::now(), cpu_secs());
        paced(per_second, during, || {
            let last = self.log.submit(1, 0, payloads.run(self.turn, 1))?;
            self.turn += 1;
            black_box(last);
            Ok::<_, AnyError>(())
        })?;
        let part = (cpu_secs() - cpu) / start.elapsed().as_secs_f64();
        let last = self.log.last();
        self.log.durable_blocking(last)?;
        self.log.acknowledge(last)?;
        Ok(part)
    }
}

fn new_record(payload: &[u8]) -> NewRecord<'_> {
    NewRecord { kind: 1, timestamp_ns: 0, payload }
}

fn new_records(payloads: &Payloads, first: u64, count: usize) -> Vec<NewRecord<'_>> {
    payloads.records(first, count).map(new_record).collect()
}

/// A log of several segments that nobody writes to.
pub(crate) struct ToRead {
    log: WriteAheadLog,
    records: u64,
}

impl ToRead {
    pub(crate) fn new(dir: &Path, payloads: &Payloads, records: u64) -> Result<Self, AnyError> {
        let (log, _) = WriteAheadLog::open(dir, Ours::at_once())?;
        fill(&log, payloads, records)?;
        Ok(Self { log, records })
    }

    /// Records a second, each looked at where the reader has it.
    pub(crate) fn read(&self) -> Result<f64, AnyError> {
        let mut reader = self.log.reader(Sequence::FIRST);
        let start = Instant::now();
        let mut records = 0;
        while let Some(entry) = reader.next()? {
            let EntryRef::Record(record) = entry else { return Err("a record was lost".into()) };
            black_box(record.payload);
            records += 1;
        }
        self.rate(records, start)
    }

    /// Records a second, owned and in batches of up to 1 MiB.
    pub(crate) fn read_batches(&self) -> Result<f64, AnyError> {
        let mut reader = self.log.reader(Sequence::FIRST);
        let start = Instant::now();
        let mut records = 0;
        loop {
            let batch = reader.next_batch(1 << 20)?;
            if batch.is_empty() {
                break;
            }
            for entry in batch {
                let Entry::Record(record) = entry else { return Err("a record was lost".into()) };
                black_box(&record.payload);
                records += 1;
            }
        }
        self.rate(records, start)
    }

    fn rate(&self, records: u64, start: Instant) -> Result<f64, AnyError> {
        let secs = start.elapsed().as_secs_f64();
        if records != self.records {
            return Err(format!("{records} records were read of {}", self.records).into());
        }
        Ok(records as f64 / secs)
    }
}

fn fill(log: &WriteAheadLog, payloads: &Payloads, records: u64) -> Result<(), AnyError> {
    const BATCH: u64 = 1024;
    for turn in (0..records).step_by(BATCH as usize) {
        let count = (records - turn).min(BATCH) as usize;
        log.append_blocking(&new_records(payloads, turn, count))?;
    }
    Ok(())
}

/// Two logs with the same last segment: one has nothing else, the other another 9.9 GB before it.
pub(crate) struct ToOpen {
    alone: PathBuf,
    long: PathBuf,
}

/// What each of them took to open.
pub(crate) struct Opened {
    pub(crate) alone: Duration,
    pub(crate) long: Duration,
}

impl ToOpen {
    /// Segments before the last.
    const OLDER: u64 = 124;
    const SEGMENT_BYTES: u64 = 80_000_000;
    const RECORDS_IN_OLDER: u64 = 150;

    pub(crate) fn new(dir: &Path, payloads: &Payloads) -> Result<Self, AnyError> {
        let to_open = Self { alone: dir.join("open-alone"), long: dir.join("open-long") };
        let small = WalOptions {
            segment_bytes: Self::RECORDS_IN_OLDER * FRAME_BYTES as u64 + (4 << 10),
            prepare: false,
            ..Ours::at_once()
        };
        let (log, _) = WriteAheadLog::open(&to_open.long, small)?;
        while (log.stats().segments as u64) <= Self::OLDER {
            log.append_blocking(&new_records(payloads, 0, Self::RECORDS_IN_OLDER as usize))?;
        }
        log.close()?;
        // What the next segment's first record says decides where an older one ends, not the
        // file's length.
        for path in segments(&to_open.long)?.into_iter().take(Self::OLDER as usize) {
            std::fs::OpenOptions::new().write(true).open(path)?.set_len(Self::SEGMENT_BYTES)?;
        }
        for dir in [&to_open.alone, &to_open.long] {
            let (log, _) = WriteAheadLog::open(dir, Self::options())?;
            fill(&log, payloads, Self::SEGMENT_BYTES / FRAME_BYTES as u64 - 1000)?;
            log.close()?;
        }
        to_open.check()?;
        Ok(to_open)
    }

    fn options() -> WalOptions {
        WalOptions { disk_budget_bytes: 64 << 30, ..Ours::at_once() }
    }

    /// The long log is a log: every record of it is there.
    fn check(&self) -> Result<(), AnyError> {
        let bytes: u64 = segments(&self.long)?
            .iter()
            .map(|path| Ok(path.metadata()?.len()))
            .sum::<std::io::Result<u64>>()?;
        if bytes < 9_900_000_000 {
            return Err(format!("the log to be opened has {bytes} bytes only").into());
        }
        let (log, recovery) = WriteAheadLog::open(&self.long, Self::options())?;
        let mut reader = log.reader(Sequence::FIRST);
        let mut next = Sequence::FIRST;
        while let Some(entry) = reader.next()? {
            match entry {
                EntryRef::Record(record) if record.sequence == next => next = next.next(),
                other => return Err(format!("{next} was expected, not {other:?}").into()),
            }
        }
        if next != recovery.last.next() || !recovery.damage.is_empty() || recovery.torn.is_some() {
            return Err(format!("read up to {next}, but: {recovery:?}").into());
        }
        close_and_forget(&self.long, log)
    }

    pub(crate) fn open(&self, long_first: bool) -> Result<Opened, AnyError> {
        let open = |dir: &Path| {
            let start = Instant::now();
            let (log, _) = WriteAheadLog::open(dir, Self::options())?;
            let took = start.elapsed();
            close_and_forget(dir, log)?;
            Ok::<_, AnyError>(took)
        };
        let before = if long_first { Some(open(&self.long)?) } else { None };
        let alone = open(&self.alone)?;
        let long = before.map_or_else(|| open(&self.long), Ok)?;
        Ok(Opened { alone, long })
    }
}

/// Closes a log and removes the segment that this opening began, so that the next opening finds
/// what this one has found: a last segment full of records.
fn close_and_forget(dir: &Path, log: WriteAheadLog) -> Result<(), AnyError> {
    log.close()?;
    drop(log);
    if let Some(newest) = segments(dir)?.pop() {
        std::fs::remove_file(newest)?;
    }
    Ok(())
}

/// The paths of a log's segments, oldest first.
fn segments(dir: &Path) -> Result<Vec<PathBuf>, AnyError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
