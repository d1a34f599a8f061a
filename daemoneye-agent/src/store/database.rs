//! The database as its one writer sees it: deliveries in, positions out, one transaction for both.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use daemoneye_eventbus::{Delivery, Entry};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId, wall_clock_ns};
use daemoneye_lib::topics;
use rusqlite::{CachedStatement, Connection, ErrorCode, Transaction, TransactionBehavior, params};

use super::row::{Decoded, Row};
use super::{StoreCommit, StoreError, StoreFigures, StreamFigures, Write, schema};

const INSERT_EVENT: &str = "\
INSERT INTO events(stream, sequence, topic, time_ns, pid, ppid, uid, name, exe, cmdline, \
                   process_key, event) \
VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
ON CONFLICT(stream, sequence) DO NOTHING";

const SAVE_STREAM: &str = "\
INSERT INTO streams(stream, committed, epoch, collector, registered_ns, replaces, first_seen_ns, \
                    gaps, missing, undecodable, topics) \
VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
ON CONFLICT(stream) DO UPDATE SET \
    committed = excluded.committed, epoch = excluded.epoch, collector = excluded.collector, \
    registered_ns = excluded.registered_ns, replaces = excluded.replaces, \
    gaps = excluded.gaps, missing = excluded.missing, undecodable = excluded.undecodable, \
    topics = excluded.topics";

/// The connection and what the table `streams` holds.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    connection: Connection,
    streams: HashMap<StreamId, StreamFigures>,
    totals: Totals,
    #[cfg(test)]
    pub(super) page_limit: std::sync::Arc<std::sync::atomic::AtomicU32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    transactions: u64,
    stored: u64,
    duplicates: u64,
    refused: u64,
}

/// What one transaction made true.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// The positions of the streams that were delivered, now on the disk.
    pub(super) commits: Vec<StoreCommit>,
    /// What people should hear of.
    pub(super) notices: Vec<Notice>,
}

/// Something the store met that is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Sequences that will never come.
    Gap { stream: StreamId, first: Sequence, last: Sequence },
    /// A collector came back with another stream.
    Replaced { collector: String, old: StreamId, ended: Sequence, new: StreamId },
    /// Payloads of one delivery that nobody can read, the first of them at `sequence`.
    Undecodable { stream: StreamId, sequence: Sequence, count: u64 },
    /// A delivery that contradicts what is stored.
    Refused { stream: StreamId, after: Sequence, through: Sequence, reason: &'static str },
    /// A row was there although its sequence was not committed.
    RowExists { stream: StreamId, sequence: Sequence },
}

/// The changes of a transaction that is not yet committed.
#[derive(Default)]
struct Staged {
    streams: HashMap<StreamId, StreamFigures>,
    delivered: Vec<StreamId>,
    totals: Totals,
    notices: Vec<Notice>,
}

/// The statement for one delivery's rows, and what is the same in all of them.
struct Insert<'a> {
    statement: CachedStatement<'a>,
    stream: String,
}

impl Database {
    /// Opens or makes the database and reads how far each stream is stored.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = schema::open_writer(path)?;
        let mut database = Self {
            path: path.to_owned(),
            connection,
            streams: HashMap::new(),
            totals: Totals::default(),
            #[cfg(test)]
            page_limit: std::sync::Arc::default(),
        };
        database.load()?;
        Ok(database)
    }

    /// Opens the file anew after an error that may have left the connection in doubt, and takes
    /// from it what is really stored.
    pub(super) fn reopen(&mut self) -> Result<(), StoreError> {
        self.connection = schema::open_writer(&self.path)?;
        self.load()
    }

    fn load(&mut self) -> Result<(), StoreError> {
        let streams = schema::load_streams(&self.connection)
            .map_err(|source| StoreError::Open { path: self.path.clone(), source })?;
        self.streams = streams.into_iter().map(|stream| (stream.stream, stream)).collect();
        Ok(())
    }

    /// How far each stream is stored.
    pub(super) fn positions(&self) -> Vec<StoreCommit> {
        self.streams.values().filter_map(StreamFigures::position).collect()
    }

    pub(super) fn figures(&self) -> StoreFigures {
        let mut streams: Vec<_> = self.streams.values().cloned().collect();
        streams.sort_by_key(|stream| (stream.first_seen_ns, stream.stream));
        StoreFigures {
            streams,
            transactions_total: self.totals.transactions,
            stored_total: self.totals.stored,
            duplicates_total: self.totals.duplicates,
            refused_total: self.totals.refused,
            ..StoreFigures::default()
        }
    }

    /// Does all of `writes`, in order, in one transaction; on an error nothing of it is stored,
    /// or (when the error came with the commit) all of it may be: then [`Database::reopen`] tells.
    pub(super) fn apply(&mut self, writes: &[Write]) -> Result<Applied, StoreError> {
        #[cfg(test)]
        self.limit_pages();
        let mut staged = Staged { totals: self.totals, ..Staged::default() };
        let result = (|| {
            let transaction =
                self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for write in writes {
                match write {
                    Write::Events(decoded) => {
                        staged.deliver(&transaction, &self.streams, decoded)?;
                    }
                    Write::Collector { stream, collector } => {
                        staged.register(&self.streams, *stream, collector);
                    }
                }
            }
            for stream in staged.streams.values() {
                save(&transaction, stream)?;
            }
            transaction.commit()
        })();
        result.map_err(|source| StoreError::Sqlite { path: self.path.clone(), source })?;
        self.totals = staged.totals;
        self.totals.transactions += 1;
        self.streams.extend(staged.streams);
        let delivered = staged.delivered.iter();
        let commits = delivered.filter_map(|id| self.streams.get(id)?.position()).collect();
        Ok(Applied { commits, notices: staged.notices })
    }

    /// Makes SQLite believe in a disk of so many pages (0: as large as there is).
    #[cfg(test)]
    fn limit_pages(&self) {
        let limit = match self.page_limit.load(std::sync::atomic::Ordering::SeqCst) {
            0 => 0xffff_fffe,
            limit => limit,
        };
        self.connection
            .query_row(&format!("PRAGMA max_page_count = {limit}"), [], |_| Ok(()))
            .unwrap();
    }
}

impl StreamFigures {
    fn new(stream: StreamId, epoch: Epoch) -> Self {
        Self {
            stream,
            committed: Sequence::NONE,
            epoch,
            collector: None,
            registered_ns: None,
            replaces: None,
            first_seen_ns: wall_clock_ns(),
            gaps: 0,
            missing: 0,
            undecodable: 0,
            topics: BTreeMap::new(),
        }
    }
}

impl Staged {
    fn deliver(
        &mut self,
        transaction: &Transaction<'_>,
        known: &HashMap<StreamId, StreamFigures>,
        decoded: &Decoded,
    ) -> rusqlite::Result<()> {
        let delivery = &decoded.delivery;
        let mut stream = self
            .streams
            .remove(&delivery.stream)
            .or_else(|| known.get(&delivery.stream).cloned())
            .unwrap_or_else(|| StreamFigures::new(delivery.stream, delivery.epoch));
        match contradiction(&stream, delivery) {
            Some(reason) => {
                self.totals.refused += 1;
                self.notices.push(Notice::Refused {
                    stream: delivery.stream,
                    after: delivery.after,
                    through: delivery.through,
                    reason,
                });
            }
            None => {
                self.insert(transaction, &mut stream, decoded)?;
                if !self.delivered.contains(&stream.stream) {
                    self.delivered.push(stream.stream);
                }
            }
        }
        // A refused delivery of an unknown stream leaves no trace but the notice.
        if stream.committed > Sequence::NONE || stream.collector.is_some() {
            self.streams.insert(stream.stream, stream);
        }
        Ok(())
    }

    /// Stores what lies after the stream's position, and moves the position.
    fn insert(
        &mut self,
        transaction: &Transaction<'_>,
        stream: &mut StreamFigures,
        Decoded { delivery, rows }: &Decoded,
    ) -> rusqlite::Result<()> {
        let mut insert = Insert {
            statement: transaction.prepare_cached(INSERT_EVENT)?,
            stream: stream.stream.to_string(),
        };
        if delivery.after > stream.committed {
            self.record_gap(&mut insert, stream, delivery)?;
        }
        let mut undecodable: Option<(Sequence, u64)> = None;
        for (entry, row) in delivery.entries.iter().zip(rows) {
            if entry.sequence <= stream.committed {
                self.totals.duplicates += 1;
                continue;
            }
            if !row.decoded {
                stream.undecodable += 1;
                undecodable.get_or_insert((entry.sequence, 0)).1 += 1;
            }
            let topic = entry.topic.as_str();
            self.insert_row(&mut insert, stream, entry.sequence, topic, entry.timestamp_ns, row)?;
        }
        if let Some((sequence, count)) = undecodable {
            self.notices.push(Notice::Undecodable { stream: stream.stream, sequence, count });
        }
        if delivery.through > stream.committed {
            stream.committed = delivery.through;
            stream.epoch = delivery.epoch;
        }
        Ok(())
    }

    fn record_gap(
        &mut self,
        insert: &mut Insert<'_>,
        stream: &mut StreamFigures,
        delivery: &Delivery,
    ) -> rusqlite::Result<()> {
        let (first, last) = (stream.committed.next(), delivery.after);
        let now = wall_clock_ns();
        let row = Row::permanent_gap(first, last, now);
        self.insert_row(insert, stream, last, topics::PROCESS_GAP, now, &row)?;
        stream.gaps += 1;
        stream.missing += last.since(stream.committed);
        stream.committed = last;
        self.notices.push(Notice::Gap { stream: stream.stream, first, last });
        Ok(())
    }

    fn insert_row(
        &mut self,
        insert: &mut Insert<'_>,
        stream: &mut StreamFigures,
        sequence: Sequence,
        topic: &str,
        time_ns: i64,
        row: &Row,
    ) -> rusqlite::Result<()> {
        let inserted = insert.statement.execute(params![
            insert.stream,
            sequence.0.cast_signed(),
            topic,
            time_ns,
            row.pid,
            row.ppid,
            row.uid,
            row.name,
            row.exe,
            row.cmdline,
            row.process_key,
            row.event,
        ])?;
        if inserted == 0 {
            // Only when somebody edited `streams` by hand. The row that is there stays.
            self.notices.push(Notice::RowExists { stream: stream.stream, sequence });
            return Ok(());
        }
        self.totals.stored += 1;
        match stream.topics.get_mut(topic) {
            Some(count) => *count += 1,
            None => {
                stream.topics.insert(topic.to_owned(), 1);
            }
        }
        Ok(())
    }

    /// Notes whose log `stream` is, and which stream of that collector it takes the place of.
    fn register(
        &mut self,
        known: &HashMap<StreamId, StreamFigures>,
        stream: StreamId,
        collector: &str,
    ) {
        let current = |streams: &HashMap<StreamId, StreamFigures>| {
            streams
                .values()
                .filter(|other| other.collector.as_deref() == Some(collector))
                .max_by_key(|other| other.registered_ns)
                .cloned()
        };
        let previous = [current(known), current(&self.streams)]
            .into_iter()
            .flatten()
            .max_by_key(|other| other.registered_ns);
        let mut figures = self
            .streams
            .remove(&stream)
            .or_else(|| known.get(&stream).cloned())
            // The epoch counts from the first delivery on; position 0 is before all of them.
            .unwrap_or_else(|| StreamFigures::new(stream, Epoch::from_u64(0)));
        if let Some(old) = previous.filter(|old| old.stream != stream) {
            figures.replaces = Some(old.stream);
            self.notices.push(Notice::Replaced {
                collector: collector.to_owned(),
                old: old.stream,
                // What this transaction stored of the old one counts too.
                ended: self.streams.get(&old.stream).map_or(old.committed, |old| old.committed),
                new: stream,
            });
        }
        figures.collector = Some(collector.to_owned());
        figures.registered_ns = Some(wall_clock_ns());
        self.streams.insert(stream, figures);
    }
}

/// Why a delivery cannot be true, if it cannot. The broker checks publishers; this is so that no
/// mistake there can make the store lie.
fn contradiction(stream: &StreamFigures, delivery: &Delivery) -> Option<&'static str> {
    if delivery.after > delivery.through || i64::try_from(delivery.through.0).is_err() {
        return Some("its bounds are impossible");
    }
    let mut previous = delivery.after;
    for Entry { sequence, .. } in &delivery.entries {
        if *sequence <= previous || *sequence > delivery.through {
            return Some("its entries are out of order or out of its bounds");
        }
        previous = *sequence;
    }
    if delivery.through > stream.committed && delivery.epoch.count() < stream.epoch.count() {
        return Some("it was written by an older opening of the log than what is stored");
    }
    None
}

fn save(transaction: &Transaction<'_>, stream: &StreamFigures) -> rusqlite::Result<()> {
    let topics = serde_json::to_string(&stream.topics)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    transaction.prepare_cached(SAVE_STREAM)?.execute(params![
        stream.stream.to_string(),
        stream.committed.0.cast_signed(),
        stream.epoch.to_u64().cast_signed(),
        stream.collector,
        stream.registered_ns,
        stream.replaces.map(|old| old.to_string()),
        stream.first_seen_ns,
        stream.gaps.cast_signed(),
        stream.missing.cast_signed(),
        stream.undecodable.cast_signed(),
        topics,
    ])?;
    Ok(())
}

impl StoreError {
    /// Whether the connection is still good after this error: the disk is full or somebody else
    /// has the lock. Anything else leaves it in doubt.
    pub(super) fn leaves_connection_good(&self) -> bool {
        let Self::Sqlite { source, .. } = self else { return false };
        matches!(
            source.sqlite_error_code(),
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        )
    }
}
