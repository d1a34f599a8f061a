//! Putting a better copy of a segment in its place: whole, durable and compared before it has the
//! name.

use std::io::Write;
use std::path::Path;

use super::super::WalError;
use super::super::archive::copy::{Copied, create_anew};
use super::super::archive::pack::Sink;
use super::super::segment::FileName;
use super::super::storage::Storage;
use super::catalogue::Found;

/// Writes the copy and lets it take the segment's place. A crash leaves the one or the other.
pub(super) fn replace(
    storage: &dyn Storage,
    dir: &Path,
    found: &Found,
    copied: Copied,
) -> Result<(), WalError> {
    let unfinished = FileName::Unfinished(found.number).path(dir);
    let path = FileName::Segment(found.number).path(dir);
    let from = found.still(storage)?;
    let from = from.file();
    let made = (|| {
        let failed = |source| WalError::io("write", &unfinished, source);
        let file = create_anew(storage, &unfinished).map_err(failed)?;
        let mut sink = Sink::new(&*file, false);
        copied.write(from, &found.path, &mut sink, &unfinished)?;
        sink.flush().and_then(|()| file.sync_data()).map_err(failed)?;
        if !copied.is_in(from, &found.path, &*file, &unfinished)? {
            let source = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "what was read back is not what was written",
            );
            return Err(WalError::io("verify", &unfinished, source));
        }
        storage
            .rename(&unfinished, &path)
            .map_err(|source| WalError::io("rename a segment to", &path, source))
    })();
    if made.is_err() {
        // Best effort: opening removes what stays.
        let _ = storage.unlink(&unfinished);
    }
    made?;
    if found.path != path {
        // It had the name of a segment whose stream has only begun.
        storage
            .unlink(&found.path)
            .map_err(|source| WalError::io("remove", &found.path, source))?;
    }
    sync_dir(storage, dir)
}

pub(super) fn sync_dir(storage: &dyn Storage, dir: &Path) -> Result<(), WalError> {
    storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source))
}
