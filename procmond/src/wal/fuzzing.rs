//! What the fuzz targets (`fuzz/`) see of the log's inside: reading one segment without a
//! directory and without waiting for a live writer. Compiled for them only.

use std::io;
use std::ops::Range;
use std::path::Path;

use daemoneye_lib::stream::Sequence;

use super::WalError;
use super::format::{self, HEADER_BYTES, Header};
use super::segment::{self, Ends};
use super::storage::StorageFile;

/// What a segment's frames say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The first sequence it is there for.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Whole records.
    pub records: u64,
    /// The highest watermark.
    pub watermark: u64,
    /// Damaged bytes, and the records that stood there.
    pub damage: Vec<(Range<u64>, Option<(u64, u64)>)>,
    /// What a crash has left of the last commit.
    pub torn: Range<u64>,
}

/// Reads a segment from memory. `next_first` is where the next one begins; `u64::MAX` if there are
/// later ones but not the next, and none if it is the newest. `Ok(None)`: nothing in it says what
/// it is. Every read returns at most `read_bytes_max`, as a system may do.
///
/// # Errors
/// [`WalError::UnknownFormat`].
pub fn read_segment(
    bytes: &[u8],
    number: u64,
    next_first: Option<u64>,
    read_bytes_max: usize,
) -> Result<Option<Contents>, WalError> {
    let file = Memory { bytes, read_bytes_max: read_bytes_max.max(1) };
    let path = Path::new("memory");
    let Some(label) = segment::read_label(&file, path, number)? else {
        return Ok(None);
    };
    let ends = match next_first {
        None => Ends::Open,
        Some(u64::MAX) => Ends::Left,
        Some(next) => Ends::At(Sequence(next).prev().max(label.first.prev())),
    };
    let contents = segment::read_contents(&file, path, &label, ends)?;
    let pair = |(first, last): (Sequence, Sequence)| (first.0, last.0);
    Ok(Some(Contents {
        first: label.first.0,
        last: contents.last.0,
        records: contents.records,
        watermark: contents.newest.watermark.0,
        damage: contents.damage.iter().map(|d| (d.from..d.to, d.lost.map(pair))).collect(),
        torn: contents.torn,
    }))
}

/// Reads a header, and returns the bytes that a writer would have written for what it says.
#[must_use]
pub fn header_again(bytes: &[u8]) -> Option<[u8; HEADER_BYTES]> {
    match format::read_header(bytes) {
        Header::Whole(label) => Some(label.to_header()),
        _ => None,
    }
}

/// Reads a control record that vouches for itself, and returns the bytes that a writer would have
/// written for what it says.
#[must_use]
pub fn control_again(bytes: &[u8]) -> Option<Vec<u8>> {
    let label = format::self_describing_label(bytes)?;
    let head = format::FrameHead::read(bytes)?;
    let again = label.to_control(head.sequence, head.in_commit as usize, head.timestamp_ns);
    Some(again.to_vec())
}

struct Memory<'a> {
    bytes: &'a [u8],
    read_bytes_max: usize,
}

impl StorageFile for Memory<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.bytes.get(at..).unwrap_or_default();
        let length = rest.len().min(buffer.len()).min(self.read_bytes_max);
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }

    fn has_name(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
