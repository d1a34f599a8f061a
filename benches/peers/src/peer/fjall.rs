//! fjall: a keyspace with its default settings; the journal is what is measured. A batch is a write
//! batch with `PersistMode::SyncData`, a single record an insert followed by `persist(SyncData)`.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{AnyError, Found, Peer};

pub(super) struct Fjall {
    database: Database,
    keyspace: Keyspace,
    next: AtomicU64,
}

impl Fjall {
    pub(super) fn open(dir: &Path) -> Result<Self, AnyError> {
        let database = Database::builder(dir).open()?;
        let keyspace = database.keyspace("log", KeyspaceCreateOptions::default)?;
        Ok(Self { database, keyspace, next: AtomicU64::new(0) })
    }
}

impl Peer for Fjall {
    fn append(&self, _producer: u64, records: &[&[u8]]) -> Result<(), AnyError> {
        let first = self.next.fetch_add(records.len() as u64, Ordering::Relaxed);
        if let [record] = records {
            self.keyspace.insert(first.to_be_bytes(), *record)?;
            self.database.persist(PersistMode::SyncData)?;
        } else {
            let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
            for (key, record) in (first..).zip(records) {
                batch.insert(&self.keyspace, key.to_be_bytes(), *record);
            }
            batch.commit()?;
        }
        Ok(())
    }
}

pub(super) fn read(dir: &Path, mut found: Found) -> Result<Found, AnyError> {
    let fjall = Fjall::open(dir)?;
    let start = Instant::now();
    for entry in fjall.keyspace.iter() {
        found.see(&entry.value()?);
    }
    found.secs = start.elapsed().as_secs_f64();
    Ok(found)
}
