//! What the bus promises, on real sockets; one file a promise. Peers that break the rules speak over
//! plain Unix sockets.
#![cfg(unix)]

#[cfg(test)]
mod acknowledgement;
#[cfg(test)]
mod admission;
#[cfg(test)]
mod common;
#[cfg(test)]
mod connection_cut;
#[cfg(test)]
mod control;
#[cfg(test)]
mod crowd;
#[cfg(test)]
mod farewell;
#[cfg(test)]
mod hostile_peers;
#[cfg(test)]
mod live_batches;
#[cfg(test)]
mod look;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod slow_live_subscriber;
#[cfg(test)]
mod socket;
#[cfg(test)]
mod stuck_peers;
