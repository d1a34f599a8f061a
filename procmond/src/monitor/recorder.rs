//! From event to log: the only place where events are encoded.

use bytes::Bytes;
use daemoneye_lib::models::control::EventCounts;
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::stream::wall_clock_ns;
use tracing::{info, warn};

use crate::event_bus_connector::EventBusConnector;
use crate::wal::WalError;

/// Puts events into the log, in order, and accounts for those it had no room for.
pub(super) struct Recorder {
    connector: EventBusConnector,
    counts: EventCounts,
    refused_total: u64,
    /// What the log still has to be told, and why there is something to tell.
    owed: Option<(Refused, String)>,
}

/// Events the log refused and has not been told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// How many.
    pub missing: u64,
    /// The time of the earliest: wall clock, nanoseconds since 1970.
    pub since_ns: i64,
    /// The time of the latest.
    pub until_ns: i64,
}

impl Recorder {
    /// A recorder that owes the log the account of what an earlier run was refused.
    pub(super) fn new(connector: EventBusConnector, refused: Option<Refused>) -> Self {
        let why = "the log had no room for them, in a run before this one";
        let owed = refused.map(|refused| (refused, why.to_owned()));
        Self { connector, counts: EventCounts::default(), refused_total: 0, owed }
    }

    /// Events in the log, by kind.
    pub(super) fn counts(&self) -> EventCounts {
        self.counts
    }

    /// Events the log had no room for.
    pub(super) fn refused_total(&self) -> u64 {
        self.refused_total
    }

    /// Events that the log refused since it last took one.
    pub(super) fn owed(&self) -> Option<Refused> {
        self.owed.as_ref().map(|(refused, _)| *refused)
    }

    /// Puts an event into the log's queue, waiting while that is full.
    ///
    /// A log without room costs the event but not the account of it: as soon as there is room, a
    /// gap event says how many are missing and between which times.
    ///
    /// # Errors
    /// If the log has failed for good.
    pub(super) async fn record(&mut self, event: &Event) -> Result<(), WalError> {
        let result = match self.account().await {
            Ok(()) => self.submit(event).await,
            refused => refused,
        };
        match result {
            Err(error) if is_refusal(&error) => {
                self.refuse(event, &error);
                Ok(())
            }
            result => result,
        }
    }

    /// Gives the account of refused events, if one is owed and there is room: nothing may come
    /// after that would.
    ///
    /// # Errors
    /// If the log has failed for good.
    pub(super) async fn settle(&mut self) -> Result<(), WalError> {
        match self.account().await {
            Err(error) if is_refusal(&error) => Ok(()),
            result => result,
        }
    }

    async fn account(&mut self) -> Result<(), WalError> {
        let Some((refused, why)) = &self.owed else { return Ok(()) };
        let (missing, gap) = (refused.missing, refused.gap(why));
        self.submit(&gap.into()).await?;
        info!(missing, "the log takes events again");
        self.owed = None;
        Ok(())
    }

    async fn submit(&mut self, event: &Event) -> Result<(), WalError> {
        let kind = event.kind();
        let payload = Bytes::from(event.encode());
        loop {
            match self.connector.submit(kind.as_u8(), event.time_ns(), payload.clone()) {
                Ok(_) => {
                    *count(&mut self.counts, kind) += 1;
                    return Ok(());
                }
                Err(WalError::Busy) => self.connector.log().room().await,
                Err(error) => return Err(error),
            }
        }
    }

    fn refuse(&mut self, event: &Event, error: &WalError) {
        self.refused_total += 1;
        let time_ns = event.time_ns();
        match &mut self.owed {
            Some((refused, _)) => {
                refused.missing += 1;
                // Clocks are set back.
                refused.since_ns = refused.since_ns.min(time_ns);
                refused.until_ns = refused.until_ns.max(time_ns);
            }
            None => {
                warn!(%error, "events are lost until the log has room; they are counted");
                let refused = Refused { missing: 1, since_ns: time_ns, until_ns: time_ns };
                self.owed = Some((refused, error.to_string()));
            }
        }
    }
}

impl Refused {
    fn gap(&self, why: &str) -> GapEvent {
        GapEvent {
            missing: Some(self.missing),
            since_ns: Some(self.since_ns),
            until_ns: Some(self.until_ns),
            ..GapEvent::new(GapReason::LogFull, wall_clock_ns(), why)
        }
    }
}

/// Whether the log may take events again later, so that this one is to be counted as lost.
fn is_refusal(error: &WalError) -> bool {
    matches!(
        error,
        WalError::BudgetSpent { .. }
            | WalError::DiskFull { .. }
            | WalError::Unwritable { .. }
            | WalError::TooLarge { .. }
    )
}

fn count(counts: &mut EventCounts, kind: EventKind) -> &mut u64 {
    match kind {
        EventKind::Start => &mut counts.start,
        EventKind::Stop => &mut counts.stop,
        EventKind::Modify => &mut counts.modify,
        EventKind::Gap => &mut counts.gap,
    }
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::stream::Sequence;

    use super::super::tests::{Bench, life, records};
    use super::*;
    use crate::wal::WalOptions;

    /// The start of a process that was seen at this time.
    fn at(time_ns: i64) -> Event {
        let [Event::Process(mut start), ..] = life() else { panic!("a start") };
        start.time_ns = time_ns;
        Event::Process(start)
    }

    /// Records until the log refuses; gives how many it took.
    async fn fill(recorder: &mut Recorder) -> u64 {
        let before = recorder.counts().start;
        while recorder.owed().is_none() {
            recorder.record(&at(600)).await.unwrap();
        }
        recorder.counts().start - before
    }

    #[tokio::test]
    async fn w9_what_a_spent_budget_refuses_becomes_one_gap_before_the_next_event() {
        let bench = Bench::new();
        let log = bench.open(WalOptions { disk_budget_bytes: 16 << 10, ..Bench::options() }).await;
        let connector = bench.connector(&log);
        let mut recorder = Recorder::new(connector, None);
        let mut taken = 0;
        for round in 1..=3_u64 {
            taken += fill(&mut recorder).await;
            let full = log.last();
            // The clock is set back meanwhile: the bounds hold all the same.
            for time_ns in [700, 300, 900, 500] {
                recorder.record(&at(time_ns)).await.unwrap();
            }
            assert_eq!(log.last(), full, "no room, no sequence");
            assert_eq!(recorder.refused_total(), round * 5);
            recorder.settle().await.unwrap();
            let owed = Refused { missing: 5, since_ns: 300, until_ns: 900 };
            assert_eq!(recorder.owed(), Some(owed), "there is no room for the account either");

            bench.forget(&log).await;
            recorder.record(&at(1000)).await.unwrap();
            taken += 1;
            assert_eq!(recorder.owed(), None);
            log.flush().await.unwrap();
            let [(first, Event::Gap(gap)), (second, event)] = &records(&log, full.next())[..]
            else {
                panic!("one gap and the event")
            };
            assert_eq!((*first, *second), (full.next(), full.next().next()));
            assert_eq!((gap.reason, gap.missing), (GapReason::LogFull, Some(5)));
            assert_eq!((gap.since_ns, gap.until_ns), (Some(300), Some(900)));
            assert!(gap.detail.contains("16384 bytes"), "{}", gap.detail);
            assert_eq!(event, &at(1000));
            let counts = EventCounts { start: taken, gap: round, ..EventCounts::default() };
            assert_eq!(recorder.counts(), counts);
            assert_eq!(log.last().0, taken + round, "what is counted is what is there");
        }
    }

    #[tokio::test]
    async fn an_event_too_large_for_the_log_is_accounted_for_as_well() {
        let bench = Bench::new();
        let log = bench.open(WalOptions { max_record_bytes: 1000, ..Bench::options() }).await;
        let mut recorder = Recorder::new(bench.connector(&log), None);
        let Event::Process(mut large) = at(7) else { panic!("a start") };
        large.cwd = Some("x".repeat(1000).as_str().into());
        recorder.record(&Event::Process(large)).await.unwrap();
        recorder.record(&at(8)).await.unwrap();
        log.flush().await.unwrap();
        let [(_, Event::Gap(gap)), (_, event)] = &records(&log, Sequence(1))[..] else {
            panic!("a gap and the event")
        };
        assert_eq!((gap.missing, gap.since_ns, gap.until_ns), (Some(1), Some(7), Some(7)));
        assert_eq!(event, &at(8));
        assert_eq!(recorder.refused_total(), 1);
    }

    #[tokio::test]
    async fn what_an_earlier_run_was_refused_is_told_before_anything_else() {
        let bench = Bench::new();
        let log = bench.open(Bench::options()).await;
        let refused = Refused { missing: 9, since_ns: 3, until_ns: 4 };
        let mut recorder = Recorder::new(bench.connector(&log), Some(refused));
        recorder.settle().await.unwrap();
        recorder.settle().await.unwrap();
        recorder.record(&at(8)).await.unwrap();
        log.flush().await.unwrap();
        let [(_, Event::Gap(gap)), (_, event)] = &records(&log, Sequence(1))[..] else {
            panic!("a gap and the event")
        };
        assert_eq!((gap.missing, gap.since_ns, gap.until_ns), (Some(9), Some(3), Some(4)));
        assert_eq!(event, &at(8));
        assert_eq!(recorder.refused_total(), 0, "this run was refused nothing");
    }

    #[tokio::test]
    async fn a_log_that_is_closed_is_an_error() {
        let bench = Bench::new();
        let log = bench.open(Bench::options()).await;
        let mut recorder = Recorder::new(bench.connector(&log), None);
        log.close().unwrap();
        let error = recorder.record(&at(1)).await.unwrap_err();
        assert!(matches!(error, WalError::Closed), "{error}");
        assert_eq!(recorder.refused_total(), 0);
    }
}
