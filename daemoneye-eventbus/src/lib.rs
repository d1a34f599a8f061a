//! A local event bus with durable consumers and end-to-end acknowledgement.
//!
//! Publishers send batches of numbered events over a local socket to a [`Broker`], which is
//! embedded in some process and keeps no files. *Live* subscribers see what passes; one that is
//! too slow misses the oldest, is told how many, and costs nobody else anything. *Durable*
//! consumers have a name, see everything in order and commit what they have stored; the broker
//! acknowledges to the publisher only what every one of them has committed, so the publisher's own
//! log is the only place that has to survive a crash. Control messages travel beside the events,
//! with requests and replies. Payloads are opaque.
//!
//! ```
//! use daemoneye_eventbus::*;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let socket = directory.path().join("bus.sock");
//! let broker = Broker::bind(BrokerOptions::new(&socket)).await?;
//!
//! let reader = Client::connect(&socket, ClientOptions::new("reader", Role::Subscriber)).await?;
//! let mut events = reader.subscribe_durable("store", &["events.#".parse()?], vec![]).await?;
//!
//! let (stream, epoch) = (StreamId::random(), Epoch::first());
//! let position =
//!     Position { stream, epoch, first_unacknowledged: Sequence(1), last: Sequence(1) };
//! let options = ClientOptions::new("writer", Role::Collector);
//! let (_client, mut publisher) = Client::connect_publisher(&socket, options, position).await?;
//! let entry = Entry {
//!     topic: "events.process.start".parse()?,
//!     sequence: Sequence(1),
//!     span: 1,
//!     timestamp_ns: 0,
//!     payload: "hello".into(),
//! };
//! let (after, through) = (Sequence(0), Sequence(1));
//! publisher.publish(&Batch { stream, epoch, after, entries: vec![entry], through }).await?;
//!
//! let delivery = events.next().await.expect("the broker is there");
//! assert_eq!(delivery.entries[0].payload, "hello");
//! events.commit(stream, delivery.through, delivery.epoch)?;
//! let ack = publisher.acked().await?;
//! assert_eq!((ack.sequence, ack.level), (Sequence(1), AckLevel::Committed));
//! broker.shutdown(std::time::Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```
//!
//! The protocol is specified in `docs/bus-protocol.md`; its bytes are in [`wire`].

mod blocks;
mod broker;
mod client;
mod connection;
mod event;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod queue;
mod rights;
mod topic;
mod transport;
pub mod wire;

pub use broker::{
    BindError, Broker, BrokerOptions, BrokerStats, ConnectionStats, ConsumerStats, CursorStats,
    ForgetError, LiveStats, PublisherInfo, StreamStats, Traffic,
};
pub use client::{
    Acks, Client, ClientOptions, CloseReason, ConnectError, Disconnected, DurableSubscription,
    EventRef, Events, LiveBatch, LiveOptions, LiveSubscription, PublishError, Publisher,
    RequestError, SendError, SubscribeError,
};
pub use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
pub use event::{
    Ack, AckLevel, Batch, Committed, Delivered, Delivery, Entry, LiveItem, Message, Origin,
    Position, Role,
};
pub use topic::{TOPIC_BYTES_MAX, TOPIC_SEGMENTS_MAX, Topic, TopicError, TopicPattern};
pub use wire::{GoodbyeCode, RefusalCode};
