//! Waiting for the writer: one future for every wait, on any executor or none.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::state::{Shared, Waiter, Wants};
use super::{Receipt, WalError};

/// Resolves when a record is durable; made by
/// [`WriteAheadLog::durable`](super::WriteAheadLog::durable). Dropping it loses nothing.
#[must_use = "futures do nothing unless polled"]
pub struct Durable {
    wait: Result<Wait, WalError>,
    receipt: Receipt,
}

impl Durable {
    pub(super) fn new(wait: Result<Wait, WalError>, receipt: Receipt) -> Self {
        Self { wait, receipt }
    }
}

impl Future for Durable {
    type Output = Result<Receipt, WalError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let receipt = self.receipt;
        match &mut self.wait {
            Ok(wait) => Pin::new(wait).poll(cx).map_ok(|()| receipt),
            Err(refused) => Poll::Ready(Err(refused.clone())),
        }
    }
}

/// Resolves when the state gives what is wanted or says that it never will. Dropping it loses
/// nothing.
pub(crate) struct Wait {
    shared: Arc<Shared>,
    wants: Wants,
    generation: u64,
    id: Option<u64>,
}

impl Wait {
    pub(crate) fn new(shared: Arc<Shared>, wants: Wants, generation: u64) -> Self {
        Self { shared, wants, generation, id: None }
    }
}

impl Future for Wait {
    type Output = Result<(), WalError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Wants::Durable(sequence) = this.wants
            && this.shared.is_durable(sequence, this.generation)
        {
            // Whoever made it so has taken the waiter out, or the next one will.
            this.id = None;
            return Poll::Ready(Ok(()));
        }
        let mut state = this.shared.lock();
        // A new stream begins only after everything in the old one was durable.
        let outcome = if state.generation == this.generation {
            state.outcome(this.wants, this.shared.options.queue_bytes)
        } else {
            Some(Ok(()))
        };
        if let Some(outcome) = outcome {
            forget(&mut state.waiters, this.id.take());
            return Poll::Ready(outcome);
        }
        let known = this.id.and_then(|id| state.waiters.iter_mut().find(|waiter| waiter.id == id));
        if let Some(waiter) = known {
            waiter.waker.clone_from(cx.waker());
        } else {
            let id = state.next_waiter;
            state.next_waiter += 1;
            this.id = Some(id);
            state.waiters.push(Waiter { id, wants: this.wants, waker: cx.waker().clone() });
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.id.is_some() {
            forget(&mut self.shared.lock().waiters, self.id.take());
        }
    }
}

fn forget(waiters: &mut Vec<Waiter>, id: Option<u64>) {
    if let Some(at) = waiters.iter().position(|waiter| Some(waiter.id) == id) {
        waiters.swap_remove(at);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
