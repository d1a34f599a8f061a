//! Keeps one collector alive: starts it, adopts one that outlived an earlier agent, restarts it
//! with growing pauses, and ends it with us.
//!
//! The lock on the collector's log decides. Free: we start a collector. Held: a living process
//! has the log; a second one would be refused, so we wait for that process to come to our broker
//! and call it ours. A collector we started runs in its own process group and is not killed when
//! we die, so that it goes on collecting until the next agent adopts it.
//!
//! ```text
//!            lock free             exit                 pause over
//!  probe ───────────────► running ──────► restarting ──────────────► probe
//!    │  lock held                 registers
//!    └──────────────────► waiting ──────────► adopted
//!          ▲  lock free: probe │   ◄────────── │ connection lost
//!          └───────────────────┴───────────────┘
//! ```

mod backoff;
mod log_lock;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};

pub use self::backoff::BackoffOptions;
use self::backoff::{Backoff, Ended};
use self::log_lock::LogLock;
use crate::shutdown::Shutdown;

/// The exit code of a program whose configuration is wrong.
const EXIT_CONFIG: i32 = 2;

/// What to start and how patient to be with it.
#[derive(Clone, Debug)]
pub struct SupervisorOptions {
    /// The collector's executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables set on top of our own environment.
    pub env: Vec<(OsString, OsString)>,
    /// The lock file of the collector's log.
    pub lock_file: PathBuf,
    /// The pauses between restarts.
    pub backoff: BackoffOptions,
    /// How long a collector may take to end before it is killed.
    pub stop_grace: Duration,
    /// How often the state of a collector we did not start is looked at.
    pub poll_interval: Duration,
}

/// What the supervisor needs to know about collectors it did not start.
pub trait Connections: Send + Sync + 'static {
    /// Whether a collector with this process id, verified by the system, is connected.
    fn is_connected(&self, pid: u32) -> bool;

    /// Asks the collector with this process id to end. `false` when it could not be asked.
    fn shut_down(&self, pid: u32) -> impl Future<Output = bool> + Send;
}

/// Where the supervised collector stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SupervisorState {
    /// Nothing is supervised: the agent was told to start no collectors.
    Disabled,
    /// About to find out whether to start or to adopt.
    Probing,
    /// Our child runs.
    Running {
        /// Its process id.
        pid: u32,
    },
    /// Another process holds the log and has not come to our broker.
    Waiting {
        /// Its process id, if its lock file tells.
        holder: Option<u32>,
    },
    /// A collector of an earlier agent works for us.
    Adopted {
        /// Its process id.
        pid: u32,
    },
    /// The collector ended and will be started again.
    Restarting {
        /// The length of the pause, in milliseconds.
        pause_ms: u64,
    },
    /// Ended with us.
    Stopped,
}

/// What `status` shows of the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorStatus {
    /// Where the collector stands.
    #[serde(flatten)]
    pub state: SupervisorState,
    /// How often a collector was started.
    pub starts_total: u64,
    /// How the last one ended, in words.
    pub last_exit: Option<String>,
}

impl SupervisorStatus {
    /// The status before anything was done.
    #[must_use]
    pub fn new(state: SupervisorState) -> Self {
        Self { state, starts_total: 0, last_exit: None }
    }
}

/// Supervises one collector; see the module's description.
#[derive(Debug)]
pub struct Supervisor<C> {
    options: SupervisorOptions,
    connections: C,
    status: watch::Sender<SupervisorStatus>,
    stop: Shutdown,
}

/// What to do after a collector is gone or the end was asked for.
enum Next {
    Probe,
    End,
}

impl<C: Connections> Supervisor<C> {
    /// Makes a supervisor that runs until `stop`; nothing happens before [`Supervisor::run`].
    #[must_use]
    pub fn new(options: SupervisorOptions, connections: C, stop: Shutdown) -> Self {
        let (status, _) = watch::channel(SupervisorStatus::new(SupervisorState::Probing));
        Self { options, connections, status, stop }
    }

    /// Follows the state of the collector.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SupervisorStatus> {
        self.status.subscribe()
    }

    /// Supervises until the end is asked for, then ends the collector within the grace.
    ///
    /// Not cancel-safe: dropped half-way it leaves the collector running, as our death would.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(self.options.backoff.clone());
        while !self.stop.is_requested() {
            let lock = log_lock::probe(&self.options.lock_file).unwrap_or_else(|error| {
                // Starting one is the safe guess: the lock itself refuses a second.
                warn!(path = %self.options.lock_file.display(), %error, "the lock of the collector's log cannot be looked at");
                LogLock::Free
            });
            let next = match lock {
                LogLock::Held(holder) => self.adopt(holder).await,
                LogLock::Free => self.start(&mut backoff).await,
            };
            if let Next::End = next {
                break;
            }
        }
        self.enter(SupervisorState::Stopped);
    }

    /// One life of a child of ours, and the pause after it.
    async fn start(&mut self, backoff: &mut Backoff) -> Next {
        let ended = match self.spawn() {
            Ok(child) => match self.watch_child(child).await {
                Some(ended) => ended,
                None => return Next::End,
            },
            Err(error) => {
                error!(program = %self.options.program.display(), %error, "the collector cannot be started");
                self.record_exit(format!("could not be started: {error}"));
                Ended::Hopeless
            }
        };
        let pause = backoff.wait(ended);
        info!(pause_ms = pause.as_millis() as u64, "starting the collector again after a pause");
        self.enter(SupervisorState::Restarting { pause_ms: pause.as_millis() as u64 });
        tokio::select! {
            () = sleep(pause) => Next::Probe,
            () = self.stop.requested() => Next::End,
        }
    }

    fn spawn(&mut self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.options.program);
        command
            .args(&self.options.args)
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            // Our standard output carries events and nothing else.
            .stdout(std::io::stderr())
            .stderr(Stdio::inherit())
            .kill_on_drop(false);
        // A group of its own: Ctrl-C in a terminal is for us, and we end the collector in order.
        #[cfg(unix)]
        command.process_group(0);
        command.spawn()
    }

    /// Waits for the child's end; `None` when it ended because we were asked to end.
    async fn watch_child(&mut self, mut child: Child) -> Option<Ended> {
        let started = Instant::now();
        let pid = child.id().unwrap_or_default();
        info!(pid, program = %self.options.program.display(), "started the collector");
        self.status.send_modify(|status| {
            status.state = SupervisorState::Running { pid };
            status.starts_total += 1;
        });
        let exit = tokio::select! {
            exit = child.wait() => exit,
            () = self.stop.requested() => {
                self.end_child(child, pid).await;
                return None;
            }
        };
        Some(match exit {
            Ok(exit) if exit.code() == Some(EXIT_CONFIG) => {
                error!(
                    pid,
                    "the collector refuses its configuration (exit code 2): its message above says what is wrong; it is tried again at long intervals"
                );
                self.record_exit(describe(exit));
                Ended::Hopeless
            }
            Ok(exit) => {
                let ran = started.elapsed();
                warn!(pid, exit = %describe(exit), ran_ms = ran.as_millis() as u64, "the collector ended");
                self.record_exit(describe(exit));
                Ended::After(ran)
            }
            Err(error) => {
                error!(pid, %error, "cannot wait for the collector");
                self.record_exit(format!("cannot be waited for: {error}"));
                Ended::Hopeless
            }
        })
    }

    async fn end_child(&self, mut child: Child, pid: u32) {
        info!(pid, "asking the collector to end");
        if !terminate(pid) {
            self.connections.shut_down(pid).await;
        }
        match timeout(self.options.stop_grace, child.wait()).await {
            Ok(Ok(exit)) => self.record_exit(describe(exit)),
            Ok(Err(error)) => self.record_exit(format!("cannot be waited for: {error}")),
            Err(_) => {
                warn!(
                    pid,
                    grace_ms = self.options.stop_grace.as_millis() as u64,
                    "the collector does not end: killing it"
                );
                match child.kill().await {
                    Ok(()) => self.record_exit("killed: it did not end in time".to_owned()),
                    Err(error) => error!(pid, %error, "the collector cannot be killed"),
                }
            }
        }
    }

    /// Waits for the holder of the log to connect, and watches it until it is gone.
    async fn adopt(&mut self, holder: Option<u32>) -> Next {
        let mut holder = holder;
        info!(pid = ?holder, "a collector already has the log: waiting for it to register instead of starting another");
        self.enter(SupervisorState::Waiting { holder });
        loop {
            match self.connected(holder) {
                Some(pid) => {
                    if self.status.borrow().state != (SupervisorState::Adopted { pid }) {
                        info!(pid, "adopted the collector that was already running");
                        self.enter(SupervisorState::Adopted { pid });
                    }
                }
                None => match log_lock::probe(&self.options.lock_file) {
                    Ok(LogLock::Held(now)) => {
                        holder = now;
                        if self.status.borrow().state != (SupervisorState::Waiting { holder }) {
                            warn!(pid = ?holder, "the collector that has the log is not connected: waiting for it");
                            self.enter(SupervisorState::Waiting { holder });
                        }
                    }
                    Ok(LogLock::Free) => {
                        warn!(pid = ?holder, "the collector that had the log is gone");
                        self.record_exit("an adopted collector went away".to_owned());
                        return Next::Probe;
                    }
                    Err(error) => {
                        warn!(path = %self.options.lock_file.display(), %error, "the lock of the collector's log cannot be looked at");
                    }
                },
            }
            tokio::select! {
                () = sleep(self.options.poll_interval) => {}
                () = self.stop.requested() => {
                    self.end_adopted(holder).await;
                    return Next::End;
                }
            }
        }
    }

    async fn end_adopted(&self, holder: Option<u32>) {
        let connected = self.connected(holder);
        let asked = match (connected, holder) {
            (Some(pid), _) => {
                info!(pid, "asking the adopted collector to end");
                self.connections.shut_down(pid).await || terminate(pid)
            }
            (None, Some(pid)) if self.log_is_held() => terminate(pid),
            (None, _) => false,
        };
        let Some(pid) = connected.or(holder).filter(|_| asked) else {
            warn!(pid = ?holder, "the collector that has the log cannot be asked to end: it goes on collecting");
            return;
        };
        let deadline = Instant::now() + self.options.stop_grace;
        while self.log_is_held() {
            if Instant::now() >= deadline {
                warn!(pid, "the adopted collector does not end: killing it");
                kill(pid);
                break;
            }
            sleep(self.options.poll_interval.min(Duration::from_millis(50))).await;
        }
        self.record_exit("ended with the agent".to_owned());
    }

    /// The holder of the log, if it is known and connected. While the lock file does not tell who
    /// holds it, nobody is: any other collector on the bus would be mistaken for ours.
    fn connected(&self, holder: Option<u32>) -> Option<u32> {
        holder.filter(|pid| self.connections.is_connected(*pid))
    }

    fn log_is_held(&self) -> bool {
        matches!(log_lock::probe(&self.options.lock_file), Ok(LogLock::Held(_)))
    }

    fn enter(&self, state: SupervisorState) {
        self.status.send_modify(|status| status.state = state);
    }

    fn record_exit(&self, how: String) {
        self.status.send_modify(|status| status.last_exit = Some(how));
    }
}

fn describe(exit: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&exit) {
        return format!("killed by signal {signal}");
    }
    exit.code().map_or_else(|| "ended".to_owned(), |code| format!("exit code {code}"))
}

/// Sends SIGTERM; `false` where there is no such thing or nobody to get it.
#[cfg(unix)]
fn terminate(pid: u32) -> bool {
    signal(pid, rustix::process::Signal::TERM)
}

#[cfg(not(unix))]
fn terminate(_pid: u32) -> bool {
    false
}

#[cfg(unix)]
fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

#[cfg(not(unix))]
fn kill(pid: u32) {
    warn!(pid, "ending a process of another parent is not supported on this system");
}

#[cfg(unix)]
fn signal(pid: u32, signal: rustix::process::Signal) -> bool {
    let target = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    target.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
