//! The topics events are published on, and which live subscriptions want them.
//!
//! A topic is matched against a subscription once, when the later of the two appears. After that
//! routing an event is an index into a list.

use std::collections::HashMap;

use super::ConnId;
use crate::topic::{Topic, TopicPattern};
use crate::wire::ALIASES_MAX;

/// A set of topic numbers.
#[derive(Debug, Default, Clone)]
pub(crate) struct TopicSet(Vec<u64>);

impl TopicSet {
    pub(crate) fn insert(&mut self, alias: u16) {
        let word = usize::from(alias / 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (alias % 64);
    }

    pub(crate) fn contains(&self, alias: u16) -> bool {
        self.0.get(usize::from(alias / 64)).is_some_and(|word| word & (1 << (alias % 64)) != 0)
    }
}

/// The distinct topics of one batch. One is the usual case and needs no allocation.
#[derive(Debug, Clone)]
pub(crate) struct BatchTopics {
    first: u16,
    others: Vec<u16>,
}

impl BatchTopics {
    pub(crate) fn new(first: u16) -> Self {
        Self { first, others: Vec::new() }
    }

    pub(crate) fn insert(&mut self, alias: u16) {
        if alias != self.first && !self.others.contains(&alias) {
            self.others.push(alias);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    /// The topic, if there is only one.
    pub(crate) fn single(&self) -> Option<u16> {
        self.others.is_empty().then_some(self.first)
    }
}

#[derive(Debug)]
struct Entry {
    topic: Topic,
    live: Vec<(ConnId, u32)>,
}

/// All topics ever declared by a publisher, numbered for the life of the broker, so that an
/// entry's alias means the same to every subscriber.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    entries: Vec<Entry>,
    by_name: HashMap<Topic, u16>,
}

/// The numbers are used up.
#[derive(Debug)]
pub(crate) struct TopicsFull;

impl Topics {
    /// The topic's number; the flag says that it is new.
    pub(crate) fn intern(&mut self, topic: &Topic) -> Result<(u16, bool), TopicsFull> {
        if let Some(alias) = self.by_name.get(topic) {
            return Ok((*alias, false));
        }
        let alias = u16::try_from(self.entries.len()).map_err(|_| TopicsFull)?;
        if alias >= ALIASES_MAX {
            return Err(TopicsFull);
        }
        self.entries.push(Entry { topic: topic.clone(), live: Vec::new() });
        self.by_name.insert(topic.clone(), alias);
        Ok((alias, true))
    }

    pub(crate) fn name(&self, alias: u16) -> &Topic {
        &self.entries[usize::from(alias)].topic
    }

    /// The numbers of all topics that one of `patterns` selects.
    pub(crate) fn select(&self, patterns: &[TopicPattern]) -> Vec<u16> {
        (0..self.entries.len() as u16)
            .filter(|alias| patterns.iter().any(|pattern| pattern.matches(self.name(*alias))))
            .collect()
    }

    pub(crate) fn route(&mut self, alias: u16, to: (ConnId, u32)) {
        self.entries[usize::from(alias)].live.push(to);
    }

    pub(crate) fn unroute(&mut self, gone: impl Fn(&(ConnId, u32)) -> bool) {
        for entry in &mut self.entries {
            entry.live.retain(|route| !gone(route));
        }
    }

    pub(crate) fn live(&self, alias: u16) -> &[(ConnId, u32)] {
        &self.entries[usize::from(alias)].live
    }
}
