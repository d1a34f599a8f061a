//! `daemoneye-agent events`: what the store holds, and what comes in.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use daemoneye_eventbus::TopicPattern;
use daemoneye_lib::since::parse_since;
use daemoneye_lib::stream::wall_clock_ns;

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
