//! Copying what is whole in a segment, and making sure that the copy is the same.

use std::io::{self, Write};
use std::path::Path;

use daemoneye_lib::stream::Sequence;

use super::super::WalError;
use super::super::format::{FrameHead, HEADER_BYTES, KIND_CONTROL, Label, Rest};
use super::super::scan::{Accept, Scanner, Step};
use super::super::storage::{Storage, StorageFile};

const CHUNK_BYTES: usize = 256 << 10;

/// What of a segment is copied, and under which label it stands then. The copy is made of this and
/// of the segment's bytes alone: made twice it is the same twice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    /// How the segment's frames are known.
    key: Accept,
    /// What the copy says of itself.
    label: Label,
    /// The last sequence the copy is there for.
    upto: Sequence,
}

impl Copied {
    /// All of a segment up to a sequence. The copy's file ends where its frames do.
    pub(crate) const fn whole(label: Label, upto: Sequence) -> Self {
        let key = Accept::Of { salt: label.salt, first: label.first };
        Self { key, label: Label { rest: Rest::Nothing, ..label }, upto }
    }

    /// The same without the records up to the newest label's watermark, which the copy remembers.
    pub(crate) fn after(mut self, newest: &Label) -> Self {
        self.label.watermark = newest.watermark;
        self.label.watermark_epoch = newest.watermark_epoch;
        self.from(self.label.first.max(newest.watermark.next()))
    }

    /// The same, there for the records from this one on: those it does not have are lost.
    pub(crate) fn from(mut self, first: Sequence) -> Self {
        self.label.first = first;
        self.upto = self.upto.max(first.prev());
        self
    }

    /// Writes the copy.
    pub(crate) fn write(
        self,
        from: &dyn StorageFile,
        from_path: &Path,
        to: &mut impl Write,
        to_path: &Path,
    ) -> Result<(), WalError> {
        let mut pieces = Pieces::new(from, from_path, self)?;
        while let Some(piece) = pieces.next()? {
            to.write_all(piece).map_err(|source| WalError::io("write", to_path, source))?;
        }
        Ok(())
    }

    /// Reads the copy and compares it with the segment, byte for byte.
    pub(crate) fn is_in(
        self,
        from: &dyn StorageFile,
        from_path: &Path,
        copy: &dyn StorageFile,
        copy_path: &Path,
    ) -> Result<bool, WalError> {
        let mut pieces = Pieces::new(from, from_path, self)?;
        let mut copy = Straight { file: copy, at: 0, buffer: Vec::new(), used: 0 };
        let failed = |source| WalError::io("read", copy_path, source);
        while let Some(piece) = pieces.next()? {
            if !copy.goes_on_with(piece).map_err(failed)? {
                return Ok(false);
            }
        }
        copy.is_at_end().map_err(failed)
    }
}

/// The copy of a segment, piece by piece: the header, whole frames in the order in which they
/// stand, and control records, where there is none, that bear witness to what is missing between
/// them and to the last sequence.
struct Pieces<'a> {
    frames: Frames<'a>,
    copied: Copied,
    /// The highest sequence that the pieces so far bear witness to.
    seen: Sequence,
    /// When the last of them was written.
    time_ns: i64,
    state: At,
    made: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Header,
    FirstControl,
    Frames,
    /// A record stands in the scanner and is to be given before the next is looked for.
    HeldBack(FrameHead),
    End,
}

impl<'a> Pieces<'a> {
    fn new(file: &'a dyn StorageFile, path: &'a Path, copied: Copied) -> Result<Self, WalError> {
        let frames = Frames::new(file, path, copied.key, copied.upto)?;
        let seen = copied.label.first.prev();
        Ok(Self { frames, copied, seen, time_ns: 0, state: At::Header, made: Vec::new() })
    }

    fn next(&mut self) -> Result<Option<&[u8]>, WalError> {
        let label = self.copied.label;
        loop {
            match self.state {
                At::Header => {
                    self.state = At::FirstControl;
                    self.made = label.to_header().to_vec();
                    return Ok(Some(&self.made));
                }
                At::HeldBack(head) => {
                    self.state = At::Frames;
                    self.seen = self.seen.max(head.sequence);
                    return Ok(Some(self.frames.scanner.frame()));
                }
                At::End => return Ok(None),
                At::FirstControl | At::Frames => {}
            }
            let Some(head) = self.frames.next()? else {
                let witnessed = self.state == At::Frames && self.seen >= self.copied.upto;
                self.state = At::End;
                if witnessed && self.frames.last_is_control {
                    return Ok(None);
                }
                return Ok(Some(self.witness(self.copied.upto)));
            };
            let control = head.kind == KIND_CONTROL;
            let before = if control { head.sequence } else { head.sequence.prev() };
            // Behind the first sequence only: what is before it was left out on purpose.
            if head.sequence < label.first && !(control && head.sequence == label.first.prev()) {
                continue;
            }
            if self.state == At::FirstControl {
                self.time_ns = head.timestamp_ns;
            }
            let first = self.state == At::FirstControl;
            self.state = At::HeldBack(head);
            if !control && (first || before > self.seen) {
                self.seen = self.seen.max(before);
                return Ok(Some(self.witness(before)));
            }
            self.time_ns = head.timestamp_ns;
        }
    }

    fn witness(&mut self, sequence: Sequence) -> &[u8] {
        self.made = self.copied.label.to_control(sequence, 0, self.time_ns).to_vec();
        &self.made
    }
}

/// The whole frames of a segment up to a sequence.
struct Frames<'a> {
    file: &'a dyn StorageFile,
    path: &'a Path,
    length: u64,
    accept: Accept,
    upto: Sequence,
    scanner: Scanner,
    last_is_control: bool,
}

impl<'a> Frames<'a> {
    fn new(
        file: &'a dyn StorageFile,
        path: &'a Path,
        accept: Accept,
        upto: Sequence,
    ) -> Result<Self, WalError> {
        let length = file.len().map_err(|source| WalError::io("read", path, source))?;
        let scanner = Scanner::new(HEADER_BYTES as u64);
        Ok(Self { file, path, length, accept, upto, scanner, last_is_control: false })
    }

    /// The next one's head; the frame is the scanner's.
    fn next(&mut self) -> Result<Option<FrameHead>, WalError> {
        loop {
            let step = self
                .scanner
                .step(self.file, self.accept, self.length)
                .map_err(|source| WalError::io("read", self.path, source))?;
            match step {
                Step::Frame { head, .. } if head.sequence <= self.upto => {
                    self.last_is_control = head.kind == KIND_CONTROL;
                    return Ok(Some(head));
                }
                Step::Frame { .. } | Step::Damage { .. } => {}
                Step::Tail { .. } => return Ok(None),
            }
        }
    }
}

/// A file read from its beginning to its end.
struct Straight<'a> {
    file: &'a dyn StorageFile,
    /// Where the buffer ends.
    at: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Straight<'_> {
    fn goes_on_with(&mut self, mut piece: &[u8]) -> io::Result<bool> {
        while !piece.is_empty() {
            if self.used == self.buffer.len() && !self.fill()? {
                return Ok(false);
            }
            let here = &self.buffer[self.used..];
            let both = here.len().min(piece.len());
            if here[..both] != piece[..both] {
                return Ok(false);
            }
            self.used += both;
            piece = &piece[both..];
        }
        Ok(true)
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(self.used == self.buffer.len() && !self.fill()?)
    }

    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.resize(CHUNK_BYTES, 0);
        let got = self.file.read_some_at(&mut self.buffer, self.at)?;
        self.buffer.truncate(got);
        self.used = 0;
        self.at += got as u64;
        Ok(got > 0)
    }
}

/// Creates a file for a copy. Whatever has its name goes before: were it a link, the copy would be
/// written to where that leads.
pub(crate) fn create_anew(storage: &dyn Storage, path: &Path) -> io::Result<Box<dyn StorageFile>> {
    storage.remove(path)?;
    storage.create(path)
}

/// Copies a file as it is.
pub(crate) fn write_bytes(
    from: &dyn StorageFile,
    from_path: &Path,
    to: &mut impl Write,
    to_path: &Path,
) -> Result<(), WalError> {
    each_chunk(from, from_path, |chunk| {
        to.write_all(chunk).map_err(|source| WalError::io("write", to_path, source))?;
        Ok(true)
    })
    .map(|_| ())
}

/// Whether two files are the same.
pub(crate) fn same_bytes(
    one: &dyn StorageFile,
    one_path: &Path,
    other: &dyn StorageFile,
    other_path: &Path,
) -> Result<bool, WalError> {
    let mut other = Straight { file: other, at: 0, buffer: Vec::new(), used: 0 };
    let failed = |source| WalError::io("read", other_path, source);
    let same = each_chunk(one, one_path, |chunk| other.goes_on_with(chunk).map_err(failed))?;
    Ok(same && other.is_at_end().map_err(failed)?)
}

/// Until one is refused; then false. A file that grows meanwhile is read to where it ended.
fn each_chunk(
    file: &dyn StorageFile,
    path: &Path,
    mut take: impl FnMut(&[u8]) -> Result<bool, WalError>,
) -> Result<bool, WalError> {
    let failed = |source| WalError::io("read", path, source);
    let length = file.len().map_err(failed)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let want = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        let got = file.read_some_at(&mut buffer[..want], at).map_err(failed)?;
        if got == 0 {
            return Ok(true);
        }
        if !take(&buffer[..got])? {
            return Ok(false);
        }
        at += got as u64;
    }
}
