use std::process::Command;

use daemoneye_lib::models::process::KeyPrecision;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::super::procfs::TICK_NS;
use super::message::{Message, datagram};
use super::reader::beginning;
use super::*;
use crate::source::teller::IDLE;

const PATIENCE: Duration = Duration::from_secs(20);

/// A socket that hears what happens, if this may be heard here.
fn heard(room_bytes: u32) -> Option<Socket> {
    match listen(room_bytes) {
        Ok(socket) => Some(socket),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Whoever is privileged can send to any netlink socket: here that a process has ended.
#[test]
fn only_the_kernel_is_believed() {
    const EXITED: u32 = 0x8000_0000;
    const STATUS: u32 = 0x1234_5678;
    let Some(mut socket) = heard(1 << 20) else { return };
    let other = Socket::open(CONNECTOR, 0).unwrap();
    let me = std::process::id();
    let lie = datagram(0, 7, 8, EXITED, &[me, me, STATUS, 17, 1, 1]);
    assert_eq!(message::messages(&lie).count(), 1, "it would be understood");
    if let Err(error) = other.send_to(socket.port(), &lie) {
        eprintln!("skipped: this user may not even try: {error}");
        return;
    }
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < PATIENCE, "it did not come");
        match socket.receive().unwrap() {
            Received::Foreign => return,
            Received::Datagram(bytes) => {
                let is_lie = |message: Message| {
                    message.what == message::Told::Exited { wait_status: STATUS }
                };
                assert!(!message::messages(bytes).any(is_lie), "it was believed");
            }
            Received::Overrun | Received::Nothing => {
                socket.is_ready_within(IDLE);
            }
        }
    }
}

/// The two ways to count what found no room come to the same number.
#[test]
fn c1_what_finds_no_room_is_counted_exactly() {
    let Some(mut socket) = heard(64 << 10) else { return };
    let mut losses = Losses::default();
    let mut drain = |losses: &mut Losses| {
        loop {
            match socket.receive().unwrap() {
                Received::Datagram(bytes) => {
                    for message in message::messages(bytes) {
                        losses.count(&message);
                    }
                }
                Received::Overrun => losses.has_more = true,
                Received::Foreign => {}
                Received::Nothing => break,
            }
        }
        losses.dropped = socket.dropped().expect("a line for the socket");
    };
    let live = |count| {
        for _ in 0..count {
            assert!(Command::new("true").status().unwrap().success());
        }
    };
    // Every processor is heard of before, and, in the end, after.
    let processors = sched_getaffinity(None).unwrap();
    let live_on_each = || {
        for processor in (0..CpuSet::MAX_CPU).filter(|at| processors.is_set(*at)) {
            let mut one = CpuSet::new();
            one.set(processor);
            sched_setaffinity(None, &one).unwrap();
            live(3);
        }
        sched_setaffinity(None, &processors).unwrap();
    };
    live_on_each();
    drain(&mut losses);
    live(1000);
    drain(&mut losses);
    assert!(losses.has_more && losses.dropped > 100, "1000 processes fit into 64 KiB");
    let since = Instant::now();
    while losses.holes != losses.dropped {
        assert!(losses.holes < losses.dropped, "{} > {}", losses.holes, losses.dropped);
        assert!(since.elapsed() < PATIENCE, "{} of {}", losses.holes, losses.dropped);
        live_on_each();
        drain(&mut losses);
    }
    assert_eq!(losses.total(), losses.dropped);
}

#[test]
fn holes_are_counted_for_each_processor() {
    let mut losses = Losses::default();
    let mut count = |cpu, sequence, what| {
        let bytes = datagram(cpu, sequence, 1, what, &[5, 5]);
        losses.count(&message::messages(&bytes).next().unwrap())
    };
    assert!(!count(0, 10, 2));
    assert!(!count(1, u32::MAX, 2), "the first is none");
    assert!(!count(0, 11, 2));
    assert!(!count(1, 0, 2), "numbers begin again");
    assert!(count(1, 3, 2), "two are missing");
    assert!(!count(0, 1, 0), "an answer without a number of its own");
    assert!(!count(0, 12, 2));
    assert_eq!(losses.total(), 2);
}

#[test]
fn a_beginning_is_in_the_tick_that_the_process_table_says() {
    let at = |ticks: u64, ns| ticks * TICK_NS + ns;
    assert_eq!(beginning(at(500, 70), Some(500)), (at(500, 70), KeyPrecision::Tick));
    // It was told of a moment after it began.
    let (start_ns, precision) = beginning(at(500, 70), Some(499));
    assert_eq!((start_ns / TICK_NS, precision), (499, KeyPrecision::Tick));
    // What has the pid by now is another.
    let close = at(500, 70);
    assert_eq!(beginning(close, Some(501)), (close, KeyPrecision::Second));
    assert_eq!(beginning(close, Some(300)), (close, KeyPrecision::Second));
    assert_eq!(beginning(close, None), (close, KeyPrecision::Second));
    let sure = at(500, 5_000_000);
    assert_eq!(beginning(sure, None), (sure, KeyPrecision::Tick));
}
