//! A few blocks kept in hand. A segment goes only when it is durably known that everything in it
//! was acknowledged, and a log that has filled its disk has no room to say so: then the next segment
//! is begun in these blocks, whose header says it.

use std::path::{Path, PathBuf};

use super::WalError;
use super::format::{Label, Rest};
use super::segment::{self, NotBegun};
use super::storage::Storage;
use super::writer::Active;

/// A block, on the file systems that there are.
const BYTES: u64 = 4096;

fn path(dir: &Path) -> PathBuf {
    dir.join("procmond.reserve")
}

/// Puts it there if it is not. Its blocks are all that is wanted of it, so it need not be durable.
pub(super) fn make(storage: &dyn Storage, dir: &Path) -> Result<(), WalError> {
    let path = path(dir);
    if storage.open(&path, true).and_then(|file| file.len()).is_ok_and(|bytes| bytes >= BYTES) {
        return Ok(());
    }
    let made = storage.create(&path).and_then(|file| {
        file.write_all_at(&[0; BYTES as usize], 0)?;
        // Until they are written a file system may not have given it any.
        file.sync_data()
    });
    made.map_err(|source| {
        // Best effort: an empty one is made again.
        let _ = storage.unlink(&path);
        WalError::io("keep room in reserve in", &path, source)
    })
}

/// Begins a segment with these frames in it.
pub(super) fn begin_segment(
    storage: &dyn Storage,
    dir: &Path,
    label: Label,
    frames: &[u8],
) -> Result<Active, NotBegun> {
    let reserve = path(dir);
    let file =
        storage.open(&reserve, true).map_err(|source| WalError::io("open", &reserve, source))?;
    let label = Label { rest: Rest::Zeros, ..label };
    let path = segment::adopt(storage, dir, &label, &*file, &reserve, frames)?;
    Ok(Active::new(file, path, label, BYTES))
}
