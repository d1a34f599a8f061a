//! What the `eventbus` command promises, on the real binary and real sockets.
#![cfg(unix)]

#[cfg(test)]
mod common;
#[cfg(test)]
mod publish;
#[cfg(test)]
mod serve;
#[cfg(test)]
mod stat;
#[cfg(test)]
mod sub;
#[cfg(test)]
mod usage;
