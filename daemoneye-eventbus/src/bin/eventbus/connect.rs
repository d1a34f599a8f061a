//! Where the broker is, and how to get to it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemoneye_eventbus::{ClientOptions, ConnectError, RequestError, Role, SubscribeError};
use daemoneye_lib::display::chain;
use daemoneye_lib::paths::{BROKER_SOCKET_FILE, BROKER_SOCKET_VARIABLE, default_state_dir};

use crate::failure::Failure;

/// The pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct BusArgs {
    /// The broker's socket [default: $DAEMONEYE_BROKER_SOCKET, else where daemoneye-agent has it:
    /// broker.sock in /var/lib/daemoneye for root, else in ~/.local/state/daemoneye]
    #[arg(long, global = true, value_name = "P", value_hint = clap::ValueHint::FilePath)]
    socket: Option<PathBuf>,
    /// Trust a socket and a broker of this user, instead of our own user's and root's; may be given
    /// several times
    #[arg(long, global = true, value_name = "UID")]
    trust_uid: Vec<u32>,
}

/// Where the broker is, and whom to trust there.
pub(crate) struct Bus {
    pub(crate) socket: PathBuf,
    trusted_uids: Option<Vec<u32>>,
}

impl Bus {
    /// How a client of this name introduces itself.
    pub(crate) fn client(&self, id: &str, role: Role) -> ClientOptions {
        let trusted_uids = self.trusted_uids.clone();
        ClientOptions { trusted_uids, ..ClientOptions::new(id, role) }
    }
}

impl BusArgs {
    pub(crate) fn resolve(&self) -> Result<Bus, Failure> {
        let trusted_uids = (!self.trust_uid.is_empty()).then(|| self.trust_uid.clone());
        Ok(Bus { socket: self.socket()?, trusted_uids })
    }

    fn socket(&self) -> Result<PathBuf, Failure> {
        let variable =
            |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if let Some(socket) = variable(BROKER_SOCKET_VARIABLE) {
            return Ok(socket.into());
        }
        #[cfg(unix)]
        let is_root = rustix::process::geteuid().is_root();
        #[cfg(not(unix))]
        let is_root = false;
        let state_dir = default_state_dir(
            is_root,
            variable("XDG_STATE_HOME").as_deref().map(Path::new),
            variable("HOME").as_deref().map(Path::new),
        );
        state_dir.map(|dir| dir.join(BROKER_SOCKET_FILE)).ok_or_else(|| {
            Failure::Usage(format!(
                "there is no usual place for the broker's socket: neither HOME nor XDG_STATE_HOME \
                 is set; name it with --socket or {BROKER_SOCKET_VARIABLE}"
            ))
        })
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let nobody_there =
            matches!(error, ConnectError::NoSocket { .. } | ConnectError::NobodyListening { .. });
        let mut text = chain(error);
        if nobody_there {
            text.push_str(
                "; run `daemoneye-agent run` or `eventbus serve`, or name another socket with \
                 --socket",
            );
        }
        Self::Failed(text)
    }
}

impl From<SubscribeError> for Failure {
    fn from(error: SubscribeError) -> Self {
        Self::failed(error)
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::failed(error)
    }
}

/// Pauses between attempts: short at first, then longer.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub(crate) const fn new() -> Self {
        Self(PAUSE_MIN)
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

/// A client's or consumer's name. The broker checks it again.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if (1..=64).contains(&text.len()) && text.bytes().all(legal) {
        Ok(text.to_owned())
    } else {
        Err("a name is 1 to 64 of a-z, 0-9, _ and -".to_owned())
    }
}

/// Seconds on the command line.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= Duration::from_secs(366 * 86_400))
        .ok_or_else(|| "not a number of seconds between 0 and a year".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut pauses = Pauses::new();
        let all: Vec<u128> = (0..7).map(|_| pauses.next().as_millis()).collect();
        assert_eq!(all, [100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn times_are_finite_and_positive() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for wrong in ["", "-1", "NaN", "inf", "1e99", "5s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_segments() {
        assert_eq!(name("a-b_9"), Ok("a-b_9".to_owned()));
        for wrong in ["", "A", "a.b", "#", "\u{1b}", &"a".repeat(65)] {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
    }
}
