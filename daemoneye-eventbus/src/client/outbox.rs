//! What the client's handles have written and its connection's task has not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::blocks::Blocks;

/// Writers wait while more than this is unsent.
const FULL_BYTES: usize = 256 * 1024;
/// What the first buffer has room for.
const BUFFER_BYTES_MIN: usize = 4 * 1024;

/// Encoded frames in one buffer, which is written as a whole: whatever has gathered since the last
/// write goes out with one call.
#[derive(Debug)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    pub(crate) filled: Arc<Notify>,
    /// There is room again.
    drained: Notify,
}

#[derive(Debug)]
struct Waiting {
    frames: BytesMut,
    /// What the longest so far needed.
    buffer_bytes: usize,
    /// Earlier buffers, to be filled again once they are written.
    blocks: Blocks,
}

impl Waiting {
    fn append(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        if self.frames.is_empty() {
            self.frames = self.blocks.take(self.buffer_bytes);
        }
        encode(&mut self.frames);
    }

    fn take(&mut self) -> Option<Bytes> {
        if self.frames.is_empty() {
            return None;
        }
        let mut buffer = std::mem::take(&mut self.frames);
        let taken = buffer.split().freeze();
        self.buffer_bytes =
            taken.len().next_power_of_two().clamp(self.buffer_bytes, 2 * FULL_BYTES);
        if taken.len() <= 2 * FULL_BYTES {
            self.blocks.keep(buffer);
        }
        Some(taken)
    }
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                frames: BytesMut::new(),
                buffer_bytes: BUFFER_BYTES_MIN,
                blocks: Blocks::default(),
            }),
            filled: Arc::new(Notify::new()),
            drained: Notify::new(),
        }
    }

    /// The lock is held for encoding only; no await, and no other lock is taken meanwhile.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends without waiting: for frames that are rare or answer a delivery, and so are bounded
    /// by what the broker sends.
    pub(crate) fn append(&self, encode: impl FnOnce(&mut BytesMut)) {
        self.waiting().append(encode);
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
                let mut waiting = self.waiting();
                if waiting.frames.len() < FULL_BYTES {
                    waiting.append(encode);
                    break;
                }
            }
            room.await;
        }
        self.filled.notify_one();
    }

    /// Everything that waits.
    pub(crate) fn take(&self) -> Option<Bytes> {
        let taken = self.waiting().take();
        if taken.is_some() {
            self.drained.notify_waiters();
        }
        taken
    }
}
