//! Showing bytes from outside on a terminal.
//!
//! Names, paths and arguments are chosen by whoever started the process. Written to a terminal as
//! they are, they could move the cursor, colour the screen, hide a line or turn the reading
//! direction round. So everything that is not a visible character is escaped: control characters
//! and stray bytes as `\xNN`, invisible and direction-changing characters as `\u{..}`, and the
//! backslash as `\\` so that an escape cannot be faked.

use std::fmt;

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

    proptest! {
        #[test]
        fn no_control_character_survives(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = shown(&bytes);
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}
