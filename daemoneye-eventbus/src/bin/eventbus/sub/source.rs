//! Where what is printed comes from: a subscription, and the next when it has ended.

use std::collections::HashMap;
use std::io::Write;

use daemoneye_eventbus::{
    Client, CloseReason, Committed, Delivered, Delivery, DurableSubscription, LiveItem,
    LiveOptions, LiveSubscription, Origin, Role, StreamId, SubscribeError,
};
use tokio::time::{Instant, sleep_until};

use super::line::Printer;
use super::{Done, SubArgs};
use crate::connect::Bus;
use crate::failure::Failure;
use crate::stop::Stop;

/// See the module.
pub(super) struct Source<'a> {
    bus: &'a Bus,
    args: &'a SubArgs,
    connection: Option<(Client, Subscription)>,
    /// What has been printed of each stream: a durable consumer tells the broker when it comes
    /// again, for another broker does not remember.
    printed: HashMap<StreamId, Committed>,
    may_retry: bool,
}

enum Subscription {
    Live(LiveSubscription),
    Durable(DurableSubscription),
}

enum Item {
    Live(LiveItem),
    Delivery(Delivery),
}

impl Subscription {
    fn try_next(&mut self) -> Option<Item> {
        match self {
            Self::Live(live) => live.try_next().map(Item::Live),
            Self::Durable(durable) => durable.try_next().map(Item::Delivery),
        }
    }

    /// `None` once the connection has ended and everything is taken. Cancel-safe.
    async fn next(&mut self) -> Option<Item> {
        match self {
            Self::Live(live) => live.next().await.map(Item::Live),
            Self::Durable(durable) => durable.next().await.map(Item::Delivery),
        }
    }
}

/// Why printing has ended.
pub(super) enum Ended {
    Done(Done),
    Closed(CloseReason),
}

impl<'a> Source<'a> {
    pub(super) fn new(bus: &'a Bus, args: &'a SubArgs) -> Self {
        Self { bus, args, connection: None, printed: HashMap::new(), may_retry: false }
    }

    /// Whether the last failure to connect is one that time may mend.
    pub(super) const fn may_retry(&self) -> bool {
        self.may_retry
    }

    /// Connects and subscribes.
    pub(super) async fn connect(&mut self) -> Result<(), Failure> {
        self.connection = None;
        let options = self.bus.client(&self.args.id, Role::Subscriber);
        let client = Client::connect(&self.bus.socket, options).await.map_err(|error| {
            self.may_retry = error.may_retry();
            Failure::from(error)
        })?;
        let patterns = &self.args.patterns;
        let subscribed = match &self.args.durable {
            None => {
                let options = LiveOptions {
                    max_bytes: self.args.queue_bytes,
                    max_count: self.args.queue_events,
                };
                client.subscribe(patterns, options).await.map(Subscription::Live)
            }
            Some(name) => {
                let positions = self.printed.iter().map(|(stream, at)| (*stream, *at)).collect();
                let subscribed = client.subscribe_durable(name, patterns, positions).await;
                subscribed.map(Subscription::Durable)
            }
        };
        let subscription = subscribed.map_err(|error| {
            self.may_retry = match &error {
                SubscribeError::Refused { retry, .. } => *retry,
                SubscribeError::Disconnected(gone) => gone.0.may_retry(),
                _ => false,
            };
            Failure::from(error)
        })?;
        self.connection = Some((client, subscription));
        Ok(())
    }

    /// Prints until there is a reason to end. What comes while nothing more is at hand is printed
    /// at once.
    pub(super) async fn print<W: Write>(
        &mut self,
        printer: &mut Printer<W>,
        stop: &mut Stop,
        deadline: Instant,
    ) -> Result<Ended, Failure> {
        let Some((client, subscription)) = &mut self.connection else {
            return Ok(Ended::Closed(CloseReason::Done));
        };
        loop {
            let item = match subscription.try_next() {
                Some(item) => item,
                None => {
                    printer.flush()?;
                    tokio::select! {
                        item = subscription.next() => match item {
                            Some(item) => item,
                            None => return Ok(Ended::Closed(client.closed().await)),
                        },
                        () = stop.asked() => return Ok(Ended::Done(Done::Asked)),
                        () = sleep_until(deadline) => return Ok(Ended::Done(Done::TimedOut)),
                    }
                }
            };
            match item {
                Item::Live(item) => print_live(item, printer)?,
                Item::Delivery(delivery) => {
                    let stream = delivery.stream;
                    let at = print_delivery(delivery, self.printed.get(&stream), printer)?;
                    // Only what is out of our hands is committed.
                    printer.flush()?;
                    self.printed.insert(stream, at);
                    if let Subscription::Durable(durable) = subscription {
                        // Fails when the connection has ended: then the next one is told.
                        let _ = durable.commit(stream, at.sequence, at.epoch);
                    }
                }
            }
            let done = if printer.is_done() {
                Done::Counted
            } else if stop.is_asked() {
                Done::Asked
            } else if Instant::now() >= deadline {
                Done::TimedOut
            } else {
                continue;
            };
            printer.flush()?;
            return Ok(Ended::Done(done));
        }
    }

    /// Takes leave of the broker: the last commits are on their way then.
    pub(super) async fn leave(&mut self) {
        if let Some((client, subscription)) = self.connection.take() {
            if let (Subscription::Durable(durable), true) = (subscription, self.args.forget) {
                durable.forget();
            }
            client.goodbye().await;
        }
    }
}

fn print_live<W: Write>(item: LiveItem, printer: &mut Printer<W>) -> Result<(), Failure> {
    match item {
        LiveItem::Event(event) => printer.event(&event),
        LiveItem::Message(message) => printer.message(&message),
        LiveItem::Missed { count } => printer.missed(Some(count)),
    }
}

/// Prints what is not printed yet. Returns how far that goes: where as many as were wanted are
/// printed, the rest stays to be delivered again.
fn print_delivery<W: Write>(
    delivery: Delivery,
    printed: Option<&Committed>,
    printer: &mut Printer<W>,
) -> Result<Committed, Failure> {
    let Delivery { stream, epoch, after, through, entries } = delivery;
    let before = printed.map_or(after, |at| at.sequence);
    if after > before {
        // Gone for good: their log has lost or given up these.
        printer.missed(Some(after.since(before)))?;
    }
    for entry in entries {
        if entry.sequence <= before {
            continue;
        }
        let sequence = entry.sequence;
        printer.event(&Delivered {
            origin: Origin { stream, epoch, sequence, span: entry.span },
            topic: entry.topic,
            timestamp_ns: entry.timestamp_ns,
            payload: entry.payload,
        })?;
        if printer.is_done() {
            return Ok(Committed { sequence, epoch });
        }
    }
    Ok(Committed { sequence: through, epoch })
}
