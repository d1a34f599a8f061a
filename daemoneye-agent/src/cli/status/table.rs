//! The status for people.

use std::io::{self, Write};

use daemoneye_lib::display::{self, bytes, duration, time};
use daemoneye_lib::models::control::{CollectorHealth, Digests, FailedSource, Shed, Summarised};
use daemoneye_lib::stream::wall_clock_ns;
use jiff::tz::TimeZone;

use crate::status::{AgentStatus, CollectorStatus, StoreStatus};
use crate::store::StreamFigures;
use crate::supervisor::{SupervisorState, SupervisorStatus};

/// The width of the column of names.
const NAMES: usize = 12;

pub(super) fn running(out: &mut impl Write, status: &AgentStatus) -> io::Result<()> {
    let agent = &status.agent;
    let uptime = span(agent.uptime_ms);
    line(
        out,
        "agent",
        &format!("runs, pid {}, version {}, for {uptime}", agent.pid, plain(&agent.version)),
    )?;
    line(out, "socket", &plain(&agent.socket.display().to_string()))?;
    line(out, "collector", &supervisor(&status.supervisor))?;
    for collector in &status.collectors {
        self::collector(out, collector)?;
    }
    store(out, &status.store)
}

pub(super) fn ended(out: &mut impl Write, left: Option<&StoreStatus>) -> io::Result<()> {
    line(out, "agent", "does not run")?;
    match left {
        Some(left) => store(out, left),
        None => line(out, "store", "there is none yet"),
    }
}

fn supervisor(status: &SupervisorStatus) -> String {
    let mut text = match &status.state {
        SupervisorState::Disabled => "none is started (--no-collectors)".to_owned(),
        SupervisorState::Probing => "about to be started".to_owned(),
        SupervisorState::Running { pid } => format!("started, pid {pid}"),
        SupervisorState::Waiting { holder: Some(pid) } => {
            format!("process {pid} has the log and is not connected")
        }
        SupervisorState::Waiting { holder: None } => {
            "another process has the log and is not connected".to_owned()
        }
        SupervisorState::Adopted { pid } => format!("adopted, pid {pid}"),
        SupervisorState::Restarting { pause_ms } => {
            format!("ended; it is started again after {}", span(*pause_ms))
        }
        SupervisorState::Stopped => "ended with the agent".to_owned(),
    };
    if status.starts_total > 1 {
        text.push_str(&format!(", started {} times", status.starts_total));
    }
    if let Some(exit) = &status.last_exit {
        text.push_str(&format!(", last end: {}", plain(exit)));
    }
    text
}

fn collector(out: &mut impl Write, status: &CollectorStatus) -> io::Result<()> {
    let state = status.health.as_ref().map_or("registered", |health| health.state.as_str());
    let connection = if status.connected { "connected" } else { "not connected" };
    line(
        out,
        &plain(&status.collector_id),
        &format!(
            "pid {}, version {}, {state}, {connection}, heard of {} ago",
            status.pid,
            plain(&status.version),
            span(status.heard_ms_ago)
        ),
    )?;
    match &status.health {
        Some(health) => self::health(out, health),
        None => Ok(()),
    }
}

fn health(out: &mut impl Write, health: &CollectorHealth) -> io::Result<()> {
    let counts = &health.events;
    line(
        out,
        "  source",
        &format!(
            "{} every {}, {} processes, {} scans, {} failed; at most {} lives unseen",
            health.source,
            span(health.interval_ms),
            health.processes,
            health.scans_total,
            health.scan_errors_total,
            health.unseen_max_total
        ),
    )?;
    if let Some(failed) = &health.failed {
        line(out, "  failed", &self::failed(failed, wall_clock_ns()))?;
    }
    line(
        out,
        "  events",
        &format!(
            "{} start, {} stop, {} modify, {} gap; {} modify shed",
            counts.start, counts.stop, counts.modify, counts.gap, health.shed.modifies_total
        ),
    )?;
    let Shed { parents_total, argument_tails_total, .. } = health.shed;
    if parents_total > 0 {
        let text = format!("{parents_total} parents' keys, {argument_tails_total} argument tails");
        line(out, "  shed", &text)?;
    }
    if let Some(digests) = &health.digests {
        let Digests { read_total, cached_total, gone_total, changed_total, .. } = digests;
        let Digests { too_large_total, late_total, unreadable_total, .. } = digests;
        let text = format!(
            "{read_total} programs read, {cached_total} known; without: {gone_total} gone, \
             {changed_total} changed, {too_large_total} too large, {late_total} late, \
             {unreadable_total} unreadable"
        );
        line(out, "  sha256", &text)?;
    }
    let excluded = &health.excluded;
    if excluded.events_total > 0 {
        let (events, processes) = (excluded.events_total, excluded.processes_total);
        line(out, "  excluded", &format!("{events} events of {processes} processes"))?;
    }
    let Summarised { starts_total, stops_total, modifies_total } = health.summarised;
    if starts_total + stops_total + modifies_total > 0 {
        let text = format!(
            "{starts_total} start, {stops_total} stop, {modifies_total} modify beyond the limit of \
             their control groups"
        );
        line(out, "  summarised", &text)?;
    }
    let log = &health.log;
    line(
        out,
        "  log",
        &format!(
            "{} events, {} durable, {} acknowledged; {} segments, {}; {} refused",
            log.last,
            log.durable,
            log.watermark,
            log.segments,
            bytes(log.bytes),
            log.refused_total
        ),
    )?;
    let connector = &health.connector;
    line(
        out,
        "  connection",
        &format!(
            "window {} (peak {}), backlog {}; engaged {}, released {}, reconnected {}",
            bytes(connector.window_bytes),
            bytes(connector.window_bytes_peak),
            bytes(connector.backlog_bytes),
            connector.engaged_total,
            connector.released_total,
            connector.reconnects_total
        ),
    )
}

fn failed(failed: &FailedSource, now_ns: i64) -> String {
    let FailedSource { source, why, next_try_ns } = failed;
    let next = next_try_ns.map_or_else(
        || "is being tried again".to_owned(),
        |at_ns| {
            let ms = at_ns.saturating_sub(now_ns).max(0).unsigned_abs() / 1_000_000;
            format!("is tried again in {}", span(ms))
        },
    );
    format!("{source} {next}; {}", plain(why))
}

fn store(out: &mut impl Write, store: &StoreStatus) -> io::Result<()> {
    line(out, "store", &plain(&store.database.display().to_string()))?;
    if let Some(trouble) = &store.figures.trouble {
        line(out, "  TROUBLE", &plain(trouble))?;
    }
    for (topic, count) in &store.topics {
        line(out, "", &format!("{count:>12}  {}", plain(topic)))?;
    }
    if store.topics.is_empty() {
        line(out, "", "no events yet")?;
    }
    if store.figures.refused_total > 0 {
        let refused = store.figures.refused_total;
        line(out, "  refused", &format!("{refused} deliveries that contradict what is stored"))?;
    }
    for stream in &store.figures.streams {
        self::stream(out, stream)?;
    }
    Ok(())
}

fn stream(out: &mut impl Write, stream: &StreamFigures) -> io::Result<()> {
    let of =
        stream.collector.as_deref().map_or_else(String::new, |id| format!(" of {}", plain(id)));
    let since = time(stream.first_seen_ns, TimeZone::system());
    line(
        out,
        "stream",
        &format!("{}{of}, stored to {}, since {since}", stream.stream, stream.committed),
    )?;
    if let Some(old) = stream.replaces {
        line(out, "", &format!("the log was replaced: it takes the place of stream {old}"))?;
    }
    if stream.gaps > 0 {
        let (gaps, missing) = (stream.gaps, stream.missing);
        line(out, "", &format!("{missing} events lost for good, in {gaps} gaps"))?;
    }
    if stream.undecodable > 0 {
        let count = stream.undecodable;
        line(out, "", &format!("{count} events that cannot be decoded"))?;
    }
    Ok(())
}

fn line(out: &mut impl Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{name:<NAMES$} {text}")
}

fn plain(text: &str) -> String {
    display::escape(text.as_bytes()).to_string()
}

fn span(ms: u64) -> String {
    duration(ms.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::process::SourceName;

    use super::*;

    #[test]
    fn a_source_that_failed_is_told_with_the_reason_and_the_next_try() {
        let failed_at = |next_try_ns| {
            let why = "gone\u{1b}[2J".to_owned();
            failed(&FailedSource { source: SourceName::Ebpf, why, next_try_ns }, 1_000_000_000)
        };
        let in_42_s = failed_at(Some(43_000_000_000));
        assert!(in_42_s.starts_with("ebpf is tried again in 42"), "{in_42_s}");
        assert!(in_42_s.contains("; gone") && !in_42_s.contains('\u{1b}'), "{in_42_s}");
        // The agent may hear of it late.
        assert!(failed_at(Some(5)).contains("tried again in 0"), "{}", failed_at(Some(5)));
        assert!(failed_at(None).starts_with("ebpf is being tried again; "));
    }
}
