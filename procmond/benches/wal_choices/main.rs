//! What each of the log's choices costs on this machine, one commit at a time.
//!
//! ```sh
//! cargo bench -p procmond --bench wal_choices [-- DIR]
//! ```
//!
//! Every way of making a commit durable takes its turn in each round, and the medians are printed
//! beside the first way's: one write into a file that was filled with zeros, one fdatasync.

#[cfg(target_os = "linux")]
mod ways;

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    ways::measure()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("the choices are those that Linux gives");
}
