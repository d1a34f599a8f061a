use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Random moments. The seed is printed, so that a failure can be tried again with
/// `E2E_SEED`.
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        let given = std::env::var("E2E_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
        println!("E2E_SEED={seed}");
        Self(seed | 1)
    }
}

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    /// Lets a random time of less than `limit` pass: a moment nobody chose.
    pub fn moment(&mut self, limit: Duration) {
        let nanos = u64::try_from(limit.as_nanos()).expect("a short time");
        std::thread::sleep(Duration::from_nanos(self.below(nanos)));
    }
}
