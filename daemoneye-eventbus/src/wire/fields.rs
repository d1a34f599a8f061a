//! Reading and writing the fields of a body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

/// A body being read. Every method fails, and none panics, when the body is too short.
pub(super) struct Fields<'a> {
    rest: &'a mut BytesMut,
}

pub(super) type Problem = &'static str;
const SHORT: Problem = "it ends early";

impl<'a> Fields<'a> {
    pub(super) fn new(rest: &'a mut BytesMut) -> Self {
        Self { rest }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let array = *self.rest.first_chunk::<N>().ok_or(SHORT)?;
        self.rest.advance(N);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Problem> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Problem> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    pub(super) fn u16(&mut self) -> Result<u16, Problem> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn sequence(&mut self) -> Result<Sequence, Problem> {
        self.u64().map(Sequence)
    }

    pub(super) fn epoch(&mut self) -> Result<Epoch, Problem> {
        self.u64().map(Epoch::from_u64)
    }

    pub(super) fn stream(&mut self) -> Result<StreamId, Problem> {
        self.array().map(StreamId::from_bytes)
    }

    /// A text: u16 length, then that many bytes of UTF-8.
    pub(super) fn text(&mut self) -> Result<String, Problem> {
        let bytes = self.short_bytes()?;
        String::from_utf8(bytes.into()).map_err(|_| "a text is not UTF-8")
    }

    fn short_bytes(&mut self) -> Result<BytesMut, Problem> {
        let len = usize::from(self.u16()?);
        if self.rest.len() < len {
            return Err(SHORT);
        }
        Ok(self.rest.split_to(len))
    }

    /// How many items follow, each of at least `item_bytes_min` bytes: a count that cannot be true
    /// is refused before anything is allocated for it.
    pub(super) fn count(&mut self, item_bytes_min: usize) -> Result<usize, Problem> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / item_bytes_min {
            return Err("it announces more items than it holds");
        }
        Ok(count)
    }

    /// Everything that is left, still writable.
    pub(super) fn rest_mut(&mut self) -> BytesMut {
        self.rest.split()
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> Bytes {
        self.rest_mut().freeze()
    }
}

/// Writes a text as [`Fields::text`] reads it. Texts are short by construction; what would not fit
/// is cut at a character.
pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    let cut = text.floor_char_boundary(usize::from(u16::MAX));
    out.put_u16_le(cut as u16);
    out.put_slice(&text.as_bytes()[..cut]);
}
