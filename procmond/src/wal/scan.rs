//! Walking the frames of a segment in bounded memory, and finding the next whole one after damage.

use std::io;

use daemoneye_lib::stream::Sequence;

use super::format::{
    FRAME_BYTES, FRAME_MAGIC, FrameHead, KIND_CONTROL, LABEL_BYTES, implied_salt,
    self_describing_label,
};
use super::storage::StorageFile;
use run::Run;

mod run;
#[cfg(test)]
mod tests;

/// How much is read at once, so that a writer never waits for more.
const READ_BYTES: usize = 256 << 10;
/// The buffer takes some such reads behind the beginning of a frame, and grows beyond that only for
/// one longer frame, whose length is capped. Reading into the same place over and over is slower by
/// a sixth.
const BUFFER_BYTES: usize = 4 * READ_BYTES + (4 << 10);

/// Reads from the segment at an offset: at least a byte, 0 at its end.
pub(crate) type Read<'a> = &'a mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>;

/// Which frames count as whole.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Accept {
    /// Those written under this salt with this sequence or a later one (a control record stands
    /// behind its sequence): what a file's earlier life has left is of earlier records, even if
    /// its salt were the same.
    Of { salt: u32, first: Sequence },
    /// Control records that vouch for themselves and name this segment: for a segment whose
    /// header is lost.
    Controls { segment: u64 },
}

/// What stands next in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A whole frame; its bytes are [`Scanner::frame`] until the next step.
    Frame { offset: u64, head: FrameHead },
    /// Bytes that are no frame, with a whole frame after them.
    Damage { from: u64, to: u64 },
    /// Nothing whole from here to the limit. `from == to` is a clean end.
    Tail { from: u64, to: u64 },
}

/// A position in a segment with the bytes around it.
pub(crate) struct Scanner {
    buffer: Vec<u8>,
    /// Valid bytes in the buffer.
    filled: usize,
    /// Where the next step looks, as an index into the buffer.
    at: usize,
    /// The file offset of `buffer[0]`.
    base: u64,
    /// The last frame, as indices into the buffer.
    frame: (usize, usize),
    head: FrameHead,
    /// Frames that have been checked ahead.
    run: Run,
}

impl Scanner {
    pub(crate) fn new(offset: u64) -> Self {
        let run = Run::default();
        let head = FrameHead::default();
        Self { buffer: Vec::new(), filled: 0, at: 0, base: offset, frame: (0, 0), head, run }
    }

    /// The file offset where the next step looks.
    pub(crate) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The frame the last step returned.
    pub(crate) fn frame(&self) -> &[u8] {
        &self.buffer[self.frame.0..self.frame.1]
    }

    /// Its head.
    pub(crate) fn head(&self) -> &FrameHead {
        &self.head
    }

    /// Its payload.
    pub(crate) fn payload(&self) -> &[u8] {
        self.frame().get(FRAME_BYTES..).unwrap_or_default()
    }

    /// Takes the next step, looking at nothing beyond `limit`. After a [`Step::Tail`] the position
    /// is unchanged, so that the same bytes are looked at again when the limit has moved.
    pub(crate) fn step(
        &mut self,
        file: &dyn StorageFile,
        accept: Accept,
        limit: u64,
    ) -> io::Result<Step> {
        let mut read = |buffer: &mut [u8], offset: u64| file.read_some_at(buffer, offset);
        self.step_by(&mut read, accept, limit)
    }

    /// [`Scanner::step`] for who reads in a way of their own.
    pub(crate) fn step_by(
        &mut self,
        read: Read<'_>,
        accept: Accept,
        limit: u64,
    ) -> io::Result<Step> {
        let from = self.offset();
        let head = match self.frame_of_run(accept) {
            Some(head) => Some(head),
            None => self.frame_here(read, accept, limit)?,
        };
        if let Some(head) = head {
            self.step_over(head);
            return Ok(Step::Frame { offset: from, head });
        }
        while self.seek_magic(read, limit)? {
            if self.frame_here(read, accept, limit)?.is_some() {
                return Ok(Step::Damage { from, to: self.offset() });
            }
        }
        self.jump(from);
        Ok(Step::Tail { from, to: limit.max(from) })
    }

    /// Takes the next step if it is one onto the record of this sequence and nothing has to be read
    /// or checked for it any more: what the step behind a record most often is.
    #[inline]
    pub(crate) fn step_onto(&mut self, sequence: Sequence) -> bool {
        match self.run.frame_at(self.at) {
            Some(&head) if head.sequence == sequence && head.kind != KIND_CONTROL => {
                self.run.take();
                self.step_over(head);
                true
            }
            _ => false,
        }
    }

    fn step_over(&mut self, head: FrameHead) {
        self.frame = (self.at, self.at + head.frame_bytes());
        self.at = self.frame.1;
        self.head = head;
    }

    /// Takes the last step back, which was onto a frame: the next one is the same again.
    pub(crate) fn step_back(&mut self) {
        self.at = self.frame.0;
        self.run.put_back();
    }

    /// Moves to a file offset.
    pub(crate) fn jump(&mut self, offset: u64) {
        self.run.clear();
        match offset.checked_sub(self.base) {
            Some(at) if at <= self.filled as u64 => self.at = at as usize,
            _ => {
                self.base = offset;
                self.filled = 0;
                self.at = 0;
            }
        }
    }

    /// The whole frame at the position, if it and those behind it that are in the buffer are all
    /// whole. Otherwise each is looked at for itself.
    fn frame_of_run(&mut self, accept: Accept) -> Option<FrameHead> {
        let Accept::Of { salt, first } = accept else { return None };
        if self.run.ends_before(self.at) || !self.run.is_for((salt, first)) {
            self.run.check(&mut self.buffer[..self.filled], self.at, (salt, first));
        }
        let head = *self.run.frame_at(self.at)?;
        self.run.take();
        Some(head)
    }

    /// The whole frame at the position, if there is one.
    fn frame_here(
        &mut self,
        read: Read<'_>,
        accept: Accept,
        limit: u64,
    ) -> io::Result<Option<FrameHead>> {
        if !self.fill(read, FRAME_BYTES, limit)? {
            return Ok(None);
        }
        let Some(head) = FrameHead::read(&self.buffer[self.at..self.filled]) else {
            return Ok(None);
        };
        if matches!(accept, Accept::Controls { .. })
            && (head.kind != KIND_CONTROL || head.payload_bytes as usize != LABEL_BYTES)
        {
            return Ok(None);
        }
        if !self.fill(read, head.frame_bytes(), limit)? {
            return Ok(None);
        }
        let frame = &self.buffer[self.at..self.at + head.frame_bytes()];
        let whole = match accept {
            Accept::Of { salt, first } => head.place() >= first && implied_salt(frame) == salt,
            Accept::Controls { segment } => {
                self_describing_label(frame).is_some_and(|label| label.segment == segment)
            }
        };
        Ok(whole.then_some(head))
    }

    /// Moves to the next magic after the position; false if there is none before the limit.
    fn seek_magic(&mut self, read: Read<'_>, limit: u64) -> io::Result<bool> {
        let mut skip = 1;
        loop {
            if !self.fill(read, skip + FRAME_MAGIC.len(), limit)? {
                return Ok(false);
            }
            let rest = &self.buffer[self.at + skip..self.filled];
            if let Some(found) = find(rest, FRAME_MAGIC) {
                self.at += skip + found;
                return Ok(true);
            }
            // The last bytes may be the beginning of a magic.
            self.at = self.filled - (FRAME_MAGIC.len() - 1);
            skip = 0;
        }
    }

    /// Makes `need` bytes available at the position; false if the limit or the file's end comes
    /// first.
    fn fill(&mut self, read: Read<'_>, need: usize, limit: u64) -> io::Result<bool> {
        while self.filled - self.at < need {
            if self.offset() + need as u64 > limit {
                return Ok(false);
            }
            if self.buffer.len() - self.filled < READ_BYTES || self.buffer.len() - self.at < need {
                self.make_room(need, limit);
            }
            let position = self.base + self.filled as u64;
            let missing = need - (self.filled - self.at);
            // Whole pages are copied faster.
            let piece = READ_BYTES - (position % READ_BYTES as u64) as usize;
            let room = (self.buffer.len() - self.filled) as u64;
            let want = piece.max(missing).min(room.min(limit - position) as usize);
            let got = read(&mut self.buffer[self.filled..self.filled + want], position)?;
            if got == 0 {
                return Ok(false);
            }
            self.filled += got;
        }
        Ok(true)
    }

    /// Moves what is ahead to the buffer's beginning, and makes the buffer long enough for `need`
    /// and for what is there to be read.
    fn make_room(&mut self, need: usize, limit: u64) {
        self.run.clear();
        self.buffer.copy_within(self.at..self.filled, 0);
        self.base += self.at as u64;
        self.filled -= self.at;
        self.at = 0;
        let there = usize::try_from(limit - self.base).unwrap_or(usize::MAX);
        let want = need.max(BUFFER_BYTES.min(there));
        if self.buffer.len() < want {
            let ahead = &self.buffer[..self.filled];
            // Zeros that come from the system cost nothing until they are read into.
            let mut longer = vec![0; want];
            longer[..self.filled].copy_from_slice(ahead);
            self.buffer = longer;
        }
    }
}

/// Where `needle` first stands. Its first byte is rare, so the search is one byte comparison long.
fn find(haystack: &[u8], needle: [u8; 4]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&byte| byte == needle[0]) {
        let at = from + at;
        if haystack.get(at..at + needle.len())? == needle {
            return Some(at);
        }
        from = at + 1;
    }
    None
}
