//! Rows, as a table or as JSON.

use crate::process::Run;

/// What a row's figures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    /// From publisher to subscriber, p99.
    Microseconds,
    /// The broker's, for a message.
    CpuMicroseconds,
    /// The broker's greatest memory.
    Megabytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "1/s",
            Self::Microseconds => "us",
            Self::CpuMicroseconds => "cpu us",
            Self::Megabytes => "MB",
        }
    }

    fn higher_is_better(self) -> bool {
        self == Self::PerSecond
    }
}

pub(crate) struct Row {
    name: String,
    unit: Unit,
    ours: Option<f64>,
    limit: Option<f64>,
    /// The best of the peers.
    peer: Option<(&'static str, f64)>,
}

impl Row {
    /// From what take_rounds gave: `relay` is the limit, `ours` is ours, all others are peers.
    pub(crate) fn from_sides(
        name: &str,
        unit: Unit,
        sides: &[(&'static str, Vec<Run>)],
        figure: impl Fn(&Run) -> f64,
    ) -> Self {
        let mut row = Self { name: name.to_owned(), unit, ours: None, limit: None, peer: None };
        for (side, runs) in sides {
            let Some(median) = median(runs.iter().map(&figure).collect()) else { continue };
            match *side {
                "ours" => row.ours = Some(median),
                "relay" => row.limit = Some(median),
                peer => {
                    let better = row.peer.is_none_or(|(_, best)| {
                        (median > best) == unit.higher_is_better() && median != best
                    });
                    if better {
                        row.peer = Some((peer, median));
                    }
                }
            }
        }
        row
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn begin(json: bool, rounds: usize) -> Self {
        if !json {
            println!(
                "{} bytes a message, medians of {rounds} rounds; of 1/s more is better, else less",
                crate::load::PAYLOAD_BYTES
            );
            println!(
                "{:<20} {:>7} {:>12} {:>12} {:>6} {:>12} {:>7}  peer",
                "row", "unit", "ours", "limit", "ratio", "peer", "ratio"
            );
        }
        Self { json }
    }

    pub(crate) fn row(&mut self, row: Row) {
        let ratio = |other: Option<f64>| Some(row.ours? / other.filter(|other| *other > 0.0)?);
        let (ratio_limit, ratio_peer) =
            (ratio(row.limit), ratio(row.peer.map(|(_, figure)| figure)));
        let peer = row.peer.map(|(_, figure)| figure);
        let (name, unit) = (&row.name, row.unit.name());
        if self.json {
            let number = |value: Option<f64>, digits: usize| {
                value.map_or("null".to_owned(), |value| format!("{value:.digits$}"))
            };
            let peer_name = row.peer.map_or("null".to_owned(), |(peer, _)| format!("\"{peer}\""));
            println!(
                "{{\"row\":\"{name}\",\"ours\":{},\"limit\":{},\"ratio_limit\":{},\"peer\":{},\
                 \"ratio_peer\":{},\"unit\":\"{unit}\",\"better\":\"{}\",\"peer_name\":{peer_name}}}",
                number(row.ours, 2),
                number(row.limit, 2),
                number(ratio_limit, 3),
                number(peer, 2),
                number(ratio_peer, 3),
                if row.unit.higher_is_better() { "higher" } else { "lower" },
            );
        } else {
            let digits = if row.unit == Unit::PerSecond { 0 } else { 2 };
            let number = |value: Option<f64>, digits: usize| {
                value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
            };
            println!(
                "{name:<20} {unit:>7} {:>12} {:>12} {:>6} {:>12} {:>7}  {}",
                number(row.ours, digits),
                number(row.limit, digits),
                number(ratio_limit, 2),
                number(peer, digits),
                number(ratio_peer, 2),
                row.peer.map_or("-", |(peer, _)| peer),
            );
        }
    }
}
