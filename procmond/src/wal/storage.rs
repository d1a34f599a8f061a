//! The seam between the log and the operating system: the log's logic is tested against a storage
//! that fails on demand.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
pub(crate) mod sim;

/// A directory of files, and what must be asked of it to survive a power cut.
pub(crate) trait Storage: Send + Sync + 'static {
    /// Creates the directory (0700) and its missing parents, durably.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Creates a file (0600) for reading and writing, emptying what a crash may have left there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Opens an existing file, for writing too if asked.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn StorageFile>>;
    /// Renames, taking the place of what is there. Durable only after [`Storage::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable only after [`Storage::sync_dir`].
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Removes a file if it is there. Durable only after [`Storage::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.unlink(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
    /// The names of the files in a directory; those that are not UTF-8 are not ours and left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Whether files there are overwritten in place, so that it pays to write them ahead. Not so
    /// where every write gets new blocks, and where there are none.
    fn overwrites_in_place(&self, dir: &Path) -> bool;
}

/// An open file. Positions are absolute: readers and the writer share no cursor.
pub(crate) trait StorageFile: Send + Sync {
    /// One call: reads at most the buffer's length; 0 at the end. May be interrupted.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// One call: writes at least a byte of it. May be interrupted.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes the data, and the length needed to find it, durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// The file's length, which is not necessarily where its records end.
    fn len(&self) -> io::Result<u64>;
    /// Whether its name is still there: what is written to a file without one is lost with it.
    fn has_name(&self) -> io::Result<bool>;
    /// Reserves room up to this length, so that a full disk is noticed before anything relies on
    /// it. The reserved part reads as zeros.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
}

impl dyn StorageFile + '_ {
    /// Reads what is there, at most the buffer's length; 0 at the end.
    pub(crate) fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Reads until the buffer is full or the file ends, and says how much that was.
    pub(crate) fn read_full_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some_at(&mut buffer[filled..], offset + filled as u64)? {
                0 => break,
                got => filled += got,
            }
        }
        Ok(filled)
    }

    /// Writes all of it, or fails with an unknown part of it written.
    pub(crate) fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Opens a regular file, and nothing that was put in its place: a link would lead out of the
/// directory, and a pipe wait for its other end.
pub(crate) fn open_plain(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    }
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    let file = match options.open(path) {
        Err(_) if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) => {
            return Err(refused());
        }
        opened => opened?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// The operating system's files.
pub(crate) struct OsStorage;

impl Storage for OsStorage {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(dir)?;
        match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            _ => self.sync_dir(Path::new(".")),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Box::new(open_plain(&mut options, path)?))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(open_plain(OpenOptions::new().read(true).write(write), path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // A directory or a device under one of our names would only fail later and worse.
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    #[cfg(unix)]
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Other systems have no such call: NTFS journals its directories.
    #[cfg(not(unix))]
    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn overwrites_in_place(&self, dir: &Path) -> bool {
        // From the kernel's magic.h, and bcachefs_format.h and ZFS's zfs_vfsops.h: btrfs, ZFS,
        // bcachefs, F2FS and NILFS write to new blocks; tmpfs and ramfs have none.
        const NEW_BLOCKS: [u32; 7] =
            [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e, 0xf2f5_2010, 0x3434, 0x0102_1994, 0x8584_58f6];
        // What cannot be told is not worth writing everything twice.
        rustix::fs::statfs(dir).is_ok_and(|stat| !NEW_BLOCKS.contains(&(stat.f_type as u32)))
    }

    /// APFS is copy-on-write, and elsewhere nothing was measured.
    #[cfg(not(target_os = "linux"))]
    fn overwrites_in_place(&self, _dir: &Path) -> bool {
        false
    }
}

impl StorageFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_at(self, buffer, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_read(self, buffer, offset);
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::write_at(self, bytes, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_write(self, bytes, offset);
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    /// Asks for nothing else: who asks for the times makes the next write set them anew, which
    /// costs the sync after it half as much again.
    #[cfg(target_os = "linux")]
    fn has_name(&self) -> io::Result<bool> {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        match statx(self, c"", AtFlags::EMPTY_PATH, StatxFlags::NLINK) {
            Ok(found) => Ok(found.stx_nlink > 0),
            // Older than Linux 4.11, or forbidden by a sandbox.
            Err(rustix::io::Errno::NOSYS) => {
                Ok(std::os::unix::fs::MetadataExt::nlink(&self.metadata()?) > 0)
            }
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(all(unix, not(target_os = "linux")))]
    fn has_name(&self) -> io::Result<bool> {
        Ok(std::os::unix::fs::MetadataExt::nlink(&self.metadata()?) > 0)
    }

    /// An open file cannot be removed here, or only with a request that we do not make.
    #[cfg(not(unix))]
    fn has_name(&self) -> io::Result<bool> {
        Ok(true)
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // Then writing has to show whether there is room.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Only Linux prepares segments.
    #[cfg(not(target_os = "linux"))]
    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
}
