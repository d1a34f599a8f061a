//! A broker that stops says so, and a client can tell that from being refused or cut off.

use std::time::Duration;

use daemoneye_eventbus::wire::{Frame, SubscribeFrame, SubscribeKind};
use daemoneye_eventbus::*;

use crate::common::*;

#[tokio::test]
async fn shutdown_delivers_what_is_queued_says_goodbye_and_removes_the_socket() {
    let bus = Bus::new().await;
    let mut live = bus.live("watch", "events.#").await;
    let mut writer = bus.writer(Log::new()).await;
    let socket = bus.socket();
    for _ in 0..50 {
        writer.publish(100).await;
    }
    until(|| bus.broker.stats().streams.first().is_some_and(|s| s.last == Sequence(5000))).await;
    within(bus.broker.shutdown(Duration::from_secs(20))).await;
    assert!(!socket.exists());
    assert_eq!(events(&mut live, 5000).await.len(), 5000);
    assert!(within(live.next()).await.is_none());
    writer.acked(5000).await;
    match within(writer.client.closed()).await {
        reason @ CloseReason::Goodbye { code: GoodbyeCode::Shutdown, .. } => {
            assert!(reason.may_retry(), "it may come back");
        }
        other => panic!("a goodbye, not {other:?}"),
    }
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_peer_that_does_not_read() {
    let bus = Bus::new().await;
    let mut stuck = RawPeer::hello(&bus, Role::Subscriber, "stuck").await;
    stuck
        .send(&Frame::Subscribe(SubscribeFrame {
            subscription: 1,
            patterns: vec!["#".parse().unwrap()],
            kind: SubscribeKind::Live { bytes_max: 8 << 20, count_max: 1 << 20 },
        }))
        .await;
    assert_eq!(stuck.next().await, Some(Frame::Subscribed { subscription: 1 }));
    let mut writer = bus.writer(Log::new()).await;
    for _ in 0..100 {
        writer.publish(1000).await;
    }
    writer.acked(100_000).await;
    within(bus.broker.shutdown(Duration::from_millis(100))).await;
    within(writer.client.closed()).await;
}

#[tokio::test]
async fn a_client_that_leaves_leaves_at_once() {
    let bus = Bus::new().await;
    let one = bus.subscriber("one").await;
    let two = bus.subscriber("two").await;
    let clone = one.clone();
    within(one.goodbye()).await;
    assert!(matches!(within(clone.closed()).await, CloseReason::Done));
    drop(two);
    until(|| bus.broker.stats().connections.is_empty()).await;
}

#[tokio::test]
async fn what_was_published_before_a_goodbye_has_been_sent() {
    let bus = Bus::new().await;
    let mut writer = bus.writer(Log::new()).await;
    for _ in 0..20 {
        writer.publish(1000).await;
    }
    within(writer.client.goodbye()).await;
    until(|| bus.broker.publishers().is_empty()).await;
    assert_eq!(bus.broker.stats().streams[0].last, Sequence(20_000));
}

#[tokio::test]
async fn after_the_end_every_call_says_so() {
    let bus = Bus::new().await;
    let mut writer = bus.writer(Log::new()).await;
    let store = bus.durable("store", "events.#", vec![]).await;
    let socket = bus.socket();
    within(bus.broker.shutdown(Duration::from_secs(20))).await;
    within(writer.client.closed()).await;
    assert!(within(writer.publisher.acked()).await.is_err());
    let batch = writer.log.batch(0, 1, START);
    assert!(matches!(
        within(writer.publisher.publish(&batch)).await,
        Err(PublishError::Disconnected(_))
    ));
    until(|| store.commit(writer.log.stream, Sequence(1), writer.log.epoch).is_err()).await;
    assert!(matches!(
        within(writer.client.subscribe(&["#".parse().unwrap()], LiveOptions::default())).await,
        Err(SubscribeError::Disconnected(_))
    ));
    let again = Client::connect(&socket, ClientOptions::new("x", Role::Subscriber)).await;
    assert!(matches!(again, Err(ConnectError::NoSocket { .. })));
}
