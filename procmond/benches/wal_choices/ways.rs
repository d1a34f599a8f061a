//! The ways of making a commit durable, and their turns.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

type AnyError = Box<dyn std::error::Error>;
type Commit = Box<dyn FnMut(&[u8]) -> Result<(), AnyError>>;

/// A record of 400 bytes and its head.
const FRAME_BYTES: usize = 432;
const FILE_BYTES: u64 = 128 << 20;
const ROUNDS: usize = 9;
const COMMITS: usize = 150;

/// A file, and where the next commit goes.
struct Area {
    file: File,
    offset: u64,
}

impl Area {
    /// How its blocks came to be: `fill` writes them, `allocate` only reserves them.
    fn new(path: &Path, fill: Option<u8>, allocate: bool) -> Result<Self, AnyError> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).read(true).write(true).open(path)?;
        if allocate {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES)?;
        }
        if let Some(byte) = fill {
            let chunk = vec![byte; 1 << 20];
            for at in (0..FILE_BYTES).step_by(chunk.len()) {
                file.write_all_at(&chunk, at)?;
            }
        }
        file.sync_all()?;
        Ok(Self { file, offset: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.offset + bytes.len() as u64 > FILE_BYTES {
            self.offset = 0;
        }
        self.file.write_all_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn commit(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes)?;
        self.file.sync_data()
    }
}

fn ways(dir: &Path) -> Result<Vec<(&'static str, Commit)>, AnyError> {
    let zeros = |name: &str| Area::new(&dir.join(name), Some(0), true);
    let mut ways: Vec<(&'static str, Commit)> = Vec::new();

    let mut area = zeros("zeros")?;
    ways.push(("into zeros written ahead", Box::new(move |bytes| Ok(area.commit(bytes)?))));
    let mut area = Area::new(&dir.join("recycled"), Some(0x5a), true)?;
    ways.push((
        "into the bytes of an earlier life",
        Box::new(move |bytes| Ok(area.commit(bytes)?)),
    ));
    let mut area = Area::new(&dir.join("allocated"), None, true)?;
    ways.push(("into blocks only allocated", Box::new(move |bytes| Ok(area.commit(bytes)?))));
    let mut area = Area::new(&dir.join("growing"), None, false)?;
    ways.push(("into a file that grows", Box::new(move |bytes| Ok(area.commit(bytes)?))));

    let mut area = zeros("asked")?;
    let asked: Commit = Box::new(move |bytes| {
        area.commit(bytes)?;
        black_box(area.file.metadata()?.modified()?);
        Ok(())
    });
    ways.push(("fstat after each sync", asked));
    let mut area = zeros("twice")?;
    let twice: Commit = Box::new(move |bytes| {
        area.write(bytes)?;
        Ok(area.commit(&bytes[..120])?)
    });
    ways.push(("the control record in a write of its own", twice));

    let mut area = zeros("framed")?;
    let mut buffer = Vec::new();
    let framed: Commit = Box::new(move |bytes| {
        buffer.clear();
        for payload in bytes.chunks(FRAME_BYTES) {
            let sum = crc32fast::hash(payload);
            buffer.extend_from_slice(payload);
            let at = buffer.len() - payload.len();
            buffer[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
        Ok(area.commit(&buffer)?)
    });
    ways.push(("copied, a checksum a record", framed));
    let mut area = zeros("summed")?;
    let summed: Commit = Box::new(move |bytes| {
        black_box(crc32fast::hash(bytes));
        Ok(area.commit(bytes)?)
    });
    ways.push(("not copied, a checksum a commit", summed));

    let mut area = zeros("handed")?;
    let (give, take) = mpsc::channel::<Vec<u8>>();
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        for bytes in take {
            if done.send(area.commit(&bytes).map(|()| bytes)).is_err() {
                break;
            }
        }
    });
    let mut spare = Some(Vec::new());
    let handed: Commit = Box::new(move |bytes| {
        let mut buffer = spare.take().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        give.send(buffer)?;
        spare = Some(is_done.recv()??);
        Ok(())
    });
    ways.push(("written by another thread", handed));
    Ok(ways)
}

pub(crate) fn measure() -> Result<(), AnyError> {
    let dir = std::env::args().skip(1).find(|arg| arg != "--bench");
    let dir = dir.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    std::fs::create_dir_all(&dir)?;
    let scratch = tempfile::tempdir_in(dir)?;
    let mut ways = ways(scratch.path())?;
    for records in [1, 64] {
        let bytes: Vec<u8> = (0..records * FRAME_BYTES).map(|at| (at * 7919 / 13) as u8).collect();
        let mut medians = vec![Vec::new(); ways.len()];
        for _ in 0..ROUNDS {
            for ((_, commit), medians) in ways.iter_mut().zip(&mut medians) {
                let mut took = Vec::with_capacity(COMMITS);
                for _ in 0..COMMITS {
                    let since = Instant::now();
                    commit(&bytes)?;
                    took.push(since.elapsed().as_secs_f64() * 1e6);
                }
                medians.push(median(took));
            }
        }
        let medians: Vec<_> = medians.into_iter().map(median).collect();
        println!("{:<44} {:>9} {:>7}", format!("a commit of {records}"), "us", "ratio");
        for ((name, _), took) in ways.iter().zip(&medians) {
            println!("{name:<44} {took:>9.1} {:>7.2}", took / medians[0]);
        }
        println!();
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
