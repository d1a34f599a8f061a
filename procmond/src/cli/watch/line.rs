//! One event as one line.

use std::fmt::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use daemoneye_lib::display;
use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Exit, FieldChange, ProcessEvent, ProcessEventKind};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::users::Users;
use crate::monitor::tracker::{ANCESTORS_MAX, Ancestor, Tracker};

/// Columns of the parts before the command.
const USER_WIDTH: usize = 8;
const PARENT_WIDTH: usize = 22;
/// A command line is cut to no less than this, however narrow the terminal.
const COMMAND_MIN: usize = 20;

/// How lines look.
pub(super) struct LineStyle {
    pub(super) colour: bool,
    /// Lines are cut to the terminal's width.
    pub(super) follow_width: bool,
    pub(super) zone: TimeZone,
    pub(super) users: Users,
}

impl LineStyle {
    /// The line of an event: with its parent, named from the table, or all its ancestors.
    pub(super) fn line(
        &self,
        event: &ProcessEvent,
        tracker: &Tracker,
        ancestry: Option<&[Ancestor<'_>]>,
    ) -> String {
        let (sign, colour) = match event.kind {
            ProcessEventKind::Start { .. } => ('+', AnsiColor::Green),
            ProcessEventKind::Stop(_) => ('-', AnsiColor::Red),
            ProcessEventKind::Modify { .. } => ('~', AnsiColor::Yellow),
        };
        let dim = Style::new().dimmed();
        let main = Style::new().fg_color(Some(colour.into()));
        let user = event.euid.map_or_else(|| "?".to_owned(), |uid| self.users.name(uid));
        let user = pad(&display::escape(user.as_bytes()).to_string(), USER_WIDTH);
        let parent = || format!("← {} ", pad(&parent(event, tracker), PARENT_WIDTH));
        let mut head = vec![
            (dim, format!("{} ", self.time(event))),
            (main.bold(), format!("{sign} {:>7} ", event.pid())),
            (dim, if ancestry.is_none() { parent() } else { String::new() }),
            (Style::new(), format!("{user} ")),
        ];
        let details = details(event);
        let used = |head: &[(Style, String)]| -> usize {
            head.iter().map(|(_, text)| text.chars().count()).sum()
        };
        let room = |used: usize| {
            let room = |width: usize| width.saturating_sub(used + details.chars().count() + 2);
            self.width().map(|width| room(width).max(COMMAND_MIN))
        };
        if let Some(ancestry) = ancestry {
            // The command is at least as interesting as what it comes from.
            let chain = chain(ancestry, room(used(&head)).map(|room| room / 2));
            head.push((dim, chain));
        }
        let room = room(used(&head));
        let mut line = String::new();
        for (style, text) in &head {
            self.paint(&mut line, *style, text);
        }
        let command = cut(&command(event), room);
        self.paint(&mut line, if sign == '-' { dim } else { Style::new() }, &command);
        if !details.is_empty() {
            self.paint(&mut line, main, &format!("  {details}"));
        }
        line
    }

    fn paint(&self, line: &mut String, style: Style, text: &str) {
        if self.colour && style != Style::new() {
            // Writing to a string does not fail.
            let _ = write!(line, "{style}{text}{style:#}");
        } else {
            line.push_str(text);
        }
    }

    /// The time of day a process started at, or an end or a change was seen.
    fn time(&self, event: &ProcessEvent) -> String {
        let ns = match event.kind {
            ProcessEventKind::Start { .. } => event.start_time_ns.unwrap_or(event.time_ns),
            _ => event.time_ns,
        };
        Timestamp::from_nanosecond(i128::from(ns)).map_or_else(
            |_| "??:??:??.???".to_owned(),
            |time| time.to_zoned(self.zone.clone()).strftime("%H:%M:%S%.3f").to_string(),
        )
    }

    /// Asked for each line: a window may be resized.
    fn width(&self) -> Option<usize> {
        self.follow_width.then(terminal_width).flatten()
    }
}

#[cfg(unix)]
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

#[cfg(not(unix))]
const fn terminal_width() -> Option<usize> {
    None
}

/// `name[pid]` of the parent.
fn parent(event: &ProcessEvent, tracker: &Tracker) -> String {
    let Some(ppid) = event.ppid else { return "?".to_owned() };
    let known = tracker.get(ppid).filter(|parent| Some(parent.key) == event.parent_key);
    match known.and_then(|parent| parent.name.as_ref()) {
        Some(name) => format!("{name}[{ppid}]"),
        None => format!("[{ppid}]"),
    }
}

/// The ancestors, the oldest first, and then the place for the command; with less room, the nearest
/// of them.
pub(super) fn chain(ancestry: &[Ancestor<'_>], room: Option<usize>) -> String {
    const LINK: &str = " › ";
    let mut chain = String::new();
    for (at, ancestor) in ancestry.iter().enumerate() {
        let name = ancestor.name.map_or_else(String::new, link_name);
        let longer = format!("{name}[{}]{LINK}{chain}", ancestor.pid);
        // What is left out needs a mark.
        let mark = if at + 1 < ancestry.len() { 1 + LINK.chars().count() } else { 0 };
        if at == ANCESTORS_MAX - 1 || room.is_some_and(|room| longer.chars().count() + mark > room)
        {
            return format!("…{LINK}{chain}");
        }
        chain = longer;
    }
    chain
}

/// A name in a chain: one that could be taken for a piece of the chain is quoted.
fn link_name(name: &ByteString) -> String {
    let shown = name.to_string();
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-./:@+~".contains(c);
    if !shown.is_empty() && shown.chars().all(is_bare) {
        return shown;
    }
    format!("'{}'", shown.replace('\'', r"'\''"))
}

/// The command line; the name, in brackets, of one that has none.
fn command(event: &ProcessEvent) -> String {
    match &event.argv {
        Some(argv) if !argv.is_empty() => argv.command_line(),
        _ => event.name.as_ref().map_or_else(|| "?".to_owned(), |name| format!("[{name}]")),
    }
}

/// What this kind of event has to say.
fn details(event: &ProcessEvent) -> String {
    match &event.kind {
        ProcessEventKind::Start { .. } => String::new(),
        ProcessEventKind::Stop(exit) => ending(exit),
        ProcessEventKind::Modify { changes } => {
            let changes: Vec<String> =
                changes.iter().filter_map(|change| changed(change, event)).collect();
            changes.join(", ")
        }
    }
}

fn ending(exit: &Exit) -> String {
    let mut parts = Vec::new();
    if let Some(ns) = exit.run_time_ns {
        parts.push(format!("ran {}", duration(Duration::from_nanos(ns))));
    }
    if let Some(code) = exit.exit_code {
        parts.push(format!("exit {code}"));
    }
    if let Some(signal) = exit.signal {
        parts.push(format!("signal {signal}"));
    }
    parts.join(", ")
}

/// `field old → new`; nothing for arguments, for the line shows the new ones.
fn changed(change: &FieldChange, now: &ProcessEvent) -> Option<String> {
    fn text<T: std::fmt::Display>(value: Option<&T>) -> String {
        value.map_or_else(|| "?".to_owned(), T::to_string)
    }
    let (field, old, new) = match change {
        FieldChange::Argv(_) => return None,
        FieldChange::Name(old) => ("name", text(old.as_ref()), text(now.name.as_ref())),
        FieldChange::Exe(old) => ("exe", text(old.as_ref()), text(now.exe.as_ref())),
        FieldChange::Cgroup(old) => ("cgroup", text(old.as_ref()), text(now.cgroup.as_ref())),
        FieldChange::Uid(old) => ("uid", text(old.as_ref()), text(now.uid.as_ref())),
        FieldChange::Euid(old) => ("euid", text(old.as_ref()), text(now.euid.as_ref())),
        FieldChange::Gid(old) => ("gid", text(old.as_ref()), text(now.gid.as_ref())),
        FieldChange::Egid(old) => ("egid", text(old.as_ref()), text(now.egid.as_ref())),
        FieldChange::LoginUid(old) => {
            ("login uid", text(old.as_ref()), text(now.login_uid.as_ref()))
        }
        FieldChange::Session(old) => ("session", text(old.as_ref()), text(now.session.as_ref())),
        FieldChange::Capabilities(old) => {
            ("capabilities", text(old.as_ref()), text(now.capabilities.as_ref()))
        }
    };
    Some(format!("{field} {old} → {new}"))
}

/// Exactly this many characters.
fn pad(text: &str, width: usize) -> String {
    format!("{:<width$}", cut(text, Some(width)))
}

/// At most this many characters; `…` stands for the rest.
fn cut(text: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if text.chars().count() > width => {
            let kept: String = text.chars().take(width.saturating_sub(1)).collect();
            kept + "…"
        }
        _ => text.to_owned(),
    }
}

/// A duration in the unit that fits it.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}
