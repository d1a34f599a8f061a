//! Subscriptions, as the application holds them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};
use tokio::sync::Notify;

use super::Handle;
use super::error::Disconnected;
use super::events::{Events, LiveBatch, Topics, topic};
use crate::event::{Committed, Delivery, Entry, LiveItem, Message};
use crate::queue::{LiveQueue, Popped, QueueLimits, Run};
use crate::wire::Frame;

/// Takes a subscription back when dropped.
#[derive(Debug)]
pub(super) struct Guard {
    handle: Arc<Handle>,
    number: u32,
    kept: bool,
    forget: bool,
}

impl Guard {
    pub(super) fn new(handle: Arc<Handle>, number: u32) -> Self {
        Self { handle, number, kept: false, forget: false }
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.kept {
            self.handle.shared.end_subscription(self.number, self.forget);
        }
    }
}

// ---- live

/// The client's queue of a live subscription.
#[derive(Debug)]
pub(crate) struct LiveSink {
    state: Mutex<LiveState>,
    filled: Notify,
}

#[derive(Debug)]
struct LiveState {
    queue: LiveQueue<Message>,
    topics: Topics,
    closed: bool,
}

/// What a message weighs beside its payload.
const MESSAGE_WEIGHT: usize = 128;

impl LiveSink {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        let state =
            LiveState { queue: LiveQueue::new(limits), topics: Topics::default(), closed: false };
        Self { state: Mutex::new(state), filled: Notify::new() }
    }

    /// Held for a push or a pop only.
    fn state(&self) -> MutexGuard<'_, LiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push_run(&self, mut run: Run, topics: Topics) {
        {
            let mut state = self.state();
            if state.queue.count() > 0 {
                run.detach();
            }
            // Aliases are only ever added, so the newest table serves all queued runs.
            state.topics = topics;
            state.queue.push_run(run);
        }
        self.filled.notify_one();
    }

    pub(crate) fn push_message(&self, message: Message) {
        let bytes = message.payload.len() + MESSAGE_WEIGHT;
        self.state().queue.push_message(message, bytes);
        self.filled.notify_one();
    }

    pub(crate) fn push_missed(&self, count: u64) {
        self.state().queue.push_missed(count);
        self.filled.notify_one();
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
    }
}

/// A live subscription. It ends when dropped, or with its connection.
#[derive(Debug)]
pub struct LiveSubscription {
    _guard: Guard,
    sink: Arc<LiveSink>,
    /// What [`Self::next`] has begun to take apart.
    current: Option<Events>,
}

impl LiveSubscription {
    pub(super) fn new(handle: Arc<Handle>, number: u32, sink: Arc<LiveSink>) -> Self {
        Self { _guard: Guard::new(handle, number), sink, current: None }
    }

    /// The next event, message or notice of missed ones; `None` once the connection has ended and
    /// everything received has been taken. Cancel-safe.
    pub async fn next(&mut self) -> Option<LiveItem> {
        self.wait_for(Self::try_next).await
    }

    /// The next item, if one has been received already.
    pub fn try_next(&mut self) -> Option<LiveItem> {
        loop {
            if let Some(event) = self.current.as_mut().and_then(Events::pop) {
                return Some(LiveItem::Event(event));
            }
            match self.try_next_batch()? {
                LiveBatch::Events(events) => self.current = Some(events),
                LiveBatch::Message(message) => return Some(LiveItem::Message(message)),
                LiveBatch::Missed { count } => return Some(LiveItem::Missed { count }),
            }
        }
    }

    /// As [`Self::next`], but with all the events that came in one frame at once: several times
    /// cheaper where many come. Cancel-safe.
    pub async fn next_batch(&mut self) -> Option<LiveBatch> {
        self.wait_for(Self::try_next_batch).await
    }

    /// As [`Self::try_next`], but with all the events that came in one frame at once.
    pub fn try_next_batch(&mut self) -> Option<LiveBatch> {
        if let Some(events) = self.current.take().filter(|events| !events.is_empty()) {
            return Some(LiveBatch::Events(events));
        }
        let mut state = self.sink.state();
        Some(match state.queue.pop()? {
            Popped::Missed(count) => LiveBatch::Missed { count },
            Popped::Message(message) => LiveBatch::Message(message),
            Popped::Run(run) => LiveBatch::Events(Events::new(run, Arc::clone(&state.topics))),
        })
    }

    async fn wait_for<T>(&mut self, take: impl Fn(&mut Self) -> Option<T>) -> Option<T> {
        loop {
            if let Some(taken) = take(self) {
                return Some(taken);
            }
            if self.sink.state().closed {
                // Something may have come between the two looks.
                return take(self);
            }
            self.sink.filled.notified().await;
        }
    }
}

// ---- durable

/// The client's queue of a durable subscription. It has no bound of its own: the broker sends no
/// more than a limited number of bytes ahead of the commits.
#[derive(Debug, Default)]
pub(crate) struct DurableSink {
    state: Mutex<DurableState>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct DurableState {
    queue: VecDeque<(Run, Topics)>,
    closed: bool,
}

impl DurableSink {
    /// Held for a push or a pop only.
    fn state(&self) -> MutexGuard<'_, DurableState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, mut run: Run, topics: Topics) {
        {
            let mut state = self.state();
            if !state.queue.is_empty() {
                run.detach();
            }
            state.queue.push_back((run, topics));
        }
        self.filled.notify_one();
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
    }
}

/// A durable subscription. It ends when dropped, or with its connection; the consumer stays known
/// to the broker and resumes with the next subscription of its name, until it is
/// [forgotten](Self::forget).
#[derive(Debug)]
pub struct DurableSubscription {
    guard: Guard,
    sink: Arc<DurableSink>,
}

impl DurableSubscription {
    pub(super) fn new(handle: Arc<Handle>, number: u32, sink: Arc<DurableSink>) -> Self {
        Self { guard: Guard::new(handle, number), sink }
    }

    /// The next delivery; `None` once the connection has ended and everything received has been
    /// taken. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Some(delivery) = self.try_next() {
                return Some(delivery);
            }
            if self.sink.state().closed {
                // Something may have come between the two looks.
                return self.try_next();
            }
            self.sink.filled.notified().await;
        }
    }

    /// The next delivery, if one has been received already: for storing several in one
    /// transaction.
    pub fn try_next(&mut self) -> Option<Delivery> {
        let (mut run, topics) = self.sink.state().queue.pop_front()?;
        let (stream, epoch, after, through) = (run.stream, run.epoch, run.after, run.through);
        let mut entries = Vec::with_capacity(run.count as usize);
        while let Some((header, payload)) = run.pop() {
            entries.push(Entry {
                topic: topic(&topics, header.alias)?.clone(),
                sequence: header.sequence,
                span: header.span,
                timestamp_ns: header.timestamp_ns,
                payload,
            });
        }
        Some(Delivery { stream, epoch, after, through, entries })
    }

    /// Says that everything of `stream` up to `sequence`, written in `epoch`, is stored for good.
    /// Cumulative; does not wait.
    pub fn commit(
        &self,
        stream: StreamId,
        sequence: Sequence,
        epoch: Epoch,
    ) -> Result<(), Disconnected> {
        let shared = &self.guard.handle.shared;
        if let Some(reason) = shared.close_reason() {
            return Err(Disconnected(reason));
        }
        let commit = Frame::Commit {
            subscription: self.guard.number,
            stream,
            position: Committed { sequence, epoch },
        };
        shared.outbox.append(|out| commit.encode(out));
        Ok(())
    }

    /// Ends the subscription and has the broker forget the consumer, so that what it has not
    /// committed no longer holds back acknowledgements. Does not wait;
    /// [`Client::goodbye`](crate::Client::goodbye) behind it sees to it that the broker knows. A
    /// broker that requires the consumer ends the connection instead.
    pub fn forget(mut self) {
        self.guard.forget = true;
    }
}
