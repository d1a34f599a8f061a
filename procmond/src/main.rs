//! The `procmond` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use procmond::cli::{check, run, wal, watch};

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
    /// Show events live on the terminal, without a broker and without a log
    Watch(watch::WatchArgs),
    /// Say what would work, what would not, and why
    Check(check::CheckArgs),
    /// Look into a log directory, live or damaged
    Wal(wal::WalArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Wal(args) => wal::run(&args),
    }
}
