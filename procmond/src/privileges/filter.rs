//! The filter of system calls.
//!
//! It lists what is refused, not what is allowed. What the C library, the allocator and the runtime
//! call changes with every release of them, and a list of that would, on somebody's machine, one day
//! end or blind the monitor. What an intruder needs and a monitor never does is known and stays.
//! Refused calls fail with `EPERM`; nothing is killed.
//!
//! Loading eBPF programs stays allowed: a source that failed is tried again later.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads, sock_filter,
};

/// Refused, whatever the arguments.
const REFUSED: &[c_long] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes' memory, files and lives.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // Connections from others.
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    // Files by number, which no directory's permissions protect.
    libc::SYS_open_by_handle_at,
    // The kernel and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Keys.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Wide or old ways into the kernel.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
];

/// The same, for calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const REFUSED_OLD: &[c_long] =
    &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_OLD: &[c_long] = &[];

/// The protocols of netlink that sources use: the process connector and taskstats. The others, with
/// CAP_NET_ADMIN, would rule routes and firewalls.
const NETLINK_PROTOCOLS: [i32; 2] = [libc::NETLINK_CONNECTOR, libc::NETLINK_GENERIC];

/// The numbers of the calls for network interfaces, which any socket takes, are 0x89xx.
const IOCTL_GROUP: u64 = 0xff00;
const IOCTL_SOCKETS: u64 = 0x8900;

/// One argument and what is said of it.
type Condition = (u8, SeccompCmpOp, u64);

/// What is refused with some arguments: all conditions of a row hold.
fn refused_with() -> Vec<(c_long, Vec<Condition>)> {
    let own_pid = u64::from(std::process::id());
    let not_netlink = |protocol| (2, Ne, protocol as u64);
    let mut netlink = vec![(0, Eq, libc::AF_NETLINK as u64)];
    netlink.extend(NETLINK_PROTOCOLS.map(not_netlink));
    let execute = (2, MaskedEq(libc::PROT_EXEC as u64), libc::PROT_EXEC as u64);
    let both = (libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    vec![
        // Neither the network's families nor any other.
        (libc::SYS_socket, vec![(0, Ne, libc::AF_UNIX as u64), (0, Ne, libc::AF_NETLINK as u64)]),
        (libc::SYS_socket, netlink),
        // Threads, but no processes and no namespaces.
        (libc::SYS_clone, vec![(0, MaskedEq(libc::CLONE_THREAD as u64), 0)]),
        // A thread of ours may end us: so does abort().
        (libc::SYS_tgkill, vec![(0, Ne, own_pid)]),
        (libc::SYS_ioctl, vec![(1, MaskedEq(IOCTL_GROUP), IOCTL_SOCKETS)]),
        // What is typed at a terminal is for people to say.
        (libc::SYS_ioctl, vec![(1, Eq, libc::TIOCSTI)]),
        // No code that was written at run time.
        (libc::SYS_mmap, vec![(2, MaskedEq(both), both)]),
        (libc::SYS_mprotect, vec![execute.clone()]),
        (libc::SYS_pkey_mprotect, vec![execute]),
    ]
}

/// Puts the filter in place, for all threads and for good.
pub(super) fn install() -> Result<(), Error> {
    apply_filter_all_threads(&refusing()?)?;
    apply_filter_all_threads(&without_newer_calls())
}

fn refusing() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_OLD).map(|call| (*call, Vec::new())).collect();
    for (call, conditions) in refused_with() {
        let conditions = conditions
            .into_iter()
            .map(|(argument, is, value)| SeccompCondition::new(argument, Dword, is, value));
        let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
        rules.entry(call).or_default().push(rule);
    }
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?
    .try_into()
}

/// Says of `clone3` that there is none: its flags stand in memory, where no filter can look, and C
/// libraries then take `clone`. The same of every call of the x32 ABI, whose numbers would be a way
/// around the list.
fn without_newer_calls() -> BpfProgram {
    const LOAD_CALL: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const X32: u32 = 0x4000_0000;
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    [
        // The number of the call is what `seccomp_data` begins with.
        (LOAD_CALL, 0, 0, 0),
        (EQUAL, 1, 0, libc::SYS_clone3 as u32),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, no_such_call),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .map(|(code, jt, jf, k)| sock_filter { code, jt, jf, k })
    .to_vec()
}
