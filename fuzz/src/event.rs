//! Events, as they stand in the log and travel over the bus.

use daemoneye_lib::models::event::{EVENT_BYTES_MAX, Event};

use crate::allocations::bounded;

pub fn event(data: &[u8]) {
    let decoded = bounded(2 * EVENT_BYTES_MAX, || Event::decode(data));
    match decoded {
        Ok(event) => {
            let bytes = event.encode();
            assert!(bytes.len() <= data.len(), "an event has no shorter form than ours");
            let again = Event::decode(&bytes).expect("what we encode can be decoded");
            assert_eq!(event, again);
            serde_json::to_string(&event).expect("an event can be shown");
            assert!(
                daemoneye_lib::models::event::EventKind::from_u8(event.kind().as_u8()).is_some()
            );
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
        }
    }
}
