//! Sources: what can see processes.
//!
//! A source runs on a thread of its own and sends what it observes through a bounded channel: when
//! the monitor is behind, the source waits, and looks again when there is room. It tells plain
//! facts about what is there; what that means (a start, a stop, a change) is worked out by the
//! [`crate::monitor::tracker::Tracker`].

mod poll;
// Compiled for tests on Linux too, so that what other systems use is proved somewhere.
#[cfg(any(test, not(target_os = "linux")))]
mod portable;
#[cfg(target_os = "linux")]
mod procfs;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision, Namespaces, SourceName};
use daemoneye_lib::redaction::RedactedArgv;
use thiserror::Error;
use tokio::sync::mpsc;
use uuid::Uuid;

/// Observations that wait for the monitor; the source waits beyond that.
const OBSERVATIONS: usize = 4;

/// Something a source has seen.
#[derive(Debug)]
pub enum Observation {
    /// Everything that is there: what is not in it has ended.
    Snapshot(ProcessTable),
    /// A look that failed: nothing is known beyond what was.
    Failed(SourceError),
}

/// All processes at one moment. Threads are not among them.
#[derive(Clone, PartialEq, Debug)]
pub struct ProcessTable {
    /// Which boot of which machine.
    pub boot_id: Uuid,
    /// How exactly start times are known.
    pub precision: KeyPrecision,
    /// When looking began: wall clock, nanoseconds since 1970.
    pub time_ns: i64,
    /// The same moment in nanoseconds since boot.
    pub uptime_ns: u64,
    /// Each pid at most once.
    pub processes: Vec<ObservedProcess>,
}

/// One process that is there.
#[derive(Clone, PartialEq, Debug)]
pub struct ObservedProcess {
    /// Its pid.
    pub pid: u32,
    /// When it started, in 10 ms units since boot.
    pub start_centis: u64,
    /// What is known about it; `None` if nothing changed since this source last told.
    pub facts: Option<Box<Facts>>,
    /// It has ended, and its parent has not noticed yet; or it ended while it was looked at.
    pub ended: Option<Exit>,
}

/// What is known about a process: see the fields of the same names in
/// [`daemoneye_lib::models::process::ProcessEvent`].
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "documented once, at the event's fields")]
pub struct Facts {
    pub ppid: Option<u32>,
    pub name: Option<ByteString>,
    pub exe: Option<ByteString>,
    pub exe_deleted: Option<bool>,
    pub argv: Option<RedactedArgv>,
    pub cwd: Option<ByteString>,
    pub uid: Option<u32>,
    pub euid: Option<u32>,
    pub gid: Option<u32>,
    pub egid: Option<u32>,
    pub login_uid: Option<u32>,
    pub session: Option<u32>,
    pub cgroup: Option<ByteString>,
    pub container_id: Option<String>,
    pub namespaces: Option<Namespaces>,
    pub completeness: Completeness,
}

impl Facts {
    /// Nothing known yet.
    pub(crate) const fn unknown(completeness: Completeness) -> Self {
        Self {
            ppid: None,
            name: None,
            exe: None,
            exe_deleted: None,
            argv: None,
            cwd: None,
            uid: None,
            euid: None,
            gid: None,
            egid: None,
            login_uid: None,
            session: None,
            cgroup: None,
            container_id: None,
            namespaces: None,
            completeness,
        }
    }
}

/// Which source to use.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum SourceChoice {
    /// The best there is: polling, in this version.
    #[default]
    Auto,
    /// Reading the process table again and again. Sees what lives through a look.
    Poll,
}

/// A word that is no source.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadSource {
    /// A source that is not in this version.
    #[error(
        "the source {0} is not in this version of procmond, which has only \"poll\"; use \
         \"--source auto\" or \"--source poll\""
    )]
    NotYet(&'static str),
    /// Anything else.
    #[error("{0:?} is not a source; use \"auto\" or \"poll\"")]
    Unknown(String),
}

/// Why a source cannot see processes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The process table cannot be read.
    #[error("the process table cannot be read at {path}: {source}; {advice}")]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Something in the process table is not as the system documents it.
    #[error("{path} does not look like part of a process table; is /proc mounted there?")]
    NotAProcessTable {
        /// What was read.
        path: PathBuf,
    },
    /// The thread could not be started.
    #[error("no thread for the source {name}: {source}; raise the limit of tasks")]
    NoThread {
        /// Which source.
        name: SourceName,
        /// Why not.
        source: io::Error,
    },
}

impl SourceChoice {
    /// The words for configuration and flags.
    pub const CHOICES: &[(&str, Self)] = &[("auto", Self::Auto), ("poll", Self::Poll)];

    /// The source that will be used.
    #[must_use]
    pub const fn name(self) -> SourceName {
        match self {
            Self::Auto | Self::Poll => SourceName::Poll,
        }
    }

    /// Starts it. The first observation comes as soon as it is made, the next ones an interval
    /// apart.
    ///
    /// # Errors
    /// If processes cannot be seen with it at all.
    pub fn start(
        self,
        interval: Duration,
    ) -> Result<(SourceHandle, mpsc::Receiver<Observation>), SourceError> {
        let (sender, observations) = mpsc::channel(OBSERVATIONS);
        let handle = match self {
            Self::Auto | Self::Poll => poll::start(new_poll()?, interval, sender)?,
        };
        Ok((handle, observations))
    }

    /// Looks once, to find out whether it works.
    ///
    /// # Errors
    /// If processes cannot be seen with it.
    pub fn probe(self) -> Result<ProcessTable, SourceError> {
        match self {
            Self::Auto | Self::Poll => poll::Scan::scan(&mut new_poll()?),
        }
    }
}

#[cfg(target_os = "linux")]
fn new_poll() -> Result<procfs::Procfs, SourceError> {
    procfs::Procfs::open("/proc".into())
}

#[cfg(not(target_os = "linux"))]
fn new_poll() -> Result<portable::Portable, SourceError> {
    Ok(portable::Portable::new())
}

impl fmt::Display for SourceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

impl FromStr for SourceChoice {
    type Err = BadSource;

    fn from_str(word: &str) -> Result<Self, BadSource> {
        match word {
            "auto" => Ok(Self::Auto),
            "poll" => Ok(Self::Poll),
            "ebpf" => Err(BadSource::NotYet("ebpf")),
            "netlink" => Err(BadSource::NotYet("netlink")),
            other => Err(BadSource::Unknown(other.to_owned())),
        }
    }
}

pub use poll::SourceHandle;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_is_not_there_is_refused_by_name() {
        assert_eq!("poll".parse(), Ok(SourceChoice::Poll));
        let refused = "ebpf".parse::<SourceChoice>().unwrap_err().to_string();
        assert!(refused.contains("ebpf is not in this version"), "{refused}");
        assert!("prayer".parse::<SourceChoice>().is_err());
    }
}
