//! Other logs and stores, measured by a program of its own (`benches/peers`), which is built when
//! the bench begins and run once for each measurement.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::AnyError;

/// What a peer's appends came to.
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) cpu_ns_per_record: f64,
}

pub(crate) struct Peers {
    program: PathBuf,
    scratch: PathBuf,
    names: Vec<String>,
}

impl Peers {
    /// Builds the program. Without it the bench goes on without peers, and says so.
    pub(crate) fn build(scratch: &Path) -> Option<Self> {
        match Self::try_build(scratch) {
            Ok(peers) => Some(peers),
            Err(why) => {
                eprintln!(
                    "NO PEERS: benches/peers could not be built ({why}). It needs a crate registry \
                     and a C compiler. Every peer is null in what follows."
                );
                None
            }
        }
    }

    fn try_build(scratch: &Path) -> Result<Self, AnyError> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/peers/Cargo.toml");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
        eprintln!("building the peers, which takes minutes the first time");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--release", "--locked", "--bin", "wal-peers", "--manifest-path"])
            .arg(manifest)
            .arg("--target-dir")
            .arg(&target)
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("cargo: {status}").into());
        }
        let mut peers = Self {
            program: target
                .join("release")
                .join(format!("wal-peers{}", std::env::consts::EXE_SUFFIX)),
            scratch: scratch.to_owned(),
            names: Vec::new(),
        };
        let names = peers.run(&["names"])?;
        peers.names = serde_json::from_value(names)?;
        Ok(peers)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// `producers` threads, each of which awaits its batch before the next. `most_bytes` is what it
    /// may come to: a peer that prepares its files is given time to prepare that much.
    pub(crate) fn append(
        &self,
        peer: &str,
        (producers, batch, most_bytes): (u64, usize, u64),
        warm: Duration,
        measured: Duration,
    ) -> Result<Rate, AnyError> {
        let said = self.in_fresh_dir(
            peer,
            "append",
            &[
                ("--batch", batch as u64),
                ("--producers", producers),
                ("--most-bytes", most_bytes),
                ("--warm-ms", millis(warm)),
                ("--ms", millis(measured)),
            ],
        )?;
        let number =
            |name: &str| said[name].as_f64().ok_or_else(|| format!("{peer} said no {name}"));
        Ok(Rate {
            per_second: number("per_second")?,
            cpu_ns_per_record: number("cpu_ns_per_record")?,
        })
    }

    /// One producer at a fixed rate: how long each append took.
    pub(crate) fn paced(
        &self,
        peer: &str,
        per_second: u32,
        during: Duration,
    ) -> Result<Vec<Duration>, AnyError> {
        let said = self.in_fresh_dir(
            peer,
            "paced",
            &[("--per-second", u64::from(per_second)), ("--ms", millis(during))],
        )?;
        let nanos: Vec<u64> = serde_json::from_value(said["took_ns"].clone())?;
        Ok(nanos.into_iter().map(Duration::from_nanos).collect())
    }

    /// Writes what [`Peers::read`] reads.
    pub(crate) fn fill(&self, peer: &str, records: u64) -> Result<(), AnyError> {
        let dir = self.dir_to_read(peer);
        self.run(&["fill", "--peer", peer, "--dir", &dir, "--records", &records.to_string()])?;
        Ok(())
    }

    /// Records a second.
    pub(crate) fn read(&self, peer: &str, records: u64) -> Result<f64, AnyError> {
        let dir = self.dir_to_read(peer);
        let records = records.to_string();
        let said = self.run(&["read", "--peer", peer, "--dir", &dir, "--records", &records])?;
        Ok(said["per_second"].as_f64().ok_or("a rate was expected")?)
    }

    fn dir_to_read(&self, peer: &str) -> String {
        self.scratch.join(format!("read-{peer}")).display().to_string()
    }

    fn in_fresh_dir(
        &self,
        peer: &str,
        command: &str,
        numbers: &[(&str, u64)],
    ) -> Result<serde_json::Value, AnyError> {
        let dir = tempfile::tempdir_in(&self.scratch)?;
        let dir_name = dir.path().display().to_string();
        let mut args = vec![command, "--peer", peer, "--dir", &dir_name];
        let numbers: Vec<_> = numbers.iter().map(|(name, n)| (*name, n.to_string())).collect();
        numbers.iter().for_each(|(name, number)| args.extend([*name, number.as_str()]));
        self.run(&args)
    }

    fn run(&self, args: &[&str]) -> Result<serde_json::Value, AnyError> {
        let output = Command::new(&self.program).args(args).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("{} {args:?}: {}", self.program.display(), output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
