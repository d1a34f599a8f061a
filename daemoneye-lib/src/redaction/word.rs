//! Words, and where each of their bytes came from.
//!
//! All arguments stand in one buffer. A word that a shell would make of part of an argument has
//! its quotes and backslashes taken away, so each of its bytes carries its place in the buffer,
//! and a secret found in the word is a range there.

use std::borrow::Cow;
use std::ops::Range;

/// A word and where it came from.
pub(super) struct Word<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    at: Places,
}

enum Places {
    /// The word stands in the buffer as it is, from here on.
    From(usize),
    /// Each byte's place.
    Each(Vec<u32>),
}

/// What a shell sees in a text.
pub(super) enum Token<'a> {
    Word(Word<'a>),
    /// One command ends and another may begin.
    EndOfCommand,
}

/// Ranges of the buffer that hold secrets.
#[derive(Default)]
pub(super) struct Secrets {
    ranges: Vec<Range<usize>>,
}

impl<'a> Word<'a> {
    /// A word that stands in the buffer as it is, from `place` on.
    pub(super) const fn whole(bytes: &'a [u8], place: usize) -> Self {
        Self { bytes: Cow::Borrowed(bytes), at: Places::From(place) }
    }

    fn place(&self, at: usize) -> usize {
        match &self.at {
            Places::From(first) => first + at,
            Places::Each(places) => places[at] as usize,
        }
    }

    /// Whether a shell would see more than one word in it.
    pub(super) fn is_text(&self) -> bool {
        self.bytes.iter().any(|byte| {
            byte.is_ascii_whitespace() || matches!(byte, b';' | b'|' | b'&' | b'(' | b'`')
        })
    }

    /// What a shell sees in it. A quote that is never closed reaches to the end.
    pub(super) fn tokens(&self) -> Vec<Token<'static>> {
        let mut splitter = Splitter::default();
        let mut quote = None;
        let mut bytes = self.bytes.iter().copied().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match (quote, byte) {
                (Some(open), _) if byte == open => quote = None,
                (Some(b'\'') | None, b'\\') if quote.is_some() => {
                    splitter.push(byte, self.place(at));
                }
                (_, b'\\') => match bytes.next() {
                    Some((next, escaped)) => splitter.push(escaped, self.place(next)),
                    None => splitter.push(byte, self.place(at)),
                },
                (Some(_), _) => splitter.push(byte, self.place(at)),
                (None, b'\'' | b'"') => {
                    quote = Some(byte);
                    splitter.in_word = true;
                }
                (None, b'\n' | b';' | b'|' | b'&' | b'(' | b')' | b'`') => splitter.end_command(),
                (None, b'<' | b'>') => splitter.end_word(),
                (None, _) if byte.is_ascii_whitespace() => splitter.end_word(),
                (None, _) => splitter.push(byte, self.place(at)),
            }
        }
        splitter.end_word();
        splitter.tokens
    }
}

#[derive(Default)]
struct Splitter {
    tokens: Vec<Token<'static>>,
    bytes: Vec<u8>,
    places: Vec<u32>,
    in_word: bool,
}

impl Splitter {
    fn push(&mut self, byte: u8, place: usize) {
        self.bytes.push(byte);
        self.places.push(u32::try_from(place).expect("arguments are capped far below 4 GiB"));
        self.in_word = true;
    }

    fn end_word(&mut self) {
        if std::mem::take(&mut self.in_word) {
            self.tokens.push(Token::Word(Word {
                bytes: Cow::Owned(std::mem::take(&mut self.bytes)),
                at: Places::Each(std::mem::take(&mut self.places)),
            }));
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        self.tokens.push(Token::EndOfCommand);
    }
}

impl Secrets {
    /// Marks a range of a word's bytes as a secret.
    pub(super) fn mark(&mut self, word: &Word<'_>, range: Range<usize>) {
        if !range.is_empty() {
            self.ranges.push(word.place(range.start)..word.place(range.end - 1) + 1);
        }
    }

    /// The buffer with each secret replaced.
    pub(super) fn replace_in(mut self, buffer: &[u8], replacement: &[u8]) -> Vec<u8> {
        self.ranges.sort_unstable_by_key(|range| range.start);
        let mut clean = Vec::with_capacity(buffer.len());
        let mut done = 0;
        let mut ranges = self.ranges.into_iter().peekable();
        while let Some(range) = ranges.next() {
            let mut end = range.end;
            while let Some(more) = ranges.next_if(|next| next.start <= end) {
                end = end.max(more.end);
            }
            clean.extend_from_slice(&buffer[done..range.start]);
            clean.extend_from_slice(replacement);
            done = end;
        }
        clean.extend_from_slice(&buffer[done..]);
        clean
    }
}
