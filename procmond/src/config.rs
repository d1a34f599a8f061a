//! procmond's options: defaults, file, environment `PROCMOND_<SECTION>__<KEY>`, flags.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemoneye_lib::config::{ConfigError, Loader, OptionInfo};
use daemoneye_lib::models::event::EVENT_BYTES_MAX;
use daemoneye_lib::paths::{WAL_DIR, default_state_dir};
use daemoneye_lib::topics::CollectorId;
use thiserror::Error;

use crate::event_bus_connector::ConnectorOptions;
use crate::logging::LogFilter;
use crate::monitor::filter::{Filter, Rule};
use crate::monitor::{INTERVAL_MAX, INTERVAL_MIN, TellOptions};
use crate::source::{SourceChoice, SourceOptions};
use crate::wal::{ArchiveOptions, Compression, Retire, RotateEvery, SyncMode, WalOptions};

/// The prefix of procmond's options in the environment.
const PREFIX: &str = "PROCMOND";

const KB: u64 = 1000;
const MB: u64 = 1000 * KB;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// The longest commit delay of the log.
const COMMIT_DELAY_MAX: Duration = Duration::from_secs(1);
/// The limits of the time between two heartbeats.
pub const HEARTBEAT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);

/// Options that are right.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name under which the agent knows this collector.
    pub collector_id: CollectorId,
    /// The time between two heartbeats.
    pub heartbeat: Duration,
    /// The log's directory.
    pub wal_dir: PathBuf,
    /// A segment is closed when it has this many bytes.
    pub segment_bytes: u64,
    /// How long an append may wait for company before it is synced.
    pub commit_delay: Duration,
    /// With this many bytes waiting, the sync comes at once.
    pub commit_bytes: u64,
    /// The most bytes the log takes on disk.
    pub disk_budget_bytes: u64,
    /// When the log is made durable.
    pub sync: SyncMode,
    /// When a segment is left though it is not full.
    pub rotate: Option<RotateEvery>,
    /// What happens to committed segments.
    pub retire: Retire,
    /// Whether segments are prepared ahead.
    pub prepare: bool,
    /// The most payload bytes kept in memory for delivery.
    pub window_bytes_max: u64,
    /// What to see processes with.
    pub source: SourceChoice,
    /// How it sees.
    pub see: SourceOptions,
    /// What is told of what is seen.
    pub tell: TellOptions,
    /// How long an end may be put off to deliver what is left.
    pub shutdown_timeout: Duration,
    /// What procmond says of itself: a level or a filter.
    pub log_level: LogFilter,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigFailure {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path:?}: {source}; check --config")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it, in the environment or in a flag is wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigError),
}

/// A flag that stands for an option: the option's key, the flag's name, its value.
pub type FlagValue = (&'static str, &'static str, OsString);

impl Config {
    /// Reads the file, if one is given, this process's environment and the flags.
    ///
    /// # Errors
    /// All mistakes at once, each with its place.
    pub fn load(file: Option<&Path>, flags: &[FlagValue]) -> Result<Self, ConfigFailure> {
        let text = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| {
                    ConfigFailure::Unreadable { path: path.to_owned(), source }
                })?;
                Some((path.display().to_string(), text))
            }
            None => None,
        };
        let text = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
        let (config, _) = Self::from_sources(text, std::env::vars_os(), flags)?;
        Ok(config)
    }

    /// Puts the sources together: the file's name and text, the environment, the flags. Gives the
    /// options there are as well.
    ///
    /// # Errors
    /// All mistakes at once, each with its place.
    pub fn from_sources(
        file: Option<(&str, &str)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[FlagValue],
    ) -> Result<(Self, Vec<OptionInfo>), ConfigError> {
        let mut loader = Loader::new(PREFIX);
        if let Some((name, text)) = file {
            loader.file(name, text);
        }
        loader.environment(environment);
        for (key, name, value) in flags {
            loader.flag(key, name, value.clone());
        }
        let config = Self::declare(&mut loader);
        Ok((config, loader.finish()?))
    }

    fn declare(loader: &mut Loader) -> Self {
        let log = WalOptions::default();
        let ms = Duration::from_millis;
        let wal_dir = loader.path(
            "wal.dir",
            &default_wal_dir(),
            "The directory of the write-ahead log. One procmond holds it at a time.",
        );
        let retire = declare_retire(loader, &wal_dir);
        let see = declare_seeing(loader);
        // Whoever wants to hear of everything at once wants no delay in the log either, and whoever
        // wants it cheap wants fewer syncs.
        let commit_delay = (see.tick * 5 / 2).min(COMMIT_DELAY_MAX);
        Self {
            collector_id: loader.parsed(
                "collector.id",
                "procmond",
                "1 to 64 of a-z, 0-9, _ and -, and neither lifecycle nor registration",
                |text| CollectorId::new(text).ok(),
                "The name under which the agent knows this collector.",
            ),
            heartbeat: loader.millis(
                "collector.heartbeat_ms",
                ms(2000),
                HEARTBEAT,
                "How often to tell the agent that all is well.",
            ),
            wal_dir,
            segment_bytes: loader.bytes(
                "wal.segment_bytes",
                log.segment_bytes,
                MB..=4 * GIB,
                "A segment file is closed and the next one begun at this size.",
            ),
            commit_delay: loader.millis(
                "wal.commit_delay_ms",
                commit_delay,
                Duration::ZERO..=COMMIT_DELAY_MAX,
                "How long an event may wait for others to share one sync with. 0 syncs at once.",
            ),
            commit_bytes: loader.bytes(
                "wal.commit_bytes",
                log.commit_bytes as u64,
                KB..=16 * MB,
                "With this much waiting, the sync comes before the delay is over.",
            ),
            disk_budget_bytes: loader.bytes(
                "wal.disk_budget_bytes",
                log.disk_budget_bytes,
                2 * MB..=64 * TIB,
                "The most the log may take on disk. Beyond it events are counted, not kept.",
            ),
            sync: declare_sync(loader),
            rotate: loader.parsed(
                "wal.rotate_every",
                "off",
                "off, midnight (UTC), or a time such as 6h or 1d, from 1m on",
                rotate_every,
                "When a segment is left for the next though it is not full.",
            ),
            retire,
            prepare: loader.boolean(
                "wal.prepare",
                log.prepare,
                "Whether segment files are written ahead, where that makes syncs cheaper.",
            ),
            window_bytes_max: loader.bytes(
                "buffer.max_bytes",
                ConnectorOptions::WINDOW_BYTES_MAX,
                MB..=GIB,
                "The most undelivered event bytes held in memory; the rest waits in the log.",
            ),
            source: loader.choice(
                "monitor.source",
                "auto",
                SourceChoice::CHOICES,
                "What to see processes with: ebpf, netlink or poll; auto takes the first that works.",
            ),
            see,
            tell: declare_telling(loader),
            shutdown_timeout: loader.millis(
                "shutdown.timeout_ms",
                ms(5000),
                ms(0)..=ms(60_000),
                "How long an end may wait for the delivery of what is left.",
            ),
            log_level: loader.parsed(
                "log.level",
                "info",
                "error, warn, info, debug, trace, or a filter such as procmond=debug",
                |text| text.parse().ok(),
                "What procmond says of itself on standard error. RUST_LOG overrides it.",
            ),
        }
    }

    /// The log's part of the options.
    #[must_use]
    pub fn wal_options(&self) -> WalOptions {
        WalOptions {
            segment_bytes: self.segment_bytes,
            commit_delay: self.commit_delay,
            commit_bytes: usize::try_from(self.commit_bytes).unwrap_or(usize::MAX),
            disk_budget_bytes: self.disk_budget_bytes,
            max_record_bytes: EVENT_BYTES_MAX as u32,
            sync: self.sync,
            rotate: self.rotate,
            retire: self.retire.clone(),
            prepare: self.prepare,
            ..WalOptions::default()
        }
    }
}

/// How processes are seen, whatever sees them.
fn declare_seeing(loader: &mut Loader) -> SourceOptions {
    let interval = loader.millis(
        "monitor.interval_ms",
        Duration::from_secs(1),
        INTERVAL_MIN..=INTERVAL_MAX,
        "With poll: the time between two looks at the process table.",
    );
    let default = SourceOptions::every(interval);
    let tick = loader.millis(
        "monitor.tick_ms",
        default.tick,
        Duration::ZERO..=Duration::from_secs(1),
        "With ebpf: how long what happens waits for what else happens. 0 has the least delay.",
    );
    let ring = loader.bytes(
        "monitor.ring_bytes",
        u64::from(default.ring_bytes),
        64 << 10..=1 << 30,
        "With ebpf: room in the kernel for what was not read yet, rounded up to a power of two.",
    );
    let ring_bytes = u32::try_from(ring.next_power_of_two()).unwrap_or(1 << 30);
    let socket = loader.bytes(
        "monitor.socket_bytes",
        u64::from(default.socket_bytes),
        64 << 10..=1 << 30,
        "With netlink: room in the kernel for what was not read yet.",
    );
    let socket_bytes = u32::try_from(socket).unwrap_or(1 << 30);
    SourceOptions { interval, ring_bytes, tick, socket_bytes }
}

/// What is told of what is seen.
fn declare_telling(loader: &mut Loader) -> TellOptions {
    let filter = declare_filter(loader);
    let sha256 = loader.boolean(
        "monitor.sha256",
        false,
        "Whether events have the SHA-256 of the executable (Linux).",
    );
    let sha256_bytes_max = loader.bytes(
        "monitor.sha256_max_bytes",
        64 << 20,
        KB..=TIB,
        "With sha256: larger executables are not read.",
    );
    let starts = loader.integer(
        "monitor.cgroup_starts_per_second",
        0,
        0..=1_000_000,
        "More starts a second in one control group are told as numbers. 0 sets no limit.",
    );
    let cgroup_starts_per_second = u32::try_from(starts).ok().and_then(NonZeroU32::new);
    let sha256_bytes_max = sha256.then_some(sha256_bytes_max);
    TellOptions { filter, cgroup_starts_per_second, sha256_bytes_max }
}

/// Which processes are told of.
fn declare_filter(loader: &mut Loader) -> Filter {
    Filter {
        include: loader.tables(
            "monitor.include",
            Rule::ALLOWED,
            Rule::read,
            "If there are any: only processes that match one of these rules are told of.",
        ),
        exclude: loader.tables(
            "monitor.exclude",
            Rule::ALLOWED,
            Rule::read,
            "Processes that match one of these rules are not told of, whatever includes them.",
        ),
    }
}

/// When the log is made durable, out of three options.
fn declare_sync(loader: &mut Loader) -> SyncMode {
    #[derive(Clone, Copy)]
    enum When {
        Always,
        Interval,
        Os,
    }
    let when = loader.choice(
        "wal.sync",
        "always",
        &[("always", When::Always), ("interval", When::Interval), ("os", When::Os)],
        "When what is logged is made durable: before anybody hears of it, at intervals, or when the system likes.",
    );
    let every = loader.millis(
        "wal.sync_every_ms",
        Duration::from_millis(100),
        Duration::from_millis(1)..=Duration::from_secs(60),
        "With sync = \"interval\": the longest time something is written and not synced.",
    );
    let bytes = loader.bytes(
        "wal.sync_bytes",
        MB,
        KB..=GIB,
        "With sync = \"interval\": with this much written and not synced, the sync comes before.",
    );
    match when {
        When::Always => SyncMode::Always,
        When::Interval => SyncMode::Interval { every, bytes },
        When::Os => SyncMode::Os,
    }
}

/// What happens to committed segments, out of five options.
fn declare_retire(loader: &mut Loader, wal_dir: &Path) -> Retire {
    let archives = loader.choice(
        "wal.retire",
        "delete",
        &[("delete", false), ("archive", true)],
        "What happens to a segment when everything in it has been committed.",
    );
    let dir = loader.path(
        "wal.archive_dir",
        &wal_dir.join("archive"),
        "With retire = \"archive\": where archives are kept. One log only.",
    );
    let compression = loader.choice(
        "wal.archive_compression",
        "none",
        &[("none", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)],
        "How archives are packed.",
    );
    let keep_for = loader.parsed(
        "wal.archive_keep",
        "7d",
        "forever, or a time such as 12h or 7d",
        |text| if text == "forever" { Some(None) } else { time(text).map(Some) },
        "How long an archive is kept.",
    );
    let keep_bytes = loader.bytes(
        "wal.archive_bytes",
        0,
        0..=64 * TIB,
        "What all archives together may take; the oldest go first. 0 sets no limit.",
    );
    if !archives {
        return Retire::Delete;
    }
    let keep_bytes = (keep_bytes > 0).then_some(keep_bytes);
    Retire::Archive(ArchiveOptions { dir, compression, keep_for, keep_bytes })
}

fn rotate_every(text: &str) -> Option<Option<RotateEvery>> {
    const AGE_MIN: Duration = Duration::from_secs(60);
    match text {
        "off" => Some(None),
        "midnight" => Some(Some(RotateEvery::Midnight)),
        _ => time(text).filter(|age| *age >= AGE_MIN).map(|age| Some(RotateEvery::Age(age))),
    }
}

/// A time with its unit: `30m`, `6h`, `7d`.
fn time(text: &str) -> Option<Duration> {
    let unit = match text.bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        b'd' => 24 * 3600,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    let number: u32 =
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    Some(Duration::from_secs(u64::from(number) * unit))
}

/// The log's directory below the state directory, or below the working directory for a user who
/// has no home.
fn default_wal_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    #[cfg(unix)]
    let is_root = rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    let is_root = false;
    let (xdg, home) = (variable("XDG_STATE_HOME"), variable("HOME"));
    default_state_dir(is_root, xdg.as_deref(), home.as_deref())
        .unwrap_or_else(|| PathBuf::from("daemoneye"))
        .join(WAL_DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = include_str!("../../config/procmond.toml");

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        Config::from_sources(Some(("procmond.toml", text)), environment, &[]).map(|(c, _)| c)
    }

    #[test]
    fn the_documented_file_names_every_option_with_its_default() {
        let uncommented: String = FILE
            .lines()
            .map(|line| {
                line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line)
            })
            .fold(String::new(), |text, line| text + line + "\n");
        let (_, options) =
            Config::from_sources(Some(("procmond.toml", &uncommented)), [], &[]).unwrap();
        let table: toml::Table = uncommented.parse().unwrap();
        for option in options {
            let (section, key) = option.key.split_once('.').unwrap();
            let value = table.get(section).and_then(|section| section.get(key));
            let value = value.unwrap_or_else(|| panic!("{} is not in the file", option.key));
            if !["wal.dir", "wal.archive_dir"].contains(&option.key) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                assert_eq!(text, option.default, "{}", option.key);
            }
        }
        load(FILE, &[]).unwrap();
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let file = "[monitor]\ninterval_ms = 500\n[wal]\ndir = \"/a\"\n";
        let config = load(file, &[("PROCMOND_MONITOR__INTERVAL_MS", "250")]).unwrap();
        assert_eq!(config.see.interval, Duration::from_millis(250));
        assert_eq!(config.wal_dir, Path::new("/a"));
    }

    #[test]
    fn the_logs_life_is_set_in_words() {
        let config = load("", &[]).unwrap();
        assert_eq!((config.sync, config.rotate, config.prepare), (SyncMode::Always, None, true));
        assert!(matches!(config.wal_options().retire, Retire::Delete));
        let file = "[wal]\ndir = \"/a\"\nsync = \"interval\"\nsync_every_ms = 50\n\
                    rotate_every = \"6h\"\nretire = \"archive\"\narchive_keep = \"forever\"\n\
                    archive_compression = \"zstd\"\narchive_bytes = \"5 GB\"\nprepare = false\n";
        let options = load(file, &[]).unwrap().wal_options();
        let every = Duration::from_millis(50);
        assert_eq!(options.sync, SyncMode::Interval { every, bytes: 1_000_000 });
        assert_eq!(options.rotate, Some(RotateEvery::Age(Duration::from_secs(6 * 3600))));
        assert!(!options.prepare);
        let Retire::Archive(archive) = options.retire else { panic!("{:?}", options.retire) };
        assert_eq!(archive.dir, Path::new("/a/archive"));
        assert_eq!(archive.compression, Compression::Zstd);
        assert_eq!((archive.keep_for, archive.keep_bytes), (None, Some(5_000_000_000)));
        let file =
            "[wal]\nretire = \"archive\"\narchive_dir = \"/b\"\nrotate_every = \"midnight\"\n";
        let config = load(file, &[("PROCMOND_WAL__SYNC", "os")]).unwrap();
        assert_eq!((config.sync, config.rotate), (SyncMode::Os, Some(RotateEvery::Midnight)));
        let Retire::Archive(archive) = config.retire else { panic!("{:?}", config.retire) };
        assert_eq!(archive.dir, Path::new("/b"));
        assert_eq!((archive.keep_for, archive.keep_bytes), (Some(ArchiveOptions::KEEP_FOR), None));
        for wrong in ["", "7", "d", "1w", "+1d", "5s", "µ", "99999999999d"] {
            let file = format!("[wal]\nrotate_every = \"{wrong}\"\n");
            assert!(load(&file, &[]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn digests_are_made_when_asked_for() {
        let of = |text| load(text, &[]).unwrap().tell.sha256_bytes_max;
        assert_eq!(of(""), None);
        assert_eq!(of("[monitor]\nsha256_max_bytes = \"1 MB\"\n"), None);
        assert_eq!(of("[monitor]\nsha256 = true\n"), Some(64 << 20));
        assert_eq!(of("[monitor]\nsha256 = true\nsha256_max_bytes = \"1 MB\"\n"), Some(MB));
    }

    #[test]
    fn the_limit_of_a_control_group_is_off_unless_it_is_set() {
        let of = |text| load(text, &[]).unwrap().tell.cgroup_starts_per_second;
        assert_eq!(of(""), None);
        let set = of("[monitor]\ncgroup_starts_per_second = 50\n");
        assert_eq!(set, NonZeroU32::new(50));
        assert!(load("[monitor]\ncgroup_starts_per_second = 1000001\n", &[]).is_err());
    }

    #[test]
    fn rules_are_read_and_their_mistakes_are_named_with_their_lines() {
        let file = "[monitor]\nexclude = [{ exe = \"/bin/true\" }]\n[[monitor.include]]\nuid = 0\n\
                    argv = [\"-x\", \"(?i)y\"]\n";
        let filter = load(file, &[]).unwrap().tell.filter;
        assert_eq!((filter.include.len(), filter.exclude.len()), (1, 1));
        let file = "[[monitor.exclude]]\nexe = \"true\"\nargv = \"(\"\n[[monitor.exclude]]\n\
                    [[monitor.include]]\nuid = -1\npid = 7\nargv = \"(a{1000}){1000}\"\n";
        let error = load(file, &[("PROCMOND_MONITOR__EXCLUDE", "[{ parent = '*/[' }]")]);
        let origins: Vec<_> = error.unwrap_err().problems.into_iter().map(|p| p.origin).collect();
        let lines = [2, 3, 4, 6, 7, 8].map(|line| format!("procmond.toml:{line}"));
        let mut sorted = origins.clone();
        sorted.sort();
        assert_eq!(sorted, lines, "{origins:?}");
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let file = "[monitor]\nintervall_ms = 500\nsource = \"magic\"\n";
        let error =
            load(file, &[("PROCMOND_LOG__LEVEL", "loud=="), ("PROCMOND_COLLECTOR__ID", "A B")])
                .unwrap_err();
        assert_eq!(error.problems.len(), 4, "{error}");
    }
}
