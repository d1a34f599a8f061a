//! Who holds a collector's log.

use std::fs::{OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use crate::state_dir::read_pid;

/// What the lock file of a log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogLock {
    /// Nobody has the log open.
    Free,
    /// A living process has it, with the process id it wrote down.
    Held(Option<u32>),
}

/// Looks whether a living process holds the lock at `path`.
///
/// A free lock is held by us for the moment between the question and the answer, so a program
/// that opens the log at that very moment finds it taken: ask only when the answer is needed.
pub(super) fn probe(path: &Path) -> io::Result<LogLock> {
    // Not created when missing: the directory is procmond's, with its own rules for modes.
    let mut file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LogLock::Free),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(LogLock::Free),
        Err(TryLockError::WouldBlock) => Ok(LogLock::Held(read_pid(&mut file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_lock_counts_only_while_its_holder_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.lock");
        assert_eq!(probe(&path).unwrap(), LogLock::Free);
        assert!(!path.exists(), "asking must not create the file");

        let mut holder = std::fs::File::create(&path).unwrap();
        writeln!(holder, "4711").unwrap();
        assert_eq!(probe(&path).unwrap(), LogLock::Free, "a leftover file is no holder");
        holder.try_lock().unwrap();
        assert_eq!(probe(&path).unwrap(), LogLock::Held(Some(4711)));
        drop(holder);
        assert_eq!(probe(&path).unwrap(), LogLock::Free);
    }
}
