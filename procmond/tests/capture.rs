//! The kernel's tracepoints, on the real kernel.
//!
//! They need CAP_BPF and CAP_PERFMON: without, the tests say so and pass, and fail where CI says
//! that it has everything.

#![cfg(target_os = "linux")]

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{
    Completeness, Exit, FieldChange, ProcessEvent, ProcessEventKind,
};
use procmond::monitor::tracker::Tracker;
use procmond::source::{
    FileIdentity, Observation, SourceChoice, SourceOptions, Started, What, probe_ebpf, probe_poll,
};
use tokio::sync::mpsc::error::TryRecvError;

const PATIENCE: Duration = Duration::from_secs(30);

/// Held by whoever knows processes by their pids, and alone by whoever has the kernel give one again.
static PIDS: RwLock<()> = RwLock::new(());

/// Whether tracepoints can be used here.
fn can_use_ebpf() -> bool {
    match probe_ebpf() {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// A source and what it has made of the events so far.
struct Watch {
    source: Started,
    tracker: Tracker,
    events: Vec<Event>,
    /// The file of each program that was run, by pid, in their order.
    programs: Vec<(u32, Option<FileIdentity>)>,
    /// Nobody chooses pids meanwhile.
    _pids: Option<RwLockReadGuard<'static, ()>>,
}

impl Watch {
    fn begin() -> Self {
        Self::with(SourceOptions::every(Duration::from_secs(1)))
    }

    fn with(options: SourceOptions) -> Self {
        let pids = PIDS.read().unwrap_or_else(PoisonError::into_inner);
        Self::among(options, Some(pids))
    }

    fn among(options: SourceOptions, pids: Option<RwLockReadGuard<'static, ()>>) -> Self {
        let source = SourceChoice::Ebpf.start(options).expect("a source");
        let mut watch = Self {
            source,
            tracker: Tracker::new(),
            events: Vec::new(),
            programs: Vec::new(),
            _pids: pids,
        };
        // What is there is of no interest here.
        watch.until("what is there", |events| !events.is_empty());
        watch.events.clear();
        watch
    }

    /// Observes until something is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&[Event]) -> bool) {
        let since = Instant::now();
        while !is_so(&self.events) {
            let observation = match self.source.observations.try_recv() {
                Ok(observation) => observation,
                Err(TryRecvError::Disconnected) => panic!("the source has ended"),
                Err(TryRecvError::Empty) => {
                    let events = &self.events[self.events.len().saturating_sub(50)..];
                    assert!(since.elapsed() < PATIENCE, "no {what}: {events:#?}");
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            if let Observation::Failed(error) = &observation {
                panic!("{error}");
            }
            if let Observation::Seen(seen) = &observation {
                self.programs.extend(seen.happenings.iter().filter_map(|one| match &one.what {
                    What::Executed(facts) => Some((one.pid, facts.exe_file)),
                    _ => None,
                }));
            }
            self.events.extend(self.tracker.observe(observation));
        }
    }

    /// The life of a process, from its start to its stop.
    fn life(&mut self, pid: u32) -> Vec<ProcessEvent> {
        let is_its_stop = |event: &Event| {
            processes(std::slice::from_ref(event))
                .any(|event| event.pid() == pid && matches!(event.kind, ProcessEventKind::Stop(_)))
        };
        self.until("a stop", |events| events.iter().any(is_its_stop));
        processes(&self.events).filter(|event| event.pid() == pid).cloned().collect()
    }
}

fn processes(events: &[Event]) -> impl Iterator<Item = &ProcessEvent> {
    events.iter().filter_map(|event| match event {
        Event::Process(event) => Some(&**event),
        Event::Gap(_) => None,
    })
}

/// Runs a program to its end and gives its pid.
fn run(command: &mut Command) -> u32 {
    let mut child = command.spawn().expect("a process");
    let pid = child.id();
    child.wait().expect("its end");
    pid
}

fn exit_of(event: &ProcessEvent) -> Exit {
    let ProcessEventKind::Stop(exit) = event.kind else { panic!("{event:?}") };
    exit
}

fn argv_of(event: &ProcessEvent) -> Vec<Vec<u8>> {
    event.argv.as_ref().expect("arguments").iter().map(<[u8]>::to_vec).collect()
}

/// Every one of many processes that live a millisecond, each with its arguments and its end.
#[test]
fn c1_every_short_life_is_one_start_and_one_stop() {
    const WORKERS: usize = 4;
    if !can_use_ebpf() {
        return;
    }
    let count: usize = std::env::var("E2E_PROCESSES").map_or(2000, |count| count.parse().unwrap());
    let mut watch = Watch::begin();
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            thread::spawn(move || {
                let mine = (worker..count).step_by(WORKERS);
                mine.map(|n| (run(Command::new("true").arg(format!("capture-{n}"))), n))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let is_ours = |event: &ProcessEvent| {
        event.argv.as_ref().is_some_and(|argv| {
            argv.iter().nth(1).is_some_and(|mark| mark.starts_with(b"capture-"))
        })
    };
    let is_stop = |event: &ProcessEvent| matches!(event.kind, ProcessEventKind::Stop(_));
    watch.until("every stop", |events| {
        processes(events).filter(|event| is_stop(event) && is_ours(event)).count() >= count
    });
    let pids: HashMap<usize, u32> = workers
        .into_iter()
        .flat_map(|worker| worker.join().unwrap())
        .map(|(pid, n)| (n, pid))
        .collect();
    assert!(
        watch.events.iter().all(|event| matches!(event, Event::Process(_))),
        "nothing found no room"
    );
    let mut lives: HashMap<String, Vec<&ProcessEvent>> = HashMap::new();
    for event in processes(&watch.events).filter(|event| is_ours(event)) {
        let mark = String::from_utf8(argv_of(event)[1].clone()).unwrap();
        lives.entry(mark).or_default().push(event);
    }
    assert_eq!(lives.len(), count, "every process is seen with its arguments");
    for (mark, life) in lives {
        let n: usize = mark.strip_prefix("capture-").unwrap().parse().unwrap();
        let (first, last) = (life[0], life[life.len() - 1]);
        assert_eq!(first.pid(), pids[&n], "{mark}");
        // A fork that is long in running its program is a start, and the program a change.
        assert!(life[..life.len() - 1].iter().all(|event| !is_stop(event)), "{life:#?}");
        assert!(is_stop(last), "{life:#?}");
        assert_eq!(first.key, last.key);
        assert_eq!(last.ppid, Some(std::process::id()));
        assert_eq!(exit_of(last).exit_code, Some(0), "{mark}");
    }
    let mut starts = HashMap::new();
    for event in processes(&watch.events) {
        if matches!(event.kind, ProcessEventKind::Start { .. }) {
            *starts.entry(event.key).or_insert(0) += 1;
        }
    }
    assert!(starts.values().all(|count| *count == 1), "one start for each key");
}

/// The kernel gives up checking a program when a signal comes, as one does for every child that
/// ends while another thread makes one.
#[test]
fn signals_do_not_keep_the_programs_out() {
    if !can_use_ebpf() {
        return;
    }
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    run(&mut Command::new("true"));
                }
            });
        }
        let refused: Vec<_> = (0..30).filter_map(|_| probe_ebpf().err()).collect();
        ends.store(true, Ordering::Relaxed);
        assert!(refused.is_empty(), "{refused:?}");
    });
}

/// What is stopped for a while and has little room loses some: exactly as many as it says, and
/// whoever is still alive is found.
#[test]
fn c1_what_finds_no_room_is_counted_and_who_lives_is_found() {
    if !can_use_ebpf() {
        return;
    }
    let options =
        SourceOptions { ring_bytes: 64 << 10, ..SourceOptions::every(Duration::from_secs(1)) };
    let mut watch = Watch::with(options);
    // Other tests have children, too, and some began before.
    let first = run(&mut Command::new("true"));
    let since = watch.life(first)[0].key.start_centis;
    // Nobody takes observations, so the ring fills.
    for n in 0..6000 {
        run(Command::new("true").arg(format!("flood-{n}")));
    }
    let mut left = Command::new("sleep").arg("1000").spawn().unwrap();
    watch.until("the one that is left", |events| {
        processes(events).any(|event| event.pid() == left.id())
    });
    // The last look has ended what was not told to end.
    let is_flood = |event: &&ProcessEvent| {
        event.ppid == Some(std::process::id())
            && event.pid() != left.id()
            && event.key.start_centis >= since
    };
    watch.until("every end", |events| {
        let starts = processes(events)
            .filter(is_flood)
            .filter(|event| matches!(event.kind, ProcessEventKind::Start { .. }));
        let stops = processes(events)
            .filter(is_flood)
            .filter(|event| matches!(event.kind, ProcessEventKind::Stop(_)));
        starts.count() == stops.count()
    });
    let missing: u64 = watch
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Gap(gap) => gap.missing,
            Event::Process(_) => None,
        })
        .sum();
    assert!(missing > 0, "6,000 processes fit into no 64 KiB");
    left.kill().unwrap();
    left.wait().unwrap();
}

/// Two hundred lives of one pid, one right after the other.
#[test]
fn c2_every_reuse_of_a_pid_is_another_process() {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    const LIVES: usize = 200;
    if !can_use_ebpf() {
        return;
    }
    let _alone = PIDS.write().unwrap_or_else(PoisonError::into_inner);
    let mut watch = Watch::among(SourceOptions::every(Duration::from_secs(1)), None);
    // One that nobody has, and that the kernel gives only when it is told to.
    let pid_max: u32 =
        std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    let given = run(&mut Command::new("true"));
    let mut others = (given + 1000..pid_max).chain(1000..given);
    let wanted = others.find(|pid| !Path::new(&format!("/proc/{pid}")).exists()).unwrap();
    let mut lives = Vec::new();
    for n in 0..LIVES * 20 {
        // Whoever else forks in between may get it.
        std::fs::write(LAST_PID, (wanted - 1).to_string()).expect("the next pid can be chosen");
        if run(Command::new("true").arg(format!("life-{n}"))) == wanted {
            lives.push(format!("life-{n}").into_bytes());
        }
        if lives.len() == LIVES {
            break;
        }
    }
    assert_eq!(lives.len(), LIVES);
    let stops = |events: &[Event]| -> Vec<ProcessEvent> {
        let of_pid = processes(events).filter(|event| event.pid() == wanted);
        of_pid.filter(|event| matches!(event.kind, ProcessEventKind::Stop(_))).cloned().collect()
    };
    let is_life = |event: &ProcessEvent| lives.contains(&argv_of(event)[argv_of(event).len() - 1]);
    watch
        .until("every stop", |events| stops(events).iter().filter(|e| is_life(e)).count() == LIVES);
    let keys: HashSet<_> = stops(&watch.events).iter().map(|event| event.key).collect();
    assert_eq!(keys.len(), stops(&watch.events).len(), "no two lives have one key");
    for life in &lives {
        let of_it: Vec<_> = stops(&watch.events)
            .into_iter()
            .filter(|event| argv_of(event).last() == Some(life))
            .collect();
        let [stop] = &of_it[..] else { panic!("{of_it:#?}") };
        let starts = processes(&watch.events).filter(|event| {
            event.key == stop.key && matches!(event.kind, ProcessEventKind::Start { .. })
        });
        assert_eq!(starts.count(), 1, "{stop:#?}");
    }
}

#[test]
fn how_a_process_ended_is_told() {
    if !can_use_ebpf() {
        return;
    }
    let mut watch = Watch::begin();
    let pid = run(Command::new("sh").args(["-c", "exit 7"]));
    let life = watch.life(pid);
    let exit = exit_of(&life[life.len() - 1]);
    assert_eq!((exit.exit_code, exit.signal, exit.core_dumped), (Some(7), None, None));
    assert!(exit.run_time_ns > Some(0) && exit.cpu_time_ns > Some(0), "{exit:?}");
    assert!(exit.peak_memory_bytes > Some(100 << 10), "{exit:?}");
    let pid = run(Command::new("sh").args(["-c", "kill -9 $$"]));
    let life = watch.life(pid);
    let exit = exit_of(&life[life.len() - 1]);
    assert_eq!((exit.exit_code, exit.signal, exit.core_dumped), (None, Some(9), Some(false)));
}

#[test]
fn arguments_are_bytes_and_are_kept_without_loss() {
    if !can_use_ebpf() {
        return;
    }
    let mut watch = Watch::begin();
    let odd: [&[u8]; 5] = [b"", b"\xff\xfe", b"two\nlines", b"\x1b[31m", b" (deleted)"];
    let pid = run(Command::new("true").args(odd.map(OsStr::from_bytes)));
    let life = watch.life(pid);
    let mut wanted = vec![b"true".to_vec()];
    wanted.extend(odd.map(<[u8]>::to_vec));
    assert_eq!(argv_of(&life[life.len() - 1]), wanted);
    assert_eq!(life[life.len() - 1].completeness, Completeness::Complete);
    // Of more than the kernel's side takes: all, of one that is there long enough; otherwise whole
    // arguments, and the mark that there were more.
    let long = "x".repeat(3000);
    let mut child = Command::new("sh")
        .args(["-c", "read line", &long, &long, &long])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    watch.until("the long arguments", |events| {
        let is_it =
            |event: &ProcessEvent| event.pid() == child.id() && event.name == Some("sh".into());
        processes(events).any(is_it)
    });
    drop(child.stdin.take());
    child.wait().unwrap();
    let life = watch.life(child.id());
    let last = &life[life.len() - 1];
    assert_eq!((argv_of(last).len(), last.completeness), (6, Completeness::Complete));
    let pid = run(Command::new("true").args([&long, &long, &long]));
    let life = watch.life(pid);
    let last = &life[life.len() - 1];
    let cut = last.argv.as_ref().unwrap().is_truncated();
    let completeness = if cut { Completeness::Truncated } else { Completeness::Complete };
    assert_eq!((argv_of(last).len(), last.completeness), (if cut { 2 } else { 4 }, completeness));
    assert!(argv_of(last)[1..].iter().all(|arg| arg == long.as_bytes()));
    // Secrets go before anything else is done.
    let pid = run(Command::new("true").arg("--password=hunter2"));
    let life = watch.life(pid);
    assert!(!format!("{life:?}").contains("hunter2"));
}

#[test]
fn programs_are_named_by_where_they_are() {
    if !can_use_ebpf() {
        return;
    }
    let mut watch = Watch::begin();
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let path = |name: &str| root.join(name);
    std::fs::copy("/bin/true", path("odd (deleted)")).unwrap();
    let pid = run(Command::new(path("odd (deleted)")).current_dir(&root));
    let life = watch.life(pid);
    let last = &life[life.len() - 1];
    let as_bytes = |path: std::path::PathBuf| path.into_os_string().into_encoded_bytes();
    assert_eq!(last.exe.as_ref().unwrap().as_bytes(), as_bytes(path("odd (deleted)")));
    assert_eq!(last.exe_deleted, Some(false));
    assert_eq!(last.cwd.as_ref().unwrap().as_bytes(), as_bytes(root.clone()));

    // A script is what its interpreter runs.
    std::fs::write(path("script"), "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(path("script"), PermissionsExt::from_mode(0o755)).unwrap();
    let pid = run(Command::new(path("script")).arg("-x"));
    let life = watch.life(pid);
    let last = &life[life.len() - 1];
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    assert_eq!(last.exe.as_ref().unwrap().as_bytes(), as_bytes(shell));
    assert_eq!(argv_of(last), [b"/bin/sh".to_vec(), as_bytes(path("script")), b"-x".to_vec()]);

    // A program that never had a path.
    let memory = rustix::fs::memfd_create("hidden", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut memory = File::from(memory);
    memory.write_all(&std::fs::read("/bin/true").unwrap()).unwrap();
    let fd = memory.as_raw_fd();
    let pid = run(Command::new(format!("/proc/self/fd/{fd}")).arg0("innocent"));
    let life = watch.life(pid);
    let last = &life[life.len() - 1];
    assert_eq!(last.exe.as_ref().unwrap().as_bytes(), b"/memfd:hidden");
    assert_eq!((last.exe_deleted, argv_of(last)), (Some(true), vec![b"innocent".to_vec()]));
}

/// The file that a process runs is known by the numbers that `stat` shows, whoever looked.
#[test]
fn the_file_of_a_program_is_the_one_that_stat_shows() {
    if !can_use_ebpf() {
        return;
    }
    let mut watch = Watch::begin();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    std::fs::copy("/bin/sleep", &path).unwrap();
    let memory = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut memory = File::from(memory);
    memory.write_all(&std::fs::read("/bin/sleep").unwrap()).unwrap();
    let fd = memory.as_raw_fd();
    for program in [&*path, Path::new("/bin/sleep"), Path::new(&format!("/proc/self/fd/{fd}"))] {
        // Asked for before it is run: the kernel marks a time that somebody has seen.
        let shown = FileIdentity::from(&std::fs::metadata(program).unwrap());
        let mut child = Command::new(program).arg("1000").spawn().unwrap();
        watch.until("the program", |events| {
            processes(events).any(|event| {
                event.pid() == child.id() && argv_of(event).last() == Some(&b"1000".to_vec())
            })
        });
        let table = probe_poll().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let told = watch.programs.iter().rfind(|(pid, _)| *pid == child.id());
        assert_eq!(told, Some(&(child.id(), Some(shown))), "{}", program.display());
        let found = table.processes.into_iter().find(|process| process.pid == child.id());
        let found = found.unwrap().facts.unwrap().exe_file;
        assert_eq!(found, Some(shown), "{}", program.display());
    }
}

#[test]
fn a_chain_of_programs_is_one_process_that_changes() {
    if !can_use_ebpf() {
        return;
    }
    let mut watch = Watch::begin();
    let pid = run(Command::new("sh").args(["-c", "exec sh -c 'sleep 0.1; exec sleep 0.1'"]));
    let life = watch.life(pid);
    assert!(matches!(life[0].kind, ProcessEventKind::Start { existing: false }), "{life:#?}");
    let last = &life[life.len() - 1];
    assert!(life.iter().all(|event| event.key == last.key));
    assert_eq!(last.name, Some("sleep".into()));
    let changes: Vec<_> = life
        .iter()
        .filter_map(|event| match &event.kind {
            ProcessEventKind::Modify { changes } => Some(changes),
            _ => None,
        })
        .collect();
    let from_shell = FieldChange::Name(Some("sh".into()));
    assert!(changes.iter().any(|changes| changes.contains(&from_shell)), "{life:#?}");
}

/// A look at the process table finds nothing that the tracepoints had not told, or told otherwise.
#[test]
fn tracepoints_and_the_process_table_agree() {
    if !can_use_ebpf() {
        return;
    }
    let mut watch = Watch::begin();
    let mut child = Command::new("sleep").arg("1000").current_dir("/").spawn().unwrap();
    watch.until("the program", |events| {
        processes(events)
            .any(|event| event.pid() == child.id() && event.name == Some("sleep".into()))
    });
    let told = watch.tracker.get(child.id()).unwrap().clone();
    let table = probe_poll().unwrap();
    let mut other = Tracker::new();
    other.observe(Observation::Snapshot(table));
    let found = other.get(child.id()).unwrap().clone();
    child.kill().unwrap();
    child.wait().unwrap();
    let alike = ProcessEvent {
        kind: found.kind.clone(),
        key_precision: found.key_precision,
        start_time_ns: found.start_time_ns,
        time_ns: found.time_ns,
        monotonic_ns: found.monotonic_ns,
        source: found.source,
        ..told
    };
    assert_eq!(alike, found);
}
