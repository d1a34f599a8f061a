//! Making a log as small as it can be: without what is committed, and without what files hold
//! behind their records.

use std::path::Path;

use daemoneye_lib::stream::Sequence;

use super::super::archive::copy::Copied;
use super::super::inspect::{Inspection, inspect_files};
use super::super::segment::{self, Contents};
use super::super::storage::{OsStorage, Storage};
use super::super::{LogFiles, WalError};
use super::catalogue::Catalogue;
use super::{Progress, rewrite};

/// What [`compact`] did.
#[derive(Debug, Clone)]
pub enum Compaction {
    /// Nothing: the log is damaged, and compacting it would hide where.
    Damaged(Inspection),
    /// It is small now.
    Done {
        /// Up to here everything is committed, and gone.
        watermark: Sequence,
        /// Segments removed, all of whose records were committed.
        removed: usize,
        /// Segments written anew.
        rewritten: usize,
        /// What the segments had taken.
        bytes_before: u64,
        /// What they take now.
        bytes_after: u64,
    },
}

/// Removes the segments whose records are all committed, except the newest, which says what the
/// log is; writes those anew that hold committed records, or anything behind their last.
///
/// # Errors
/// [`WalError::LockHeld`] if a process has the log open, [`WalError::Io`] and
/// [`WalError::DiskFull`] as the system says: the log is whole then, compacted in part.
pub fn compact(dir: &Path, progress: &Progress) -> Result<Compaction, WalError> {
    let _lock = super::lock(dir)?;
    let storage = &OsStorage;
    let files = LogFiles::from(dir);
    let inspection = inspect_files(&files, progress)?;
    if !inspection.is_sound() {
        return Ok(Compaction::Damaged(inspection));
    }
    let catalogue = Catalogue::look(storage, &files, progress)?;
    let Some(group) = catalogue.groups.last() else {
        return Ok(Compaction::Damaged(inspection));
    };
    let mut segments = Vec::new();
    for (index, found) in group.segments.iter().enumerate() {
        let (Some(label), Some(opened)) = (found.label, found.open(storage, progress)?) else {
            return Ok(Compaction::Damaged(inspection));
        };
        let contents =
            segment::read_contents(opened.file(), &found.path, &label, group.ends(index))?;
        segments.push((found, label, contents));
    }
    let newest = segments.iter().map(|(_, _, contents): &(_, _, Contents)| contents.newest);
    let Some(newest) = newest.max_by_key(|label| label.watermark) else {
        return Ok(Compaction::Damaged(inspection));
    };
    let watermark = newest.watermark;
    let bytes_before = segments.iter().map(|(found, ..)| found.bytes).sum();
    let committed = segments
        .iter()
        .take(segments.len() - 1)
        .take_while(|(_, _, contents)| contents.last <= watermark)
        .count();
    // From the front, as the log itself does it: what a crash leaves is a log.
    for (found, ..) in segments.drain(..committed) {
        storage
            .remove(&found.path)
            .map_err(|source| WalError::io("delete the segment", &found.path, source))?;
        rewrite::sync_dir(storage, dir)?;
    }
    let (mut rewritten, mut bytes_after) = (0, 0);
    for (found, label, contents) in segments {
        let holds_committed = label.first <= watermark && contents.last >= label.first;
        if holds_committed || found.bytes > contents.torn.start {
            let copied = Copied::whole(label, contents.last).after(&newest);
            rewrite::replace(storage, dir, found, copied)?;
            rewritten += 1;
        }
        let path = segment::FileName::Segment(found.number).path(dir);
        let length = storage.open(&path, false).and_then(|file| file.len());
        bytes_after += length.map_err(|source| WalError::io("read", &path, source))?;
    }
    let removed = committed;
    Ok(Compaction::Done { watermark, removed, rewritten, bytes_before, bytes_after })
}
