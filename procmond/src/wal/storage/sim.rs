//! A disk that forgets what was not synced, and fails when told to.
//!
//! It remembers of every 512-byte sector what is on the platter and which versions have been
//! written since, of every file which lengths, and of every directory which creations, renames and
//! removals. A [power cut](SimDisk::power_cut) keeps an arbitrary part of what was not synced, drawn
//! from a seed: any version of any sector, torn inside it too, any of the lengths, any of the
//! directory changes (each whole: a rename is atomic). Syncing a file does not make its name durable.
//!
//! A failed sync does what Linux does: the pages count as clean from then on, reads show them, and
//! no later sync writes them; what of them is on the platter is open. A sync that lies does the
//! same and says that all is well.
//!
//! A [snapshot](SimDisk::snapshot) is cheap, so that every operation can be taken for the last one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use super::faulty::Op;
use super::{Storage, StorageFile};

/// What a disk writes at once, or in part if the power goes.
pub(crate) const SECTOR_BYTES: usize = 512;

type Sector = Arc<[u8]>;
type FileId = u64;

/// How an operation goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power goes before it: this and everything after it fails until the power is back.
    PowerCut,
    /// Nothing is done. Of a sync: the pages count as clean.
    Error(io::ErrorKind),
    /// Nothing is done, and trying again helps.
    Interrupted,
    /// Of a write, at most this many bytes are done; at least one.
    Short(usize),
    /// Of a write, this many bytes are done, and then there is no room for the rest.
    ShortThenFull(usize),
    /// Of a sync: says that all is well and keeps nothing.
    Lie,
}

/// Which operations a fault counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Any,
    /// Everything that changes something or makes it durable.
    Change,
    Write,
    Sync,
    SyncDir,
    Name,
    Read,
    Allocate,
}

impl Which {
    pub(crate) fn counts(self, op: Op) -> bool {
        let changes = !matches!(op, Op::Read | Op::Open | Op::List | Op::Len);
        match self {
            Self::Any => true,
            Self::Change => changes,
            Self::Write => op == Op::Write,
            Self::Sync => op == Op::Sync,
            Self::SyncDir => op == Op::SyncDir,
            Self::Name => matches!(op, Op::Create | Op::Rename | Op::Unlink),
            Self::Read => matches!(op, Op::Read | Op::Open | Op::List | Op::Len),
            Self::Allocate => matches!(op, Op::Allocate | Op::SetLen),
        }
    }
}

/// A fault that is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Armed {
    pub(crate) which: Which,
    /// So many of them go well before.
    pub(crate) after: u32,
    pub(crate) fault: Fault,
}

/// A fault that has come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Struck {
    pub(crate) op: Op,
    pub(crate) path: PathBuf,
    pub(crate) fault: Fault,
}

/// An operation that changed something, or failed.
struct Done {
    nth: u64,
    op: Op,
    /// The name it was opened under.
    path: PathBuf,
    /// The name it was given.
    renamed: Option<PathBuf>,
    fault: Option<Fault>,
    by: Thread,
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { nth, op, path, renamed, fault, by } = self;
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        write!(f, "  {nth} {op:?} of {}", name(path))?;
        if let Some(to) = renamed {
            write!(f, " to {}", name(to))?;
        }
        write!(f, " by {}", by.name().unwrap_or("a producer"))?;
        fault.map_or(Ok(()), |fault| write!(f, ": {fault:?}"))
    }
}

/// Random numbers that are the same everywhere for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One file's bytes, as reads see them and as the platter has them.
#[derive(Debug, Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    platter: Vec<u8>,
    platter_len: u64,
    /// Versions of sectors that a sync would write, oldest first; the last is what reads see.
    dirty: BTreeMap<u64, Vec<Sector>>,
    /// Versions that count as clean and may never get to the platter.
    doomed: BTreeMap<u64, Vec<Sector>>,
    /// Lengths since the last sync.
    lengths: Vec<u64>,
    /// Lengths that a failed sync was for.
    doomed_lengths: Vec<u64>,
    /// Sectors that take room.
    allocated: BTreeSet<u64>,
}

impl Inode {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn sectors(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
        range.start / SECTOR_BYTES as u64..range.end.div_ceil(SECTOR_BYTES as u64)
    }

    /// The sector as reads see it.
    fn sector(bytes: &[u8], index: u64) -> Sector {
        let mut sector = [0; SECTOR_BYTES];
        let from = (index as usize * SECTOR_BYTES).min(bytes.len());
        let upto = (from + SECTOR_BYTES).min(bytes.len());
        sector[..upto - from].copy_from_slice(&bytes[from..upto]);
        Arc::from(sector.as_slice())
    }

    fn touch(&mut self, range: std::ops::Range<u64>) {
        for index in Self::sectors(range) {
            let sector = Self::sector(&self.bytes, index);
            self.dirty.entry(index).or_default().push(sector);
        }
    }

    fn set_len(&mut self, len: u64) {
        let before = self.len();
        if len == before {
            return;
        }
        self.bytes.resize(len as usize, 0);
        self.lengths.push(len);
        if len < before {
            self.allocated.retain(|&index| index < len.div_ceil(SECTOR_BYTES as u64));
            // What stood behind the new end must not come back when the file grows again.
            self.touch(len..before);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        if end > self.len() {
            self.bytes.resize(end as usize, 0);
            self.lengths.push(end);
        }
        self.bytes[offset as usize..end as usize].copy_from_slice(bytes);
        self.touch(offset..end);
        self.allocated.extend(Self::sectors(offset..end));
    }

    fn put_on_platter(&mut self, index: u64, sector: &[u8]) {
        let from = index as usize * SECTOR_BYTES;
        if self.platter.len() < from + SECTOR_BYTES {
            self.platter.resize(from + SECTOR_BYTES, 0);
        }
        self.platter[from..from + SECTOR_BYTES].copy_from_slice(sector);
    }

    fn sync(&mut self) {
        let changed = !self.dirty.is_empty() || !self.lengths.is_empty();
        for (index, versions) in std::mem::take(&mut self.dirty) {
            if let Some(last) = versions.last() {
                self.put_on_platter(index, last);
            }
            self.doomed.remove(&index);
        }
        if changed {
            self.platter_len = self.len();
            self.lengths.clear();
            self.doomed_lengths.clear();
        }
    }

    fn fail_to_sync(&mut self) {
        for (index, versions) in std::mem::take(&mut self.dirty) {
            self.doomed.entry(index).or_default().extend(versions);
        }
        self.doomed_lengths.append(&mut self.lengths);
    }

    /// What is found after a power cut.
    fn survivor(&self, dice: &mut Dice) -> Self {
        let mut platter = self.platter.clone();
        let luck = dice.below(6);
        let mut sectors: BTreeMap<u64, Vec<Sector>> = self.doomed.clone();
        for (index, versions) in &self.dirty {
            sectors.entry(*index).or_default().extend(versions.iter().cloned());
        }
        let count = sectors.len() as u64;
        let edge = if count == 0 { 0 } else { dice.below(count + 1) };
        for (nth, (index, versions)) in sectors.into_iter().enumerate() {
            let old = Self::sector(&platter, index);
            let newest = versions.len();
            let version = match luck {
                0 => 0,
                1 => newest,
                // In the file's order, as most disks do.
                2 => newest * usize::from((nth as u64) < edge),
                // The other way round, as none promises not to.
                3 => newest * usize::from((nth as u64) >= edge),
                _ => dice.below(newest as u64 + 1) as usize,
            };
            let pick = |version: usize| if version == 0 { &old } else { &versions[version - 1] };
            let mut sector = pick(version).to_vec();
            if luck == 5 && dice.one_in(4) {
                let other = pick(dice.below(newest as u64 + 1) as usize);
                let cut = dice.below(SECTOR_BYTES as u64 + 1) as usize;
                sector[cut..].copy_from_slice(&other[cut..]);
            }
            let from = index as usize * SECTOR_BYTES;
            if platter.len() < from + SECTOR_BYTES {
                platter.resize(from + SECTOR_BYTES, 0);
            }
            platter[from..from + SECTOR_BYTES].copy_from_slice(&sector);
        }
        let mut lengths = vec![self.platter_len];
        lengths.extend(&self.doomed_lengths);
        lengths.extend(&self.lengths);
        let len = match luck {
            0 => lengths[0],
            1 => lengths[lengths.len() - 1],
            _ => lengths[dice.below(lengths.len() as u64) as usize],
        };
        platter.resize(len as usize, 0);
        let allocated = self
            .allocated
            .iter()
            .copied()
            .filter(|&index| index < len.div_ceil(SECTOR_BYTES as u64))
            .collect();
        Self { bytes: platter.clone(), platter, platter_len: len, allocated, ..Self::default() }
    }
}

/// A change to a directory that is not durable yet.
#[derive(Debug, Clone)]
enum Change {
    Link { path: PathBuf, file: FileId },
    Rename { from: PathBuf, to: PathBuf, file: FileId },
    Unlink { path: PathBuf, file: FileId },
}

impl Change {
    /// Makes it, if what it was made on is there.
    fn make(&self, names: &mut BTreeMap<PathBuf, FileId>) {
        match self {
            Self::Link { path, file } => {
                names.insert(path.clone(), *file);
            }
            Self::Rename { from, to, file } => {
                if names.get(from) == Some(file) {
                    names.remove(from);
                }
                names.insert(to.clone(), *file);
            }
            Self::Unlink { path, file } => {
                if names.get(path) == Some(file) {
                    names.remove(path);
                }
            }
        }
    }

    /// The directory whose sync makes it durable.
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Link { path, .. } | Self::Unlink { path, .. } => path.parent(),
            Self::Rename { to, .. } => to.parent(),
        }
    }
}

/// All there is on a disk. Files are shared between snapshots until one is changed.
#[derive(Debug, Clone, Default)]
struct Contents {
    files: HashMap<FileId, Arc<Inode>>,
    names: BTreeMap<PathBuf, FileId>,
    platter_names: BTreeMap<PathBuf, FileId>,
    changes: Vec<Change>,
    next_file: FileId,
}

impl Contents {
    fn file(&mut self, id: FileId) -> io::Result<&mut Inode> {
        let file = self.files.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::make_mut(file))
    }

    fn used_sectors(&self) -> u64 {
        let linked: BTreeSet<_> = self.names.values().collect();
        linked
            .into_iter()
            .filter_map(|id| self.files.get(id))
            .map(|file| file.allocated.len() as u64)
            .sum()
    }

    fn power_cut(&self, dice: &mut Dice) -> Self {
        let mut names = self.platter_names.clone();
        let luck = dice.below(4);
        let edge = dice.below(self.changes.len() as u64 + 1) as usize;
        for (nth, change) in self.changes.iter().enumerate() {
            let kept = match luck {
                0 => false,
                1 => true,
                // A journal keeps the order, others need not.
                2 => nth < edge,
                _ => dice.one_in(2),
            };
            if kept {
                change.make(&mut names);
            }
        }
        let files = names
            .values()
            .filter_map(|id| Some((*id, Arc::new(self.files.get(id)?.survivor(dice)))))
            .collect();
        Self {
            files,
            platter_names: names.clone(),
            names,
            changes: Vec::new(),
            next_file: self.next_file,
        }
    }
}

/// Called before every operation with how many there were before it.
type Watcher = Arc<dyn Fn(u64, Op, &Path) + Send + Sync>;

struct Disk {
    contents: Contents,
    /// Handles of an earlier life are dead.
    life: u64,
    powered: bool,
    capacity_sectors: u64,
    armed: Vec<Armed>,
    struck: Vec<Struck>,
    operations: u64,
    watcher: Option<Watcher>,
    trace: Vec<Done>,
    /// Decides which threads lose their turn before an operation.
    unrest: Option<Dice>,
    /// Files that nobody may write to under their present name, and the writes there were.
    sealed: BTreeSet<FileId>,
    violations: Vec<String>,
    read_bytes_max: usize,
}

/// The disk; clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk {
    disk: Arc<Mutex<Disk>>,
}

impl SimDisk {
    pub(crate) fn new() -> Self {
        Self::with(Contents::default())
    }

    fn with(contents: Contents) -> Self {
        let disk = Disk {
            contents,
            life: 0,
            powered: true,
            capacity_sectors: u64::MAX,
            armed: Vec::new(),
            struck: Vec::new(),
            operations: 0,
            watcher: None,
            trace: Vec::new(),
            unrest: None,
            sealed: BTreeSet::new(),
            violations: Vec::new(),
            read_bytes_max: 0,
        };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk with what is on this one now, and no faults to come.
    pub(crate) fn snapshot(&self) -> Self {
        Self::with(self.lock().contents.clone())
    }

    pub(crate) fn arm(&self, armed: Armed) {
        self.lock().armed.push(armed);
    }

    /// Faults that have not come about do not any more.
    pub(crate) fn disarm(&self) {
        self.lock().armed.clear();
    }

    /// The faults that have come about since this was asked last.
    pub(crate) fn take_struck(&self) -> Vec<Struck> {
        std::mem::take(&mut self.lock().struck)
    }

    pub(crate) fn is_powered(&self) -> bool {
        self.lock().powered
    }

    /// What may be used from now on, in bytes.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.lock().capacity_sectors = bytes / SECTOR_BYTES as u64;
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.lock().contents.used_sectors() * SECTOR_BYTES as u64
    }

    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub(crate) fn watch(&self, watcher: Option<Watcher>) {
        self.lock().watcher = watcher;
    }

    /// The last changes that were asked for before this operation, a line each.
    pub(crate) fn trace(&self, before: u64) -> String {
        const LINES: usize = 40;
        let disk = self.lock();
        let upto = disk.trace.partition_point(|done| done.nth < before);
        let last = &disk.trace[upto.saturating_sub(LINES)..upto];
        last.iter().map(|done| format!("{done}\n")).collect()
    }

    /// From now on threads lose their turn before some operations, so that others come in between
    /// where they seldom do.
    pub(crate) fn unsettle(&self, seed: u64) {
        self.lock().unrest = Some(Dice::new(seed));
    }

    /// Lets the other threads go first, if that is drawn.
    fn lose_turn(&self) {
        let drawn = self.lock().unrest.as_mut().map(|dice| (dice.below(16), dice.below(200)));
        match drawn {
            Some((0, micros)) => thread::sleep(Duration::from_micros(micros)),
            Some((1..=4, _)) => thread::yield_now(),
            _ => {}
        }
    }

    /// The longest read that was asked for.
    pub(crate) fn read_bytes_max(&self) -> usize {
        self.lock().read_bytes_max
    }

    /// From now on nothing may be written to the files there are but what they hold already, unless
    /// they are renamed before.
    pub(crate) fn seal(&self) {
        let mut disk = self.lock();
        disk.sealed = disk.contents.names.values().copied().collect();
    }

    /// What was written all the same.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// The power goes, a part of what was not synced survives, and the power is back.
    pub(crate) fn power_cut(&self, seed: u64) {
        let mut disk = self.lock();
        disk.contents = disk.contents.power_cut(&mut Dice::new(seed));
        disk.revive();
    }

    /// Changes what is on the platter, and what reads see of it, behind everybody's back.
    pub(crate) fn hurt(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock();
        let Some(&id) = disk.contents.names.get(path) else { return };
        let Some(file) = disk.contents.files.get(&id) else { return };
        let mut bytes = file.bytes.clone();
        change(&mut bytes);
        let platter_len = bytes.len() as u64;
        let allocated = Inode::sectors(0..platter_len).collect();
        let hurt =
            Inode { platter: bytes.clone(), bytes, platter_len, allocated, ..Inode::default() };
        disk.contents.files.insert(id, Arc::new(hurt));
    }

    /// All processes are killed; the system goes on, and knows what it knew.
    pub(crate) fn kill(&self) {
        self.lock().revive();
    }

    pub(crate) fn names(&self, dir: &Path) -> Vec<String> {
        self.lock().contents.list(dir)
    }

    /// A file's bytes as reads see them.
    pub(crate) fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.lock();
        let id = disk.contents.names.get(path)?;
        Some(disk.contents.files.get(id)?.bytes.clone())
    }

    /// Counts an operation, and says what is wrong with it.
    fn begin(
        &self,
        life: Option<u64>,
        op: Op,
        path: &Path,
    ) -> io::Result<(MutexGuard<'_, Disk>, Option<Fault>)> {
        self.lose_turn();
        let watcher = {
            let disk = self.lock();
            let alive = disk.powered && life.is_none_or(|life| life == disk.life);
            disk.watcher.clone().filter(|_| alive).map(|watcher| (watcher, disk.operations))
        };
        // Without the lock: it takes snapshots.
        if let Some((watcher, operations)) = watcher {
            watcher(operations, op, path);
        }
        let mut disk = self.lock();
        if !disk.powered || life.is_some_and(|life| life != disk.life) {
            return Err(io::Error::other("the power is out"));
        }
        disk.operations += 1;
        let mut fault = None;
        disk.armed.retain_mut(|armed| {
            if fault.is_some() || !armed.which.counts(op) {
                return true;
            }
            if armed.after > 0 {
                armed.after -= 1;
                return true;
            }
            fault = Some(armed.fault);
            false
        });
        if fault.is_some() || Which::Change.counts(op) {
            let (nth, path, by) = (disk.operations - 1, path.to_owned(), thread::current());
            disk.trace.push(Done { nth, op, path, renamed: None, fault, by });
        }
        if let Some(fault) = fault {
            disk.struck.push(Struck { op, path: path.to_owned(), fault });
        }
        match fault {
            Some(Fault::PowerCut) => {
                disk.powered = false;
                Err(io::Error::other("the power is out"))
            }
            Some(Fault::Interrupted) if matches!(op, Op::Read | Op::Write) => {
                Err(io::ErrorKind::Interrupted.into())
            }
            Some(Fault::Error(kind)) if op != Op::Sync => Err(kind.into()),
            fault => Ok((disk, fault)),
        }
    }
}

impl Disk {
    fn revive(&mut self) {
        self.life += 1;
        self.powered = true;
        self.armed.clear();
        self.sealed.clear();
    }
}

impl Contents {
    fn list(&self, dir: &Path) -> Vec<String> {
        self.names
            .keys()
            .filter(|path| path.parent() == Some(dir))
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect()
    }
}

impl Storage for SimDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.begin(None, Op::CreateDir, dir).map(drop)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let (mut disk, _) = self.begin(None, Op::Create, path)?;
        let id = match disk.contents.names.get(path) {
            Some(&id) => {
                disk.contents.file(id)?.set_len(0);
                id
            }
            None => {
                let contents = &mut disk.contents;
                let id = contents.next_file;
                contents.next_file += 1;
                contents.files.insert(id, Arc::default());
                contents.names.insert(path.to_owned(), id);
                contents.changes.push(Change::Link { path: path.to_owned(), file: id });
                id
            }
        };
        Ok(self.handle(&disk, id, path, true))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn StorageFile>> {
        let (disk, _) = self.begin(None, Op::Open, path)?;
        let id = *disk.contents.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&disk, id, path, write))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut disk, _) = self.begin(None, Op::Rename, from)?;
        if let Some(done) = disk.trace.last_mut() {
            done.renamed = Some(to.to_owned());
        }
        let contents = &mut disk.contents;
        let file = contents.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        contents.names.insert(to.to_owned(), file);
        contents.changes.push(Change::Rename { from: from.to_owned(), to: to.to_owned(), file });
        disk.sealed.remove(&file);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let (mut disk, _) = self.begin(None, Op::Unlink, path)?;
        let contents = &mut disk.contents;
        let file = contents.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        contents.changes.push(Change::Unlink { path: path.to_owned(), file });
        Ok(())
    }

    fn overwrites_in_place(&self, _dir: &Path) -> bool {
        true
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let (disk, _) = self.begin(None, Op::List, dir)?;
        Ok(disk.contents.list(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let (mut disk, fault) = self.begin(None, Op::SyncDir, dir)?;
        if fault == Some(Fault::Lie) {
            return Ok(());
        }
        let contents = &mut disk.contents;
        let (done, left): (Vec<_>, Vec<_>) = std::mem::take(&mut contents.changes)
            .into_iter()
            .partition(|change| change.dir() == Some(dir));
        done.iter().for_each(|change| change.make(&mut contents.platter_names));
        contents.changes = left;
        Ok(())
    }
}

impl SimDisk {
    fn handle(&self, disk: &Disk, id: FileId, path: &Path, write: bool) -> Box<dyn StorageFile> {
        let (disk, life) = (self.clone(), disk.life);
        Box::new(SimFile { disk, id, life, path: path.to_owned(), write })
    }
}

struct SimFile {
    disk: SimDisk,
    id: FileId,
    life: u64,
    /// The name it was opened under, to say which.
    path: PathBuf,
    write: bool,
}

impl SimFile {
    fn begin(&self, op: Op) -> io::Result<(MutexGuard<'_, Disk>, Option<Fault>)> {
        let changes = matches!(op, Op::Write | Op::SetLen | Op::Allocate);
        if changes && !self.write {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.begin(Some(self.life), op, &self.path)
    }

    /// Of the sectors in a range, how many bytes from its start there is room for.
    fn room_for(&self, disk: &mut Disk, offset: u64, bytes: usize) -> io::Result<usize> {
        let mut free = disk.capacity_sectors.saturating_sub(disk.contents.used_sectors());
        let file = disk.contents.file(self.id)?;
        let end = offset + bytes as u64;
        for index in Inode::sectors(offset..end) {
            if !file.allocated.contains(&index) {
                if free == 0 {
                    return Ok((index * SECTOR_BYTES as u64).saturating_sub(offset) as usize);
                }
                free -= 1;
            }
        }
        Ok(bytes)
    }
}

impl StorageFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (mut disk, fault) = self.begin(Op::Read)?;
        disk.read_bytes_max = disk.read_bytes_max.max(buffer.len());
        let file = disk.contents.file(self.id)?;
        let from = offset.min(file.len()) as usize;
        let mut got = buffer.len().min(file.bytes.len() - from);
        if let Some(Fault::Short(bytes)) = fault {
            got = got.min(bytes.max(1));
        }
        buffer[..got].copy_from_slice(&file.bytes[from..from + got]);
        Ok(got)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let (mut disk, fault) = self.begin(Op::Write)?;
        let (from, upto) = (offset as usize, offset as usize + bytes.len());
        let same = disk.contents.file(self.id)?.bytes.get(from..upto) == Some(bytes);
        if !same && disk.sealed.contains(&self.id) {
            let said = format!("{} bytes at {offset} of the old {:?}", bytes.len(), self.path);
            disk.violations.push(said);
        }
        let asked = match fault {
            Some(Fault::Short(most) | Fault::ShortThenFull(most)) => bytes.len().min(most.max(1)),
            _ => bytes.len(),
        };
        let done = self.room_for(&mut disk, offset, asked)?;
        if done == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.contents.file(self.id)?.write(&bytes[..done], offset);
        if matches!(fault, Some(Fault::ShortThenFull(_))) {
            // As when the caller had asked for the rest at once.
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut disk, fault) = self.begin(Op::Sync)?;
        let file = disk.contents.file(self.id)?;
        match fault {
            Some(Fault::Error(kind)) => {
                file.fail_to_sync();
                Err(kind.into())
            }
            Some(Fault::Lie) => {
                file.fail_to_sync();
                Ok(())
            }
            _ => {
                file.sync();
                Ok(())
            }
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let (mut disk, _) = self.begin(Op::SetLen)?;
        disk.contents.file(self.id)?.set_len(bytes);
        Ok(())
    }

    fn has_name(&self) -> io::Result<bool> {
        let (disk, _) = self.begin(Op::Len)?;
        Ok(disk.contents.names.values().any(|&id| id == self.id))
    }

    fn len(&self) -> io::Result<u64> {
        let (mut disk, _) = self.begin(Op::Len)?;
        Ok(disk.contents.file(self.id)?.len())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let (mut disk, _) = self.begin(Op::Allocate)?;
        if self.room_for(&mut disk, 0, bytes as usize)? < bytes as usize {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = disk.contents.file(self.id)?;
        if bytes > file.len() {
            file.set_len(bytes);
        }
        file.allocated.extend(Inode::sectors(0..bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> &'static Path {
        Path::new("/sim")
    }

    fn file(name: &str) -> PathBuf {
        dir().join(name)
    }

    fn written(disk: &SimDisk, name: &str, bytes: &[u8]) -> Box<dyn StorageFile> {
        let file = disk.create(&file(name)).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// Everything that can be found after a power cut, over many seeds.
    fn outcomes<T: Ord>(disk: &SimDisk, see: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
        (0..300)
            .map(|seed| {
                let cut = disk.snapshot();
                cut.power_cut(seed);
                see(&cut)
            })
            .collect()
    }

    #[test]
    fn what_was_synced_under_a_synced_name_survives() {
        let disk = SimDisk::new();
        let handle = written(&disk, "a", &[7; 1300]);
        handle.sync_data().unwrap();
        disk.sync_dir(dir()).unwrap();
        assert_eq!(outcomes(&disk, |d| d.bytes(&file("a"))), [Some(vec![7; 1300])].into());
        disk.power_cut(1);
        assert!(handle.len().is_err(), "a handle does not survive");
    }

    #[test]
    fn a_name_survives_only_its_directorys_sync() {
        let disk = SimDisk::new();
        written(&disk, "a", b"x").sync_data().unwrap();
        let seen = outcomes(&disk, |d| d.bytes(&file("a")));
        assert_eq!(seen, [None, Some(b"x".to_vec())].into());
        disk.sync_dir(dir()).unwrap();
        disk.rename(&file("a"), &file("b")).unwrap();
        let seen = outcomes(&disk, |d| d.names(dir()));
        assert_eq!(seen, [vec!["a".to_owned()], vec!["b".to_owned()]].into());
    }

    #[test]
    fn unsynced_sectors_survive_in_any_part_and_torn() {
        let disk = SimDisk::new();
        let handle = written(&disk, "a", &[1; 1024]);
        handle.sync_data().unwrap();
        disk.sync_dir(dir()).unwrap();
        handle.write_all_at(&[2; 1024], 0).unwrap();
        let seen = outcomes(&disk, |d| {
            let bytes = d.bytes(&file("a")).unwrap();
            assert!(bytes.iter().all(|byte| [1, 2].contains(byte)));
            (bytes[0], bytes[511], bytes[512], bytes[1023])
        });
        for whole in [(1, 1, 1, 1), (2, 2, 2, 2), (1, 1, 2, 2), (2, 2, 1, 1)] {
            assert!(seen.contains(&whole), "{whole:?}");
        }
        assert!(seen.iter().any(|&(a, b, ..)| a != b), "torn inside a sector");
    }

    #[test]
    fn unsynced_lengths_survive_in_any_part() {
        let disk = SimDisk::new();
        let handle = written(&disk, "a", &[1; 10]);
        handle.sync_data().unwrap();
        disk.sync_dir(dir()).unwrap();
        handle.write_all_at(&[2; 1000], 10).unwrap();
        handle.set_len(500).unwrap();
        let seen = outcomes(&disk, |d| {
            let bytes = d.bytes(&file("a")).unwrap();
            assert_eq!(bytes[..10], [1; 10]);
            bytes.len()
        });
        assert_eq!(seen, [10, 500, 1010].into());
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_a_later_one() {
        for fault in [Fault::Error(io::ErrorKind::Other), Fault::Lie] {
            let disk = SimDisk::new();
            let handle = written(&disk, "a", &[1; 512]);
            disk.sync_dir(dir()).unwrap();
            disk.arm(Armed { which: Which::Sync, after: 0, fault });
            assert_eq!(handle.sync_data().is_ok(), fault == Fault::Lie);
            handle.sync_data().unwrap();
            assert_eq!(disk.bytes(&file("a")), Some(vec![1; 512]), "reads show it");
            let seen = outcomes(&disk, |d| d.bytes(&file("a")).unwrap());
            assert!(seen.len() > 1, "and it may be lost");
            handle.write_all_at(&[3; 512], 0).unwrap();
            handle.sync_data().unwrap();
            let seen = outcomes(&disk, |d| d.bytes(&file("a")).unwrap()[..1].to_vec());
            assert!(seen.contains(&vec![3]), "{seen:?}");
        }
    }

    #[test]
    fn a_full_disk_takes_what_there_is_room_for() {
        let disk = SimDisk::new();
        disk.set_capacity(1024);
        let handle = disk.create(&file("a")).unwrap();
        assert_eq!(handle.write_at(&[1; 1200], 100).unwrap(), 924);
        let error = handle.write_at(&[1; 1], 1024).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(handle.allocate(1025).is_err());
        disk.unlink(&file("a")).unwrap();
        written(&disk, "b", &[1; 1024]);
        assert_eq!(disk.used_bytes(), 1024);
    }

    #[test]
    fn faults_come_when_they_were_asked_for() {
        let disk = SimDisk::new();
        let handle = written(&disk, "a", &[1; 100]);
        disk.arm(Armed { which: Which::Write, after: 1, fault: Fault::Short(3) });
        disk.arm(Armed { which: Which::Read, after: 0, fault: Fault::Interrupted });
        disk.arm(Armed { which: Which::SyncDir, after: 0, fault: Fault::PowerCut });
        assert_eq!(handle.write_at(&[2; 10], 0).unwrap(), 10);
        assert_eq!(handle.write_at(&[2; 10], 0).unwrap(), 3);
        let error = handle.read_at(&mut [0; 4], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert_eq!(handle.read_at(&mut [0; 4], 0).unwrap(), 4);
        disk.sync_dir(dir()).unwrap_err();
        handle.sync_data().unwrap_err();
        disk.kill();
        handle.sync_data().unwrap_err();
        assert_eq!(disk.bytes(&file("a")).unwrap().len(), 100, "the system did not go down");
        assert_eq!(disk.take_struck().len(), 3);
        let trace = disk.trace(u64::MAX);
        let lines: Vec<_> = trace.lines().map(str::trim).collect();
        assert!(lines[0].starts_with("0 Create of a by ") && lines[3].ends_with(": Short(3)"));
        assert!(lines.last().is_some_and(|last| last.starts_with("6 SyncDir of sim by ")));
        assert_eq!(disk.trace(3).lines().count(), 3);
        disk.kill();
        disk.rename(&file("a"), &file("b")).unwrap();
        assert!(disk.trace(u64::MAX).contains("Rename of a to b by "));
    }

    #[test]
    fn writing_to_a_sealed_file_is_noticed() {
        let disk = SimDisk::new();
        written(&disk, "a", &[1; 100]);
        disk.seal();
        let handle = disk.open(&file("a"), true).unwrap();
        handle.set_len(50).unwrap();
        assert!(disk.violations().is_empty());
        handle.write_all_at(b"x", 0).unwrap();
        assert_eq!(disk.violations().len(), 1);
        disk.seal();
        disk.rename(&file("a"), &file("b")).unwrap();
        disk.open(&file("b"), true).unwrap().write_all_at(b"y", 0).unwrap();
        assert_eq!(disk.violations().len(), 1, "renamed, it is another file");
    }
}
