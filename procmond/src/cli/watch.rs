//! `procmond watch`: live events on the terminal, without a broker and without a log.

mod line;
mod users;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use daemoneye_lib::display;
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::models::process::SourceName;
use jiff::tz::TimeZone;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::monitor::tracker::{Ancestor, Departed, Tracker};
use crate::monitor::{BURST, INTERVAL_MAX, INTERVAL_MIN};
use crate::shutdown::Signals;
use crate::source::{Observation, SourceChoice, SourceOptions, Started};
use line::LineStyle;
use users::Users;

/// How long the last lines may take to be written after a signal: their reader may be stuck.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Arguments of `procmond watch`.
#[derive(Args, Debug)]
#[command(after_help = "\
Lines begin with the time and + (started), - (ended) or ~ (changed). With ebpf and netlink every \
process is seen; what polling cannot see is what lives shorter than the interval. Secrets in arguments are shown as [REDACTED].

With --tree a line says what a process descends from, the oldest first:
  init[1] › sshd[812] › bash[2001] › curl -s https://example.org
With --json it is the array \"ancestry\", the parent first.")]
pub struct WatchArgs {
    /// One JSON object a line, processes that are already there included
    #[arg(long)]
    json: bool,
    /// Show what each process descends from
    #[arg(long)]
    tree: bool,
    /// What to see processes with: auto, ebpf, netlink or poll
    #[arg(long, value_name = "SOURCE", default_value = "auto", hide_default_value = true)]
    source: SourceChoice,
    /// With poll: seconds between two looks at the process table
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = interval)]
    interval: Duration,
}

/// Events by kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    starts: u64,
    stops: u64,
    changes: u64,
}

/// Where events go and in which form.
struct Output<W> {
    out: W,
    form: Form,
    /// Whoever has ended may be somebody's ancestor, if ancestors are shown.
    tree: Option<Departed>,
    counts: Counts,
}

/// An event's JSON with what its process descends from.
#[derive(Serialize)]
struct WithAncestry<'a> {
    #[serde(flatten)]
    event: &'a Event,
    ancestry: &'a [Ancestor<'a>],
}

enum Form {
    Json,
    Lines(LineStyle),
}

/// How watching ended.
enum End {
    /// It was asked to, or whoever read the lines has gone.
    Asked,
    SourceEnded,
    Output(io::Error),
}

/// Watches until a signal, or until nobody reads the lines any more.
#[must_use]
pub fn run(args: &WatchArgs) -> ExitCode {
    for problem in super::confine() {
        eprintln!("procmond: {problem}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(watch(args)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("procmond: {error}");
            ExitCode::FAILURE
        }
    }
}

type WatchError = Box<dyn std::error::Error + Send + Sync>;

async fn watch(args: &WatchArgs) -> Result<(), WatchError> {
    let mut signals = Signals::listen()?;
    let began = Instant::now();
    let Started { name, instead, handle, observations } =
        args.source.start(SourceOptions::every(args.interval))?;
    for why_not in instead {
        eprintln!("procmond: {}", display::escape(why_not.to_string().as_bytes()));
    }
    let form = if args.json { Form::Json } else { Form::Lines(style()) };
    let tree = args.tree.then(Departed::default);
    let mut tracker = Tracker::new();
    let about = match name {
        SourceName::Poll => format!("with {name}, every {} s", args.interval.as_secs_f64()),
        SourceName::Ebpf | SourceName::Netlink => format!("with {name}"),
    };
    let (done, mut ended) = oneshot::channel();
    // A thread of its own: a terminal that is held, or a pipe nobody reads, must not keep us from
    // hearing a signal.
    thread::Builder::new().name("procmond-out".to_owned()).spawn(move || {
        let out = io::stdout().lock();
        let mut output = Output { out, form, tree, counts: Counts::default() };
        let end = output.show_all(observations, &mut tracker, &about);
        // Nobody waits any longer for a thread that took too long.
        let _ = done.send((end, output.counts));
    })?;
    let outcome = tokio::select! {
        () = signals.recv() => {
            handle.stop();
            tokio::time::timeout(LAST_LINES, ended).await.ok().and_then(Result::ok)
        }
        outcome = &mut ended => outcome.ok(),
    };
    let Some((end, counts)) = outcome else { return Ok(()) };
    // The signal's ^C stands at the beginning of the line.
    let newline = if io::stderr().is_terminal() { "\r" } else { "" };
    eprintln!("{newline}procmond: saw {} in {}", counts.text(), line::duration(began.elapsed()));
    match end {
        End::Asked => Ok(()),
        End::SourceEnded => Err("the source stopped observing by itself".into()),
        End::Output(error) => Err(format!("cannot write to standard output: {error}").into()),
    }
}

/// Lines for people; colours and a width only on a terminal.
fn style() -> LineStyle {
    let terminal = io::stdout().is_terminal();
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    LineStyle {
        colour: terminal && !set("NO_COLOR") && !dumb,
        follow_width: terminal,
        zone: TimeZone::system(),
        users: Users::load(),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|interval| (INTERVAL_MIN..=INTERVAL_MAX).contains(interval))
        .ok_or_else(|| {
            let (least, most) = (INTERVAL_MIN.as_secs_f64(), INTERVAL_MAX.as_secs_f64());
            format!("not between {least} and {most} seconds")
        })
}

impl<W: Write> Output<W> {
    /// Shows what is observed until the source ends or nobody reads.
    fn show_all(
        &mut self,
        mut observations: mpsc::Receiver<Observation>,
        tracker: &mut Tracker,
        about: &str,
    ) -> End {
        let mut watching = false;
        while let Some(observation) = observations.blocking_recv() {
            if let Observation::Failed(error) = &observation {
                let error = error.to_string();
                eprintln!("procmond: {}", display::escape(error.as_bytes()));
                continue;
            }
            let events = tracker.observe(observation);
            if events.len() >= BURST {
                crate::heap::give_back();
            }
            if !std::mem::replace(&mut watching, true) {
                let count = tracker.len();
                eprintln!("procmond: watching {count} processes {about}; Ctrl-C to stop");
                if matches!(self.form, Form::Lines(_)) {
                    continue;
                }
            }
            match self.show(&events, tracker) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return End::Asked,
                Err(error) => return End::Output(error),
            }
        }
        if watching { End::Asked } else { End::SourceEnded }
    }

    fn show(&mut self, events: &[Event], tracker: &Tracker) -> io::Result<()> {
        if let Some(departed) = &mut self.tree {
            departed.note(events);
        }
        for event in events {
            let ancestry = match (event, &self.tree) {
                (Event::Process(event), Some(departed)) => {
                    Some(tracker.ancestry_of(event, departed))
                }
                _ => None,
            };
            let ancestry = ancestry.as_deref();
            match event.kind() {
                EventKind::Start => self.counts.starts += 1,
                EventKind::Stop => self.counts.stops += 1,
                EventKind::Modify => self.counts.changes += 1,
                EventKind::Gap => {}
            }
            match (&self.form, event) {
                (Form::Json, event) => {
                    match ancestry {
                        Some(ancestry) => {
                            serde_json::to_writer(
                                &mut self.out,
                                &WithAncestry { event, ancestry },
                            )?;
                        }
                        None => serde_json::to_writer(&mut self.out, event)?,
                    }
                    writeln!(self.out)?;
                }
                (Form::Lines(style), Event::Process(event)) => {
                    writeln!(self.out, "{}", style.line(event, tracker, ancestry))?;
                }
                (Form::Lines(_), Event::Gap(gap)) => {
                    writeln!(self.out, "{}", display::escape(gap.detail.as_bytes()))?;
                }
            }
        }
        self.out.flush()
    }
}

impl Counts {
    fn text(&self) -> String {
        let of =
            |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        format!(
            "{}, {} and {}",
            of(self.starts, "start"),
            of(self.stops, "stop"),
            of(self.changes, "change")
        )
    }
}

#[cfg(test)]
mod tests;
