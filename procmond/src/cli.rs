//! The sub-commands of `procmond`: their arguments, and a `run` each that gives the exit code
//! (0 clean, 1 runtime failure, 2 usage or configuration).

pub mod check;
pub mod run;
pub mod wal;
pub mod watch;
