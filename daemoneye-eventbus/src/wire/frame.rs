//! The frame header and the decoder that cuts a byte stream into frames.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::WireError;

/// Every frame begins with: u32 length of the body, u8 kind, u8 flags, u16 reserved (0).
pub const HEADER_BYTES: usize = 8;
/// The longest body any receiver takes unless told otherwise.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Flag: a receiver that does not know the kind skips the frame.
pub const OPTIONAL: u8 = 1;

/// Blocks read into: small for a peer that says little, doubled while reads fill them. Frames are
/// slices of a block, so a block lives as long as the last of its frames that is still queued
/// somewhere.
const BLOCK_BYTES_MIN: usize = 8 * 1024;
const BLOCK_BYTES_MAX: usize = 256 * 1024;
/// Blocks kept for reading into again once their frames are gone. Without them every block is
/// returned to the system and faulted in anew, which costs more than copying its bytes.
const BLOCKS_KEPT_MAX: usize = 3;

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
    /// Handles on earlier blocks.
    kept: VecDeque<BytesMut>,
}

impl FrameDecoder {
    /// A decoder that refuses bodies longer than `body_bytes_max`.
    #[must_use]
    pub fn new(body_bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            body_bytes_max,
            block_bytes: BLOCK_BYTES_MIN,
            kept: VecDeque::new(),
        }
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
        // A new block only when the old one is nearly used up: with a fresh one for every read, a
        // trickle of small frames would pin a whole block each.
        if self.buffer.capacity() - self.buffer.len() < self.block_bytes / 8 {
            self.begin_block();
        }
        &mut self.buffer
    }

    /// Goes on in another block, taking along the beginning of an unfinished frame.
    fn begin_block(&mut self) {
        let unfinished = self.buffer.len();
        let block_bytes = self.block_bytes.max(2 * unfinished);
        let free = self.kept.iter_mut().position(|block| block.try_reclaim(block_bytes));
        let mut block = free
            .and_then(|at| self.kept.remove(at))
            .unwrap_or_else(|| BytesMut::with_capacity(block_bytes));
        block.extend_from_slice(&self.buffer);
        let mut old = std::mem::replace(&mut self.buffer, block);
        old.clear();
        if old.capacity() > 0 {
            self.kept.push_back(old);
        }
        if self.kept.len() > BLOCKS_KEPT_MAX {
            self.kept.pop_front();
        }
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
