//! The process table of other systems than Linux, through the `sysinfo` crate.
//!
//! It knows start times to the second, so two lives of a pid within one second are taken for one,
//! and the key's precision says so. The list is made anew at each look, because one that is
//! refreshed keeps the name that a process had first.

use std::collections::HashMap;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision, SourceName};
use daemoneye_lib::redaction::RawArgv;
use daemoneye_lib::stream::wall_clock_ns;
use sysinfo::{
    Pid, Process, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind,
};
use uuid::Uuid;

use super::poll::Scan;
use super::{Facts, ObservedProcess, ProcessTable, SourceError};

/// What systems say of the time they booted at moves by a second or two with their clock. Cut to
/// this many seconds it stays the same all but always, and with it the keys of processes.
const BOOT_UNIT_SECONDS: u64 = 128;

/// The process table as `sysinfo` shows it.
pub(super) struct Portable {
    known: HashMap<u32, Marks>,
}

/// What changes when facts have changed.
#[derive(PartialEq, Eq)]
struct Marks {
    start_seconds: u64,
    name: Vec<u8>,
    ids: [Option<u32>; 4],
}

impl Portable {
    pub(super) fn new() -> Self {
        Self { known: HashMap::new() }
    }
}

impl Scan for Portable {
    fn scan(&mut self) -> Result<ProcessTable, SourceError> {
        let time_ns = wall_clock_ns();
        let booted = System::boot_time().map_err(unreadable)?;
        let uptime_ns = System::uptime().map_err(unreadable)?.saturating_mul(1_000_000_000);
        let booted = booted - booted % BOOT_UNIT_SECONDS;
        let listing = ProcessRefreshKind::nothing().without_tasks().with_user(UpdateKind::Always);
        let mut system = System::new().map_err(unreadable)?;
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, listing);

        let marks: HashMap<u32, Marks> = system
            .processes()
            .values()
            .filter(|process| process.thread_kind().is_none())
            .map(|process| (process.pid().as_u32(), marks(process)))
            .collect();
        let news: Vec<Pid> = marks
            .iter()
            .filter(|(pid, marks)| self.known.get(pid) != Some(*marks))
            .map(|(pid, _)| Pid::from_u32(*pid))
            .collect();
        let details = listing
            .with_exe(UpdateKind::Always)
            .with_cmd(UpdateKind::Always)
            .with_cwd(UpdateKind::Always);
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&news), false, details);

        let mut processes = Vec::with_capacity(marks.len());
        for (&pid, seen) in &marks {
            let Some(process) = system.process(Pid::from_u32(pid)) else { continue };
            let is_same = process.start_time() == seen.start_seconds;
            let is_new = self.known.get(&pid) != Some(seen);
            processes.push(ObservedProcess {
                pid,
                start_centis: seen.start_seconds.saturating_sub(booted).saturating_mul(100),
                start_ns: None,
                facts: is_new.then(|| Box::new(facts(process, seen, is_same))),
                ended: (process.status() == ProcessStatus::Zombie || !is_same).then(Exit::default),
            });
        }
        self.known = marks;
        Ok(ProcessTable {
            source: SourceName::Poll,
            is_told: false,
            boot_id: Uuid::from_u64_pair(0, booted),
            precision: KeyPrecision::Second,
            time_ns,
            uptime_ns,
            processes,
        })
    }
}

fn marks(process: &Process) -> Marks {
    Marks {
        start_seconds: process.start_time(),
        name: process.name().as_encoded_bytes().to_vec(),
        ids: ids(process),
    }
}

/// Users and groups, real and effective; on Windows they are no numbers.
fn ids(process: &Process) -> [Option<u32>; 4] {
    #[cfg(unix)]
    return [
        process.user_id().map(|id| **id),
        process.effective_user_id().map(|id| **id),
        process.group_id().map(|id| *id),
        process.effective_group_id().map(|id| *id),
    ];
    #[cfg(not(unix))]
    return {
        let _ = process;
        [None; 4]
    };
}

/// `is_same`: the process that was listed is still the one that was read.
fn facts(process: &Process, seen: &Marks, is_same: bool) -> Facts {
    let mut facts = Facts::unknown(Completeness::EnrichedLate);
    facts.name = Some(ByteString::new(seen.name.clone()));
    [facts.uid, facts.euid, facts.gid, facts.egid] = seen.ids;
    if !is_same {
        return facts;
    }
    let bytes = |path: &std::path::Path| ByteString::new(path.as_os_str().as_encoded_bytes());
    facts.ppid = process.parent().map(Pid::as_u32);
    facts.session = process.session_id().map(Pid::as_u32);
    facts.exe = process.exe().map(bytes);
    facts.cwd = process.cwd().map(bytes);
    let argv = RawArgv::from_args(process.cmd().iter().map(|arg| arg.as_encoded_bytes())).redact();
    let truncated = argv.is_truncated();
    // sysinfo shows no arguments where it could not read them.
    facts.argv = (!argv.is_empty()).then_some(argv);
    facts.completeness = if facts.argv.is_none() || facts.exe.is_none() {
        Completeness::Partial
    } else if truncated {
        Completeness::Truncated
    } else {
        Completeness::Complete
    };
    facts
}

fn unreadable(error: sysinfo::Error) -> SourceError {
    SourceError::Unreadable {
        path: "the system's process list".into(),
        source: std::io::Error::other(error),
        advice: "may this user list processes?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_process_is_seen_once_until_it_ends() {
        let mut child = std::process::Command::new("/bin/sleep").arg("301").spawn().unwrap();
        let pid = child.id();
        let mut portable = Portable::new();
        let find = |table: &ProcessTable| {
            table.processes.iter().find(|process| process.pid == pid).cloned()
        };
        // Until its exec is done the child looks like this test, and is told again after.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let (table, facts) = loop {
            let table = portable.scan().unwrap();
            if let Some(facts) = find(&table).and_then(|process| process.facts)
                && facts.argv.as_ref().is_some_and(|argv| argv.iter().last() == Some(b"301"))
            {
                break (table, facts);
            }
            assert!(std::time::Instant::now() < deadline, "not seen");
        };
        assert_eq!(facts.ppid, Some(std::process::id()));
        assert_eq!(table.precision, KeyPrecision::Second);
        assert!(table.processes.iter().any(|process| process.pid == std::process::id()));
        assert_eq!(find(&portable.scan().unwrap()).unwrap().facts, None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(find(&portable.scan().unwrap()), None);
    }
}
