//! How netlink packs messages into datagrams: `struct nlmsghdr` of `linux/netlink.h`.
//!
//! Bytes that are not as that says give nothing; nothing here fails.

use super::super::native::{take, u16, u32};

/// The length of a header.
pub(super) const HEADER: usize = 16;

/// The messages of a datagram: their kinds, and what follows their headers.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let rest = &mut datagram;
        let length = u32(rest)? as usize;
        let kind = u16(rest)?;
        take(rest, HEADER - 6)?;
        let body = take(rest, length.checked_sub(HEADER)?)?;
        skip_padding(rest, length);
        Some((kind, body))
    })
}

/// Whatever follows something of this length begins at a multiple of four.
pub(super) fn skip_padding(rest: &mut &[u8], length: usize) {
    take(rest, (length.next_multiple_of(4) - length).min(rest.len()));
}
