//! A broker in a process of its own, to be killed and stopped by a test.
//!
//! `broker <socket> <heartbeat in ms> [<required consumer>...]` prints `ready`, then its statistics
//! as JSON for every line it reads, and shuts down in order when its standard input ends.

use std::time::Duration;

use daemoneye_eventbus::{Broker, BrokerOptions};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("missing: {what}"));
    let mut options = BrokerOptions::new(next("socket"));
    let heartbeat = next("heartbeat").parse().expect("milliseconds");
    options.heartbeat = Duration::from_millis(heartbeat);
    options.required_consumers = arguments.collect();
    let broker = Broker::bind(options).await.expect("the socket is free");
    println!("ready");
    // Blocks this thread only: the broker lives in the runtime's two.
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        println!("{}", serde_json::to_string(&broker.stats()).expect("statistics are JSON"));
    }
    broker.shutdown(Duration::from_secs(5)).await;
}
