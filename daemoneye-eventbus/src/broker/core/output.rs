//! What is written to a peer next.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use daemoneye_lib::stream::StreamId;

use super::conn::{Closing, Conn, Subscription};
use super::consumer::Consumer;
use super::stream::Stream;
use super::{ConnId, Core};
use crate::broker::stats::Traffic;
use crate::connection::Flow;
use crate::queue::{LiveQueue, Popped};
use crate::wire::{Deliver, Frame, deliver_head};

/// Taken from the queues at once; more would only wait in memory.
const OUTPUT_BYTES: usize = 256 * 1024;
/// Entries shorter than this are copied behind their header, which saves an iovec.
const COPY_BYTES: usize = 4 * 1024;

/// Bytes on their way to a peer.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) pieces: VecDeque<Bytes>,
    scratch: BytesMut,
    /// Frames and entries put in since the last look.
    frames: u64,
    events: u64,
}

impl Output {
    fn control(&mut self, conn: &mut Conn) {
        if !conn.control.is_empty() {
            let (control, frames) = conn.take_control();
            self.frames += frames;
            self.pieces.push_back(control);
        }
    }

    /// Adds what has been put in to the connection's figures.
    fn count(&mut self, traffic: &mut Traffic) {
        traffic.frames_out_total += std::mem::take(&mut self.frames);
        traffic.events_out_total += std::mem::take(&mut self.events);
        traffic.bytes_out_total += self.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
    }

    fn flush_scratch(&mut self) {
        if !self.scratch.is_empty() {
            self.pieces.push_back(self.scratch.split().freeze());
        }
    }

    fn frame(&mut self, frame: &Frame) {
        self.frames += 1;
        frame.encode(&mut self.scratch);
    }

    fn deliver(&mut self, deliver: Deliver) {
        self.frames += 1;
        self.events += u64::from(deliver.count);
        deliver_head(&mut self.scratch, &deliver);
        if deliver.entries.len() <= COPY_BYTES {
            self.scratch.extend_from_slice(&deliver.entries);
        } else {
            self.flush_scratch();
            self.pieces.push_back(deliver.entries);
        }
    }
}

impl Core {
    /// Moves up to a quarter of a MiB of what waits for a peer into `out`, which is empty.
    pub(crate) fn take_output(&mut self, id: ConnId, out: &mut Output) -> Flow {
        let Some(conn) = self.conns.get_mut(&id) else { return Flow::Close };
        out.control(conn);
        if conn.closing == Some(Closing::Now) {
            out.count(&mut conn.traffic);
            return Flow::Close;
        }
        if let Some(ack) = conn.ack.take() {
            out.frame(&Frame::Ack(ack));
        }
        if let Some(token) = conn.pong.take() {
            out.frame(&Frame::Pong { token });
        }
        if let Some(token) = conn.ping.take() {
            out.frame(&Frame::Ping { token });
        }
        // Each subscription gets its share and at least one item, so that none starves another.
        let share = (OUTPUT_BYTES / conn.subscriptions.len().max(1)).max(1);
        for (number, subscription) in &mut conn.subscriptions {
            let mut budget = share;
            match subscription {
                Subscription::Live { queue, .. } => {
                    take_live(*number, queue, &mut budget, out);
                }
                Subscription::Durable { name } => {
                    if let Some(consumer) = self.consumers.get_mut(name) {
                        take_durable(
                            *number,
                            consumer,
                            &self.streams,
                            self.limits.in_flight_bytes,
                            &mut budget,
                            out,
                        );
                    }
                }
            }
        }
        out.flush_scratch();
        let mut flow = Flow::Open;
        if out.pieces.is_empty()
            && let Some(Closing::Drained(code, reason)) = conn.closing
        {
            conn.end(&Frame::Goodbye { code, reason: reason.to_owned() });
            out.control(conn);
            flow = Flow::Close;
        }
        out.count(&mut conn.traffic);
        flow
    }
}

fn take_live(number: u32, queue: &mut LiveQueue<Bytes>, budget: &mut usize, out: &mut Output) {
    while *budget > 0
        && let Some(popped) = queue.pop()
    {
        match popped {
            Popped::Missed(count) => {
                out.frame(&Frame::Missed { subscription: number, count });
            }
            Popped::Message(frame) => {
                *budget = budget.saturating_sub(frame.len());
                out.frames += 1;
                out.scratch.extend_from_slice(&frame);
            }
            Popped::Run(run) => {
                *budget = budget.saturating_sub(run.entries.len());
                out.deliver(Deliver {
                    subscription: number,
                    stream: run.stream,
                    epoch: run.epoch,
                    after: run.after,
                    through: run.through,
                    count: run.count,
                    entries: run.entries,
                });
            }
        }
    }
}

fn take_durable(
    number: u32,
    consumer: &mut Consumer,
    streams: &HashMap<StreamId, Stream>,
    in_flight_bytes_max: usize,
    budget: &mut usize,
    out: &mut Output,
) {
    for (stream_id, cursor) in &mut consumer.cursors {
        let Some(stream) = streams.get(stream_id).filter(|_| cursor.interested) else { continue };
        let mut chunks = stream.chunks_after(cursor.sent).peekable();
        while *budget > 0 && cursor.in_flight_bytes() < in_flight_bytes_max {
            let Some(chunk) = chunks.next() else { break };
            let after = chunk.after.max(cursor.sent);
            let mut deliver = Deliver {
                subscription: number,
                stream: *stream_id,
                epoch: chunk.epoch,
                after,
                through: chunk.through,
                count: 0,
                entries: Bytes::new(),
            };
            if chunk.wants_any(&consumer.wanted) {
                let part = chunk.part(after, &consumer.wanted);
                deliver.count = part.count;
                deliver.entries = part.entries;
            } else {
                // One empty delivery covers all that follows and is of no interest either.
                while let Some(next) = chunks.next_if(|next| {
                    next.epoch == deliver.epoch
                        && next.after == deliver.through
                        && !next.wants_any(&consumer.wanted)
                }) {
                    deliver.through = next.through;
                }
            }
            *budget = budget.saturating_sub(deliver.entries.len().max(1));
            cursor.delivered(deliver.through, deliver.entries.len());
            out.deliver(deliver);
        }
    }
}
