//! Counting how often something took how long.

use std::time::Duration;

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 24;

/// Counts in buckets that double: bucket 0 holds what is below 1, bucket n what is below 2^n, the
/// last one the rest. Of durations, the unit is the microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Histogram {
    /// How many in each bucket.
    pub buckets: [u64; BUCKETS],
    /// How many in all.
    pub count: u64,
    /// The sum of all values.
    pub sum: u64,
    /// The largest value.
    pub max: u64,
}

impl Histogram {
    pub(crate) fn record(&mut self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    pub(crate) fn record_time(&mut self, time: Duration) {
        self.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// A value that at least this share of all values (0 to 1) do not exceed: the upper end of the
    /// bucket in which it falls, or the maximum if that is lower; 0 if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return if bucket == BUCKETS - 1 {
                    self.max
                } else {
                    self.max.min((1 << bucket) - 1)
                };
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_buckets_that_double() {
        let mut histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 1000, u64::MAX] {
            histogram.record(value);
        }
        assert_eq!(histogram.buckets[..4], [1, 1, 2, 1]);
        assert_eq!(histogram.buckets[10], 1);
        assert_eq!(histogram.buckets[BUCKETS - 1], 1);
        assert_eq!((histogram.count, histogram.sum, histogram.max), (7, u64::MAX, u64::MAX));
    }

    #[test]
    fn a_quantile_is_not_exceeded_by_its_share() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        for value in 1..=100 {
            histogram.record(value);
        }
        assert_eq!(histogram.quantile(0.5), 63);
        assert_eq!(histogram.quantile(0.99), 100);
        assert_eq!(histogram.quantile(0.0), 1);
    }
}
