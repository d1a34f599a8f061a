//! What the core tells about itself.

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
        let mut stats = BrokerStats::default();
        let mut ids: Vec<&ConnId> = self.conns.keys().collect();
        ids.sort_unstable();
        for id in ids {
            let conn = &self.conns[id];
            let Some(identity) = &conn.identity else { continue };
            stats.connections.push(ConnectionStats {
                connection: id.0,
                client_id: identity.client_id.clone(),
                role: identity.role,
                pid: conn.pid,
            });
            for (number, subscription) in &conn.subscriptions {
                if let Subscription::Live { patterns, queue, .. } = subscription {
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
        for (id, stream) in &self.streams {
            let publisher = stream.publisher.and_then(|id| self.conns.get(&id));
            stats.streams.push(StreamStats {
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
        stats.streams.sort_by_key(|stream| stream.stream);
        for (name, consumer) in &self.consumers {
            stats.consumers.push(ConsumerStats {
                name: name.clone(),
                attached: consumer.member.is_some(),
                cursors: consumer
                    .cursors
                    .iter()
                    .filter(|(_, cursor)| cursor.interested)
                    .map(|(stream, cursor)| CursorStats {
                        stream: *stream,
                        committed: cursor.committed,
                        delivered: cursor.sent,
                        in_flight_bytes: cursor.in_flight_bytes(),
                        lag: self
                            .streams
                            .get(stream)
                            .map_or(0, |stream| stream.last().since(cursor.committed)),
                    })
                    .collect(),
            });
        }
        stats
    }
}
