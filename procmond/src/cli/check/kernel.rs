//! What the kernel is and how it is set up, as far as sources depend on it.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::system::uname;
use rustix::thread::CapabilitySet;

use super::report::{Finding, Report, Verdict};

/// The first version that the source ebpf works with.
const EBPF_SINCE: (u32, u32) = (5, 17);

/// Looks at the kernel for a process with these capabilities.
pub(super) fn check(held: CapabilitySet, report: &mut Report) {
    let uname = uname();
    report.add(version(&uname.release().to_string_lossy(), &uname.machine().to_string_lossy()));
    let root = Path::new("/");
    report.add(types(root));
    report.add(lockdown(root));
    report.add(memlock(getrlimit(Resource::Memlock).current));
    report.add(hidepid(root, held.contains(CapabilitySet::SYS_PTRACE)));
}

fn version(release: &str, machine: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let is_new = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= EBPF_SINCE,
        _ => false,
    };
    let (verdict, means) = if is_new {
        (Verdict::Good, "new enough for every source")
    } else {
        (Verdict::Limited, "the source ebpf needs 5.17")
    };
    Finding::new("kernel", verdict, format!("Linux {release} on {machine}: {means}"))
}

fn types(root: &Path) -> Finding {
    const NAME: &str = "kernel's types (BTF)";
    match fs::File::open(root.join("sys/kernel/btf/vmlinux")) {
        Ok(_) => Finding::new(NAME, Verdict::Good, "there, as the source ebpf needs"),
        Err(error) => {
            let detail = format!(
                "/sys/kernel/btf/vmlinux: {error}. The source ebpf needs a kernel with \
                 CONFIG_DEBUG_INFO_BTF"
            );
            Finding::new(NAME, Verdict::Limited, detail)
        }
    }
}

fn lockdown(root: &Path) -> Finding {
    const NAME: &str = "lockdown";
    let Ok(text) = fs::read_to_string(root.join("sys/kernel/security/lockdown")) else {
        let detail = "the kernel does not say; only \"confidentiality\" would matter";
        return Finding::new(NAME, Verdict::Good, detail);
    };
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("confidentiality") => {
            let detail = "confidentiality: the source ebpf may not read what the kernel knows of \
                          processes, and cannot be used";
            Finding::new(NAME, Verdict::Limited, detail)
        }
        chosen => {
            let detail = format!("{}: keeps no source out", chosen.unwrap_or("unknown"));
            Finding::new(NAME, Verdict::Good, detail)
        }
    }
}

fn memlock(bytes: Option<u64>) -> Finding {
    let limit = bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"));
    let detail =
        format!("limit: {limit}. It does not matter: Linux counts eBPF's memory elsewhere");
    Finding::new("memlock", Verdict::Good, detail)
}

fn hidepid(root: &Path, may_trace: bool) -> Finding {
    const NAME: &str = "hidepid";
    let mounts = fs::read_to_string(root.join("proc/self/mounts")).unwrap_or_default();
    let options = mounts.lines().rev().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let is_proc = (words.next(), words.next()) == (Some("/proc"), Some("proc"));
        words.next().filter(|_| is_proc)
    });
    let hides = options.unwrap_or_default().split(',').find_map(|option| {
        option.strip_prefix("hidepid=").filter(|how| !["0", "off"].contains(how))
    });
    match hides {
        None => Finding::new(NAME, Verdict::Good, "off: /proc shows every process"),
        Some(how) if may_trace => {
            Finding::new(NAME, Verdict::Good, format!("{how}, but CAP_SYS_PTRACE sees them all"))
        }
        Some(how) => {
            let detail = format!(
                "{how}: /proc hides other users' processes from this one; they are seen with the \
                 source ebpf, or with CAP_SYS_PTRACE"
            );
            Finding::new(NAME, Verdict::Limited, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with one file.
    fn with(path: &str, text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        root
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (release, verdict) in [
            ("5.17.0", Verdict::Good),
            ("6.1.0-28-amd64", Verdict::Good),
            ("10.0", Verdict::Good),
            ("5.9.16", Verdict::Limited),
            ("4.18.0-553.el8", Verdict::Limited),
            ("unknown", Verdict::Limited),
            ("", Verdict::Limited),
        ] {
            let found = version(release, "x86_64");
            assert_eq!(found.verdict, verdict, "{release}");
            assert!(found.detail.starts_with(&format!("Linux {release} on x86_64: ")));
        }
    }

    #[test]
    fn types_that_are_not_there_are_missed() {
        assert_eq!(types(with("sys/kernel/btf/vmlinux", "x").path()).verdict, Verdict::Good);
        let none = types(with("other", "").path());
        assert_eq!(none.verdict, Verdict::Limited);
        assert!(none.detail.contains("CONFIG_DEBUG_INFO_BTF"), "{}", none.detail);
    }

    #[test]
    fn only_confidentiality_locks_us_out() {
        const FILE: &str = "sys/kernel/security/lockdown";
        for (text, verdict, says) in [
            ("[none] integrity confidentiality\n", Verdict::Good, "none: "),
            ("none [integrity] confidentiality\n", Verdict::Good, "integrity: "),
            ("none integrity [confidentiality]\n", Verdict::Limited, "confidentiality: "),
            ("", Verdict::Good, "unknown: "),
        ] {
            let found = lockdown(with(FILE, text).path());
            assert_eq!(found.verdict, verdict, "{text}");
            assert!(found.detail.starts_with(says), "{}", found.detail);
        }
        assert_eq!(lockdown(with("other", "").path()).verdict, Verdict::Good);
    }

    #[test]
    fn hidden_processes_matter_to_those_who_may_not_trace() {
        let at = |options: &str, may_trace| {
            let mounts = format!(
                "sysfs /sys sysfs rw,hidepid=2 0 0\nproc /proc proc {options} 0 0\n\
                 proc /jail/proc proc rw,hidepid=1 0 0\n"
            );
            hidepid(with("proc/self/mounts", &mounts).path(), may_trace).verdict
        };
        for open in ["rw,relatime", "rw,hidepid=0", "rw,hidepid=off,gid=4"] {
            assert_eq!((at(open, false), at(open, true)), (Verdict::Good, Verdict::Good), "{open}");
        }
        for hidden in ["rw,hidepid=invisible", "rw,nosuid,hidepid=2,gid=4", "hidepid=4"] {
            let found = (at(hidden, false), at(hidden, true));
            assert_eq!(found, (Verdict::Limited, Verdict::Good), "{hidden}");
        }
    }

    #[test]
    fn a_limit_of_locked_memory_is_no_obstacle() {
        assert_eq!(memlock(Some(0)).verdict, Verdict::Good);
        assert!(memlock(Some(65536)).detail.starts_with("limit: 65536 bytes."));
        assert!(memlock(None).detail.starts_with("limit: none."));
    }
}
