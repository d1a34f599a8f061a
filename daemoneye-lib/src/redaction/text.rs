//! Secrets that can be seen in one word or text by itself: `NAME=value`, `Name: value`,
//! `user:pass@` in a URL, and tokens that have a shape of their own.
//!
//! Every function looks at each byte a bounded number of times.

use std::ops::Range;

use super::names::{self, NAME_BYTES_MAX, is_name_byte};
use super::word::{Secrets, Word};

/// What the text turned out to end with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing in particular.
    Plain,
    /// The name of a header: its value is in the next word.
    Header,
    /// A header and what kind of secret follows, in the next word.
    Scheme,
}

/// Marks the secrets in a word.
///
/// `program` says that the word is a text for a shell: there a value at its very beginning ends
/// where the shell would end it, and not with the word.
pub(super) fn scan(word: &Word<'_>, program: bool, secrets: &mut Secrets) -> Ending {
    urls(word, secrets);
    shapes(word, secrets);
    named(word, program, secrets)
}

fn is_quote(byte: u8) -> bool {
    matches!(byte, b'\'' | b'"' | b'`')
}

/// `NAME=value` and `Name: value`.
fn named(word: &Word<'_>, program: bool, secrets: &mut Secrets) -> Ending {
    let bytes = &*word.bytes;
    // Up to here nothing has been seen that could end a value: a value that begins here belongs
    // to the word as a whole.
    let mut whole = !program;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte != b'=' && byte != b':' {
            whole &= is_name_byte(byte) || matches!(byte, b'/' | b'\\');
            at += 1;
            continue;
        }
        let Some((name, quoted)) = name_before(bytes, at) else {
            at += 1;
            continue;
        };
        if !names::is_secret(name) && !name.to_ascii_lowercase().ends_with(b"cookie") {
            at += 1;
            continue;
        }
        let start = value_start(bytes, at);
        let value = &bytes[start..];
        if byte == b':' && !is_header(name) && matches!(value.first(), Some(b'/' | b':')) {
            // A volume `secrets:/run/secrets`, a path `Secret::Store`.
            at += 1;
            continue;
        }
        if names::is_directory_too(name) && matches!(value.first(), Some(b'/' | b'~' | b'.')) {
            at += 1;
            continue;
        }
        if value.is_empty() {
            return if byte == b':' { Ending::Header } else { Ending::Plain };
        }
        if byte == b':' && names::is_scheme(value.trim_ascii_end()) {
            return Ending::Scheme;
        }
        // The scheme stays, for it tells what kind of secret was there.
        let start = start + if byte == b':' { scheme_len(value) } else { 0 };
        let range =
            if whole { start..bytes.len() } else { value_range(bytes, start, name, byte, quoted) };
        at = range.end.max(at + 1);
        secrets.mark(word, range);
        whole = false;
    }
    Ending::Plain
}

/// The name that ends before a separator, and the quote around it if there is one.
fn name_before(bytes: &[u8], separator: usize) -> Option<(&[u8], Option<u8>)> {
    let mut end = separator;
    while end > 0 && separator - end < 4 && matches!(bytes[end - 1], b' ' | b'\t') {
        end -= 1;
    }
    let mut quoted = None;
    if end > 0 && is_quote(bytes[end - 1]) {
        quoted = Some(bytes[end - 1]);
        end -= 1;
        if end > 0 && bytes[end - 1] == b'\\' {
            end -= 1;
        }
    }
    let earliest = end.saturating_sub(NAME_BYTES_MAX);
    let length = bytes[earliest..end].iter().rev().take_while(|byte| is_name_byte(**byte)).count();
    let name = &bytes[end - length..end];
    if quoted.is_none() && end - length > 0 && is_quote(bytes[end - length - 1]) {
        // `"Authorization: Bearer x"`: the quote is around name and value.
        quoted = Some(bytes[end - length - 1]);
        return (length > 0).then_some((name, quoted));
    }
    (length > 0).then_some((name, quoted.filter(|_| end != separator)))
}

/// Where the value after a separator begins: `==`, `=>` and blanks are passed over.
fn value_start(bytes: &[u8], separator: usize) -> usize {
    let mut start = separator + 1;
    if bytes[separator] == b'=' && matches!(bytes.get(start), Some(b'=' | b'>')) {
        start += 1;
    }
    let blanks = bytes[start..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    // `PASSWORD= command` sets an empty value; a header or an assignment in a program does not.
    let spaced = separator > 0 && matches!(bytes[separator - 1], b' ' | b'\t');
    if bytes[separator] == b':' || spaced || start + blanks == bytes.len() {
        start += blanks;
    }
    start
}

/// How much of a header's value says what kind of secret follows.
fn scheme_len(value: &[u8]) -> usize {
    let word = value.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let blanks = value[word..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    if blanks > 0 && word + blanks < value.len() && names::is_scheme(&value[..word]) {
        word + blanks
    } else {
        0
    }
}

fn is_header(name: &[u8]) -> bool {
    name.contains(&b'-') || name.to_ascii_lowercase().ends_with(b"authorization")
}

/// A value inside a longer text that begins at `start`, perhaps with a quote.
fn value_range(
    bytes: &[u8],
    start: usize,
    name: &[u8],
    separator: u8,
    quoted: Option<u8>,
) -> Range<usize> {
    let rest = &bytes[start..];
    let escaped = usize::from(rest.first() == Some(&b'\\'));
    if let Some(&quote) = rest.get(escaped)
        && is_quote(quote)
    {
        let inside = start + escaped + 1;
        return inside..inside + quoted_len(&bytes[inside..], quote, escaped == 1);
    }
    let cookie = name.to_ascii_lowercase().ends_with(b"cookie");
    let ends = |byte: u8| {
        if separator == b':' && (cookie || is_header(name)) {
            // A header ends with its line or with the quote around it; a cookie has blanks.
            return matches!(byte, b'\r' | b'\n')
                || quoted.map_or(is_quote(byte), |quote| byte == quote)
                || (!cookie && quoted.is_none() && byte.is_ascii_whitespace());
        }
        byte.is_ascii_whitespace()
            || is_quote(byte)
            || matches!(byte, b'&' | b';')
            || (quoted.is_some() && matches!(byte, b',' | b'}' | b']'))
    };
    start..start + rest.iter().position(|byte| ends(*byte)).unwrap_or(rest.len())
}

/// How far a quoted value reaches, its closing quote not counted.
fn quoted_len(rest: &[u8], quote: u8, escaped: bool) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            b'\\' if escaped && rest.get(at + 1) == Some(&quote) => return at,
            b'\\' => at += 1,
            byte if byte == quote && !escaped => return at,
            _ => {}
        }
        at += 1;
    }
    rest.len()
}

/// `scheme://user:pass@host`.
fn urls(word: &Word<'_>, secrets: &mut Secrets) {
    let bytes = &*word.bytes;
    let ends_url = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'\'' | b'"' | b'`');
    let mut from = 0;
    for url in bytes.split_inclusive(ends_url) {
        let last_at = url.iter().rposition(|byte| *byte == b'@');
        let mut next = 0;
        while let (Some(found), Some(last_at)) = (find(&url[next..], b"://"), last_at) {
            let authority = next + found + 3;
            let length = url[authority..]
                .iter()
                .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
                .unwrap_or(url.len() - authority);
            let host_part = &url[authority..authority + length];
            let colon = host_part.iter().position(|byte| *byte == b':');
            let end = match (host_part.iter().rposition(|byte| *byte == b'@'), colon) {
                (Some(at), _) => Some(authority + at),
                // A password with a stray `/`, `?` or `#`. Only digits are a port.
                (None, Some(colon)) if last_at > authority + length => {
                    let port = &host_part[colon + 1..];
                    (!port.iter().all(u8::is_ascii_digit)).then_some(last_at)
                }
                _ => None,
            };
            match (end, colon.map(|colon| authority + colon)) {
                (Some(end), Some(colon)) if colon < end => {
                    secrets.mark(word, from + colon + 1..from + end);
                }
                // A token in the place of the user.
                (Some(end), _) if end - authority >= 20 => {
                    secrets.mark(word, from + authority..from + end);
                }
                _ => {}
            }
            next = authority + length;
        }
        from += url.len();
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Tokens that tell what they are by their first letters, and the fewest bytes that follow.
const PREFIXES: &[(&[u8], usize)] = &[
    (b"AKIA", 16),
    (b"ASIA", 16),
    (b"ghp_", 20),
    (b"gho_", 20),
    (b"ghu_", 20),
    (b"ghs_", 20),
    (b"ghr_", 20),
    (b"github_pat_", 20),
    (b"glpat-", 16),
    (b"xoxa-", 10),
    (b"xoxb-", 10),
    (b"xoxp-", 10),
    (b"xoxr-", 10),
    (b"xoxs-", 10),
    (b"sk_live_", 10),
    (b"rk_live_", 10),
    (b"sk-ant-", 16),
    (b"sk-proj-", 16),
    (b"AIza", 30),
    (b"hvs.", 20),
    (b"npm_", 30),
    (b"eyJ", 30),
];

/// Tokens with a shape of their own, `Bearer x`, and private keys.
fn shapes(word: &Word<'_>, secrets: &mut Secrets) {
    let bytes = &*word.bytes;
    let in_token = |byte: u8| is_name_byte(byte) || matches!(byte, b'/' | b'+' | b'=' | b'~');
    let mut at = 0;
    let mut after_bearer = false;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"-----BEGIN ") {
            let line = &bytes[at..bytes.len().min(at + 80)];
            if find(line, b"PRIVATE KEY-----").is_some() {
                secrets.mark(word, at..bytes.len());
                return;
            }
        }
        if !in_token(bytes[at]) {
            after_bearer &= bytes[at].is_ascii_whitespace();
            at += 1;
            continue;
        }
        let length = bytes[at..].iter().take_while(|byte| in_token(**byte)).count();
        let token = &bytes[at..at + length];
        if after_bearer && length >= 8 {
            secrets.mark(word, at..at + length);
        }
        for (start, part) in token_parts(token) {
            let known = |(prefix, least): &(&[u8], usize)| {
                part.starts_with(prefix) && part.len() >= prefix.len() + least
            };
            if PREFIXES.iter().any(known) || is_aws_secret(part) {
                secrets.mark(word, at + start..at + length);
                break;
            }
        }
        after_bearer = token.eq_ignore_ascii_case(b"bearer");
        at += length;
    }
}

/// The token, and what is left of it after each `=` and `/`.
fn token_parts(token: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let after = token
        .iter()
        .enumerate()
        .filter(|(_, byte)| matches!(byte, b'=' | b'/'))
        .map(|(at, _)| at + 1);
    std::iter::once(0).chain(after).map(|start| (start, &token[start..]))
}

/// 40 characters of base 64 as random as an AWS secret key. A hash in hexadecimal has no capitals,
/// and a path that long has fewer different letters.
fn is_aws_secret(token: &[u8]) -> bool {
    if token.len() != 40 {
        return false;
    }
    let mut seen = [false; 128];
    let (mut small, mut capital, mut digit) = (false, false, false);
    for &byte in token {
        match byte {
            b'a'..=b'z' => small = true,
            b'A'..=b'Z' => capital = true,
            b'0'..=b'9' => digit = true,
            b'/' | b'+' => {}
            _ => return false,
        }
        seen[usize::from(byte)] = true;
    }
    small && capital && digit && seen.iter().filter(|seen| **seen).count() >= 24
}
