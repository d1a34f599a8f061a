//! What the client's handles have written and its connection's task has not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// Writers wait while more than this is unsent.
const FULL_BYTES: usize = 256 * 1024;

/// Encoded frames in one buffer, which is written as a whole: whatever has gathered since the last
/// write goes out with one call.
#[derive(Debug)]
pub(crate) struct Outbox {
    buffer: Mutex<BytesMut>,
    /// There is something to write.
    pub(crate) filled: Arc<Notify>,
    /// There is room again.
    drained: Notify,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            buffer: Mutex::new(BytesMut::new()),
            filled: Arc::new(Notify::new()),
            drained: Notify::new(),
        }
    }

    /// The lock is held for encoding only; no await, and no other lock is taken meanwhile.
    fn buffer(&self) -> MutexGuard<'_, BytesMut> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends without waiting: for frames that are rare or answer a delivery, and so are bounded
    /// by what the broker sends.
    pub(crate) fn append(&self, encode: impl FnOnce(&mut BytesMut)) {
        encode(&mut self.buffer());
        self.filled.notify_one();
    }

    /// Appends as soon as there is room. Cancel-safe: dropped while it waits, nothing is appended.
    pub(crate) async fn append_when_room(&self, encode: impl FnOnce(&mut BytesMut)) {
        loop {
            let room = self.drained.notified();
            tokio::pin!(room);
            // Registered before looking, so that room made in between is not missed.
            room.as_mut().enable();
            {
                let mut buffer = self.buffer();
                if buffer.len() < FULL_BYTES {
                    encode(&mut buffer);
                    break;
                }
            }
            room.await;
        }
        self.filled.notify_one();
    }

    /// Everything that waits.
    pub(crate) fn take(&self) -> Option<Bytes> {
        let taken = {
            let mut buffer = self.buffer();
            (!buffer.is_empty()).then(|| buffer.split().freeze())
        };
        self.drained.notify_waiters();
        taken
    }
}
