//! The tables, and opening the file they live in.
//!
//! The columns of `events`, and `stream` and `committed` of `streams`, are part of our interface:
//! people query them with `sqlite3`. A change of shape is a new `user_version`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{StoreError, StreamFigures};
use crate::state_dir::open_private;

/// The version of the tables this program writes.
const SCHEMA_VERSION: i64 = 1;

/// "DMEY": lets `file` and a careful reader tell our database from another.
const APPLICATION_ID: i64 = 0x444d_4559;

/// A row is half a KiB to a KiB: in pages of 4 KiB an event costs half as much processor time again.
const PAGE_BYTES: u32 = 16 << 10;

/// How long a statement waits for a lock another program holds before it reports it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

const TABLES: &str = "
CREATE TABLE events(
    stream      TEXT    NOT NULL,
    sequence    INTEGER NOT NULL,
    topic       TEXT    NOT NULL,
    time_ns     INTEGER NOT NULL,
    pid         INTEGER,
    ppid        INTEGER,
    uid         INTEGER,
    name        TEXT,
    exe         TEXT,
    cmdline     TEXT,
    process_key TEXT,
    event       JSON    NOT NULL,
    PRIMARY KEY(stream, sequence)
);
CREATE INDEX events_time ON events(time_ns);
CREATE INDEX events_pid ON events(pid);

CREATE TABLE streams(
    stream        TEXT    PRIMARY KEY,
    committed     INTEGER NOT NULL,
    epoch         INTEGER NOT NULL,
    collector     TEXT,
    registered_ns INTEGER,
    replaces      TEXT,
    first_seen_ns INTEGER NOT NULL,
    gaps          INTEGER NOT NULL,
    missing       INTEGER NOT NULL,
    undecodable   INTEGER NOT NULL,
    topics        JSON    NOT NULL
);
";

/// Opens the database for writing, making it (mode 0600) if it is not there.
pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    // Made by us first: SQLite would make it with the umask's mode, and gives its companion files
    // the mode of this one.
    let file = open_private(path)
        .map_err(|source| StoreError::Create { path: path.to_owned(), source })?;
    drop(file);
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(failed)?;
    prepare(&mut connection).map_err(failed)?;
    let version = migrate(&mut connection).map_err(failed)?;
    check_version(path, version)?;
    Ok(connection)
}

/// Opens the database for reading, beside a running agent or without one.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    if !path.exists() {
        return Err(StoreError::Missing { path: path.to_owned() });
    }
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    let version = user_version(&connection).map_err(failed)?;
    check_version(path, version)?;
    Ok(connection)
}

fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Counts only for a file that is made now.
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // With NORMAL a power cut may take back a transaction whose events procmond has already
    // deleted from its log, because we told it they were committed.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // After a burst, give the journal's disk space back.
    connection.pragma_update(None, "journal_size_limit", 64 << 20)
}

/// Makes the tables in a new file; answers the version the file has now.
fn migrate(connection: &mut Connection) -> rusqlite::Result<i64> {
    let found = user_version(connection)?;
    if found != 0 {
        return Ok(found);
    }
    let transaction = connection.transaction()?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()?;
    Ok(SCHEMA_VERSION)
}

fn user_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn check_version(path: &Path, found: i64) -> Result<(), StoreError> {
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    Err(StoreError::Version { path: path.to_owned(), found, known: SCHEMA_VERSION })
}

/// Reads the table `streams`, oldest first.
pub(super) fn load_streams(connection: &Connection) -> rusqlite::Result<Vec<StreamFigures>> {
    let mut statement = connection.prepare(
        "SELECT stream, committed, epoch, collector, registered_ns, replaces, first_seen_ns, \
                gaps, missing, undecodable, topics \
         FROM streams ORDER BY first_seen_ns, rowid",
    )?;
    let rows = statement.query_map([], |row| {
        let topics: String = row.get("topics")?;
        Ok(StreamFigures {
            stream: parse_stream(row.get_ref("stream")?.as_str()?)?,
            committed: Sequence(row.get::<_, i64>("committed")?.max(0).cast_unsigned()),
            // The epoch uses all 64 bits; SQLite's integer is only their container.
            epoch: Epoch::from_u64(row.get::<_, i64>("epoch")?.cast_unsigned()),
            collector: row.get("collector")?,
            registered_ns: row.get("registered_ns")?,
            replaces: row
                .get::<_, Option<String>>("replaces")?
                .map(|text| parse_stream(&text))
                .transpose()?,
            first_seen_ns: row.get("first_seen_ns")?,
            gaps: row.get::<_, i64>("gaps")?.max(0).cast_unsigned(),
            missing: row.get::<_, i64>("missing")?.max(0).cast_unsigned(),
            undecodable: row.get::<_, i64>("undecodable")?.max(0).cast_unsigned(),
            topics: serde_json::from_str::<BTreeMap<String, u64>>(&topics)
                .map_err(|error| conversion(Box::new(error)))?,
        })
    })?;
    rows.collect()
}

/// The rowid of the event that arrived last, 0 if there is none.
pub(super) fn last_rowid(connection: &Connection) -> rusqlite::Result<i64> {
    let newest = connection
        .query_row("SELECT rowid FROM events ORDER BY rowid DESC LIMIT 1", [], |row| row.get(0))
        .optional()?;
    Ok(newest.unwrap_or(0))
}

fn parse_stream(text: &str) -> rusqlite::Result<StreamId> {
    text.parse().map_err(|error| conversion(Box::new(error)))
}

fn conversion(error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a power cut may not take back must be synced when the commit returns.
    #[test]
    fn commits_are_synced_before_they_return() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open_writer(&dir.path().join("events.db")).unwrap();
        let ask = |pragma: &str| -> String {
            let value: rusqlite::types::Value =
                connection.pragma_query_value(None, pragma, |row| row.get(0)).unwrap();
            format!("{value:?}")
        };
        assert_eq!(ask("journal_mode"), "Text(\"wal\")");
        assert_eq!(ask("synchronous"), "Integer(2)");
    }
}
