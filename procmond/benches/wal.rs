//! The log against the disk's limit: the same payload bytes, written raw with one fdatasync.
//!
//! `cargo bench -p procmond --bench wal [-- --quick] [-- --json] [-- --dir DIR]`
//!
//! Rows are measured in interleaved rounds of one run, ours and the two limits within each round,
//! because figures move with the machine; medians and their ratios are printed. The limit is the
//! overwriting of a file of zeros; a growing file, which is what our segments are, is shown beside
//! it. Readers are compared with 1 MiB reads and a CRC of what was read.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, NewRecord, WalOptions, WriteAheadLog};

/// The payload of a typical process event.
const RECORD_BYTES: usize = 400;
const PRODUCERS: usize = 64;
/// What is acknowledged is deleted, so that the log stays within its budget.
const ACKNOWLEDGE_EVERY: usize = 1 << 16;
/// The raw files start again when they get here.
const AREA_BYTES: u64 = 64 << 20;

type AnyError = Box<dyn std::error::Error>;

struct Settings {
    dir: PathBuf,
    rounds: usize,
    slice: Duration,
    read_records: u64,
    json: bool,
}

fn settings() -> Result<Settings, AnyError> {
    let mut settings = Settings {
        dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        rounds: 9,
        slice: Duration::from_millis(700),
        read_records: 400_000,
        json: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => {
                settings.rounds = 5;
                settings.slice = Duration::from_millis(300);
                settings.read_records = 200_000;
            }
            "--json" => settings.json = true,
            "--dir" => settings.dir = args.next().ok_or("--dir needs a directory")?.into(),
            // What cargo passes on.
            "--bench" => {}
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(settings)
}

/// Records a second of one row: ours, overwriting zeros, a growing file.
#[derive(Default)]
struct Row {
    name: &'static str,
    ours: Vec<f64>,
    limit: Vec<f64>,
    growing: Vec<f64>,
}

fn main() -> Result<(), AnyError> {
    let settings = settings()?;
    let scratch = tempfile::tempdir_in(&settings.dir)?;
    let pool = pool();
    let mut rows: Vec<_> =
        ["append_1", "append_64", "append_1024", "append_64_producers", "read_warm"]
            .map(|name| Row { name, ..Row::default() })
            .into();
    let to_read = fill_for_reading(&scratch.path().join("read"), &settings, &pool)?;
    for _ in 0..settings.rounds {
        for (row, batch) in rows.iter_mut().zip([1, 64, 1024]) {
            row.ours.push(append(&scratch.path().join("ours"), batch, &settings, &pool)?);
            row.limit.push(raw(scratch.path(), true, batch, &settings, &pool)?);
            row.growing.push(raw(scratch.path(), false, batch, &settings, &pool)?);
        }
        // One record from each of many producers can at best be one write for all of them.
        let row = &mut rows[3];
        row.ours.push(append_from_many(&scratch.path().join("ours"), &settings, &pool)?);
        row.limit.push(raw(scratch.path(), true, PRODUCERS, &settings, &pool)?);
        row.growing.push(raw(scratch.path(), false, PRODUCERS, &settings, &pool)?);
        let row = &mut rows[4];
        row.ours.push(read_ours(&to_read)?);
        row.limit.push(read_raw(&scratch.path().join("read"))?);
    }
    print(&settings, &mut rows);
    Ok(())
}

fn options() -> WalOptions {
    // Nobody waits for company: the bench says how many come together.
    WalOptions { commit_delay: Duration::ZERO, ..WalOptions::default() }
}

/// Pseudo-random payloads, more than the caches hold.
fn pool() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(RECORD_BYTES << 16);
    while bytes.len() < RECORD_BYTES << 16 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// `batch` records from somewhere in the pool.
fn slice(pool: &[u8], batch: usize, turn: usize) -> &[u8] {
    let bytes = batch * RECORD_BYTES;
    let from = (turn * bytes) % (pool.len() - bytes) / RECORD_BYTES * RECORD_BYTES;
    &pool[from..from + bytes]
}

fn append(dir: &Path, batch: usize, settings: &Settings, pool: &[u8]) -> Result<f64, AnyError> {
    let (log, _) = WriteAheadLog::open(dir, options())?;
    let start = Instant::now();
    let mut turn = 0;
    while start.elapsed() < settings.slice {
        let records: Vec<_> = slice(pool, batch, turn)
            .chunks_exact(RECORD_BYTES)
            .map(|payload| NewRecord { kind: 1, timestamp_ns: 0, payload })
            .collect();
        let last = log.submit_all(&records)?;
        log.durable_blocking(last)?;
        turn += 1;
        if turn * batch % ACKNOWLEDGE_EVERY < batch {
            log.acknowledge(last)?;
        }
    }
    Ok((turn * batch) as f64 / start.elapsed().as_secs_f64())
}

fn append_from_many(dir: &Path, settings: &Settings, pool: &[u8]) -> Result<f64, AnyError> {
    let (log, _) = WriteAheadLog::open(dir, options())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let pool: Arc<[u8]> = pool.into();
    let count = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let end = start + settings.slice;
    runtime.block_on(async {
        let tasks: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let (log, pool, count) = (log.clone(), Arc::clone(&pool), Arc::clone(&count));
                tokio::spawn(async move {
                    let mut turn = producer;
                    while Instant::now() < end {
                        let receipt = log.append(1, 0, slice(&pool, 1, turn)).await?;
                        let done = count.fetch_add(1, Ordering::Relaxed);
                        if done % ACKNOWLEDGE_EVERY as u64 == 0 {
                            log.acknowledge(receipt.sequence)?;
                        }
                        turn += PRODUCERS;
                    }
                    Ok::<_, procmond::wal::WalError>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok::<_, AnyError>(())
    })?;
    Ok(count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

/// Writes the same payloads with one write and one fdatasync a batch.
fn raw(
    dir: &Path,
    overwrite: bool,
    batch: usize,
    settings: &Settings,
    pool: &[u8],
) -> Result<f64, AnyError> {
    let path = dir.join(if overwrite { "zeros" } else { "growing" });
    let file = if overwrite { zeros(&path)? } else { File::create(&path)? };
    let start = Instant::now();
    let (mut turn, mut offset) = (0, 0);
    while start.elapsed() < settings.slice {
        let bytes = slice(pool, batch, turn);
        if offset + bytes.len() as u64 > AREA_BYTES {
            offset = 0;
            if !overwrite {
                file.set_len(0)?;
            }
        }
        write_at(&file, bytes, offset)?;
        file.sync_data()?;
        offset += bytes.len() as u64;
        turn += 1;
    }
    Ok((turn * batch) as f64 / start.elapsed().as_secs_f64())
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

/// A file of written zeros, made once.
fn zeros(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    if file.metadata()?.len() < AREA_BYTES {
        let chunk = vec![0; 1 << 20];
        for at in (0..AREA_BYTES).step_by(chunk.len()) {
            write_at(&file, &chunk, at)?;
        }
        file.sync_all()?;
    }
    Ok(file)
}

/// A log of several segments, read once so that it is in memory.
fn fill_for_reading(
    dir: &Path,
    settings: &Settings,
    pool: &[u8],
) -> Result<WriteAheadLog, AnyError> {
    const BATCH: usize = 1024;
    let (log, _) = WriteAheadLog::open(dir, options())?;
    let mut turn = 0;
    while log.last().0 < settings.read_records {
        let records: Vec<_> = slice(pool, BATCH, turn)
            .chunks_exact(RECORD_BYTES)
            .map(|payload| NewRecord { kind: 1, timestamp_ns: 0, payload })
            .collect();
        log.durable_blocking(log.submit_all(&records)?)?;
        turn += 1;
    }
    read_ours(&log)?;
    Ok(log)
}

fn read_ours(log: &WriteAheadLog) -> Result<f64, AnyError> {
    let mut reader = log.reader(Sequence::FIRST);
    let start = Instant::now();
    let mut records = 0_u64;
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
    if records != log.last().0 {
        return Err(format!("{records} records were read of {}", log.last()).into());
    }
    Ok(records as f64 / start.elapsed().as_secs_f64())
}

/// Reads a log's files and sums them up, as records of the size ours have.
fn read_raw(dir: &Path) -> Result<f64, AnyError> {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    let start = Instant::now();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "wal") {
            continue;
        }
        let mut file = File::open(path)?;
        loop {
            let got = file.read(&mut buffer)?;
            if got == 0 {
                break;
            }
            black_box(crc32fast::hash(&buffer[..got]));
            bytes += got;
        }
    }
    // 32 bytes of frame before each payload.
    Ok(bytes as f64 / (RECORD_BYTES + 32) as f64 / start.elapsed().as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(settings: &Settings, rows: &mut [Row]) {
    if !settings.json {
        println!(
            "{:<20} {:>12} {:>12} {:>6} {:>12} {:>6}",
            "records/s", "ours", "limit", "ratio", "growing", "ratio"
        );
    }
    for row in rows {
        let ours = median(&mut row.ours);
        let limit = median(&mut row.limit);
        let growing = median(&mut row.growing);
        if settings.json {
            let object = serde_json::json!({
                "row": row.name,
                "ours": ours.round(),
                "limit": limit.round(),
                "ratio_limit": (ours / limit * 1000.0).round() / 1000.0,
                "peer": null,
                "ratio_peer": null,
            });
            println!("{object}");
        } else if growing.is_nan() {
            println!("{:<20} {ours:>12.0} {limit:>12.0} {:>6.2}", row.name, ours / limit);
        } else {
            println!(
                "{:<20} {ours:>12.0} {limit:>12.0} {:>6.2} {growing:>12.0} {:>6.2}",
                row.name,
                ours / limit,
                ours / growing
            );
        }
    }
}
