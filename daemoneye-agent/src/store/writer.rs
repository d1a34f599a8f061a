//! The thread that owns the database, and the one that decodes for it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daemoneye_lib::display;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::database::{Applied, Database, Notice};
use super::row::Decoded;
use super::{StoreCommit, StoreError, StoreFigures, Work, Write};

/// How many deliveries may wait. Their bytes are bounded by the broker's credit.
pub(super) const QUEUE: usize = 64;

/// How many decoded deliveries may wait: enough to keep the writer busy, and rows of JSON take more
/// memory than what they are made of.
const DECODED: usize = 16;

/// A transaction takes further deliveries while it holds fewer rows than this: enough to make one
/// fsync cheap for each, few enough that a commit is never long in coming.
const ROWS_PER_TRANSACTION: usize = 8192;

/// The waits between attempts while the disk refuses.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The figures as of the last transaction.
#[derive(Clone, Debug)]
pub(super) struct SharedFigures(Arc<Mutex<StoreFigures>>);

impl SharedFigures {
    pub(super) fn get(&self) -> StoreFigures {
        self.lock().clone()
    }

    /// Held for a clone or an assignment, never across I/O or an await.
    fn lock(&self) -> MutexGuard<'_, StoreFigures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the thread must stop trying.
#[derive(Debug, Default)]
struct Closing {
    deadline: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Closing {
    /// Waits for `pause`, or until closing begins. `false` once the deadline has passed.
    fn pause(&self, pause: Duration) -> bool {
        let deadline = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = match *deadline {
            // Closing already: several short tries until the deadline.
            Some(_) => pause.min(RETRY_MIN),
            None => pause,
        };
        let (deadline, _) =
            self.changed.wait_timeout(deadline, pause).unwrap_or_else(PoisonError::into_inner);
        deadline.is_none_or(|deadline| Instant::now() < deadline)
    }
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Writer {
    threads: [JoinHandle<()>; 2],
    closing: Arc<Closing>,
    queue: mpsc::Sender<Work>,
}

impl Writer {
    pub(super) fn start(
        database: Database,
        done: mpsc::Sender<StoreCommit>,
    ) -> Result<(Self, mpsc::Sender<Work>, SharedFigures), StoreError> {
        let (queue, work) = mpsc::channel(QUEUE);
        let figures = SharedFigures(Arc::new(Mutex::new(database.figures())));
        let closing = Arc::new(Closing::default());
        let (decoded, writes) = sync_channel(DECODED);
        let writer = {
            let (figures, closing) = (figures.clone(), Arc::clone(&closing));
            let body = move || Body { database, writes, done, figures, closing }.run();
            spawn("event-store", body)?
        };
        // Half of the work on an event is to read it; it needs no place in the queue for the disk.
        let decoder = spawn("event-decoder", move || decode(work, &decoded))?;
        let threads = [decoder, writer];
        Ok((Self { threads, closing, queue: queue.clone() }, queue, figures))
    }

    /// Lets the thread finish what is queued, but not try beyond `patience`.
    pub(super) fn close(self, patience: Duration) {
        *self.closing.deadline.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Instant::now() + patience);
        self.closing.changed.notify_all();
        // Fails when the thread has ended, which is as good.
        let _ = self.queue.blocking_send(Work::Close);
        for thread in self.threads {
            if thread.join().is_err() {
                error!(
                    "a thread of the event store ended in a panic; what was not committed comes again"
                );
            }
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StoreError::Thread)
}

/// Reads payloads until the store is closed, or the writer has ended.
fn decode(mut work: mpsc::Receiver<Work>, decoded: &SyncSender<Write>) {
    while let Some(next) = work.blocking_recv() {
        let write = match next {
            Work::Events(delivery) => Write::Events(Decoded::from(delivery)),
            Work::Collector { stream, collector } => Write::Collector { stream, collector },
            // What was queued before has come out; what comes behind is turned away.
            Work::Close => return,
        };
        if decoded.send(write).is_err() {
            return;
        }
    }
}

struct Body {
    database: Database,
    writes: Receiver<Write>,
    done: mpsc::Sender<StoreCommit>,
    figures: SharedFigures,
    closing: Arc<Closing>,
}

impl Body {
    fn run(mut self) {
        let mut writes = Vec::new();
        while let Ok(first) = self.writes.recv() {
            writes.push(first);
            while rows(&writes) < ROWS_PER_TRANSACTION
                && let Ok(next) = self.writes.try_recv()
            {
                writes.push(next);
            }
            let Some(applied) = self.apply(&writes) else {
                warn!(
                    "the event store is closed before everything was stored; the rest comes again"
                );
                return;
            };
            writes.clear();
            applied.notices.iter().for_each(tell);
            for commit in applied.commits {
                // Nobody listens while closing; the position is on the disk all the same.
                let _ = self.done.blocking_send(commit);
            }
        }
    }

    /// Tries until it is done; `None` when closing does not wait any longer.
    fn apply(&mut self, writes: &[Write]) -> Option<Applied> {
        let mut pause = RETRY_MIN;
        let mut in_doubt = false;
        loop {
            let result = if in_doubt { self.database.reopen() } else { Ok(()) }
                .and_then(|()| self.database.apply(writes));
            match result {
                Ok(applied) => {
                    self.succeeded();
                    return Some(applied);
                }
                Err(error) => {
                    in_doubt |= !error.leaves_connection_good();
                    self.failed(&error);
                }
            }
            if !self.closing.pause(pause) {
                return None;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn succeeded(&self) {
        let fresh = self.database.figures();
        let mut figures = self.figures.lock();
        let old = std::mem::replace(&mut *figures, fresh);
        figures.retries_total = old.retries_total;
        drop(figures);
        if old.trouble.is_some() {
            info!("the event store works again; nothing was lost");
        }
    }

    fn failed(&self, error: &StoreError) {
        let text = error.to_string();
        let mut figures = self.figures.lock();
        figures.retries_total += 1;
        let news = figures.trouble.as_ref() != Some(&text);
        if news {
            figures.trouble = Some(text);
        }
        drop(figures);
        // Once for each kind of trouble, however long it lasts.
        if news {
            error!(%error, "events cannot be stored; procmond's log keeps them and they are tried again until it works");
        }
    }
}

fn rows(writes: &[Write]) -> usize {
    writes
        .iter()
        .map(|write| match write {
            Write::Events(decoded) => decoded.rows.len() + 1,
            Write::Collector { .. } => 1,
        })
        .sum()
}

fn tell(notice: &Notice) {
    match notice {
        Notice::Gap { stream, first, last } => {
            warn!(%stream, %first, %last, "events are lost for good: neither the log nor the broker has them any more");
        }
        Notice::Replaced { collector, old, ended, new } => {
            let collector = display::escape(collector.as_bytes());
            warn!(
                "the log of {collector} was replaced: stream {old} ended at {ended}, stream {new} begins"
            );
        }
        Notice::Undecodable { stream, sequence, count } => {
            warn!(%stream, first = %sequence, count, "events cannot be decoded; they are stored as they came");
        }
        Notice::Refused { stream, after, through, reason } => {
            error!(%stream, %after, %through, reason, "a delivery contradicts what is stored and is left out");
        }
        Notice::RowExists { stream, sequence } => {
            error!(%stream, %sequence, "a row was there although its position was not committed: was the table streams edited?");
        }
    }
}
