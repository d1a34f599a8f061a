//! `eventbus serve`: a broker that stands alone.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use daemoneye_eventbus::{Broker, BrokerOptions};
use daemoneye_lib::display::escape;
use tracing_subscriber::EnvFilter;

use crate::connect::{name, seconds};
use crate::failure::Failure;
use crate::stop::Stop;
use crate::terminal::say;

/// Arguments of `eventbus serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
The broker keeps no files: what is not committed by every durable consumer stays with its publisher. \
RUST_LOG says what is logged to standard error; warn by default.")]
pub(crate) struct ServeArgs {
    /// Let no publisher in before the durable consumer of this name is there; may be given several
    /// times
    #[arg(long, value_name = "NAME", value_parser = name)]
    require: Vec<String>,
    /// Let this user in, beside our own and root; may be given several times. The socket's directory
    /// must let them pass, and then every client says --trust-uid with our number
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,
    /// How long peers may take to read what is left for them when the broker ends
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    drain: Duration,
    /// Bytes of entries a publisher may have unacknowledged
    #[arg(long, value_name = "N", default_value_t = defaults().credit_bytes, value_parser = clap::value_parser!(u64).range(1..))]
    credit_bytes: u64,
    /// Bytes delivered to a durable consumer and not committed, for each stream
    #[arg(long, value_name = "N", default_value_t = defaults().in_flight_bytes, value_parser = at_least::<1>)]
    in_flight_bytes: usize,
    /// The longest frame taken; 16 MiB at most
    #[arg(long, value_name = "N", default_value_t = defaults().frame_bytes_max, value_parser = frame_bytes)]
    frame_bytes_max: usize,
    /// Each side sends something at least this often; who is silent three times is dropped
    #[arg(long, value_name = "SECONDS", default_value_t = Seconds(defaults().heartbeat), value_parser = pause)]
    heartbeat: Seconds,
    /// How long a new connection may take to introduce itself
    #[arg(long, value_name = "SECONDS", default_value_t = Seconds(defaults().handshake), value_parser = pause)]
    handshake: Seconds,
    /// Connections at most
    #[arg(long, value_name = "N", default_value_t = defaults().connections_max, value_parser = at_least::<1>)]
    connections_max: usize,
    /// Subscriptions of one connection at most
    #[arg(long, value_name = "N", default_value_t = defaults().subscriptions_max, value_parser = at_least::<1>)]
    subscriptions_max: usize,
    /// Bytes that the queues of one connection may hold together
    #[arg(long, value_name = "N", default_value_t = defaults().queue_bytes_max, value_parser = at_least::<4096>)]
    queue_bytes_max: usize,
    /// Bytes of entries held for durable consumers, of all streams together
    #[arg(long, value_name = "N", default_value_t = defaults().held_bytes_max, value_parser = clap::value_parser!(u64).range(1..))]
    held_bytes_max: u64,
    /// Requests of one connection in a second
    #[arg(long, value_name = "N", default_value_t = defaults().request_rate, value_parser = clap::value_parser!(u32).range(1..))]
    request_rate: u32,
    /// Requests of one connection at once, after a time without any
    #[arg(long, value_name = "N", default_value_t = defaults().request_burst, value_parser = clap::value_parser!(u32).range(1..))]
    request_burst: u32,
    /// Bytes of unread replies and the like after which a peer is cut off
    #[arg(long, value_name = "N", default_value_t = defaults().control_bytes_max, value_parser = at_least::<4096>)]
    control_bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_secs_f64().fmt(f)
    }
}

fn defaults() -> BrokerOptions {
    BrokerOptions::new("")
}

fn at_least<const LEAST: usize>(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if number < LEAST { Err(format!("less than {LEAST}")) } else { Ok(number) }
}

fn frame_bytes(text: &str) -> Result<usize, String> {
    let number = at_least::<4096>(text)?;
    let most = defaults().frame_bytes_max;
    if number > most { Err(format!("more than {most}")) } else { Ok(number) }
}

fn pause(text: &str) -> Result<Seconds, String> {
    match seconds(text)? {
        none if none < Duration::from_millis(1) => Err("less than 0.001".to_owned()),
        pause => Ok(Seconds(pause)),
    }
}

/// Serves until it is asked to end; then every peer takes what is left for it, and is told.
pub(crate) async fn serve(socket: &Path, args: &ServeArgs) -> Result<(), Failure> {
    log_to_stderr()?;
    let mut stop = Stop::listen()?;
    let mut allowed_uids = defaults().allowed_uids;
    allowed_uids.extend_from_slice(&args.allow_uid);
    let options = BrokerOptions {
        allowed_uids,
        required_consumers: args.require.clone(),
        credit_bytes: args.credit_bytes,
        in_flight_bytes: args.in_flight_bytes,
        frame_bytes_max: args.frame_bytes_max,
        heartbeat: args.heartbeat.0,
        handshake: args.handshake.0,
        connections_max: args.connections_max,
        subscriptions_max: args.subscriptions_max,
        queue_bytes_max: args.queue_bytes_max,
        held_bytes_max: args.held_bytes_max,
        request_rate: args.request_rate,
        request_burst: args.request_burst,
        control_bytes_max: args.control_bytes_max,
        socket: socket.to_owned(),
    };
    let broker = Broker::bind(options).await.map_err(Failure::failed)?;
    let shown = escape(socket.as_os_str().as_encoded_bytes()).to_string();
    say(&format!("listening on {shown}"));
    stop.asked().await;
    say("ending");
    broker.shutdown(args.drain).await;
    Ok(())
}

fn log_to_stderr() -> Result<(), Failure> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::builder()
            .parse(&text)
            .map_err(|error| Failure::Usage(format!("RUST_LOG is not a filter: {error}")))?,
        _ => EnvFilter::new("warn"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // Would print to the very stream that failed, and panic.
        .log_internal_errors(false)
        .init();
    Ok(())
}
