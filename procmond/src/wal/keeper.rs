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
use super::reserve;
use super::segment::FileName;
use super::state::{Segment, Shared};
use super::storage::{Storage, StorageFile};
use super::writer::Active;
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
    /// Files prepared for nothing, to be removed.
    leftovers: Vec<PathBuf>,
    /// Segments that were left with more room than they need.
    roomy: VecDeque<Active>,
    /// There is something in reserve, as far as is known.
    has_reserve: bool,
    /// What is prepared takes room that records need.
    shed: bool,
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

    /// Records need the room that a prepared segment takes.
    pub(super) fn shed_spare(&self) {
        self.lock().shed = true;
        self.work.notify_one();
    }

    /// A file that was prepared is of no use.
    pub(super) fn discard(&self, path: PathBuf) {
        self.lock().leftovers.push(path);
        self.work.notify_one();
    }

    /// A segment was left with more room than it needs.
    pub(super) fn trim(&self, left: Active) {
        self.lock().roomy.push_back(left);
        self.work.notify_one();
    }

    /// There is a prepared segment.
    pub(super) fn has_spare(&self) -> bool {
        !self.lock().spares.is_empty()
    }

    /// What was in reserve has been used.
    pub(super) fn used_reserve(&self) {
        self.lock().has_reserve = false;
        self.work.notify_one();
    }

    /// This prepared segment is not wanted.
    pub(super) fn shed(&self, spare: Spare) {
        let mut papers = self.lock();
        papers.spares.push(spare);
        papers.shed = true;
        drop(papers);
        self.work.notify_one();
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
    /// It was retired when so many streams had begun, or before.
    Dispose(Segment, u64),
    Prepare,
    Shed(Spare),
    Reserve,
    Trim(Active),
    Rest,
    End,
}

impl Keeper {
    pub(super) fn spawn(self) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("wal-keeper".to_owned()).spawn(move || self.run())
    }

    fn run(mut self) {
        loop {
            self.clear();
            let done = match self.next_job() {
                Job::Dispose(segment, generation) => self.dispose(&segment, generation),
                Job::Prepare => self.prepare(),
                Job::Trim(left) => self.trim(&left),
                Job::Reserve => self.put_in_reserve(),
                Job::Shed(spare) => {
                    self.shed(spare);
                    continue;
                }
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
        loop {
            // Looked up first: the state is locked before the desk, never after it. And so what is
            // on the desk is of this stream or an older one.
            let (generation, has_budget) = {
                let state = self.shared.lock();
                let options = &self.shared.options;
                (state.generation, state.may_prepare(options.segment_bytes, options))
            };
            let mut papers = self.desk.lock();
            if let Some(left) = papers.roomy.pop_front() {
                return Job::Trim(left);
            }
            // It stays on the desk until it is done, so that it is not forgotten by a failure.
            let archives = matches!(self.shared.options.retire, Retire::Archive(_));
            // Archiving takes its time: the next opening goes on with it.
            if papers.closing && (archives || papers.retired.is_empty()) {
                return Job::End;
            }
            if std::mem::take(&mut papers.shed)
                && let Some(spare) = papers.spares.pop()
            {
                return Job::Shed(spare);
            }
            if let Some(segment) = papers.retired.front() {
                return Job::Dispose(segment.clone(), generation);
            }
            if !papers.has_reserve {
                return Job::Reserve;
            }
            if papers.wanted && papers.spares.is_empty() {
                return if has_budget { Job::Prepare } else { Job::Rest };
            }
            if !papers.leftovers.is_empty() {
                return Job::Rest;
            }
            drop(self.desk.work.wait(papers).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Removes what was prepared for nothing, as far as possible: the next opening removes the rest.
    fn clear(&self) {
        let mut leftovers = std::mem::take(&mut self.desk.lock().leftovers);
        leftovers.retain(|path| self.storage.remove(path).is_err());
        self.desk.lock().leftovers.append(&mut leftovers);
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

    fn spare_path(&mut self) -> PathBuf {
        self.made += 1;
        FileName::Spare(self.made).path(&self.shared.dir)
    }

    /// Makes the next segment's file out of a retired one, or removes it.
    fn dispose(&mut self, segment: &Segment, generation: u64) -> Result<(), WalError> {
        self.lock.check(&self.shared.dir)?;
        self.archive(segment)?;
        let whole = segment.disk_bytes() >= self.shared.options.segment_bytes / 16 * 15;
        let room = self.shared.lock().may_prepare(0, &self.shared.options)
            && self.desk.lock().spares.len() < SPARES_MAX;
        let recycled = if self.desk.prepares && whole && room && segment.key.is_some() {
            self.recycle(segment, generation)?
        } else {
            None
        };
        let kept = recycled.is_some();
        if !kept {
            self.storage
                .remove(&segment.path)
                .map_err(|source| WalError::io("delete the segment", &segment.path, source))?;
        }
        // Until this is durable the file may come back under its old name, as a segment.
        let gone = self.sync_dir();
        if let (Err(_), Some(spare)) = (&gone, &recycled) {
            self.desk.discard(spare.path.clone());
        }
        gone?;
        {
            let mut state = self.shared.lock();
            state.retired_bytes = state.retired_bytes.saturating_sub(segment.disk_bytes());
            let counters = &mut state.counters;
            *(if kept { &mut counters.recycled } else { &mut counters.deleted }) += 1;
        }
        // Unless it was taken away meanwhile.
        self.desk.lock().retired.pop_front_if(|front| front.number == segment.number);
        if let Some(spare) = recycled {
            self.keep(spare);
        }
        Ok(())
    }

    /// Gives back what a segment was prepared for and has not used, and what has failed behind its
    /// records, for good: a power cut would bring it back, and the budget with it.
    fn trim(&self, left: &Active) -> Result<(), WalError> {
        let Active { file, path, offset, .. } = left;
        file.set_len(*offset)
            .and_then(|()| file.sync_data())
            .map_err(|source| WalError::io("end the segment", path, source))?;
        let mut state = self.shared.lock();
        let number = left.label.segment;
        if let Some(entry) = state.segments.iter_mut().find(|entry| entry.number == number) {
            entry.file_bytes = *offset;
            state.recount();
        }
        Ok(())
    }

    /// Puts a prepared segment on the desk.
    fn keep(&self, spare: Spare) {
        let fits = {
            let mut state = self.shared.lock();
            state.spare_bytes += spare.bytes;
            state.may_prepare(0, &self.shared.options)
        };
        let mut papers = self.desk.lock();
        papers.wanted = false;
        papers.spares.push(spare);
        // Records may have come while it was made.
        papers.shed |= !fits;
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

    fn recycle(&mut self, segment: &Segment, generation: u64) -> Result<Option<Spare>, WalError> {
        let path = self.spare_path();
        match self.storage.rename(&segment.path, &path) {
            Ok(()) => {}
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(WalError::io("rename a segment to", &path, source)),
        }
        let opened = self.storage.open(&path, true).and_then(|file| Ok((file.len()?, file)));
        match opened {
            Ok((bytes, file)) => {
                Ok(Some(Spare { file, path, bytes, rest: Rest::Stale, generation }))
            }
            Err(source) => {
                self.desk.discard(path.clone());
                Err(WalError::io("open", &path, source))
            }
        }
    }

    fn put_in_reserve(&self) -> Result<(), WalError> {
        self.lock.check(&self.shared.dir)?;
        reserve::make(&*self.storage, &self.shared.dir)?;
        self.desk.lock().has_reserve = true;
        Ok(())
    }

    fn shed(&self, spare: Spare) {
        let fits = {
            let mut state = self.shared.lock();
            state.spare_bytes = state.spare_bytes.saturating_sub(spare.bytes);
            state.may_prepare(0, &self.shared.options)
        };
        let mut papers = self.desk.lock();
        papers.leftovers.push(spare.path);
        papers.shed |= !fits;
    }

    /// Writes a file of zeros, unless a retired segment comes that will do.
    fn prepare(&mut self) -> Result<(), WalError> {
        self.lock.check(&self.shared.dir)?;
        let path = self.spare_path();
        let made = self.write_zeros(&path);
        if !matches!(made, Ok(Some(_))) {
            self.desk.discard(path.clone());
        }
        let Some(file) = made? else { return Ok(()) };
        self.shared.lock().counters.prepared += 1;
        let bytes = self.shared.options.segment_bytes;
        self.keep(Spare { file, path, bytes, rest: Rest::Zeros, generation: 0 });
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
        let spares = std::mem::take(&mut self.desk.lock().spares);
        spares.into_iter().for_each(|spare| self.desk.discard(spare.path));
        self.clear();
    }
}
