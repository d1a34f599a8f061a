//! Many at once: every client is welcomed or told to come back, and every subscription gets exactly
//! what it selects.

use std::time::Duration;

use daemoneye_eventbus::*;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;

use crate::common::*;

const CLIENTS: usize = 1000;

/// Room for both ends of a thousand connections, which are in this one process.
fn descriptors() -> bool {
    const NEEDED: u64 = 2 * CLIENTS as u64 + 200;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= NEEDED) {
        return true;
    }
    limit.current = Some(NEEDED);
    let raised = setrlimit(Resource::Nofile, limit);
    if raised.is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI has {NEEDED} descriptors");
        eprintln!("SKIPPED: this needs {NEEDED} file descriptors, of {:?}", limit.maximum);
    }
    raised.is_ok()
}

/// All clients connect at the same moment; gives what each of them got.
async fn storm(bus: &Bus) -> Vec<Result<Client, ConnectError>> {
    let socket = bus.socket();
    let mut connecting = JoinSet::new();
    for number in 0..CLIENTS {
        let socket = socket.clone();
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(30),
            ..ClientOptions::new(format!("client-{number}"), Role::Subscriber)
        };
        connecting.spawn(async move { Client::connect(&socket, options).await });
    }
    within(connecting.join_all()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_clients_at_once_are_all_welcome_and_all_get_the_next_event() {
    if !descriptors() {
        return;
    }
    let bus = Bus::new().await;
    let clients: Vec<Client> =
        storm(&bus).await.into_iter().collect::<Result<_, _>>().expect("all are welcome");
    assert_eq!(bus.broker.stats().connections.len(), CLIENTS);
    let mut subscribing = JoinSet::new();
    for client in clients {
        subscribing.spawn(async move {
            let patterns = ["events.#".parse().unwrap()];
            client.subscribe(&patterns, LiveOptions::default()).await.unwrap()
        });
    }
    let lives = within(subscribing.join_all()).await;
    let mut writer = bus.writer(Log::new()).await;
    writer.publish(3).await;
    writer.acked(3).await;
    for mut live in lives {
        assert_eq!(events(&mut live, 3).await, [1, 2, 3]);
    }
    until(|| bus.broker.stats().connections.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_thousand_clients_at_once_those_beyond_the_limit_are_told_to_come_back() {
    const LIMIT: usize = 300;
    if !descriptors() {
        return;
    }
    let bus = Bus::with(|options| options.connections_max = LIMIT).await;
    let (welcome, refused): (Vec<_>, Vec<_>) =
        storm(&bus).await.into_iter().partition(Result::is_ok);
    assert_eq!((welcome.len(), refused.len()), (LIMIT, CLIENTS - LIMIT));
    for refused in refused {
        match refused {
            Err(ConnectError::Refused { code: RefusalCode::Limit, retry: true, .. }) => {}
            other => panic!("a refusal, not {other:?}"),
        }
    }
    drop(welcome);
    until(|| bus.broker.stats().connections.is_empty()).await;
    bus.subscriber("later").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_ten_thousand_subscriptions_each_gets_exactly_what_it_selects() {
    const CONNECTIONS: usize = 100;
    const EACH: usize = 100;
    const ROUNDS: u64 = 4;
    let bus = Bus::new().await;
    let mut subscribing = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = bus.subscriber(&format!("client-{connection}")).await;
        subscribing.spawn(async move {
            let mut lives = Vec::new();
            for number in 0..EACH {
                // Half of them by name, half by pattern.
                let last = if number % 2 == 0 { "start" } else { "*" };
                let pattern = format!("events.topic-{number}.{last}").parse().unwrap();
                let live = client.subscribe(&[pattern], LiveOptions::default()).await.unwrap();
                lives.push((number, live));
            }
            lives
        });
    }
    let lives = within(subscribing.join_all()).await;
    assert_eq!(bus.broker.stats().live.len(), CONNECTIONS * EACH);

    let mut writer = bus.writer(Log::new()).await;
    // To everybody a start, and to every second a stop.
    for _ in 0..ROUNDS {
        for number in 0..EACH {
            writer.publish_on(1, &format!("events.topic-{number}.start")).await;
            writer.publish_on(1, &format!("events.topic-{number}.stop")).await;
        }
    }
    // A last one shows that nothing else had come in between.
    for number in 0..EACH {
        writer.publish_on(1, &format!("events.topic-{number}.start")).await;
    }
    let last = writer.log.last;
    writer.acked(last).await;

    let mut taking = JoinSet::new();
    for (number, mut live) in lives.into_iter().flatten() {
        taking.spawn(async move {
            let wanted = if number % 2 == 0 { 1 } else { 2 };
            let mut expected: Vec<u64> = (0..ROUNDS * EACH as u64)
                .filter(|nth| nth % EACH as u64 == number as u64)
                .flat_map(|nth| (1..=wanted).map(move |n| 2 * nth + n))
                .collect();
            expected.push(2 * ROUNDS * EACH as u64 + number as u64 + 1);
            assert_eq!(events(&mut live, expected.len()).await, expected);
            (live, expected.len())
        });
    }
    let taken = within(taking.join_all()).await;
    let total: usize = taken.iter().map(|(_, count)| count).sum();
    assert_eq!(total, CONNECTIONS * EACH * (ROUNDS as usize * 3 / 2 + 1));
    assert!(bus.broker.stats().live.iter().all(|live| live.missed_total == 0));
}
