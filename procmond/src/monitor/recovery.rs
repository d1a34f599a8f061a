//! What a run takes up from the one before.

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::GapReason;
use daemoneye_lib::stream::{Sequence, StreamId};

use super::MonitorOptions;
use super::recorder::Refused;
use super::snapshot::Snapshot;
use super::tracker::Tracker;
use crate::wal::{Entry, WalError, WriteAheadLog};

/// Read in one go from the log.
const BATCH_BYTES: usize = 1024 * 1024;

/// The process table as the last run left it: the snapshot, rolled forward by the log.
pub struct Recovered {
    pub(super) tracker: Tracker,
    pub(super) stream: StreamId,
    /// What the snapshot is valid at.
    pub(super) sequence: Sequence,
    pub(super) refused: Option<Refused>,
}

impl Recovered {
    /// Reads the snapshot and the log behind it, and keeps the log from forgetting that part.
    ///
    /// Call it before delivery begins: what is delivered and committed is forgotten. It blocks on
    /// the disk.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn read(options: &MonitorOptions, log: &WriteAheadLog) -> Result<Self, WalError> {
        let stream = log.stream();
        let snapshot = Snapshot::load(&options.snapshot_path)
            .filter(|snapshot| snapshot.stream == stream && snapshot.sequence <= log.last());
        let (mut tracker, sequence, mut refused) = match snapshot {
            Some(Snapshot { sequence, refused, table, .. }) => {
                (Tracker::restore(&table), sequence, refused)
            }
            None => (Tracker::new(), Sequence::NONE, None),
        };
        log.retain_from(sequence.next());
        let mut reader = log.reader(sequence.next());
        loop {
            let entries = reader.next_batch(BATCH_BYTES)?;
            if entries.is_empty() {
                return Ok(Self { tracker, stream, sequence, refused });
            }
            for entry in entries {
                // A record that is lost or not an event says nothing about processes.
                let Entry::Record(record) = entry else { continue };
                let Ok(event) = Event::decode(&record.payload) else { continue };
                if matches!(&event, Event::Gap(gap) if gap.reason == GapReason::LogFull) {
                    refused = None;
                }
                tracker.apply_logged(&event);
            }
        }
    }
}
