//! Requests are answered, or it is said why not.

use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::wire::{Frame, MessageFrame, UndeliverableCode};
use daemoneye_eventbus::*;
use tokio::io::AsyncWriteExt;

use crate::common::*;

const LONG: Duration = Duration::from_secs(30);

async fn agent(bus: &Bus) -> Client {
    within(bus.broker.connect_in_process(ClientOptions::new("agent", Role::Agent))).await.unwrap()
}

async fn next_message(live: &mut LiveSubscription) -> Message {
    match within(live.next()).await {
        Some(LiveItem::Message(message)) => message,
        other => panic!("a message, not {other:?}"),
    }
}

#[tokio::test]
async fn a_request_finds_its_responder_and_the_answer_its_requester() {
    let bus = Bus::new().await;
    let agent = agent(&bus).await;
    let collector = bus.client(Role::Collector, "procmond").await;
    let topic: Topic = "control.collector.procmond".parse().unwrap();
    let patterns = [TopicPattern::from(&topic)];
    let mut requests =
        within(collector.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let responder = tokio::spawn(async move {
        // Two requests are under way at once and are answered in the other order.
        let first = next_message(&mut requests).await;
        let second = next_message(&mut requests).await;
        for request in [second, first] {
            let answer = [&request.payload[..], b"!"].concat();
            collector.reply(&request, answer.into()).await.unwrap();
        }
        collector
    });
    let (a, b) = within(async {
        tokio::join!(
            agent.request(&topic, Bytes::from_static(b"a"), LONG),
            agent.request(&topic, Bytes::from_static(b"b"), LONG),
        )
    })
    .await;
    assert_eq!((a.unwrap(), b.unwrap()), (Bytes::from_static(b"a!"), Bytes::from_static(b"b!")));
    within(responder).await.unwrap();
}

#[tokio::test]
async fn a_request_nobody_answers_fails_at_once() {
    let bus = Bus::new().await;
    let asker = bus.subscriber("status").await;
    let topic: Topic = "control.health.status".parse().unwrap();
    let asked = within(asker.request(&topic, Bytes::new(), LONG)).await;
    assert!(matches!(asked, Err(RequestError::NoResponder { .. })), "{asked:?}");

    let agent = agent(&bus).await;
    let patterns = [TopicPattern::from(&topic)];
    let mut requests = within(agent.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let (asked, ()) = within(async {
        tokio::join!(asker.request(&topic, Bytes::from_static(b"?"), LONG), async {
            let request = next_message(&mut requests).await;
            agent.reply(&request, Bytes::from_static(b"well")).await.unwrap();
        })
    })
    .await;
    assert_eq!(asked.unwrap(), "well");
}

#[tokio::test]
async fn a_request_that_is_not_answered_times_out_and_a_late_answer_is_nobodys() {
    let bus = Bus::new().await;
    let agent = agent(&bus).await;
    let asker = bus.subscriber("status").await;
    let topic: Topic = "control.health.status".parse().unwrap();
    let patterns = [TopicPattern::from(&topic)];
    let mut requests = within(agent.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let asked = asker.request(&topic, Bytes::new(), Duration::from_millis(20)).await;
    assert!(matches!(asked, Err(RequestError::Timeout { .. })), "{asked:?}");
    let late = next_message(&mut requests).await;
    within(agent.reply(&late, Bytes::from_static(b"late"))).await.unwrap();
    // The next answer is not mistaken for it.
    let (asked, ()) = within(async {
        tokio::join!(asker.request(&topic, Bytes::new(), LONG), async {
            let request = next_message(&mut requests).await;
            agent.reply(&request, Bytes::from_static(b"new")).await.unwrap();
        })
    })
    .await;
    assert_eq!(asked.unwrap(), "new");
}

#[tokio::test]
async fn a_request_ends_with_its_connection() {
    let bus = Bus::new().await;
    let agent = agent(&bus).await;
    let asker = bus.subscriber("status").await;
    let topic: Topic = "control.health.status".parse().unwrap();
    let patterns = [TopicPattern::from(&topic)];
    let mut requests = within(agent.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let asked = tokio::spawn(async move { asker.request(&topic, Bytes::new(), LONG).await });
    next_message(&mut requests).await;
    drop(bus.kill().await);
    let asked = within(asked).await.unwrap();
    assert!(matches!(asked, Err(RequestError::Send(SendError::Disconnected(_)))), "{asked:?}");
}

#[tokio::test]
async fn a_late_subscriber_gets_the_last_retained_message_although_its_sender_is_gone() {
    let bus = Bus::new().await;
    let status: Topic = "control.health.status".parse().unwrap();
    let agent = agent(&bus).await;
    let mut early = bus.live("early", "control.health.*").await;
    for text in ["one", "two"] {
        within(agent.send_retained(&status, text.into())).await.unwrap();
    }
    for text in ["one", "two"] {
        let message = next_message(&mut early).await;
        assert_eq!((&message.payload[..], message.retained), (text.as_bytes(), false));
    }
    within(agent.goodbye()).await;
    let mut late = bus.live("late", "control.#").await;
    let message = next_message(&mut late).await;
    assert_eq!((message.topic, &message.payload[..]), (status.clone(), &b"two"[..]));
    assert!(message.retained);

    // Others have no say in it, whichever side they are checked on.
    let collector = bus.client(Role::Collector, "x").await;
    let heartbeat: Topic = "control.health.heartbeat.x".parse().unwrap();
    let sent = within(collector.send_retained(&heartbeat, "alive".into())).await;
    assert!(matches!(sent, Err(SendError::NotAllowed { .. })), "{sent:?}");
    let mut raw = RawPeer::hello(&bus, Role::Collector, "x").await;
    raw.send(&raw_message(&heartbeat, true)).await;
    match raw.next().await {
        Some(Frame::Undeliverable(undeliverable)) => {
            assert_eq!(undeliverable.code, UndeliverableCode::NotAllowed);
        }
        other => panic!("a refusal, not {other:?}"),
    }
}

fn raw_message(topic: &Topic, retained: bool) -> Frame {
    Frame::Message(MessageFrame {
        subscription: 0,
        correlation: 0,
        retained,
        topic: topic.clone(),
        reply_to: None,
        payload: Bytes::from_static(b"x"),
    })
}

/// The requests of one peer beyond the limit cost nobody else theirs.
#[tokio::test]
async fn a_flood_of_requests_is_turned_down_and_then_refused() {
    let bus = Bus::with(|options| {
        options.request_rate = 1;
        options.request_burst = 20;
    })
    .await;
    let agent = agent(&bus).await;
    let topic: Topic = "control.health.status".parse().unwrap();
    let patterns = [TopicPattern::from(&topic)];
    let mut requests = within(agent.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let other = bus.subscriber("other").await;

    let mut flood = RawPeer::hello(&bus, Role::Subscriber, "flood").await;
    let mut bytes = bytes::BytesMut::new();
    for _ in 0..1000 {
        raw_message(&topic, false).encode(&mut bytes);
    }
    // It may be cut off before all of it is written.
    let _ = within(flood.stream.write_all(&bytes)).await;
    let mut turned_down = 0;
    let refused = loop {
        match flood.next().await {
            Some(Frame::Undeliverable(frame)) if frame.code == UndeliverableCode::Limit => {
                turned_down += 1;
            }
            Some(Frame::Refused(refused)) => break refused,
            other => panic!("a word on the limit, not {other:?}"),
        }
    };
    assert_eq!((refused.code, refused.retry), (RefusalCode::Limit, true));
    assert!((1..=40).contains(&turned_down), "{turned_down}");
    assert_eq!(flood.next().await, None);

    let (asked, passed) = within(async {
        tokio::join!(other.request(&topic, Bytes::new(), LONG), async {
            let mut passed = 0;
            loop {
                let request = next_message(&mut requests).await;
                if request.reply_to.is_some() {
                    agent.reply(&request, Bytes::from_static(b"well")).await.unwrap();
                    return passed;
                }
                passed += 1;
            }
        })
    })
    .await;
    assert_eq!(asked.unwrap(), "well");
    assert!((20..60).contains(&passed), "{passed} of the flood passed");
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_so() {
    let bus = Bus::with(|options| {
        options.request_rate = 1;
        options.request_burst = 2;
    })
    .await;
    let asker = bus.subscriber("asker").await;
    let topic: Topic = "control.health.status".parse().unwrap();
    let mut limited = false;
    for _ in 0..4 {
        match within(asker.request(&topic, Bytes::new(), LONG)).await {
            Err(RequestError::NoResponder { .. }) => {}
            Err(error @ RequestError::Limit { .. }) => {
                assert!(error.to_string().contains("too many requests"), "{error}");
                limited = true;
                break;
            }
            other => panic!("nobody answers, not {other:?}"),
        }
    }
    assert!(limited);
}

#[tokio::test]
async fn a_message_has_a_greatest_length() {
    let bus = Bus::new().await;
    let agent = agent(&bus).await;
    let topic: Topic = "control.collector.lifecycle".parse().unwrap();
    let mut live = bus.live("live", "control.#").await;
    let sent = within(agent.send(&topic, vec![0; wire::MESSAGE_BYTES_MAX + 1].into())).await;
    assert!(matches!(sent, Err(SendError::TooLong { .. })), "{sent:?}");
    within(agent.send(&topic, vec![7; wire::MESSAGE_BYTES_MAX].into())).await.unwrap();
    assert_eq!(next_message(&mut live).await.payload.len(), wire::MESSAGE_BYTES_MAX);
}

#[tokio::test]
async fn a_subscription_that_is_dropped_ends_in_the_broker() {
    let bus = Bus::new().await;
    let client = bus.subscriber("x").await;
    let patterns = ["control.#".parse().unwrap()];
    let one = within(client.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    let _two = within(client.subscribe(&patterns, LiveOptions::default())).await.unwrap();
    assert_eq!(bus.broker.stats().live.len(), 2);
    drop(one);
    until(|| bus.broker.stats().live.len() == 1).await;
    assert!(!client.is_closed());
}
