//! Which segments there are, live and archived, and which of them belong together.
//!
//! What stands in a directory may have been put there by anybody. Only files are opened: a pipe
//! would wait for somebody to write, a device for whatever it waits for, and a link leads where
//! nobody asked us to look.

use std::fs::{self, FileType};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use daemoneye_lib::stream::{Sequence, StreamId};

use super::super::WalError;
use super::super::archive::ArchiveName;
use super::super::archive::pack::{Opened, UNPACKED_BYTES_MAX, open_unpacked_by};
use super::super::format::{FRAME_BYTES, HEADER_BYTES, Header, Label, read_header};
use super::super::segment::{self, EMPTY_BYTES, Ends, FileName};
use super::super::storage::{Storage, StorageFile};
use super::{LogFiles, Progress};

/// A segment file and what it says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) place: Place,
    /// What the file takes on disk.
    pub(crate) bytes: u64,
    pub(crate) header_whole: bool,
    pub(crate) label: Option<Label>,
    /// What is read of it, if it is longer than a segment.
    readable: Option<u64>,
}

/// What has the name of a segment and cannot be one. It is not opened.
#[derive(Debug, Clone)]
pub(crate) struct Odd {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) archived: bool,
    /// What it is, in words.
    pub(crate) what: &'static str,
}

/// Where a segment file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a log directory, where it may be written, or taken away, while it is read.
    Log,
    /// Among archives, under the name of one: it ends with a control record.
    Archive,
    /// Elsewhere: somebody's copy of a segment.
    Copy,
}

/// The segments of one stream, in order.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// `None` for segments that nothing in them names and that no log directory places.
    pub(crate) stream: Option<StreamId>,
    pub(crate) segments: Vec<Found>,
}

/// All segments.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    /// Streams whose archives were made earlier first; the log directory's own last.
    pub(crate) groups: Vec<Group>,
    /// Segments in the log directory that belong to another log.
    pub(crate) foreign: Vec<Found>,
    /// What is no file, or none that can be a segment.
    pub(crate) odd: Vec<Odd>,
    /// The stream of the log directory.
    pub(crate) stream: Option<StreamId>,
    /// Files went away while they were looked at.
    pub(crate) vanished: bool,
}

impl Catalogue {
    pub(crate) fn look(
        storage: &dyn Storage,
        files: &LogFiles,
        progress: &Progress,
    ) -> Result<Self, WalError> {
        let mut catalogue = Self::default();
        let mut archived = Vec::new();
        for path in &files.archives {
            catalogue.look_at_archives(storage, path, progress, &mut archived)?;
        }
        archived.sort_by_key(|(name, _)| *name);
        for (_, found) in archived {
            let stream = found.label.map(|label| label.stream);
            match catalogue.groups.iter_mut().find(|group| group.stream == stream) {
                Some(group) if stream.is_some() => group.segments.push(found),
                _ => catalogue.groups.push(Group { stream, segments: vec![found] }),
            }
        }
        if let Some(dir) = &files.dir {
            catalogue.look_at_log(storage, dir, progress)?;
        }
        for group in &mut catalogue.groups {
            // A segment before its archive: they hold the same, and one of them is enough.
            group.segments.sort_by_key(|found| (found.number, found.place != Place::Log));
        }
        Ok(catalogue)
    }

    fn look_at_log(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
        progress: &Progress,
    ) -> Result<(), WalError> {
        let mut segments = Vec::new();
        let mut next = Vec::new();
        for (name, is) in list(dir)? {
            let (files, number) = match FileName::parse(&name) {
                Some(FileName::Segment(number)) => (&mut segments, number),
                Some(FileName::Next(number)) => (&mut next, number),
                _ => continue,
            };
            let path = dir.join(name);
            if let Some(what) = oddity(&path, is) {
                self.odd.push(Odd { number, path, archived: false, what });
                continue;
            }
            match Found::ask(storage, path, Some(number), Place::Log, progress)? {
                Some(found) => files.push(found),
                None => self.vanished = true,
            }
        }
        segments.sort_by_key(|found| found.number);
        self.vanished |= doubt(storage, &mut segments, progress)?;
        let newest = segments.iter().rev().find_map(|found| found.label);
        self.stream = newest.map(|label| label.stream);
        // A new stream has begun with its first segment's name; the others get theirs at the next
        // opening, which removes what is left of the stream before.
        segments.extend(
            next.into_iter()
                .filter(|next| next.label.is_some_and(|label| Some(label.stream) == self.stream)),
        );
        let replaced = newest.and_then(|newest| newest.replaces);
        let mut own = Vec::new();
        for found in segments {
            match found.label.map(|label| label.stream) {
                Some(stream) if Some(stream) == replaced => {}
                Some(stream) if Some(stream) != self.stream => self.foreign.push(found),
                _ => own.push(found),
            }
        }
        let at = self
            .groups
            .iter()
            .position(|group| self.stream.is_some() && group.stream == self.stream);
        let mut group = match at {
            Some(at) => self.groups.remove(at),
            None => Group { stream: self.stream, segments: Vec::new() },
        };
        group.segments.extend(own);
        if !group.segments.is_empty() {
            self.groups.push(group);
        }
        Ok(())
    }

    fn look_at_archives(
        &mut self,
        storage: &dyn Storage,
        path: &Path,
        progress: &Progress,
        archived: &mut Vec<(Option<ArchiveName>, Found)>,
    ) -> Result<(), WalError> {
        // Whoever names a link means what it leads to.
        let is = fs::metadata(path).map_err(|source| WalError::io("read", path, source))?;
        if !is.is_dir() {
            if let Some(what) = oddity(path, is.file_type()) {
                let source = io::Error::new(io::ErrorKind::InvalidInput, what);
                return Err(WalError::io("read", path, source));
            }
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            archived.extend(ask_archive(storage, path.to_owned(), name, progress)?);
            return Ok(());
        }
        for (name, is) in list(path)? {
            let number = match (ArchiveName::parse(&name), FileName::parse(&name)) {
                (Some(archive), _) => archive.number,
                (None, Some(FileName::Segment(number))) => number,
                _ => continue,
            };
            let path = path.join(&name);
            if let Some(what) = oddity(&path, is) {
                self.odd.push(Odd { number, path, archived: true, what });
                continue;
            }
            match ask_archive(storage, path, &name, progress)? {
                Some(found) => archived.push(found),
                // Its time was over.
                None => self.vanished = true,
            }
        }
        Ok(())
    }
}

/// Believes no control record about what stream its segment is of, against what headers say, as
/// opening does. Says whether one of them went away.
fn doubt(
    storage: &dyn Storage,
    segments: &mut [Found],
    progress: &Progress,
) -> Result<bool, WalError> {
    let whole = segments.iter().filter(|found| found.header_whole);
    let vouched: Vec<_> = whole.filter_map(|found| Some(found.label?.stream)).collect();
    let doubtful = segments.iter_mut().filter(|found| {
        !vouched.is_empty() && found.label.is_some_and(|label| !vouched.contains(&label.stream))
    });
    for found in doubtful {
        let Some(opened) = found.open(storage, progress)? else { return Ok(true) };
        let (path, number) = (&found.path, found.number);
        found.label = segment::label_of_controls(opened.file(), path, number, &vouched)?;
    }
    Ok(false)
}

fn ask_archive(
    storage: &dyn Storage,
    path: PathBuf,
    name: &str,
    progress: &Progress,
) -> Result<Option<(Option<ArchiveName>, Found)>, WalError> {
    let archive = ArchiveName::parse(name);
    let number = match (archive, FileName::parse(name)) {
        (Some(archive), _) => Some(archive.number),
        (None, Some(FileName::Segment(number))) => Some(number),
        _ => None,
    };
    let place = if archive.is_some() { Place::Archive } else { Place::Copy };
    Ok(Found::ask(storage, path, number, place, progress)?.map(|found| (archive, found)))
}

/// What there is in a directory. Names that are not UTF-8 are not ours.
fn list(dir: &Path) -> Result<Vec<(String, FileType)>, WalError> {
    let listed = fs::read_dir(dir).and_then(|entries| {
        entries
            .map(|entry| {
                let entry = entry?;
                Ok(entry.file_name().into_string().ok().zip(Some(entry.file_type()?)))
            })
            .filter_map(Result::transpose)
            .collect()
    });
    listed.map_err(|source| WalError::io("list", dir, source))
}

/// What stands under a segment's name, if it cannot be a segment.
fn oddity(path: &Path, is: FileType) -> Option<&'static str> {
    if is.is_symlink() {
        return Some("it is a symbolic link");
    }
    if is.is_dir() {
        return Some("it is a directory");
    }
    if !is.is_file() {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;
            if is.is_fifo() {
                return Some("it is a named pipe");
            }
            if is.is_socket() {
                return Some("it is a socket");
            }
        }
        return Some("it is a device");
    }
    is_too_sparse(path).then_some("it is a sparse file, longer than any segment")
}

/// Whether a file has something behind more bytes than a segment has, and most of them are not
/// there: who made it wants them to be read.
#[cfg(unix)]
fn is_too_sparse(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    const BLOCK_BYTES: u64 = 512;
    // What cannot be asked here is asked again, and told, when it is opened.
    fs::metadata(path).is_ok_and(|file| {
        file.blocks() * BLOCK_BYTES < UNPACKED_BYTES_MAX
            && data_end(path).is_ok_and(|end| end.is_some_and(|end| end > UNPACKED_BYTES_MAX))
    })
}

#[cfg(not(unix))]
fn is_too_sparse(_path: &Path) -> bool {
    false
}

/// Where the data of a file ends, if it is longer than a segment. A hole behind it, which may be of
/// exabytes, reads as zeros, and those mean nothing at the end of a segment.
#[cfg(target_os = "linux")]
fn data_end(path: &Path) -> io::Result<Option<u64>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let length = fs::metadata(path)?.len();
    if length <= UNPACKED_BYTES_MAX {
        return Ok(None);
    }
    let file = fs::File::open(path)?;
    let mut end = 0;
    loop {
        match seek(&file, SeekFrom::Data(end)) {
            Ok(data) => end = seek(&file, SeekFrom::Hole(data))?,
            Err(Errno::NXIO) => return Ok(Some(end)),
            // The file system does not know.
            Err(Errno::INVAL) => return Ok(Some(length)),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn data_end(path: &Path) -> io::Result<Option<u64>> {
    Ok(Some(fs::metadata(path)?.len()).filter(|&length| length > UNPACKED_BYTES_MAX))
}

impl Group {
    /// How far a segment goes, judged by the one that follows.
    pub(crate) fn ends(&self, index: usize) -> Ends {
        let segment = &self.segments[index];
        let following = self.following(index);
        let first = segment.label.map_or(Sequence::NONE, |label| label.first);
        match following {
            Some((following, label)) if following.number == segment.number + 1 => {
                Ends::At(label.first.prev().max(first.prev()))
            }
            Some(_) => Ends::Left,
            None if segment.place == Place::Archive => Ends::Left,
            None => Ends::Open,
        }
    }

    /// The next segment that says where it begins.
    pub(crate) fn following(&self, index: usize) -> Option<(&Found, Label)> {
        let number = self.segments[index].number;
        let later = self.segments[index + 1..].iter().filter(|later| later.number > number);
        later.into_iter().find_map(|later| Some((later, later.label?)))
    }

    /// Whether a segment is the archive of one that is there as well.
    pub(crate) fn is_second(&self, index: usize) -> bool {
        let segment = &self.segments[index];
        self.segments[..index].iter().any(|earlier| {
            let same = |label: Label| (label.segment, label.salt);
            earlier.label.is_some() && earlier.label.map(same) == segment.label.map(same)
        })
    }
}

impl Found {
    /// `None` if the file is gone.
    fn ask(
        storage: &dyn Storage,
        path: PathBuf,
        number: Option<u64>,
        place: Place,
        progress: &Progress,
    ) -> Result<Option<Self>, WalError> {
        // What is wrong with it is told by opening it.
        let readable = data_end(&path).unwrap_or_default();
        let capped = |file| -> Box<dyn StorageFile> {
            Box::new(Watched::new(file, Progress::default(), readable))
        };
        let opened = match open_unpacked_by(storage, &path, &capped) {
            Ok(opened) => opened,
            Err(WalError::Io { source, .. })
                if place != Place::Copy && source.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let file = opened.file();
        let failed = |source| WalError::io("read", &path, source);
        let number = match number {
            Some(number) => number,
            // A name that says nothing: then the header has to.
            None => header_number(file).map_err(failed)?.unwrap_or_default(),
        };
        let header_whole = segment::has_whole_header(file, &path, number)?;
        let label = segment::read_label(file, &path, number)?;
        let bytes = opened.stored_bytes().map_err(failed)?;
        progress.expect(bytes);
        Ok(Some(Self { number, path, place, bytes, header_whole, label, readable }))
    }

    /// Opens it for reading; `None` if it is gone, or its file has become another segment's.
    pub(crate) fn open(
        &self,
        storage: &dyn Storage,
        progress: &Progress,
    ) -> Result<Option<Opened>, WalError> {
        let watched = |file| -> Box<dyn StorageFile> {
            Box::new(Watched::new(file, progress.clone(), self.readable))
        };
        match open_unpacked_by(storage, &self.path, &watched) {
            Ok(opened) if self.is_still(opened.file())? => Ok(Some(opened)),
            Ok(_) => Ok(None),
            Err(WalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// How many records can have stood in it: as many sequences an opening leaves out, if it is
    /// the newest and nothing in it can be read.
    pub(crate) const fn room(&self) -> u64 {
        self.bytes.saturating_sub(EMPTY_BYTES) / FRAME_BYTES as u64
    }

    /// Opens it for whoever holds the directory: nobody may have taken it away.
    pub(crate) fn still(&self, storage: &dyn Storage) -> Result<Opened, WalError> {
        self.open(storage, &Progress::default())?.ok_or_else(|| {
            WalError::io("open", &self.path, io::Error::from(io::ErrorKind::NotFound))
        })
    }

    /// Whether an open file is still this segment: one that was retired may be written anew.
    pub(crate) fn is_still(&self, file: &dyn StorageFile) -> Result<bool, WalError> {
        if self.place != Place::Log || !self.header_whole {
            return Ok(true);
        }
        let mut header = [0; HEADER_BYTES];
        let got = read_full(file, &mut header, 0)
            .map_err(|source| WalError::io("read", &self.path, source))?;
        Ok(match read_header(&header[..got]) {
            Header::Whole(label) => Some(label) == self.label,
            _ => false,
        })
    }

    /// Whether its name still leads to it.
    pub(crate) fn is_there(&self, storage: &dyn Storage) -> Result<bool, WalError> {
        Ok(self.open(storage, &Progress::default())?.is_some())
    }
}

/// The number in a segment's header, whatever else is right with it.
fn header_number(file: &dyn StorageFile) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER_BYTES];
    let got = read_full(file, &mut header, 0)?;
    Ok(match read_header(&header[..got]) {
        Header::Whole(label) => Some(label.segment),
        _ => None,
    })
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_full(
    file: &dyn StorageFile,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_some_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}

/// A file of which only so much is read. Counts what is read for the first time.
struct Watched {
    file: Box<dyn StorageFile>,
    progress: Progress,
    seen: AtomicU64,
    /// If the file is longer than a segment, where its data ended when it was asked what it is;
    /// otherwise it may have grown since.
    readable: Option<u64>,
}

impl Watched {
    fn new(file: Box<dyn StorageFile>, progress: Progress, readable: Option<u64>) -> Self {
        Self { file, progress, seen: AtomicU64::new(0), readable }
    }
}

impl StorageFile for Watched {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let room = self.readable.map_or(u64::MAX, |end| end.saturating_sub(offset));
        let want = buffer.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..want], offset)?;
        let upto = offset + got as u64;
        let seen = self.seen.fetch_max(upto, Ordering::Relaxed);
        self.progress.advance(upto.saturating_sub(seen));
        Ok(got)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn len(&self) -> io::Result<u64> {
        let length = self.file.len()?;
        Ok(self.readable.map_or(length, |end| end.min(length)))
    }

    fn has_name(&self) -> io::Result<bool> {
        self.file.has_name()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }
}
