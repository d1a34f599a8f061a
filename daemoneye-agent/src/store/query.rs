//! Reading stored events, beside a running agent or without one.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use daemoneye_eventbus::{Topic, TopicPattern};
use rusqlite::{Connection, Row, ToSql};

use super::{StoreError, StreamFigures, schema};

const COLUMNS: &str = "rowid, stream, sequence, topic, time_ns, pid, ppid, uid, name, exe, \
                       cmdline, process_key, event";

/// A row of the table `events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the order of arrival.
    pub rowid: i64,
    /// The stream, as text.
    pub stream: String,
    /// Its place in its stream.
    pub sequence: i64,
    /// What it is about.
    pub topic: String,
    /// Wall clock in nanoseconds since 1970.
    pub time_ns: i64,
    /// The process.
    pub pid: Option<i64>,
    /// Its parent.
    pub ppid: Option<i64>,
    /// Its real user.
    pub uid: Option<i64>,
    /// Its name, escaped for a terminal.
    pub name: Option<String>,
    /// Its executable, escaped for a terminal.
    pub exe: Option<String>,
    /// Its command line, escaped for a terminal.
    pub cmdline: Option<String>,
    /// The printed form of its key.
    pub process_key: Option<String>,
    /// The whole event, as JSON.
    pub event: String,
}

/// Which events to read. The default is all.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only topics that match.
    pub topic: Option<TopicPattern>,
    /// Only events at or after this time (nanoseconds since 1970).
    pub since_ns: Option<i64>,
    /// Only events of this process id.
    pub pid: Option<u32>,
}

/// A read-only connection to a store.
#[derive(Debug)]
pub struct EventReader {
    path: PathBuf,
    connection: Connection,
}

impl EventReader {
    /// Opens the database for reading. The agent may run meanwhile.
    ///
    /// # Errors
    /// When there is no database or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_owned(), connection: schema::open_reader(path)? })
    }

    /// The place of the event that arrived last, 0 when there is none.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn last_rowid(&self) -> Result<i64, StoreError> {
        schema::last_rowid(&self.connection).map_err(|source| self.failed(source))
    }

    /// The table `streams`, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn streams(&self) -> Result<Vec<StreamFigures>, StoreError> {
        schema::load_streams(&self.connection).map_err(|source| self.failed(source))
    }

    /// Shows the events that arrived up to `until` to `each`, in the order of their times, until
    /// it breaks. With a `limit` only the newest so many, which are gathered in memory first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn until(
        &self,
        until: i64,
        filter: &EventFilter,
        limit: Option<usize>,
        mut each: impl FnMut(StoredEvent) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Some(limit) = limit else {
            return self.scan("rowid <= ?1", until, "time_ns, rowid", filter, each);
        };
        let mut newest = Vec::new();
        if limit > 0 {
            self.scan("rowid <= ?1", until, "time_ns DESC, rowid DESC", filter, |event| {
                newest.push(event);
                if newest.len() < limit {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
        }
        for event in newest.into_iter().rev() {
            if each(event).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Shows the events that arrived after `after` and up to `until` to `each`, in the order they
    /// arrived, until it breaks.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn arrived(
        &self,
        after: i64,
        until: i64,
        filter: &EventFilter,
        mut each: impl FnMut(StoredEvent) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        self.scan("rowid > ?1", after, "rowid", filter, |event| {
            if event.rowid > until { ControlFlow::Break(()) } else { each(event) }
        })
    }

    fn scan(
        &self,
        bound: &str,
        bound_at: i64,
        order: &str,
        filter: &EventFilter,
        mut each: impl FnMut(StoredEvent) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut sql = format!("SELECT {COLUMNS} FROM events WHERE {bound}");
        let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(bound_at)];
        let mut require = |clause: &str, value: Box<dyn ToSql>| {
            values.push(value);
            sql.push_str(&format!(" AND {clause} ?{}", values.len()));
        };
        if let Some(since_ns) = filter.since_ns {
            require("time_ns >=", Box::new(since_ns));
        }
        if let Some(pid) = filter.pid {
            require("pid =", Box::new(pid));
        }
        if let Some(pattern) = &filter.topic {
            // Lets SQLite drop most of what does not match; `matches` below has the last word.
            require("topic GLOB", Box::new(glob(pattern)));
        }
        sql.push_str(&format!(" ORDER BY {order}"));
        (|| {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let values: Vec<&dyn ToSql> = values.iter().map(AsRef::as_ref).collect();
            let mut rows = statement.query(values.as_slice())?;
            while let Some(row) = rows.next()? {
                let event = stored_event(row)?;
                if matches(filter, &event.topic) && each(event).is_break() {
                    break;
                }
            }
            Ok(())
        })()
        .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Sqlite { path: self.path.clone(), source }
    }
}

fn matches(filter: &EventFilter, topic: &str) -> bool {
    filter
        .topic
        .as_ref()
        .is_none_or(|pattern| Topic::new(topic).is_ok_and(|topic| pattern.matches(&topic)))
}

/// A GLOB that matches at least what the pattern does: its `*` does not stop at dots. Nothing else
/// a pattern may hold means anything to GLOB.
fn glob(pattern: &TopicPattern) -> String {
    pattern.as_str().replace(['+', '#'], "*")
}

fn stored_event(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    Ok(StoredEvent {
        rowid: row.get(0)?,
        stream: row.get(1)?,
        sequence: row.get(2)?,
        topic: row.get(3)?,
        time_ns: row.get(4)?,
        pid: row.get(5)?,
        ppid: row.get(6)?,
        uid: row.get(7)?,
        name: row.get(8)?,
        exe: row.get(9)?,
        cmdline: row.get(10)?,
        process_key: row.get(11)?,
        event: row.get(12)?,
    })
}
