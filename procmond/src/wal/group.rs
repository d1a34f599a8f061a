//! The records of one or more commits, encoded as they will stand in the file.

use daemoneye_lib::stream::Sequence;

use super::format::{FRAME_BYTES, encode_frame, salt_frame};

/// Memory kept for the next group, whatever the last ones took.
const KEEP_BYTES: usize = 1 << 20;
/// After so many groups that needed much less, what a burst has taken is given back.
const SMALL_GROUPS_MAX: u32 = 64;

/// Encoded frames with contiguous sequences, and how far they are written and synced.
#[derive(Default)]
pub(crate) struct Group {
    bytes: Vec<u8>,
    /// Where each frame ends in `bytes`.
    ends: Vec<usize>,
    /// The sequence of the first frame.
    first: Sequence,
    /// The salt the frames are written with.
    salt: u32,
    /// Frames written to the active segment.
    written: usize,
    /// Frames that need not be written again: synced, if that is what is promised.
    done: usize,
    small: u32,
}

/// Some of a group's frames, by index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    from: usize,
    upto: usize,
}

impl Span {
    pub(crate) fn frames(self) -> usize {
        self.upto - self.from
    }
}

impl Group {
    /// What a record of this payload length takes in the file.
    pub(crate) const fn frame_bytes(payload: usize) -> usize {
        FRAME_BYTES + payload
    }

    /// Adds a record, before which so many others may not be durable when it is written.
    pub(crate) fn push(
        &mut self,
        kind: u8,
        sequence: Sequence,
        in_commit: usize,
        timestamp_ns: i64,
        payload: &[u8],
    ) {
        if self.ends.is_empty() {
            self.first = sequence;
        }
        debug_assert_eq!(sequence.0, self.first.0 + self.ends.len() as u64);
        let start = self.bytes.len();
        encode_frame(&mut self.bytes, kind, sequence, in_commit, timestamp_ns, payload);
        salt_frame(&mut self.bytes[start..], self.salt);
        self.ends.push(self.bytes.len());
    }

    /// Takes another group's frames behind its own, and leaves it empty.
    pub(crate) fn take(&mut self, other: &mut Self) {
        if self.is_done() {
            let salt = self.salt;
            self.clear();
            std::mem::swap(self, other);
            // What is encoded next is most likely written to the same segment.
            other.salt = salt;
            return;
        }
        if self.salt != other.salt {
            other.resalt(self.salt);
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.ends.extend(other.ends.iter().map(|end| start + end));
        other.clear();
    }

    /// Bytes not yet written.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.bytes.len() - self.start_of(self.written)
    }

    /// Records not yet written.
    pub(crate) fn pending_records(&self) -> usize {
        self.ends.len() - self.written
    }

    /// Bytes written and not yet done.
    pub(crate) fn unsynced_bytes(&self) -> usize {
        self.start_of(self.written) - self.start_of(self.done)
    }

    pub(crate) fn is_written(&self) -> bool {
        self.written == self.ends.len()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done == self.ends.len()
    }

    /// The first record to be written, if there is one.
    pub(crate) fn next_pending(&self) -> Option<Sequence> {
        (!self.is_written()).then(|| Sequence(self.first.0 + self.written as u64))
    }

    /// As many of the next frames as fit into `room` bytes, which may be none.
    pub(crate) fn next_span(&self, room: u64) -> Span {
        let start = self.start_of(self.written);
        let fits = self.ends[self.written..].partition_point(|&end| (end - start) as u64 <= room);
        Span { from: self.written, upto: self.written + fits }
    }

    /// The next frames up to this sequence, which may be none.
    pub(crate) fn next_upto(&self, last: Sequence) -> Span {
        let upto = last.next().since(self.first) as usize;
        Span { from: self.written, upto: upto.clamp(self.written, self.ends.len()) }
    }

    /// The next frame alone, whatever its length.
    pub(crate) fn next_one(&self) -> Span {
        Span { from: self.written, upto: self.written + 1 }
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

    /// A span's frames under this salt.
    pub(crate) fn bytes_of(&mut self, span: Span, salt: u32) -> &[u8] {
        if self.salt != salt {
            self.resalt(salt);
        }
        &self.bytes[self.start_of(span.from)..self.start_of(span.upto)]
    }

    /// What a span takes in the file.
    pub(crate) fn len_of(&self, span: Span) -> u64 {
        (self.start_of(span.upto) - self.start_of(span.from)) as u64
    }

    /// The span is written.
    pub(crate) fn mark_written(&mut self, span: Span) {
        self.written = span.upto;
    }

    /// What is written need not be written again.
    pub(crate) fn mark_done(&mut self) {
        self.done = self.written;
    }

    /// What is not done has to be written again, elsewhere.
    pub(crate) fn rewind(&mut self) {
        self.written = self.done;
    }

    /// Forgets everything, keeping memory for the next group.
    pub(crate) fn clear(&mut self) {
        let used = self.bytes.len();
        self.small = if used < self.bytes.capacity() / 4 { self.small + 1 } else { 0 };
        self.bytes.clear();
        self.ends.clear();
        if self.small > SMALL_GROUPS_MAX {
            self.bytes.shrink_to(KEEP_BYTES);
            self.ends.shrink_to(KEEP_BYTES / FRAME_BYTES);
            self.small = 0;
        }
        self.written = 0;
        self.done = 0;
    }

    /// Salts the frames that may be written for another segment.
    fn resalt(&mut self, salt: u32) {
        // Salting with the old salt undoes it.
        let change = self.salt ^ salt;
        let mut start = self.start_of(self.done);
        for &end in &self.ends[self.done..] {
            salt_frame(&mut self.bytes[start..end], change);
            start = end;
        }
        self.salt = salt;
    }

    fn start_of(&self, frame: usize) -> usize {
        if frame == 0 { 0 } else { self.ends[frame - 1] }
    }
}
