//! The frame header and the decoder that cuts a byte stream into frames.

use bytes::{Buf, BytesMut};

use super::WireError;

/// Every frame begins with: u32 length of the body, u8 kind, u8 flags, u16 reserved (0).
pub const HEADER_BYTES: usize = 8;
/// The longest body any receiver takes unless told otherwise.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Flag: a receiver that does not know the kind skips the frame.
pub const OPTIONAL: u8 = 1;

/// Blocks read into. Frames are slices of a block, so a block lives as long as the last of its
/// frames that is still queued somewhere.
const BLOCK_BYTES: usize = 64 * 1024;
/// A new block is begun when less than this is free. If a fresh block were taken for every read, a
/// trickle of small frames would pin a whole block each.
const FREE_BYTES_MIN: usize = 8 * 1024;

/// A frame whose body has not been looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// The kind byte; see [`Kind`](super::Kind).
    pub kind: u8,
    /// [`OPTIONAL`] or 0.
    pub flags: u8,
    /// The body.
    pub body: BytesMut,
}

/// Cuts a stream of bytes into frames. Reading into [`buffer`](Self::buffer) is cancel-safe as far
/// as the read itself is: whatever has arrived stays here.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    body_bytes_max: usize,
}

impl FrameDecoder {
    /// A decoder that refuses bodies longer than `body_bytes_max`.
    #[must_use]
    pub fn new(body_bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), body_bytes_max }
    }

    /// The buffer to read into, with room for the next read. The room grows with what has really
    /// arrived, never with what a header announces.
    pub fn buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < FREE_BYTES_MIN {
            self.buffer.reserve(BLOCK_BYTES.max(self.buffer.len()));
        }
        &mut self.buffer
    }

    /// Whether bytes of an unfinished frame are waiting for their rest.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole frame, if one has arrived. After an error the stream cannot be resumed.
    pub fn next_frame(&mut self) -> Result<Option<RawFrame>, WireError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let (kind, flags) = (header[4], header[5]);
        let body_bytes = length as usize;
        if body_bytes > self.body_bytes_max {
            return Err(WireError::FrameTooLong { bytes: length, limit: self.body_bytes_max });
        }
        if self.buffer.len() - HEADER_BYTES < body_bytes {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some(RawFrame { kind, flags, body: self.buffer.split_to(body_bytes) }))
    }
}
