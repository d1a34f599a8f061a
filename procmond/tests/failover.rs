//! A source that fails in the real program: what it holds in the kernel is taken from it, from
//! outside, with a debugger.

#![cfg(test)]
#![cfg(target_os = "linux")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use procmond::source::{SourceError, probe_ebpf, probe_netlink};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A program of ours that is ended with the test.
struct Running(Child);

impl Running {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeper() -> Running {
    Running(Command::new("sleep").arg("1000").spawn().unwrap())
}

/// A running procmond and its log. Nobody takes the events.
struct Procmond {
    process: Running,
    directory: TempDir,
}

impl Procmond {
    fn begin(source: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stderr = fs::File::create(directory.path().join("stderr")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_procmond"));
        command.args(["run", "--source", source, "--interval", "0.5", "--wal-dir"]);
        command.arg(directory.path().join("wal"));
        command.env("DAEMONEYE_BROKER_SOCKET", directory.path().join("nobody.sock"));
        let process = Running(command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap());
        Self { process, directory }
    }

    /// What it has logged.
    fn events(&self) -> Vec<Value> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_procmond"));
        command.args(["wal", "export", "--json", "--dir"]).arg(self.directory.path().join("wal"));
        let output = command.output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.map(|line| line["event"].clone()).collect()
    }

    /// Waits until something is in the log, and gives the log.
    fn until(&self, what: &str, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        self.until_so(what, || {
            events = self.events();
            is_so(&events)
        });
        events
    }

    fn until_so(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let since = Instant::now();
        while !is_so() {
            let stderr = || fs::read_to_string(self.directory.path().join("stderr")).unwrap();
            assert!(since.elapsed() < PATIENCE, "no {what}: {}", stderr());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has a descriptor of it stand for what its standard input does.
    fn take(&self, descriptor: &str) {
        let call = format!("call (int) dup2(0, {descriptor})");
        let mut gdb = Command::new("gdb");
        gdb.args(["--batch", "--nx", "-p", &self.process.pid().to_string(), "-ex", &call]);
        let gdb = gdb.output().unwrap();
        let said = String::from_utf8_lossy(&gdb.stdout);
        assert!(said.contains(&format!("= {descriptor}")), "{gdb:?}");
    }

    /// The names of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.pid())).unwrap();
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    /// Its sockets of the process connector.
    fn connectors(&self) -> Vec<String> {
        let root = format!("/proc/{}", self.process.pid());
        // Protocol 11, by the number of its inode.
        let sockets = fs::read_to_string(format!("{root}/net/netlink")).unwrap();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let connectors: Vec<_> = sockets
            .lines()
            .map(words)
            .filter(|words| words[1] == "11")
            .map(|words| format!("socket:[{}]", words[words.len() - 1]))
            .collect();
        let descriptors = fs::read_dir(format!("{root}/fd")).unwrap().filter_map(|entry| {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            let number = entry.file_name().to_str()?.to_owned();
            connectors.contains(&target).then_some(number)
        });
        descriptors.collect()
    }

    /// Its descriptors of things of eBPF: the number and what the kernel says of it.
    fn bpf_descriptors(&self) -> Vec<(String, String)> {
        let root = format!("/proc/{}", self.process.pid());
        let descriptors = fs::read_dir(format!("{root}/fd")).unwrap().filter_map(|entry| {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.to_owned();
            let info = fs::read_to_string(format!("{root}/fdinfo/{number}")).ok()?;
            target.to_string_lossy().contains("bpf").then_some((number, info))
        });
        descriptors.collect()
    }

    fn maps_a_ring(&self) -> bool {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.process.pid())).unwrap();
        maps.contains("bpf-map")
    }
}

fn of(events: &[Value], pid: u32) -> Vec<&Value> {
    let is_ours = |event: &&Value| {
        event["pid"] == pid && (event["kind"] == "start" || event["kind"] == "stop")
    };
    events.iter().filter(is_ours).collect()
}

fn changes(events: &[Value]) -> Vec<&Value> {
    events.iter().filter(|event| event["reason"] == "source_changed").collect()
}

/// Whether a tool and a source are there.
fn can_break(probed: Result<(), SourceError>) -> bool {
    let gdb = Command::new("gdb").arg("--version").stdout(Stdio::null()).status();
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let may_trace = rustix::process::getuid().is_root() || !scope.is_ok_and(|it| it.trim() != "0");
    let missing = match (gdb.is_ok_and(|status| status.success()), probed) {
        (true, Ok(())) if may_trace => return true,
        (true, Ok(())) => "only root may use gdb on a process that it did not start".to_owned(),
        (false, _) => "there is no gdb".to_owned(),
        (_, Err(error)) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
    eprintln!("skipped: {missing}");
    false
}

/// The map that says how much was lost is exchanged for /dev/null, so that the source cannot know
/// any more what it does not see.
#[test]
fn c1_a_source_that_loses_what_it_holds_in_the_kernel_is_followed_by_another() {
    if !can_break(probe_ebpf()) {
        return;
    }
    let procmond = Procmond::begin("auto");
    let (before, mut ends) = (sleeper(), sleeper());
    for pid in [before.pid(), ends.pid()] {
        procmond.until("start", |events| of(events, pid).len() == 1);
    }
    assert!(procmond.threads().iter().any(|name| name == "procmond-ebpf"));
    assert!(procmond.maps_a_ring());
    // The only array whose values are three numbers.
    let is_lost = |info: &str| {
        let has = |line: &str| info.lines().any(|it| it.split_whitespace().eq(line.split(' ')));
        has("map_type: 2") && has("value_size: 12")
    };
    let descriptors = procmond.bpf_descriptors();
    let lost: Vec<_> = descriptors.iter().filter(|(_, info)| is_lost(info)).collect();
    let [(number, _)] = &lost[..] else { panic!("{descriptors:#?}") };
    procmond.take(number);

    let events = procmond.until("change", |events| !changes(events).is_empty());
    let [change] = &changes(&events)[..] else { panic!("one change") };
    let detail = change["detail"].as_str().unwrap();
    eprintln!(
        "{detail}: {} us unseen",
        (change["until_ns"].as_i64().unwrap() - change["since_ns"].as_i64().unwrap()) / 1000
    );
    let second = if detail.contains("seen with netlink instead") { "netlink" } else { "poll" };
    assert!(detail.contains(&format!("seen with {second} instead")), "{detail}");
    assert!(detail.contains("the source ebpf has failed (ebpf sees no more: "), "{detail}");
    let (since, until) =
        (change["since_ns"].as_i64().unwrap(), change["until_ns"].as_i64().unwrap());
    assert!(since < until, "{change}");
    ends.end();
    let after = sleeper();
    procmond.until("start", |events| of(events, after.pid()).len() == 1);
    procmond.until("stop", |events| of(events, ends.pid()).len() == 2);

    // Nothing of it is left.
    procmond.until_so("end of the thread", || {
        !procmond.threads().iter().any(|name| name == "procmond-ebpf")
    });
    assert!(!procmond.maps_a_ring());
    let left = procmond.bpf_descriptors();
    assert!(left.is_empty(), "{left:#?}");

    // With everything given up that is given up at the start, it is loaded again.
    let mut lives = vec![before, after];
    if std::env::var_os("E2E_ROUNDS").is_some() {
        procmond.until("change back", |events| changes(events).len() == 2);
        assert!(procmond.maps_a_ring());
        lives.push(sleeper());
        procmond.until("start", |events| of(events, lives[2].pid()).len() == 1);
    }
    for life in &mut lives {
        life.end();
        procmond.until("stop", |events| of(events, life.pid()).len() == 2);
    }
    let events = procmond.events();
    lives.push(ends);
    for life in &lives {
        let [start, stop] = &of(&events, life.pid())[..] else { panic!("a start and a stop") };
        assert_eq!((&start["kind"], &stop["kind"]), (&"start".into(), &"stop".into()));
        assert_eq!(start["process_key"], stop["process_key"]);
    }
}

/// What was asked for by its name is begun again, and nothing else.
#[test]
fn c1_a_source_asked_for_by_name_that_loses_its_socket_is_begun_again() {
    if !can_break(probe_netlink().map(drop)) {
        return;
    }
    let mut procmond = Procmond::begin("netlink");
    let mut stays = sleeper();
    procmond.until("start", |events| of(events, stays.pid()).len() == 1);
    let sockets = procmond.connectors();
    let [socket] = &sockets[..] else { panic!("{sockets:?}") };
    procmond.take(socket);
    let events = procmond.until("change", |events| !changes(events).is_empty());
    let [change] = &changes(&events)[..] else { panic!("one change") };
    let detail = change["detail"].as_str().unwrap();
    assert!(
        detail.contains("netlink sees no more") && detail.contains("with netlink again"),
        "{detail}"
    );
    assert!(change["since_ns"].as_i64().unwrap() < change["until_ns"].as_i64().unwrap());
    let mut after = sleeper();
    procmond.until("start", |events| of(events, after.pid()).len() == 1);
    for life in [&mut stays, &mut after] {
        life.end();
        let events = procmond.until("stop", |events| of(events, life.pid()).len() == 2);
        let [start, stop] = &of(&events, life.pid())[..] else { panic!("a start and a stop") };
        assert_eq!(start["process_key"], stop["process_key"]);
    }
    assert_eq!(procmond.connectors().len(), 1);
    assert!(procmond.process.0.try_wait().unwrap().is_none(), "it goes on");
}
