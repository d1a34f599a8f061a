//! What procmond may do, and how it gives up the rest.
//!
//! A monitor reads what everybody on the machine chooses to be called, as a user who may do much.
//! Before it reads anything, [`confine`] gives up every capability but the [`NEEDED`] six, takes
//! no new ones (`no_new_privs`), and has the kernel refuse, by a seccomp filter, what a monitor
//! never does: start processes, trace or signal them, touch mounts, modules and namespaces, open
//! network sockets. `filter.rs` has the list and why it is a list of what is refused.
//!
//! Capabilities belong to threads, and new threads have those of the thread that made them: this
//! must be done before there is a second one.

mod filter;

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use thiserror::Error;

/// A capability that procmond has a use for.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    /// Its bit.
    pub capability: CapabilitySet,
    /// Its name in `capabilities(7)`.
    pub name: &'static str,
    /// What goes with it.
    pub buys: &'static str,
}

/// Everything that procmond has a use for.
pub const NEEDED: [Needed; 6] = [
    Needed {
        capability: CapabilitySet::BPF,
        name: "CAP_BPF",
        buys: "the source ebpf, which sees every process however short it lives",
    },
    Needed {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        buys: "the source ebpf, which needs CAP_BPF and this",
    },
    Needed {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        buys: "the resources used at exit and the large buffer of the source netlink; before Linux \
               6.6 this source at all",
    },
    Needed {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        buys: "program, directory, namespaces and exit status of processes that are read from \
               /proc and are another user's or may do more; with hidepid these processes at all",
    },
    Needed {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        buys: "the SHA-256 of programs that this user may not read",
    },
    Needed {
        capability: CapabilitySet::SYS_NICE,
        name: "CAP_SYS_NICE",
        buys: "a raised priority for the thread that reads events, so that a busy machine does \
               not make it late",
    },
];

/// Why this process may still do more than it needs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// The capabilities cannot be set.
    #[error("capabilities that are not needed cannot be given up: {0}")]
    Capabilities(#[source] io::Error),
    /// Programs run later could gain privileges.
    #[error("no_new_privs cannot be set: {0}")]
    NewPrivileges(#[source] io::Error),
    /// The filter cannot be put in place.
    #[error("the filter of system calls cannot be put in place: {0}")]
    Filter(#[source] seccompiler::Error),
}

/// Gives up everything but the [`NEEDED`] capabilities that are there; for good, and for all threads
/// made from here on. One part that fails keeps none of the others from being done.
#[must_use]
pub fn confine() -> Vec<ConfineError> {
    let steps = [
        give_up().map_err(ConfineError::Capabilities),
        set_no_new_privs(true).map_err(|error| ConfineError::NewPrivileges(error.into())),
        filter::install().map_err(ConfineError::Filter),
    ];
    steps.into_iter().filter_map(Result::err).collect()
}

/// The needed capabilities that this thread can use, or could if it took them into effect.
///
/// # Errors
/// If the system does not say.
pub fn held() -> io::Result<CapabilitySet> {
    let needed = NEEDED.iter().map(|needed| needed.capability).collect::<CapabilitySet>();
    Ok(capabilities(None)?.permitted & needed)
}

fn give_up() -> io::Result<()> {
    // No program is ever run, so there is nothing to hand on.
    clear_ambient_capability_set().or_else(|error| match error {
        // Linux before 4.3 has no such set.
        Errno::INVAL => Ok(()),
        other => Err(other),
    })?;
    if capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            match capability_is_in_bounding_set(capability) {
                Ok(true) => remove_capability_from_bounding_set(capability)?,
                Ok(false) => {}
                // The kernel knows no more of them.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let kept = held()?;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_units_grant_exactly_what_is_needed() {
        let needed: BTreeSet<&str> = NEEDED.iter().map(|needed| needed.name).collect();
        for unit in [
            include_str!("../../config/daemoneye-agent.service"),
            include_str!("../../config/procmond.service"),
        ] {
            let mut sets = unit.lines().filter_map(|line| {
                line.strip_prefix("CapabilityBoundingSet=")
                    .or_else(|| line.strip_prefix("AmbientCapabilities="))
            });
            assert!(sets.clone().next().is_some(), "{unit}");
            assert!(sets.all(|set| set.split(' ').collect::<BTreeSet<_>>() == needed), "{unit}");
        }
    }
}
