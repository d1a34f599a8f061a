//! Whoever comes back goes on where it was: nothing is lost, nothing is delivered twice.

use daemoneye_eventbus::*;

use crate::common::*;

#[tokio::test]
async fn a_consumer_that_reconnects_resumes_behind_its_commit() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(3).await;
    writer.publish(3).await;
    deliveries(&mut store, 6).await;
    store.commit(writer.log.stream, Sequence(2), writer.log.epoch).unwrap();
    writer.acked(2).await;
    drop(store);
    until(|| !bus.broker.stats().consumers[0].attached).await;
    writer.publish(1).await;

    let mut store = bus.durable("store", "events.#", vec![]).await;
    assert_eq!(deliveries(&mut store, 7).await, [3, 4, 5, 6, 7]);
    drop(store);
    until(|| !bus.broker.stats().consumers[0].attached).await;

    // Its own word counts for more than the broker's memory: the commit may have been lost.
    let mut store = bus.durable("store", "events.#", vec![writer.log.at(5)]).await;
    assert_eq!(deliveries(&mut store, 7).await, [6, 7]);
    writer.acked(5).await;
}

#[tokio::test]
async fn a_publisher_that_reconnects_is_told_where_to_resume_and_its_duplicates_are_dropped() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(6).await;
    assert_eq!(deliveries(&mut store, 6).await, [1, 2, 3, 4, 5, 6]);
    store.commit(writer.log.stream, Sequence(2), writer.log.epoch).unwrap();
    writer.acked(2).await;
    let log = writer.log;
    writer.client.goodbye().await;
    drop(writer.publisher);
    until(|| bus.broker.publishers().is_empty()).await;

    // The next opening of the log: a later epoch, the same records.
    let reopened = Log { epoch: log.epoch.next(), ..log };
    let mut writer = bus.writer(reopened).await;
    assert_eq!(writer.publisher.committed(), Some(log.at(2).1));
    assert_eq!(writer.publisher.positions(), [log.at(2).1, log.at(6).1]);
    let again = log.batch(2, 4, START);
    within(writer.publisher.publish(&again)).await.unwrap();
    writer.publish(2).await;
    let next = within(store.next()).await.unwrap();
    assert_eq!((next.after, next.through), (Sequence(6), Sequence(8)));
    assert_eq!(next.epoch, reopened.epoch);
    store.commit(log.stream, Sequence(8), next.epoch).unwrap();
    writer.acked(8).await;
    assert_eq!(bus.broker.stats().streams[0].duplicates_total, 4);
}

#[tokio::test]
async fn a_consumer_that_is_gone_for_good_is_forgotten() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let gone = bus.durable("gone", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(6).await;
    deliveries(&mut store, 6).await;
    store.commit(writer.log.stream, Sequence(6), writer.log.epoch).unwrap();
    assert!(matches!(bus.broker.forget_consumer("gone"), Err(ForgetError::Attached { .. })));
    drop(gone);
    until(|| bus.broker.stats().consumers.iter().any(|c| c.name == "gone" && !c.attached)).await;
    until(|| bus.broker.stats().consumers.iter().any(|c| c.cursors[0].lag == 0)).await;
    assert_eq!(bus.broker.stats().streams[0].acked, Sequence(0), "it is awaited");
    bus.broker.forget_consumer("gone").unwrap();
    writer.acked(6).await;
    assert!(matches!(bus.broker.forget_consumer("gone"), Err(ForgetError::Unknown { .. })));

    // The last one says so itself.
    writer.publish(2).await;
    deliveries(&mut store, 8).await;
    store.forget();
    let ack = writer.acked(8).await;
    assert_eq!(ack.level, AckLevel::Accepted);
    assert!(bus.broker.stats().consumers.is_empty());
}

#[tokio::test]
async fn what_was_received_is_delivered_although_its_publisher_is_gone() {
    let bus = Bus::new().await;
    let _keeps_it = bus.durable("other", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(3).await;
    until(|| bus.broker.stats().streams[0].last == Sequence(3)).await;
    drop(writer);
    until(|| bus.broker.publishers().is_empty()).await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    assert_eq!(deliveries(&mut store, 3).await, [1, 2, 3]);
}

#[tokio::test]
async fn after_a_broker_was_killed_everybody_goes_on_where_the_consumer_is() {
    let bus = Bus::new().await;
    let mut store = bus.durable("store", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(6).await;
    deliveries(&mut store, 6).await;
    store.commit(writer.log.stream, Sequence(4), writer.log.epoch).unwrap();
    writer.acked(4).await;
    let directory = bus.kill().await;
    assert!(matches!(within(writer.client.closed()).await, CloseReason::Lost(_)));
    assert!(within(store.next()).await.is_none());
    assert!(within(writer.publisher.acked()).await.is_err());

    let bus = Bus::again(directory, |_| {}).await;
    let mut store = bus.durable("store", "events.#", vec![writer.log.at(4)]).await;
    let mut writer = bus.writer(writer.log).await;
    assert_eq!(writer.publisher.committed(), Some(writer.log.at(4).1));
    let rest = writer.log.batch(4, 2, START);
    within(writer.publisher.publish(&rest)).await.unwrap();
    assert_eq!(deliveries(&mut store, 6).await, [5, 6]);
    store.commit(writer.log.stream, Sequence(6), writer.log.epoch).unwrap();
    writer.acked(6).await;
}

#[tokio::test]
async fn events_that_are_gone_for_good_leave_a_visible_hole() {
    let bus = Bus::new().await;
    let log = Log { last: 9, ..Log::new() };
    let mut store = bus.durable("store", "events.#", vec![log.at(3)]).await;
    let writer = bus.writer(log).await;
    within(writer.publisher.publish(&log.batch(7, 2, START))).await.unwrap();
    let delivery = within(store.next()).await.unwrap();
    assert_eq!((delivery.after, delivery.through), (Sequence(7), Sequence(9)));
}
