//! Being there before a process that was just started has ended.

use std::mem::size_of;

/// Within each such time a deadline gives the thread so much of it, before everything else.
const PERIOD_NS: u64 = 500_000;
const RUNTIME_NS: u64 = 400_000;
/// The least nice there is.
const NICE: i32 = -20;
/// Whoever asks for short turns is let in before those that have longer ones.
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` of `linux/sched/types.h`, in its first version.
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Lets this thread run before others, as far as it may. Refused to those without CAP_SYS_NICE, who
/// get the short turns only.
pub(super) fn be_early() {
    // Nice or not, one that has just run waits for the next tick of the clock, and a process that
    // was begun meanwhile has ended. A real-time priority would not wait either, but a storm of
    // processes would stop the machine: the deadline leaves others a fifth of one processor.
    let _ = set(&Attributes::DEADLINE)
        || set(&Attributes { nice: NICE, ..Attributes::SHORT_TURNS })
        || set(&Attributes::SHORT_TURNS);
}

impl Attributes {
    /// `SCHED_DEADLINE`. Refused also where the thread is kept to some processors, or others have
    /// deadlines already.
    const DEADLINE: Self = Self {
        size: size_of::<Self>() as u32,
        policy: libc::SCHED_DEADLINE as u32,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: RUNTIME_NS,
        deadline: PERIOD_NS,
        period: PERIOD_NS,
    };
    /// As everybody. Kernels before 6.12 pay no attention to the length of turns.
    const SHORT_TURNS: Self =
        Self { policy: 0, runtime: SLICE_NS, deadline: 0, period: 0, ..Self::DEADLINE };
}

fn set(attributes: &Attributes) -> bool {
    #[expect(unsafe_code, reason = "nothing safe asks the kernel for this")]
    // SAFETY: the kernel reads as many bytes of the structure as its first field says, and changes
    // only how this thread is scheduled.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes, 0) };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The thread's policy and niceness, as the kernel shows them.
    fn own() -> (u32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[41 - 3].parse().unwrap(), fields[19 - 3].parse().unwrap())
    }

    #[test]
    fn everybody_gets_short_turns_and_root_comes_first() {
        // On a thread of its own: others are not to be let wait.
        let early = std::thread::spawn(|| {
            assert!(set(&Attributes::SHORT_TURNS), "{}", std::io::Error::last_os_error());
            let refused = (!set(&Attributes::DEADLINE)).then(std::io::Error::last_os_error);
            be_early();
            (refused, own())
        });
        let (refused, (policy, nice)) = early.join().unwrap();
        match refused.as_ref().and_then(std::io::Error::raw_os_error) {
            None => assert_eq!((policy, nice), (libc::SCHED_DEADLINE as u32, 0)),
            // Others may have all the deadlines there are, or the thread not all processors.
            Some(libc::EBUSY | libc::EPERM) if rustix::process::geteuid().is_root() => {
                assert_ne!((policy, nice), (0, 0));
            }
            Some(libc::EPERM) => assert_eq!((policy, nice), (0, 0)),
            Some(_) => panic!("{refused:?}"),
        }
    }
}
