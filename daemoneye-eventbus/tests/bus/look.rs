//! Whoever may talk to the broker may look inside.

use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::*;

use crate::common::*;

#[tokio::test]
async fn the_broker_tells_who_is_there_and_how_far_behind() {
    let bus = Bus::with(|options| options.connections_max = 2).await;
    drop(bus.durable("store", "events.#", vec![]).await);
    until(|| bus.broker.stats().connections.is_empty()).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(3).await;
    until(|| bus.broker.stats().streams[0].last == Sequence(3)).await;
    let asker = bus.subscriber("asker").await;
    let third = ClientOptions::new("third", Role::Subscriber);
    let refused = within(Client::connect(&bus.socket(), third)).await;
    assert!(matches!(refused, Err(ConnectError::Refused { code: RefusalCode::Limit, .. })));

    let topic: Topic = "control.broker.stats".parse().unwrap();
    let asked = asker.request(&topic, Bytes::new(), Duration::from_secs(30));
    let answer = within(asked).await.unwrap();
    let told: BrokerStats = serde_json::from_slice(&answer).unwrap();
    let names: Vec<&str> = told.connections.iter().map(|conn| &*conn.client_id).collect();
    assert_eq!(names, ["procmond", "asker"]);
    assert!(told.connections.iter().all(|conn| conn.pid == Some(std::process::id())));
    assert_eq!(told.connections[0].traffic.events_in_total, 3);
    let store = &told.consumers[0];
    assert!(!store.attached);
    assert_eq!((&*store.name, store.cursors[0].lag), ("store", 3));
    assert_eq!(told.refused.get(&RefusalCode::Limit), Some(&1));
    assert_eq!(told.ended.get(&GoodbyeCode::Done), None, "clients that leave are not ended");

    let later = bus.broker.stats();
    assert!(later.uptime_ms >= told.uptime_ms);
    assert!(later.traffic.bytes_out_total > told.traffic.bytes_out_total, "the answer itself");

    drop(writer);
    until(|| bus.broker.stats().connections.len() == 1).await;
    let publisher = bus.client(Role::Collector, "collector").await;
    let forbidden = within(publisher.request(&topic, Bytes::new(), Duration::from_secs(30))).await;
    assert!(matches!(forbidden, Err(RequestError::Send(SendError::NotAllowed { .. }))));
}
