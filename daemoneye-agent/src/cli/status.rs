//! `daemoneye-agent status`: what a running agent says, or what an ended one left.

mod table;

use std::io::{self, Write};
use std::time::Duration;

use daemoneye_eventbus::{Client, ClientOptions, Role, Topic};
use daemoneye_lib::topics;
use serde_json::json;

use super::{CliError, chain};
use crate::config::Config;
use crate::status::{AgentStatus, StoreStatus};
use crate::store::{EventReader, StoreError, StoreFigures};

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What `status` takes besides the common options.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct StatusArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Nobody answered.
#[derive(Debug, thiserror::Error)]
#[error("no daemoneye-agent answers on {socket}: {why}; start one with `daemoneye-agent run`")]
struct NotRunning {
    socket: String,
    why: String,
}

/// Shows the status on standard output.
///
/// # Errors
/// When no agent answers (after showing what its database says), or the output cannot be written.
pub fn status(config: &Config, args: StatusArgs) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::failed)?;
    let mut out = io::stdout().lock();
    match runtime.block_on(ask(config)) {
        Ok(status) => {
            let written = if args.json {
                json_line(&mut out, &status)
            } else {
                table::running(&mut out, &status)
            };
            written.and_then(|()| out.flush()).map_err(CliError::output)
        }
        Err(why) => {
            let left = left_behind(config)?;
            let written = if args.json {
                json_line(&mut out, &json!({ "agent": null, "store": left }))
            } else {
                table::ended(&mut out, left.as_ref())
            };
            written.and_then(|()| out.flush()).map_err(CliError::output)?;
            let socket = config.socket.display().to_string();
            Err(CliError::failed(NotRunning { socket, why }))
        }
    }
}

fn json_line(out: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// Asks the agent; why not, in words, if there is no answer.
async fn ask(config: &Config) -> Result<AgentStatus, String> {
    let options = ClientOptions::new("daemoneye-agent-status", Role::Subscriber);
    let client = Client::connect(&config.socket, options).await.map_err(|error| chain(&error))?;
    let topic = Topic::new(topics::HEALTH_STATUS).map_err(|error| chain(&error))?;
    let answer =
        client.request(&topic, bytes::Bytes::new(), ANSWER).await.map_err(|error| chain(&error))?;
    client.goodbye().await;
    serde_json::from_slice(&answer)
        .map_err(|error| format!("its answer is not understood: {error}"))
}

/// What the database of an agent that does not run says; `None` if there is none.
fn left_behind(config: &Config) -> Result<Option<StoreStatus>, CliError> {
    let path = config.state.database();
    let reader = match EventReader::open(&path) {
        Ok(reader) => reader,
        Err(StoreError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(CliError::failed(error)),
    };
    let streams = reader.streams().map_err(CliError::failed)?;
    Ok(Some(StoreStatus::new(path, StoreFigures { streams, ..StoreFigures::default() })))
}
