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
    #[cfg(unix)]
    if let Err(error) = outlive_file_size_limit() {
        eprintln!("procmond: a limit of file size would end this process: {error}");
    }
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Wal(args) => wal::run(&args),
    }
}

/// Where a file may not grow any further (`RLIMIT_FSIZE`, `ulimit -f`) the system sends a signal
/// that ends the process. With a handler for it the write fails instead, and whoever wrote says
/// why: the log leaves the segment for the next, or refuses and goes on.
#[cfg(unix)]
fn outlive_file_size_limit() -> std::io::Result<()> {
    use rustix::process::Signal;
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    // The handler stays when nobody listens any more.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}
