//! Moments as the kernel counts them.

use daemoneye_lib::stream::wall_clock_ns;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, time asleep included: as the kernel counts when a process began.
pub(super) fn since_boot_ns() -> u64 {
    now(ClockId::Boottime)
}

/// The same without the time asleep.
pub(super) fn awake_ns() -> u64 {
    now(ClockId::Monotonic)
}

/// What is to be added to nanoseconds since boot for nanoseconds since 1970.
pub(super) fn wall_offset_ns() -> i64 {
    wall_clock_ns().saturating_sub_unsigned(since_boot_ns())
}

fn now(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // Neither is negative.
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
