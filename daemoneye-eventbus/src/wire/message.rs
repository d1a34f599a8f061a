//! The messages: what each kind of frame holds.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use serde::{Deserialize, Serialize};

use super::fields::{Fields, Problem, put_text};
use super::{HEADER_BYTES, MAGIC, OPTIONAL, RawFrame, WireError};
use crate::event::{Ack, AckLevel, Committed, Position, Role};
use crate::topic::{Topic, TopicPattern};

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($(#[$doc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr($int)]
        pub enum $name {
            $($(#[$doc])* $variant = $number,)*
        }

        impl $name {
            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> $int {
                self as $int
            }

            /// Reads the number on the wire; `None` for one this version does not know.
            #[must_use]
            pub const fn from_number(number: $int) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// The kinds of frames.
    Kind: u8 {
        /// Client → broker, first: who I am.
        Hello = 1,
        /// Broker → client: you are in, and this is where we stand.
        Welcome = 2,
        /// Broker → client: no, and why; for the connection or for one subscription.
        Refused = 3,
        /// Either way: a topic's alias.
        Declare = 4,
        /// Client → broker: entries of the publisher's stream.
        Publish = 5,
        /// Broker → client: cumulative acknowledgement.
        Ack = 6,
        /// Client → broker.
        Subscribe = 7,
        /// Broker → client: the subscription stands.
        Subscribed = 8,
        /// Client → broker: the subscription ends.
        Unsubscribe = 9,
        /// Broker → client: entries for one subscription.
        Deliver = 10,
        /// Client → broker: a durable consumer's cumulative commit.
        Commit = 11,
        /// Broker → client: a live subscription dropped this many.
        Missed = 12,
        /// Either way: a control message.
        Message = 13,
        /// Broker → client: a message could not be delivered.
        Undeliverable = 14,
        /// Either way: are you there?
        Ping = 15,
        /// Either way: yes.
        Pong = 16,
        /// Either way: I end this connection on purpose.
        Goodbye = 17,
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

numbered! {
    /// Why a connection or a subscription is refused.
    RefusalCode: u16 {
        /// No protocol version in common.
        Version = 1,
        /// A required consumer is not attached yet; try again.
        NotReady = 2,
        /// The stream has been published by a later opening of its log.
        StaleEpoch = 3,
        /// The durable consumer already has a member.
        Occupied = 4,
        /// The role or the peer's user may not do this.
        NotAllowed = 5,
        /// A limit of the broker is reached.
        Limit = 6,
        /// The publisher exceeded its credit.
        Credit = 7,
        /// The peer broke the protocol.
        Protocol = 8,
        /// The log has grown differently from what was published of this stream before.
        Diverged = 9,
    }
}

numbered! {
    /// Why a side ends a connection on purpose.
    GoodbyeCode: u16 {
        /// The broker stops; it may come back.
        Shutdown = 1,
        /// Another connection of the same stream took over.
        Superseded = 2,
        /// The client is done.
        Done = 3,
        /// The peer did not read what it had asked for.
        Overflow = 4,
        /// The peer was silent for too long.
        Silent = 5,
        /// A consumer has come that holds a position the publisher has not compared with its log:
        /// connect again.
        Reposition = 6,
    }
}

numbered! {
    /// Why a message was not delivered.
    UndeliverableCode: u16 {
        /// Nobody who could answer subscribes to the topic.
        NoResponder = 1,
        /// The sender's role may not send to the topic.
        NotAllowed = 2,
        /// A limit is reached: too many requests in a short time, or a message too long.
        Limit = 3,
    }
}

/// A decoded frame.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of docs/bus-protocol.md, named alike")]
pub enum Frame {
    Hello(Hello),
    Welcome(Welcome),
    Refused(Refused),
    Declare { alias: u16, topic: Topic },
    Publish(Publish),
    Ack(Ack),
    Subscribe(SubscribeFrame),
    Subscribed { subscription: u32 },
    Unsubscribe { subscription: u32, forget: bool },
    Deliver(Deliver),
    Commit { subscription: u32, stream: StreamId, position: Committed },
    Missed { subscription: u32, count: u64 },
    Message(MessageFrame),
    Undeliverable(Undeliverable),
    Ping { token: u64 },
    Pong { token: u64 },
    Goodbye { code: GoodbyeCode, reason: String },
}

/// The client's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The least protocol version it speaks.
    pub version_min: u16,
    /// The greatest.
    pub version_max: u16,
    /// What it wants to be allowed to do.
    pub role: Role,
    /// Its name: one topic segment of at most 64 bytes.
    pub client_id: String,
    /// What it publishes, if it publishes events.
    pub position: Option<Position>,
}

/// The broker's answer to a Hello it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version both use from now on.
    pub version: u16,
    /// The number of this connection; replies are awaited at `reply.<number>`.
    pub connection: u64,
    /// Unacknowledged bytes of entries, headers included, a publisher may have outstanding.
    pub credit_bytes: u64,
    /// The longest frame body the broker takes.
    pub frame_bytes_max: u32,
    /// Each side sends something at least this often.
    pub heartbeat_ms: u32,
    /// Where the publisher resumes: the least committed position of the durable consumers.
    pub committed: Option<Committed>,
    /// Every position on the publisher's stream that is held downstream.
    pub positions: Vec<Committed>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The subscription that is refused; 0 for the connection, which then ends.
    pub subscription: u32,
    /// Why.
    pub code: RefusalCode,
    /// Whether trying the same again later may succeed.
    pub retry: bool,
    /// Why, for people.
    pub reason: String,
}

/// Entries of the connection's stream. The rules are those of [`Batch`](crate::Batch).
#[derive(Debug, PartialEq, Eq)]
pub struct Publish {
    /// The epoch in which all of them were written.
    pub epoch: Epoch,
    /// The sequence before the first.
    pub after: Sequence,
    /// The sequence of the last.
    pub through: Sequence,
    /// How many there are.
    pub count: u32,
    /// The entries; walk them with [`Entries`](super::Entries). Writable, for the broker puts its
    /// own aliases in.
    pub entries: BytesMut,
}

/// A subscription asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeFrame {
    /// The client's number for it, not 0.
    pub subscription: u32,
    /// What it selects.
    pub patterns: Vec<TopicPattern>,
    /// Live or durable.
    pub kind: SubscribeKind,
}

/// The two kinds of subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscribeKind {
    /// A bounded queue that drops its oldest.
    Live {
        /// The queue's bound in bytes.
        bytes_max: u32,
        /// The queue's bound in items.
        count_max: u32,
    },
    /// Everything in order, to be committed.
    Durable {
        /// The consumer's name.
        name: String,
        /// What it has committed.
        positions: Vec<(StreamId, Committed)>,
    },
}

/// Entries for one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deliver {
    /// Whose.
    pub subscription: u32,
    /// The entries' stream.
    pub stream: StreamId,
    /// The epoch in which all of them were written.
    pub epoch: Epoch,
    /// The sequence before the first one covered.
    pub after: Sequence,
    /// The last one covered.
    pub through: Sequence,
    /// How many entries there are.
    pub count: u32,
    /// The entries; walk them with [`Entries`](super::Entries).
    pub entries: Bytes,
}

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageFrame {
    /// The receiver's subscription it matched; 0 from clients and for replies.
    pub subscription: u32,
    /// The requester's number for the request; 0 if no answer is awaited.
    pub correlation: u64,
    /// To the broker: keep it for those who subscribe later. From the broker: it was sent before
    /// you subscribed.
    pub retained: bool,
    /// What it is about.
    pub topic: Topic,
    /// Where the answer is awaited.
    pub reply_to: Option<Topic>,
    /// Its contents.
    pub payload: Bytes,
}

/// A message that went nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undeliverable {
    /// The request's number; 0 if it was none.
    pub correlation: u64,
    /// Why.
    pub code: UndeliverableCode,
    /// Where it was to go.
    pub topic: Topic,
    /// Why, for people; names the rule.
    pub reason: String,
}

const STREAM_BYTES: usize = 16;
const COMMITTED_BYTES: usize = 16;

impl Frame {
    /// Reads a frame's body. `Ok(None)`: the kind is unknown, but the sender says it may be
    /// skipped.
    pub fn decode(raw: RawFrame) -> Result<Option<Self>, WireError> {
        let Some(kind) = Kind::from_number(raw.kind) else {
            return if raw.flags & OPTIONAL != 0 {
                Ok(None)
            } else {
                Err(WireError::UnknownKind { kind: raw.kind })
            };
        };
        let mut body = raw.body;
        let frame = Self::decode_body(kind, &mut Fields::new(&mut body));
        let frame = match frame {
            Ok(_) if !body.is_empty() => Err("bytes follow its last field"),
            other => other,
        };
        frame.map(Some).map_err(|problem| WireError::Malformed { kind, problem })
    }

    fn decode_body(kind: Kind, f: &mut Fields<'_>) -> Result<Self, Problem> {
        Ok(match kind {
            Kind::Hello => {
                if f.array()? != MAGIC {
                    return Err("it does not begin with DEYE");
                }
                Self::Hello(Hello {
                    version_min: f.u16()?,
                    version_max: f.u16()?,
                    role: match f.u8()? {
                        0 => Role::Subscriber,
                        1 => Role::Collector,
                        2 => Role::Agent,
                        _ => return Err("the role is unknown"),
                    },
                    position: if f.flag()? {
                        Some(Position {
                            stream: f.stream()?,
                            epoch: f.epoch()?,
                            first_unacknowledged: f.sequence()?,
                            last: f.sequence()?,
                        })
                    } else {
                        None
                    },
                    client_id: f.text()?,
                })
            }
            Kind::Welcome => Self::Welcome(Welcome {
                version: f.u16()?,
                connection: f.u64()?,
                credit_bytes: f.u64()?,
                frame_bytes_max: f.u32()?,
                heartbeat_ms: f.u32()?,
                committed: if f.flag()? { Some(committed(f)?) } else { None },
                positions: (0..f.count(COMMITTED_BYTES)?)
                    .map(|_| committed(f))
                    .collect::<Result<_, _>>()?,
            }),
            Kind::Refused => Self::Refused(Refused {
                subscription: f.u32()?,
                code: RefusalCode::from_number(f.u16()?).ok_or("the refusal code is unknown")?,
                retry: f.flag()?,
                reason: printable(&f.text()?),
            }),
            Kind::Declare => Self::Declare { alias: f.u16()?, topic: topic(f)? },
            Kind::Publish => Self::Publish(Publish {
                epoch: f.epoch()?,
                after: f.sequence()?,
                through: f.sequence()?,
                count: f.u32()?,
                entries: f.rest_mut(),
            }),
            Kind::Ack => Self::Ack(Ack {
                sequence: f.sequence()?,
                level: match f.u8()? {
                    1 => AckLevel::Accepted,
                    2 => AckLevel::Committed,
                    _ => return Err("the level is unknown"),
                },
            }),
            Kind::Subscribe => {
                let subscription = f.u32()?;
                let patterns = (0..f.count(2)?)
                    .map(|_| TopicPattern::new(&f.text()?).map_err(|_| "a pattern is not valid"))
                    .collect::<Result<_, _>>()?;
                let kind = match f.u8()? {
                    0 => SubscribeKind::Live { bytes_max: f.u32()?, count_max: f.u32()? },
                    1 => SubscribeKind::Durable {
                        name: f.text()?,
                        positions: (0..f.count(STREAM_BYTES + COMMITTED_BYTES)?)
                            .map(|_| Ok((f.stream()?, committed(f)?)))
                            .collect::<Result<_, Problem>>()?,
                    },
                    _ => return Err("the kind of subscription is unknown"),
                };
                Self::Subscribe(SubscribeFrame { subscription, patterns, kind })
            }
            Kind::Subscribed => Self::Subscribed { subscription: f.u32()? },
            Kind::Unsubscribe => Self::Unsubscribe { subscription: f.u32()?, forget: f.flag()? },
            Kind::Deliver => Self::Deliver(Deliver {
                subscription: f.u32()?,
                count: f.u32()?,
                stream: f.stream()?,
                epoch: f.epoch()?,
                after: f.sequence()?,
                through: f.sequence()?,
                entries: f.rest(),
            }),
            Kind::Commit => Self::Commit {
                subscription: f.u32()?,
                stream: f.stream()?,
                position: committed(f)?,
            },
            Kind::Missed => Self::Missed { subscription: f.u32()?, count: f.u64()? },
            Kind::Message => Self::Message(MessageFrame {
                subscription: f.u32()?,
                correlation: f.u64()?,
                retained: f.flag()?,
                topic: topic(f)?,
                reply_to: match f.text()?.as_str() {
                    "" => None,
                    text => Some(Topic::new(text).map_err(|_| "the reply topic is not valid")?),
                },
                payload: f.rest(),
            }),
            Kind::Undeliverable => Self::Undeliverable(Undeliverable {
                correlation: f.u64()?,
                code: UndeliverableCode::from_number(f.u16()?).ok_or("the code is unknown")?,
                topic: topic(f)?,
                reason: printable(&f.text()?),
            }),
            Kind::Ping => Self::Ping { token: f.u64()? },
            Kind::Pong => Self::Pong { token: f.u64()? },
            Kind::Goodbye => Self::Goodbye {
                code: GoodbyeCode::from_number(f.u16()?).ok_or("the goodbye code is unknown")?,
                reason: printable(&f.text()?),
            },
        })
    }

    /// The frame's kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Refused(_) => Kind::Refused,
            Self::Declare { .. } => Kind::Declare,
            Self::Publish(_) => Kind::Publish,
            Self::Ack(_) => Kind::Ack,
            Self::Subscribe(_) => Kind::Subscribe,
            Self::Subscribed { .. } => Kind::Subscribed,
            Self::Unsubscribe { .. } => Kind::Unsubscribe,
            Self::Deliver(_) => Kind::Deliver,
            Self::Commit { .. } => Kind::Commit,
            Self::Missed { .. } => Kind::Missed,
            Self::Message(_) => Kind::Message,
            Self::Undeliverable(_) => Kind::Undeliverable,
            Self::Ping { .. } => Kind::Ping,
            Self::Pong { .. } => Kind::Pong,
            Self::Goodbye { .. } => Kind::Goodbye,
        }
    }

    /// Appends the frame, header included, to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = begin(out, self.kind());
        match self {
            Self::Hello(hello) => {
                out.put_slice(&MAGIC);
                out.put_u16_le(hello.version_min);
                out.put_u16_le(hello.version_max);
                out.put_u8(match hello.role {
                    Role::Subscriber => 0,
                    Role::Collector => 1,
                    Role::Agent => 2,
                });
                out.put_u8(u8::from(hello.position.is_some()));
                if let Some(position) = &hello.position {
                    out.put_slice(&position.stream.to_bytes());
                    out.put_u64_le(position.epoch.to_u64());
                    out.put_u64_le(position.first_unacknowledged.0);
                    out.put_u64_le(position.last.0);
                }
                put_text(out, &hello.client_id);
            }
            Self::Welcome(welcome) => {
                out.put_u16_le(welcome.version);
                out.put_u64_le(welcome.connection);
                out.put_u64_le(welcome.credit_bytes);
                out.put_u32_le(welcome.frame_bytes_max);
                out.put_u32_le(welcome.heartbeat_ms);
                out.put_u8(u8::from(welcome.committed.is_some()));
                if let Some(position) = &welcome.committed {
                    put_committed(out, position);
                }
                out.put_u32_le(welcome.positions.len() as u32);
                for position in &welcome.positions {
                    put_committed(out, position);
                }
            }
            Self::Refused(refused) => {
                out.put_u32_le(refused.subscription);
                out.put_u16_le(refused.code.number());
                out.put_u8(u8::from(refused.retry));
                put_text(out, &refused.reason);
            }
            Self::Declare { alias, topic } => {
                out.put_u16_le(*alias);
                put_text(out, topic.as_str());
            }
            Self::Publish(publish) => {
                put_publish_head(out, publish.epoch, publish.after, publish.through, publish.count);
                out.put_slice(&publish.entries);
            }
            Self::Ack(ack) => {
                out.put_u64_le(ack.sequence.0);
                out.put_u8(match ack.level {
                    AckLevel::Accepted => 1,
                    AckLevel::Committed => 2,
                });
            }
            Self::Subscribe(subscribe) => {
                out.put_u32_le(subscribe.subscription);
                out.put_u32_le(subscribe.patterns.len() as u32);
                for pattern in &subscribe.patterns {
                    put_text(out, pattern.as_str());
                }
                match &subscribe.kind {
                    SubscribeKind::Live { bytes_max, count_max } => {
                        out.put_u8(0);
                        out.put_u32_le(*bytes_max);
                        out.put_u32_le(*count_max);
                    }
                    SubscribeKind::Durable { name, positions } => {
                        out.put_u8(1);
                        put_text(out, name);
                        out.put_u32_le(positions.len() as u32);
                        for (stream, position) in positions {
                            out.put_slice(&stream.to_bytes());
                            put_committed(out, position);
                        }
                    }
                }
            }
            Self::Subscribed { subscription } => out.put_u32_le(*subscription),
            Self::Unsubscribe { subscription, forget } => {
                out.put_u32_le(*subscription);
                out.put_u8(u8::from(*forget));
            }
            Self::Deliver(deliver) => {
                put_deliver_head(out, deliver);
                out.put_slice(&deliver.entries);
            }
            Self::Commit { subscription, stream, position } => {
                out.put_u32_le(*subscription);
                out.put_slice(&stream.to_bytes());
                put_committed(out, position);
            }
            Self::Missed { subscription, count } => {
                out.put_u32_le(*subscription);
                out.put_u64_le(*count);
            }
            Self::Message(message) => {
                out.put_u32_le(message.subscription);
                out.put_u64_le(message.correlation);
                out.put_u8(u8::from(message.retained));
                put_text(out, message.topic.as_str());
                put_text(out, message.reply_to.as_ref().map_or("", Topic::as_str));
                out.put_slice(&message.payload);
            }
            Self::Undeliverable(undeliverable) => {
                out.put_u64_le(undeliverable.correlation);
                out.put_u16_le(undeliverable.code.number());
                put_text(out, undeliverable.topic.as_str());
                put_text(out, &undeliverable.reason);
            }
            Self::Ping { token } | Self::Pong { token } => out.put_u64_le(*token),
            Self::Goodbye { code, reason } => {
                out.put_u16_le(code.number());
                put_text(out, reason);
            }
        }
        finish(out, start, 0);
    }
}

/// Appends a Publish frame whose entries `append` writes, so that they need not exist encoded
/// beforehand.
pub(crate) fn publish_frame(
    out: &mut BytesMut,
    epoch: Epoch,
    after: Sequence,
    through: Sequence,
    count: u32,
    append: impl FnOnce(&mut BytesMut),
) {
    let start = begin(out, Kind::Publish);
    put_publish_head(out, epoch, after, through, count);
    append(out);
    finish(out, start, 0);
}

/// Appends header and fixed fields of a Deliver frame whose entries the caller puts behind them.
pub(crate) fn deliver_head(out: &mut BytesMut, deliver: &Deliver) {
    let start = begin(out, Kind::Deliver);
    put_deliver_head(out, deliver);
    finish(out, start, deliver.entries.len());
}

fn put_publish_head(
    out: &mut BytesMut,
    epoch: Epoch,
    after: Sequence,
    through: Sequence,
    count: u32,
) {
    out.put_u64_le(epoch.to_u64());
    out.put_u64_le(after.0);
    out.put_u64_le(through.0);
    out.put_u32_le(count);
}

fn put_deliver_head(out: &mut BytesMut, deliver: &Deliver) {
    out.put_u32_le(deliver.subscription);
    out.put_u32_le(deliver.count);
    out.put_slice(&deliver.stream.to_bytes());
    out.put_u64_le(deliver.epoch.to_u64());
    out.put_u64_le(deliver.after.0);
    out.put_u64_le(deliver.through.0);
}

fn begin(out: &mut BytesMut, kind: Kind) -> usize {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u8(kind.number());
    out.put_u8(0);
    out.put_u16_le(0);
    start
}

/// Fills in the length of the frame begun at `start`; `more` bytes of the body follow elsewhere.
fn finish(out: &mut BytesMut, start: usize, more: usize) {
    let body_bytes = (out.len() - start - HEADER_BYTES + more) as u32;
    out[start..start + 4].copy_from_slice(&body_bytes.to_le_bytes());
}

fn committed(f: &mut Fields<'_>) -> Result<Committed, Problem> {
    Ok(Committed { sequence: f.sequence()?, epoch: f.epoch()? })
}

fn put_committed(out: &mut BytesMut, position: &Committed) {
    out.put_u64_le(position.sequence.0);
    out.put_u64_le(position.epoch.to_u64());
}

fn topic(f: &mut Fields<'_>) -> Result<Topic, Problem> {
    Topic::new(&f.text()?).map_err(|_| "the topic is not valid")
}

/// A peer's text made fit for logs and terminals: no control characters, at most 1 KiB.
fn printable(text: &str) -> String {
    let cut = text.floor_char_boundary(1024);
    text[..cut].chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
