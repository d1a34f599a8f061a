//! The agent's side of the control messages: registrations, heartbeats, health.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::{
    Broker, Client, ClientOptions, LiveItem, LiveOptions, LiveSubscription, Message, Role, Topic,
    TopicPattern,
};
use daemoneye_lib::models::control::{
    CollectorRegistration, CollectorReply, CollectorRequest, Heartbeat, Lifecycle,
};
use daemoneye_lib::stream::StreamId;
use daemoneye_lib::{display, topics};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use super::AgentError;
use crate::cli::chain;
use crate::collectors::{Collectors, NotTaken, Silence, Wants};
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::status::{AgentInfo, AgentStatus, StoreStatus};
use crate::store::StoreHandle;
use crate::supervisor::{Connections, SupervisorStatus};

/// How long a collector may take to answer a request.
const ANSWER: Duration = Duration::from_secs(2);

/// About how much of a status the broker's figures may be, in bytes: the whole is one message.
const BROKER_BYTES: usize = 256 << 10;

/// How often it is looked whether a collector has become silent, and the status is said.
const LOOK: Duration = Duration::from_secs(5);

/// Registrations waiting to be noted by a store that cannot write.
const NOTES: usize = 64;

/// The agent's own connection for control messages.
pub(super) async fn connect(broker: &Broker) -> Result<Client, AgentError> {
    let options = ClientOptions::new("daemoneye-agent", Role::Agent);
    let connected = broker.connect_in_process(options).await;
    connected.map_err(|error| AgentError::Connection(chain(&error)))
}

/// What the supervisor asks about collectors it did not start, answered by the broker.
pub(super) struct BusConnections {
    broker: Arc<Broker>,
    client: Client,
    collectors: Collectors,
}

impl BusConnections {
    pub(super) const fn new(broker: Arc<Broker>, client: Client, collectors: Collectors) -> Self {
        Self { broker, client, collectors }
    }
}

impl Connections for BusConnections {
    fn is_connected(&self, pid: u32) -> bool {
        connected_pids(&self.broker).contains(&pid)
    }

    async fn shut_down(&self, pid: u32) -> bool {
        let Some(id) = self.collectors.by_pid(pid) else { return false };
        let Ok(topic) = Topic::new(&id.topic()) else { return false };
        let request = encode(&CollectorRequest::Shutdown);
        match self.client.request(&topic, request, ANSWER).await {
            Ok(answer) => match decode::<CollectorReply>(&answer) {
                Ok(CollectorReply::Ok) => true,
                Ok(other) => {
                    warn!(collector = %id, answer = ?other, "the collector does not want to end");
                    false
                }
                Err(error) => {
                    warn!(collector = %id, error, "the collector's answer is not understood");
                    false
                }
            },
            Err(error) => {
                warn!(collector = %id, error = chain(&error), "the collector cannot be asked to end");
                false
            }
        }
    }
}

/// The verified process ids of everybody who publishes.
fn connected_pids(broker: &Broker) -> Vec<u32> {
    broker.publishers().into_iter().filter_map(|publisher| publisher.pid).collect()
}

/// Listens to collectors and answers for the agent.
pub(super) struct Control {
    pub(super) client: Client,
    pub(super) broker: Arc<Broker>,
    pub(super) collectors: Collectors,
    pub(super) store: StoreHandle,
    pub(super) supervised: watch::Receiver<SupervisorStatus>,
    pub(super) config: Config,
    pub(super) begun: Instant,
}

impl Control {
    /// Subscribes, and gives what serves the subscription until `stop`.
    pub(super) async fn listen(
        self,
        stop: Shutdown,
    ) -> Result<impl Future<Output = ()> + Send, AgentError> {
        let patterns = [topics::REGISTRATION, topics::HEARTBEATS, topics::HEALTH_STATUS]
            .map(TopicPattern::new)
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| AgentError::Connection(chain(&error)))?;
        let messages = self
            .client
            .subscribe(&patterns, LiveOptions::default())
            .await
            .map_err(|error| AgentError::Connection(chain(&error)))?;
        Ok(self.serve(messages, stop))
    }

    async fn serve(self, mut messages: LiveSubscription, mut stop: Shutdown) {
        let (notes, noted) = mpsc::channel(NOTES);
        // A task of its own: a store that cannot write for a while must not keep us from answering.
        let noting = tokio::spawn(note(self.store.clone(), noted));
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                           () = stop.requested() => break,
                           item = messages.next() => match item {
                               Some(LiveItem::Message(message)) => self.take(&message, &notes).await,
                               Some(LiveItem::Missed { count }) => {
                                   warn!(count, "control messages were missed");
                               }
                               Some(LiveItem::Event(_)) => {}
                               None => {
                                   let reason = self.client.closed().await;
            error!(%reason, "the agent's own connection broke: collectors are not heard any more, events still are");
                                   stop.requested().await;
                                   break;
                               }
                           },
                           _ = look.tick() => {
                               self.collectors.newly_silent().iter().for_each(tell_silence);
                               self.tell_status().await;
                           }
                       }
        }
        noting.abort();
    }

    async fn take(&self, message: &Message, notes: &mpsc::Sender<(StreamId, String)>) {
        let topic = message.topic.as_str();
        if topic == topics::HEALTH_STATUS {
            // What is no request is our own word, which we hear as well.
            if message.reply_to.is_some() {
                self.answer(message, &self.status()).await;
            }
        } else if topic == topics::REGISTRATION {
            self.register(message, notes).await;
        } else {
            self.heartbeat(message).await;
        }
    }

    async fn register(&self, message: &Message, notes: &mpsc::Sender<(StreamId, String)>) {
        let taken = decode::<CollectorRegistration>(&message.payload).and_then(|registration| {
            self.check_publishes(&registration)?;
            let (id, stream) = (registration.collector_id.clone(), registration.stream);
            let (pid, source, state) = (registration.pid, registration.source, registration.state);
            let wants = self.collectors.register(registration).map_err(|why| why.to_string())?;
            info!(collector = id, pid, %stream, %source, state = state.as_str(), "a collector registered");
            Ok((wants, stream, id))
        });
        match taken {
            Ok((wants, stream, id)) => {
                if notes.try_send((stream, id)).is_err() {
                    warn!(%stream, "the store cannot note whose stream this is now");
                }
                self.answer(message, &CollectorReply::Ok).await;
                self.begin_if_wanted(wants).await;
            }
            Err(error) => {
                let shown = display::escape(error.as_bytes());
                warn!("a registration is not taken: {shown}");
                self.answer(message, &CollectorReply::Error { message: error }).await;
            }
        }
    }

    /// A registration speaks for the connection that publishes the stream under that name: the
    /// broker has checked both, the payload is anybody's.
    fn check_publishes(&self, registration: &CollectorRegistration) -> Result<(), String> {
        let CollectorRegistration { collector_id, stream, .. } = registration;
        let publishers = self.broker.publishers();
        if publishers.iter().any(|p| p.client_id == *collector_id && p.stream == *stream) {
            return Ok(());
        }
        Err(format!("nobody called {collector_id} publishes stream {stream}"))
    }

    async fn heartbeat(&self, message: &Message) {
        let taken = decode::<Heartbeat>(&message.payload).and_then(|heartbeat| {
            // Only the topic says who sends it: the broker lets a collector use no other.
            let id = &heartbeat.collector_id;
            if message.topic.as_str() != format!("{}{id}", topics::HEARTBEAT_PREFIX) {
                return Err(format!("it came on {} and is of {id}", message.topic));
            }
            match self.collectors.heartbeat(heartbeat) {
                Ok(wants) => Ok(wants),
                // Its registration is on the way, or was missed: it will come with the next
                // connection. Until then nothing is wrong.
                Err(error @ NotTaken::Unregistered { .. }) => {
                    debug!(%error, "a heartbeat is not taken");
                    Ok(Wants::Nothing)
                }
                Err(error) => Err(error.to_string()),
            }
        });
        match taken {
            Ok(wants) => self.begin_if_wanted(wants).await,
            Err(error) => {
                warn!("a heartbeat is not taken: {}", display::escape(error.as_bytes()));
            }
        }
    }

    async fn begin_if_wanted(&self, wants: Wants) {
        if wants == Wants::Nothing {
            return;
        }
        let Ok(topic) = Topic::new(topics::LIFECYCLE) else { return };
        match self.client.send(&topic, encode(&Lifecycle::BeginMonitoring)).await {
            Ok(()) => info!("told the collectors to begin monitoring"),
            Err(error) => {
                warn!(error = chain(&error), "the collectors cannot be told to begin monitoring");
            }
        }
    }

    async fn answer(&self, message: &Message, answer: &impl Serialize) {
        if let Err(error) = self.client.reply(message, encode(answer)).await {
            warn!(error = chain(&error), "an answer cannot be sent");
        }
    }

    /// The status for everybody who listens, now or later.
    async fn tell_status(&self) {
        let Ok(topic) = Topic::new(topics::HEALTH_STATUS) else { return };
        if let Err(error) = self.client.send_retained(&topic, encode(&self.status())).await {
            debug!(error = chain(&error), "the status cannot be told");
        }
    }

    fn status(&self) -> AgentStatus {
        let config = &self.config;
        AgentStatus {
            agent: AgentInfo {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_ms: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                state_dir: config.state.root().to_owned(),
                socket: config.socket.clone(),
            },
            supervisor: self.supervised.borrow().clone(),
            collectors: self.collectors.statuses(&connected_pids(&self.broker)),
            store: StoreStatus::new(config.state.database(), self.store.figures()),
            broker: serde_json::to_value(self.broker.stats_within(BROKER_BYTES))
                .unwrap_or_default(),
        }
    }
}

/// Passes registrations on to the store.
async fn note(store: StoreHandle, mut notes: mpsc::Receiver<(StreamId, String)>) {
    while let Some((stream, collector)) = notes.recv().await {
        if store.registered(stream, collector).await.is_err() {
            return;
        }
    }
}

fn tell_silence(Silence { collector_id, pid }: &Silence) {
    warn!(
        collector = collector_id,
        pid,
        "the collector has not been heard of for {} s: it may hang",
        crate::collectors::SILENT_AFTER.as_secs()
    );
}

/// Control messages are JSON. Those we send are made of strings and numbers, which always encode.
fn encode(message: &impl Serialize) -> Bytes {
    serde_json::to_vec(message).unwrap_or_default().into()
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    serde_json::from_slice(payload).map_err(|error| format!("not understood: {error}"))
}
