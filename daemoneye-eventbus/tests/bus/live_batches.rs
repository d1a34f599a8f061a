//! A live subscription hands over all the events of a frame at once, or one by one.

use daemoneye_eventbus::*;

use crate::common::*;

fn sequences(events: &Events) -> Vec<u64> {
    events.iter().map(|event| event.sequence.0).collect()
}

async fn next_events(live: &mut LiveSubscription) -> Events {
    match within(live.next_batch()).await.expect("the broker is there") {
        LiveBatch::Events(events) => events,
        other => panic!("events, not {other:?}"),
    }
}

#[tokio::test]
async fn a_batch_is_the_events_of_one_publish() {
    let bus = Bus::new().await;
    let mut live = bus.live("reader", "events.#").await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(3).await;
    writer.publish(2).await;

    let events = next_events(&mut live).await;
    assert_eq!((events.stream(), events.epoch()), (writer.log.stream, writer.log.epoch));
    assert_eq!((sequences(&events), events.len(), events.is_empty()), (vec![1, 2, 3], 3, false));
    let second = events.iter().nth(1).unwrap();
    let start: Topic = START.parse().unwrap();
    assert_eq!((second.topic, second.span, second.timestamp_ns), (&start, 1, 2000));
    assert_eq!(second.payload, b"event 2");
    let kept = events.payload(&second);
    assert_eq!(kept.as_ptr(), second.payload.as_ptr(), "it is not copied");
    drop(events);
    assert_eq!(kept, "event 2");
    assert_eq!(sequences(&next_events(&mut live).await), [4, 5]);
}

#[tokio::test]
async fn what_is_left_of_a_batch_is_a_batch() {
    let bus = Bus::new().await;
    let mut live = bus.live("reader", "events.#").await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(3).await;
    assert_eq!(events(&mut live, 1).await, [1]);
    assert_eq!(sequences(&next_events(&mut live).await), [2, 3]);
    writer.publish(1).await;
    assert_eq!(events(&mut live, 1).await, [4]);
    assert!(live.try_next_batch().is_none());
    drop(bus.kill().await);
    assert!(within(live.next_batch()).await.is_none());
}
