//! Packing segments with gzip or zstd while they are written, and unpacking them while they are
//! read: in both directions in bounded memory, whatever the file says of itself.

use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::super::WalError;
use super::super::storage::{Storage, StorageFile};
use super::Compression;

/// What is unpacked of one file at most: more than a segment can hold. So a small file that
/// unpacks to petabytes costs some seconds and no memory.
pub(crate) const UNPACKED_BYTES_MAX: u64 = 5 << 30;
/// The memory a zstd file may ask for is two to the power of this; `zstd -19` asks for this much.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Five times smaller than the records of processes are, and quicker than better levels that gain
/// little.
const GZIP_LEVEL: u32 = 3;
const ZSTD_LEVEL: i32 = 3;

const BUFFER_BYTES: usize = 64 << 10;
/// An archive is written in pieces of this size, each synced and followed by a pause: otherwise the
/// log's own syncs would wait behind all of it.
const PACE_BYTES: u64 = 1 << 20;
const PACE_PAUSE: Duration = Duration::from_millis(10);

/// Writes a file from its beginning.
pub(crate) struct Sink<'a> {
    file: &'a dyn StorageFile,
    at: u64,
    synced: u64,
    /// In pieces that are synced, with pauses between them.
    gently: bool,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(file: &'a dyn StorageFile, gently: bool) -> BufWriter<Self> {
        BufWriter::with_capacity(BUFFER_BYTES, Self { file, at: 0, synced: 0, gently })
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        if self.gently && self.at - self.synced >= PACE_BYTES {
            self.file.sync_data()?;
            self.synced = self.at;
            std::thread::sleep(PACE_PAUSE);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs what is written to it into a file.
pub(crate) struct Packer<'a>(Packing<'a>);

enum Packing<'a> {
    Plain(BufWriter<Sink<'a>>),
    Gzip(Box<GzEncoder<BufWriter<Sink<'a>>>>),
    Zstd(Box<zstd::Encoder<'static, BufWriter<Sink<'a>>>>),
}

impl<'a> Packer<'a> {
    pub(crate) fn new(file: &'a dyn StorageFile, compression: Compression) -> io::Result<Self> {
        let sink = Sink::new(file, true);
        Ok(Self(match compression {
            Compression::None => Packing::Plain(sink),
            Compression::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Packing::Gzip(Box::new(GzEncoder::new(sink, level)))
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(sink, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Packing::Zstd(Box::new(encoder))
            }
        }))
    }

    /// Writes what is left. Not synced.
    pub(crate) fn finish(self) -> io::Result<()> {
        let mut sink = match self.0 {
            Packing::Plain(sink) => sink,
            Packing::Gzip(encoder) => encoder.finish()?,
            Packing::Zstd(encoder) => encoder.finish()?,
        };
        sink.flush()
    }
}

impl Write for Packer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Packing::Plain(sink) => sink.write(bytes),
            Packing::Gzip(encoder) => encoder.write(bytes),
            Packing::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Packing::Plain(sink) => sink.flush(),
            Packing::Gzip(encoder) => encoder.flush(),
            Packing::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// A segment file, packed or not, opened for reading as if it were not.
pub(crate) enum Opened {
    Plain(Box<dyn StorageFile>),
    Packed(Unpacked),
}

impl Opened {
    pub(crate) fn file(&self) -> &dyn StorageFile {
        match self {
            Self::Plain(file) => &**file,
            Self::Packed(file) => file,
        }
    }

    pub(crate) const fn compression(&self) -> Compression {
        match self {
            Self::Plain(_) => Compression::None,
            Self::Packed(file) => file.compression,
        }
    }

    /// What the file takes on disk.
    pub(crate) fn stored_bytes(&self) -> io::Result<u64> {
        match self {
            Self::Plain(file) => file.len(),
            Self::Packed(file) => file.packed.len(),
        }
    }

    /// Why unpacking has ended early, if it has. What came before is good.
    pub(crate) fn fault(&self) -> Option<String> {
        match self {
            Self::Plain(_) => None,
            Self::Packed(file) => file.fault(),
        }
    }
}

/// Opens a segment for reading. Whether it is packed is seen by its name or, if that says nothing,
/// by its first bytes.
pub(crate) fn open_unpacked(storage: &dyn Storage, path: &Path) -> Result<Opened, WalError> {
    open_unpacked_by(storage, path, &|file| file)
}

/// The same with something between us and the file.
pub(crate) fn open_unpacked_by(
    storage: &dyn Storage,
    path: &Path,
    wrap: &dyn Fn(Box<dyn StorageFile>) -> Box<dyn StorageFile>,
) -> Result<Opened, WalError> {
    let file = storage.open(path, false).map_err(|source| WalError::io("open", path, source))?;
    let file = wrap(file);
    let extension = path.extension().and_then(|extension| extension.to_str());
    let compression = match extension {
        Some("wal") => Compression::None,
        Some("gz") => Compression::Gzip,
        Some("zst") => Compression::Zstd,
        _ => {
            let mut magic = [0; 4];
            file.read_some_at(&mut magic, 0)
                .map_err(|source| WalError::io("read", path, source))?;
            match magic {
                [0x1f, 0x8b, ..] => Compression::Gzip,
                [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
                _ => Compression::None,
            }
        }
    };
    Ok(match compression {
        Compression::None => Opened::Plain(file),
        _ => Opened::Packed(Unpacked::new(file, path, compression)),
    })
}

/// What a packed file holds, as a file that can only be read. Reading forward unpacks on; reading
/// an earlier place begins again.
pub(crate) struct Unpacked {
    packed: Arc<dyn StorageFile>,
    path: PathBuf,
    compression: Compression,
    stream: Mutex<Stream>,
    length: OnceLock<u64>,
    fault: Mutex<Option<String>>,
}

#[derive(Default)]
struct Stream {
    decoder: Option<Box<dyn Read + Send>>,
    /// Set when the system, and not the packing, has failed.
    failed: Arc<AtomicBool>,
    at: u64,
}

impl Unpacked {
    fn new(file: Box<dyn StorageFile>, path: &Path, compression: Compression) -> Self {
        Self {
            packed: Arc::from(file),
            path: path.to_owned(),
            compression,
            stream: Mutex::new(Stream::default()),
            length: OnceLock::new(),
            fault: Mutex::new(None),
        }
    }

    fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Unpacks into the buffer; 0 at the end, be it the right one or not.
    fn unpack(&self, stream: &mut Stream, buffer: &mut [u8]) -> io::Result<usize> {
        if stream.decoder.is_none() {
            let failed = Arc::new(AtomicBool::new(false));
            let file = Arc::clone(&self.packed);
            let source = Source { file, failed: Arc::clone(&failed), at: 0 };
            let decoder: Box<dyn Read + Send> = match self.compression {
                Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
                _ => {
                    let mut decoder = zstd::Decoder::new(source)?;
                    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                    Box::new(decoder)
                }
            };
            *stream = Stream { decoder: Some(decoder), failed, at: 0 };
        }
        let Some(decoder) = &mut stream.decoder else { return Ok(0) };
        let room = UNPACKED_BYTES_MAX - stream.at;
        let want = buffer.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if want == 0 && !buffer.is_empty() {
            return Ok(self.end(format!("it unpacks to more than {UNPACKED_BYTES_MAX} bytes")));
        }
        let result = loop {
            match decoder.read(&mut buffer[..want]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match result {
            Ok(got) => {
                stream.at += got as u64;
                Ok(got)
            }
            Err(error) => {
                let failed = stream.failed.load(Ordering::Relaxed);
                *stream = Stream::default();
                if failed {
                    return Err(error);
                }
                Ok(self.end(error.to_string()))
            }
        }
    }

    fn end(&self, why: String) -> usize {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        0
    }
}

impl StorageFile for Unpacked {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.length.get().is_some_and(|&length| offset >= length) {
            return Ok(0);
        }
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < stream.at {
            *stream = Stream::default();
        }
        let mut skipped = Vec::new();
        while stream.at < offset {
            let skip = usize::try_from(offset - stream.at).unwrap_or(usize::MAX);
            skipped.resize(skip.min(BUFFER_BYTES), 0);
            if self.unpack(&mut stream, &mut skipped)? == 0 {
                return Ok(0);
            }
        }
        self.unpack(&mut stream, buffer)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(self.read_only())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(self.read_only())
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Err(self.read_only())
    }

    /// Unpacks all of it, once.
    fn len(&self) -> io::Result<u64> {
        if let Some(&length) = self.length.get() {
            return Ok(length);
        }
        let mut stream = Stream::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut length = 0;
        loop {
            match self.unpack(&mut stream, &mut buffer)? {
                0 => break,
                got => length += got as u64,
            }
        }
        Ok(*self.length.get_or_init(|| length))
    }

    fn has_name(&self) -> io::Result<bool> {
        self.packed.has_name()
    }

    fn allocate(&self, _bytes: u64) -> io::Result<()> {
        Err(self.read_only())
    }
}

impl Unpacked {
    fn read_only(&self) -> io::Error {
        let message = format!("{:?} is packed and can only be read", self.path);
        io::Error::new(io::ErrorKind::ReadOnlyFilesystem, message)
    }
}

/// Reads a packed file from its beginning.
struct Source {
    file: Arc<dyn StorageFile>,
    failed: Arc<AtomicBool>,
    at: u64,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read_some_at(buffer, self.at) {
            Ok(got) => {
                self.at += got as u64;
                Ok(got)
            }
            Err(error) => {
                self.failed.store(true, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}
