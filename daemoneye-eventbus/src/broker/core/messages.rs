//! Control messages and their replies.

use bytes::BytesMut;
use daemoneye_lib::topics;

use super::conn::Subscription;
use super::requests::Verdict;
use super::{ConnId, Core};
use crate::event::Role;
use crate::rights;
use crate::wire::{Frame, MESSAGE_BYTES_MAX, MessageFrame, Undeliverable, UndeliverableCode};

impl Core {
    pub(super) fn message(&mut self, id: ConnId, mut message: MessageFrame, verdict: Verdict) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(identity) = &conn.identity else { return };
        let own_reply_topic = format!("{}{}", rights::REPLY_PREFIX, id.0);
        let is_reply = message.topic.as_str().starts_with(rights::REPLY_PREFIX);
        let allowed = match &message.reply_to {
            Some(topic) if topic.as_str() != own_reply_topic => {
                Err("replies are awaited at reply.<own connection>")
            }
            Some(_) if message.retained || is_reply => Err("only a request has a reply topic"),
            _ if message.retained && is_reply => Err("replies are not retained"),
            _ if message.retained => rights::may_retain(identity.role).and_then(|()| {
                rights::may_send(identity.role, &identity.client_id, &message.topic)
            }),
            _ => rights::may_send(identity.role, &identity.client_id, &message.topic),
        };
        let outcome = match allowed {
            Err(rule) => Err((UndeliverableCode::NotAllowed, rule)),
            Ok(()) if verdict != Verdict::Pass => {
                Err((UndeliverableCode::Limit, "too many requests in a short time"))
            }
            Ok(()) if message.payload.len() > MESSAGE_BYTES_MAX => {
                Err((UndeliverableCode::Limit, "the message is too long"))
            }
            Ok(()) if message.topic.as_str() == topics::BROKER_STATS => {
                self.answer_stats(id, message);
                return;
            }
            Ok(()) => self.pass_on(id, &mut message),
        };
        if let Err((code, reason)) = outcome
            && let Some(conn) = self.conns.get_mut(&id)
        {
            if code == UndeliverableCode::NotAllowed {
                tracing::warn!(client = conn.name(), topic = %message.topic, "refused: {reason}");
            }
            let frame = Frame::Undeliverable(Undeliverable {
                correlation: message.correlation,
                code,
                reason: reason.to_owned(),
                topic: message.topic,
            });
            conn.control(&frame, self.limits.control_bytes_max);
        }
    }

    /// The broker's own answer. Kept well below what a connection may leave unread, so that asking
    /// cannot end the asker.
    fn answer_stats(&mut self, id: ConnId, request: MessageFrame) {
        let Some(reply_to) = request.reply_to else { return };
        let stats = self.stats_within(MESSAGE_BYTES_MAX.min(self.limits.control_bytes_max / 4 * 3));
        // Made of strings and numbers, which always encode.
        let payload = serde_json::to_vec(&stats).unwrap_or_default().into();
        if let Some(conn) = self.conns.get_mut(&id) {
            let frame = Frame::Message(MessageFrame {
                subscription: 0,
                correlation: request.correlation,
                retained: false,
                topic: reply_to,
                reply_to: None,
                payload,
            });
            conn.control(&frame, self.limits.control_bytes_max);
        }
    }

    fn pass_on(
        &mut self,
        id: ConnId,
        message: &mut MessageFrame,
    ) -> Result<(), (UndeliverableCode, &'static str)> {
        // Those who are there get it as news.
        if std::mem::take(&mut message.retained) {
            self.retained.keep(message).map_err(|reason| (UndeliverableCode::Limit, reason))?;
        }
        let reached = self.deliver_message(message);
        if message.reply_to.is_none() {
            return Ok(());
        }
        if !reached {
            return Err((UndeliverableCode::NoResponder, "nobody answers on this topic"));
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.awaited.begin(message.correlation);
        }
        Ok(())
    }

    /// Returns whether it reached somebody who may answer.
    fn deliver_message(&mut self, message: &MessageFrame) -> bool {
        if let Some(number) = message.topic.as_str().strip_prefix(rights::REPLY_PREFIX) {
            let requester = number.parse().ok().and_then(|n| self.conns.get_mut(&ConnId(n)));
            // What was not asked for, or comes a second time, is nobody's: it could only fill the
            // queue of somebody else.
            if let Some(conn) = requester
                && conn.awaited.end(message.correlation)
            {
                let frame = Frame::Message(MessageFrame { subscription: 0, ..message.clone() });
                conn.control(&frame, self.limits.control_bytes_max);
            }
            return true;
        }
        let mut answerable = false;
        self.topics.subscribed(&message.topic, &mut self.route);
        for (id, number) in &self.route {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            let Some(Subscription::Live { queue, .. }) = conn.subscriptions.get_mut(number) else {
                continue;
            };
            let mut frame = BytesMut::new();
            Frame::Message(MessageFrame { subscription: *number, ..message.clone() })
                .encode(&mut frame);
            let bytes = frame.len();
            queue.push_message(frame.freeze(), bytes);
            conn.wake.notify_one();
            answerable |= conn.identity.as_ref().is_some_and(|i| i.role != Role::Subscriber);
        }
        answerable
    }
}
