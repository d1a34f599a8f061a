//! A reader of one segment, written from `docs/wal-format.md` alone and sharing no code with the
//! library: if the two disagree about a file, one of them or the document is wrong. It is what a
//! stranger has to write.

use std::ops::Range;

use crc32fast::hash;

/// Where it stands, its sequences, and a record's frame; none for what is lost.
pub(crate) type Entry<'a> = (usize, Range<u64>, Option<&'a [u8]>);

#[derive(Default)]
pub(crate) struct Segment<'a> {
    pub(crate) watermark: u64,
    pub(crate) entries: Vec<Entry<'a>>,
    /// What a crash has left of the last commit, if this is the newest segment.
    pub(crate) torn: Range<usize>,
}

/// A little-endian integer.
pub(crate) fn le(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// The head of a frame, and how long that is.
fn head(file: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let head = file.get(at..at + 32).filter(|head| head[..4] == [0xd7, 0x57, 0x41, 0x4c])?;
    let length = le(head, 8, 4) as usize;
    (length <= 16 << 20 && le(head, 16, 8) < 1 << 62).then_some((head, 32 + length))
}

/// What passes for a frame, and under which salt.
fn frame(file: &[u8], at: usize) -> Option<(&[u8], u64)> {
    let frame = file.get(at..at + head(file, at)?.1)?;
    Some((frame, le(frame, 4, 4) ^ u64::from(hash(&frame[8..]))))
}

/// The sequence of the record that stands here, or of the next one behind a control record.
fn place(head: &[u8]) -> u64 {
    le(head, 16, 8) + u64::from(head[12] == 0)
}

fn is_label(label: &[u8]) -> bool {
    let sane = |at| label.len() == 88 && le(label, at, 8) < 1 << 62;
    [48, 56, 80].into_iter().all(sane) && le(label, 48, 8) > 0 && le(label, 46, 2) <= 2
}

/// A segment's label, from its header or its first control record that vouches for itself; none if
/// neither is left, it is another segment's, or a newer program wrote it.
pub(crate) fn label(file: &[u8], number: u64) -> Option<&[u8]> {
    let header = file.get(..104).filter(|header| {
        let checksum = u64::from(hash(&[&header[..12], &header[16..]].concat()));
        header[..8] == *b"DEYEWAL\x1a" && le(header, 12, 4) == checksum && is_label(&header[16..])
    });
    let mut controls = (0..file.len()).filter_map(|at| {
        let (frame, salt) = frame(file, at).filter(|(f, _)| f[12] == 0 && is_label(&f[32..]))?;
        ((le(frame, 64, 8), le(frame, 72, 4)) == (number, salt)).then_some(&frame[32..])
    });
    let label = header.map(|header| &header[16..]).or_else(|| controls.next())?;
    let versions = (header.map_or(1, |header| le(header, 8, 2)), le(label, 44, 2));
    (versions == (1, 1) && le(label, 32, 8) == number).then_some(label)
}

/// Reads a segment. `next` is where the next one begins, none if this is the newest.
pub(crate) fn read(file: &[u8], number: u64, next: Option<u64>) -> Option<Segment<'_>> {
    let label = label(file, number)?;
    let (salt, first) = (le(label, 40, 4), le(label, 48, 8));
    let (mut expected, mut proven) = (first, next.map_or(0, |next| next - 1));
    let (mut at, mut end) = (104, 104);
    let mut read = Segment { watermark: le(label, 56, 8), ..Segment::default() };
    let whole =
        |at| Some((at, frame(file, at).filter(|&(f, s)| s == salt && place(f) >= first)?.0));
    while let Some((found, f)) = (at..file.len()).find_map(whole) {
        at = found + f.len();
        if next.is_some_and(|next| le(f, 16, 8) >= next) {
            continue;
        }
        if place(f) > expected {
            read.entries.push((end, expected..place(f), None));
        }
        if f[12] == 0 {
            read.watermark = read.watermark.max(le(f, 32 + 56, 8));
        } else if place(f) >= expected {
            read.entries.push((end, place(f)..place(f) + 1, Some(f)));
        }
        let before = Some(le(f, 13, 3)).filter(|&before| before < 0xff_ffff);
        proven = proven.max(before.map_or(0, |before| (place(f) - 1).saturating_sub(before)));
        (end, expected) = (at, expected.max(le(f, 16, 8) + 1));
    }
    read.torn = end..match (le(label, 46, 2), head(file, end)) {
        (0, _) => file.len(),
        (1, _) => (end..file.len()).rev().find(|&at| file[at] != 0).map_or(end, |at| at + 1),
        (_, Some((head, length))) if place(head) == expected => file.len().min(end + length),
        _ => end,
    };
    if let Some(next) = next.filter(|&next| next > expected) {
        read.entries.push((end, expected..next, None));
    }
    // A hole that reaches beyond what is proven is where a crash has torn the last commit.
    let beyond = |(_, lost, f): &(_, Range<u64>, Option<_>)| f.is_none() && lost.end > proven + 1;
    if let Some(hole) = read.entries.iter().position(beyond) {
        let (at, lost, _) = read.entries.drain(hole..).next()?;
        read.torn.start = at;
        read.entries.extend((lost.start <= proven).then_some((at, lost.start..proven + 1, None)));
    }
    Some(read)
}
