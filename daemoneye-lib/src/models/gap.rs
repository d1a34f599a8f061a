//! A known loss, published as an event of its own.

use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};
use serde::Serialize;

use crate::stream::Sequence;

/// Events that were or may have been lost: how many, between which sequences or times, and why.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode, Serialize)]
pub struct GapEvent {
    /// Why.
    pub reason: GapReason,
    /// How many events are missing, where that is known; an upper bound if `detail` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// The first sequence that is missing, if the loss happened after sequences were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_sequence: Option<Sequence>,
    /// The last sequence that is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<Sequence>,
    /// Nothing was lost before this: wall clock, nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ns: Option<i64>,
    /// Nothing was lost after this, as far as this gap goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ns: Option<i64>,
    /// When the loss was found out.
    pub time_ns: i64,
    /// For people: what happened, in a sentence.
    pub detail: String,
}

impl GapEvent {
    /// A gap of which nothing is known but why, since when it is known, and what there is to say;
    /// bounds are to be filled in where they are known.
    #[must_use]
    pub fn new(reason: GapReason, time_ns: i64, detail: impl Into<String>) -> Self {
        Self {
            reason,
            missing: None,
            first_sequence: None,
            last_sequence: None,
            since_ns: None,
            until_ns: None,
            time_ns,
            detail: detail.into(),
        }
    }
}

/// Why events are missing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// A new stream begins: what came before, if anything, is in another one.
    StreamBegan,
    /// The log was found not to continue what consumers have stored.
    LogReplaced,
    /// Records of the log could not be read.
    LogDamaged,
    /// The log refused events: its disk budget was spent or the disk was full.
    LogFull,
    /// The kernel dropped events before they were read.
    CaptureOverrun,
    /// Events were left out on purpose, under pressure.
    Shed,
    /// A durable consumer fell behind what the broker still had.
    ConsumerBehind,
    /// Processes may have lived unseen between two looks at the process table.
    Unseen,
    /// What saw processes has failed, or another source has taken its place.
    SourceChanged,
}

impl GapReason {
    /// The reason as JSON spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StreamBegan => "stream_began",
            Self::LogReplaced => "log_replaced",
            Self::LogDamaged => "log_damaged",
            Self::LogFull => "log_full",
            Self::CaptureOverrun => "capture_overrun",
            Self::Shed => "shed",
            Self::ConsumerBehind => "consumer_behind",
            Self::Unseen => "unseen",
            Self::SourceChanged => "source_changed",
        }
    }
}

// Here, not beside the type: positions themselves know nothing of how events are encoded.
impl Encode for Sequence {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C> Decode<C> for Sequence {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        u64::decode(decoder).map(Self)
    }
}

impl<'de, C> BorrowDecode<'de, C> for Sequence {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}
