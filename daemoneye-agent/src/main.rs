//! The `daemoneye-agent` command; everything it does is in the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use daemoneye_agent::cli::{self, Cli, CliError, Command};
use daemoneye_agent::config::Config;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.load_config().and_then(|config| perform(&cli.command, &config)) {
        Ok(()) | Err(CliError::OutputClosed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daemoneye-agent: {}", cli::chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn perform(command: &Command, config: &Config) -> Result<(), CliError> {
    match command {
        Command::Run(args) => {
            log_to_stderr(config)?;
            cli::run::run(config, args)
        }
        Command::Events(args) => cli::events::events(&config.state.database(), args),
        Command::Status(args) => cli::status::status(config, *args),
    }
}

/// Logs to standard error. That it cannot be written is nobody's business: the agent goes on.
fn log_to_stderr(config: &Config) -> Result<(), CliError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::builder()
            .parse(&text)
            .map_err(|error| CliError::usage(format!("RUST_LOG is not a filter: {error}")))?,
        _ => EnvFilter::new(config.log_level.to_string()),
    };
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        // Would print to the very stream that failed, and panic.
        .log_internal_errors(false)
        .init();
    Ok(())
}
