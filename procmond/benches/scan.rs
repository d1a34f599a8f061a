//! What a look at the process table costs, beside the least that it could and what others take.
//!
//! Starts processes that sleep, and has each way of looking at them measured in a process of its
//! own, in turns: processor time, and the memory that is resident in the end.

#[cfg(target_os = "linux")]
#[path = "scan/linux.rs"]
mod linux;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("what /proc costs is measured on Linux only");
}
