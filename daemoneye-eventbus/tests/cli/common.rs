//! A broker of its own for each test, and commands beside it.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use daemoneye_eventbus::{
    Batch, Client, ClientOptions, Entry, Epoch, Position, Publisher, Role, Sequence, StreamId,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// Polls until `look` finds something. The deadline is there to end a test that fails.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn eventbus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eventbus"));
    command.args(arguments).env_remove("DAEMONEYE_BROKER_SOCKET").env_remove("RUST_LOG");
    command
}

/// What a pipe gives, line by line.
#[derive(Clone, Default)]
pub(crate) struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl Lines {
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let shared = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8(line).expect("our output is UTF-8");
                shared.lines.lock().unwrap().push(line);
            }
            shared.ended.store(true, Ordering::Release);
        });
        lines
    }

    /// What has come so far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Everything, once the command has closed its end.
    pub(crate) fn whole(&self) -> Vec<String> {
        until("the output ends", || self.ended.load(Ordering::Acquire).then(|| self.so_far()))
    }
}

/// A command that runs beside the test; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) out: Lines,
    pub(crate) err: Lines,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = Lines::of(child.stdout.take().unwrap());
        let err = Lines::of(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .unwrap();
    }

    pub(crate) fn out(&self) -> Vec<String> {
        self.out.so_far()
    }

    pub(crate) fn err(&self) -> String {
        self.err.so_far().join("\n")
    }

    /// Waits until it has said so on standard error.
    pub(crate) fn says(&self, text: &str) {
        until(text, || self.err().contains(text).then_some(()));
    }

    pub(crate) fn json(&self) -> Vec<Value> {
        self.out().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for so many lines on standard output.
    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        until("lines are printed", || Some(self.out()).filter(|out| out.len() >= count))
    }

    /// Waits for the end, and for all that was printed.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let status = until("it ends", || self.child.try_wait().unwrap());
        self.out.whole();
        self.err.whole();
        status
    }

    pub(crate) fn ends_well(&mut self) {
        let status = self.end();
        assert_eq!(status.code(), Some(0), "{}", self.err());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A broker in a directory of its own, as `eventbus serve`.
pub(crate) struct Bus {
    pub(crate) serve: Running,
    pub(crate) directory: TempDir,
}

impl Bus {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::again(tempfile::tempdir().unwrap(), arguments)
    }

    /// A broker where there was one before.
    pub(crate) fn again(directory: TempDir, arguments: &[&str]) -> Self {
        let mut command = eventbus(&["serve"]);
        command.args(arguments).arg("--socket").arg(directory.path().join("bus.sock"));
        let serve = Running::start(command);
        serve.says("listening on");
        Self { serve, directory }
    }

    /// Ends the broker as a kill does.
    pub(crate) fn kill(self) -> TempDir {
        drop(self.serve);
        self.directory
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("bus.sock")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = eventbus(arguments);
        command.arg("--socket").arg(self.socket());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut running = self.start(arguments);
        drop(running.child.stdin.take());
        let status = running.end();
        let bytes = |lines: Vec<String>| lines.iter().flat_map(|line| [line, "\n"]).collect();
        let (out, err): (String, String) = (bytes(running.out()), bytes(running.err.so_far()));
        Output { status, stdout: out.into_bytes(), stderr: err.into_bytes() }
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    pub(crate) fn stat(&self) -> Value {
        let output = self.run(&["stat", "--json", "--over", "0"]);
        serde_json::from_str(&succeeded(&output)).unwrap()
    }

    /// Starts `sub` and waits until the subscription stands.
    pub(crate) fn sub(&self, arguments: &[&str]) -> Running {
        let before = self.subscriptions();
        let sub = self.start(&[&["sub"], arguments].concat());
        until("it is subscribed", || (self.subscriptions() > before).then_some(()));
        sub
    }

    pub(crate) fn subscriptions(&self) -> usize {
        let stat = self.stat();
        let attached = |consumer: &&Value| consumer["attached"] == true;
        stat["live"].as_array().unwrap().len()
            + stat["consumers"].as_array().unwrap().iter().filter(attached).count()
    }
}

#[track_caller]
pub(crate) fn succeeded(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{} {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// The message of a command that failed with `code`. Nothing stands on standard output.
#[track_caller]
pub(crate) fn failed(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty());
    text
}

pub(crate) fn strings<'a>(lines: &'a [Value], field: &str) -> Vec<&'a str> {
    lines.iter().map(|line| line[field].as_str().unwrap_or_default()).collect()
}

/// A publisher with a log, which `eventbus pub` has not.
pub(crate) struct Log {
    pub(crate) stream: StreamId,
    pub(crate) epoch: Epoch,
    pub(crate) last: u64,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { stream: StreamId::random(), epoch: Epoch::first(), last: 0 }
    }

    pub(crate) async fn connect(&self, bus: &Bus) -> (Client, Publisher) {
        let position = Position {
            stream: self.stream,
            epoch: self.epoch,
            first_unacknowledged: Sequence(1),
            last: Sequence(self.last),
        };
        let options = ClientOptions::new("logger", Role::Collector);
        Client::connect_publisher(&bus.socket(), options, position).await.unwrap()
    }

    pub(crate) async fn publish(&mut self, publisher: &Publisher, payload: Vec<u8>) {
        let after = Sequence(self.last);
        self.last += 1;
        let entry = Entry {
            topic: "events.process.gap".parse().unwrap(),
            sequence: Sequence(self.last),
            span: 1,
            timestamp_ns: 1_700_000_000_123_000_000,
            payload: payload.into(),
        };
        let (stream, epoch, through) = (self.stream, self.epoch, Sequence(self.last));
        let batch = Batch { stream, epoch, after, entries: vec![entry], through };
        publisher.publish(&batch).await.unwrap();
    }
}
