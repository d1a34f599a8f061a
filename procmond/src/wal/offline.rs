//! The log as files: looking into it, reading it out, mending it, without writing events to it.
//!
//! [`inspect`](super::inspect()), [`read_files`] and [`find_record`] take no lock and change
//! nothing: they may be used on a live directory, on a damaged one, and on archives. [`repair`] and
//! [`compact`] write and hold the directory while they do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daemoneye_lib::paths::WAL_LOCK_FILE;

use super::WalError;
use super::lock::DirLock;

pub(crate) mod catalogue;
mod compact;
mod read;
mod repair;
mod rewrite;

pub use compact::{Compaction, compact};
pub use read::{Field, FoundRecord, LogEntry, find_record, read_files};
pub use repair::{Repair, RepairAction, repair};

/// Takes the lock of a log directory that anybody may have made: the lock file is written to, so it
/// has to be one.
fn lock(dir: &Path) -> Result<DirLock, WalError> {
    let path = dir.join(WAL_LOCK_FILE);
    if std::fs::symlink_metadata(&path).is_ok_and(|lock| !lock.is_file()) {
        let source = io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no file; if it is not a log's doing, remove it",
        );
        return Err(WalError::io("use the lock", &path, source));
    }
    DirLock::take(dir)
}

/// Where to look for segments.
#[derive(Debug, Clone, Default)]
pub struct LogFiles {
    /// A log directory, live or not.
    pub dir: Option<PathBuf>,
    /// Archive directories, and single segments: live ones that were copied, and archives.
    pub archives: Vec<PathBuf>,
}

impl From<&Path> for LogFiles {
    fn from(dir: &Path) -> Self {
        Self { dir: Some(dir.to_owned()), archives: Vec::new() }
    }
}

/// How far reading has come. Looked at from another thread.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    bytes: Arc<(AtomicU64, AtomicU64)>,
}

impl Progress {
    /// Bytes read, and bytes there are to be read as far as that is known yet.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let (done, total) = &*self.bytes;
        (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed))
    }

    fn expect(&self, bytes: u64) {
        self.bytes.1.fetch_add(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.0.fetch_add(bytes, Ordering::Relaxed);
    }
}
