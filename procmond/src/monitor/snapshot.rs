//! The process table on disk, beside the log, so that a restart need not read the whole log.
//!
//! One file, replaced as a whole: written under another name, made durable, renamed, and the
//! directory made durable. It is valid at one position of one stream; the log from there on rolls
//! it forward. A file that is damaged or made by another version is as good as none: the log, or
//! at worst the process table itself, tells the same less exactly.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `DEYEPROC` |
//! | 8 | 4 | version, 1 |
//! | 12 | 16 | stream |
//! | 28 | 8 | sequence of the last event the table knows of |
//! | 36 | 8 | how many events the log has refused and not been told of |
//! | 44 | 8 | the time of the earliest of them, nanoseconds since 1970 |
//! | 52 | 8 | the time of the latest |
//! | 60 | .. | the table: see [`TableImage`] |
//! | end - 4 | 4 | CRC-32 of everything before |
//!
//! Numbers are little-endian.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use daemoneye_lib::stream::{Sequence, StreamId};
use thiserror::Error;
use tracing::warn;

use super::recorder::Refused;
use super::tracker::{ImageError, TableImage};

/// The name of the file in the log's directory.
pub const SNAPSHOT_FILE: &str = "processes.snapshot";

const MAGIC: &[u8; 8] = b"DEYEPROC";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 3 * 8;
const CRC_BYTES: usize = 4;
/// Room for more than a hundred thousand processes with long arguments; more is not read.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The process table as it was at a position of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The log's stream.
    pub stream: StreamId,
    /// The last event that the table knows of.
    pub sequence: Sequence,
    /// Events that are in the table and not in the log, which had no room for them.
    pub refused: Option<Refused>,
    /// The table.
    pub table: TableImage,
}

/// Why a snapshot was not written.
#[derive(Debug, Error)]
#[error("cannot {doing} {path}: {source}; is there room, and may this user write there?")]
pub struct SaveError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Why a file is not a snapshot.
#[derive(Debug, Error)]
enum LoadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is too short or too long to be one")]
    Length,
    #[error("its checksum does not fit: it was damaged or cut short")]
    Checksum,
    #[error("it is not a process table of this version of procmond")]
    Foreign,
    #[error("{0}")]
    Table(#[from] ImageError),
}

impl Snapshot {
    /// Reads the snapshot, if there is a good one. One that is there and not good is said in the
    /// log of the program, and is none.
    #[must_use]
    pub fn load(path: &Path) -> Option<Self> {
        match read(path).and_then(|bytes| Self::decode(&bytes)) {
            Ok(snapshot) => Some(snapshot),
            Err(LoadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(path = %path.display(), %error, "the saved process table is not used");
                None
            }
        }
    }

    /// Writes it in place of the one before. After a crash at any moment there is the one or the
    /// other, whole.
    ///
    /// # Errors
    /// If it cannot be written or made durable; the one before may then still be there.
    pub fn save(&self, path: &Path) -> Result<(), SaveError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| SaveError { doing, path, source }
        };
        let new = path.with_added_extension("new");
        // One that a crash left may have wider rights.
        match fs::remove_file(&new) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &new)(source));
            }
            _ => {}
        }
        let mut file = create_private(&new).map_err(failed("create", &new))?;
        file.write_all(&self.encode()).map_err(failed("write", &new))?;
        file.sync_all().map_err(failed("make durable", &new))?;
        drop(file);
        fs::rename(&new, path).map_err(failed("rename", &new))?;
        #[cfg(unix)]
        if let Some(dir) = path.parent() {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("make durable", dir))?;
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.stream.to_bytes());
        bytes.extend_from_slice(&self.sequence.0.to_le_bytes());
        let none = Refused { missing: 0, since_ns: 0, until_ns: 0 };
        let Refused { missing, since_ns, until_ns } = self.refused.unwrap_or(none);
        bytes.extend_from_slice(&missing.to_le_bytes());
        bytes.extend_from_slice(&since_ns.to_le_bytes());
        bytes.extend_from_slice(&until_ns.to_le_bytes());
        self.table.encode_into(&mut bytes);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, LoadError> {
        if bytes.len() < HEADER_BYTES + CRC_BYTES {
            return Err(LoadError::Length);
        }
        let (content, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(LoadError::Length)?;
        if !content.starts_with(MAGIC) {
            return Err(LoadError::Foreign);
        }
        if u32::from_le_bytes(*crc) != crc32fast::hash(content) {
            return Err(LoadError::Checksum);
        }
        let mut rest = &content[MAGIC.len()..];
        let version = u32::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(LoadError::Foreign);
        }
        let stream = StreamId::from_bytes(take(&mut rest)?);
        let sequence = Sequence(u64::from_le_bytes(take(&mut rest)?));
        let refused = Refused {
            missing: u64::from_le_bytes(take(&mut rest)?),
            since_ns: i64::from_le_bytes(take(&mut rest)?),
            until_ns: i64::from_le_bytes(take(&mut rest)?),
        };
        let refused = (refused.missing > 0).then_some(refused);
        Ok(Self { stream, sequence, refused, table: TableImage::decode(rest)? })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], LoadError> {
    let (first, rest) = bytes.split_first_chunk::<N>().ok_or(LoadError::Length)?;
    *bytes = rest;
    Ok(*first)
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > FILE_BYTES_MAX {
        return Err(LoadError::Length);
    }
    let mut bytes = Vec::new();
    // The limit again: the file may grow meanwhile.
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A new file that only its owner may read, from the first moment on.
fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use daemoneye_lib::models::process::{Completeness, KeyPrecision, SourceName};
    use uuid::Uuid;

    use super::*;
    use crate::monitor::tracker::Tracker;
    use crate::source::{Facts, Observation, ObservedProcess, ProcessTable};

    fn snapshot() -> Snapshot {
        let mut tracker = Tracker::new();
        tracker.observe(Observation::Snapshot(ProcessTable {
            source: SourceName::Poll,
            is_told: false,
            boot_id: Uuid::from_u128(7),
            precision: KeyPrecision::Tick,
            time_ns: 10,
            uptime_ns: 5,
            processes: (1..4)
                .map(|pid| ObservedProcess {
                    pid,
                    start_centis: 0,
                    start_ns: None,
                    facts: Some(Box::new(Facts::unknown(Completeness::Partial))),
                    ended: None,
                })
                .collect(),
        }));
        Snapshot {
            stream: StreamId::random(),
            sequence: Sequence(9),
            refused: None,
            table: tracker.encode(|_| false),
        }
    }

    #[test]
    fn is_read_back_as_it_was_written_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SNAPSHOT_FILE);
        assert_eq!(Snapshot::load(&path), None);
        fs::write(dir.path().join("processes.snapshot.new"), "left by a crash").unwrap();
        let first = snapshot();
        first.save(&path).unwrap();
        assert_eq!(Snapshot::load(&path), Some(first));
        let refused = Some(Refused { missing: 3, since_ns: -4, until_ns: 5 });
        let second = Snapshot { refused, ..snapshot() };
        second.save(&path).unwrap();
        assert_eq!(Snapshot::load(&path), Some(second));
        assert!(!dir.path().join("processes.snapshot.new").exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SNAPSHOT_FILE);
        let good = snapshot().encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert_eq!(Snapshot::load(&path), None, "flipped at {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(Snapshot::load(&path), None, "cut at {at}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(Snapshot::load(&path), None, "a directory");
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_that_says_so() {
        let error = snapshot().save(Path::new("/nonexistent/processes")).unwrap_err().to_string();
        assert!(error.starts_with("cannot create /nonexistent/processes.new: "), "{error}");
    }
}
