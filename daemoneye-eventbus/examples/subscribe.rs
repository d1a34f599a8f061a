//! Prints process events as they pass: `cargo run --example subscribe -- demo/broker.sock`.

use std::path::Path;

use daemoneye_eventbus::{Client, ClientOptions, LiveItem, LiveOptions, Role};
use daemoneye_lib::models::event::Event;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = std::env::args().nth(1).ok_or("name the broker's socket")?;
    let options = ClientOptions::new("readme", Role::Subscriber);
    let client = Client::connect(Path::new(&socket), options).await?;
    let mut events =
        client.subscribe(&["events.process.*".parse()?], LiveOptions::default()).await?;
    while let Some(item) = events.next().await {
        match item {
            LiveItem::Event(event) => {
                println!("{} {:?}", event.topic, Event::decode(&event.payload)?);
            }
            LiveItem::Missed { count } => println!("too slow: {count} events missed"),
            LiveItem::Message(_) => {}
        }
    }
    println!("the broker has gone: {}", client.closed().await);
    Ok(())
}
