//! A connection's task in the broker: joins the traffic with the core.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use interprocess::local_socket::tokio::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;

use super::Shared;
use super::core::{ConnId, Output};
use crate::connection::{self, End, Failure, Flow, Peer};
use crate::transport;
use crate::wire::{
    Frame, FrameDecoder, GoodbyeCode, HELLO_BYTES_MAX, RefusalCode, Refused, WireError,
};

/// Serves a peer that has connected to the socket, if its user may.
pub(super) fn spawn(shared: &Arc<Shared>, stream: Stream) {
    let refusal = match transport::peer_identity(&stream) {
        Ok(peer) if peer.uid.is_none_or(|uid| shared.options.allowed_uids.contains(&uid)) => {
            let (session, abandon) =
                (Session::new(shared, peer.pid, false), shared.abandon.subscribe());
            match session {
                Some(session) => {
                    let (reader, writer) = transport::split(stream);
                    tokio::spawn(async move {
                        session.run(reader, writer, abandon).await;
                    });
                    return;
                }
                None => (
                    RefusalCode::Limit,
                    true,
                    format!("{} connections are open", shared.options.connections_max),
                ),
            }
        }
        Ok(peer) => {
            let uid = peer.uid.unwrap_or_default();
            (RefusalCode::NotAllowed, false, format!("user {uid} may not talk to this broker"))
        }
        Err(error) => {
            (RefusalCode::NotAllowed, false, format!("the peer's user is not known: {error}"))
        }
    };
    let (code, retry, reason) = refusal;
    tracing::warn!(?code, "connection refused: {reason}");
    shared.core().count_refusal(code);
    let mut frame = BytesMut::new();
    Frame::Refused(Refused { subscription: 0, code, retry, reason }).encode(&mut frame);
    tokio::spawn(async move {
        // It is told if it listens; nothing is lost if it does not.
        let told = async { (&stream).write_all(&frame).await };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), told).await;
    });
}

/// Serves a client of our own process.
pub(super) fn spawn_in_process(shared: &Arc<Shared>, stream: DuplexStream) {
    let abandon = shared.abandon.subscribe();
    // Our own process is not counted against the limit: the agent must always get in.
    let session = Session::register(shared, Some(std::process::id()), true);
    let (reader, writer) = tokio::io::split(stream);
    tokio::spawn(async move {
        session.run(reader, writer, abandon).await;
    });
}

struct Session {
    shared: Arc<Shared>,
    id: ConnId,
    wake: Arc<Notify>,
    output: Output,
    pings: u64,
}

impl Session {
    fn new(shared: &Arc<Shared>, pid: Option<u32>, in_process: bool) -> Option<Self> {
        let full = *shared.sessions.borrow() >= shared.options.connections_max;
        (!full).then(|| Self::register(shared, pid, in_process))
    }

    fn register(shared: &Arc<Shared>, pid: Option<u32>, in_process: bool) -> Self {
        let wake = Arc::new(Notify::new());
        let id = shared.core().connect(Arc::clone(&wake), pid, in_process);
        shared.sessions.send_modify(|count| *count += 1);
        Self { shared: Arc::clone(shared), id, wake, output: Output::default(), pings: 0 }
    }

    async fn run(
        mut self,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
        mut abandon: tokio::sync::watch::Receiver<bool>,
    ) {
        tokio::select! {
            () = self.serve(reader, writer) => {}
            _ = abandon.wait_for(|abandon| *abandon) => {}
        }
    }

    async fn serve(&mut self, mut reader: impl AsyncRead + Unpin, writer: impl AsyncWrite + Unpin) {
        let options = &self.shared.options;
        let (handshake, heartbeat) = (options.handshake, options.heartbeat);
        let frame_bytes_max = options.frame_bytes_max;
        let mut decoder = FrameDecoder::new(HELLO_BYTES_MAX.min(frame_bytes_max));
        match tokio::time::timeout(handshake, self.handshake(&mut reader, &mut decoder)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection ended before its Hello");
                return;
            }
            Err(_) => {
                tracing::warn!("a connection said no Hello in time");
                self.shared.core().end(self.id, GoodbyeCode::Silent, "no Hello in time");
            }
        }
        decoder.set_body_bytes_max(frame_bytes_max);
        let end = connection::serve(self, &mut decoder, reader, writer, heartbeat).await;
        if let End::Lost(error) = end {
            tracing::debug!(%error, "a connection ended");
        }
    }

    /// Reads until the peer is welcome or refused.
    async fn handshake(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        decoder: &mut FrameDecoder,
    ) -> io::Result<()> {
        let wake = Arc::clone(&self.wake);
        while !self.shared.core().has_answered(self.id) {
            // One frame at a time: what follows the Hello may be longer.
            match decoder.next_frame() {
                Ok(Some(raw)) => {
                    self.shared.core_now().receive(self.id, raw);
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    self.shared.core().refuse_bytes(self.id, error);
                    continue;
                }
            }
            let read = tokio::select! {
                read = decoder.read_from(reader) => read?,
                // The broker may be shutting down.
                () = wake.notified() => continue,
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        // What has been queued for the peer in the meantime is still to be written.
        wake.notify_one();
        Ok(())
    }
}

impl Peer for Session {
    fn receive(&mut self, decoder: &mut FrameDecoder) -> Result<Flow, WireError> {
        let mut core = self.shared.core_now();
        while let Some(raw) = decoder.next_frame()? {
            if core.receive(self.id, raw) == Flow::Close {
                return Ok(Flow::Close);
            }
        }
        Ok(Flow::Open)
    }

    fn output(&mut self, pieces: &mut VecDeque<Bytes>) -> Flow {
        std::mem::swap(pieces, &mut self.output.pieces);
        let flow = self.shared.core().take_output(self.id, &mut self.output);
        std::mem::swap(pieces, &mut self.output.pieces);
        flow
    }

    fn failed(&mut self, failure: Failure) {
        match failure {
            Failure::Silent => {
                tracing::warn!("a silent connection is dropped");
                self.shared.core().end(self.id, GoodbyeCode::Silent, "nothing was heard of you");
            }
            Failure::Protocol(error) => self.shared.core().refuse_bytes(self.id, error),
        }
    }

    fn heartbeat(&mut self) {
        self.pings += 1;
        self.shared.core().ping(self.id, self.pings);
        self.wake.notify_one();
    }

    fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.core().disconnect(self.id);
        self.shared.sessions.send_modify(|count| *count -= 1);
    }
}
