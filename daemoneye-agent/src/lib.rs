//! The agent: hosts the event bus, supervises procmond, stores events and shows them.

pub mod shutdown;
pub mod state_dir;
pub mod supervisor;
