//! What the broker decides, without sockets, clocks or waiting.
//!
//! Every connection has one task. It hands the frames it reads to [`Core::receive`] and writes
//! what [`Core::take_output`] gives it; nothing here waits for a peer. The whole state stands
//! behind one `std::sync::Mutex`: the sections are short and contain no await, and with one lock
//! there is no order of locks to get wrong.
//!
//! Bounds. Each queue a peer can make grow has one, and what happens there is decided here:
//! live subscriptions drop their oldest and count; durable deliveries stop at the bytes in flight
//! and the entries stay in their stream; streams are bounded by their publisher's credit; control
//! frames beyond the bound end the connection; acks, pings and pongs keep the newest only.

mod conn;
mod consumer;
mod stream;
mod topics;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use daemoneye_lib::stream::{Sequence, StreamId};
use tokio::sync::Notify;

use self::conn::{Closing, Conn, Identity, Subscription};
use self::consumer::{Consumer, Cursor};
use self::stream::{Chunk, Stream};
use self::topics::{BatchTopics, TopicSet, Topics};
use crate::broker::stats::{
    BrokerStats, ConnectionStats, ConsumerStats, CursorStats, LiveStats, PublisherInfo, StreamStats,
};
use crate::connection::Flow;
use crate::event::{Ack, AckLevel, Committed, Position, Role};
use crate::queue::{LiveQueue, Popped, QueueLimits, Run};
use crate::rights;
use crate::topic::{Topic, TopicPattern, is_segment};
use crate::wire::{
    ALIAS_AT, ALIASES_MAX, Deliver, EntryHeader, Frame, GoodbyeCode, Hello, MessageFrame, Publish,
    RawFrame, RefusalCode, Refused, SubscribeFrame, SubscribeKind, Undeliverable,
    UndeliverableCode, VERSION, Welcome, WireError, deliver_head,
};

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
    pub(crate) control_bytes_max: usize,
}

/// Streams remembered at most; beyond it idle ones are forgotten.
const STREAMS_MAX: usize = 1024;
/// Durable consumers at most, attached or not.
const CONSUMERS_MAX: usize = 256;
/// Patterns of one subscription.
const PATTERNS_MAX: usize = 256;
/// The longest client id or consumer name.
const NAME_BYTES_MAX: usize = 64;
/// Taken from the queues at once; more would only wait in memory.
const OUTPUT_BYTES: usize = 256 * 1024;
/// Entries shorter than this are copied behind their header, which saves an iovec.
const COPY_BYTES: usize = 4 * 1024;

/// Bytes on their way to a peer.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) pieces: VecDeque<Bytes>,
    scratch: BytesMut,
}

impl Output {
    fn flush_scratch(&mut self) {
        if !self.scratch.is_empty() {
            self.pieces.push_back(self.scratch.split().freeze());
        }
    }

    fn deliver(&mut self, deliver: Deliver) {
        deliver_head(&mut self.scratch, &deliver);
        if deliver.entries.len() <= COPY_BYTES {
            self.scratch.extend_from_slice(&deliver.entries);
        } else {
            self.flush_scratch();
            self.pieces.push_back(deliver.entries);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Core {
    limits: CoreLimits,
    conns: HashMap<ConnId, Conn>,
    topics: Topics,
    streams: HashMap<StreamId, Stream>,
    consumers: BTreeMap<String, Consumer>,
    conns_total: u64,
    /// Routes of the batch at hand; kept for its allocation.
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
            conns_total: 0,
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
        self.topics.unroute(|(conn, _)| *conn == id);
        for subscription in conn.subscriptions.values() {
            if let Subscription::Durable { name } = subscription {
                self.detach(id, name);
            }
        }
        if let Some(stream) = conn.publishing.and_then(|stream| self.streams.get_mut(&stream))
            && stream.publisher == Some(id)
        {
            stream.publisher = None;
        }
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
        if self.conns.get(&id).is_none_or(|conn| conn.closing == Some(Closing::Now)) {
            return Flow::Close;
        }
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
                self.subscribe(id, subscribe);
                Ok(())
            }
            Frame::Unsubscribe { subscription } => {
                self.unsubscribe(id, subscription);
                Ok(())
            }
            Frame::Commit { subscription, stream, position } => {
                self.commit(id, subscription, stream, position)
            }
            Frame::Message(message) => {
                self.message(id, message);
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

    // ---- hello

    fn hello(&mut self, id: ConnId, hello: Hello) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        if conn.identity.is_some() {
            return refuse(RefusalCode::Protocol, "a second Hello");
        }
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            return refuse(
                RefusalCode::Version,
                format!(
                    "the broker speaks version {VERSION}, the client {} to {}; update the older",
                    hello.version_min, hello.version_max
                ),
            );
        }
        if !is_segment(&hello.client_id) || hello.client_id.len() > NAME_BYTES_MAX {
            return refuse(
                RefusalCode::Protocol,
                format!("a client id is 1 to {NAME_BYTES_MAX} of a-z, 0-9, '_' and '-'"),
            );
        }
        if hello.role == Role::Agent && !conn.in_process {
            return refuse(
                RefusalCode::NotAllowed,
                "the agent's role is only for the process that hosts the broker",
            );
        }
        let (committed, positions) = match &hello.position {
            Some(position) => self.admit_publisher(id, &hello, position)?,
            None => (None, Vec::new()),
        };
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        conn.publishing = hello.position.map(|position| position.stream);
        conn.identity = Some(Identity { client_id: hello.client_id, role: hello.role });
        let welcome = Frame::Welcome(Welcome {
            version: VERSION,
            connection: id.0,
            credit_bytes: self.limits.credit_bytes,
            frame_bytes_max: self.limits.frame_bytes_max as u32,
            heartbeat_ms: self.limits.heartbeat_ms,
            committed,
            positions,
        });
        conn.control(&welcome, self.limits.control_bytes_max);
        Ok(())
    }

    /// Checks the publisher and makes it its stream's. Returns where it resumes and all positions
    /// held downstream.
    fn admit_publisher(
        &mut self,
        id: ConnId,
        hello: &Hello,
        position: &Position,
    ) -> Result<(Option<Committed>, Vec<Committed>), Refusal> {
        if hello.role != Role::Collector {
            return refuse(RefusalCode::NotAllowed, "only collectors publish events");
        }
        let missing = self.limits.required_consumers.iter().find(|name| {
            self.consumers.get(*name).is_none_or(|consumer| consumer.member.is_none())
        });
        if let Some(name) = missing {
            return Err(Refusal {
                code: RefusalCode::NotReady,
                retry: true,
                reason: format!("the required consumer {name} is not attached yet; try again"),
            });
        }
        if let Some(stream) = self.streams.get(&position.stream)
            && stream.epoch > position.epoch
        {
            return refuse(
                RefusalCode::StaleEpoch,
                format!(
                    "stream {} has been published in epoch {}, after your {}: another process \
                     writes it, or the log was restored from a copy",
                    position.stream, stream.epoch, position.epoch
                ),
            );
        }
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&position.stream) {
            self.streams.retain(|_, stream| !stream.is_idle());
            if self.streams.len() >= STREAMS_MAX {
                return refuse(RefusalCode::Limit, format!("{STREAMS_MAX} streams are in use"));
            }
        }

        let committed = self.committed_by_all(&position.stream);
        let mut positions: Vec<Committed> = self
            .consumers
            .values()
            .filter_map(|consumer| consumer.cursors.get(&position.stream)?.position())
            .collect();
        let start = committed.map_or(position.first_unacknowledged.prev(), |c| c.sequence);
        let stream = self
            .streams
            .entry(position.stream)
            .or_insert_with(|| Stream::new(position.epoch, start));
        if let Some((sequence, epoch)) = stream.received {
            positions.push(Committed { sequence, epoch });
        }
        positions.sort_unstable_by_key(|p| (p.sequence, p.epoch));
        positions.dedup();
        stream.epoch = position.epoch;
        stream.may_jump = true;
        if let Some(old) = stream.publisher.replace(id)
            && let Some(conn) = self.conns.get_mut(&old)
        {
            conn.publishing = None;
            conn.end(&Frame::Goodbye {
                code: GoodbyeCode::Superseded,
                reason: format!("another connection took over stream {}", position.stream),
            });
        }
        self.refresh_interest(position.stream);
        Ok((committed, positions))
    }

    /// The least position of the durable consumers; `None` if there are none or one of them knows
    /// nothing of the stream: then the publisher begins with what it has not got acknowledged.
    fn committed_by_all(&self, stream: &StreamId) -> Option<Committed> {
        let known = self.streams.get(stream);
        let mut least: Option<Committed> = None;
        for consumer in self.consumers.values() {
            match consumer.cursors.get(stream) {
                // A stream this consumer has seen nothing of and does not want does not concern it.
                None if known.is_some_and(|stream| !wants(consumer, stream)) => {}
                None => return None,
                Some(cursor) if !cursor.interested && cursor.committed_epoch.is_none() => {}
                Some(cursor) => {
                    let position = cursor.position()?;
                    if least.is_none_or(|least| position.sequence < least.sequence) {
                        least = Some(position);
                    }
                }
            }
        }
        least
    }

    // ---- publishing

    fn declare(&mut self, id: ConnId, alias: u16, topic: &Topic) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let (Some(identity), Some(stream)) = (&conn.identity, conn.publishing) else {
            return refuse(RefusalCode::Protocol, "aliases are for publishers");
        };
        if let Err(rule) = rights::may_publish(identity.role, topic) {
            return refuse(RefusalCode::NotAllowed, format!("{topic}: {rule}"));
        }
        if alias >= ALIASES_MAX {
            return refuse(RefusalCode::Limit, format!("aliases are below {ALIASES_MAX}"));
        }
        let Ok((ours, is_new)) = self.topics.intern(topic) else {
            return refuse(RefusalCode::Limit, format!("{ALIASES_MAX} topics are in use"));
        };
        let slot = usize::from(alias);
        if conn.aliases.len() <= slot {
            conn.aliases.resize(slot + 1, None);
        }
        match conn.aliases[slot].replace(ours) {
            Some(before) if before != ours => {
                return refuse(RefusalCode::Protocol, format!("alias {alias} is declared twice"));
            }
            _ => {}
        }
        if is_new {
            self.announce(ours, topic);
        }
        if let Some(stream_state) = self.streams.get_mut(&stream)
            && !stream_state.topics.contains(&ours)
        {
            stream_state.topics.push(ours);
            self.refresh_interest(stream);
        }
        Ok(())
    }

    /// Matches a new topic against every subscription and tells those who will see it its alias.
    fn announce(&mut self, alias: u16, topic: &Topic) {
        let control_bytes_max = self.limits.control_bytes_max;
        for (id, conn) in &mut self.conns {
            let mut matched = false;
            for (number, subscription) in &mut conn.subscriptions {
                if let Subscription::Live { patterns, wanted, .. } = subscription
                    && patterns.iter().any(|pattern| pattern.matches(topic))
                {
                    wanted.insert(alias);
                    self.topics.route(alias, (*id, *number));
                    matched = true;
                }
            }
            if matched {
                conn.declare(alias, topic, control_bytes_max);
            }
        }
        for consumer in self.consumers.values_mut() {
            if consumer.patterns.iter().any(|pattern| pattern.matches(topic)) {
                consumer.wanted.insert(alias);
                if let Some(conn) = consumer.member.and_then(|(id, _)| self.conns.get_mut(&id)) {
                    conn.declare(alias, topic, control_bytes_max);
                }
            }
        }
    }

    fn publish(&mut self, id: ConnId, publish: Publish) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        let Some(stream_id) = conn.publishing else {
            return refuse(RefusalCode::Protocol, "the Hello named no stream to publish");
        };
        let Some(stream) = self.streams.get_mut(&stream_id) else { return Ok(()) };
        if publish.epoch > stream.epoch {
            return refuse(RefusalCode::Protocol, "a batch is of a later epoch than the Hello");
        }
        let chunk = check_batch(publish, &conn.aliases)?;

        // Where does it begin, seen from what is known already?
        let last = stream.last();
        let chunk = if chunk.after < last {
            if stream.epoch_at(chunk.after.next()).is_some_and(|epoch| epoch != chunk.epoch) {
                return refuse(
                    RefusalCode::Diverged,
                    format!(
                        "sequence {} was published before in another epoch; begin a new stream",
                        chunk.after.next()
                    ),
                );
            }
            let count = chunk.count;
            let rest = skip_duplicates(chunk, last);
            stream.duplicates_total += u64::from(count - rest.count);
            rest
        } else if chunk.after > last && !stream.may_jump {
            return refuse(
                RefusalCode::Protocol,
                format!("sequences {} to {} were left out", last.next(), chunk.after),
            );
        } else {
            chunk
        };
        stream.may_jump = false;
        if chunk.count == 0 {
            self.acknowledge(stream_id, true);
            return Ok(());
        }
        let credit = self.limits.credit_bytes;
        if stream.retained_bytes > 0 && stream.retained_bytes + chunk.payload_bytes > credit {
            return refuse(
                RefusalCode::Credit,
                format!("more than {credit} payload bytes are unacknowledged"),
            );
        }
        stream.received = Some((chunk.through, chunk.epoch));
        stream.entries_total += u64::from(chunk.count);

        self.route_live(stream_id, &chunk);
        let mut held = false;
        for consumer in self.consumers.values() {
            if consumer.cursor(&stream_id).is_some() {
                held = true;
                if let Some(conn) = consumer.member.and_then(|(id, _)| self.conns.get(&id)) {
                    conn.wake.notify_one();
                }
            }
        }
        if held && let Some(stream) = self.streams.get_mut(&stream_id) {
            stream.retain(chunk);
        }
        self.acknowledge(stream_id, false);
        Ok(())
    }

    /// Hands a batch to the live subscriptions that want some of it. Never waits.
    fn route_live(&mut self, stream: StreamId, chunk: &Chunk) {
        let whole = Run {
            stream,
            epoch: chunk.epoch,
            after: chunk.after,
            through: chunk.through,
            count: chunk.count,
            entries: chunk.entries.clone(),
        };
        if let Some(topic) = chunk.topics.single() {
            for (id, number) in self.topics.live(topic) {
                push_live(&mut self.conns, *id, *number, |_| whole.clone());
            }
            return;
        }
        self.route.clear();
        for topic in chunk.topics.iter() {
            self.route.extend_from_slice(self.topics.live(topic));
        }
        self.route.sort_unstable();
        self.route.dedup();
        for (id, number) in &self.route {
            push_live(&mut self.conns, *id, *number, |wanted| {
                let part = chunk.part(chunk.after, wanted);
                Run { count: part.count, entries: part.entries, ..whole.clone() }
            });
        }
    }

    /// Works out how far a stream is done with and tells its publisher if that moved, or in any
    /// case if `repeat`.
    fn acknowledge(&mut self, stream_id: StreamId, repeat: bool) {
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        let least = self
            .consumers
            .values()
            .filter_map(|consumer| Some(consumer.cursor(&stream_id)?.committed))
            .min();
        let (through, level) = match least {
            Some(least) => (least.min(stream.last()), AckLevel::Committed),
            None => (stream.last(), AckLevel::Accepted),
        };
        // While a required consumer has not come back nothing is acknowledged; its cursor sees to
        // that, for a consumer stays known until the broker ends.
        let moved = stream.acknowledge(through);
        if (moved || repeat)
            && let Some(conn) = stream.publisher.and_then(|id| self.conns.get_mut(&id))
        {
            conn.ack = Some(Ack { sequence: stream.acked, level });
            conn.wake.notify_one();
        }
    }

    // ---- subscribing

    fn subscribe(&mut self, id: ConnId, subscribe: SubscribeFrame) {
        let number = subscribe.subscription;
        let result = self.try_subscribe(id, subscribe);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let answer = match result {
            Ok(()) => Frame::Subscribed { subscription: number },
            Err(refusal) => Frame::Refused(Refused {
                subscription: number,
                code: refusal.code,
                retry: refusal.retry,
                reason: refusal.reason,
            }),
        };
        conn.control(&answer, self.limits.control_bytes_max);
    }

    fn try_subscribe(&mut self, id: ConnId, subscribe: SubscribeFrame) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let number = subscribe.subscription;
        if number == 0 || conn.subscriptions.contains_key(&number) {
            return refuse(
                RefusalCode::Protocol,
                "a subscription's number is not 0 and not in use",
            );
        }
        if conn.subscriptions.len() >= self.limits.subscriptions_max {
            return refuse(
                RefusalCode::Limit,
                format!("a connection has at most {} subscriptions", self.limits.subscriptions_max),
            );
        }
        if subscribe.patterns.is_empty() || subscribe.patterns.len() > PATTERNS_MAX {
            return refuse(
                RefusalCode::Limit,
                format!("a subscription has 1 to {PATTERNS_MAX} patterns"),
            );
        }
        let selected = self.topics.select(&subscribe.patterns);
        let mut wanted = TopicSet::default();
        for alias in &selected {
            wanted.insert(*alias);
        }
        match subscribe.kind {
            SubscribeKind::Live { bytes_max, count_max } => {
                for alias in &selected {
                    conn.declare(*alias, self.topics.name(*alias), self.limits.control_bytes_max);
                    self.topics.route(*alias, (id, number));
                }
                let queue = LiveQueue::new(QueueLimits {
                    bytes_max: bytes_max as usize,
                    count_max: count_max as usize,
                });
                conn.subscriptions.insert(
                    number,
                    Subscription::Live { patterns: subscribe.patterns, wanted, queue },
                );
            }
            SubscribeKind::Durable { name, positions } => {
                self.attach(id, number, &name, subscribe.patterns, wanted, positions)?;
                let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
                for alias in &selected {
                    conn.declare(*alias, self.topics.name(*alias), self.limits.control_bytes_max);
                }
                conn.subscriptions.insert(number, Subscription::Durable { name });
            }
        }
        Ok(())
    }

    fn attach(
        &mut self,
        id: ConnId,
        number: u32,
        name: &str,
        patterns: Vec<TopicPattern>,
        wanted: TopicSet,
        positions: Vec<(StreamId, Committed)>,
    ) -> Result<(), Refusal> {
        if !is_segment(name) || name.len() > NAME_BYTES_MAX {
            return refuse(
                RefusalCode::Protocol,
                format!("a consumer's name is 1 to {NAME_BYTES_MAX} of a-z, 0-9, '_' and '-'"),
            );
        }
        if let Some(consumer) = self.consumers.get(name)
            && let Some((member, _)) = consumer.member
        {
            let holder = self.conns.get(&member).map_or("another connection", Conn::name);
            return Err(Refusal {
                code: RefusalCode::Occupied,
                retry: true,
                reason: format!("the consumer {name} is attached already, by {holder}"),
            });
        }
        if self.consumers.len() >= CONSUMERS_MAX && !self.consumers.contains_key(name) {
            return refuse(RefusalCode::Limit, format!("{CONSUMERS_MAX} consumers are known"));
        }
        let consumer = self.consumers.entry(name.to_owned()).or_insert_with(|| Consumer {
            patterns: Vec::new(),
            wanted: TopicSet::default(),
            member: None,
            cursors: BTreeMap::new(),
        });
        consumer.patterns = patterns;
        consumer.wanted = wanted;
        consumer.member = Some((id, number));
        // What the consumer has stored is the truth about what it has; for streams it does not
        // name, what the broker remembers still stands.
        for (stream, position) in positions {
            consumer.cursors.insert(stream, Cursor::at(position));
        }
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in streams {
            self.refresh_interest(stream);
            self.acknowledge(stream, false);
        }
        Ok(())
    }

    /// Notes which consumers want something of the stream. One that begins to want it starts
    /// where the held entries begin, unless it has a position.
    fn refresh_interest(&mut self, stream_id: StreamId) {
        let Some(stream) = self.streams.get(&stream_id) else { return };
        for consumer in self.consumers.values_mut() {
            let interested = wants(consumer, stream);
            if let Some(cursor) = consumer.cursors.get_mut(&stream_id) {
                cursor.interested = interested;
            } else if interested {
                let mut cursor = Cursor::from_start(stream.acked);
                cursor.interested = true;
                consumer.cursors.insert(stream_id, cursor);
            }
            if interested
                && let Some(conn) = consumer.member.and_then(|(id, _)| self.conns.get(&id))
            {
                conn.wake.notify_one();
            }
        }
    }

    fn unsubscribe(&mut self, id: ConnId, number: u32) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match conn.subscriptions.remove(&number) {
            Some(Subscription::Live { .. }) => {
                self.topics.unroute(|route| *route == (id, number));
            }
            Some(Subscription::Durable { name }) => self.detach(id, &name),
            None => {}
        }
    }

    fn detach(&mut self, id: ConnId, name: &str) {
        if let Some(consumer) = self.consumers.get_mut(name)
            && consumer.member.is_some_and(|(member, _)| member == id)
        {
            consumer.member = None;
            for cursor in consumer.cursors.values_mut() {
                cursor.rewind();
            }
        }
    }

    fn commit(
        &mut self,
        id: ConnId,
        number: u32,
        stream: StreamId,
        position: Committed,
    ) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        // A commit may cross the end of its subscription; then it is too late and means nothing.
        let Some(Subscription::Durable { name }) = conn.subscriptions.get(&number) else {
            return Ok(());
        };
        let Some(cursor) =
            self.consumers.get_mut(name).and_then(|consumer| consumer.cursors.get_mut(&stream))
        else {
            return refuse(RefusalCode::Protocol, "a commit for a stream never delivered");
        };
        if position.sequence > cursor.sent {
            return refuse(
                RefusalCode::Protocol,
                format!(
                    "a commit of {} of stream {stream}, of which only {} were delivered",
                    position.sequence, cursor.sent
                ),
            );
        }
        if cursor.commit(position) {
            self.acknowledge(stream, false);
        }
        Ok(())
    }

    // ---- control messages

    fn message(&mut self, id: ConnId, message: MessageFrame) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(identity) = &conn.identity else { return };
        let own_reply_topic = format!("{}{}", rights::REPLY_PREFIX, id.0);
        let verdict = match &message.reply_to {
            Some(topic) if topic.as_str() != own_reply_topic => {
                Err("replies are awaited at reply.<own connection>")
            }
            _ => rights::may_send(identity.role, &identity.client_id, &message.topic),
        };
        let undeliverable = match verdict {
            Err(rule) => Some((UndeliverableCode::NotAllowed, rule)),
            Ok(()) => {
                let reached = self.deliver_message(&message);
                (!reached && message.reply_to.is_some())
                    .then_some((UndeliverableCode::NoResponder, "nobody answers on this topic"))
            }
        };
        if let Some((code, reason)) = undeliverable
            && let Some(conn) = self.conns.get_mut(&id)
        {
            if code == UndeliverableCode::NotAllowed {
                tracing::warn!(client = conn.name(), topic = %message.topic, "refused: {reason}");
            }
            let frame = Frame::Undeliverable(Undeliverable {
                correlation: message.correlation,
                code,
                reason: reason.to_owned(),
                topic: message.topic,
            });
            conn.control(&frame, self.limits.control_bytes_max);
        }
    }

    /// Returns whether it reached somebody who may answer.
    fn deliver_message(&mut self, message: &MessageFrame) -> bool {
        if let Some(number) = message.topic.as_str().strip_prefix(rights::REPLY_PREFIX) {
            let requester = number.parse().ok().and_then(|n| self.conns.get_mut(&ConnId(n)));
            if let Some(conn) = requester {
                let frame = Frame::Message(MessageFrame { subscription: 0, ..message.clone() });
                conn.control(&frame, self.limits.control_bytes_max);
            }
            return true;
        }
        let mut answerable = false;
        for conn in self.conns.values_mut() {
            let may_answer = conn.identity.as_ref().is_some_and(|i| i.role != Role::Subscriber);
            for (number, subscription) in &mut conn.subscriptions {
                if let Subscription::Live { patterns, queue, .. } = subscription
                    && patterns.iter().any(|pattern| pattern.matches(&message.topic))
                {
                    let mut frame = BytesMut::new();
                    Frame::Message(MessageFrame { subscription: *number, ..message.clone() })
                        .encode(&mut frame);
                    let bytes = frame.len();
                    queue.push_message(frame.freeze(), bytes);
                    conn.wake.notify_one();
                    answerable |= may_answer;
                }
            }
        }
        answerable
    }

    // ---- output

    /// Moves up to a quarter of a MiB of what waits for a peer into `out`.
    pub(crate) fn take_output(&mut self, id: ConnId, out: &mut Output) -> Flow {
        let Some(conn) = self.conns.get_mut(&id) else { return Flow::Close };
        if !conn.control.is_empty() {
            out.pieces.push_back(conn.control.split().freeze());
        }
        if conn.closing == Some(Closing::Now) {
            return Flow::Close;
        }
        if let Some(ack) = conn.ack.take() {
            Frame::Ack(ack).encode(&mut out.scratch);
        }
        if let Some(token) = conn.pong.take() {
            Frame::Pong { token }.encode(&mut out.scratch);
        }
        if let Some(token) = conn.ping.take() {
            Frame::Ping { token }.encode(&mut out.scratch);
        }
        // Each subscription gets its share and at least one item, so that none starves another.
        let share = (OUTPUT_BYTES / conn.subscriptions.len().max(1)).max(1);
        for (number, subscription) in &mut conn.subscriptions {
            let mut budget = share;
            match subscription {
                Subscription::Live { queue, .. } => {
                    take_live(*number, queue, &mut budget, out);
                }
                Subscription::Durable { name } => {
                    if let Some(consumer) = self.consumers.get_mut(name) {
                        take_durable(
                            *number,
                            consumer,
                            &self.streams,
                            self.limits.in_flight_bytes,
                            &mut budget,
                            out,
                        );
                    }
                }
            }
        }
        out.flush_scratch();
        if out.pieces.is_empty()
            && let Some(Closing::Drained(code, reason)) = conn.closing
        {
            conn.end(&Frame::Goodbye { code, reason: reason.to_owned() });
            out.pieces.push_back(conn.control.split().freeze());
            return Flow::Close;
        }
        Flow::Open
    }

    // ---- looking inside

    pub(crate) fn publishers(&self) -> Vec<PublisherInfo> {
        let mut publishers: Vec<PublisherInfo> = self
            .conns
            .values()
            .filter_map(|conn| {
                let stream = conn.publishing?;
                Some(PublisherInfo {
                    client_id: conn.name().to_owned(),
                    stream,
                    epoch: self.streams.get(&stream)?.epoch,
                    pid: conn.pid,
                })
            })
            .collect();
        publishers.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        publishers
    }

    pub(crate) fn stats(&self) -> BrokerStats {
        let mut stats = BrokerStats::default();
        let mut ids: Vec<&ConnId> = self.conns.keys().collect();
        ids.sort_unstable();
        for id in ids {
            let conn = &self.conns[id];
            let Some(identity) = &conn.identity else { continue };
            stats.connections.push(ConnectionStats {
                connection: id.0,
                client_id: identity.client_id.clone(),
                role: identity.role,
                pid: conn.pid,
            });
            for (number, subscription) in &conn.subscriptions {
                if let Subscription::Live { patterns, queue, .. } = subscription {
                    stats.live.push(LiveStats {
                        connection: id.0,
                        client_id: identity.client_id.clone(),
                        subscription: *number,
                        patterns: patterns.clone(),
                        queued_events: queue.count(),
                        queued_bytes: queue.bytes(),
                        missed_total: queue.missed_total(),
                    });
                }
            }
        }
        for (id, stream) in &self.streams {
            let publisher = stream.publisher.and_then(|id| self.conns.get(&id));
            stats.streams.push(StreamStats {
                stream: *id,
                publisher: publisher.map(|conn| conn.name().to_owned()),
                epoch: stream.epoch.to_u64(),
                last: stream.last(),
                acked: stream.acked,
                retained_bytes: stream.retained_bytes,
                events_total: stream.entries_total,
                duplicates_total: stream.duplicates_total,
            });
        }
        stats.streams.sort_by_key(|stream| stream.stream);
        for (name, consumer) in &self.consumers {
            stats.consumers.push(ConsumerStats {
                name: name.clone(),
                attached: consumer.member.is_some(),
                cursors: consumer
                    .cursors
                    .iter()
                    .filter(|(_, cursor)| cursor.interested)
                    .map(|(stream, cursor)| CursorStats {
                        stream: *stream,
                        committed: cursor.committed,
                        delivered: cursor.sent,
                        in_flight_bytes: cursor.in_flight_bytes(),
                        lag: self
                            .streams
                            .get(stream)
                            .map_or(0, |stream| stream.last().since(cursor.committed)),
                    })
                    .collect(),
            });
        }
        stats
    }
}

fn wants(consumer: &Consumer, stream: &Stream) -> bool {
    stream.topics.iter().any(|topic| consumer.wanted.contains(*topic))
}

/// Walks a batch once: everything that is relied upon later is checked here, and the publisher's
/// aliases are replaced by the broker's.
fn check_batch(publish: Publish, aliases: &[Option<u16>]) -> Result<Chunk, Refusal> {
    let Publish { epoch, after, through, count, mut entries } = publish;
    let mut at = 0;
    let mut previous = after;
    let mut found = 0_u32;
    let mut payload_bytes = 0;
    let mut topics: Option<BatchTopics> = None;
    let mut last_alias = None;
    while at < entries.len() {
        let header = EntryHeader::read(&entries[at..]).or_else(|problem| {
            refuse(RefusalCode::Protocol, format!("a Publish frame is malformed: {problem}"))
        })?;
        if header.after() != previous {
            return refuse(
                RefusalCode::Protocol,
                format!("entry {} does not follow {previous}", header.sequence),
            );
        }
        let Some(ours) = aliases.get(usize::from(header.alias)).copied().flatten() else {
            return refuse(
                RefusalCode::Protocol,
                format!("alias {} has not been declared", header.alias),
            );
        };
        entries[at + ALIAS_AT..at + ALIAS_AT + 2].copy_from_slice(&ours.to_le_bytes());
        if last_alias != Some(ours) {
            last_alias = Some(ours);
            match &mut topics {
                Some(topics) => topics.insert(ours),
                None => topics = Some(BatchTopics::new(ours)),
            }
        }
        previous = header.sequence;
        payload_bytes += u64::from(header.payload_bytes);
        found += 1;
        at += header.entry_bytes();
    }
    let Some(topics) = topics else {
        return refuse(RefusalCode::Protocol, "a Publish frame holds no entries");
    };
    if found != count || previous != through {
        return refuse(
            RefusalCode::Protocol,
            format!(
                "a Publish frame announces {count} entries through {through} and holds {found} \
                 through {previous}"
            ),
        );
    }
    let entries = crate::queue::detached(entries.freeze());
    Ok(Chunk { epoch, after, through, count, payload_bytes, topics, entries })
}

/// What of `chunk` lies after `received`. An entry that stands for sequences on both sides stays,
/// shortened.
fn skip_duplicates(mut chunk: Chunk, received: Sequence) -> Chunk {
    if chunk.through <= received {
        return Chunk { count: 0, payload_bytes: 0, entries: Bytes::new(), ..chunk };
    }
    let wanted = {
        let mut all = TopicSet::default();
        chunk.topics.iter().for_each(|topic| all.insert(topic));
        all
    };
    let part = chunk.part(received, &wanted);
    let mut payload_bytes = 0;
    let mut entries = part.entries;
    if let Ok(first) = EntryHeader::read(&entries)
        && first.after() < received
    {
        let mut shortened = BytesMut::from(&entries[..]);
        let span = first.sequence.since(received);
        shortened[8..16].copy_from_slice(&span.to_le_bytes());
        entries = shortened.freeze();
    }
    for (header, _) in crate::wire::Entries::new(&entries).flatten() {
        payload_bytes += u64::from(header.payload_bytes);
    }
    chunk.after = received;
    chunk.count = part.count;
    chunk.payload_bytes = payload_bytes;
    chunk.entries = entries;
    chunk
}

fn push_live(
    conns: &mut HashMap<ConnId, Conn>,
    id: ConnId,
    number: u32,
    run: impl FnOnce(&TopicSet) -> Run,
) {
    if let Some(conn) = conns.get_mut(&id)
        && let Some(Subscription::Live { queue, wanted, .. }) = conn.subscriptions.get_mut(&number)
    {
        queue.push_run(run(wanted));
        conn.wake.notify_one();
    }
}

fn take_live(number: u32, queue: &mut LiveQueue<Bytes>, budget: &mut usize, out: &mut Output) {
    while *budget > 0
        && let Some(popped) = queue.pop()
    {
        match popped {
            Popped::Missed(count) => {
                Frame::Missed { subscription: number, count }.encode(&mut out.scratch);
            }
            Popped::Message(frame) => {
                *budget = budget.saturating_sub(frame.len());
                out.scratch.extend_from_slice(&frame);
            }
            Popped::Run(run) => {
                *budget = budget.saturating_sub(run.entries.len());
                out.deliver(Deliver {
                    subscription: number,
                    stream: run.stream,
                    epoch: run.epoch,
                    after: run.after,
                    through: run.through,
                    count: run.count,
                    entries: run.entries,
                });
            }
        }
    }
}

fn take_durable(
    number: u32,
    consumer: &mut Consumer,
    streams: &HashMap<StreamId, Stream>,
    in_flight_bytes_max: usize,
    budget: &mut usize,
    out: &mut Output,
) {
    for (stream_id, cursor) in &mut consumer.cursors {
        let Some(stream) = streams.get(stream_id).filter(|_| cursor.interested) else { continue };
        let mut chunks = stream.chunks_after(cursor.sent).peekable();
        while *budget > 0 && cursor.in_flight_bytes() < in_flight_bytes_max {
            let Some(chunk) = chunks.next() else { break };
            let after = chunk.after.max(cursor.sent);
            let mut deliver = Deliver {
                subscription: number,
                stream: *stream_id,
                epoch: chunk.epoch,
                after,
                through: chunk.through,
                count: 0,
                entries: Bytes::new(),
            };
            if chunk.wants_any(&consumer.wanted) {
                let part = chunk.part(after, &consumer.wanted);
                deliver.count = part.count;
                deliver.entries = part.entries;
            } else {
                // One empty delivery covers all that follows and is of no interest either.
                while let Some(next) = chunks.next_if(|next| {
                    next.epoch == deliver.epoch
                        && next.after == deliver.through
                        && !next.wants_any(&consumer.wanted)
                }) {
                    deliver.through = next.through;
                }
            }
            *budget = budget.saturating_sub(deliver.entries.len().max(1));
            cursor.delivered(deliver.through, deliver.entries.len());
            out.deliver(deliver);
        }
    }
}

#[cfg(test)]
mod tests;
