//! How a command fails.

use std::error::Error;
use std::io;

use daemoneye_lib::display::chain;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// What was asked for makes no sense: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// It was tried and did not work: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The reader of our output has gone; there is nothing left to do, and nothing wrong.
    #[error("standard output was closed")]
    OutputClosed,
}

impl Failure {
    /// A failure of what was tried, with its causes.
    pub(crate) fn failed(error: impl Error) -> Self {
        Self::Failed(chain(error))
    }

    /// A failure to write our output.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failed(format!("standard output cannot be written: {error}"))
        }
    }

    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
        }
    }
}
