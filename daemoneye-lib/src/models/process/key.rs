//! The identity of a process.

use std::fmt;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// One life of one pid on one boot of one machine.
///
/// Whatever source saw the process, the key is the same, because the start time is cut to the
/// 10 ms units that the coarsest Linux source knows. Two lives of a pid within one such unit are
/// told apart by `generation`. Printed as `3f2a9c1e-4711-123456.0`: the first 8 hexadecimal digits
/// of the boot id, the pid, the start in 10 ms units since boot, the generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessKey {
    /// Which boot of which machine.
    pub boot_id: Uuid,
    /// The process id.
    pub pid: u32,
    /// When it started, in 10 ms units since boot.
    pub start_centis: u64,
    /// 0, or how many earlier lives with the same pid and start were seen to end.
    pub generation: u32,
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let boot = self.boot_id.as_fields().0;
        write!(f, "{boot:08x}-{}-{}.{}", self.pid, self.start_centis, self.generation)
    }
}

impl fmt::Debug for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProcessKey({self})")
    }
}

impl Serialize for ProcessKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// By hand because the boot id stands as its 16 bytes.
impl Encode for ProcessKey {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.boot_id.as_bytes().encode(encoder)?;
        self.pid.encode(encoder)?;
        self.start_centis.encode(encoder)?;
        self.generation.encode(encoder)
    }
}

impl<C> Decode<C> for ProcessKey {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            boot_id: Uuid::from_bytes(<[u8; 16]>::decode(decoder)?),
            pid: u32::decode(decoder)?,
            start_centis: u64::decode(decoder)?,
            generation: u32::decode(decoder)?,
        })
    }
}

impl<'de, C> BorrowDecode<'de, C> for ProcessKey {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// How exactly the source knew when a process started.
///
/// The key holds 10 ms units in every case; a source that knew more used it to tell lives apart,
/// one that knew less may have taken two lives of a pid for one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPrecision {
    /// To the nanosecond: no two lives are mistaken for one.
    Nanosecond,
    /// To the clock tick of 10 ms.
    Tick,
    /// To the second.
    Second,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_boot_pid_start_and_generation() {
        let key = ProcessKey {
            boot_id: Uuid::from_u128(0x3f2a_9c1e_0000_4000_8000_0000_0000_0001),
            pid: 4711,
            start_centis: 123_456,
            generation: 0,
        };
        assert_eq!(key.to_string(), "3f2a9c1e-4711-123456.0");
        assert_eq!(serde_json::to_string(&key).unwrap(), "\"3f2a9c1e-4711-123456.0\"");
    }
}
