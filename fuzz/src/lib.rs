//! Fuzz targets for everything that reads bytes it did not write: the log's segments, a whole log
//! directory, what stands in for its checkpoint (labels in headers and control records, the saved
//! process table), events, what netlink sends, the bus's frames, and whole sessions of strangers on
//! the bus.
//!
//! A target does not only ask for no panic. It knows what was written, or has the same bytes read
//! by an independent reader ([`decoder`], made from `docs/wal-format.md` alone), and compares.
//!
//! ```text
//! cd fuzz && cargo build --release                       # no nightly, no cargo-fuzz; needs c++
//! target/*/release/recovery corpus/recovery              # for ever
//! target/*/release/recovery artifacts/crash-...          # one input again
//! ```

mod allocations;
mod decoder;
mod event;
mod frame;
mod input;
mod label;
mod mutate;
mod netlink;
mod recovery;
mod scratch;
mod segment_reader;
mod session;
mod snapshot;
mod written;

pub use event::event;
pub use frame::frame;
pub use label::label;
pub use netlink::netlink;
pub use recovery::recovery;
pub use segment_reader::segment_reader;
pub use session::session;
pub use snapshot::snapshot;
