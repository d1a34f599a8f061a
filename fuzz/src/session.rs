//! Peers that send whatever they like, against the broker's decisions, beside a publisher, two
//! durable consumers and a live subscriber that behave. What the strangers do must cost these
//! nothing: their events arrive complete and in order, nothing is acknowledged that one of the
//! consumers has not committed, no queue outgrows its bound, and when the strangers are gone
//! everything is delivered.

mod stranger;
mod well_behaved;

use std::time::Duration;

use daemoneye_eventbus::fuzzing::Decisions;
use daemoneye_eventbus::wire::ALIASES_MAX;
use daemoneye_eventbus::{BrokerOptions, BrokerStats};

use self::stranger::Stranger;
use self::well_behaved::{LiveReader, Publisher, STORES, Store, Truth};
use crate::allocations::bounded;
use crate::input::Input;

const STRANGERS_MAX: usize = 4;
/// What all declarations together and a last word may add to the control frames.
const DECLARATIONS_BYTES: usize = ALIASES_MAX as usize * 267 + 2048;

fn options() -> BrokerOptions {
    BrokerOptions {
        credit_bytes: 2000,
        in_flight_bytes: 1000,
        frame_bytes_max: 4096,
        subscriptions_max: 4,
        // Less than the live subscriber asks for.
        queue_bytes_max: 1500,
        control_bytes_max: 4096,
        request_rate: 100,
        request_burst: 20,
        ..BrokerOptions::new("no socket")
    }
}

pub fn session(data: &[u8]) {
    bounded((1 << 20) + 4 * data.len(), || run(data));
}

fn run(data: &[u8]) {
    let options = options();
    let mut bus = Decisions::new(&options);
    let mut truth = Truth::new(data);
    let mut stores = [0, 1].map(|which| Store::attach(&mut bus, &truth, which, false));
    let mut live = LiveReader::attach(&mut bus);
    let mut publisher = Publisher::connect(&mut bus, &truth, 0);
    let mut strangers: Vec<Stranger> = Vec::new();
    let mut now = Duration::ZERO;
    let mut input = Input::new(data);
    while !input.is_done() {
        match input.u8() % 16 {
            0 if strangers.len() < STRANGERS_MAX => strangers.push(Stranger::new(&mut bus)),
            0..8 if !strangers.is_empty() => {
                let at = input.below(strangers.len());
                if strangers[at].act(&mut bus, &mut input) {
                    strangers.remove(at);
                }
            }
            8 | 9 => publisher.publish(&mut bus, &mut truth, input.below(8), &options),
            10 => publisher.read(&mut bus, &truth),
            11 => one_of(&mut stores, &mut input).read(&mut bus, &truth),
            12 => {
                let store = one_of(&mut stores, &mut input);
                store.commit(&mut bus, &mut truth, input.below(4));
            }
            13 => live.read(&mut bus, &truth),
            14 => match input.u8() % 4 {
                0 => {
                    let which = input.below(stores.len());
                    stores[which].leave(&mut bus);
                    stores[which] =
                        Store::attach(&mut bus, &truth, which, input.u8().is_multiple_of(2));
                }
                1 => {
                    let half_open = input.u8().is_multiple_of(2);
                    if !half_open {
                        publisher.leave(&mut bus);
                    }
                    truth.reopen();
                    let next = Publisher::connect(&mut bus, &truth, publisher.acked());
                    if half_open {
                        publisher.is_superseded(&mut bus);
                    }
                    publisher = next;
                }
                _ => forget_absent(&mut bus),
            },
            _ => {
                now += Duration::from_millis(input.number(1));
                bus.set_time(now);
            }
        }
        check_bounds(&bus.stats(), &options);
    }

    // Without the strangers and whom they have brought, all is well.
    for stranger in strangers {
        stranger.leave(&mut bus);
    }
    forget_absent(&mut bus);
    while publisher.acked() < truth.last() {
        let moved = |publisher: &Publisher, stores: &[Store; 2]| {
            (publisher.acked(), publisher.sent(), stores.each_ref().map(Store::committed))
        };
        let before = moved(&publisher, &stores);
        publisher.publish(&mut bus, &mut truth, 0, &options);
        for store in &mut stores {
            store.read(&mut bus, &truth);
            store.commit(&mut bus, &mut truth, 0);
        }
        publisher.read(&mut bus, &truth);
        let after = moved(&publisher, &stores);
        assert_ne!(before, after, "nothing moves any more, of {}", truth.last());
    }
    live.read(&mut bus, &truth);
    live.has_seen_or_missed(&truth);
    check_bounds(&bus.stats(), &options);
    bus.drain();
    publisher.hears_goodbye(&mut bus);
    for store in stores {
        store.hears_goodbye(&mut bus);
    }
    live.hears_goodbye(&mut bus);
    assert!(bus.stats().connections.is_empty(), "everybody has gone");
}

fn one_of<'a>(stores: &'a mut [Store; 2], input: &mut Input<'_>) -> &'a mut Store {
    &mut stores[input.below(2)]
}

/// The host has those forgotten that strangers have left behind.
fn forget_absent(bus: &mut Decisions) {
    for consumer in bus.stats().consumers {
        if !STORES.contains(&&*consumer.name) && !consumer.attached {
            bus.forget_consumer(&consumer.name).expect("it is absent");
        }
    }
}

fn check_bounds(stats: &BrokerStats, options: &BrokerOptions) {
    for connection in &stats.connections {
        let queued: usize = stats
            .live
            .iter()
            .filter(|live| live.connection == connection.connection)
            .map(|live| live.queued_bytes)
            .sum();
        assert!(queued <= options.queue_bytes_max, "{connection:?} has {queued} bytes queued");
        let control_max = options.control_bytes_max + DECLARATIONS_BYTES;
        assert!(connection.control_bytes <= control_max, "{connection:?}");
    }
    for stream in &stats.streams {
        // A single batch may be larger than the credit, and has come in one frame.
        let held_max = options.credit_bytes.max(options.frame_bytes_max as u64);
        assert!(stream.retained_bytes <= held_max, "{stream:?}");
        assert!(stream.acked <= stream.last, "{stream:?}");
    }
    for consumer in &stats.consumers {
        for cursor in &consumer.cursors {
            assert!(cursor.committed <= cursor.delivered, "{cursor:?}");
            let in_flight_max = options.in_flight_bytes + options.frame_bytes_max + 64;
            assert!(cursor.in_flight_bytes <= in_flight_max, "{cursor:?}");
        }
    }
}
