//! A live subscriber that never reads costs nobody else anything, and is told what it missed.

use daemoneye_eventbus::wire::{Entries, Frame, SubscribeFrame, SubscribeKind};
use daemoneye_eventbus::*;

use crate::common::*;

const EVENTS: u64 = 40_000;
const QUEUE_BYTES: u32 = 64 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_live_subscriber_that_never_reads_misses_the_oldest_and_nobody_else_anything() {
    let bus = Bus::new().await;
    let mut slow = RawPeer::hello(&bus, Role::Subscriber, "slow").await;
    slow.send(&Frame::Subscribe(SubscribeFrame {
        subscription: 1,
        patterns: vec!["events.#".parse().unwrap()],
        kind: SubscribeKind::Live { bytes_max: QUEUE_BYTES, count_max: 1 << 20 },
    }))
    .await;
    assert_eq!(slow.next().await, Some(Frame::Subscribed { subscription: 1 }));

    let healthy = bus.subscriber("healthy").await;
    let plenty = LiveOptions { max_bytes: u32::MAX, max_count: u32::MAX };
    let mut healthy =
        within(healthy.subscribe(&["events.#".parse().unwrap()], plenty)).await.unwrap();

    let mut writer = bus.writer(Log::new()).await;
    while writer.log.last < EVENTS {
        writer.publish(40).await;
        let last = writer.log.last;
        writer.acked(last).await;
        assert_eq!(events(&mut healthy, 40).await[39], last);
        let stats = bus.broker.stats();
        let queue = stats.live.iter().find(|live| live.client_id == "slow").unwrap();
        assert!(queue.queued_bytes <= QUEUE_BYTES as usize, "{queue:?}");
    }
    let stats = bus.broker.stats();
    let slow_queue = stats.live.iter().find(|live| live.client_id == "slow").unwrap();
    assert!(slow_queue.missed_total > EVENTS / 2, "{slow_queue:?}");
    let healthy_queue = stats.live.iter().find(|live| live.client_id == "healthy").unwrap();
    assert_eq!(healthy_queue.missed_total, 0);

    // Now it reads: what it gets and what it is told it missed is everything, in order.
    let (mut next, mut received, mut missed) = (1, 0, 0);
    while next <= EVENTS {
        match slow.next().await.expect("it is still connected") {
            Frame::Missed { count, .. } => {
                missed += count;
                next += count;
            }
            Frame::Deliver(deliver) => {
                for entry in Entries::new(&deliver.entries) {
                    assert_eq!(entry.unwrap().0.sequence.0, next);
                    next += 1;
                    received += 1;
                }
            }
            Frame::Declare { .. } => {}
            other => panic!("events, not {other:?}"),
        }
    }
    assert_eq!(received + missed, EVENTS);
    assert!(missed > 0 && received > 0);
}

/// The same within the subscriber's own process: the application does not take what the client
/// has read for it.
#[tokio::test]
async fn an_application_that_does_not_take_its_events_misses_the_oldest() {
    let bus = Bus::new().await;
    let client = bus.subscriber("idle").await;
    let options = LiveOptions { max_bytes: 1 << 20, max_count: 100 };
    let patterns = ["events.#".parse().unwrap()];
    let mut idle = within(client.subscribe(&patterns, options)).await.unwrap();
    let mut store = within(client.subscribe_durable("store", &patterns, vec![])).await.unwrap();
    let mut writer = bus.writer(Log::new()).await;
    for _ in 0..100 {
        writer.publish(10).await;
        // Another subscription of the same connection is not held up.
        let last = writer.log.last;
        deliveries(&mut store, last).await;
        store.commit(writer.log.stream, Sequence(last), writer.log.epoch).unwrap();
        writer.acked(last).await;
    }
    let (mut received, mut missed) = (0, 0);
    while received + missed < 1000 {
        match within(idle.next()).await.unwrap() {
            LiveItem::Missed { count } => missed += count,
            LiveItem::Event(event) => {
                received += 1;
                assert_eq!(event.origin.sequence.0, received + missed);
            }
            LiveItem::Message(message) => panic!("an event, not {message:?}"),
        }
    }
    assert_eq!((received, missed), (100, 900));
}
