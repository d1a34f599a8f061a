//! Patterns as a tree of segments, so that finding those that select a topic costs the same
//! however many there are.

use std::collections::{BTreeSet, HashMap};

use crate::topic::{Topic, TopicPattern};

/// Patterns, each with the holders that have it. A topic of `n` segments leads to at most
/// `2^(n+1) - 1` nodes, and `n` is at most 8; a few patterns of a usual shape lead to three or four.
#[derive(Debug)]
pub(crate) struct PatternTrie<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    named: HashMap<Box<str>, Node<T>>,
    /// Behind `*`.
    any: Option<Box<Node<T>>>,
    /// Holders of the pattern that ends here.
    here: BTreeSet<T>,
    /// Holders of the pattern that goes on with `#`.
    rest: BTreeSet<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { named: HashMap::new(), any: None, here: BTreeSet::new(), rest: BTreeSet::new() }
    }
}

impl<T> Default for PatternTrie<T> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<T: Ord + Copy> PatternTrie<T> {
    pub(crate) fn insert(&mut self, pattern: &TopicPattern, holder: T) {
        let mut node = &mut self.root;
        for segment in pattern.as_str().split('.') {
            node = match segment {
                "#" => {
                    node.rest.insert(holder);
                    return;
                }
                "*" => node.any.get_or_insert_default(),
                name => node.named.entry(name.into()).or_default(),
            };
        }
        node.here.insert(holder);
    }

    /// Takes a holder's pattern out, and the nodes that only it needed.
    pub(crate) fn remove(&mut self, pattern: &TopicPattern, holder: T) {
        self.root.remove(pattern.as_str().split('.'), &holder);
    }

    /// Puts the holders of every pattern that selects `topic` into `found`, in order and each once.
    pub(crate) fn select(&self, topic: &Topic, found: &mut Vec<T>) {
        found.clear();
        self.root.walk(topic.as_str().split('.'), &mut |holders| found.extend(holders));
        found.sort_unstable();
        found.dedup();
    }
}

impl<T: Ord> Node<T> {
    fn remove(&mut self, mut segments: std::str::Split<'_, char>, holder: &T) {
        match segments.next() {
            None => {
                self.here.remove(holder);
            }
            Some("#") => {
                self.rest.remove(holder);
            }
            Some("*") => {
                if let Some(next) = &mut self.any {
                    next.remove(segments, holder);
                    if next.is_empty() {
                        self.any = None;
                    }
                }
            }
            Some(name) => {
                if let Some(next) = self.named.get_mut(name) {
                    next.remove(segments, holder);
                    if next.is_empty() {
                        self.named.remove(name);
                    }
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.named.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    /// Calls `each` once for every node that the topic leads to, with the holders it selects there.
    fn walk<'a>(
        &'a self,
        mut segments: std::str::Split<'_, char>,
        each: &mut impl FnMut(&'a BTreeSet<T>),
    ) {
        let Some(segment) = segments.next() else {
            each(&self.here);
            return;
        };
        each(&self.rest);
        if let Some(next) = self.named.get(segment) {
            next.walk(segments.clone(), each);
        }
        if let Some(next) = &self.any {
            next.walk(segments, each);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> TopicPattern {
        text.parse().unwrap()
    }

    fn topic(text: &str) -> Topic {
        text.parse().unwrap()
    }

    fn selected(trie: &PatternTrie<u32>, text: &str) -> Vec<u32> {
        let mut found = vec![99];
        trie.select(&topic(text), &mut found);
        found
    }

    #[test]
    fn a_holder_is_found_once_by_any_of_its_patterns() {
        let mut trie = PatternTrie::default();
        for (text, holder) in [("a.b", 2), ("a.*", 2), ("#", 1), ("a.b.#", 3), ("*.*.c", 4)] {
            trie.insert(&pattern(text), holder);
        }
        assert_eq!(selected(&trie, "a.b"), [1, 2]);
        assert_eq!(selected(&trie, "a.b.c"), [1, 3, 4]);
        assert_eq!(selected(&trie, "x"), [1]);
    }

    fn visited(trie: &PatternTrie<u32>, text: &str) -> usize {
        let mut count = 0;
        trie.root.walk(topic(text).as_str().split('.'), &mut |_| count += 1);
        count
    }

    /// Counted, not timed: with 10,000 subscriptions a topic is looked up as with 10.
    #[test]
    fn the_cost_does_not_depend_on_the_number_of_subscriptions() {
        let with = |subscriptions: u32| {
            let mut trie = PatternTrie::default();
            for n in 0..subscriptions {
                let number = n / 4;
                let text = match n % 4 {
                    0 => format!("control.collector.c{number}"),
                    1 => format!("events.kind{number}.*"),
                    2 => format!("*.kind{number}.start"),
                    _ => format!("control.health.c{number}.#"),
                };
                trie.insert(&pattern(&text), n);
            }
            trie
        };
        let (few, many) = (with(10), with(10_000));
        for text in ["control.collector.c1", "events.kind1.start", "control.health.c1.x", "x"] {
            let cost = visited(&few, text);
            assert_eq!(visited(&many, text), cost, "{text}");
            assert!(cost <= 7, "{text}: {cost}");
            assert_eq!(selected(&many, text), selected(&few, text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_selects_what_the_patterns_select(
            patterns in prop::collection::vec(("(([ab]|\\*)\\.){0,3}([ab]|\\*|#)", 0_u32..8), 0..24),
            gone in prop::collection::vec(any::<bool>(), 24),
            text in "([ab]\\.){0,4}[ab]",
        ) {
            let mut trie = PatternTrie::default();
            for (text, holder) in &patterns {
                trie.insert(&pattern(text), *holder);
            }
            let mut kept: BTreeSet<_> = patterns.iter().cloned().collect();
            for (it, gone) in patterns.iter().zip(&gone) {
                if *gone && kept.remove(it) {
                    trie.remove(&pattern(&it.0), it.1);
                }
            }
            let expected: BTreeSet<u32> = kept
                .iter()
                .filter(|(it, _)| pattern(it).matches(&topic(&text)))
                .map(|(_, holder)| *holder)
                .collect();
            prop_assert_eq!(selected(&trie, &text), expected.into_iter().collect::<Vec<_>>());
            for (it, holder) in kept {
                trie.remove(&pattern(&it), holder);
            }
            prop_assert!(trie.root.is_empty(), "nodes are left behind");
        }
    }
}
