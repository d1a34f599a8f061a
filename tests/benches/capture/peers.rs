//! Other people's tools, as far as they are installed.

use std::collections::HashSet;
use std::fs::File;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::tool::{Guarded, Seen, Tool, Watching};

/// What a line of a tool's output tells.
enum Line<'a> {
    Start(u32, &'a str),
    Stop(u32),
    Other,
}

/// A tool that prints lines.
struct Peer {
    name: &'static str,
    command: fn(&TempDir) -> Command,
    /// Where it writes, if not to its output.
    file: &'static str,
    read: fn(&str) -> Line<'_>,
    tells_stops: bool,
}

struct Running {
    process: Guarded,
    directory: TempDir,
    peer: &'static Peer,
    /// Undoes what the tool had set for the whole machine.
    _undo: Option<Undo>,
}

static PEERS: [Peer; 4] = [
    Peer {
        name: "execsnoop",
        // Otherwise it keeps what it sees to itself until there is much of it.
        command: |_| command("stdbuf", &["-oL", "execsnoop", "-T"]),
        file: "output",
        read: read_execsnoop,
        tells_stops: false,
    },
    Peer {
        name: "bpftrace",
        command: |_| command("bpftrace", &["-e", BPFTRACE]),
        file: "output",
        read: read_bpftrace,
        tells_stops: true,
    },
    Peer {
        name: "forkstat",
        command: |_| command("forkstat", &["-l", "-e", "exec,exit"]),
        file: "output",
        read: read_forkstat,
        tells_stops: true,
    },
    Peer {
        name: "auditd",
        command: |directory| {
            let mut command = command("auditd", &["-n", "-c"]);
            command.arg(directory.path());
            command
        },
        file: "audit.log",
        read: read_audit,
        tells_stops: false,
    },
];

const BPFTRACE: &str = "\
    tracepoint:syscalls:sys_enter_execve { printf(\"E %d \", pid); join(args->argv); } \
    tracepoint:sched:sched_process_exit /pid == tid/ { printf(\"X %d\\n\", pid); }";

/// The ones that are there, and says which are not.
pub(crate) fn installed() -> impl Iterator<Item = Box<dyn Tool>> {
    PEERS.iter().filter_map(|peer| {
        let there = Command::new("sh").args(["-c", &format!("command -v {}", peer.name)]).output();
        if there.is_ok_and(|output| output.status.success()) {
            return Some(Box::new(peer) as Box<dyn Tool>);
        }
        eprintln!("{} is not installed", peer.name);
        None
    })
}

fn command(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    command
}

impl Tool for &'static Peer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn start(&self) -> Result<Box<dyn Watching>, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let undo = (self.name == "auditd").then(|| audit(&directory)).transpose()?;
        let output =
            File::create(directory.path().join("output")).map_err(|error| error.to_string())?;
        let mut command = (self.command)(&directory);
        command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(output);
        let process = Guarded::spawn(&mut command)?;
        Ok(Box::new(Running { process, directory, peer: self, _undo: undo }))
    }
}

impl Running {
    fn text(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join(self.peer.file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Watching for Running {
    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn has_seen(&self, mark: &str) -> bool {
        self.text().contains(mark)
    }

    fn seen(&self, mark: &str) -> Seen {
        let mut seen = Seen::default();
        let mut stops = HashSet::new();
        for line in self.text().lines() {
            match (self.peer.read)(line) {
                Line::Start(pid, arguments) => {
                    seen.starts.insert(pid);
                    seen.whole.extend(whole(arguments, mark));
                }
                Line::Stop(pid) => {
                    stops.insert(pid);
                }
                Line::Other => {}
            }
        }
        seen.stops = self.peer.tells_stops.then_some(stops);
        seen
    }
}

/// The argument in `argument`, `"argument"` or `a1="argument"`.
fn unquoted(word: &str) -> Option<&str> {
    word.rsplit("=\"").next().map(|word| word.trim_matches('"'))
}

/// The numbered mark, if everything behind it is there, too.
pub(crate) fn whole(arguments: &str, mark: &str) -> Option<String> {
    let mut words = arguments.split_whitespace().filter_map(unquoted);
    let is_mark = |word: &&str| word.strip_prefix(mark).is_some_and(|rest| rest.starts_with('-'));
    let found = words.find(is_mark)?;
    words.nth(1).filter(|word| *word == "end").map(|_| found.to_owned())
}

/// `TIME PCOMM PID PPID RET ARGS`
fn read_execsnoop(line: &str) -> Line<'_> {
    let pid = line.split_whitespace().nth(2).and_then(|word| word.parse().ok());
    pid.map_or(Line::Other, |pid| Line::Start(pid, line))
}

fn read_bpftrace(line: &str) -> Line<'_> {
    let mut words = line.split_whitespace();
    let kind = words.next();
    match (kind, words.next().and_then(|word| word.parse().ok())) {
        (Some("E"), Some(pid)) => Line::Start(pid, line),
        (Some("X"), Some(pid)) => Line::Stop(pid),
        _ => Line::Other,
    }
}

/// `TIME exec PID ARGS`, `TIME exit PID STATUS DURATION ARGS`
fn read_forkstat(line: &str) -> Line<'_> {
    let mut words = line.split_whitespace().skip(1);
    let kind = words.next();
    match (kind, words.next().and_then(|word| word.parse().ok())) {
        (Some("exec"), Some(pid)) => Line::Start(pid, line),
        (Some("exit"), Some(pid)) => Line::Stop(pid),
        _ => Line::Other,
    }
}

/// Two records of an execution: `SYSCALL` has the pid, `EXECVE` the arguments as `a1="..."`.
fn read_audit(line: &str) -> Line<'_> {
    if line.starts_with("type=EXECVE") {
        return Line::Start(0, line);
    }
    let pid = line.split_whitespace().find_map(|word| word.strip_prefix("pid=")?.parse().ok());
    pid.map_or(Line::Other, |pid| Line::Start(pid, ""))
}

/// Has the kernel's audit tell of executions until this is dropped.
struct Undo;

const RULE: [&str; 4] = ["always,exit", "-S", "execve", "-k"];

fn audit(directory: &TempDir) -> Result<Undo, String> {
    let at = |name: &str| directory.path().join(name);
    let configuration = format!(
        "log_file = {}\nlog_format = RAW\nflush = NONE\nwrite_logs = yes\nlocal_events = yes\n\
         max_log_file_action = IGNORE\nspace_left_action = IGNORE\nadmin_space_left_action = \
         IGNORE\ndisk_full_action = IGNORE\ndisk_error_action = IGNORE\nspace_left = \
         2\nadmin_space_left = 1\nplugin_dir = {}\n",
        at("audit.log").display(),
        at("plugins").display()
    );
    std::fs::create_dir(at("plugins")).map_err(|error| error.to_string())?;
    std::fs::write(at("auditd.conf"), configuration).map_err(|error| error.to_string())?;
    for arguments in [&["-e", "1"][..], &["-b", "65536"], &["-a"]] {
        let rule = if arguments == ["-a"] { &RULE[..] } else { &[] };
        let key = (!rule.is_empty()).then_some("capture");
        let done = command("auditctl", arguments).args(rule).args(key).output();
        if !done.is_ok_and(|output| output.status.success()) {
            return Err("auditctl was refused".to_owned());
        }
    }
    Ok(Undo)
}

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = command("auditctl", &["-d"]).args(RULE).arg("capture").output();
        let _ = command("auditctl", &["-e", "0"]).output();
    }
}
