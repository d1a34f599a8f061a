//! File systems of a test's own, that nobody else sees and that go with it.

use std::ffi::OsStr;
use std::io::Write;
use std::mem::forget;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{io, thread};

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs a test on a thread with a mount namespace of its own: other processes and tests do not see
/// what is mounted there, and with the last thread and process in it, however they end, its mounts
/// and their loop devices are gone.
///
/// Without the privilege the test is skipped, and in CI it fails.
pub(crate) fn in_private_mounts(test: impl FnOnce() + Send) {
    let run = || match private_mounts() {
        Ok(()) => test(),
        Err(Errno::PERM) => lacks_privilege("to have file systems mounted"),
        Err(error) => panic!("cannot unshare the mounts: {error}"),
    };
    // What the test says and how it fails goes by its name.
    let name = thread::current().name().unwrap_or("test").to_owned();
    let thread = thread::Builder::new().name(name);
    if let Err(panic) = thread::scope(|scope| thread.spawn_scoped(scope, run).unwrap().join()) {
        resume_unwind(panic);
    }
}

/// Gives this thread, and those it will start, a mount namespace of its own.
fn private_mounts() -> Result<(), Errno> {
    // SAFETY: a mount namespace of its own, and the file system attributes (working directory,
    // umask) of its own that come with it, are nothing that memory safety hangs on.
    #[expect(unsafe_code, reason = "rustix leaves it to us not to unshare open files")]
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    // Otherwise what is mounted here shows up outside.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// Says that a test was not run for want of a privilege; in CI, where it is there, fails.
fn lacks_privilege(what: &str) {
    let message = format!("NOT TESTED: needs root {what}");
    assert!(std::env::var_os("CI").is_none(), "{message}");
    skip(&message);
}

/// Says that a test was not run because this machine's kernel cannot do it.
pub(crate) fn kernel_lacks(what: &str) {
    skip(&format!("NOT TESTED: this kernel has no {what}"));
}

/// Not with `eprintln`: nobody would hear it when the tests pass.
fn skip(message: &str) {
    let test = thread::current();
    let _ = writeln!(io::stderr(), "{}: {message}", test.name().unwrap_or("test"));
}

/// Whether the kernel knows a file system.
pub(crate) fn knows_file_system(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some(name))
}

/// Runs a command that has to succeed.
pub(crate) fn run(program: &str, arguments: &[&OsStr]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
}

/// Makes an ext4 file system in a file.
pub(crate) fn make_ext4(image: &Path, bytes: u64) {
    std::fs::File::create(image).unwrap().set_len(bytes).unwrap();
    let options = ["-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0"];
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.push(image.as_os_str());
    run("mkfs.ext4", &arguments);
}

/// Something mounted, until dropped. Whoever still uses it may go on.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Mounts a loop device, which goes when the mount does.
    pub(crate) fn device(device: &Path, at: &Path, options: &str) -> Self {
        let mount = ["-t", "ext4", "-o", options].map(OsStr::new);
        run("mount", &[&mount[..], &[device.as_os_str(), at.as_os_str()]].concat());
        let mounted = Self(at.to_owned());
        // In use, so it is only marked to go with its last user.
        run("losetup", &[OsStr::new("-d"), device.as_os_str()]);
        mounted
    }

    /// Unmounts when everything has been written.
    pub(crate) fn unmount(self) {
        rustix::mount::unmount(&self.0, UnmountFlags::empty()).unwrap();
        forget(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The mount namespace's end would do it as well, but later than the directory's.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}
