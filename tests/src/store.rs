use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

/// The agent's database, read-only.
pub struct Store {
    connection: Connection,
}

/// One row of the table `events`.
#[derive(Clone, Debug)]
pub struct Row {
    /// The stream.
    pub stream: String,
    /// The sequence.
    pub sequence: u64,
    /// The topic.
    pub topic: String,
    /// The pid column.
    pub pid: Option<u32>,
    /// The ppid column.
    pub ppid: Option<u32>,
    /// The uid column.
    pub uid: Option<u32>,
    /// The exe column.
    pub exe: Option<String>,
    /// The cmdline column.
    pub cmdline: Option<String>,
    /// The process_key column.
    pub process_key: Option<String>,
    /// The whole event.
    pub event: Value,
}

impl Store {
    /// Opens the database at this path.
    ///
    /// # Panics
    /// If there is none.
    pub fn open(path: &Path) -> Self {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .expect("the store can be opened");
        connection
            .busy_timeout(std::time::Duration::from_secs(10))
            .expect("a busy timeout can be set");
        Self { connection }
    }

    /// The rows for which an SQL condition holds, by stream and sequence.
    ///
    /// # Panics
    /// If the condition is not SQL.
    pub fn rows(&self, condition: &str) -> Vec<Row> {
        let sql = format!(
            "SELECT stream, sequence, topic, pid, ppid, uid, exe, cmdline, process_key, event
             FROM events WHERE {condition} ORDER BY stream, sequence"
        );
        let mut statement = self.connection.prepare(&sql).expect("the query is SQL");
        let rows = statement
            .query_map([], |row| {
                Ok(Row {
                    stream: row.get(0)?,
                    sequence: unsigned(row, 1)?,
                    topic: row.get(2)?,
                    pid: row.get(3)?,
                    ppid: row.get(4)?,
                    uid: row.get(5)?,
                    exe: row.get(6)?,
                    cmdline: row.get(7)?,
                    process_key: row.get(8)?,
                    event: serde_json::from_str(&row.get::<_, String>(9)?)
                        .expect("the event column holds JSON"),
                })
            })
            .expect("the query runs");
        rows.map(|row| row.expect("a row")).collect()
    }

    /// One number.
    ///
    /// # Panics
    /// If the query does not give one.
    pub fn number(&self, sql: &str) -> u64 {
        self.connection
            .query_row(sql, [], |row| unsigned(row, 0))
            .expect("the query gives a number")
    }

    /// What `streams` says is committed, by stream.
    pub fn committed(&self) -> BTreeMap<String, u64> {
        let mut statement =
            self.connection.prepare("SELECT stream, committed FROM streams").expect("the query");
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, unsigned(row, 1)?)))
            .expect("the query runs");
        rows.map(|row| row.expect("a row")).collect()
    }

    /// Checks that every stream is stored without hole or duplicate up to what is committed, and
    /// gives the streams with their last sequence.
    ///
    /// # Panics
    /// If one is not.
    pub fn assert_contiguous(&self) -> BTreeMap<String, u64> {
        let committed = self.committed();
        for (stream, last) in &committed {
            let count =
                self.number(&format!("SELECT count(*) FROM events WHERE stream = '{stream}'"));
            let (low, high) = self
                .connection
                .query_row(
                    "SELECT coalesce(min(sequence), 0), coalesce(max(sequence), 0)
                     FROM events WHERE stream = ?1",
                    [stream],
                    |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)),
                )
                .expect("the query runs");
            assert_eq!(
                (count, low, high),
                (*last, u64::from(*last > 0), *last),
                "stream {stream}: count, first and last of its rows against what is committed"
            );
        }
        committed
    }
}

/// SQLite's integers are signed; ours here are not.
fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    Ok(u64::try_from(number).expect("a number that is not negative"))
}
