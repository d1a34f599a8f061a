//! The capabilities that procmond has a use for, and what becomes of the others.

use rustix::thread::CapabilitySet;

use super::report::{Finding, Report, Verdict};
use crate::privileges::{NEEDED, held};

/// Looks at what is left after giving up the rest; gives the needed capabilities that are there.
pub(super) fn check(not_given_up: Vec<String>, report: &mut Report) -> CapabilitySet {
    let held = held().unwrap_or_else(|error| {
        report.add(Finding::new("capabilities", Verdict::Limited, error.to_string()));
        CapabilitySet::empty()
    });
    for finding in capabilities(held) {
        report.add(finding);
    }
    report.add(confinement(&not_given_up));
    held
}

fn capabilities(held: CapabilitySet) -> impl Iterator<Item = Finding> {
    NEEDED.iter().map(move |needed| {
        let (verdict, is_there) = if held.contains(needed.capability) {
            (Verdict::Good, "there, and with it")
        } else {
            (Verdict::Limited, "missing, and with it")
        };
        Finding::new(needed.name, verdict, format!("{is_there} {}", needed.buys))
    })
}

fn confinement(not_given_up: &[String]) -> Finding {
    const NAME: &str = "confinement";
    if not_given_up.is_empty() {
        let detail = "every other capability is given up; the kernel refuses this process \
                      programs, signals, mounts and networks";
        return Finding::new(NAME, Verdict::Good, detail);
    }
    Finding::new(NAME, Verdict::Limited, not_given_up.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_says_what_it_buys_and_whether_it_is_there() {
        let told = |held| -> Vec<String> {
            let findings = capabilities(held);
            findings.map(|f| format!("{:?} {} {}", f.verdict, f.check, f.detail)).collect()
        };
        let all = told(NEEDED.iter().map(|needed| needed.capability).collect());
        assert!(all.iter().all(|line| line.starts_with("Good CAP_")), "{all:#?}");
        let one = told(CapabilitySet::SYS_PTRACE | CapabilitySet::SYS_ADMIN);
        let expected = [
            "Limited CAP_BPF missing, and with it the source ebpf, which sees every process however short it lives",
            "Limited CAP_PERFMON missing, and with it the source ebpf, which needs CAP_BPF and this",
            "Limited CAP_NET_ADMIN missing, and with it the resources used at exit ",
            "Good CAP_SYS_PTRACE there, and with it program, directory, namespaces and exit status of ",
            "Limited CAP_DAC_READ_SEARCH missing, and with it the SHA-256 of programs",
            "Limited CAP_SYS_NICE missing, and with it a raised priority",
        ];
        assert_eq!(one.len(), expected.len());
        for (line, beginning) in one.iter().zip(expected) {
            assert!(line.starts_with(beginning), "{line}");
        }
    }

    #[test]
    fn what_could_not_be_given_up_is_told_and_keeps_nothing_from_running() {
        assert_eq!(confinement(&[]).verdict, Verdict::Good);
        let told = confinement(&["one".to_owned(), "two".to_owned()]);
        assert_eq!((told.verdict, told.detail.as_str()), (Verdict::Limited, "one\ntwo"));
    }
}
