//! Which names say that their value is a secret.

/// The most bytes of a name that are looked at: the last ones, where the telling word is.
pub(super) const NAME_BYTES_MAX: usize = 64;

/// Parts that make a word telling wherever they stand in it: `PGPASSWORD`, `apikey`.
const TELLING_PARTS: &[&[u8]] = &[
    b"password",
    b"passwd",
    b"passphrase",
    b"secret",
    b"credential",
    b"apikey",
    b"accesskey",
    b"privatekey",
    b"authorization",
];

/// Words that end so are telling: `authtoken`, `dbpass`.
const TELLING_ENDS: &[&[u8]] = &[b"token", b"pass", b"pwd"];

/// Words that are telling as they are.
const TELLING_WORDS: &[&[u8]] = &[b"auth", b"pw", b"psk", b"bearer"];

/// Words that end as a telling one does and are not.
const INNOCENT_WORDS: &[&[u8]] = &[b"bypass", b"compass", b"encompass", b"trespass", b"multipass"];

/// Before `key` in the next word, these are telling: `API_KEY`, `--access-key`.
const KEYS: &[&[u8]] = &[
    b"api",
    b"access",
    b"private",
    b"secret",
    b"encryption",
    b"signing",
    b"account",
    b"master",
    b"storage",
    b"shared",
];

/// A last word that says the value is about the secret, not the secret: `--password-file`.
const ABOUT: &[&[u8]] = &[
    b"file",
    b"files",
    b"path",
    b"dir",
    b"fd",
    b"stdin",
    b"prompt",
    b"policy",
    b"length",
    b"url",
    b"uri",
    b"endpoint",
    b"name",
    b"names",
    b"type",
    b"ttl",
    b"expiry",
    b"timeout",
    b"count",
    b"size",
    b"limit",
    b"format",
    b"mode",
    b"method",
    b"provider",
    b"sock",
    b"socket",
    b"host",
    b"port",
    b"enabled",
    b"required",
    b"command",
    b"cmd",
    b"helper",
    b"env",
    b"class",
    b"max",
    b"min",
];

/// A first word that makes it a yes or no: `--no-password`.
const YES_OR_NO: &[&[u8]] =
    &[b"no", b"without", b"skip", b"disable", b"ask", b"prompt", b"allow", b"require"];

/// Whether a value named so is a secret. `name` comes without leading dashes.
pub(super) fn is_secret(name: &[u8]) -> bool {
    let tail = &name[name.len().saturating_sub(NAME_BYTES_MAX)..];
    let mut telling = false;
    let mut before: Vec<u8> = Vec::new();
    for word in split_words(tail) {
        if before.is_empty() && YES_OR_NO.contains(&word.as_slice()) {
            return false;
        }
        telling |= is_telling(&word) || (word == b"key" && KEYS.contains(&before.as_slice()));
        before = word;
    }
    telling && !ABOUT.contains(&before.as_slice())
}

/// Whether a name may as well mean the working directory.
pub(super) fn is_directory_too(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"pwd") || name.eq_ignore_ascii_case(b"oldpwd")
}

fn is_telling(word: &[u8]) -> bool {
    let has = |part: &&[u8]| word.windows(part.len()).any(|window| window == *part);
    TELLING_WORDS.contains(&word)
        || TELLING_PARTS.iter().any(has)
        || (TELLING_ENDS.iter().any(|end| word.ends_with(end)) && !INNOCENT_WORDS.contains(&word))
}

/// The words of a name in lower case: parted by what is no letter or digit, and where a small
/// letter is followed by a capital.
fn split_words(name: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    let mut after_small = false;
    for &byte in name {
        let legal = byte.is_ascii_alphanumeric();
        if (!legal || (after_small && byte.is_ascii_uppercase())) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if legal {
            word.push(byte.to_ascii_lowercase());
        }
        after_small = byte.is_ascii_lowercase();
    }
    if !word.is_empty() {
        words.push(word);
    }
    words.into_iter()
}

/// Whether a byte may be part of a name.
pub(super) const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// Whether a word is how an `Authorization` header says what kind of secret follows.
pub(super) fn is_scheme(word: &[u8]) -> bool {
    const SCHEMES: &[&[u8]] =
        &[b"bearer", b"basic", b"token", b"digest", b"negotiate", b"apikey", b"ntlm", b"key"];
    SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    #[test]
    fn tells_secrets_from_what_only_sounds_like_them() {
        for name in [
            "password",
            "PGPASSWORD",
            "MYSQL_PWD",
            "dbPass",
            "db-pass",
            "api_key",
            "apiKey",
            "API-KEY",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "GITHUB_TOKEN",
            "authToken",
            "X-Api-Key",
            "client_secret",
            "secret-id",
            "Authorization",
            "PROXY_AUTH",
            "private-key",
            "spring.datasource.password",
            "GOOGLE_CREDENTIALS",
            "storepass",
            "wifi-sec.psk",
        ] {
            assert!(is_secret(name.as_bytes()), "{name}");
        }
        for name in [
            "author",
            "passive",
            "PATH",
            "no-password",
            "password-file",
            "SSH_AUTH_SOCK",
            "key",
            "max-tokens",
            "tokenizer",
            "bypass",
            "public-key",
            "PASSWORD_MIN_LENGTH",
            "",
            "path",
            "allow-empty-password",
            "keyboard",
            "compassion",
        ] {
            assert!(!is_secret(name.as_bytes()), "{name}");
        }
    }
}
