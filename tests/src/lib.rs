//! What the end-to-end tests share: the real binaries, started in directories of their own, and
//! ways to look at what they left behind. Unix only, like the signals they send.

#![cfg(unix)]

mod agent;
mod bins;
mod broker;
mod children;
mod feeder;
mod guarded;
#[cfg(test)]
mod promises;
mod python;
mod random;
mod schedule;
mod store;
mod wait;

pub use agent::{Agent, AgentBuilder, lock_holder};
pub use bins::bin;
pub use broker::BrokerProcess;
pub use children::Marked;
pub use feeder::Feeder;
pub use guarded::Guarded;
pub use python::Python;
pub use random::Random;
pub use schedule::{alone, beside_others};
pub use store::Store;
pub use wait::{until, until_some};

use std::process::Child;

/// Sends a signal to a child of this process.
///
/// # Panics
/// If the child is gone and reaped.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("the child can be signalled");
}

/// Sends a signal to any process; a process that is gone is no error.
pub fn signal_pid(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The most memory a process has had resident.
///
/// # Panics
/// If it does not run.
pub fn peak_resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a VmHWM line");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib * 1024
}
