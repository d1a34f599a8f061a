//! What netlink sends: the process connector's messages and TASKSTATS.
//!
//! Only the kernel is believed, so this is about its other versions rather than about strangers. The
//! same bytes are read by offsets from the kernel's headers (`linux/netlink.h`, `connector.h`,
//! `cn_proc.h`, `genetlink.h`, `taskstats.h`).

use procmond::source::fuzzing::{Told, Used, told, used};

use crate::allocations::bounded;
use crate::input::Input;
use crate::mutate::mutate;

const FAMILY: u16 = 27;
const DONE: u16 = 3;
const EVENTS: [u32; 11] = [0, 1, 2, 4, 0x40, 0x80, 0x100, 0x200, 0x4000_0000, 0x8000_0000, 7];

pub fn netlink(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    let mut bytes = match kind % 4 {
        0 => input.rest().to_vec(),
        1 => packets(&mut input, DONE, connector),
        _ => packets(&mut input, FAMILY, taskstats),
    };
    if kind >= 128 {
        mutate(&mut input, &mut bytes, 6);
    }
    let most = (64 << 10) + 16 * bytes.len();
    assert_eq!(bounded(most, || told(&bytes)), expect_told(&bytes));
    assert_eq!(bounded(most, || used(&bytes, FAMILY)), expect_used(&bytes));
}

/// Messages, most of them of this kind.
fn packets(input: &mut Input<'_>, kind: u16, body: fn(&mut Input<'_>) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !input.is_done() && bytes.len() < 4096 {
        let body = body(input);
        bytes.extend((16 + body.len() as u32).to_ne_bytes());
        let other = input.u8();
        bytes.extend(if other < 8 { u16::from(other) } else { kind }.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn connector(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let index = if input.u8() < 8 { 2_u32 } else { 1 };
    bytes.extend([index, 1, input.number(4) as u32, 0].map(u32::to_ne_bytes).concat());
    let length = 16 + input.below(48);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(EVENTS[input.below(EVENTS.len())].to_ne_bytes());
    bytes.extend(u32::from(input.u8()).to_ne_bytes());
    bytes.extend(input.number(8).to_ne_bytes());
    while bytes.len() < 20 + length {
        bytes.push(input.u8());
    }
    bytes
}

fn taskstats(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = vec![if input.u8() < 8 { 1 } else { 2 }, 1, 0, 0];
    for _ in 0..1 + input.below(3) {
        let mut stats = vec![0; input.below(400)];
        for at in [0, 72, 152, 160, 200] {
            let value = input.odd().to_ne_bytes();
            if let Some(field) = stats.get_mut(at..at + 8) {
                field.copy_from_slice(&value);
            }
        }
        let id = attribute(1 + u16::from(input.u8() % 3), &(input.number(3) as u32).to_ne_bytes());
        let both = [id, attribute(3, &stats)].concat();
        // What it is of, and how it is packed.
        let kind = (4 + u16::from(input.u8() % 3)) | (u16::from(input.u8()) << 8 & 0xc000);
        bytes.extend(attribute(kind, &both));
    }
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = [(length as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Where each message's body is, and of what kind it is.
fn bodies(bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut bodies = Vec::new();
    let mut at = 0;
    while at + 16 <= bytes.len() {
        let length = u32_at(bytes, at) as usize;
        if length < 16 || length > bytes.len() - at {
            break;
        }
        bodies.push((u16_at(bytes, at + 4), &bytes[at + 16..at + length]));
        at += length.next_multiple_of(4);
    }
    bodies
}

fn expect_told(bytes: &[u8]) -> Vec<Told> {
    let mut all = Vec::new();
    for (kind, body) in bodies(bytes) {
        if kind != DONE || body.len() < 20 || u64_at(body, 0) != 1 | 1 << 32 {
            continue;
        }
        let length = usize::from(u16_at(body, 16));
        let Some(event) = body.get(20..20 + length).filter(|event| event.len() >= 20) else {
            continue;
        };
        let what = u32_at(event, 0);
        let (ids_at, values, least) = match what {
            0 => (None, 16..20, 20),
            1 => (Some(24), 20..24, 32),
            2 | 0x80 => (Some(16), 24..24, 24),
            4 | 0x40 => (Some(16), 24..32, 32),
            0x200 => (Some(16), 24..40, 40),
            0x8000_0000 => (Some(16), 24..28, 28),
            _ => (Some(16), 24..24, 24),
        };
        if event.len() < least {
            continue;
        }
        let is_known = matches!(what, 0 | 1 | 2 | 4 | 0x40 | 0x80 | 0x200 | 0x8000_0000);
        all.push(Told {
            cpu: [u32_at(event, 4), u32_at(body, 8)],
            at_ns: u64_at(event, 8),
            ids: ids_at.map_or([0, 0], |at| [u32_at(event, at), u32_at(event, at + 4)]),
            what: is_known.then_some(what),
            values: event[values].to_vec(),
        });
    }
    all
}

/// The first attribute of a kind, as long as nothing before it is broken.
fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut at = 0;
    while at + 4 <= bytes.len() {
        let length = usize::from(u16_at(bytes, at));
        if length < 4 || length > bytes.len() - at {
            return None;
        }
        if u16_at(bytes, at + 2) & 0x3fff == wanted {
            return Some(&bytes[at + 4..at + length]);
        }
        at += length.next_multiple_of(4);
    }
    None
}

fn expect_used(bytes: &[u8]) -> Vec<Used> {
    let of = |nest: &[u8]| -> Option<Used> {
        let id = find(nest, 1).or_else(|| find(nest, 2))?;
        let stats = find(nest, 3)?;
        if stats.len() < 208 || id.len() < 4 || u16_at(stats, 0) == 15 {
            return None;
        }
        let ticks = u64_at(stats, 152).saturating_add(u64_at(stats, 160)).saturating_mul(1000);
        let ran = if u64_at(stats, 72) > 0 { u64_at(stats, 72) } else { ticks };
        let peak = u64_at(stats, 200).saturating_mul(1024);
        Some((u32_at(id, 0), (ran > 0).then_some(ran), (peak > 0).then_some(peak)))
    };
    let mut all = Vec::new();
    for (kind, body) in bodies(bytes) {
        if kind != FAMILY || body.len() < 4 || body[0] != 2 {
            continue;
        }
        let attributes = &body[4..];
        let Some(thread) = find(attributes, 4).and_then(of) else { continue };
        all.push(match find(attributes, 5).and_then(of) {
            Some((pid, cpu_ns, _)) => (pid, cpu_ns, thread.2),
            None => thread,
        });
    }
    all
}
