//! Rows, as a table or as JSON.

use std::time::Duration;

use crate::load::Truth;
use crate::tool::Measured;

/// What a tool made of a load: medians over the rounds.
pub(crate) struct Row {
    load: &'static str,
    tool: String,
    figures: Vec<Figure>,
}

struct Figure {
    name: &'static str,
    value: Option<f64>,
    digits: usize,
}

const COLUMNS: [(&str, usize); 11] = [
    ("starts_percent", 2),
    ("stops_percent", 2),
    ("argv_percent", 2),
    ("per_second", 0),
    ("cpu_percent", 2),
    ("cpu_us", 1),
    ("kernel_us", 1),
    ("program_us", 1),
    ("resident_mb", 1),
    ("p50_ms", 2),
    ("p99_ms", 2),
];

impl Row {
    pub(crate) fn of(load: &'static str, tool: &str, runs: &[Measured], alone: &[Truth]) -> Self {
        let median = |figure: &dyn Fn(&Measured) -> f64| median(runs.iter().map(figure).collect());
        let percent =
            |seen: usize, run: &Measured| 100.0 * seen as f64 / run.truth.pids.len() as f64;
        let each_us =
            |time: Duration, truth: &Truth| time.as_secs_f64() * 1e6 / truth.pids.len() as f64;
        let alone_us =
            self::median(alone.iter().map(|truth| each_us(truth.kernel_time, truth)).collect());
        let tells_stops = runs.iter().all(|run| run.found.stops.is_some());
        let kernel_us = median(&|run| each_us(run.kernel_time + run.truth.kernel_time, &run.truth));
        let latency_ms = |share: f64| {
            let of_run = |run: &Measured| {
                let mut sorted = run.latencies_ns.clone();
                sorted.sort_unstable();
                let at = (sorted.len() as f64 * share) as usize;
                sorted.get(at).map(|ns| *ns as f64 / 1e6)
            };
            self::median(runs.iter().filter_map(of_run).collect())
        };
        let program_us = |run: &Measured| Some(each_us(run.program_time?, &run.truth));
        let values = [
            median(&|run| percent(run.found.starts, run)),
            tells_stops
                .then(|| median(&|run| percent(run.found.stops.unwrap_or(0), run)))
                .flatten(),
            median(&|run| percent(run.found.whole, run)),
            median(&|run| run.truth.pids.len() as f64 / run.truth.seconds),
            median(&|run| 100.0 * run.cpu.as_secs_f64() / run.truth.seconds),
            median(&|run| each_us(run.cpu, &run.truth)),
            kernel_us.zip(alone_us).map(|(with, without)| with - without),
            self::median(runs.iter().filter_map(program_us).collect()),
            median(&|run| run.resident_kb as f64 / 1024.0),
            latency_ms(0.5),
            latency_ms(0.99),
        ];
        let figures = COLUMNS.iter().zip(values);
        let figures =
            figures.map(|((name, digits), value)| Figure { name, value, digits: *digits });
        Self { load, tool: tool.to_owned(), figures: figures.collect() }
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
            println!("medians of {rounds} rounds");
            println!(
                "{:<7} {:<17} {:>7} {:>7} {:>7} {:>7} {:>6} {:>7} {:>9} {:>7} {:>7} {:>7} {:>7}",
                "load",
                "tool",
                "starts%",
                "stops%",
                "argv%",
                "1/s",
                "cpu%",
                "cpu us",
                "kernel us",
                "prog us",
                "RSS MB",
                "p50 ms",
                "p99 ms"
            );
        }
        Self { json }
    }

    /// The load without any tool.
    pub(crate) fn alone(&self, load: &str, runs: &[Truth]) {
        let rate = median(runs.iter().map(|run| run.pids.len() as f64 / run.seconds).collect());
        let rate = rate.unwrap_or(0.0);
        if self.json {
            println!("{{\"load\":\"{load}\",\"tool\":null,\"per_second\":{rate:.0}}}");
        } else {
            println!("{load:<7} {:<17} {:>7} {:>7} {:>7} {rate:>7.0}", "(none)", "-", "-", "-");
        }
    }

    pub(crate) fn row(&self, row: &Row) {
        let text = |figure: &Figure, missing: &str| {
            figure.value.map_or(missing.to_owned(), |value| format!("{value:.0$}", figure.digits))
        };
        if self.json {
            let figures = row
                .figures
                .iter()
                .map(|figure| format!(",\"{}\":{}", figure.name, text(figure, "null")));
            let figures: String = figures.collect();
            println!("{{\"load\":\"{}\",\"tool\":\"{}\"{figures}}}", row.load, row.tool);
        } else {
            let widths = [7, 7, 7, 7, 6, 7, 9, 7, 7, 7, 7];
            let figures = row.figures.iter().zip(widths);
            let figures = figures.map(|(figure, width)| format!(" {:>width$}", text(figure, "-")));
            println!("{:<7} {:<17}{}", row.load, row.tool, figures.collect::<String>());
        }
    }
}
