//! What the rounds came to.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What a row's figures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    RecordsPerSecond,
    Microseconds,
    Milliseconds,
    NanosecondsOfCpu,
    PercentOfACore,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::RecordsPerSecond => "records/s",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::NanosecondsOfCpu => "ns CPU/record",
            Self::PercentOfACore => "% of a core",
        }
    }

    fn more_is_better(self) -> bool {
        self == Self::RecordsPerSecond
    }
}

/// One row: a figure of each round for everybody.
struct Row {
    name: &'static str,
    unit: Unit,
    ours: Vec<f64>,
    limit: Vec<f64>,
    peers: BTreeMap<String, Vec<f64>>,
}

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    fn row(&mut self, name: &'static str, unit: Unit) -> &mut Row {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let (ours, limit, peers) = Default::default();
            self.rows.push(Row { name, unit, ours, limit, peers });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    pub(crate) fn ours(&mut self, row: &'static str, unit: Unit, figure: f64) {
        self.row(row, unit).ours.push(figure);
    }

    pub(crate) fn limit(&mut self, row: &'static str, unit: Unit, figure: f64) {
        self.row(row, unit).limit.push(figure);
    }

    pub(crate) fn peer(&mut self, row: &'static str, unit: Unit, peer: &str, figure: f64) {
        self.row(row, unit).peers.entry(peer.to_owned()).or_default().push(figure);
    }

    /// One JSON object a row.
    pub(crate) fn print_json(&self, all_peers: bool) {
        for row in &self.rows {
            println!("{}", row.to_json(all_peers));
        }
    }

    pub(crate) fn print_table(&self, all_peers: bool) {
        println!(
            "{:<25} {:>13} {:>11} {:>11} {:>6} {:>11} {:>6}  best peer",
            "", "", "ours", "limit", "ratio", "peer", "ratio"
        );
        for row in &self.rows {
            let (ours, limit) = (median(&row.ours), median(&row.limit));
            let best = row.best_peer();
            println!(
                "{:<25} {:>13} {} {} {} {} {}  {}",
                row.name,
                row.unit.name(),
                figure(ours),
                figure(limit),
                ratio(ours, limit),
                figure(best.map(|(_, peer)| peer)),
                ratio(ours, best.map(|(_, peer)| peer)),
                best.map_or("", |(name, _)| name),
            );
        }
        println!("ratios are ours to the other's; for times and CPU less is better");
        if all_peers {
            self.print_peers();
        }
    }

    fn print_peers(&self) {
        let names: Vec<_> = self
            .rows
            .iter()
            .max_by_key(|row| row.peers.len())
            .map_or_else(Vec::new, |row| row.peers.keys().map(String::as_str).collect());
        print!("\n{:<25} {:>13}", "", "");
        names.iter().for_each(|name| print!(" {name:>11}"));
        println!();
        for row in self.rows.iter().filter(|row| !row.peers.is_empty()) {
            print!("{:<25} {:>13}", row.name, row.unit.name());
            for name in &names {
                print!(" {}", figure(row.peers.get(*name).and_then(|figures| median(figures))));
            }
            println!();
        }
    }
}

impl Row {
    fn best_peer(&self) -> Option<(&str, f64)> {
        let medians =
            self.peers.iter().filter_map(|(name, figures)| Some((name.as_str(), median(figures)?)));
        if self.unit.more_is_better() {
            medians.max_by(|a, b| a.1.total_cmp(&b.1))
        } else {
            medians.min_by(|a, b| a.1.total_cmp(&b.1))
        }
    }

    fn to_json(&self, all_peers: bool) -> Value {
        let (ours, limit) = (median(&self.ours), median(&self.limit));
        let best = self.best_peer();
        let peer = best.map(|(_, figure)| figure);
        let over = |other: Option<f64>| Some(rounded(ours? / other?, 3));
        let mut object = json!({
            "row": self.name,
            "unit": self.unit.name(),
            "more_is_better": self.unit.more_is_better(),
            "rounds": self.ours.len(),
            "ours": ours.map(short),
            "limit": limit.map(short),
            "ratio_limit": over(limit),
            "peer": peer.map(short),
            "ratio_peer": over(peer),
            "peer_name": best.map(|(name, _)| name),
        });
        if all_peers {
            let peers: Map<_, _> = self
                .peers
                .iter()
                .map(|(name, figures)| (name.clone(), json!(median(figures).map(short))))
                .collect();
            object["peers"] = Value::Object(peers);
        }
        object
    }
}

fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) && middle > 0 {
        Some((sorted[middle - 1] + sorted[middle]) / 2.0)
    } else {
        sorted.get(middle).copied()
    }
}

fn rounded(figure: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (figure * scale).round() / scale
}

/// No more digits than mean something.
fn short(figure: f64) -> f64 {
    rounded(figure, if figure < 1000.0 { 2 } else { 0 })
}

fn figure(figure: Option<f64>) -> String {
    match figure {
        None => format!("{:>11}", "-"),
        Some(figure) if figure < 1000.0 => format!("{figure:>11.2}"),
        Some(figure) if figure < 1e6 => format!("{:>9.1} k", figure / 1e3),
        Some(figure) => format!("{:>9.2} M", figure / 1e6),
    }
}

fn ratio(ours: Option<f64>, other: Option<f64>) -> String {
    match (ours, other) {
        (Some(ours), Some(other)) => format!("{:>6.2}", ours / other),
        _ => format!("{:>6}", "-"),
    }
}
