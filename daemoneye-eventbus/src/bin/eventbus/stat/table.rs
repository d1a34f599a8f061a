//! A look for people.

use anstyle::Style;
use daemoneye_eventbus::{BrokerStats, Role};
use daemoneye_lib::display::{bytes, duration, escape};
use serde::Serialize;

use super::rates::Looks;
use crate::terminal::Terminal;

/// Everything, in tables.
pub(super) fn broker(looks: &Looks, terminal: Terminal) -> String {
    let mut text = head(looks);
    for table in [connections(looks), streams(looks), consumers(looks), live(looks)] {
        if !table.rows.is_empty() {
            text.push('\n');
            table.write(&mut text, terminal);
        }
    }
    if looks.now.left_out > 0 {
        text.push_str(&format!("\n{} more rows did not fit\n", looks.now.left_out));
    }
    text
}

fn head(looks: &Looks) -> String {
    let BrokerStats { pid, uptime_ms, connections, connections_total, missed_total, .. } =
        &looks.now;
    let up = duration(uptime_ms.saturating_mul(1_000_000));
    let open = connections.len();
    let mut text =
        format!("broker   pid {pid}, up {up}, {open} connections of {connections_total}\n");
    let traffic = &looks.now.traffic;
    let (in_total, out_total) = (traffic.events_in_total, traffic.events_out_total);
    let (bytes_in, bytes_out) = (bytes(traffic.bytes_in_total), bytes(traffic.bytes_out_total));
    text.push_str(&format!(
        "events   {in_total} in ({bytes_in}), {out_total} out ({bytes_out}), {missed_total} missed by \
         live subscribers\n"
    ));
    if let Some(rates) = looks.total() {
        let traffic = rates.traffic;
        text.push_str(&format!(
            "rates    {}/s in ({}/s), {}/s out ({}/s), {}/s missed\n",
            rate(Some(traffic.events_in_per_s)),
            bytes(traffic.bytes_in_per_s as u64),
            rate(Some(traffic.events_out_per_s)),
            bytes(traffic.bytes_out_per_s as u64),
            rate(Some(rates.missed_per_s)),
        ));
    }
    let refused = looks.now.refused.iter().map(|(code, count)| (word(code), count));
    let ended = looks.now.ended.iter().map(|(code, count)| (word(code), count));
    for (name, counts) in [("refused", refused.collect::<Vec<_>>()), ("ended", ended.collect())] {
        if !counts.is_empty() {
            let counts: Vec<_> =
                counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
            text.push_str(&format!("{name:<8} {}\n", counts.join(", ")));
        }
    }
    text
}

/// A code as JSON spells it.
fn word(code: &impl Serialize) -> String {
    let json = serde_json::to_value(code).unwrap_or_default();
    json.as_str().unwrap_or("?").replace('_', " ")
}

fn connections(looks: &Looks) -> Table {
    let mut table = Table::new(&[
        "CONNECTION<",
        "ID",
        "PID",
        "ROLE<",
        "UP",
        "IN",
        "IN/s",
        "OUT",
        "OUT/s",
        "BYTES OUT/s",
        "UNREAD",
    ]);
    for row in &looks.now.connections {
        let rates = looks.connection(row);
        table.row([
            shown(&row.client_id),
            row.connection.to_string(),
            row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            match row.role {
                Role::Subscriber => "subscriber",
                Role::Collector => "collector",
                Role::Agent => "agent",
            }
            .to_owned(),
            duration(row.connected_ms.saturating_mul(1_000_000)),
            row.traffic.events_in_total.to_string(),
            rate(rates.map(|rates| rates.events_in_per_s)),
            row.traffic.events_out_total.to_string(),
            rate(rates.map(|rates| rates.events_out_per_s)),
            rates.map_or_else(|| "-".to_owned(), |rates| bytes(rates.bytes_out_per_s as u64)),
            bytes(row.control_bytes as u64),
        ]);
    }
    table
}

fn streams(looks: &Looks) -> Table {
    let mut table = Table::new(&[
        "STREAM<",
        "PUBLISHER<",
        "LAST",
        "ACKED",
        "EVENTS/s",
        "DUPLICATES",
        "CREDIT USED",
        "OF",
    ]);
    for row in &looks.now.streams {
        table.row([
            row.stream.to_string(),
            row.publisher.as_deref().map_or_else(|| "-".to_owned(), shown),
            row.last.to_string(),
            row.acked.to_string(),
            rate(looks.stream(row)),
            row.duplicates_total.to_string(),
            bytes(row.retained_bytes),
            bytes(looks.now.credit_bytes),
        ]);
    }
    table
}

fn consumers(looks: &Looks) -> Table {
    let mut table = Table::new(&[
        "DURABLE<",
        "ATTACHED<",
        "STREAM<",
        "COMMITTED",
        "COMMITTED/s",
        "DELIVERED",
        "IN FLIGHT",
        "LAG",
    ]);
    for consumer in &looks.now.consumers {
        let name =
            || [shown(&consumer.name), if consumer.attached { "yes" } else { "NO" }.to_owned()];
        if consumer.cursors.is_empty() {
            let [name, attached] = name();
            let none = || "-".to_owned();
            table.row([name, attached, none(), none(), none(), none(), none(), none()]);
        }
        for row in &consumer.cursors {
            let [name, attached] = name();
            table.row([
                name,
                attached,
                row.stream.to_string(),
                row.committed.to_string(),
                rate(looks.cursor(&consumer.name, row)),
                row.delivered.to_string(),
                bytes(row.in_flight_bytes as u64),
                row.lag.to_string(),
            ]);
        }
    }
    table
}

fn live(looks: &Looks) -> Table {
    let mut table =
        Table::new(&["LIVE<", "ID", "QUEUED", "BYTES", "MISSED", "MISSED/s", "PATTERNS<"]);
    for row in &looks.now.live {
        let patterns: Vec<&str> = row.patterns.iter().map(|pattern| pattern.as_str()).collect();
        table.row([
            shown(&row.client_id),
            row.connection.to_string(),
            row.queued_events.to_string(),
            bytes(row.queued_bytes as u64),
            row.missed_total.to_string(),
            rate(looks.live(row)),
            shown(&patterns.join(" ")),
        ]);
    }
    table
}

/// Names come from others, even though the broker lets only harmless ones in.
fn shown(text: &str) -> String {
    escape(text.as_bytes()).to_string()
}

fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(few) if few < 10.0 => format!("{few:.1}"),
        Some(many) => format!("{many:.0}"),
    }
}

/// Columns as wide as what is in them.
struct Table {
    /// A heading that ends in `<` is of a column that begins at the left.
    headings: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    const fn new(headings: &'static [&'static str]) -> Self {
        Self { headings, rows: Vec::new() }
    }

    fn row<const N: usize>(&mut self, row: [String; N]) {
        debug_assert_eq!(N, self.headings.len(), "a cell for each column");
        self.rows.push(row.into());
    }

    fn write(&self, text: &mut String, terminal: Terminal) {
        let headings: Vec<(&str, bool)> = self
            .headings
            .iter()
            .map(|heading| match heading.strip_suffix('<') {
                Some(heading) => (heading, true),
                None => (*heading, false),
            })
            .collect();
        let widths: Vec<usize> = headings
            .iter()
            .enumerate()
            .map(|(at, (heading, _))| {
                let cells = self.rows.iter().map(|row| row[at].chars().count());
                cells.max().unwrap_or(0).max(heading.len())
            })
            .collect();
        let line = |cells: &[&str]| {
            let cells: Vec<String> = cells
                .iter()
                .zip(&headings)
                .zip(&widths)
                .map(
                    |((cell, (_, left)), width)| {
                        if *left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            cells.join("  ").trim_end().to_owned()
        };
        let heads: Vec<&str> = headings.iter().map(|(heading, _)| *heading).collect();
        text.push_str(&terminal.paint(Style::new().dimmed(), &line(&heads)));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use daemoneye_eventbus::{GoodbyeCode, RefusalCode};

    use super::super::rates::tests::look;
    use super::*;

    #[test]
    fn a_look_is_a_page_of_tables() {
        let mut looks = Looks::new(look(1000, 10));
        looks.next(BrokerStats {
            refused: BTreeMap::from([(RefusalCode::NotAllowed, 2)]),
            ended: BTreeMap::from([(GoodbyeCode::Overflow, 1)]),
            left_out: 3,
            ..look(3000, 20)
        });
        assert_eq!(
            broker(&looks, Terminal::plain()),
            "\
broker   pid 1, up 3.00 s, 1 connections of 3
events   200 in (2.0 kB), 400 out (4.0 kB), 60 missed by live subscribers
rates    50/s in (500 B/s), 100/s out (1.0 kB/s), 15/s missed
refused  2 not allowed
ended    1 overflow

CONNECTION  ID   PID  ROLE           UP   IN  IN/s  OUT  OUT/s  BYTES OUT/s  UNREAD
procmond     1  4711  collector  3.00 s  200    50  400    100       1.0 kB    12 B

STREAM                                PUBLISHER  LAST  ACKED  EVENTS/s  DUPLICATES  CREDIT USED      OF
abababab-abab-abab-abab-abababababab  procmond    200    180        50           0       1.0 kB  4.0 kB

DURABLE  ATTACHED  STREAM                                COMMITTED  COMMITTED/s  DELIVERED  IN FLIGHT  LAG
store    NO        abababab-abab-abab-abab-abababababab        180           45        200      500 B   20

LIVE     ID  QUEUED  BYTES  MISSED  MISSED/s  PATTERNS
watcher   2       5  900 B      60        15  events.#

3 more rows did not fit
"
        );
    }

    #[test]
    fn one_look_has_no_rates() {
        let text = broker(&Looks::new(look(1000, 10)), Terminal::plain());
        assert!(!text.contains("rates ") && text.contains("   -  "), "{text}");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        let mut evil = look(1000, 1);
        evil.connections[0].client_id = "\u{1b}[2Jx".to_owned();
        evil.consumers[0].name = "a\nb".to_owned();
        let text = broker(&Looks::new(evil), Terminal::plain());
        assert!(text.contains(r"\x1b[2Jx") && text.contains(r"a\nb"), "{text}");
    }
}
