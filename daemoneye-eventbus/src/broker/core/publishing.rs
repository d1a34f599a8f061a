//! Declare and Publish: checking a batch, handing it out, acknowledging it.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use daemoneye_lib::stream::{Sequence, StreamId};

use super::conn::{Conn, Subscription};
use super::stream::Chunk;
use super::topics::{BatchTopics, TopicSet};
use super::{ConnId, Core, Refusal, refuse};
use crate::event::{Ack, AckLevel};
use crate::queue::{self, Run};
use crate::rights;
use crate::topic::Topic;
use crate::wire::{ALIAS_AT, ALIASES_MAX, EntryHeader, Publish, RefusalCode};

impl Core {
    pub(super) fn declare(&mut self, id: ConnId, alias: u16, topic: &Topic) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let (Some(identity), Some(stream)) = (&conn.identity, conn.publishing) else {
            return refuse(RefusalCode::Protocol, "aliases are for publishers");
        };
        if let Err(rule) = rights::may_publish(identity.role, topic) {
            return refuse(RefusalCode::NotAllowed, format!("{topic}: {rule}"));
        }
        if alias >= ALIASES_MAX {
            return refuse(RefusalCode::Limit, format!("aliases are below {ALIASES_MAX}"));
        }
        let Ok((ours, is_new)) = self.topics.intern(topic) else {
            return refuse(RefusalCode::Limit, format!("{ALIASES_MAX} topics are in use"));
        };
        let slot = usize::from(alias);
        if conn.aliases.len() <= slot {
            conn.aliases.resize(slot + 1, None);
        }
        match conn.aliases[slot].replace(ours) {
            Some(before) if before != ours => {
                return refuse(RefusalCode::Protocol, format!("alias {alias} is declared twice"));
            }
            _ => {}
        }
        if is_new {
            self.announce(ours, topic);
        }
        if let Some(stream_state) = self.streams.get_mut(&stream)
            && !stream_state.topics.contains(&ours)
        {
            stream_state.topics.push(ours);
            self.refresh_interest(stream);
        }
        Ok(())
    }

    /// Matches a new topic against every subscription and tells those who will see it its alias.
    fn announce(&mut self, alias: u16, topic: &Topic) {
        self.topics.subscribed(topic, &mut self.route);
        for (id, number) in &self.route {
            self.topics.route(alias, (*id, *number));
            let Some(conn) = self.conns.get_mut(id) else { continue };
            if let Some(Subscription::Live { wanted, .. }) = conn.subscriptions.get_mut(number) {
                wanted.insert(alias);
            }
            conn.declare(alias, topic);
        }
        for consumer in self.consumers.values_mut() {
            if consumer.patterns.iter().any(|pattern| pattern.matches(topic)) {
                consumer.wanted.insert(alias);
                if let Some(conn) = consumer.member.and_then(|(id, _)| self.conns.get_mut(&id)) {
                    conn.declare(alias, topic);
                }
            }
        }
    }

    pub(super) fn publish(&mut self, id: ConnId, publish: Publish) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        let Some(stream_id) = conn.publishing else {
            return refuse(RefusalCode::Protocol, "the Hello named no stream to publish");
        };
        let Some(stream) = self.streams.get_mut(&stream_id) else { return Ok(()) };
        if publish.epoch > stream.epoch {
            return refuse(RefusalCode::Protocol, "a batch is of a later epoch than the Hello");
        }
        let chunk = check_batch(publish, &conn.aliases)?;
        conn.traffic.events_in_total += u64::from(chunk.count);

        // Where does it begin, seen from what is known already?
        let last = stream.last();
        let chunk = if chunk.after < last {
            if stream.epoch_at(chunk.after.next()).is_some_and(|epoch| epoch != chunk.epoch) {
                return refuse(
                    RefusalCode::Diverged,
                    format!(
                        "sequence {} was published before in another epoch; begin a new stream",
                        chunk.after.next()
                    ),
                );
            }
            let count = chunk.count;
            let rest = skip_duplicates(chunk, last);
            stream.duplicates_total += u64::from(count - rest.count);
            rest
        } else if chunk.after > last && !stream.may_jump {
            return refuse(
                RefusalCode::Protocol,
                format!("sequences {} to {} were left out", last.next(), chunk.after),
            );
        } else {
            chunk
        };
        stream.may_jump = false;
        if chunk.count == 0 {
            self.acknowledge(stream_id, true);
            return Ok(());
        }
        let credit = self.limits.credit_bytes;
        if stream.retained_bytes > 0 && stream.retained_bytes + chunk.bytes() > credit {
            return refuse(
                RefusalCode::Credit,
                format!("more than {credit} bytes of entries are unacknowledged"),
            );
        }
        stream.received = Some((chunk.through, chunk.epoch));
        stream.entries_total += u64::from(chunk.count);

        self.route_live(stream_id, &chunk);
        let mut held = false;
        for consumer in self.consumers.values() {
            if consumer.cursor(&stream_id).is_some() {
                held = true;
                if let Some(conn) = consumer.member.and_then(|(id, _)| self.conns.get(&id)) {
                    conn.wake.notify_one();
                }
            }
        }
        if held && let Some(stream) = self.streams.get_mut(&stream_id) {
            stream.retain(chunk);
        }
        self.acknowledge(stream_id, false);
        Ok(())
    }

    /// Hands a batch to the live subscriptions that want some of it. Never waits.
    fn route_live(&mut self, stream: StreamId, chunk: &Chunk) {
        let whole = Run {
            stream,
            epoch: chunk.epoch,
            after: chunk.after,
            through: chunk.through,
            count: chunk.count,
            entries: chunk.entries.clone(),
        };
        if let Some(topic) = chunk.topics.single() {
            for (id, number) in self.topics.live(topic) {
                push_live(&mut self.conns, *id, *number, |_| whole.clone());
            }
            return;
        }
        self.route.clear();
        for topic in chunk.topics.iter() {
            self.route.extend_from_slice(self.topics.live(topic));
        }
        self.route.sort_unstable();
        self.route.dedup();
        for (id, number) in &self.route {
            push_live(&mut self.conns, *id, *number, |wanted| {
                let part = chunk.part(chunk.after, wanted);
                Run { count: part.count, entries: part.entries, ..whole.clone() }
            });
        }
    }

    /// Works out how far a stream is done with and tells its publisher if that moved, or in any
    /// case if `repeat`.
    pub(super) fn acknowledge(&mut self, stream_id: StreamId, repeat: bool) {
        let Some(stream) = self.streams.get_mut(&stream_id) else { return };
        let least = self
            .consumers
            .values()
            .filter_map(|consumer| Some(consumer.cursor(&stream_id)?.committed))
            .min();
        let (through, level) = match least {
            Some(least) => (least.min(stream.last()), AckLevel::Committed),
            None => (stream.last(), AckLevel::Accepted),
        };
        // While a required consumer has not come back nothing is acknowledged; its cursor sees to
        // that, for a consumer stays known until the broker ends.
        let moved = stream.acknowledge(through);
        if (moved || repeat)
            && let Some(conn) = stream.publisher.and_then(|id| self.conns.get_mut(&id))
        {
            conn.ack = Some(Ack { sequence: stream.acked, level });
            conn.wake.notify_one();
        }
    }
}

/// Walks a batch once: everything that is relied upon later is checked here, and the publisher's
/// aliases are replaced by the broker's.
fn check_batch(publish: Publish, aliases: &[Option<u16>]) -> Result<Chunk, Refusal> {
    let Publish { epoch, after, through, count, mut entries } = publish;
    let mut at = 0;
    let mut previous = after;
    let mut found = 0_u32;
    let mut topics: Option<BatchTopics> = None;
    let mut last_alias = None;
    while at < entries.len() {
        let header = EntryHeader::read(&entries[at..]).or_else(|problem| {
            refuse(RefusalCode::Protocol, format!("a Publish frame is malformed: {problem}"))
        })?;
        if header.after() != previous {
            return refuse(
                RefusalCode::Protocol,
                format!("entry {} does not follow {previous}", header.sequence),
            );
        }
        let Some(ours) = aliases.get(usize::from(header.alias)).copied().flatten() else {
            return refuse(
                RefusalCode::Protocol,
                format!("alias {} has not been declared", header.alias),
            );
        };
        entries[at + ALIAS_AT..at + ALIAS_AT + 2].copy_from_slice(&ours.to_le_bytes());
        if last_alias != Some(ours) {
            last_alias = Some(ours);
            match &mut topics {
                Some(topics) => topics.insert(ours),
                None => topics = Some(BatchTopics::new(ours)),
            }
        }
        previous = header.sequence;
        found += 1;
        at += header.entry_bytes();
    }
    let Some(topics) = topics else {
        return refuse(RefusalCode::Protocol, "a Publish frame holds no entries");
    };
    if found != count || previous != through {
        return refuse(
            RefusalCode::Protocol,
            format!(
                "a Publish frame announces {count} entries through {through} and holds {found} \
                 through {previous}"
            ),
        );
    }
    let entries = queue::detached(entries.freeze());
    Ok(Chunk { epoch, after, through, count, topics, entries })
}

/// What of `chunk` lies after `received`. An entry that stands for sequences on both sides stays,
/// shortened.
fn skip_duplicates(mut chunk: Chunk, received: Sequence) -> Chunk {
    if chunk.through <= received {
        return Chunk { count: 0, entries: Bytes::new(), ..chunk };
    }
    let wanted = {
        let mut all = TopicSet::default();
        chunk.topics.iter().for_each(|topic| all.insert(topic));
        all
    };
    let part = chunk.part(received, &wanted);
    let mut entries = part.entries;
    if let Ok(first) = EntryHeader::read(&entries)
        && first.after() < received
    {
        let mut shortened = BytesMut::from(&entries[..]);
        let span = first.sequence.since(received);
        shortened[8..16].copy_from_slice(&span.to_le_bytes());
        entries = shortened.freeze();
    }
    chunk.after = received;
    chunk.count = part.count;
    chunk.entries = entries;
    chunk
}

fn push_live(
    conns: &mut HashMap<ConnId, Conn>,
    id: ConnId,
    number: u32,
    run: impl FnOnce(&TopicSet) -> Run,
) {
    if let Some(conn) = conns.get_mut(&id)
        && let Some(Subscription::Live { queue, wanted, .. }) = conn.subscriptions.get_mut(&number)
    {
        queue.push_run(run(wanted));
        conn.wake.notify_one();
    }
}
