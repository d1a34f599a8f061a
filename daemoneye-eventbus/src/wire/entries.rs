//! Entries as they stand in Publish and Deliver: the same bytes in both, so that the broker
//! forwards them without encoding anything again.

use bytes::{BufMut, BytesMut};
use daemoneye_lib::stream::Sequence;

/// Each entry begins with: u64 sequence, u64 span, i64 timestamp, u32 payload length, u16 topic
/// alias, u16 reserved (0). The payload follows.
pub const ENTRY_HEADER_BYTES: usize = 32;
/// Where the alias stands, for the broker to put its own in place of the publisher's.
pub(crate) const ALIAS_AT: usize = 28;

const _: () = assert!(8 + 8 + 8 + 4 == ALIAS_AT && ALIAS_AT + 2 + 2 == ENTRY_HEADER_BYTES);

/// The fixed part of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// Its place in the stream.
    pub sequence: Sequence,
    /// How many sequences it stands for, ending at its own; at least 1.
    pub span: u64,
    /// Wall clock in nanoseconds since 1970.
    pub timestamp_ns: i64,
    /// Length of the payload.
    pub payload_bytes: u32,
    /// The alias under which the topic was declared.
    pub alias: u16,
}

impl EntryHeader {
    /// Reads the entry at the start of `bytes`; the payload is known to be there, too.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let raw = bytes.first_chunk::<ENTRY_HEADER_BYTES>().ok_or("an entry ends early")?;
        let u64_at = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&raw[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        let header = Self {
            sequence: Sequence(u64_at(0)),
            span: u64_at(8),
            timestamp_ns: u64_at(16).cast_signed(),
            payload_bytes: u32::from_le_bytes([raw[24], raw[25], raw[26], raw[27]]),
            alias: u16::from_le_bytes([raw[28], raw[29]]),
        };
        if bytes.len() - ENTRY_HEADER_BYTES < header.payload_bytes as usize {
            return Err("an entry's payload ends early");
        }
        if header.span == 0 || header.span > header.sequence.0 {
            return Err("an entry spans more sequences than precede it, or none");
        }
        Ok(header)
    }

    /// The length of the whole entry.
    #[must_use]
    pub fn entry_bytes(&self) -> usize {
        ENTRY_HEADER_BYTES + self.payload_bytes as usize
    }

    /// The sequence before the first one this entry stands for.
    #[must_use]
    pub fn after(&self) -> Sequence {
        Sequence(self.sequence.0 - self.span)
    }
}

/// Walks over encoded entries: their headers and payloads.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Entries standing one after another in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(EntryHeader, &'a [u8]), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match EntryHeader::read(self.rest) {
            Ok(header) => {
                let (entry, rest) = self.rest.split_at(header.entry_bytes());
                self.rest = rest;
                Some(Ok((header, &entry[ENTRY_HEADER_BYTES..])))
            }
            Err(problem) => {
                self.rest = &[];
                Some(Err(problem))
            }
        }
    }
}

/// Appends an entry. `payload` is at most `u32::MAX` bytes; frames are far shorter.
pub fn append_entry(
    out: &mut BytesMut,
    sequence: Sequence,
    span: u64,
    timestamp_ns: i64,
    alias: u16,
    payload: &[u8],
) {
    out.reserve(ENTRY_HEADER_BYTES + payload.len());
    out.put_u64_le(sequence.0);
    out.put_u64_le(span);
    out.put_i64_le(timestamp_ns);
    out.put_u32_le(payload.len() as u32);
    out.put_u16_le(alias);
    out.put_u16_le(0);
    out.put_slice(payload);
}
