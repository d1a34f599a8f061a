//! Other people's logs and stores, driven as procmond's bench `wal` drives ours.
//!
//! The bench starts this program once per measurement, in a directory of its own, and reads one
//! JSON object from its standard output. By hand:
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml --bin wal-peers -- \
//!     append --peer okaywal --dir /tmp/okaywal --batch 64
//! ```
//!
//! An append returns when its data is synced; each peer's module says by which setting.

mod files;
mod peer;
#[expect(dead_code, reason = "the bench and the prototypes use the rest")]
#[path = "../../../procmond/benches/wal/workload.rs"]
mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peer::{AnyError, Found, PEERS, Peer, Purpose};
use workload::{Done, Payloads, paced, repeat};

/// A log that is read is written in batches of this many.
const FILL_BATCH: usize = 1024;

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let command = args.next().ok_or("say append, paced, fill, read or names")?;
    let args = Args::parse(args)?;
    let payloads = Payloads::new();
    let said = match command.as_str() {
        "names" => serde_json::json!(PEERS),
        "append" => append(&args, payloads)?,
        "paced" => pace(&args, &payloads)?,
        "fill" => fill(&args, &payloads)?,
        "read" => read(&args, &payloads)?,
        other => return Err(format!("unknown command {other}").into()),
    };
    println!("{said}");
    Ok(())
}

struct Args(BTreeMap<String, String>);

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, AnyError> {
        let mut found = BTreeMap::new();
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            found.insert(name, value);
        }
        Ok(Self(found))
    }

    fn text(&self, name: &str) -> Result<&str, AnyError> {
        Ok(self.0.get(name).ok_or_else(|| format!("{name} is missing"))?)
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, AnyError> {
        Ok(self.0.get(name).map_or(Ok(default), |value| value.parse())?)
    }

    fn millis(&self, name: &str, default: u64) -> Result<Duration, AnyError> {
        Ok(Duration::from_millis(self.number(name, default)?))
    }

    fn dir(&self) -> Result<&Path, AnyError> {
        let dir = Path::new(self.text("--dir")?);
        std::fs::create_dir_all(dir)?;
        Ok(dir)
    }

    fn open(&self, purpose: Purpose) -> Result<Arc<dyn Peer>, AnyError> {
        peer::open(self.text("--peer")?, self.dir()?, purpose)
    }
}

/// As many producers as asked for, each appending a batch and awaiting it before the next.
fn append(args: &Args, payloads: Payloads) -> Result<serde_json::Value, AnyError> {
    let batch = args.number("--batch", 1)? as usize;
    let producers = args.number("--producers", 1)?;
    let warm = args.millis("--warm-ms", 100)?;
    let measured = args.millis("--ms", 700)?;
    let bytes = args.number("--most-bytes", 160 << 20)?;
    let log = args.open(Purpose::Append { bytes })?;
    log.reach_steady_state(&payloads)?;
    let done = if producers == 1 {
        let mut turn = 0;
        repeat(warm, measured, || {
            let records: Vec<_> = payloads.records(turn, batch).collect();
            log.append(0, &records)?;
            turn += batch as u64;
            Ok::<_, AnyError>(batch as u64)
        })?
    } else {
        append_from_many(log, payloads, producers, batch, warm, measured)?
    };
    Ok(serde_json::json!({
        "per_second": done.per_second(),
        "cpu_ns_per_record": done.cpu_ns_per_record(),
    }))
}

fn append_from_many(
    log: Arc<dyn Peer>,
    payloads: Payloads,
    producers: u64,
    batch: usize,
    warm: Duration,
    measured: Duration,
) -> Result<Done, AnyError> {
    let payloads = Arc::new(payloads);
    let records = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..producers)
        .map(|producer| {
            let (log, payloads) = (Arc::clone(&log), Arc::clone(&payloads));
            let (records, stop) = (Arc::clone(&records), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut turn = producer * batch as u64;
                while !stop.load(Ordering::Relaxed) {
                    let run: Vec<_> = payloads.records(turn, batch).collect();
                    log.append(producer, &run).map_err(|error| error.to_string())?;
                    records.fetch_add(batch as u64, Ordering::Relaxed);
                    turn += producers * batch as u64;
                }
                Ok::<_, String>(())
            })
        })
        .collect();
    std::thread::sleep(warm);
    let (start, cpu) = (Instant::now(), workload::cpu_secs());
    let before = records.load(Ordering::Relaxed);
    std::thread::sleep(measured);
    let done = Done {
        records: records.load(Ordering::Relaxed) - before,
        secs: start.elapsed().as_secs_f64(),
        cpu_secs: workload::cpu_secs() - cpu,
    };
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| "a producer panicked")??;
    }
    Ok(done)
}

/// One producer, one record at a time at a fixed rate: how long each took, in nanoseconds.
fn pace(args: &Args, payloads: &Payloads) -> Result<serde_json::Value, AnyError> {
    let per_second = args.number("--per-second", 1000)? as u32;
    let log = args.open(Purpose::Append { bytes: 1 << 20 })?;
    log.reach_steady_state(payloads)?;
    let mut turn = 0;
    let mut append = || {
        turn += 1;
        log.append(0, &[payloads.run(turn, 1)])
    };
    paced(per_second, args.millis("--warm-ms", 100)?, &mut append)?;
    let took = paced(per_second, args.millis("--ms", 1000)?, &mut append)?;
    let nanos: Vec<_> = took.iter().map(|took| took.as_nanos() as u64).collect();
    Ok(serde_json::json!({ "took_ns": nanos }))
}

/// Writes a log to be read.
fn fill(args: &Args, payloads: &Payloads) -> Result<serde_json::Value, AnyError> {
    let records = args.number("--records", 100_000)?;
    let log = args.open(Purpose::Keep)?;
    let mut turn = 0;
    while turn < records {
        let count = (records - turn).min(FILL_BATCH as u64) as usize;
        log.append(0, &payloads.records(turn, count).collect::<Vec<_>>())?;
        turn += count as u64;
    }
    log.leave();
    Ok(serde_json::json!({ "records": records }))
}

/// Reads a copy of a log that `fill` wrote: some peers change theirs as they open it.
fn read(args: &Args, payloads: &Payloads) -> Result<serde_json::Value, AnyError> {
    let records = args.number("--records", 100_000)?;
    let scratch = Scratch(args.dir()?.with_extension("copy"));
    files::copy(args.dir()?, &scratch.0)?;
    let found = peer::read(args.text("--peer")?, &scratch.0, Found::default())?;
    let wanted = (0..records).step_by(FILL_BATCH).fold(0_u64, |sum, turn| {
        let count = (records - turn).min(FILL_BATCH as u64) as usize;
        payloads.records(turn, count).map(peer::tag).fold(sum, u64::wrapping_add)
    });
    if (found.records, found.sum) != (records, wanted) {
        return Err(format!("{} records were read of {records}, or others", found.records).into());
    }
    Ok(serde_json::json!({ "per_second": found.records as f64 / found.secs }))
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
