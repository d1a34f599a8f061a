//! `eventbus sub`: print what is published.

mod line;
mod source;

use std::io::{self, BufWriter};
use std::time::Duration;

use clap::Args;
use daemoneye_eventbus::TopicPattern;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::line::{Form, Printer};
use self::source::{Ended, Source};
use crate::connect::{Bus, Pauses, name, seconds};
use crate::failure::Failure;
use crate::stop::Stop;
use crate::terminal::{Terminal, say};

/// No `--timeout`.
const FOR_EVER: Duration = Duration::from_secs(30 * 366 * 86_400);

/// Arguments of `eventbus sub`.
#[derive(Debug, Args)]
#[command(after_help = "\
Patterns: * is one segment, # at the end is one or more: 'events.process.*', 'events.#', '#'. Quote \
them.

A live subscriber that is too slow misses the oldest and is told how many. A durable consumer misses \
nothing, and what it has not been given yet is kept for it by the publishers, also while it is away: \
come back under the same name, or have it forgotten (--forget, `eventbus forget`), or the publishers' \
logs grow. What was printed is committed; if this command is killed in between, it is printed again.

With --json a line has topic, stream, sequence, span, epoch, time_ns and one of event (a DaemonEye \
event), text or hex; a control message has topic, time_ns, reply_to, correlation, retained and one of json, text \
or hex. {\"missed\":N} says that N were missed here, {\"missed\":null} that nobody knows how many.")]
pub(crate) struct SubArgs {
    /// Which topics
    #[arg(required = true, value_name = "PATTERN", value_parser = pattern)]
    patterns: Vec<TopicPattern>,
    /// As the durable consumer of this name: everything, in order, committed once printed
    #[arg(long, value_name = "NAME", value_parser = name)]
    durable: Option<String>,
    /// Have the broker forget the durable consumer at the end, so that nothing is kept for it
    #[arg(long, requires = "durable")]
    forget: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// End after so many events and messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long; exit code 1 if --count was given and not reached
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// End when the connection does, instead of connecting again
    #[arg(long)]
    no_reconnect: bool,
    /// How this client is called
    #[arg(long, value_name = "NAME", default_value = "eventbus-sub", value_parser = name)]
    id: String,
    /// Keep at most so many bytes for this reader when it is too slow, here and in the broker
    #[arg(long, value_name = "N", default_value_t = 4 * 1024 * 1024, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "durable")]
    queue_bytes: u32,
    /// Keep at most so many events for this reader when it is too slow, here and in the broker
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "durable")]
    queue_events: u32,
}

/// How far we got.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    /// As many as were wanted.
    Counted,
    /// It was asked to end.
    Asked,
    /// The time is over.
    TimedOut,
}

/// Prints until there is a reason to end.
pub(crate) async fn sub(bus: &Bus, args: &SubArgs) -> Result<(), Failure> {
    let mut stop = Stop::listen_and_end()?;
    let deadline = Instant::now() + args.timeout.unwrap_or(FOR_EVER);
    let form = if args.json { Form::Json } else { Form::Lines(Terminal::stdout()) };
    let mut printer = Printer::new(BufWriter::new(io::stdout()), form, args.count);
    let mut source = Source::new(bus, args);
    let mut connecting = Box::pin(source.connect());
    let connected = tokio::select! {
        connected = timeout_at(deadline, &mut connecting) => connected,
        () = stop.asked() => return Ok(()),
    };
    drop(connecting);
    match connected {
        Ok(connected) => connected?,
        Err(_) => return args.timed_out(&printer),
    }
    loop {
        let why = match source.print(&mut printer, &mut stop, deadline).await? {
            Ended::Done(done) => {
                source.leave().await;
                return match done {
                    Done::Counted | Done::Asked => Ok(()),
                    Done::TimedOut => args.timed_out(&printer),
                };
            }
            Ended::Closed(why) => why,
        };
        let ended = format!("the connection to the broker has ended: {why}");
        if args.no_reconnect || !why.may_retry() {
            return Err(Failure::Failed(ended));
        }
        say(&format!("{ended}; connecting again"));
        let mut pauses = Pauses::new();
        loop {
            tokio::select! {
                () = sleep(pauses.next()) => {}
                () = sleep_until(deadline) => return args.timed_out(&printer),
                () = stop.asked() => return Ok(()),
            }
            match source.connect().await {
                Ok(()) => break,
                Err(failure) if source.may_retry() => drop(failure),
                Err(failure) => return Err(failure),
            }
        }
        say("connected again");
        if args.durable.is_none() {
            printer.missed(None)?;
        }
    }
}

impl SubArgs {
    fn timed_out<W: io::Write>(&self, printer: &Printer<W>) -> Result<(), Failure> {
        match self.count {
            Some(count) => Err(Failure::Failed(format!(
                "{} of {count} came within the time given",
                printer.printed()
            ))),
            None => Ok(()),
        }
    }
}

fn pattern(text: &str) -> Result<TopicPattern, String> {
    TopicPattern::new(text).map_err(|error| error.to_string())
}
