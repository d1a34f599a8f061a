//! The frame header and the decoder that cuts a byte stream into frames.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::WireError;
use crate::blocks::Blocks;

/// Every frame begins with: u32 length of the body, u8 kind, u8 flags, u16 reserved (0).
pub const HEADER_BYTES: usize = 8;
/// The longest body any receiver takes unless told otherwise.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest Hello, and so the most a stranger makes the broker hold.
pub const HELLO_BYTES_MAX: usize = 4096;
/// Flag: a receiver that does not know the kind skips the frame.
pub const OPTIONAL: u8 = 1;

/// Blocks read into: small for a peer that says little, doubled while reads fill them. Frames are
/// slices of a block, so a block lives as long as the last of its frames that is still queued
/// somewhere.
const BLOCK_BYTES_MIN: usize = 8 * 1024;
const BLOCK_BYTES_MAX: usize = 256 * 1024;

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

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    body_bytes_max: usize,
    block_bytes: usize,
    /// Earlier blocks, to be read into again.
    blocks: Blocks,
}

impl FrameDecoder {
    /// A decoder that refuses bodies longer than `body_bytes_max`.
    #[must_use]
    pub fn new(body_bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            body_bytes_max,
            block_bytes: BLOCK_BYTES_MIN,
            blocks: Blocks::default(),
        }
    }

    /// Refuses bodies longer than `body_bytes_max` from now on.
    pub(crate) fn set_body_bytes_max(&mut self, body_bytes_max: usize) {
        self.body_bytes_max = body_bytes_max;
    }

    /// Reads once. Returns how many bytes have come; 0 at the end of the stream. Cancel-safe:
    /// whatever has come is kept.
    pub async fn read_from(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        let buffer = self.buffer();
        let room = buffer.capacity() - buffer.len();
        let read = reader.read_buf(buffer).await?;
        if read == room {
            self.block_bytes = (self.block_bytes * 2).min(BLOCK_BYTES_MAX);
        }
        Ok(read)
    }

    /// The buffer to put bytes into, with room for some. The room grows with what has really
    /// arrived, never with what a header announces.
    pub fn buffer(&mut self) -> &mut BytesMut {
        let unfinished = self.buffer.len();
        let room = self.buffer.capacity() - unfinished;
        // From the front of the block again if all of its frames are gone: that memory is in the
        // caches. Else a new block only when this one is nearly used up: with a fresh one for every
        // read, a trickle of small frames would pin a whole block each.
        let nearly_full = room < self.block_bytes / 8;
        let reclaimed = (unfinished == 0 || nearly_full)
            && self.buffer.try_reclaim(self.block_bytes.saturating_sub(unfinished));
        if nearly_full && !reclaimed {
            self.begin_block();
        }
        &mut self.buffer
    }

    /// Goes on in another block, taking along the beginning of an unfinished frame.
    fn begin_block(&mut self) {
        let unfinished = self.buffer.len();
        let block_bytes = self.block_bytes.max(2 * unfinished);
        let mut block = self.blocks.take(block_bytes);
        block.extend_from_slice(&self.buffer);
        self.blocks.keep(std::mem::replace(&mut self.buffer, block));
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
