//! An acknowledgement means what it says: handed out, or committed by every durable consumer.

use daemoneye_eventbus::*;

use crate::common::*;

#[tokio::test]
async fn without_a_durable_consumer_events_are_accepted() {
    let bus = Bus::new().await;
    let mut live = bus.live("watch", "events.process.*").await;
    let mut writer = bus.writer(Log::new()).await;
    assert_eq!(writer.publisher.committed(), None);
    writer.publish(3).await;
    writer.publish(2).await;
    assert_eq!(writer.acked(5).await.level, AckLevel::Accepted);
    assert_eq!(events(&mut live, 5).await, [1, 2, 3, 4, 5]);
    assert_eq!(bus.broker.stats().streams[0].retained_bytes, 0);
}

#[tokio::test]
async fn a_delivery_says_what_was_published() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(2).await;
    let mut gap = Log::entry(9, "events.process.gap");
    gap.span = 7;
    let batch = Batch {
        stream: writer.log.stream,
        epoch: writer.log.epoch,
        after: Sequence(2),
        entries: vec![gap],
        through: Sequence(9),
    };
    within(writer.publisher.publish(&batch)).await.unwrap();

    let first = within(store.next()).await.unwrap();
    let published = writer.log.batch(0, 2, START);
    assert_eq!((first.stream, first.epoch), (published.stream, published.epoch));
    assert_eq!((first.after, first.through), (Sequence(0), Sequence(2)));
    assert_eq!(first.entries, published.entries);
    let second = within(store.next()).await.unwrap();
    assert_eq!((second.after, second.through), (Sequence(2), Sequence(9)));
    assert_eq!(second.entries, batch.entries);
}

/// Each publisher numbers its topics itself; what one calls 0 the other calls 1.
#[tokio::test]
async fn topics_of_several_publishers_are_not_mixed_up() {
    let bus = Bus::new().await;
    let mut starts = bus.live("starts", START).await;
    let mut all = bus.durable("store", "events.#", vec![]).await;
    let (mut one, mut two) = (bus.writer(Log::new()).await, bus.writer(Log::new()).await);
    one.publish_on(1, START).await;
    one.publish_on(1, STOP).await;
    two.publish_on(2, STOP).await;
    two.publish_on(1, START).await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let delivery = within(all.next()).await.unwrap();
        let first = delivery.stream == one.log.stream;
        seen.extend(delivery.entries.iter().map(|e| (!first, e.sequence.0, e.topic.to_string())));
    }
    seen.sort();
    let expected =
        [(false, 1, START), (false, 2, STOP), (true, 1, STOP), (true, 2, STOP), (true, 3, START)];
    assert_eq!(seen, expected.map(|(second, n, topic)| (second, n, topic.to_owned())));
    let mut sequences = events(&mut starts, 2).await;
    sequences.sort_unstable();
    assert_eq!(sequences, [1, 3]);
}

#[tokio::test]
async fn with_a_durable_consumer_events_are_acknowledged_when_it_commits() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let mut live = bus.live("watch", "events.#").await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(4).await;
    assert_eq!(deliveries(&mut store, 4).await, [1, 2, 3, 4]);
    // The live subscriber has them too by now, and there is still no acknowledgement.
    events(&mut live, 4).await;
    assert_eq!(bus.broker.stats().streams[0].acked, Sequence(0));
    store.commit(writer.log.stream, Sequence(3), writer.log.epoch).unwrap();
    let ack = writer.acked(3).await;
    assert_eq!(ack.level, AckLevel::Committed);
    store.commit(writer.log.stream, Sequence(4), writer.log.epoch).unwrap();
    writer.acked(4).await;
}

#[tokio::test]
async fn the_slowest_of_two_durable_consumers_decides() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let mut forwarder = bus.durable("forwarder", "events.process.start", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(3).await;
    writer.publish_on(2, STOP).await;
    let Log { stream, epoch, .. } = writer.log;
    assert_eq!(deliveries(&mut store, 5).await, [1, 2, 3, 4, 5]);
    assert_eq!(deliveries(&mut forwarder, 5).await, [1, 2, 3]);
    store.commit(stream, Sequence(5), epoch).unwrap();
    forwarder.commit(stream, Sequence(2), epoch).unwrap();
    writer.acked(2).await;
    // What the forwarder does not want it commits all the same.
    forwarder.commit(stream, Sequence(5), epoch).unwrap();
    writer.acked(5).await;
}

#[tokio::test]
async fn a_stuck_durable_consumer_stops_acknowledgements_and_nothing_else() {
    let bus = Bus::with(|options| options.in_flight_bytes = 1000).await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    // Attached, and never looked at.
    let _stuck = bus.durable("stuck", "events.#", vec![]).await;
    let mut live = bus.live("watch", "events.#").await;
    let mut writer = bus.writer(Log::new()).await;
    for round in 0..100 {
        writer.publish(10).await;
        assert_eq!(events(&mut live, 10).await[9], round * 10 + 10);
        deliveries(&mut store, writer.log.last).await;
        store.commit(writer.log.stream, Sequence(writer.log.last), writer.log.epoch).unwrap();
    }
    until(|| {
        let stats = bus.broker.stats();
        stats.consumers.iter().any(|c| c.name == "store" && c.cursors[0].lag == 0)
    })
    .await;
    let stats = bus.broker.stats();
    assert_eq!((stats.streams[0].last, stats.streams[0].acked), (Sequence(1000), Sequence(0)));
    let stuck = &stats.consumers.iter().find(|c| c.name == "stuck").unwrap().cursors[0];
    assert!(stuck.in_flight_bytes < 2000, "{stuck:?}");
    assert_eq!(stuck.lag, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_small_batches_arrive_in_order_and_are_all_acknowledged() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    let stream = writer.log.stream;
    let consumer = tokio::spawn(async move {
        let mut next = 1;
        while next <= 5000 {
            let delivery = within(store.next()).await.unwrap();
            assert_eq!(delivery.after.0 + 1, next);
            for entry in &delivery.entries {
                assert_eq!(entry.sequence.0, next);
                next += 1;
            }
            store.commit(stream, delivery.through, delivery.epoch).unwrap();
        }
        store
    });
    for n in 0..1000 {
        writer.publish_on(5, if n % 3 == 0 { STOP } else { START }).await;
    }
    writer.acked(5000).await;
    within(consumer).await.unwrap();
}
