//! The bytes of a segment: a header, then frames. `docs/wal-format.md` is the same in prose.
//!
//! All integers are little-endian. A frame's checksum is the CRC-32 of everything after it, XORed
//! with the segment's salt. XOR instead of a seed has two uses: frames are encoded before it is
//! known in which segment they will stand (the writer salts them in place, and again if it has to
//! move them to another segment), and a frame that names its own salt can be verified in a segment
//! whose header is lost. It is as strong: bytes of another segment pass only if the salts agree.

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

/// The first bytes of every segment.
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"DEYEWAL\x1a";
/// The version of this layout.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// What the payloads are: 1 is bincode 2 with its standard configuration behind a schema byte.
pub(crate) const PAYLOAD_CODEC: u16 = 1;
/// The first bytes of every frame: what is looked for after damage.
pub(crate) const FRAME_MAGIC: [u8; 4] = [0xd7, b'W', b'A', b'L'];
/// Bytes of a frame before its payload.
pub(crate) const FRAME_BYTES: usize = 32;
/// The longest payload a frame can announce. A longer one is damage, so no length read from disk
/// makes us allocate more.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 16 << 20;
/// Sequences on disk stay below this; a higher one is damage, so that no arithmetic on what was
/// read overflows.
const SEQUENCE_LIMIT: u64 = 1 << 62;
/// What a frame says whose place in its commit does not fit into three bytes: it proves nothing.
const IN_COMMIT_MAX: u32 = 0x00ff_ffff;
/// Bytes of a [`Label`].
pub(crate) const LABEL_BYTES: usize = 88;
/// Bytes of the segment header.
pub(crate) const HEADER_BYTES: usize = 16 + LABEL_BYTES;
/// Bytes of a control record.
pub(crate) const CONTROL_BYTES: usize = FRAME_BYTES + LABEL_BYTES;
/// The kind of a control record.
pub(crate) const KIND_CONTROL: u8 = 0;

const CHECKSUM_AT: usize = 4;
/// What of a frame its checksum covers begins here, behind the magic and itself.
pub(crate) const CHECKED_FROM: usize = 8;

/// What a segment says of itself, in its header and again in every control record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) stream: StreamId,
    /// The stream this one took the place of in this directory.
    pub(crate) replaces: Option<StreamId>,
    /// The number in the file's name.
    pub(crate) segment: u64,
    pub(crate) salt: u32,
    /// The sequence of the first record, whether or not one has been written.
    pub(crate) first: Sequence,
    pub(crate) watermark: Sequence,
    /// The epoch of the record at the watermark, where known.
    pub(crate) watermark_epoch: Option<Epoch>,
    /// The opening that writes this segment: never more than one.
    pub(crate) epoch: Epoch,
    /// The first sequence of that opening.
    pub(crate) epoch_first: Sequence,
    pub(crate) rest: Rest,
}

/// What stands in a segment's file behind its last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing: the file grows with its frames.
    Nothing,
    /// Zeros, written ahead.
    Zeros,
    /// Whatever stood there in the file's earlier life, as another segment of this log.
    Stale,
}

impl Rest {
    const fn to_u16(self) -> u16 {
        match self {
            Self::Nothing => 0,
            Self::Zeros => 1,
            Self::Stale => 2,
        }
    }

    const fn from_u16(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::Nothing),
            1 => Some(Self::Zeros),
            2 => Some(Self::Stale),
            _ => None,
        }
    }
}

impl Label {
    pub(crate) fn encode(&self) -> [u8; LABEL_BYTES] {
        let mut bytes = [0; LABEL_BYTES];
        bytes[0..16].copy_from_slice(&self.stream.to_bytes());
        bytes[16..32].copy_from_slice(&self.replaces.map_or([0; 16], StreamId::to_bytes));
        bytes[32..40].copy_from_slice(&self.segment.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.salt.to_le_bytes());
        bytes[44..46].copy_from_slice(&PAYLOAD_CODEC.to_le_bytes());
        bytes[46..48].copy_from_slice(&self.rest.to_u16().to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.watermark.0.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.watermark_epoch.map_or(0, Epoch::to_u64).to_le_bytes());
        bytes[72..80].copy_from_slice(&self.epoch.to_u64().to_le_bytes());
        bytes[80..88].copy_from_slice(&self.epoch_first.0.to_le_bytes());
        bytes
    }

    /// Reads a label whose checksum has been verified; `None` if it says what no writer says.
    fn decode(bytes: &[u8; LABEL_BYTES]) -> Option<Self> {
        let replaces: [u8; 16] = array(bytes, 16);
        let watermark_epoch = u64::from_le_bytes(array(bytes, 64));
        let label = Self {
            stream: StreamId::from_bytes(array(bytes, 0)),
            replaces: (replaces != [0; 16]).then(|| StreamId::from_bytes(replaces)),
            segment: u64::from_le_bytes(array(bytes, 32)),
            salt: u32::from_le_bytes(array(bytes, 40)),
            first: Sequence(u64::from_le_bytes(array(bytes, 48))),
            watermark: Sequence(u64::from_le_bytes(array(bytes, 56))),
            watermark_epoch: (watermark_epoch != 0).then(|| Epoch::from_u64(watermark_epoch)),
            epoch: Epoch::from_u64(u64::from_le_bytes(array(bytes, 72))),
            epoch_first: Sequence(u64::from_le_bytes(array(bytes, 80))),
            rest: Rest::from_u16(u16::from_le_bytes(array(bytes, 46)))?,
        };
        label.is_sane().then_some(label)
    }

    fn is_sane(&self) -> bool {
        self.first >= Sequence::FIRST
            && self.replaces != Some(self.stream)
            && [self.first, self.watermark, self.epoch_first]
                .iter()
                .all(|sequence| sequence.0 < SEQUENCE_LIMIT)
    }

    /// The segment header.
    pub(crate) fn to_header(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        bytes[16..].copy_from_slice(&self.encode());
        let checksum = header_checksum(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// A control record that says the same, standing after the record with sequence `after`, of
    /// whose commit it is, behind `in_commit` records.
    pub(crate) fn to_control(
        self,
        after: Sequence,
        in_commit: usize,
        timestamp_ns: i64,
    ) -> [u8; CONTROL_BYTES] {
        let mut bytes = [0; CONTROL_BYTES];
        let (head, payload) = bytes.split_at_mut(FRAME_BYTES);
        write_head(head, KIND_CONTROL, after, in_commit, timestamp_ns, LABEL_BYTES);
        payload.copy_from_slice(&self.encode());
        let checksum = crc32fast::hash(&bytes[CHECKED_FROM..]) ^ self.salt;
        bytes[CHECKSUM_AT..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// What the first bytes of a segment turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Whole(Label),
    /// Written by a program that knows more than this one.
    Unknown {
        version: u16,
        codec: u16,
    },
    Damaged,
}

/// Reads the first bytes of a segment.
pub(crate) fn read_header(bytes: &[u8]) -> Header {
    let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Header::Damaged;
    };
    if bytes[0..8] != SEGMENT_MAGIC
        || u32::from_le_bytes(array(bytes, 12)) != header_checksum(bytes)
    {
        return Header::Damaged;
    }
    let version = u16::from_le_bytes(array(bytes, 8));
    let codec = u16::from_le_bytes(array(bytes, 16 + 44));
    if version != FORMAT_VERSION || codec != PAYLOAD_CODEC {
        return Header::Unknown { version, codec };
    }
    Label::decode(&array(bytes, 16)).map_or(Header::Damaged, Header::Whole)
}

fn header_checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[0..12]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

/// The fields of a frame before its payload. Not trusted until [`implied_salt`] agrees.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHead {
    pub(crate) payload_bytes: u32,
    pub(crate) kind: u8,
    /// Records before it in its commit.
    pub(crate) in_commit: u32,
    pub(crate) sequence: Sequence,
    pub(crate) timestamp_ns: i64,
}

impl FrameHead {
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<FRAME_BYTES>()?;
        let payload_bytes = u32::from_le_bytes(array(bytes, 8));
        let in_commit = u32::from_le_bytes(array(bytes, 12)) >> 8;
        let sequence = u64::from_le_bytes(array(bytes, 16));
        if bytes[0..4] != FRAME_MAGIC
            || payload_bytes > PAYLOAD_BYTES_MAX
            || sequence >= SEQUENCE_LIMIT
        {
            return None;
        }
        Some(Self {
            payload_bytes,
            kind: bytes[12],
            in_commit,
            sequence: Sequence(sequence),
            timestamp_ns: i64::from_le_bytes(array(bytes, 24)),
        })
    }

    pub(crate) const fn frame_bytes(&self) -> usize {
        FRAME_BYTES + self.payload_bytes as usize
    }

    /// The sequence it stands for: a record for its own, a control record for the one behind that
    /// it bears witness to.
    pub(crate) const fn place(&self) -> Sequence {
        if self.kind == KIND_CONTROL { self.sequence.next() } else { self.sequence }
    }

    /// Every record up to this one was durable before this frame was written: a commit is written
    /// only when the one before it has been synced. A hole behind it may be a commit torn by a
    /// crash; a hole before it is damage.
    pub(crate) const fn proves(&self) -> Sequence {
        if self.in_commit == IN_COMMIT_MAX {
            return Sequence::NONE;
        }
        let before = if self.kind == KIND_CONTROL { 0 } else { 1 };
        Sequence(self.sequence.0.saturating_sub(before + self.in_commit as u64))
    }
}

/// The CRC-32 that what a frame's checksum covers has to have if it was written under this salt.
pub(crate) fn required_checksum(frame: &[u8], salt: u32) -> u32 {
    u32::from_le_bytes(array(frame, CHECKSUM_AT)) ^ salt
}

/// The salt under which a whole frame is valid. Frames written in one segment share it.
pub(crate) fn implied_salt(frame: &[u8]) -> u32 {
    required_checksum(frame, crc32fast::hash(&frame[CHECKED_FROM..]))
}

/// The label in a control record that vouches for itself: the salt it names is the one it was
/// written with.
pub(crate) fn self_describing_label(frame: &[u8]) -> Option<Label> {
    let head = FrameHead::read(frame)?;
    if head.kind != KIND_CONTROL || frame.len() != CONTROL_BYTES {
        return None;
    }
    let label = Label::decode(frame[FRAME_BYTES..].first_chunk()?)?;
    (label.salt == implied_salt(frame)).then_some(label)
}

/// The payload codec that a control record names.
pub(crate) fn codec_of(control: &[u8]) -> Option<u16> {
    let label = control.get(FRAME_BYTES..)?;
    Some(u16::from_le_bytes(*label.get(44..46)?.first_chunk()?))
}

/// Appends a frame, not yet salted, of the record behind `in_commit` others in its commit.
pub(crate) fn encode_frame(
    buffer: &mut Vec<u8>,
    kind: u8,
    sequence: Sequence,
    in_commit: usize,
    timestamp_ns: i64,
    payload: &[u8],
) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX as usize);
    let start = buffer.len();
    let mut head = [0; FRAME_BYTES];
    write_head(&mut head, kind, sequence, in_commit, timestamp_ns, payload.len());
    buffer.reserve(FRAME_BYTES + payload.len());
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(payload);
    let checksum = crc32fast::hash(&buffer[start + CHECKED_FROM..]);
    buffer[start + CHECKSUM_AT..start + CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
}

fn write_head(
    head: &mut [u8],
    kind: u8,
    sequence: Sequence,
    in_commit: usize,
    timestamp_ns: i64,
    payload_bytes: usize,
) {
    let in_commit = u32::try_from(in_commit).unwrap_or(IN_COMMIT_MAX).min(IN_COMMIT_MAX);
    head[0..4].copy_from_slice(&FRAME_MAGIC);
    head[8..12].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
    head[12..16].copy_from_slice(&(in_commit << 8 | u32::from(kind)).to_le_bytes());
    head[16..24].copy_from_slice(&sequence.0.to_le_bytes());
    head[24..32].copy_from_slice(&timestamp_ns.to_le_bytes());
}

/// Salts a frame; salting twice with the same salt undoes it.
pub(crate) fn salt_frame(frame: &mut [u8], salt: u32) {
    let checksum = u32::from_le_bytes(array(frame, CHECKSUM_AT)) ^ salt;
    frame[CHECKSUM_AT..CHECKED_FROM].copy_from_slice(&checksum.to_le_bytes());
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("the caller holds a whole header or frame")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> Label {
        Label {
            stream: StreamId::from_bytes(*b"0123456789abcdef"),
            replaces: None,
            segment: 7,
            salt: 0xa1b2_c3d4,
            first: Sequence(0x0102),
            watermark: Sequence(0x0101),
            watermark_epoch: Some(Epoch::from_u64(0x0000_0001_dead_beef)),
            epoch: Epoch::from_u64(0x0000_0002_cafe_f00d),
            epoch_first: Sequence(0x0100),
            rest: Rest::Stale,
        }
    }

    #[test]
    fn the_header_is_these_bytes() {
        let mut expected = Vec::new();
        expected.extend_from_slice(b"DEYEWAL\x1a");
        expected.extend_from_slice(&[1, 0]); // format version
        expected.extend_from_slice(&[104, 0]); // header length
        expected.extend_from_slice(&[0; 4]); // checksum, below
        expected.extend_from_slice(b"0123456789abcdef");
        expected.extend_from_slice(&[0; 16]); // replaces no stream
        expected.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]); // segment number
        expected.extend_from_slice(&[0xd4, 0xc3, 0xb2, 0xa1]); // salt
        expected.extend_from_slice(&[1, 0]); // codec
        expected.extend_from_slice(&[2, 0]); // recycled
        expected.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0]); // first sequence
        expected.extend_from_slice(&[1, 1, 0, 0, 0, 0, 0, 0]); // watermark
        expected.extend_from_slice(&[0xef, 0xbe, 0xad, 0xde, 1, 0, 0, 0]); // its epoch
        expected.extend_from_slice(&[0x0d, 0xf0, 0xfe, 0xca, 2, 0, 0, 0]); // epoch
        expected.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]); // its first sequence
        let checksum = crc32fast::hash(&[&expected[..12], &expected[16..]].concat());
        expected[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(label().to_header().as_slice(), expected);
        assert_eq!(read_header(&expected), Header::Whole(label()));
    }

    #[test]
    fn a_frame_is_these_bytes() {
        let mut frame = Vec::new();
        encode_frame(&mut frame, 3, Sequence(0x0a0b), 0x04_0506, -2, b"hello");
        let mut expected = vec![0xd7, b'W', b'A', b'L', 0, 0, 0, 0]; // magic, checksum below
        expected.extend_from_slice(&[5, 0, 0, 0]); // payload length
        expected.extend_from_slice(&[3, 6, 5, 4]); // kind, records before it
        expected.extend_from_slice(&[0x0b, 0x0a, 0, 0, 0, 0, 0, 0]); // sequence
        expected.extend_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]); // time
        expected.extend_from_slice(b"hello");
        let checksum = crc32fast::hash(&expected[8..]) ^ 0x55;
        expected[4..8].copy_from_slice(&checksum.to_le_bytes());
        salt_frame(&mut frame, 0x55);
        assert_eq!(frame, expected);
        assert_eq!(implied_salt(&frame), 0x55);
    }

    #[test]
    fn w5_a_flip_anywhere_after_the_magic_changes_the_implied_salt() {
        let mut frame = Vec::new();
        encode_frame(&mut frame, 1, Sequence(1), 0, 1, b"payload");
        salt_frame(&mut frame, 9);
        for at in 4..frame.len() {
            for bit in 0..8 {
                let mut bad = frame.clone();
                bad[at] ^= 1 << bit;
                assert_ne!(implied_salt(&bad), 9, "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn w5_a_frame_of_another_segment_is_not_valid_here() {
        let mut frame = Vec::new();
        encode_frame(&mut frame, 1, Sequence(1), 0, 1, b"payload");
        salt_frame(&mut frame, 9);
        assert_ne!(implied_salt(&frame), 10);
    }

    #[test]
    fn a_control_record_vouches_for_itself() {
        let control = label().to_control(Sequence(5), 2, 77);
        assert_eq!(self_describing_label(&control), Some(label()));
        for at in 0..control.len() {
            let mut bad = control;
            bad[at] ^= 0x10;
            assert_eq!(self_describing_label(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn headers_that_are_short_foreign_newer_or_damaged_are_told_apart() {
        let good = label().to_header();
        assert_eq!(read_header(&good[..HEADER_BYTES - 1]), Header::Damaged);
        for at in 0..HEADER_BYTES {
            let mut bad = good;
            bad[at] ^= 1;
            assert_eq!(read_header(&bad), Header::Damaged, "byte {at}");
        }
        let mut newer = good;
        newer[8] = 2;
        let checksum = header_checksum(&newer);
        newer[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(read_header(&newer), Header::Unknown { version: 2, codec: 1 });
    }

    #[test]
    fn a_frame_proves_what_was_durable_before_its_commit() {
        let proved = |kind, sequence, in_commit| {
            let mut frame = Vec::new();
            encode_frame(&mut frame, kind, Sequence(sequence), in_commit, 1, b"");
            FrameHead::read(&frame).unwrap().proves()
        };
        assert_eq!(proved(1, 8, 0), Sequence(7));
        assert_eq!(proved(1, 8, 3), Sequence(4));
        assert_eq!(proved(1, 1, 0), Sequence::NONE);
        let control = FrameHead::read(&label().to_control(Sequence(8), 3, 1)).unwrap();
        assert_eq!(control.proves(), Sequence(5));
        assert_eq!(proved(1, 1 << 40, 1 << 24), Sequence::NONE);
    }

    #[test]
    fn an_absurd_length_is_not_a_frame() {
        let mut frame = Vec::new();
        encode_frame(&mut frame, 1, Sequence(1), 0, 1, b"");
        frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(FrameHead::read(&frame), None);
        assert_eq!(FrameHead::read(&frame[..31]), None);
    }
}
