//! The power is cut under a process that appends from several threads, on a real file system, again
//! and again: every record that it had a receipt for and that was synced is there, once, as it was.
//! Of others no more is lost than the log's way of syncing says, and only the last ones.
//!
//! `E2E_ROUNDS=500 cargo test -p procmond --test wal_power` for a long run.
#![cfg(test)]
#![cfg(target_os = "linux")]

#[path = "support/appender.rs"]
mod appender;
#[path = "support/cut_disk.rs"]
mod cut_disk;
#[path = "support/mounts.rs"]
mod mounts;
#[path = "support/random.rs"]
mod random;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use appender::{Appender, Ledger};
use cut_disk::CutDisk;
use mounts::{Mounted, in_private_mounts, kernel_lacks, knows_file_system, make_ext4, run};
use random::Random;

const DISK_BYTES: u64 = 32 << 20;

#[test]
fn child() {
    appender::append_until_ended();
}

#[test]
fn disk() {
    cut_disk::be_a_disk();
}

#[test]
fn every_receipt_survives_a_power_cut() {
    in_private_mounts(|| {
        for needed in ["fuse", "ext4"] {
            if !knows_file_system(needed) {
                return kernel_lacks(needed);
            }
        }
        for needed in ["/dev/fuse", "/dev/loop-control"] {
            if !Path::new(needed).exists() {
                return kernel_lacks(needed);
            }
        }
        let mut random = Random::new();
        // With ordered data the file system itself writes records before it tells of them; without,
        // it shows what a file's new blocks held before.
        for mode in ["ordered", "writeback"] {
            drill(&mut random, mode, random::rounds(20));
        }
    });
}

fn drill(random: &mut Random, mode: &str, rounds: u64) {
    let scratch = tempfile::tempdir().unwrap();
    let [image, appears, mounted] = ["image", "disk", "mounted"].map(|n| scratch.path().join(n));
    make_ext4(&image, DISK_BYTES);
    fs::create_dir(&appears).unwrap();
    fs::create_dir(&mounted).unwrap();
    let mut disk = CutDisk::new(&image, &appears, random.next());
    let dir = mounted.join("log");
    let options = format!("data={mode}");
    let mut ledger = Ledger::new(true);

    for round in 1..=rounds {
        let file_system = Mounted::device(&disk.turn_on(), &mounted, &options);
        if random.below(2) == 0 {
            ledger.check(&dir, &format!("{mode}, round {round}"));
        } else if dir.exists() {
            ledger.check_copy(&dir, &format!("{mode}, round {round}, a copy"));
        }
        let (child, mut pipe) = Appender::start(&dir, random.next(), round);
        disk.cut_after(random.below(1000));
        thread::scope(|scope| {
            // Whatever it says, now or after the power has gone, is a promise.
            scope.spawn(|| ledger.hear(&mut pipe, u64::MAX));
            disk.wait_for_cut(Duration::from_secs(1));
            child.kill();
        });
        drop(file_system);
    }

    let file_system = Mounted::device(&disk.turn_on(), &mounted, &options);
    ledger.check(&dir, &format!("{mode}, in the end"));
    file_system.unmount();
    disk.turn_off();
    // Had the disk lost what disks do not lose, the file system would have suffered as well.
    run("e2fsck", &[OsStr::new("-fn"), image.as_os_str()]);
    let flushes = disk.flushes();
    let Ledger { heard, taken, .. } = &ledger;
    println!("{mode}: {rounds} cuts, {flushes} flushes, receipts {heard:?}, lost {taken:?}");
    assert!(ledger.receipts_heard() > rounds * 5, "only {heard:?}");
    assert_eq!(taken.get("always").copied().unwrap_or_default(), 0);
}
