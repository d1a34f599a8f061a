//! What the monitor sees with, and what becomes of that when it fails.
//!
//! ```text
//!             begin               ended               tried, or tried again
//!   Waiting ────────► Seeing ───────────────► Blind ────────────────────────► Seeing
//!                      │  ▲
//!      a better one    │  │ ended
//!      has been tried  ▼  │
//!                     Handing
//! ```
//!
//! A source that ends by itself has failed. The next one that the choice allows takes its place,
//! and the better one is tried again after [`RETRY_FIRST`], then after twice as long each time, up to
//! [`RETRY_MAX`]. When it works it is in place before the other one ends, and is heard after that: both
//! have seen the moment of the change, and the process table takes what both tell for one.
//!
//! If none works, or no other is allowed, nobody sees. Then all that are allowed are tried after
//! [`BLIND_FIRST`], and after twice as long each time, up to [`BLIND_MAX`].
//!
//! A source that did not work when monitoring began is not tried again: what it lacked were
//! privileges or a kernel.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use daemoneye_lib::models::control::{CollectorState, FailedSource};
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::models::process::SourceName;
use daemoneye_lib::stream::wall_clock_ns;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::digest::Digester;
use crate::source::{
    self, Observation, SourceChoice, SourceError, SourceHandle, SourceOptions, Started,
};

/// How long after a failure the source is tried again, where another one sees meanwhile.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// The longest time between two tries; and how long a source has to see for its failures before
/// that not to count.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// How long after a failure all sources are tried again, where none sees.
const BLIND_FIRST: Duration = Duration::from_secs(1);
/// The longest time between two tries then.
const BLIND_MAX: Duration = Duration::from_secs(30);

/// How long a source that was told to end may take: one that reads the process table can be held up
/// by it for ever.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Starts a source.
pub(super) type Open =
    dyn Fn(SourceName, SourceOptions) -> Result<Started, SourceError> + Send + Sync;

/// What sees processes.
pub(super) struct Sight {
    /// What is allowed and was not refused when monitoring began, the best first.
    names: &'static [SourceName],
    open: Arc<Open>,
    digester: Option<Arc<Digester>>,
    state: State,
    attempt: Attempt,
    retry: Backoff,
    blind: Backoff,
    /// When what sees began to.
    since: Instant,
    /// Up to when everything was seen: wall clock, nanoseconds since 1970.
    until_ns: i64,
    /// Why what sees will end, if it has told.
    error: Option<String>,
    /// What went wrong last.
    why: String,
    failures_total: u64,
}

enum State {
    /// Monitoring has not begun.
    Waiting,
    /// A source sees.
    Seeing(Started),
    /// A source was told to end, and tells what it has seen before that; the other one sees.
    Handing {
        from: SourceName,
        observations: mpsc::Receiver<Observation>,
        /// It is not heard after this.
        until: Instant,
        to: Started,
    },
    /// None sees since this one has failed.
    Blind { from: SourceName, is_told: bool },
}

/// Trying sources that do not see.
enum Attempt {
    None,
    Due(Instant),
    Running {
        task: JoinHandle<Result<Started, SourceError>>,
        /// The sources from this one on are not tried.
        through: usize,
    },
}

/// How long it takes until the next attempt.
struct Backoff {
    next: Duration,
    first: Duration,
    max: Duration,
}

/// What has come.
pub(super) enum Sighted {
    Observation(Observation),
    /// What sees has told everything and has ended.
    Ended,
    /// It is time to try sources that do not see.
    Due,
    /// One of them works, or why the last of them does not.
    Tried(Result<Started, String>),
}

/// What has become of the sight. What was seen before is taken up by then.
#[derive(Debug)]
pub(super) enum Change {
    /// Another source sees since then, or the same one again. One that looks has yet to do so.
    /// `overlaps`: it was in place before the one before it ended.
    Takes { by: SourceName, overlaps: bool, gap: GapEvent },
    /// No source works.
    Blind { gap: GapEvent },
}

impl Sight {
    pub(super) fn new(choice: SourceChoice, digester: Option<Arc<Digester>>) -> Self {
        Self {
            names: choice.names(),
            open: Arc::new(source::start),
            digester,
            state: State::Waiting,
            attempt: Attempt::None,
            retry: Backoff::new(RETRY_FIRST, RETRY_MAX),
            blind: Backoff::new(BLIND_FIRST, BLIND_MAX),
            since: Instant::now(),
            until_ns: 0,
            error: None,
            why: String::new(),
            failures_total: 0,
        }
    }

    /// Begins to see; does nothing if that was done. Blocks for as long as starting a source takes.
    ///
    /// # Errors
    /// If no source works.
    pub(super) fn begin(&mut self, see: SourceOptions) -> Result<(), SourceError> {
        if !matches!(self.state, State::Waiting) {
            return Ok(());
        }
        let source = self.opener(self.names)(see)?;
        for why_not in &source.instead {
            warn!("{why_not}");
        }
        info!(source = %source.name, interval_ms = see.interval.as_millis(), "monitoring began");
        let refused = self.names.iter().take_while(|name| **name != source.name).count();
        self.names = &self.names[refused..];
        self.until_ns = wall_clock_ns();
        self.see_with(source);
        Ok(())
    }

    /// What comes next; never, before monitoring has begun. Cancel-safe.
    pub(super) async fn next(&mut self) -> Sighted {
        let (observations, until) = match &mut self.state {
            State::Seeing(source) => (Some(&mut source.observations), None),
            State::Handing { observations, until, .. } => (Some(observations), Some(*until)),
            State::Waiting | State::Blind { .. } => (None, None),
        };
        tokio::select! {
            observation = receive(observations) => {
                observation.map_or(Sighted::Ended, Sighted::Observation)
            }
            () = super::moment(until) => Sighted::Ended,
            sighted = self.attempt.next() => sighted,
        }
    }

    /// Takes note of what was observed.
    pub(super) fn note(&mut self, observation: &Observation) {
        if let Observation::Failed(error @ SourceError::Broke { .. }) = observation {
            self.error = Some(error.to_string());
        }
        if let Some(until_ns) = observation.seen_until_ns() {
            // Not the later of the two: the clock may have been set back.
            self.until_ns = until_ns;
        }
    }

    /// To be called when what sees has ended. Another one may see by then; otherwise others are
    /// tried.
    pub(super) fn ended(&mut self, see: SourceOptions) -> Option<Change> {
        match std::mem::replace(&mut self.state, State::Waiting) {
            State::Seeing(source) => {
                let from = source.name;
                // Of a source that has lost one of its threads, the others end with its handle.
                drop(source);
                self.failures_total += 1;
                let why = self.error.take();
                self.why = why.unwrap_or_else(|| format!("{from} has ended without a reason"));
                warn!(source = %from, why = self.why, "the source has failed; trying others");
                if self.since.elapsed() >= RETRY_MAX {
                    self.retry.reset();
                }
                self.state = State::Blind { from, is_told: false };
                // One that is being tried may work as well.
                if !matches!(self.attempt, Attempt::Running { .. }) {
                    let failed = self.names.iter().position(|name| *name == from);
                    let others = failed.map_or(0, |at| at + 1)..self.names.len();
                    self.attempt(if others.is_empty() { 0..self.names.len() } else { others }, see);
                }
                None
            }
            State::Handing { from, to, until, .. } if Instant::now() >= until => {
                let by = to.name;
                self.see_with(to);
                self.why = format!("it did not end within {} s", LAST_WORDS.as_secs());
                let then =
                    format!("processes are seen with {by} again, and were since it was begun");
                let gap = self.gap(from, &then);
                Some(Change::Takes { by, overlaps: true, gap })
            }
            State::Handing { from, to, .. } => {
                let by = to.name;
                self.see_with(to);
                let detail = format!(
                    "processes are seen with {by} again instead of {from}: it was in place before \
                     the other one ended, so that nothing was missed by the change"
                );
                let gap = GapEvent::new(GapReason::SourceChanged, wall_clock_ns(), detail);
                let gap = GapEvent { missing: Some(0), ..gap };
                Some(Change::Takes { by, overlaps: true, gap })
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Tries what would be better than what sees, or everything if nothing does.
    pub(super) fn due(&mut self, see: SourceOptions) {
        let better = match &self.state {
            State::Seeing(source) => {
                self.names.iter().take_while(|name| **name != source.name).count()
            }
            _ => self.names.len(),
        };
        self.attempt = Attempt::None;
        if better > 0 {
            self.attempt(0..better, see);
        }
    }

    /// Takes up what an attempt has given.
    pub(super) fn tried(
        &mut self,
        result: Result<Started, String>,
        see: SourceOptions,
    ) -> Option<Change> {
        let attempt = std::mem::replace(&mut self.attempt, Attempt::None);
        let state = std::mem::replace(&mut self.state, State::Waiting);
        match (state, result) {
            (State::Seeing(worse), Ok(to)) => {
                info!(source = %to.name, instead_of = %worse.name, "the better source works again");
                let Started { name: from, handle, observations, .. } = worse;
                handle.stop();
                let until = Instant::now() + LAST_WORDS;
                self.state = State::Handing { from, observations, until, to };
                None
            }
            (State::Blind { from, .. }, Ok(source)) => {
                let by = source.name;
                self.see_with(source);
                warn!(source = %by, instead_of = %from, "processes are seen again");
                let again = if by == self.names[0] { "again" } else { "instead" };
                let then = format!(
                    "processes are seen with {by} {again}; what a look at the process table shows \
                     of the time between follows, marked as inferred"
                );
                let gap = self.gap(from, &then);
                Some(Change::Takes { by, overlaps: false, gap })
            }
            (State::Blind { from, is_told }, Err(error)) => {
                // What saw has failed while a better one was tried.
                if let Attempt::Running { through, .. } = attempt
                    && through < self.names.len()
                {
                    self.state = State::Blind { from, is_told };
                    self.attempt(through..self.names.len(), see);
                    return None;
                }
                let wait = self.blind.take();
                self.attempt = Attempt::Due(Instant::now() + wait);
                warn!(%error, again_ms = wait.as_millis(), "no source works: nothing is seen");
                self.state = State::Blind { from, is_told: true };
                let then = format!("no other works ({error}): nothing is seen until one does");
                let gap = GapEvent { until_ns: None, ..self.gap(from, &then) };
                (!is_told).then_some(Change::Blind { gap })
            }
            (state, result) => {
                self.state = state;
                if let (State::Seeing(_), Err(error)) = (&self.state, result) {
                    self.why.clone_from(&error);
                    let wait = self.retry.take();
                    info!(%error, again_ms = wait.as_millis(), "the better source does not work");
                    self.attempt = Attempt::Due(Instant::now() + wait);
                }
                None
            }
        }
    }

    /// The gap, if nothing sees, up to now.
    pub(super) fn blind_gap(&self) -> Option<GapEvent> {
        match self.state {
            State::Blind { from, .. } => Some(self.gap(from, "nothing was seen until the end")),
            _ => None,
        }
    }

    /// Ends what sees, and gives what it still has to tell. Nothing is tried any more.
    pub(super) fn end(&mut self) -> Option<mpsc::Receiver<Observation>> {
        // What an attempt gives to nobody ends by itself.
        self.attempt = Attempt::None;
        match std::mem::replace(&mut self.state, State::Waiting) {
            State::Seeing(Started { handle, observations, .. }) => {
                handle.stop();
                Some(observations)
            }
            State::Handing { observations, .. } => Some(observations),
            State::Waiting | State::Blind { .. } => None,
        }
    }

    pub(super) fn set_interval(&self, interval: Duration) {
        if let Some(handle) = self.handle() {
            handle.set_interval(interval);
        }
    }

    pub(super) const fn state(&self) -> CollectorState {
        match self.state {
            State::Waiting => CollectorState::Waiting,
            State::Seeing(_) | State::Handing { .. } => CollectorState::Monitoring,
            State::Blind { .. } => CollectorState::Blind,
        }
    }

    /// What sees, or did last, or would if monitoring began now and nothing stood in its way.
    pub(super) const fn name(&self) -> SourceName {
        match &self.state {
            State::Waiting => self.names[0],
            State::Seeing(source) => source.name,
            State::Handing { from, .. } | State::Blind { from, .. } => *from,
        }
    }

    /// What should see and does not, because it has failed.
    pub(super) fn failed(&self) -> Option<FailedSource> {
        let best = self.names[0];
        let sees = match &self.state {
            State::Waiting => return None,
            State::Seeing(source) => source.name == best,
            State::Handing { .. } | State::Blind { .. } => false,
        };
        let next_try_ns = match self.attempt {
            Attempt::Due(at) => {
                let wait = at.saturating_duration_since(Instant::now());
                let wait_ns = i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX);
                Some(wall_clock_ns().saturating_add(wait_ns))
            }
            Attempt::None | Attempt::Running { .. } => None,
        };
        (!sees).then(|| FailedSource { source: best, why: self.why.clone(), next_try_ns })
    }

    pub(super) const fn failures_total(&self) -> u64 {
        self.failures_total
    }

    /// What was not seen since a source has failed, up to now.
    fn gap(&self, from: SourceName, then: &str) -> GapEvent {
        let now_ns = wall_clock_ns();
        let detail = format!("the source {from} has failed ({}); {then}", self.why);
        GapEvent {
            since_ns: Some(self.until_ns),
            until_ns: Some(now_ns),
            ..GapEvent::new(GapReason::SourceChanged, now_ns, detail)
        }
    }

    fn handle(&self) -> Option<&SourceHandle> {
        match &self.state {
            State::Seeing(source) | State::Handing { to: source, .. } => Some(&source.handle),
            State::Waiting | State::Blind { .. } => None,
        }
    }

    fn see_with(&mut self, source: Started) {
        self.since = Instant::now();
        self.error = None;
        self.blind.reset();
        if source.name != self.names[0] && !matches!(self.attempt, Attempt::Due(_)) {
            self.attempt = Attempt::Due(self.since + self.retry.take());
        }
        self.state = State::Seeing(source);
    }

    /// Starting takes up to half a second, and the kernel does it on the thread that asks.
    fn attempt(&mut self, names: Range<usize>, see: SourceOptions) {
        let through = names.end;
        let open = self.opener(&self.names[names]);
        let task = tokio::task::spawn_blocking(move || open(see));
        self.attempt = Attempt::Running { task, through };
    }

    /// Starts the first of these that works, with digests if they are asked for.
    fn opener(
        &self,
        names: &'static [SourceName],
    ) -> impl FnOnce(SourceOptions) -> Result<Started, SourceError> + Send + use<> {
        let (open, digester) = (Arc::clone(&self.open), self.digester.clone());
        move |see| {
            source::start_first(names, |name| {
                let mut started = open(name, see)?;
                if let Some(digester) = &digester {
                    started.observations = digester
                        .follow(started.observations)
                        .map_err(|source| SourceError::NoThread { name, source })?;
                }
                Ok(started)
            })
        }
    }
}

impl Attempt {
    /// When it is due, or what it gives. Cancel-safe.
    async fn next(&mut self) -> Sighted {
        match self {
            Self::None => std::future::pending().await,
            Self::Due(at) => {
                tokio::time::sleep_until(*at).await;
                Sighted::Due
            }
            Self::Running { task, .. } => Sighted::Tried(match task.await {
                Ok(result) => result.map_err(|error| error.to_string()),
                // It has panicked.
                Err(error) => Err(error.to_string()),
            }),
        }
    }
}

impl Backoff {
    const fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, first, max }
    }

    /// The time until the next attempt; the one after that is twice as far.
    fn take(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        wait
    }

    const fn reset(&mut self) {
        self.next = self.first;
    }
}

/// What a source tells next; never, without one. Cancel-safe.
async fn receive(observations: Option<&mut mpsc::Receiver<Observation>>) -> Option<Observation> {
    match observations {
        Some(observations) => observations.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
