//! The `procmond` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use procmond::cli::run;

/// Sees every process start, change and stop, logs it durably and delivers it over a local bus.
#[derive(Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Collect process events into the log and deliver them to the broker
    Run(run::RunArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
    }
}
