//! A log as a writer would have left it, made from a plan by the format document alone, and what
//! was written into it.

use std::collections::BTreeMap;

use crate::input::Input;

pub const STREAM: [u8; 16] = *b"a stream's bytes";

/// One frame in a file.
#[derive(Debug, Clone)]
pub struct Placed {
    pub start: usize,
    pub end: usize,
    pub kind: u8,
    pub sequence: u64,
    /// The last sequence that was durable before its commit was written.
    pub proves: u64,
}

#[derive(Debug, Clone)]
pub struct File {
    pub number: u64,
    pub bytes: Vec<u8>,
    pub frames: Vec<Placed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub kind: u8,
    pub time_ns: i64,
    pub payload: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct Log {
    pub files: Vec<File>,
    pub records: BTreeMap<u64, Record>,
    pub watermark: u64,
}

#[derive(Debug, Clone)]
pub struct Label {
    pub stream: [u8; 16],
    pub replaces: [u8; 16],
    pub number: u64,
    pub salt: u32,
    pub codec: u16,
    pub rest: u16,
    pub first: u64,
    pub watermark: u64,
    pub watermark_epoch: u64,
    pub epoch: u64,
    pub epoch_first: u64,
}

impl Label {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(88);
        bytes.extend(self.stream);
        bytes.extend(self.replaces);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.salt.to_le_bytes());
        bytes.extend(self.codec.to_le_bytes());
        bytes.extend(self.rest.to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(self.watermark.to_le_bytes());
        bytes.extend(self.watermark_epoch.to_le_bytes());
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.epoch_first.to_le_bytes());
        bytes
    }

    pub fn header(&self, version: u16, header_bytes: u16) -> Vec<u8> {
        let mut bytes = b"DEYEWAL\x1a".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(header_bytes.to_le_bytes());
        let label = self.bytes();
        let checksum = crc32fast::hash(&[&bytes[..], &label].concat());
        bytes.extend(checksum.to_le_bytes());
        bytes.extend(label);
        bytes
    }
}

pub fn frame(
    salt: u32,
    kind: u8,
    before_in_commit: u64,
    sequence: u64,
    time_ns: i64,
    payload: &[u8],
) -> Vec<u8> {
    let mut checked = Vec::with_capacity(24 + payload.len());
    checked.extend((payload.len() as u32).to_le_bytes());
    checked.push(kind);
    checked.extend(&before_in_commit.to_le_bytes()[..3]);
    checked.extend(sequence.to_le_bytes());
    checked.extend(time_ns.to_le_bytes());
    checked.extend(payload);
    let mut bytes = vec![0xd7, b'W', b'A', b'L'];
    bytes.extend((crc32fast::hash(&checked) ^ salt).to_le_bytes());
    bytes.extend(checked);
    bytes
}

/// A log of up to `segments_max` segments.
pub fn log(input: &mut Input<'_>, segments_max: usize) -> Log {
    let mut log = Log::default();
    let segments = 1 + input.below(segments_max);
    let begin = input.u8();
    // Most logs begin at 1; one from which segments have been deleted does not.
    let before = if begin < 128 { 0 } else { u64::from(begin) * 1000 };
    let number = if begin < 128 { 1 } else { u64::from(begin) };
    log.watermark = before;
    let mut label = Label {
        stream: STREAM,
        replaces: [0; 16],
        number,
        salt: 0x5eed_0000,
        codec: 1,
        rest: 0,
        first: before + 1,
        watermark: before,
        watermark_epoch: 0,
        epoch: 1 << 32 | 0xabc,
        epoch_first: before + 1,
    };
    let mut last = before;
    for _ in 0..segments {
        let choices = input.u8();
        label.rest = u16::from(choices % 3);
        label.salt = label.salt.wrapping_add(0x0101_0007);
        label.first = last + 1;
        if choices & 0x80 != 0 {
            label.epoch += 1 << 32 | 1;
            label.epoch_first = label.first;
        }
        let file = file(input, &mut label, &mut last, &mut log);
        log.files.push(file);
        label.number += 1;
    }
    log
}

fn file(input: &mut Input<'_>, label: &mut Label, last: &mut u64, log: &mut Log) -> File {
    let mut file = File { number: label.number, bytes: label.header(1, 104), frames: Vec::new() };
    file.control(label, *last, 0, *last);
    let commits = input.below(6);
    for _ in 0..commits {
        let shape = input.u8();
        let proves = *last;
        let records = u64::from(shape % 5);
        for index in 0..records {
            *last += 1;
            let size = usize::from(input.u8());
            let record = Record {
                kind: 1 + (*last % 4) as u8,
                time_ns: *last as i64 * 1000 - 5000,
                payload: payload(*last, size),
            };
            let Record { kind, time_ns, payload } = &record;
            let bytes = frame(label.salt, *kind, index, *last, *time_ns, payload);
            file.place(*kind, *last, proves, &bytes);
            log.records.insert(*last, record);
        }
        if shape & 0x80 != 0 {
            label.watermark = label.watermark.max(*last - (*last + 1 - label.first).min(3));
            label.watermark_epoch = label.epoch;
            log.watermark = log.watermark.max(label.watermark);
        }
        if records == 0 || shape & 0x40 != 0 {
            file.control(label, *last, records, proves);
        }
    }
    match label.rest {
        0 => {}
        1 => file.bytes.resize(file.bytes.len() + usize::from(input.u8()) * 8, 0),
        _ => file.bytes.extend(earlier_life(label, file.bytes.len(), input.u8())),
    }
    file
}

/// What the file's earlier life has left behind its new end, from the middle of a frame on.
fn earlier_life(label: &Label, at: usize, amount: u8) -> Vec<u8> {
    let salt = label.salt ^ 0x00ff_ff00;
    let mut bytes = Vec::new();
    // Older records: their sequences are below this segment's first, where there are any.
    let from = label.first.saturating_sub(40).max(1);
    for sequence in from..from + u64::from(amount % 16) {
        bytes.extend(frame(salt, 1, 0, sequence, 9, &payload(sequence, at % 50)));
    }
    let cut = at.min(bytes.len()) % 37;
    bytes.drain(..cut.min(bytes.len()));
    bytes
}

/// Bytes that say to whom they belong, and sometimes look like the beginning of a frame.
fn payload(sequence: u64, size: usize) -> Vec<u8> {
    let mut bytes = sequence.to_le_bytes().repeat(size.div_ceil(8));
    bytes.truncate(size);
    if sequence.is_multiple_of(3) && size > 44 {
        let inner = frame(7, 1, 0, sequence + 1, 1, b"forged");
        bytes[..inner.len()].copy_from_slice(&inner);
    }
    bytes
}

impl File {
    fn place(&mut self, kind: u8, sequence: u64, proves: u64, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend(bytes);
        self.frames.push(Placed { start, end: self.bytes.len(), kind, sequence, proves });
    }

    fn control(&mut self, label: &Label, last: u64, before_in_commit: u64, proves: u64) {
        let bytes = frame(label.salt, 0, before_in_commit, last, 77, &label.bytes());
        self.place(0, last, proves, &bytes);
    }

    pub fn name(&self) -> String {
        name(self.number)
    }
}

pub fn name(number: u64) -> String {
    format!("procmond-{number:05}.wal")
}
