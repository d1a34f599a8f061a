//! The sources that the kernel tells of what happens, on the real kernel: the same tests for each.
//!
//! They need privileges: without, the tests say so and pass, and fail where CI says that it has
//! everything.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "the tests are in functions that run with each source")]

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
    Completeness, Exit, FieldChange, ProcessEvent, ProcessEventKind, SourceName,
};
use procmond::monitor::tracker::Tracker;
use procmond::source::{
    FileIdentity, Observation, SourceOptions, Started, What, probe_ebpf, probe_netlink, probe_poll,
    start,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::error::TryRecvError;

const PATIENCE: Duration = Duration::from_secs(30);

/// Held by whoever knows processes by their pids, and alone by whoever has the kernel give one again.
static PIDS: RwLock<()> = RwLock::new(());

/// Runs a test with each source.
macro_rules! with_each_source {
    ($($test:ident,)*) => {
        mod ebpf {
            $(#[test]
            fn $test() {
                if super::can_use(super::SourceName::Ebpf) {
                    super::$test(super::SourceName::Ebpf);
                }
            })*
        }
        mod netlink {
            $(#[test]
            fn $test() {
                if super::can_use(super::SourceName::Netlink) {
                    super::$test(super::SourceName::Netlink);
                }
            })*
        }
    };
}

with_each_source! {
    c1_every_short_life_is_one_start_and_one_stop,
    c1_what_finds_no_room_is_counted_and_who_lives_is_found,
    c2_every_reuse_of_a_pid_is_another_process,
    how_a_process_ended_is_told,
    arguments_are_bytes_and_are_kept_without_loss,
    programs_are_named_by_where_they_are,
    the_file_of_a_program_is_the_one_that_stat_shows,
    a_chain_of_programs_is_one_process_that_changes,
    a_process_that_runs_no_program_has_what_it_was_made_with,
    what_is_told_and_the_process_table_agree,
}

/// Whether a source can be used here.
fn can_use(source: SourceName) -> bool {
    let probed = match source {
        SourceName::Ebpf => probe_ebpf(),
        SourceName::Netlink => probe_netlink().map(drop),
        SourceName::Poll => probe_poll().map(drop),
    };
    match probed {
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
    fn begin(source: SourceName) -> Self {
        Self::with(source, SourceOptions::every(Duration::from_secs(1)))
    }

    fn with(source: SourceName, options: SourceOptions) -> Self {
        let pids = PIDS.read().unwrap_or_else(PoisonError::into_inner);
        Self::among(source, options, Some(pids))
    }

    fn among(
        source: SourceName,
        options: SourceOptions,
        pids: Option<RwLockReadGuard<'static, ()>>,
    ) -> Self {
        let source = start(source, options).expect("a source");
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

impl Watch {
    /// What was known of a process at its end; of one that was looked at in time, where the source
    /// has to look.
    fn last_of(&mut self, command: &mut Command) -> ProcessEvent {
        for _ in 0..200 {
            let pid = run(command);
            let last = self.life(pid).pop().expect("a stop");
            if self.source.name == SourceName::Ebpf
                || last.completeness != Completeness::EnrichedLate
            {
                return last;
            }
        }
        panic!("200 processes were all looked at too late: {command:?}");
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
fn c1_every_short_life_is_one_start_and_one_stop(source: SourceName) {
    let count = std::env::var("E2E_PROCESSES").map_or(2000, |count| count.parse().unwrap());
    every_short_life(source, SourceOptions::every(Duration::from_secs(1)), count);
}

/// The same however long what happens waits for what else happens.
#[test]
fn c1_every_short_life_is_one_start_and_one_stop_with_every_tick() {
    if can_use(SourceName::Ebpf) {
        for tick_ms in [0, 10, 50] {
            let tick = Duration::from_millis(tick_ms);
            let options = SourceOptions { tick, ..SourceOptions::every(Duration::from_secs(1)) };
            every_short_life(SourceName::Ebpf, options, 500);
        }
    }
}

fn every_short_life(source: SourceName, options: SourceOptions, count: usize) {
    const WORKERS: usize = 4;
    let mut watch = Watch::with(source, options);
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            thread::spawn(move || {
                let mine = (worker..count).step_by(WORKERS);
                mine.map(|n| (run(Command::new("true").arg(format!("capture-{n}"))), n))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    watch.until("every process", |_| workers.iter().all(|worker| worker.is_finished()));
    let numbers: HashMap<u32, usize> =
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    assert_eq!(numbers.len(), count, "a pid was given twice");
    let is_ours = |event: &ProcessEvent| {
        event.ppid == Some(std::process::id()) && numbers.contains_key(&event.pid())
    };
    let is_stop = |event: &ProcessEvent| matches!(event.kind, ProcessEventKind::Stop(_));
    watch.until("every stop", |events| {
        processes(events).filter(|event| is_stop(event) && is_ours(event)).count() >= count
    });
    assert!(
        watch.events.iter().all(|event| matches!(event, Event::Process(_))),
        "nothing found no room"
    );
    let mut lives: HashMap<u32, Vec<&ProcessEvent>> = HashMap::new();
    for event in processes(&watch.events).filter(|event| is_ours(event)) {
        lives.entry(event.pid()).or_default().push(event);
    }
    assert_eq!(lives.len(), count, "every process is seen");
    let mut with_argv = 0;
    for (pid, life) in lives {
        let (first, last) = (life[0], life[life.len() - 1]);
        assert!(matches!(first.kind, ProcessEventKind::Start { existing: false }), "{life:#?}");
        // A fork that is long in running its program is a start, and the program a change.
        let changes = &life[1..life.len() - 1];
        let is_change =
            |event: &&ProcessEvent| matches!(event.kind, ProcessEventKind::Modify { .. });
        assert!(is_stop(last) && changes.iter().all(is_change), "{life:#?}");
        assert!(life.iter().all(|event| event.key == last.key && !event.inferred), "{life:#?}");
        assert_eq!(exit_of(last).exit_code, Some(0), "{last:?}");
        if last.completeness == Completeness::EnrichedLate && source == SourceName::Netlink {
            // Marked, and nobody else's.
            let is_own = |argv: Vec<Vec<u8>>| argv.last() == Some(&mark(numbers[&pid]));
            assert!(last.argv.is_none() || is_own(argv_of(last)), "{last:?}");
            with_argv += usize::from(last.argv.is_some());
        } else {
            assert_eq!(argv_of(last), [b"true".to_vec(), mark(numbers[&pid])], "{life:#?}");
            with_argv += 1;
        }
    }
    eprintln!("{source}: {count} starts and stops, {with_argv} with their arguments");
    let mut starts = HashMap::new();
    for event in processes(&watch.events) {
        if matches!(event.kind, ProcessEventKind::Start { .. }) {
            *starts.entry(event.key).or_insert(0) += 1;
        }
    }
    assert!(starts.values().all(|count| *count == 1), "one start for each key");
}

fn mark(number: usize) -> Vec<u8> {
    format!("capture-{number}").into_bytes()
}

/// The kernel gives up checking a program when a signal comes, as one does for every child that
/// ends while another thread makes one.
#[test]
fn signals_do_not_keep_the_programs_out() {
    if !can_use(SourceName::Ebpf) {
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
fn c1_what_finds_no_room_is_counted_and_who_lives_is_found(source: SourceName) {
    let options = SourceOptions {
        ring_bytes: 64 << 10,
        socket_bytes: 64 << 10,
        ..SourceOptions::every(Duration::from_secs(1))
    };
    let mut watch = Watch::with(source, options);
    // Other tests have children, too, and some began before.
    let now = clock_gettime(ClockId::Boottime);
    let since = now.tv_sec.cast_unsigned() * 100 + now.tv_nsec.cast_unsigned() / 10_000_000 + 1;
    // Nobody takes observations, so the ring fills.
    let count = if source == SourceName::Ebpf { 6000 } else { 2000 };
    for n in 0..count {
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
    assert!(missing > 0, "{count} processes fit into no 64 KiB");
    left.kill().unwrap();
    left.wait().unwrap();
}

/// Two hundred lives of one pid, one right after the other.
fn c2_every_reuse_of_a_pid_is_another_process(source: SourceName) {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    const LIVES: usize = 200;
    let _alone = PIDS.write().unwrap_or_else(PoisonError::into_inner);
    let mut watch = Watch::among(source, SourceOptions::every(Duration::from_secs(1)), None);
    let pid_max: u32 =
        std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    let mut chosen = None;
    // Whoever else forks in between may get the pid, and keep it.
    for _ in 0..10 {
        let given = run(&mut Command::new("true"));
        // One that nobody has, and that the kernel gives only when it is told to.
        let mut others = (given + 1000..pid_max).chain(1000..given);
        let wanted = others.find(|pid| !Path::new(&format!("/proc/{pid}")).exists()).unwrap();
        let mut lives = Vec::new();
        for n in 0..LIVES * 2 {
            std::fs::write(LAST_PID, (wanted - 1).to_string()).expect("the pid can be chosen");
            if run(Command::new("true").arg(format!("life-{n}"))) == wanted {
                lives.push(format!("life-{n}").into_bytes());
            }
            if lives.len() == LIVES {
                break;
            }
        }
        if lives.len() == LIVES {
            chosen = Some((wanted, lives));
            break;
        }
    }
    let (wanted, lives) = chosen.expect("a pid can be given 200 times");
    let of_ours =
        |event: &&ProcessEvent| event.pid() == wanted && event.ppid == Some(std::process::id());
    let is_stop = |event: &&ProcessEvent| matches!(event.kind, ProcessEventKind::Stop(_));
    watch.until("every stop", |events| {
        processes(events).filter(of_ours).filter(is_stop).count() >= LIVES
    });
    let ours: Vec<_> = processes(&watch.events).filter(of_ours).collect();
    let stops: Vec<_> = ours.iter().filter(|event| is_stop(event)).collect();
    assert_eq!(stops.len(), LIVES);
    let keys: HashSet<_> = stops.iter().map(|event| event.key).collect();
    assert_eq!(keys.len(), LIVES, "no two lives have one key");
    let mut with_argv = 0;
    for (life, stop) in lives.iter().zip(stops) {
        let of_it: Vec<_> = ours.iter().filter(|event| event.key == stop.key).collect();
        let starts = |event: &&&&ProcessEvent| matches!(event.kind, ProcessEventKind::Start { .. });
        assert_eq!(of_it.iter().filter(starts).count(), 1, "{of_it:#?}");
        // What was read too late is not there, and nothing of another life is.
        match stop.completeness {
            Completeness::EnrichedLate if source == SourceName::Netlink => {
                let is_own = |argv: Vec<Vec<u8>>| argv.last() == Some(life);
                assert!(stop.argv.is_none() || is_own(argv_of(stop)), "{of_it:#?}");
                with_argv += usize::from(stop.argv.is_some());
            }
            _ => {
                assert_eq!(argv_of(stop).last(), Some(life), "{of_it:#?}");
                with_argv += 1;
            }
        }
    }
    eprintln!("{source}: {LIVES} lives of one pid, {with_argv} with their arguments");
}

fn how_a_process_ended_is_told(source: SourceName) {
    let mut watch = Watch::begin(source);
    // For long enough that its time is measured.
    let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; exit 7";
    let pid = run(Command::new("sh").args(["-c", script]));
    let life = watch.life(pid);
    let exit = exit_of(&life[life.len() - 1]);
    assert_eq!((exit.exit_code, exit.signal, exit.core_dumped), (Some(7), None, None));
    assert!(exit.run_time_ns > Some(0), "{exit:?}");
    if source == SourceName::Ebpf || probe_netlink().unwrap() {
        assert!(exit.cpu_time_ns > Some(0), "{exit:?}");
        assert!(exit.peak_memory_bytes > Some(100 << 10), "{exit:?}");
    }
    let pid = run(Command::new("sh").args(["-c", "kill -9 $$"]));
    let life = watch.life(pid);
    let exit = exit_of(&life[life.len() - 1]);
    assert_eq!((exit.exit_code, exit.signal, exit.core_dumped), (None, Some(9), Some(false)));
}

fn arguments_are_bytes_and_are_kept_without_loss(source: SourceName) {
    let mut watch = Watch::begin(source);
    let odd: [&[u8]; 5] = [b"", b"\xff\xfe", b"two\nlines", b"\x1b[31m", b" (deleted)"];
    let last = watch.last_of(Command::new("true").args(odd.map(OsStr::from_bytes)));
    let mut wanted = vec![b"true".to_vec()];
    wanted.extend(odd.map(<[u8]>::to_vec));
    assert_eq!((argv_of(&last), last.completeness), (wanted, Completeness::Complete));
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
    let last = watch.last_of(Command::new("true").args([&long, &long, &long]));
    let cut = last.argv.as_ref().unwrap().is_truncated();
    let completeness = if cut { Completeness::Truncated } else { Completeness::Complete };
    assert_eq!((argv_of(&last).len(), last.completeness), (if cut { 2 } else { 4 }, completeness));
    assert!(argv_of(&last)[1..].iter().all(|arg| arg == long.as_bytes()));
    // Secrets go before anything else is done.
    let last = watch.last_of(Command::new("true").arg("--password=hunter2"));
    assert!(!format!("{:?}", watch.life(last.pid())).contains("hunter2"));
}

fn programs_are_named_by_where_they_are(source: SourceName) {
    let mut watch = Watch::begin(source);
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let path = |name: &str| root.join(name);
    std::fs::copy("/bin/true", path("odd (deleted)")).unwrap();
    let last = watch.last_of(Command::new(path("odd (deleted)")).current_dir(&root));
    let as_bytes = |path: std::path::PathBuf| path.into_os_string().into_encoded_bytes();
    assert_eq!(last.exe.as_ref().unwrap().as_bytes(), as_bytes(path("odd (deleted)")));
    assert_eq!(last.exe_deleted, Some(false));
    assert_eq!(last.cwd.as_ref().unwrap().as_bytes(), as_bytes(root.clone()));

    // A script is what its interpreter runs.
    std::fs::write(path("script"), "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(path("script"), PermissionsExt::from_mode(0o755)).unwrap();
    let last = watch.last_of(Command::new(path("script")).arg("-x"));
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    assert_eq!(last.exe.as_ref().unwrap().as_bytes(), as_bytes(shell));
    assert_eq!(argv_of(&last), [b"/bin/sh".to_vec(), as_bytes(path("script")), b"-x".to_vec()]);

    // A program that never had a path.
    let memory = rustix::fs::memfd_create("hidden", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut memory = File::from(memory);
    memory.write_all(&std::fs::read("/bin/true").unwrap()).unwrap();
    let fd = memory.as_raw_fd();
    let last = watch.last_of(Command::new(format!("/proc/self/fd/{fd}")).arg0("innocent"));
    assert_eq!(last.exe.as_ref().unwrap().as_bytes(), b"/memfd:hidden");
    assert_eq!((last.exe_deleted, argv_of(&last)), (Some(true), vec![b"innocent".to_vec()]));
}

/// The file that a process runs is known by the numbers that `stat` shows, whoever looked.
fn the_file_of_a_program_is_the_one_that_stat_shows(source: SourceName) {
    let mut watch = Watch::begin(source);
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

fn a_chain_of_programs_is_one_process_that_changes(source: SourceName) {
    let mut watch = Watch::begin(source);
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

/// A shell that makes another to do a part of its work.
fn a_process_that_runs_no_program_has_what_it_was_made_with(source: SourceName) {
    let mut watch = Watch::begin(source);
    let script = "(read line; exit 3); exit 0";
    let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
    let parent = child.id();
    let is_part = |event: &&ProcessEvent| event.ppid == Some(parent);
    watch.until("the part", |events| processes(events).any(|event| is_part(&event)));
    drop(child.stdin.take());
    child.wait().unwrap();
    let pid = processes(&watch.events).find(is_part).unwrap().pid();
    let life = watch.life(pid);
    let (first, last) = (&life[0], &life[life.len() - 1]);
    assert!(matches!(first.kind, ProcessEventKind::Start { existing: false }), "{life:#?}");
    assert_eq!(argv_of(first), [b"sh".to_vec(), b"-c".to_vec(), script.as_bytes().to_vec()]);
    assert_eq!((&first.name, first.completeness), (&Some("sh".into()), Completeness::Complete));
    assert!(first.exe.is_some() && first.uid.is_some() && first.cwd.is_some(), "{first:#?}");
    assert_eq!(first.parent_key.map(|key| key.pid), Some(parent));
    assert_eq!(exit_of(last).exit_code, Some(3));
}

/// A look at the process table finds nothing that had not been told, or told otherwise.
fn what_is_told_and_the_process_table_agree(source: SourceName) {
    let mut watch = Watch::begin(source);
    let mut child = Command::new("sleep").arg("1000").current_dir("/").spawn().unwrap();
    watch.until("the program", |events| {
        processes(events).any(|event| {
            event.pid() == child.id() && argv_of(event).last() == Some(&b"1000".to_vec())
        })
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
