use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use super::*;
use crate::monitor::tracker::Tracker;
use crate::source::Observation;
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{ProcessEvent, ProcessEventKind, ProcessKey};

/// Ends and reaps the process also when an assertion fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn procfs() -> Procfs {
    Procfs::open("/proc".into()).unwrap()
}

fn find(table: &ProcessTable, pid: u32) -> Option<&ObservedProcess> {
    table.processes.iter().find(|process| process.pid == pid)
}

/// Looks until a condition holds for a process; the deadline is for a broken test only.
fn look_until(
    procfs: &mut Procfs,
    pid: u32,
    mut holds: impl FnMut(Option<&ObservedProcess>) -> bool,
) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::time::Instant::now() < deadline {
        if holds(find(&procfs.scan().unwrap(), pid)) {
            return;
        }
        std::thread::yield_now();
    }
    panic!("process {pid} was not seen so");
}

#[test]
fn a_real_process_is_seen_whole_and_once() {
    let mut procfs = procfs();
    let child = Running(
        Command::new("/bin/sleep").arg0("sle\u{301}ep").args(["300", "0"]).spawn().unwrap(),
    );
    let pid = child.0.id();
    let table = procfs.scan().unwrap();
    let facts = find(&table, pid).unwrap().facts.clone().unwrap();
    let args: Vec<&[u8]> = facts.argv.as_ref().unwrap().iter().collect();
    assert_eq!(args, ["sle\u{301}ep".as_bytes(), b"300", b"0"]);
    assert_eq!(facts.ppid, Some(std::process::id()));
    assert!(facts.exe.unwrap().as_bytes().ends_with(b"/sleep") || cfg!(target_env = "musl"));
    assert_eq!(facts.exe_deleted, Some(false));
    let cwd = std::env::current_dir().unwrap();
    assert_eq!(facts.cwd.unwrap().as_bytes(), cwd.as_os_str().as_bytes());
    let uid = rustix::process::getuid().as_raw();
    assert_eq!((facts.uid, facts.euid), (Some(uid), Some(uid)));
    assert_eq!(facts.completeness, Completeness::Complete);
    assert!(facts.namespaces.unwrap().pid.is_some());

    // Nothing changed: nothing is told again.
    let again = procfs.scan().unwrap();
    assert_eq!(find(&again, pid).unwrap().facts, None);
    let started = find(&again, pid).unwrap().start_centis;
    assert!(started * stat::TICK_NS <= again.uptime_ns);

    drop(child);
    assert_eq!(find(&procfs.scan().unwrap(), pid), None);
}

#[test]
fn an_exec_in_the_same_process_is_told_again() {
    let mut procfs = procfs();
    // The same program again, so that not even its name changes: only its arguments do.
    let script = "read x; exec /bin/sh -c 'read x; exec /bin/sh -c \"read x\" third' second";
    let mut child = Running(
        Command::new("/bin/sh")
            .args(["-c", script, "first"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let pid = child.0.id();
    let has_arg = |process: Option<&ObservedProcess>, wanted: &str| {
        process
            .and_then(|process| process.facts.as_ref()?.argv.clone())
            .is_some_and(|argv| argv.iter().last() == Some(wanted.as_bytes()))
    };
    look_until(&mut procfs, pid, |process| has_arg(process, "first"));
    std::io::Write::write_all(child.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    look_until(&mut procfs, pid, |process| has_arg(process, "second"));
    assert_eq!(find(&procfs.scan().unwrap(), pid).unwrap().facts, None);
    std::io::Write::write_all(child.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    look_until(&mut procfs, pid, |process| has_arg(process, "third"));
}

#[test]
fn a_process_that_ended_and_is_not_reaped_has_ended() {
    let mut procfs = procfs();
    let mut child = Running(Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap());
    let pid = child.0.id();
    let mut seen = None;
    look_until(&mut procfs, pid, |process| {
        seen = process.and_then(|process| process.ended);
        seen.is_some()
    });
    let exit = seen.unwrap();
    assert_eq!((exit.exit_code, exit.signal), (Some(7), None));
    assert!(exit.cpu_time_ns.is_some());
    // It stays so until it is reaped, and then it is gone.
    assert!(find(&procfs.scan().unwrap(), pid).unwrap().ended.is_some());
    child.0.wait().unwrap();
    assert_eq!(find(&procfs.scan().unwrap(), pid), None);
}

#[test]
fn threads_are_not_processes() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let (told, tid) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        told.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let _ = receiver.recv();
    });
    let tid = u32::try_from(tid.recv().unwrap()).unwrap();
    let table = procfs().scan().unwrap();
    assert!(find(&table, std::process::id()).is_some());
    assert!(Path::new(&format!("/proc/{tid}/stat")).exists());
    assert_eq!(find(&table, tid), None);
    drop(sender);
    thread.join().unwrap();
}

/// A tree that looks like `/proc`, for what a real one shows too seldom.
fn fake(stat: &str) -> (tempfile::TempDir, Procfs) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("sys/kernel/random")).unwrap();
    fs::create_dir_all(root.join("7")).unwrap();
    let write = |name: &str, text: &[u8]| fs::write(root.join(name), text).unwrap();
    write("sys/kernel/random/boot_id", b"3f2a9c1e-0102-4304-8506-0708090a0b0c\n");
    write("uptime", b"2000.00 1.00\n");
    write("7/stat", stat.as_bytes());
    write("7/status", b"Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n");
    write("7/cmdline", b"a\0\0\xff\0--password=x\0");
    std::os::unix::fs::symlink("/bin/x (deleted)", root.join("7/exe")).unwrap();
    std::os::unix::fs::symlink("/", root.join("7/cwd")).unwrap();
    let procfs = Procfs::open(root.to_owned()).unwrap();
    (dir, procfs)
}

const STAT: &str = "7 (x) S 1 7 7 0 -1 4194304 1 0 0 0 7 3 0 0 20 0 1 0 123456 1 1 1 94 95 140";

#[test]
fn strange_arguments_and_deleted_programs_are_kept_as_they_are() {
    let (_dir, mut procfs) = fake(STAT);
    let table = procfs.scan().unwrap();
    let facts = table.processes[0].facts.clone().unwrap();
    let args: Vec<Vec<u8>> = facts.argv.unwrap().iter().map(<[u8]>::to_vec).collect();
    assert_eq!(args, [&b"a"[..], b"", b"\xff", b"--password=[REDACTED]"]);
    assert_eq!((facts.exe.unwrap().as_bytes(), facts.exe_deleted), (&b"/bin/x"[..], Some(true)));
    assert_eq!(table.uptime_ns, 2_000_000_000_000);
    assert_eq!(table.boot_id.as_fields().0, 0x3f2a_9c1e);
}

#[test]
fn the_next_life_of_a_pid_is_another_process() {
    let (dir, mut procfs) = fake(STAT);
    procfs.scan().unwrap();
    fs::write(dir.path().join("7/stat"), STAT.replace("123456", "123457")).unwrap();
    let table = procfs.scan().unwrap();
    assert_eq!(table.processes[0].start_centis, 123_457);
    assert!(table.processes[0].facts.is_some(), "its facts are not those of the one before");
}

/// The reader is held at the arguments, by a pipe in their place, while the pid passes on.
#[test]
fn what_is_read_while_a_pid_passes_on_is_not_believed() {
    let (dir, mut procfs) = fake(STAT);
    let cmdline = dir.path().join("7/cmdline");
    fs::remove_file(&cmdline).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &cmdline, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let stat = dir.path().join("7/stat");
    let next_life = std::thread::spawn(move || {
        // Opens when the reader has opened it.
        let mut arguments = fs::OpenOptions::new().write(true).open(&cmdline).unwrap();
        fs::write(&stat, STAT.replace("123456", "123999")).unwrap();
        std::io::Write::write_all(&mut arguments, b"of\0the\0next\0").unwrap();
    });
    let table = procfs.scan().unwrap();
    next_life.join().unwrap();
    let process = &table.processes[0];
    assert_eq!((process.start_centis, process.ended), (123_456, Some(Exit::default())));
    let facts = process.facts.as_ref().unwrap();
    assert_eq!((&facts.name, &facts.argv, &facts.exe), (&Some("x".into()), &None, &None));
    assert_eq!(facts.completeness, Completeness::EnrichedLate);
}

#[test]
fn a_change_of_user_is_told() {
    let (dir, mut procfs) = fake(STAT);
    procfs.scan().unwrap();
    assert_eq!(procfs.scan().unwrap().processes[0].facts, None);
    fs::write(dir.path().join("7/status"), "Uid:\t1\t0\t0\t0\nGid:\t1\t1\t1\t1\n").unwrap();
    let facts = procfs.scan().unwrap().processes[0].facts.clone().unwrap();
    assert_eq!((facts.uid, facts.euid), (Some(1), Some(0)));
}

#[test]
fn one_that_has_not_run_is_looked_at_when_it_is_due() {
    let (dir, mut procfs) = fake(STAT);
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let mut facts = || procfs.scan().unwrap().processes[0].facts.clone();
    write("7/cgroup", "0::/one\n");
    write("7/schedstat", "5 0 7\n");
    assert!(facts().is_some());
    // What has run is looked at, what has not is not, except when it is its turn.
    write("7/status", "Uid:\t1\t0\t0\t0\nGid:\t1\t1\t1\t1\n");
    write("7/cgroup", "0::/two\n");
    assert_eq!(facts(), None);
    write("7/schedstat", "5 1 7\n");
    assert_eq!(facts().unwrap().euid, Some(0));
    assert_eq!(facts(), None);
    write("7/cgroup", "0::/three\n");
    write("uptime", "2002.00 1.00\n");
    assert_eq!(facts(), None);
    write("uptime", "2032.00 1.00\n");
    assert_eq!(facts().unwrap().cgroup, Some("/three".into()));
    write("uptime", "2062.00 1.00\n");
    assert_eq!(facts(), None, "looked at, and as it was");
    // A kernel that does not count says nothing.
    write("7/schedstat", "0 0 0\n");
    assert_eq!(facts(), None);
    write("7/status", "Uid:\t1\t1\t0\t0\nGid:\t1\t1\t1\t1\n");
    assert_eq!(facts().unwrap().euid, Some(1));
}

#[test]
fn everyone_is_due_once_in_the_time_between_two_checks() {
    let mut procfs = procfs();
    for last in 100..140 {
        for step in [0, 1, 2, 7, 29, 30, 31, 300] {
            procfs.seconds = [last, last + step];
            let due = (0..60).filter(|pid| procfs.is_due(*pid)).count() as u64;
            assert_eq!(due, 2 * step.min(CHECK_SECONDS), "{last} and {step} s");
        }
    }
}

#[test]
fn a_failure_that_is_not_an_end_fails_the_look() {
    let (dir, mut procfs) = fake(STAT);
    fs::remove_file(dir.path().join("7/stat")).unwrap();
    fs::create_dir(dir.path().join("7/stat")).unwrap();
    let error = procfs.scan().unwrap_err();
    assert!(matches!(error, SourceError::Unreadable { .. }), "{error}");
    assert!(Procfs::open(dir.path().join("nowhere")).is_err());
}

/// Everything that a look tells of: pids with news, `None` if nothing has changed, and how many may
/// have lived unseen.
fn told(again: &mut again::Again) -> (Option<Vec<u32>>, u64) {
    let (mut pids, mut unseen) = (None, 0);
    for observation in again.look().unwrap() {
        match observation {
            Observation::Snapshot(table) => {
                let news = table.processes.iter().filter(|process| process.facts.is_some());
                let mut news: Vec<u32> = news.map(|process| process.pid).collect();
                news.sort_unstable();
                pids = Some(news);
            }
            Observation::Unchanged { uptime_ns, .. } => assert!(uptime_ns > 0),
            Observation::Unseen(overrun) => unseen += overrun.missing,
            other => panic!("{other:?}"),
        }
    }
    (pids, unseen)
}

#[test]
fn while_nothing_begins_only_those_that_are_known_are_looked_at() {
    let (dir, procfs) = fake(STAT);
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("stat", "cpu 1 2\nprocesses 100\n");
    let mut again = procfs.again_and_again();
    assert_eq!(told(&mut again), (Some(vec![7]), 0));
    assert_eq!(told(&mut again), (None, 0), "everything is as it was");
    // One that nobody forked is not there, so this one is not found.
    write("8/stat", &STAT.replace("123456", "200001").replace("7 (x)", "8 (y)"));
    assert_eq!(told(&mut again), (None, 0));
    // Its name changed, and it has ended: a known one is looked at each time.
    write("7/stat", &STAT.replace("(x)", "(z)"));
    assert_eq!(told(&mut again), (Some(vec![7]), 0));
    write("stat", "processes 101\n");
    assert_eq!(told(&mut again), (Some(vec![8]), 0));
    fs::remove_file(dir.path().join("7/stat")).unwrap();
    assert_eq!(told(&mut again), (Some(vec![]), 0));
    assert_eq!(told(&mut again), (None, 0));
    // Whatever the count says, everything is listed now and then.
    write("7/stat", STAT);
    assert_eq!(told(&mut again), (None, 0));
    write("uptime", "2030.00 1.00\n");
    assert_eq!(told(&mut again), (Some(vec![7]), 0));
}

#[test]
fn c1_what_began_and_was_not_seen_is_bounded() {
    let (dir, procfs) = fake(STAT);
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let young = |pid: u32, threads: u32| {
        let stat = STAT.replace("7 (x)", &format!("{pid} (y)")).replace("123456", "200001");
        stat.replace("20 0 1 0", &format!("20 0 {threads} 0"))
    };
    write("stat", "processes 100\n");
    let mut again = procfs.again_and_again();
    told(&mut again);
    // A process with three threads accounts for three, two more threads for two.
    write("stat", "processes 103\n");
    write("8/stat", &young(8, 3));
    assert_eq!(told(&mut again), (Some(vec![8]), 0));
    write("stat", "processes 105\n");
    write("8/stat", &young(8, 5));
    assert_eq!((told(&mut again).1, told(&mut again).1), (0, 0));
    // Seven that nobody saw; one that is there, and began before we did, is none of them.
    write("stat", "processes 112\n");
    write("9/stat", &STAT.replace("7 (x)", "9 (old)"));
    assert_eq!((told(&mut again).1, told(&mut again).1), (0, 7));
    // What comes within the minute is told at the end.
    write("stat", "processes 115\n");
    assert_eq!((told(&mut again).1, told(&mut again).1), (0, 0));
    let Some(Observation::Unseen(last)) = again.end() else { panic!("three are missing") };
    assert_eq!(last.missing, 3);
    assert!(again.end().is_none());
}

#[test]
fn what_a_look_found_before_it_failed_is_told_by_the_next() {
    let (dir, procfs) = fake(STAT);
    fs::write(dir.path().join("stat"), "processes 100\n").unwrap();
    let stat = |pid: u32| dir.path().join(format!("{pid}/stat"));
    let write = |pid: u32, name: &str| {
        fs::write(stat(pid), STAT.replace("7 (x)", &format!("{pid} ({name})"))).unwrap();
    };
    let pids: Vec<u32> = (20..40).collect();
    for pid in &pids {
        fs::create_dir_all(dir.path().join(format!("{pid}"))).unwrap();
        write(*pid, "before");
    }
    let mut again = procfs.again_and_again();
    told(&mut again);
    pids.iter().for_each(|pid| write(*pid, "after"));
    // In whatever order they are looked at, some come before one of these.
    for broken in [20, 30, 39] {
        fs::remove_file(stat(broken)).unwrap();
        fs::create_dir(stat(broken)).unwrap();
        assert!(again.look().is_err());
        fs::remove_dir(stat(broken)).unwrap();
        write(broken, "after");
    }
    let (news, _) = told(&mut again);
    assert!(
        pids.iter().all(|pid| news.as_ref().is_some_and(|news| news.contains(pid))),
        "{news:?}"
    );
}

/// What a look and what came since mean: starts, stops and changes.
fn events(again: &mut again::Again, tracker: &mut Tracker) -> Vec<ProcessEvent> {
    let seen = again.look().unwrap();
    let events = seen.into_iter().flat_map(|observation| tracker.observe(observation));
    let process = |event| match event {
        Event::Process(event) => Some(*event),
        Event::Gap(_) => None,
    };
    events.filter_map(process).collect()
}

/// Lives of one pid, one right after the other, so that many begin in the same 10 ms. What is held
/// tells them apart, whether its end is told before the next look or found by it.
#[test]
fn c2_lives_of_one_pid_in_one_tick_are_told_apart() {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    const LIVES: usize = 100;
    let mut again = procfs().again_and_again();
    let (sender, ends) = std::sync::mpsc::channel();
    again.tell_ends(move |pids, at_ns| sender.send((pids, at_ns)).is_ok());
    let mut tracker = Tracker::new();
    events(&mut again, &mut tracker);
    let spawn = |mark: &str| {
        let mut command = Command::new("/bin/sh");
        let command = command.args(["-c", "read x", mark]).stdin(std::process::Stdio::piped());
        Running(command.spawn().unwrap())
    };
    let first = spawn("first").0.id();
    let wanted = (3000..)
        .map(|further| 1000 + (first + further) % 30_000)
        .find(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        .unwrap();
    if let Err(error) = fs::write(LAST_PID, (wanted - 1).to_string()) {
        assert!(!rustix::process::getuid().is_root(), "{error}");
        eprintln!("skipped: {LAST_PID}: {error}");
        return;
    }
    let (mut told, mut count) = (Vec::new(), 0);
    for n in 0..LIVES * 20 {
        // Whoever else forks in between may get it.
        fs::write(LAST_PID, (wanted - 1).to_string()).unwrap();
        let mark = format!("life-{n}");
        let child = spawn(&mark);
        if child.0.id() != wanted {
            continue;
        }
        told.extend(events(&mut again, &mut tracker));
        if again.table.known.get(&wanted).is_some_and(|known| known.life.is_none()) {
            eprintln!("skipped: there is no room to hold so many processes as are here");
            return;
        }
        drop(child);
        if n % 2 == 0 {
            let since = std::time::Instant::now();
            while tracker.get(wanted).is_some() {
                assert!(since.elapsed().as_secs() < 30, "the end of {mark} is not told");
                let Ok((pids, at_ns)) = ends.recv() else { panic!("nothing is told any more") };
                let ended = again.ended(&pids, at_ns).map(|ended| tracker.observe(ended));
                told.extend(ended.into_iter().flatten().filter_map(|event| match event {
                    Event::Process(event) => Some(*event),
                    Event::Gap(_) => None,
                }));
            }
        }
        count += 1;
        if count == LIVES {
            break;
        }
    }
    told.extend(events(&mut again, &mut tracker));
    assert_eq!(count, LIVES);
    let mut lives: HashMap<ProcessKey, Vec<&ProcessEvent>> = HashMap::new();
    for event in told.iter().filter(|event| event.pid() == wanted) {
        lives.entry(event.key).or_default().push(event);
    }
    // Others may have had the pid, too; whether every one is seen is not what this is about.
    assert!(lives.len() > LIVES / 2, "{} lives", lives.len());
    let mut marks = std::collections::HashSet::new();
    for life in lives.values() {
        let (first, last) = (life[0], life[life.len() - 1]);
        assert!(matches!(first.kind, ProcessEventKind::Start { existing: false }), "{life:#?}");
        let ProcessEventKind::Stop(exit) = last.kind else { panic!("{life:#?}") };
        let mark = |event: &&ProcessEvent| event.argv.as_ref()?.iter().last().map(<[u8]>::to_vec);
        let mut own: Vec<_> = life.iter().filter_map(mark).collect();
        own.dedup();
        // One that was looked at in the midst of exec has no arguments.
        assert!(own.len() <= 1, "{life:#?}");
        for mark in own.into_iter().filter(|mark| mark.starts_with(b"life-")) {
            assert!(marks.insert(mark), "an event of another life: {life:#?}");
            // Linux 6.15 and later tell it also after it was reaped.
            assert!(exit.signal.is_none_or(|signal| signal == 9), "{exit:?}");
        }
    }
    assert!(marks.len() > LIVES / 2, "{} lives with their arguments", marks.len());
    let shared = lives.keys().filter(|key| key.generation > 0).count();
    eprintln!("{shared} of {LIVES} lives began in the same 10 ms as the one before");
}

/// The parent 1 and its child 7, both with the memory layout of the parent.
fn fork() -> (tempfile::TempDir, Procfs) {
    let (dir, procfs) = fake(&STAT.replace("123456", "199995"));
    fs::create_dir(dir.path().join("1")).unwrap();
    fs::write(dir.path().join("1/stat"), STAT.replace("(x) S 1", "(init) S 0")).unwrap();
    fs::write(dir.path().join("1/status"), "Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n").unwrap();
    (dir, procfs)
}

#[test]
fn a_process_between_fork_and_exec_is_told_as_what_it_becomes() {
    let (dir, mut procfs) = fork();
    let stat = dir.path().join("7/stat");
    let mut pauses = 0;
    procfs.pause = Box::new(move || {
        pauses += 1;
        if pauses == 3 {
            let after = STAT.replace("123456", "199995").replace("94 95 140", "94 95 150");
            fs::write(&stat, after.replace("(x)", "(program)")).unwrap();
        }
        assert!(pauses <= 3, "no longer than needed");
    });
    let table = procfs.scan().unwrap();
    let child = find(&table, 7).unwrap();
    assert_eq!(child.facts.as_ref().unwrap().name, Some("program".into()));
    let table = procfs.scan().unwrap();
    assert_eq!(find(&table, 7).unwrap().facts, None, "and told once");
}

#[test]
fn a_process_that_forks_and_stays_as_it_is_or_ends_is_told_too() {
    let (_dir, mut procfs) = fork();
    procfs.pause = Box::new(|| {});
    let table = procfs.scan().unwrap();
    assert!(find(&table, 7).unwrap().facts.is_some());
    assert_eq!(find(&table, 7).unwrap().ended, None);

    let (dir, mut procfs) = fork();
    let root = dir.path().to_owned();
    procfs.pause = Box::new(move || {
        let _ = fs::remove_file(root.join("7/stat"));
    });
    let table = procfs.scan().unwrap();
    assert!(find(&table, 7).unwrap().facts.is_some());
    assert_eq!(find(&table, 7).unwrap().ended, Some(Exit::default()));
}

/// Between giving up its memory and being listed as ended a process has no arguments. That was
/// told as a change, and its stop then came without them.
#[test]
fn a_process_that_is_ending_does_not_lose_its_arguments() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let stat = |layout: &str| {
        let before = "7 (sh) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 100 4096 1 9";
        format!("{before} {layout} 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0")
    };
    write("sys/kernel/random/boot_id", "3f2a9c1e-0000-4000-8000-000000000000\n");
    write("uptime", "5000.00 1.00\n");
    write("7/stat", &stat("10 20 30"));
    write("7/status", "Uid:\t1 1 1 1\nGid:\t1 1 1 1\n");
    write("7/cmdline", "sh\0-c\0read x\0");
    let mut procfs = Procfs::open(root.path().to_owned()).unwrap();
    let first = procfs.scan().unwrap().processes.remove(0);
    assert_eq!(first.facts.unwrap().argv.unwrap().iter().count(), 3);

    write("7/stat", &stat("0 0 0"));
    write("7/cmdline", "");
    let leaving = procfs.scan().unwrap().processes.remove(0);
    assert_eq!((leaving.facts, leaving.ended), (None, None));
}
