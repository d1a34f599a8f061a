//! One process at a time: the lock file of a log directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use daemoneye_lib::paths::WAL_LOCK_FILE;

use super::WalError;
use super::storage::open_plain;

/// Holds the directory until dropped. The system releases it when its holder dies, however it
/// dies, so a file left behind is no obstacle; it is never removed, because removing it would let
/// two processes hold two files of one name.
pub(crate) struct DirLock {
    file: File,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child that another thread is just starting shares the
        // open file until it executes its program.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "cannot unlock the log directory");
        }
    }
}

impl DirLock {
    pub(crate) fn take(dir: &Path) -> Result<Self, WalError> {
        let path = dir.join(WAL_LOCK_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = open_plain(&mut options, &path)
            .map_err(|source| WalError::io("open the lock", &path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(WalError::LockHeld { dir: dir.to_owned(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(source)) => {
                return Err(WalError::io("lock", &path, source));
            }
        }
        write_pid(&mut file, &path);
        Ok(Self { file })
    }

    /// Checks that the lock held is still the directory's. If the directory was removed and made
    /// again, nobody is kept out of it by the old one, and what has become of the records that
    /// stood in it only an opening can say.
    pub(crate) fn check(&self, dir: &Path) -> Result<(), WalError> {
        if is_named(&self.file, &dir.join(WAL_LOCK_FILE)) {
            return Ok(());
        }
        let source = std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "the log directory was removed or replaced; restart to begin a new log there",
        );
        Err(WalError::io("write in", dir, source))
    }
}

/// Only a help for whoever finds the directory locked: a full disk is no reason to fail.
fn write_pid(file: &mut File, path: &Path) {
    let written = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::warn!(?path, %error, "cannot write our pid into the lock file");
    }
}

/// Whether this is the file of that name.
#[cfg(unix)]
fn is_named(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// An open file cannot be removed here.
#[cfg(not(unix))]
fn is_named(_file: &File, _path: &Path) -> bool {
    true
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        let Err(WalError::LockHeld { pid, .. }) = DirLock::take(dir.path()) else {
            panic!("the lock was given twice");
        };
        assert_eq!(pid, Some(std::process::id()));
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_file_left_by_the_dead_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(WAL_LOCK_FILE), "4194304\n").unwrap();
        let _lock = DirLock::take(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(WAL_LOCK_FILE)).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
    }
}
