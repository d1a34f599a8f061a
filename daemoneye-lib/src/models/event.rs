//! An event as it travels, and its encoding.
//!
//! The encoding is one byte of schema version, then the event in bincode 2 with its standard
//! configuration (variable-length little-endian integers). It is made once, before the log, and
//! never changed on the way. Old versions stay readable: a new shape gets a new version byte.

use bincode::config;
use bincode::{Decode, Encode};
use serde::Serialize;
use thiserror::Error;

use super::gap::GapEvent;
use super::process::ProcessEvent;

/// The version byte this program writes.
pub const SCHEMA_VERSION: u8 = 1;

/// The most bytes an event may take, and the most that decoding one may claim.
pub const EVENT_BYTES_MAX: usize = 256 * 1024;

/// Anything that is logged and delivered.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A process started, changed or ended.
    Process(Box<ProcessEvent>),
    /// Events are known to be missing.
    Gap(GapEvent),
}

/// The kind byte the log stores beside an event, and the topic it is published on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum EventKind {
    /// A process started, or was there already.
    Start = 1,
    /// A process ended.
    Stop = 2,
    /// A process changed.
    Modify = 3,
    /// Events are missing.
    Gap = 4,
}

/// Bytes that are not an event.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// There is not even a version byte.
    #[error("an event of no bytes")]
    Empty,
    /// Longer than any event.
    #[error("an event of {bytes} bytes; at most {EVENT_BYTES_MAX} are allowed")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// Written by a newer program.
    #[error("an event of schema version {found}; this program reads up to {SCHEMA_VERSION}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// The bytes do not make an event of their version.
    #[error("an event that does not decode")]
    Malformed(#[source] bincode::error::DecodeError),
    /// Bytes are left over after the event.
    #[error("an event followed by {bytes} bytes that are not part of it")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl Event {
    /// The kind byte.
    #[must_use]
    pub const fn kind(&self) -> EventKind {
        match self {
            Self::Process(process) => process.event_kind(),
            Self::Gap(_) => EventKind::Gap,
        }
    }

    /// When it was seen: wall clock, nanoseconds since 1970.
    #[must_use]
    pub const fn time_ns(&self) -> i64 {
        match self {
            Self::Process(process) => process.time_ns,
            Self::Gap(gap) => gap.time_ns,
        }
    }

    /// The encoded event.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends the encoded event to `bytes`.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.push(SCHEMA_VERSION);
        bincode::encode_into_std_write(self, bytes, config::standard())
            .expect("encoding into memory meets no I/O error and events hold no unsized sequence");
    }

    /// Reads what [`Event::encode`] wrote.
    ///
    /// # Errors
    /// Anything else is refused, without a panic and without claiming more than
    /// [`EVENT_BYTES_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (&version, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
        if bytes.len() > EVENT_BYTES_MAX {
            return Err(DecodeError::TooLong { bytes: bytes.len() });
        }
        if version != SCHEMA_VERSION {
            return Err(DecodeError::Version { found: version });
        }
        let bounded = config::standard().with_limit::<EVENT_BYTES_MAX>();
        let (event, used) =
            bincode::decode_from_slice(body, bounded).map_err(DecodeError::Malformed)?;
        match body.len() - used {
            0 => Ok(event),
            bytes => Err(DecodeError::Trailing { bytes }),
        }
    }
}

impl From<ProcessEvent> for Event {
    fn from(event: ProcessEvent) -> Self {
        Self::Process(Box::new(event))
    }
}

impl From<GapEvent> for Event {
    fn from(event: GapEvent) -> Self {
        Self::Gap(event)
    }
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Start, Self::Stop, Self::Modify, Self::Gap];

    /// The byte the log stores.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// The kind with this byte, if there is one.
    #[must_use]
    pub const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Start),
            2 => Some(Self::Stop),
            3 => Some(Self::Modify),
            4 => Some(Self::Gap),
            _ => None,
        }
    }

    /// The topic such events are published on.
    #[must_use]
    pub const fn topic(self) -> &'static str {
        match self {
            Self::Start => crate::topics::PROCESS_START,
            Self::Stop => crate::topics::PROCESS_STOP,
            Self::Modify => crate::topics::PROCESS_MODIFY,
            Self::Gap => crate::topics::PROCESS_GAP,
        }
    }
}

#[cfg(test)]
mod tests;
