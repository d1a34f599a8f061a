//! What becomes of processes, told by each source: the same golden events, but for what a source
//! cannot know.
//!
//! Each process waits for its cue before it does the next thing, so that a source that has to look
//! sees every state. What changes in several steps of the kernel is added up: from the first old
//! value to the last new one.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{
    Completeness, Exit, FieldChange, ProcessEvent, ProcessEventKind, ProcessKey,
};
use daemoneye_lib::redaction::{ARGV_BYTES_MAX, RedactedArgv};
use procmond::monitor::tracker::Tracker;
use procmond::source::{
    Missing, Observation, SourceChoice, SourceOptions, Started, What, probe_ebpf, probe_netlink,
};
use tokio::sync::mpsc::error::TryRecvError;

const PATIENCE: Duration = Duration::from_secs(60);

/// The sources that can be used here.
fn sources() -> Vec<SourceChoice> {
    let told =
        [(SourceChoice::Ebpf, probe_ebpf()), (SourceChoice::Netlink, probe_netlink().map(drop))];
    let mut sources = Vec::new();
    for (source, probed) in told {
        match probed {
            Ok(()) => sources.push(source),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
                eprintln!("skipped with {source}: {error}");
            }
        }
    }
    sources.push(SourceChoice::Poll);
    sources
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a test can be done: out loud if not, and never so where CI has everything.
fn can(what: &str, is_so: bool) -> bool {
    assert!(is_so || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no {what}");
    if !is_so {
        eprintln!("skipped: no {what}");
    }
    is_so
}

fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    can(tool, std::env::split_paths(&path).any(|dir| dir.join(tool).exists()))
}

/// A source and what it has made of the events so far.
struct Watch {
    source: Started,
    tracker: Tracker,
    events: Vec<ProcessEvent>,
    /// What it was told, one thing after another.
    told: Vec<Told>,
}

/// Something that a source was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Start,
    Change,
    Stop(u32),
    Lost(Missing),
}

impl Watch {
    fn begin(choice: SourceChoice) -> Self {
        Self::with(choice, SourceOptions::every(Duration::from_millis(20)))
    }

    fn with(choice: SourceChoice, options: SourceOptions) -> Self {
        let source = choice.start(options).expect("a source");
        let (events, told) = (Vec::new(), Vec::new());
        let mut watch = Self { source, tracker: Tracker::new(), events, told };
        watch.until("what is there", |watch| !watch.events.is_empty());
        watch.events.clear();
        watch
    }

    fn is_told(&self) -> bool {
        self.source.name != daemoneye_lib::models::process::SourceName::Poll
    }

    /// Observes until something is so.
    fn until(&mut self, what: &str, is_so: impl FnMut(&Self) -> bool) {
        if !self.is_so_within(PATIENCE, is_so) {
            let last = &self.events[self.events.len().saturating_sub(20)..];
            panic!("{}: no {what}: {last:#?}", self.source.name);
        }
    }

    fn is_so_within(&mut self, most: Duration, mut is_so: impl FnMut(&Self) -> bool) -> bool {
        let since = Instant::now();
        while !is_so(self) {
            let observation = match self.source.observations.try_recv() {
                Ok(observation) => observation,
                Err(TryRecvError::Disconnected) => panic!("the source has ended"),
                Err(TryRecvError::Empty) => {
                    if since.elapsed() > most {
                        return false;
                    }
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            match &observation {
                Observation::Failed(error) => panic!("{error}"),
                Observation::Overrun(overrun) => self.told.extend(overrun.sorts.map(Told::Lost)),
                Observation::Seen(seen) => {
                    self.told.extend(seen.happenings.iter().filter_map(|one| match one.what {
                        What::Forked { .. } => Some(Told::Start),
                        What::Executed(_) | What::Renamed(_) | What::Moved { .. } => {
                            Some(Told::Change)
                        }
                        What::Exited(..) => Some(Told::Stop(one.pid)),
                        What::Found(_) | What::Changed(_) => None,
                    }));
                }
                _ => {}
            }
            let events = self.tracker.observe(observation);
            self.events.extend(events.into_iter().filter_map(|event| match event {
                Event::Process(event) => Some(*event),
                Event::Gap(_) => None,
            }));
        }
        true
    }

    fn known(&self, pid: u32) -> Option<&ProcessEvent> {
        self.tracker.get(pid)
    }

    /// The events of a process, the last one its stop.
    fn life(&mut self, pid: u32) -> Vec<ProcessEvent> {
        let is_its = |event: &&ProcessEvent| event.pid() == pid;
        self.until("a stop", |watch| watch.events.iter().filter(is_its).any(is_stop));
        self.events.iter().filter(is_its).cloned().collect()
    }

    /// Has a script begin that is to be seen, and gives it when only what it does next is to come.
    fn follow(&mut self, script: &str) -> Actor {
        let mut actor = Actor::enter(&mut perl(script));
        actor.has_done();
        let pid = actor.pid();
        let is_it = |known: &ProcessEvent| known.name == Some("perl".into());
        self.until("the script", |watch| watch.known(pid).is_some_and(is_it));
        self.events.clear();
        actor
    }

    /// Runs a program that is to be seen, whoever looks, and gives what was known of it.
    fn known_of(&mut self, command: &mut Command) -> ProcessEvent {
        let mut actor = Actor::enter(command);
        let is_it = |known: &ProcessEvent| {
            known.argv.as_ref().is_some_and(|argv| argv.iter().any(|arg| arg == MARK.as_bytes()))
        };
        self.until("the program", |watch| watch.known(actor.pid()).is_some_and(is_it));
        let known = self.known(actor.pid()).cloned();
        actor.leave();
        known.expect("it is known")
    }
}

/// An argument by which a program knows that it is this one, and others that it runs.
const MARK: &str = "capture-lives";

/// A process that does as it is told.
struct Actor {
    child: Child,
    cue: Option<ChildStdin>,
    answer: ChildStdout,
}

impl Actor {
    fn enter(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let cue = child.stdin.take();
        let answer = child.stdout.take().expect("a pipe");
        Self { child, cue, answer }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do the next thing.
    fn act(&mut self) {
        self.cue.as_mut().expect("it is there").write_all(b"\n").expect("it listens");
    }

    /// Waits for it to say that it has done so.
    fn has_done(&mut self) {
        self.answer.read_exact(&mut [0]).expect("it answers");
    }

    fn leave(&mut self) {
        drop(self.cue.take());
        self.child.wait().expect("its end");
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Whatever it still does after a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A script that waits for a cue between its steps and says when it is ready for the first.
fn perl(script: &str) -> Command {
    let mut command = Command::new("perl");
    command.args(["-e", &with_cues(script), MARK]);
    command
}

fn with_cues(script: &str) -> String {
    format!("use POSIX; $|=1; sub cue {{ print '.'; sysread STDIN, my $cue, 1 }} {script}")
}

/// `prctl(PR_SET_NAME)` and `clone` by their numbers, which scripts have no names for.
const PRCTL: u32 = if cfg!(target_arch = "x86_64") { 157 } else { 167 };
const CLONE: u32 = if cfg!(target_arch = "x86_64") { 56 } else { 220 };

fn is_stop(event: &ProcessEvent) -> bool {
    matches!(event.kind, ProcessEventKind::Stop(_))
}

fn exit_of(event: &ProcessEvent) -> Exit {
    let ProcessEventKind::Stop(exit) = event.kind else { panic!("{event:?}") };
    exit
}

fn args(argv: Option<&RedactedArgv>) -> Vec<Vec<u8>> {
    argv.expect("arguments").iter().map(<[u8]>::to_vec).collect()
}

/// What has changed, added up, one field a line in alphabetical order.
fn changes<'a>(events: impl IntoIterator<Item = &'a ProcessEvent>) -> String {
    fn text(value: Option<&impl ToString>) -> String {
        value.map_or_else(|| "?".to_owned(), ToString::to_string)
    }
    let mut sum: BTreeMap<&str, (String, String)> = BTreeMap::new();
    for event in events {
        let ProcessEventKind::Modify { changes } = &event.kind else { continue };
        for change in changes {
            let argv = |argv: Option<&RedactedArgv>| {
                let args = args(argv);
                let args: Vec<_> = args.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
                args.join(" ")
            };
            let bytes = |bytes: &Option<daemoneye_lib::models::ByteString>| {
                bytes.as_ref().map_or_else(
                    || "?".to_owned(),
                    |bytes| String::from_utf8_lossy(bytes.as_bytes()).into_owned(),
                )
            };
            let (field, old, new) = match change {
                FieldChange::Name(old) => ("name", bytes(old), bytes(&event.name)),
                FieldChange::Exe(old) => ("exe", bytes(old), bytes(&event.exe)),
                FieldChange::Argv(old) => ("argv", argv(old.as_ref()), argv(event.argv.as_ref())),
                FieldChange::Uid(old) => ("uid", text(old.as_ref()), text(event.uid.as_ref())),
                FieldChange::Euid(old) => ("euid", text(old.as_ref()), text(event.euid.as_ref())),
                FieldChange::Gid(old) => ("gid", text(old.as_ref()), text(event.gid.as_ref())),
                FieldChange::Egid(old) => ("egid", text(old.as_ref()), text(event.egid.as_ref())),
                FieldChange::Session(_) => {
                    ("session", "S".to_owned(), text(event.session.as_ref()))
                }
                FieldChange::Capabilities(old) => {
                    let set = |set: Option<daemoneye_lib::models::process::Capabilities>| {
                        set.map_or("?", |set| if set.0 == 0 { "none" } else { "some" }).to_owned()
                    };
                    ("capabilities", set(*old), set(event.capabilities))
                }
                other => panic!("{other:?}"),
            };
            sum.entry(field).or_insert((old, String::new())).1 = new;
        }
    }
    let lines = sum.into_iter().map(|(field, (old, new))| format!("{field}: {old} -> {new}\n"));
    lines.collect()
}

/// Users, groups and capabilities given up without running another program.
#[test]
fn another_user_is_a_change_with_old_and_new() {
    const DROPPED: &str = "capabilities: some -> none\negid: 0 -> 65534\neuid: 0 -> 65534\n\
                           gid: 0 -> 65534\nuid: 0 -> 65534\n";
    if !(has("perl") && can("root", is_root())) {
        return;
    }
    let (drop_group, drop_user) = ("POSIX::setgid(65534) or die;", "POSIX::setuid(65534) or die;");
    let drop_all = format!("{drop_group} {drop_user}");
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let script = format!("cue; {drop_group} cue; {drop_user} cue; POSIX::_exit(3)");
        let mut actor = watch.follow(&script);
        let pid = actor.pid();
        actor.act();
        actor.has_done();
        // No other thing happens that could tell of it.
        watch.until("the other group", |watch| watch.known(pid).unwrap().gid == Some(65534));
        actor.act();
        watch.until("the other user", |watch| watch.known(pid).unwrap().uid == Some(65534));
        actor.act();
        let life = watch.life(pid);
        assert_eq!(changes(&life), DROPPED, "{choice}");
        assert!(life.iter().all(|event| !event.inferred), "{life:#?}");
        actor.leave();

        // Whoever does something else right after that has it told first.
        if !watch.is_told() {
            continue;
        }
        let mut actor = watch.follow(&format!("cue; {drop_all} POSIX::_exit(4)"));
        actor.act();
        let life = watch.life(actor.pid());
        assert_eq!(changes(&life), DROPPED, "{choice}");
        let stop = &life[life.len() - 1];
        assert_eq!((exit_of(stop).exit_code, stop.uid), (Some(4), Some(65534)));
        let mut actor = watch.follow(&format!("cue; {drop_all} exec 'true', 'x'"));
        actor.act();
        let life = watch.life(actor.pid());
        let told = changes(&life);
        assert!(
            told.contains("uid: 0 -> 65534\n") && told.contains("name: perl -> true"),
            "{told}"
        );
    }
}

#[test]
fn another_name_and_another_session_are_changes() {
    if !has("perl") {
        return;
    }
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let script = format!(
            "my $name = 'new name'; cue; syscall({PRCTL}, 15, $name); cue; POSIX::setsid(); cue"
        );
        let mut actor = watch.follow(&script);
        let pid = actor.pid();
        actor.act();
        watch.until("the name", |watch| watch.known(pid).unwrap().name == Some("new name".into()));
        actor.act();
        watch.until("the session", |watch| watch.known(pid).unwrap().session == Some(pid));
        actor.leave();
        let life = watch.life(pid);
        let golden = format!("name: perl -> new name\nsession: S -> {pid}\n");
        assert_eq!(changes(&life), golden, "{choice}");
        assert_eq!(exit_of(&life[life.len() - 1]).signal, None);
    }
}

/// A first thread that does not run has done nothing, but another of its process may have.
#[test]
fn another_session_is_told_whichever_thread_begins_it() {
    if !(has("python3") && has("perl")) {
        return;
    }
    let script = "import os,sys,threading,time\n\
                  def begin(): os.read(0, 1); os.setsid(); os.read(0, 1); os._exit(0)\n\
                  threading.Thread(target=begin).start()\n\
                  sys.stdout.write('.'); sys.stdout.flush(); time.sleep(600)";
    // Who has to look looks at such a process every half minute.
    for choice in sources().into_iter().filter(|choice| *choice != SourceChoice::Poll) {
        let mut watch = Watch::begin(choice);
        let mut actor = Actor::enter(Command::new("python3").args(["-c", script]));
        actor.has_done();
        let pid = actor.pid();
        let of = |watch: &Watch| watch.known(pid).and_then(|known| known.session);
        watch.until("the process", |watch| of(watch).is_some_and(|session| session != pid));
        // When others' are found that begin after that, it has been looked at as it is now.
        for _ in 0..2 {
            let mut other = watch.follow("cue; POSIX::setsid(); cue");
            let pid = other.pid();
            other.act();
            watch.until("another", |watch| watch.known(pid).unwrap().session == Some(pid));
        }
        actor.act();
        watch.until("the session", |watch| of(watch) == Some(pid));
        actor.leave();
    }
}

/// One process, whatever it runs, and whichever of its threads runs it.
#[test]
fn a_chain_of_programs_is_one_life() {
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let script = "read cue; exec sh -c 'read cue; exec cat - capture-lives' two";
        let mut actor = Actor::enter(Command::new("sh").args(["-c", script, "one"]));
        let pid = actor.pid();
        let runs = |watch: &Watch, last: &[u8]| {
            let argv = watch.known(pid).and_then(|known| known.argv.as_ref());
            argv.is_some_and(|argv| argv.iter().last() == Some(last))
        };
        watch.until("the first", |watch| runs(watch, b"one"));
        let key = watch.known(pid).unwrap().key;
        watch.events.clear();
        actor.act();
        watch.until("the second", |watch| runs(watch, b"two"));
        let second = "read cue; exec cat - capture-lives";
        assert_eq!(
            changes(watch.events.iter().filter(|event| event.pid() == pid)),
            format!("argv: sh -c {script} one -> sh -c {second} two\n"),
            "{choice}"
        );
        watch.events.clear();
        actor.act();
        watch.until("the third", |watch| runs(watch, MARK.as_bytes()));
        actor.leave();
        let life = watch.life(pid);
        let path = |name| fs::canonicalize(name).unwrap().display().to_string();
        let (sh, cat) = (path("/bin/sh"), path("/bin/cat"));
        let golden = format!(
            "argv: sh -c {second} two -> cat - {MARK}\nexe: {sh} -> {cat}\nname: sh -> cat\n"
        );
        assert_eq!(changes(&life), golden, "{choice}");
        assert!(life.iter().all(|event| event.key == key), "{life:#?}");
    }
}

/// Is run in a process of its own, by a thread that is not its first: as tests are.
#[test]
#[ignore = "part of a_program_run_by_another_thread_is_the_same_process"]
fn runs_a_program() {
    std::io::stdin().read_exact(&mut [0]).unwrap();
    panic!("{}", Command::new("cat").args(["-", MARK]).exec());
}

#[test]
fn a_program_run_by_another_thread_is_the_same_process() {
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let this = std::env::current_exe().unwrap();
        let mut command = Command::new(&this);
        let mut actor = Actor::enter(command.args(["runs_a_program", "--ignored", "--nocapture"]));
        let pid = actor.pid();
        watch.until("the test", |watch| {
            let exe = watch.known(pid).and_then(|known| known.exe.clone());
            exe.is_some_and(|exe| exe.as_bytes() == this.as_os_str().as_bytes())
        });
        let before = watch.known(pid).unwrap().clone();
        watch.events.clear();
        actor.act();
        watch.until("the program", |watch| watch.known(pid).unwrap().name == Some("cat".into()));
        actor.leave();
        let life = watch.life(pid);
        assert!(life.iter().all(|event| event.key == before.key), "{life:#?}");
        let told = changes(&life);
        let cat = fs::canonicalize("/bin/cat").unwrap();
        let exe = format!("exe: {} -> {}\n", this.display(), cat.display());
        assert!(told.contains(&exe), "{told}");
        let starts = |event: &&ProcessEvent| matches!(event.kind, ProcessEventKind::Start { .. });
        assert_eq!(life.iter().filter(starts).count(), 0, "{life:#?}");
        assert_eq!(life.iter().filter(|event| is_stop(event)).count(), 1, "{life:#?}");
    }
}

#[test]
fn programs_are_known_though_they_have_no_path() {
    let cat = fs::read("/bin/cat").unwrap();
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let gone = root.join("gone");
        fs::copy("/bin/cat", &gone).unwrap();
        let file = File::open(&gone).unwrap();
        fs::remove_file(&gone).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let known = watch.known_of(Command::new(path).arg0("cat").args(["-", MARK]));
        assert_eq!(known.exe.unwrap().as_bytes(), gone.as_os_str().as_bytes(), "{choice}");
        assert_eq!(known.exe_deleted, Some(true), "{choice}");

        let memory = rustix::fs::memfd_create("hidden", rustix::fs::MemfdFlags::empty()).unwrap();
        let mut memory = File::from(memory);
        memory.write_all(&cat).unwrap();
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let known = watch.known_of(Command::new(path).arg0("cat").args(["-", MARK]));
        assert_eq!(known.exe.unwrap().as_bytes(), b"/memfd:hidden", "{choice}");
        assert_eq!(known.exe_deleted, Some(true), "{choice}");

        // A script is what its interpreter runs.
        let script = root.join("script");
        fs::write(&script, "#!/bin/sh -e\nread cue\n").unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let known = watch.known_of(Command::new(&script).arg(MARK));
        let shell = fs::canonicalize("/bin/sh").unwrap();
        assert_eq!(known.exe.unwrap().as_bytes(), shell.as_os_str().as_bytes(), "{choice}");
        let script = script.into_os_string().into_encoded_bytes();
        let argv = [b"/bin/sh".to_vec(), b"-e".to_vec(), script, MARK.into()];
        assert_eq!(args(known.argv.as_ref()), argv, "{choice}");
        assert_eq!(known.name, Some("script".into()), "{choice}");
    }
}

#[test]
fn arguments_are_what_they_are() {
    let odd: [&[u8]; 6] =
        [b"", b"\xff\xfe", b"two\nlines", b"\x1b[31mred", b" (deleted)", MARK.as_bytes()];
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let mut command = Command::new("sh");
        command.args(["-c", "read cue"]).args(odd.map(OsStr::from_bytes));
        let known = watch.known_of(&mut command);
        let mut golden = vec![b"sh".to_vec(), b"-c".to_vec(), b"read cue".to_vec()];
        golden.extend(odd.map(<[u8]>::to_vec));
        assert_eq!(args(known.argv.as_ref()), golden, "{choice}");
        assert_eq!(known.completeness, Completeness::Complete, "{choice}");

        // Two million bytes: the first of them, whole arguments, and the mark that there were more.
        let long = "x".repeat(5000);
        let mut command = Command::new("sh");
        command.args(["-c", "read cue", MARK]).args([&*long; 400]);
        let known = watch.known_of(&mut command);
        let argv = known.argv.as_ref().unwrap();
        assert!(argv.is_truncated(), "{choice}");
        assert_eq!(known.completeness, Completeness::Truncated, "{choice}");
        let argv = args(Some(argv));
        let bytes: usize = argv.iter().map(Vec::len).sum();
        assert!(argv.len() > 4 && bytes <= ARGV_BYTES_MAX, "{choice}: {bytes} bytes");
        assert!(argv[4..].iter().all(|arg| long.as_bytes().starts_with(arg)), "{choice}");
    }
}

#[test]
fn other_namespaces_are_told() {
    if !(has("unshare") && can("root", is_root())) {
        return;
    }
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let mut command = Command::new("unshare");
        let mut actor = Actor::enter(command.args(["-p", "-f", "-m", "cat", "-", MARK]));
        let unshare = actor.pid();
        let mut found = None;
        watch.until("the program inside", |watch| {
            let inside = watch
                .events
                .iter()
                .rfind(|event| event.ppid == Some(unshare) && event.name == Some("cat".into()));
            found = inside.cloned();
            found.is_some()
        });
        let inside = found.unwrap();
        let own =
            |kind| fs::metadata(format!("/proc/self/ns/{kind}")).map(|it| inode(&it)).unwrap();
        let namespaces = inside.namespaces.unwrap();
        // Its pid is the one it has outside.
        let shown = |kind| {
            fs::metadata(format!("/proc/{}/ns/{kind}", inside.pid())).map(|it| inode(&it)).unwrap()
        };
        assert_eq!(namespaces.pid, Some(shown("pid")), "{choice}");
        assert_eq!(namespaces.mnt, Some(shown("mnt")), "{choice}");
        assert_ne!(namespaces.pid, Some(own("pid")), "{choice}");
        assert_ne!(namespaces.mnt, Some(own("mnt")), "{choice}");
        assert_eq!(namespaces.net, Some(own("net")), "{choice}");
        assert_eq!(inside.parent_key, watch.known(unshare).map(|known| known.key), "{choice}");
        actor.leave();
        let life = watch.life(inside.pid());
        // What it had to the end, though it has left them.
        assert_eq!(life[life.len() - 1].namespaces, Some(namespaces), "{choice}");
    }
}

fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

/// The end by a signal that leaves a core file, where the system lets it.
#[test]
fn an_end_by_a_signal_is_told_with_the_core_file() {
    let dir = tempfile::tempdir().unwrap();
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c unlimited; read cue; kill -QUIT $$", MARK]);
        let mut actor = Actor::enter(command.current_dir(dir.path()));
        let pid = actor.pid();
        watch.until("the shell", |watch| {
            watch.known(pid).is_some_and(|known| known.name == Some("sh".into()))
        });
        actor.act();
        // A source that has to look finds its entry as long as nobody asks for its end.
        let life = watch.life(pid);
        let status = actor.child.wait().unwrap();
        assert_eq!(status.signal(), Some(3));
        let exit = exit_of(&life[life.len() - 1]);
        if watch.is_told() || is_root() {
            let core = Some(status.core_dumped());
            assert_eq!((exit.exit_code, exit.signal, exit.core_dumped), (None, Some(3), core));
        }
    }
}

/// As `vfork` does, which most programs run others with: its maker sleeps until the child has run a
/// program. Before that it is its maker in all that is told of it.
#[test]
fn a_child_that_its_maker_waits_for_is_told_before_it_runs_a_program() {
    if !has("perl") {
        return;
    }
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        // CLONE_VFORK and SIGCHLD.
        let script = format!(
            "cue; if (!syscall({CLONE}, 0x4000|17, 0, 0, 0, 0)) \
             {{ cue; exec 'cat', '-', '{MARK}' or die }} cue"
        );
        let mut actor = watch.follow(&script);
        let maker = watch.known(actor.pid()).unwrap().clone();
        actor.act();
        actor.has_done();
        let made = |event: &&ProcessEvent| event.ppid == Some(maker.pid());
        watch.until("the child", |watch| watch.events.iter().any(|event| made(&event)));
        let start = watch.events.iter().find(made).unwrap().clone();
        assert_eq!(start.kind, ProcessEventKind::Start { existing: false }, "{choice}");
        assert_eq!((&start.exe, &start.argv), (&maker.exe, &maker.argv), "{choice}");
        assert_eq!(start.parent_key, Some(maker.key), "{choice}");
        watch.events.clear();
        actor.act();
        // Its maker goes on.
        actor.has_done();
        watch.until("the program", |watch| {
            watch.known(start.pid()).unwrap().name == Some("cat".into())
        });
        actor.leave();
        let life = watch.life(start.pid());
        assert!(life.iter().all(|event| event.key == start.key), "{life:#?}");
        let told = changes(&life);
        let (perl, cat) = (start.exe.unwrap(), fs::canonicalize("/bin/cat").unwrap());
        let path = format!("exe: {} -> {}\nname: perl -> cat\n", perl.to_text(), cat.display());
        assert!(told.ends_with(&path), "{choice}: {told}");
        assert!(told.contains(&format!("{MARK} -> cat - {MARK}\n")), "{choice}: {told}");
        let ends = ProcessEventKind::Start { existing: false };
        assert!(life.iter().all(|event| event.kind != ends), "{choice}: {life:#?}");
    }
}

/// A child that its maker gives to its own parent, and one that runs no program.
#[test]
fn who_made_a_process_and_who_is_its_parent_are_told_apart() {
    if !has("perl") {
        return;
    }
    for choice in sources() {
        let mut watch = Watch::begin(choice);
        // CLONE_PARENT and SIGCHLD; in the child the script goes on.
        let script = format!(
            "cue; if (!fork) {{ cue; exit 5 }} cue; \
             if (!syscall({CLONE}, 0x8000|17, 0, 0, 0, 0)) {{ cue; POSIX::_exit(6) }} cue"
        );
        let mut command = Command::new("sh");
        // The shell stays, and is the parent of both.
        command.args(["-c", "perl -e \"$0\" capture-lives; read cue", &with_cues(&script)]);
        let mut actor = Actor::enter(&mut command);
        let shell = actor.pid();
        actor.has_done();
        let is_perl = |event: &&ProcessEvent| event.name == Some("perl".into());
        let child_of = |watch: &Watch, ppid: u32, but: &[u32]| {
            let of =
                |event: &&ProcessEvent| event.ppid == Some(ppid) && !but.contains(&event.pid());
            watch.events.iter().filter(is_perl).rfind(of).cloned()
        };
        watch.until("the script", |watch| child_of(watch, shell, &[]).is_some());
        let maker = child_of(&watch, shell, &[]).unwrap();
        actor.act();
        actor.has_done();
        watch.until("the fork", |watch| child_of(watch, maker.pid(), &[]).is_some());
        let fork = child_of(&watch, maker.pid(), &[]).unwrap();
        assert_eq!((&fork.exe, &fork.argv), (&maker.exe, &maker.argv), "{choice}");
        assert_eq!(fork.parent_key, Some(maker.key), "{choice}");
        assert_ne!(fork.key, maker.key);
        actor.has_done();
        // Whoever reads first goes on; both have to.
        actor.act();
        actor.act();
        watch.until("the sibling", |watch| child_of(watch, shell, &[maker.pid()]).is_some());
        let sibling = child_of(&watch, shell, &[maker.pid()]).unwrap();
        assert_eq!((&sibling.exe, &sibling.argv), (&maker.exe, &maker.argv), "{choice}");
        let parent = watch.known(shell).unwrap().key;
        assert_eq!(sibling.parent_key, Some(parent), "{choice}");
        actor.leave();
        if watch.is_told() {
            let code = |life: Vec<ProcessEvent>| exit_of(&life[life.len() - 1]).exit_code;
            assert_eq!(code(watch.life(fork.pid())), Some(5));
            assert_eq!(code(watch.life(sibling.pid())), Some(6));
        }
    }
}

/// What finds no room is counted exactly, by what it was: a source with much room, beside one with
/// little, sees how much there was. Whoever lives is found.
#[test]
fn c1_what_finds_no_room_is_counted_exactly() {
    const ROUNDS: u32 = 5;
    let floods: u32 = std::env::var("E2E_PROCESSES").map_or(1500, |count| count.parse().unwrap());
    if !sources().contains(&SourceChoice::Ebpf) {
        return;
    }
    let options =
        |ring_bytes| SourceOptions { ring_bytes, ..SourceOptions::every(Duration::from_secs(1)) };
    // Processes of others begin and end all the time, and may do so as a round begins, in another
    // order for the one than for the other.
    for round in 1..=ROUNDS {
        let mut small = Watch::with(SourceChoice::Ebpf, options(64 << 10));
        let mut large = Watch::with(SourceChoice::Ebpf, options(32 << 20));
        let first = told_of_by_both(&mut small, &mut large);
        let mut shell = Actor::enter(Command::new("sh").args(["-c", "read cue; exec cat - x"]));
        let shell_pid = shell.pid();
        let runs = |watch: &Watch, name: &str| {
            watch.known(shell_pid).is_some_and(|known| known.name == Some(name.into()))
        };
        small.until("the shell", |watch| runs(watch, "sh"));
        // Nobody takes what the small one observes.
        let mut left = Vec::new();
        for number in 0..floods {
            run(Command::new("true").arg("flood"));
            if number % 100 == 0 {
                left.push(Actor::enter(&mut Command::new("cat")));
            }
        }
        // That a known process runs another program finds no room either.
        shell.act();
        large.until("the other program", |watch| runs(watch, "cat"));
        let left_pids: Vec<u32> = left.iter().map(Actor::pid).collect();
        let keys = |watch: &Watch| -> Vec<Option<ProcessKey>> {
            left_pids.iter().map(|pid| watch.known(*pid).map(|known| known.key)).collect()
        };
        small.until("those that are left", |watch| keys(watch).iter().all(Option::is_some));
        let last = told_of_by_both(&mut small, &mut large);
        assert_eq!(keys(&small), keys(&large), "a process has one key");
        let cats = |watch: &Watch| {
            let is_cat = |pid: &&u32| watch.known(**pid).unwrap().name == Some("cat".into());
            left_pids.iter().filter(is_cat).count()
        };
        small.until("what they run", |watch| cats(watch) == left_pids.len());
        let exe = |watch: &Watch| watch.known(shell_pid).and_then(|known| known.exe.clone());
        let found = exe(&large);
        small.until("the program that was not told", |watch| exe(watch) == found);
        let (of_small, lost) = tally(&small.told, first, last);
        let (of_large, none) = tally(&large.told, first, last);
        assert_eq!(none, [0; 3], "there was room");
        assert!(lost.iter().sum::<u64>() > 0, "{floods} processes fit into no 64 KiB");
        let all: Vec<u64> = of_small.iter().zip(lost).map(|(told, lost)| told + lost).collect();
        eprintln!("round {round}: {of_small:?} told and {lost:?} lost of {of_large:?}");
        if all == of_large {
            return;
        }
    }
    panic!("the count was never exact");
}

/// Runs a process whose end both are told of: a small ring may still be full of others.
fn told_of_by_both(small: &mut Watch, large: &mut Watch) -> u32 {
    for _ in 0..20 {
        let pid = run(&mut Command::new("true"));
        let is_told = |watch: &Watch| watch.told.contains(&Told::Stop(pid));
        if small.is_so_within(Duration::from_secs(5), is_told) {
            large.until("the same end", is_told);
            return pid;
        }
    }
    panic!("what happens finds no room any more");
}

/// How many starts, changes and stops were told, and how many of each were lost, after the end of
/// one process up to that of another.
fn tally(told: &[Told], first: u32, last: u32) -> ([u64; 3], [u64; 3]) {
    let at = |pid| told.iter().position(|one| *one == Told::Stop(pid)).expect("it has ended");
    let (mut sum, mut lost) = ([0; 3], [0; 3]);
    for one in &told[at(first) + 1..=at(last)] {
        match one {
            Told::Start => sum[0] += 1,
            Told::Change => sum[1] += 1,
            Told::Stop(_) => sum[2] += 1,
            Told::Lost(Missing { starts, changes, stops }) => {
                lost = [lost[0] + starts, lost[1] + changes, lost[2] + stops];
            }
        }
    }
    (sum, lost)
}

fn run(command: &mut Command) -> u32 {
    let mut child = command.spawn().expect("a process");
    let pid = child.id();
    child.wait().expect("its end");
    pid
}

/// The smallest program there is: it ends at once.
#[test]
fn c1_the_shortest_lives_are_whole() {
    const WORKERS: usize = 4;
    let count: usize = std::env::var("E2E_PROCESSES").map_or(2000, |count| count.parse().unwrap());
    if !sources().contains(&SourceChoice::Ebpf) {
        return;
    }
    let Some(code) = exit_code() else {
        eprintln!("skipped: no such program for this processor");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let tiny = dir.path().join("tiny");
    fs::write(&tiny, elf(code)).unwrap();
    fs::set_permissions(&tiny, PermissionsExt::from_mode(0o755)).unwrap();
    let options = SourceOptions { ring_bytes: 16 << 20, ..SourceOptions::every(PATIENCE) };
    let mut watch = Watch::with(SourceChoice::Ebpf, options);
    let began = Instant::now();
    let spawn = |worker| {
        let tiny = tiny.clone();
        let run_one = move |number| {
            (run(Command::new(&tiny).args([&format!("tiny-{number}"), "second"])), number)
        };
        thread::spawn(move || (worker..count).step_by(WORKERS).map(run_one).collect::<Vec<_>>())
    };
    let workers: Vec<_> = (0..WORKERS).map(spawn).collect();
    let is_tiny = |event: &&ProcessEvent| event.name == Some("tiny".into());
    watch.until("every end", |watch| {
        watch.events.iter().filter(is_tiny).filter(|event| is_stop(event)).count() >= count
    });
    let took = began.elapsed();
    let lives: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    assert!(!watch.told.iter().any(|told| matches!(told, Told::Lost(_))), "there was room");
    let mut stops: BTreeMap<Vec<Vec<u8>>, Vec<&ProcessEvent>> = BTreeMap::new();
    for event in watch.events.iter().filter(is_tiny).filter(|event| is_stop(event)) {
        stops.entry(args(event.argv.as_ref())).or_default().push(event);
    }
    for (pid, number) in lives {
        let argv = [
            tiny.as_os_str().as_bytes().to_vec(),
            format!("tiny-{number}").into(),
            "second".into(),
        ];
        let [stop] = &stops[&argv[..]][..] else { panic!("{number}") };
        assert_eq!((stop.pid(), exit_of(stop).exit_code), (pid, Some(7)));
        let starts = watch.events.iter().filter(|event| {
            event.pid() == pid
                && event.key == stop.key
                && matches!(event.kind, ProcessEventKind::Start { existing: false })
        });
        assert_eq!(starts.count(), 1, "{stop:#?}");
    }
    assert_eq!(stops.len(), count);
    eprintln!("{count} starts, stops and argument lists in {took:?}");
}

/// `exit(7)`, for this processor.
fn exit_code() -> Option<&'static [u8]> {
    if cfg!(target_arch = "x86_64") {
        // mov edi, 7; mov eax, 60; syscall
        Some(&[0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05])
    } else if cfg!(target_arch = "aarch64") {
        // mov x0, #7; mov x8, #93; svc #0
        Some(&[0xe0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4])
    } else {
        None
    }
}

/// A static program with nothing but this code: a header, one segment, and the code.
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    put(&2u16.to_le_bytes());
    put(&machine.to_le_bytes());
    put(&1u32.to_le_bytes());
    for number in [BASE + HEADERS, 64, 0] {
        put(&number.to_le_bytes());
    }
    put(&0u32.to_le_bytes());
    for number in [64u16, 56, 1, 64, 0, 0] {
        put(&number.to_le_bytes());
    }
    // To be loaded, read and run.
    put(&1u32.to_le_bytes());
    put(&5u32.to_le_bytes());
    for number in [0, BASE, BASE, size, size, 0x1000] {
        put(&number.to_le_bytes());
    }
    put(code);
    elf
}
