//! Delivery of the log to the broker.

mod backoff;
mod backpressure;
mod machine;
mod window;

pub use backpressure::BackpressureSignal;
