//! What is read once about a process: from `cmdline`, `exe`, `cwd`, `loginuid`, `cgroup`, `ns`.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::process::{Completeness, Namespaces};
use daemoneye_lib::redaction::{RAW_ARGV_BYTES_MAX, RawArgv};

use super::stat::{self, Ids, Stat};
use super::{first_sight, is_exhaustion, is_gone};
use crate::source::{Facts, FileIdentity};

/// What the kernel puts after the path of an executable that has no name any more.
const DELETED: &[u8] = b" (deleted)";
/// Paths are a page at most; a control group's may be deeper, but no event holds more.
const PATH_BYTES_MAX: usize = 8192;
/// More than `stat` and `status` have.
const STAT_BYTES_MAX: u64 = 64 * 1024;

type ReadError = (PathBuf, io::Error);

/// How well the reading went.
#[derive(Default)]
struct Account {
    refused: bool,
    gone: bool,
    cut: bool,
}

/// Reads everything.
///
/// # Errors
/// If we are out of files or memory, which says nothing about the process; with the path.
pub(super) fn read(
    dir: &Path,
    stat: &Stat,
    ids: Option<Ids>,
    buffer: &mut Vec<u8>,
) -> Result<Facts, ReadError> {
    let mut account = Account::default();
    let mut facts = first_sight(stat, ids);
    // A thread of the kernel has no program, and so nothing is missing.
    if !stat.is_kernel_thread && !stat.has_ended {
        account.program(dir, &mut facts, buffer)?;
    }
    account.gone |= stat.has_ended;
    account.surroundings(dir, &mut facts, buffer)?;
    facts.completeness = account.completeness(stat);
    Ok(facts)
}

/// Reads everything, first what goes first when a process ends; and the moment it began, in ticks.
/// `None` if it is gone.
///
/// # Errors
/// If we are out of files or memory.
pub(super) fn read_at_once(
    dir: &Path,
    buffer: &mut Vec<u8>,
) -> Result<Option<(u64, Facts)>, ReadError> {
    let mut account = Account::default();
    let mut program = Facts::unknown(Completeness::EnrichedLate);
    account.program(dir, &mut program, buffer)?;
    if !account.file(dir.join("stat"), STAT_BYTES_MAX, buffer)? {
        return Ok(None);
    }
    let Some(stat) = stat::parse(buffer) else { return Ok(None) };
    let found = account.file(dir.join("status"), STAT_BYTES_MAX, buffer)?;
    let ids = found.then(|| stat::parse_ids(buffer)).flatten();
    let mut facts = first_sight(&stat, ids);
    // What has ended or is about to has none of these any more; nobody else has no arguments at all.
    let has_argv = program.argv.as_ref().is_some_and(|argv| argv.iter().next().is_some());
    account.gone |= !has_argv && !stat.is_kernel_thread;
    if has_argv {
        facts.argv = program.argv;
    }
    (facts.exe, facts.exe_deleted, facts.cwd) = (program.exe, program.exe_deleted, program.cwd);
    facts.exe_file = program.exe_file;
    account.surroundings(dir, &mut facts, buffer)?;
    facts.completeness = account.completeness(&stat);
    Ok(Some((stat.start_ticks, facts)))
}

impl Account {
    /// Reads what it runs: first what goes first when it ends.
    fn program(
        &mut self,
        dir: &Path,
        facts: &mut Facts,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if self.file(dir.join("cmdline"), RAW_ARGV_BYTES_MAX as u64 + 1, buffer)? {
            let argv = RawArgv::from_cmdline(buffer.clone()).redact();
            self.cut |= argv.is_truncated();
            facts.argv = Some(argv);
        }
        if let Some(exe) = self.link(dir.join("exe"))? {
            // The link leads to the file itself, also when that has no path any more.
            let metadata = fs::metadata(dir.join("exe")).ok();
            facts.exe_file = metadata.as_ref().map(FileIdentity::from);
            let before = exe.as_bytes().strip_suffix(DELETED);
            // It may be called so.
            let is_its_name = before.is_some() && is_named(&exe, metadata.as_ref());
            let path = before.filter(|_| !is_its_name);
            facts.exe_deleted = Some(path.is_some());
            facts.exe = Some(path.map_or_else(|| exe.clone(), ByteString::new));
        }
        facts.cwd = self.link(dir.join("cwd"))?;
        Ok(())
    }

    /// Reads where it runs.
    fn surroundings(
        &mut self,
        dir: &Path,
        facts: &mut Facts,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        if self.file(dir.join("loginuid"), 32, buffer)? {
            facts.login_uid = parse_login_uid(buffer);
        }
        if self.file(dir.join("cgroup"), 64 * 1024, buffer)?
            && let Some((path, container_id)) = cgroup(buffer)
        {
            self.cut |= path.as_bytes().len() == PATH_BYTES_MAX;
            facts.cgroup = Some(path);
            facts.container_id = container_id;
        }
        facts.namespaces = self.namespaces(&dir.join("ns"))?;
        Ok(())
    }

    fn completeness(mut self, stat: &Stat) -> Completeness {
        // What there is to know of a thread of the kernel is known.
        self.refused &= !stat.is_kernel_thread;
        match self {
            Self { gone: true, .. } => Completeness::EnrichedLate,
            Self { refused: true, .. } => Completeness::Partial,
            Self { cut: true, .. } => Completeness::Truncated,
            _ => Completeness::Complete,
        }
    }

    fn link(&mut self, path: PathBuf) -> Result<Option<ByteString>, ReadError> {
        match fs::read_link(&path) {
            Ok(target) => Ok(Some(ByteString::new(target.into_os_string().into_vec()))),
            Err(error) => self.missing(path, error).map(|()| None),
        }
    }

    /// Reads a file, `most` bytes of it. False if it could not be read.
    fn file(&mut self, path: PathBuf, most: u64, buffer: &mut Vec<u8>) -> Result<bool, ReadError> {
        buffer.clear();
        match File::open(&path).and_then(|file| file.take(most).read_to_end(buffer)) {
            Ok(_) => Ok(true),
            // A kernel may be built without a file such as `loginuid`.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => self.missing(path, error).map(|()| false),
        }
    }

    fn namespaces(&mut self, dir: &Path) -> Result<Option<Namespaces>, ReadError> {
        let mut of = |name: &str| -> Result<Option<u64>, ReadError> {
            let target = self.link(dir.join(name))?;
            Ok(target.and_then(|target| namespace_number(target.as_bytes())))
        };
        let namespaces = Namespaces {
            pid: of("pid")?,
            mnt: of("mnt")?,
            net: of("net")?,
            user: of("user")?,
            uts: of("uts")?,
            ipc: of("ipc")?,
            cgroup: of("cgroup")?,
        };
        Ok((namespaces != Namespaces::default()).then_some(namespaces))
    }

    /// Whoever owns a process can make its facts unreadable, for example with a working directory
    /// too deep to have a path. That must not keep us from seeing the others.
    fn missing(&mut self, path: PathBuf, error: io::Error) -> Result<(), ReadError> {
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
