//! A live subscriber that a test can stop: prints how many events it got and how many it was told
//! it missed, whenever that changes.
//!
//! `subscriber <broker socket> <client id> <pattern>` prints `ready`, then lines
//! `<received> <missed>`.

use std::path::PathBuf;

use daemoneye_eventbus::{Client, ClientOptions, LiveItem, LiveOptions, Role, TopicPattern};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("missing: {what}"));
    let socket = PathBuf::from(next("broker socket"));
    let id = next("client id");
    let pattern = TopicPattern::new(&next("pattern")).expect("a pattern");
    let client = Client::connect(&socket, ClientOptions::new(&id, Role::Subscriber))
        .await
        .expect("the broker takes subscribers");
    let mut live = client
        .subscribe(&[pattern], LiveOptions::default())
        .await
        .expect("the broker takes subscriptions");
    println!("ready");
    let (mut received, mut missed) = (0_u64, 0_u64);
    while let Some(item) = live.next().await {
        match item {
            LiveItem::Event(_) => received += 1,
            LiveItem::Missed { count } => missed += count,
            LiveItem::Message(_) => {}
        }
        println!("{received} {missed}");
    }
}
