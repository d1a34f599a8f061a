//! Positions in a stream of events.
//!
//! A *stream* is the life of one log directory. Within it events carry contiguous *sequences*
//! from 1, and every opening of the directory has an *epoch*.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of one log directory's life.
///
/// A new one is made whenever the log cannot prove that it continues the old one, so that new
/// events are never taken for ones a consumer has already stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(Uuid);

impl StreamId {
    /// A fresh random identity.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The 16 bytes as they stand in segment headers and frames.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// Reads the 16 bytes written by [`StreamId::to_bytes`].
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}

impl std::str::FromStr for StreamId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The place of an event in its stream: contiguous from 1, never reused.
///
/// [`Sequence::NONE`] (0) stands for "nothing yet" where a position is expected, for example a
/// watermark before the first commit.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The position before the first event.
    pub const NONE: Self = Self(0);
    /// The first event of every stream.
    pub const FIRST: Self = Self(1);

    /// The sequence after this one.
    ///
    /// # Panics
    /// After 2^64 - 1 events, which at a million a second takes half a million years.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a stream holds fewer than 2^64 events"))
    }

    /// The sequence before this one; [`Sequence::NONE`] stays where it is.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many sequences lie after `earlier` up to and including this one; 0 if there are none.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One opening of a stream.
///
/// The high 32 bits count the openings, so that of two writers the older can be refused by
/// comparison. The low 32 bits are random, so that two histories that grew from copies of one
/// directory are told apart even when they were opened equally often: a position is *(sequence,
/// epoch)*, and it lies on a log's history only if that log's record at the sequence was written
/// in the same epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// The first opening of a stream.
    #[must_use]
    pub fn first() -> Self {
        Self::numbered(1)
    }

    /// The opening after this one. The count saturates; the random half still differs.
    #[must_use]
    pub fn next(self) -> Self {
        Self::numbered(self.count().saturating_add(1))
    }

    fn numbered(count: u32) -> Self {
        let bytes = Uuid::new_v4().into_bytes();
        let salt = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Self(u64::from(count) << 32 | u64::from(salt))
    }

    /// How many times the stream had been opened, this one included.
    #[must_use]
    pub const fn count(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The number as it stands in files and frames.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// Reads the number written by [`Epoch::to_u64`].
    #[must_use]
    pub const fn from_u64(raw: u64) -> Self {
        Self(raw)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08x}", self.count(), self.0 as u32)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

/// The wall clock in nanoseconds since 1970, the unit of every timestamp in logs and frames.
///
/// A clock before 1970 or after 2262 reads as the nearest representable instant.
#[must_use]
pub fn wall_clock_ns() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_epochs_compare_greater_and_equal_counts_differ() {
        let first = Epoch::first();
        assert_eq!(first.count(), 1);
        assert!(first.next() > first);
        assert_ne!(first.next(), first.next());
        assert_eq!(Epoch::from_u64(first.to_u64()), first);
    }

    #[test]
    fn sequences_count_from_one() {
        assert_eq!(Sequence::NONE.next(), Sequence::FIRST);
        assert_eq!(Sequence(7).since(Sequence(3)), 4);
        assert_eq!(Sequence(3).since(Sequence(7)), 0);
        assert_eq!(Sequence::NONE.prev(), Sequence::NONE);
    }
}
