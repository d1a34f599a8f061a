//! Checking many frames at once.
//!
//! A CRC-32 of a few hundred bytes takes three times as long, by the byte, as one of a few tens of
//! thousands. So frames that stand one after another share one. For as long as it is taken, the
//! magic and the checksum of every frame but the first give way to eight bytes behind which a
//! CRC-32 starts anew if the frame before them has its checksum, and never otherwise; so the run
//! has the checksum of its last frame if all are right.
//!
//! What one frame's own checksum notices is noticed here, for a CRC-32 that has gone astray never
//! finds back by what is the same in both. Only damage in two frames of a run can make up for each
//! other, as seldom as damage in one frame makes up for itself: once in 2^32.

use daemoneye_lib::stream::Sequence;

use super::super::format::{CHECKED_FROM, FrameHead, required_checksum};

/// Frames in a run: about as many as a read brings, if their payloads are of a few hundred bytes.
const FRAMES_MAX: usize = 512;

/// What is known of the frames from the position on to the run's end.
#[derive(Default)]
pub(super) struct Run {
    /// All of them if all are whole, otherwise none.
    frames: Vec<Frame>,
    /// How many of them are behind us.
    taken: usize,
    end: usize,
    /// What they were checked for.
    key: Option<Key>,
}

/// Under which salt frames were written, and from which place in the stream on.
pub(super) type Key = (u32, Sequence);

#[derive(Clone, Copy)]
struct Frame {
    at: usize,
    head: FrameHead,
    /// What its checksum does not cover.
    unchecked: [u8; CHECKED_FROM],
}

impl Run {
    /// Whether nothing is known of the frames from here on, neither good nor bad.
    pub(super) fn ends_before(&self, at: usize) -> bool {
        self.end <= at
    }

    /// Forgets the frames: the buffer is another, or the position in it.
    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.taken = 0;
        self.end = 0;
        self.key = None;
    }

    /// Checks the frames that stand here in the buffer, as many as there are. The buffer's bytes
    /// are the same afterwards.
    pub(super) fn check(&mut self, buffer: &mut [u8], at: usize, key: Key) {
        let (salt, first) = key;
        self.clear();
        let mut end = at;
        let mut checksum = 0;
        while self.frames.len() < FRAMES_MAX
            && let Some(head) = FrameHead::read(&buffer[end..])
            && head.frame_bytes() <= buffer.len() - end
            && head.place() >= first
            && let Some(unchecked) = buffer[end..].first_chunk_mut()
        {
            self.frames.push(Frame { at: end, head, unchecked: *unchecked });
            let required = required_checksum(unchecked, salt);
            if end > at {
                *unchecked = start_anew_after(checksum);
            }
            checksum = required;
            end += head.frame_bytes();
        }
        if end == at {
            return;
        }
        self.end = end;
        let whole = crc32fast::hash(&buffer[at + CHECKED_FROM..end]) == checksum;
        for frame in &self.frames {
            buffer[frame.at..frame.at + CHECKED_FROM].copy_from_slice(&frame.unchecked);
        }
        self.key = Some(key);
        if !whole {
            self.frames.clear();
        }
    }

    /// Whether they were checked for this.
    pub(super) fn is_for(&self, key: Key) -> bool {
        self.key == Some(key)
    }

    /// The head of the whole frame that stands here, if it is the next of them.
    pub(super) fn frame_at(&self, at: usize) -> Option<&FrameHead> {
        self.frames.get(self.taken).filter(|frame| frame.at == at).map(|frame| &frame.head)
    }

    /// A step is taken onto it.
    pub(super) fn take(&mut self) {
        self.taken += 1;
    }

    /// And taken back.
    pub(super) fn put_back(&mut self) {
        self.taken = self.taken.saturating_sub(1);
    }
}

/// What brings a CRC-32 back to where it begins, if that of all bytes before it is `checksum`, and
/// anywhere else if it is not.
fn start_anew_after(checksum: u32) -> [u8; CHECKED_FROM] {
    // A CRC-32 is the complement of a register that bytes are XORed into and that begins as all
    // ones. The first four bytes make it zero, the others bring it from zero to all ones.
    const ONES_AFTER_ZERO: u32 = 0x9226_f562;
    (u64::from(ONES_AFTER_ZERO) << 32 | u64::from(!checksum)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::super::format::{encode_frame, salt_frame};
    use super::*;

    const SALT: u32 = 0x5a17_5a17;

    /// Frames of these payload lengths, and where they begin.
    fn frames(payloads: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for (index, &length) in payloads.iter().enumerate() {
            let start = bytes.len();
            let payload: Vec<u8> = (0..length).map(|at| (at * 7 + index * 31) as u8).collect();
            encode_frame(&mut bytes, 1, Sequence(index as u64 + 1), 0, index as i64, &payload);
            salt_frame(&mut bytes[start..], SALT);
            starts.push(start);
        }
        (bytes, starts)
    }

    #[test]
    fn a_crc_starts_anew_behind_a_right_checksum_and_no_other() {
        for before in [&b""[..], b"a", b"0123456789", &[0; 300], &[0xff; 4]] {
            for after in [&b""[..], b"z", &[0x55; 70]] {
                let joined = |checksum| [before, &start_anew_after(checksum), after].concat();
                let right = crc32fast::hash(before);
                assert_eq!(crc32fast::hash(&joined(right)), crc32fast::hash(after));
                for bit in 0..32 {
                    let wrong = joined(right ^ 1 << bit);
                    assert_ne!(crc32fast::hash(&wrong), crc32fast::hash(after), "bit {bit}");
                }
            }
        }
    }

    const KEY: Key = (SALT, Sequence(1));

    /// Where the run ends that begins with the bytes, and whether all of it is whole.
    fn checked(bytes: &[u8], key: Key) -> (usize, bool) {
        let mut run = Run::default();
        let mut buffer = bytes.to_vec();
        run.check(&mut buffer, 0, key);
        assert_eq!(buffer, bytes, "the bytes stay what they are");
        let mut at = 0;
        while let Some(&head) = run.frame_at(at) {
            assert_eq!(Some(head), FrameHead::read(&bytes[at..]));
            run.take();
            at += head.frame_bytes();
        }
        assert!(at == run.end || at == 0, "all of them or none");
        (run.end, at > 0)
    }

    #[test]
    fn a_run_is_all_whole_frames_that_are_there() {
        let (written, starts) = frames(&[0, 1, 400, 3, 70_000, 0, 31]);
        for count in 1..=starts.len() {
            let end = starts.get(count).copied().unwrap_or(written.len());
            assert_eq!(checked(&written[..end], KEY), (end, true));
            // What follows them is no frame, or not all of one.
            for rest in [&[0; 50][..], &written[..31], &written[starts[2]..][..431]] {
                assert_eq!(checked(&[&written[..end], rest].concat(), KEY), (end, true));
            }
        }
    }

    #[test]
    fn a_run_ends_where_it_is_long_enough() {
        let (written, starts) = frames(&[9; FRAMES_MAX + 1]);
        assert_eq!(checked(&written, KEY), (starts[FRAMES_MAX], true));
    }

    #[test]
    fn a_run_is_asked_for_its_frames_in_order() {
        let (mut written, starts) = frames(&[4, 5, 6]);
        let mut run = Run::default();
        assert!(!run.is_for(KEY));
        run.check(&mut written, starts[1], KEY);
        assert!(run.is_for(KEY) && !run.is_for((SALT, Sequence(2))) && !run.is_for((0, KEY.1)));
        assert!(!run.ends_before(starts[1]) && run.ends_before(written.len()));
        let sequence = |head: Option<&FrameHead>| head.map(|head| head.sequence);
        assert_eq!(sequence(run.frame_at(starts[1])), Some(Sequence(2)));
        assert_eq!(run.frame_at(starts[2]), None, "not this one's turn");
        run.take();
        assert_eq!(sequence(run.frame_at(starts[2])), Some(Sequence(3)));
        run.put_back();
        assert_eq!(sequence(run.frame_at(starts[1])), Some(Sequence(2)));
        run.clear();
        assert!(run.ends_before(0) && !run.is_for(KEY));
        assert_eq!(run.frame_at(starts[1]), None);
    }

    #[test]
    fn w5_a_flip_anywhere_is_noticed() {
        let (written, starts) = frames(&[0, 40, 5, 17]);
        for at in 0..written.len() {
            let hit = starts.iter().rposition(|&start| start <= at).unwrap();
            for bit in 0..8 {
                let mut flipped = written.clone();
                flipped[at] ^= 1 << bit;
                let (end, whole) = checked(&flipped, KEY);
                // A magic or a length that is wrong may end the run before the frame it hits.
                assert!(!whole || end <= starts[hit], "byte {at} bit {bit}: up to {end}");
            }
        }
    }

    #[test]
    fn w5_frames_of_another_segment_or_an_earlier_life_are_no_part_of_a_run() {
        let (written, starts) = frames(&[8, 8, 8]);
        assert_eq!(checked(&written, (!SALT, Sequence(1))), (written.len(), false));
        assert_eq!(checked(&written, (SALT, Sequence(2))), (0, false), "too early");
        for other in 0..3 {
            let mut mixed = written.clone();
            salt_frame(&mut mixed[starts[other]..], 0x00ff_0000);
            assert_eq!(checked(&mixed, KEY), (written.len(), false), "frame {other}");
        }
        // The second one's place is before the segment's first.
        let mut early = Vec::new();
        encode_frame(&mut early, 1, Sequence(9), 0, 0, b"");
        encode_frame(&mut early, 1, Sequence(4), 0, 0, b"");
        assert_eq!(checked(&early, (0, Sequence(5))), (early.len() / 2, true));
    }

    #[test]
    fn nothing_is_no_run() {
        let (written, _) = frames(&[10]);
        for length in 0..written.len() {
            assert_eq!(checked(&written[..length], KEY), (0, false));
        }
    }
}
