//! raft-engine: files of 80 MB, prefilled with zeros when it is opened as its users are advised to,
//! no compression. A batch is a log batch written with `sync`; each producer has a raft group of
//! its own, and the groups that write at the same time share one sync.
//!
//! An entry has to know its index: it takes the place of the payload's first eight bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use super::{AnyError, Found, Peer, Purpose};

const FILE_MB: u64 = 80;

pub(super) struct RaftEngine {
    engine: Engine,
    /// The last index of each group.
    last: Mutex<BTreeMap<u64, Arc<Mutex<u64>>>>,
}

#[derive(Clone)]
struct Payload;

impl MessageExt for Payload {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let mut index = [0; 8];
        index.copy_from_slice(&entry.value[..8]);
        u64::from_le_bytes(index)
    }
}

fn config(dir: &Path, prefill_mb: u64) -> Config {
    Config {
        dir: dir.display().to_string(),
        target_file_size: ReadableSize::mb(FILE_MB),
        purge_threshold: ReadableSize::gb(8),
        batch_compression_threshold: ReadableSize(0),
        enable_log_recycle: true,
        prefill_for_recycle: prefill_mb > 0,
        prefill_limit: (prefill_mb > 0).then(|| ReadableSize::mb(prefill_mb)),
        ..Config::default()
    }
}

impl RaftEngine {
    pub(super) fn open(dir: &Path, purpose: Purpose) -> Result<Self, AnyError> {
        let prefill_mb = match purpose {
            Purpose::Append { bytes } => (bytes >> 20).next_multiple_of(FILE_MB) + FILE_MB,
            Purpose::Keep => 0,
        };
        Ok(Self { engine: Engine::open(config(dir, prefill_mb))?, last: Mutex::default() })
    }
}

impl Peer for RaftEngine {
    fn append(&self, producer: u64, records: &[&[u8]]) -> Result<(), AnyError> {
        let group = producer + 1;
        let last = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(last.entry(group).or_default())
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let entries: Vec<_> = records
            .iter()
            .map(|record| {
                *last += 1;
                let mut value = record.to_vec();
                value[..8].copy_from_slice(&last.to_le_bytes());
                let mut entry = BytesValue::new();
                entry.set_value(value);
                entry
            })
            .collect();
        let mut batch = LogBatch::with_capacity(1);
        batch.add_entries::<Payload>(group, &entries)?;
        self.engine.write(&mut batch, true)?;
        Ok(())
    }
}

pub(super) fn read(dir: &Path, mut found: Found) -> Result<Found, AnyError> {
    const AT_A_TIME: u64 = 8192;
    let engine = Engine::open(config(dir, 0))?;
    let start = Instant::now();
    for group in engine.raft_groups() {
        let first = engine.first_index(group).ok_or("an empty group")?;
        let end = engine.last_index(group).ok_or("an empty group")? + 1;
        let mut at = first;
        while at < end {
            let mut entries = Vec::new();
            let to = end.min(at + AT_A_TIME);
            if engine.fetch_entries_to::<Payload>(group, at, to, None, &mut entries).is_err() {
                // It refuses all for one that is damaged.
                entries.clear();
                for index in at..to {
                    if let Err(error) = engine.fetch_entries_to::<Payload>(
                        group,
                        index,
                        index + 1,
                        None,
                        &mut entries,
                    ) {
                        eprintln!("entry {index}: {error}");
                    }
                }
            }
            entries.iter().for_each(|entry| found.see(&entry.value));
            at = to;
        }
    }
    found.secs = start.elapsed().as_secs_f64();
    Ok(found)
}
