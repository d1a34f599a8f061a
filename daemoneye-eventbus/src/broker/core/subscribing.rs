//! Subscribe, Unsubscribe and Commit.

use std::collections::BTreeMap;

use bytes::BytesMut;
use daemoneye_lib::stream::StreamId;

use super::conn::{Conn, Subscription};
use super::consumer::{Consumer, Cursor};
use super::requests::Verdict;
use super::topics::TopicSet;
use super::{ConnId, Core, NAME_BYTES_MAX, Refusal, refuse, wants};
use crate::broker::ForgetError;
use crate::event::Committed;
use crate::queue::{LiveQueue, QueueLimits};
use crate::topic::{TopicPattern, is_segment};
use crate::wire::{
    Frame, GoodbyeCode, MessageFrame, RefusalCode, Refused, SubscribeFrame, SubscribeKind,
};

/// Durable consumers at most, attached or not.
const CONSUMERS_MAX: usize = 256;
/// Patterns of one subscription.
const PATTERNS_MAX: usize = 256;

impl Core {
    pub(super) fn subscribe(&mut self, id: ConnId, subscribe: SubscribeFrame, verdict: Verdict) {
        let number = subscribe.subscription;
        let result = match verdict {
            Verdict::Pass => self.try_subscribe(id, subscribe),
            Verdict::Over | Verdict::Flood => Err(Refusal {
                code: RefusalCode::Limit,
                retry: true,
                reason: format!("more than {} requests a second", self.limits.request_rate),
            }),
        };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let answer = match result {
            Ok(()) => Frame::Subscribed { subscription: number },
            Err(refusal) => Frame::Refused(Refused {
                subscription: number,
                code: refusal.code,
                retry: refusal.retry,
                reason: refusal.reason,
            }),
        };
        let subscribed = matches!(answer, Frame::Subscribed { .. });
        conn.control(&answer, self.limits.control_bytes_max);
        if subscribed {
            self.give_retained(id, number);
        }
    }

    /// What was said before the subscription began and is kept for it.
    fn give_retained(&mut self, id: ConnId, number: u32) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if let Some(Subscription::Live { patterns, queue, .. }) =
            conn.subscriptions.get_mut(&number)
        {
            for message in self.retained.select(patterns) {
                let mut frame = BytesMut::new();
                Frame::Message(MessageFrame { subscription: number, ..message.clone() })
                    .encode(&mut frame);
                let bytes = frame.len();
                queue.push_message(frame.freeze(), bytes);
            }
        }
    }

    fn try_subscribe(&mut self, id: ConnId, subscribe: SubscribeFrame) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let number = subscribe.subscription;
        if number == 0 || conn.subscriptions.contains_key(&number) {
            return refuse(
                RefusalCode::Protocol,
                "a subscription's number is not 0 and not in use",
            );
        }
        if conn.subscriptions.len() >= self.limits.subscriptions_max {
            return refuse(
                RefusalCode::Limit,
                format!("a connection has at most {} subscriptions", self.limits.subscriptions_max),
            );
        }
        if subscribe.patterns.is_empty() || subscribe.patterns.len() > PATTERNS_MAX {
            return refuse(
                RefusalCode::Limit,
                format!("a subscription has 1 to {PATTERNS_MAX} patterns"),
            );
        }
        let selected = self.topics.select(&subscribe.patterns);
        let mut wanted = TopicSet::default();
        for alias in &selected {
            wanted.insert(*alias);
        }
        match subscribe.kind {
            SubscribeKind::Live { bytes_max, count_max } => {
                for alias in &selected {
                    conn.declare(*alias, self.topics.name(*alias));
                }
                self.topics.begin((id, number), &subscribe.patterns, &wanted);
                let bytes_asked = bytes_max as usize;
                let queue = LiveQueue::new(QueueLimits {
                    bytes_max: bytes_asked,
                    count_max: count_max as usize,
                });
                conn.subscriptions.insert(
                    number,
                    Subscription::Live { patterns: subscribe.patterns, wanted, bytes_asked, queue },
                );
                conn.share_queues(self.limits.queue_bytes_max);
            }
            SubscribeKind::Durable { name, positions } => {
                self.attach(id, number, &name, subscribe.patterns, wanted, positions)?;
                let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
                for alias in &selected {
                    conn.declare(*alias, self.topics.name(*alias));
                }
                conn.subscriptions.insert(number, Subscription::Durable { name });
            }
        }
        Ok(())
    }

    fn attach(
        &mut self,
        id: ConnId,
        number: u32,
        name: &str,
        patterns: Vec<TopicPattern>,
        wanted: TopicSet,
        positions: Vec<(StreamId, Committed)>,
    ) -> Result<(), Refusal> {
        if !is_segment(name) || name.len() > NAME_BYTES_MAX {
            return refuse(
                RefusalCode::Protocol,
                format!("a consumer's name is 1 to {NAME_BYTES_MAX} of a-z, 0-9, '_' and '-'"),
            );
        }
        if let Some(consumer) = self.consumers.get(name)
            && let Some((member, _)) = consumer.member
        {
            let holder = self.conns.get(&member).map_or("another connection", Conn::name);
            return Err(Refusal {
                code: RefusalCode::Occupied,
                retry: true,
                reason: format!("the consumer {name} is attached already, by {holder}"),
            });
        }
        if self.consumers.len() >= CONSUMERS_MAX && !self.consumers.contains_key(name) {
            return refuse(RefusalCode::Limit, format!("{CONSUMERS_MAX} consumers are known"));
        }
        let consumer = self.consumers.entry(name.to_owned()).or_insert_with(|| Consumer {
            patterns: Vec::new(),
            wanted: TopicSet::default(),
            member: None,
            cursors: BTreeMap::new(),
        });
        consumer.patterns = patterns;
        consumer.wanted = wanted;
        consumer.member = Some((id, number));
        // What the consumer has stored is the truth about what it has; for streams it does not
        // name, what the broker remembers still stands.
        for (stream, position) in &positions {
            consumer.cursors.insert(*stream, Cursor::at(*position));
        }
        for (stream, position) in positions {
            self.reposition(stream, position);
        }
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        for stream in streams {
            self.refresh_interest(stream);
            self.acknowledge(stream, false);
        }
        Ok(())
    }

    /// Ends the session of the stream's publisher if a consumer holds a position that does not
    /// follow from what was published in it. Only the log can tell whether it goes on from there,
    /// and it is asked when a session begins; until then the position would pass for a commit of
    /// events that its holder has never seen.
    fn reposition(&mut self, stream_id: StreamId, position: Committed) {
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        let follows = position.sequence <= stream.last()
            && stream.epoch_at(position.sequence).is_none_or(|epoch| epoch == position.epoch);
        if follows {
            return;
        }
        if let Some(conn) = stream.publisher.take().and_then(|id| self.conns.get_mut(&id)) {
            conn.publishing = None;
            conn.end(&Frame::Goodbye {
                code: GoodbyeCode::Reposition,
                reason: format!(
                    "a consumer has stored stream {stream_id} up to {}; connect again to compare",
                    position.sequence
                ),
            });
        }
    }

    /// Notes which consumers want something of the stream. One that begins to want it starts
    /// where the held entries begin, unless it has a position.
    pub(super) fn refresh_interest(&mut self, stream_id: StreamId) {
        let Some(stream) = self.streams.get(&stream_id) else { return };
        for consumer in self.consumers.values_mut() {
            let interested = wants(consumer, stream);
            if let Some(cursor) = consumer.cursors.get_mut(&stream_id) {
                cursor.interested = interested;
            } else if interested {
                let mut cursor = Cursor::from_start(stream.acked);
                cursor.interested = true;
                consumer.cursors.insert(stream_id, cursor);
            }
            if interested
                && let Some(conn) = consumer.member.and_then(|(id, _)| self.conns.get(&id))
            {
                conn.wake.notify_one();
            }
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        id: ConnId,
        number: u32,
        forget: bool,
    ) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        match conn.subscriptions.remove(&number) {
            Some(Subscription::Live { patterns, wanted, queue, .. }) => {
                self.missed_gone += queue.missed_total();
                conn.share_queues(self.limits.queue_bytes_max);
                self.topics.end((id, number), &patterns, &wanted);
            }
            Some(Subscription::Durable { name }) => {
                self.detach(id, &name);
                if forget && let Err(error) = self.forget(&name) {
                    return refuse(RefusalCode::NotAllowed, error.to_string());
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Forgets a durable consumer that has no member: what it has not committed is no longer held
    /// for it.
    pub(crate) fn forget(&mut self, name: &str) -> Result<(), ForgetError> {
        let error = match self.consumers.get(name) {
            _ if self.limits.required_consumers.iter().any(|required| required == name) => {
                ForgetError::Required { name: name.to_owned() }
            }
            Some(consumer) if consumer.member.is_some() => {
                ForgetError::Attached { name: name.to_owned() }
            }
            Some(_) => {
                self.consumers.remove(name);
                let streams: Vec<StreamId> = self.streams.keys().copied().collect();
                for stream in streams {
                    self.acknowledge(stream, false);
                }
                return Ok(());
            }
            None => ForgetError::Unknown { name: name.to_owned() },
        };
        Err(error)
    }

    pub(super) fn detach(&mut self, id: ConnId, name: &str) {
        if let Some(consumer) = self.consumers.get_mut(name)
            && consumer.member.is_some_and(|(member, _)| member == id)
        {
            consumer.member = None;
            for cursor in consumer.cursors.values_mut() {
                cursor.rewind();
            }
        }
    }

    pub(super) fn commit(
        &mut self,
        id: ConnId,
        number: u32,
        stream: StreamId,
        position: Committed,
    ) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        // A commit may cross the end of its subscription; then it is too late and means nothing.
        let Some(Subscription::Durable { name }) = conn.subscriptions.get(&number) else {
            return Ok(());
        };
        let Some(cursor) =
            self.consumers.get_mut(name).and_then(|consumer| consumer.cursors.get_mut(&stream))
        else {
            return refuse(RefusalCode::Protocol, "a commit for a stream never delivered");
        };
        if position.sequence > cursor.sent {
            return refuse(
                RefusalCode::Protocol,
                format!(
                    "a commit of {} of stream {stream}, of which only {} were delivered",
                    position.sequence, cursor.sent
                ),
            );
        }
        if cursor.commit(position) {
            self.acknowledge(stream, false);
        }
        Ok(())
    }
}
