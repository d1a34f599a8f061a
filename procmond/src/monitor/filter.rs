//! Which processes are told of.
//!
//! Rules include and exclude; what an exclude rule matches is not told of, whatever includes it,
//! and if there are include rules, only what one of them matches is. So the order of rules says
//! nothing, as in Sysmon and Tetragon: one who adds a rule need not know all others. All conditions
//! of a rule must hold. A condition on what is not known of a process does not hold.

mod path_pattern;

use std::cell::OnceCell;

use daemoneye_lib::config::Row;
use daemoneye_lib::display;
use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::ProcessEvent;
use regex::bytes::{Regex, RegexBuilder};

use path_pattern::PathPattern;

/// The most memory that one pattern may take, and again while it is matched, in bytes.
const PATTERN_BYTES_MAX: usize = 256 << 10;

/// Which processes are told of: all, without rules.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// If there are any, only processes that match one of these are told of.
    pub include: Vec<Rule>,
    /// Processes that match one of these are not told of.
    pub exclude: Vec<Rule>,
}

/// Conditions that must all hold. Of several values in one condition, one must.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    exe: Vec<PathPattern>,
    parent: Vec<PathPattern>,
    cgroup: Vec<PathPattern>,
    uid: Vec<u32>,
    argv: Vec<Regex>,
}

/// What there is to know about a process when rules are asked.
pub(super) struct Subject<'a> {
    event: &'a ProcessEvent,
    parent_exe: Option<&'a ByteString>,
    /// The arguments in one line, once a rule wants them.
    line: OnceCell<Vec<u8>>,
}

impl Rule {
    /// What a rule looks like, for people.
    pub const ALLOWED: &str = "tables with one or more of exe, parent, cgroup, uid and argv, such as { exe = \"/bin/true\" }";

    /// Reads one rule of the configuration.
    #[must_use]
    pub fn read(row: &mut Row<'_>) -> Self {
        let uids = row.integers("uid", &(0..=u64::from(u32::MAX)));
        let rule = Self {
            exe: row.texts("exe", PathPattern::new),
            parent: row.texts("parent", PathPattern::new),
            cgroup: row.texts("cgroup", PathPattern::new),
            uid: uids.into_iter().filter_map(|uid| u32::try_from(uid).ok()).collect(),
            argv: row.texts("argv", compile),
        };
        if row.is_empty() {
            row.refuse("a rule without a condition would match every process");
        }
        rule
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        let event = subject.event;
        let is_path = |patterns: &[PathPattern], path: Option<&ByteString>| {
            let is_it = |path: &ByteString| patterns.iter().any(|one| one.matches(path.as_bytes()));
            patterns.is_empty() || path.is_some_and(is_it)
        };
        // The dearest last.
        (self.uid.is_empty() || event.uid.is_some_and(|uid| self.uid.contains(&uid)))
            && is_path(&self.exe, event.exe.as_ref())
            && is_path(&self.cgroup, event.cgroup.as_ref())
            && is_path(&self.parent, subject.parent_exe)
            && (self.argv.is_empty()
                || event.argv.is_some() && self.argv.iter().any(|one| one.is_match(subject.line())))
    }
}

impl Filter {
    /// Whether everything is told of.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a rule asks what the parent runs.
    pub(super) fn asks_for_parents(&self) -> bool {
        self.include.iter().chain(&self.exclude).any(|rule| !rule.parent.is_empty())
    }

    /// Whether a process is told of.
    pub(super) fn admits(&self, subject: &Subject<'_>) -> bool {
        let any = |rules: &[Rule]| rules.iter().any(|rule| rule.matches(subject));
        !any(&self.exclude) && (self.include.is_empty() || any(&self.include))
    }
}

impl<'a> Subject<'a> {
    pub(super) const fn new(event: &'a ProcessEvent, parent_exe: Option<&'a ByteString>) -> Self {
        Self { event, parent_exe, line: OnceCell::new() }
    }

    fn line(&self) -> &[u8] {
        self.line.get_or_init(|| {
            let mut line = Vec::new();
            for (index, argument) in self.event.argv.iter().flat_map(|argv| argv.iter()).enumerate()
            {
                if index > 0 {
                    line.push(b' ');
                }
                line.extend_from_slice(argument);
            }
            line
        })
    }
}

/// A pattern over bytes; matching takes time linear in their number.
fn compile(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            // Above it stands the pattern, with a mark below the place.
            let last = text.lines().last().unwrap_or_default();
            let why = last.strip_prefix("error: ").unwrap_or(last);
            display::escape(why.as_bytes()).to_string()
        })
}

#[cfg(test)]
pub(super) mod tests;
