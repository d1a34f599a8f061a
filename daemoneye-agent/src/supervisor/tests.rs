//! The supervisor over `/bin/sh` collectors, with pauses short enough to watch. Those that stay do
//! so while their directory is there, so that a test that fails leaves none behind.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use super::*;
use crate::shutdown::ShutdownTrigger;

const PATIENCE: Duration = Duration::from_secs(20);

/// Connections as a test says they are.
#[derive(Clone, Default)]
struct Fake(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    connected: AtomicU32,
    asked: Mutex<Vec<u32>>,
    /// Dropped when the collector is asked to end: its log's lock goes with it.
    lock: Mutex<Option<fs::File>>,
}

impl Connections for Fake {
    fn is_connected(&self, pid: u32) -> bool {
        self.0.connected.load(Ordering::SeqCst) == pid
    }

    async fn shut_down(&self, pid: u32) -> bool {
        self.0.asked.lock().unwrap().push(pid);
        self.0.lock.lock().unwrap().take();
        true
    }
}

struct Bench {
    dir: tempfile::TempDir,
    fake: Fake,
    trigger: ShutdownTrigger,
    status: watch::Receiver<SupervisorStatus>,
    task: JoinHandle<()>,
}

/// Supervises `sh -c script`, run in a fresh directory that also holds the lock file.
fn supervise(script: &str, prepare: impl FnOnce(&std::path::Path, &Fake)) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    prepare(dir.path(), &fake);
    let (trigger, stop) = ShutdownTrigger::new();
    let options = SupervisorOptions {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), format!("cd '{}'; {script}", dir.path().display()).into()],
        env: vec![("DAEMONEYE_BROKER_SOCKET".into(), "/nowhere/broker.sock".into())],
        lock_file: dir.path().join("lock"),
        backoff: BackoffOptions {
            min: Duration::from_millis(1),
            max: Duration::from_millis(20),
            reset_after: Duration::from_secs(60),
        },
        stop_grace: Duration::from_millis(500),
        poll_interval: Duration::from_millis(5),
    };
    let supervisor = Supervisor::new(options, fake.clone(), stop);
    let status = supervisor.status();
    let task = tokio::spawn(supervisor.run());
    Bench { dir, fake, trigger, status, task }
}

impl Bench {
    async fn until(&mut self, what: &str, test: impl Fn(&SupervisorStatus) -> bool) {
        let seen = timeout(PATIENCE, self.status.wait_for(|status| test(status)))
            .await
            .is_ok_and(|end| end.is_ok());
        if !seen {
            let last = self.status.borrow().clone();
            panic!("never {what}: {last:?}");
        }
    }

    async fn until_file(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match fs::read_to_string(&path) {
                Ok(text) if text.ends_with('\n') => return text,
                _ if Instant::now() > deadline => panic!("{name} never appeared"),
                _ => sleep(Duration::from_millis(2)).await,
            }
        }
    }

    async fn end(self) -> SupervisorStatus {
        self.trigger.request();
        timeout(PATIENCE, self.task).await.expect("the supervisor ends").unwrap();
        self.status.borrow().clone()
    }
}

fn is_alive(pid: u32) -> bool {
    rustix::process::test_kill_process(
        rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
    )
    .is_ok()
}

#[tokio::test]
async fn a_collector_that_dies_is_started_again_and_again() {
    let mut bench = supervise("echo x >> lives; exit 7", |_, _| {});
    bench.until("started six times", |status| status.starts_total >= 6).await;
    assert_eq!(bench.status.borrow().last_exit.as_deref(), Some("exit code 7"));
    assert!(bench.until_file("lives").await.lines().count() >= 5);
    assert_eq!(bench.end().await.state, SupervisorState::Stopped);
}

#[tokio::test]
async fn a_signal_is_named_and_a_configuration_error_waits_longest() {
    let mut bench = supervise("[ -e seen ] && exit 2; echo > seen; kill -9 $$", |_, _| {});
    bench.until("killed", |status| status.last_exit.as_deref() == Some("killed by signal 9")).await;
    bench
        .until("refused, with the longest pause", |status| {
            status.last_exit.as_deref() == Some("exit code 2")
                && status.state == SupervisorState::Restarting { pause_ms: 20 }
        })
        .await;
    bench.end().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_tried_again() {
    let (trigger, stop) = ShutdownTrigger::new();
    let options = SupervisorOptions {
        program: "/nowhere/procmond".into(),
        args: vec![],
        env: vec![],
        lock_file: "/nowhere/lock".into(),
        backoff: BackoffOptions { max: Duration::from_millis(3), ..Default::default() },
        stop_grace: Duration::from_millis(500),
        poll_interval: Duration::from_millis(5),
    };
    let supervisor = Supervisor::new(options, Fake::default(), stop);
    let mut status = supervisor.status();
    let task = tokio::spawn(supervisor.run());
    let waiting = |status: &SupervisorStatus| {
        status.state == SupervisorState::Restarting { pause_ms: 3 }
            && status.last_exit.as_deref().is_some_and(|exit| exit.contains("not be started"))
    };
    timeout(PATIENCE, status.wait_for(waiting)).await.expect("it pauses").unwrap();
    trigger.request();
    timeout(PATIENCE, task).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_child_gets_its_environment_a_group_of_its_own_and_sigterm() {
    let script = "trap 'echo bye > bye; exit 0' TERM; \
         echo \"$DAEMONEYE_BROKER_SOCKET $$ $(ps -o pgid= -p $$)\" > hello; \
         while [ -d \"$PWD\" ]; do sleep 0.01; done";
    let bench = supervise(script, |_, _| {});
    let hello = bench.until_file("hello").await;
    let words: Vec<_> = hello.split_whitespace().collect();
    assert_eq!(words[0], "/nowhere/broker.sock");
    assert_eq!(words[1], words[2], "the child leads a process group");
    bench.trigger.request();
    bench.until_file("bye").await;
    let status = bench.end().await;
    assert_eq!(status.last_exit.as_deref(), Some("exit code 0"));
    assert_eq!(status.starts_total, 1, "it was not started again while ending");
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed_after_the_grace() {
    let bench = supervise(
        "trap '' TERM; echo $$ > hello; while [ -d \"$PWD\" ]; do sleep 0.01; done",
        |_, _| {},
    );
    let pid: u32 = bench.until_file("hello").await.trim().parse().unwrap();
    assert!(is_alive(pid));
    let status = bench.end().await;
    assert!(!is_alive(pid));
    assert!(status.last_exit.unwrap().starts_with("killed"));
}

#[tokio::test]
async fn the_holder_of_the_log_is_adopted_and_replaced_when_it_goes_away() {
    let mut bench =
        supervise("echo $$ > started; while [ -d \"$PWD\" ]; do sleep 0.01; done", |dir, fake| {
            let lock = fs::File::create(dir.join("lock")).unwrap();
            lock.try_lock().unwrap();
            fs::write(dir.join("lock"), "4711\n").unwrap();
            *fake.0.lock.lock().unwrap() = Some(lock);
        });
    bench
        .until("waiting", |status| status.state == SupervisorState::Waiting { holder: Some(4711) })
        .await;
    bench.fake.0.connected.store(4711, Ordering::SeqCst);
    bench.until("adopted", |status| status.state == SupervisorState::Adopted { pid: 4711 }).await;
    // A lost connection alone is not a death.
    bench.fake.0.connected.store(0, Ordering::SeqCst);
    bench
        .until("waiting again", |status| {
            status.state == SupervisorState::Waiting { holder: Some(4711) }
        })
        .await;
    assert_eq!(bench.status.borrow().starts_total, 0, "never a second one beside the first");
    bench.fake.0.lock.lock().unwrap().take();
    bench.until("started", |status| matches!(status.state, SupervisorState::Running { .. })).await;
    bench.until_file("started").await;
    bench.end().await;
}

/// A procmond that was killed before it had written its pid into the lock file left the agent with
/// a holder it did not know. It took whichever collector was on the bus for that one, and started
/// no other for as long as that stayed.
#[tokio::test]
async fn another_collector_is_not_mistaken_for_an_unknown_holder() {
    let mut bench = supervise("while [ -d \"$PWD\" ]; do sleep 0.01; done", |dir, fake| {
        let lock = fs::File::create(dir.join("lock")).unwrap();
        lock.try_lock().unwrap();
        *fake.0.lock.lock().unwrap() = Some(lock);
        fake.0.connected.store(4712, Ordering::SeqCst);
    });
    bench
        .until("waiting", |status| status.state == SupervisorState::Waiting { holder: None })
        .await;
    bench.fake.0.lock.lock().unwrap().take();
    bench.until("started", |status| matches!(status.state, SupervisorState::Running { .. })).await;
    bench.end().await;
}

#[tokio::test]
async fn an_adopted_collector_is_asked_to_end_with_us() {
    let mut bench = supervise("echo > started; exit 1", |dir, fake| {
        let lock = fs::File::create(dir.join("lock")).unwrap();
        lock.try_lock().unwrap();
        fs::write(dir.join("lock"), "4711\n").unwrap();
        *fake.0.lock.lock().unwrap() = Some(lock);
        fake.0.connected.store(4711, Ordering::SeqCst);
    });
    bench.until("adopted", |status| status.state == SupervisorState::Adopted { pid: 4711 }).await;
    let fake = bench.fake.clone();
    let started = bench.dir.path().join("started");
    let status = bench.end().await;
    assert_eq!(*fake.0.asked.lock().unwrap(), [4711]);
    assert!(!started.exists(), "none was started beside it");
    assert_eq!(status.state, SupervisorState::Stopped);
}
