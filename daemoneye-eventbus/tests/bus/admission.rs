//! Who is let in, and who gives way to whom.

use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::wire::{Frame, MessageFrame, UndeliverableCode};
use daemoneye_eventbus::*;

use crate::common::*;

fn refusal<T>(result: Result<T, ConnectError>) -> (RefusalCode, bool) {
    match result.err().expect("it is refused") {
        ConnectError::Refused { code, retry, .. } => (code, retry),
        other => panic!("a refusal, not {other:?}"),
    }
}

#[tokio::test]
async fn publishers_wait_for_the_required_consumer() {
    let bus = Bus::with(|options| options.required_consumers = vec!["store".to_owned()]).await;
    let log = Log::new();
    assert_eq!(refusal(within(bus.try_writer(log)).await), (RefusalCode::NotReady, true));
    let store = bus.durable("store", "events.#", vec![]).await;
    let mut writer = bus.writer(log).await;
    drop(store);
    until(|| !bus.broker.stats().consumers[0].attached).await;

    // Who is in stays in, and gets no acknowledgement before the consumer is back.
    writer.publish(2).await;
    until(|| bus.broker.stats().streams[0].last == Sequence(2)).await;
    assert_eq!(bus.broker.stats().streams[0].acked, Sequence(0));
    assert_eq!(refusal(within(bus.try_writer(Log::new())).await), (RefusalCode::NotReady, true));
    let mut store = bus.durable("store", "events.#", vec![]).await;
    assert_eq!(deliveries(&mut store, 2).await, [1, 2]);
    store.commit(log.stream, Sequence(2), log.epoch).unwrap();
    writer.acked(2).await;
}

#[tokio::test]
async fn an_older_epoch_is_refused() {
    let bus = Bus::new().await;
    let old = Log::new();
    let new = Log { epoch: old.epoch.next(), ..old };
    let writer = bus.writer(new).await;
    assert_eq!(refusal(within(bus.try_writer(old)).await), (RefusalCode::StaleEpoch, false));
    drop(writer);
    until(|| bus.broker.publishers().is_empty()).await;
    assert_eq!(refusal(within(bus.try_writer(old)).await), (RefusalCode::StaleEpoch, false));
}

#[tokio::test]
async fn a_second_connection_of_a_stream_takes_over() {
    let bus = Bus::new().await;
    let log = Log::new();
    let mut old = bus.writer(log).await;
    old.publish(2).await;
    old.acked(2).await;
    let mut new = bus.writer(Log { last: 2, ..log }).await;
    let reason = within(old.client.closed()).await;
    assert!(matches!(reason, CloseReason::Superseded), "{reason:?}");
    assert!(!reason.may_retry(), "the two would push each other out for ever");
    new.publish(1).await;
    new.acked(3).await;
    let publishers = bus.broker.publishers();
    assert_eq!(publishers.len(), 1);
    assert_eq!((publishers[0].stream, publishers[0].epoch), (log.stream, log.epoch));
    #[cfg(target_os = "linux")]
    assert_eq!(publishers[0].pid, Some(std::process::id()));
}

#[tokio::test]
async fn a_durable_consumer_has_one_member() {
    let bus = Bus::new().await;
    let first = bus.durable("store", "events.#", vec![]).await;
    let second = bus.subscriber("second").await;
    let patterns = ["events.#".parse().unwrap()];
    match within(second.subscribe_durable("store", &patterns, vec![])).await {
        Err(SubscribeError::Refused { code: RefusalCode::Occupied, retry: true, reason }) => {
            assert!(reason.contains("by store"), "{reason}");
        }
        other => panic!("a refusal, not {other:?}"),
    }
    drop(first);
    until(|| !bus.broker.stats().consumers[0].attached).await;
    within(second.subscribe_durable("store", &patterns, vec![])).await.unwrap();
}

#[tokio::test]
async fn the_agent_is_the_hosts_own_process() {
    let bus = Bus::new().await;
    let options = ClientOptions::new("agent", Role::Agent);
    let over_socket = within(Client::connect(&bus.socket(), options.clone())).await;
    assert_eq!(refusal(over_socket), (RefusalCode::NotAllowed, false));
    let agent = within(bus.broker.connect_in_process(options)).await.unwrap();
    let collector = bus.client(Role::Collector, "procmond").await;
    let patterns = ["control.collector.lifecycle".parse().unwrap()];
    let mut lifecycle =
        within(collector.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let topic = "control.collector.lifecycle".parse().unwrap();
    within(agent.send(&topic, Bytes::from_static(b"begin"))).await.unwrap();
    match within(lifecycle.next()).await {
        Some(LiveItem::Message(message)) => assert_eq!(message.payload, "begin"),
        other => panic!("a message, not {other:?}"),
    }
}

#[tokio::test]
async fn only_collectors_publish() {
    let bus = Bus::new().await;
    let position = Position {
        stream: StreamId::random(),
        epoch: Epoch::first(),
        first_unacknowledged: Sequence(1),
        last: Sequence(0),
    };
    let options = ClientOptions::new("x", Role::Subscriber);
    let publisher = within(Client::connect_publisher(&bus.socket(), options, position)).await;
    assert_eq!(refusal(publisher), (RefusalCode::NotAllowed, false));
}

/// The client refuses to send what the broker would not take; a peer without that check is told
/// the topic and the rule.
#[tokio::test]
async fn messages_beyond_a_role_are_refused_by_both_sides() {
    let bus = Bus::new().await;
    let mut seen = bus.live("watch", "control.#").await;
    let lifecycle: Topic = "control.collector.lifecycle".parse().unwrap();
    for role in [Role::Subscriber, Role::Collector] {
        let client = bus.client(role, "x").await;
        let sent = within(client.send(&lifecycle, Bytes::new())).await;
        assert!(matches!(sent, Err(SendError::NotAllowed { .. })), "{sent:?}");
        let asked = client.request(&lifecycle, Bytes::new(), Duration::from_secs(5)).await;
        assert!(matches!(asked, Err(RequestError::Send(SendError::NotAllowed { .. }))));

        let mut raw = RawPeer::hello(&bus, role, "raw").await;
        let topic = lifecycle.clone();
        raw.send(&Frame::Message(MessageFrame {
            subscription: 0,
            correlation: 0,
            retained: false,
            topic: topic.clone(),
            reply_to: None,
            payload: Bytes::new(),
        }))
        .await;
        match raw.next().await {
            Some(Frame::Undeliverable(refused)) => {
                assert_eq!((refused.code, refused.topic), (UndeliverableCode::NotAllowed, topic));
                assert!(!refused.reason.is_empty());
            }
            other => panic!("a refusal, not {other:?}"),
        }
    }
    // The publisher's topics are checked, too.
    let mut writer = bus.writer(Log::new()).await;
    let batch = writer.log.batch(0, 1, "control.collector.lifecycle");
    let published = within(writer.publisher.publish(&batch)).await;
    assert!(matches!(published, Err(PublishError::NotAllowed { .. })), "{published:?}");
    writer.publish(1).await;
    writer.acked(1).await;

    // None of it has reached anybody.
    let heartbeat = "control.health.heartbeat.y".parse().unwrap();
    let collector = bus.client(Role::Collector, "y").await;
    within(collector.send(&heartbeat, Bytes::new())).await.unwrap();
    match within(seen.next()).await {
        Some(LiveItem::Message(message)) => assert_eq!(message.topic, heartbeat),
        other => panic!("the heartbeat, not {other:?}"),
    }
}

#[tokio::test]
async fn a_publisher_that_ignores_its_credit_is_told_and_ended() {
    let bus = Bus::with(|options| options.credit_bytes = 100).await;
    let _store = bus.durable("store", "events.#", vec![]).await;
    let mut writer = bus.writer(Log::new()).await;
    assert_eq!(writer.publisher.credit_bytes(), 100);
    writer.publish(10).await;
    writer.publish(10).await;
    match within(writer.client.closed()).await {
        CloseReason::Refused { code: RefusalCode::Credit, .. } => {}
        other => panic!("a refusal, not {other:?}"),
    }
}
