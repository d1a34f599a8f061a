//! The socket's file: who may own it, how it is taken, and how a client is sure of whom it talks
//! to. Everything that differs between platforms is here.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use interprocess::local_socket::tokio::{Listener, Stream, prelude::*};
use interprocess::local_socket::{GenericFilePath, ListenerOptions, Name};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::broker::BindError;
use crate::client::ConnectError;

/// The longest path a Unix socket can have: `sun_path` less its final zero.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

fn name(socket: &Path) -> io::Result<Name<'_>> {
    socket.to_fs_name::<GenericFilePath>()
}

/// A socket taken for ourselves. Dropping it removes the socket, then lets go of the lock.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Listener,
    /// Released after the listener has removed its socket: fields are dropped in order.
    _lock: File,
}

/// Takes `socket`: one broker holds it, by a lock on `<socket>.lock`. A socket left behind by a
/// killed broker is removed, under the lock and only if it is ours and nobody answers on it. It is
/// open to us and root, or with `to_others` to everybody as far as its mode goes.
pub(crate) async fn bind(socket: &Path, to_others: bool) -> Result<Bound, BindError> {
    platform::check_path(socket)
        .map_err(|bytes| BindError::PathTooLong { socket: socket.to_owned(), bytes })?;
    platform::prepare_directory(socket)?;
    let lock = lock(socket)?;
    platform::remove_stale(socket).await?;
    let io_error = |source| BindError::Io { socket: socket.to_owned(), source };
    let options = ListenerOptions::new().name(name(socket).map_err(io_error)?);
    let listener = platform::private(options).map_err(io_error)?;
    let listener = listener.create_tokio().map_err(io_error)?;
    if to_others {
        platform::open_to_others(socket).map_err(io_error)?;
    }
    Ok(Bound { listener, _lock: lock })
}

fn lock(socket: &Path) -> Result<File, BindError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = platform::lock_path(PathBuf::from(path));
    let lock_error = |source| BindError::Lock { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    platform::private_file(&mut options);
    let mut file = options.open(&path).map_err(lock_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The pid is a courtesy: whatever cannot be read is left out of the message.
            let pid = file.take(32).read_to_string(&mut holder).ok();
            return Err(BindError::InUse {
                socket: socket.to_owned(),
                pid: pid.and_then(|_| holder.trim().parse().ok()),
            });
        }
        Err(TryLockError::Error(source)) => return Err(lock_error(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(lock_error)?;
    Ok(file)
}

/// Whether we may trust `uid` unless told otherwise: root, and whom we run as.
pub(crate) fn is_ours(uid: u32) -> bool {
    own_uids().contains(&uid)
}

/// The users trusted by default: ours and root. None where users have no such numbers.
pub(crate) fn own_uids() -> Vec<u32> {
    platform::own_uids()
}

/// Connects to `socket` after checking that it belongs to one of `trusted`, and that whoever
/// listens does, too. If none are named: to us or root, and that nobody else can use it.
pub(crate) async fn connect(
    socket: &Path,
    trusted: Option<&[u32]>,
) -> Result<Stream, ConnectError> {
    platform::check_path(socket)
        .map_err(|bytes| ConnectError::PathTooLong { socket: socket.to_owned(), bytes })?;
    platform::check_socket(socket, trusted)?;
    let io_error = |source| ConnectError::from_io(socket, source);
    let stream = Stream::connect(name(socket).map_err(io_error)?).await.map_err(io_error)?;
    platform::check_server(socket, &stream, trusted)?;
    Ok(stream)
}

/// Both halves of a stream; the socket is closed when both are dropped.
pub(crate) fn split(
    stream: Stream,
) -> (impl AsyncRead + Unpin + Send + 'static, impl AsyncWrite + Unpin + Send + 'static) {
    platform::split(stream)
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerIdentity {
    pub(crate) pid: Option<u32>,
    /// `None` where users have no such numbers.
    pub(crate) uid: Option<u32>,
}

/// The peer's process and user.
pub(crate) fn peer_identity(stream: &Stream) -> io::Result<PeerIdentity> {
    platform::peer_identity(stream)
}

/// How many connections leave our process some descriptors for everything else.
pub(crate) fn connections_possible() -> usize {
    platform::descriptors_max().map_or(usize::MAX, |max| max / 4 * 3)
}

#[cfg(unix)]
mod platform {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{
        DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt,
    };

    use interprocess::local_socket::traits::StreamCommon;
    use interprocess::os::unix::local_socket::ListenerOptionsExt;
    use tokio::net::UnixStream;
    use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

    use super::*;

    pub(super) fn check_path(socket: &Path) -> Result<(), usize> {
        let bytes = socket.as_os_str().as_bytes().len();
        if bytes > SOCKET_PATH_BYTES_MAX { Err(bytes) } else { Ok(()) }
    }

    /// Tokio's own halves. Those of `interprocess` ask the socket once more after each read whether
    /// there is anything left, and its stream writes only the first of several buffers.
    pub(super) fn split(stream: Stream) -> (OwnedReadHalf, OwnedWriteHalf) {
        let Stream::UdSocket(stream) = stream;
        UnixStream::from(stream).into_split()
    }

    pub(super) fn own_uids() -> Vec<u32> {
        let mut uids = vec![rustix::process::geteuid().as_raw(), 0];
        uids.dedup();
        uids
    }

    pub(super) fn descriptors_max() -> Option<usize> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
        usize::try_from(limit).ok()
    }

    /// The directory must keep others from putting a socket of their own in our place.
    pub(super) fn prepare_directory(socket: &Path) -> Result<(), BindError> {
        let directory = match socket.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => Path::new("/"),
        };
        let error = |source| BindError::Directory { directory: directory.to_owned(), source };
        let metadata = match directory.metadata() {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(directory)
                    .map_err(error)?;
                directory.metadata().map_err(error)?
            }
            other => other.map_err(error)?,
        };
        let problem = if !metadata.is_dir() {
            "it is not a directory".to_owned()
        } else if !is_ours(metadata.uid()) {
            format!("it belongs to user {}", metadata.uid())
        } else if metadata.mode() & 0o022 != 0 {
            format!("its mode {:03o} lets others write to it", metadata.mode() & 0o777)
        } else if let Some(open) = replaceable_from(directory).map_err(error)? {
            format!("everybody could put another in its place, by the mode of {open:?}")
        } else {
            return Ok(());
        };
        Err(BindError::UnsafeDirectory { directory: directory.to_owned(), problem })
    }

    /// The directory above it in which everybody may rename what is not theirs.
    fn replaceable_from(directory: &Path) -> io::Result<Option<PathBuf>> {
        let (everybody_writes, sticky) = (0o002, 0o1000);
        for above in directory.canonicalize()?.ancestors().skip(1) {
            if above.metadata()?.mode() & (everybody_writes | sticky) == everybody_writes {
                return Ok(Some(above.to_owned()));
            }
        }
        Ok(None)
    }

    pub(super) fn lock_path(path: PathBuf) -> PathBuf {
        path
    }

    pub(super) fn private_file(options: &mut OpenOptions) {
        options.mode(0o600);
    }

    /// `interprocess` sets the mode before it binds, so there is no moment at which the socket is
    /// open to others.
    pub(super) fn private(options: ListenerOptions<'_>) -> io::Result<ListenerOptions<'_>> {
        Ok(options.mode(0o600))
    }

    /// Afterwards, for the mode at bind is subject to the umask.
    pub(super) fn open_to_others(socket: &Path) -> io::Result<()> {
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))
    }

    pub(super) async fn remove_stale(socket: &Path) -> Result<(), BindError> {
        let io_error = |source| BindError::Io { socket: socket.to_owned(), source };
        let metadata = match socket.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(error)),
        };
        if !metadata.file_type().is_socket() {
            return Err(BindError::NotASocket { socket: socket.to_owned() });
        }
        // As root we could remove anybody's, as anybody root's: neither is left behind by us.
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io_error(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("a socket of user {} is there", metadata.uid()),
            )));
        }
        match Stream::connect(name(socket).map_err(io_error)?).await {
            Ok(_) => Err(BindError::InUse { socket: socket.to_owned(), pid: None }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(socket = %socket.display(), "removing the socket of a broker that ended without");
                std::fs::remove_file(socket).map_err(io_error)
            }
            Err(error) => Err(io_error(error)),
        }
    }

    pub(super) fn check_socket(socket: &Path, trusted: Option<&[u32]>) -> Result<(), ConnectError> {
        let metadata =
            socket.symlink_metadata().map_err(|error| ConnectError::from_io(socket, error))?;
        let problem = if !metadata.file_type().is_socket() {
            "it is not a socket".to_owned()
        } else if !is_trusted(metadata.uid(), trusted) {
            format!("it belongs to user {}", metadata.uid())
        } else if trusted.is_none() && metadata.mode() & 0o022 != 0 {
            format!("its mode {:03o} lets others use it", metadata.mode() & 0o777)
        } else {
            return Ok(());
        };
        Err(ConnectError::Untrusted { socket: socket.to_owned(), problem })
    }

    fn is_trusted(uid: u32, trusted: Option<&[u32]>) -> bool {
        trusted.map_or_else(|| is_ours(uid), |trusted| trusted.contains(&uid))
    }

    pub(super) fn check_server(
        socket: &Path,
        stream: &Stream,
        trusted: Option<&[u32]>,
    ) -> Result<(), ConnectError> {
        let identity =
            peer_identity(stream).map_err(|error| ConnectError::from_io(socket, error))?;
        match identity.uid.filter(|uid| !is_trusted(*uid, trusted)) {
            None => Ok(()),
            Some(uid) => Err(ConnectError::Untrusted {
                socket: socket.to_owned(),
                problem: format!("user {uid} listens on it"),
            }),
        }
    }

    pub(super) fn peer_identity(stream: &Stream) -> io::Result<PeerIdentity> {
        let credentials = stream.peer_creds()?;
        let uid = credentials.euid().ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "the platform does not tell the peer's user")
        })?;
        Ok(PeerIdentity {
            pid: credentials.pid().and_then(|pid| u32::try_from(pid).ok()),
            uid: Some(uid),
        })
    }
}

/// Named pipes have neither owner nor mode in the file system, and peers are known by pid only:
/// the pipe's access control list keeps others out.
#[cfg(not(unix))]
mod platform {
    use interprocess::local_socket::traits::StreamCommon;

    use tokio::io::{ReadHalf, WriteHalf};

    use super::*;

    pub(super) fn check_path(_socket: &Path) -> Result<(), usize> {
        Ok(())
    }

    /// Handles are limited by memory only.
    pub(super) fn descriptors_max() -> Option<usize> {
        None
    }

    pub(super) fn prepare_directory(_socket: &Path) -> Result<(), BindError> {
        Ok(())
    }

    pub(super) fn split(stream: Stream) -> (ReadHalf<Stream>, WriteHalf<Stream>) {
        tokio::io::split(stream)
    }

    /// A pipe's name is no place for a file: the lock lies in the user's temporary directory.
    pub(super) fn lock_path(path: PathBuf) -> PathBuf {
        let name: String = path
            .to_string_lossy()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
            .collect();
        std::env::temp_dir().join(name)
    }

    pub(super) fn private_file(_options: &mut OpenOptions) {}

    /// Whoever made the pipe, administrators and the system may use it. Without a list of its own
    /// everybody could read from it.
    #[cfg(windows)]
    pub(super) fn private(options: ListenerOptions<'_>) -> io::Result<ListenerOptions<'_>> {
        use interprocess::os::windows::local_socket::ListenerOptionsExt;
        use interprocess::os::windows::security_descriptor::SecurityDescriptor;

        let list = widestring::u16cstr!("D:P(A;;GA;;;OW)(A;;GA;;;BA)(A;;GA;;;SY)");
        Ok(options.security_descriptor(SecurityDescriptor::deserialize(list)?))
    }

    #[cfg(not(windows))]
    pub(super) fn private(options: ListenerOptions<'_>) -> io::Result<ListenerOptions<'_>> {
        Ok(options)
    }

    pub(super) fn open_to_others(_socket: &Path) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn own_uids() -> Vec<u32> {
        Vec::new()
    }

    pub(super) async fn remove_stale(_socket: &Path) -> Result<(), BindError> {
        Ok(())
    }

    pub(super) fn check_socket(
        _socket: &Path,
        _trusted: Option<&[u32]>,
    ) -> Result<(), ConnectError> {
        Ok(())
    }

    pub(super) fn check_server(
        _socket: &Path,
        _stream: &Stream,
        _trusted: Option<&[u32]>,
    ) -> Result<(), ConnectError> {
        Ok(())
    }

    pub(super) fn peer_identity(stream: &Stream) -> io::Result<PeerIdentity> {
        Ok(PeerIdentity { pid: stream.peer_creds()?.pid(), uid: None })
    }
}
