//! Looking at the process table again and again.

use std::fmt;
use std::sync::mpsc as blocking;
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::models::process::SourceName;
use tokio::sync::mpsc;

use super::{Observation, ProcessTable, SourceError};

/// Something whose processes can be listed.
pub(super) trait Scan: Send + 'static {
    /// Lists them all; facts of those that are new or have changed since the last time.
    fn scan(&mut self) -> Result<ProcessTable, SourceError>;

    /// Looks again, for somebody who was told of every look before.
    fn look(&mut self) -> Result<Vec<Observation>, SourceError> {
        Ok(vec![Observation::Snapshot(self.scan()?)])
    }

    /// To be called once before the first look: whoever can tells of the ends of processes, by pid
    /// and nanoseconds since boot, as they come. False from it: nobody listens any more.
    fn tell_ends(&mut self, _tell: impl Fn(Vec<u32>, u64) -> bool + Send + 'static) {}

    /// Makes of what was told so what somebody who was told of every look is to know.
    fn ended(&mut self, _pids: &[u32], _at_ns: u64) -> Option<Observation> {
        None
    }

    /// What is left to tell when nobody will look any more.
    fn end(&mut self) -> Option<Observation> {
        None
    }
}

/// A running source. Dropping it stops the source as well.
pub struct SourceHandle {
    control: Box<dyn Fn(Control) + Send + Sync>,
}

#[derive(Debug)]
pub(super) enum Control {
    SetInterval(Duration),
    Stop,
}

/// What wakes the thread that looks.
enum Wake {
    Control(Control),
    Ended(Vec<u32>, u64),
}

impl SourceHandle {
    pub(super) fn new(control: blocking::Sender<Control>) -> Self {
        // A source that has ended says so by closing its channel of observations.
        Self { control: Box::new(move |order| drop(control.send(order))) }
    }

    /// Changes the time between two looks, counted from when the last one began. Means nothing to a
    /// source that is told of what happens.
    pub fn set_interval(&self, interval: Duration) {
        (self.control)(Control::SetInterval(interval));
    }

    /// Ends the source after what it is doing. Its channel closes when all it has seen is taken.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for SourceHandle {
    fn drop(&mut self) {
        (self.control)(Control::Stop);
    }
}

impl fmt::Debug for SourceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceHandle")
    }
}

/// Begins to look.
pub(super) fn start(
    mut scanner: impl Scan,
    mut interval: Duration,
    observations: mpsc::Sender<Observation>,
) -> Result<SourceHandle, SourceError> {
    let (wake, orders) = blocking::channel();
    let ends = wake.clone();
    scanner.tell_ends(move |pids, at_ns| ends.send(Wake::Ended(pids, at_ns)).is_ok());
    let look_for_ever = move || loop {
        let began = Instant::now();
        let seen = scanner.look().unwrap_or_else(|error| vec![Observation::Failed(error)]);
        let took = began.elapsed();
        for observation in seen {
            if observations.blocking_send(observation).is_err() {
                return;
            }
        }
        // A table so large that a look takes longer than the interval must not eat a whole
        // processor: at least half of the time is left to others.
        let next = |interval: Duration| began + interval.max(took * 2);
        loop {
            let wait = next(interval).saturating_duration_since(Instant::now());
            match orders.recv_timeout(wait) {
                Ok(Wake::Control(Control::SetInterval(new))) => interval = new,
                Ok(Wake::Ended(pids, at_ns)) => {
                    let ended = scanner.ended(&pids, at_ns);
                    if ended.is_some_and(|ended| observations.blocking_send(ended).is_err()) {
                        return;
                    }
                }
                Ok(Wake::Control(Control::Stop))
                | Err(blocking::RecvTimeoutError::Disconnected) => {
                    // If nobody listens any more, nobody misses it.
                    scanner.end().map(|last| observations.blocking_send(last));
                    return;
                }
                Err(blocking::RecvTimeoutError::Timeout) => break,
            }
        }
    };
    spawn(SourceName::Poll, "procmond-poll", look_for_ever)?;
    Ok(SourceHandle { control: Box::new(move |order| drop(wake.send(Wake::Control(order)))) })
}

/// Runs a part of a source on a thread of its own.
pub(super) fn spawn(
    source: SourceName,
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<(), SourceError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| SourceError::NoThread { name: source, source: error })
}

#[cfg(test)]
mod tests {
    use std::io;

    use daemoneye_lib::models::process::KeyPrecision;
    use uuid::Uuid;

    use super::*;

    /// Counts its looks in the time of the table; every third fails.
    struct Counting(i64);

    impl Scan for Counting {
        fn scan(&mut self) -> Result<ProcessTable, SourceError> {
            self.0 += 1;
            if self.0 % 3 == 0 {
                return Err(SourceError::Unreadable {
                    path: "/proc".into(),
                    source: io::Error::other("too many open files"),
                    advice: "",
                });
            }
            Ok(ProcessTable {
                source: SourceName::Poll,
                is_told: false,
                boot_id: Uuid::nil(),
                precision: KeyPrecision::Tick,
                time_ns: self.0,
                uptime_ns: 0,
                processes: Vec::new(),
            })
        }
    }

    fn look(observation: Option<Observation>) -> i64 {
        match observation {
            Some(Observation::Snapshot(table)) => table.time_ns,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn looks_again_after_the_interval_and_after_a_failure() {
        let (sender, mut observations) = mpsc::channel(1);
        let handle = start(Counting(0), Duration::from_millis(1), sender).unwrap();
        assert_eq!(look(observations.blocking_recv()), 1);
        assert_eq!(look(observations.blocking_recv()), 2);
        assert!(matches!(observations.blocking_recv(), Some(Observation::Failed(_))));
        assert_eq!(look(observations.blocking_recv()), 4);
        handle.stop();
        while observations.blocking_recv().is_some() {}
    }

    #[test]
    fn a_new_interval_counts_at_once_and_dropping_the_handle_ends_it() {
        let (sender, mut observations) = mpsc::channel(1);
        let handle = start(Counting(0), Duration::from_secs(3600), sender).unwrap();
        assert_eq!(look(observations.blocking_recv()), 1);
        handle.set_interval(Duration::from_millis(1));
        assert_eq!(look(observations.blocking_recv()), 2);
        drop(handle);
        while observations.blocking_recv().is_some() {}
    }
}
