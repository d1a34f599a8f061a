//! The promises, each on the real binaries, real sockets and a real disk.

mod bad_start;
mod broker_away;
mod killed;
mod log_replaced;
mod main_job;
mod secrets_never_leave;
mod slow_live_subscriber;
