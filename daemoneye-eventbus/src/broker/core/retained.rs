//! The last message of each topic that is kept for those who subscribe later.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::topic::{Topic, TopicPattern};
use crate::wire::{MESSAGE_BYTES_MAX, MessageFrame};

/// Topics with a message kept.
const TOPICS_MAX: usize = 64;
/// What all kept messages may hold together.
const BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// Kept until the broker ends, whoever leaves.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    messages: BTreeMap<Topic, MessageFrame>,
    bytes: usize,
}

impl Retained {
    /// Keeps `message` in place of what is kept of its topic; one without payload ends that.
    /// Returns what stands against it.
    pub(crate) fn keep(&mut self, message: &MessageFrame) -> Result<(), &'static str> {
        let before = self.messages.get(&message.topic).map(|kept| kept.payload.len());
        if message.payload.is_empty() {
            self.messages.remove(&message.topic);
            self.bytes -= before.unwrap_or_default();
            return Ok(());
        }
        if before.is_none() && self.messages.len() >= TOPICS_MAX {
            return Err("too many topics have a message retained");
        }
        let bytes = self.bytes - before.unwrap_or_default() + message.payload.len();
        if bytes > BYTES_MAX {
            return Err("the messages retained are too long together");
        }
        self.bytes = bytes;
        // A copy: as a slice it would keep a whole read buffer for as long as the broker lives.
        let payload = Bytes::copy_from_slice(&message.payload);
        let kept = MessageFrame { payload, retained: true, ..message.clone() };
        self.messages.insert(message.topic.clone(), kept);
        Ok(())
    }

    /// What `patterns` select of what is kept.
    pub(crate) fn select(&self, patterns: &[TopicPattern]) -> impl Iterator<Item = &MessageFrame> {
        self.messages
            .values()
            .filter(move |message| patterns.iter().any(|pattern| pattern.matches(&message.topic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(topic: &str, bytes: usize) -> MessageFrame {
        MessageFrame {
            subscription: 0,
            correlation: 0,
            retained: true,
            topic: topic.parse().unwrap(),
            reply_to: None,
            payload: vec![7; bytes].into(),
        }
    }

    fn lengths(retained: &Retained) -> Vec<usize> {
        let all = ["#".parse().unwrap()];
        retained.select(&all).map(|message| message.payload.len()).collect()
    }

    #[test]
    fn the_last_of_a_topic_is_kept() {
        let mut retained = Retained::default();
        for (topic, bytes) in [("control.a", 1), ("control.b", 2), ("control.a", 3)] {
            retained.keep(&message(topic, bytes)).unwrap();
        }
        assert_eq!((lengths(&retained), retained.bytes), (vec![3, 2], 5));
        retained.keep(&message("control.a", 0)).unwrap();
        retained.keep(&message("control.never", 0)).unwrap();
        assert_eq!((lengths(&retained), retained.bytes), (vec![2], 2));
    }

    #[test]
    fn topics_and_bytes_are_bounded() {
        let mut retained = Retained::default();
        for n in 0..TOPICS_MAX {
            retained.keep(&message(&format!("control.n{n}"), 1)).unwrap();
        }
        assert!(retained.keep(&message("control.more", 1)).is_err());
        retained.keep(&message("control.n0", 2)).expect("a topic that is kept already");
        let mut retained = Retained::default();
        for topic in ["control.a", "control.b", "control.c", "control.d"] {
            retained.keep(&message(topic, MESSAGE_BYTES_MAX)).unwrap();
        }
        assert!(retained.keep(&message("control.e", 1)).is_err());
        retained.keep(&message("control.a", 10)).unwrap();
        retained.keep(&message("control.e", MESSAGE_BYTES_MAX - 10)).unwrap();
        assert_eq!(retained.bytes, BYTES_MAX);
    }
}
