//! The chain from a process to the first one that is known.

use std::collections::{HashMap, VecDeque};

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{ProcessEvent, ProcessEventKind, ProcessKey};
use serde::Serialize;

use super::Tracker;

/// The most ancestors that are given of a process.
pub const ANCESTORS_MAX: usize = 32;

/// The most processes that have ended and are remembered as ancestors: a few MB.
const ENDED_MAX: usize = 16_384;

/// A process that another one descends from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Ancestor<'a> {
    /// Its pid.
    pub pid: u32,
    /// Its last name; `None` if nothing is known of it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a ByteString>,
    /// Which process.
    #[serde(rename = "process_key")]
    pub key: ProcessKey,
}

/// Processes that ended a while ago: whoever starts others and ends at once is still their
/// ancestor. The ones that ended last are kept, in bounded memory.
#[derive(Debug, Default)]
pub struct Departed {
    links: HashMap<ProcessKey, Link<ByteString>>,
    /// The one that ended first is the first.
    order: VecDeque<ProcessKey>,
}

/// What a chain needs to know of a process.
#[derive(Clone, Copy, Debug)]
struct Link<Name> {
    name: Option<Name>,
    parent: Option<ProcessKey>,
}

impl Tracker {
    /// What the living process with this pid descends from, its parent first, at most
    /// [`ANCESTORS_MAX`] of them. Where one has ended, the chain ends with its key.
    #[must_use]
    pub fn ancestry(&self, pid: u32) -> Vec<Ancestor<'_>> {
        self.get(pid).map(|event| chain(event, |key| self.link(key))).unwrap_or_default()
    }

    /// The same of an event's process, which may have ended, through ancestors that have.
    #[must_use]
    pub fn ancestry_of<'a>(
        &'a self,
        event: &ProcessEvent,
        departed: &'a Departed,
    ) -> Vec<Ancestor<'a>> {
        chain(event, |key| self.link(key).or_else(|| departed.link(key)))
    }

    fn link(&self, key: ProcessKey) -> Option<Link<&ByteString>> {
        // Another with its pid is not it.
        let start = self.get(key.pid).filter(|start| start.key == key)?;
        Some(Link { name: start.name.as_ref(), parent: start.parent_key })
    }
}

impl Departed {
    /// Takes up whose ends are among these events. What [`Tracker::observe`] gives is taken up
    /// before it is asked for ancestors: the table has let go of them by then.
    pub fn note(&mut self, events: &[Event]) {
        for event in events {
            let Event::Process(stop) = event else { continue };
            if !matches!(stop.kind, ProcessEventKind::Stop(_)) {
                continue;
            }
            let link = Link { name: stop.name.clone(), parent: stop.parent_key };
            if self.links.insert(stop.key, link).is_none() {
                self.order.push_back(stop.key);
            }
            if self.order.len() > ENDED_MAX
                && let Some(first) = self.order.pop_front()
            {
                self.links.remove(&first);
            }
        }
    }

    fn link(&self, key: ProcessKey) -> Option<Link<&ByteString>> {
        let Link { name, parent } = self.links.get(&key)?;
        Some(Link { name: name.as_ref(), parent: *parent })
    }
}

fn chain<'a>(
    event: &ProcessEvent,
    link: impl Fn(ProcessKey) -> Option<Link<&'a ByteString>>,
) -> Vec<Ancestor<'a>> {
    let mut ancestors: Vec<Ancestor<'a>> = Vec::new();
    let mut next = event.parent_key;
    while let Some(key) = next
        && ancestors.len() < ANCESTORS_MAX
        // What an earlier run left may say anything.
        && key != event.key
        && ancestors.iter().all(|known| known.key != key)
    {
        let link = link(key);
        ancestors.push(Ancestor { pid: key.pid, name: link.and_then(|link| link.name), key });
        next = link.and_then(|link| link.parent);
    }
    ancestors
}

#[cfg(test)]
mod tests;
