use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use daemoneye_tests::{
    AgentBuilder, Feeder, Guarded, beside_others, bin, peak_resident_bytes, signal, until,
};
use rustix::process::Signal;

/// Enough to fill the socket and the bounded queue of a subscriber that does not read, many times.
const EVENTS: u64 = 50_000;
const PAYLOAD_BYTES: usize = 1000;

/// One live subscriber is stopped. The store and a healthy subscriber get everything meanwhile,
/// the agent's memory stays bounded, and when it goes on it is told exactly what it missed.
#[test]
fn slow_live_subscriber() {
    let _others = beside_others();
    let setup = AgentBuilder::default().arg("--no-collectors");
    let agent = setup.start();
    until("the agent answers", || agent.status().is_some());
    let slow = Subscriber::start(&setup.socket(), "slow");
    let healthy = Subscriber::start(&setup.socket(), "healthy");
    signal(&slow.child, Signal::STOP);

    let wal = setup.state_dir().join("feeder");
    let feeder = Feeder::start(&wal, &setup.socket(), 64, PAYLOAD_BYTES);
    let store = setup.store();
    let stored = || store.committed().values().next().copied().unwrap_or(0);
    until("the store gets its events", || stored() >= EVENTS);
    feeder.kill();
    // Everything that was logged is delivered by a last run.
    let feeder = Feeder::start(&wal, &setup.socket(), 0, 0);
    until("the healthy subscriber has everything", || {
        let (received, missed) = healthy.counts();
        assert_eq!(missed, 0, "the healthy one missed some");
        agent_idle(&agent) && received == stored()
    });
    let sent = stored();
    drop(feeder);
    let (received, _) = slow.counts();
    assert!(received < sent / 2, "the slow one was not slow: {received} of {sent}");

    signal(&slow.child, Signal::CONT);
    until("the slow one is told what it missed", || {
        let (received, missed) = slow.counts();
        received + missed >= sent
    });
    let (received, missed) = slow.counts();
    assert_eq!(received + missed, sent, "received and missed make up what was sent");
    assert!(missed > 0);
    let resident = peak_resident_bytes(agent.pid());
    assert!(resident < 100_000_000, "the agent takes {resident} bytes");
    assert!(agent.stop().success());
}

/// Whether the streams' publishers have everything acknowledged.
fn agent_idle(agent: &daemoneye_tests::Agent) -> bool {
    let Some(status) = agent.status() else { return false };
    let streams = status["broker"]["streams"].as_array().cloned().unwrap_or_default();
    streams.iter().all(|stream| stream["retained_bytes"] == 0)
}

struct Subscriber {
    child: Guarded,
    counts: Arc<Mutex<(u64, u64)>>,
}

impl Subscriber {
    fn start(socket: &Path, id: &str) -> Self {
        let mut child = Command::new(bin("subscriber"))
            .arg(socket)
            .args([id, "events.#"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the subscriber can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        let ready = lines.next().expect("the subscriber says something").expect("text");
        assert_eq!(ready, "ready");
        let counts = Arc::new(Mutex::new((0, 0)));
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut numbers = line.split(' ').map(|n| n.parse().expect("a number"));
                let pair = (numbers.next().expect("received"), numbers.next().expect("missed"));
                *shared.lock().expect("no panic under the lock") = pair;
            }
        });
        Self { child: Guarded::new(child), counts }
    }

    /// Received and missed so far.
    fn counts(&self) -> (u64, u64) {
        *self.counts.lock().expect("no panic under the lock")
    }
}
