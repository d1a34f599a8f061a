//! Random histories of the log on a [disk that forgets and fails](super::storage::sim), against
//! what must always hold (W1 to W9).
//!
//! A history is lived through, with faults at operations drawn at random; then every operation that
//! it asked of the disk, or some of them, is taken for the last one before a power cut or a kill,
//! and what opening finds is checked again. `E2E_HISTORIES` says how many histories, `E2E_SEED` from
//! which seed on, `E2E_CRASH_POINTS` how many crash points of each (`all` of them):
//!
//! ```text
//! E2E_HISTORIES=10000 E2E_CRASH_POINTS=8 cargo test -p procmond --lib wal::model
//! ```
//!
//! The log's threads interleave as they like, so the same seed is the same history but not always
//! the same order of operations. In half of the histories threads lose their turn at random. What
//! is found is told with the changes that were asked of the disk before it, and by which thread.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

mod archives;
mod damage;
mod expect;
mod found;
mod history;
mod run;

use history::{History, history};
use run::{CrashPoints, Run, Tally};

/// Lives one history, drawn from a seed; when it goes wrong, the smallest that does is shown.
fn live(seed: u64, points: CrashPoints) -> Result<Tally, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        max_shrink_iters: 400,
        max_shrink_time: 10_000,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let tally = Mutex::new(Tally::default());
    let lived = TestRunner::new_with_rng(config, rng).run(&history(), |history: History| {
        match Run::live_through(&history, points) {
            Ok(more) => {
                *tally.lock().unwrap() += more;
                Ok(())
            }
            Err(wrong) => Err(TestCaseError::fail(wrong)),
        }
    });
    match lived {
        Ok(()) => Ok(tally.into_inner().unwrap()),
        Err(TestError::Fail(wrong, history)) => {
            let actions: Vec<_> = history.actions.iter().map(|it| format!("  {it:?}\n")).collect();
            let History { setup, seed: dice, .. } = history;
            Err(format!(
                "{}\nin a history of {setup:?}, seed {dice}:\n{}drawn from E2E_SEED={seed}",
                wrong.message(),
                actions.concat()
            ))
        }
        Err(TestError::Abort(why)) => Err(why.message().to_owned()),
    }
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

#[test]
fn w1_to_w9_hold_after_every_crash_of_random_histories() {
    let histories = number("E2E_HISTORIES", 300);
    let first = number("E2E_SEED", 1);
    let points = match std::env::var("E2E_CRASH_POINTS").as_deref() {
        Ok("all") => CrashPoints::All,
        Ok(text) => CrashPoints::AtMost(text.parse().unwrap()),
        Err(_) => CrashPoints::AtMost(8),
    };
    let next = AtomicU64::new(0);
    let total = Mutex::new(Tally::default());
    let wrong = Mutex::new(Vec::new());
    let since = Instant::now();
    thread::scope(|scope| {
        // Most of a history is waiting: for delays, and for what is tried again after a failure.
        for _ in 0..8 * thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= histories || !wrong.lock().unwrap().is_empty() {
                        break;
                    }
                    match live(first + nth, points) {
                        Ok(tally) => *total.lock().unwrap() += tally,
                        Err(found) => wrong.lock().unwrap().push(found),
                    }
                    if (nth + 1).is_multiple_of(1000) {
                        eprintln!("{} histories: {:?}", nth + 1, total.lock().unwrap());
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    eprintln!("seeds from {first} on: {total:?} in {:.1?}", since.elapsed());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(total.histories, histories);
    assert!(total.crash_points > 0 && total.openings > total.crash_points, "{total:?}");
}
