//! A process that appends from several threads is killed again and again: every record it had a
//! receipt for is there, once, as it was, however the log syncs.
//!
//! `E2E_ROUNDS=500 cargo test -p procmond --test wal_kill` for a long run.
#![cfg(test)]
#![cfg(unix)]

#[path = "support/appender.rs"]
mod appender;
#[path = "support/random.rs"]
mod random;

use std::time::Duration;

use appender::{Appender, Ledger};
use random::Random;

#[test]
fn child() {
    appender::append_until_ended();
}

#[test]
fn every_receipt_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new();
    let mut ledger = Ledger::new(false);
    let rounds = random::rounds(60);
    for round in 1..=rounds {
        let (child, mut pipe) = Appender::start(dir.path(), random.next(), round);
        if random.below(4) == 0 {
            // While it opens the log, or soon after: a moment nobody chose.
            std::thread::sleep(Duration::from_micros(random.below(15_000)));
        } else {
            let enough = 1 + random.below(400);
            let errors = ledger.hear(&mut pipe, enough);
            assert_eq!(errors, [""; 0], "round {round}");
        }
        child.kill();
        let errors = ledger.hear(&mut pipe, u64::MAX);
        assert_eq!(errors, [""; 0], "round {round}");

        if random.below(2) == 0 {
            ledger.check(dir.path(), &format!("round {round}"));
        } else {
            ledger.check_copy(dir.path(), &format!("round {round}, a copy"));
        }
    }
    println!("{rounds} kills, receipts {:?}, lost {:?}", ledger.heard, ledger.taken);
    assert!(ledger.receipts_heard() > rounds * 50, "only {:?}", ledger.heard);
}
