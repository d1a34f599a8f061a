//! Telling the producer that delivery has fallen behind.

use std::collections::VecDeque;

/// Above this share of the window the producer is asked to slow down.
const ENGAGE_PERCENT: u64 = 70;
/// At or below this share it may return to its pace.
const RELEASE_PERCENT: u64 = 50;

/// A change of pace asked of the producer. Signals alternate, beginning with `Engage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackpressureSignal {
    /// The backlog rose above 70 % of the window.
    Engage {
        /// The backlog in percent of the window, at most 100: beyond that it lies in the log.
        level: u8,
    },
    /// The backlog fell to 50 % of the window or less.
    Release {
        /// The backlog in percent of the window.
        level: u8,
    },
}

/// Turns the size of the backlog into alternating signals.
#[derive(Debug)]
pub(super) struct Gauge {
    window_bytes_max: u64,
    engaged: bool,
}

impl Gauge {
    pub(super) fn new(window_bytes_max: u64) -> Self {
        Self { window_bytes_max, engaged: false }
    }

    /// The signal that a backlog of this many bytes calls for, if it crossed a mark.
    pub(super) fn observe(&mut self, backlog_bytes: u64) -> Option<BackpressureSignal> {
        let percent = u128::from(backlog_bytes) * 100 / u128::from(self.window_bytes_max.max(1));
        let level = percent.min(100) as u8;
        let above =
            |mark| u128::from(backlog_bytes) * 100 > u128::from(self.window_bytes_max) * mark;
        if !self.engaged && above(u128::from(ENGAGE_PERCENT)) {
            self.engaged = true;
            Some(BackpressureSignal::Engage { level })
        } else if self.engaged && !above(u128::from(RELEASE_PERCENT)) {
            self.engaged = false;
            Some(BackpressureSignal::Release { level })
        } else {
            None
        }
    }
}

/// Signals that the channel had no room for.
///
/// A signal waits here until the receiver takes it, so a full channel loses none. While two wait,
/// the next one undoes the last: the receiver has not seen that one and need not.
#[derive(Debug, Default)]
pub(super) struct PendingSignals(VecDeque<BackpressureSignal>);

impl PendingSignals {
    const MOST: usize = 2;

    pub(super) fn push(&mut self, signal: BackpressureSignal) {
        if self.0.len() == Self::MOST {
            self.0.pop_back();
        } else {
            self.0.push_back(signal);
        }
    }

    pub(super) fn pop(&mut self) -> Option<BackpressureSignal> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crossing_up_engages_once_and_falling_to_half_releases_once() {
        let mut gauge = Gauge::new(1000);
        assert_eq!(gauge.observe(700), None);
        assert_eq!(gauge.observe(701), Some(BackpressureSignal::Engage { level: 70 }));
        for backlog in [900, 5000, 701, 699, 501] {
            assert_eq!(gauge.observe(backlog), None, "at {backlog}");
        }
        assert_eq!(gauge.observe(500), Some(BackpressureSignal::Release { level: 50 }));
        for backlog in [0, 500, 700] {
            assert_eq!(gauge.observe(backlog), None, "at {backlog}");
        }
        assert_eq!(gauge.observe(9000), Some(BackpressureSignal::Engage { level: 100 }));
    }

    #[test]
    fn pending_signals_stay_few_and_alternate() {
        let mut pending = PendingSignals::default();
        let (engage, release) =
            (BackpressureSignal::Engage { level: 71 }, BackpressureSignal::Release { level: 50 });
        for _ in 0..50 {
            pending.push(engage);
            pending.push(release);
        }
        assert_eq!(pending.pop(), Some(engage));
        assert_eq!(pending.pop(), Some(release));
        assert!(pending.is_empty());
    }

    #[test]
    fn an_undone_signal_leaves_the_one_before_it() {
        let mut pending = PendingSignals::default();
        pending.push(BackpressureSignal::Release { level: 50 });
        pending.push(BackpressureSignal::Engage { level: 71 });
        pending.push(BackpressureSignal::Release { level: 50 });
        assert_eq!(pending.pop(), Some(BackpressureSignal::Release { level: 50 }));
        assert!(pending.is_empty());
    }
}
