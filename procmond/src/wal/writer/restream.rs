//! Beginning a new stream in a directory: everything unacknowledged, written again under a new
//! name from sequence 1.
//!
//! The new segments are written and synced under temporary names first. Then the first of them gets
//! its final name: from that moment on the directory's highest segment is of the new stream, and
//! opening completes what a crash leaves undone. Until then opening removes them. So a crash
//! leaves wholly the one stream or wholly the other.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Waker;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId, wall_clock_ns};

use super::super::format::{Label, Rest, encode_frame, salt_frame};
use super::super::group::Group;
use super::super::reader::{Entry, WalReader};
use super::super::segment::{self, EMPTY_BYTES, FileName};
use super::super::state::{NewStream, Segment, Shared};
use super::super::{WalError, storage::Storage};
use super::{Active, CONTROL_EVERY_BYTES, Writer, random_salt};

/// Payload bytes carried over at once.
const COPY_BYTES: usize = 1 << 20;

impl Writer {
    /// Everything submitted is durable; nothing is submitted until this is done.
    ///
    /// # Errors
    /// The log must be shut: it is not known which stream the directory holds.
    pub(super) fn begin_stream(&mut self) -> Result<(), WalError> {
        let first = {
            let mut state = self.shared.lock();
            match std::mem::replace(&mut state.new_stream, NewStream::Running) {
                NewStream::Asked(first) => first,
                // Withdrawn meanwhile.
                other => {
                    state.new_stream = other;
                    return Ok(());
                }
            }
        };
        let result = self.delete_leftovers().and_then(|()| self.write_stream(first));
        let mut ready = Vec::new();
        let mut replaced = VecDeque::new();
        let mut unclear = Ok(());
        {
            let mut state = self.shared.lock();
            match result {
                Ok(segments) => {
                    state.stream = self.active.label.stream;
                    state.generation += 1;
                    self.shared.set_durable(self.durable);
                    self.shared.set_generation(state.generation);
                    state.epoch = self.active.label.epoch;
                    state.epochs = vec![(Sequence::FIRST, state.epoch)];
                    state.last = self.durable;
                    state.durable = self.durable;
                    state.synced = self.durable;
                    state.watermark = Sequence::NONE;
                    state.watermark_durable = Sequence::NONE;
                    state.retain_from = None;
                    replaced = std::mem::replace(&mut state.segments, segments);
                    replaced.extend(self.desk.take_retired());
                    state.retired_bytes = 0;
                    state.recount();
                    state.new_stream = NewStream::No;
                    // Whoever waited for the old stream's sequences has what was wanted.
                    ready.extend(state.waiters.drain(..).map(|waiter| waiter.waker));
                }
                Err(error) => {
                    tracing::warn!(%error, "no new stream was begun; the old one goes on");
                    if matches!(error, WalError::Poisoned { .. }) {
                        // Before anybody hears of it: nothing is taken any more.
                        state.shut = Some(error.clone());
                        unclear = Err(error.clone());
                    }
                    state.new_stream = NewStream::Failed(error);
                    state.take_ready(self.shared.options.queue_bytes, &mut ready);
                }
            }
        }
        ready.into_iter().for_each(Waker::wake);
        if let Err(error) = self.delete(replaced) {
            tracing::warn!(%error, "replaced segments are deleted later");
        }
        unclear
    }

    /// Deletes what earlier streams have left. The label of a stream names one that it replaces:
    /// segments of any other would be taken for another log's.
    fn delete_leftovers(&self) -> Result<(), WalError> {
        let retired = self.desk.take_retired();
        let (leftovers, rest): (Vec<_>, Vec<_>) =
            retired.into_iter().partition(|segment| segment.key.is_none());
        rest.into_iter().for_each(|segment| self.desk.retire(segment));
        {
            let mut state = self.shared.lock();
            let bytes: u64 = leftovers.iter().map(Segment::disk_bytes).sum();
            state.retired_bytes = state.retired_bytes.saturating_sub(bytes);
        }
        self.delete(leftovers)
    }

    /// Writes the new stream and makes it the directory's. The old one is untouched on an error.
    fn write_stream(
        &mut self,
        first: Option<(u8, i64, Vec<u8>)>,
    ) -> Result<VecDeque<Segment>, WalError> {
        let old = self.active.label;
        let label = Label {
            stream: StreamId::random(),
            replaces: Some(old.stream),
            segment: old.segment + 1,
            salt: random_salt(),
            first: Sequence::FIRST,
            watermark: Sequence::NONE,
            watermark_epoch: None,
            epoch: Epoch::first(),
            epoch_first: Sequence::FIRST,
            rest: Rest::Nothing,
        };
        let from = self.shared.lock().watermark.next();
        let mut reader = WalReader::new(Arc::clone(&self.shared), Arc::clone(&self.storage), from);
        let mut copy = Copy::begin(&*self.storage, &self.shared, label)?;
        if let Err(error) = copy.write(first, &mut reader).and_then(|()| copy.take_names()) {
            // Poisoned: it may have begun, so what is there must stay for the next opening to see.
            if !matches!(error, WalError::Poisoned { .. }) {
                copy.discard();
            }
            return Err(error);
        }
        self.durable = copy.last;
        self.synced = copy.last;
        self.watermark_synced = Sequence::NONE;
        // What was not synced in the old stream is in the new one, and not written again.
        self.group.clear();
        self.unsynced_since = None;
        self.active = copy.active;
        self.active.last = self.durable;
        self.abandoned = false;
        Ok(copy.segments)
    }

    /// Deletes segments of streams that have ended. What cannot be deleted now is left to the
    /// keeper, and to the next opening.
    fn delete(&self, segments: impl IntoIterator<Item = Segment>) -> Result<(), WalError> {
        let mut result = Ok(());
        let (gone, mut left): (Vec<_>, Vec<_>) = segments.into_iter().partition(|segment| {
            let removed = self.storage.remove(&segment.path);
            if let Err(source) = removed {
                result = Err(WalError::io("delete the segment", &segment.path, source));
                return false;
            }
            true
        });
        if !gone.is_empty() {
            let dir = &self.shared.dir;
            if let Err(source) = self.storage.sync_dir(dir) {
                result = result.and(Err(WalError::io("sync", dir, source)));
                left.extend(gone);
            }
        }
        for segment in left {
            self.shared.lock().retired_bytes += segment.disk_bytes();
            self.desk.retire(Segment { key: None, ..segment });
        }
        result
    }
}

/// The new stream while it is written, under temporary names.
struct Copy<'a> {
    storage: &'a dyn Storage,
    shared: &'a Shared,
    /// All its segments; the last is the active one.
    segments: VecDeque<Segment>,
    active: Active,
    last: Sequence,
    /// Frames not yet written to the active segment.
    buffer: Vec<u8>,
}

impl<'a> Copy<'a> {
    fn begin(storage: &'a dyn Storage, shared: &'a Shared, label: Label) -> Result<Self, WalError> {
        let path = FileName::Next(label.segment).path(&shared.dir);
        let file = segment::create_as(storage, &path, &label, &[])?;
        let active = Active::new(file, path, label, 0);
        let segments = VecDeque::from([active.entry()]);
        let last = label.first.prev();
        Ok(Self { storage, shared, segments, active, last, buffer: Vec::new() })
    }

    fn write(
        &mut self,
        first: Option<(u8, i64, Vec<u8>)>,
        reader: &mut WalReader,
    ) -> Result<(), WalError> {
        if let Some((kind, timestamp_ns, payload)) = first {
            self.push(kind, timestamp_ns, &payload)?;
        }
        loop {
            let batch = reader.next_batch(COPY_BYTES)?;
            if batch.is_empty() {
                return self.finish_segment();
            }
            for entry in batch {
                match entry {
                    Entry::Record(record) => {
                        self.push(record.kind, record.timestamp_ns, &record.payload)?;
                    }
                    // As many sequences are left out, so that readers of the new stream are told.
                    Entry::Lost { first, last, .. } => self.last.0 += last.since(first.prev()),
                }
            }
        }
    }

    fn push(&mut self, kind: u8, timestamp_ns: i64, payload: &[u8]) -> Result<(), WalError> {
        let end =
            self.active.offset + (self.buffer.len() + Group::frame_bytes(payload.len())) as u64;
        let holds_some = self.active.offset + self.buffer.len() as u64 > EMPTY_BYTES;
        if holds_some && end > self.shared.options.segment_bytes {
            self.finish_segment()?;
            let label = Label {
                segment: self.active.label.segment + 1,
                salt: random_salt(),
                first: self.last.next(),
                ..self.active.label
            };
            let path = FileName::Next(label.segment).path(&self.shared.dir);
            let file = segment::create_as(self.storage, &path, &label, &[])?;
            self.active = Active::new(file, path, label, 0);
            self.segments.push_back(self.active.entry());
        }
        let start = self.buffer.len();
        self.last = self.last.next();
        // The stream has no name before all of it is durable, so nothing in it can be torn.
        encode_frame(&mut self.buffer, kind, self.last, 0, timestamp_ns, payload);
        salt_frame(&mut self.buffer[start..], self.active.label.salt);
        if self.buffer.len() >= COPY_BYTES {
            self.write_buffer()?;
        }
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<(), WalError> {
        let active = &mut self.active;
        active
            .file
            .write_all_at(&self.buffer, active.offset)
            .map_err(|source| WalError::io("write", &active.path, source))?;
        active.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the segment with a control record, which also bears witness to sequences left out
    /// before it, and makes it durable.
    fn finish_segment(&mut self) -> Result<(), WalError> {
        let control = self.active.label.to_control(self.last, 0, wall_clock_ns());
        self.buffer.extend_from_slice(&control);
        self.write_buffer()?;
        let active = &mut self.active;
        active.file.sync_data().map_err(|source| WalError::io("sync", &active.path, source))?;
        active.control_at = active.offset + CONTROL_EVERY_BYTES;
        let entry = self.segments.back_mut().expect("the active segment is in the list");
        entry.bytes = active.offset;
        entry.last = self.last;
        Ok(())
    }

    /// Gives the segments their final names: with the first of them the stream has begun.
    ///
    /// From then on a failure shuts the log, and the next opening goes on with it: while a segment
    /// has its temporary name it is nobody's but for the others, which may be acknowledged and gone.
    fn take_names(&mut self) -> Result<(), WalError> {
        let dir = &self.shared.dir;
        self.storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source))?;
        for (nth, segment) in self.segments.iter_mut().enumerate() {
            let path = FileName::Segment(segment.number).path(dir);
            let begun = nth > 0;
            match self.storage.rename(&segment.path, &path) {
                Ok(()) => segment.path.clone_from(&path),
                Err(source) if begun => return Err(unclear(path, source)),
                Err(source) => return Err(WalError::io("rename a segment to", &path, source)),
            }
            if !begun {
                // Whether the name is durable is not known after a failure, so neither stream may
                // be written on.
                self.storage.sync_dir(dir).map_err(|source| unclear(dir.clone(), source))?;
            }
        }
        if let Some(last) = self.segments.back() {
            self.active.path.clone_from(&last.path);
        }
        self.storage.sync_dir(dir).map_err(|source| unclear(dir.clone(), source))
    }

    /// Removes what was written. What cannot be removed, the next opening removes.
    fn discard(&self) {
        for segment in &self.segments {
            let _ = self.storage.unlink(&segment.path);
        }
    }
}

/// The directory may hold either stream.
fn unclear(path: PathBuf, source: std::io::Error) -> WalError {
    WalError::Poisoned { path, source: Arc::new(source) }
}
