//! A reader of one segment, written from `docs/wal-format.md` alone and sharing no code with the
//! library: if the two disagree about a file, one of them or the document is wrong. It says more of
//! damage than the one that reads the golden files (`procmond/tests/golden/decoder.rs`).

use std::ops::Range;

/// Bytes that pass for a frame; under which salt they do is for the caller to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) span: (usize, usize),
    pub(crate) salt: u32,
    pub(crate) kind: u8,
    pub(crate) before_in_commit: u64,
    pub(crate) sequence: u64,
    pub(crate) time_ns: i64,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    Record(Frame<'a>),
    Lost { first: u64, last: u64, damaged: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) label: &'a [u8],
    pub(crate) watermark: u64,
    pub(crate) entries: Vec<Entry<'a>>,
    /// The last sequence it is there for.
    pub(crate) last: u64,
    /// What a crash has left of the last commit, if this is the newest segment.
    pub(crate) torn: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Newer,
    Unreadable,
}

const LIMIT: u64 = 1 << 62;

/// A little-endian integer.
pub(crate) fn le(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

pub(crate) fn frame(file: &[u8], at: usize) -> Option<Frame<'_>> {
    let head = file.get(at..at + 32)?;
    let (length, sequence) = (le(head, 8, 4) as usize, le(head, 16, 8));
    if head[..4] != [0xd7, 0x57, 0x41, 0x4c] || length > 16 << 20 || sequence >= LIMIT {
        return None;
    }
    let bytes = file.get(at..at + 32 + length)?;
    Some(Frame {
        span: (at, at + 32 + length),
        salt: le(bytes, 4, 4) as u32 ^ crc32fast::hash(&bytes[8..]),
        kind: bytes[12],
        before_in_commit: le(bytes, 13, 3),
        sequence,
        time_ns: le(bytes, 24, 8) as i64,
        payload: &bytes[32..],
    })
}

impl<'a> Frame<'a> {
    /// The sequence of the record that stands here, or of the next one behind a control record.
    fn position(&self) -> u64 {
        self.sequence + u64::from(self.kind == 0)
    }

    fn proves(&self) -> u64 {
        let proven = self.position().saturating_sub(1 + self.before_in_commit);
        if self.before_in_commit == 0xff_ffff { 0 } else { proven }
    }

    fn label(&self) -> Option<&'a [u8]> {
        let label = Some(self.payload).filter(|label| self.kind == 0 && is_label(label))?;
        (le(label, 40, 4) == u64::from(self.salt)).then_some(label)
    }
}

fn is_label(bytes: &[u8]) -> bool {
    let below = [48, 56, 80].iter().all(|&at| bytes.len() == 88 && le(bytes, at, 8) < LIMIT);
    let sane = below && le(bytes, 46, 2) <= 2 && le(bytes, 48, 8) >= 1;
    sane && (bytes[16..32] != bytes[..16] || bytes[..16] == [0; 16])
}

/// What the header says, if it is whole and this segment's.
pub(crate) fn header(file: &[u8], number: u64) -> Result<Option<&[u8]>, Refusal> {
    if let Some(header) = file.get(..104)
        && header[..8] == *b"DEYEWAL\x1a"
        && le(header, 12, 4) as u32 == crc32fast::hash(&[&header[..12], &header[16..]].concat())
    {
        if (le(header, 8, 2), le(header, 16 + 44, 2)) != (1, 1) {
            return Err(Refusal::Newer);
        }
        if is_label(&header[16..]) && le(header, 16 + 32, 8) == number {
            return Ok(Some(&header[16..]));
        }
    }
    Ok(None)
}

/// What the segment says of itself.
pub(crate) fn label(file: &[u8], number: u64) -> Result<&[u8], Refusal> {
    match header(file, number)? {
        Some(label) => Ok(label),
        None => label_of_controls(file, number, &[]),
    }
}

/// What its control records say, those of these streams if there are any.
pub(crate) fn label_of_controls<'a>(
    file: &'a [u8],
    number: u64,
    streams: &[Vec<u8>],
) -> Result<&'a [u8], Refusal> {
    let controls = (0..file.len()).filter_map(|at| frame(file, at)?.label());
    let controls = controls.filter(|label| le(label, 32, 8) == number);
    let of_them = |label: &&[u8]| streams.is_empty() || streams.contains(&label[..16].to_vec());
    let controls: Vec<_> = controls.filter(of_them).collect();
    let mut labels: Vec<&[u8]> = Vec::new();
    for label in controls.iter().filter(|label| le(label, 44, 2) == 1) {
        if labels.len() < 8 && labels.iter().all(|known| known[40..44] != label[40..44]) {
            labels.push(label);
        }
    }
    // The first of those whose frames come to the most bytes.
    let right = labels.into_iter().rev().max_by_key(|label| whole_bytes(file, label));
    right.ok_or(if controls.is_empty() { Refusal::Unreadable } else { Refusal::Newer })
}

fn whole_bytes(file: &[u8], label: &[u8]) -> usize {
    let (mut at, mut bytes) = (104, 0);
    while at < file.len() {
        let whole = frame(file, at).filter(|frame| {
            u64::from(frame.salt) == le(label, 40, 4) && frame.position() >= le(label, 48, 8)
        });
        let end = whole.map_or(at + 1, |frame| frame.span.1);
        bytes += if whole.is_some() { end - at } else { 0 };
        at = end;
    }
    bytes
}

/// Reads a segment. `next_first` is where the next one begins; `u64::MAX` if there are later ones
/// but not the next, and none if it is the newest.
pub(crate) fn read<'a>(file: &'a [u8], label: &'a [u8], next_first: Option<u64>) -> Segment<'a> {
    let (salt, first) = (le(label, 40, 4) as u32, le(label, 48, 8));
    let whole = |at| frame(file, at).filter(|f| f.salt == salt && f.position() >= first);
    let (mut watermark, mut expected) = (le(label, 56, 8), first);
    let mut proven = next_first.map_or(0, |next| next - 1);
    let (mut at, mut end, mut hurt, mut entries) = (104, 104, None, Vec::new());
    while let Some(frame) = (at..file.len()).find_map(whole) {
        hurt = if frame.span.0 > at { Some(at) } else { hurt };
        at = frame.span.1;
        if next_first.is_some_and(|next| frame.sequence >= next) {
            continue;
        }
        if frame.position() > expected {
            let (first, last) = (expected, frame.position() - 1);
            let lost = Entry::Lost { first, last, damaged: hurt.is_some() };
            entries.push((hurt.unwrap_or(frame.span.0), lost));
            expected = frame.position();
        }
        if let Some(label) = frame.label() {
            watermark = watermark.max(le(label, 56, 8));
        } else if frame.kind != 0 && frame.sequence == expected {
            entries.push((frame.span.0, Entry::Record(frame)));
            expected += 1;
        }
        proven = proven.max(frame.proves());
        (end, hurt) = (at, None);
    }
    let mut torn = end..match le(label, 46, 2) {
        0 => file.len(),
        1 => (end..file.len()).rev().find(|&at| file[at] != 0).map_or(end, |at| at + 1),
        _ => torn_frame(file, end, expected).unwrap_or(end),
    };
    let limit = next_first.filter(|&next| next < u64::MAX && expected < next);
    if let Some(next) = limit {
        let damaged = hurt.is_some() || at < file.len();
        entries.push((end, Entry::Lost { first: expected, last: next - 1, damaged }));
        expected = next;
    }
    let hole = entries
        .iter()
        .position(|(_, entry)| matches!(entry, Entry::Lost { last, .. } if *last > proven));
    if let Some(index) = hole
        && let (offset, Entry::Lost { first, damaged, .. }) = entries[index]
    {
        torn.start = offset;
        entries.truncate(index);
        expected = first.max(proven + 1);
        if first <= proven {
            entries.push((offset, Entry::Lost { first, last: proven, damaged }));
        }
    }
    let entries = entries.into_iter().map(|(_, entry)| entry).collect();
    Segment { label, watermark, entries, last: expected - 1, torn }
}

/// Where the frame ends that begins here and would be the next, if its head says so.
fn torn_frame(file: &[u8], at: usize, expected: u64) -> Option<usize> {
    let head = file.get(at..at + 32)?;
    let (length, sequence) = (le(head, 8, 4) as usize, le(head, 16, 8));
    let next = sequence == if head[12] == 0 { expected - 1 } else { expected };
    let sane = head[..4] == [0xd7, 0x57, 0x41, 0x4c] && length <= 16 << 20 && sequence < LIMIT;
    (sane && next).then_some(file.len().min(at + 32 + length))
}
