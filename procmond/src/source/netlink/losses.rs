//! What of the kernel's words has not reached us.

use std::collections::HashMap;

use super::message::Message;

/// A hole wider than this is none: no buffer is filled up so often in between.
const HOLE_MAX: u32 = 1 << 28;

/// What of the kernel's words has not reached us.
#[derive(Default)]
pub(super) struct Losses {
    /// The number that each processor gives next.
    next: HashMap<u32, u32>,
    pub(super) holes: u64,
    /// How many found no room, as the socket counts.
    pub(super) dropped: u64,
    /// The socket has said that there are more.
    pub(super) has_more: bool,
}

impl Losses {
    /// Takes a message's number; says whether some before it are missing.
    pub(super) fn count(&mut self, message: &Message) -> bool {
        let next = self.next.entry(message.cpu).or_insert(message.sequence);
        let hole = message.sequence.wrapping_sub(*next);
        // Not every kernel numbers its answers; they then have any number.
        if hole > HOLE_MAX {
            return false;
        }
        *next = message.sequence.wrapping_add(1);
        let before = self.total();
        self.holes += u64::from(hole);
        self.total() > before
    }

    /// The same things are counted in two ways, each of which may know of them later, or not at
    /// all: a processor that tells nothing more shows no hole, and what the kernel had no memory
    /// for is not counted by the socket.
    pub(super) fn total(&self) -> u64 {
        self.holes.max(self.dropped)
    }
}
