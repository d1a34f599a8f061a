//! Real files whose operations fail when a test says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{OsStorage, Storage, StorageFile};

/// What the log asked of the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    CreateDir,
    Create,
    Open,
    Rename,
    Unlink,
    List,
    SyncDir,
    Read,
    Write,
    Sync,
    SetLen,
    Len,
    Allocate,
}

/// How it fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Nothing is done.
    Error(io::ErrorKind),
    /// Of a write, this many bytes are done.
    Short(usize, io::ErrorKind),
}

type Plan = dyn FnMut(Op, &Path) -> Option<Fault> + Send;

/// Decides over every operation.
#[derive(Clone)]
pub(crate) struct Faulty {
    plan: Arc<Mutex<Box<Plan>>>,
}

impl Faulty {
    pub(crate) fn new(plan: impl FnMut(Op, &Path) -> Option<Fault> + Send + 'static) -> Self {
        Self { plan: Arc::new(Mutex::new(Box::new(plan))) }
    }

    /// Works from now on.
    pub(crate) fn heal(&self) {
        self.replan(|_, _| None);
    }

    pub(crate) fn replan(&self, plan: impl FnMut(Op, &Path) -> Option<Fault> + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }

    fn ask(&self, op: Op, path: &Path) -> io::Result<()> {
        match (self.plan.lock().unwrap())(op, path) {
            None => Ok(()),
            Some(Fault::Error(kind) | Fault::Short(_, kind)) => Err(kind.into()),
        }
    }

    fn wrap(&self, path: &Path, file: Box<dyn StorageFile>) -> Box<dyn StorageFile> {
        Box::new(FaultyFile { storage: self.clone(), path: path.to_owned(), file })
    }
}

impl Storage for Faulty {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.ask(Op::CreateDir, dir)?;
        OsStorage.create_dir(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        self.ask(Op::Create, path)?;
        Ok(self.wrap(path, OsStorage.create(path)?))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn StorageFile>> {
        self.ask(Op::Open, path)?;
        Ok(self.wrap(path, OsStorage.open(path, write)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask(Op::Rename, from)?;
        OsStorage.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.ask(Op::Unlink, path)?;
        OsStorage.unlink(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.ask(Op::List, dir)?;
        OsStorage.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.ask(Op::SyncDir, dir)?;
        OsStorage.sync_dir(dir)
    }

    fn overwrites_in_place(&self, dir: &Path) -> bool {
        OsStorage.overwrites_in_place(dir)
    }
}

struct FaultyFile {
    storage: Faulty,
    path: PathBuf,
    file: Box<dyn StorageFile>,
}

impl StorageFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.storage.ask(Op::Read, &self.path)?;
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let fault = (self.storage.plan.lock().unwrap())(Op::Write, &self.path);
        match fault {
            None => self.file.write_at(bytes, offset),
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Short(done, kind)) => {
                self.file.write_all_at(&bytes[..done.min(bytes.len())], offset)?;
                Err(kind.into())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.storage.ask(Op::Sync, &self.path)?;
        self.file.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.storage.ask(Op::SetLen, &self.path)?;
        self.file.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        self.storage.ask(Op::Len, &self.path)?;
        self.file.len()
    }

    fn has_name(&self) -> io::Result<bool> {
        self.file.has_name()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.storage.ask(Op::Allocate, &self.path)?;
        self.file.allocate(bytes)
    }
}
