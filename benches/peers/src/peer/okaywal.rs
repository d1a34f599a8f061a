//! okaywal: segments of 80 MB that are recycled when the checkpointer lets go of them, a buffer of
//! 64 KiB. A batch is an entry, a record a chunk in it; `commit` returns after `sync_data`, and
//! threads that commit at the same time share one.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use okaywal::{
    Configuration, Entry, EntryId, LogManager, ReadChunkResult, SegmentReader, WriteAheadLog,
};

use super::{AnyError, Found, Peer, Purpose};
use crate::workload::{Payloads, RECORD_BYTES};

const SEGMENT_BYTES: u32 = 80 << 20;
/// So that no checkpoint forgets what is to be read: half a million records.
const KEPT_BYTES: u32 = 256 << 20;

pub(super) struct Okaywal(WriteAheadLog);

/// Takes note of what recovery finds; a checkpoint has nothing to do, as if everything had been
/// acknowledged.
#[derive(Debug, Clone, Default)]
struct Manager(Arc<Mutex<Found>>);

impl LogManager for Manager {
    fn recover(&mut self, entry: &mut Entry<'_>) -> std::io::Result<()> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let ReadChunkResult::Chunk(mut chunk) = entry.read_chunk()? {
            let record = chunk.read_all()?;
            if chunk.check_crc()? {
                found.see(&record);
            }
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _last: EntryId,
        _entries: &mut SegmentReader,
        _log: &WriteAheadLog,
    ) -> std::io::Result<()> {
        Ok(())
    }
}

fn configuration(dir: &Path, segment_bytes: u32) -> Configuration {
    Configuration::default_for(dir)
        .preallocate_bytes(segment_bytes)
        .checkpoint_after_bytes(u64::from(segment_bytes) - (1 << 20))
        .buffer_bytes(64 << 10)
}

impl Okaywal {
    pub(super) fn open(dir: &Path, purpose: Purpose) -> Result<Self, AnyError> {
        let segment_bytes = match purpose {
            Purpose::Append { .. } => SEGMENT_BYTES,
            Purpose::Keep => KEPT_BYTES,
        };
        Ok(Self(configuration(dir, segment_bytes).open(Manager::default())?))
    }
}

impl Peer for Okaywal {
    fn append(&self, _producer: u64, records: &[&[u8]]) -> Result<(), AnyError> {
        let mut entry = self.0.begin_entry()?;
        for record in records {
            entry.write_chunk(record)?;
        }
        entry.commit()?;
        Ok(())
    }

    fn reach_steady_state(&self, payloads: &Payloads) -> Result<(), AnyError> {
        // A segment is sparse in its first life and recycled from then on.
        let records = 3 * SEGMENT_BYTES as usize / RECORD_BYTES;
        for turn in 0..records / 1024 {
            self.append(0, &payloads.records(turn as u64 * 1024, 1024).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn leave(&self) {
        std::mem::forget(self.0.clone());
    }
}

/// Opening is reading.
pub(super) fn read(dir: &Path, found: Found) -> Result<Found, AnyError> {
    let manager = Manager(Arc::new(Mutex::new(found)));
    let start = Instant::now();
    let log = configuration(dir, KEPT_BYTES).open(manager.clone())?;
    let secs = start.elapsed().as_secs_f64();
    std::mem::forget(log);
    let found = std::mem::take(&mut *manager.0.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Found { secs, ..found })
}
