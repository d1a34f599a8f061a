//! What can go wrong, sorted by what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::topic::Topic;
use crate::wire::{GoodbyeCode, RefusalCode, WireError};

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no such socket.
    #[error(
        "there is no socket at {socket:?}: the broker (daemoneye-agent) is not running, or listens elsewhere"
    )]
    NoSocket {
        /// The path.
        socket: PathBuf,
    },
    /// The socket is there, and nobody listens on it.
    #[error(
        "nobody listens on {socket:?}: the broker (daemoneye-agent) has ended without removing it; start it again"
    )]
    NobodyListening {
        /// The path.
        socket: PathBuf,
    },
    /// The system does not let us.
    #[error("no permission to use {socket:?}: run as the user the broker runs as, or as root")]
    Permission {
        /// The path.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The path does not fit into a socket address.
    #[error("the socket path {socket:?} has {bytes} bytes; at most {max} fit. Choose a shorter one", max = crate::transport::SOCKET_PATH_BYTES_MAX)]
    PathTooLong {
        /// The path.
        socket: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The socket or its server belongs to somebody else.
    #[error("{socket:?} is not trusted: {problem}")]
    Untrusted {
        /// The path.
        socket: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The broker does not want us, or not yet.
    #[error("the broker at {socket:?} refused: {reason}{}", if *retry { " (it may be tried again)" } else { "" })]
    Refused {
        /// The path.
        socket: PathBuf,
        /// Why.
        code: RefusalCode,
        /// Whether trying the same again later may succeed.
        retry: bool,
        /// Why, for people.
        reason: String,
    },
    /// The broker did not answer in time.
    #[error(
        "the broker at {socket:?} did not answer within {after:?}; it may be overloaded or stopped"
    )]
    Timeout {
        /// The path.
        socket: PathBuf,
        /// How long we waited.
        after: Duration,
    },
    /// What answers does not speak our protocol.
    #[error(
        "what listens on {socket:?} does not speak this bus protocol; is it another program, or of another version?"
    )]
    Protocol {
        /// The path.
        socket: PathBuf,
        /// What was wrong.
        source: WireError,
    },
    /// Anything else.
    #[error("the connection to {socket:?} failed")]
    Io {
        /// The path.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl ConnectError {
    pub(crate) fn from_io(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NoSocket { socket },
            io::ErrorKind::ConnectionRefused => Self::NobodyListening { socket },
            io::ErrorKind::PermissionDenied => Self::Permission { socket, source },
            _ => Self::Io { socket, source },
        }
    }

    /// Whether the same attempt may succeed later without anybody changing anything here.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        match self {
            Self::NoSocket { .. }
            | Self::NobodyListening { .. }
            | Self::Timeout { .. }
            | Self::Io { .. } => true,
            Self::Refused { retry, .. } => *retry,
            Self::Permission { .. }
            | Self::PathTooLong { .. }
            | Self::Untrusted { .. }
            | Self::Protocol { .. } => false,
        }
    }
}

/// Why a connection has ended.
#[derive(Debug, Clone)]
pub enum CloseReason {
    /// We ended it.
    Done,
    /// The broker ended it on purpose. [`GoodbyeCode::Shutdown`]: it may come back.
    Goodbye {
        /// Why.
        code: GoodbyeCode,
        /// Why, for people.
        reason: String,
    },
    /// Another connection of the same stream took over.
    Superseded,
    /// The broker found that we broke a rule.
    Refused {
        /// Which.
        code: RefusalCode,
        /// Whether trying the same again later may succeed.
        retry: bool,
        /// Why, for people.
        reason: String,
    },
    /// The connection broke: the broker was killed, most likely, and may come back.
    Lost(Arc<io::Error>),
    /// The broker was silent for too long.
    Silent,
    /// The broker sent something that is not the protocol.
    Protocol(WireError),
}

impl CloseReason {
    /// Whether connecting again is worth trying without a change on our side.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Goodbye { .. } | Self::Lost(_) | Self::Silent => true,
            Self::Refused { retry, .. } => *retry,
            Self::Done | Self::Superseded | Self::Protocol(_) => false,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "this side ended it"),
            Self::Goodbye { code: GoodbyeCode::Shutdown, .. } => {
                write!(f, "the broker is shutting down")
            }
            Self::Goodbye { reason, .. } => write!(f, "the broker ended it: {reason}"),
            Self::Superseded => write!(f, "another connection took over the stream"),
            Self::Refused { reason, .. } => write!(f, "the broker refused: {reason}"),
            Self::Lost(error) => write!(f, "it broke: {error}"),
            Self::Silent => write!(f, "the broker was silent for too long"),
            Self::Protocol(error) => write!(f, "the broker broke the protocol: {error}"),
        }
    }
}

/// The connection has ended.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the connection to the broker has ended: {0}")]
pub struct Disconnected(pub CloseReason);

/// Why a batch was not taken for publishing. Nothing of it has been sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The connection has ended.
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
    /// The broker takes no frame that long: publish fewer entries at once.
    #[error("a batch of {bytes} bytes exceeds the broker's limit of {limit}")]
    TooLong {
        /// Its encoded length.
        bytes: usize,
        /// The broker's limit.
        limit: usize,
    },
    /// The batch is not what [`Batch`](crate::Batch) promises.
    #[error("not a batch: {0}")]
    Malformed(&'static str),
    /// The role may not publish on the topic.
    #[error("{topic} may not be published: {rule}")]
    NotAllowed {
        /// The topic.
        topic: Topic,
        /// The rule.
        rule: &'static str,
    },
}

/// Why a subscription was not made.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The broker does not allow it.
    #[error("the broker refused the subscription: {reason}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// Whether trying the same again later may succeed.
        retry: bool,
        /// Why, for people.
        reason: String,
    },
    /// The connection has ended.
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
}

/// Why a message was not sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The role may not send to the topic.
    #[error("a message to {topic} is not allowed: {rule}")]
    NotAllowed {
        /// The topic.
        topic: Topic,
        /// The rule.
        rule: String,
    },
    /// No broker takes a message that long.
    #[error("a message of {bytes} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The connection has ended.
    #[error(transparent)]
    Disconnected(#[from] Disconnected),
}

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody who could answer subscribes to the topic.
    #[error("nobody answers requests on {topic}")]
    NoResponder {
        /// The topic.
        topic: Topic,
    },
    /// No answer came in time.
    #[error("no answer to a request on {topic} within {after:?}")]
    Timeout {
        /// The topic.
        topic: Topic,
        /// How long we waited.
        after: Duration,
    },
    /// The broker does not pass it on now: a limit is reached, of requests in a time most likely.
    #[error("a request on {topic} was not passed on: {reason}")]
    Limit {
        /// The topic.
        topic: Topic,
        /// Which limit.
        reason: String,
    },
    /// It was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
}

impl From<Disconnected> for RequestError {
    fn from(disconnected: Disconnected) -> Self {
        Self::Send(disconnected.into())
    }
}
