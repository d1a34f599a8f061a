//! What sees processes, side by side: ours with each of its sources, and other people's tools.
//!
//! ```sh
//! cargo bench -p daemoneye-tests --bench capture [-- OPTIONS]
//!     --json        one JSON object a row, not a table
//!     --rounds N    3 if not said
//!     --count N     processes of a load, 10000 if not said
//!     --tools A,B   only the tools whose name begins so
//! ```
//!
//! Three loads, each by four workers in a process of their own: `true` runs `/bin/true` and `tiny`
//! a static program of two instructions as fast as it goes, `paced` runs `/bin/true` 1,000 times a
//! second. Every process has a mark and a number among its arguments, and its pid is written down:
//! what a tool tells is compared with that. Ours is the whole product, the agent with its broker,
//! log and store, and is asked what the store holds; of the others what they print is read. What
//! is not installed, or cannot be started, is left out and said.
//!
//! Everything is measured in rounds: in each round every tool takes its turn at a load, after a
//! turn without any tool. Medians over the rounds are printed. What each column is stands in
//! `docs/performance.md`.

#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod ours;
#[cfg(target_os = "linux")]
mod peers;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod tool;

#[cfg(target_os = "linux")]
fn main() {
    if let Err(problem) = linux::run() {
        eprintln!("{problem}");
        std::process::exit(2);
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("processes are captured side by side on Linux only");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;

    use crate::load::{self, Load, Program};
    use crate::report::{Report, Row};
    use crate::tool::{self, Measured};
    use crate::{ours, peers};

    /// How the command was given.
    struct Settings {
        rounds: usize,
        count: usize,
        json: bool,
        tools: Vec<String>,
    }

    impl Settings {
        fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
            let mut settings = Self { rounds: 3, count: 10_000, json: false, tools: Vec::new() };
            while let Some(argument) = arguments.next() {
                let mut number = || {
                    let value = arguments.next().and_then(|value| value.parse().ok());
                    value.filter(|value| *value > 0).ok_or(format!("{argument} needs a number"))
                };
                match argument.as_str() {
                    "--json" => settings.json = true,
                    "--rounds" => settings.rounds = number()?,
                    "--count" => settings.count = number()?,
                    "--tools" => {
                        let names = arguments.next().ok_or("--tools needs names")?;
                        settings.tools.extend(names.split(',').map(str::to_owned));
                    }
                    // Cargo's own.
                    "--bench" => {}
                    other => return Err(format!("unknown option {other}")),
                }
            }
            Ok(settings)
        }
    }

    pub(crate) fn run() -> Result<(), String> {
        let mut arguments = std::env::args().skip(1).peekable();
        if arguments.next_if_eq(load::ROLE).is_some() {
            return load::play(arguments);
        }
        let settings = Settings::from_arguments(arguments)?;
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let tiny = load::write_tiny(directory.path())?;
        let mut tools: Vec<_> = ours::all().chain(peers::installed()).collect();
        tools.retain(|tool| {
            let wanted = |prefix: &String| tool.name().starts_with(prefix.as_str());
            settings.tools.is_empty() || settings.tools.iter().any(wanted)
        });
        let programs =
            [("true", Program::True), ("tiny", Program::At(tiny)), ("paced", Program::True)];
        let _program_times = tool::ProgramTimes::measure();
        let report = Report::begin(settings.json, settings.rounds);
        for (name, program) in programs {
            let per_second = (name == "paced").then_some(1000);
            let load = Load { program, count: settings.count, per_second };
            let mut alone = Vec::new();
            let mut runs: HashMap<&str, Vec<Measured>> = HashMap::new();
            for round in 0..settings.rounds {
                alone.push(load.run("alone")?);
                for tool in &tools {
                    match tool::measure(tool.as_ref(), &load, round) {
                        Ok(measured) => runs.entry(tool.name()).or_default().push(measured),
                        Err(problem) => eprintln!("{} left out of {name}: {problem}", tool.name()),
                    }
                }
            }
            report.alone(name, &alone);
            for tool in &tools {
                if let Some(runs) = runs.get(tool.name()) {
                    report.row(&Row::of(name, tool.name(), runs, &alone));
                }
            }
        }
        Ok(())
    }
}
