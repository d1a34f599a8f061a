//! Ours, for the drill: the defaults, a commit a batch. What it says of losses goes to standard
//! error.

use std::path::Path;
use std::time::Instant;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{EntryRef, NewRecord, WalOptions, WriteAheadLog};

use super::{AnyError, Found, Peer};

pub(super) struct Procmond(WriteAheadLog);

impl Procmond {
    pub(super) fn open(dir: &Path) -> Result<Self, AnyError> {
        Ok(Self(WriteAheadLog::open(dir, WalOptions::default())?.0))
    }
}

impl Peer for Procmond {
    fn append(&self, _producer: u64, records: &[&[u8]]) -> Result<(), AnyError> {
        let records: Vec<_> =
            records.iter().map(|payload| NewRecord { kind: 1, timestamp_ns: 0, payload }).collect();
        self.0.append_blocking(&records)?;
        Ok(())
    }
}

pub(super) fn read(dir: &Path, mut found: Found) -> Result<Found, AnyError> {
    let (log, recovery) = WriteAheadLog::open(dir, WalOptions::default())?;
    if let Some(torn) = recovery.torn {
        eprintln!("torn tail: {} bytes from {} on were cut off", torn.bytes, torn.offset);
    }
    let start = Instant::now();
    let mut reader = log.reader(Sequence::FIRST);
    while let Some(entry) = reader.next()? {
        match entry {
            EntryRef::Record(record) => found.see(record.payload),
            EntryRef::Lost { first, last, reason } => {
                eprintln!("records {first} to {last} are {reason}");
            }
        }
    }
    found.secs = start.elapsed().as_secs_f64();
    Ok(found)
}
