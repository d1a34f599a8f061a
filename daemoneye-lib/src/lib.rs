//! What every DaemonEye program shares: the process event and its identity, positions in a stream
//! of events, redaction of secrets, and configuration loading.
//!
//! Nothing here does I/O or knows an async runtime.

pub mod stream;
