//! SQLite: `journal_mode=WAL` with `synchronous=FULL`, so that a commit is synced; prepared
//! statements, one connection that producers take in turn, one transaction a batch.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rusqlite::Connection;

use super::{AnyError, Found, Peer};

pub(super) struct Sqlite(Mutex<Connection>);

impl Sqlite {
    pub(super) fn open(dir: &Path) -> Result<Self, AnyError> {
        let connection = Connection::open(dir.join("records.db"))?;
        connection.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
             CREATE TABLE IF NOT EXISTS records(sequence INTEGER PRIMARY KEY, payload BLOB NOT NULL);",
        )?;
        Ok(Self(Mutex::new(connection)))
    }
}

impl Peer for Sqlite {
    fn append(&self, _producer: u64, records: &[&[u8]]) -> Result<(), AnyError> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO records(payload) VALUES(?1)")?;
            for record in records {
                insert.execute([record])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

pub(super) fn read(dir: &Path, mut found: Found) -> Result<Found, AnyError> {
    let Sqlite(connection) = Sqlite::open(dir)?;
    let connection = connection.into_inner().unwrap_or_else(PoisonError::into_inner);
    let start = Instant::now();
    let mut select = connection.prepare("SELECT payload FROM records ORDER BY sequence")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        found.see(row.get_ref(0)?.as_blob()?);
    }
    found.secs = start.elapsed().as_secs_f64();
    Ok(found)
}
