//! A collector made of the public libraries: appends events as fast as its log makes them durable
//! and prints each receipt, so that a test can kill it and know what it had been promised.
//!
//! `feeder <log directory> <broker socket> <collector id> <producers> <payload bytes>` runs until
//! it is killed.

use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use daemoneye_eventbus::{ClientOptions, Role, Topic};
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::stream::wall_clock_ns;
use procmond::event_bus_connector::{ConnectorOptions, EventBusConnector};
use procmond::wal::{WalOptions, WriteAheadLog};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("missing: {what}"));
    let wal_dir = PathBuf::from(next("log directory"));
    let socket = PathBuf::from(next("broker socket"));
    let id = next("collector id");
    let producers: usize = next("producers").parse().expect("a number of producers");
    let payload_bytes: usize = next("payload bytes").parse().expect("a number of bytes");

    let (log, _) = WriteAheadLog::open(&wal_dir, WalOptions::default()).expect("the log opens");
    let options = ConnectorOptions {
        socket,
        client: ClientOptions::new(&id, Role::Collector),
        window_bytes_max: ConnectorOptions::WINDOW_BYTES_MAX,
        topic_of: |_| Topic::new(EventKind::Gap.topic()).expect("a topic"),
    };
    let (connector, _signals) = EventBusConnector::start(log, options);
    for producer in 0..producers {
        tokio::spawn(produce(connector.clone(), producer, payload_bytes));
    }
    // Until it is killed: without producers it delivers what an earlier run has left.
    std::future::pending().await
}

async fn produce(connector: EventBusConnector, producer: usize, payload_bytes: usize) {
    let filler = "x".repeat(payload_bytes);
    for number in 0_u64.. {
        let detail = format!("producer {producer} {filler}");
        let event = Event::Gap(GapEvent {
            missing: Some(number),
            ..GapEvent::new(GapReason::Shed, wall_clock_ns(), detail)
        });
        let payload = Bytes::from(event.encode());
        let receipt = connector
            .publish(event.kind().as_u8(), event.time_ns(), payload)
            .await
            .expect("the log takes events");
        let line = format!("{} {}\n", connector.log().stream(), receipt.sequence);
        // One write a line: a kill cannot leave half a receipt that reads as a whole one.
        if std::io::stdout().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}
