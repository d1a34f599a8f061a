//! Hello: who is let in, and as what.

use daemoneye_lib::stream::StreamId;

use super::conn::Identity;
use super::stream::Stream;
use super::{ConnId, Core, NAME_BYTES_MAX, Refusal, refuse, wants};
use crate::event::{Committed, Position, Role};
use crate::topic::is_segment;
use crate::wire::{Frame, GoodbyeCode, Hello, RefusalCode, VERSION, Welcome};

/// Streams remembered at most; beyond it idle ones are forgotten.
const STREAMS_MAX: usize = 1024;

impl Core {
    pub(super) fn hello(&mut self, id: ConnId, hello: Hello) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        if conn.identity.is_some() {
            return refuse(RefusalCode::Protocol, "a second Hello");
        }
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            return refuse(
                RefusalCode::Version,
                format!(
                    "the broker speaks version {VERSION}, the client {} to {}; update the older",
                    hello.version_min, hello.version_max
                ),
            );
        }
        if !is_segment(&hello.client_id) || hello.client_id.len() > NAME_BYTES_MAX {
            return refuse(
                RefusalCode::Protocol,
                format!("a client id is 1 to {NAME_BYTES_MAX} of a-z, 0-9, '_' and '-'"),
            );
        }
        if hello.role == Role::Agent && !conn.in_process {
            return refuse(
                RefusalCode::NotAllowed,
                "the agent's role is only for the process that hosts the broker",
            );
        }
        let (committed, positions) = match &hello.position {
            Some(position) => self.admit_publisher(id, &hello, position)?,
            None => (None, Vec::new()),
        };
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        conn.publishing = hello.position.map(|position| position.stream);
        conn.identity = Some(Identity { client_id: hello.client_id, role: hello.role });
        let welcome = Frame::Welcome(Welcome {
            version: VERSION,
            connection: id.0,
            credit_bytes: self.limits.credit_bytes,
            frame_bytes_max: self.limits.frame_bytes_max as u32,
            heartbeat_ms: self.limits.heartbeat_ms,
            committed,
            positions,
        });
        conn.control(&welcome, self.limits.control_bytes_max);
        Ok(())
    }

    /// Checks the publisher and makes it its stream's. Returns where it resumes and all positions
    /// held downstream.
    fn admit_publisher(
        &mut self,
        id: ConnId,
        hello: &Hello,
        position: &Position,
    ) -> Result<(Option<Committed>, Vec<Committed>), Refusal> {
        if hello.role != Role::Collector {
            return refuse(RefusalCode::NotAllowed, "only collectors publish events");
        }
        let missing = self.limits.required_consumers.iter().find(|name| {
            self.consumers.get(*name).is_none_or(|consumer| consumer.member.is_none())
        });
        if let Some(name) = missing {
            return Err(Refusal {
                code: RefusalCode::NotReady,
                retry: true,
                reason: format!("the required consumer {name} is not attached yet; try again"),
            });
        }
        if let Some(stream) = self.streams.get(&position.stream)
            && stream.epoch > position.epoch
        {
            return refuse(
                RefusalCode::StaleEpoch,
                format!(
                    "stream {} has been published in epoch {}, after your {}: another process \
                     writes it, or the log was restored from a copy",
                    position.stream, stream.epoch, position.epoch
                ),
            );
        }
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&position.stream) {
            self.streams.retain(|_, stream| !stream.is_idle());
            if self.streams.len() >= STREAMS_MAX {
                return refuse(RefusalCode::Limit, format!("{STREAMS_MAX} streams are in use"));
            }
        }

        if !self.streams.contains_key(&position.stream) {
            let credit = self.limits.credit_bytes;
            let held: u64 = self.streams.values().map(|stream| stream.may_hold(credit)).sum();
            // Whatever the two numbers are, one publisher alone must get in.
            if held > 0 && held.saturating_add(credit) > self.limits.held_bytes_max {
                return Err(Refusal {
                    code: RefusalCode::Limit,
                    retry: true,
                    reason: "too much is held for durable consumers; try again".to_owned(),
                });
            }
        }

        let committed = self.committed_by_all(&position.stream);
        let mut positions: Vec<Committed> = self
            .consumers
            .values()
            .filter_map(|consumer| consumer.cursors.get(&position.stream)?.position())
            .collect();
        let start = committed.map_or(position.first_unacknowledged.prev(), |c| c.sequence);
        let stream = self
            .streams
            .entry(position.stream)
            .or_insert_with(|| Stream::new(position.epoch, start));
        if let Some((sequence, epoch)) = stream.received {
            positions.push(Committed { sequence, epoch });
        }
        positions.sort_unstable_by_key(|p| (p.sequence, p.epoch));
        positions.dedup();
        stream.epoch = position.epoch;
        stream.may_jump = true;
        if let Some(old) = stream.publisher.replace(id)
            && let Some(conn) = self.conns.get_mut(&old)
        {
            conn.publishing = None;
            conn.end(&Frame::Goodbye {
                code: GoodbyeCode::Superseded,
                reason: format!("another connection took over stream {}", position.stream),
            });
        }
        self.refresh_interest(position.stream);
        Ok((committed, positions))
    }

    /// The least position of the durable consumers; `None` if there are none or one of them knows
    /// nothing of the stream: then the publisher begins with what it has not got acknowledged.
    fn committed_by_all(&self, stream: &StreamId) -> Option<Committed> {
        let known = self.streams.get(stream);
        let mut least: Option<Committed> = None;
        for consumer in self.consumers.values() {
            match consumer.cursors.get(stream) {
                // A stream this consumer has seen nothing of and does not want does not concern it.
                None if known.is_some_and(|stream| !wants(consumer, stream)) => {}
                None => return None,
                Some(cursor) if !cursor.interested && cursor.committed_epoch.is_none() => {}
                Some(cursor) => {
                    let position = cursor.position()?;
                    if least.is_none_or(|least| position.sequence < least.sequence) {
                        least = Some(position);
                    }
                }
            }
        }
        least
    }
}
