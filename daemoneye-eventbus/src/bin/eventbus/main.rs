//! `eventbus`: the bus for people. Everything here uses the crate as anybody could.

mod connect;
mod failure;
mod forget;
mod publish;
mod serve;
mod stat;
mod stop;
mod sub;
mod terminal;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime::Builder;

use self::failure::Failure;

/// Subscribes to the local event bus, publishes on it, looks into its broker, or is one
#[derive(Debug, Parser)]
#[command(name = "eventbus", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    bus: connect::BusArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what is published, live or as a durable consumer
    Sub(sub::SubArgs),
    /// Publish events, or send a message or a request
    Pub(publish::PubArgs),
    /// Look into the broker: connections, rates, queues, credit, and how far consumers lag behind
    Stat(stat::StatArgs),
    /// Have the broker forget a durable consumer that does not come back
    Forget(forget::ForgetArgs),
    /// Be a broker, until SIGTERM or Ctrl-C
    Serve(serve::ServeArgs),
    /// Print a completion script for a shell
    #[command(after_help = "\
For bash: eventbus completions bash > ~/.local/share/bash-completion/completions/eventbus")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    match perform(Cli::parse()) {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::say(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn perform(cli: Cli) -> Result<(), Failure> {
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "eventbus", &mut script);
        return io::Write::write_all(&mut io::stdout(), &script).map_err(Failure::output);
    }
    let bus = cli.bus.resolve()?;
    // One thread serves the connection, so that heartbeats go on while the other is held up by
    // whoever reads our output.
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let done = runtime.block_on(async {
        match &cli.command {
            Command::Sub(args) => sub::sub(&bus, args).await,
            Command::Pub(args) => publish::publish(&bus, args).await,
            Command::Stat(args) => stat::stat(&bus, args).await,
            Command::Forget(args) => forget::forget(&bus, args).await,
            Command::Serve(args) => serve::serve(&bus.socket, args).await,
            Command::Completions { .. } => Ok(()),
        }
    });
    // Standard input may be blocked for ever in a thread of its own.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
