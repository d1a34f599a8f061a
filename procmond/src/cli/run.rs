//! `procmond run`: collect, log, deliver.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::Args;
use daemoneye_eventbus::{ClientOptions, Role, Topic};
use daemoneye_lib::models::event::EventKind;
use daemoneye_lib::paths::{BROKER_SOCKET_VARIABLE, SOCKET_PATH_BYTES_MAX};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::collector::CollectorLink;
use crate::config::{Config, FlagValue};
use crate::event_bus_connector::{ConnectorOptions, EventBusConnector};
use crate::logging::SetLogFilter;
use crate::monitor::snapshot::SNAPSHOT_FILE;
use crate::monitor::{
    INTERVAL_MAX, MonitorError, MonitorHandle, MonitorOptions, ProcessMonitor, Recovered,
};
use crate::shutdown::Signals;
use crate::wal::{LostRange, Recovery, WalError, WriteAheadLog};

/// Arguments of `procmond run`.
#[derive(Args)]
pub struct RunArgs {
    /// Configuration file (TOML); the environment and flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the write-ahead log [default: "wal" in the state directory]
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<OsString>,
    /// What to see processes with: auto, ebpf, netlink or poll
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Seconds between two looks at the process table, for example 0.5
    #[arg(long, value_name = "SECONDS", value_parser = seconds_as_millis)]
    interval: Option<u64>,
    /// Collect nothing until the agent says to begin
    #[arg(long)]
    wait_for_agent: bool,
}

impl RunArgs {
    fn flags(&self) -> Vec<FlagValue> {
        let wal_dir = self.wal_dir.clone().map(|dir| ("wal.dir", "--wal-dir", dir));
        let source = self.source.as_ref().map(|name| ("monitor.source", "--source", name.into()));
        let interval =
            self.interval.map(|ms| ("monitor.interval_ms", "--interval", ms.to_string().into()));
        [wal_dir, source, interval].into_iter().flatten().collect()
    }
}

/// Seconds on the command line, milliseconds in the configuration.
fn seconds_as_millis(text: &str) -> Result<u64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let millis = (seconds * 1000.0).round();
    if millis >= 0.0 && millis <= INTERVAL_MAX.as_millis() as f64 {
        Ok(millis as u64)
    } else {
        Err(format!("not between 0 and {} seconds", INTERVAL_MAX.as_secs()))
    }
}

/// Runs until a signal, a request or a failure ends it.
#[must_use]
pub fn run(args: &RunArgs) -> ExitCode {
    let not_given_up = super::confine();
    let config = match Config::load(args.config.as_deref(), &args.flags()) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("procmond: {problems}");
            return ExitCode::from(2);
        }
    };
    let socket = match broker_socket(std::env::var_os(BROKER_SOCKET_VARIABLE)) {
        Ok(socket) => socket,
        Err(message) => {
            eprintln!("procmond: {message}");
            return ExitCode::from(2);
        }
    };
    let set_log_filter = crate::logging::init(&config.log_level);
    for problem in not_given_up {
        warn!("{problem}");
    }
    // The log and the source have threads of their own. Waking another for what is left would cost
    // more than it takes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            runtime.block_on(collect(&config, socket, args.wait_for_agent, set_log_filter))
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Where the broker listens, or what to tell the user.
pub(super) fn broker_socket(variable: Option<OsString>) -> Result<PathBuf, String> {
    let Some(socket) = variable.filter(|socket| !socket.is_empty()) else {
        return Err(format!(
            "{BROKER_SOCKET_VARIABLE} is not set: it is the path of the broker's socket, and \
             daemoneye-agent sets it when it starts procmond. Start `daemoneye-agent run` instead, \
             or set it to the socket of a running agent, or see events without a broker with \
             `procmond watch`"
        ));
    };
    let bytes = socket.as_encoded_bytes().len();
    if cfg!(unix) && bytes > SOCKET_PATH_BYTES_MAX {
        return Err(format!(
            "{BROKER_SOCKET_VARIABLE} has {bytes} bytes, but the path of a Unix socket has at most \
             {SOCKET_PATH_BYTES_MAX}: give the agent a shorter --socket or --state-dir"
        ));
    }
    Ok(PathBuf::from(socket))
}

type RunError = Box<dyn std::error::Error + Send + Sync>;

/// Why the log cannot be opened, and whose it is if that is why.
fn not_opened(error: WalError) -> RunError {
    let owner = match &error {
        WalError::Io { path, source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            super::whose(path)
        }
        _ => None,
    };
    match owner {
        Some(owner) => format!("{error}. {owner}").into(),
        None => error.into(),
    }
}

async fn collect(
    config: &Config,
    socket: PathBuf,
    wait_for_agent: bool,
    set_log_filter: SetLogFilter,
) -> Result<(), RunError> {
    let mut signals = Signals::listen()?;
    let (log, recovery) =
        WriteAheadLog::open(&config.wal_dir, config.wal_options()).map_err(not_opened)?;
    report(&log, &recovery);
    let monitor_options = MonitorOptions {
        source: config.source,
        see: config.see,
        tell: config.tell.clone(),
        snapshot_path: config.wal_dir.join(SNAPSHOT_FILE),
    };
    let recovered = Recovered::read(&monitor_options, &log)?;
    let options = ConnectorOptions {
        socket,
        client: ClientOptions::new(config.collector_id.as_str(), Role::Collector),
        window_bytes_max: config.window_bytes_max,
        topic_of,
    };
    let (connector, backpressure) = EventBusConnector::start(log.clone(), options);
    let (monitor, handle) =
        ProcessMonitor::new(monitor_options, recovered, connector.clone(), backpressure);
    let mut monitor = tokio::spawn(monitor.run());
    let (shutdown, mut shutdown_asked) = mpsc::channel(1);
    let link = CollectorLink::new(
        config.collector_id.clone(),
        handle.clone(),
        connector.client(),
        config.heartbeat,
        shutdown,
        set_log_filter,
    );
    tokio::spawn(link.run());

    if wait_for_agent {
        info!("waiting for the agent to say that monitoring may begin");
    } else {
        handle.begin().await??;
    }
    tokio::select! {
        () = signals.recv() => info!("ending: a signal asks for it"),
        Some(()) = shutdown_asked.recv() => info!("ending: the agent asks for it"),
        result = &mut monitor => return Err(ended(result)),
    }
    tokio::select! {
        result = finish(config, &handle, monitor, &connector) => result?,
        () = signals.recv() => return Err("ended at once by a second signal".into()),
    }
    log.close()?;
    Ok(())
}

/// Stops collecting, makes the log durable, offers what is unsent for a bounded time.
async fn finish(
    config: &Config,
    handle: &MonitorHandle,
    monitor: JoinHandle<Result<(), MonitorError>>,
    connector: &EventBusConnector,
) -> Result<(), RunError> {
    if handle.shutdown().await.is_err() {
        return Err(ended(monitor.await));
    }
    let drained = connector.shutdown(config.shutdown_timeout).await?;
    if drained.delivered {
        info!("everything is delivered");
    } else {
        let undelivered = drained.undelivered;
        warn!(undelivered, "events remain in the log and are delivered after the next start");
    }
    Ok(())
}

fn ended(result: Result<Result<(), MonitorError>, tokio::task::JoinError>) -> RunError {
    match result {
        Ok(Ok(())) => "the monitor ended by itself".into(),
        Ok(Err(error)) => error.into(),
        Err(error) => error.into(),
    }
}

fn report(log: &WriteAheadLog, recovery: &Recovery) {
    info!(
        stream = %log.stream(),
        epoch = %log.epoch(),
        last = %log.last(),
        watermark = %log.watermark(),
        new_stream = recovery.new_stream,
        "the log is open"
    );
    if let Some(torn) = &recovery.torn {
        warn!(
            segment = %torn.path.display(),
            offset = torn.offset,
            bytes = torn.bytes,
            copy = torn.copy.as_ref().map(|path| path.display().to_string()),
            "a write that was cut short has been removed from the end of the log; it had no receipt"
        );
    }
    for lost in &recovery.damage {
        let LostRange { first, last, reason } = lost;
        warn!(%first, %last, %reason, "records of the log are lost; a gap event tells consumers");
    }
    for path in &recovery.foreign {
        warn!(path = %path.display(), "this file is of another log and is left alone; move it away");
    }
}

/// The topic of a kind byte. Our own log holds only kinds that we wrote; another program's would
/// not be read as events.
fn topic_of(kind: u8) -> Topic {
    /// By kind, made once: the same topics are known to be so at a glance.
    static TOPICS: LazyLock<Vec<Topic>> = LazyLock::new(|| {
        let name = |kind| EventKind::from_u8(kind).map_or("events.unrecognised", EventKind::topic);
        let topic =
            |kind| Topic::new(name(kind)).expect("the topics of this crate are well-formed");
        (0..=EventKind::Gap.as_u8()).map(topic).collect()
    });
    // No kind is zero.
    TOPICS.get(usize::from(kind)).unwrap_or(&TOPICS[0]).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_socket_is_explained() {
        for absent in [None, Some(OsString::new())] {
            let message = broker_socket(absent).unwrap_err();
            for part in ["DAEMONEYE_BROKER_SOCKET", "daemoneye-agent", "procmond watch"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_path_of_107_bytes_is_the_longest() {
        let path = |bytes| Some(OsString::from("/".repeat(bytes)));
        assert!(broker_socket(path(107)).is_ok());
        assert!(broker_socket(path(108)).unwrap_err().contains("108 bytes"));
    }
}
