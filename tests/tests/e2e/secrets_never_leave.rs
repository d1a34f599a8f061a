use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use daemoneye_tests::{AgentBuilder, Guarded, beside_others, bin, signal, until};
use rustix::process::Signal;

/// Each way a secret can stand in arguments: the program's name, the arguments before the secret's
/// own, and what stands around it.
const CARRIERS: &[(&str, &[&str], &str)] = &[
    ("client", &["--password"], "{}"),
    ("client", &[], "--password={}"),
    ("mysql", &[], "-p{}"),
    ("mysqldump", &["-u", "root"], "-p{}"),
    ("env", &[], "DB_PASSWORD={}"),
    ("env", &[], "AWS_SECRET_ACCESS_KEY={}"),
    ("client", &["--token"], "{}"),
    ("client", &[], "--api-key={}"),
    ("curl", &["-H"], "Authorization: Bearer {}"),
    ("curl", &[], "https://user:{}@example.org/path"),
    ("sh", &["-c"], "mysql -p{} -e 'select 1'"),
    ("sh", &["-c"], "curl -H 'Authorization: Bearer {}' https://example.org"),
];

/// Processes are started with every kind of secret. None of their bytes is in the log, in the
/// store, on the socket, or in what the programs say of themselves at their most talkative.
#[test]
fn secrets_never_leave() {
    let _others = beside_others();
    let setup = AgentBuilder::default().arg("--no-collectors").env("RUST_LOG", "trace");
    let agent = setup.start();
    until("the agent answers", || agent.status().is_some());
    let wire = Wiretap::start(&setup.state_dir().join("tap.sock"), &setup.socket());
    let said = setup.state_dir().join("procmond.log");
    let procmond = Command::new(bin("procmond"))
        .args(["run", "--interval", "0.05", "--wal-dir"])
        .arg(setup.wal_dir())
        .env("DAEMONEYE_BROKER_SOCKET", setup.state_dir().join("tap.sock"))
        .env("RUST_LOG", "trace")
        .stderr(std::fs::File::create(&said).expect("a file"))
        .spawn()
        .expect("procmond can be started");
    let mut procmond = Guarded::new(procmond);

    let secret = |number: usize| format!("hUnTeR{:08}s{}", std::process::id(), number);
    let mut children: Vec<Child> = CARRIERS
        .iter()
        .enumerate()
        .map(|(number, (name, before, carrier))| {
            Command::new("/bin/sh")
                .arg0(name)
                .args(["-c", "read line", &format!("carrier-{number}-end")])
                .args(*before)
                .arg(carrier.replace("{}", &secret(number)))
                .stdin(Stdio::piped())
                .spawn()
                .expect("a shell can be started")
        })
        .collect();
    let store = setup.store();
    let seen = |topic: &str| {
        (0..CARRIERS.len()).all(|number| {
            let like = format!(
                "topic = 'events.process.{topic}' AND cmdline LIKE '%carrier-{number}-end%'"
            );
            store.number(&format!("SELECT count(*) FROM events WHERE {like}")) > 0
        })
    };
    until("every carrier is stored", || seen("start"));
    for child in &mut children {
        drop(child.stdin.take());
        child.wait().expect("a shell ends");
    }
    until("every end is stored", || seen("stop"));

    // The segments are still there: at most one has been begun, and the active one is kept.
    let places = |number: usize| {
        let needle = secret(number);
        let mut places = files_with(setup.state_dir(), needle.as_bytes());
        if wire.saw(needle.as_bytes()) {
            places.push("the socket".to_owned());
        }
        places
    };
    for (number, carrier) in CARRIERS.iter().enumerate() {
        assert_eq!(places(number), [] as [&str; 0], "{carrier:?}");
    }
    // The same search does find what is allowed to be there.
    let redacted = files_with(setup.state_dir(), b"carrier-3-end");
    assert!(redacted.iter().any(|file| file.contains("events.db")), "{redacted:?}");
    assert!(redacted.iter().any(|file| file.ends_with(".wal")), "{redacted:?}");
    assert!(wire.saw(b"carrier-3-end"));

    signal(&procmond, Signal::TERM);
    assert!(procmond.wait().expect("procmond ends").success());
    assert!(agent.stop().success());
    for (number, carrier) in CARRIERS.iter().enumerate() {
        assert_eq!(places(number), [] as [&str; 0], "{carrier:?}");
    }
}

fn files_with(directory: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if let Ok(bytes) = std::fs::read(&path)
            && contains(&bytes, needle)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    // The needles are ASCII, which a lossy conversion keeps; the search in `str` is a fast one.
    let needle = std::str::from_utf8(needle).expect("an ASCII needle");
    String::from_utf8_lossy(bytes).contains(needle)
}

/// A socket that passes everything on to another and keeps what it saw.
struct Wiretap {
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Wiretap {
    fn start(path: &Path, target: &Path) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = UnixListener::bind(path).expect("the tap can listen");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, mode).expect("the tap is private");
        let (target, record) = (target.to_owned(), Arc::clone(&seen));
        std::thread::spawn(move || {
            for incoming in listener.incoming() {
                let Ok(near) = incoming else { return };
                let Ok(far) = UnixStream::connect(&target) else { continue };
                let ends = [
                    (near.try_clone().expect("a clone"), far.try_clone().expect("a clone")),
                    (far, near),
                ];
                for (from, to) in ends {
                    let record = Arc::clone(&record);
                    std::thread::spawn(move || pass_on(from, to, &record));
                }
            }
        });
        Self { seen }
    }

    fn saw(&self, needle: &[u8]) -> bool {
        contains(&self.seen.lock().expect("no panic under the lock"), needle)
    }
}

fn pass_on(mut from: UnixStream, mut to: UnixStream, record: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        record.lock().expect("no panic under the lock").extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}
