//! What happens to bytes on a disk.

use crate::input::Input;

/// Changes bytes as the plan says. Returns whether bytes only changed where they stood: nothing
/// moved, was copied or put in.
pub fn mutate(input: &mut Input<'_>, bytes: &mut Vec<u8>, times_max: usize) -> bool {
    let mut in_place = true;
    for _ in 0..times_max {
        if input.is_done() || bytes.is_empty() {
            break;
        }
        let action = input.u8() % 10;
        let at = input.below(bytes.len());
        let length = |input: &mut Input<'_>| {
            let wanted = match input.u8() {
                byte @ 0..200 => usize::from(byte),
                byte => usize::from(byte) * 16,
            };
            wanted.min(bytes.len() - at)
        };
        match action {
            // A flipped bit.
            0 | 1 => bytes[at] ^= 1 << (input.u8() % 8),
            // A byte that is another.
            2 => bytes[at] = input.u8(),
            // A zeroed stretch.
            3 => {
                let length = length(input);
                bytes[at..at + length].fill(0);
            }
            // A stretch of rubbish.
            4 => {
                let length = length(input);
                let salt = input.u8();
                for (index, byte) in bytes[at..at + length].iter_mut().enumerate() {
                    *byte = (index as u8).wrapping_mul(167) ^ salt;
                }
            }
            // A truncated file.
            5 => bytes.truncate(at),
            // A stretch that went missing.
            6 => {
                let length = length(input);
                bytes.drain(at..at + length);
                in_place = false;
            }
            // A stretch copied over another place.
            7 => {
                let length = length(input);
                let to = input.below(bytes.len() - length + 1);
                bytes.copy_within(at..at + length, to);
                in_place = false;
            }
            // Two blocks that changed places.
            8 => {
                let length = length(input).min(bytes.len() / 2);
                let to = input.below(bytes.len() - length + 1);
                if to.abs_diff(at) >= length {
                    for index in 0..length {
                        bytes.swap(at + index, to + index);
                    }
                }
                in_place = false;
            }
            // Bytes put in.
            _ => {
                let length = length(input);
                let copied = bytes[at..at + length].to_vec();
                let to = input.below(bytes.len() + 1);
                bytes.splice(to..to, copied);
                in_place = false;
            }
        }
    }
    in_place
}
