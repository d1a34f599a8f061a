use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::{Guarded, bin, signal};

/// A running `broker`: nothing but a broker. Killed when dropped.
pub struct BrokerProcess {
    child: Guarded,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl BrokerProcess {
    /// Starts a broker on `socket` and waits until it listens.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(socket: &Path, heartbeat_ms: u32, required_consumers: &[&str]) -> Self {
        let command = Command::new(bin("broker"));
        Self::start_by(command, socket, heartbeat_ms, required_consumers)
    }

    /// As [`BrokerProcess::start`], in a process that may have `descriptors` open files.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_with_descriptors(descriptors: u32, socket: &Path, heartbeat_ms: u32) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$@\""), "sh"]);
        command.arg(bin("broker"));
        Self::start_by(command, socket, heartbeat_ms, &[])
    }

    fn start_by(
        mut command: Command,
        socket: &Path,
        heartbeat_ms: u32,
        required_consumers: &[&str],
    ) -> Self {
        let mut child = command
            .arg(socket)
            .arg(heartbeat_ms.to_string())
            .args(required_consumers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the broker can be started");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut broker = Self { child: Guarded::new(child), input, output };
        assert_eq!(broker.line(), "ready");
        broker
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the broker speaks");
        line.trim_end().to_owned()
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `BrokerStats` as JSON.
    ///
    /// # Panics
    /// If it does not run.
    pub fn stats(&mut self) -> Value {
        let input = self.input.as_mut().expect("it is there until the end");
        input.write_all(b"stats\n").expect("the broker reads");
        serde_json::from_str(&self.line()).expect("statistics are JSON")
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }

    /// Kills it at once.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("the broker can be killed");
        self.child.wait().expect("the broker can be waited for");
    }

    /// Lets it shut down in order.
    ///
    /// # Panics
    /// If it fails.
    pub fn finish(mut self) {
        drop(self.input.take());
        let status = self.child.wait().expect("the broker can be waited for");
        assert!(status.success(), "the broker ended with {status}");
    }
}
