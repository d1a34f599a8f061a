//! The process monitor: sees process starts, changes and stops, makes them durable in a
//! write-ahead log and delivers them through the local event bus.
//!
//! The log ([`wal::WriteAheadLog`]) and the delivery ([`event_bus_connector::EventBusConnector`])
//! can be embedded on their own.

pub mod cli;
pub mod collector;
pub mod config;
pub mod event_bus_connector;
mod heap;
pub mod logging;
pub mod monitor;
#[cfg(target_os = "linux")]
pub mod privileges;
mod shutdown;
pub mod source;
pub mod wal;
