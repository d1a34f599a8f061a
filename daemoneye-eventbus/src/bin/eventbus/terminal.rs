//! What people are given to read.

use std::io::{self, IsTerminal, Write};

use anstyle::Style;
use daemoneye_lib::display::plain;

/// What is known of standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    /// It moves a cursor.
    pub(crate) is_screen: bool,
    colour: bool,
}

impl Terminal {
    /// Asks standard output and the environment.
    pub(crate) fn stdout() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let is_screen = io::stdout().is_terminal() && !dumb;
        Self { is_screen, colour: is_screen && !set("NO_COLOR") }
    }

    /// No terminal at all.
    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self { is_screen: false, colour: false }
    }

    /// `text` in `style` where colours are wanted.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// Says something on standard error. That it cannot be written is nobody's business.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "eventbus: {}", plain(text));
}
