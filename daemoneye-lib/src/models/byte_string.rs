//! Bytes that are usually text.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bincode::{Decode, Encode};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::display;

/// A name, path or argument as the kernel holds it: bytes, usually but not always UTF-8. Clones
/// share them.
///
/// JSON shows a string where the bytes are UTF-8 and `{"bytes": "<hex>"}` where they are not, so
/// nothing is lost. `Display` and `Debug` escape everything a terminal could act upon.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ByteString(Arc<[u8]>);

impl ByteString {
    /// Takes the bytes as they are.
    #[must_use]
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, if the bytes are UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The text, with U+FFFD where the bytes are not UTF-8. Not safe for a terminal: use
    /// `Display` there.
    #[must_use]
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for ByteString {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl fmt::Display for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display::escape(&self.0).fmt(f)
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", display::escape(&self.0))
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(&self.0, serializer)
    }
}

/// The JSON form of bytes: see [`ByteString`].
pub(crate) fn serialize_bytes<S: Serializer>(
    bytes: &[u8],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return serializer.serialize_str(text);
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry("bytes", &hex)?;
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_every_byte() {
        let json = |bytes: &[u8]| serde_json::to_string(&ByteString::new(bytes)).unwrap();
        assert_eq!(json("grün".as_bytes()), "\"grün\"");
        assert_eq!(json(b"a\xff\x00"), r#"{"bytes":"61ff00"}"#);
    }

    #[test]
    fn debug_escapes_what_a_terminal_would_act_upon() {
        assert_eq!(format!("{:?}", ByteString::new(b"\x1b[2J".to_vec())), r#""\x1b[2J""#);
    }
}
