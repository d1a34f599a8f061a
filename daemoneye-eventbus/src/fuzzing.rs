//! What the fuzz targets (`fuzz/`) see of the broker's inside: its decisions, without sockets or
//! time. Compiled for them only.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::broker::core::{ConnId, Core, CoreLimits, Output};
use crate::connection::Flow;
use crate::wire::{FrameDecoder, GoodbyeCode};
use crate::{BrokerOptions, BrokerStats, ForgetError};

/// The decisions of a broker.
#[derive(Debug)]
pub struct Decisions {
    core: Core,
    frame_bytes_max: usize,
}

/// One connection as its task has it.
#[derive(Debug)]
pub struct Connection {
    id: ConnId,
    decoder: FrameDecoder,
    output: Output,
    is_open: bool,
}

impl Connection {
    /// Whether the broker still listens to it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open
    }
}

impl Decisions {
    /// Those of a broker with these options; there is no socket.
    #[must_use]
    pub fn new(options: &BrokerOptions) -> Self {
        let core = Core::new(CoreLimits::new(options));
        Self { core, frame_bytes_max: options.frame_bytes_max }
    }

    /// Somebody has connected.
    pub fn connect(&mut self, in_process: bool) -> Connection {
        let id = self.core.connect(Arc::new(Notify::new()), None, in_process);
        let decoder = FrameDecoder::new(self.frame_bytes_max);
        Connection { id, decoder, output: Output::default(), is_open: true }
    }

    /// Bytes have come. What comes behind the end of a connection is not looked at.
    pub fn receive(&mut self, connection: &mut Connection, bytes: &[u8]) {
        if !connection.is_open {
            return;
        }
        connection.decoder.buffer().extend_from_slice(bytes);
        loop {
            match connection.decoder.next_frame() {
                Ok(Some(raw)) => {
                    if self.core.receive(connection.id, raw) == Flow::Close {
                        connection.is_open = false;
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    self.core.refuse_bytes(connection.id, error);
                    connection.is_open = false;
                    return;
                }
            }
        }
    }

    /// What is written to it next, and whether something may follow.
    pub fn output(&mut self, connection: &mut Connection) -> (Vec<Bytes>, bool) {
        let flow = self.core.take_output(connection.id, &mut connection.output);
        (connection.output.pieces.drain(..).collect(), flow == Flow::Open)
    }

    /// It is gone.
    pub fn disconnect(&mut self, connection: &Connection) {
        self.core.disconnect(connection.id);
    }

    /// It is this long since the broker began.
    pub fn set_time(&mut self, now: Duration) {
        self.core.set_time(now);
    }

    /// As [`Broker::forget_consumer`](crate::Broker::forget_consumer).
    pub fn forget_consumer(&mut self, name: &str) -> Result<(), ForgetError> {
        self.core.forget(name)
    }

    /// As at the begin of [`Broker::shutdown`](crate::Broker::shutdown).
    pub fn drain(&mut self) {
        self.core.drain_all(GoodbyeCode::Shutdown, "the broker is shutting down");
    }

    /// As [`Broker::stats`](crate::Broker::stats).
    #[must_use]
    pub fn stats(&self) -> BrokerStats {
        self.core.stats()
    }
}
