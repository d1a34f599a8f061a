//! What the core tells about itself.

use std::time::Instant;

use super::conn::Subscription;
use super::{ConnId, Core};
use crate::broker::stats::{
    BrokerStats, ConnectionStats, ConsumerStats, CursorStats, LiveStats, PublisherInfo, StreamStats,
};

impl Core {
    pub(crate) fn publishers(&self) -> Vec<PublisherInfo> {
        let mut publishers: Vec<PublisherInfo> = self
            .conns
            .values()
            .filter_map(|conn| {
                let stream = conn.publishing?;
                Some(PublisherInfo {
                    client_id: conn.name().to_owned(),
                    stream,
                    epoch: self.streams.get(&stream)?.epoch,
                    pid: conn.pid,
                })
            })
            .collect();
        publishers.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        publishers
    }

    pub(crate) fn stats(&self) -> BrokerStats {
        self.stats_within(usize::MAX)
    }

    /// The look, with as many rows as fit into about `bytes_max` bytes of JSON. What people ask
    /// for most comes first.
    pub(crate) fn stats_within(&self, bytes_max: usize) -> BrokerStats {
        let mut room = Room { bytes: bytes_max, left_out: 0 };
        let mut stats = BrokerStats {
            pid: std::process::id(),
            uptime_ms: ms_since(self.begun),
            credit_bytes: self.limits.credit_bytes,
            connections_total: self.conns_total,
            traffic: self.traffic_gone,
            missed_total: self.missed_gone,
            refused: self.refused.clone(),
            ended: self.ended.clone(),
            consumers: self.consumer_stats(&mut room),
            streams: self.stream_stats(&mut room),
            ..BrokerStats::default()
        };
        let mut ids: Vec<&ConnId> = self.conns.keys().collect();
        ids.sort_unstable();
        for id in ids {
            let conn = &self.conns[id];
            stats.traffic += conn.traffic;
            let Some(identity) = &conn.identity else { continue };
            if room.takes(CONNECTION_BYTES) {
                stats.connections.push(ConnectionStats {
                    connection: id.0,
                    client_id: identity.client_id.clone(),
                    role: identity.role,
                    pid: conn.pid,
                    connected_ms: ms_since(conn.since),
                    control_bytes: conn.control.len(),
                    traffic: conn.traffic,
                });
            }
            for (number, subscription) in &conn.subscriptions {
                let Subscription::Live { patterns, queue, .. } = subscription else { continue };
                stats.missed_total += queue.missed_total();
                let names: usize = patterns.iter().map(|pattern| pattern.as_str().len() + 3).sum();
                if room.takes(LIVE_BYTES + names) {
                    stats.live.push(LiveStats {
                        connection: id.0,
                        client_id: identity.client_id.clone(),
                        subscription: *number,
                        patterns: patterns.clone(),
                        queued_events: queue.count(),
                        queued_bytes: queue.bytes(),
                        missed_total: queue.missed_total(),
                    });
                }
            }
        }
        stats.left_out = room.left_out;
        stats
    }

    fn stream_stats(&self, room: &mut Room) -> Vec<StreamStats> {
        let mut streams = Vec::new();
        for (id, stream) in &self.streams {
            if room.takes(STREAM_BYTES) {
                let publisher = stream.publisher.and_then(|id| self.conns.get(&id));
                streams.push(StreamStats {
                    stream: *id,
                    publisher: publisher.map(|conn| conn.name().to_owned()),
                    epoch: stream.epoch.to_u64(),
                    last: stream.last(),
                    acked: stream.acked,
                    retained_bytes: stream.retained_bytes,
                    events_total: stream.entries_total,
                    duplicates_total: stream.duplicates_total,
                });
            }
        }
        streams.sort_by_key(|stream| stream.stream);
        streams
    }

    fn consumer_stats(&self, room: &mut Room) -> Vec<ConsumerStats> {
        let mut consumers = Vec::new();
        for (name, consumer) in &self.consumers {
            if !room.takes(CONSUMER_BYTES) {
                continue;
            }
            let mut cursors = Vec::new();
            for (id, cursor) in &consumer.cursors {
                if cursor.interested && room.takes(CURSOR_BYTES) {
                    let stream = self.streams.get(id);
                    cursors.push(CursorStats {
                        stream: *id,
                        committed: cursor.committed,
                        delivered: cursor.sent,
                        in_flight_bytes: cursor.in_flight_bytes(),
                        lag: stream.map_or(0, |stream| stream.last().since(cursor.committed)),
                    });
                }
            }
            consumers.push(ConsumerStats {
                name: name.clone(),
                attached: consumer.member.is_some(),
                cursors,
            });
        }
        consumers
    }
}

/// The most bytes of JSON that a row of each list takes; of a live one, its patterns apart.
pub(super) const CONNECTION_BYTES: usize = 640;
pub(super) const STREAM_BYTES: usize = 448;
pub(super) const CONSUMER_BYTES: usize = 160;
pub(super) const CURSOR_BYTES: usize = 256;
pub(super) const LIVE_BYTES: usize = 320;

/// What is left of the room for rows.
struct Room {
    bytes: usize,
    left_out: u64,
}

impl Room {
    /// Whether a row still fits. After the first that does not, none of the kind is likely to, and
    /// a smaller one may.
    fn takes(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.bytes;
        if fits {
            self.bytes -= bytes;
        } else {
            self.left_out += 1;
        }
        fits
    }
}

fn ms_since(instant: Instant) -> u64 {
    u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX)
}
