//! One connection's traffic, the same for both ends: reading frames, writing what waits,
//! heartbeats. Knows nothing of what the frames mean.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::wire::{FrameDecoder, WireError};

/// Buffers given to one write.
const WRITE_PIECES_MAX: usize = 64;
/// After reading this much the task lets others run. Whoever takes on what has come then does so
/// while it is still in the processor's caches, its memory is free for the next read, and nobody
/// waits behind a peer that never pauses. After less a turn would cost more than it gains.
const TURN_BYTES: usize = 32 * 1024;
/// A peer that has sent nothing for this many heartbeats is dead.
const SILENT_HEARTBEATS_MAX: u32 = 3;
/// How long the last frames may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    /// Ends when what has been taken is written.
    Close,
}

/// What a connection serves.
pub(crate) trait Peer {
    /// Takes every whole frame out of `decoder`.
    fn receive(&mut self, decoder: &mut FrameDecoder) -> Result<Flow, WireError>;

    /// Moves what waits into `pieces`. [`Flow::Close`]: this is the last of it.
    fn output(&mut self, pieces: &mut VecDeque<Bytes>) -> Flow;

    /// The other side has failed: what is to be said about that goes out as the last output.
    fn failed(&mut self, failure: Failure);

    /// A heartbeat is due; it goes out with the next output.
    fn heartbeat(&mut self);

    /// Notified whenever output appears from elsewhere.
    fn wake(&self) -> Arc<Notify>;

    /// Notified when our side is to end, however much the other has not read yet. A peer without
    /// one is asked by [`Peer::output`] only.
    fn parting(&self) -> Option<Arc<Notify>> {
        None
    }
}

/// Why the other side cannot be served any longer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It has been silent for too long.
    Silent,
    /// It sent something that is not the protocol.
    Protocol(WireError),
}

/// Why traffic has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Our side ended it, and its last words are written or could not be.
    Closed,
    /// The peer is gone.
    Lost(io::Error),
}

/// Serves the connection until it ends.
///
/// Reading and writing take turns in one task: an acknowledgement goes out from the task that has
/// read what it acknowledges, and a write that cannot proceed never keeps us from reading.
pub(crate) async fn serve<P: Peer>(
    peer: &mut P,
    decoder: &mut FrameDecoder,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    heartbeat: Duration,
) -> End {
    let (wake, parting) = (peer.wake(), peer.parting());
    let mut pieces = VecDeque::new();
    let mut flow;
    let mut last_words_end = None;
    let mut silent = 0;
    let mut ticks = interval_at(Instant::now() + heartbeat, heartbeat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    // Frames may have come in one read with the handshake.
    flow = receive(peer, decoder);
    loop {
        if pieces.is_empty() {
            flow = match (peer.output(&mut pieces), flow) {
                (Flow::Open, Flow::Open) => Flow::Open,
                _ => Flow::Close,
            };
        }
        if flow == Flow::Close {
            if pieces.is_empty() {
                return End::Closed;
            }
            last_words_end.get_or_insert_with(|| Instant::now() + LAST_WORDS);
        }
        tokio::select! {
            written = write_pieces(&mut writer, &mut pieces), if !pieces.is_empty() => {
                match written {
                    Ok(()) => {}
                    Err(_) if flow == Flow::Close => return End::Closed,
                    // The peer may have said why before it went: that stands in what is still
                    // to be read.
                    Err(error) => return last_read(peer, decoder, reader, error).await,
                }
            }
            read = decoder.read_from(&mut reader), if flow == Flow::Open => {
                silent = 0;
                match read {
                    Ok(0) => return End::Lost(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => {
                        flow = receive(peer, decoder);
                        if read >= TURN_BYTES {
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(error) => return End::Lost(error),
                }
            }
            () = wake.notified(), if pieces.is_empty() => {}
            // While a write waits for the other side, nobody would look for what comes after it.
            () = notified(parting.as_deref()), if flow == Flow::Open => flow = Flow::Close,
            _ = ticks.tick() => {
                silent += 1;
                if silent <= SILENT_HEARTBEATS_MAX {
                    peer.heartbeat();
                } else if flow == Flow::Open {
                    peer.failed(Failure::Silent);
                    flow = Flow::Close;
                }
            }
            () = until(last_words_end), if last_words_end.is_some() => return End::Closed,
        }
    }
}

fn receive<P: Peer>(peer: &mut P, decoder: &mut FrameDecoder) -> Flow {
    peer.receive(decoder).unwrap_or_else(|error| {
        peer.failed(Failure::Protocol(error));
        Flow::Close
    })
}

async fn notified(notify: Option<&Notify>) {
    match notify {
        Some(notify) => notify.notified().await,
        None => std::future::pending().await,
    }
}

async fn until(instant: Option<Instant>) {
    if let Some(instant) = instant {
        sleep_until(instant).await;
    }
}

/// Writing has failed: reads what the peer had sent before.
async fn last_read<P: Peer>(
    peer: &mut P,
    decoder: &mut FrameDecoder,
    mut reader: impl AsyncRead + Unpin,
    error: io::Error,
) -> End {
    let read_all = async {
        while let Ok(1..) = decoder.read_from(&mut reader).await {
            if receive(peer, decoder) == Flow::Close {
                return End::Closed;
            }
        }
        End::Lost(error)
    };
    tokio::time::timeout(LAST_WORDS, read_all)
        .await
        .unwrap_or_else(|_| End::Lost(io::ErrorKind::TimedOut.into()))
}

/// Writes some of `pieces`, many in one call. Cancel-safe: a piece is taken away only as far as
/// it has been written.
async fn write_pieces(
    writer: &mut (impl AsyncWrite + Unpin),
    pieces: &mut VecDeque<Bytes>,
) -> io::Result<()> {
    let mut written = poll_fn(|cx| poll_write_pieces(Pin::new(&mut *writer), cx, pieces)).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    while let Some(front) = pieces.front_mut() {
        if front.len() > written {
            front.advance(written);
            break;
        }
        written -= front.len();
        pieces.pop_front();
    }
    Ok(())
}

fn poll_write_pieces<W: AsyncWrite>(
    writer: Pin<&mut W>,
    cx: &mut Context<'_>,
    pieces: &VecDeque<Bytes>,
) -> Poll<io::Result<usize>> {
    if pieces.len() == 1 {
        return writer.poll_write(cx, &pieces[0]);
    }
    let mut slices = [io::IoSlice::new(&[]); WRITE_PIECES_MAX];
    let mut count = 0;
    for (slice, piece) in slices.iter_mut().zip(pieces) {
        *slice = io::IoSlice::new(piece);
        count += 1;
    }
    writer.poll_write_vectored(cx, &slices[..count])
}
