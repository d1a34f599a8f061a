//! What procmond says of itself: lines on standard error.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;
use tracing::warn;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Which lines are written: a level, or levels of single parts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFilter(String);

/// A text that is neither a level nor a filter.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("not error, warn, info, debug, trace, off, or a filter such as procmond=debug")]
pub struct BadLogFilter;

/// Filters longer than this are nobody's.
const FILTER_BYTES_MAX: usize = 1024;

impl FromStr for LogFilter {
    type Err = BadLogFilter;

    fn from_str(text: &str) -> Result<Self, BadLogFilter> {
        // A lone word would be the name of a part, and a misspelt level silence all others.
        let is_directive =
            |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
        let is_filter = text.len() <= FILTER_BYTES_MAX
            && !text.is_empty()
            && text.split(',').all(is_directive)
            && EnvFilter::try_new(text).is_ok();
        if is_filter { Ok(Self(text.to_owned())) } else { Err(BadLogFilter) }
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Changes which lines are written from now on.
pub type SetLogFilter = Arc<dyn Fn(&LogFilter) + Send + Sync>;

/// Starts logging by `filter`; `RUST_LOG` overrides it until it is changed. Colours only on a
/// terminal and without `NO_COLOR`.
pub(crate) fn init(filter: &LogFilter) -> SetLogFilter {
    let first = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&filter.0));
    let colours = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(first)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .with_filter_reloading();
    let handle = lines.reload_handle();
    // A second call, as tests make, keeps the first subscriber.
    let _ = lines.try_init();
    Arc::new(move |filter| {
        if let Err(error) = handle.reload(EnvFilter::new(&filter.0)) {
            warn!(%error, "what is logged cannot be changed");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken_and_misspelt_levels_are_not() {
        for good in ["error", "WARN", "off", "procmond=debug", "info,procmond::wal=trace"] {
            assert_eq!(good.parse::<LogFilter>().unwrap().to_string(), good);
        }
        let long = format!("procmond={}", "x".repeat(FILTER_BYTES_MAX));
        for bad in ["", "loud", "info,loud", "procmond=loud", "a=b=c", &long] {
            assert_eq!(bad.parse::<LogFilter>(), Err(BadLogFilter), "{bad}");
        }
    }
}
