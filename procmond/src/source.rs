//! Sources: what can see processes.
//!
//! A source runs on a thread of its own and sends what it observes through a bounded channel: when
//! the monitor is behind, the source waits, and looks again when there is room. It tells plain
//! facts about what is there; what that means (a start, a stop, a change) is worked out by the
//! [`crate::monitor::tracker::Tracker`].

#[cfg(target_os = "linux")]
mod clock;
#[cfg(target_os = "linux")]
mod ebpf;
#[cfg(all(fuzzing, target_os = "linux"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(target_os = "linux")]
mod native;
#[cfg(target_os = "linux")]
mod netlink;
mod poll;
// Compiled for tests on Linux too, so that what other systems use is proved somewhere.
#[cfg(any(test, not(target_os = "linux")))]
mod portable;
#[cfg(target_os = "linux")]
mod procfs;
#[cfg(target_os = "linux")]
mod teller;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use daemoneye_lib::display;
use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{
    Capabilities, Completeness, Exit, KeyPrecision, Namespaces, Sha256, SourceName,
};
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
    /// Another look has found everything as the one before.
    Unchanged {
        /// Which boot of which machine.
        boot_id: Uuid,
        /// When looking began, in nanoseconds since boot.
        uptime_ns: u64,
        /// The same moment by the wall clock, in nanoseconds since 1970.
        time_ns: i64,
    },
    /// Processes that have ended, and are in no table after this.
    Ended(Ends),
    /// Processes that may have lived between two looks: at most so many, for threads are counted
    /// with them where nothing tells them apart.
    Unseen(Overrun),
    /// What the kernel told of, one thing after another.
    Seen(Happenings),
    /// The kernel had no room to tell of some things. A snapshot follows.
    Overrun(Overrun),
    /// A look that failed: nothing is known beyond what was.
    Failed(SourceError),
}

impl Observation {
    /// Up to when, by the wall clock, everything is known that its source sees, if this says so.
    pub(crate) fn seen_until_ns(&self) -> Option<i64> {
        match self {
            Self::Snapshot(table) => Some(table.time_ns),
            Self::Unchanged { time_ns, .. } => Some(*time_ns),
            Self::Seen(seen) => {
                let last_ns = seen.happenings.iter().map(|happening| happening.at_ns).max()?;
                Some(seen.wall_offset_ns.saturating_add_unsigned(last_ns))
            }
            // One that is told of ends has to look for beginnings.
            Self::Ended(_) | Self::Unseen(_) | Self::Overrun(_) | Self::Failed(_) => None,
        }
    }
}

/// All processes at one moment. Threads are not among them.
#[derive(Clone, PartialEq, Debug)]
pub struct ProcessTable {
    /// What looked.
    pub source: SourceName,
    /// Whoever looked is told of what happens, too: what only the table shows was missed.
    pub is_told: bool,
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
    /// The same in nanoseconds, where the source knows.
    pub start_ns: Option<u64>,
    /// What is known about it; `None` if nothing changed since this source last told.
    pub facts: Option<Box<Facts>>,
    /// It has ended, and its parent has not noticed yet; or it ended while it was looked at.
    pub ended: Option<Exit>,
}

/// Ends of processes.
#[derive(Clone, PartialEq, Debug)]
pub struct Ends {
    /// What has seen them.
    pub source: SourceName,
    /// Which boot of which machine.
    pub boot_id: Uuid,
    /// To be added to nanoseconds since boot for the wall clock's since 1970.
    pub wall_offset_ns: i64,
    /// The first one first.
    pub ends: Vec<End>,
}

/// The end of one process.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct End {
    /// Its pid.
    pub pid: u32,
    /// When it started, in 10 ms units since boot.
    pub start_centis: u64,
    /// When it ended, in nanoseconds since boot.
    pub at_ns: u64,
    /// How.
    pub exit: Exit,
}

/// Things that happened, in their order.
#[derive(Clone, PartialEq, Debug)]
pub struct Happenings {
    /// What was told of them.
    pub source: SourceName,
    /// Which boot of which machine.
    pub boot_id: Uuid,
    /// To be added to nanoseconds since boot for the wall clock's since 1970.
    pub wall_offset_ns: i64,
    /// The first one first.
    pub happenings: Vec<Happening>,
}

/// Something that happened to a process.
#[derive(Clone, PartialEq, Debug)]
pub struct Happening {
    /// Its pid.
    pub pid: u32,
    /// When it started, in nanoseconds since boot.
    pub start_ns: u64,
    /// How exactly that is known.
    pub precision: KeyPrecision,
    /// When this happened, in nanoseconds since boot.
    pub at_ns: u64,
    /// What it was.
    pub what: What,
}

/// What happened to a process, with what is known about it.
#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// It began. What is not among the facts it has from the process that made it.
    Forked {
        /// The pid of that process.
        forker: u32,
        /// It is in that process's control group.
        inherits_group: bool,
        /// What is known.
        facts: Box<Facts>,
    },
    /// It runs a program.
    Executed(Box<Facts>),
    /// It was found to be so. What is of its program is not among the facts.
    Found(Box<Facts>),
    /// It has another name.
    Renamed(ByteString),
    /// What is among these facts is so now; the others are as they were.
    Changed(Box<Facts>),
    /// It is in another control group.
    Moved {
        /// The group's path.
        cgroup: ByteString,
        /// The container that the path names.
        container_id: Option<Arc<str>>,
    },
    /// It ended.
    Exited(Exit, Box<Facts>),
}

/// Things that happened and that nobody could be told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overrun {
    /// How many.
    pub missing: u64,
    /// Which, if that is known.
    pub sorts: Option<Missing>,
    /// None before this: wall clock, nanoseconds since 1970.
    pub since_ns: i64,
    /// None after this.
    pub until_ns: i64,
}

/// How many of which things nobody could be told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Processes that began.
    pub starts: u64,
    /// Programs that were run, changes of name and of control group.
    pub changes: u64,
    /// Processes that ended.
    pub stops: u64,
}

impl Missing {
    /// All of them.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.starts + self.changes + self.stops
    }
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
    /// The file that `exe` named when this was seen. In no event: it says what a digest is of.
    pub exe_file: Option<FileIdentity>,
    pub argv: Option<RedactedArgv>,
    pub cwd: Option<ByteString>,
    pub uid: Option<u32>,
    pub euid: Option<u32>,
    pub gid: Option<u32>,
    pub egid: Option<u32>,
    pub login_uid: Option<u32>,
    pub session: Option<u32>,
    pub cgroup: Option<ByteString>,
    pub container_id: Option<Arc<str>>,
    pub namespaces: Option<Namespaces>,
    pub capabilities: Option<Capabilities>,
    pub exe_sha256: Option<Sha256>,
    pub completeness: Completeness,
}

/// A file, and a state of it: whoever writes to it or puts another in its place makes another
/// identity, as far as the file system's clock goes.
///
/// From a path, `stat` gives the same numbers, but for the device on file systems that show user
/// space another than the kernel has (btrfs, and overlayfs over several file systems).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileIdentity {
    /// The device, as `st_dev` has it.
    pub device: u64,
    /// The inode's number on that device.
    pub inode: u64,
    /// In bytes.
    pub size: u64,
    /// When content or attributes last changed, in seconds since 1970.
    pub ctime_sec: i64,
    /// The nanoseconds of that second.
    pub ctime_nsec: i64,
}

#[cfg(target_os = "linux")]
impl From<&std::fs::Metadata> for FileIdentity {
    fn from(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            ctime_sec: metadata.ctime(),
            ctime_nsec: metadata.ctime_nsec(),
        }
    }
}

impl Facts {
    /// Nothing known yet.
    #[must_use]
    pub const fn unknown(completeness: Completeness) -> Self {
        Self {
            ppid: None,
            name: None,
            exe: None,
            exe_deleted: None,
            exe_file: None,
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
            capabilities: None,
            exe_sha256: None,
            completeness,
        }
    }

    /// These, and what is not among them from `others`.
    pub(crate) fn or(self, others: Self) -> Self {
        Self {
            ppid: self.ppid.or(others.ppid),
            name: self.name.or(others.name),
            exe: self.exe.or(others.exe),
            exe_deleted: self.exe_deleted.or(others.exe_deleted),
            exe_file: self.exe_file.or(others.exe_file),
            argv: self.argv.or(others.argv),
            cwd: self.cwd.or(others.cwd),
            uid: self.uid.or(others.uid),
            euid: self.euid.or(others.euid),
            gid: self.gid.or(others.gid),
            egid: self.egid.or(others.egid),
            login_uid: self.login_uid.or(others.login_uid),
            session: self.session.or(others.session),
            cgroup: self.cgroup.or(others.cgroup),
            container_id: self.container_id.or(others.container_id),
            namespaces: self.namespaces.or(others.namespaces),
            capabilities: self.capabilities.or(others.capabilities),
            exe_sha256: self.exe_sha256.or(others.exe_sha256),
            completeness: self.completeness,
        }
    }
}

/// Which source to use.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum SourceChoice {
    /// The best there is.
    #[default]
    Auto,
    /// Tracepoints in the kernel: sees everything, on Linux and with privileges.
    Ebpf,
    /// The kernel's process connector: sees every start and end on Linux, and reads the rest from
    /// `/proc` while it is there.
    Netlink,
    /// Reading the process table again and again. Sees what lives through a look.
    Poll,
}

/// How a source sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceOptions {
    /// The time between two looks, for a source that has to look.
    pub interval: Duration,
    /// The room in the kernel for what has happened and was not read yet: a power of two, in
    /// bytes.
    pub ring_bytes: u32,
    /// How long what has happened waits for what else happens, so that it is read together: being
    /// woken is what costs most. None: everything is read at once.
    pub tick: Duration,
    /// The same room of a source that reads from a socket, in bytes of memory.
    pub socket_bytes: u32,
}

impl SourceOptions {
    /// Looks so far apart; 8 MiB of room, read every 2 ms, or 16 MiB in a socket.
    #[must_use]
    pub const fn every(interval: Duration) -> Self {
        Self {
            interval,
            ring_bytes: 8 << 20,
            tick: Duration::from_millis(2),
            socket_bytes: 16 << 20,
        }
    }
}

/// A source that sees.
#[derive(Debug)]
pub struct Started {
    /// Which one.
    pub name: SourceName,
    /// Why it is not a better one: an error for each that was tried, the best first.
    pub instead: Vec<SourceError>,
    /// Ends it.
    pub handle: SourceHandle,
    /// What it sees.
    pub observations: mpsc::Receiver<Observation>,
}

/// A word that is no source.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a source; use \"auto\", \"ebpf\", \"netlink\" or \"poll\"")]
pub struct BadSource(String);

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
    /// The kernel's tracepoints cannot be used.
    #[error("processes cannot be seen with eBPF: {}; it needs Linux 5.17 with BTF, and CAP_BPF and \
             CAP_PERFMON (or root)", why_refused(&**source))]
    NoEbpf {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel's process connector cannot be used.
    #[error(
        "processes cannot be seen with netlink: {source}; it needs a kernel with \
             CONFIG_PROC_EVENTS, no container, and before Linux 6.6 CAP_NET_ADMIN (or root)"
    )]
    NoNetlink {
        /// Why not.
        source: io::Error,
    },
    /// It has seen processes, and does so no more.
    #[error("{name} sees no more: {source}")]
    Broke {
        /// Which source.
        name: SourceName,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
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
    pub const CHOICES: &[(&str, Self)] = &[
        ("auto", Self::Auto),
        ("ebpf", Self::Ebpf),
        ("netlink", Self::Netlink),
        ("poll", Self::Poll),
    ];

    /// What it allows, the best first.
    #[must_use]
    pub const fn names(self) -> &'static [SourceName] {
        match self {
            Self::Auto => &[SourceName::Ebpf, SourceName::Netlink, SourceName::Poll],
            Self::Ebpf => &[SourceName::Ebpf],
            Self::Netlink => &[SourceName::Netlink],
            Self::Poll => &[SourceName::Poll],
        }
    }

    /// Starts the best one that works. Processes that are there are observed first; what happens
    /// then comes when it happens, or an interval apart from a source that has to look.
    ///
    /// # Errors
    /// If processes cannot be seen at all; then why not with the last one.
    pub fn start(self, options: SourceOptions) -> Result<Started, SourceError> {
        start_first(self.names(), |name| start(name, options))
    }
}

/// Starts the first of some sources that works; at least one has to be given.
///
/// # Errors
/// If none works; then why the last one does not.
pub(crate) fn start_first(
    names: &[SourceName],
    start: impl Fn(SourceName) -> Result<Started, SourceError>,
) -> Result<Started, SourceError> {
    let (last, better) = names.split_last().expect("one at least");
    let mut instead = Vec::new();
    for name in better {
        match start(*name) {
            Ok(started) => return Ok(Started { instead, ..started }),
            Err(why_not) => instead.push(why_not),
        }
    }
    start(*last).map(|started| Started { instead, ..started })
}

/// Starts a source.
///
/// # Errors
/// If processes cannot be seen with it.
pub fn start(name: SourceName, options: SourceOptions) -> Result<Started, SourceError> {
    let (sender, observations) = mpsc::channel(OBSERVATIONS);
    let handle = match name {
        SourceName::Ebpf => start_ebpf(options, sender)?,
        SourceName::Netlink => start_netlink(options, sender)?,
        SourceName::Poll => poll::start(new_looks()?, options.interval, sender)?,
    };
    Ok(Started { name, instead: Vec::new(), handle, observations })
}

impl fmt::Display for SourceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, _) =
            Self::CHOICES.iter().find(|(_, choice)| choice == self).ok_or(fmt::Error)?;
        f.write_str(word)
    }
}

impl FromStr for SourceChoice {
    type Err = BadSource;

    fn from_str(word: &str) -> Result<Self, BadSource> {
        let choice = Self::CHOICES.iter().find(|(choice, _)| *choice == word);
        choice.map(|(_, choice)| *choice).ok_or_else(|| BadSource(word.to_owned()))
    }
}

/// Looks at the process table once, to find out whether that works.
///
/// # Errors
/// If processes cannot be seen so.
pub fn probe_poll() -> Result<ProcessTable, SourceError> {
    poll::Scan::scan(&mut new_poll()?)
}

/// Puts the programs in place for a moment, to find out whether that works.
///
/// # Errors
/// If processes cannot be seen so.
pub fn probe_ebpf() -> Result<(), SourceError> {
    #[cfg(target_os = "linux")]
    return ebpf::probe();
    #[cfg(not(target_os = "linux"))]
    Err(no_ebpf())
}

/// Listens to the process connector for a moment, to find out whether that works, and whether it
/// also tells what processes used.
///
/// # Errors
/// If processes cannot be seen so.
pub fn probe_netlink() -> Result<bool, SourceError> {
    #[cfg(target_os = "linux")]
    return netlink::probe();
    #[cfg(not(target_os = "linux"))]
    Err(no_netlink())
}

#[cfg(target_os = "linux")]
use ebpf::start as start_ebpf;
#[cfg(target_os = "linux")]
use netlink::start as start_netlink;

#[cfg(not(target_os = "linux"))]
fn start_ebpf(_: SourceOptions, _: mpsc::Sender<Observation>) -> Result<SourceHandle, SourceError> {
    Err(no_ebpf())
}

#[cfg(not(target_os = "linux"))]
fn start_netlink(
    _: SourceOptions,
    _: mpsc::Sender<Observation>,
) -> Result<SourceHandle, SourceError> {
    Err(no_netlink())
}

#[cfg(not(target_os = "linux"))]
fn no_netlink() -> SourceError {
    SourceError::NoNetlink { source: io::Error::other("this is not Linux") }
}

#[cfg(not(target_os = "linux"))]
fn no_ebpf() -> SourceError {
    SourceError::NoEbpf { source: "this is not Linux".into() }
}

/// Why the kernel refused, without what its verifier has to say: that goes on for pages.
fn why_refused(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let mut text = display::chain(error);
    if let Some(at) = text.find(" Verifier output") {
        text.truncate(at);
    }
    text
}

/// What the status that `wait(2)` gives says.
#[cfg(target_os = "linux")]
fn exit_of(wait_status: i32) -> Exit {
    let signal = Some(wait_status & 0x7f).filter(|signal| *signal != 0);
    Exit {
        exit_code: signal.is_none().then_some((wait_status >> 8) & 0xff),
        signal,
        core_dumped: signal.map(|_| wait_status & 0x80 != 0),
        ..Exit::default()
    }
}

#[cfg(target_os = "linux")]
fn new_poll() -> Result<procfs::Procfs, SourceError> {
    procfs::Procfs::open("/proc".into())
}

#[cfg(target_os = "linux")]
fn new_looks() -> Result<impl poll::Scan, SourceError> {
    Ok(new_poll()?.again_and_again())
}

#[cfg(not(target_os = "linux"))]
use new_poll as new_looks;

#[cfg(not(target_os = "linux"))]
fn new_poll() -> Result<portable::Portable, SourceError> {
    Ok(portable::Portable::new())
}

#[cfg(target_os = "linux")]
#[doc(hidden)]
pub use ebpf::Passes as EbpfPasses;
pub use poll::SourceHandle;

#[cfg(test)]
impl Started {
    /// A source that sees what a test sends.
    pub(crate) fn scripted(name: SourceName) -> (Self, mpsc::Sender<Observation>) {
        let (sender, observations) = mpsc::channel(OBSERVATIONS);
        let (control, _) = std::sync::mpsc::channel();
        let handle = SourceHandle::new(control);
        (Self { name, instead: Vec::new(), handle, observations }, sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_ebpf_is_refused_fits_on_a_line() {
        #[derive(Debug, Error)]
        #[error("no program: {0}")]
        struct Outer(#[source] Inner);
        #[derive(Debug, Error)]
        #[error("refused (1). Verifier output: 0: R1\n1: R2")]
        struct Inner;
        assert_eq!(why_refused(&Inner), "refused (1).");
        #[derive(Debug, Error)]
        #[error("no source")]
        struct Outermost(#[source] Outer);
        assert_eq!(why_refused(&Outermost(Outer(Inner))), "no source: no program: refused (1).");
    }

    #[test]
    fn every_source_has_a_word_and_no_other_word_is_one() {
        for (word, choice) in SourceChoice::CHOICES {
            assert_eq!(word.parse(), Ok(*choice));
            assert_eq!(&choice.to_string(), word);
        }
        let refused = "prayer".parse::<SourceChoice>().unwrap_err().to_string();
        assert!(refused.contains("\"prayer\" is not a source"), "{refused}");
    }
}
