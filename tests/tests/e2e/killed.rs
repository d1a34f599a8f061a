use std::collections::BTreeMap;
use std::time::Duration;

use daemoneye_tests::{
    Agent, AgentBuilder, Feeder, Marked, Random, Store, beside_others, lock_holder, signal_pid,
    until, until_some,
};
use rustix::process::Signal;

const ROUNDS: usize = 50;
const PRODUCERS: usize = 32;
const PAYLOAD_BYTES: usize = 200;

/// procmond and an embedded log are killed fifty times at random moments.
#[test]
fn procmond_killed() {
    kill_rounds(Victims { collectors: true, agent: false });
}

/// The agent, with its broker and store, is killed fifty times at random moments.
#[test]
fn agent_killed() {
    kill_rounds(Victims { collectors: false, agent: true });
}

/// Both are killed, in random order.
#[test]
fn everybody_killed() {
    kill_rounds(Victims { collectors: true, agent: true });
}

#[derive(Clone, Copy)]
struct Victims {
    collectors: bool,
    agent: bool,
}

/// What the feeder was promised: the highest sequence with a receipt, by stream. Receipts are
/// cumulative (W1), so every sequence up to it was promised.
type Promised = BTreeMap<String, u64>;

fn kill_rounds(victims: Victims) {
    let _others = beside_others();
    let mut random = Random::default();
    let setup = AgentBuilder::default()
        .env("PROCMOND_MONITOR__INTERVAL_MS", 20)
        .env("DAEMONEYE_COLLECTORS__RESTART_MAX_MS", 200);
    let mut agent = setup.start();
    agent.monitoring();
    let feeder_wal = setup.state_dir().join("feeder");
    let feed = || Feeder::start(&feeder_wal, &setup.socket(), PRODUCERS, PAYLOAD_BYTES);

    let mut promised = Promised::new();
    let mut receipts = 0;
    let mut feeder = feed();
    for round in 0..ROUNDS {
        let come_and_go = Marked::start("come-and-go", 4, &[]);
        random.moment(Duration::from_millis(200));
        let collectors_first = random.below(2) == 0;
        if victims.collectors && collectors_first {
            kill_procmond(&agent);
            receipts += note(&mut promised, feeder.kill());
            feeder = feed();
        }
        if victims.agent {
            agent = agent.kill().start();
        }
        if victims.collectors && !collectors_first {
            random.moment(Duration::from_millis(50));
            kill_procmond(&agent);
            receipts += note(&mut promised, feeder.kill());
            feeder = feed();
        }
        come_and_go.end();
        if round % 10 == 9 {
            // Now and then everything is given the time to come up.
            agent.monitoring();
        }
    }
    // A last run without a producer delivers what is left.
    receipts += note(&mut promised, feeder.kill());
    assert!(receipts > 1000, "only {receipts} receipts: nothing was put to the test");
    let feeder = Feeder::start(&feeder_wal, &setup.socket(), 0, 0);
    agent.monitoring();
    let store = until_some("the store can be opened", || {
        setup.state_dir().join("events.db").exists().then(|| setup.store())
    });
    until("everything promised is committed", || all_committed(&store, &promised));
    drop(feeder);
    assert!(agent.stop().success());

    assert_eq!(promised.len(), 1, "one log, one stream");
    let committed = store.assert_contiguous();
    assert_eq!(committed.len(), 2, "the feeder's stream and procmond's");
    assert!(all_committed(&store, &promised));
    assert_eq!(lock_holder(&setup.wal_dir()), None);
}

fn all_committed(store: &Store, promised: &Promised) -> bool {
    let committed = store.committed();
    promised.iter().all(|(stream, last)| committed.get(stream).is_some_and(|done| done >= last))
}

fn kill_procmond(agent: &Agent) {
    let pid = until_some("a procmond runs", || lock_holder(&agent.setup().wal_dir()));
    signal_pid(pid, Signal::KILL);
}

fn note(promised: &mut Promised, receipts: Vec<(String, u64)>) -> usize {
    let count = receipts.len();
    for (stream, sequence) in receipts {
        let last = promised.entry(stream).or_default();
        *last = sequence.max(*last);
    }
    count
}
