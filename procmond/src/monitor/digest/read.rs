//! Reading the file that a process runs, and no other.

use daemoneye_lib::models::process::Sha256;

use super::Job;

/// Why there is no digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Missed {
    /// The process has ended or runs something else, and the file is not where it was.
    Gone,
    /// It was written to while it was read, or its path leads to another file now.
    Changed,
    /// It is larger than is read.
    TooLarge,
    /// It was not read in time.
    Late,
    /// The system does not let us read it.
    Unreadable,
}

#[cfg(not(target_os = "linux"))]
pub(super) fn digest(_: &Job, _: &mut [u8]) -> Result<Sha256, Missed> {
    Err(Missed::Unreadable)
}

#[cfg(target_os = "linux")]
pub(super) use linux::digest;
#[cfg(all(test, target_os = "linux"))]
pub(super) use linux::digest_of;

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use rustix::fs::{CWD, Mode, OFlags, openat};
    use sha2::Digest;

    use super::{Job, Missed, Sha256};
    use crate::source::FileIdentity;

    /// Reads the file by way of the process, or else by its path.
    pub(in super::super) fn digest(job: &Job, buffer: &mut [u8]) -> Result<Sha256, Missed> {
        // The process runs the file itself. The kernel may know its device by another number than
        // user space does (btrfs, overlayfs); a path is not believed without.
        let by_process = format!("/proc/{}/exe", job.pid);
        let is_it = |found: &FileIdentity| {
            FileIdentity { device: job.identity.device, ..*found } == job.identity
        };
        let missed = match read(by_process.as_ref(), is_it, buffer) {
            Ok(digest) => return Ok(digest),
            Err(missed) => missed,
        };
        let Some(path) = job.path.as_ref().filter(|_| job.is_settled) else { return Err(missed) };
        read(Path::new(OsStr::from_bytes(path)), |found| *found == job.identity, buffer)
    }

    fn read(
        path: &Path,
        is_it: impl Fn(&FileIdentity) -> bool,
        buffer: &mut [u8],
    ) -> Result<Sha256, Missed> {
        // Opening a device or a pipe can do harm, or last: so it is looked at first, and what was
        // looked at is opened.
        let place = open(path, OFlags::PATH)?;
        let identity = identity_of(&place)?;
        if !is_it(&identity) {
            return Err(Missed::Changed);
        }
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        let file = open(path.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        digest_of(file, identity, buffer)
    }

    /// Reads a file that must stay as it is.
    pub(in super::super) fn digest_of(
        mut file: File,
        identity: FileIdentity,
        buffer: &mut [u8],
    ) -> Result<Sha256, Missed> {
        let mut sum = sha2::Sha256::new();
        let mut left = identity.size;
        loop {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(count) => {
                    left = left.checked_sub(count as u64).ok_or(Missed::Changed)?;
                    sum.update(&buffer[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(why(&error)),
            }
        }
        if left > 0 || identity_of(&file)? != identity {
            return Err(Missed::Changed);
        }
        Ok(Sha256(sum.finalize().into()))
    }

    fn open(path: &Path, flags: OFlags) -> Result<File, Missed> {
        let file = openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
        file.map(File::from).map_err(|error| why(&error.into()))
    }

    fn identity_of(file: &File) -> Result<FileIdentity, Missed> {
        let metadata = file.metadata().map_err(|error| why(&error))?;
        if metadata.is_file() { Ok(FileIdentity::from(&metadata)) } else { Err(Missed::Changed) }
    }

    fn why(error: &io::Error) -> Missed {
        match error.kind() {
            io::ErrorKind::NotFound => Missed::Gone,
            // A process that has ended and is still listed.
            _ if error.raw_os_error() == Some(libc::ESRCH) => Missed::Gone,
            _ => Missed::Unreadable,
        }
    }
}
