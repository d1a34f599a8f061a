//! What a client's handles and its connection's task have in common.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};

use super::error::{CloseReason, Disconnected};
use super::outbox::Outbox;
use super::subscription::{DurableSink, LiveSink};
use super::{AckWatch, ClientOptions, goodbye_frame};
use crate::rights::REPLY_PREFIX;
use crate::topic::Topic;
use crate::wire::{Frame, Refused, Welcome};

/// Where a subscription's frames go.
#[derive(Debug, Clone)]
pub(crate) enum Sink {
    Live(Arc<LiveSink>),
    Durable(Arc<DurableSink>),
}

impl Sink {
    pub(crate) fn close(&self) {
        match self {
            Self::Live(sink) => sink.close(),
            Self::Durable(sink) => sink.close(),
        }
    }
}

/// The outcome of a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Bytes),
    NoResponder,
    NotAllowed(String),
    Limit(String),
}

type Answer = oneshot::Sender<Result<(), Refused>>;

#[derive(Debug)]
struct State {
    sinks: HashMap<u32, (Sink, Option<Answer>)>,
    requests: HashMap<u64, oneshot::Sender<Reply>>,
    subscriptions_total: u32,
    requests_total: u64,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: ClientOptions,
    pub(crate) reply_topic: Topic,
    pub(crate) outbox: Outbox,
    pub(crate) acks: AckWatch,
    state: Mutex<State>,
    closed: watch::Sender<Option<CloseReason>>,
    /// The goodbye is being queued.
    parting: AtomicBool,
    /// The goodbye has been queued.
    leaving: AtomicBool,
    /// Notified once, behind the goodbye.
    pub(crate) said_goodbye: Arc<Notify>,
}

/// A request that is under way; forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    shared: &'a Shared,
    pub(crate) correlation: u64,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.shared.state().requests.remove(&self.correlation);
    }
}

impl Shared {
    pub(crate) fn new(options: ClientOptions, welcome: &Welcome) -> Self {
        let reply_topic = format!("{REPLY_PREFIX}{}", welcome.connection);
        Self {
            options,
            reply_topic: Topic::new(&reply_topic).expect("digits are a valid segment"),
            outbox: Outbox::new(),
            acks: watch::Sender::new(None),
            state: Mutex::new(State {
                sinks: HashMap::new(),
                requests: HashMap::new(),
                subscriptions_total: 0,
                requests_total: 0,
            }),
            closed: watch::Sender::new(None),
            parting: AtomicBool::new(false),
            said_goodbye: Arc::default(),
            leaving: AtomicBool::new(false),
        }
    }

    /// Held for looking up and noting only; no await, and no other lock is taken meanwhile.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- for the handles

    /// Queues a frame for writing, waiting for room.
    pub(crate) async fn enqueue(&self, frame: &Frame) -> Result<(), Disconnected> {
        self.enqueue_with(|out| frame.encode(out)).await
    }

    pub(crate) async fn enqueue_with(
        &self,
        encode: impl FnOnce(&mut bytes::BytesMut),
    ) -> Result<(), Disconnected> {
        if let Some(reason) = self.close_reason() {
            return Err(Disconnected(reason));
        }
        tokio::select! {
            // First what ends the wait at once in the usual case.
            biased;
            () = self.outbox.append_when_room(encode) => Ok(()),
            gone = self.disconnected() => Err(gone),
        }
    }

    pub(crate) fn begin_subscription(
        &self,
        sink: Sink,
        answer: Answer,
    ) -> Result<u32, Disconnected> {
        let mut state = self.state();
        // Under the lock: the task that closes marks it closed before it empties the table.
        if let Some(reason) = self.close_reason() {
            return Err(Disconnected(reason));
        }
        state.subscriptions_total += 1;
        let number = state.subscriptions_total;
        state.sinks.insert(number, (sink, Some(answer)));
        Ok(number)
    }

    /// With `forget` the broker forgets the durable consumer, too.
    pub(crate) fn end_subscription(&self, number: u32, forget: bool) {
        if self.state().sinks.remove(&number).is_some() && self.close_reason().is_none() {
            self.outbox
                .append(|out| Frame::Unsubscribe { subscription: number, forget }.encode(out));
        }
    }

    pub(crate) fn begin_request(&self) -> (Request<'_>, oneshot::Receiver<Reply>) {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state();
        state.requests_total += 1;
        let correlation = state.requests_total;
        state.requests.insert(correlation, answer);
        (Request { shared: self, correlation }, answered)
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    /// Waits until the connection has ended.
    pub(crate) async fn disconnected(&self) -> Disconnected {
        let mut closed = self.closed.subscribe();
        match closed.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => Disconnected(reason),
            // The sender is a field of self, so it cannot be gone.
            _ => Disconnected(CloseReason::Done),
        }
    }

    pub(crate) fn say_goodbye(&self) {
        if !self.parting.swap(true, Ordering::AcqRel) {
            self.outbox.append(|out| goodbye_frame().encode(out));
            self.leaving.store(true, Ordering::Release);
            self.said_goodbye.notify_one();
        }
    }

    // ---- for the connection's task

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(crate) fn sink(&self, number: u32) -> Option<Sink> {
        self.state().sinks.get(&number).map(|(sink, _)| sink.clone())
    }

    pub(crate) fn subscribed(&self, number: u32, answer: Result<(), Refused>) {
        let mut state = self.state();
        if answer.is_err() {
            if let Some((_, Some(waiting))) = state.sinks.remove(&number) {
                // Nobody waits any more: then nobody misses the answer.
                let _ = waiting.send(answer);
            }
        } else if let Some((_, waiting)) = state.sinks.get_mut(&number)
            && let Some(waiting) = waiting.take()
        {
            let _ = waiting.send(answer);
        }
    }

    pub(crate) fn answer(&self, correlation: u64, reply: Reply) {
        if let Some(waiting) = self.state().requests.remove(&correlation) {
            // The requester may have given up in this moment.
            let _ = waiting.send(reply);
        }
    }

    pub(crate) fn close(&self, reason: CloseReason) {
        tracing::debug!(client = self.options.client_id, "connection ended: {reason}");
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(reason);
            }
            first
        });
        let mut state = self.state();
        state.requests.clear();
        for (_, (sink, _)) in state.sinks.drain() {
            sink.close();
        }
    }
}
