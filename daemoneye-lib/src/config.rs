//! Configuration from defaults, a file, the environment and the command line.
//!
//! Each later one overrides the ones before. Every mistake in all of them is reported at once,
//! with where it is and what would be right; an option nobody knows is a mistake, so that a
//! misspelt one is not silently the default. Nothing here reads a file or the environment: they
//! come in as arguments.
//!
//! A program asks for its options one by one, and asking is declaring:
//!
//! ```
//! use daemoneye_lib::config::Loader;
//! use std::time::Duration;
//!
//! #[derive(Clone, Copy, PartialEq, Debug)]
//! enum Level { Info, Debug }
//!
//! let file = "[monitor]\ninterval_ms = 500\n";
//! let environment = [("PROCMOND_WAL__DISK_BUDGET_BYTES", "2 GiB")];
//! let mut loader = Loader::new("PROCMOND");
//! loader.file("procmond.toml", file);
//! loader.environment(environment);
//! loader.flag("log.level", "--log-level", "debug");
//!
//! let second = Duration::from_secs(1);
//! let interval = loader.millis("monitor.interval_ms", second, second / 100..=second * 60, "How often to look.");
//! let budget = loader.bytes("wal.disk_budget_bytes", 1 << 30, 1 << 20..=1 << 40, "The most the log takes.");
//! let level = loader.choice("log.level", "info", &[("info", Level::Info), ("debug", Level::Debug)], "What to tell.");
//! loader.finish()?;
//!
//! assert_eq!((interval, budget, level), (second / 2, 2 << 30, Level::Debug));
//! # Ok::<(), daemoneye_lib::config::ConfigError>(())
//! ```

mod file;
mod row;
mod value;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::display;
pub use row::Row;
use value::{Raw, Refusal};

/// Gathers the sources, hands out values, and collects what is wrong.
#[derive(Debug)]
pub struct Loader {
    prefix: &'static str,
    /// What was given for each key, the weakest source first.
    given: BTreeMap<String, Vec<Given>>,
    options: Vec<OptionInfo>,
    problems: Vec<Problem>,
}

/// A value and where it was given.
#[derive(Debug)]
struct Given {
    origin: Origin,
    raw: Raw,
}

/// Where a value was given; later ones override earlier ones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Origin {
    File { name: String, line: usize },
    Environment { variable: String },
    Flag { name: &'static str },
}

/// What there is to know about one option.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct OptionInfo {
    /// `section.key`, as in the file.
    pub key: &'static str,
    /// The name in the environment.
    pub variable: String,
    /// The default as one would write it; empty if there is none.
    pub default: String,
    /// What values are allowed.
    pub allowed: String,
    /// What it is for.
    pub doc: &'static str,
}

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where: `file:line`, the name of a variable, or the name of a flag.
    pub origin: String,
    /// What is wrong and what would be right. Safe for a terminal.
    pub message: String,
}

/// Everything that is wrong with the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The mistakes, those in the file first; at least one.
    pub problems: Vec<Problem>,
}

impl Loader {
    /// A loader with only the defaults. Options are `<prefix>_<SECTION>__<KEY>` in the environment.
    #[must_use]
    pub const fn new(prefix: &'static str) -> Self {
        Self { prefix, given: BTreeMap::new(), options: Vec::new(), problems: Vec::new() }
    }

    /// Adds the text of a TOML file; `name` is how messages call it.
    pub fn file(&mut self, name: &str, text: &str) {
        let shown = display::escape(name.as_bytes()).to_string();
        for entry in file::read(text) {
            let origin = Origin::File { name: shown.clone(), line: entry.line };
            match entry.content {
                Ok((key, raw)) => self.give(key, Given { origin, raw }),
                Err(message) => self.refuse(&origin, message),
            }
        }
    }

    /// Adds the environment: all of it, as [`std::env::vars_os`] has it. Only variables that begin
    /// with the prefix are looked at.
    pub fn environment<I, N, V>(&mut self, variables: I)
    where
        I: IntoIterator<Item = (N, V)>,
        N: AsRef<OsStr>,
        V: Into<OsString>,
    {
        for (name, value) in variables {
            let name = name.as_ref().to_string_lossy();
            let Some(rest) = name.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('_'))
            else {
                continue;
            };
            let key = rest.replacen("__", ".", 1).to_lowercase();
            let variable = display::escape(name.as_bytes()).to_string();
            let given =
                Given { origin: Origin::Environment { variable }, raw: Raw::Text(value.into()) };
            self.give(key, given);
        }
    }

    /// Takes a variable that has the prefix and is no option out of what was given.
    pub fn not_an_option(&mut self, variable: &str) {
        for given in self.given.values_mut() {
            given.retain(|given| {
                !matches!(&given.origin, Origin::Environment { variable: name } if name == variable)
            });
        }
    }

    /// Adds the value of a flag, for example `("wal.dir", "--wal-dir", dir)`.
    pub fn flag(&mut self, key: &str, name: &'static str, value: impl Into<OsString>) {
        let raw = Raw::Text(value.into());
        self.give(key.to_owned(), Given { origin: Origin::Flag { name }, raw });
    }

    /// A text that is not empty.
    pub fn text(&mut self, key: &'static str, default: &str, doc: &'static str) -> String {
        let shown = default.to_owned();
        self.take(key, shown, "a text that is not empty".to_owned(), doc, Raw::text)
            .unwrap_or_else(|| default.to_owned())
    }

    /// A path that is not empty.
    pub fn path(&mut self, key: &'static str, default: &Path, doc: &'static str) -> PathBuf {
        self.optional_path(key, Some(default), doc).unwrap_or_else(|| default.to_owned())
    }

    /// A path for which there may be no default.
    pub fn optional_path(
        &mut self,
        key: &'static str,
        default: Option<&Path>,
        doc: &'static str,
    ) -> Option<PathBuf> {
        let shown = default.map(|path| path.display().to_string()).unwrap_or_default();
        self.take(key, shown, "a path".to_owned(), doc, Raw::path)
            .or_else(|| default.map(Path::to_path_buf))
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str, default: bool, doc: &'static str) -> bool {
        self.take(key, default.to_string(), "true or false".to_owned(), doc, Raw::boolean)
            .unwrap_or(default)
    }

    /// A whole number.
    pub fn integer(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        doc: &'static str,
    ) -> u64 {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.take(key, default.to_string(), allowed, doc, |raw| raw.integer(&range))
            .unwrap_or(default)
    }

    /// A number of bytes: a whole number, or a text such as `"80 MB"` or `"1 GiB"`.
    pub fn bytes(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
        doc: &'static str,
    ) -> u64 {
        let (least, most) = (range.start(), range.end());
        let allowed = format!(
            "from {least} to {most} bytes, as a number or with a unit (\"80 MB\", \"1 GiB\")"
        );
        self.take(key, default.to_string(), allowed, doc, |raw| raw.bytes(&range))
            .unwrap_or(default)
    }

    /// A time in milliseconds; the key should end with `_ms`.
    pub fn millis(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
        doc: &'static str,
    ) -> Duration {
        let in_ms = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let range = in_ms(range.start())..=in_ms(range.end());
        let (least, most) = (range.start(), range.end());
        let allowed = format!("a whole number of milliseconds from {least} to {most}");
        self.take(key, in_ms(&default).to_string(), allowed, doc, |raw| raw.integer(&range))
            .map_or(default, Duration::from_millis)
    }

    /// A time in seconds; the key should end with `_seconds`.
    pub fn seconds(
        &mut self,
        key: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
        doc: &'static str,
    ) -> Duration {
        let range = range.start().as_secs()..=range.end().as_secs();
        let allowed =
            format!("a whole number of seconds from {} to {}", range.start(), range.end());
        let shown = default.as_secs().to_string();
        self.take(key, shown, allowed, doc, |raw| raw.integer(&range))
            .map_or(default, Duration::from_secs)
    }

    /// One of several words.
    ///
    /// # Panics
    /// If `default` is not one of them: a mistake in the program.
    pub fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        default: &str,
        choices: &[(&str, T)],
        doc: &'static str,
    ) -> T {
        let find =
            |word: &str| choices.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let allowed = format!("one of {}", names.join(", "));
        self.take(key, default.to_owned(), allowed, doc, |raw| find(&raw.text()?).ok_or(Refusal))
            .unwrap_or_else(|| find(default).expect("a default is one of the choices"))
    }

    /// A text that `read` makes something of; `allowed` says which texts those are.
    ///
    /// # Panics
    /// If it makes nothing of `default`: a mistake in the program.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        default: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
        doc: &'static str,
    ) -> T {
        let value = |raw: &Raw| read(&raw.text()?).ok_or(Refusal);
        self.take(key, default.to_owned(), allowed.to_owned(), doc, value)
            .unwrap_or_else(|| read(default).expect("a default is a text that can be read"))
    }

    /// A list of tables, `[[section.key]]` in the file; none by default. In the environment it is
    /// written as a list of inline tables, and replaces that in the file.
    ///
    /// `read` makes something of one table, and says there what is wrong with it; `allowed` says
    /// what a table is.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        read: impl Fn(&mut Row<'_>) -> T,
        doc: &'static str,
    ) -> Vec<T> {
        let mut strongest = Vec::new();
        for Given { origin, raw } in self.given.remove(key).unwrap_or_default() {
            let Ok(tables) = raw.tables() else {
                self.not_allowed(key, &origin, &raw, allowed);
                continue;
            };
            strongest = Vec::with_capacity(tables.len());
            for table in tables.iter() {
                let mut row = Row::new(table);
                strongest.push(read(&mut row));
                for (line, message) in row.finish() {
                    self.refuse(&origin.at_line(line), format!("{key}: {message}"));
                }
            }
        }
        self.declare(key, "[]".to_owned(), allowed.to_owned(), doc);
        strongest
    }

    /// Checks that nothing was given that nobody asked for, and that everything was right. Call it
    /// when all options have been asked for. Returns what there is to know about each of them.
    ///
    /// # Errors
    /// All mistakes, in all sources.
    pub fn finish(mut self) -> Result<Vec<OptionInfo>, ConfigError> {
        for (key, given) in std::mem::take(&mut self.given) {
            for given in given {
                let message = self.unknown(&key, &given.origin);
                self.refuse(&given.origin, message);
            }
        }
        if self.problems.is_empty() {
            Ok(self.options)
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }

    fn give(&mut self, key: String, given: Given) {
        let all = self.given.entry(key).or_default();
        let at = all.partition_point(|before| before.origin <= given.origin);
        all.insert(at, given);
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        default: String,
        allowed: String,
        doc: &'static str,
        read: impl Fn(&Raw) -> Result<T, Refusal>,
    ) -> Option<T> {
        let mut strongest = None;
        for Given { origin, raw } in self.given.remove(key).unwrap_or_default() {
            match read(&raw) {
                Ok(value) => strongest = Some(value),
                // A bad value is told even where another overrides it: it waits to bite.
                Err(Refusal) => self.not_allowed(key, &origin, &raw, &allowed),
            }
        }
        self.declare(key, default, allowed, doc);
        strongest
    }

    fn declare(&mut self, key: &'static str, default: String, allowed: String, doc: &'static str) {
        let variable = format!("{}_{}", self.prefix, key.replacen('.', "__", 1).to_uppercase());
        self.options.push(OptionInfo { key, variable, default, allowed, doc });
    }

    fn not_allowed(&mut self, key: &str, origin: &Origin, raw: &Raw, allowed: &str) {
        self.refuse(origin, format!("{key}: {raw} is not allowed; it takes {allowed}"));
    }

    fn refuse(&mut self, origin: &Origin, message: String) {
        self.problems.push(Problem { origin: origin.to_string(), message });
    }

    fn unknown(&self, key: &str, origin: &Origin) -> String {
        let in_environment = matches!(origin, Origin::Environment { .. });
        let shown = if in_environment {
            "no option has this name".to_owned()
        } else {
            format!("there is no option {}", display::escape(key.as_bytes()))
        };
        let plain = |key: &str| key.replace(['_', '.'], "");
        let closest = self
            .options
            .iter()
            .map(|option| (distance(&plain(option.key), &plain(key)), option))
            .min_by_key(|(distance, _)| *distance);
        match closest {
            Some((distance, option)) if distance <= 3 => {
                let name = if in_environment { &option.variable } else { option.key };
                format!("{shown}; did you mean {name}?")
            }
            _ => format!("{shown}; the options are in the documented configuration file"),
        }
    }
}

/// How many letters must be put in, taken out or changed. Names are short; longer ones than any
/// option are as far away as they are long.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 3 {
        return a.len().abs_diff(b.len());
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl Origin {
    /// A place within what was given there.
    fn at_line(&self, line: usize) -> Self {
        match self {
            Self::File { name, .. } => Self::File { name: name.clone(), line },
            other => other.clone(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Environment { variable } => f.write_str(variable),
            Self::Flag { name } => f.write_str(name),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => f.write_str("1 mistake in the configuration:")?,
            several => write!(f, "{several} mistakes in the configuration:")?,
        }
        for Problem { origin, message } in &self.problems {
            write!(f, "\n  {origin}: {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;
