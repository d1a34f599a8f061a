//! The gap events that delivery itself has to report.

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::stream::{Sequence, StreamId, wall_clock_ns};

/// Records of the log that cannot be read.
pub(super) fn damaged(first: Sequence, last: Sequence) -> Event {
    let detail = format!("records {first} to {last} of the log are damaged and cannot be read");
    Event::Gap(GapEvent {
        missing: Some(last.since(first.prev())),
        first_sequence: Some(first),
        last_sequence: Some(last),
        ..GapEvent::new(GapReason::LogDamaged, wall_clock_ns(), detail)
    })
}

/// A new stream begins because the log does not continue what consumers have of this one.
pub(super) fn replaced(stream: StreamId, committed: Option<Sequence>) -> Event {
    let consumers = match committed {
        Some(sequence) => format!("consumers have stored it up to {sequence}"),
        None => "consumers have seen a younger writer of it".to_owned(),
    };
    let detail = format!(
        "the log held stream {stream}, but {consumers}, which this log does not continue; what it \
         had not delivered follows in this stream and may repeat events of the other"
    );
    GapEvent::new(GapReason::LogReplaced, wall_clock_ns(), detail).into()
}
