//! The collector's side of the agreement with the agent: it registers, begins when it is told to,
//! answers requests and says now and then that it is alive.

use std::time::Duration;

use bytes::Bytes;
use daemoneye_eventbus::{
    Client, LiveItem, LiveOptions, LiveSubscription, Message, SendError, SubscribeError, Topic,
    TopicPattern,
};
use daemoneye_lib::models::control::{
    CollectorHealth, CollectorRegistration, CollectorReply, CollectorRequest, ConfigUpdate,
    Heartbeat, Lifecycle,
};
use daemoneye_lib::stream::wall_clock_ns;
use daemoneye_lib::topics::{self, CollectorId};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::config::HEARTBEAT;
use crate::logging::{LogFilter, SetLogFilter};
use crate::monitor::{MonitorEnded, MonitorHandle};

/// Why one session's conversation ended.
#[derive(Debug, Error)]
enum LinkError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
    #[error(transparent)]
    Monitor(#[from] MonitorEnded),
}

/// Speaks with the agent over whatever session the connector has.
pub struct CollectorLink {
    id: CollectorId,
    monitor: MonitorHandle,
    clients: watch::Receiver<Option<Client>>,
    heartbeat: Duration,
    shutdown: mpsc::Sender<()>,
    set_log_filter: SetLogFilter,
}

impl CollectorLink {
    /// A link over the sessions that `clients` shows. A request to shut down is passed on to
    /// `shutdown`, one for another log filter to `set_log_filter`.
    #[must_use]
    pub fn new(
        id: CollectorId,
        monitor: MonitorHandle,
        clients: watch::Receiver<Option<Client>>,
        heartbeat: Duration,
        shutdown: mpsc::Sender<()>,
        set_log_filter: SetLogFilter,
    ) -> Self {
        Self { id, monitor, clients, heartbeat, shutdown, set_log_filter }
    }

    /// Speaks with the agent for as long as the monitor and the connector live.
    pub async fn run(self) {
        let mut clients = self.clients.clone();
        // One for all sessions: what a request made of it holds when the broker is back.
        let mut heartbeat = heartbeats(self.heartbeat);
        loop {
            let client = clients.borrow_and_update().clone();
            let ended = async {
                if let Some(client) = &client {
                    match self.converse(client, &mut heartbeat).await {
                        Ok(()) => {}
                        Err(LinkError::Monitor(MonitorEnded)) => return false,
                        Err(error) => debug!(%error, "the conversation with the agent ended"),
                    }
                }
                // Until there is another session.
                std::future::pending().await
            };
            tokio::select! {
                goes_on = ended => if !goes_on { return },
                changed = clients.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn converse(&self, client: &Client, heartbeat: &mut Interval) -> Result<(), LinkError> {
        let requests = pattern(&self.id.topic());
        let patterns = [pattern(topics::LIFECYCLE), requests];
        let mut inbox = client.subscribe(&patterns, LiveOptions::default()).await?;
        self.register(client).await?;
        heartbeat.reset_immediately();
        loop {
            tokio::select! {
                message = next_message(&mut inbox) => match message {
                    Some(message) => self.take(client, &message, heartbeat).await?,
                    None => return Ok(()),
                },
                _ = heartbeat.tick() => self.beat(client).await?,
            }
        }
    }

    async fn register(&self, client: &Client) -> Result<(), LinkError> {
        let health = self.monitor.health().await?;
        let registration = CollectorRegistration {
            collector_id: self.id.to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stream: health.log.stream,
            epoch: health.log.epoch,
            source: health.source,
            state: health.state,
        };
        client.send(&topic(topics::REGISTRATION), json(&registration)).await?;
        Ok(())
    }

    async fn beat(&self, client: &Client) -> Result<(), LinkError> {
        let beat = Heartbeat {
            collector_id: self.id.to_string(),
            pid: std::process::id(),
            time_ns: wall_clock_ns(),
            health: self.monitor.health().await?,
        };
        client.send(&topic(&self.id.heartbeat_topic()), json(&beat)).await?;
        Ok(())
    }

    async fn take(
        &self,
        client: &Client,
        message: &Message,
        heartbeat: &mut Interval,
    ) -> Result<(), LinkError> {
        if message.topic.as_str() == topics::LIFECYCLE {
            match serde_json::from_slice(&message.payload) {
                Ok(Lifecycle::BeginMonitoring) => {
                    if let CollectorReply::Error { message } = self.begin().await? {
                        warn!(%message, "monitoring cannot begin");
                    }
                }
                Err(error) => warn!(%error, "a lifecycle message that this version cannot read"),
            }
            return Ok(());
        }
        let reply = match serde_json::from_slice(&message.payload) {
            Ok(request) => self.answer(request, heartbeat).await?,
            Err(error) => CollectorReply::Error { message: format!("not a request: {error}") },
        };
        if message.reply_to.is_some() {
            client.reply(message, json(&reply)).await?;
        }
        Ok(())
    }

    async fn answer(
        &self,
        request: CollectorRequest,
        heartbeat: &mut Interval,
    ) -> Result<CollectorReply, MonitorEnded> {
        match request {
            CollectorRequest::Begin => self.begin().await,
            CollectorRequest::SetInterval { interval_ms } => self.set_interval(interval_ms).await,
            CollectorRequest::UpdateConfig(update) => self.update(update, heartbeat).await,
            CollectorRequest::Health => {
                let health: CollectorHealth = self.monitor.health().await?;
                Ok(CollectorReply::Health(Box::new(health)))
            }
            CollectorRequest::Shutdown => {
                info!("the agent asks for an end");
                // Full means that an end has been asked for already.
                let _ = self.shutdown.try_send(());
                Ok(CollectorReply::Ok)
            }
        }
    }

    /// All of an update or, if part of it is refused, nothing.
    async fn update(
        &self,
        update: ConfigUpdate,
        heartbeat: &mut Interval,
    ) -> Result<CollectorReply, MonitorEnded> {
        let period = update.heartbeat_ms.map(Duration::from_millis);
        if period.is_some_and(|period| !HEARTBEAT.contains(&period)) {
            let (min, max) = (HEARTBEAT.start().as_millis(), HEARTBEAT.end().as_millis());
            let message = format!("heartbeat_ms must be between {min} and {max}");
            return Ok(CollectorReply::Error { message });
        }
        let log_filter = match update.log_level.map(|text| text.parse::<LogFilter>()).transpose() {
            Ok(filter) => filter,
            Err(error) => {
                return Ok(CollectorReply::Error { message: format!("log_level: {error}") });
            }
        };
        if let Some(ms) = update.interval_ms
            && let refused @ CollectorReply::Error { .. } = self.update_interval(ms).await?
        {
            return Ok(refused);
        }
        if let Some(period) = period {
            *heartbeat = heartbeats(period);
        }
        if let Some(filter) = log_filter {
            (self.set_log_filter)(&filter);
            info!(%filter, "what is logged has been changed by the agent");
        }
        Ok(CollectorReply::Ok)
    }

    async fn begin(&self) -> Result<CollectorReply, MonitorEnded> {
        Ok(reply(self.monitor.begin().await?))
    }

    async fn set_interval(&self, ms: u64) -> Result<CollectorReply, MonitorEnded> {
        Ok(reply(self.monitor.set_interval(Duration::from_millis(ms)).await?))
    }

    async fn update_interval(&self, ms: u64) -> Result<CollectorReply, MonitorEnded> {
        Ok(reply(self.monitor.update_interval(Duration::from_millis(ms)).await?))
    }
}

/// The next control message; `None` when the session has ended. Cancel-safe.
async fn next_message(inbox: &mut LiveSubscription) -> Option<Message> {
    loop {
        match inbox.next().await? {
            LiveItem::Message(message) => return Some(message),
            LiveItem::Missed { count } => warn!(count, "messages from the agent were missed"),
            LiveItem::Event(_) => {}
        }
    }
}

fn heartbeats(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn reply(result: Result<(), String>) -> CollectorReply {
    match result {
        Ok(()) => CollectorReply::Ok,
        Err(message) => CollectorReply::Error { message },
    }
}

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("the topics of this crate are well-formed")
}

fn pattern(name: &str) -> TopicPattern {
    TopicPattern::new(name).expect("the topics of this crate are well-formed")
}

fn json(message: &impl Serialize) -> Bytes {
    let json = serde_json::to_vec(message);
    Bytes::from(json.expect("control messages have string keys and no failing parts"))
}
