//! Random histories of one log against a list of what was appended.
#![cfg(test)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use daemoneye_lib::stream::{Epoch, Sequence};
use procmond::wal::{Entry, WalOptions, WriteAheadLog};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Action {
    /// Records with payloads of these lengths, in one submission.
    Append(Vec<usize>),
    /// Acknowledge this share of what is there, in percent.
    Acknowledge(u64),
    /// Close cleanly and open.
    Reopen,
    /// Open what is on the disk without a clean close.
    Crash,
    /// The same with this many bytes cut off the end.
    CrashTorn(u64),
    /// The same with these bytes after the end.
    CrashGarbage(Vec<u8>),
    /// Begin a new stream.
    NewStream,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop::collection::vec(0usize..700, 1..20).prop_map(Action::Append),
        3 => (0u64..=100).prop_map(Action::Acknowledge),
        1 => Just(Action::Reopen),
        1 => Just(Action::Crash),
        1 => (1u64..300).prop_map(Action::CrashTorn),
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Action::CrashGarbage),
        1 => Just(Action::NewStream),
    ]
}

/// A copy of a live log as it was at one moment: segments may be begun and deleted meanwhile.
fn copy_of(live: &Path) -> tempfile::TempDir {
    let list = || {
        let names = fs::read_dir(live).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    loop {
        let copy = tempfile::tempdir().unwrap();
        let names = list();
        // The oldest first: the watermark that lets one go stands in a later one.
        let copied =
            names.iter().all(|name| fs::copy(live.join(name), copy.path().join(name)).is_ok());
        if copied && list() == names {
            return copy;
        }
    }
}

/// A record as the model knows it.
#[derive(Debug, Clone)]
struct Known {
    kind: u8,
    timestamp_ns: i64,
    payload: Vec<u8>,
    epoch: Epoch,
}

struct Model {
    dir: tempfile::TempDir,
    log: WriteAheadLog,
    /// Record n is at n - 1.
    records: Vec<Known>,
    watermark: u64,
    appended: i64,
}

fn options() -> WalOptions {
    WalOptions { segment_bytes: 4096, commit_delay: Duration::ZERO, ..WalOptions::default() }
}

fn last_segment(dir: &Path) -> std::path::PathBuf {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .max()
        .unwrap()
}

impl Model {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = WriteAheadLog::open(dir.path(), options()).unwrap();
        Self { dir, log, records: Vec::new(), watermark: 0, appended: 0 }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Append(lengths) => self.append(lengths),
            Action::Acknowledge(percent) => {
                let open = self.records.len() as u64 - self.watermark;
                self.watermark += open * percent / 100;
                self.log.acknowledge(Sequence(self.watermark)).unwrap();
                self.flush();
            }
            Action::Reopen => {
                self.log.close().unwrap();
                let (log, recovery) = WriteAheadLog::open(self.dir.path(), options()).unwrap();
                assert!(recovery.torn.is_none());
                self.reopened(log, 0);
            }
            Action::Crash => self.crash(|_| {}, 0),
            Action::CrashTorn(bytes) => self.crash(
                |path| {
                    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                    let length = file.metadata().unwrap().len();
                    // The header is there before the segment has its name.
                    file.set_len(length.saturating_sub(*bytes).max(224)).unwrap();
                },
                *bytes,
            ),
            Action::CrashGarbage(garbage) => self.crash(
                |path| {
                    let mut bytes = fs::read(path).unwrap();
                    bytes.extend_from_slice(garbage);
                    fs::write(path, bytes).unwrap();
                },
                0,
            ),
            Action::NewStream => {
                let old = self.log.stream();
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let stream =
                    runtime.block_on(self.log.begin_stream(Some((9, -1, b"new")))).unwrap();
                assert_ne!(stream, old);
                let epoch = self.log.epoch();
                let mut records = self.records.split_off(self.watermark as usize);
                let first = Known { kind: 9, timestamp_ns: -1, payload: b"new".to_vec(), epoch };
                records.insert(0, first);
                records.iter_mut().for_each(|record| record.epoch = epoch);
                self.records = records;
                self.watermark = 0;
            }
        }
        self.check();
    }

    fn append(&mut self, lengths: &[usize]) {
        let payloads: Vec<_> = lengths
            .iter()
            .map(|&length| {
                self.appended += 1;
                vec![self.appended as u8; length]
            })
            .collect();
        let epoch = self.log.epoch();
        let mut sequence = self.log.last();
        for payload in payloads {
            let (kind, timestamp_ns) = (1 + (self.appended % 200) as u8, self.appended);
            sequence = self.log.submit(kind, timestamp_ns, &payload).unwrap();
            self.records.push(Known { kind, timestamp_ns, payload, epoch });
            assert_eq!(sequence.0, self.records.len() as u64);
        }
        let receipt = self.log.durable_blocking(sequence).unwrap();
        assert_eq!((receipt.sequence, receipt.epoch), (sequence, epoch));
    }

    fn flush(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.log.flush()).unwrap();
    }

    /// What was durable, copied elsewhere and hurt.
    fn crash(&mut self, hurt: impl FnOnce(&Path), cut: u64) {
        let dir = copy_of(self.dir.path());
        hurt(&last_segment(dir.path()));
        let (log, recovery) = WriteAheadLog::open(dir.path(), options()).unwrap();
        // The bytes cut off may have been the only ones that knew of an acknowledgement.
        let known = cut > 0 && recovery.damage.iter().all(|lost| lost.last.0 <= self.watermark);
        assert!(known || recovery.damage.is_empty(), "{:?}", recovery.damage);
        self.dir = dir;
        self.reopened(log, cut);
    }

    fn reopened(&mut self, log: WriteAheadLog, cut: u64) {
        let last = log.last().0;
        let before = self.records.len() as u64;
        if cut == 0 {
            assert_eq!(last, before);
            assert_eq!(log.watermark().0, self.watermark);
        } else {
            // No record is shorter than its frame's 32 bytes.
            assert!(last <= before && before - last <= cut / 32 + 1, "{before} to {last}");
            assert!(log.watermark().0 <= self.watermark);
            // What said that these were acknowledged was cut off, but they may be deleted.
            self.watermark = self.watermark.min(last);
        }
        self.records.truncate(last as usize);
        self.log = log;
        self.log.acknowledge(Sequence(self.watermark)).unwrap();
        self.flush();
    }

    /// Everything not acknowledged is there, in order and as it was.
    fn check(&self) {
        assert_eq!(self.log.last().0, self.records.len() as u64);
        assert_eq!(self.log.last_durable(), self.log.last());
        assert_eq!(self.log.watermark().0, self.watermark);
        let mut reader = self.log.reader(Sequence(self.watermark + 1));
        let mut next = self.watermark;
        loop {
            let batch = reader.next_batch(3000).unwrap();
            if batch.is_empty() {
                break;
            }
            for entry in batch {
                let Entry::Record(record) = entry else { panic!("{entry:?}") };
                let known = &self.records[next as usize];
                next += 1;
                assert_eq!(record.sequence, Sequence(next));
                assert_eq!(record.kind, known.kind);
                assert_eq!(record.timestamp_ns, known.timestamp_ns);
                assert_eq!(record.payload, known.payload);
                assert_eq!(record.epoch, known.epoch);
                assert_eq!(self.log.epoch_at(record.sequence), Some(known.epoch));
            }
        }
        assert_eq!(next, self.records.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_the_list_of_what_was_appended(
        actions in prop::collection::vec(action(), 1..25),
    ) {
        let mut model = Model::new();
        for action in &actions {
            model.act(action);
        }
    }
}
