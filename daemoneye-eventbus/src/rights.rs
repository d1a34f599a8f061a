//! Who may say what. The client checks before it sends, the broker on every message: the client's
//! check gives a good error early, the broker's is the one that counts.

use daemoneye_lib::topics;

use crate::event::Role;
use crate::topic::Topic;

/// Where requesters await replies: `reply.<connection number>`. Routed to that connection only;
/// no pattern sees it.
pub(crate) const REPLY_PREFIX: &str = "reply.";

/// The rule that forbids `role` to send a message to `topic`; `Ok` if none does.
pub(crate) fn may_send(role: Role, client_id: &str, topic: &Topic) -> Result<(), &'static str> {
    let topic = topic.as_str();
    let reply = topic.starts_with(REPLY_PREFIX);
    match role {
        Role::Agent if reply || topic.starts_with("control.") => Ok(()),
        Role::Agent => Err("the agent sends control.* and replies"),
        Role::Collector if reply || topic == "control.collector.registration" => Ok(()),
        Role::Collector if topic.strip_prefix("control.health.heartbeat.") == Some(client_id) => {
            Ok(())
        }
        Role::Collector => Err("a collector sends control.collector.registration, \
             control.health.heartbeat.<its own id> and replies; events are published with sequences"),
        Role::Subscriber if matches!(topic, topics::HEALTH_STATUS | topics::BROKER_STATS) => Ok(()),
        Role::Subscriber => {
            Err("a subscriber may only ask control.health.status and control.broker.stats")
        }
    }
}

/// The rule that forbids `role` to have a message kept for later subscribers; `Ok` if none does.
pub(crate) fn may_retain(role: Role) -> Result<(), &'static str> {
    match role {
        Role::Agent => Ok(()),
        Role::Collector | Role::Subscriber => Err("only what the agent says is retained"),
    }
}

/// The rule that forbids `role` to publish events on `topic`; `Ok` if none does.
pub(crate) fn may_publish(role: Role, topic: &Topic) -> Result<(), &'static str> {
    match role {
        Role::Collector if topic.as_str().starts_with("events.") => Ok(()),
        Role::Collector => Err("a collector publishes events.* only"),
        Role::Subscriber | Role::Agent => Err("only collectors publish events"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_rights() {
        use Role::{Agent, Collector, Subscriber};
        let send: &[(Role, &str, bool)] = &[
            (Agent, "control.collector.lifecycle", true),
            (Agent, "control.collector.procmond", true),
            (Agent, "control.health.status", true),
            (Agent, "reply.7", true),
            (Agent, "events.process.start", false),
            (Collector, "control.collector.registration", true),
            (Collector, "control.health.heartbeat.me", true),
            (Collector, "control.health.heartbeat.other", false),
            (Collector, "control.collector.lifecycle", false),
            (Collector, "control.collector.me", false),
            (Collector, "control.health.status", false),
            (Collector, "control.broker.stats", false),
            (Collector, "reply.7", true),
            (Collector, "events.process.start", false),
            (Subscriber, "control.health.status", true),
            (Subscriber, "control.broker.stats", true),
            (Subscriber, "control.collector.lifecycle", false),
            (Subscriber, "control.collector.me", false),
            (Subscriber, "control.health.heartbeat.me", false),
            (Subscriber, "reply.7", false),
            (Subscriber, "events.process.start", false),
        ];
        for (role, topic, allowed) in send {
            let verdict = may_send(*role, "me", &Topic::new(topic).unwrap());
            assert_eq!(verdict.is_ok(), *allowed, "{role:?} {topic}");
        }
        for (role, allowed) in [(Agent, true), (Collector, false), (Subscriber, false)] {
            assert_eq!(may_retain(role).is_ok(), allowed, "{role:?}");
        }
        let publish: &[(Role, &str, bool)] = &[
            (Collector, "events.process.start", true),
            (Collector, "control.collector.lifecycle", false),
            (Subscriber, "events.process.start", false),
            (Agent, "events.process.start", false),
        ];
        for (role, topic, allowed) in publish {
            let verdict = may_publish(*role, &Topic::new(topic).unwrap());
            assert_eq!(verdict.is_ok(), *allowed, "{role:?} {topic}");
        }
    }
}
