//! Reading what the kernel lays out in memory, in its own byte order, and waiting for it.
//!
//! Each reading function takes its bytes off the front, and gives `None` and takes nothing if there
//! are too few.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

pub(super) fn u16(bytes: &mut &[u8]) -> Option<u16> {
    array(bytes).map(u16::from_ne_bytes)
}

pub(super) fn u32(bytes: &mut &[u8]) -> Option<u32> {
    array(bytes).map(u32::from_ne_bytes)
}

pub(super) fn u64(bytes: &mut &[u8]) -> Option<u64> {
    array(bytes).map(u64::from_ne_bytes)
}

pub(super) fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(first)
}

/// Waits until a descriptor can be read; says whether it can.
pub(super) fn is_ready_within(fd: impl AsFd, most: Duration) -> bool {
    let mut ready = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec::try_from(most).ok();
    // Interrupted, it can not yet.
    poll(&mut ready, timeout.as_ref()).is_ok_and(|count| count > 0)
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}
