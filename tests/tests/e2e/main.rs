//! The promises, each on the real binaries, real sockets and a real disk.

#![cfg(unix)]

mod bad_start;
mod broker_away;
mod broker_faults;
mod eventbus_command;
mod flipped_byte;
mod killed;
mod log_replaced;
mod main_job;
mod python_client;
mod readme;
mod reconciled;
mod secrets_never_leave;
mod short_lives;
mod slow_live_subscriber;
mod stuck_peers;
mod torn_tail;
