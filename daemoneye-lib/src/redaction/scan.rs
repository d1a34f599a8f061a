//! Secrets that show only in the company of other words: behind an option, in a program's own
//! form, in a command line inside an argument.

use super::clients::{Client, Form, Operand};
use super::names;
use super::text::{self, Ending};
use super::word::{Secrets, Token, Word};

/// Quotes within quotes that are followed. What lies deeper is taken for a secret as a whole.
const DEPTH_MAX: usize = 8;

/// What the next word is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// A word like any other.
    Any,
    /// A secret.
    Secret,
    /// A secret, unless it looks like an option: what asked for it may have gone without.
    SecretOrOption,
    /// A secret after this byte.
    After(u8),
    /// The value of a header.
    HeaderValue,
    /// A text for a shell.
    Program,
    /// The value of a short option that is no secret.
    Value,
}

/// Marks the secrets in a command's words.
pub(super) fn scan_command<'a>(words: impl IntoIterator<Item = Word<'a>>, secrets: &mut Secrets) {
    let mut scan = Scan::new(0, secrets);
    for word in words {
        scan.word(&word);
    }
}

struct Scan<'s> {
    depth: usize,
    secrets: &'s mut Secrets,
    next: Next,
    client: Option<&'static Client>,
    /// Whether `client`'s rules have begun.
    active: bool,
}

impl<'s> Scan<'s> {
    const fn new(depth: usize, secrets: &'s mut Secrets) -> Self {
        Self { depth, secrets, next: Next::Any, client: None, active: false }
    }

    fn word(&mut self, word: &Word<'_>) {
        let expected = std::mem::replace(&mut self.next, Next::Any);
        let bytes = &*word.bytes;
        if self.take_expected(expected, word) {
            return;
        }
        match text::scan(word, expected == Next::Program, self.secrets) {
            Ending::Plain => {}
            Ending::Header => self.next = Next::HeaderValue,
            Ending::Scheme => self.next = Next::Secret,
        }
        if word.is_text() {
            self.text(word);
        }
        if self.next != Next::Any || expected == Next::Value {
            return;
        }
        if bytes.eq_ignore_ascii_case(b"bearer") {
            self.next = Next::Secret;
        } else if bytes.len() > 1 && matches!(bytes[0], b'-' | b'/') {
            self.option(word);
            if bytes[0] == b'/' {
                self.operand(word);
            }
        } else {
            self.operand(word);
        }
    }

    /// Deals with a word that the one before announced. False: the word is like any other.
    fn take_expected(&mut self, expected: Next, word: &Word<'_>) -> bool {
        let bytes = &*word.bytes;
        match expected {
            Next::Any | Next::Program | Next::Value => false,
            Next::SecretOrOption if is_option(bytes) || is_about_docker(bytes) => false,
            Next::HeaderValue if names::is_scheme(bytes) => {
                self.next = Next::Secret;
                true
            }
            Next::Secret | Next::SecretOrOption | Next::HeaderValue => {
                self.secrets.mark(word, 0..bytes.len());
                true
            }
            Next::After(separator) => {
                if let Some(at) = bytes.iter().position(|byte| *byte == separator) {
                    self.secrets.mark(word, at + 1..bytes.len());
                }
                // The user may be a URL or the like.
                false
            }
        }
    }

    /// A command line, or several, inside one word.
    fn text(&mut self, word: &Word<'_>) {
        if self.depth == DEPTH_MAX {
            self.secrets.mark(word, 0..word.bytes.len());
            return;
        }
        let mut inner = Scan::new(self.depth + 1, self.secrets);
        for token in word.tokens() {
            match token {
                Token::Word(word) => inner.word(&word),
                Token::EndOfCommand => inner.end_command(),
            }
        }
    }

    const fn end_command(&mut self) {
        self.next = Next::Any;
        self.client = None;
        self.active = false;
    }

    fn option(&mut self, word: &Word<'_>) {
        let bytes = &*word.bytes;
        let dashes = bytes.iter().take_while(|byte| matches!(byte, b'-' | b'/')).count();
        let name = &bytes[dashes..];
        let whole_name = name.iter().all(|byte| names::is_name_byte(*byte));
        let short = dashes == 1 && bytes[0] == b'-';
        // First, for a secret right behind its short option may look like a telling name.
        if let (true, true, Some(client)) = (short, self.active, self.client)
            && self.short_options(client, word)
        {
            return;
        }
        if name.len() > 1 && whole_name && names::is_secret(name) {
            self.next = Next::SecretOrOption;
            return;
        }
        if bytes[0] == b'-' && matches!(name, b"user" | b"proxy-user" | b"auth" | b"cert") {
            self.next = Next::After(b':');
            return;
        }
        for long in [&b"user="[..], b"proxy-user=", b"cert="] {
            if let Some(value) = name.strip_prefix(long)
                && let Some(colon) = value.iter().position(|byte| *byte == b':')
            {
                self.secrets.mark(word, dashes + long.len() + colon + 1..bytes.len());
            }
        }
        // `sh -c text`, `bash -lc text`, `su -c text`.
        if short && self.next == Next::Any && name.ends_with(b"c") && name.len() <= 4 {
            self.next = Next::Program;
        }
    }

    /// A dash, short options without a value, and perhaps one with a value at the end. True: the
    /// word cannot be anything else.
    fn short_options(&mut self, client: &Client, word: &Word<'_>) -> bool {
        let bytes = &*word.bytes;
        for at in 1..bytes.len() {
            let rest = at + 1..bytes.len();
            if let Some((_, form)) = client.secret.iter().find(|(letter, _)| *letter == bytes[at]) {
                match form {
                    Form::Attached => {
                        self.secrets.mark(word, rest);
                        return true;
                    }
                    Form::Alone if bytes.len() > 2 => {}
                    Form::Alone => self.next = Next::SecretOrOption,
                    Form::Value if rest.is_empty() => self.next = Next::SecretOrOption,
                    Form::Value => self.secrets.mark(word, rest),
                    Form::After(separator) if rest.is_empty() => {
                        self.next = Next::After(*separator);
                    }
                    Form::After(separator) => {
                        if let Some(found) = bytes[at..].iter().position(|b| b == separator) {
                            self.secrets.mark(word, at + found + 1..bytes.len());
                        }
                    }
                }
                return false;
            }
            if client.valued.contains(&bytes[at]) {
                if rest.is_empty() {
                    self.next = Next::Value;
                }
                return false;
            }
        }
        false
    }

    fn operand(&mut self, word: &Word<'_>) {
        let bytes = &*word.bytes;
        if let (true, Some(client)) = (self.active, self.client) {
            match client.operand {
                Some(Operand::Slash) => {
                    if let Some(slash) = bytes.iter().position(|byte| *byte == b'/') {
                        let end = bytes.iter().rposition(|byte| *byte == b'@');
                        let end = end.filter(|end| *end > slash).unwrap_or(bytes.len());
                        self.secrets.mark(word, slash + 1..end);
                    }
                }
                Some(Operand::SlashP) if bytes.starts_with(b"/p:") => {
                    self.secrets.mark(word, 3..bytes.len());
                }
                _ => {}
            }
            let whole_name =
                bytes.iter().all(|byte| names::is_name_byte(*byte) || b":/".contains(byte));
            if client.bare_names && whole_name && names::is_secret(bytes) {
                self.next = Next::SecretOrOption;
                return;
            }
            if client.runs_another {
                self.client = None;
                self.active = false;
            }
        }
        if let Some(client) = self.client
            && !self.active
            && client.after == Some(bytes)
        {
            self.active = true;
        }
        // Wherever a client is named: behind `sudo -u x`, `env A=b`, `docker exec y`, `--`.
        if let Some(client) = Client::named(bytes) {
            self.client = Some(client);
            self.active = client.after.is_none();
        }
    }
}

/// `-x`, `--name` or `--name=value`: more likely an option than a secret.
fn is_option(bytes: &[u8]) -> bool {
    match bytes {
        [b'-', letter] => letter.is_ascii_alphabetic(),
        [b'-', b'-', first, rest @ ..] => {
            let name = rest.split(|byte| *byte == b'=').next().unwrap_or(rest);
            first.is_ascii_lowercase()
                && name.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'-')
        }
        _ => false,
    }
}

/// The value of `docker build --secret`, which says where the secret is.
fn is_about_docker(bytes: &[u8]) -> bool {
    [&b"id="[..], b"type=", b"source=", b"src="].iter().any(|start| bytes.starts_with(start))
}
