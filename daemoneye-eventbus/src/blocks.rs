//! Blocks of memory that are used again and again.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Blocks that wait to be used again. More would only be held in reserve.
const SPARE_MAX: usize = 3;
/// Blocks whose contents are still somewhere: enough for a subscription's queue that is full.
const BUSY_MAX: usize = 32;

/// Handles on blocks whose contents are still on their way somewhere, or are gone by now. Without
/// them every block is returned to the system when its contents are gone, and the next one faulted
/// in anew, page by page, which costs more than copying its bytes.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    kept: VecDeque<BytesMut>,
}

impl Blocks {
    /// An empty block with room for `bytes`.
    pub(crate) fn take(&mut self, bytes: usize) -> BytesMut {
        let (mut taken, mut spare) = (None, 0);
        // The oldest first: a queue that is full gives them back in this order.
        self.kept.retain_mut(|block| {
            if !block.try_reclaim(bytes) {
                return true;
            }
            if taken.is_none() {
                taken = Some(std::mem::take(block));
                return false;
            }
            spare += 1;
            spare <= SPARE_MAX
        });
        taken.unwrap_or_else(|| BytesMut::with_capacity(bytes))
    }

    /// Keeps a handle on a block. What has been split off it stays valid.
    pub(crate) fn keep(&mut self, mut block: BytesMut) {
        block.clear();
        self.kept.push_back(block);
        if self.kept.len() > BUSY_MAX {
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_when_its_contents_are_gone() {
        let mut blocks = Blocks::default();
        let mut block = blocks.take(1024);
        block.extend_from_slice(b"contents");
        let start = block.as_ptr();
        let contents = block.split().freeze();
        blocks.keep(block);

        let other = blocks.take(1024);
        assert_ne!(other.as_ptr(), start, "its contents are still there");
        assert_eq!(contents, "contents");
        drop(contents);
        let again = blocks.take(1024);
        assert_eq!((again.as_ptr(), again.capacity()), (start, 1024));
    }

    #[test]
    fn few_blocks_are_kept() {
        let mut blocks = Blocks::default();
        let mut contents = Vec::new();
        for _ in 0..2 * BUSY_MAX {
            let mut block = BytesMut::from(&b"contents"[..]);
            contents.push(block.split());
            blocks.keep(block);
        }
        assert_eq!(blocks.kept.len(), BUSY_MAX);
        drop(contents);
        blocks.take(8);
        assert_eq!(blocks.kept.len(), SPARE_MAX);
    }
}
