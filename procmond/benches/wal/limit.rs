//! The limit: what the disk and the file system allow for the payload's bytes alone.
//!
//! No framing, no checksum, no threads: one write into a file whose every byte was written before,
//! one fdatasync.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::workload::{Done, Payloads, RECORD_BYTES, cpu_secs, paced, repeat};

/// The file starts again when it gets here. More than the last level of caches holds, about what a
/// log's recycled segments are.
const AREA_BYTES: u64 = 256 << 20;
const CHUNK: usize = 1 << 20;

pub(crate) struct Limit {
    file: File,
    offset: u64,
    turn: u64,
}

impl Limit {
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let path = dir.join("zeros");
        let file =
            OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
        let chunk = vec![0; CHUNK];
        for at in (0..AREA_BYTES).step_by(CHUNK) {
            write_at(&file, &chunk, at)?;
        }
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(Self { file, offset: 0, turn: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.offset + bytes.len() as u64 > AREA_BYTES {
            self.offset = 0;
        }
        write_at(&self.file, bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn append(&mut self, payloads: &Payloads, batch: usize) -> io::Result<()> {
        self.write(payloads.run(self.turn, batch))?;
        self.turn += batch as u64;
        self.file.sync_data()
    }

    /// One write and one fdatasync a batch, one after the other.
    pub(crate) fn batches(
        &mut self,
        payloads: &Payloads,
        batch: usize,
        warm: Duration,
        measured: Duration,
    ) -> io::Result<Done> {
        repeat(warm, measured, || {
            self.append(payloads, batch)?;
            Ok(batch as u64)
        })
    }

    /// One fdatasync for every `sync_bytes`, which are written in pieces of `write_bytes`.
    pub(crate) fn stream(
        &mut self,
        payloads: &Payloads,
        sync_bytes: usize,
        write_bytes: usize,
        warm: Duration,
        measured: Duration,
    ) -> io::Result<Done> {
        let records = write_bytes / RECORD_BYTES;
        let writes = sync_bytes / write_bytes;
        repeat(warm, measured, || {
            for _ in 0..writes {
                self.write(payloads.run(self.turn, records))?;
                self.turn += records as u64;
            }
            self.file.sync_data()?;
            Ok((writes * records) as u64)
        })
    }

    /// One record at a time at a fixed rate.
    pub(crate) fn paced(
        &mut self,
        payloads: &Payloads,
        per_second: u32,
        during: Duration,
    ) -> io::Result<Vec<Duration>> {
        paced(per_second, during, || self.append(payloads, 1))
    }

    /// Records come at a fixed rate and are written together when the first of them has waited for
    /// `delay`: how long each took, from its coming.
    pub(crate) fn delayed(
        &mut self,
        payloads: &Payloads,
        per_second: u32,
        during: Duration,
        delay: Duration,
    ) -> io::Result<Vec<Duration>> {
        let (come, came) = mpsc::channel::<Instant>();
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut took = Vec::new();
                let mut waiting = Vec::new();
                while let Ok(first) = came.recv() {
                    if let Some(left) = (first + delay).checked_duration_since(Instant::now()) {
                        std::thread::sleep(left);
                    }
                    waiting.push(first);
                    waiting.extend(came.try_iter());
                    self.append(payloads, waiting.len())?;
                    took.extend(waiting.drain(..).map(|since| since.elapsed()));
                }
                Ok(took)
            });
            // If the writer has failed it says why when it is joined.
            let _ = paced(per_second, during, move || come.send(Instant::now()));
            writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))
        })
    }

    /// The processor time that the same takes when the one who has the records writes them, as
    /// part of a core: what a thread that wakes for every record and nothing else needs comes first.
    pub(crate) fn cpu_of_paced(
        &mut self,
        payloads: &Payloads,
        per_second: u32,
        during: Duration,
        delay: Duration,
    ) -> io::Result<f64> {
        let together = (delay.as_secs_f64() * f64::from(per_second)) as usize;
        let mut waiting = 0;
        let (start, cpu) = (Instant::now(), cpu_secs());
        paced(per_second, during, || {
            waiting += 1;
            if waiting == together {
                waiting = 0;
                self.append(payloads, together)?;
            }
            Ok::<_, io::Error>(())
        })?;
        Ok((cpu_secs() - cpu) / start.elapsed().as_secs_f64())
    }
}

/// A file of bare payloads that is read in pieces of 1 MiB, each summed up with a CRC-32.
pub(crate) struct ReadLimit {
    path: PathBuf,
    records: u64,
}

impl ReadLimit {
    pub(crate) fn new(dir: &Path, payloads: &Payloads, records: u64) -> io::Result<Self> {
        const BATCH: usize = 1024;
        let path = dir.join("payloads");
        let file = File::create(&path)?;
        for turn in (0..records).step_by(BATCH) {
            let count = (records - turn).min(BATCH as u64) as usize;
            write_at(&file, payloads.run(turn, count), turn * RECORD_BYTES as u64)?;
        }
        file.sync_all()?;
        Ok(Self { path, records })
    }

    /// Records a second.
    pub(crate) fn read(&self) -> io::Result<f64> {
        let mut buffer = vec![0; CHUNK];
        let start = Instant::now();
        let mut file = File::open(&self.path)?;
        loop {
            let got = file.read(&mut buffer)?;
            if got == 0 {
                break;
            }
            black_box(crc32fast::hash(&buffer[..got]));
        }
        Ok(self.records as f64 / start.elapsed().as_secs_f64())
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}
