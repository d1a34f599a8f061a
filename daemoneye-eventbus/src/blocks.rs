//! Blocks of memory that are used again and again.

use std::collections::VecDeque;

use bytes::BytesMut;

/// More would only be held in reserve.
const KEPT_MAX: usize = 3;

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
        let free = self.kept.iter_mut().position(|block| block.try_reclaim(bytes));
        free.and_then(|at| self.kept.remove(at)).unwrap_or_else(|| BytesMut::with_capacity(bytes))
    }

    /// Keeps a handle on a block. What has been split off it stays valid.
    pub(crate) fn keep(&mut self, mut block: BytesMut) {
        block.clear();
        self.kept.push_back(block);
        if self.kept.len() > KEPT_MAX {
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
        for _ in 0..10 {
            blocks.keep(BytesMut::with_capacity(64));
        }
        assert_eq!(blocks.kept.len(), KEPT_MAX);
    }
}
