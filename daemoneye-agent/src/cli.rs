//! The command line: what can be asked for, and with which exit code it ends.

pub mod events;
pub mod run;
pub mod status;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
pub use daemoneye_lib::display::chain;

use self::events::EventsArgs;
use self::run::RunArgs;
use self::status::StatusArgs;
use crate::config::{Config, Sources};

/// A configuration file is a page or two; anything much longer is a mistake.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Hosts the event bus, keeps procmond running, stores its events and shows them
#[derive(Clone, Debug, Parser)]
#[command(name = "daemoneye-agent", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What every command takes.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the agent until it is told to end (SIGTERM, Ctrl-C)
    Run(RunArgs),
    /// Show stored events, whether or not an agent runs
    Events(EventsArgs),
    /// Show what the agent, its collectors and its store are doing
    Status(StatusArgs),
}

/// What every command takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CommonArgs {
    /// A configuration file; config/agent.toml describes all options
    #[arg(long, global = true, value_name = "F", value_hint = clap::ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Where the event store and the socket are [default: /var/lib/daemoneye for root, else
    /// ~/.local/state/daemoneye]
    #[arg(long, global = true, value_name = "D", value_hint = clap::ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,
    /// The broker's socket [default: broker.sock in the state directory]
    #[arg(long, global = true, value_name = "P")]
    pub socket: Option<PathBuf>,
}

impl Cli {
    /// Reads the configuration that the command asks for.
    ///
    /// # Errors
    /// When the file cannot be read, or options are wrong.
    pub fn load_config(&self) -> Result<Config, CliError> {
        let (procmond, no_collectors) = match &self.command {
            Command::Run(args) => (args.procmond.clone(), args.no_collectors),
            Command::Events(_) | Command::Status(_) => (None, false),
        };
        let file = self.common.config.clone().map(read_config).transpose()?;
        Config::load(Sources {
            file,
            environment: std::env::vars_os().collect(),
            state_dir: self.common.state_dir.clone(),
            socket: self.common.socket.clone(),
            procmond,
            no_collectors,
            default_state_dir: default_state_dir(),
        })
        .map_err(CliError::usage)
    }
}

fn read_config(path: PathBuf) -> Result<(PathBuf, String), CliError> {
    let failed = |why: String| {
        CliError::usage(format!(
            "the configuration file {} cannot be read: {why}; name another with --config, or none",
            path.display()
        ))
    };
    let read = |path: &Path| {
        let mut text = String::new();
        std::fs::File::open(path)?.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text)?;
        io::Result::Ok(text)
    };
    let text = read(&path).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(failed(format!("it is longer than {CONFIG_BYTES_MAX} bytes")));
    }
    Ok((path, text))
}

fn default_state_dir() -> Option<PathBuf> {
    #[cfg(unix)]
    let is_root = rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    let is_root = false;
    let variable = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    daemoneye_lib::paths::default_state_dir(
        is_root,
        variable("XDG_STATE_HOME").as_deref().map(Path::new),
        variable("HOME").as_deref().map(Path::new),
    )
}

/// How a command fails.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command or the configuration is wrong: exit code 2.
    #[error("{0}")]
    Usage(#[source] Box<dyn Error + Send + Sync>),
    /// It was tried and did not work: exit code 1.
    #[error("{0}")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// The reader of our output has gone; there is nothing left to do, and nothing wrong.
    #[error("standard output was closed")]
    OutputClosed,
}

impl CliError {
    /// A mistake in what was asked for.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Usage(error.into())
    }

    /// A failure of what was tried.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }

    /// A failure to write our output.
    #[must_use]
    pub fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::failed(error)
        }
    }

    /// The exit code that belongs to it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
        }
    }
}
