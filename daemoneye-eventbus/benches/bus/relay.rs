//! The bare relay: the least a broker can do.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};
use interprocess::local_socket::tokio::{Stream, prelude::*};
use interprocess::local_socket::{GenericFilePath, ListenerOptions, Name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::load::{CHUNK_BYTES, Load, PAYLOAD_BYTES, Received, TICK, stamp, summary};
use crate::process::{say, say_now};

/// A message is its length and its payload.
const MESSAGE_BYTES: usize = 4 + PAYLOAD_BYTES;

type Subscribers = Arc<Mutex<Vec<mpsc::Sender<Bytes>>>>;

fn name(socket: &Path) -> Name<'_> {
    socket.to_fs_name::<GenericFilePath>().expect("a path can be a socket's name")
}

/// Tokio's own: those of `interprocess` ask the socket once more after each read.
fn halves(stream: Stream) -> (OwnedReadHalf, OwnedWriteHalf) {
    let Stream::UdSocket(stream) = stream;
    UnixStream::from(stream).into_split()
}

pub(crate) async fn broker(socket: &Path) {
    let listener = ListenerOptions::new().name(name(socket)).create_tokio().expect("a free socket");
    say("ready");
    let subscribers = Subscribers::default();
    loop {
        let stream = listener.accept().await.expect("a connection");
        tokio::spawn(serve(stream, Arc::clone(&subscribers)));
    }
}

async fn serve(stream: Stream, subscribers: Subscribers) {
    let (mut reader, mut writer) = halves(stream);
    let mut role = [0];
    if reader.read_exact(&mut role).await.is_err() {
        return;
    }
    if role == *b"S" {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(16);
        subscribers.lock().expect("nobody panics").push(sender);
        if writer.write_all(b"k").await.is_err() {
            return;
        }
        while let Some(chunk) = receiver.recv().await {
            if writer.write_all(&chunk).await.is_err() {
                return;
            }
        }
        return;
    }
    let mut buffer = BytesMut::with_capacity(4 * CHUNK_BYTES);
    let mut acked = 0_u64;
    loop {
        buffer.reserve(CHUNK_BYTES);
        if !matches!(reader.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
        let (mut at, before) = (0, acked);
        while let Some(length) = buffer[at..].first_chunk::<4>() {
            let end = at + 4 + u32::from_le_bytes(*length) as usize;
            if end > buffer.len() {
                break;
            }
            at = end;
            acked += 1;
        }
        if at > 0 {
            let chunk = buffer.split_to(at).freeze();
            let senders = subscribers.lock().expect("nobody panics").clone();
            for sender in senders {
                // One that is gone is of no interest.
                let _ = sender.send(chunk.clone()).await;
            }
        }
        if acked != before && writer.write_all(&acked.to_le_bytes()).await.is_err() {
            return;
        }
    }
}

pub(crate) async fn subscriber(socket: &Path, load: Load) {
    let mut tasks = Vec::new();
    for _ in 0..load.subscribers {
        let mut stream = Stream::connect(name(socket)).await.expect("the relay is there");
        stream.write_all(b"S").await.expect("the relay is there");
        let mut ready = [0];
        stream.read_exact(&mut ready).await.expect("the relay is there");
        tasks.push(tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(4 * CHUNK_BYTES);
            let mut received = Received::new(load);
            while !received.all() {
                buffer.reserve(CHUNK_BYTES);
                let read = stream.read_buf(&mut buffer).await.expect("the relay is there");
                assert!(read > 0, "the relay is there");
                while buffer.len() >= MESSAGE_BYTES {
                    received.message(&buffer[4..MESSAGE_BYTES]);
                    buffer.advance(MESSAGE_BYTES);
                }
            }
            received
        }));
    }
    say("ready");
    let mut received = Vec::new();
    for task in tasks {
        received.push(task.await.expect("every message"));
    }
    say(summary(received));
}

pub(crate) async fn publisher(socket: &Path, load: Load) {
    let stream = Stream::connect(name(socket)).await.expect("the relay is there");
    let (mut reader, mut writer) = halves(stream);
    writer.write_all(b"P").await.expect("the relay is there");
    let mut message = (PAYLOAD_BYTES as u32).to_le_bytes().to_vec();
    message.resize(MESSAGE_BYTES, b'x');
    let mut out = Vec::with_capacity(CHUNK_BYTES + MESSAGE_BYTES);
    let mut acks = BytesMut::with_capacity(4096);
    let (mut sent, mut acked) = (0, 0);
    say_now();
    let began = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    while acked < load.messages {
        let allowed = if load.rate > 0 { load.due(began.elapsed()) } else { acked + load.window };
        while sent < allowed.min(load.messages) && out.len() < CHUNK_BYTES {
            stamp(&mut message[4..], &load);
            out.extend_from_slice(&message);
            sent += 1;
        }
        if !out.is_empty() {
            writer.write_all(&out).await.expect("the relay is there");
            out.clear();
        }
        acks.reserve(4096);
        let full = sent - acked == load.window || sent == load.messages || load.rate > 0;
        tokio::select! {
            biased;
            read = reader.read_buf(&mut acks) => {
                assert!(read.expect("the relay is there") > 0, "the relay is there");
                while acks.len() >= 8 {
                    acked = acks.get_u64_le();
                }
            }
            () = tokio::task::yield_now(), if !full => {}
            _ = ticks.tick(), if load.rate > 0 && sent < load.messages => {}
        }
    }
    say_now();
}
