//! The agent: hosts the event bus, supervises procmond, stores events and shows them.

pub mod agent;
pub mod cli;
pub mod collectors;
pub mod config;
pub mod render;
pub mod shutdown;
pub mod state_dir;
pub mod status;
pub mod store;
pub mod supervisor;
