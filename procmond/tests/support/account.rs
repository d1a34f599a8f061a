//! What a log has said of each record given to it, and whether it was true.

use std::collections::BTreeMap;
use std::path::Path;

use procmond::wal::{Entry, NewRecord, WalError, WalOptions, WriteAheadLog};

/// What a log says of a record, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Appended {
    /// It has this sequence, and is durable.
    Receipt(u64),
    /// It has this sequence, and will be durable when the log can write.
    Kept(u64, String),
    /// It was not taken.
    Refused(String),
}

/// Appends records and waits for what becomes of them.
pub(crate) fn append(log: &WriteAheadLog, records: &[NewRecord<'_>]) -> Appended {
    let passing = |error: WalError| {
        assert!(error.is_passing(), "{error}");
        error.to_string()
    };
    match log.submit_all(records) {
        Err(error) => Appended::Refused(passing(error)),
        Ok(sequence) => match log.durable_blocking(sequence) {
            Ok(receipt) => Appended::Receipt(receipt.sequence.0),
            Err(error) => Appended::Kept(sequence.0, passing(error)),
        },
    }
}

/// A log somewhere.
pub(crate) trait Appends {
    fn append(&mut self, id: u64, bytes: usize) -> Appended;
}

impl Appends for &WriteAheadLog {
    fn append(&mut self, id: u64, bytes: usize) -> Appended {
        let payload = &body(id, bytes);
        append(self, &[NewRecord { kind: 1, timestamp_ns: id as i64, payload }])
    }
}

/// What a record says.
pub(crate) fn body(id: u64, bytes: usize) -> Vec<u8> {
    id.to_le_bytes().iter().copied().cycle().take(bytes).collect()
}

/// The records given to one log.
#[derive(Default)]
pub(crate) struct Account {
    last_id: u64,
    /// Receipts: ids by sequence.
    pub(crate) receipts: BTreeMap<u64, u64>,
    /// What was taken and is to be durable when the log can write.
    pub(crate) kept: BTreeMap<u64, u64>,
    pub(crate) refused: u64,
}

impl Account {
    /// Appends a record of this length, and notes what is said of it.
    pub(crate) fn append(&mut self, log: &mut impl Appends, bytes: usize) -> Appended {
        self.last_id += 1;
        let said = log.append(self.last_id, bytes);
        let earlier = match &said {
            Appended::Receipt(sequence) => self.receipts.insert(*sequence, self.last_id),
            Appended::Kept(sequence, _) => self.kept.insert(*sequence, self.last_id),
            Appended::Refused(_) => {
                self.refused += 1;
                None
            }
        };
        assert_eq!(earlier, None, "{said:?}: the sequence was given before");
        said
    }

    /// Appends records that all get their receipts.
    pub(crate) fn append_receipted(&mut self, log: &mut impl Appends, bytes: usize, count: u64) {
        for _ in 0..count {
            let said = self.append(log, bytes);
            assert!(matches!(said, Appended::Receipt(_)), "{said:?}");
        }
    }

    /// Appends records until one gets no receipt. That one is kept; why it has to wait is returned.
    pub(crate) fn append_until_kept(&mut self, log: &mut impl Appends, bytes: usize) -> String {
        const ENOUGH: usize = 10_000;
        for _ in 0..ENOUGH {
            match self.append(log, bytes) {
                Appended::Receipt(_) => {}
                Appended::Kept(_, why) => return why,
                Appended::Refused(why) => panic!("refused before anything failed: {why}"),
            }
        }
        panic!("{ENOUGH} records of {bytes} bytes were taken");
    }

    /// Appends records that are all refused; why.
    pub(crate) fn append_refused(&mut self, log: &mut impl Appends, count: u64) -> String {
        let mut why = String::new();
        for _ in 0..count {
            match self.append(log, 10) {
                Appended::Refused(said) => why = said,
                said => panic!("{said:?}"),
            }
        }
        why
    }

    /// Opens the log, which nobody else has open, and compares: every receipt was true and so, with
    /// `recovered`, what was said of the records kept; nothing else is there and nothing twice.
    pub(crate) fn check(&self, dir: &Path, recovered: bool) {
        let (log, recovery) = WriteAheadLog::open(dir, WalOptions::default()).unwrap();
        assert!(!recovery.new_stream, "{dir:?} has another log");
        assert!(recovery.damage.is_empty(), "{:?}", recovery.damage);
        assert!(recovery.foreign.is_empty(), "{:?}", recovery.foreign);
        self.check_records(&log, recovered);
        log.close().unwrap();
    }

    /// The same with an open log: what it has durably.
    pub(crate) fn check_records(&self, log: &WriteAheadLog, recovered: bool) {
        let watermark = log.watermark().0;
        let found = read(log);
        let kept = self.kept.iter().filter(|_| recovered);
        for (sequence, id) in self.receipts.iter().chain(kept) {
            if *sequence > watermark {
                assert_eq!(found.get(sequence), Some(id), "{sequence}, {} found", found.len());
            }
        }
        for (sequence, id) in &found {
            let given = self.receipts.get(sequence).or_else(|| self.kept.get(sequence));
            assert_eq!(given, Some(id), "{sequence} is of nobody");
        }
    }

    /// A crash now: whoever opens what is on the disk finds what had a receipt.
    pub(crate) fn check_copy(&self, dir: &Path) {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        self.check(copy.path(), false);
    }
}

/// The ids of all records by sequence, contiguous and as they were written.
fn read(log: &WriteAheadLog) -> BTreeMap<u64, u64> {
    let mut expected = log.watermark().next();
    let mut reader = log.reader(expected);
    let mut found = BTreeMap::new();
    loop {
        let batch = reader.next_batch(1 << 20).unwrap();
        if batch.is_empty() {
            assert_eq!(expected.prev(), log.last_durable());
            return found;
        }
        for entry in batch {
            let Entry::Record(record) = entry else { panic!("{entry:?}") };
            assert_eq!(record.sequence, expected);
            let id = record.timestamp_ns as u64;
            assert_eq!(record.payload, body(id, record.payload.len()), "record {expected}");
            found.insert(expected.0, id);
            expected = expected.next();
        }
    }
}
