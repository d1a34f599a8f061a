//! The running agent: broker, store, supervisor and control, begun and ended in order.
//!
//! Beginning: take the state directory, open the store, bind the broker (which lets no collector
//! in before the store is attached), listen to control messages, attach the store, start or adopt
//! procmond. Ending: procmond first, while its last events are still stored; then what is queued;
//! then the broker, with a goodbye; the store last.

mod consumer;
mod control;
mod signals;

use std::ffi::OsString;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daemoneye_eventbus::{BindError, Broker, BrokerOptions};
use daemoneye_lib::paths::{BROKER_SOCKET_VARIABLE, WAL_LOCK_FILE};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use self::consumer::Consumer;
use self::control::{BusConnections, Control};
use crate::cli::events::Follower;
use crate::collectors::Collectors;
use crate::config::{CollectorsConfig, Config};
use crate::render::{EventPrinter, Format};
use crate::shutdown::{Shutdown, ShutdownTrigger};
use crate::state_dir::{InstanceLock, StateDirError};
use crate::store::{EventFilter, EventReader, Store, StoreError};
use crate::supervisor::{
    BackoffOptions, Supervisor, SupervisorOptions, SupervisorState, SupervisorStatus,
};

/// The name under which the store consumes events. Publishers wait until it is attached.
pub const EVENT_STORE: &str = "event-store";

/// The variable that says where procmond's log is.
const WAL_DIR_VARIABLE: &str = "PROCMOND_WAL__DIR";

/// How long what has reached the broker may take to be stored when the agent ends.
const DRAIN: Duration = Duration::from_secs(5);

/// How long peers may take to read their goodbye, and a disk to take what is queued.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How often a follower on our own standard output looks for new events.
const FOLLOW_POLL: Duration = Duration::from_millis(50);

/// Which procmond to run.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The executable.
    pub program: PathBuf,
    /// How to run it.
    pub collectors: CollectorsConfig,
}

/// Showing events on standard output while the agent runs.
#[derive(Clone, Debug)]
pub struct FollowOptions {
    /// How they are printed.
    pub format: Format,
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory cannot be had.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The socket cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Our own connection to the broker failed.
    #[error("the agent's own connection to its broker failed: {0}")]
    Connection(String),
    /// A second signal cut the orderly end short.
    #[error(
        "ended at once by a second signal; procmond may go on and is adopted by the next agent, and what was not stored comes again"
    )]
    Hurried,
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signals(#[source] io::Error),
}

/// An agent that has its state directory and its store, and is about to run.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    launch: Option<Launch>,
    follow: Option<FollowOptions>,
    store: Store,
    reader: EventReader,
    _lock: InstanceLock,
}

impl Agent {
    /// Takes the state directory and opens the store. Blocks.
    ///
    /// # Errors
    /// When another agent has the directory, or it or the store cannot be used.
    pub fn prepare(
        config: Config,
        launch: Option<Launch>,
        follow: Option<FollowOptions>,
    ) -> Result<Self, AgentError> {
        let lock = config.state.acquire()?;
        let database = config.state.database();
        let store = Store::open(&database)?;
        let reader = EventReader::open(&database)?;
        Ok(Self { config, launch, follow, store, reader, _lock: lock })
    }

    /// Runs until a signal ends it, or the reader of `--follow`'s output goes away.
    ///
    /// # Errors
    /// When the socket cannot be had, or our own connections to the broker fail.
    pub async fn run(self) -> Result<(), AgentError> {
        let Self { config, launch, follow, store, reader, _lock: lock } = self;
        // Before anything that would have to be undone: a signal from here on ends us in order.
        let mut signals = signals::Signals::listen().map_err(AgentError::Signals)?;
        let broker = Arc::new(bind(&config).await?);
        info!(socket = %config.socket.display(), store = %config.state.database().display(), "the agent listens");

        let handle = store.handle();
        let collectors = Collectors::default();
        let (stop_supervisor, supervisor_stop) = ShutdownTrigger::new();
        let (stop_rest, rest_stop) = ShutdownTrigger::new();

        let client = control::connect(&broker).await?;
        let connections =
            BusConnections::new(Arc::clone(&broker), client.clone(), collectors.clone());
        let supervisor = launch
            .map(|launch| Supervisor::new(options(&config, launch), connections, supervisor_stop));
        let supervised = supervisor.as_ref().map_or_else(
            || watch::channel(SupervisorStatus::new(SupervisorState::Disabled)).1,
            Supervisor::status,
        );
        let control = Control {
            client,
            broker: Arc::clone(&broker),
            collectors,
            store: handle,
            supervised,
            config: config.clone(),
            begun: tokio::time::Instant::now(),
        };
        // Subscribed before the store is attached, because that is what lets collectors in.
        let control = tokio::spawn(control.listen(rest_stop.clone()).await?);
        let consumer = Consumer::attach(&broker, store).await?;
        let consumer = tokio::spawn(consumer.run(Arc::clone(&broker), rest_stop.clone()));
        let supervisor = tokio::spawn(async move {
            if let Some(supervisor) = supervisor {
                supervisor.run().await;
            }
        });
        let (follower_ended, follower) = follow_stdout(follow, reader, rest_stop)?;

        tokio::select! {
            () = signals.end() => info!("ending: collectors first, a second signal ends at once"),
            () = follower_ended => info!("standard output was closed: ending"),
        }
        let orderly = async {
            stop_supervisor.request();
            join(supervisor, "the supervisor").await;
            drain(&broker).await;
            stop_rest.request();
            join(control, "control").await;
            let store = consumer.await.ok();
            match Arc::try_unwrap(broker) {
                Ok(broker) => broker.shutdown(LAST_WORDS).await,
                Err(_) => warn!("somebody still uses the broker; its peers get no goodbye"),
            }
            if let Some(store) = store {
                close(store).await;
            }
            join(follower, "the follower").await;
        };
        tokio::select! {
            () = orderly => info!("ended"),
            () = signals.end() => return Err(AgentError::Hurried),
        }
        // Until here: the next agent must not open the store beside ours.
        drop(lock);
        Ok(())
    }
}

async fn bind(config: &Config) -> Result<Broker, BindError> {
    let mut options = BrokerOptions::new(&config.socket);
    options.required_consumers = vec![EVENT_STORE.to_owned()];
    options.credit_bytes = config.credit_bytes;
    // A log that begins a new stream needs a second credit while its first is still being stored.
    options.held_bytes_max = options.held_bytes_max.max(4 * config.credit_bytes);
    Broker::bind(options).await
}

/// How procmond is run: where our socket and its log are, told by its environment.
fn options(config: &Config, launch: Launch) -> SupervisorOptions {
    let Launch { program, collectors } = launch;
    let named = std::env::var_os(WAL_DIR_VARIABLE).filter(|dir| !dir.is_empty());
    let log = named.as_ref().map_or_else(|| config.state.procmond_log(), PathBuf::from);
    let mut env: Vec<(OsString, OsString)> =
        vec![(BROKER_SOCKET_VARIABLE.into(), config.socket.clone().into())];
    if named.is_none() {
        env.push((WAL_DIR_VARIABLE.into(), log.clone().into()));
    }
    let mut args: Vec<OsString> = vec!["run".into(), "--wait-for-agent".into()];
    if let Some(file) = &collectors.procmond_config {
        args.extend(["--config".into(), file.into()]);
    }
    SupervisorOptions {
        program,
        args,
        env,
        lock_file: log.join(WAL_LOCK_FILE),
        backoff: BackoffOptions {
            min: collectors.restart_min,
            max: collectors.restart_max,
            ..BackoffOptions::default()
        },
        stop_grace: collectors.stop_grace,
        poll_interval: Duration::from_millis(200),
    }
}

/// Waits until everything that reached the broker is stored.
async fn drain(broker: &Broker) {
    let drained = async {
        while consumer::lag(broker) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(DRAIN, drained).await.is_err() {
        warn!(
            events = consumer::lag(broker),
            "events are not stored in time; they stay in procmond's log and come again"
        );
    }
}

async fn close(store: Store) {
    let closing = tokio::task::spawn_blocking(move || store.close(LAST_WORDS));
    join(closing, "the event store").await;
}

async fn join<T>(task: JoinHandle<T>, what: &str) {
    if let Err(error) = task.await {
        warn!(%error, "{what} ended badly");
    }
}

/// Prints events as they are stored, in a thread of its own: a slow terminal is nobody else's
/// concern. The future resolves when nobody reads any more, and never without `--follow`.
fn follow_stdout(
    follow: Option<FollowOptions>,
    reader: EventReader,
    stop: Shutdown,
) -> Result<(impl Future<Output = ()>, JoinHandle<()>), AgentError> {
    let Some(FollowOptions { format }) = follow else {
        return Ok((told_or_never(None), tokio::spawn(async {})));
    };
    let printer = EventPrinter::new(BufWriter::new(io::stdout()), format).folding_existing();
    let mut follower = Follower::new(reader, EventFilter::default(), printer)
        .map_err(|error| AgentError::Connection(error.to_string()))?;
    let (ended, on_end) = ShutdownTrigger::new();
    let thread = tokio::task::spawn_blocking(move || {
        // Dropped with the thread, which tells that it has ended.
        let _ended = ended;
        loop {
            let last = stop.is_requested();
            if let Err(error) = follower.step() {
                if !matches!(error, crate::cli::CliError::OutputClosed) {
                    warn!(%error, "events cannot be shown any more");
                }
                return;
            }
            if last {
                return;
            }
            std::thread::sleep(FOLLOW_POLL);
        }
    });
    Ok((told_or_never(Some(on_end)), thread))
}

async fn told_or_never(end: Option<Shutdown>) {
    match end {
        Some(mut end) => end.requested().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
