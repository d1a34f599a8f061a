//! What the broker decides, without sockets, clocks or waiting.
//!
//! Every connection has one task. It hands the frames it reads to [`Core::receive`] and writes
//! what [`Core::take_output`] gives it; nothing here waits for a peer. The whole state stands
//! behind one `std::sync::Mutex`: the sections are short and contain no await, and with one lock
//! there is no order of locks to get wrong.
//!
//! Bounds. Each queue a peer can make grow has one, and what happens there is decided here:
//! live subscriptions drop their oldest and count; durable deliveries stop at the bytes in flight
//! and the entries stay in their stream; streams are bounded by their publisher's credit, and all
//! together by what is let in; control frames beyond the bound end the connection; acks, pings and
//! pongs keep the newest only; declarations come once a topic. Requests are bounded by rate.

mod admission;
mod conn;
mod consumer;
mod look;
mod messages;
mod output;
mod publishing;
mod requests;
mod retained;
mod stream;
mod subscribing;
mod topics;
mod trie;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemoneye_lib::stream::StreamId;
use tokio::sync::Notify;

use self::conn::{Closing, Conn, Subscription};
use self::consumer::Consumer;
pub(crate) use self::output::Output;
use self::requests::Verdict;
use self::retained::Retained;
use self::stream::Stream;
use self::topics::Topics;
use super::options::BrokerOptions;
use super::stats::Traffic;
use crate::connection::Flow;
use crate::wire::{Frame, GoodbyeCode, HEADER_BYTES, RawFrame, RefusalCode, Refused, WireError};

/// A connection, numbered for the life of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId(u64);

/// The numbers of [`BrokerOptions`](crate::BrokerOptions) that bear on decisions.
#[derive(Debug, Clone)]
pub(crate) struct CoreLimits {
    pub(crate) required_consumers: Vec<String>,
    pub(crate) credit_bytes: u64,
    pub(crate) in_flight_bytes: usize,
    pub(crate) frame_bytes_max: usize,
    pub(crate) heartbeat_ms: u32,
    pub(crate) subscriptions_max: usize,
    pub(crate) queue_bytes_max: usize,
    pub(crate) held_bytes_max: u64,
    pub(crate) request_rate: u32,
    pub(crate) request_burst: u32,
    pub(crate) control_bytes_max: usize,
}

impl CoreLimits {
    pub(crate) fn new(options: &BrokerOptions) -> Self {
        Self {
            required_consumers: options.required_consumers.clone(),
            credit_bytes: options.credit_bytes,
            in_flight_bytes: options.in_flight_bytes,
            frame_bytes_max: options.frame_bytes_max,
            heartbeat_ms: u32::try_from(options.heartbeat.as_millis()).unwrap_or(u32::MAX).max(1),
            subscriptions_max: options.subscriptions_max,
            queue_bytes_max: options.queue_bytes_max,
            held_bytes_max: options.held_bytes_max,
            request_rate: options.request_rate,
            request_burst: options.request_burst,
            control_bytes_max: options.control_bytes_max,
        }
    }
}

/// The longest client id or consumer name.
const NAME_BYTES_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Core {
    limits: CoreLimits,
    conns: HashMap<ConnId, Conn>,
    topics: Topics,
    streams: HashMap<StreamId, Stream>,
    consumers: BTreeMap<String, Consumer>,
    retained: Retained,
    /// Since the broker began; as the connections' tasks tell it.
    now: Duration,
    conns_total: u64,
    /// When the broker began. Only told, never decided upon.
    begun: Instant,
    /// What has passed through connections that are gone.
    traffic_gone: Traffic,
    /// What live subscriptions that are gone had missed.
    missed_gone: u64,
    /// Connections refused.
    refused: BTreeMap<RefusalCode, u64>,
    /// Connections ended with a goodbye.
    ended: BTreeMap<GoodbyeCode, u64>,
    /// Where the batch or message at hand goes; kept for its allocation.
    route: Vec<(ConnId, u32)>,
}

/// A peer's offence: it is told and its connection ends.
#[derive(Debug)]
struct Refusal {
    code: RefusalCode,
    retry: bool,
    reason: String,
}

fn refuse<T>(code: RefusalCode, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, retry: false, reason: reason.into() })
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self { code: RefusalCode::Protocol, retry: false, reason: error.to_string() }
    }
}

impl Core {
    pub(crate) fn new(limits: CoreLimits) -> Self {
        Self {
            limits,
            conns: HashMap::new(),
            topics: Topics::default(),
            streams: HashMap::new(),
            consumers: BTreeMap::new(),
            retained: Retained::default(),
            now: Duration::ZERO,
            conns_total: 0,
            begun: Instant::now(),
            traffic_gone: Traffic::default(),
            missed_gone: 0,
            refused: BTreeMap::new(),
            ended: BTreeMap::new(),
            route: Vec::new(),
        }
    }

    /// A peer has connected. `wake` is notified whenever there is output for it.
    pub(crate) fn connect(
        &mut self,
        wake: Arc<Notify>,
        pid: Option<u32>,
        in_process: bool,
    ) -> ConnId {
        self.conns_total += 1;
        let id = ConnId(self.conns_total);
        self.conns.insert(id, Conn::new(wake, pid, in_process));
        id
    }

    /// The connection is gone, for whatever reason.
    pub(crate) fn disconnect(&mut self, id: ConnId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        for (number, subscription) in &conn.subscriptions {
            match subscription {
                Subscription::Durable { name } => self.detach(id, name),
                Subscription::Live { patterns, wanted, queue, .. } => {
                    self.missed_gone += queue.missed_total();
                    self.topics.end((id, *number), patterns, wanted);
                }
            }
        }
        self.traffic_gone += conn.traffic;
        if let Some(code) = conn.goodbye {
            *self.ended.entry(code).or_default() += 1;
        }
        if let Some(stream) = conn.publishing.and_then(|stream| self.streams.get_mut(&stream))
            && stream.publisher == Some(id)
        {
            stream.publisher = None;
        }
    }

    /// It is this long since the broker began.
    pub(crate) fn set_time(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Whether the peer has been welcomed, or is to go.
    pub(crate) fn has_answered(&self, id: ConnId) -> bool {
        self.conns.get(&id).is_none_or(|conn| conn.identity.is_some() || conn.closing.is_some())
    }

    /// A ping is due.
    pub(crate) fn ping(&mut self, id: ConnId, token: u64) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.ping = Some(token);
        }
    }

    /// Ends a connection with a goodbye.
    pub(crate) fn end(&mut self, id: ConnId, code: GoodbyeCode, reason: &str) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.end(&Frame::Goodbye { code, reason: reason.to_owned() });
        }
    }

    /// Ends a connection because its bytes made no sense.
    pub(crate) fn refuse_bytes(&mut self, id: ConnId, error: WireError) {
        self.refuse_conn(id, error.into());
    }

    /// Lets every peer take what is queued for it, then says goodbye.
    pub(crate) fn drain_all(&mut self, code: GoodbyeCode, reason: &'static str) {
        for conn in self.conns.values_mut() {
            if conn.closing.is_none() {
                conn.closing = Some(Closing::Drained(code, reason));
            }
            conn.wake.notify_one();
        }
    }

    /// A frame has arrived. Returns whether the connection goes on; if it does not, the reason is
    /// among its output.
    pub(crate) fn receive(&mut self, id: ConnId, raw: RawFrame) -> Flow {
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.closing != Some(Closing::Now))
        else {
            return Flow::Close;
        };
        conn.traffic.frames_in_total += 1;
        conn.traffic.bytes_in_total += (HEADER_BYTES + raw.body.len()) as u64;
        let handled = match Frame::decode(raw) {
            Ok(Some(frame)) => self.handle(id, frame),
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(refusal) = handled {
            self.refuse_conn(id, refusal);
        }
        match self.conns.get(&id) {
            Some(conn) if conn.closing != Some(Closing::Now) => Flow::Open,
            _ => Flow::Close,
        }
    }

    /// A connection is refused.
    pub(crate) fn count_refusal(&mut self, code: RefusalCode) {
        *self.refused.entry(code).or_default() += 1;
    }

    fn refuse_conn(&mut self, id: ConnId, refusal: Refusal) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        tracing::warn!(
            client = conn.name(),
            pid = conn.pid,
            code = ?refusal.code,
            "connection refused: {}",
            refusal.reason
        );
        conn.end(&Frame::Refused(Refused {
            subscription: 0,
            code: refusal.code,
            retry: refusal.retry,
            reason: refusal.reason,
        }));
        self.count_refusal(refusal.code);
    }

    fn handle(&mut self, id: ConnId, frame: Frame) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        if conn.identity.is_none() && !matches!(frame, Frame::Hello(_)) {
            return refuse(RefusalCode::Protocol, "the first frame is a Hello");
        }
        match frame {
            Frame::Hello(hello) => self.hello(id, hello),
            Frame::Declare { alias, topic } => self.declare(id, alias, &topic),
            Frame::Publish(publish) => self.publish(id, publish),
            Frame::Subscribe(subscribe) => {
                let verdict = self.take_token(id)?;
                self.subscribe(id, subscribe, verdict);
                Ok(())
            }
            Frame::Unsubscribe { subscription, forget } => {
                // Ending something is never put off; it counts all the same.
                self.take_token(id)?;
                self.unsubscribe(id, subscription, forget)
            }
            Frame::Commit { subscription, stream, position } => {
                self.commit(id, subscription, stream, position)
            }
            Frame::Message(message) => {
                let verdict = self.take_token(id)?;
                self.message(id, message, verdict);
                Ok(())
            }
            Frame::Ping { token } => {
                conn.pong = Some(token);
                Ok(())
            }
            Frame::Pong { .. } => Ok(()),
            Frame::Goodbye { .. } => {
                conn.closing = Some(Closing::Now);
                Ok(())
            }
            Frame::Welcome(_)
            | Frame::Refused(_)
            | Frame::Ack(_)
            | Frame::Subscribed { .. }
            | Frame::Deliver(_)
            | Frame::Missed { .. }
            | Frame::Undeliverable(_) => refuse(
                RefusalCode::Protocol,
                format!("a client does not send {} frames", frame.kind()),
            ),
        }
    }
}

impl Core {
    /// Counts a request against the connection's limit; a flood of them is refused. Clients of our
    /// own process are not limited: the agent answers for everybody.
    fn take_token(&mut self, id: ConnId) -> Result<Verdict, Refusal> {
        let CoreLimits { request_rate: rate, request_burst: burst, .. } = self.limits;
        match self.conns.get_mut(&id) {
            Some(conn) if !conn.in_process => match conn.requests.take(self.now, rate, burst) {
                Verdict::Flood => Err(Refusal {
                    code: RefusalCode::Limit,
                    retry: true,
                    reason: format!(
                        "far more than {rate} requests a second: messages, subscriptions and \
                         their ends"
                    ),
                }),
                verdict => Ok(verdict),
            },
            _ => Ok(Verdict::Pass),
        }
    }
}

fn wants(consumer: &Consumer, stream: &Stream) -> bool {
    stream.topics.iter().any(|topic| consumer.wanted.contains(*topic))
}

#[cfg(test)]
mod tests;
