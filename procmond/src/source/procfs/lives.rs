//! Holding on to processes.
//!
//! A pid is given again; what a descriptor refers to is one life and no other. Of each process that
//! is held there are two: a pidfd, which tells of its end at once and how it ended, and its
//! `schedstat`, which says whether it has run, without a path to look up, until it is reaped. They
//! need no privileges. There are so many as the limit of open files leaves room for; the other
//! processes are looked at by their paths, and their ends are seen by the next look.

use std::io::{PipeWriter, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use daemoneye_lib::models::process::{Exit, SourceName};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Updater};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};

use super::files::Files;
use super::stat;
use crate::source::clock::since_boot_ns;
use crate::source::native::is_ready_within;
use crate::source::poll;

/// Descriptors that are left to the rest of the program.
const RESERVED: u64 = 1024;
/// Descriptors for processes at most: two for each.
const DESCRIPTORS_MAX: u64 = 64 * 1024;
/// Ends that are told together at most.
const ENDS_AT_ONCE: usize = 256;
/// Stands for no pid.
const NOBODY: u64 = u64::MAX;

/// Processes of which somebody is told when they end.
pub(super) struct Lives {
    epoll: Arc<OwnedFd>,
    /// Descriptors from this number on are for the rest of the program. The kernel gives the lowest
    /// that is free, so this holds whoever else opens files.
    end: RawFd,
    /// Closed with this, it ends the thread.
    _open: PipeWriter,
}

/// One life of a process.
pub(super) struct Life {
    pidfd: OwnedFd,
    ran: OwnedFd,
}

/// How long a process has run, as [`stat::parse_ran`] has it.
pub(super) type Ran = Option<[u64; 3]>;

/// It has been reaped: nothing with its pid is it.
pub(super) struct Reaped;

impl Lives {
    /// Begins to tell of ends: the pids, and when, in nanoseconds since boot. `None` if that cannot
    /// be done here.
    pub(super) fn new(tell: impl Fn(Vec<u32>, u64) -> bool + Send + 'static) -> Option<Self> {
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC).ok()?);
        let (closed, open) = pipe().ok()?;
        epoll::add(&epoll, &closed, EventData::new_u64(NOBODY), EventFlags::empty()).ok()?;
        let waiting = Arc::clone(&epoll);
        let wait = move || {
            let _closed = closed;
            while let Some(ended) = wait_for_ends(&waiting) {
                if !tell(ended, since_boot_ns()) {
                    return;
                }
            }
        };
        poll::spawn(SourceName::Poll, "procmond-ends", wait).ok()?;
        Some(Self { epoll, end: descriptors_end(), _open: open })
    }

    /// Holds the process that has this pid now. `None` if it has ended, or there is no room.
    pub(super) fn hold(&self, files: &mut Files, pid: u32) -> Option<Life> {
        let pidfd = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
        let ran = files.open_of(pid, "schedstat").ok()?;
        let life = Life { pidfd, ran };
        // One that lives on had the pid all the time, so both are of one life.
        if life.ran.as_raw_fd() >= self.end || life.has_ended() {
            return None;
        }
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        epoll::add(&self.epoll, &life.pidfd, EventData::new_u64(pid.into()), flags).ok()?;
        Some(life)
    }

    /// Tells of it once more, when it has been reaped.
    pub(super) fn tell_when_reaped(&self, pid: u32, life: &Life) {
        let data = EventData::new_u64(pid.into());
        // Otherwise the next look finds it.
        let _ = epoll::modify(&self.epoll, &life.pidfd, data, EventFlags::ONESHOT);
    }
}

impl Life {
    pub(super) fn ran(&self) -> Result<Ran, Reaped> {
        let mut bytes = [0; 128];
        match rustix::io::retry_on_intr(|| rustix::io::pread(&self.ran, &mut bytes, 0)) {
            Ok(length) => Ok(stat::parse_ran(&bytes[..length])),
            Err(Errno::SRCH) => Err(Reaped),
            Err(_) => Ok(None),
        }
    }

    /// Whether it has its pid still.
    pub(super) fn has_pid(&self) -> bool {
        self.ran().is_ok()
    }

    /// Whether it has ended, and perhaps not been reaped.
    pub(super) fn has_ended(&self) -> bool {
        is_ready_within(&self.pidfd, Duration::ZERO)
    }

    /// How it ended, once it has been reaped; whoever may not trace it is told, too. Linux 6.15.
    pub(super) fn exit(&self) -> Option<Exit> {
        let mut info = PidfdInfo { mask: PidfdInfo::EXIT, ..PidfdInfo::default() };
        #[expect(unsafe_code, reason = "there is no safe call for this request")]
        // SAFETY: the request is PIDFD_GET_INFO for a structure of this size, which the kernel
        // fills, and every value of its fields is one.
        unsafe { ioctl::ioctl(&self.pidfd, Updater::<GET_INFO, _>::new(&mut info)) }.ok()?;
        (info.mask & PidfdInfo::EXIT != 0).then(|| crate::source::exit_of(info.exit_code))
    }
}

const GET_INFO: Opcode = ioctl::opcode::read_write::<PidfdInfo>(0xff, 11);

/// The kernel's `struct pidfd_info` in its first size.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    _cgroup: u64,
    _ids: [u32; 11],
    exit_code: i32,
}

impl PidfdInfo {
    const EXIT: u64 = 1 << 3;
}

/// `None` when nobody wants to know any more.
fn wait_for_ends(epoll: &OwnedFd) -> Option<Vec<u32>> {
    let mut events = [MaybeUninit::uninit(); ENDS_AT_ONCE];
    let ended = loop {
        match epoll::wait(epoll, &mut events, None) {
            Ok((ended, _)) => break ended,
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "ends of processes are seen by looks only");
                return None;
            }
        }
    };
    ended.iter().map(|event| u32::try_from(event.data.u64()).ok()).collect()
}

/// Raises the limit of open files as far as it can be, and says how many may be for processes.
fn descriptors_end() -> RawFd {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let end = (limit - RESERVED.min(limit / 2)).min(DESCRIPTORS_MAX);
    RawFd::try_from(end).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A process that reads until its input ends, and its life.
    fn held(lives: &Lives) -> (std::process::Child, Life) {
        let mut command = Command::new("/bin/sh");
        let command = command.args(["-c", "read x; exit 7"]).stdin(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut files = Files::open("/proc".into()).unwrap();
        let life = lives.hold(&mut files, child.id()).expect("a pidfd");
        (child, life)
    }

    #[test]
    fn an_end_is_told_when_it_comes_and_again_when_it_is_reaped() {
        let (sender, ends) = std::sync::mpsc::channel();
        let lives = Lives::new(move |pids, _| sender.send(pids).is_ok()).unwrap();
        let (mut child, life) = held(&lives);
        assert!(life.has_pid() && !life.has_ended());
        drop(child.stdin.take());
        assert_eq!(ends.recv().unwrap(), [child.id()]);
        assert!(life.has_pid() && life.has_ended());
        assert_eq!(life.exit(), None, "its parent is told first");
        lives.tell_when_reaped(child.id(), &life);
        child.wait().unwrap();
        assert_eq!(ends.recv().unwrap(), [child.id()]);
        assert!(!life.has_pid() && life.has_ended());
        // Before Linux 6.15 nobody can say.
        assert!(life.exit().is_none_or(|exit| exit.exit_code == Some(7)));
        let mut files = Files::open("/proc".into()).unwrap();
        assert!(lives.hold(&mut files, child.id()).is_none(), "it is gone");
        drop(lives);
        assert!(ends.recv().is_err(), "the thread has ended");
    }

    #[test]
    fn no_more_are_held_than_there_is_room_for() {
        let mut lives = Lives::new(|_, _| true).unwrap();
        let mut files = Files::open("/proc".into()).unwrap();
        let me = std::process::id();
        let first = lives.hold(&mut files, me).unwrap();
        lives.end = first.ran.as_raw_fd();
        assert!(lives.hold(&mut files, me).is_none(), "this would be a higher one");
    }
}
