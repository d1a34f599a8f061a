//! What every peer has to offer to be measured.

mod fjall;
mod okaywal;
#[cfg(feature = "drill")]
mod procmond;
mod raft_engine;
mod redb;
mod sqlite;

use std::path::Path;
use std::sync::Arc;

use crate::workload::Payloads;

pub(crate) type AnyError = Box<dyn std::error::Error>;

pub(crate) const PEERS: [&str; 5] = ["okaywal", "raft-engine", "fjall", "redb", "sqlite"];

/// What a log is opened for: some can be prepared for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// To be appended to, at most about so many bytes.
    Append { bytes: u64 },
    /// To be read afterwards: nothing may be forgotten.
    Keep,
}

pub(crate) trait Peer: Send + Sync {
    /// Appends records as one durable whole. Called from many threads at once, each with a number
    /// of its own.
    fn append(&self, producer: u64, records: &[&[u8]]) -> Result<(), AnyError>;

    /// Does what has to be done once until an append costs what it will cost from then on.
    fn reach_steady_state(&self, _payloads: &Payloads) -> Result<(), AnyError> {
        Ok(())
    }

    /// Ends without tidying up, as a crash would, where tidying up would remove what is to be read.
    fn leave(&self) {}
}

/// What reading a log back came to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) records: u64,
    /// Of the records' [`tag`]s.
    pub(crate) sum: u64,
    pub(crate) secs: f64,
    /// The records, for who wants to look at them.
    pub(crate) kept: Option<Vec<Vec<u8>>>,
}

impl Found {
    fn see(&mut self, record: &[u8]) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(tag(record));
        if let Some(kept) = &mut self.kept {
            kept.push(record.to_vec());
        }
    }
}

/// Bytes that tell records apart; not the first eight, where raft-engine needs an index. A record
/// that damage has made too short has none.
pub(crate) fn tag(record: &[u8]) -> u64 {
    let bytes = record.get(8..16).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

pub(crate) fn open(name: &str, dir: &Path, purpose: Purpose) -> Result<Arc<dyn Peer>, AnyError> {
    Ok(match name {
        #[cfg(feature = "drill")]
        "procmond" => Arc::new(procmond::Procmond::open(dir)?),
        "okaywal" => Arc::new(okaywal::Okaywal::open(dir, purpose)?),
        "raft-engine" => Arc::new(raft_engine::RaftEngine::open(dir, purpose)?),
        "fjall" => Arc::new(fjall::Fjall::open(dir)?),
        "redb" => Arc::new(redb::Redb::open(dir)?),
        "sqlite" => Arc::new(sqlite::Sqlite::open(dir)?),
        _ => return Err(format!("there is no peer {name}").into()),
    })
}

/// Reads every record as the peer offers it. Opening is not counted, except where it is reading.
pub(crate) fn read(name: &str, dir: &Path, found: Found) -> Result<Found, AnyError> {
    match name {
        #[cfg(feature = "drill")]
        "procmond" => procmond::read(dir, found),
        "okaywal" => okaywal::read(dir, found),
        "raft-engine" => raft_engine::read(dir, found),
        "fjall" => fjall::read(dir, found),
        "redb" => redb::read(dir, found),
        "sqlite" => sqlite::read(dir, found),
        _ => Err(format!("there is no peer {name}").into()),
    }
}
