//! The socket is ours alone, there is one broker on it, and what is wrong with it is said.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use daemoneye_eventbus::*;

use crate::common::*;

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

async fn bind(path: &Path) -> Result<Broker, BindError> {
    within(Broker::bind(BrokerOptions::new(path))).await
}

async fn connect(path: &Path) -> Result<Client, ConnectError> {
    within(Client::connect(path, ClientOptions::new("x", Role::Subscriber))).await
}

#[tokio::test]
async fn everything_made_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("a/b/bus.sock");
    let broker = bind(&socket).await.unwrap();
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(&directory.path().join("a/b/bus.sock.lock")), 0o600);
    assert_eq!(mode(&directory.path().join("a/b")), 0o700);
    broker.shutdown(Duration::from_secs(5)).await;
    assert!(!socket.exists(), "the socket goes with the broker");
}

#[tokio::test]
async fn a_second_broker_is_refused_and_the_first_unharmed() {
    let bus = Bus::new().await;
    match bind(&bus.socket()).await {
        Err(error @ BindError::InUse { pid: Some(pid), .. }) => {
            assert_eq!(pid, std::process::id());
            assert!(error.to_string().contains(&format!("pid {pid}")), "{error}");
        }
        other => panic!("it is in use, not {other:?}"),
    }
    // Even if its lock file is gone, a broker that answers is left alone.
    std::fs::remove_file(bus.directory.path().join("bus.sock.lock")).unwrap();
    assert!(matches!(bind(&bus.socket()).await, Err(BindError::InUse { .. })));
    connect(&bus.socket()).await.unwrap();
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    set_mode(&socket, 0o600);
    match connect(&socket).await {
        Err(error @ ConnectError::NobodyListening { .. }) => assert!(error.may_retry()),
        other => panic!("nobody listens, not {other:?}"),
    }
    let _broker = bind(&socket).await.unwrap();
    connect(&socket).await.unwrap();
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    assert!(matches!(bind(&path).await, Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
    assert!(matches!(connect(&path).await, Err(ConnectError::Untrusted { .. })));
    let bus = Bus::new().await;
    let link = directory.path().join("link");
    symlink(bus.socket(), &link).unwrap();
    assert!(matches!(bind(&link).await, Err(BindError::NotASocket { .. })));
    assert!(matches!(connect(&link).await, Err(ConnectError::Untrusted { .. })));
}

#[tokio::test]
async fn a_path_of_107_bytes_works_and_one_of_108_is_refused_by_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let room = 107 - directory.path().as_os_str().len() - 1;
    let longest = directory.path().join("s".repeat(room));
    let _broker = bind(&longest).await.unwrap();
    connect(&longest).await.unwrap();
    let too_long = directory.path().join("s".repeat(room + 1));
    match bind(&too_long).await {
        Err(error @ BindError::PathTooLong { bytes: 108, .. }) => {
            assert!(error.to_string().contains("107"), "{error}");
        }
        other => panic!("it is too long, not {other:?}"),
    }
    match connect(&too_long).await {
        Err(error @ ConnectError::PathTooLong { bytes: 108, .. }) => {
            assert!(!error.may_retry());
        }
        other => panic!("it is too long, not {other:?}"),
    }
}

#[tokio::test]
async fn a_directory_others_can_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o777);
    match bind(&directory.path().join("bus.sock")).await {
        Err(error @ BindError::UnsafeDirectory { .. }) => {
            assert!(error.to_string().contains("0700"), "{error}");
        }
        other => panic!("it is unsafe, not {other:?}"),
    }
    set_mode(directory.path(), 0o755);
    bind(&directory.path().join("bus.sock")).await.unwrap();
}

#[tokio::test]
async fn errors_of_connecting_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    match connect(&directory.path().join("none.sock")).await {
        Err(error @ ConnectError::NoSocket { .. }) => assert!(error.may_retry()),
        other => panic!("there is none, not {other:?}"),
    }

    // A socket others may use could be served by others.
    let bus = Bus::new().await;
    set_mode(&bus.socket(), 0o666);
    match connect(&bus.socket()).await {
        Err(error @ ConnectError::Untrusted { .. }) => assert!(!error.may_retry()),
        other => panic!("it is not trusted, not {other:?}"),
    }

    // Something listens and says nothing.
    let silent = directory.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    set_mode(&silent, 0o600);
    let mut options = ClientOptions::new("x", Role::Subscriber);
    options.connect_timeout = Duration::from_millis(50);
    match within(Client::connect(&silent, options)).await {
        Err(error @ ConnectError::Timeout { .. }) => assert!(error.may_retry()),
        other => panic!("it does not answer, not {other:?}"),
    }

    // Something listens and speaks another language.
    let other = directory.path().join("http.sock");
    let listener = tokio::net::UnixListener::bind(&other).unwrap();
    set_mode(&other, 0o600);
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream
    });
    match connect(&other).await {
        Err(error @ ConnectError::Protocol { .. }) => assert!(!error.may_retry()),
        other => panic!("it is another protocol, not {other:?}"),
    }
    server.await.unwrap();
}

/// It is looked at while brokers come and go: at no moment may others use the socket.
#[tokio::test]
async fn the_socket_is_private_from_the_first_moment() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let (done, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watcher = std::thread::spawn({
        let (socket, done, looks) = (socket.clone(), Arc::clone(&done), Arc::clone(&looks));
        move || {
            let mut modes = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                if let Ok(metadata) = socket.symlink_metadata() {
                    modes.insert(metadata.permissions().mode() & 0o777);
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            }
            modes
        }
    });
    for _ in 0..100 {
        let before = looks.load(Ordering::Relaxed);
        let broker = bind(&socket).await.unwrap();
        until(|| looks.load(Ordering::Relaxed) > before).await;
        broker.shutdown(Duration::from_secs(5)).await;
    }
    done.store(true, Ordering::Relaxed);
    assert_eq!(watcher.join().unwrap(), BTreeSet::from([0o600]));
}

#[tokio::test]
async fn a_directory_that_others_could_replace_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("own");
    std::fs::create_dir(&own).unwrap();
    set_mode(&own, 0o700);
    set_mode(directory.path(), 0o777);
    let link = tempfile::tempdir().unwrap();
    symlink(&own, link.path().join("link")).unwrap();
    for path in [own.join("bus.sock"), link.path().join("link/bus.sock")] {
        match bind(&path).await {
            Err(error @ BindError::UnsafeDirectory { .. }) => {
                assert!(error.to_string().contains("in its place"), "{error}");
            }
            other => panic!("it is unsafe, not {other:?}"),
        }
    }
    // As in /tmp: everybody may put something there, and rename only what is theirs.
    set_mode(directory.path(), 0o1777);
    bind(&own.join("bus.sock")).await.unwrap();
}

#[tokio::test]
async fn who_is_not_listed_is_refused() {
    let own = rustix::process::geteuid().as_raw();
    let bus = Bus::with(|options| options.allowed_uids = vec![4242]).await;
    assert_eq!(mode(&bus.socket()), 0o666, "who is listed gets as far as the broker");
    // A client has to say that it expects a socket others may use.
    assert!(matches!(connect(&bus.socket()).await, Err(ConnectError::Untrusted { .. })));
    let mut options = ClientOptions::new("x", Role::Subscriber);
    options.trusted_uids = Some(vec![own]);
    match within(Client::connect(&bus.socket(), options.clone())).await {
        Err(ConnectError::Refused {
            code: RefusalCode::NotAllowed, retry: false, reason, ..
        }) => {
            assert!(reason.contains(&own.to_string()), "{reason}");
        }
        other => panic!("a refusal, not {other:?}"),
    }
    let bus = Bus::with(|options| options.allowed_uids = vec![4242, own]).await;
    within(Client::connect(&bus.socket(), options.clone())).await.unwrap();
    options.trusted_uids = Some(vec![4242]);
    match within(Client::connect(&bus.socket(), options)).await {
        Err(error @ ConnectError::Untrusted { .. }) => {
            assert!(error.to_string().contains(&format!("belongs to user {own}")), "{error}");
        }
        other => panic!("it is not trusted, not {other:?}"),
    }
}

/// A user who is neither we nor root.
#[cfg(target_os = "linux")]
const NOBODY: u32 = 65534;

/// Whether we can become somebody else.
#[cfg(target_os = "linux")]
fn we_are_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI runs this as root");
        eprintln!("SKIPPED: only root can become somebody else");
    }
    root
}

/// Does something as [`NOBODY`], in a thread of its own: who it is ends with it.
#[cfg(target_os = "linux")]
async fn as_nobody<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(NOBODY)).unwrap();
        act()
    });
    within(tokio::task::spawn_blocking(move || thread.join().unwrap())).await.unwrap()
}

/// What the broker says first to a client that says this.
#[cfg(target_os = "linux")]
async fn nobody_hears(socket: std::path::PathBuf, says: wire::Frame) -> wire::Frame {
    use std::io::{Read, Write};

    let answer = as_nobody(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let mut bytes = bytes::BytesMut::new();
        says.encode(&mut bytes);
        wire::Frame::Goodbye { code: GoodbyeCode::Done, reason: String::new() }.encode(&mut bytes);
        // Whoever is refused may be cut off before.
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    })
    .await;
    let mut decoder = wire::FrameDecoder::new(1000);
    decoder.buffer().extend_from_slice(&answer);
    wire::Frame::decode(decoder.next_frame().unwrap().unwrap()).unwrap().unwrap()
}

#[cfg(target_os = "linux")]
fn hello() -> wire::Frame {
    wire::Frame::Hello(wire::Hello {
        version_min: 1,
        version_max: 1,
        role: Role::Subscriber,
        client_id: "nobody".to_owned(),
        position: None,
    })
}

/// File modes alone would keep a stranger out; here they are opened wide, and the broker still
/// looks at who it is.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn another_user_is_refused_although_the_modes_would_let_it_in() {
    if !we_are_root() {
        return;
    }
    let bus = Bus::new().await;
    set_mode(&bus.socket(), 0o666);
    set_mode(bus.directory.path(), 0o755);
    match nobody_hears(bus.socket(), hello()).await {
        wire::Frame::Refused(refused) => {
            assert_eq!(refused.code, RefusalCode::NotAllowed);
            assert!(refused.reason.contains("65534"), "{}", refused.reason);
        }
        other => panic!("a refusal, not {other:?}"),
    }
    assert!(bus.broker.stats().connections.is_empty());

    // Unless it is listed.
    let bus = Bus::with(|options| options.allowed_uids.push(NOBODY)).await;
    set_mode(bus.directory.path(), 0o755);
    let answer = nobody_hears(bus.socket(), hello()).await;
    assert!(matches!(answer, wire::Frame::Welcome(_)), "{answer:?}");
}

/// Somebody else listens on a socket whose file is ours: the file was put in our place.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_broker_of_another_user_is_not_spoken_to() {
    if !we_are_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o777);
    let socket = directory.path().join("bus.sock");
    let path = socket.clone();
    let _listener = as_nobody(move || std::os::unix::net::UnixListener::bind(path).unwrap()).await;
    match connect(&socket).await {
        Err(error @ ConnectError::Untrusted { .. }) => {
            assert!(error.to_string().contains("belongs to user 65534"), "{error}");
        }
        other => panic!("it is not trusted, not {other:?}"),
    }
    std::os::unix::fs::chown(&socket, Some(0), Some(0)).unwrap();
    set_mode(&socket, 0o600);
    match connect(&socket).await {
        Err(error @ ConnectError::Untrusted { .. }) => {
            assert!(error.to_string().contains("user 65534 listens on it"), "{error}");
            assert!(!error.may_retry());
        }
        other => panic!("it is not trusted, not {other:?}"),
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_socket_left_behind_by_another_user_is_left_alone() {
    if !we_are_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    std::os::unix::fs::chown(&socket, Some(NOBODY), None).unwrap();
    match bind(&socket).await {
        Err(error @ BindError::Io { .. }) => {
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("user 65534"), "{source}");
        }
        other => panic!("it is not ours, not {other:?}"),
    }
    assert!(socket.exists());
}
