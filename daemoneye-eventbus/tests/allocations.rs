//! In steady state nothing is allocated for a message on its way through the bus. A program of its
//! own, for it counts every allocation of its process: publisher, broker and subscriber.
#![cfg(unix)]
#![expect(unsafe_code, reason = "a counting allocator is one by nature")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use daemoneye_eventbus::*;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PER_BATCH: u64 = 64;
const BATCHES: u64 = 400;

#[tokio::test]
async fn messages_allocate_nothing_in_steady_state() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let _broker = Broker::bind(BrokerOptions::new(&socket)).await.unwrap();
    let client =
        Client::connect(&socket, ClientOptions::new("reader", Role::Subscriber)).await.unwrap();
    let patterns = ["events.#".parse().unwrap()];
    let mut live = client.subscribe(&patterns, LiveOptions::default()).await.unwrap();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let position = Position { stream, epoch, first_unacknowledged: Sequence(1), last: Sequence(0) };
    let options = ClientOptions::new("writer", Role::Collector);
    let (_client, mut publisher) =
        Client::connect_publisher(&socket, options, position).await.unwrap();
    let entry = Entry {
        topic: "events.process.start".parse().unwrap(),
        sequence: Sequence(1),
        span: 1,
        timestamp_ns: 0,
        payload: Bytes::from(vec![b'x'; 400]),
    };
    let mut batch = Batch {
        stream,
        epoch,
        after: Sequence(0),
        entries: vec![entry; PER_BATCH as usize],
        through: Sequence(0),
    };
    let mut allocations_before = 0;
    // The first half lets every buffer grow to its size.
    for number in 0..BATCHES {
        if number == BATCHES / 2 {
            allocations_before = ALLOCATIONS.load(Ordering::Relaxed);
        }
        batch.after = Sequence(number * PER_BATCH);
        batch.through = Sequence((number + 1) * PER_BATCH);
        for (entry, sequence) in batch.entries.iter_mut().zip(batch.after.0 + 1..) {
            entry.sequence = Sequence(sequence);
        }
        publisher.publish(&batch).await.unwrap();
        let mut next = batch.after;
        while next < batch.through {
            let LiveBatch::Events(events) = live.next_batch().await.unwrap() else {
                panic!("only events")
            };
            for event in events.iter() {
                next = next.next();
                assert_eq!((event.sequence, event.payload.len()), (next, 400));
            }
        }
        while publisher.acked().await.unwrap().sequence < batch.through {}
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocations_before;
    let messages = BATCHES / 2 * PER_BATCH;
    println!("{allocations} allocations for {messages} messages");
    assert!(allocations <= messages / 1000, "{allocations} for {messages} messages");
}
