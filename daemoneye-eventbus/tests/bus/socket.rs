//! The socket is ours alone, there is one broker on it, and what is wrong with it is said.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
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

/// Needs root to become somebody else. File modes alone would keep a stranger out; here they are
/// opened wide, and the broker still looks at who it is.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn another_user_is_refused_although_the_modes_would_let_it_in() {
    use std::io::Read;

    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bus = Bus::new().await;
    set_mode(&bus.socket(), 0o666);
    set_mode(bus.directory.path(), 0o755);
    let socket = bus.socket();
    let nobody = std::thread::spawn(move || {
        // Of this thread only: it ends with it.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    let answer = within(tokio::task::spawn_blocking(move || nobody.join().unwrap())).await;
    let mut decoder = wire::FrameDecoder::new(1000);
    decoder.buffer().extend_from_slice(&answer.unwrap());
    match wire::Frame::decode(decoder.next_frame().unwrap().unwrap()).unwrap().unwrap() {
        wire::Frame::Refused(refused) => {
            assert_eq!(refused.code, RefusalCode::NotAllowed);
            assert!(refused.reason.contains("65534"), "{}", refused.reason);
        }
        other => panic!("a refusal, not {other:?}"),
    }
    assert!(bus.broker.stats().connections.is_empty());
}
