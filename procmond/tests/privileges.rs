//! What procmond may still do once it runs, and what the kernel refuses it.

#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Error};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use daemoneye_eventbus::{Broker, BrokerOptions, ClientOptions, LiveOptions, Role};
use procmond::source::probe_ebpf;
use rustix::net::{AddressFamily, SocketType, netlink, socket};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, getpid, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);
/// Set for the half of a test that confines itself.
const DIRECTORY_VARIABLE: &str = "E2E_CONFINED_IN";
const NOBODY: u32 = 65534;

/// The six, by the numbers of `capabilities(7)`: DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_NICE,
/// PERFMON, BPF.
const NEEDED: u64 = 1 << 2 | 1 << 12 | 1 << 19 | 1 << 23 | 1 << 38 | 1 << 39;
const SETPCAP: u64 = 1 << 8;
const SIX: &str = "+dac_read_search,+net_admin,+sys_ptrace,+sys_nice,+perfmon,+bpf";

fn is_root() -> bool {
    geteuid().is_root()
}

/// Says why a test is not run; where everything must be there, that is a failure.
fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true" || !is_root()), "{why}");
    eprintln!("skipped: {why}");
}

/// What `/proc` says of a thread or process.
struct Status(String);

impl Status {
    fn of(directory: &Path) -> Option<Self> {
        fs::read_to_string(directory.join("status")).ok().map(Self)
    }

    fn own() -> Self {
        Self::of(Path::new("/proc/thread-self")).expect("this thread's status")
    }

    fn field(&self, name: &str) -> &str {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("{name} in {}", self.0)).trim()
    }

    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).expect("a set of capabilities")
    }

    /// No more than the six, for one whose starter had those of `starter`.
    fn is_confined(&self, starter: &Self) {
        let name = self.field("Name");
        let kept = starter.capabilities("CapPrm") & NEEDED;
        assert_eq!(self.capabilities("CapPrm"), kept, "{name}");
        assert_eq!(self.capabilities("CapEff"), kept, "{name}");
        assert_eq!(self.capabilities("CapInh"), 0, "{name}");
        assert_eq!(self.capabilities("CapAmb"), 0, "{name}");
        // Without CAP_SETPCAP it cannot be made smaller; it means nothing then.
        if starter.capabilities("CapEff") & SETPCAP != 0 {
            assert_eq!(self.capabilities("CapBnd"), 0, "{name}");
        }
        assert_eq!((self.field("NoNewPrivs"), self.field("Seccomp")), ("1", "2"), "{name}");
    }
}

/// A running procmond with a directory of its own; killed when it is dropped.
struct Procmond {
    child: Child,
    directory: TempDir,
}

impl Drop for Procmond {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Procmond {
    /// Starts it by a command that takes a program to run, in a directory that may be another
    /// user's.
    fn start(mut by: Command, source: &str, directory: TempDir) -> Self {
        let log = File::create(directory.path().join("log")).expect("a file");
        let child = by
            .arg(env!("CARGO_BIN_EXE_procmond"))
            .args(["run", "--source", source, "--interval", "0.05", "--wal-dir"])
            .arg(directory.path().join("wal"))
            .env("DAEMONEYE_BROKER_SOCKET", directory.path().join("bus.sock"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("procmond starts");
        Self { child, directory }
    }

    /// What it says of itself.
    fn says(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).expect("its standard error")
    }

    /// Runs processes until it has logged one of them; gives what saw it.
    fn sees(&self) -> String {
        let mark = format!("mark-{}", self.directory.path().display());
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            // Polling sees it, too: the export takes longer than its interval.
            let mut child = Command::new("sh")
                .args(["-c", "read line", &mark])
                .stdin(Stdio::piped())
                .spawn()
                .expect("a shell");
            let logged = Command::new(env!("CARGO_BIN_EXE_procmond"))
                .args(["wal", "export", "--json", "--dir"])
                .arg(self.directory.path().join("wal"))
                .output()
                .expect("the log can be read");
            child.kill().expect("the shell ends");
            child.wait().expect("its end");
            let text = String::from_utf8(logged.stdout).expect("JSON");
            if let Some(line) = text.lines().find(|line| line.contains(&mark)) {
                let line: Value = serde_json::from_str(line).expect("an object a line");
                return line["event"]["source"].as_str().expect("a source").to_owned();
            }
        }
        panic!("nothing is seen; procmond says:\n{}", self.says());
    }

    /// Looks at every thread, and says how many there are.
    fn threads_are_confined(&self, starter: &Status) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("its threads");
        // One may end meanwhile.
        let statuses: Vec<Status> =
            tasks.filter_map(|task| Status::of(&task.expect("a thread").path())).collect();
        for status in &statuses {
            status.is_confined(starter);
        }
        statuses.len()
    }
}

/// A directory in which a user may have a log.
fn directory_for(uid: u32) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    if uid != geteuid().as_raw() {
        chown(directory.path(), Some(uid), Some(uid)).expect("it is theirs");
    }
    directory
}

#[test]
fn every_thread_has_the_six_and_no_more_and_still_sees_and_delivers() {
    let directory = directory_for(geteuid().as_raw());
    let runtime = Runtime::new().unwrap();
    let (_broker, mut events) = runtime.block_on(async {
        let options = BrokerOptions::new(directory.path().join("bus.sock"));
        let broker = Broker::bind(options).await.unwrap();
        let client = ClientOptions::new("test", Role::Subscriber);
        let client = broker.connect_in_process(client).await.unwrap();
        let everything = ["events.process.*".parse().unwrap()];
        let events = client.subscribe(&everything, LiveOptions::default()).await.unwrap();
        (broker, events)
    });
    let procmond = Procmond::start(Command::new("env"), "auto", directory);
    let best = if probe_ebpf().is_ok() { "ebpf" } else { "poll" };
    assert_eq!(procmond.sees(), best, "{}", procmond.says());
    let delivered = runtime.block_on(async { timeout(DEADLINE, events.next()).await });
    assert!(delivered.expect("in time").is_some());
    // The two of the log, the source, the runtime.
    assert!(procmond.threads_are_confined(&Status::own()) >= 4);
    for problem in ["given up", "no_new_privs", "filter"] {
        assert!(!procmond.says().contains(problem), "{}", procmond.says());
    }
}

/// `setpriv` for a user who is nobody, with more arguments.
fn as_nobody(capabilities: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(capabilities);
    command
}

#[test]
fn the_six_capabilities_are_enough_for_every_process_without_being_root() {
    if !is_root() || !as_nobody(&["true"]).status().is_ok_and(|status| status.success()) {
        return skipped("needs root and setpriv");
    }
    if let Err(error) = probe_ebpf() {
        return skipped(&error.to_string());
    }
    let capabilities = [format!("--inh-caps=-all,{SIX}"), format!("--ambient-caps=-all,{SIX}")];
    let with_six = as_nobody(&capabilities.each_ref().map(String::as_str));
    let procmond = Procmond::start(with_six, "ebpf", directory_for(NOBODY));
    assert_eq!(procmond.sees(), "ebpf");
    // Without CAP_SETPCAP the bounding set stays as it is.
    for task in fs::read_dir(format!("/proc/{}/task", procmond.child.id())).unwrap() {
        let Some(status) = Status::of(&task.unwrap().path()) else { continue };
        assert_eq!(status.capabilities("CapEff"), Status::own().capabilities("CapEff") & NEEDED);
        assert_eq!((status.capabilities("CapInh"), status.capabilities("CapAmb")), (0, 0));
        assert_eq!((status.field("NoNewPrivs"), status.field("Seccomp")), ("1", "2"));
    }
}

#[test]
fn an_ordinary_user_has_nothing_to_give_up_and_is_told_nothing() {
    let (by, uid) = match is_root() {
        true if as_nobody(&["true"]).status().is_ok_and(|status| status.success()) => {
            (as_nobody(&["--inh-caps=-all"]), NOBODY)
        }
        true => return skipped("needs setpriv"),
        false => (Command::new("env"), geteuid().as_raw()),
    };
    let procmond = Procmond::start(by, "poll", directory_for(uid));
    assert_eq!(procmond.sees(), "poll");
    for task in fs::read_dir(format!("/proc/{}/task", procmond.child.id())).unwrap() {
        let Some(status) = Status::of(&task.unwrap().path()) else { continue };
        assert_eq!((status.capabilities("CapPrm"), status.capabilities("CapEff")), (0, 0));
        assert_eq!((status.field("NoNewPrivs"), status.field("Seccomp")), ("1", "2"));
    }
    for problem in ["given up", "no_new_privs", "filter"] {
        assert!(!procmond.says().contains(problem), "{}", procmond.says());
    }
}

/// Root without its power over files cannot write what is another user's, and says so.
#[test]
fn a_log_of_another_user_is_refused_by_name() {
    if !is_root() {
        return eprintln!("skipped: only root can make a directory of another user");
    }
    let directory = tempfile::tempdir().unwrap();
    let theirs = directory.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    let procmond = |command: &str| {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_procmond"))
            .arg(command)
            .env("PROCMOND_WAL__DIR", &theirs)
            .env("DAEMONEYE_BROKER_SOCKET", directory.path().join("bus.sock"))
            .output()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{command}");
        String::from_utf8([stdout, stderr].concat()).unwrap()
    };
    for command in ["run", "check"] {
        let said = procmond(command);
        let whose = format!("{} belongs to user 65534", theirs.display());
        assert!(said.contains(&whose), "{command}: {said}");
    }
}

/// What `procmond check --json` says of each of the six, and how it ends.
fn checked(mut by: Command) -> (HashMap<String, String>, Option<i32>) {
    let directory = tempfile::tempdir().expect("a directory");
    let Output { status, stdout, .. } = by
        .arg(env!("CARGO_BIN_EXE_procmond"))
        .args(["check", "--json"])
        // Where it is neither written nor missed.
        .env("PROCMOND_WAL__DIR", "/tmp")
        .env("DAEMONEYE_BROKER_SOCKET", directory.path().join("bus.sock"))
        .output()
        .expect("procmond runs");
    let findings = String::from_utf8(stdout).expect("JSON");
    let findings =
        findings.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object a line"));
    let word = |finding: &Value, field: &str| finding[field].as_str().expect("a word").to_owned();
    let verdicts = findings.map(|finding| (word(&finding, "check"), word(&finding, "verdict")));
    (verdicts.collect(), status.code())
}

#[test]
fn check_says_which_capabilities_are_there_and_what_the_kernel_is_like() {
    let own = Status::own().capabilities("CapPrm");
    let (found, code) = checked(Command::new("env"));
    assert_eq!(code, Some(0), "{found:?}");
    let names = ["DAC_READ_SEARCH", "NET_ADMIN", "SYS_PTRACE", "SYS_NICE", "PERFMON", "BPF"];
    let bits = [2, 12, 19, 23, 38, 39];
    for (name, bit) in names.iter().zip(bits) {
        let verdict = if own & 1 << bit != 0 { "good" } else { "limited" };
        assert_eq!(found[&format!("CAP_{name}")], verdict, "{found:?}");
    }
    assert_eq!(found["confinement"], "good", "{found:?}");
    for look in ["kernel", "kernel's types (BTF)", "lockdown", "memlock", "hidepid"] {
        assert!(found.contains_key(look), "{look} in {found:?}");
    }
    if !is_root() || !as_nobody(&["true"]).status().is_ok_and(|status| status.success()) {
        return eprintln!("skipped in part: needs root and setpriv");
    }
    let mut without_ptrace = Command::new("setpriv");
    without_ptrace.arg("--bounding-set=-sys_ptrace");
    let (less, _) = checked(without_ptrace);
    for name in names {
        let name = format!("CAP_{name}");
        let wanted = if name == "CAP_SYS_PTRACE" { "limited" } else { &found[&name] };
        assert_eq!(less[&name], wanted, "{less:?}");
    }
    // Less is seen, and it would run.
    let (none, code) = checked(as_nobody(&["--inh-caps=-all"]));
    assert_eq!(code, Some(0), "{none:?}");
    assert!(names.iter().all(|name| none[&format!("CAP_{name}")] == "limited"), "{none:?}");
    assert_eq!((none["source ebpf"].as_str(), none["confinement"].as_str()), ("limited", "good"));
}

/// Memory for programs and maps is counted elsewhere today, and a limit that may not be raised is
/// no reason to be blind.
#[test]
fn a_limit_of_locked_memory_does_not_keep_the_programs_out() {
    if let Err(error) = probe_ebpf() {
        return skipped(&error.to_string());
    }
    let mut limited = Command::new("prlimit");
    limited.arg("--memlock=0:0");
    let procmond = Procmond::start(limited, "ebpf", directory_for(geteuid().as_raw()));
    assert_eq!(procmond.sees(), "ebpf");
}

#[test]
fn the_kernel_refuses_what_a_monitor_never_does() {
    let directory = tempfile::tempdir().unwrap();
    let _listening = UnixListener::bind(directory.path().join("listening")).unwrap();
    let Output { status, stdout, stderr } = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confined", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY_VARIABLE, directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8([stdout, stderr].concat()).unwrap();
    assert!(status.success() && said.contains("1 passed"), "{said}");
}

fn is_refused<T>(what: &str, result: io::Result<T>) {
    let error = result.err().unwrap_or_else(|| panic!("{what} is not refused"));
    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{what}: {error}");
}

/// A call that changes nothing if it is let through.
#[expect(unsafe_code, reason = "most of these calls have no safe wrapper")]
fn call(number: libc::c_long, arguments: [usize; 4]) -> io::Result<i64> {
    let [a, b, c, d] = arguments;
    // SAFETY: no argument given below is a pointer other than null.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

#[test]
#[ignore = "it gives up rights of its whole process: another test runs it in one of its own"]
fn confined() {
    let directory = std::env::var_os(DIRECTORY_VARIABLE).expect("started by the other test");
    let directory = Path::new(&directory);
    let before = Status::own();
    let open = File::create(directory.join("file")).unwrap();
    let problems = procmond::privileges::confine();
    assert!(problems.is_empty(), "{problems:?}");
    Status::own().is_confined(&before);

    // The network.
    is_refused("TCP", TcpListener::bind("127.0.0.1:0"));
    is_refused("UDP over IPv6", UdpSocket::bind("[::1]:0"));
    is_refused("packets", call(libc::SYS_socket, [libc::AF_PACKET as usize, 3, 0, 0]));
    is_refused("listening", UnixListener::bind(directory.join("new")));
    let datagrams = SocketType::DGRAM;
    let netlink = |protocol| socket(AddressFamily::NETLINK, datagrams, protocol);
    // The default protocol is that of routes.
    is_refused("routes", netlink(None).map_err(Error::from));
    is_refused("netfilter", netlink(Some(netlink::NETFILTER)).map_err(Error::from));
    let (one, _other) = UnixStream::pair().expect("local sockets");
    let interfaces = [std::os::fd::AsRawFd::as_raw_fd(&one) as usize, 0x8912, 0, 0];
    is_refused("interfaces", call(libc::SYS_ioctl, interfaces));

    // Programs and processes.
    is_refused("a child", Command::new("/bin/true").spawn());
    is_refused("another program", Err::<(), _>(Command::new("/bin/true").exec()));
    let parent = Pid::from_raw(parent_id() as i32).expect("the other test");
    is_refused("a signal", kill_process(parent, Signal::CONT).map_err(Error::from));
    let to_parent = parent.as_raw_nonzero().get() as usize;
    is_refused("a signal to a thread", call(libc::SYS_tgkill, [to_parent, to_parent, 0, 0]));
    is_refused("tracing", call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0]));
    let own = getpid().as_raw_nonzero().get() as usize;
    is_refused("another's memory", call(libc::SYS_process_vm_readv, [own, 0, 0, 0]));
    is_refused("another's files", call(libc::SYS_pidfd_getfd, [usize::MAX, 0, 0, 0]));

    // The kernel.
    let user_namespace = [libc::CLONE_NEWUSER as usize, 0, 0, 0];
    is_refused("namespaces", call(libc::SYS_unshare, user_namespace));
    is_refused("io_uring", call(libc::SYS_io_uring_setup, [1, 0, 0, 0]));
    is_refused("keys", call(libc::SYS_keyctl, [0, 0, 0, 0]));
    is_refused("personalities", call(libc::SYS_personality, [0xffff_ffff, 0, 0, 0]));
    is_refused("files by number", call(libc::SYS_open_by_handle_at, [0, 0, 0, 0]));
    let code = (libc::PROT_READ | libc::PROT_EXEC) as usize;
    is_refused("new code", call(libc::SYS_mprotect, [0, 0, code, 0]));
    is_refused("code being written", call(libc::SYS_mmap, [0, 4096, 7, 0x22]));
    for number in [libc::SYS_clone3, 0x4000_0000 | libc::SYS_getpid, 0x4000_0000 | 520] {
        let error = call(number, [0; 4]).expect_err("no such call");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{number}: {error}");
    }

    // What a monitor does.
    assert_eq!(
        std::thread::spawn(|| Status::own().field("Seccomp").to_owned()).join().unwrap(),
        "2"
    );
    UnixStream::connect(directory.join("listening")).expect("the broker can be reached");
    netlink(Some(rustix::net::Protocol::from_raw(11.try_into().unwrap()))).expect("the connector");
    netlink(Some(netlink::GENERIC)).expect("taskstats");
    pidfd_open(getpid(), PidfdFlags::empty()).expect("processes can be waited for");
    open.sync_data().expect("the log is made durable");
    fs::rename(directory.join("file"), directory.join("renamed")).expect("segments are renamed");
    fs::read_to_string(format!("/proc/{to_parent}/stat")).expect("others can be seen");
    call(libc::SYS_tgkill, [own, 0, 0, 0]).map_or_else(
        |error| assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "abort() may signal itself"),
        |_| panic!("there is no thread 0"),
    );
}

/// The kernel's yes to the question before was once taken for its answer to this one.
#[test]
fn who_may_not_hear_what_processes_used_is_told_so() {
    if !is_root() || !as_nobody(&["true"]).status().is_ok_and(|status| status.success()) {
        return skipped("needs root and setpriv");
    }
    let output = as_nobody(&[env!("CARGO_BIN_EXE_procmond"), "check"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let netlink = text
        .lines()
        .find(|line| line.get(4..).is_some_and(|line| line.starts_with("source netlink")));
    let netlink = netlink.expect("a line");
    assert!(!netlink.contains("works") || netlink.contains("not what it used"), "{netlink}");
}
