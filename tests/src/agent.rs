use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Store, bin, signal, signal_pid, until, until_some};

/// A running `daemoneye-agent` with a state directory of its own.
///
/// Dropping it kills the agent and the procmond that works for it.
pub struct Agent {
    child: Child,
    setup: AgentBuilder,
}

/// How an [`Agent`] is to be started; survives it, so that another can take its place.
#[derive(Clone)]
pub struct AgentBuilder {
    state: std::sync::Arc<TempDir>,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
}

impl Default for AgentBuilder {
    fn default() -> Self {
        Self {
            state: std::sync::Arc::new(tempfile::tempdir().expect("a temporary directory")),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }
}

impl AgentBuilder {
    /// Adds a command-line argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds an environment variable, for the agent and the procmond it starts.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.into(), value.to_string()));
        self
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The broker's socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir().join("broker.sock")
    }

    /// The directory of procmond's log.
    pub fn wal_dir(&self) -> PathBuf {
        self.state_dir().join(daemoneye_lib::paths::WAL_DIR)
    }

    /// The file that collects what the agents and procmonds print.
    pub fn log_path(&self) -> PathBuf {
        self.state_dir().join("log")
    }

    /// The store, whether or not an agent is running.
    pub fn store(&self) -> Store {
        Store::open(&self.state_dir().join("events.db"))
    }

    /// Starts an agent. What it prints is appended to [`AgentBuilder::log_path`].
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self) -> Agent {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the log file can be opened");
        let child = Command::new(bin("daemoneye-agent"))
            .arg("run")
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--procmond")
            .arg(bin("procmond"))
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env_remove("DAEMONEYE_BROKER_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file can be shared"))
            .stderr(log)
            .spawn()
            .expect("the agent can be started");
        Agent { child, setup: self.clone() }
    }
}

impl Agent {
    /// How the agent was started.
    pub fn setup(&self) -> &AgentBuilder {
        &self.setup
    }

    /// The store it fills.
    pub fn store(&self) -> Store {
        self.setup.store()
    }

    /// What `daemoneye-agent status --json` says, or `None` while the agent does not answer.
    pub fn status(&self) -> Option<Value> {
        let output = Command::new(bin("daemoneye-agent"))
            .args(["status", "--json", "--state-dir"])
            .arg(self.setup.state_dir())
            .stderr(Stdio::null())
            .output()
            .expect("the status command can be run");
        if !output.status.success() {
            return None;
        }
        Some(serde_json::from_slice(&output.stdout).expect("status prints JSON"))
    }

    /// procmond's entry in the status, once it is monitoring.
    pub fn collector(&self) -> Option<Value> {
        let status = self.status()?;
        let collector = status["collectors"].as_array()?.first()?.clone();
        (collector["health"]["state"] == "monitoring").then_some(collector)
    }

    /// Waits until procmond is monitoring and gives its pid.
    ///
    /// # Panics
    /// If that does not happen in time; with the log.
    pub fn monitoring(&self) -> u32 {
        let pid = until_some("procmond is monitoring", || self.collector()?["pid"].as_u64());
        u32::try_from(pid).expect("a pid")
    }

    /// The agent's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the agent a signal.
    pub fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }

    /// Kills the agent at once and leaves procmond to itself.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(mut self) -> AgentBuilder {
        self.child.kill().expect("the agent can be killed");
        self.child.wait().expect("the agent can be waited for");
        let setup = self.setup.clone();
        std::mem::forget(self);
        setup
    }

    /// Ends the agent as an operator would and gives its exit status.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn stop(mut self) -> ExitStatus {
        signal(&self.child, Signal::TERM);
        let status = until_some("the agent ends after SIGTERM", || {
            self.child.try_wait().expect("the agent can be waited for")
        });
        until("procmond ends with the agent", || lock_holder(&self.setup.wal_dir()).is_none());
        status
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Stopped processes cannot be killed in every state; killed ones can.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(pid) = lock_holder(&self.setup.wal_dir()) {
            signal_pid(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.setup.log_path()).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("-- the last lines of the agent's log:");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// The process that holds the lock of a log directory.
pub fn lock_holder(wal_dir: &Path) -> Option<u32> {
    let lock = File::open(wal_dir.join(daemoneye_lib::paths::WAL_LOCK_FILE)).ok()?;
    match lock.try_lock_shared() {
        Ok(()) => None,
        Err(_) => {
            let text = std::fs::read_to_string(wal_dir.join(daemoneye_lib::paths::WAL_LOCK_FILE));
            text.ok()?.split_whitespace().next()?.parse().ok()
        }
    }
}
