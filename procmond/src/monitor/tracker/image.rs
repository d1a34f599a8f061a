//! The table as bytes.
//!
//! Little-endian: one byte that is 1 if the time of the last look follows and 0 if not, then the
//! boot id (16) and nanoseconds since boot (8); the number of processes (4), and for each the
//! length of its start event (4) and the event as the log has it; the number of lives that ended a
//! moment ago (4), and for each the boot id (16), pid (4), start (8) and generation (4) of its key.
//! The file around it carries version and checksum.

use daemoneye_lib::models::event::{DecodeError, Event};
use daemoneye_lib::models::process::{ProcessEvent, ProcessEventKind, ProcessKey};
use thiserror::Error;
use uuid::Uuid;

/// What a [`super::Tracker`] knows, for a later run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableImage {
    /// The boot, and the nanoseconds since it, that everything up to was seen in.
    pub(super) seen_until: Option<(Uuid, u64)>,
    /// A start event for each process that was alive then.
    pub(super) starts: Vec<ProcessEvent>,
    /// The lives that ended so shortly before that a later one could be taken for them.
    pub(super) ended: Vec<ProcessKey>,
}

/// Bytes that are not a table.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// They end too early, or go on too long.
    #[error("a process table that is cut short or too long")]
    Length,
    /// Something that holds no process stands where a process should.
    #[error("a process table that holds something else than processes")]
    NotAProcess,
    /// A process that does not decode.
    #[error("a process table with a process that cannot be read: {0}")]
    Event(#[from] DecodeError),
}

impl TableImage {
    /// How many processes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Appends the bytes.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        match self.seen_until {
            None => bytes.push(0),
            Some((boot_id, uptime_ns)) => {
                bytes.push(1);
                bytes.extend_from_slice(boot_id.as_bytes());
                bytes.extend_from_slice(&uptime_ns.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&length(self.starts.len()));
        let mut event_bytes = Vec::new();
        for start in &self.starts {
            event_bytes.clear();
            Event::from(start.clone()).encode_into(&mut event_bytes);
            bytes.extend_from_slice(&length(event_bytes.len()));
            bytes.extend_from_slice(&event_bytes);
        }
        bytes.extend_from_slice(&length(self.ended.len()));
        for key in &self.ended {
            bytes.extend_from_slice(key.boot_id.as_bytes());
            bytes.extend_from_slice(&key.pid.to_le_bytes());
            bytes.extend_from_slice(&key.start_centis.to_le_bytes());
            bytes.extend_from_slice(&key.generation.to_le_bytes());
        }
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// If they are anything else than [`TableImage::encode_into`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ImageError> {
        let seen_until = match take::<1>(&mut bytes)? {
            [0] => None,
            [1] => {
                Some((Uuid::from_bytes(take(&mut bytes)?), u64::from_le_bytes(take(&mut bytes)?)))
            }
            _ => return Err(ImageError::NotAProcess),
        };
        let count = u32::from_le_bytes(take(&mut bytes)?);
        // Grown as processes are read: a count from outside claims no memory.
        let mut starts = Vec::new();
        for _ in 0..count {
            let length = u32::from_le_bytes(take(&mut bytes)?) as usize;
            let (event, rest) = bytes.split_at_checked(length).ok_or(ImageError::Length)?;
            bytes = rest;
            match Event::decode(event)? {
                Event::Process(start) if matches!(start.kind, ProcessEventKind::Start { .. }) => {
                    starts.push(*start);
                }
                _ => return Err(ImageError::NotAProcess),
            }
        }
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let mut ended = Vec::new();
        for _ in 0..count {
            ended.push(ProcessKey {
                boot_id: Uuid::from_bytes(take(&mut bytes)?),
                pid: u32::from_le_bytes(take(&mut bytes)?),
                start_centis: u64::from_le_bytes(take(&mut bytes)?),
                generation: u32::from_le_bytes(take(&mut bytes)?),
            });
        }
        if bytes.is_empty() {
            Ok(Self { seen_until, starts, ended })
        } else {
            Err(ImageError::Length)
        }
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], ImageError> {
    let (first, rest) = bytes.split_first_chunk::<N>().ok_or(ImageError::Length)?;
    *bytes = rest;
    Ok(*first)
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("pids and the bytes of an event are far fewer").to_le_bytes()
}
