//! The wish to end: SIGTERM, SIGINT or SIGHUP; Ctrl-C where those do not exist.

use std::time::Duration;

use tokio::sync::watch;

use crate::failure::Failure;

/// How long a command that is held up by the reader of its output may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// Resolves once the end was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// From now on the signals are a wish, and no longer end the process by themselves.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Self::start(None)
    }

    /// The same, and the process ends with exit code 0 after a second, whatever it is held up by.
    pub(crate) fn listen_and_end() -> Result<Self, Failure> {
        Self::start(Some(GRACE))
    }

    fn start(grace: Option<Duration>) -> Result<Self, Failure> {
        let mut signals = Signals::listen()?;
        let (asked, stop) = watch::channel(false);
        tokio::spawn(async move {
            signals.next().await;
            asked.send_replace(true);
            match grace {
                Some(grace) => tokio::time::sleep(grace).await,
                // Whoever asks twice does not want to wait.
                None => signals.next().await,
            }
            std::process::exit(i32::from(grace.is_none()));
        });
        Ok(Self(stop))
    }

    /// Waits until the end is asked for. Cancel-safe; resolves at once when it already was.
    pub(crate) async fn asked(&mut self) {
        // The sender lives as long as the process.
        let _ = self.0.wait_for(|asked| *asked).await;
    }

    /// Whether the end was asked for.
    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow()
    }
}

struct Signals {
    #[cfg(unix)]
    all: [tokio::signal::unix::Signal; 3],
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let listen = |kind| signal(kind).map_err(Failure::failed);
            Ok(Self {
                all: [
                    listen(SignalKind::terminate())?,
                    listen(SignalKind::interrupt())?,
                    listen(SignalKind::hangup())?,
                ],
            })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        {
            let [terminate, interrupt, hang_up] = &mut self.all;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => {}
            }
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
