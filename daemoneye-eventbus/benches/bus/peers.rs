//! Other people's brokers, spoken to by small clients of our own that do nothing but write frames
//! and count: no client library stands between the figure and the broker.

mod mqtt;
mod nats;
mod redis;
mod socket;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use socket::Socket;

use crate::load::{CHUNK_BYTES, Load, PAYLOAD_BYTES, Received, TICK, stamp, summary};
use crate::process::{Process, Run, drive, say, say_now};

/// A broker that is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Core NATS: each publish is answered with +OK.
    Nats,
    /// JetStream with a file store that is synced before each acknowledgement.
    JetStream,
    /// QoS 1 over a Unix socket.
    Mosquitto,
    /// A stream and a consumer group for each subscriber, over a Unix socket, in memory.
    Redis,
}

const ALL: [Peer; 4] = [Peer::Nats, Peer::JetStream, Peer::Mosquitto, Peer::Redis];

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::JetStream => "jetstream",
            Self::Mosquitto => "mosquitto",
            Self::Redis => "redis",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Nats | Self::JetStream => "nats-server",
            Self::Mosquitto => "mosquitto",
            Self::Redis => "redis-server",
        }
    }

    /// Whether it is for the durable rows.
    pub(crate) fn is_durable(self) -> bool {
        self == Self::JetStream
    }

    /// Fewer messages for a slower broker, so that a run takes about as long as ours.
    pub(crate) fn scaled(self, load: &Load) -> Load {
        let messages = match (self, load.window, load.subscribers) {
            (Self::JetStream, ..) => 4_000,
            (_, 1, _) => 5_000,
            (Self::Nats, _, 1) => 150_000,
            (Self::Redis, _, 1) => 80_000,
            (Self::Nats | Self::Redis, ..) => 60_000,
            (Self::Mosquitto, _, 1) => 40_000,
            (Self::Mosquitto, ..) => 10_000,
        };
        Load { messages, ..*load }
    }

    fn wire(self) -> Box<dyn Wire> {
        match self {
            Self::Nats => Box::new(nats::Core),
            Self::JetStream => Box::new(nats::JetStream),
            Self::Mosquitto => Box::new(mqtt::Mqtt::default()),
            Self::Redis => Box::new(redis::Redis::default()),
        }
    }
}

/// Those that are on this machine; what is missing is said.
pub(crate) fn installed() -> Vec<Peer> {
    let mut found = Vec::new();
    for peer in ALL {
        match check(peer) {
            Ok(()) => found.push(peer),
            Err(problem) => eprintln!("without {}: {problem}", peer.name()),
        }
    }
    found
}

fn command(peer: Peer) -> Command {
    // Debian puts servers where ordinary users do not look.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin";
    let mut command = Command::new(peer.program());
    command.env("PATH", &path).stdin(Stdio::null()).stderr(Stdio::null());
    if let Some(found) =
        std::env::split_paths(&path).map(|dir| dir.join(peer.program())).find(|p| p.exists())
    {
        command = Command::new(found);
        command.stdin(Stdio::null()).stderr(Stdio::null());
    }
    command
}

fn check(peer: Peer) -> Result<(), String> {
    let missing = |_| format!("{} is not installed", peer.program());
    if peer != Peer::JetStream {
        // Each of them prints something and ends; that it can be started is enough.
        let mut version = command(peer);
        version.arg(if peer == Peer::Mosquitto { "-h" } else { "--version" });
        return version.stdout(Stdio::null()).status().map(drop).map_err(missing);
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let config = nats_config(directory.path(), 4222, true)?;
    let known = command(peer).args(["-t", "-c"]).arg(config).stdout(Stdio::null()).status();
    match known.map_err(missing)?.success() {
        true => Ok(()),
        false => Err("this nats-server cannot sync always; 2.10 and later can".to_owned()),
    }
}

fn nats_config(directory: &Path, port: u16, jetstream: bool) -> Result<std::path::PathBuf, String> {
    let mut text = format!("host: \"127.0.0.1\"\nport: {port}\nmax_pending: 256MB\n");
    if jetstream {
        text += &format!(
            "jetstream {{ store_dir: \"{}\"\n sync_interval: always }}\n",
            directory.join("js").display()
        );
    }
    let path = directory.join("nats.conf");
    std::fs::write(&path, text).map_err(|error| error.to_string())?;
    Ok(path)
}

/// One run with its own server.
pub(crate) fn run(peer: Peer, load: &Load) -> Result<Run, String> {
    let text = |error: std::io::Error| error.to_string();
    let directory = if peer.is_durable() {
        // On the disk our log is on.
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
    } else {
        // A socket's path is short.
        tempfile::tempdir()
    }
    .map_err(text)?;
    let at = directory.path();
    let unix = at.join("s").display().to_string();
    let mut server = command(peer);
    let address = match peer {
        Peer::Nats | Peer::JetStream => {
            let port = std::net::TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .map_err(text)?
                .port();
            server.arg("-c").arg(nats_config(at, port, peer == Peer::JetStream)?);
            format!("tcp:127.0.0.1:{port}")
        }
        Peer::Mosquitto => {
            let config = at.join("mosquitto.conf");
            let options = "allow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n\
                           persistence false\nlog_type error\nuser root\n";
            std::fs::write(&config, format!("listener 0 {unix}\n{options}")).map_err(text)?;
            server.arg("-c").arg(config);
            unix
        }
        Peer::Redis => {
            let options = ["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"];
            server.args(options).arg(&unix).arg("--dir").arg(at);
            unix
        }
    };
    let server = Process::start(&mut server)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = Socket::connect(&address) {
        if Instant::now() > deadline {
            return Err(format!("it does not answer: {error}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let role =
        |name: &str| Process::role(&format!("{}-{name}", peer.name()), Path::new(&address), load);
    let mut subscriber = role("subscriber")?;
    subscriber.line()?;
    drive(&server, subscriber, || role("publisher"), load)
}

/// What a broker's clients say and hear.
trait Wire: Send {
    /// Everything before the first publish.
    fn begin_publishing(&mut self, socket: &mut Socket);
    fn publish(&mut self, payload: &[u8], out: &mut Vec<u8>);
    /// How many of `bytes` are whole answers, and how many messages they acknowledge.
    fn acknowledged(&mut self, bytes: &[u8]) -> (usize, u64);
    /// Everything before the first message.
    fn subscribe(&mut self, socket: &mut Socket, number: u64);
    /// Passes the payload of each whole message in `bytes` to `each`, and puts what is to be
    /// answered into `out`. Returns how many bytes that were.
    fn messages(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]), out: &mut Vec<u8>) -> usize;
}

/// Plays the role if it is one of a peer's.
pub(crate) fn play(role: &str, address: &Path, load: Load) -> bool {
    let Some((name, role)) = role.split_once('-') else { return false };
    let Some(peer) = ALL.into_iter().find(|peer| peer.name() == name) else { return false };
    let address = address.to_str().expect("we have made it ourselves");
    match role {
        "publisher" => publisher(peer.wire(), address, load),
        _ => subscribers(peer, address, load),
    }
    true
}

fn publisher(mut wire: Box<dyn Wire>, address: &str, load: Load) {
    let mut socket = Socket::connect(address).expect("the broker is there");
    wire.begin_publishing(&mut socket);
    let mut payload = vec![b'x'; PAYLOAD_BYTES];
    let mut out = Vec::with_capacity(2 * CHUNK_BYTES);
    let mut input = Input::default();
    let (mut sent, mut acked) = (0, 0);
    say_now();
    let began = Instant::now();
    while acked < load.messages {
        let allowed = if load.rate > 0 { load.due(began.elapsed()) } else { acked + load.window };
        while sent < allowed.min(load.messages) && out.len() < CHUNK_BYTES {
            stamp(&mut payload, &load);
            wire.publish(&payload, &mut out);
            sent += 1;
        }
        if !out.is_empty() {
            socket.write_all(&out).expect("the broker is there");
            out.clear();
        }
        if sent == load.messages || (load.rate == 0 && sent - acked == load.window) {
            input.read(&mut socket, |bytes| {
                let (taken, count) = wire.acknowledged(bytes);
                acked += count;
                taken
            });
        } else if load.rate > 0 {
            std::thread::sleep(TICK);
        }
    }
    say_now();
}

fn subscribers(peer: Peer, address: &str, load: Load) {
    let (ready, all_ready) = std::sync::mpsc::channel();
    let threads: Vec<_> = (0..load.subscribers)
        .map(|number| {
            let (address, ready) = (address.to_owned(), ready.clone());
            std::thread::spawn(move || {
                let mut wire = peer.wire();
                let mut socket = Socket::connect(&address).expect("the broker is there");
                wire.subscribe(&mut socket, number);
                ready.send(()).expect("somebody waits");
                let mut received = Received::new(load);
                let (mut input, mut out) = (Input::default(), Vec::new());
                while !received.all() {
                    input.read(&mut socket, |bytes| {
                        wire.messages(bytes, &mut |payload| received.message(payload), &mut out)
                    });
                    if !out.is_empty() {
                        socket.write_all(&out).expect("the broker is there");
                        out.clear();
                    }
                }
                received
            })
        })
        .collect();
    for _ in 0..load.subscribers {
        all_ready.recv().expect("every subscription");
    }
    say("ready");
    let received = threads.into_iter().map(|thread| thread.join().expect("every message"));
    say(summary(received.collect()));
}

/// What has come and is not taken.
struct Input {
    bytes: Vec<u8>,
    held: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: vec![0; 512 * 1024], held: 0 }
    }
}

impl Input {
    /// Reads once and lets `take` have what is there; it says how much it took.
    fn read(&mut self, socket: &mut Socket, take: impl FnOnce(&[u8]) -> usize) {
        if self.held == self.bytes.len() {
            self.bytes.resize(2 * self.held, 0);
        }
        let read = socket.read(&mut self.bytes[self.held..]).expect("the broker is there");
        assert!(read > 0, "the broker is there");
        self.held += read;
        let taken = take(&self.bytes[..self.held]);
        self.bytes.copy_within(taken..self.held, 0);
        self.held -= taken;
    }
}

/// The first line of `bytes`, without its end, and where the next begins.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]), end + 1))
}

fn number(digits: &[u8]) -> usize {
    let text = std::str::from_utf8(digits).expect("digits");
    text.parse().unwrap_or_else(|_| panic!("a number, not {text:?}"))
}
