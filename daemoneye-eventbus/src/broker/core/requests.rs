//! How often a connection may ask for something, and which answers it awaits.

use std::collections::VecDeque;
use std::time::Duration;

/// Answers awaited at once by one connection. Of more the oldest are forgotten: most likely their
/// requesters have given up.
const AWAITED_MAX: usize = 1024;

/// A token bucket. Every request takes a token, those that are turned down as well: who goes on
/// asking regardless gets ever deeper into debt.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// When it would be full again.
    full_at: Duration,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// There is no token left.
    Over,
    /// The debt is as large as the whole bucket.
    Flood,
}

impl Bucket {
    /// Takes one of at most `burst` tokens, of which `rate` a second grow back.
    pub(crate) fn take(&mut self, now: Duration, rate: u32, burst: u32) -> Verdict {
        let token = Duration::from_secs(1) / rate.max(1);
        let whole = token * burst.max(1);
        self.full_at = self.full_at.max(now) + token;
        let taken = self.full_at - now;
        if taken <= whole {
            Verdict::Pass
        } else if taken <= whole * 2 {
            Verdict::Over
        } else {
            Verdict::Flood
        }
    }
}

/// The correlations a connection has asked with and not been answered.
#[derive(Debug, Default)]
pub(crate) struct Awaited(VecDeque<u64>);

impl Awaited {
    pub(crate) fn begin(&mut self, correlation: u64) {
        if self.0.len() == AWAITED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(correlation);
    }

    /// Whether an answer to this was awaited. From now on it is not.
    pub(crate) fn end(&mut self, correlation: u64) -> bool {
        let at = self.0.iter().position(|awaited| *awaited == correlation);
        at.and_then(|at| self.0.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn takes(bucket: &mut Bucket, now: Duration, times: usize) -> Vec<Verdict> {
        (0..times).map(|_| bucket.take(now, 10, 3)).collect()
    }

    #[test]
    fn a_burst_passes_and_tokens_grow_back() {
        use Verdict::{Flood, Over, Pass};
        let mut bucket = Bucket::default();
        assert_eq!(takes(&mut bucket, SECOND, 4), [Pass, Pass, Pass, Over]);
        // The one turned down cost a token as well, so one grown back pays only the debt.
        assert_eq!(takes(&mut bucket, SECOND * 11 / 10, 1), [Over]);
        assert_eq!(takes(&mut bucket, SECOND * 2, 4), [Pass, Pass, Pass, Over]);
        assert_eq!(takes(&mut bucket, SECOND * 2, 3), [Over, Over, Flood]);
        assert_eq!(takes(&mut bucket, SECOND * 60, 3), [Pass; 3], "a debt is paid in time");
    }

    #[test]
    fn a_steady_rate_below_the_limit_never_runs_out() {
        let mut bucket = Bucket::default();
        for n in 0..1000 {
            assert_eq!(bucket.take(SECOND * n / 10, 10, 3), Verdict::Pass, "{n}");
        }
    }

    #[test]
    fn odd_limits_are_survived() {
        for (rate, burst) in [(0, 0), (u32::MAX, u32::MAX), (1, u32::MAX), (u32::MAX, 1)] {
            let mut bucket = Bucket::default();
            assert_eq!(bucket.take(SECOND, rate, burst), Verdict::Pass);
        }
    }

    #[test]
    fn of_too_many_awaited_answers_the_oldest_are_forgotten() {
        let mut awaited = Awaited::default();
        for correlation in 0..=AWAITED_MAX as u64 {
            awaited.begin(correlation);
        }
        assert!(!awaited.end(0));
        assert!(awaited.end(1));
        assert!(!awaited.end(1), "one answer");
    }
}
