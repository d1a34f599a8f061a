//! The protocol's bytes, without any I/O: frames, messages and entries.
//!
//! `docs/bus-protocol.md` is the specification; this module is its implementation and can be used
//! to write tools and tests that speak it. Everything is little-endian. Payloads are never copied
//! while decoding: a decoded frame is a slice of the buffer that was read into.
//!
//! ```
//! use bytes::BytesMut;
//! use daemoneye_eventbus::wire::{Frame, FrameDecoder};
//!
//! let mut wire = BytesMut::new();
//! Frame::Ping { token: 7 }.encode(&mut wire);
//! assert_eq!(&wire[..], [8, 0, 0, 0, 15, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
//!
//! let mut decoder = FrameDecoder::new(1024);
//! decoder.buffer().extend_from_slice(&wire);
//! let raw = decoder.next_frame()?.expect("the frame is whole");
//! assert_eq!(Frame::decode(raw)?, Some(Frame::Ping { token: 7 }));
//! # Ok::<(), daemoneye_eventbus::wire::WireError>(())
//! ```

mod entries;
mod fields;
mod frame;
mod message;

pub(crate) use self::entries::ALIAS_AT;
pub use self::entries::{ENTRY_HEADER_BYTES, Entries, EntryHeader, append_entry};
pub use self::frame::{
    FRAME_BYTES_MAX, FrameDecoder, HEADER_BYTES, HELLO_BYTES_MAX, OPTIONAL, RawFrame,
};
pub use self::message::{
    Deliver, Frame, GoodbyeCode, Hello, Kind, MessageFrame, Publish, RefusalCode, Refused,
    SubscribeFrame, SubscribeKind, Undeliverable, UndeliverableCode, Welcome,
};
pub(crate) use self::message::{deliver_head, publish_frame};

/// The protocol version this crate speaks; both the least and the greatest.
pub const VERSION: u16 = 1;
/// The first four bytes of every Hello: `DEYE`.
pub const MAGIC: [u8; 4] = *b"DEYE";
/// The longest payload of a control message.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Aliases a sender may declare are below this.
pub const ALIASES_MAX: u16 = 4096;

/// Why bytes are not what the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header announces more than the receiver takes.
    #[error("a frame of {bytes} bytes exceeds the limit of {limit}")]
    FrameTooLong {
        /// The announced length of the body.
        bytes: u32,
        /// The receiver's limit.
        limit: usize,
    },
    /// The kind is not known and the sender did not mark it as one that may be skipped.
    #[error("frame kind {kind} is unknown and not marked as optional; the peer is newer")]
    UnknownKind {
        /// The kind byte.
        kind: u8,
    },
    /// The body does not hold what its kind prescribes.
    #[error("a {kind} frame is malformed: {problem}")]
    Malformed {
        /// The frame's kind.
        kind: Kind,
        /// What is wrong.
        problem: &'static str,
    },
}

#[cfg(test)]
mod tests;
