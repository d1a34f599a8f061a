//! The agent's options: defaults, then a file, then `DAEMONEYE_<SECTION>__<KEY>`, then flags.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemoneye_lib::config::{ConfigError, Loader, OptionInfo};
use daemoneye_lib::paths::{BROKER_SOCKET_VARIABLE, SOCKET_PATH_BYTES_MAX};
use tracing::level_filters::LevelFilter;

use crate::state_dir::StateDir;

/// Where options come from. Gathered by the command line; nothing here looks at the machine.
#[derive(Debug, Default)]
pub struct Sources {
    /// The name and the text of a configuration file.
    pub file: Option<(PathBuf, String)>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--procmond`.
    pub procmond: Option<PathBuf>,
    /// `--no-collectors`.
    pub no_collectors: bool,
    /// The state directory where nobody names one, if there is such a place.
    pub default_state_dir: Option<PathBuf>,
}

/// The agent's options, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where everything is kept.
    pub state: StateDir,
    /// The broker's socket.
    pub socket: PathBuf,
    /// How many bytes of events a collector may have sent and not had acknowledged.
    pub credit_bytes: u64,
    /// Which collector to start, if any.
    pub collectors: Option<CollectorsConfig>,
    /// What to log, where `RUST_LOG` does not say.
    pub log_level: LevelFilter,
}

/// How to run procmond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorsConfig {
    /// The executable, if it was named.
    pub procmond: Option<PathBuf>,
    /// Its configuration file, if it was named.
    pub procmond_config: Option<PathBuf>,
    /// The first pause before a restart.
    pub restart_min: Duration,
    /// The longest pause before a restart.
    pub restart_max: Duration,
    /// How long it may take to end.
    pub stop_grace: Duration,
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// Options are unknown or wrong.
    #[error(transparent)]
    Options(#[from] ConfigError),
    /// Nobody said where to keep things, and there is no usual place.
    #[error(
        "there is no place for the agent's state: neither HOME nor XDG_STATE_HOME is set; name a directory with --state-dir, state.dir or DAEMONEYE_STATE__DIR"
    )]
    NoStateDir,
    /// The kernel does not take so long a path for a socket.
    #[error(
        "the socket path {path} is {bytes} bytes long; a Unix socket's path may have {SOCKET_PATH_BYTES_MAX} at most: choose a shorter one with --socket or broker.socket"
    )]
    SocketTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
}

impl Config {
    /// Reads all sources.
    ///
    /// # Errors
    /// All mistakes in the options at once; else the first thing that keeps them from working.
    pub fn load(sources: Sources) -> Result<Self, BadConfig> {
        Self::load_described(sources).map(|(config, _)| config)
    }

    fn load_described(sources: Sources) -> Result<(Self, Vec<OptionInfo>), BadConfig> {
        let mut loader = Loader::new("DAEMONEYE");
        if let Some((path, text)) = &sources.file {
            loader.file(&path.display().to_string(), text);
        }
        loader.environment(sources.environment);
        // It begins like an option of ours and is procmond's: set where somebody ran both by hand.
        loader.not_an_option(BROKER_SOCKET_VARIABLE);
        let paths = [
            ("state.dir", "--state-dir", sources.state_dir),
            ("broker.socket", "--socket", sources.socket),
            ("collectors.procmond", "--procmond", sources.procmond),
        ];
        for (key, flag, path) in paths {
            if let Some(path) = path {
                loader.flag(key, flag, path);
            }
        }
        if sources.no_collectors {
            loader.flag("collectors.enabled", "--no-collectors", "false");
        }

        let state = loader.optional_path(
            "state.dir",
            sources.default_state_dir.as_deref(),
            "Where the event store, the socket and procmond's log are kept.",
        );
        let socket = loader.optional_path(
            "broker.socket",
            None,
            "The broker's socket; broker.sock in the state directory if not given.",
        );
        let credit_bytes = loader.bytes(
            "broker.credit_bytes",
            4 << 20,
            64 << 10..=1 << 30,
            "How much a collector may send ahead of what is stored.",
        );
        let enabled = loader.boolean(
            "collectors.enabled",
            true,
            "Whether procmond is started and kept running.",
        );
        let collectors = CollectorsConfig {
            procmond: loader.optional_path(
                "collectors.procmond",
                None,
                "procmond's executable; the one beside daemoneye-agent or on PATH if not given.",
            ),
            procmond_config: loader.optional_path(
                "collectors.procmond_config",
                None,
                "procmond's configuration file; none if not given.",
            ),
            restart_min: loader.millis(
                "collectors.restart_min_ms",
                Duration::from_millis(100),
                Duration::from_millis(1)..=Duration::from_secs(3_600),
                "The pause before procmond is started again after it died; doubles each time.",
            ),
            restart_max: loader.millis(
                "collectors.restart_max_ms",
                Duration::from_secs(30),
                Duration::from_millis(1)..=Duration::from_secs(3_600),
                "The longest such pause.",
            ),
            stop_grace: loader.millis(
                "collectors.stop_grace_ms",
                Duration::from_secs(10),
                Duration::from_millis(1)..=Duration::from_secs(3_600),
                "How long procmond may take to end before it is killed.",
            ),
        };
        let log_level = loader.choice(
            "log.level",
            "info",
            &[
                ("error", LevelFilter::ERROR),
                ("warn", LevelFilter::WARN),
                ("info", LevelFilter::INFO),
                ("debug", LevelFilter::DEBUG),
                ("trace", LevelFilter::TRACE),
            ],
            "What is logged to standard error, where RUST_LOG is not set.",
        );
        let options = loader.finish()?;

        let state = absolute(&state.ok_or(BadConfig::NoStateDir)?);
        let state = StateDir::new(state);
        let socket = socket.map_or_else(|| state.socket(), |socket| absolute(&socket));
        check_socket(&socket)?;
        let collectors = enabled.then_some(collectors);
        Ok((Self { state, socket, credit_bytes, collectors, log_level }, options))
    }
}

/// procmond is told paths, and does not have to share our working directory.
fn absolute(path: &Path) -> PathBuf {
    // Fails only for an empty path, which the loader refuses, or without a working directory.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn check_socket(socket: &Path) -> Result<(), BadConfig> {
    let bytes = socket.as_os_str().len();
    // A pipe's name on Windows has a limit of its own.
    if cfg!(unix) && bytes > SOCKET_PATH_BYTES_MAX {
        return Err(BadConfig::SocketTooLong { path: socket.to_owned(), bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../config/agent.toml");

    fn sources(text: &str) -> Sources {
        Sources {
            file: Some(("agent.toml".into(), text.to_owned())),
            default_state_dir: Some("/var/lib/daemoneye".into()),
            ..Sources::default()
        }
    }

    /// The sample with its options switched on: those are the lines `#key = value`.
    fn switched_on() -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(option) if !option.starts_with(' ') && option.contains(" = ") => option.to_owned(),
            _ => line.to_owned(),
        };
        SAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_sample_changes_nothing_and_shows_every_option_with_its_default() {
        let plain = Config::load(sources("")).unwrap();
        assert_eq!(Config::load(sources(SAMPLE)).unwrap(), plain, "as it is delivered");
        let (mut on, options) = Config::load_described(sources(&switched_on())).unwrap();
        let shown: toml_keys::Keys = toml_keys::keys(&switched_on());
        for option in &options {
            assert!(shown.contains(option.key), "agent.toml does not name {}", option.key);
            assert!(SAMPLE.contains(&option.variable), "agent.toml lacks {}", option.variable);
        }
        assert_eq!(shown.len(), options.len());
        // These two have no default to show, only an example.
        let collectors = on.collectors.as_mut().unwrap();
        assert_eq!(collectors.procmond.take(), Some("/usr/bin/procmond".into()));
        assert_eq!(collectors.procmond_config.take(), Some("/etc/daemoneye/procmond.toml".into()));
        assert_eq!(on, plain);
    }

    /// The keys of a flat TOML file, without taking it from the loader that is tested.
    mod toml_keys {
        pub(super) type Keys = std::collections::BTreeSet<String>;

        pub(super) fn keys(text: &str) -> Keys {
            let mut section = "";
            let mut keys = Keys::new();
            for line in text.lines() {
                if let Some(name) = line.strip_prefix('[') {
                    section = name.trim_end_matches(']');
                } else if let Some((key, _)) =
                    line.split_once(" = ").filter(|_| !line.starts_with('#'))
                {
                    keys.insert(format!("{section}.{key}"));
                }
            }
            keys
        }
    }

    #[test]
    fn flags_override_the_environment_and_that_the_file() {
        let mut sources = sources("[state]\ndir = \"/file\"\n[broker]\nsocket = \"/file.sock\"\n");
        sources.environment = vec![
            ("DAEMONEYE_STATE__DIR".into(), "/environment".into()),
            ("DAEMONEYE_BROKER__SOCKET".into(), "/environment.sock".into()),
            // procmond's, not ours: neither taken nor refused.
            ("DAEMONEYE_BROKER_SOCKET".into(), "/procmond.sock".into()),
            ("PROCMOND_WAL__DIR".into(), "/procmond".into()),
        ];
        sources.state_dir = Some("/flag".into());
        sources.no_collectors = true;
        let config = Config::load(sources).unwrap();
        assert_eq!(config.state, StateDir::new("/flag"));
        assert_eq!(config.socket, Path::new("/environment.sock"));
        assert_eq!(config.collectors, None);
    }

    #[test]
    fn every_mistake_is_named() {
        let mut sources = sources("[broker]\ncredit_bytes = 1\n[colectors]\nenabled = true\n");
        sources.environment = vec![("DAEMONEYE_LOG__LEVEL".into(), "loud".into())];
        let error = Config::load(sources).unwrap_err().to_string();
        for part in
            ["3 mistakes", "broker.credit_bytes", "collectors.enabled", "DAEMONEYE_LOG__LEVEL"]
        {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn without_a_home_the_place_must_be_named() {
        let error = Config::load(Sources::default()).unwrap_err();
        assert!(matches!(error, BadConfig::NoStateDir));
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_path_of_107_bytes_is_the_longest() {
        let with = |bytes: usize| {
            let mut sources = sources("");
            sources.socket = Some(format!("/{}", "s".repeat(bytes - 1)).into());
            Config::load(sources)
        };
        assert!(with(107).is_ok());
        assert!(matches!(with(108), Err(BadConfig::SocketTooLong { bytes: 108, .. })));
    }
}
