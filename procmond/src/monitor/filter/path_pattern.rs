//! Patterns for paths.

use regex::bytes::{Regex, RegexBuilder};

use super::PATTERN_BYTES_MAX;

/// A path, or a pattern for paths: `*` stands for any bytes but `/`, `**` for any bytes, `?` for
/// one that is not `/`, and a backslash takes the meaning from what follows it.
#[derive(Clone, Debug)]
pub(super) enum PathPattern {
    /// Most are just a path.
    Exact(Vec<u8>),
    Pattern(Regex),
}

impl PathPattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if !text.starts_with(['/', '*']) {
            return Err(format!(
                "a path begins with /; for a name in any directory write \"**/{text}\""
            ));
        }
        let (mut exact, mut pattern) = (String::new(), String::new());
        let mut is_exact = true;
        let mut rest = text.chars().peekable();
        while let Some(next) = rest.next() {
            let meant = match next {
                '*' | '?' => {
                    is_exact = false;
                    let deep = next == '*' && rest.next_if_eq(&'*').is_some();
                    pattern.push_str(match next {
                        _ if deep => ".*",
                        '*' => "[^/]*",
                        _ => "[^/]",
                    });
                    continue;
                }
                '\\' => rest.next().ok_or("a backslash at the end")?,
                plain => plain,
            };
            exact.push(meant);
            pattern.push_str(&regex::escape(meant.encode_utf8(&mut [0; 4])));
        }
        if is_exact {
            return Ok(Self::Exact(exact.into_bytes()));
        }
        RegexBuilder::new(&format!("^{pattern}$"))
            .unicode(false)
            .dot_matches_new_line(true)
            .size_limit(PATTERN_BYTES_MAX)
            .dfa_size_limit(PATTERN_BYTES_MAX)
            .build()
            .map(Self::Pattern)
            .map_err(|_| "it is too long".to_owned())
    }

    pub(super) fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &[u8]) -> bool {
        PathPattern::new(pattern).unwrap().matches(path)
    }

    #[test]
    fn a_path_without_signs_is_that_path_and_no_other() {
        assert!(matches("/usr/bin/[", b"/usr/bin/["));
        assert!(matches("/a.b", b"/a.b"));
        for other in [&b"/axb"[..], b"/a.b/", b"/a.", b"x/a.b", b""] {
            assert!(!matches("/a.b", other), "{other:?}");
        }
    }

    #[test]
    fn signs_stand_for_parts_of_a_name_or_of_a_path() {
        for (pattern, path, wanted) in [
            ("/usr/bin/*", &b"/usr/bin/ls"[..], true),
            ("/usr/bin/*", b"/usr/bin/", true),
            ("/usr/bin/*", b"/usr/bin/a/b", false),
            ("/usr/bin/*", b"/usr/bin", false),
            ("/usr/**", b"/usr/a/b", true),
            ("/usr/**", b"/usrx/a", false),
            ("**/bash", b"/usr/bin/bash", true),
            ("**/bash", b"/usr/bin/rbash", false),
            ("*bash", b"/bash", false),
            ("/opt/*/bin/?.sh", b"/opt/x.1/bin/a.sh", true),
            ("/opt/*/bin/?.sh", b"/opt/x.1/bin/aa.sh", false),
            ("/opt/*/bin/?.sh", b"/opt/x.1/bin/axsh", false),
            ("/a?b", b"/a/b", false),
            (r"/a\*", b"/a*", true),
            (r"/a\*", b"/ab", false),
            (r"/a\*?", b"/a*b", true),
            // Bytes that are no text, and a line's end, are like any others.
            ("/tmp/*", b"/tmp/\xff\nx", true),
            ("/tmp/?", b"/tmp/\xff", true),
            ("/\u{e9}*", "/\u{e9}t\u{e9}".as_bytes(), true),
        ] {
            assert_eq!(matches(pattern, path), wanted, "{pattern} {path:?}");
        }
    }

    #[test]
    fn what_can_match_nothing_is_refused() {
        assert!(PathPattern::new("bash").unwrap_err().contains("\"**/bash\""));
        assert!(PathPattern::new("/a\\").is_err());
        assert!(PathPattern::new(&format!("/{}*", "x".repeat(1 << 20))).is_err());
    }
}
