//! What everybody is given to do: the same payloads, the same clock, the same pace.
//!
//! The peers' program (`benches/peers`) compiles this file too.

use std::time::{Duration, Instant};

/// The payload of a typical process event.
pub(crate) const RECORD_BYTES: usize = 400;

/// 26 MB of pseudo-random payloads: more than the caches near a core hold.
const RECORDS: usize = 1 << 16;

pub(crate) struct Payloads(Vec<u8>);

impl Payloads {
    pub(crate) fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(RECORDS * RECORD_BYTES);
        while bytes.len() < RECORDS * RECORD_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        Self(bytes)
    }

    /// The bytes of `count` records beginning with the `first`, in a circle. They do not wrap:
    /// a run that would begins at the circle's start instead.
    pub(crate) fn run(&self, first: u64, count: usize) -> &[u8] {
        let mut at = first as usize % RECORDS;
        if at + count > RECORDS {
            at = 0;
        }
        &self.0[at * RECORD_BYTES..(at + count) * RECORD_BYTES]
    }

    /// `count` records beginning with the `first`.
    pub(crate) fn records(&self, first: u64, count: usize) -> impl Iterator<Item = &[u8]> {
        self.run(first, count).chunks_exact(RECORD_BYTES)
    }
}

/// Work done and what it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) records: u64,
    pub(crate) secs: f64,
    /// Of all threads of the process, in user and system mode.
    pub(crate) cpu_secs: f64,
}

impl Done {
    pub(crate) fn per_second(&self) -> f64 {
        self.records as f64 / self.secs
    }

    pub(crate) fn cpu_ns_per_record(&self) -> f64 {
        self.cpu_secs * 1e9 / self.records as f64
    }
}

/// Repeats `work`, which says how many records it was for, first unmeasured and then measured.
pub(crate) fn repeat<E>(
    warm: Duration,
    measured: Duration,
    mut work: impl FnMut() -> Result<u64, E>,
) -> Result<Done, E> {
    let start = Instant::now();
    while start.elapsed() < warm {
        work()?;
    }
    let cpu = cpu_secs();
    let start = Instant::now();
    let mut records = 0;
    while start.elapsed() < measured {
        records += work()?;
    }
    Ok(Done { records, secs: start.elapsed().as_secs_f64(), cpu_secs: cpu_secs() - cpu })
}

/// Does `work` so many times a second and returns how long each took: from when it was due if the
/// one before it took longer than its share, but not blamed for a sleep that ended late.
pub(crate) fn paced<E>(
    per_second: u32,
    during: Duration,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<Vec<Duration>, E> {
    let period = Duration::from_secs(1) / per_second;
    let start = Instant::now();
    let mut due = start;
    let mut took = Vec::new();
    while due.duration_since(start) < during {
        let mut from = due;
        if let Some(left) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(left);
            from = Instant::now();
        }
        work()?;
        took.push(from.elapsed());
        due += period;
    }
    Ok(took)
}

/// The value below which this part of them lies.
pub(crate) fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// What this process has used of the processors so far, in user and system mode.
#[cfg(unix)]
pub(crate) fn cpu_secs() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

#[cfg(not(unix))]
pub(crate) fn cpu_secs() -> f64 {
    f64::NAN
}
