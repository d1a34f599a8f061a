//! One connection: who it is and what waits to be written to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use daemoneye_lib::stream::StreamId;
use tokio::sync::Notify;

use super::requests::{Awaited, Bucket};
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
        /// The bytes its subscriber would have it hold.
        bytes_asked: usize,
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
    /// What it has asked for lately, and what it awaits answers to.
    pub(crate) requests: Bucket,
    pub(crate) awaited: Awaited,
    pub(crate) closing: Option<Closing>,
    /// What the peer was told when the broker ended the connection.
    pub(crate) goodbye: Option<GoodbyeCode>,
    /// Frames that are neither events nor cumulative. A peer that lets this grow is cut off.
    pub(crate) control: BytesMut,
    /// How many frames `control` holds.
    pub(crate) control_frames: u64,
    /// How many bytes of them are declarations. There is one for each topic at most, and what
    /// publishers declare must not cut off their readers.
    declarations: usize,
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
            requests: Bucket::default(),
            awaited: Awaited::default(),
            closing: None,
            goodbye: None,
            control: BytesMut::new(),
            control_frames: 0,
            declarations: 0,
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
        if self.control.len() - self.declarations > bytes_max {
            tracing::warn!(client = self.name(), "cut off: it does not read its control frames");
            self.take_control();
            self.end(&Frame::Goodbye {
                code: GoodbyeCode::Overflow,
                reason: "control frames were not read".to_owned(),
            });
        }
        self.wake.notify_one();
    }

    /// What is to be written before anything else, and how many frames that is.
    pub(crate) fn take_control(&mut self) -> (Bytes, u64) {
        self.declarations = 0;
        (self.control.split().freeze(), std::mem::take(&mut self.control_frames))
    }

    /// Shares out the bytes that all live subscriptions may hold together, if they have asked for
    /// more than that.
    pub(crate) fn share_queues(&mut self, bytes_max: usize) {
        let live = |subscription: &Subscription| match subscription {
            Subscription::Live { bytes_asked, .. } => *bytes_asked as u128,
            Subscription::Durable { .. } => 0,
        };
        let asked: u128 = self.subscriptions.values().map(live).sum();
        let (share, of) =
            if asked > bytes_max as u128 { (bytes_max as u128, asked) } else { (1, 1) };
        for subscription in self.subscriptions.values_mut() {
            if let Subscription::Live { bytes_asked, queue, .. } = subscription {
                queue.set_bytes_max((*bytes_asked as u128 * share / of) as usize);
            }
        }
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
    pub(crate) fn declare(&mut self, alias: u16, topic: &Topic) {
        if !self.declared.contains(alias) {
            self.declared.insert(alias);
            if self.closing != Some(Closing::Now) {
                let before = self.control.len();
                Frame::Declare { alias, topic: topic.clone() }.encode(&mut self.control);
                self.declarations += self.control.len() - before;
                self.control_frames += 1;
                self.wake.notify_one();
            }
        }
    }
}
