//! `daemoneye-agent events`: what the store holds, and what comes in.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use daemoneye_eventbus::TopicPattern;
use daemoneye_lib::stream::wall_clock_ns;
use jiff::Timestamp;

use super::CliError;
use crate::render::{EventPrinter, Format};
use crate::store::{EventFilter, EventReader};

/// How often a follower looks for new events. A look at nothing new costs one index read.
const POLL: Duration = Duration::from_millis(100);

/// How many earlier events a follower shows first, where no limit is given.
const FOLLOW_LIMIT: usize = 10;

/// Which events to show.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EventsArgs {
    /// Only topics that match PATTERN, for example 'events.process.*' or 'events.#'
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    pub topic: Option<TopicPattern>,
    /// Only events at or after T: RFC 3339 (2026-01-31T12:00:00Z) or so long ago (30s, 10m, 2h, 1d)
    #[arg(long, value_name = "T", value_parser = parse_since_now)]
    pub since: Option<i64>,
    /// Only events of the process with this pid
    #[arg(long, value_name = "N")]
    pub pid: Option<u32>,
    /// Only the newest N events; with --follow 10 if not given, otherwise all
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Go on showing events as they are stored
    #[arg(long)]
    pub follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// Shows stored events on standard output.
///
/// # Errors
/// When there is no store, it cannot be read, or the output cannot be written.
pub fn events(database: &Path, args: &EventsArgs) -> Result<(), CliError> {
    let reader = EventReader::open(database).map_err(CliError::failed)?;
    let filter = EventFilter { topic: args.topic.clone(), since_ns: args.since, pid: args.pid };
    let out = BufWriter::new(io::stdout());
    let printer = EventPrinter::new(out, Format::for_stdout(args.json));
    let mut follower = Follower::new(reader, filter, printer)?;
    let limit = args.limit.or(args.follow.then_some(FOLLOW_LIMIT));
    follower.earlier(limit)?;
    if !args.follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(POLL);
        follower.step()?;
    }
}

/// Prints what is stored, in the order it arrives.
#[derive(Debug)]
pub struct Follower<W> {
    reader: EventReader,
    filter: EventFilter,
    printer: EventPrinter<W>,
    shown: i64,
}

impl<W: Write> Follower<W> {
    /// Begins after what is stored now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(
        reader: EventReader,
        filter: EventFilter,
        printer: EventPrinter<W>,
    ) -> Result<Self, CliError> {
        let shown = reader.last_rowid().map_err(CliError::failed)?;
        Ok(Self { reader, filter, printer, shown })
    }

    /// Prints what was stored before, the newest `limit` or all of it.
    ///
    /// # Errors
    /// When the store cannot be read or the output cannot be written.
    pub fn earlier(&mut self, limit: Option<usize>) -> Result<(), CliError> {
        let Self { reader, filter, printer, shown } = self;
        let mut written = Ok(());
        reader
            .until(*shown, filter, limit, |event| {
                written = printer.print(&event);
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .map_err(CliError::failed)?;
        written.and_then(|()| printer.flush()).map_err(CliError::output)
    }

    /// Prints what was stored since the last look.
    ///
    /// # Errors
    /// When the store cannot be read or the output cannot be written.
    pub fn step(&mut self) -> Result<(), CliError> {
        let Self { reader, filter, printer, shown } = self;
        let newest = reader.last_rowid().map_err(CliError::failed)?;
        if newest <= *shown {
            return Ok(());
        }
        let mut written = Ok(());
        reader
            .arrived(*shown, newest, filter, |event| {
                written = printer.print(&event);
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .map_err(CliError::failed)?;
        written.and_then(|()| printer.flush()).map_err(CliError::output)?;
        *shown = newest;
        Ok(())
    }
}

fn parse_pattern(text: &str) -> Result<TopicPattern, String> {
    TopicPattern::new(text).map_err(|error| error.to_string())
}

fn parse_since_now(text: &str) -> Result<i64, String> {
    parse_since(text, wall_clock_ns())
}

/// Reads a point in time, absolute or as an age at `now_ns`.
fn parse_since(text: &str, now_ns: i64) -> Result<i64, String> {
    if let Some(age_ns) = parse_age(text) {
        return Ok(now_ns.saturating_sub(age_ns));
    }
    let time: Timestamp = text.parse().map_err(|_| {
        "neither a time like 2026-01-31T12:00:00Z nor an age like 30s, 10m, 2h or 1d".to_owned()
    })?;
    Ok(i64::try_from(time.as_nanosecond()).unwrap_or(if time.as_second() < 0 {
        i64::MIN
    } else {
        i64::MAX
    }))
}

/// `10m` and the like in nanoseconds; ages beyond what fits count as the longest that does.
fn parse_age(text: &str) -> Option<i64> {
    let seconds_each = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse::<i64>().unwrap_or(i64::MAX);
    Some(count.saturating_mul(seconds_each).saturating_mul(1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_read_in_both_forms() {
        let second = 1_000_000_000;
        let now = 1_000_000 * second;
        assert_eq!(parse_since("30s", now), Ok(now - 30 * second));
        assert_eq!(parse_since("10m", now), Ok(now - 600 * second));
        assert_eq!(parse_since("2h", now), Ok(now - 7_200 * second));
        assert_eq!(parse_since("1d", now), Ok(now - 86_400 * second));
        assert_eq!(parse_since("1970-01-01T00:00:10Z", now), Ok(10 * second));
        assert_eq!(parse_since("1970-01-01T01:00:00.5+01:00", now), Ok(second / 2));
        assert_eq!(parse_since("9999999999999999999d", 0), Ok(-i64::MAX));
        for wrong in ["", "m", "-5m", "10", "10x", "yesterday", "5 m", "µs", "２h"] {
            assert!(parse_since(wrong, now).is_err(), "{wrong:?}");
        }
    }
}
