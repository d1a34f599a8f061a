//! How long the machine has slept.

use super::FORK_NS;
use crate::source::clock::{awake_ns, since_boot_ns};

/// How long the machine has slept: the connector's clock stands still then.
#[derive(Default)]
pub(super) struct Asleep {
    ns: u64,
}

impl Asleep {
    /// Keeps what it was unless it is another by more than clocks can be told apart: the moments of
    /// things must not change places.
    pub(super) fn now(&mut self) -> u64 {
        const APART_NS: u64 = 20_000;
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            let before_ns = since_boot_ns();
            let awake_ns = awake_ns();
            let after_ns = since_boot_ns();
            // Otherwise somebody else ran in between.
            if after_ns - before_ns < APART_NS {
                let asleep_ns = before_ns.saturating_sub(awake_ns);
                if asleep_ns.abs_diff(self.ns) > FORK_NS {
                    self.ns = asleep_ns;
                }
                break;
            }
        }
        self.ns
    }
}
