//! Showing things to people: bytes from outside, JSON, times, sizes and errors.
//!
//! Names, paths and arguments are chosen by whoever started the process. Written to a terminal as
//! they are, they could move the cursor, colour the screen, hide a line or turn the reading
//! direction round. So everything that is not a visible character is escaped: control characters
//! and stray bytes as `\xNN`, invisible and direction-changing characters as `\u{..}`, and the
//! backslash as `\\` so that an escape cannot be faked.

use std::error::Error;
use std::fmt::{self, Write as _};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Shows `bytes` with everything a terminal could act upon escaped.
#[must_use]
pub const fn escape(bytes: &[u8]) -> Escaped<'_> {
    Escaped { bytes }
}

/// See [`escape`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a> {
    bytes: &'a [u8],
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.bytes.utf8_chunks() {
            let mut plain_from = 0;
            let text = chunk.valid();
            for (at, character) in text.char_indices() {
                if is_plain(character) {
                    continue;
                }
                f.write_str(&text[plain_from..at])?;
                plain_from = at + character.len_utf8();
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\r' => f.write_str("\\r")?,
                    low if (low as u32) < 0x80 => write!(f, "\\x{:02x}", low as u32)?,
                    other => write!(f, "\\u{{{:x}}}", other as u32)?,
                }
            }
            f.write_str(&text[plain_from..])?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Whether a character shows itself and does nothing else.
const fn is_plain(character: char) -> bool {
    match character {
        '\0'..='\u{1f}' | '\\' => false,
        ' '..='~' => true,
        // Latin-1 controls, no-break space and soft hyphen.
        '\u{7f}'..='\u{a0}' | '\u{ad}' => false,
        // Combining grapheme joiner, Arabic and Syriac marks, Hangul fillers, Ogham space, Khmer
        // and Mongolian invisible marks.
        '\u{34f}'
        | '\u{600}'..='\u{605}'
        | '\u{61c}'
        | '\u{6dd}'
        | '\u{70f}'
        | '\u{890}'..='\u{891}'
        | '\u{8e2}'
        | '\u{115f}'..='\u{1160}'
        | '\u{1680}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' => false,
        // Spaces of all widths, joiners, direction marks, line separators, invisible operators.
        '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{205f}'..='\u{206f}' => false,
        // Ideographic space, Hangul filler, private use, variation selectors, byte order mark,
        // interlinear marks.
        '\u{3000}'
        | '\u{3164}'
        | '\u{e000}'..='\u{f8ff}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' => false,
        // Marks of rarer scripts and musical notation that show nothing, tags, private planes.
        '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' => false,
        '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{10ffff}' => false,
        _ => true,
    }
}

/// Text that may be escaped already, made safe if it is not: backslashes stay as they are.
#[must_use]
pub fn plain(text: &str) -> String {
    let parts: Vec<_> = text.split('\\').map(|part| escape(part.as_bytes()).to_string()).collect();
    parts.join("\\")
}

/// `json`, safe for a terminal: it lets control characters from U+007F on stand in strings.
#[must_use]
pub fn escape_json(json: String) -> String {
    if !json.chars().any(char::is_control) {
        return json;
    }
    json.chars().fold(String::with_capacity(json.len() + 16), |mut safe, character| {
        if character.is_control() {
            // Writing to a string does not fail.
            let _ = write!(safe, "\\u{:04x}", u32::from(character));
        } else {
            safe.push(character);
        }
        safe
    })
}

/// Hexadecimal digits, two a byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// At most `room` characters of `text`; `…` stands for what is cut off.
#[must_use]
pub fn cut(text: String, room: usize) -> String {
    if text.chars().count() <= room {
        return text;
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    kept + "…"
}

/// Local time to the millisecond; a time no calendar has is shown as its number.
#[must_use]
pub fn time(time_ns: i64, zone: TimeZone) -> String {
    match Timestamp::from_nanosecond(i128::from(time_ns)) {
        Ok(time) => time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        Err(_) => format!("{time_ns} ns"),
    }
}

/// A length of time, given in nanoseconds, in the unit a person would choose.
#[must_use]
pub fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        0 if ns < 1_000_000 => format!("{} µs", ns / 1_000),
        0 => format!("{} ms", ns / 1_000_000),
        1..60 => format!("{}.{:02} s", seconds, ns % 1_000_000_000 / 10_000_000),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A number of bytes in the unit a person would choose.
#[must_use]
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{}.{} kB", count / 1_000, count / 100 % 10),
        1_000_000..1_000_000_000 => format!("{}.{} MB", count / 1_000_000, count / 100_000 % 10),
        _ => format!("{}.{} GB", count / 1_000_000_000, count / 100_000_000 % 10),
    }
}

/// An error with all its causes, each told once: some messages name their cause already.
#[must_use]
pub fn chain(error: impl Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(bytes: &[u8]) -> String {
        escape(bytes).to_string()
    }

    #[test]
    fn text_is_shown_as_it_is() {
        assert_eq!(shown("sleep 10 grün 日本 🦀".as_bytes()), "sleep 10 grün 日本 🦀");
    }

    #[test]
    fn what_a_terminal_would_act_upon_is_escaped() {
        assert_eq!(shown(b"\x1b]0;owned\x07"), r"\x1b]0;owned\x07");
        assert_eq!(shown(b"a\nb\tc\rd\x7f"), r"a\nb\tc\rd\x7f");
        assert_eq!(shown(b"\xc2\x9b31m"), r"\u{9b}31m", "a control sequence in one character");
        assert_eq!(shown(b"\x9b31m\xff"), r"\x9b31m\xff", "and in one byte");
        assert_eq!(shown("txt.\u{202e}exe".as_bytes()), r"txt.\u{202e}exe", "reading direction");
        assert_eq!(shown("a\u{200b}b\u{feff}".as_bytes()), r"a\u{200b}b\u{feff}", "invisible");
        assert_eq!(shown(br"\x1b"), r"\\x1b", "an escape cannot be faked");
    }

    #[test]
    fn what_is_escaped_already_stays_as_it_is() {
        assert_eq!(plain("a\u{1b}[2J\\x1b"), "a\\x1b[2J\\x1b");
    }

    #[test]
    fn json_stays_what_it_says() {
        let line = escape_json(serde_json::json!({"a": "x\u{9b}31m\u{7f}\n\u{1b}"}).to_string());
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["a"], "x\u{9b}31m\u{7f}\n\u{1b}");
    }

    #[test]
    fn lengths_of_time_are_told_as_people_tell_them() {
        let second = 1_000_000_000;
        let told = [900_000, 42_000_000, 3 * second + 50_000_000, 61 * second, 7_260 * second]
            .map(duration);
        assert_eq!(told, ["900 µs", "42 ms", "3.05 s", "1 min 01 s", "2 h 01 min"]);
        assert_eq!(duration(90_000 * second), "1 d 01 h");
    }

    #[test]
    fn sizes_and_cuts() {
        assert_eq!(
            [999, 1_050, 4_200_000, 7 << 30].map(bytes),
            ["999 B", "1.0 kB", "4.2 MB", "7.5 GB"]
        );
        assert_eq!((cut("abc".into(), 3), cut("äbcd".into(), 3)), ("abc".into(), "äb…".into()));
        assert_eq!(hex(&[0, 0xfe]), "00fe");
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("it broke{}", if *.0 { ": no such thing" } else { "" })]
        struct Broke(bool, #[source] std::io::Error);
        let broke = |told| chain(Broke(told, std::io::Error::other("no such thing")));
        assert_eq!(
            (broke(true), broke(false)),
            (broke(false), "it broke: no such thing".to_owned())
        );
    }

    proptest! {
        #[test]
        fn no_control_character_survives(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = shown(&bytes);
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}
