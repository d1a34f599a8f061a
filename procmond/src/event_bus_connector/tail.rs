//! Records between the producer's submit and their durability.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use daemoneye_lib::stream::Sequence;
use tokio::sync::Notify;

use super::window::Record;
use crate::wal::{WalError, WriteAheadLog};

/// What producers have submitted and the driver has not yet collected.
///
/// A payload is kept here only while it, the driver's window and what is being read back for that fit
/// the window's limit together; beyond that just its size is noted and the driver reads it back from
/// the log.
pub(super) struct Tail {
    // A std mutex: it is held for an append to the log's buffer and never across an await.
    inner: Mutex<Inner>,
    changed: Notify,
    bytes_max: u64,
}

#[derive(Default)]
struct Inner {
    submitted: VecDeque<Submitted>,
    /// The last sequence the log gave to a producer here.
    last: Sequence,
    bytes: u64,
    window_bytes: u64,
    /// Room that is kept for what is being read back from the log.
    reserved_bytes: u64,
    peak_bytes: u64,
}

impl Inner {
    fn held_bytes(&self) -> u64 {
        self.bytes + self.window_bytes + self.reserved_bytes
    }
}

struct Submitted {
    sequence: Sequence,
    bytes: u64,
    record: Option<Record>,
}

/// Records that have become durable.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) records: Vec<Record>,
    pub(super) skipped_bytes: u64,
}

impl Tail {
    pub(super) fn new(bytes_max: u64, last: Sequence) -> Self {
        let inner = Inner { last, ..Inner::default() };
        Self { inner: Mutex::new(inner), changed: Notify::new(), bytes_max }
    }

    /// Queues a record in the log and, if there is room, here.
    ///
    /// One lock covers both, so that records stand here in the order of their sequences.
    pub(super) fn submit(
        &self,
        log: &WriteAheadLog,
        kind: u8,
        timestamp_ns: i64,
        payload: Bytes,
    ) -> Result<Sequence, WalError> {
        let mut inner = self.lock();
        let epoch = log.epoch();
        let sequence = log.submit(kind, timestamp_ns, &payload)?;
        let bytes = payload.len() as u64;
        let fits = inner.held_bytes() + bytes <= self.bytes_max;
        let record = fits.then(|| Record { sequence, span: 1, epoch, timestamp_ns, kind, payload });
        if fits {
            inner.bytes += bytes;
            inner.peak_bytes = inner.peak_bytes.max(inner.bytes + inner.window_bytes);
        }
        inner.submitted.push_back(Submitted { sequence, bytes, record });
        inner.last = sequence;
        drop(inner);
        self.changed.notify_one();
        Ok(sequence)
    }

    /// Resolves when something was submitted since the last call, or at once if it was before.
    /// Cancel-safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The last sequence submitted here.
    pub(super) fn last(&self) -> Sequence {
        self.lock().last
    }

    /// Takes what is durable up to and including `durable`.
    pub(super) fn collect(&self, durable: Sequence) -> Collected {
        let mut inner = self.lock();
        let mut collected = Collected::default();
        while inner.submitted.front().is_some_and(|first| first.sequence <= durable) {
            let Some(submitted) = inner.submitted.pop_front() else { break };
            match submitted.record {
                Some(record) => {
                    inner.bytes -= submitted.bytes;
                    // Until the driver says how full its window is, the bytes count as its own.
                    inner.window_bytes += submitted.bytes;
                    collected.records.push(record);
                }
                None => collected.skipped_bytes += submitted.bytes,
            }
        }
        collected
    }

    /// Tells how full the driver's window is, and whether something is still being read for it.
    pub(super) fn set_window_bytes(&self, window_bytes: u64, reading: bool) {
        let mut inner = self.lock();
        inner.window_bytes = window_bytes;
        if !reading {
            inner.reserved_bytes = 0;
        }
        inner.peak_bytes = inner.peak_bytes.max(inner.bytes + window_bytes);
    }

    /// Keeps room for what is read back from the log. Where there is not enough, the payloads that
    /// stand here give way: they come after what is read, and can be read back in their turn.
    ///
    /// They must not be waited for: on a full disk they become durable only when what is read has
    /// been delivered.
    pub(super) fn reserve(&self, bytes: u64) {
        let mut inner = self.lock();
        inner.reserved_bytes = bytes;
        let mut excess = inner.held_bytes().saturating_sub(self.bytes_max);
        let mut freed = 0;
        for submitted in &mut inner.submitted {
            if excess == 0 {
                break;
            }
            if submitted.record.take().is_some() {
                freed += submitted.bytes;
                excess = excess.saturating_sub(submitted.bytes);
            }
        }
        inner.bytes -= freed;
    }

    /// Payload bytes held here and in the window, now and at most so far.
    pub(super) fn window_bytes(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.bytes + inner.window_bytes, inner.peak_bytes)
    }

    /// The log has begun a new stream, whose last sequence is `last`: what stands here has
    /// sequences of the old one, and is in the log.
    pub(super) fn reset(&self, last: Sequence) {
        let mut inner = self.lock();
        inner.submitted.clear();
        inner.bytes = 0;
        inner.last = last;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that is done under the lock leaves it half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wal::WalOptions;

    /// While the window is filled from the log new records come in: each looked at its own room, and
    /// together they went beyond the limit.
    #[tokio::test]
    async fn d4_what_is_read_back_and_what_is_submitted_meanwhile_share_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let commit_delay = Duration::from_secs(3600);
        let options = WalOptions { commit_delay, ..WalOptions::default() };
        let (log, _) = WriteAheadLog::open(dir.path(), options).unwrap();
        let tail = Tail::new(1000, log.last());
        let submit = |count: usize| {
            for _ in 0..count {
                tail.submit(&log, 1, 0, Bytes::from_static(&[0; 100])).unwrap();
            }
        };
        tail.set_window_bytes(300, false);
        submit(9);
        assert_eq!(tail.window_bytes(), (1000, 1000), "seven are kept, two are not");

        tail.reserve(500);
        assert_eq!(tail.window_bytes().0, 500, "five gave way");
        submit(3);
        assert_eq!(tail.window_bytes().0, 500, "their room is not for the next");
        tail.set_window_bytes(800, false);
        submit(3);
        assert_eq!(tail.window_bytes(), (1000, 1000));

        let last = log.flush().await.unwrap();
        let collected = tail.collect(last);
        let kept: Vec<u64> = collected.records.iter().map(|record| record.sequence.0).collect();
        assert_eq!(kept, [6, 7]);
        assert_eq!(collected.skipped_bytes, 1300);
    }
}
