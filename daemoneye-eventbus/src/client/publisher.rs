//! Publishing a stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use tokio::sync::watch;

use super::Handle;
use super::error::{Disconnected, PublishError};
use crate::event::{Ack, Batch, Committed, Position};
use crate::rights;
use crate::topic::Topic;
use crate::wire::{ALIASES_MAX, ENTRY_HEADER_BYTES, Frame, Welcome, append_entry, publish_frame};

/// The fixed fields of a Publish body.
const PUBLISH_HEAD_BYTES: usize = 28;

/// The publishing side of a connection.
///
/// What has been published stays the publisher's to keep until it is acknowledged. At most
/// [`credit_bytes`](Self::credit_bytes) of entries may be unacknowledged, each counted as its
/// payload and [`ENTRY_HEADER_BYTES`] (a single batch may exceed that when nothing else is); the
/// broker ends the connection of a publisher that sends more.
#[derive(Debug)]
pub struct Publisher {
    handle: Arc<Handle>,
    position: Position,
    welcome: Welcome,
    acks: Acks,
    aliases: Mutex<HashMap<Topic, u16>>,
}

impl Publisher {
    pub(super) fn new(handle: Arc<Handle>, position: Position, welcome: Welcome) -> Self {
        let acks = Acks::new(Arc::clone(&handle));
        Self { handle, position, welcome, acks, aliases: Mutex::default() }
    }

    /// Where to resume: everything up to here is committed by every durable consumer. `None` if
    /// the broker does not know of a position that all of them have: then resume with the first
    /// unacknowledged event.
    #[must_use]
    pub fn committed(&self) -> Option<Committed> {
        self.welcome.committed
    }

    /// Every position on this stream that somebody downstream holds, in ascending order. If one of
    /// them is beyond the log's end, or the log's record there was written in another epoch, the
    /// log does not continue what was published before (it was restored from a copy, say), and a
    /// new stream must be begun.
    #[must_use]
    pub fn positions(&self) -> &[Committed] {
        &self.welcome.positions
    }

    /// Bytes of entries, headers included, that may be unacknowledged.
    #[must_use]
    pub fn credit_bytes(&self) -> u64 {
        self.welcome.credit_bytes
    }

    /// The longest frame the broker takes; a batch's payloads and 32 bytes for each entry must fit
    /// with a little to spare.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        self.welcome.frame_bytes_max as usize
    }

    /// Queues a batch for sending. Returns when it is queued, not when it is acknowledged; waits
    /// while much is queued already. Cancel-safe: dropped before it returns, nothing is sent.
    pub async fn publish(&self, batch: &Batch) -> Result<(), PublishError> {
        self.check(batch)?;
        self.handle
            .shared
            .enqueue_with(|out| {
                let mut aliases = self.aliases.lock().unwrap_or_else(PoisonError::into_inner);
                declare_new(&mut aliases, batch, out);
                let count = batch.entries.len() as u32;
                publish_frame(out, batch.epoch, batch.after, batch.through, count, |out| {
                    let mut last: Option<(&Topic, u16)> = None;
                    for entry in &batch.entries {
                        let alias = match last {
                            Some((topic, alias)) if *topic == entry.topic => alias,
                            _ => aliases[&entry.topic],
                        };
                        last = Some((&entry.topic, alias));
                        append_entry(
                            out,
                            entry.sequence,
                            entry.span,
                            entry.timestamp_ns,
                            alias,
                            &entry.payload,
                        );
                    }
                });
            })
            .await?;
        Ok(())
    }

    /// What the broker would end the connection for is an error here.
    fn check(&self, batch: &Batch) -> Result<(), PublishError> {
        if batch.stream != self.position.stream {
            return Err(PublishError::Malformed("it is of another stream"));
        }
        if batch.epoch > self.position.epoch {
            return Err(PublishError::Malformed("its epoch is later than the connection's"));
        }
        if batch.entries.is_empty() {
            return Err(PublishError::Malformed("it has no entries"));
        }
        let mut previous = batch.after;
        let mut bytes = PUBLISH_HEAD_BYTES;
        let mut last: Option<&Topic> = None;
        for entry in &batch.entries {
            if entry.span == 0 || entry.sequence.0.checked_sub(entry.span) != Some(previous.0) {
                return Err(PublishError::Malformed("an entry does not follow the one before"));
            }
            previous = entry.sequence;
            bytes += ENTRY_HEADER_BYTES + entry.payload.len();
            if last != Some(&entry.topic) {
                last = Some(&entry.topic);
                let role = self.handle.shared.options.role;
                if let Err(rule) = rights::may_publish(role, &entry.topic) {
                    return Err(PublishError::NotAllowed { topic: entry.topic.clone(), rule });
                }
            }
        }
        if previous != batch.through {
            return Err(PublishError::Malformed("its last entry is not `through`"));
        }
        let limit = self.frame_bytes_max();
        if bytes > limit {
            return Err(PublishError::TooLong { bytes, limit });
        }
        Ok(())
    }

    /// [`Acks::next`] of the publisher's own.
    pub async fn acked(&mut self) -> Result<Ack, Disconnected> {
        self.acks.next().await
    }

    /// The acknowledgements for another task than the one that publishes, the newest so far first.
    #[must_use]
    pub fn acks(&self) -> Acks {
        Acks::new(Arc::clone(&self.handle))
    }
}

/// The acknowledgements of a publisher's stream, as they come.
#[derive(Debug)]
pub struct Acks {
    handle: Arc<Handle>,
    newest: watch::Receiver<Option<Ack>>,
}

impl Acks {
    fn new(handle: Arc<Handle>) -> Self {
        let mut newest = handle.shared.acks.subscribe();
        // An ack that came right behind the Welcome is news, too.
        newest.mark_changed();
        Self { handle, newest }
    }

    /// The newest acknowledgement, as soon as there is one that has not been returned. Cumulative:
    /// those in between are skipped. Cancel-safe.
    pub async fn next(&mut self) -> Result<Ack, Disconnected> {
        loop {
            if self.newest.has_changed().unwrap_or(false)
                && let Some(ack) = *self.newest.borrow_and_update()
            {
                return Ok(ack);
            }
            let shared = &self.handle.shared;
            tokio::select! {
                biased;
                changed = self.newest.changed() => {
                    self.newest.mark_changed();
                    if changed.is_err() {
                        return Err(shared.disconnected().await);
                    }
                }
                gone = shared.disconnected() => return Err(gone),
            }
        }
    }
}

/// Declares the topics of `batch` that the broker has not been told of. Publishing on more topics
/// than there are aliases is refused by the broker, which names the limit.
fn declare_new(aliases: &mut HashMap<Topic, u16>, batch: &Batch, out: &mut BytesMut) {
    let mut last: Option<&Topic> = None;
    for entry in &batch.entries {
        if last == Some(&entry.topic) {
            continue;
        }
        last = Some(&entry.topic);
        if !aliases.contains_key(&entry.topic) {
            let alias = (aliases.len() as u16).min(ALIASES_MAX);
            aliases.insert(entry.topic.clone(), alias);
            Frame::Declare { alias, topic: entry.topic.clone() }.encode(out);
        }
    }
}
