//! One connection to the broker, from Welcome to its end.

use daemoneye_eventbus::{Acks, Batch, Client, CloseReason, Disconnected, Publisher, RefusalCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::machine::Input;

/// Publishes on a task of its own, because publishing waits while the broker does not read, and
/// acknowledgements, which make it read on, must not wait for that.
pub(super) struct Session {
    client: Client,
    acks: Acks,
    /// Bounded by the broker's credit, which the machine keeps to.
    batches: mpsc::UnboundedSender<Batch>,
    publishing: JoinHandle<()>,
}

impl Session {
    pub(super) fn start(client: Client, publisher: Publisher) -> Self {
        let acks = publisher.acks();
        let (batches, mut queue) = mpsc::unbounded_channel::<Batch>();
        let publishing = tokio::spawn(async move {
            while let Some(batch) = queue.recv().await {
                if let Err(error) = publisher.publish(&batch).await {
                    // A session that has ended says so through its acks as well.
                    debug!(%error, "a batch was not taken");
                    break;
                }
            }
        });
        Self { client, acks, batches, publishing }
    }

    /// Queues a batch; false if the session has ended.
    pub(super) fn send(&self, batch: Batch) -> bool {
        self.batches.send(batch).is_ok()
    }

    /// An acknowledgement, or how the session ended. Cancel-safe.
    pub(super) async fn next_input(&mut self) -> Input {
        match self.acks.next().await {
            Ok(ack) => Input::Acked(ack.sequence),
            Err(Disconnected(CloseReason::Refused {
                code: RefusalCode::Diverged | RefusalCode::StaleEpoch,
                reason,
                ..
            })) => {
                warn!("the broker ended the session: {reason}");
                Input::Fenced
            }
            Err(error) => {
                warn!("the broker is gone, events wait in the log: {error}");
                Input::Disconnected
            }
        }
    }

    /// Ends it in order.
    pub(super) async fn goodbye(&self) {
        self.client.clone().goodbye().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}
