//! `procmond check`: what would work and what would not, and why.
//!
//! Changes nothing: no directory is made, no log is opened.

mod broker;
#[cfg(target_os = "linux")]
mod kernel;
mod log_dir;
#[cfg(target_os = "linux")]
mod privileges;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use daemoneye_lib::display;
use daemoneye_lib::paths::BROKER_SOCKET_VARIABLE;

use crate::config::Config;
use crate::source;
use report::{Finding, Report, Verdict};

/// Arguments of `procmond check`.
#[derive(Args, Debug)]
#[command(after_help = "Exit code 0: `procmond run` would work. 1: it would not.")]
pub struct CheckArgs {
    /// Configuration file (TOML), as for `procmond run`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Looks at everything `procmond run` needs.
#[must_use]
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut report = Report::default();
    // What is found must be what `procmond run` finds.
    let not_given_up = super::confine();
    match Config::load(args.config.as_deref(), &[]) {
        Ok(config) => {
            report.add(Finding::new("configuration", Verdict::Good, "every option is right"));
            system(not_given_up, &mut report);
            sources(&mut report);
            log_dir::check(&config.wal_dir, config.disk_budget_bytes, &mut report);
        }
        Err(problems) => {
            report.add(Finding::new("configuration", Verdict::Bad, problems.to_string()));
            system(not_given_up, &mut report);
            sources(&mut report);
        }
    }
    broker::check(std::env::var_os(BROKER_SOCKET_VARIABLE), &mut report);
    match report.print(args.json) {
        Ok(()) if report.is_good() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("procmond: cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the system lets us do.
#[cfg(target_os = "linux")]
fn system(not_given_up: Vec<String>, report: &mut Report) {
    let held = privileges::check(not_given_up, report);
    kernel::check(held, report);
}

#[cfg(not(target_os = "linux"))]
fn system(_not_given_up: Vec<String>, _report: &mut Report) {}

fn sources(report: &mut Report) {
    report.add(match source::probe_ebpf() {
        Ok(()) => Finding::new("source ebpf", Verdict::Good, "works: every process is seen"),
        Err(error) => Finding::new("source ebpf", Verdict::Limited, format!("{error}")),
    });
    report.add(match source::probe_netlink() {
        Ok(tells_usage) => {
            let mut detail =
                "works: every start and end is seen; arguments and paths only of what \
                              lives long enough to be looked at"
                    .to_owned();
            if !tells_usage {
                detail += "; not what it used (TASKSTATS needs CAP_NET_ADMIN)";
            }
            Finding::new("source netlink", Verdict::Good, detail)
        }
        Err(error) => {
            let detail = format!("{error}. What lives shorter than poll's interval is not seen");
            Finding::new("source netlink", Verdict::Limited, detail)
        }
    });
    report.add(match source::probe_poll() {
        Ok(table) => {
            let count = table.processes.len();
            // With `hidepid` an ordinary user sees only its own processes.
            let hidden = cfg!(unix) && !table.processes.iter().any(|process| process.pid == 1);
            let verdict = if hidden { Verdict::Limited } else { Verdict::Good };
            let mut detail = format!("works and sees {count} processes");
            if hidden {
                detail += "; others are hidden from this user (/proc is mounted with hidepid)";
            }
            Finding::new("source poll", verdict, detail)
        }
        Err(error) => Finding::new("source poll", Verdict::Bad, error.to_string()),
    });
}

/// A path, safe for a terminal.
fn shown(path: &std::path::Path) -> String {
    display::escape(path.as_os_str().as_encoded_bytes()).to_string()
}
