use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use rustix::process::Signal;

use crate::{bin, signal};

/// A running `feeder`: a collector that appends as fast as it can and reports its receipts.
pub struct Feeder {
    child: Child,
    receipts: Option<JoinHandle<Vec<(String, u64)>>>,
}

impl Feeder {
    /// Starts the feeder binary with a log of its own.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(wal_dir: &Path, socket: &Path, producers: usize, bytes: usize) -> Self {
        let mut child = Command::new(bin("feeder"))
            .arg(wal_dir)
            .arg(socket)
            .args(["feeder", &producers.to_string(), &bytes.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the feeder can be started");
        let out = BufReader::new(child.stdout.take().expect("the feeder's output is piped"));
        let receipts = std::thread::spawn(move || {
            let lines = out.split(b'\n').map_while(Result::ok);
            lines.filter_map(|line| parse(std::str::from_utf8(&line).ok()?)).collect()
        });
        Self { child, receipts: Some(receipts) }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }

    /// Kills it at once and gives the receipts it had printed: stream and sequence.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub fn kill(mut self) -> Vec<(String, u64)> {
        self.end()
    }

    fn end(&mut self) -> Vec<(String, u64)> {
        self.child.kill().expect("the feeder can be killed");
        self.child.wait().expect("the feeder can be waited for");
        let receipts = self.receipts.take().map(|thread| thread.join().expect("the reader ends"));
        receipts.unwrap_or_default()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        if self.receipts.is_some() {
            self.end();
        }
    }
}

/// A whole receipt: `<stream> <sequence>`.
fn parse(line: &str) -> Option<(String, u64)> {
    let (stream, sequence) = line.split_once(' ')?;
    Some((stream.to_owned(), sequence.parse().ok()?))
}
