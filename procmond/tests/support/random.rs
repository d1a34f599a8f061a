//! Random choices that can be made again.

use std::hash::{BuildHasher, RandomState};

/// The seed is printed, so that a failure can be tried again with `E2E_SEED`.
pub(crate) struct Random(u64);

impl Random {
    /// A new seed, or the one in `E2E_SEED`.
    pub(crate) fn new() -> Self {
        let given = std::env::var("E2E_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
        println!("E2E_SEED={seed}");
        Self::seeded(seed)
    }

    /// The choices that belong to a seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number that can seed another.
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// How many rounds: `E2E_ROUNDS` for a long run, or so many as every build can wait for.
pub(crate) fn rounds(every_build: u64) -> u64 {
    std::env::var("E2E_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(every_build)
}
