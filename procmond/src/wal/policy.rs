//! What the log's owner decides: when to sync and when to begin the next segment.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Promise;

/// When what is written is made durable. Whatever the mode, records are written in order, and what
/// was written survives the end of the process, kill -9 included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SyncMode {
    /// Before a receipt is given: nothing with a receipt is lost in a power cut. Appends share
    /// syncs.
    #[default]
    Always,
    /// Receipts are given when records are written. A power cut takes at most the last records:
    /// what was written within `every`, and no more than about `bytes` (and one commit).
    Interval {
        /// The longest time something is written and not synced.
        every: Duration,
        /// The most bytes written and not synced; they are kept in memory until then.
        bytes: u64,
    },
    /// When the system likes, some thirty seconds later on Linux; and before a segment is left
    /// for good. A power cut takes what the system had not got round to.
    Os,
}

impl SyncMode {
    /// What a receipt promises in this mode.
    #[must_use]
    pub const fn promise(&self) -> Promise {
        match self {
            Self::Always => Promise::Synced,
            Self::Interval { .. } | Self::Os => Promise::Written,
        }
    }

    pub(crate) const fn is_always(&self) -> bool {
        matches!(self, Self::Always)
    }
}

/// When a segment with records is left for the next though it is not full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotateEvery {
    /// So long after it was begun.
    Age(Duration),
    /// At midnight, UTC.
    Midnight,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The wall clock may be set, so it is looked at again after this.
const CLOCK_LOOK: Duration = Duration::from_secs(60);

/// When a segment was begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation {
    at: Instant,
    day: u64,
}

impl Rotation {
    pub(crate) fn now() -> Self {
        Self { at: Instant::now(), day: today().0 }
    }

    /// How long until the segment has to be left, zero if it is due; looked at again no later than
    /// that.
    pub(crate) fn left(&self, rotate: Option<RotateEvery>) -> Option<Duration> {
        Some(match rotate? {
            RotateEvery::Age(age) => age.saturating_sub(self.at.elapsed()),
            RotateEvery::Midnight => {
                let (day, into) = today();
                if day == self.day { (DAY - into).min(CLOCK_LOOK) } else { Duration::ZERO }
            }
        })
    }
}

/// Days since 1970, and how much of today is over.
fn today() -> (u64, Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let day = now.as_secs() / DAY.as_secs();
    (day, now - DAY * u32::try_from(day).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_left_at_its_age() {
        let Some(at) = Instant::now().checked_sub(Duration::from_secs(10)) else { return };
        let began = Rotation { at, day: today().0 };
        let left = |seconds| began.left(Some(RotateEvery::Age(Duration::from_secs(seconds))));
        assert_eq!(left(10), Some(Duration::ZERO));
        assert!(left(30).is_some_and(|left| left <= Duration::from_secs(20) && !left.is_zero()));
        assert_eq!(began.left(None), None);
    }

    #[test]
    fn a_segment_of_another_day_is_left() {
        let began = Rotation { at: Instant::now(), day: today().0 - 1 };
        assert_eq!(began.left(Some(RotateEvery::Midnight)), Some(Duration::ZERO));
        let left = Rotation::now().left(Some(RotateEvery::Midnight));
        assert!(left.is_some_and(|left| left <= CLOCK_LOOK));
    }
}
