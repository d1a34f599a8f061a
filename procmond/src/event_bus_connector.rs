//! Delivery of the log to the broker.
//!
//! The log is the queue: [`EventBusConnector::publish`] appends to the [`WriteAheadLog`], and the
//! connector sends what is durable to the broker, in order, until the broker says that every
//! durable consumer has committed it. Only then does the log forget. A lost session, a restarted
//! broker or a killed process therefore costs nothing but time: each session begins with the
//! broker saying what is committed, and delivery resumes after it.
//!
//! The newest part of what is undelivered is kept in memory up to a limit, the *window*. What does
//! not fit is read back from the log when its turn comes. When the undelivered events exceed 70 %
//! of the window, the receiver of [`BackpressureSignal`]s is asked to slow down, and at 50 % to
//! return to its pace.
//!
//! Inside, `machine` decides and `driver` carries out.
//!
//! ```
//! use procmond::event_bus_connector::{ConnectorOptions, EventBusConnector};
//! use procmond::wal::{WalOptions, WriteAheadLog};
//! use daemoneye_eventbus::{Broker, BrokerOptions, Client, ClientOptions, LiveItem, LiveOptions, Role};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let (socket, wal_dir) = (directory.path().join("bus.sock"), directory.path().join("wal"));
//! let broker = Broker::bind(BrokerOptions::new(&socket)).await?;
//! let reader = Client::connect(&socket, ClientOptions::new("reader", Role::Subscriber)).await?;
//! let mut events = reader.subscribe(&["events.#".parse()?], LiveOptions::default()).await?;
//!
//! let (log, _) = WriteAheadLog::open(&wal_dir, WalOptions::default())?;
//! let options = ConnectorOptions {
//!     socket,
//!     client: ClientOptions::new("writer", Role::Collector),
//!     window_bytes_max: ConnectorOptions::WINDOW_BYTES_MAX,
//!     topic_of: |_kind| "events.example".parse().expect("a topic"),
//! };
//! let (connector, _backpressure) = EventBusConnector::start(log, options);
//! let receipt = connector.publish(1, 0, "it happened".into()).await?;
//! // It is durable now, whatever becomes of the broker; and it is on its way.
//! let Some(LiveItem::Event(event)) = events.next().await else { panic!("an event") };
//! assert_eq!((event.origin.sequence, &event.payload[..]), (receipt.sequence, &b"it happened"[..]));
//!
//! assert!(connector.shutdown(Duration::from_secs(5)).await?.delivered);
//! # broker.shutdown(Duration::from_secs(1)).await;
//! # Ok(())
//! # }
//! ```

mod backoff;
mod backpressure;
mod driver;
mod gap;
mod machine;
mod replay;
mod session;
mod tail;
mod window;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use daemoneye_eventbus::{Client, ClientOptions, Topic};
use daemoneye_lib::models::control::ConnectorHealth;
use daemoneye_lib::stream::Sequence;
use tokio::sync::{mpsc, oneshot, watch};

pub use backpressure::BackpressureSignal;

use crate::wal::{Receipt, WalError, WriteAheadLog};
use driver::{Drain, Driver, Shared};

/// Signals alternate and undelivered ones cancel out, so a short channel is enough.
const SIGNALS: usize = 4;

/// How a connector reaches its broker.
#[derive(Clone)]
pub struct ConnectorOptions {
    /// The broker's socket, as `DAEMONEYE_BROKER_SOCKET` gives it.
    pub socket: PathBuf,
    /// Who we are to the broker, and the timeouts of a session.
    pub client: ClientOptions,
    /// The most payload bytes held in memory; 10 MB by default.
    pub window_bytes_max: u64,
    /// The topic on which records of a kind are published.
    pub topic_of: fn(u8) -> Topic,
}

impl ConnectorOptions {
    /// The default of [`ConnectorOptions::window_bytes_max`].
    pub const WINDOW_BYTES_MAX: u64 = 10_000_000;
}

/// What became of the undelivered events when the connector ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Everything durable was acknowledged.
    pub delivered: bool,
    /// How many events remain in the log for the next start.
    pub undelivered: u64,
}

/// A handle on the connector; clones share it. When the last is dropped delivery ends where it is;
/// [`EventBusConnector::shutdown`] gives it time to finish.
#[derive(Clone)]
pub struct EventBusConnector {
    shared: Arc<Shared>,
    clients: watch::Receiver<Option<Client>>,
    drains: mpsc::Sender<Drain>,
}

impl EventBusConnector {
    /// Starts delivering what the log holds and gives the receiving end of the backpressure
    /// signals. Must be called within a tokio runtime.
    ///
    /// The broker need not be there: the connector dials for ever, never more than a second apart.
    #[must_use]
    pub fn start(
        log: WriteAheadLog,
        options: ConnectorOptions,
    ) -> (Self, mpsc::Receiver<BackpressureSignal>) {
        let shared = Arc::new(Shared::new(log, options.window_bytes_max));
        let (signals, signals_out) = mpsc::channel(SIGNALS);
        let (clients, clients_out) = watch::channel(None);
        let (drains, drains_out) = mpsc::channel(1);
        let driver = Driver::new(Arc::clone(&shared), options, signals, clients, drains_out);
        tokio::spawn(driver.run());
        (Self { shared, clients: clients_out, drains }, signals_out)
    }

    /// Appends an event to the log and returns when it is durable. It is delivered from then on.
    ///
    /// Dropping the future does not take the event back.
    ///
    /// # Errors
    /// What the log says: it is full, closed or broken. The event is then not in it.
    pub async fn publish(
        &self,
        kind: u8,
        timestamp_ns: i64,
        payload: Bytes,
    ) -> Result<Receipt, WalError> {
        loop {
            match self.submit(kind, timestamp_ns, payload.clone()) {
                Ok(sequence) => return self.shared.log.durable(sequence).await,
                Err(WalError::Busy) => self.shared.log.room().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Queues an event in the log without waiting for the disk.
    ///
    /// # Errors
    /// [`WalError::Busy`] when the log's queue is full (await [`WriteAheadLog::room`]), else as
    /// [`EventBusConnector::publish`].
    pub fn submit(
        &self,
        kind: u8,
        timestamp_ns: i64,
        payload: Bytes,
    ) -> Result<Sequence, WalError> {
        self.shared.tail.submit(&self.shared.log, kind, timestamp_ns, payload)
    }

    /// The log behind the connector.
    #[must_use]
    pub fn log(&self) -> &WriteAheadLog {
        &self.shared.log
    }

    /// The client of the session in being, `None` between sessions: for control messages.
    #[must_use]
    pub fn client(&self) -> watch::Receiver<Option<Client>> {
        self.clients.clone()
    }

    /// How delivery stands.
    #[must_use]
    pub fn health(&self) -> ConnectorHealth {
        self.shared.health()
    }

    /// What is not committed yet, without what the log puts around it, in percent of the log's disk
    /// budget.
    #[must_use]
    pub fn backlog_percent(&self) -> u64 {
        self.shared.backlog_percent()
    }

    /// Makes the log durable, delivers what is left for at most `within`, says goodbye and ends.
    ///
    /// # Errors
    /// If the log could not be made durable; the connector has ended all the same.
    pub async fn shutdown(&self, within: Duration) -> Result<Drained, WalError> {
        let until = Instant::now() + within;
        let flushed = self.shared.log.flush().await;
        let (done, drained) = oneshot::channel();
        let ended = Drained { delivered: false, undelivered: 0 };
        let drained = match self.drains.send(Drain { until, done }).await {
            Ok(()) => drained.await.unwrap_or(ended),
            // Another call has ended it already.
            Err(_) => ended,
        };
        flushed.map(|_| drained)
    }
}
