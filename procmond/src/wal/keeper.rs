//! The keeper thread: it prepares segments ahead of the writer and disposes of those that nobody
//! needs any more, so that neither is felt by those who append.
//!
//! Writing into a file that has its blocks costs a flush less than growing one, on most file
//! systems. So the next segment is a retired one under another name (its blocks are written, its
//! bytes are stale and never pass for records of the new segment), or a file of zeros, written in
//! small steps with pauses because a burst of writes would hold up the writer's syncs.
//! Copy-on-write file systems give every write new blocks, so there nothing is prepared.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::archive::{archive, prune};
use super::format::Rest;
use super::lock::DirLock;
use super::segment::FileName;
use super::state::{Segment, Shared};
use super::storage::{Storage, StorageFile};
use super::{Retire, WalError};

/// Zeros written and synced at once, and the pause after them: about 100 MB/s, and none of the
/// writer's syncs waits for more than a few of them.
const ZEROS_BYTES: usize = 1 << 20;
const ZEROS_PAUSE: Duration = Duration::from_millis(10);
/// Prepared segments held at a time.
const SPARES_MAX: usize = 2;
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A file whose blocks are written, for a segment to be.
pub(super) struct Spare {
    pub(super) file: Box<dyn StorageFile>,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) rest: Rest,
    /// The streams begun before its bytes were written.
    pub(super) generation: u64,
}

/// Where the writer and the keeper leave things for each other.
pub(super) struct Desk {
    /// Segments are prepared at all.
    prepares: bool,
    papers: Mutex<Papers>,
    work: Condvar,
}

#[derive(Default)]
struct Papers {
    spares: Vec<Spare>,
    /// The writer would like to have one.
    wanted: bool,
    /// Segments that nobody needs, oldest first.
    retired: VecDeque<Segment>,
    closing: bool,
}

impl Desk {
    pub(super) fn new(prepares: bool) -> Self {
        Self { prepares, papers: Mutex::default(), work: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Papers> {
        // Its sections do not panic half way.
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A segment will be needed before long.
    pub(super) fn want_spare(&self) {
        if self.prepares {
            self.lock().wanted = true;
            self.work.notify_one();
        }
    }

    /// A prepared segment, if there is one.
    pub(super) fn take_spare(&self) -> Option<Spare> {
        self.lock().spares.pop()
    }

    /// A segment is needed no more.
    pub(super) fn retire(&self, segment: Segment) {
        self.lock().retired.push_back(segment);
        self.work.notify_one();
    }

    /// Retired segments that are still there, for those that must go at once.
    pub(super) fn take_retired(&self) -> VecDeque<Segment> {
        std::mem::take(&mut self.lock().retired)
    }

    /// Finish what is to be done, then end.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
    }
}

pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) desk: Arc<Desk>,
    pub(super) lock: Arc<DirLock>,
    /// The last attempt at something failed, and was told.
    pub(super) failing: bool,
    /// The last segment archived.
    pub(super) archived: Option<u64>,
    /// Counts the files prepared, for their names.
    pub(super) made: u64,
}

/// What there is to do.
enum Job {
    Dispose(Segment),
    Prepare,
    Rest,
    End,
}

impl Keeper {
    pub(super) fn spawn(self) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("wal-keeper".to_owned()).spawn(move || self.run())
    }

    fn run(mut self) {
        loop {
            let done = match self.next_job() {
                Job::Dispose(segment) => self.dispose(segment),
                Job::Prepare => self.prepare(),
                Job::Rest => {
                    self.rest();
                    continue;
                }
                Job::End => return self.end(),
            };
            if let Err(error) = done {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "the log's upkeep failed and is tried again");
                }
                self.rest();
            } else {
                self.failing = false;
            }
        }
    }

    fn next_job(&self) -> Job {
        let mut papers = self.desk.lock();
        loop {
            // It stays on the desk until it is done, so that it is not forgotten by a failure.
            let archives = matches!(self.shared.options.retire, Retire::Archive(_));
            // Archiving takes its time: the next opening goes on with it.
            if papers.closing && (archives || papers.retired.is_empty()) {
                return Job::End;
            }
            if let Some(segment) = papers.retired.front() {
                return Job::Dispose(segment.clone());
            }
            if papers.wanted && papers.spares.is_empty() {
                return if self.has_budget() { Job::Prepare } else { Job::Rest };
            }
            papers = self.desk.work.wait(papers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits a while before the next attempt, or until the log is closed.
    fn rest(&self) {
        let papers = self.desk.lock();
        if papers.closing {
            // There is no other attempt: the next opening does what is left.
            drop(papers);
            self.desk.take_retired();
            return;
        }
        drop(self.desk.work.wait_timeout(papers, RETRY).unwrap_or_else(PoisonError::into_inner));
    }

    fn has_budget(&self) -> bool {
        let options = &self.shared.options;
        let used = self.shared.lock().used_bytes();
        used.saturating_add(options.segment_bytes) <= options.disk_budget_bytes
    }

    fn spare_path(&mut self) -> PathBuf {
        self.made += 1;
        FileName::Spare(self.made).path(&self.shared.dir)
    }

    /// Makes the next segment's file out of a retired one, or removes it.
    fn dispose(&mut self, segment: Segment) -> Result<(), WalError> {
        self.lock.check(&self.shared.dir)?;
        self.archive(&segment)?;
        let whole =
            segment.bytes.max(segment.file_bytes) >= self.shared.options.segment_bytes / 16 * 15;
        let room = self.desk.lock().spares.len() < SPARES_MAX;
        let recycled = if self.desk.prepares && whole && room && segment.key.is_some() {
            self.recycle(&segment)?
        } else {
            None
        };
        let kept = recycled.is_some();
        if !kept {
            match self.storage.unlink(&segment.path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(WalError::io("delete the segment", &segment.path, source));
                }
                _ => {}
            }
        }
        // Until this is durable the file may come back under its old name, as a segment.
        self.sync_dir()?;
        {
            let mut state = self.shared.lock();
            let bytes = segment.bytes.max(segment.file_bytes);
            state.retired_bytes = state.retired_bytes.saturating_sub(bytes);
            if let Some(spare) = &recycled {
                state.spare_bytes += spare.bytes;
                state.counters.recycled += 1;
            } else {
                state.counters.deleted += 1;
            }
        }
        let mut papers = self.desk.lock();
        // Unless it was taken away meanwhile.
        papers.retired.pop_front_if(|front| front.number == segment.number);
        if let Some(spare) = recycled {
            papers.wanted = false;
            papers.spares.push(spare);
        }
        Ok(())
    }

    /// Archives a segment, if that is what is to become of it and has not been done.
    fn archive(&mut self, segment: &Segment) -> Result<(), WalError> {
        let Retire::Archive(options) = &self.shared.options.retire else { return Ok(()) };
        if segment.key.is_none() || self.archived == Some(segment.number) {
            return Ok(());
        }
        let Segment { path, number, last, .. } = segment;
        match archive(&*self.storage, path, *number, *last, options) {
            Ok(_) => {}
            Err(WalError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !self.exists(path) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.archived = Some(*number);
        self.shared.lock().counters.archived += 1;
        if let Err(error) = prune(&*self.storage, options, SystemTime::now()) {
            tracing::warn!(%error, "old archives stay for now");
        }
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.storage.open(path, false).is_ok()
    }

    fn recycle(&mut self, segment: &Segment) -> Result<Option<Spare>, WalError> {
        let generation = self.shared.lock().generation;
        let path = self.spare_path();
        match self.storage.rename(&segment.path, &path) {
            Ok(()) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(WalError::io("rename a segment to", &path, source)),
        }
        let file =
            self.storage.open(&path, true).map_err(|source| WalError::io("open", &path, source))?;
        let bytes = file.len().map_err(|source| WalError::io("read", &path, source))?;
        Ok(Some(Spare { file, path, bytes, rest: Rest::Stale, generation }))
    }

    /// Writes a file of zeros, unless a retired segment comes that will do.
    fn prepare(&mut self) -> Result<(), WalError> {
        self.lock.check(&self.shared.dir)?;
        let path = self.spare_path();
        let made = self.write_zeros(&path);
        if !matches!(made, Ok(Some(_))) {
            // Opening removes what cannot be removed now.
            let _ = self.storage.unlink(&path);
        }
        let Some(file) = made? else { return Ok(()) };
        self.sync_dir()?;
        let bytes = self.shared.options.segment_bytes;
        {
            let mut state = self.shared.lock();
            state.spare_bytes += bytes;
            state.counters.prepared += 1;
        }
        let mut papers = self.desk.lock();
        papers.wanted = false;
        papers.spares.push(Spare { file, path, bytes, rest: Rest::Zeros, generation: 0 });
        Ok(())
    }

    fn write_zeros(&self, path: &Path) -> Result<Option<Box<dyn StorageFile>>, WalError> {
        let failed = |source| WalError::io("prepare the segment", path, source);
        let bytes = self.shared.options.segment_bytes;
        let file = self.storage.create(path).map_err(failed)?;
        file.allocate(bytes).map_err(failed)?;
        let zeros = vec![0; ZEROS_BYTES.min(bytes as usize)];
        let mut at = 0;
        while at < bytes {
            let step = zeros.len().min((bytes - at) as usize);
            file.write_all_at(&zeros[..step], at).map_err(failed)?;
            file.sync_data().map_err(failed)?;
            at += step as u64;
            let papers = self.desk.lock();
            if papers.closing || !papers.retired.is_empty() {
                return Ok(None);
            }
            if at < bytes {
                // Woken earlier, it looks whether it is still needed.
                drop(
                    self.desk
                        .work
                        .wait_timeout(papers, ZEROS_PAUSE)
                        .unwrap_or_else(PoisonError::into_inner),
                );
            }
        }
        Ok(Some(file))
    }

    fn sync_dir(&self) -> Result<(), WalError> {
        let dir = &self.shared.dir;
        self.storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source))
    }

    /// Removes what was prepared and will not be needed.
    fn end(&self) {
        for spare in std::mem::take(&mut self.desk.lock().spares) {
            // Opening removes what cannot be removed now.
            let _ = self.storage.unlink(&spare.path);
        }
    }
}
