//! What the process connector sends: `struct cn_msg` and `struct proc_event`, as
//! `linux/connector.h` and `linux/cn_proc.h` lay them out.
//!
//! Bytes that are not as those say give nothing; nothing here fails.

use super::super::native::{take, u16, u32, u64};
use super::framing::{self, HEADER};

/// The connector's number for process events, and its only group.
pub(super) const PROCESSES: u32 = 1;

/// The length of a header of the connector.
const CONNECTOR_HEADER: usize = 20;
/// `NLMSG_DONE`: the only kind the connector has.
const DONE: u16 = 3;
/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;

/// One thing that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message {
    /// On which processor.
    pub(super) cpu: u32,
    /// Counts what this processor had to tell, without holes.
    pub(super) sequence: u32,
    /// When, in nanoseconds since boot without the time asleep.
    pub(super) at_ns: u64,
    /// To which thread. Of one that began, its own.
    pub(super) tid: u32,
    /// To which process that belongs: the same number if it is its first.
    pub(super) pid: u32,
    /// What.
    pub(super) what: Told,
}

/// What happened to a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    /// Somebody was told whether it may listen: 0, or an error's number.
    Answered { error: u32 },
    /// It began, made by this process.
    Forked { parent: u32 },
    /// It runs a program.
    Executed,
    /// It has these users, real and effective.
    Users { real: u32, effective: u32 },
    /// It has these groups.
    Groups { real: u32, effective: u32 },
    /// It leads a session of its own.
    Session,
    /// It has another name, filled up with zeros.
    Named([u8; 16]),
    /// It ended, with the status that `wait(2)` gives.
    Exited { wait_status: u32 },
    /// Nothing of interest.
    Other,
}

/// Whatever messages a datagram holds.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message> {
    framing::messages(datagram)
        .filter(|(kind, _)| *kind == DONE)
        .filter_map(|(_, body)| message(body))
}

fn message(mut body: &[u8]) -> Option<Message> {
    let rest = &mut body;
    let (index, value) = (u32(rest)?, u32(rest)?);
    let sequence = u32(rest)?;
    take(rest, 4)?;
    let length = u16(rest)?;
    take(rest, 2)?;
    let mut event = take(rest, length.into())?;
    if (index, value) != (PROCESSES, PROCESSES) {
        return None;
    }
    let rest = &mut event;
    let what = u32(rest)?;
    let (cpu, at_ns) = (u32(rest)?, u64(rest)?);
    let first = u32(rest)?;
    if what == 0 {
        let what = Told::Answered { error: first };
        return Some(Message { cpu, sequence, at_ns, tid: 0, pid: 0, what });
    }
    let (mut tid, mut pid) = (first, u32(rest)?);
    let what = match what {
        0x1 => {
            let parent = pid;
            (tid, pid) = (u32(rest)?, u32(rest)?);
            Told::Forked { parent }
        }
        0x2 => Told::Executed,
        0x4 => Told::Users { real: u32(rest)?, effective: u32(rest)? },
        0x40 => Told::Groups { real: u32(rest)?, effective: u32(rest)? },
        0x80 => Told::Session,
        0x200 => Told::Named(take(rest, 16)?.try_into().ok()?),
        0x8000_0000 => Told::Exited { wait_status: u32(rest)? },
        _ => Told::Other,
    };
    Some(Message { cpu, sequence, at_ns, tid, pid, what })
}

/// Asks to be told.
pub(super) fn listen() -> Vec<u8> {
    let data = LISTEN.to_ne_bytes();
    let length = HEADER + CONNECTOR_HEADER + data.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&DONE.to_ne_bytes());
    // Flags, sequence and sender: the kernel fills in what it wants of them.
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend_from_slice(&PROCESSES.to_ne_bytes());
    bytes.extend_from_slice(&PROCESSES.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&(data.len() as u16).to_ne_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&data);
    bytes
}

/// A datagram as the kernel sends it, for tests.
#[cfg(test)]
pub(super) fn datagram(cpu: u32, sequence: u32, at_ns: u64, what: u32, data: &[u32]) -> Vec<u8> {
    let mut bytes = listen();
    bytes.truncate(HEADER + CONNECTOR_HEADER);
    bytes[24..28].copy_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&what.to_ne_bytes());
    bytes.extend_from_slice(&cpu.to_ne_bytes());
    bytes.extend_from_slice(&at_ns.to_ne_bytes());
    for word in data {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let length = bytes.len();
    bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    let event = (length - HEADER - CONNECTOR_HEADER) as u16;
    bytes[32..34].copy_from_slice(&event.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(what: u32, data: &[u32]) -> Option<Message> {
        messages(&datagram(1, 7, 99, what, data)).next()
    }

    #[test]
    fn reads_what_the_kernel_sends() {
        let of = |tid, pid, what| Message { cpu: 1, sequence: 7, at_ns: 99, tid, pid, what };
        let forked = Told::Forked { parent: 11 };
        assert_eq!(read(1, &[10, 11, 12, 13]), Some(of(12, 13, forked)));
        assert_eq!(read(2, &[5, 5]), Some(of(5, 5, Told::Executed)));
        let users = Told::Users { real: 1000, effective: 0 };
        assert_eq!(read(4, &[5, 5, 1000, 0]), Some(of(5, 5, users)));
        let groups = Told::Groups { real: 1, effective: 2 };
        assert_eq!(read(0x40, &[5, 5, 1, 2]), Some(of(5, 5, groups)));
        assert_eq!(read(0x80, &[5, 5]), Some(of(5, 5, Told::Session)));
        let exited = Told::Exited { wait_status: 0x700 };
        assert_eq!(read(0x8000_0000, &[6, 5, 0x700, 17, 1, 1]), Some(of(6, 5, exited)));
        let name = u32::from_ne_bytes(*b"abcd");
        let named = Told::Named(*b"abcdabcdabcd\0\0\0\0");
        assert_eq!(read(0x200, &[5, 5, name, name, name, 0]), Some(of(5, 5, named)));
        assert_eq!(read(0, &[1]), Some(of(0, 0, Told::Answered { error: 1 })));
        assert_eq!(read(0x100, &[5, 5, 1, 1]).map(|m| m.what), Some(Told::Other));
    }

    #[test]
    fn a_datagram_may_hold_several_and_others_are_passed_over() {
        let mut bytes = datagram(0, 1, 2, 2, &[5, 5]);
        let mut foreign = datagram(0, 2, 3, 2, &[6, 6]);
        foreign[16] = 9;
        bytes.extend_from_slice(&foreign);
        let mut other = datagram(0, 3, 4, 2, &[7, 7]);
        other[4] = 2;
        bytes.extend_from_slice(&other);
        bytes.extend_from_slice(&datagram(0, 4, 5, 2, &[8, 8]));
        let pids: Vec<u32> = messages(&bytes).map(|message| message.pid).collect();
        assert_eq!(pids, [5, 8]);
    }

    #[test]
    fn whatever_is_cut_short_is_nothing() {
        let whole = datagram(0, 1, 2, 1, &[1, 2, 3, 4]);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length} bytes");
        }
        assert_eq!(read(2, &[5]), None, "a thread of no process");
        // A length that lies.
        for length in [0u32, 15, 16, 17, 35, u32::MAX] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), seems: bool) {
            if seems && bytes.len() > 36 {
                let head = datagram(0, 1, 2, 2, &[]);
                bytes[4..36].copy_from_slice(&head[4..36]);
            }
            // Each takes a header at least.
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER);
        }
    }
}
