//! The process event and the identity of a process.
//!
//! The order of fields and variants is the encoding: it is frozen with the schema version in
//! [`super::event`]. A change here is a new version there.

mod key;

pub use key::{KeyPrecision, ProcessKey};

use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::ByteString;
use super::event::EventKind;
use crate::redaction::RedactedArgv;

/// A process started, changed or ended.
///
/// What the source does not know is `None`, never a made-up zero. A stop carries what was known of
/// the process while it lived, so that it can be read without its start.
///
/// ```
/// use daemoneye_lib::models::event::Event;
/// use daemoneye_lib::models::process::ProcessEventKind;
///
/// // As it comes out of the log or from the bus.
/// let payload = b"\
///     \x01\x00\x01\x01\x01\x01\x12\x01\x01\x01\xfc\x00\xca\x9a\x3b\x00\x01\xfb\x00\
///     \x10\x3f\x2a\x9c\x1e\x01\x02\x43\x04\x85\x06\x07\x08\x09\x0a\x0b\x0c\xfb\x67\
///     \x12\xfc\x40\xe2\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
///     \x00\x00\x00\x00\x00\x00\xfd\x00\x94\x89\xe3\xfc\x39\x2f\x2f\x00\x02\x00\x00\x00\x00";
/// let Event::Process(event) = Event::decode(payload)? else { panic!("a gap") };
/// assert_eq!(event.pid(), 4711);
/// assert_eq!(event.key.to_string(), "3f2a9c1e-4711-123456.0");
/// let ProcessEventKind::Stop(exit) = event.kind else { panic!("not a stop") };
/// assert_eq!((exit.signal, exit.run_time_ns), (Some(9), Some(1_000_000_000)));
/// assert_eq!(event.exe, None, "not known");
/// # Ok::<(), daemoneye_lib::models::event::DecodeError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize)]
pub struct ProcessEvent {
    /// What happened.
    #[serde(flatten)]
    pub kind: ProcessEventKind,
    /// Which process: survives reuse of its pid.
    #[serde(flatten, serialize_with = "serialize_key")]
    pub key: ProcessKey,
    /// How exactly `key` tells apart two lives of one pid.
    pub key_precision: KeyPrecision,
    /// The pid of its parent when it was first seen, even if that has ended since; 0 for the
    /// kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ppid: Option<u32>,
    /// The identity of that parent, where the parent was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_key: Option<ProcessKey>,
    /// The short name, at most 15 bytes on Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<ByteString>,
    /// The path of the executable, without the kernel's mark ` (deleted)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<ByteString>,
    /// Whether the executable no longer had a name when it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe_deleted: Option<bool>,
    /// The arguments from the program's name on, secrets removed.
    #[serde(flatten, serialize_with = "serialize_argv")]
    pub argv: Option<RedactedArgv>,
    /// The working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<ByteString>,
    /// The real user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The effective user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub euid: Option<u32>,
    /// The real group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The effective group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egid: Option<u32>,
    /// The user that logged in, kept through `su` and `sudo`; `None` also if nobody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// The session: the pid of its leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u32>,
    /// The control group, a path below the cgroup file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<ByteString>,
    /// The container, where the control group names one: 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<Arc<str>>,
    /// The namespaces it lives in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Namespaces>,
    /// When the process started: wall clock, nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time_ns: Option<i64>,
    /// When the source saw this: wall clock, nanoseconds since 1970.
    pub time_ns: i64,
    /// The same moment in nanoseconds since the machine booted, which no clock change moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monotonic_ns: Option<u64>,
    /// What saw it.
    pub source: SourceName,
    /// How much of the record could be filled in.
    pub completeness: Completeness,
    /// Not seen but concluded, by comparing what is with what was known before: the time is that
    /// of the conclusion.
    pub inferred: bool,
    /// What it may do beyond what its users may (Linux).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// The SHA-256 of the executable that it runs, where this was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe_sha256: Option<Sha256>,
}

/// What happened to the process, with the facts that only this has.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProcessEventKind {
    /// It began.
    Start {
        /// It was already there when monitoring began, or when there was room to tell of it again.
        existing: bool,
    },
    /// It ended.
    Stop(Exit),
    /// Something about it changed: the event holds the new values.
    Modify {
        /// The fields that changed, and their old values.
        changes: Vec<FieldChange>,
    },
}

/// How a process ended, where the source knows.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, Serialize)]
pub struct Exit {
    /// What it returned, if it ended by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether it left a core file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core_dumped: Option<bool>,
    /// From its start to the moment its end was seen, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_time_ns: Option<u64>,
    /// Processor time it used, user and system together, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_time_ns: Option<u64>,
    /// The most memory it had resident, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// One field of a process that changed, with its value before; `None` was not known.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize)]
#[serde(tag = "field", content = "old", rename_all = "snake_case")]
pub enum FieldChange {
    /// The short name.
    Name(Option<ByteString>),
    /// The executable: it ran `exec`.
    Exe(Option<ByteString>),
    /// The arguments.
    Argv(Option<RedactedArgv>),
    /// The real user.
    Uid(Option<u32>),
    /// The effective user.
    Euid(Option<u32>),
    /// The real group.
    Gid(Option<u32>),
    /// The effective group.
    Egid(Option<u32>),
    /// The user that logged in.
    LoginUid(Option<u32>),
    /// The session.
    Session(Option<u32>),
    /// The control group.
    Cgroup(Option<ByteString>),
    /// The effective capabilities.
    Capabilities(Option<Capabilities>),
}

/// A set of capabilities in effect: the bit of a number is that capability, as `capabilities(7)`
/// numbers them. JSON has it as `/proc/<pid>/status` does, 16 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Capabilities(pub u64);

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The SHA-256 of a file. JSON has 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The inode numbers of a process's namespaces: equal numbers, shared namespace.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Encode, Decode, Serialize)]
pub struct Namespaces {
    /// Process ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u64>,
    /// Mounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mnt: Option<u64>,
    /// Network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<u64>,
    /// Users and groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u64>,
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uts: Option<u64>,
    /// System V and POSIX message queues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc: Option<u64>,
    /// Control group root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<u64>,
}

/// What can see processes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceName {
    /// Tracepoints in the kernel.
    Ebpf,
    /// The kernel's process connector.
    Netlink,
    /// Reading the process table again and again.
    Poll,
}

impl SourceName {
    /// The name as options and JSON spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Netlink => "netlink",
            Self::Poll => "poll",
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much of an event's record could be filled in; the first that applies, from the last to the
/// first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// All that its source can tell.
    Complete,
    /// Arguments or a path were longer than an event holds, and cut.
    Truncated,
    /// Some facts were refused to us, for want of privileges.
    Partial,
    /// The process had moved on or ended when its details were read: some are missing.
    EnrichedLate,
}

impl ProcessEvent {
    /// The process's pid.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.key.pid
    }

    /// The kind byte and topic of this event.
    #[must_use]
    pub const fn event_kind(&self) -> EventKind {
        match self.kind {
            ProcessEventKind::Start { .. } => EventKind::Start,
            ProcessEventKind::Stop(_) => EventKind::Stop,
            ProcessEventKind::Modify { .. } => EventKind::Modify,
        }
    }
}

fn serialize_key<S: Serializer>(key: &ProcessKey, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("pid", &key.pid)?;
    map.serialize_entry("process_key", key)?;
    map.end()
}

fn serialize_argv<S: Serializer>(
    argv: &Option<RedactedArgv>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    if let Some(argv) = argv {
        map.serialize_entry("argv", argv)?;
        if argv.is_truncated() {
            map.serialize_entry("argv_truncated", &true)?;
        }
    }
    map.end()
}
