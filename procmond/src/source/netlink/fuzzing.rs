//! What the kernel's datagrams say, for the fuzz targets: in plain numbers.

use super::{message, rusage};

/// Something that the process connector told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// The processor, and the number it gave to this.
    pub cpu: [u32; 2],
    /// When, in nanoseconds since boot without the time asleep.
    pub at_ns: u64,
    /// The thread and the process.
    pub ids: [u32; 2],
    /// The kernel's number of what happened; 0 for an answer, `None` for what is of no interest.
    pub what: Option<u32>,
    /// What is told with that.
    pub values: Vec<u8>,
}

/// A process's or a thread's number, its processor time in nanoseconds, and the most memory it had,
/// in bytes.
pub type Used = (u32, Option<u64>, Option<u64>);

/// What a datagram of the process connector tells.
#[must_use]
pub fn told(datagram: &[u8]) -> Vec<Told> {
    let told = |message: message::Message| {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (what, values) = match message.what {
            message::Told::Answered { error } => (Some(0), words(&[error])),
            message::Told::Forked { parent } => (Some(1), words(&[parent])),
            message::Told::Executed => (Some(2), Vec::new()),
            message::Told::Users { real, effective } => (Some(4), words(&[real, effective])),
            message::Told::Groups { real, effective } => (Some(0x40), words(&[real, effective])),
            message::Told::Session => (Some(0x80), Vec::new()),
            message::Told::Named(name) => (Some(0x200), name.to_vec()),
            message::Told::Exited { wait_status } => (Some(0x8000_0000), words(&[wait_status])),
            message::Told::Other => (None, Vec::new()),
        };
        let (cpu, ids) = ([message.cpu, message.sequence], [message.tid, message.pid]);
        Told { cpu, at_ns: message.at_ns, ids, what, values }
    };
    message::messages(datagram).map(told).collect()
}

/// What a datagram of this family tells of what was used.
#[must_use]
pub fn used(datagram: &[u8], family: u16) -> Vec<Used> {
    let used = |(id, usage): (u32, rusage::Usage)| (id, usage.cpu_ns, usage.peak_bytes);
    rusage::usages(datagram, family).map(used).collect()
}
