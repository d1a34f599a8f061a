//! The topics events are published on, and which live subscriptions want them.
//!
//! A topic is matched against the subscriptions once, when the later of the two appears. After that
//! routing an event is an index into a list. Control messages, whose topics are not declared, are
//! matched one by one; the patterns stand in a tree for both.

use std::collections::HashMap;

use super::ConnId;
use super::trie::PatternTrie;
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

    fn iter(&self) -> impl Iterator<Item = u16> {
        (0..self.0.len() as u16 * 64).filter(|alias| self.contains(*alias))
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

/// A live subscription: its connection and its number there.
pub(crate) type LiveId = (ConnId, u32);

#[derive(Debug)]
struct Entry {
    topic: Topic,
    /// Those that want it, in order.
    live: Vec<LiveId>,
}

/// All topics ever declared by a publisher, numbered for the life of the broker, so that an
/// entry's alias means the same to every subscriber.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    entries: Vec<Entry>,
    by_name: HashMap<Topic, u16>,
    patterns: PatternTrie<LiveId>,
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

    /// A live subscription begins. The topics it wants of those there are have been selected.
    pub(crate) fn begin(&mut self, live: LiveId, patterns: &[TopicPattern], wanted: &TopicSet) {
        for pattern in patterns {
            self.patterns.insert(pattern, live);
        }
        for alias in wanted.iter() {
            self.route(alias, live);
        }
    }

    /// A live subscription ends.
    pub(crate) fn end(&mut self, live: LiveId, patterns: &[TopicPattern], wanted: &TopicSet) {
        for pattern in patterns {
            self.patterns.remove(pattern, live);
        }
        for alias in wanted.iter() {
            let routes = &mut self.entries[usize::from(alias)].live;
            if let Ok(at) = routes.binary_search(&live) {
                routes.remove(at);
            }
        }
    }

    /// Puts the live subscriptions whose patterns select `topic` into `found`, in order.
    pub(crate) fn subscribed(&self, topic: &Topic, found: &mut Vec<LiveId>) {
        self.patterns.select(topic, found);
    }

    pub(crate) fn route(&mut self, alias: u16, live: LiveId) {
        let routes = &mut self.entries[usize::from(alias)].live;
        if let Err(at) = routes.binary_search(&live) {
            routes.insert(at, live);
        }
    }

    pub(crate) fn live(&self, alias: u16) -> &[LiveId] {
        &self.entries[usize::from(alias)].live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_that_ends_leaves_nothing_behind() {
        let mut topics = Topics::default();
        let names: [Topic; 2] = ["events.a", "events.b"].map(|name| name.parse().unwrap());
        for name in &names {
            topics.intern(name).unwrap();
        }
        let patterns: [TopicPattern; 2] = ["events.*", "#"].map(|text| text.parse().unwrap());
        let mut wanted = TopicSet::default();
        topics.select(&patterns).into_iter().for_each(|alias| wanted.insert(alias));
        let (first, second) = ((ConnId(1), 7), (ConnId(2), 7));
        topics.begin(second, &patterns, &wanted);
        topics.begin(first, &patterns, &wanted);
        topics.end(first, &patterns, &wanted);
        let mut found = Vec::new();
        for (alias, name) in (0..).zip(&names) {
            assert_eq!(topics.live(alias), [second]);
            topics.subscribed(name, &mut found);
            assert_eq!(found, [second]);
        }
        topics.end(second, &patterns, &wanted);
        topics.subscribed(&names[0], &mut found);
        assert!(found.is_empty() && topics.live(0).is_empty());
    }
}
