//! What the connector decides, without a socket, a file or a clock of its own.
//!
//! ```text
//!            Dialled            Welcome continues our log
//!  Waiting ─────────► Dialling ─────────────────────────► Connected
//!     ▲   ◄───────────────┘ │                                 │
//!     │      failed         │ Welcome does not                │
//!     ├─────────────────────┼─────────────────────────────────┘ session ended
//!     │     StreamBegan     ▼
//!     └───────────────── Replacing (the log begins a new stream)
//! ```
//!
//! [`Machine::step`] takes one [`Input`] and the time, changes the state, and pushes the
//! [`Command`]s that follow from it. Every position that passes through is cumulative, so an
//! input may be repeated or come late without harm.

use std::time::{Duration, Instant};

use daemoneye_lib::models::control::ConnectorState;
use daemoneye_lib::stream::{Epoch, Sequence};

use super::backoff::Backoff;
use super::backpressure::{BackpressureSignal, Gauge};
use super::window::{Record, Unsent, Window};

/// A batch is one write and one delivery: large enough to spread their cost, small enough that a
/// slow consumer's commit is never far away.
const BATCH_RECORDS_MAX: usize = 1024;
const BATCH_BYTES_MAX: u64 = 256 * 1024;
/// The log is read back in pieces of at most this size (or half the window, where that is less),
/// and only once as much room is free.
const READ_BYTES_MAX: u64 = 1024 * 1024;
/// How long to leave a log alone that could not be read or replaced.
pub(super) const LOG_RETRY: Duration = Duration::from_secs(1);

/// A position on our stream that a consumer holds, as the broker's Welcome says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) sequence: Sequence,
    /// The epoch in which the consumer's record at that sequence was written.
    pub(super) theirs: Epoch,
    /// The epoch in which our own was, where the log knows.
    pub(super) ours: Option<Epoch>,
}

#[derive(Debug)]
pub(super) enum Input {
    /// Records became durable. `records` are those that were kept in memory, `through` is the
    /// last durable one; `skipped_bytes` counts the payload that was not kept.
    Durable { records: Vec<Record>, through: Sequence, skipped_bytes: u64 },
    /// The broker welcomed us: everything up to `committed` is committed by every durable
    /// consumer, and `held` is where each of them stands.
    Welcomed { committed: Sequence, held: Vec<Held>, credit_bytes: u64 },
    /// The dial failed or the session ended, and another may be tried.
    Disconnected,
    /// The broker knows a younger writer of our stream: ours is not its continuation.
    Fenced,
    /// Everything up to here is committed (or accepted, where nobody commits).
    Acked(Sequence),
    /// What was read back from the log, in order; empty if the log could not be read.
    Read(Vec<Record>),
    /// The log is now another stream: its watermark, last durable record and unacknowledged bytes.
    StreamBegan { watermark: Sequence, last: Sequence, backlog_bytes: u64 },
    /// The log could not begin a new stream.
    StreamFailed,
    /// Stop once everything is acknowledged, or at the deadline.
    Drain { until: Instant },
    /// Time has passed.
    Tick,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Dial,
    HangUp,
    Send(Unsent),
    /// Read the log from `from` on, at most `bytes_max` of payload.
    Read {
        from: Sequence,
        bytes_max: u64,
    },
    /// Everything up to here may be forgotten by the log.
    Acknowledge(Sequence),
    /// The log does not continue what the consumers have: begin a new stream.
    BeginStream {
        committed: Option<Sequence>,
    },
    Signal(BackpressureSignal),
    /// Nothing is left to do.
    Finish,
}

#[derive(Debug)]
enum State {
    /// Not connected; the next dial is due at `until`.
    Waiting {
        until: Instant,
    },
    Dialling,
    /// Records are sent while they fit the credit.
    Connected {
        credit_bytes: u64,
    },
    /// The log is beginning a new stream; `retry_at` is set when it has failed to.
    Replacing {
        retry_at: Option<Instant>,
        committed: Option<Sequence>,
    },
    Finished,
}

/// The log as the machine finds it when it starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogPosition {
    pub(super) watermark: Sequence,
    pub(super) last: Sequence,
    pub(super) backlog_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Machine {
    state: State,
    window: Window,
    /// The last durable record: beyond the window's end, records lie in the log only.
    log_last: Sequence,
    /// Payload bytes, known or estimated, of the records that lie in the log only.
    log_only_bytes: u64,
    reading: Reading,
    read_bytes: u64,
    gauge: Gauge,
    backoff: Backoff,
    drain_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Idle,
    Running,
    /// The log gave nothing; it is asked again at this time.
    Failed(Instant),
}

impl Machine {
    /// A machine that wants to dial at once.
    pub(super) fn new(window_bytes_max: u64, log: LogPosition, now: Instant) -> Self {
        Self {
            state: State::Waiting { until: now },
            window: Window::new(window_bytes_max, log.watermark),
            log_last: log.last,
            log_only_bytes: if log.last > log.watermark { log.backlog_bytes } else { 0 },
            reading: Reading::Idle,
            read_bytes: READ_BYTES_MAX.min(window_bytes_max / 2),
            gauge: Gauge::new(window_bytes_max),
            backoff: Backoff::new(),
            drain_until: None,
        }
    }

    /// Takes one input and appends the commands that follow from it.
    pub(super) fn step(&mut self, input: Input, now: Instant, commands: &mut Vec<Command>) {
        match input {
            Input::Durable { records, through, skipped_bytes } => {
                self.durable(records, through, skipped_bytes);
            }
            Input::Welcomed { committed, held, credit_bytes } => {
                self.welcomed(committed, &held, credit_bytes, commands);
            }
            Input::Disconnected => self.wait(now),
            Input::Fenced => self.replace(None, commands),
            Input::Acked(through) => self.acked(through, now, commands),
            Input::Read(records) => self.read(records, now),
            Input::StreamBegan { watermark, last, backlog_bytes } => {
                self.stream_began(LogPosition { watermark, last, backlog_bytes }, now);
            }
            Input::StreamFailed => {
                if let State::Replacing { retry_at, .. } = &mut self.state {
                    *retry_at = Some(now + LOG_RETRY);
                }
            }
            Input::Drain { until } => self.drain_until = Some(until),
            Input::Tick => {}
        }
        self.advance(now, commands);
    }

    /// When [`Input::Tick`] is next of use.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let state = match self.state {
            State::Waiting { until } => Some(until),
            State::Replacing { retry_at, .. } => retry_at,
            State::Dialling | State::Connected { .. } | State::Finished => None,
        };
        let read = match self.reading {
            Reading::Failed(until) if self.connected() => Some(until),
            _ => None,
        };
        [state, read, self.drain_until].into_iter().flatten().min()
    }

    /// The state as status displays name it.
    pub(super) fn health_state(&self) -> ConnectorState {
        match self.state {
            State::Connected { .. } => ConnectorState::Connected,
            State::Waiting { .. } | State::Dialling | State::Replacing { .. } | State::Finished => {
                ConnectorState::Disconnected
            }
        }
    }

    /// The last durable record that the machine knows of.
    pub(super) fn log_last(&self) -> Sequence {
        self.log_last
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    /// Unacknowledged payload bytes, in the window and beyond it.
    pub(super) fn backlog_bytes(&self) -> u64 {
        self.window.bytes() + self.log_only_bytes
    }

    /// Whether every durable record known here has been acknowledged.
    pub(super) fn is_drained(&self) -> bool {
        self.window.acked() >= self.log_last
    }

    fn connected(&self) -> bool {
        matches!(self.state, State::Connected { .. })
    }

    fn durable(&mut self, records: Vec<Record>, through: Sequence, skipped_bytes: u64) {
        self.log_only_bytes += skipped_bytes;
        for record in records {
            let bytes = record.payload.len() as u64;
            if record.sequence <= self.log_last {
                // Read back from the log in the meantime.
                continue;
            }
            if !self.window.push(record) {
                self.log_only_bytes += bytes;
            }
        }
        self.log_last = self.log_last.max(through);
    }

    fn welcomed(
        &mut self,
        committed: Sequence,
        held: &[Held],
        credit_bytes: u64,
        commands: &mut Vec<Command>,
    ) {
        let forked = |held: &&Held| {
            held.sequence > self.log_last || held.ours.is_some_and(|ours| ours != held.theirs)
        };
        if let Some(fork) = held.iter().filter(forked).max_by_key(|held| held.sequence) {
            self.replace(Some(fork.sequence), commands);
            return;
        }
        self.backoff.reset();
        self.window.rewind();
        self.forget(committed, commands);
        self.state = State::Connected { credit_bytes };
    }

    fn acked(&mut self, through: Sequence, now: Instant, commands: &mut Vec<Command>) {
        if through > self.log_last {
            // Nothing that we sent reaches so far: the broker speaks of another log.
            commands.push(Command::HangUp);
            self.wait(now);
        } else {
            self.forget(through, commands);
        }
    }

    fn forget(&mut self, through: Sequence, commands: &mut Vec<Command>) {
        if through <= self.window.acked() {
            return;
        }
        self.window.acknowledge(through);
        if self.window.end() >= self.log_last {
            self.log_only_bytes = 0;
        }
        commands.push(Command::Acknowledge(self.window.acked()));
    }

    fn read(&mut self, records: Vec<Record>, now: Instant) {
        self.reading = Reading::Idle;
        let before = self.window.end();
        let mut taken = 0;
        for record in records {
            let bytes = record.payload.len() as u64;
            // No more than room was kept for: a read may go beyond by its last record.
            if taken > 0 && taken + bytes > self.read_bytes {
                break;
            }
            taken += bytes;
            if record.sequence > self.window.end() && self.window.push(record) {
                self.log_only_bytes = self.log_only_bytes.saturating_sub(bytes);
            }
        }
        if self.window.end() == before {
            self.reading = Reading::Failed(now + LOG_RETRY);
        }
        if self.window.end() >= self.log_last {
            self.log_only_bytes = 0;
        }
    }

    fn replace(&mut self, committed: Option<Sequence>, commands: &mut Vec<Command>) {
        commands.push(Command::HangUp);
        commands.push(Command::BeginStream { committed });
        self.state = State::Replacing { retry_at: None, committed };
    }

    fn stream_began(&mut self, log: LogPosition, now: Instant) {
        self.window.reset(log.watermark);
        self.log_last = log.last;
        self.log_only_bytes = log.backlog_bytes;
        self.reading = Reading::Idle;
        self.state = State::Waiting { until: now };
    }

    fn wait(&mut self, now: Instant) {
        match self.state {
            State::Dialling | State::Connected { .. } => {
                self.state = State::Waiting { until: now + self.backoff.next() };
            }
            // A session that ends while the log is replaced was hung up by us.
            State::Waiting { .. } | State::Replacing { .. } | State::Finished => {}
        }
    }

    /// Does whatever the state allows now.
    fn advance(&mut self, now: Instant, commands: &mut Vec<Command>) {
        if let Some(until) = self.drain_until
            && (now >= until || self.is_drained())
            && !matches!(self.state, State::Finished)
        {
            self.state = State::Finished;
            commands.push(Command::Finish);
        }
        match self.state {
            State::Waiting { until } if now >= until => {
                self.state = State::Dialling;
                commands.push(Command::Dial);
            }
            State::Replacing { retry_at: Some(at), committed } if now >= at => {
                self.state = State::Replacing { retry_at: None, committed };
                commands.push(Command::BeginStream { committed });
            }
            State::Connected { credit_bytes } => {
                while let Some(unsent) =
                    self.window.take_unsent(credit_bytes, BATCH_RECORDS_MAX, BATCH_BYTES_MAX)
                {
                    commands.push(Command::Send(unsent));
                }
                self.read_ahead(now, commands);
            }
            State::Waiting { .. } | State::Dialling | State::Replacing { .. } | State::Finished => {
            }
        }
        if let Some(signal) = self.gauge.observe(self.backlog_bytes()) {
            commands.push(Command::Signal(signal));
        }
    }

    fn read_ahead(&mut self, now: Instant, commands: &mut Vec<Command>) {
        let due = match self.reading {
            Reading::Idle => true,
            Reading::Running => false,
            Reading::Failed(until) => now >= until,
        };
        if due && self.window.room() >= self.read_bytes && self.window.end() < self.log_last {
            self.reading = Reading::Running;
            commands
                .push(Command::Read { from: self.window.end().next(), bytes_max: self.read_bytes });
        }
    }
}

#[cfg(test)]
mod tests;
