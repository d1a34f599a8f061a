//! The store as a durable consumer of the bus.

use std::sync::Arc;
use std::time::Duration;

use daemoneye_eventbus::{
    Broker, Client, ClientOptions, Committed, DurableSubscription, Role, TopicPattern,
};
use daemoneye_lib::topics;
use tracing::error;

use super::{AgentError, EVENT_STORE};
use crate::cli::chain;
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreCommit, StoreHandle};

/// The pause before our own connection is made again. It should never break.
const REATTACH: Duration = Duration::from_millis(500);

/// How many sequences reached the broker and are not committed by the store.
pub(super) fn lag(broker: &Broker) -> u64 {
    let stats = broker.stats();
    let consumers = stats.consumers.iter().filter(|consumer| consumer.name == EVENT_STORE);
    consumers.flat_map(|consumer| &consumer.cursors).map(|cursor| cursor.lag).sum()
}

/// A store that is attached to the broker.
pub(super) struct Consumer {
    store: Store,
    attached: Attached,
}

struct Attached {
    client: Client,
    subscription: DurableSubscription,
}

/// What happens next to the store.
enum Input {
    /// A delivery is in the store's queue.
    Queued,
    /// A position is on the disk.
    Commit(StoreCommit),
    /// The connection to the broker ended.
    Broken,
    /// We are asked to end.
    Stop,
    /// The store takes nothing any more.
    Closed,
}

impl Consumer {
    /// Attaches `store` where it stands.
    pub(super) async fn attach(broker: &Broker, store: Store) -> Result<Self, AgentError> {
        let attached = attach(broker, store.positions().to_vec()).await?;
        Ok(Self { store, attached })
    }

    /// Hands deliveries to the store and its commits to the bus, until `stop`; gives the store
    /// back to be closed.
    pub(super) async fn run(self, broker: Arc<Broker>, mut stop: Shutdown) -> Store {
        let Self { mut store, mut attached } = self;
        let handle = store.handle();
        loop {
            let input = tokio::select! {
                () = stop.requested() => Input::Stop,
                commit = store.committed() => commit.map_or(Input::Closed, Input::Commit),
                input = queue_next(&handle, &mut attached.subscription) => input,
            };
            match input {
                Input::Commit(StoreCommit { stream, committed }) => {
                    let Committed { sequence, epoch } = committed;
                    // When the connection broke, the deliveries end too, and attaching again tells
                    // the broker where we stand.
                    let _ = attached.subscription.commit(stream, sequence, epoch);
                }
                Input::Broken => {
                    let reason = attached.client.closed().await;
                    error!(%reason, "the store's connection to the broker broke: attaching again");
                    match reattach(&broker, &handle, &mut stop).await {
                        Some(again) => attached = again,
                        None => return store,
                    }
                }
                Input::Queued => {}
                Input::Stop => return store,
                Input::Closed => {
                    error!(
                        "the event store has ended: events wait in procmond's log until the agent is started again"
                    );
                    stop.requested().await;
                    return store;
                }
            }
        }
    }
}

/// Waits for room in the store, then for a delivery, and queues it. Cancel-safe: a delivery is
/// taken from the subscription only when there is room for it.
async fn queue_next(handle: &StoreHandle, subscription: &mut DurableSubscription) -> Input {
    let Ok(slot) = handle.slot().await else { return Input::Closed };
    match subscription.next().await {
        Some(delivery) => {
            slot.store(delivery);
            Input::Queued
        }
        None => Input::Broken,
    }
}

async fn attach(broker: &Broker, positions: Vec<StoreCommit>) -> Result<Attached, AgentError> {
    let failed = |error: String| AgentError::Connection(error);
    let options = ClientOptions::new(EVENT_STORE, Role::Agent);
    let client = broker.connect_in_process(options).await.map_err(|error| failed(chain(&error)))?;
    let pattern = TopicPattern::new(topics::EVENTS).map_err(|error| failed(chain(&error)))?;
    let positions = positions.into_iter().map(|at| (at.stream, at.committed)).collect();
    let subscription = client
        .subscribe_durable(EVENT_STORE, &[pattern], positions)
        .await
        .map_err(|error| failed(chain(&error)))?;
    Ok(Attached { client, subscription })
}

/// Attaches again where the store stands; `None` when asked to end meanwhile. What is queued and
/// not yet stored comes again, and is skipped as stored.
async fn reattach(broker: &Broker, handle: &StoreHandle, stop: &mut Shutdown) -> Option<Attached> {
    loop {
        tokio::select! {
            () = stop.requested() => return None,
            () = tokio::time::sleep(REATTACH) => {}
        }
        match attach(broker, handle.positions()).await {
            Ok(attached) => return Some(attached),
            Err(error) => error!(%error, "the store cannot be attached"),
        }
    }
}
