//! Being there before a process that was just started has ended.

use std::mem::size_of;

/// The least nice there is.
const NICE: i32 = -20;
/// Whoever asks for short turns is let in before those that have longer ones, and at once.
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
    // A real-time priority would do more, and a storm of processes would stop the machine.
    if !set(NICE) {
        set(0);
    }
}

fn set(nice: i32) -> bool {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: 0,
        flags: 0,
        nice,
        priority: 0,
        // Kernels before 6.12 pay no attention to it.
        runtime: SLICE_NS,
        deadline: 0,
        period: 0,
    };
    #[expect(unsafe_code, reason = "nothing safe asks the kernel for this")]
    // SAFETY: the kernel reads as many bytes of the structure as its first field says, and changes
    // only how this thread is scheduled.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_short_turns_and_root_the_first() {
        // On a thread of its own: others are not to be let wait.
        let nice = std::thread::spawn(|| {
            assert!(set(0), "{}", std::io::Error::last_os_error());
            be_early();
            rustix::process::getpriority_process(None).unwrap()
        });
        let nice = nice.join().unwrap();
        let wanted = if rustix::process::geteuid().is_root() { NICE } else { 0 };
        assert_eq!(nice, wanted);
    }
}
