//! What was found, and how it is told.

use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use daemoneye_lib::display;
use serde::Serialize;

/// What a finding means for `procmond run`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// As it should be.
    Good,
    /// It would run, with something missing.
    Limited,
    /// It would not run.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    pub(super) detail: String,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Report {
    findings: Vec<Finding>,
}

impl Finding {
    pub(super) fn new(check: &'static str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { check, verdict, detail: detail.into() }
    }
}

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Whether `procmond run` would work.
    pub(super) fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Bad)
    }

    pub(super) fn print(&self, json: bool) -> io::Result<()> {
        let out = io::stdout().lock();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let colour = out.is_terminal() && !set("NO_COLOR");
        self.write(out, json, colour)
    }

    fn write(&self, mut out: impl Write, json: bool, colour: bool) -> io::Result<()> {
        for finding in &self.findings {
            if json {
                serde_json::to_writer(&mut out, finding)?;
                writeln!(out)?;
                continue;
            }
            let (mark, mark_colour) = match finding.verdict {
                Verdict::Good => ("ok", AnsiColor::Green),
                Verdict::Limited => ("but", AnsiColor::Yellow),
                Verdict::Bad => ("NO", AnsiColor::Red),
            };
            let style =
                if colour { Style::new().fg_color(Some(mark_colour.into())) } else { Style::new() };
            write!(out, "{style}{mark:<4}{style:#}{:<22} ", finding.check)?;
            // Several mistakes come as several lines.
            for (at, line) in finding.detail.lines().enumerate() {
                let indent = if at == 0 { 0 } else { 27 };
                writeln!(out, "{:indent$}{}", "", display::escape(line.as_bytes()))?;
            }
        }
        if !json {
            let run = if self.is_good() { "would work" } else { "would not work" };
            writeln!(out, "`procmond run` {run}")?;
        }
        out.flush()
    }

    #[cfg(test)]
    pub(super) fn only(&self) -> (Verdict, &str) {
        let [finding] = &self.findings[..] else { panic!("{:?}", self.findings) };
        (finding.verdict, &finding.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(report: &Report, json: bool) -> String {
        let mut out = Vec::new();
        report.write(&mut out, json, false).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_bad_finding_is_enough() {
        let mut report = Report::default();
        report.add(Finding::new("a", Verdict::Good, "fine"));
        report.add(Finding::new("b", Verdict::Limited, "less"));
        assert!(report.is_good());
        assert!(text(&report, false).ends_with("`procmond run` would work\n"));
        report.add(Finding::new("c", Verdict::Bad, "first\nsecond \x1b[2J"));
        assert!(!report.is_good());
        let shown = text(&report, false);
        assert!(shown.contains("NO  c                      first\n"), "{shown}");
        assert!(shown.contains("\n                           second \\x1b[2J\n"), "{shown}");
        assert!(shown.ends_with("`procmond run` would not work\n"));
    }

    #[test]
    fn json_is_one_object_a_line() {
        let mut report = Report::default();
        report.add(Finding::new("a", Verdict::Limited, "x\ny"));
        assert_eq!(
            text(&report, true),
            "{\"check\":\"a\",\"verdict\":\"limited\",\"detail\":\"x\\ny\"}\n"
        );
    }
}
