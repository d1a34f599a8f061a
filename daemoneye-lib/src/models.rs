//! The things that travel: process events, gaps, and the control messages around them.

mod byte_string;
pub mod control;
pub mod event;
pub mod gap;
pub mod process;

pub use byte_string::ByteString;
