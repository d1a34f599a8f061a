//! `eventbus pub`: publish events, or send a message or a request.

mod lines;
mod window;

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use daemoneye_eventbus::{Ack, AckLevel, Client, Epoch, Position, Role, Sequence, StreamId, Topic};
use daemoneye_lib::display::escape_json;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use self::lines::{Line, Lines};
use self::window::Window;
use crate::connect::{Bus, name, seconds};
use crate::failure::Failure;
use crate::stop::Stop;

/// Arguments of `eventbus pub`.
#[derive(Debug, Args)]
#[command(after_help = "\
Events (events.*) are published with sequences, each run a stream of its own, and acknowledged: \
committed when every durable consumer that wants them has committed them, accepted when there is none. \
Any other topic is a message, which nobody acknowledges; with --request its answer is printed.

Which role is taken follows from the topic: a subscriber may ask control.health.status and \
control.broker.stats, a collector publishes events.* and sends control.collector.registration and \
control.health.heartbeat.<its own --id>. All else under control.* is the agent's.

An agent stores whatever is published under events.process.")]
pub(crate) struct PubArgs {
    /// The topic
    #[arg(value_parser = topic)]
    topic: Topic,
    /// What to publish, each an event or message of its own; - for the lines of standard input
    #[arg(value_name = "PAYLOAD")]
    payloads: Vec<OsString>,
    /// Wait for the answer to a message and print it
    #[arg(long)]
    request: bool,
    /// Print one JSON object instead of a sentence
    #[arg(long, conflicts_with = "request")]
    json: bool,
    /// How long an answer, or the next acknowledgement, may take
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    /// How this client is called
    #[arg(long, value_name = "NAME", default_value = "eventbus-pub", value_parser = name)]
    id: String,
}

/// What became of the events.
#[derive(Serialize)]
struct Published {
    stream: StreamId,
    events: u64,
    acknowledged: Sequence,
    level: AckLevel,
}

/// Publishes or sends, and prints what came of it.
pub(crate) async fn publish(bus: &Bus, args: &PubArgs) -> Result<(), Failure> {
    let stop = Stop::listen()?;
    let is_event = args.topic.as_str().starts_with("events.");
    if is_event && args.request {
        let text = "events are not answered: --request is for control topics";
        return Err(Failure::Usage(text.to_owned()));
    }
    if is_event && args.payloads.is_empty() {
        let text = "nothing to publish: name what, or - for the lines of standard input";
        return Err(Failure::Usage(text.to_owned()));
    }
    let lines = Lines::new(&args.payloads)?;
    if is_event {
        publish_events(bus, args, lines, stop).await
    } else {
        send(bus, args, lines, stop).await
    }
}

async fn publish_events(
    bus: &Bus,
    args: &PubArgs,
    mut lines: Lines,
    mut stop: Stop,
) -> Result<(), Failure> {
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let (first_unacknowledged, last) = (Sequence::FIRST, Sequence::NONE);
    let position = Position { stream, epoch, first_unacknowledged, last };
    let options = bus.client(&args.id, Role::Collector);
    let (client, publisher) = Client::connect_publisher(&bus.socket, options, position).await?;
    let mut acks = publisher.acks();
    let mut window =
        Window::new(stream, epoch, publisher.credit_bytes(), publisher.frame_bytes_max());
    let mut newest: Option<Ack> = None;
    let mut patience = Instant::now() + args.timeout;
    let mut interrupted = false;
    let mut reading = true;
    // Why there are no more lines; those before it are published all the same.
    let mut failed: Option<String> = None;
    // A line that did not fit yet.
    let mut next: Option<Bytes> = None;
    while reading || next.is_some() || !window.is_settled() {
        if let Some(payload) = next.take() {
            next = window.take(&args.topic, payload);
            // What else is at hand goes with it.
            while next.is_none()
                && let Some(line) = lines.at_hand()
            {
                match line {
                    Line::Payload(payload) => next = window.take(&args.topic, payload),
                    Line::Failed(error) => failed = Some(error),
                }
            }
            if let Some(batch) = window.batch() {
                publisher.publish(&batch).await.map_err(Failure::failed)?;
                patience = Instant::now() + args.timeout;
            }
        }
        tokio::select! {
            ack = acks.next() => {
                let ack = ack.map_err(|gone| {
                    window.failure(newest, &gone.to_string())
                })?;
                window.acknowledged(ack.sequence);
                newest = Some(ack);
                patience = Instant::now() + args.timeout;
            }
            line = lines.next(), if reading && next.is_none() => match line {
                Some(Line::Payload(payload)) => next = Some(payload),
                Some(Line::Failed(error)) => failed = Some(error),
                None => reading = false,
            },
            () = sleep_until(patience), if next.is_some() || !window.is_settled() => {
                let why = if interrupted {
                    "interrupted".to_owned()
                } else {
                    format!(
                        "no acknowledgement within {:?}: a durable consumer has not committed; \
                         `eventbus stat` shows which",
                        args.timeout
                    )
                };
                return Err(window.failure(newest, &why));
            }
            () = stop.asked(), if !interrupted => {
                interrupted = true;
                reading = false;
                next = None;
                patience = Instant::now() + INTERRUPTED;
            }
        }
    }
    client.goodbye().await;
    if let Some(why) = failed {
        return Err(window.failure(newest, &why));
    }
    let Some(ack) = newest else { return Ok(()) };
    args.say(&Published {
        stream,
        events: window.events(),
        acknowledged: ack.sequence,
        level: ack.level,
    })
}

/// How long acknowledgements are awaited after an interruption.
const INTERRUPTED: Duration = Duration::from_secs(1);

impl PubArgs {
    fn say(&self, published: &Published) -> Result<(), Failure> {
        let mut out = io::stdout();
        let text = if self.json {
            escape_json(serde_json::to_string(published).map_err(Failure::failed)?)
        } else {
            let events = match published.events {
                1 => "1 event".to_owned(),
                several => format!("{several} events"),
            };
            let what = match published.level {
                AckLevel::Committed => {
                    "committed: every durable consumer that wants them has stored them"
                }
                AckLevel::Accepted => {
                    "accepted: no durable consumer wants them; live subscribers were given them"
                }
            };
            format!("{events} of stream {} {what}", published.stream)
        };
        writeln!(out, "{text}").map_err(Failure::output)
    }
}

async fn send(bus: &Bus, args: &PubArgs, mut lines: Lines, mut stop: Stop) -> Result<(), Failure> {
    let asks = matches!(
        args.topic.as_str(),
        daemoneye_lib::topics::HEALTH_STATUS | daemoneye_lib::topics::BROKER_STATS
    );
    let role = if asks { Role::Subscriber } else { Role::Collector };
    let client = Client::connect(&bus.socket, bus.client(&args.id, role)).await?;
    let mut sent = 0;
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = stop.asked() => None,
        };
        let payload = match line {
            Some(Line::Payload(payload)) => payload,
            Some(Line::Failed(error)) => return Err(Failure::Failed(error)),
            None => break,
        };
        if args.request {
            let answer = tokio::select! {
                answer = client.request(&args.topic, payload, args.timeout) => answer?,
                () = stop.asked() => break,
            };
            print_answer(&answer)?;
        } else {
            client.send(&args.topic, payload).await.map_err(Failure::failed)?;
        }
        sent += 1;
    }
    client.goodbye().await;
    if !args.request {
        let mut out = io::stdout();
        let text = if args.json {
            serde_json::json!({ "sent": sent }).to_string()
        } else {
            format!("{sent} sent; messages are not acknowledged")
        };
        writeln!(out, "{text}").map_err(Failure::output)?;
    }
    Ok(())
}

/// An answer is JSON by custom; anything else is shown as text a terminal may have.
fn print_answer(answer: &[u8]) -> Result<(), Failure> {
    let text = match serde_json::from_slice::<serde_json::Value>(answer) {
        Ok(json) => escape_json(json.to_string()),
        Err(_) => daemoneye_lib::display::escape(answer).to_string(),
    };
    writeln!(io::stdout(), "{text}").map_err(Failure::output)
}

fn topic(text: &str) -> Result<Topic, String> {
    Topic::new(text).map_err(|error| error.to_string())
}
