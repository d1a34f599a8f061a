//! Reading `/proc/<pid>/stat` and `status`.

use daemoneye_lib::models::process::Capabilities;

/// The kernel shows times to user space in 1/100 s on every architecture that Rust's standard
/// library supports, whatever its own clock: so a tick is the 10 ms of a process key.
pub(in crate::source) const TICK_NS: u64 = 10_000_000;

/// The flag of a thread of the kernel.
const PF_KTHREAD: u64 = 0x0020_0000;

/// What `stat` tells.
pub(super) struct Stat {
    /// Any bytes, blanks and brackets included; of a worker of the kernel without what it works on.
    pub(super) name: Vec<u8>,
    pub(super) ppid: u32,
    pub(super) session: u32,
    pub(super) is_kernel_thread: bool,
    /// All of its threads have ended and only its entry is left.
    pub(super) has_ended: bool,
    pub(super) threads: u64,
    pub(super) cpu_ticks: u64,
    pub(super) start_ticks: u64,
    /// Where code and stack lie; zeros to those who may not trace it. Each `exec` makes it anew.
    pub(super) layout: [u64; 3],
    /// What its parent would be told of its end; `None` to those who may not trace it.
    pub(super) wait_status: Option<i32>,
}

/// Users and groups, real and effective, and effective capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) euid: u32,
    pub(super) gid: u32,
    pub(super) egid: u32,
    pub(super) capabilities: Option<Capabilities>,
}

impl Stat {
    /// It had this layout and has given up its memory: it is ending, and its arguments are gone
    /// before the list says so.
    pub(super) fn is_leaving(&self, layout: [u64; 3]) -> bool {
        self.layout == [0; 3] && layout != [0; 3]
    }
}

/// Reads `stat`; `None` if it has not the documented form.
pub(super) fn parse(bytes: &[u8]) -> Option<Stat> {
    // The name may hold brackets and blanks: it ends at the last closing bracket.
    let open = bytes.iter().position(|byte| *byte == b'(')?;
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let name = bytes.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
    // Fields as proc_pid_stat(5) numbers them: the state, the third, comes first here.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at: usize| field(at).and_then(|text| text.parse::<u64>().ok());
    let state = field(3)?;
    let layout = [26, 27, 28].map(|at| number(at).unwrap_or(0));
    // One that may not be traced shows 0 or 1 for each of these.
    let may_trace = layout[2] != 0;
    let threads = number(20)?;
    let has_ended = matches!(state, "X" | "x") || (state == "Z" && threads <= 1);
    let wait_status = field(52).and_then(|text| text.parse().ok());
    let is_kernel_thread = number(9)? & PF_KTHREAD != 0;
    Some(Stat {
        name: if is_kernel_thread { without_work(name) } else { name },
        ppid: field(4)?.parse().ok()?,
        // -1 for one that is being taken away.
        session: field(6)?.parse().unwrap_or(0),
        is_kernel_thread,
        has_ended,
        threads,
        cpu_ticks: number(14)?.saturating_add(number(15)?),
        start_ticks: number(22)?,
        layout,
        // An ended process has no layout, so a plain exit with 0 and "not for you" look the same.
        wait_status: wait_status.filter(|status| may_trace || *status != 0),
    })
}

/// A worker of the kernel shows behind its name what it works on, `kworker/0:1-events`, which is
/// another thing many times a second: no change of the worker.
fn without_work(mut name: Vec<u8>) -> Vec<u8> {
    if name.starts_with(b"kworker/")
        && let Some(colon) = name.iter().position(|byte| *byte == b':')
        && let Some(work) = name[colon..].iter().position(|byte| matches!(byte, b'-' | b'+'))
    {
        name.truncate(colon + work);
    }
    name
}

/// Reads the ids from `status`.
pub(super) fn parse_ids(bytes: &[u8]) -> Option<Ids> {
    let words = |label: &[u8]| {
        let line = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(label))?;
        Some(std::str::from_utf8(line).ok()?.split_ascii_whitespace())
    };
    let pair = |label: &[u8]| {
        let mut ids = words(label)?;
        Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
    };
    let (uid, euid) = pair(b"Uid:")?;
    let (gid, egid) = pair(b"Gid:")?;
    let capabilities =
        words(b"CapEff:").and_then(|mut set| u64::from_str_radix(set.next()?, 16).ok());
    Some(Ids { uid, euid, gid, egid, capabilities: capabilities.map(Capabilities) })
}

/// Reads `schedstat`: nanoseconds on a processor and waiting for one, and how often it was given
/// one. All of them are 0 where the kernel does not count.
pub(super) fn parse_ran(bytes: &[u8]) -> Option<[u64; 3]> {
    let mut numbers = std::str::from_utf8(bytes).ok()?.split_ascii_whitespace();
    let mut next = || numbers.next()?.parse().ok();
    Some([next()?, next()?, next()?]).filter(|ran| *ran != [0; 3])
}

/// Reads from `/proc/stat` how many processes and threads have begun since boot.
pub(super) fn forks(bytes: &[u8]) -> Option<u64> {
    let label = b"processes ";
    let line = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(label))?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// Reads `/proc/uptime`: seconds with two decimals.
pub(super) fn uptime_ns(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (seconds, centis) = text.split_ascii_whitespace().next()?.split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    let centis: u64 = centis.parse().ok().filter(|centis| *centis < 100)?;
    seconds.checked_mul(100)?.checked_add(centis)?.checked_mul(TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLEEP: &str = "(sl) ee)p) S 10 4711 4700 0 -1 4194304 1 0 0 0 7 3 0 0 20 0 1 0 123456 \
                         1 1 1 94 95 140 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0";

    #[test]
    fn reads_a_name_with_brackets_and_blanks() {
        let stat = parse(format!("4711 {SLEEP}").as_bytes()).unwrap();
        assert_eq!(stat.name, b"sl) ee)p");
        assert_eq!((stat.ppid, stat.session, stat.start_ticks), (10, 4700, 123_456));
        assert_eq!((stat.cpu_ticks, stat.layout), (10, [94, 95, 140]));
        assert!(!stat.has_ended && !stat.is_kernel_thread);
    }

    #[test]
    fn the_name_of_a_worker_of_the_kernel_is_without_its_work() {
        let kernel = SLEEP.replace("4194304", "69238880");
        let name = |name: &str| {
            let stat = parse(format!("7 {}", kernel.replace("sl) ee)p", name)).as_bytes()).unwrap();
            assert!(stat.is_kernel_thread);
            String::from_utf8(stat.name).unwrap()
        };
        assert_eq!(name("kworker/u8:0-ext4-rsv-conversion"), "kworker/u8:0");
        assert_eq!(name("kworker/1:0H+events"), "kworker/1:0H");
        assert_eq!(name("kworker/R-rcu_gp"), "kworker/R-rcu_gp");
        let user = SLEEP.replace("sl) ee)p", "kworker/1:0-x");
        assert_eq!(parse(format!("7 {user}").as_bytes()).unwrap().name, b"kworker/1:0-x");
    }

    #[test]
    fn a_leader_that_ended_before_its_threads_has_not_ended() {
        let zombie = SLEEP.replace(" S ", " Z ");
        assert!(parse(format!("1 {zombie}").as_bytes()).unwrap().has_ended);
        let leader = zombie.replace("20 0 1 0 123456", "20 0 2 0 123456");
        assert!(!parse(format!("1 {leader}").as_bytes()).unwrap().has_ended);
    }

    #[test]
    fn what_has_another_form_is_refused() {
        for text in ["", "1 (", "1 )(", "1 (x)", "1 (x) S", "1 (x) S a b c d e f g h"] {
            assert!(parse(text.as_bytes()).is_none(), "{text:?}");
        }
        assert_eq!(
            parse_ids(b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapEff:\t00000000a80425fb\n")
                .unwrap(),
            Ids { uid: 1, euid: 2, gid: 5, egid: 6, capabilities: Some(Capabilities(0xa804_25fb)) }
        );
        assert!(parse_ids(b"Uid:\t1\n").is_none());
        assert_eq!(uptime_ns(b"12.34 5.6\n"), Some(12_340_000_000));
        assert_eq!(uptime_ns(b"12"), None);
        assert_eq!(forks(b"cpu 1 2\nprocesses 4711\nprocs_running 3\n"), Some(4711));
        assert_eq!(forks(b"cpu 1 2\n"), None);
        assert_eq!(parse_ran(b"5 0 7\n"), Some([5, 0, 7]));
        assert_eq!(parse_ran(b"0 0 0\n"), None, "the kernel does not count");
        assert_eq!(parse_ran(b"5 0"), None);
    }
}
