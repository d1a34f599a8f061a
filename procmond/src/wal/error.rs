//! What can go wrong with the log, named for the caller's next move.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use daemoneye_lib::stream::Sequence;

/// Why the log refused or failed.
///
/// Cheap to clone: one failed sync is told to everybody who waits for it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The operating system refused something outside the commit path.
    #[error(
        "cannot {action} {path:?}: {source}; check that the directory exists, is writable by this user and on a healthy disk"
    )]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Another process has the directory open for writing.
    #[error("the log directory {dir:?} is in use by {}; stop that process or choose another directory", holder(*pid))]
    LockHeld {
        /// The log directory.
        dir: PathBuf,
        /// The process that holds it, if its lock file could be read.
        pid: Option<u32>,
    },
    /// A segment was written by a version of this program that this one does not know.
    #[error(
        "segment {path:?} has format {version} and payload codec {codec}, this program reads format 1 with codec 1; open it with the program that wrote it"
    )]
    UnknownFormat {
        /// The segment.
        path: PathBuf,
        /// The format version in its header.
        version: u16,
        /// The payload codec version in its header.
        codec: u16,
    },
    /// No segment can follow this one. No log gets there by itself.
    #[error(
        "the segment {path:?} has the highest number there can be; if it is not this log's, move it away"
    )]
    NumbersSpent {
        /// The segment.
        path: PathBuf,
    },
    /// An option has a value the log cannot work with.
    #[error("the log option {name} is {value}: it must be {must}")]
    BadOption {
        /// The option's name.
        name: &'static str,
        /// The value given.
        value: u64,
        /// What it has to be.
        must: &'static str,
    },
    /// The in-memory queue is full: the disk is slower than the appends. Wait for
    /// [`room`](crate::wal::WriteAheadLog::room).
    #[error("the log's queue is full: the disk is slower than the appends; try again later")]
    Busy,
    /// The log has used its share of the disk. The record was not taken.
    #[error(
        "the log in {dir:?} has used {used_bytes} of its {budget_bytes} bytes; it takes records again when consumers have committed what is there, or raise the disk budget"
    )]
    BudgetSpent {
        /// The log directory.
        dir: PathBuf,
        /// Bytes in segments and on their way there.
        used_bytes: u64,
        /// The budget.
        budget_bytes: u64,
    },
    /// The disk is full. What was accepted before stays queued and is written when there is room
    /// (do not append it again); new records are refused until then.
    #[error(
        "the disk under {path:?} is full ({source}); the log writes on by itself when there is room"
    )]
    DiskFull {
        /// The segment that could not be extended or created.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The system refuses to write, for a reason that may pass: a directory that is not there, a
    /// file system that is read-only, a limit. What was accepted before stays queued and is
    /// written when it can be (do not append it again); new records are refused until then.
    #[error(
        "cannot write {path:?} at the moment ({source}); the log keeps what it has taken and tries again by itself; check the directory, its file system and this process's limits"
    )]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Writing failed twice, the second time into a fresh file. What had a receipt is safe, the
    /// rest may not be. The log stays shut until it is opened again.
    #[error(
        "the log failed at {path:?} and again in a fresh segment: {source}; check the disk, then restart"
    )]
    Poisoned {
        /// The file of the last failure.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The record is larger than the log takes.
    #[error(
        "a record of {bytes} bytes is larger than the {max_bytes} the log takes; truncate it or raise max_record_bytes"
    )]
    TooLarge {
        /// The payload's length.
        bytes: usize,
        /// The longest payload taken.
        max_bytes: u32,
    },
    /// Kind 0 is the log's own.
    #[error("record kind 0 is reserved for the log's own records; use 1 to 255")]
    ReservedKind,
    /// The sequence has not been assigned, so waiting for it would wait for somebody else's record.
    #[error("sequence {sequence} has not been appended, the last is {last}")]
    NotAppended {
        /// The sequence asked for.
        sequence: Sequence,
        /// The last one assigned.
        last: Sequence,
    },
    /// An acknowledgement beyond what is durable: it belongs to another log.
    #[error(
        "sequence {sequence} was acknowledged but the log is durable only up to {durable}; the consumer knows another history of this log"
    )]
    AheadOfLog {
        /// The sequence acknowledged.
        sequence: Sequence,
        /// The last durable one.
        durable: Sequence,
    },
    /// A new stream has begun since the reader was made; make a new one.
    #[error("the log has begun a new stream; read it with a new reader")]
    StreamReplaced,
}

impl WalError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            return Self::DiskFull { path: path.to_owned(), source: Arc::new(source) };
        }
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether the log gets over it by itself: refused for want of room, or because the system
    /// does not let it write at the moment.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Busy | Self::BudgetSpent { .. } | Self::DiskFull { .. } | Self::Unwritable { .. }
        )
    }
}

/// Whether the system refuses without having spoilt anything, for a reason that may pass.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        FileTooLarge, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
    };
    is_full(error)
        || matches!(
            error.kind(),
            FileTooLarge | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem
        )
        || has_no_descriptor(error)
}

/// Too many open files, in this process or in the system.
fn has_no_descriptor(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error().map(rustix::io::Errno::from_raw_os_error).is_some_and(|errno| {
        errno == rustix::io::Errno::MFILE || errno == rustix::io::Errno::NFILE
    });
    #[cfg(not(unix))]
    {
        let _ = error;
        false
    }
}

/// Whether waiting for room may help.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("the process with pid {pid}"))
}
