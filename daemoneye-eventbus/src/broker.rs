//! The broker, to be embedded.

pub(crate) mod core;
mod options;
mod session;
pub(crate) mod stats;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interprocess::local_socket::traits::tokio::Listener as _;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::options::BrokerOptions;
pub use self::stats::{
    BrokerStats, ConnectionStats, ConsumerStats, CursorStats, LiveStats, PublisherInfo,
    StreamStats, Traffic,
};

use self::core::{Core, CoreLimits};
use crate::client::{Client, ClientOptions, ConnectError};
use crate::transport::{self, Bound};
use crate::wire::GoodbyeCode;

/// A broker listening on a socket.
///
/// It runs on the tokio runtime it was bound in, one task a connection. Dropping it ends all
/// connections at once; [`Broker::shutdown`] does so with a goodbye.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What the broker's handle and its tasks have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: BrokerOptions,
    core: Mutex<Core>,
    began: Instant,
    /// How many sessions there are; the last to end lets shutdown finish.
    pub(crate) sessions: watch::Sender<usize>,
    /// Ends every session at once.
    pub(crate) abandon: watch::Sender<bool>,
    /// Ends accepting.
    stop: Notify,
}

impl Shared {
    /// The state. No await and nothing slow happens while it is held, and no other lock is taken.
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, told the time.
    pub(crate) fn core_now(&self) -> MutexGuard<'_, Core> {
        let mut core = self.core();
        core.set_time(self.began.elapsed());
        core
    }
}

/// Why a broker could not be bound to its socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The path does not fit into a socket address.
    #[error(
        "the socket path {socket:?} has {bytes} bytes; at most {max} fit. Choose a shorter one",
        max = transport::SOCKET_PATH_BYTES_MAX
    )]
    PathTooLong {
        /// The path.
        socket: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The directory is missing and cannot be made, or cannot be looked at.
    #[error("the directory {directory:?} for the socket is not usable")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else could replace the socket.
    #[error(
        "the directory {directory:?} is not safe for a socket: {problem}. Use a directory of your \
         own with mode 0700"
    )]
    UnsafeDirectory {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another broker has it.
    #[error(
        "another broker{} has the socket {socket:?}. Stop it, or choose another path",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The path.
        socket: PathBuf,
        /// The other broker's process, where known.
        pid: Option<u32>,
    },
    /// Something that is not a socket is in the way.
    #[error("{socket:?} exists and is not a socket. Remove it, or choose another path")]
    NotASocket {
        /// The path.
        socket: PathBuf,
    },
    /// The lock file could not be used.
    #[error("the lock file {path:?} is not usable")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The socket could not be bound.
    #[error("the socket {socket:?} could not be bound")]
    Io {
        /// The path.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Why a durable consumer is not forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// There is none of this name.
    #[error("no durable consumer {name} is known")]
    Unknown {
        /// The name.
        name: String,
    },
    /// It is there.
    #[error("the durable consumer {name} is attached; end its member first")]
    Attached {
        /// The name.
        name: String,
    },
    /// [`BrokerOptions::required_consumers`] names it: without it events would be lost.
    #[error("the durable consumer {name} is required and cannot be forgotten")]
    Required {
        /// The name.
        name: String,
    },
}

impl Broker {
    /// Takes the socket and begins to accept. Must be called within a tokio runtime.
    pub async fn bind(mut options: BrokerOptions) -> Result<Self, BindError> {
        let to_others = !options.allowed_uids.iter().all(|uid| transport::is_ours(*uid));
        let bound = transport::bind(&options.socket, to_others).await?;
        // Who is beyond what the process can hold is to be told so, and not to wait unheard.
        options.connections_max = options.connections_max.min(transport::connections_possible());
        let core = Core::new(CoreLimits::new(&options));
        let shared = Arc::new(Shared {
            options,
            core: Mutex::new(core),
            began: Instant::now(),
            sessions: watch::Sender::new(0),
            abandon: watch::Sender::new(false),
            stop: Notify::new(),
        });
        let accepting = tokio::spawn(accept(Arc::clone(&shared), bound));
        Ok(Self { shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.shared.options.socket
    }

    /// Connects without a socket, by the same protocol and session code. The only way to have
    /// [`Role::Agent`](crate::Role::Agent).
    pub async fn connect_in_process(&self, options: ClientOptions) -> Result<Client, ConnectError> {
        let (ours, theirs) = tokio::io::duplex(256 * 1024);
        session::spawn_in_process(&self.shared, ours);
        Client::connect_over(theirs, self.socket(), options).await
    }

    /// A look inside.
    #[must_use]
    pub fn stats(&self) -> BrokerStats {
        self.shared.core().stats()
    }

    /// A look inside with as many rows as fit into about `bytes_max` bytes of JSON; how many do not
    /// is [said](BrokerStats::left_out).
    #[must_use]
    pub fn stats_within(&self, bytes_max: usize) -> BrokerStats {
        self.shared.core().stats_within(bytes_max)
    }

    /// Who publishes now, by client id.
    #[must_use]
    pub fn publishers(&self) -> Vec<PublisherInfo> {
        self.shared.core().publishers()
    }

    /// Forgets a durable consumer that has gone for good. While it is known and away it holds back
    /// the acknowledgement of everything it has not committed.
    pub fn forget_consumer(&self, name: &str) -> Result<(), ForgetError> {
        self.shared.core().forget(name)
    }

    /// Stops accepting, removes the socket, lets every peer take what is queued for it, says
    /// goodbye and waits until all are gone, at most for `deadline`.
    pub async fn shutdown(mut self, deadline: Duration) {
        self.shared.stop.notify_one();
        let mut sessions = self.shared.sessions.subscribe();
        let ended = async {
            // Accepting ends first: it removes the socket, and no session begins after that.
            let _ = (&mut self.accepting).await;
            self.shared.core().drain_all(GoodbyeCode::Shutdown, "the broker is shutting down");
            let _ = sessions.wait_for(|count| *count == 0).await;
        };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            tracing::warn!(sessions = *self.shared.sessions.borrow(), "shutdown: cutting off");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.abandon.send_replace(true);
    }
}

async fn accept(shared: Arc<Shared>, bound: Bound) {
    loop {
        let accepted = tokio::select! {
            accepted = bound.listener.accept() => accepted,
            () = shared.stop.notified() => return,
        };
        match accepted {
            Ok(stream) => session::spawn(&shared, stream),
            Err(error) => {
                // Out of descriptors, most likely. Trying again at once would only spin.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
