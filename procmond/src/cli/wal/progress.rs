//! How far a command has come, on a terminal, if it takes long.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::wal::Progress;

const PATIENCE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(200);

/// Does it, and shows the progress on standard error when it takes more than a second.
pub(super) fn shown<T>(progress: &Progress, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let (done, ended) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut wait = PATIENCE;
            let mut shown = false;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let line = line(progress.bytes());
                // A terminal that takes nothing is no reason to stop.
                let _ = write!(io::stderr(), "\r{line}\x1b[K");
                shown = true;
                wait = EVERY;
            }
            if shown {
                let _ = write!(io::stderr(), "\r\x1b[K");
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn line((done, total): (u64, u64)) -> String {
    let percent = (done * 100).checked_div(total).unwrap_or(0).min(100);
    format!("procmond: {} of {} MB read ({percent} %)", done / 1_000_000, total / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far() {
        assert_eq!(line((0, 0)), "procmond: 0 of 0 MB read (0 %)");
        assert_eq!(line((40_000_000, 80_000_000)), "procmond: 40 of 80 MB read (50 %)");
        assert_eq!(line((90, 80)), "procmond: 0 of 0 MB read (100 %)");
    }
}
