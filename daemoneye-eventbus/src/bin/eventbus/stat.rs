//! `eventbus stat`: look into the broker.

mod eye;
mod rates;
mod table;

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use daemoneye_lib::display::escape_json;
use tokio::time::sleep;

use self::eye::Eye;
pub(crate) use self::eye::look;
use self::rates::Looks;
use crate::connect::{Bus, seconds};
use crate::failure::Failure;
use crate::stop::Stop;
use crate::terminal::{Terminal, say};

/// Arguments of `eventbus stat`.
#[derive(Debug, Args)]
#[command(after_help = "\
Rates are made of two looks. With --json a look is one line: what the broker answers, described in \
docs/bus-protocol.md, and an object `rates`, for the whole and in each row, where there are two looks. \
LAG is what a durable consumer has still to commit, CREDIT what its publisher may not send before.")]
pub(crate) struct StatArgs {
    /// One JSON object a look
    #[arg(long)]
    json: bool,
    /// The time between the two looks that rates are made of; 0 for one look, without rates
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    over: Duration,
    /// Look again and again, every so many seconds; 2 if none are given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = pause, conflicts_with = "over")]
    watch: Option<Duration>,
}

fn pause(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        none if none < Duration::from_millis(10) => Err("less than 0.01".to_owned()),
        pause => Ok(pause),
    }
}

/// Looks and prints.
pub(crate) async fn stat(bus: &Bus, args: &StatArgs) -> Result<(), Failure> {
    let mut stop = Stop::listen_and_end()?;
    let mut eye = Eye::new(bus, "eventbus-stat");
    let mut looks = Looks::new(eye.look().await?);
    let Some(every) = args.watch else {
        if !args.over.is_zero() {
            tokio::select! {
                () = sleep(args.over) => {}
                () = stop.asked() => return Ok(()),
            }
            looks.next(eye.look().await?);
        }
        return args.print(&looks);
    };
    args.print(&looks)?;
    loop {
        tokio::select! {
            () = sleep(every) => {}
            () = stop.asked() => return Ok(()),
        }
        match eye.look().await {
            Ok(look) => {
                looks.next(look);
                args.print(&looks)?;
            }
            // Whoever watches wants to see it come back, too.
            Err(failure) => say(&failure.to_string()),
        }
    }
}

impl StatArgs {
    fn print(&self, looks: &Looks) -> Result<(), Failure> {
        let mut text = Vec::new();
        if self.json {
            let json = looks.json().map_err(Failure::failed)?;
            text.extend_from_slice(escape_json(json.to_string()).as_bytes());
            text.push(b'\n');
        } else {
            let terminal = Terminal::stdout();
            if self.watch.is_some() && terminal.is_screen {
                // Home, and clear what is below.
                text.extend_from_slice(b"\x1b[H\x1b[2J");
            }
            text.extend_from_slice(table::broker(looks, terminal).as_bytes());
        }
        let mut out = io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush()).map_err(Failure::output)
    }
}
