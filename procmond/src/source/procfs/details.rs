//! What is read once about a process: from `cmdline`, `exe`, `cwd`, `loginuid`, `cgroup`, `ns`.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Completeness, Namespaces};
use daemoneye_lib::redaction::{RAW_ARGV_BYTES_MAX, RawArgv, RedactedArgv};
use rustix::io::Errno;

use super::files::Files;
use super::stat::{Ids, Stat};
use super::{first_sight, is_exhaustion, is_gone};
use crate::source::{Facts, FileIdentity};

/// What the kernel puts after the path of an executable that has no name any more.
const DELETED: &[u8] = b" (deleted)";
/// Paths are a page at most; a control group's may be deeper, but no event holds more.
const PATH_BYTES_MAX: usize = 8192;
pub(super) type ReadError = (PathBuf, io::Error);

/// How well the reading went.
#[derive(Default)]
pub(super) struct Account {
    pub(super) refused: bool,
    pub(super) gone: bool,
    cut: bool,
}

/// Reads everything.
///
/// # Errors
/// If we are out of files or memory, which says nothing about the process; with the path.
pub(super) fn read(
    files: &mut Files,
    pid: u32,
    stat: &Stat,
    ids: Option<Ids>,
) -> Result<Facts, ReadError> {
    let mut account = Account::default();
    let mut facts = first_sight(stat, ids);
    // A thread of the kernel has no program, and so nothing is missing.
    if !stat.is_kernel_thread && !stat.has_ended {
        facts.argv = account.argv(files, pid)?;
        account.program(files, pid, &mut facts)?;
    }
    account.gone |= stat.has_ended;
    account.surroundings(files, pid, &mut facts)?;
    facts.completeness = account.completeness(stat.is_kernel_thread);
    Ok(facts)
}

impl Account {
    /// Reads its arguments.
    pub(super) fn argv(
        &mut self,
        files: &mut Files,
        pid: u32,
    ) -> Result<Option<RedactedArgv>, ReadError> {
        let Some(bytes) = self.file(files, pid, "cmdline", RAW_ARGV_BYTES_MAX + 1)? else {
            return Ok(None);
        };
        let argv = RawArgv::from_cmdline(bytes.to_vec()).redact();
        self.cut |= argv.is_truncated();
        Ok(Some(argv))
    }

    /// Reads what it runs, and in which directory.
    pub(super) fn program(
        &mut self,
        files: &mut Files,
        pid: u32,
        facts: &mut Facts,
    ) -> Result<(), ReadError> {
        if let Some(exe) = self.link(files, pid, "exe")?.map(ByteString::new) {
            // The link leads to the file itself, also when that has no path any more.
            let metadata = fs::metadata(files.path_of(pid).join("exe")).ok();
            facts.exe_file = metadata.as_ref().map(FileIdentity::from);
            let before = exe.as_bytes().strip_suffix(DELETED);
            // It may be called so.
            let is_its_name = before.is_some() && is_named(&exe, metadata.as_ref());
            let path = before.filter(|_| !is_its_name);
            facts.exe_deleted = Some(path.is_some());
            facts.exe = Some(path.map_or_else(|| exe.clone(), ByteString::new));
        }
        facts.cwd = self.link(files, pid, "cwd")?.map(ByteString::new);
        Ok(())
    }

    /// Reads where it runs.
    pub(super) fn surroundings(
        &mut self,
        files: &mut Files,
        pid: u32,
        facts: &mut Facts,
    ) -> Result<(), ReadError> {
        if let Some(bytes) = self.file(files, pid, "loginuid", 32)? {
            facts.login_uid = parse_login_uid(bytes);
        }
        if let Some(bytes) = self.file(files, pid, "cgroup", 64 * 1024)?
            && let Some((path, container_id)) = cgroup(bytes)
        {
            self.cut |= path.as_bytes().len() == PATH_BYTES_MAX;
            facts.cgroup = Some(path);
            facts.container_id = container_id;
        }
        facts.namespaces = self.namespaces(files, pid)?;
        Ok(())
    }

    pub(super) fn completeness(mut self, is_kernel_thread: bool) -> Completeness {
        // What there is to know of a thread of the kernel is known.
        self.refused &= !is_kernel_thread;
        match self {
            Self { gone: true, .. } => Completeness::EnrichedLate,
            Self { refused: true, .. } => Completeness::Partial,
            Self { cut: true, .. } => Completeness::Truncated,
            _ => Completeness::Complete,
        }
    }

    fn link<'a>(
        &mut self,
        files: &'a mut Files,
        pid: u32,
        name: &str,
    ) -> Result<Option<&'a [u8]>, ReadError> {
        match files.follow(pid, name) {
            Ok(()) => Ok(Some(files.content())),
            Err(error) => self.missing(files.failed(error)).map(|()| None),
        }
    }

    /// Reads a file, `most` bytes of it. `None` if it could not be read.
    pub(super) fn file<'a>(
        &mut self,
        files: &'a mut Files,
        pid: u32,
        name: &str,
        most: usize,
    ) -> Result<Option<&'a [u8]>, ReadError> {
        match files.fill(pid, name, most) {
            Ok(()) => Ok(Some(files.content())),
            // A kernel may be built without a file such as `loginuid`.
            Err(Errno::NOENT) => Ok(None),
            Err(error) => self.missing(files.failed(error)).map(|()| None),
        }
    }

    fn namespaces(&mut self, files: &mut Files, pid: u32) -> Result<Option<Namespaces>, ReadError> {
        let mut of = |name: &str| -> Result<Option<u64>, ReadError> {
            Ok(self.link(files, pid, name)?.and_then(namespace_number))
        };
        let namespaces = Namespaces {
            pid: of("ns/pid")?,
            mnt: of("ns/mnt")?,
            net: of("ns/net")?,
            user: of("ns/user")?,
            uts: of("ns/uts")?,
            ipc: of("ns/ipc")?,
            cgroup: of("ns/cgroup")?,
        };
        Ok((namespaces != Namespaces::default()).then_some(namespaces))
    }

    /// Whoever owns a process can make its facts unreadable, for example with a working directory
    /// too deep to have a path. That must not keep us from seeing the others.
    fn missing(&mut self, (path, error): ReadError) -> Result<(), ReadError> {
        if is_exhaustion(&error) {
            return Err((path, error));
        }
        if is_gone(&error) {
            self.gone = true;
        } else {
            self.refused = true;
        }
        Ok(())
    }
}

/// Whether this path leads to this file.
fn is_named(path: &ByteString, file: Option<&Metadata>) -> bool {
    let found = fs::metadata(OsStr::from_bytes(path.as_bytes())).ok();
    let number = |metadata: &Metadata| (metadata.dev(), metadata.ino());
    found.is_some() && found.as_ref().map(number) == file.map(number)
}

/// -1 as an unsigned number says that nobody logged in.
fn parse_login_uid(bytes: &[u8]) -> Option<u32> {
    let uid: u32 = std::str::from_utf8(bytes).ok()?.trim().parse().ok()?;
    (uid != u32::MAX).then_some(uid)
}

/// The control group and the container it names, of what the file of that name says.
pub(super) fn cgroup(bytes: &[u8]) -> Option<(ByteString, Option<Arc<str>>)> {
    let path = parse_cgroup(bytes)?;
    let most = path.len().min(PATH_BYTES_MAX);
    Some((ByteString::new(&path[..most]), container_id(path)))
}

/// The path in the unified hierarchy, or where there is none in that of systemd, or any.
fn parse_cgroup(bytes: &[u8]) -> Option<&[u8]> {
    let lines = || {
        bytes.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut parts = line.splitn(3, |byte| *byte == b':');
            Some((parts.next()?, parts.next()?, parts.next()?))
        })
    };
    lines()
        .find(|(number, controllers, _)| *number == b"0" && controllers.is_empty())
        .or_else(|| lines().find(|(_, controllers, _)| *controllers == b"name=systemd"))
        .or_else(|| lines().next())
        .map(|(_, _, path)| path)
}

/// 64 hexadecimal digits by themselves in the last part of the path that has them.
fn container_id(cgroup: &[u8]) -> Option<Arc<str>> {
    let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    cgroup
        .split(|byte| !is_hex(byte))
        .rfind(|run| run.len() == 64)
        .and_then(|run| std::str::from_utf8(run).ok())
        .map(Arc::from)
}

/// The number in `pid:[4026531836]`.
fn namespace_number(target: &[u8]) -> Option<u64> {
    let open = target.iter().position(|byte| *byte == b'[')?;
    std::str::from_utf8(target[open + 1..].strip_suffix(b"]")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_control_group_and_the_container_in_it() {
        let id = "ab12".repeat(16);
        let docker = format!("0::/system.slice/docker-{id}.scope\n");
        let path = parse_cgroup(docker.as_bytes()).unwrap();
        assert_eq!(container_id(path).as_deref(), Some(id.as_str()));
        let old = format!("5:memory:/m\n1:name=systemd:/kubepods/pod1/{id}\n");
        let path = parse_cgroup(old.as_bytes()).unwrap();
        assert_eq!(container_id(path).as_deref(), Some(id.as_str()));
        assert_eq!(parse_cgroup(b"5:memory:/m:x\n"), Some(&b"/m:x"[..]));
        assert_eq!(container_id(b"/user.slice"), None);
        assert_eq!(parse_cgroup(b""), None);
    }

    #[test]
    fn reads_numbers_of_namespaces_and_logins() {
        assert_eq!(namespace_number(b"pid:[4026531836]"), Some(4_026_531_836));
        assert_eq!(namespace_number(b"pid:["), None);
        assert_eq!(parse_login_uid(b"1000"), Some(1000));
        assert_eq!(parse_login_uid(b"4294967295\n"), None);
    }
}
