use std::time::{Duration, Instant};

/// How long the slowest machine may take for anything that a test waits for.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// Waits until `probe` holds.
///
/// # Panics
/// With `what`, when it does not hold within two minutes.
#[track_caller]
pub fn until(what: &str, mut probe: impl FnMut() -> bool) {
    until_some(what, || probe().then_some(()));
}

/// Waits until `probe` gives something.
///
/// # Panics
/// With `what`, when it gives nothing within two minutes.
#[track_caller]
pub fn until_some<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}
