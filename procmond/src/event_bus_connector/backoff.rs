//! How long to wait before dialling the broker again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first wait after a session ended or a dial failed.
const FIRST: Duration = Duration::from_millis(50);
/// No wait is longer, so that the first dial after the broker returns comes within a second.
const LONGEST: Duration = Duration::from_millis(500);

/// Capped exponential backoff with jitter: each wait lies between half and all of a ceiling that
/// doubles from 50 ms to 500 ms, so that many collectors do not dial in step.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    random: u64,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self::seeded(RandomState::new().hash_one(std::process::id()))
    }

    fn seeded(seed: u64) -> Self {
        Self { failures: 0, random: seed | 1 }
    }

    /// The session stood: the next failure starts from the beginning again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait before the next dial.
    pub(super) fn next(&mut self) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = ceiling / 2;
        // xorshift64: spreading dials needs no better randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        half + half.mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_cap_below_a_second_and_start_over_after_a_session() {
        let mut backoff = Backoff::seeded(7);
        let mut ceiling = FIRST;
        for _ in 0..100 {
            let wait = backoff.next();
            assert!(wait >= ceiling / 2 && wait <= ceiling, "{wait:?} under {ceiling:?}");
            ceiling = (ceiling * 2).min(LONGEST);
        }
        assert!(LONGEST < Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }

    #[test]
    fn two_collectors_do_not_wait_alike() {
        let waits = |seed| {
            let mut backoff = Backoff::seeded(seed);
            (0..8).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert_ne!(waits(1), waits(2));
    }
}
