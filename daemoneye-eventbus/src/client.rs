//! The client: one connection to a broker, and the handles on it.

mod error;
mod events;
mod io;
mod outbox;
mod publisher;
mod shared;
mod subscription;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use daemoneye_lib::stream::StreamId;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::{oneshot, watch};

pub use self::error::{
    CloseReason, ConnectError, Disconnected, PublishError, RequestError, SendError, SubscribeError,
};
pub use self::events::{EventRef, Events, LiveBatch};
pub use self::publisher::{Acks, Publisher};
pub use self::subscription::{DurableSubscription, LiveSubscription};

use self::io::ClientIo;
use self::shared::{Reply, Shared, Sink};
use self::subscription::{DurableSink, LiveSink};
use crate::event::{Committed, Message, Position, Role};
use crate::queue::QueueLimits;
use crate::rights;
use crate::topic::{Topic, TopicPattern};
use crate::transport;
use crate::wire::{
    Frame, FrameDecoder, GoodbyeCode, Hello, MESSAGE_BYTES_MAX, MessageFrame, SubscribeFrame,
    SubscribeKind, VERSION, Welcome,
};

/// How a client introduces itself and how long it waits.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Its name: 1 to 64 of `a-z`, `0-9`, `_` and `-`. A collector's topics carry it.
    pub client_id: String,
    /// What it wants to be allowed to do.
    pub role: Role,
    /// How long connecting and the broker's Welcome may take together. 5 s by default.
    pub connect_timeout: Duration,
    /// Whose socket and broker to trust, as users' numbers. `None`, the default: our own user and
    /// root, and only a socket that nobody else can use.
    pub trusted_uids: Option<Vec<u32>>,
    /// The longest frame taken from the broker. 32 MiB by default: twice what the broker takes, so
    /// that whatever it has taken it can also pass on.
    pub frame_bytes_max: usize,
}

impl ClientOptions {
    /// `client_id` in `role`, everything else by default.
    #[must_use]
    pub fn new(client_id: impl Into<String>, role: Role) -> Self {
        Self {
            client_id: client_id.into(),
            role,
            connect_timeout: Duration::from_secs(5),
            trusted_uids: None,
            frame_bytes_max: 2 * crate::wire::FRAME_BYTES_MAX,
        }
    }
}

/// The bounds of a live subscription's queue, both in the broker and in the client. When one is
/// reached the oldest items are dropped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveOptions {
    /// Bytes, headers of entries included. 4 MiB by default.
    pub max_bytes: u32,
    /// Events and messages. 65,536 by default.
    pub max_count: u32,
}

impl Default for LiveOptions {
    fn default() -> Self {
        Self { max_bytes: 4 * 1024 * 1024, max_count: 65_536 }
    }
}

/// A connection to a broker. Clones share it; it ends when the last clone, publisher and
/// subscription is dropped, or with [`Client::goodbye`].
///
/// A client does not reconnect: when the connection ends every handle says so, and
/// [`Client::closed`] says why.
#[derive(Debug, Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// Ends the connection when the last user of it is gone.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.say_goodbye();
    }
}

impl Client {
    /// Connects to the broker at `socket`.
    pub async fn connect(socket: &Path, options: ClientOptions) -> Result<Self, ConnectError> {
        let (client, _) = Self::connect_socket(socket, options, None).await?;
        Ok(client)
    }

    /// Connects as the publisher of a stream. Takes over from an older connection of the same
    /// stream, if there is one.
    pub async fn connect_publisher(
        socket: &Path,
        options: ClientOptions,
        position: Position,
    ) -> Result<(Self, Publisher), ConnectError> {
        let (client, welcome) = Self::connect_socket(socket, options, Some(position)).await?;
        let publisher = Publisher::new(Arc::clone(&client.handle), position, welcome);
        Ok((client, publisher))
    }

    async fn connect_socket(
        socket: &Path,
        options: ClientOptions,
        position: Option<Position>,
    ) -> Result<(Self, Welcome), ConnectError> {
        let timeout = options.connect_timeout;
        let connect = async {
            let trusted = options.trusted_uids.as_deref();
            let halves = transport::split(transport::connect(socket, trusted).await?);
            Self::introduce(halves, socket, options, position).await
        };
        tokio::time::timeout(timeout, connect).await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout { socket: socket.to_owned(), after: timeout })
        })
    }

    /// Over a pipe within our own process.
    pub(crate) async fn connect_over(
        stream: DuplexStream,
        socket: &Path,
        options: ClientOptions,
    ) -> Result<Self, ConnectError> {
        let timeout = options.connect_timeout;
        let introduce = Self::introduce(tokio::io::split(stream), socket, options, None);
        match tokio::time::timeout(timeout, introduce).await {
            Ok(done) => done.map(|(client, _)| client),
            Err(_) => Err(ConnectError::Timeout { socket: socket.to_owned(), after: timeout }),
        }
    }

    /// Says Hello, waits for the Welcome and starts the connection's task.
    async fn introduce<R, W>(
        (mut reader, mut writer): (R, W),
        socket: &Path,
        options: ClientOptions,
        position: Option<Position>,
    ) -> Result<(Self, Welcome), ConnectError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let hello = Frame::Hello(Hello {
            version_min: VERSION,
            version_max: VERSION,
            role: options.role,
            client_id: options.client_id.clone(),
            position,
        });
        let mut decoder = FrameDecoder::new(options.frame_bytes_max);
        let welcome = io::handshake(&mut reader, &mut writer, &mut decoder, &hello, socket).await?;
        let shared = Arc::new(Shared::new(options, &welcome));
        let heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms.max(1)));
        let io = ClientIo::new(Arc::clone(&shared));
        tokio::spawn(io.run(decoder, reader, writer, heartbeat));
        Ok((Self { handle: Arc::new(Handle { shared }) }, welcome))
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// Subscribes to what `patterns` select, from now on, without acknowledgement: a subscriber
    /// that is too slow misses the oldest and is told how many.
    pub async fn subscribe(
        &self,
        patterns: &[TopicPattern],
        options: LiveOptions,
    ) -> Result<LiveSubscription, SubscribeError> {
        let limits = QueueLimits {
            bytes_max: options.max_bytes as usize,
            count_max: options.max_count as usize,
        };
        let sink = Arc::new(LiveSink::new(limits));
        let kind =
            SubscribeKind::Live { bytes_max: options.max_bytes, count_max: options.max_count };
        let number = self.start(Sink::Live(Arc::clone(&sink)), patterns, kind).await?;
        Ok(LiveSubscription::new(Arc::clone(&self.handle), number, sink))
    }

    /// Subscribes as the durable consumer `name`: everything `patterns` select, in order, to be
    /// committed. `positions` is what the consumer has stored; delivery resumes after it. One
    /// member at a time: a second is refused.
    pub async fn subscribe_durable(
        &self,
        name: &str,
        patterns: &[TopicPattern],
        positions: Vec<(StreamId, Committed)>,
    ) -> Result<DurableSubscription, SubscribeError> {
        let sink = Arc::new(DurableSink::default());
        let kind = SubscribeKind::Durable { name: name.to_owned(), positions };
        let number = self.start(Sink::Durable(Arc::clone(&sink)), patterns, kind).await?;
        Ok(DurableSubscription::new(Arc::clone(&self.handle), number, sink))
    }

    async fn start(
        &self,
        sink: Sink,
        patterns: &[TopicPattern],
        kind: SubscribeKind,
    ) -> Result<u32, SubscribeError> {
        let (answer, answered) = oneshot::channel();
        let number = self.shared().begin_subscription(sink, answer)?;
        // If this future is dropped halfway the subscription is taken back.
        let guard = subscription::Guard::new(Arc::clone(&self.handle), number);
        let frame = SubscribeFrame { subscription: number, patterns: patterns.to_vec(), kind };
        self.shared().enqueue(&Frame::Subscribe(frame)).await?;
        match answered.await {
            Ok(Ok(())) => {
                guard.keep();
                Ok(number)
            }
            Ok(Err(refused)) => Err(SubscribeError::Refused {
                code: refused.code,
                retry: refused.retry,
                reason: refused.reason,
            }),
            Err(_) => Err(self.shared().disconnected().await.into()),
        }
    }

    /// Sends a control message and does not wait for anything. Returns when it is queued for
    /// writing. Cancel-safe: dropped before that, nothing is sent.
    pub async fn send(&self, topic: &Topic, payload: Bytes) -> Result<(), SendError> {
        self.say(topic, payload, false).await
    }

    /// As [`send`](Self::send), and the broker keeps the message, in place of the last one kept on
    /// this topic, for those who subscribe later. An empty payload is not kept: it ends keeping.
    pub async fn send_retained(&self, topic: &Topic, payload: Bytes) -> Result<(), SendError> {
        if let Err(rule) = rights::may_retain(self.shared().options.role) {
            return Err(SendError::NotAllowed { topic: topic.clone(), rule: rule.to_owned() });
        }
        self.say(topic, payload, true).await
    }

    async fn say(&self, topic: &Topic, payload: Bytes, retained: bool) -> Result<(), SendError> {
        self.check(topic, &payload)?;
        let message = MessageFrame {
            subscription: 0,
            correlation: 0,
            retained,
            topic: topic.clone(),
            reply_to: None,
            payload,
        };
        Ok(self.shared().enqueue(&Frame::Message(message)).await?)
    }

    /// Sends a request and waits for its first answer.
    pub async fn request(
        &self,
        topic: &Topic,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        self.check(topic, &payload)?;
        let shared = self.shared();
        let (request, answered) = shared.begin_request();
        let message = MessageFrame {
            subscription: 0,
            correlation: request.correlation,
            retained: false,
            topic: topic.clone(),
            reply_to: Some(shared.reply_topic.clone()),
            payload,
        };
        let answer = async {
            shared.enqueue(&Frame::Message(message)).await?;
            match answered.await {
                Ok(Reply::Answer(payload)) => Ok(payload),
                Ok(Reply::NoResponder) => Err(RequestError::NoResponder { topic: topic.clone() }),
                Ok(Reply::Limit(reason)) => {
                    Err(RequestError::Limit { topic: topic.clone(), reason })
                }
                Ok(Reply::NotAllowed(rule)) => {
                    Err(SendError::NotAllowed { topic: topic.clone(), rule }.into())
                }
                Err(_) => Err(shared.disconnected().await.into()),
            }
        };
        tokio::time::timeout(timeout, answer)
            .await
            .unwrap_or_else(|_| Err(RequestError::Timeout { topic: topic.clone(), after: timeout }))
    }

    /// Answers a message. Does nothing if no answer is awaited.
    pub async fn reply(&self, message: &Message, payload: Bytes) -> Result<(), SendError> {
        let Some(reply_to) = &message.reply_to else { return Ok(()) };
        self.check(reply_to, &payload)?;
        let answer = MessageFrame {
            subscription: 0,
            correlation: message.correlation,
            retained: false,
            topic: reply_to.clone(),
            reply_to: None,
            payload,
        };
        Ok(self.shared().enqueue(&Frame::Message(answer)).await?)
    }

    fn check(&self, topic: &Topic, payload: &Bytes) -> Result<(), SendError> {
        let options = &self.shared().options;
        rights::may_send(options.role, &options.client_id, topic).map_err(|rule| {
            SendError::NotAllowed { topic: topic.clone(), rule: rule.to_owned() }
        })?;
        let (bytes, limit) = (payload.len(), MESSAGE_BYTES_MAX);
        if bytes > limit { Err(SendError::TooLong { bytes, limit }) } else { Ok(()) }
    }

    /// Waits until the connection has ended and says why. Cancel-safe.
    pub async fn closed(&self) -> CloseReason {
        self.shared().disconnected().await.0
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared().close_reason().is_some()
    }

    /// Ends the connection in order: what has been queued is written, then a goodbye. Returns when
    /// the connection is closed, after a second at most.
    pub async fn goodbye(self) {
        self.shared().say_goodbye();
        self.closed().await;
    }
}

/// The frame that says we are done.
pub(crate) fn goodbye_frame() -> Frame {
    Frame::Goodbye { code: GoodbyeCode::Done, reason: String::new() }
}

/// Newest acknowledgement, as the publisher watches it.
pub(crate) type AckWatch = watch::Sender<Option<crate::event::Ack>>;
