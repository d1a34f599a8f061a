//! redb: a table from a number to the payload, one write transaction a batch with the default
//! `Durability::Immediate`.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{AnyError, Found, Peer};

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");

pub(super) struct Redb {
    database: Database,
    next: AtomicU64,
}

impl Redb {
    pub(super) fn open(dir: &Path) -> Result<Self, AnyError> {
        let database = Database::create(dir.join("records.redb"))?;
        Ok(Self { database, next: AtomicU64::new(0) })
    }
}

impl Peer for Redb {
    fn append(&self, _producer: u64, records: &[&[u8]]) -> Result<(), AnyError> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            let first = self.next.fetch_add(records.len() as u64, Ordering::Relaxed);
            for (key, record) in (first..).zip(records) {
                table.insert(key, *record)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

pub(super) fn read(dir: &Path, mut found: Found) -> Result<Found, AnyError> {
    let redb = Redb::open(dir)?;
    let start = Instant::now();
    let transaction = redb.database.begin_read()?;
    for entry in transaction.open_table(RECORDS)?.iter()? {
        found.see(entry?.1.value());
    }
    found.secs = start.elapsed().as_secs_f64();
    Ok(found)
}
