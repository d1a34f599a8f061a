//! What every DaemonEye program shares: the process event and its identity, positions in a stream
//! of events, redaction of secrets, and configuration loading.
//!
//! Nothing here does I/O or knows an async runtime.

pub mod config;
pub mod describe;
pub mod display;
pub mod models;
pub mod paths;
pub mod redaction;
pub mod since;
pub mod stream;
pub mod topics;
