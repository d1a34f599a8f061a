//! The records of one group commit, encoded as they will stand in the file.

use daemoneye_lib::stream::Sequence;

use super::format::{FRAME_BYTES, encode_frame, salt_frame};

/// Encoded frames with contiguous sequences, and how many of them are durable already.
#[derive(Default)]
pub(crate) struct Group {
    bytes: Vec<u8>,
    /// Where each frame ends in `bytes`.
    ends: Vec<usize>,
    /// The sequence of the first frame.
    first: Sequence,
    /// Frames made durable.
    done: usize,
}

/// Some of a group's frames, by index, and their bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    from: usize,
    upto: usize,
}

impl Group {
    /// What a record of this payload length takes in the file.
    pub(crate) const fn frame_bytes(payload: usize) -> usize {
        FRAME_BYTES + payload
    }

    pub(crate) fn push(&mut self, kind: u8, sequence: Sequence, timestamp_ns: i64, payload: &[u8]) {
        if self.ends.is_empty() {
            self.first = sequence;
        }
        debug_assert_eq!(sequence.0, self.first.0 + self.ends.len() as u64);
        let in_commit = self.ends.len();
        encode_frame(&mut self.bytes, kind, sequence, in_commit, timestamp_ns, payload);
        self.ends.push(self.bytes.len());
    }

    /// Bytes not yet durable.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.bytes.len() - self.start_of(self.done)
    }

    /// Records not yet durable.
    pub(crate) fn pending_records(&self) -> usize {
        self.ends.len() - self.done
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done == self.ends.len()
    }

    /// As many of the next frames as fit into `room` bytes, which may be none.
    pub(crate) fn next_span(&self, room: u64) -> Span {
        let start = self.start_of(self.done);
        let fits = self.ends[self.done..].partition_point(|&end| (end - start) as u64 <= room);
        Span { from: self.done, upto: self.done + fits }
    }

    /// The next frame alone, whatever its length.
    pub(crate) fn next_one(&self) -> Span {
        Span { from: self.done, upto: self.done + 1 }
    }

    pub(crate) fn is_empty(&self, span: Span) -> bool {
        span.from == span.upto
    }

    /// Whether frames remain after this span.
    pub(crate) fn has_more_after(&self, span: Span) -> bool {
        span.upto < self.ends.len()
    }

    /// Frames up to a span's end.
    pub(crate) fn upto(&self, span: Span) -> usize {
        span.upto
    }

    /// The sequence of a span's last frame.
    pub(crate) fn last_of(&self, span: Span) -> Sequence {
        Sequence(self.first.0 + span.upto as u64 - 1)
    }

    pub(crate) fn bytes_of(&self, span: Span) -> &[u8] {
        &self.bytes[self.start_of(span.from)..self.start_of(span.upto)]
    }

    /// Salts a span's frames; salting again with the same salt undoes it.
    pub(crate) fn salt(&mut self, span: Span, salt: u32) {
        let mut start = self.start_of(span.from);
        for &end in &self.ends[span.from..span.upto] {
            salt_frame(&mut self.bytes[start..end], salt);
            start = end;
        }
    }

    /// The span is durable.
    pub(crate) fn mark_done(&mut self, span: Span) {
        self.done = span.upto;
    }

    /// Forgets everything, keeping the memory for the next group.
    pub(crate) fn clear(&mut self) {
        // One burst must not be held for ever.
        const KEEP_BYTES: usize = 1 << 20;
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.ends.clear();
        self.done = 0;
    }

    fn start_of(&self, frame: usize) -> usize {
        if frame == 0 { 0 } else { self.ends[frame - 1] }
    }
}
