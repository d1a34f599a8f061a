//! The store on real files.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use daemoneye_eventbus::{Entry, Topic, TopicPattern};
use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{
    Completeness, KeyPrecision, ProcessEvent, ProcessEventKind, ProcessKey, SourceName,
};
use daemoneye_lib::redaction::RawArgv;
use daemoneye_lib::topics;
use tokio::time::timeout;

use super::database::{Database, Notice};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn event(sequence: u64) -> Event {
    let pid = u32::try_from(1000 + sequence).unwrap();
    Event::from(ProcessEvent {
        kind: ProcessEventKind::Start { existing: false },
        key: ProcessKey {
            boot_id: "3f2a9c1e-0000-4000-8000-000000000000".parse().unwrap(),
            pid,
            start_centis: 123_456,
            generation: 0,
        },
        key_precision: KeyPrecision::Second,
        ppid: Some(1),
        parent_key: None,
        name: Some(ByteString::from("sleep")),
        exe: Some(ByteString::new(b"/usr/bin/sl\x1beep".to_vec())),
        exe_deleted: None,
        argv: Some(RawArgv::from_args(["sleep", "1 0"]).redact()),
        cwd: None,
        uid: Some(501),
        euid: None,
        gid: None,
        egid: None,
        login_uid: None,
        session: None,
        cgroup: None,
        container_id: None,
        namespaces: None,
        start_time_ns: None,
        time_ns: 1_000 + i64::try_from(sequence).unwrap(),
        monotonic_ns: None,
        source: SourceName::Poll,
        completeness: Completeness::Complete,
        inferred: false,
        capabilities: None,
        exe_sha256: None,
    })
}

fn delivery(stream: StreamId, epoch: Epoch, after: u64, through: u64) -> Delivery {
    let entries = (after + 1..=through)
        .map(|sequence| Entry {
            topic: Topic::new(topics::PROCESS_START).unwrap(),
            sequence: Sequence(sequence),
            span: 1,
            timestamp_ns: 1_000 + i64::try_from(sequence).unwrap(),
            payload: Bytes::from(event(sequence).encode()),
        })
        .collect();
    Delivery { stream, epoch, after: Sequence(after), through: Sequence(through), entries }
}

fn events(delivery: Delivery) -> Write {
    Write::Events(delivery.into())
}

/// The (sequence, topic) of every stored row of a stream, in order.
fn rows(path: &Path, stream: StreamId) -> Vec<(i64, String)> {
    let reader = EventReader::open(path).unwrap();
    let mut rows = Vec::new();
    reader
        .arrived(0, i64::MAX, &EventFilter::default(), |event| {
            if event.stream == stream.to_string() {
                rows.push((event.sequence, event.topic));
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn sequences(path: &Path, stream: StreamId) -> Vec<i64> {
    rows(path, stream).into_iter().map(|(sequence, _)| sequence).collect()
}

struct Files {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.db");
    Files { _dir: dir, path }
}

#[test]
fn a_delivery_fills_the_columns_and_moves_the_position() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut database = Database::open(&files.path).unwrap();
    let applied = database.apply(&[events(delivery(stream, epoch, 0, 3))]).unwrap();
    let committed = Committed { sequence: Sequence(3), epoch };
    assert_eq!(applied.commits, [StoreCommit { stream, committed }]);
    assert!(applied.notices.is_empty());

    // As people ask, with the names of the interface.
    let connection = rusqlite::Connection::open(&files.path).unwrap();
    let row: (i64, i64, i64, i64, String, String, String, String, String, String) = connection
        .query_row(
            "SELECT time_ns, pid, ppid, uid, name, exe, cmdline, process_key, topic, \
                    json_extract(event, '$.kind') FROM events WHERE stream = ?1 AND sequence = 2",
            [stream.to_string()],
            |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    row.get(5)?,
                    row.get(6)?,
                    row.get(7)?,
                    row.get(8)?,
                    row.get(9)?,
                ))
            },
        )
        .unwrap();
    let expected = (
        1_002,
        1_002,
        1,
        501,
        "sleep".into(),
        r"/usr/bin/sl\x1beep".into(),
        "sleep '1 0'".into(),
        "3f2a9c1e-1002-123456.0".into(),
        topics::PROCESS_START.into(),
        "start".into(),
    );
    assert_eq!(row, expected);
    let committed: i64 = connection
        .query_row("SELECT committed FROM streams WHERE stream = ?1", [stream.to_string()], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(committed, 3);
}

#[cfg(unix)]
#[test]
fn the_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let files = files();
    let mut database = Database::open(&files.path).unwrap();
    database.apply(&[events(delivery(StreamId::random(), Epoch::first(), 0, 1))]).unwrap();
    for name in ["events.db", "events.db-wal", "events.db-shm"] {
        let metadata = std::fs::metadata(files.path.with_file_name(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

/// The agent was killed after a transaction and before the bus heard of it: everything since the
/// last commit that was heard comes again, cut into other batches.
#[test]
fn what_comes_again_after_a_kill_is_stored_once() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut database = Database::open(&files.path).unwrap();
    database.apply(&[events(delivery(stream, epoch, 0, 5))]).unwrap();
    drop(database);

    let mut database = Database::open(&files.path).unwrap();
    assert_eq!(database.positions()[0].committed, Committed { sequence: Sequence(5), epoch });
    let later = epoch.next();
    let applied = database
        .apply(&[
            events(delivery(stream, epoch, 0, 2)),
            events(delivery(stream, later, 2, 7)),
            events(delivery(stream, later, 7, 8)),
        ])
        .unwrap();
    assert_eq!(applied.commits.len(), 1, "one commit for one stream");
    let committed = Committed { sequence: Sequence(8), epoch: later };
    assert_eq!(applied.commits[0].committed, committed);
    assert!(applied.notices.is_empty(), "{:?}", applied.notices);
    assert_eq!(sequences(&files.path, stream), [1, 2, 3, 4, 5, 6, 7, 8]);
    let figures = database.figures();
    assert_eq!((figures.duplicates_total, figures.stored_total), (5, 3));
    assert_eq!(figures.topics()[topics::PROCESS_START], 8, "counted over all openings");
}

/// Every point between the first statement and the commit, as a copy of the files that a kill
/// would leave: nothing half stored is ever seen.
#[test]
fn a_kill_inside_a_transaction_leaves_all_or_nothing() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut database = Database::open(&files.path).unwrap();
    database.apply(&[events(delivery(stream, epoch, 0, 2))]).unwrap();
    for through in [20, 400] {
        let copy = tempfile::tempdir().unwrap();
        let grab = |name: &str| {
            let from = files.path.with_file_name(name);
            std::fs::copy(from, copy.path().join(name)).unwrap();
        };
        let before = sequences(&files.path, stream);
        database.apply(&[events(delivery(stream, epoch, before.len() as u64, through))]).unwrap();
        // The journal is cut anywhere, as power loss during its writing would.
        grab("events.db");
        grab("events.db-wal");
        let journal = copy.path().join("events.db-wal");
        let whole = std::fs::read(&journal).unwrap();
        for cut in (0..whole.len()).step_by(whole.len() / 40 + 1) {
            std::fs::write(&journal, &whole[..cut]).unwrap();
            let reopened = copy.path().join("events.db");
            let mut again = Database::open(&reopened).unwrap();
            let position = again.positions().first().map_or(0, |at| at.committed.sequence.0);
            let stored = sequences(&reopened, stream);
            assert_eq!(stored.len() as u64, position, "cut at {cut}");
            again.apply(&[events(delivery(stream, epoch, 0, through))]).unwrap();
            assert_eq!(sequences(&reopened, stream).len() as u64, through);
            drop(again);
            let _ = std::fs::remove_file(copy.path().join("events.db-shm"));
            grab("events.db");
        }
    }
}

#[test]
fn missing_sequences_become_a_row_that_names_them() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut database = Database::open(&files.path).unwrap();
    // Not even the first ones of a stream never heard of are passed over in silence.
    let applied = database.apply(&[events(delivery(stream, epoch, 2, 4))]).unwrap();
    let gap = |first, last| Notice::Gap { stream, first: Sequence(first), last: Sequence(last) };
    assert_eq!(applied.notices, [gap(1, 2)]);
    let applied = database.apply(&[events(delivery(stream, epoch, 9, 10))]).unwrap();
    assert_eq!(applied.notices, [gap(5, 9)]);
    let applied = database.apply(&[events(delivery(stream, epoch, 4, 10))]).unwrap();
    assert!(applied.notices.is_empty(), "a known gap is not met twice");

    let start = |sequence| (sequence, topics::PROCESS_START.to_owned());
    let gap = |sequence| (sequence, topics::PROCESS_GAP.to_owned());
    assert_eq!(rows(&files.path, stream), [gap(2), start(3), start(4), gap(9), start(10)]);
    let figures = &database.figures().streams[0];
    assert_eq!((figures.gaps, figures.missing, figures.committed.0), (2, 7, 10));
    let reader = EventReader::open(&files.path).unwrap();
    let filter = EventFilter {
        topic: Some(TopicPattern::new("events.*.gap").unwrap()),
        ..EventFilter::default()
    };
    let mut bounds = Vec::new();
    reader
        .until(i64::MAX, &filter, None, |event| {
            let json: serde_json::Value = serde_json::from_str(&event.event).unwrap();
            bounds.push((json["first_sequence"].clone(), json["last_sequence"].clone()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(bounds, [(1.into(), 2.into()), (5.into(), 9.into())]);
}

#[test]
fn an_empty_delivery_moves_the_position() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut database = Database::open(&files.path).unwrap();
    let mut empty = delivery(stream, epoch, 0, 6);
    empty.entries.clear();
    let applied = database.apply(&[events(empty)]).unwrap();
    assert_eq!(applied.commits[0].committed.sequence, Sequence(6));
    assert!(sequences(&files.path, stream).is_empty());
}

#[test]
fn an_entry_for_many_sequences_is_one_row() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut database = Database::open(&files.path).unwrap();
    let mut damaged = delivery(stream, epoch, 0, 6);
    damaged.entries.drain(1..5);
    damaged.entries[1].span = 5;
    let applied = database.apply(&[events(damaged)]).unwrap();
    assert!(applied.notices.is_empty(), "the publisher has said what is missing");
    assert_eq!(sequences(&files.path, stream), [1, 6]);
}

#[test]
fn what_cannot_be_decoded_is_stored_all_the_same() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut database = Database::open(&files.path).unwrap();
    let mut broken = delivery(stream, epoch, 0, 3);
    broken.entries[1].payload = Bytes::from_static(b"\xffjunk\x1b");
    let applied = database.apply(&[events(broken)]).unwrap();
    let notice = Notice::Undecodable { stream, sequence: Sequence(2), count: 1 };
    assert_eq!(applied.notices, [notice]);
    assert_eq!(sequences(&files.path, stream), [1, 2, 3]);
    assert_eq!(database.figures().streams[0].undecodable, 1);
    let connection = rusqlite::Connection::open(&files.path).unwrap();
    let (pid, hex, time_ns): (Option<i64>, String, i64) = connection
        .query_row(
            "SELECT pid, json_extract(event, '$.undecodable'), time_ns FROM events \
             WHERE sequence = 2",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    assert_eq!((pid, hex.as_str(), time_ns), (None, "ff6a756e6b1b", 1_002));
}

#[test]
fn a_delivery_that_contradicts_what_is_stored_is_left_out() {
    let files = files();
    let stream = StreamId::random();
    let (old, new) = (Epoch::first(), Epoch::first().next());
    let mut database = Database::open(&files.path).unwrap();
    database.apply(&[events(delivery(stream, new, 0, 2))]).unwrap();
    let mut out_of_order = delivery(stream, new, 2, 5);
    out_of_order.entries.swap(0, 2);
    let mut out_of_bounds = delivery(stream, new, 2, 5);
    out_of_bounds.through = Sequence(4);
    let mut backwards = delivery(stream, new, 2, 2);
    backwards.after = Sequence(9);
    let mut endless = delivery(stream, new, 2, 3);
    endless.through = Sequence(u64::MAX);
    let older_writer = delivery(stream, old, 2, 4);
    for wrong in [out_of_order, out_of_bounds, backwards, endless, older_writer] {
        let applied = database.apply(&[events(wrong)]).unwrap();
        assert!(matches!(applied.notices[..], [Notice::Refused { .. }]), "{applied:?}");
        assert!(applied.commits.is_empty(), "a refused delivery is not committed");
    }
    assert_eq!(database.figures().refused_total, 5);
    // An older opening's events that are stored already are nothing but duplicates.
    database.apply(&[events(delivery(stream, old, 0, 2))]).unwrap();
    assert_eq!(sequences(&files.path, stream), [1, 2]);
}

#[test]
fn a_replaced_log_is_noticed_and_remembered() {
    let files = files();
    let (old, new) = (StreamId::random(), StreamId::random());
    let register = |stream| Write::Collector { stream, collector: "procmond".to_owned() };
    let mut database = Database::open(&files.path).unwrap();
    let applied = database.apply(&[register(old)]).unwrap();
    assert!(applied.notices.is_empty());
    assert!(applied.commits.is_empty());
    assert!(database.positions().is_empty(), "registering is not a position");
    database.apply(&[events(delivery(old, Epoch::first(), 0, 3)), register(old)]).unwrap();
    drop(database);

    let mut database = Database::open(&files.path).unwrap();
    // The new stream's events may come before its registration or after.
    let applied =
        database.apply(&[events(delivery(new, Epoch::first(), 0, 1)), register(new)]).unwrap();
    let collector = "procmond".to_owned();
    let ended = Sequence(3);
    assert_eq!(applied.notices, [Notice::Replaced { collector, old, ended, new }]);
    assert!(database.apply(&[register(new)]).unwrap().notices.is_empty(), "once is enough");
    assert_eq!(sequences(&files.path, new), [1], "nothing new is taken for old");
    let streams = EventReader::open(&files.path).unwrap().streams().unwrap();
    let replaces: Vec<_> = streams.iter().map(|stream| (stream.stream, stream.replaces)).collect();
    assert_eq!(replaces, [(old, None), (new, Some(old))]);
}

#[test]
fn a_database_of_the_future_is_refused() {
    let files = files();
    drop(Database::open(&files.path).unwrap());
    let connection = rusqlite::Connection::open(&files.path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(Database::open(&files.path), Err(StoreError::Version { found: 99, .. })));
    assert!(matches!(EventReader::open(&files.path), Err(StoreError::Version { .. })));
}

/// Waits until `done` says so, looking often.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

async fn next_commit(store: &mut Store) -> StoreCommit {
    timeout(PATIENCE, store.committed()).await.expect("a commit in time").expect("an open store")
}

async fn close(store: Store, patience: Duration) {
    tokio::task::spawn_blocking(move || store.close(patience)).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_delays_and_loses_nothing() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let database = Database::open(&files.path).unwrap();
    let pages = Arc::clone(&database.page_limit);
    let mut store = Store::start(database).unwrap();
    let handle = store.handle();
    handle.slot().await.unwrap().store(delivery(stream, epoch, 0, 1));
    assert_eq!(next_commit(&mut store).await.committed.sequence, Sequence(1));

    // SQLite itself reports "database or disk is full" from here on.
    pages.store(8, Ordering::SeqCst);
    handle.slot().await.unwrap().store(delivery(stream, epoch, 1, 500));
    handle.slot().await.unwrap().store(delivery(stream, epoch, 500, 501));
    wait_for("a third attempt", || handle.figures().retries_total >= 3);
    let figures = handle.figures();
    assert!(figures.trouble.as_ref().is_some_and(|why| why.contains("full")), "{figures:?}");
    assert_eq!(sequences(&files.path, stream), [1], "all or nothing");

    pages.store(0, Ordering::SeqCst);
    while next_commit(&mut store).await.committed.sequence < Sequence(501) {}
    assert_eq!(handle.figures().trouble, None);
    assert_eq!(sequences(&files.path, stream), (1..=501).collect::<Vec<_>>());
    close(store, PATIENCE).await;
}

#[tokio::test]
async fn a_locked_database_delays_and_loses_nothing() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let mut store = Store::open(&files.path).unwrap();
    let other = rusqlite::Connection::open(&files.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let handle = store.handle();
    handle.slot().await.unwrap().store(delivery(stream, epoch, 0, 2));
    wait_for("an attempt that fails", || handle.figures().retries_total >= 1);
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(next_commit(&mut store).await.committed.sequence, Sequence(2));
    assert_eq!(sequences(&files.path, stream), [1, 2]);
    close(store, PATIENCE).await;
}

#[tokio::test]
async fn closing_stores_what_is_queued_and_turns_others_away() {
    let files = files();
    let (stream, epoch) = (StreamId::random(), Epoch::first());
    let store = Store::open(&files.path).unwrap();
    let handle = store.handle();
    for after in 0..50 {
        handle.slot().await.unwrap().store(delivery(stream, epoch, after, after + 1));
    }
    close(store, PATIENCE).await;
    assert_eq!(sequences(&files.path, stream), (1..=50).collect::<Vec<_>>());
    assert_eq!(handle.slot().await.err(), Some(StoreClosed));
}

#[tokio::test]
async fn closing_gives_up_on_a_disk_that_stays_full() {
    let files = files();
    let database = Database::open(&files.path).unwrap();
    database.page_limit.store(8, Ordering::SeqCst);
    let store = Store::start(database).unwrap();
    let stream = StreamId::random();
    store.handle().slot().await.unwrap().store(delivery(stream, Epoch::first(), 0, 500));
    timeout(PATIENCE, close(store, Duration::from_millis(20))).await.expect("closing ends");
    assert!(sequences(&files.path, stream).is_empty());
}

#[test]
fn reading_filters_and_limits() {
    let files = files();
    let stream = StreamId::random();
    let mut database = Database::open(&files.path).unwrap();
    let mut mixed = delivery(stream, Epoch::first(), 0, 6);
    mixed.entries[3].topic = Topic::new(topics::PROCESS_STOP).unwrap();
    // Arrived fourth, happened first.
    mixed.entries[3].timestamp_ns = 5;
    database.apply(&[events(mixed)]).unwrap();
    let reader = EventReader::open(&files.path).unwrap();
    let read = |filter: &EventFilter, limit: Option<usize>| {
        let mut found = Vec::new();
        let each = |event: StoredEvent| {
            found.push(event.sequence);
            std::ops::ControlFlow::Continue(())
        };
        reader.until(i64::MAX, filter, limit, each).unwrap();
        found
    };
    let all = EventFilter::default();
    assert_eq!(read(&all, None), [4, 1, 2, 3, 5, 6]);
    assert_eq!(read(&all, Some(2)), [5, 6]);
    assert_eq!(read(&all, Some(0)), [0i64; 0]);
    let topic = |pattern| EventFilter {
        topic: Some(TopicPattern::new(pattern).unwrap()),
        ..EventFilter::default()
    };
    assert_eq!(read(&topic("events.process.stop"), None), [4]);
    assert_eq!(read(&topic("events.*.stop"), None), [4]);
    assert_eq!(read(&topic("events.*"), None), [0i64; 0], "one segment, not the rest");
    assert_eq!(read(&topic("events.#"), Some(1)), [6]);
    let pid = EventFilter { pid: Some(1003), ..EventFilter::default() };
    assert_eq!(read(&pid, None), [3]);
    let since = EventFilter { since_ns: Some(1_005), ..EventFilter::default() };
    assert_eq!(read(&since, None), [5, 6]);
    let mut arrived = Vec::new();
    let each = |event: StoredEvent| {
        arrived.push(event.sequence);
        std::ops::ControlFlow::Continue(())
    };
    reader.arrived(2, 5, &all, each).unwrap();
    assert_eq!(arrived, [3, 4, 5]);
    assert_eq!(reader.last_rowid().unwrap(), 6);
}
