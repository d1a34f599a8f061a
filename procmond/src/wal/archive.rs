//! Archives: committed segments kept for a while, in a directory of their own.
//!
//! An archive is a segment (`docs/wal-format.md`) of the header, every whole frame up to the last
//! sequence the segment is there for, and control records that bear witness to that sequence and
//! to every loss before it. So it says by itself where it ends and what is missing in it, whatever
//! was damaged in the original, and holds nothing of what was written ahead or left from an
//! earlier life. It may be packed with gzip or zstd as a whole; `zcat` and `zstdcat` give the
//! segment.
//!
//! An archive is made under a temporary name, synced, read back and compared with the original
//! byte for byte. Then it gets its name, and the directory is synced. The original is removed by
//! the caller, afterwards: a crash leaves the original or both. Asked again for a segment that has
//! an archive already, [`archive`] finds and returns that.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use daemoneye_lib::stream::Sequence;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::WalError;
use super::segment;
use super::storage::{Storage, StorageFile};

pub(crate) mod copy;
pub(crate) mod pack;
#[cfg(test)]
mod tests;

use copy::Copied;
use pack::{Packer, UNPACKED_BYTES_MAX, open_unpacked};

/// What happens to a segment when everything in it has been committed.
#[derive(Debug, Clone, Default)]
pub enum Retire {
    /// It is deleted.
    #[default]
    Delete,
    /// It is moved to an archive directory.
    Archive(ArchiveOptions),
}

/// Where archives are kept, how, and for how long.
///
/// ```
/// use std::time::Duration;
/// use procmond::wal::{ArchiveOptions, Compression};
///
/// let options = ArchiveOptions {
///     compression: Compression::Zstd,
///     keep_bytes: Some(10 << 30),
///     ..ArchiveOptions::new("/var/lib/daemoneye/wal/archive".as_ref())
/// };
/// assert_eq!(options.keep_for, Some(Duration::from_secs(7 * 24 * 3600)));
/// ```
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// The directory, of one log only; made (0700) if it is not there.
    pub dir: PathBuf,
    /// How archives are packed. A segment of more than 5 GiB is not.
    pub compression: Compression,
    /// How long an archive is kept, from the time in its name; `None` for ever.
    pub keep_for: Option<Duration>,
    /// What all archives together may take: the oldest go first. `None` sets no limit.
    pub keep_bytes: Option<u64>,
}

impl ArchiveOptions {
    /// How long archives are kept unless somebody says otherwise.
    pub const KEEP_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

    /// Archives in this directory, not packed, kept for seven days however large they are.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            compression: Compression::None,
            keep_for: Some(Self::KEEP_FOR),
            keep_bytes: None,
        }
    }
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip: read by every tool there is.
    Gzip,
    /// Zstandard: smaller than gzip, and quicker both ways.
    Zstd,
}

impl Compression {
    /// What it adds to a file's name.
    const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }
}

/// What [`prune`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub(crate) archives: usize,
    /// What they had taken, where it was looked at: only if there is a limit.
    pub(crate) bytes: u64,
}

/// An archive by its name, `procmond_20260131_235959-00042.wal.zst`: when it was made (UTC), of
/// which segment, and how it is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ArchiveName {
    /// Whole seconds since 1970.
    pub(crate) time: i64,
    pub(crate) number: u64,
    suffix: &'static str,
}

impl ArchiveName {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("procmond_")?;
        let (time, rest) = (rest.get(..15)?, rest.get(15..)?);
        let digits = rest.strip_prefix('-')?.split('.').next()?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let packed = rest[1 + digits.len()..].strip_prefix(".wal")?;
        let compressions = [Compression::None, Compression::Gzip, Compression::Zstd];
        let compression = compressions.into_iter().find(|known| known.suffix() == packed)?;
        let time = DateTime::strptime(TIME_FORMAT, time).ok()?.to_zoned(TimeZone::UTC).ok()?;
        let suffix = compression.suffix();
        let parsed =
            Self { time: time.timestamp().as_second(), number: digits.parse().ok()?, suffix };
        // One archive, one name: another spelling is somebody else's file.
        (parsed.number > 0 && parsed.to_string() == name).then_some(parsed)
    }

    /// What stands in a directory under its temporary name means nothing after a crash.
    fn parse_unfinished(name: &str) -> Option<Self> {
        Self::parse(name.strip_suffix(UNFINISHED)?)
    }
}

const TIME_FORMAT: &str = "%Y%m%d_%H%M%S";
const UNFINISHED: &str = ".new";

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Timestamp::from_second(self.time).unwrap_or(Timestamp::UNIX_EPOCH);
        write!(f, "procmond_{}-{:05}.wal{}", time.strftime(TIME_FORMAT), self.number, self.suffix)
    }
}

/// Archives a segment: its whole records up to `upto`, the last sequence it is there for. Returns
/// where the archive is when that is durable and has been read back; the original is the caller's
/// to remove. Slow on purpose, so that the log's own writes do not wait behind it.
///
/// # Errors
/// [`WalError::DiskFull`] and [`WalError::Io`] as the system says, or because what was read back
/// is not what was written. There is no archive then, and nothing has happened to the original.
pub(crate) fn archive(
    storage: &dyn Storage,
    segment: &Path,
    number: u64,
    upto: Sequence,
    options: &ArchiveOptions,
) -> Result<PathBuf, WalError> {
    archive_at(storage, segment, number, upto, options, Timestamp::now())
}

fn archive_at(
    storage: &dyn Storage,
    segment: &Path,
    number: u64,
    upto: Sequence,
    options: &ArchiveOptions,
    now: Timestamp,
) -> Result<PathBuf, WalError> {
    let dir = &options.dir;
    storage.create_dir(dir).map_err(|source| WalError::io("create", dir, source))?;
    let names = remove_unfinished(storage, dir)?;
    let original = Original::open(storage, segment, number, upto)?;
    let sync_dir = || storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source));
    // A crash, or a failure to remove the original, has left it with its archive.
    for name in names.iter().filter(|name| name.number == number) {
        let path = dir.join(name.to_string());
        if original.is_archived_in(storage, &path).unwrap_or(false) {
            sync_dir()?;
            return Ok(path);
        }
    }
    let compression = if original.bytes()? > UNPACKED_BYTES_MAX {
        Compression::None
    } else {
        options.compression
    };
    let mut name = ArchiveName { time: now.as_second(), number, suffix: compression.suffix() };
    // Another stream's segment of this number, archived within the same second.
    while names.iter().any(|other| (other.time, other.number) == (name.time, number)) {
        name.time += 1;
    }
    let path = dir.join(name.to_string());
    let unfinished = dir.join(format!("{name}{UNFINISHED}"));
    let made = original.write(storage, &unfinished, compression).and_then(|()| {
        let same = original.is_archived_in(storage, &unfinished)?;
        if !same {
            let source = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "what was read back is not what was written",
            );
            return Err(WalError::io("verify the archive", &unfinished, source));
        }
        storage
            .rename(&unfinished, &path)
            .map_err(|source| WalError::io("rename an archive to", &path, source))?;
        sync_dir()
    });
    if made.is_err() {
        // Best effort: the next call removes what stays.
        let _ = storage.unlink(&unfinished);
    }
    made.map(|()| path)
}

/// Removes archives that are older than they are to be kept, and the oldest of those that
/// together take too much. Files that are not archives by their names are not looked at.
///
/// # Errors
/// [`WalError::Io`] if the directory cannot be read or a file cannot be removed.
pub(crate) fn prune(
    storage: &dyn Storage,
    options: &ArchiveOptions,
    now: SystemTime,
) -> Result<Pruned, WalError> {
    let dir = &options.dir;
    let mut names = match remove_unfinished(storage, dir) {
        Err(WalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Pruned::default());
        }
        names => names?,
    };
    names.sort_unstable();
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let age = |name: &ArchiveName| Duration::from_secs(now.saturating_sub_signed(name.time));
    let mut total = 0;
    let mut archives = Vec::with_capacity(names.len());
    for name in names {
        let path = dir.join(name.to_string());
        let bytes = if options.keep_bytes.is_some() { length(storage, &path)? } else { 0 };
        total += bytes;
        archives.push((name, path, bytes));
    }
    let mut pruned = Pruned::default();
    for (name, path, bytes) in archives {
        let expired = options.keep_for.is_some_and(|keep_for| age(&name) > keep_for);
        let too_much = options.keep_bytes.is_some_and(|keep_bytes| total > keep_bytes);
        if !expired && !too_much {
            continue;
        }
        storage
            .remove(&path)
            .map_err(|source| WalError::io("remove the archive", &path, source))?;
        total -= bytes;
        pruned.archives += 1;
        pruned.bytes += bytes;
    }
    if pruned.archives > 0 {
        storage.sync_dir(dir).map_err(|source| WalError::io("sync", dir, source))?;
    }
    Ok(pruned)
}

/// The archives in a directory, after what crashes have left there is removed.
fn remove_unfinished(storage: &dyn Storage, dir: &Path) -> Result<Vec<ArchiveName>, WalError> {
    let names = storage.list(dir).map_err(|source| WalError::io("list", dir, source))?;
    for name in &names {
        if ArchiveName::parse_unfinished(name).is_some() {
            let path = dir.join(name);
            storage.unlink(&path).map_err(|source| WalError::io("remove", &path, source))?;
        }
    }
    Ok(names.iter().filter_map(|name| ArchiveName::parse(name)).collect())
}

fn length(storage: &dyn Storage, path: &Path) -> Result<u64, WalError> {
    match storage.open(path, false).and_then(|file| file.len()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        other => other.map_err(|source| WalError::io("read", path, source)),
    }
}

/// A segment to be archived.
struct Original<'a> {
    path: &'a Path,
    file: Box<dyn StorageFile>,
    /// What there is to copy; `None` if nothing in the file says what it is. Such a file is kept
    /// byte for byte: nobody can tell what in it still means something.
    copied: Option<Copied>,
}

impl<'a> Original<'a> {
    fn open(
        storage: &dyn Storage,
        path: &'a Path,
        number: u64,
        upto: Sequence,
    ) -> Result<Self, WalError> {
        let file =
            storage.open(path, false).map_err(|source| WalError::io("open", path, source))?;
        let label = segment::read_label(&*file, path, number)?;
        let copied = label.map(|label| Copied::whole(label, upto));
        Ok(Self { path, file, copied })
    }

    fn bytes(&self) -> Result<u64, WalError> {
        self.file.len().map_err(|source| WalError::io("read", self.path, source))
    }

    /// Writes the archive, durably but for its name.
    fn write(
        &self,
        storage: &dyn Storage,
        path: &Path,
        compression: Compression,
    ) -> Result<(), WalError> {
        let file = copy::create_anew(storage, path)
            .map_err(|source| WalError::io("create the archive", path, source))?;
        let failed = |source| WalError::io("write the archive", path, source);
        let mut packer = Packer::new(&*file, compression).map_err(failed)?;
        match self.copied {
            Some(copied) => copied.write(&*self.file, self.path, &mut packer, path)?,
            None => copy::write_bytes(&*self.file, self.path, &mut packer, path)?,
        }
        packer.finish().and_then(|()| file.sync_data()).map_err(failed)
    }

    /// Reads an archive, all of it, and compares it with the segment.
    fn is_archived_in(&self, storage: &dyn Storage, path: &Path) -> Result<bool, WalError> {
        let archive = open_unpacked(storage, path)?;
        let same = match self.copied {
            Some(copied) => copied.is_in(&*self.file, self.path, archive.file(), path)?,
            None => copy::same_bytes(&*self.file, self.path, archive.file(), path)?,
        };
        // All of it can have been unpacked and its checksum be wrong all the same.
        Ok(same && archive.fault().is_none())
    }
}
