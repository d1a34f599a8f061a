//! Requests are answered, or it is said why not.

use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::*;

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
