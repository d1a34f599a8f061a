//! The client's end of a connection: sorts what the broker sends to those who wait for it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use super::error::{CloseReason, ConnectError};
use super::shared::{Reply, Shared, Sink};
use crate::connection::{self, End, Failure, Flow, Peer};
use crate::event::Message;
use crate::queue::Run;
use crate::topic::Topic;
use crate::wire::{
    Deliver, Entries, Frame, FrameDecoder, GoodbyeCode, Kind, MessageFrame, Refused,
    UndeliverableCode, Welcome, WireError,
};

/// Says Hello and waits for the answer. What arrives behind it stays in `decoder`.
pub(super) async fn handshake(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    decoder: &mut FrameDecoder,
    hello: &Frame,
    socket: &Path,
) -> Result<Welcome, ConnectError> {
    let protocol = |source| ConnectError::Protocol { socket: socket.to_owned(), source };
    let mut bytes = BytesMut::new();
    hello.encode(&mut bytes);
    // A broker that refuses us may have closed already; its reason is still to be read.
    let written = writer.write_all(&bytes).await;
    loop {
        if let Some(raw) = decoder.next_frame().map_err(protocol)? {
            let kind = raw.kind;
            match Frame::decode(raw).map_err(protocol)? {
                Some(Frame::Welcome(welcome)) => return Ok(welcome),
                Some(Frame::Refused(refused)) => {
                    return Err(ConnectError::Refused {
                        socket: socket.to_owned(),
                        code: refused.code,
                        retry: refused.retry,
                        reason: refused.reason,
                    });
                }
                Some(Frame::Goodbye { code, reason }) => {
                    let source = io::Error::other(format!("the broker said goodbye: {reason}"));
                    tracing::debug!(?code, "goodbye in place of a welcome");
                    return Err(ConnectError::Io { socket: socket.to_owned(), source });
                }
                Some(_) => return Err(protocol(WireError::UnknownKind { kind })),
                None => {}
            }
        } else {
            let read = decoder.read_from(reader).await;
            if !matches!(read, Ok(1..)) {
                let source = match (written, read) {
                    (Err(error), _) | (_, Err(error)) => error,
                    _ => io::ErrorKind::UnexpectedEof.into(),
                };
                return Err(ConnectError::Io { socket: socket.to_owned(), source });
            }
        }
    }
}

/// The connection's task.
#[derive(Debug)]
pub(super) struct ClientIo {
    shared: Arc<Shared>,
    /// The broker's aliases. Replaced, not changed, when one is added, for queued runs refer to it.
    topics: Arc<Vec<Option<Topic>>>,
    /// The sinks that have been used; asking the shared table every time would cost its lock.
    sinks: HashMap<u32, Sink>,
    reason: Option<CloseReason>,
    ping: Option<u64>,
    pings: u64,
    pong: Option<u64>,
}

impl ClientIo {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            topics: Arc::default(),
            sinks: HashMap::new(),
            reason: None,
            ping: None,
            pings: 0,
            pong: None,
        }
    }

    pub(super) async fn run(
        mut self,
        mut decoder: FrameDecoder,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
        heartbeat: Duration,
    ) {
        let end = connection::serve(&mut self, &mut decoder, reader, writer, heartbeat).await;
        let reason = match (self.reason.take(), end) {
            (Some(reason), _) => reason,
            (None, _) if self.shared.is_leaving() => CloseReason::Done,
            (None, End::Closed) => CloseReason::Done,
            (None, End::Lost(error)) => CloseReason::Lost(Arc::new(error)),
        };
        self.shared.close(reason);
    }

    fn handle(&mut self, frame: Frame) -> Result<Flow, WireError> {
        match frame {
            Frame::Ack(ack) => {
                self.shared.acks.send_if_modified(|newest| {
                    let newer = newest.is_none_or(|before| before.sequence <= ack.sequence);
                    if newer {
                        *newest = Some(ack);
                    }
                    newer
                });
            }
            Frame::Deliver(deliver) => self.deliver(deliver)?,
            Frame::Missed { subscription, count } => {
                if let Some(Sink::Live(sink)) = self.sink(subscription) {
                    sink.push_missed(count);
                }
            }
            Frame::Message(message) => self.message(message),
            Frame::Undeliverable(undeliverable) => {
                let reply = match undeliverable.code {
                    UndeliverableCode::NoResponder => Reply::NoResponder,
                    UndeliverableCode::NotAllowed => {
                        tracing::warn!(topic = %undeliverable.topic, "not sent: {}", undeliverable.reason);
                        Reply::NotAllowed(undeliverable.reason)
                    }
                    UndeliverableCode::Limit => {
                        tracing::warn!(topic = %undeliverable.topic, "not delivered: {}", undeliverable.reason);
                        Reply::Limit(undeliverable.reason)
                    }
                };
                self.shared.answer(undeliverable.correlation, reply);
            }
            Frame::Declare { alias, topic } => {
                let topics = Arc::make_mut(&mut self.topics);
                let slot = usize::from(alias);
                if topics.len() <= slot {
                    topics.resize(slot + 1, None);
                }
                topics[slot] = Some(topic);
            }
            Frame::Subscribed { subscription } => self.shared.subscribed(subscription, Ok(())),
            Frame::Refused(refused) if refused.subscription != 0 => {
                self.shared.subscribed(refused.subscription, Err(refused));
            }
            Frame::Refused(Refused { code, retry, reason, .. }) => {
                self.reason = Some(CloseReason::Refused { code, retry, reason });
                return Ok(Flow::Close);
            }
            Frame::Goodbye { code, reason } => {
                self.reason = Some(match code {
                    GoodbyeCode::Superseded => CloseReason::Superseded,
                    code => CloseReason::Goodbye { code, reason },
                });
                return Ok(Flow::Close);
            }
            Frame::Ping { token } => self.pong = Some(token),
            Frame::Pong { .. } => {}
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Publish(_)
            | Frame::Subscribe(_)
            | Frame::Unsubscribe { .. }
            | Frame::Commit { .. } => {
                return Err(WireError::Malformed {
                    kind: frame.kind(),
                    problem: "a broker does not send it here",
                });
            }
        }
        Ok(Flow::Open)
    }

    fn sink(&mut self, number: u32) -> Option<&Sink> {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.sinks.entry(number) {
            vacant.insert(self.shared.sink(number)?);
        }
        self.sinks.get(&number)
    }

    fn deliver(&mut self, deliver: Deliver) -> Result<(), WireError> {
        check_entries(&deliver, &self.topics)
            .map_err(|problem| WireError::Malformed { kind: Kind::Deliver, problem })?;
        let topics = Arc::clone(&self.topics);
        // A subscription that has just ended may still get some.
        let Some(sink) = self.sink(deliver.subscription) else { return Ok(()) };
        let run = Run {
            stream: deliver.stream,
            epoch: deliver.epoch,
            after: deliver.after,
            through: deliver.through,
            count: deliver.count,
            entries: deliver.entries,
        };
        match sink {
            Sink::Live(sink) => sink.push_run(run, topics),
            Sink::Durable(sink) => sink.push(run, topics),
        }
        Ok(())
    }

    fn message(&mut self, message: MessageFrame) {
        let MessageFrame { subscription, correlation, retained, topic, reply_to, payload } =
            message;
        if subscription == 0 {
            self.shared.answer(correlation, Reply::Answer(payload));
        } else if let Some(Sink::Live(sink)) = self.sink(subscription) {
            sink.push_message(Message { topic, payload, reply_to, correlation, retained });
        }
    }
}

/// Checks once what is relied upon when the entries are taken out.
fn check_entries(deliver: &Deliver, topics: &[Option<Topic>]) -> Result<(), &'static str> {
    let mut found = 0;
    for entry in Entries::new(&deliver.entries) {
        let (header, _) = entry?;
        if !topics.get(usize::from(header.alias)).is_some_and(Option::is_some) {
            return Err("an alias has not been declared");
        }
        found += 1;
    }
    if found != deliver.count {
        return Err("it announces another number of entries than it holds");
    }
    Ok(())
}

impl Peer for ClientIo {
    fn receive(&mut self, decoder: &mut FrameDecoder) -> Result<Flow, WireError> {
        while let Some(raw) = decoder.next_frame()? {
            if let Some(frame) = Frame::decode(raw)?
                && self.handle(frame)? == Flow::Close
            {
                return Ok(Flow::Close);
            }
        }
        Ok(Flow::Open)
    }

    fn output(&mut self, pieces: &mut VecDeque<Bytes>) -> Flow {
        if self.reason.is_some() {
            return Flow::Close;
        }
        // Asked before taking: if it is set, the goodbye is in what is taken or has been written.
        let leaving = self.shared.is_leaving();
        let mut own = BytesMut::new();
        if let Some(token) = self.pong.take() {
            Frame::Pong { token }.encode(&mut own);
        }
        if let Some(token) = self.ping.take() {
            Frame::Ping { token }.encode(&mut own);
        }
        if !own.is_empty() {
            pieces.push_back(own.freeze());
        }
        pieces.extend(self.shared.outbox.take());
        if leaving && pieces.is_empty() { Flow::Close } else { Flow::Open }
    }

    fn failed(&mut self, failure: Failure) {
        self.reason = Some(match failure {
            Failure::Silent => CloseReason::Silent,
            Failure::Protocol(error) => CloseReason::Protocol(error),
        });
    }

    fn heartbeat(&mut self) {
        // Ended subscriptions are forgotten here; numbers are not used again.
        self.sinks.retain(|number, _| self.shared.sink(*number).is_some());
        self.pings += 1;
        self.ping = Some(self.pings);
        self.shared.outbox.filled.notify_one();
    }

    fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.outbox.filled)
    }

    fn parting(&self) -> Option<Arc<Notify>> {
        Some(Arc::clone(&self.shared.said_goodbye))
    }
}
