//! Another process with a log open, which does what it is told.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::Duration;

use procmond::wal::{NewRecord, WalOptions, WriteAheadLog};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::account::{Appended, Appends, append, body};

const DIR: &str = "WAL_FAULTS_DIR";
const SEGMENT_BYTES: &str = "WAL_FAULTS_SEGMENT_BYTES";
/// What answers begin with, among all that a process may print.
const ANSWER: &str = "answer: ";

/// The process. It does not outlive the test, however that ends.
pub(crate) struct Remote {
    process: Child,
    asking: ChildStdin,
    answers: BufReader<ChildStderr>,
}

impl Remote {
    /// Starts this test binary again as that process; it has a test named `remote` that calls
    /// [`serve`]. What kept it from opening the log is the error.
    pub(crate) fn open(dir: &Path, segment_bytes: u64) -> Result<Self, String> {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "remote", "--nocapture"])
            .env(DIR, dir)
            .env(SEGMENT_BYTES, segment_bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let asking = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stderr.take().unwrap());
        let mut remote = Self { process, asking, answers };
        match remote.answer().split_once(' ') {
            Some(("cannot", why)) => Err(why.to_owned()),
            _ => Ok(remote),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn raw_pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Appends several records at once, of ids that follow each other; what is said of the last.
    pub(crate) fn append_all(&mut self, id: u64, bytes: usize, count: u64) -> Appended {
        let answer = self.ask(&format!("append {id} {bytes} {count}"));
        let mut words = answer.splitn(3, ' ');
        let what = words.next();
        let sequence = words.next().and_then(|sequence| sequence.parse().ok()).unwrap();
        let why = words.next().unwrap_or_default().to_owned();
        match what {
            Some("receipt") => Appended::Receipt(sequence),
            Some("kept") => Appended::Kept(sequence, why),
            Some("refused") => Appended::Refused(why),
            _ => panic!("{answer}"),
        }
    }

    /// Why it refuses at the moment; empty if it does not.
    pub(crate) fn refusing(&mut self) -> String {
        self.ask("refusing")
    }

    /// Segments prepared, and records refused.
    pub(crate) fn counters(&mut self) -> [u64; 2] {
        let answer = self.ask("counters");
        let numbers: Vec<_> = answer.split(' ').map(|number| number.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }

    /// Closes the log; what it said if that failed.
    pub(crate) fn close(mut self) -> Result<(), String> {
        let answer = self.ask("close");
        answer.is_empty().then_some(()).ok_or(answer)
    }

    /// Stops it with SIGSTOP, and returns when it has stopped.
    pub(crate) fn stop(&self) {
        kill_process(self.raw_pid(), Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(self.raw_pid()), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    pub(crate) fn go_on(&self) {
        kill_process(self.raw_pid(), Signal::CONT).unwrap();
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn ask(&mut self, what: &str) -> String {
        self.asking.write_all(format!("{what}\n").as_bytes()).unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.answers.read_line(&mut line).unwrap();
            let Some(line) = line.strip_suffix('\n') else {
                panic!("the process has ended: {:?}", self.process.wait());
            };
            match line.strip_prefix(ANSWER) {
                Some(answer) => return answer.to_owned(),
                // It panics, or somebody looks for something.
                None => eprintln!("{line}"),
            }
        }
    }
}

impl Appends for Remote {
    fn append(&mut self, id: u64, bytes: usize) -> Appended {
        self.append_all(id, bytes, 1)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process itself; nothing to do when a person runs the tests.
pub(crate) fn serve() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // As procmond does: a limit is an error, not the end.
    let _limited =
        runtime.block_on(async { signal(SignalKind::from_raw(Signal::XFSZ.as_raw())) }).unwrap();
    let options = WalOptions {
        segment_bytes: std::env::var(SEGMENT_BYTES).unwrap().parse().unwrap(),
        commit_delay: Duration::ZERO,
        ..WalOptions::default()
    };
    let log = match WriteAheadLog::open(Path::new(&dir), options) {
        Ok((log, _)) => log,
        Err(error) => return say(&format!("cannot {error}")),
    };
    say("open");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let what = words.next();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        match what {
            Some("append") => say(&append_several(&log, numbers[0], numbers[1], numbers[2])),
            Some("refusing") => {
                say(&log.stats().refusing.map_or_else(String::new, |why| why.to_string()));
            }
            Some("counters") => {
                let stats = log.stats();
                let refused: u64 = stats.refused.iter().map(|(_, count)| count).sum();
                say(&format!("{} {refused}", stats.prepared));
            }
            Some("close") => {
                say(&log.close().err().map_or_else(String::new, |error| error.to_string()));
            }
            _ => panic!("asked for {line}"),
        }
    }
}

fn append_several(log: &WriteAheadLog, id: u64, bytes: u64, count: u64) -> String {
    let bodies: Vec<_> = (id..id + count).map(|id| body(id, bytes as usize)).collect();
    let records: Vec<_> = (id..)
        .zip(&bodies)
        .map(|(id, payload)| NewRecord { kind: 1, timestamp_ns: id as i64, payload })
        .collect();
    match append(log, &records) {
        Appended::Receipt(sequence) => format!("receipt {sequence}"),
        Appended::Kept(sequence, why) => format!("kept {sequence} {why}"),
        Appended::Refused(why) => format!("refused 0 {why}"),
    }
}

fn say(line: &str) {
    std::io::stderr().write_all(format!("{ANSWER}{line}\n").as_bytes()).unwrap();
}
