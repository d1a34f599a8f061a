//! One connection: who it is and what waits to be written to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use daemoneye_lib::stream::StreamId;
use tokio::sync::Notify;

use super::topics::TopicSet;
use crate::broker::stats::Traffic;
use crate::event::{Ack, Role};
use crate::queue::LiveQueue;
use crate::topic::{Topic, TopicPattern};
use crate::wire::{Frame, GoodbyeCode};

/// A subscription of a connection.
#[derive(Debug)]
pub(crate) enum Subscription {
    Live {
        patterns: Vec<TopicPattern>,
        wanted: TopicSet,
        /// Messages wait as whole frames.
        queue: LiveQueue<Bytes>,
    },
    /// The member of the consumer of this name; the state is there.
    Durable { name: String },
}

/// How a connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Only what is in `control` is still written.
    Now,
    /// What is queued is still written, then a goodbye.
    Drained(GoodbyeCode, &'static str),
}

/// What a connection has said of itself.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) client_id: String,
    pub(crate) role: Role,
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) pid: Option<u32>,
    pub(crate) in_process: bool,
    pub(crate) since: Instant,
    pub(crate) traffic: Traffic,
    /// Wakes the task that writes to the peer.
    pub(crate) wake: Arc<Notify>,
    /// Known once Hello has been accepted.
    pub(crate) identity: Option<Identity>,
    pub(crate) publishing: Option<StreamId>,
    /// The publisher's aliases → the broker's.
    pub(crate) aliases: Vec<Option<u16>>,
    /// The broker's aliases this peer has been told.
    pub(crate) declared: TopicSet,
    pub(crate) subscriptions: BTreeMap<u32, Subscription>,
    pub(crate) closing: Option<Closing>,
    /// What the peer was told when the broker ended the connection.
    pub(crate) goodbye: Option<GoodbyeCode>,
    /// Frames that are neither events nor cumulative. A peer that lets this grow is cut off.
    pub(crate) control: BytesMut,
    /// How many frames `control` holds.
    pub(crate) control_frames: u64,
    /// Cumulative or repeatable frames: only the newest is kept, so they need no bound.
    pub(crate) ack: Option<Ack>,
    pub(crate) ping: Option<u64>,
    pub(crate) pong: Option<u64>,
}

impl Conn {
    pub(crate) fn new(wake: Arc<Notify>, pid: Option<u32>, in_process: bool) -> Self {
        Self {
            pid,
            in_process,
            since: Instant::now(),
            traffic: Traffic::default(),
            wake,
            identity: None,
            publishing: None,
            aliases: Vec::new(),
            declared: TopicSet::default(),
            subscriptions: BTreeMap::new(),
            closing: None,
            goodbye: None,
            control: BytesMut::new(),
            control_frames: 0,
            ack: None,
            ping: None,
            pong: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.identity.as_ref().map_or("(no hello yet)", |identity| &identity.client_id)
    }

    /// Queues a control frame. A peer that does not take its control frames is ended: dropping
    /// some would break the protocol, keeping them all would cost memory without a bound.
    pub(crate) fn control(&mut self, frame: &Frame, bytes_max: usize) {
        if self.closing == Some(Closing::Now) {
            return;
        }
        frame.encode(&mut self.control);
        self.control_frames += 1;
        if self.control.len() > bytes_max {
            tracing::warn!(client = self.name(), "cut off: it does not read its control frames");
            self.control = BytesMut::new();
            self.control_frames = 0;
            self.end(&Frame::Goodbye {
                code: GoodbyeCode::Overflow,
                reason: "control frames were not read".to_owned(),
            });
        }
        self.wake.notify_one();
    }

    /// Writes `last` behind what control holds and ends.
    pub(crate) fn end(&mut self, last: &Frame) {
        if self.closing != Some(Closing::Now) {
            last.encode(&mut self.control);
            self.control_frames += 1;
            if let Frame::Goodbye { code, .. } = last {
                self.goodbye = Some(*code);
            }
            self.closing = Some(Closing::Now);
        }
        self.wake.notify_one();
    }

    /// Tells the peer what `alias` means, once.
    pub(crate) fn declare(&mut self, alias: u16, topic: &Topic, bytes_max: usize) {
        if !self.declared.contains(alias) {
            self.declared.insert(alias);
            self.control(&Frame::Declare { alias, topic: topic.clone() }, bytes_max);
        }
    }
}
