//! The log's directory: whether it can be written, who holds it, whether there is room.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::Path;

use daemoneye_lib::paths::WAL_LOCK_FILE;

use super::report::{Finding, Report, Verdict};
use super::shown;
use crate::cli::whose;

const NAME: &str = "log directory";

/// Looks at the directory, or where it would be made.
pub(super) fn check(dir: &Path, budget_bytes: u64, report: &mut Report) {
    report.add(finding(dir, budget_bytes));
}

fn finding(dir: &Path, budget_bytes: u64) -> Finding {
    let bad = |detail: String| Finding::new(NAME, Verdict::Bad, detail);
    let there = match dir.metadata() {
        Ok(metadata) if metadata.is_dir() => true,
        Ok(_) => return bad(format!("{} is there and is no directory", shown(dir))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return bad(format!("{} cannot be looked at: {error}", shown(dir))),
    };
    // Where it would be made, if it is not there.
    let existing = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or_else(|| Path::new("."));
    if let Err(why) = writable(existing) {
        let place =
            if there { shown(dir) } else { format!("{}, for {},", shown(existing), shown(dir)) };
        let owner = whose(existing).map_or_else(String::new, |owner| format!(". {owner}"));
        return bad(format!("{place} cannot be written: {why}; set wal.dir or --wal-dir{owner}"));
    }
    if let Some(holder) = lock_holder(dir) {
        return bad(format!(
            "{} is held by a running procmond{holder}; stop that one, or give this one another \
             directory",
            shown(dir)
        ));
    }
    let state = if there { "can be written" } else { "is not there yet and can be made" };
    let detail = format!("{} {state}", shown(dir));
    match free_bytes(existing) {
        Some(free) if free < budget_bytes => Finding::new(
            NAME,
            Verdict::Limited,
            format!(
                "{detail}; {} MB are free, fewer than the {} MB that wal.disk_budget_bytes allows",
                free / 1_000_000,
                budget_bytes / 1_000_000
            ),
        ),
        Some(free) => {
            Finding::new(NAME, Verdict::Good, format!("{detail}; {} MB are free", free / 1_000_000))
        }
        None => Finding::new(NAME, Verdict::Good, detail),
    }
}

#[cfg(unix)]
fn writable(dir: &Path) -> Result<(), String> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| std::io::Error::from(error).to_string())
}

#[cfg(not(unix))]
fn writable(dir: &Path) -> Result<(), String> {
    let readonly = dir.metadata().map_err(|error| error.to_string())?.permissions().readonly();
    if readonly { Err("it is read-only".to_owned()) } else { Ok(()) }
}

/// Bytes that this user may still write; `None` where that cannot be asked.
fn free_bytes(dir: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let room = rustix::fs::statvfs(dir).ok()?;
        room.f_bavail.checked_mul(room.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        None
    }
}

/// Whether a running procmond holds the directory, and its pid for a message.
fn lock_holder(dir: &Path) -> Option<String> {
    // Only for reading: a look must not make the file.
    let mut file = File::open(dir.join(WAL_LOCK_FILE)).ok()?;
    // Shared, and given back at once when the file is closed.
    let Err(TryLockError::WouldBlock) = file.try_lock_shared() else { return None };
    let mut text = String::new();
    let pid: Option<u32> = file
        .by_ref()
        .take(16)
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.trim().parse().ok());
    Some(pid.map_or_else(String::new, |pid| format!(" (pid {pid})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_good_directory_from_a_bad_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &Path, budget| finding(path, budget);
        assert_eq!(at(dir.path(), 1).verdict, Verdict::Good);
        let new = at(&dir.path().join("a/b"), 1);
        assert_eq!(new.verdict, Verdict::Good);
        assert!(new.detail.contains("can be made"), "{}", new.detail);
        assert!(!dir.path().join("a").exists(), "looking makes nothing");
        let small = at(dir.path(), u64::MAX);
        assert_eq!(small.verdict, Verdict::Limited, "{}", small.detail);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(at(&file, 1).verdict, Verdict::Bad);
        let below_file = at(&file.join("x"), 1);
        assert_eq!(below_file.verdict, Verdict::Bad, "{}", below_file.detail);
    }

    #[test]
    fn names_the_holder_of_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WAL_LOCK_FILE);
        std::fs::write(&path, "4711\n").unwrap();
        assert_eq!(finding(dir.path(), 1).verdict, Verdict::Good, "a file alone holds nothing");
        let held = File::options().read(true).write(true).open(&path).unwrap();
        held.try_lock().unwrap();
        let found = finding(dir.path(), 1);
        assert_eq!(found.verdict, Verdict::Bad);
        assert!(found.detail.contains("pid 4711"), "{}", found.detail);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_may_not_be_written_is_bad_but_for_root() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
        let found = finding(&dir.path().join("log"), 1);
        if rustix::process::geteuid().is_root() {
            assert_eq!(found.verdict, Verdict::Good, "{}", found.detail);
        } else {
            assert_eq!(found.verdict, Verdict::Bad, "{}", found.detail);
            assert!(found.detail.contains("--wal-dir"), "{}", found.detail);
        }
    }
}
