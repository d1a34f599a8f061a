//! The event store: every event once, in SQLite, with the position it stands for.
//!
//! The store is the durable consumer whose commit lets procmond forget. A delivery's rows and the
//! stream's new `committed` go into one transaction, and the bus hears of the commit only after
//! that transaction is on the disk. So whatever is killed at whatever moment, what the broker
//! sends again is recognised by its sequence and skipped, and nothing it was told to forget is
//! missing here:
//!
//! ```text
//!  Delivery ──► queue ──► decoding thread: rows ──► writer thread: BEGIN; rows; committed; COMMIT ──► bus commit
//!                              disk full, locked: the same deliveries again, in order, later
//! ```
//!
//! Sequences that will never come (the log and the broker no longer have them) become a row of
//! their own under `events.process.gap`: the store never jumps silently.

mod database;
mod query;
mod row;
mod schema;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemoneye_eventbus::{Committed, Delivery};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::query::{EventFilter, EventReader, StoredEvent};
use self::row::Decoded;
use self::writer::Writer;

/// Why the store cannot be used. What goes wrong while it runs is retried and logged instead.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be made or opened for writing.
    #[error(
        "the event store {path} cannot be created: {source}; check the directory's owner and free space"
    )]
    Create {
        /// The database.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite cannot open the file.
    #[error(
        "the event store {path} cannot be opened: {source}; if it is damaged, move it away and a new one is begun"
    )]
    Open {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// There is no database to read.
    #[error(
        "there is no event store at {path} yet: start `daemoneye-agent run`, or name its --state-dir"
    )]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// The tables are of a shape this program does not know.
    #[error(
        "the event store {path} has schema version {found}, this program knows {known}: use the daemoneye-agent that wrote it, or move it away"
    )]
    Version {
        /// The database.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The version this program writes.
        known: i64,
    },
    /// The writer thread cannot be started.
    #[error("the event store's thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// A statement failed; nothing of its transaction is stored.
    #[error("the event store {path} failed: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// What the store knows about one stream: a row of the table `streams`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamFigures {
    /// The stream.
    pub stream: StreamId,
    /// Everything up to here is stored, or recorded as missing.
    pub committed: Sequence,
    /// The opening of the log that wrote the event at `committed`.
    pub epoch: Epoch,
    /// The collector whose log this is, once it registered.
    pub collector: Option<String>,
    /// When that collector last registered with this stream.
    pub registered_ns: Option<i64>,
    /// The stream this one took the place of in its collector's log.
    pub replaces: Option<StreamId>,
    /// When the store first heard of the stream.
    pub first_seen_ns: i64,
    /// How many permanent gaps the store had to record.
    pub gaps: u64,
    /// How many sequences those gaps stand for.
    pub missing: u64,
    /// How many payloads could not be decoded and are stored as they came.
    pub undecodable: u64,
    /// How many rows there are of each topic.
    pub topics: BTreeMap<String, u64>,
}

impl StreamFigures {
    /// How far the stream is stored; `None` if nothing of it is, which is what a stream unknown to
    /// the bus means.
    fn position(&self) -> Option<StoreCommit> {
        let committed = Committed { sequence: self.committed, epoch: self.epoch };
        (self.committed > Sequence::NONE).then_some(StoreCommit { stream: self.stream, committed })
    }
}

/// What the store has done; counts with `_total` are since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreFigures {
    /// All streams, oldest first.
    pub streams: Vec<StreamFigures>,
    /// Transactions committed.
    pub transactions_total: u64,
    /// Rows written.
    pub stored_total: u64,
    /// Entries that were stored already and came again.
    pub duplicates_total: u64,
    /// Deliveries that contradict what is stored and were left out.
    pub refused_total: u64,
    /// Transactions that failed and were tried again.
    pub retries_total: u64,
    /// Why nothing can be stored at present.
    pub trouble: Option<String>,
}

impl StoreFigures {
    /// How many rows there are of each topic, over all streams.
    #[must_use]
    pub fn topics(&self) -> BTreeMap<String, u64> {
        let mut topics = BTreeMap::new();
        for (topic, count) in self.streams.iter().flat_map(|stream| &stream.topics) {
            *topics.entry(topic.clone()).or_default() += count;
        }
        topics
    }
}

/// A position that is on the disk and may be told to the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreCommit {
    /// The stream.
    pub stream: StreamId,
    /// How far it is stored.
    pub committed: Committed,
}

/// What the store is asked to do.
#[derive(Debug)]
enum Work {
    /// Store what the bus delivered.
    Events(Delivery),
    /// Note whose log a stream is.
    Collector { stream: StreamId, collector: String },
    /// Take nothing more, finish what is queued.
    Close,
}

/// A change of the database.
#[derive(Clone, Debug)]
enum Write {
    Events(Decoded),
    Collector { stream: StreamId, collector: String },
}

/// Hands work to the store. Clones share one queue.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    queue: mpsc::Sender<Work>,
    figures: writer::SharedFigures,
}

/// The store has been closed, or its thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the event store is closed")]
pub struct StoreClosed;

impl StoreHandle {
    /// Waits until the queue has room for one more delivery. Cancel-safe.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn slot(&self) -> Result<StoreSlot<'_>, StoreClosed> {
        self.queue.reserve().await.map(StoreSlot).map_err(|_| StoreClosed)
    }

    /// Notes that `collector` writes `stream`, and warns if it wrote another one before. Waits
    /// for room in the queue; dropped before that, nothing is noted.
    ///
    /// # Errors
    /// When the store is closed.
    pub async fn registered(&self, stream: StreamId, collector: String) -> Result<(), StoreClosed> {
        self.queue.send(Work::Collector { stream, collector }).await.map_err(|_| StoreClosed)
    }

    /// How far each stream is stored now.
    #[must_use]
    pub fn positions(&self) -> Vec<StoreCommit> {
        self.figures.get().streams.iter().filter_map(StreamFigures::position).collect()
    }

    /// What the store has done until now.
    #[must_use]
    pub fn figures(&self) -> StoreFigures {
        self.figures.get()
    }
}

/// Room for one delivery in the store's queue.
#[derive(Debug)]
pub struct StoreSlot<'a>(mpsc::Permit<'a, Work>);

impl StoreSlot<'_> {
    /// Queues the delivery; its commit comes out of [`Store::committed`].
    pub fn store(self, delivery: Delivery) {
        self.0.send(Work::Events(delivery));
    }
}

/// The open store; see the module's description.
#[derive(Debug)]
pub struct Store {
    handle: StoreHandle,
    commits: mpsc::Receiver<StoreCommit>,
    writer: Writer,
    positions: Vec<StoreCommit>,
}

impl Store {
    /// Opens or makes the database (mode 0600) and starts the thread that owns it. Blocks.
    ///
    /// # Errors
    /// When the file cannot be opened, or is of another version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::start(database::Database::open(path)?)
    }

    fn start(database: database::Database) -> Result<Self, StoreError> {
        let positions = database.positions();
        let (done, commits) = mpsc::channel(writer::QUEUE);
        let (writer, queue, figures) = Writer::start(database, done)?;
        Ok(Self { handle: StoreHandle { queue, figures }, commits, writer, positions })
    }

    /// How far each stream is stored: what a durable subscription begins with.
    #[must_use]
    pub fn positions(&self) -> &[StoreCommit] {
        &self.positions
    }

    /// A handle to give away.
    #[must_use]
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// The next position that is on the disk. Cancel-safe. `None` once the store is closed.
    pub async fn committed(&mut self) -> Option<StoreCommit> {
        self.commits.recv().await
    }

    /// Stores what is queued and closes the database; handles get [`StoreClosed`] from then on.
    /// After `patience` a disk that still refuses is given up. Blocks, so not for async tasks.
    pub fn close(self, patience: Duration) {
        let Self { commits, writer, .. } = self;
        // Nobody listens any more, and the thread must not wait for a reader: the positions are
        // in the database.
        drop(commits);
        writer.close(patience);
    }
}

#[cfg(test)]
mod tests;
