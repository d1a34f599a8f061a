use std::io::{BufRead, BufReader};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::Guarded;

/// The client in another language. Given to the interpreter as text: users who can run the tests
/// need not be able to read the sources.
const CLIENT: &str = include_str!("../python/eventbus_client.py");
/// Ends a test in which the client hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running `eventbus_client.py`. Killed when dropped.
pub struct Python {
    child: Guarded,
    input: Option<ChildStdin>,
    lines: Receiver<Value>,
}

impl Python {
    /// Whether there is a Python to run; says so if not.
    ///
    /// # Panics
    /// If there is none and `CI=true`.
    pub fn is_here() -> bool {
        let here = Command::new("python3").arg("--version").output().is_ok_and(|output| {
            // A version manager's shim may be there without a Python behind it.
            output.status.success()
        });
        if !here {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI has a python3");
            eprintln!("SKIPPED: there is no python3");
        }
        here
    }

    /// Starts the client with these arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new("python3")
            .args(["-u", "-c", CLIENT])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 can be started");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The last line of a client that was killed may be half a line.
                let Ok(value) = serde_json::from_str(&line) else { return };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        Self { child: Guarded::new(child), input, lines }
    }

    /// The next line it prints; `None` when it has ended.
    ///
    /// # Panics
    /// If it prints nothing for a minute.
    pub fn next(&self) -> Option<Value> {
        use std::sync::mpsc::RecvTimeoutError;
        match self.lines.recv_timeout(DEADLINE) {
            Ok(value) => Some(value),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the client says nothing"),
        }
    }

    /// What the next line says under `key`.
    ///
    /// # Panics
    /// If it says something else.
    pub fn says(&self, key: &str) -> Value {
        let line = self.next().unwrap_or_else(|| panic!("it says `{key}` before it ends"));
        line.get(key).unwrap_or_else(|| panic!("it says `{key}`, not {line}")).clone()
    }

    /// Kills it at once.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("the client can be killed");
        self.child.wait().expect("the client can be waited for");
    }

    /// Closes its input, and gives what it still says until it has ended well.
    ///
    /// # Panics
    /// If it fails.
    pub fn finish(mut self) -> Vec<Value> {
        drop(self.input.take());
        let rest = std::iter::from_fn(|| self.next()).collect();
        let status = self.child.wait().expect("the client can be waited for");
        assert!(status.success(), "the client ended with {status}: {rest:?}");
        rest
    }
}
