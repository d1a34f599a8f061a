//! Removing secrets from arguments before anything is written.
//!
//! Arguments are readable by every user of a machine while a process runs, but a log keeps them
//! for years. So a [`RawArgv`] can be neither encoded nor printed, and the only way from it to the
//! [`RedactedArgv`] an event holds is [`RawArgv::redact`].
//!
//! What is taken for a secret: the value of a name that smells of one (`--password x`,
//! `DB_TOKEN=x`, `"api_key": "x"`, `?secret=x&`), of `Authorization` and its like, the password in
//! a URL, what known programs take behind a short option (`mysql -px`), and tokens with a shape of
//! their own; in arguments, over two arguments, and in a command line within an argument. In doubt
//! the value goes and its name stays. A secret that nothing announces, such as a bare password in
//! the third argument of an unknown program, cannot be seen.

mod clients;
mod names;
mod scan;
mod text;
mod word;

use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::display;
use crate::models::ByteString;

use word::{Secrets, Word};

/// What stands where a secret was.
pub const REDACTED: &str = "[REDACTED]";

/// The most bytes of arguments an event holds, each argument's end counted as one.
pub const ARGV_BYTES_MAX: usize = 32 * 1024;

/// The most bytes of arguments that are looked at, twice what Linux allows for one argument.
///
/// More than an event holds, so that what tells a secret is not cut off before it is seen.
pub const RAW_ARGV_BYTES_MAX: usize = 256 * 1024;

/// Arguments as the kernel gave them, secrets and all.
///
/// Neither encodable nor serialisable, and its `Debug` shows only how much there is.
#[derive(Clone, PartialEq, Eq)]
pub struct RawArgv {
    /// Each argument followed by a zero byte.
    terminated: Vec<u8>,
    truncated: bool,
}

impl RawArgv {
    /// Takes arguments as `/proc/<pid>/cmdline` has them: each followed by a zero byte, the last
    /// one perhaps not. Of more than [`RAW_ARGV_BYTES_MAX`] only the arguments that are whole
    /// within that are kept.
    #[must_use]
    pub fn from_cmdline(mut bytes: Vec<u8>) -> Self {
        if bytes.len() > RAW_ARGV_BYTES_MAX {
            bytes.truncate(RAW_ARGV_BYTES_MAX);
            return Self::from_cut_cmdline(bytes);
        }
        if bytes.last().is_some_and(|last| *last != 0) {
            bytes.push(0);
        }
        Self { terminated: bytes, truncated: false }
    }

    /// Takes the beginning of what [`RawArgv::from_cmdline`] takes, and keeps the arguments that
    /// are whole in it: half of one may hold half of a secret.
    #[must_use]
    pub fn from_cut_cmdline(mut bytes: Vec<u8>) -> Self {
        let whole = bytes.iter().rposition(|byte| *byte == 0);
        bytes.truncate(whole.map_or(0, |last| last + 1));
        Self { terminated: bytes, truncated: true }
    }

    /// Takes separate arguments. A zero byte inside one, which no kernel lets through, ends it.
    pub fn from_args<I, A>(args: I) -> Self
    where
        I: IntoIterator<Item = A>,
        A: AsRef<[u8]>,
    {
        let mut terminated = Vec::new();
        for arg in args {
            terminated.extend_from_slice(arg.as_ref());
            terminated.push(0);
        }
        Self::from_cmdline(terminated)
    }

    /// The arguments without their secrets, cut to [`ARGV_BYTES_MAX`].
    #[must_use]
    pub fn redact(&self) -> RedactedArgv {
        let mut place = 0;
        let words = split_terminated(&self.terminated).map(|arg| {
            let word = Word::whole(arg, place);
            place += arg.len() + 1;
            word
        });
        let mut secrets = Secrets::default();
        scan::scan_command(words, &mut secrets);
        let terminated = secrets.replace_in(&self.terminated, REDACTED.as_bytes()).into();
        let mut argv = RedactedArgv { terminated, truncated: self.truncated };
        argv.cut(ARGV_BYTES_MAX);
        argv
    }
}

impl fmt::Debug for RawArgv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawArgv({} bytes)", self.terminated.len())
    }
}

/// Arguments without secrets: made by [`RawArgv::redact`] or by decoding an event, in no other way.
///
/// JSON shows an array with one [`ByteString`] for each argument.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct RedactedArgv {
    /// Each argument followed by a zero byte: half the memory and an eighth of the allocations of
    /// a vector of vectors. Clones share them.
    terminated: Arc<[u8]>,
    truncated: bool,
}

impl RedactedArgv {
    /// The arguments, the program's name first.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        split_terminated(&self.terminated)
    }

    /// Whether arguments were left out or cut for want of room: see [`ARGV_BYTES_MAX`].
    #[must_use]
    pub const fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Cuts them to so many bytes, each argument's end counted as one; says whether they had more.
    pub fn cut(&mut self, bytes_max: usize) -> bool {
        let is_longer = self.terminated.len() > bytes_max;
        if is_longer {
            let kept = &self.terminated[..bytes_max.saturating_sub(1)];
            self.terminated = [kept, &[0]].concat().into();
            self.truncated = true;
        }
        is_longer
    }

    /// Whether these are the others, cut.
    #[must_use]
    pub fn is_cut_from(&self, other: &Self) -> bool {
        let kept = self.terminated.strip_suffix(&[0]).unwrap_or_default();
        self.truncated && other.terminated.starts_with(kept)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terminated.is_empty()
    }

    /// The command line as a person would type it: arguments joined by blanks, those that need it
    /// in quotes, everything a terminal could act upon escaped.
    #[must_use]
    pub fn command_line(&self) -> String {
        let mut line = String::with_capacity(self.terminated.len());
        for arg in self.iter() {
            if !line.is_empty() {
                line.push(' ');
            }
            let shown = display::escape(arg).to_string();
            let bare =
                |byte: u8| byte.is_ascii_alphanumeric() || b"_-./=:,@%+[]{}~^".contains(&byte);
            if !arg.is_empty() && arg.iter().all(|byte| bare(*byte) || *byte >= 0x80) {
                line.push_str(&shown);
            } else {
                line.push('\'');
                line.push_str(&shown.replace('\'', r"'\''"));
                line.push('\'');
            }
        }
        if self.truncated {
            line.push_str(" ...");
        }
        line
    }
}

impl fmt::Debug for RedactedArgv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(ByteString::new)).finish()
    }
}

impl Serialize for RedactedArgv {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for arg in self.iter() {
            seq.serialize_element(&ByteString::new(arg))?;
        }
        seq.end()
    }
}

fn split_terminated(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    // `split` would show one empty argument after the last terminator.
    bytes.split_inclusive(|byte| *byte == 0).map(|arg| arg.strip_suffix(&[0]).unwrap_or(arg))
}

#[cfg(test)]
mod tests;
