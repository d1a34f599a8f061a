//! What processes used, which the kernel tells of each as it ends (TASKSTATS), before it tells of
//! the end itself.
//!
//! Needs CAP_NET_ADMIN. Without it ends are told without processor time and memory.

use std::collections::HashMap;
use std::fs;
use std::io;

use rustix::net::netlink::GENERIC;

use super::super::native::{take, u16, u32, u64};
use super::framing::{HEADER, messages, skip_padding};
use super::socket::{ANSWER, Received, Socket};

const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// The family that knows the others' numbers.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Commands and attributes of TASKSTATS.
const GET: u8 = 1;
const NEW: u8 = 2;
const REGISTER_CPUS: u16 = 3;
const OF_THREAD: u16 = 4;
const OF_PROCESS: u16 = 5;
const STATS: u16 = 3;
/// The bits of an attribute's kind that say how it is packed.
const PACKED: u16 = 0xc000;

/// What is never asked for goes when there is this much of it.
const KNOWN_MAX: usize = 1 << 16;

/// What a process used.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Usage {
    /// `None` if that was too short to be measured.
    pub(super) cpu_ns: Option<u64>,
    /// The most memory that was resident; `None` if the kernel does not count it.
    pub(super) peak_bytes: Option<u64>,
}

/// What was told and not asked for yet.
pub(super) struct Usages {
    socket: Socket,
    family: u16,
    /// By pid; of a thread that did not end its process, by the thread's number.
    known: HashMap<u32, Usage>,
}

impl Usages {
    pub(super) fn listen(room_bytes: u32) -> io::Result<Self> {
        let mut socket = Socket::open(GENERIC, 0)?;
        socket.make_room(room_bytes)?;
        // Without asking to be told that it was understood: that would be taken for the next answer.
        socket.send(&request(REQUEST, CONTROL, GET_FAMILY, FAMILY_NAME, b"TASKSTATS\0"))?;
        let family = answer(&mut socket, |kind, body| {
            (kind == CONTROL).then(|| attribute(body.get(4..)?, FAMILY_ID)).flatten()
        })?;
        let family = u16(&mut family.as_slice()).ok_or(io::ErrorKind::InvalidData)?;
        let mut cpus = fs::read("/sys/devices/system/cpu/possible")?;
        cpus.retain(|byte| !byte.is_ascii_whitespace());
        cpus.push(0);
        socket.send(&request(REQUEST | ACK, family, GET, REGISTER_CPUS, &cpus))?;
        answer(&mut socket, |kind, _| (kind == ERROR).then_some(&[][..]))?;
        Ok(Self { socket, family, known: HashMap::new() })
    }

    /// Takes what has been told.
    pub(super) fn take(&mut self) -> io::Result<()> {
        loop {
            match self.socket.receive()? {
                Received::Datagram(bytes) => {
                    for (id, usage) in usages(bytes, self.family) {
                        self.known.insert(id, usage);
                    }
                }
                // Those ends are told without.
                Received::Overrun => self.known.clear(),
                Received::Foreign => {}
                Received::Nothing => break,
            }
        }
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        Ok(())
    }

    /// What one used that has ended; once.
    pub(super) fn of(&mut self, id: u32) -> Option<Usage> {
        self.known.remove(&id)
    }
}

/// One message with one attribute.
fn request(flags: u16, family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = 4 + value.len();
    let length = HEADER + 4 + attribute.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(&(attribute as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(length, 0);
    bytes
}

/// Waits for the answer that is wanted, or for an error.
fn answer(
    socket: &mut Socket,
    wanted: impl Fn(u16, &[u8]) -> Option<&[u8]>,
) -> io::Result<Vec<u8>> {
    while socket.is_ready_within(ANSWER) {
        let Received::Datagram(bytes) = socket.receive()? else { continue };
        for (kind, body) in messages(bytes) {
            if kind == ERROR {
                let error = u32(&mut &*body).ok_or(io::ErrorKind::InvalidData)?.cast_signed();
                if error != 0 {
                    return Err(io::Error::from_raw_os_error(error.saturating_neg()));
                }
            }
            if let Some(value) = wanted(kind, body) {
                return Ok(value.to_vec());
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// The value of the first attribute of this kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let rest = &mut attributes;
        let length = usize::from(u16(rest)?);
        let kind = u16(rest)? & !PACKED;
        let value = take(rest, length.checked_sub(4)?)?;
        skip_padding(rest, length);
        if kind == wanted {
            return Some(value);
        }
    }
}

/// What a datagram tells, and of whom.
pub(super) fn usages(datagram: &[u8], family: u16) -> impl Iterator<Item = (u32, Usage)> {
    messages(datagram).filter(move |(kind, _)| *kind == family).filter_map(|(_, body)| usage(body))
}

fn usage(body: &[u8]) -> Option<(u32, Usage)> {
    let (head, attributes) = body.split_first_chunk::<4>()?;
    if head[0] != NEW {
        return None;
    }
    // The last thread's end is the process's, and told with what all of them used together.
    let thread = of(attribute(attributes, OF_THREAD)?)?;
    let Some((pid, process)) = attribute(attributes, OF_PROCESS).and_then(of) else {
        return Some(thread);
    };
    Some((pid, Usage { cpu_ns: process.cpu_ns, ..thread.1 }))
}

/// Reads an id and, behind it, `struct taskstats` of `linux/taskstats.h`. New fields are added at
/// its end.
fn of(both: &[u8]) -> Option<(u32, Usage)> {
    const ID_OF_THREAD: u16 = 1;
    const ID_OF_PROCESS: u16 = 2;
    let id = attribute(both, ID_OF_THREAD).or_else(|| attribute(both, ID_OF_PROCESS))?;
    let stats = attribute(both, STATS)?;
    // One version had new fields in between.
    if u16(&mut &*stats)? == 15 {
        return None;
    }
    let at = |offset: usize| u64(&mut stats.get(offset..)?);
    // What ran is measured, and what the user and the system had of it mostly guessed by ticks.
    let (ran_ns, user_us, system_us, peak_kib) = (at(72)?, at(152)?, at(160)?, at(200)?);
    let ticks_ns = user_us.saturating_add(system_us).saturating_mul(1000);
    // Nobody has run for no time: that is too short to have been measured.
    let cpu_ns = [ran_ns, ticks_ns].into_iter().find(|ns| *ns > 0);
    let peak_bytes = (peak_kib > 0).then(|| peak_kib.saturating_mul(1024));
    Some((u32(&mut &*id)?, Usage { cpu_ns, peak_bytes }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn stats(id_kind: u16, id: u32, ran_ns: u64, peak_kib: u64) -> Vec<u8> {
        let mut stats = vec![0; 328];
        stats[72..80].copy_from_slice(&ran_ns.to_ne_bytes());
        stats[152..160].copy_from_slice(&3u64.to_ne_bytes());
        stats[160..168].copy_from_slice(&4u64.to_ne_bytes());
        stats[200..208].copy_from_slice(&peak_kib.to_ne_bytes());
        [packed(id_kind, &id.to_ne_bytes()), packed(STATS, &stats)].concat()
    }

    fn datagram(family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + 4 + attributes.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&family.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(&[command, 1, 0, 0]);
        bytes.extend_from_slice(attributes);
        bytes
    }

    #[test]
    fn reads_what_a_thread_and_what_a_process_used() {
        let thread = packed(OF_THREAD | 0x8000, &stats(1, 12, 700, 10));
        let process = packed(OF_PROCESS, &stats(2, 10, 9000, 0));
        let one = datagram(27, NEW, &thread);
        let used = |cpu_ns| Usage { cpu_ns: Some(cpu_ns), peak_bytes: Some(10 << 10) };
        assert_eq!(usages(&one, 27).collect::<Vec<_>>(), [(12, used(700))]);
        let last = datagram(27, NEW, &[thread, process].concat());
        assert_eq!(usages(&last, 27).collect::<Vec<_>>(), [(10, used(9000))]);
        assert_eq!(usages(&last, 28).count(), 0, "another family");
        assert_eq!(usages(&datagram(27, GET, &last[20..]), 27).count(), 0, "another command");
        // A kernel that does not add up what ran, or count memory.
        let plain = datagram(27, NEW, &packed(OF_THREAD, &stats(1, 12, 0, 0)));
        let usage = Usage { cpu_ns: Some(7000), peak_bytes: None };
        assert_eq!(usages(&plain, 27).collect::<Vec<_>>(), [(12, usage)]);
    }

    #[test]
    fn whatever_is_cut_short_is_nothing() {
        let whole = datagram(27, NEW, &packed(OF_THREAD, &stats(1, 12, 700, 10)));
        for length in 0..whole.len() {
            assert_eq!(usages(&whole[..length], 27).count(), 0, "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            bytes in proptest::collection::vec(any::<u8>(), 0..500),
            at in 0usize..400,
        ) {
            let mut whole = datagram(27, NEW, &packed(OF_THREAD, &stats(1, 12, 700, 10)));
            whole.splice(at.min(whole.len()).., bytes.iter().copied());
            prop_assert!(usages(&whole, 27).count() <= whole.len() / HEADER);
        }
    }
}
