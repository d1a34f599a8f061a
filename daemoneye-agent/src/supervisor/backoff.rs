//! How long to wait before starting a program that ended.

use std::time::Duration;

/// The limits of the waits between restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackoffOptions {
    /// The wait after the first death.
    pub min: Duration,
    /// The longest wait; also the wait after a configuration error, which a restart cannot mend.
    pub max: Duration,
    /// A program that ran this long is taken to be well: the next wait is the shortest again.
    pub reset_after: Duration,
}

impl Default for BackoffOptions {
    fn default() -> Self {
        Self {
            min: Duration::from_millis(100),
            max: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
        }
    }
}

/// What is known of the life that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It ran for this long.
    After(Duration),
    /// It said that its configuration is wrong, or could not be started at all.
    Hopeless,
}

/// Doubles from the shortest to the longest wait.
#[derive(Debug)]
pub(super) struct Backoff {
    options: BackoffOptions,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(options: BackoffOptions) -> Self {
        let next = options.min;
        Self { options, next }
    }

    /// The wait before the next start.
    pub(super) fn wait(&mut self, ended: Ended) -> Duration {
        match ended {
            Ended::Hopeless => return self.options.max,
            Ended::After(ran) if ran >= self.options.reset_after => self.next = self.options.min,
            Ended::After(_) => {}
        }
        let wait = self.next.min(self.options.max);
        self.next = self.next.saturating_mul(2).min(self.options.max);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_limit_and_start_over_after_a_long_life() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(BackoffOptions::default());
        let short = Ended::After(second);
        let waits: Vec<_> = (0..11).map(|_| backoff.wait(short).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(backoff.wait(Ended::After(60 * second)).as_millis(), 100);
        assert_eq!(backoff.wait(short).as_millis(), 200);
        assert_eq!(backoff.wait(Ended::Hopeless), 30 * second);
        assert_eq!(backoff.wait(short).as_millis(), 400);
    }
}
