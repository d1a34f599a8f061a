//! Small files of `/proc`, read without allocating.

use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{is_gone, is_refused, unreadable};
use crate::source::SourceError;

/// Holds all of `stat` and `status`; what is longer is read in parts.
const READ_BYTES: usize = 4096;

/// The files below one mount of `/proc`.
pub(super) struct Files {
    root: PathBuf,
    dir: Arc<OwnedFd>,
    /// Below `root`: what was read last.
    path: String,
    buffer: Vec<u8>,
    /// How much of the buffer was read last.
    length: usize,
}

impl Files {
    pub(super) fn open(root: PathBuf) -> Result<Self, SourceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&root, flags, Mode::empty())
            .map_err(|error| unreadable(&root, error.into()))?;
        let buffer = vec![0; READ_BYTES];
        Ok(Self { root, dir: Arc::new(dir), path: String::new(), buffer, length: 0 })
    }

    /// The directory, to be listed from its beginning.
    pub(super) fn list(&self) -> Result<Arc<OwnedFd>, SourceError> {
        rustix::fs::seek(&self.dir, SeekFrom::Start(0))
            .map_err(|error| self.unreadable_root(error))?;
        Ok(Arc::clone(&self.dir))
    }

    pub(super) fn path_of(&self, pid: u32) -> PathBuf {
        self.root.join(pid.to_string())
    }

    /// A file of a process as it is now; `None` if the process is gone.
    ///
    /// A failure that says nothing about the process, such as too many open files, is an error:
    /// taken for an end it would make up stops.
    pub(super) fn read(&mut self, pid: u32, name: &str) -> Result<Option<&[u8]>, SourceError> {
        self.name(pid, name);
        self.read_path()
    }

    /// The same; `None` also if it may not be read, as under `hidepid`.
    pub(super) fn read_if_allowed(
        &mut self,
        pid: u32,
        name: &str,
    ) -> Result<Option<&[u8]>, SourceError> {
        match self.read(pid, name) {
            Err(error) if is_refused(&error) => Ok(None),
            read => read,
        }
    }

    /// A file of a process, to be read again and again.
    pub(super) fn open_of(&mut self, pid: u32, name: &str) -> Result<OwnedFd, Errno> {
        self.name(pid, name);
        open_at(&self.dir, &self.path)
    }

    /// Reads a file of a process, `most` bytes of it; [`Self::content`] is what it holds.
    pub(super) fn fill(&mut self, pid: u32, name: &str, most: usize) -> Result<(), Errno> {
        self.name(pid, name);
        self.length = read_at(&self.dir, &self.path, &mut self.buffer, most)?;
        Ok(())
    }

    /// Reads where a link of a process leads; [`Self::content`] is that.
    pub(super) fn follow(&mut self, pid: u32, name: &str) -> Result<(), Errno> {
        self.name(pid, name);
        // The kernel gives no path of a page or more.
        self.length = rustix::fs::readlinkat_raw(&self.dir, &*self.path, &mut *self.buffer)?;
        Ok(())
    }

    /// What was read last.
    pub(super) fn content(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Why something could not be read, with the path.
    pub(super) fn failed(&self, error: Errno) -> (PathBuf, io::Error) {
        (self.root.join(&self.path), error.into())
    }

    /// A file of the kernel.
    pub(super) fn read_own(&mut self, name: &str) -> Result<Option<&[u8]>, SourceError> {
        name.clone_into(&mut self.path);
        self.read_path()
    }

    /// What was read last has not the documented form.
    pub(super) fn strange(&self) -> SourceError {
        SourceError::NotAProcessTable { path: self.root.join(&self.path) }
    }

    pub(super) fn unreadable_root(&self, error: Errno) -> SourceError {
        unreadable(&self.root, error.into())
    }

    fn read_path(&mut self) -> Result<Option<&[u8]>, SourceError> {
        match read_at(&self.dir, &self.path, &mut self.buffer, usize::MAX) {
            Ok(length) => Ok(Some(&self.buffer[..length])),
            Err(error) => match error.into() {
                error if is_gone(&error) => Ok(None),
                error => Err(unreadable(&self.root.join(Path::new(&self.path)), error)),
            },
        }
    }

    fn name(&mut self, pid: u32, name: &str) {
        self.path.clear();
        let _ = write!(self.path, "{pid}/{name}");
    }
}

fn open_at(dir: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a file to its end, or `most` bytes, and says how many bytes of the buffer that is.
fn read_at(dir: &OwnedFd, path: &str, buffer: &mut Vec<u8>, most: usize) -> Result<usize, Errno> {
    let file = open_at(dir, path)?;
    let mut length = 0;
    loop {
        length += rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer[length..]))?;
        // The kernel makes such a file in one go: what it gives short of the room is all.
        if length < buffer.len() || length >= most {
            return Ok(length.min(most));
        }
        buffer.resize(length * 2, 0);
    }
}
