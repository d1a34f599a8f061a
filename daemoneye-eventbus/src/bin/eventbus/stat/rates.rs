//! Two looks, and what passed between them.

use daemoneye_eventbus::{
    BrokerStats, ConnectionStats, CursorStats, LiveStats, StreamStats, Traffic,
};
use serde::Serialize;
use serde_json::Value;

/// The newest look and the one before it.
pub(super) struct Looks {
    pub(super) now: BrokerStats,
    /// Of the same broker.
    before: Option<BrokerStats>,
}

/// What passed through connections, each second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct TrafficRates {
    pub(super) frames_in_per_s: f64,
    pub(super) bytes_in_per_s: f64,
    pub(super) events_in_per_s: f64,
    pub(super) frames_out_per_s: f64,
    pub(super) bytes_out_per_s: f64,
    pub(super) events_out_per_s: f64,
}

/// The rates of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct TotalRates {
    pub(super) over_ms: u64,
    #[serde(flatten)]
    pub(super) traffic: TrafficRates,
    pub(super) missed_per_s: f64,
}

impl Looks {
    pub(super) const fn new(first: BrokerStats) -> Self {
        Self { now: first, before: None }
    }

    pub(super) fn next(&mut self, look: BrokerStats) {
        let before = std::mem::replace(&mut self.now, look);
        // Another broker counts from zero.
        let same = before.pid == self.now.pid && before.uptime_ms < self.now.uptime_ms;
        self.before = same.then_some(before);
    }

    pub(super) fn total(&self) -> Option<TotalRates> {
        let before = self.before.as_ref()?;
        Some(TotalRates {
            over_ms: self.over_ms(before),
            traffic: self.traffic(self.now.traffic, before.traffic)?,
            missed_per_s: self.per_s(self.now.missed_total, before.missed_total)?,
        })
    }

    pub(super) fn connection(&self, row: &ConnectionStats) -> Option<TrafficRates> {
        let mut rows = self.before.as_ref()?.connections.iter();
        let before = rows.find(|before| before.connection == row.connection);
        self.traffic(row.traffic, before.map_or_else(Traffic::default, |row| row.traffic))
    }

    /// New events.
    pub(super) fn stream(&self, row: &StreamStats) -> Option<f64> {
        let mut rows = self.before.as_ref()?.streams.iter();
        let before = rows.find(|before| before.stream == row.stream);
        self.per_s(row.events_total, before.map_or(0, |row| row.events_total))
    }

    /// Sequences committed. One that was not there before is not compared with anything: it began
    /// where the stream was.
    pub(super) fn cursor(&self, consumer: &str, row: &CursorStats) -> Option<f64> {
        let mut consumers = self.before.as_ref()?.consumers.iter();
        let mut cursors = consumers.find(|before| before.name == consumer)?.cursors.iter();
        let before = cursors.find(|before| before.stream == row.stream)?;
        self.per_s(row.committed.0, before.committed.0)
    }

    /// Events and messages dropped.
    pub(super) fn live(&self, row: &LiveStats) -> Option<f64> {
        let mut rows = self.before.as_ref()?.live.iter();
        let before = rows.find(|before| {
            (before.connection, before.subscription) == (row.connection, row.subscription)
        });
        self.per_s(row.missed_total, before.map_or(0, |row| row.missed_total))
    }

    fn over_ms(&self, before: &BrokerStats) -> u64 {
        self.now.uptime_ms - before.uptime_ms
    }

    fn per_s(&self, now: u64, before: u64) -> Option<f64> {
        let seconds = self.over_ms(self.before.as_ref()?) as f64 / 1000.0;
        // A tenth is as exact as the clock of a look.
        Some((now.saturating_sub(before) as f64 / seconds * 10.0).round() / 10.0)
    }

    fn traffic(&self, now: Traffic, before: Traffic) -> Option<TrafficRates> {
        Some(TrafficRates {
            frames_in_per_s: self.per_s(now.frames_in_total, before.frames_in_total)?,
            bytes_in_per_s: self.per_s(now.bytes_in_total, before.bytes_in_total)?,
            events_in_per_s: self.per_s(now.events_in_total, before.events_in_total)?,
            frames_out_per_s: self.per_s(now.frames_out_total, before.frames_out_total)?,
            bytes_out_per_s: self.per_s(now.bytes_out_total, before.bytes_out_total)?,
            events_out_per_s: self.per_s(now.events_out_total, before.events_out_total)?,
        })
    }

    /// The newest look, with `rates` in every row that has some.
    pub(super) fn json(&self) -> serde_json::Result<Value> {
        let now = &self.now;
        let mut json = serde_json::to_value(now)?;
        put(&mut json, &self.total())?;
        for (at, row) in now.connections.iter().enumerate() {
            put(&mut json["connections"][at], &self.connection(row))?;
        }
        for (at, row) in now.streams.iter().enumerate() {
            put(&mut json["streams"][at], &named("events_per_s", self.stream(row)))?;
        }
        for (at, consumer) in now.consumers.iter().enumerate() {
            for (cursor_at, row) in consumer.cursors.iter().enumerate() {
                let rate = named("committed_per_s", self.cursor(&consumer.name, row));
                put(&mut json["consumers"][at]["cursors"][cursor_at], &rate)?;
            }
        }
        for (at, row) in now.live.iter().enumerate() {
            put(&mut json["live"][at], &named("missed_per_s", self.live(row)))?;
        }
        Ok(json)
    }
}

fn named(name: &str, rate: Option<f64>) -> Option<Value> {
    rate.map(|rate| serde_json::json!({ name: rate }))
}

fn put(row: &mut Value, rates: &Option<impl Serialize>) -> serde_json::Result<()> {
    if let Some(rates) = rates {
        row["rates"] = serde_json::to_value(rates)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use daemoneye_eventbus::{ConsumerStats, Role, Sequence, StreamId};

    use super::*;

    /// A broker with one of everything.
    pub(in crate::stat) fn look(uptime_ms: u64, count: u64) -> BrokerStats {
        let traffic = Traffic {
            frames_in_total: count,
            bytes_in_total: 100 * count,
            events_in_total: 10 * count,
            frames_out_total: 2 * count,
            bytes_out_total: 200 * count,
            events_out_total: 20 * count,
        };
        let stream = StreamId::from_bytes([0xab; 16]);
        BrokerStats {
            pid: 1,
            uptime_ms,
            credit_bytes: 4096,
            connections_total: 3,
            traffic,
            missed_total: 3 * count,
            connections: vec![ConnectionStats {
                connection: 1,
                client_id: "procmond".to_owned(),
                role: Role::Collector,
                pid: Some(4711),
                connected_ms: uptime_ms,
                control_bytes: 12,
                traffic,
            }],
            streams: vec![StreamStats {
                stream,
                publisher: Some("procmond".to_owned()),
                epoch: 1 << 32,
                last: Sequence(10 * count),
                acked: Sequence(9 * count),
                retained_bytes: 1024,
                events_total: 10 * count,
                duplicates_total: 0,
            }],
            consumers: vec![ConsumerStats {
                name: "store".to_owned(),
                attached: false,
                cursors: vec![CursorStats {
                    stream,
                    committed: Sequence(9 * count),
                    delivered: Sequence(10 * count),
                    in_flight_bytes: 500,
                    lag: count,
                }],
            }],
            live: vec![LiveStats {
                connection: 2,
                client_id: "watcher".to_owned(),
                subscription: 1,
                patterns: vec!["events.#".parse().unwrap()],
                queued_events: 5,
                queued_bytes: 900,
                missed_total: 3 * count,
            }],
            ..BrokerStats::default()
        }
    }

    #[test]
    fn rates_are_of_the_time_between_the_looks() {
        let mut looks = Looks::new(look(1000, 10));
        assert_eq!(looks.total(), None);
        assert!(looks.json().unwrap().get("rates").is_none());
        looks.next(look(3000, 20));
        let json = looks.json().unwrap();
        let total = &json["rates"];
        assert_eq!((&total["over_ms"], &total["missed_per_s"]), (&2000.into(), &15.0.into()));
        for rates in [total, &json["connections"][0]["rates"]] {
            let names =
                ["frames_in", "bytes_in", "events_in", "frames_out", "bytes_out", "events_out"];
            let got = names.map(|name| rates[format!("{name}_per_s")].as_f64().unwrap());
            assert_eq!(got, [5.0, 500.0, 50.0, 10.0, 1000.0, 100.0]);
        }
        assert_eq!(json["streams"][0]["rates"]["events_per_s"], 50.0);
        assert_eq!(json["consumers"][0]["cursors"][0]["rates"]["committed_per_s"], 45.0);
        assert_eq!(json["live"][0]["rates"]["missed_per_s"], 15.0);
        assert_eq!(json["consumers"][0]["cursors"][0]["lag"], 20, "the look itself is the newest");
    }

    #[test]
    fn another_broker_is_not_compared_with_this() {
        let mut looks = Looks::new(look(5000, 10));
        looks.next(look(1000, 20));
        assert_eq!(looks.total(), None);
        looks.next(look(2000, 30));
        assert!(looks.total().is_some());
        looks.next(BrokerStats { pid: 2, ..look(3000, 40) });
        assert_eq!(looks.total(), None);
    }

    #[test]
    fn who_is_new_has_come_from_nothing() {
        let mut looks =
            Looks::new(BrokerStats { connections: vec![], consumers: vec![], ..look(1000, 10) });
        looks.next(look(2000, 20));
        let now = &looks.now;
        assert_eq!(looks.connection(&now.connections[0]).unwrap().frames_in_per_s, 20.0);
        assert_eq!(looks.cursor("store", &now.consumers[0].cursors[0]), None);
    }
}
