//! One record of the kernel's ring, as `bpf/capture.bpf.c` writes it.

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Capabilities, Completeness, Exit, Namespaces};
use daemoneye_lib::redaction::RawArgv;

use super::super::native::{take, u32, u64};
use super::super::teller;
use crate::source::{Facts, FileIdentity, Missing, exit_of};

const ARGV_CUT: u32 = 1;
const ARGV_UNREADABLE: u32 = 2;
const PATH_CUT: u32 = 4 | 8;
const EXE_DELETED: u32 = 16;
const OTHER_GROUP: u32 = 32;
const HAS_ENDED: u32 = 64;

/// How many records found no room, of each sort, since the programs are in place.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Lost(pub(super) [u32; 3]);

impl Lost {
    /// How many more than there were before. Counts begin again after the highest, and records of
    /// two processors may have been counted in the other order.
    pub(super) fn since(self, before: Self) -> Missing {
        let [starts, changes, stops] = std::array::from_fn(|sort| {
            let more = self.0[sort].wrapping_sub(before.0[sort]).cast_signed();
            u64::try_from(more).unwrap_or(0)
        });
        Missing { starts, changes, stops }
    }

    /// These and so many more.
    pub(super) fn and(self, missing: Missing) -> Self {
        let Missing { starts, changes, stops } = missing;
        let more = [starts, changes, stops];
        Self(std::array::from_fn(|sort| self.0[sort].wrapping_add(more[sort] as u32)))
    }
}

impl teller::Lost for Lost {
    fn since(self, told: Self) -> (u64, Option<Missing>) {
        let missing = Self::since(self, told);
        (missing.total(), Some(missing))
    }

    fn or_told(self, told: Self) -> Self {
        told.and(Self::since(self, told))
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Fork,
    Exec,
    Exit,
    Rename,
    Move,
    /// None of these: a look found it so.
    Look,
}

/// A record taken apart.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    flags: u32,
    /// When it happened, in nanoseconds since boot.
    pub(super) time_ns: u64,
    /// When the process began.
    pub(super) start_ns: u64,
    /// How many records had found no room before this one.
    pub(super) lost: Lost,
    capabilities: Capabilities,
    pub(super) pid: u32,
    ppid: u32,
    /// Who made it.
    pub(super) forker: u32,
    session: u32,
    uid: u32,
    euid: u32,
    gid: u32,
    egid: u32,
    login_uid: u32,
    namespaces: [u32; 7],
    /// Which of the programs of the process.
    pub(super) exec_id: u32,
    cpu_ns: u64,
    peak_pages: u64,
    wait_status: i32,
    name: &'a [u8],
    exe_file: Option<FileIdentity>,
    argv: &'a [u8],
    exe: &'a [u8],
    cwd: &'a [u8],
}

impl<'a> Record<'a> {
    /// `None` if the bytes are no record.
    pub(super) fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let rest = &mut bytes;
        let kind = match u32(rest)? {
            1 => Kind::Fork,
            2 => Kind::Exec,
            3 => Kind::Exit,
            4 => Kind::Rename,
            5 => Kind::Move,
            6 => Kind::Look,
            _ => return None,
        };
        let mut record = Self {
            kind,
            flags: u32(rest)?,
            time_ns: u64(rest)?,
            start_ns: u64(rest)?,
            capabilities: Capabilities(u64(rest)?),
            lost: Lost([u32(rest)?, u32(rest)?, u32(rest)?]),
            pid: u32(rest)?,
            ppid: u32(rest)?,
            forker: u32(rest)?,
            session: u32(rest)?,
            uid: u32(rest)?,
            euid: u32(rest)?,
            gid: u32(rest)?,
            egid: u32(rest)?,
            login_uid: u32(rest)?,
            namespaces: [0; 7],
            exec_id: 0,
            cpu_ns: 0,
            peak_pages: 0,
            wait_status: 0,
            name: &[],
            exe_file: None,
            argv: &[],
            exe: &[],
            cwd: &[],
        };
        for namespace in &mut record.namespaces {
            *namespace = u32(rest)?;
        }
        record.exec_id = u32(rest)?;
        let name = take(rest, 16)?;
        record.name = name.split(|byte| *byte == 0).next()?;
        match kind {
            Kind::Exec => record.read_program(rest)?,
            Kind::Exit => record.read_end(rest)?,
            // What goes not through the ring says whether it has ended.
            Kind::Look if !rest.is_empty() => record.read_end(rest)?,
            _ => {}
        }
        Some(record)
    }

    fn read_end(&mut self, rest: &mut &'a [u8]) -> Option<()> {
        (self.cpu_ns, self.peak_pages) = (u64(rest)?, u64(rest)?);
        self.wait_status = u32(rest)?.cast_signed();
        Some(())
    }

    fn read_program(&mut self, rest: &mut &'a [u8]) -> Option<()> {
        let lengths = [u32(rest)?, u32(rest)?, u32(rest)?];
        let device = device(u32(rest)?);
        let (inode, size) = (u64(rest)?, u64(rest)?);
        let (ctime_sec, ctime_nsec) = (u64(rest)?.cast_signed(), u64(rest)?.cast_signed());
        self.exe_file = Some(FileIdentity { device, inode, size, ctime_sec, ctime_nsec });
        let [argv, exe, cwd] = lengths.map(|length| take(rest, length as usize));
        (self.argv, self.exe, self.cwd) = (argv?, exe?, cwd?);
        Some(())
    }

    /// Whether the process is not in its parent's control group.
    pub(super) fn is_in_other_group(&self) -> bool {
        self.flags & OTHER_GROUP != 0
    }

    /// The arguments as far as they were taken, if there are more.
    pub(super) fn cut_argv(&self) -> Option<&'a [u8]> {
        (self.kind == Kind::Exec && self.flags & ARGV_CUT != 0).then_some(self.argv)
    }

    pub(super) fn is_path_cut(&self) -> bool {
        self.flags & PATH_CUT != 0
    }

    pub(super) fn name(&self) -> ByteString {
        ByteString::new(self.name)
    }

    /// What is known of the process, but for its control group.
    pub(super) fn facts(&self) -> Facts {
        let runs = self.kind == Kind::Exec;
        let is_cut = self.flags & (ARGV_CUT | PATH_CUT) != 0;
        let completeness = match self.flags {
            flags if flags & ARGV_UNREADABLE != 0 => Completeness::EnrichedLate,
            _ if is_cut => Completeness::Truncated,
            _ => Completeness::Complete,
        };
        let argv = runs && self.flags & ARGV_UNREADABLE == 0;
        let argv = argv.then(|| {
            let cut = self.flags & ARGV_CUT != 0;
            let raw = if cut { RawArgv::from_cut_cmdline } else { RawArgv::from_cmdline };
            raw(self.argv.to_vec()).redact()
        });
        let [pid, mnt, net, user, uts, ipc, cgroup] =
            self.namespaces.map(|number| (number != 0).then_some(u64::from(number)));
        Facts {
            ppid: Some(self.ppid),
            name: Some(self.name()),
            exe: runs.then(|| path(self.exe)),
            exe_deleted: runs.then_some(self.flags & EXE_DELETED != 0),
            exe_file: self.exe_file,
            argv,
            cwd: runs.then(|| path(self.cwd)),
            uid: Some(self.uid),
            euid: Some(self.euid),
            gid: Some(self.gid),
            egid: Some(self.egid),
            // -1 as an unsigned number says that nobody logged in.
            login_uid: Some(self.login_uid).filter(|uid| *uid != u32::MAX),
            session: Some(self.session),
            cgroup: None,
            container_id: None,
            namespaces: Some(Namespaces { pid, mnt, net, user, uts, ipc, cgroup }),
            capabilities: Some(self.capabilities),
            exe_sha256: None,
            completeness,
        }
    }

    /// How the process ended that was found to have.
    pub(super) fn exit_found(&self) -> Option<Exit> {
        (self.flags & HAS_ENDED != 0).then(|| exit_of(self.wait_status))
    }

    /// How the process ended.
    pub(super) fn exit(&self, page_bytes: u64) -> Exit {
        Exit {
            run_time_ns: Some(self.time_ns.saturating_sub(self.start_ns)),
            cpu_time_ns: Some(self.cpu_ns),
            peak_memory_bytes: (self.peak_pages > 0)
                .then(|| self.peak_pages.saturating_mul(page_bytes)),
            ..exit_of(self.wait_status)
        }
    }
}

/// The number that user space knows a device by, of the kernel's own.
fn device(number: u32) -> u64 {
    rustix::fs::makedev(number >> 20, number & 0xf_ffff)
}

/// A path of which the parts were written from the last one to the first, each ended by a zero.
fn path(parts: &[u8]) -> ByteString {
    let parts = parts.strip_suffix(&[0]).unwrap_or(parts);
    let mut path = Vec::with_capacity(parts.len() + 1);
    for part in parts.rsplit(|byte| *byte == 0) {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    ByteString::new(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_put_together_from_its_last_part_on() {
        assert_eq!(path(b"sh\0bin\0usr\0"), ByteString::from("/usr/bin/sh"));
        assert_eq!(path(b"memfd:x\0"), ByteString::from("/memfd:x"));
        assert_eq!(path(b""), ByteString::from("/"));
    }

    #[test]
    fn a_device_is_numbered_as_user_space_does() {
        // /dev/vda1, and a minor number beyond the eight bits that stand apart.
        assert_eq!(device(254 << 20 | 1), 0xfe01);
        assert_eq!(device(8 << 20 | 0x12345), 0x1230_0845);
    }

    #[test]
    fn whatever_is_cut_short_is_no_record() {
        let mut bytes = vec![0; 176];
        bytes[0] = 2;
        bytes[128] = 3;
        bytes.extend_from_slice(b"a\0b");
        let record = Record::read(&bytes).unwrap();
        assert_eq!((record.kind, record.argv), (Kind::Exec, &b"a\0b"[..]));
        for length in 0..bytes.len() {
            assert!(Record::read(&bytes[..length]).is_none(), "{length} bytes");
        }
        bytes[0] = 9;
        assert!(Record::read(&bytes).is_none());
        bytes[0] = 3;
        assert!(Record::read(&bytes[..148]).is_some());
        assert!(Record::read(&bytes[..147]).is_none());
    }

    #[test]
    fn losses_are_counted_on_beyond_the_highest_number() {
        let before = Lost([u32::MAX, 5, 7]);
        let missing = Lost([2, 5, 6]).since(before);
        assert_eq!(missing, Missing { starts: 3, changes: 0, stops: 0 });
    }
}
