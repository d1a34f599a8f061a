//! Copying what is whole in a segment, and making sure that the copy is the same.

use std::io::Write;
use std::path::Path;

use daemoneye_lib::stream::Sequence;

use super::super::WalError;
use super::super::format::{FrameHead, HEADER_BYTES, KIND_CONTROL, Label, Rest};
use super::super::scan::{Accept, Scanner, Step};
use super::super::storage::StorageFile;

const CHUNK_BYTES: usize = 256 << 10;

/// What of a segment is copied, and under which label it stands then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    pub(crate) label: Label,
    /// The last sequence the copy is there for.
    pub(crate) upto: Sequence,
}

impl Copied {
    /// All of a segment up to a sequence. The copy's file ends where its frames do.
    pub(crate) const fn whole(label: Label, upto: Sequence) -> Self {
        Self { label: Label { rest: Rest::Nothing, ..label }, upto }
    }

    /// Writes the copy: the header, the frames, and a control record which bears witness to the last
    /// sequence even if its record is lost.
    pub(crate) fn write(
        self,
        from: &dyn StorageFile,
        from_path: &Path,
        now_ns: i64,
        to: &mut impl Write,
        to_path: &Path,
    ) -> Result<(), WalError> {
        let failed = |source| WalError::io("write", to_path, source);
        to.write_all(&self.label.to_header()).map_err(failed)?;
        let mut frames = Frames::new(from, from_path, self)?;
        while let Some((_, frame)) = frames.next()? {
            to.write_all(frame).map_err(failed)?;
        }
        let witness = self.label.to_control(self.upto, 0, now_ns);
        to.write_all(&witness).map_err(failed)
    }
}

/// The whole frames of a segment that belong into a copy, in the order in which they stand.
pub(crate) struct Frames<'a> {
    file: &'a dyn StorageFile,
    path: &'a Path,
    length: u64,
    accept: Accept,
    upto: Sequence,
    scanner: Scanner,
    /// Whether there was nothing but such frames so far.
    pure: bool,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(
        file: &'a dyn StorageFile,
        path: &'a Path,
        copied: Copied,
    ) -> Result<Self, WalError> {
        let length = file.len().map_err(|source| WalError::io("read", path, source))?;
        let Copied { label, upto } = copied;
        let accept = Accept::Of { salt: label.salt, first: label.first };
        let scanner = Scanner::new(HEADER_BYTES as u64);
        Ok(Self { file, path, length, accept, upto, scanner, pure: true })
    }

    pub(crate) fn next(&mut self) -> Result<Option<(FrameHead, &[u8])>, WalError> {
        loop {
            let step = self
                .scanner
                .step(self.file, self.accept, self.length)
                .map_err(|source| WalError::io("read", self.path, source))?;
            match step {
                Step::Frame { head, .. } if head.sequence <= self.upto => {
                    return Ok(Some((head, self.scanner.frame())));
                }
                Step::Frame { .. } | Step::Damage { .. } => self.pure = false,
                Step::Tail { from, to } => {
                    self.pure &= from == to;
                    return Ok(None);
                }
            }
        }
    }
}

/// Whether `copy` has the frames that `original` has, byte for byte, behind them the control record
/// that bears witness to the last sequence, and nothing else.
pub(crate) fn same_frames(
    original: &mut Frames<'_>,
    copy: &mut Frames<'_>,
) -> Result<bool, WalError> {
    let upto = original.upto;
    while let Some((_, frame)) = original.next()? {
        match copy.next()? {
            Some((_, copied)) if copied == frame => {}
            _ => return Ok(false),
        }
    }
    let witnessed = matches!(
        copy.next()?,
        Some((head, _)) if head.kind == KIND_CONTROL && head.sequence == upto
    );
    Ok(witnessed && copy.next()?.is_none() && copy.pure)
}

/// Copies a file as it is.
pub(crate) fn write_bytes(
    from: &dyn StorageFile,
    from_path: &Path,
    to: &mut impl Write,
    to_path: &Path,
) -> Result<(), WalError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let got = from
            .read_some_at(&mut buffer, at)
            .map_err(|source| WalError::io("read", from_path, source))?;
        if got == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..got]).map_err(|source| WalError::io("write", to_path, source))?;
        at += got as u64;
    }
}

/// Whether two files are the same.
pub(crate) fn same_bytes(
    one: &dyn StorageFile,
    one_path: &Path,
    other: &dyn StorageFile,
    other_path: &Path,
) -> Result<bool, WalError> {
    let (mut ours, mut theirs) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    loop {
        let got =
            fill(one, &mut ours, at).map_err(|source| WalError::io("read", one_path, source))?;
        let same = fill(other, &mut theirs, at)
            .map_err(|source| WalError::io("read", other_path, source))?;
        if ours[..got] != theirs[..same] {
            return Ok(false);
        }
        if got == 0 {
            return Ok(true);
        }
        at += got as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &dyn StorageFile, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_some_at(&mut buffer[filled..], at + filled as u64)? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}
