//! Mending a damaged log: every record that can be read stays where it is, and what cannot be read
//! becomes a gap that the log itself bears witness to.
//!
//! What is to be changed is copied first, durably, into a directory beside the segments. Then each
//! damaged segment is written anew: its header from what is left of its label, its whole frames,
//! and a control record behind every hole. Where a segment is missing or nothing in it can be
//! read, the one that follows takes its sequences as lost ones; where nothing follows, the one
//! before does, so that no sequence is given twice. Files that are not the log's are moved out of
//! the way.

use std::path::{Path, PathBuf};

use daemoneye_lib::stream::Sequence;
use jiff::Timestamp;

use super::super::archive::copy::{self, Copied};
use super::super::archive::pack::Sink;
use super::super::format::Label;
use super::super::inspect::{Inspection, inspect_files};
use super::super::segment::{self, Ends, FileName};
use super::super::storage::{OsStorage, Storage};
use super::super::{LogFiles, WalError};
use super::catalogue::{Catalogue, Found};
use super::{Progress, rewrite};

/// What [`repair`] did.
#[derive(Debug, Clone)]
pub struct Repair {
    /// The log as it was.
    pub before: Inspection,
    /// The log as it is now.
    pub after: Inspection,
    /// Where what was changed is kept as it was; none if nothing was.
    pub copies: Option<PathBuf>,
    /// What was done, in order.
    pub actions: Vec<(PathBuf, RepairAction)>,
}

/// What was done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepairAction {
    /// It was written anew, with all records that could be read.
    Rewritten,
    /// Nothing in it can be read, it belongs to another log, or it is no file: it was moved to the
    /// copies.
    MovedAway,
    /// It was given the name that it should have had.
    Renamed,
}

/// A readable segment and what it becomes.
struct Plan<'a> {
    found: &'a Found,
    label: Label,
    first: Sequence,
    upto: Sequence,
    rewrite: bool,
}

/// Mends a log, so that it is sound.
///
/// # Errors
/// [`WalError::LockHeld`] if a process has the log open, [`WalError::Io`] and
/// [`WalError::DiskFull`] as the system says: what was not mended is as it was.
pub fn repair(dir: &Path, progress: &Progress) -> Result<Repair, WalError> {
    let _lock = super::lock(dir)?;
    let storage = &OsStorage;
    let files = LogFiles::from(dir);
    let before = inspect_files(&files, progress)?;
    let catalogue = Catalogue::look(storage, &files, progress)?;
    let (plans, mut away) = plan(storage, &catalogue, &before, progress)?;
    away.extend(catalogue.foreign.iter().map(|found| &*found.path));
    away.extend(catalogue.odd.iter().map(|odd| &*odd.path));
    let changes: Vec<&Found> =
        plans.iter().filter(|plan| plan.rewrite).map(|plan| plan.found).collect();
    let misnamed = |found: &Found| found.path != FileName::Segment(found.number).path(dir);
    let mut repair = Repair { after: before.clone(), before, copies: None, actions: Vec::new() };
    if !changes.is_empty() || !away.is_empty() {
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
        let copies = dir.join(format!("repair-{time}"));
        storage.create_dir(&copies).map_err(|source| WalError::io("create", &copies, source))?;
        for found in changes {
            keep(storage, found, &copies)?;
        }
        rewrite::sync_dir(storage, &copies)?;
        rewrite::sync_dir(storage, dir)?;
        repair.copies = Some(copies);
    }
    for plan in &plans {
        let found = plan.found;
        if plan.rewrite {
            let copied = Copied::whole(plan.label, plan.upto).from(plan.first);
            rewrite::replace(storage, dir, found, copied)?;
            repair.actions.push((found.path.clone(), RepairAction::Rewritten));
        } else if misnamed(found) {
            let path = FileName::Segment(found.number).path(dir);
            storage
                .rename(&found.path, &path)
                .map_err(|source| WalError::io("rename a segment to", &path, source))?;
            rewrite::sync_dir(storage, dir)?;
            repair.actions.push((found.path.clone(), RepairAction::Renamed));
        }
    }
    if let Some(copies) = &repair.copies {
        for path in away {
            let to = copies.join(path.file_name().unwrap_or_default());
            // A link is moved, not what it leads to.
            storage
                .rename(path, &to)
                .map_err(|source| WalError::io("move a file to", &to, source))?;
            repair.actions.push((path.to_owned(), RepairAction::MovedAway));
        }
        rewrite::sync_dir(storage, copies)?;
        rewrite::sync_dir(storage, dir)?;
    }
    if !repair.actions.is_empty() {
        repair.after = inspect_files(&files, progress)?;
    }
    Ok(repair)
}

/// What each readable segment is to become, and which files nothing can be read in.
fn plan<'a>(
    storage: &dyn Storage,
    catalogue: &'a Catalogue,
    inspection: &Inspection,
    progress: &Progress,
) -> Result<(Vec<Plan<'a>>, Vec<&'a Path>), WalError> {
    let mut plans: Vec<Plan<'_>> = Vec::new();
    let mut away: Vec<&Path> = Vec::new();
    // The last sequence accounted for. What is committed needs no account.
    let mut last = inspection.watermark;
    for group in &catalogue.groups {
        for (index, found) in group.segments.iter().enumerate() {
            let (Some(label), Some(opened)) = (found.label, found.open(storage, progress)?) else {
                away.push(&found.path);
                if group.following(index).is_none()
                    && let Some(before) = plans.last_mut()
                {
                    // As many as could have stood in it: the same that an opening leaves out.
                    before.upto = Sequence(last.0 + found.room());
                    before.rewrite = true;
                    last = before.upto;
                }
                continue;
            };
            let ends = group.ends(index);
            let contents = segment::read_contents(opened.file(), &found.path, &label, ends)?;
            let sound = inspection
                .segments
                .iter()
                .any(|report| report.path == found.path && report.is_sound());
            // A segment before the watermark may begin anywhere.
            let first = if label.first > last.next() { last.next() } else { label.first };
            let torn = ends == Ends::Open && !contents.torn.is_empty();
            let rewrite = !sound || torn || first < label.first;
            last = last.max(contents.last);
            plans.push(Plan { found, label, first, upto: contents.last, rewrite });
        }
    }
    Ok((plans, away))
}

/// Copies a file, durably but for its name.
fn keep(storage: &dyn Storage, found: &Found, copies: &Path) -> Result<(), WalError> {
    let path = copies.join(found.path.file_name().unwrap_or_default());
    let from = found.still(storage)?;
    let from = from.file();
    let to = copy::create_anew(storage, &path)
        .map_err(|source| WalError::io("create", &path, source))?;
    let mut sink = Sink::new(&*to, false);
    copy::write_bytes(from, &found.path, &mut sink, &path)?;
    std::io::Write::flush(&mut sink)
        .and_then(|()| to.sync_data())
        .map_err(|source| WalError::io("write", &path, source))?;
    if !copy::same_bytes(from, &found.path, &*to, &path)? {
        let source = std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "what was read back is not what was written",
        );
        return Err(WalError::io("verify the copy", &path, source));
    }
    Ok(())
}
