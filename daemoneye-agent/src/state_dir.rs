//! The directory where the agent keeps everything it owns, and the lock that makes it the only one.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The names inside a state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// The directory is missing and cannot be made, or is something else than a directory.
    #[error(
        "the state directory {path} cannot be created: {source}; choose one you can write to with --state-dir or state.dir"
    )]
    Create {
        /// The directory asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is there, but the lock file in it cannot be opened for writing.
    #[error(
        "the state directory {path} cannot be written: {source}; run as its owner or choose another with --state-dir or state.dir"
    )]
    Write {
        /// The file that could not be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another agent works in this directory.
    #[error(
        "another daemoneye-agent (pid {}) already runs on {}; stop it first or give this one its own --state-dir",
        display_pid(*.holder), .root.display()
    )]
    Held {
        /// The state directory both want.
        root: PathBuf,
        /// Its process id, as far as the lock file tells.
        holder: Option<u32>,
    },
}

fn display_pid(pid: Option<u32>) -> String {
    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
}

impl StateDir {
    /// Names the directory without touching the disk.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the directory (mode 0700, with its parents) if it is not there and takes its lock.
    ///
    /// # Errors
    /// When the directory cannot be made or written, or another agent holds it.
    pub fn acquire(&self) -> Result<InstanceLock, StateDirError> {
        create_private(&self.root)
            .map_err(|source| StateDirError::Create { path: self.root.clone(), source })?;
        let path = self.root.join("agent.lock");
        let failed = |source| StateDirError::Write { path: path.clone(), source };
        let mut file = open_private(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateDirError::Held {
                    root: self.root.clone(),
                    holder: read_pid(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(InstanceLock { _file: file })
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The SQLite database of stored events.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("events.db")
    }

    /// The broker's socket, where no other was configured.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join(daemoneye_lib::paths::BROKER_SOCKET_FILE)
    }

    /// The directory of procmond's log, where no other was configured.
    #[must_use]
    pub fn procmond_log(&self) -> PathBuf {
        self.root.join(daemoneye_lib::paths::WAL_DIR)
    }
}

/// Held for as long as an agent runs; the system releases it however the agent ends.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

/// Makes `path` and its missing parents, for the owner only. One that exists is left as it is.
fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    if fs::metadata(path)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Opens `path` for reading and writing, creating it for the owner only, without emptying it.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The process id written in a lock file; the first 32 bytes are looked at and no more.
pub(crate) fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_has_one_owner() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::new(parent.path().join("a/b"));
        let lock = dir.acquire().unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(dir.root()), 0o700);
            assert_eq!(mode(&dir.root().join("agent.lock")), 0o600);
        }
        match dir.acquire() {
            Err(StateDirError::Held { holder, .. }) => {
                assert_eq!(holder, Some(std::process::id()));
            }
            other => panic!("a second owner was let in: {other:?}"),
        }
        drop(lock);
        dir.acquire().expect("a released lock is no obstacle");
    }

    #[test]
    fn a_path_below_a_file_is_refused_with_advice() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = StateDir::new(file.path().join("x")).acquire().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("--state-dir"), "{text}");
        let error = StateDir::new(file.path()).acquire().unwrap_err();
        assert!(matches!(error, StateDirError::Create { .. }), "{error}");
    }
}
