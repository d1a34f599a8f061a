//! A whole log directory that something has happened to: opened, read, appended to, opened again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{Entry, LostReason, Receipt, WalError, WalOptions, WriteAheadLog};

use crate::allocations::bounded;
use crate::decoder::{self, Refusal, le};
use crate::input::Input;
use crate::mutate::mutate;
use crate::scratch::Scratch;
use crate::written::{self, Label, Log, Record};

pub fn recovery(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => hostile(&mut input),
        _ => damaged(&mut input),
    }
}

/// What is found in the files, by the document: what a reader has to return.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    records: BTreeMap<u64, Record>,
    /// Merged where they touch.
    lost: Vec<(u64, u64)>,
}

impl Account {
    fn lose(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        match self.lost.last_mut() {
            Some(before) if before.1 + 1 == first => before.1 = last,
            _ => self.lost.push((first, last)),
        }
    }
}

/// Segments as a writer wrote them, and then a disk and its administrator at work.
fn damaged(input: &mut Input<'_>) {
    let log = written::log(input, 4);
    let mut files: BTreeMap<String, Vec<u8>> =
        log.files.iter().map(|file| (file.name(), file.bytes.clone())).collect();
    let untouched = input.is_done();
    for _ in 0..4 {
        if input.is_done() {
            break;
        }
        befall(input, &log, &mut files);
    }
    let (expected, last) = by_the_document(&files);
    let dir = lay(&files);
    let opened = open(&dir).expect("damage is no error");
    let (wal, recovery) = opened;
    let found = read(&wal);
    assert_eq!(found, expected);
    for (sequence, record) in &found.records {
        assert_eq!(log.records.get(sequence), Some(record), "as it was written");
    }
    assert_eq!(recovery.last.0, last);
    if untouched {
        assert!(
            recovery.torn.is_none() && recovery.damage.is_empty() && recovery.foreign.is_empty()
        );
        assert_eq!(found.records, log.records);
    }
    for path in &recovery.foreign {
        let name = path.file_name().and_then(|name| name.to_str()).expect("our own names");
        if let Some(bytes) = files.get(name) {
            assert_eq!(&fs::read(path).expect("it is left alone"), bytes);
        }
    }
    go_on(&dir, wal, &found, last);
}

/// Something happens to a file.
fn befall(input: &mut Input<'_>, log: &Log, files: &mut BTreeMap<String, Vec<u8>>) {
    let action = input.u8() % 12;
    let names: Vec<_> = files.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = names[input.below(names.len())].clone();
    let number = log.files[0].number + input.below(6) as u64;
    match action {
        // A file is gone.
        0 => {
            files.remove(&name);
        }
        // Two files have changed their names.
        1 => {
            let other = names[input.below(names.len())].clone();
            let (Some(one), Some(two)) = (files.get(&name).cloned(), files.get(&other).cloned())
            else {
                return;
            };
            files.insert(other, one);
            files.insert(name, two);
        }
        // A copy under another number.
        2 => {
            if let Some(bytes) = files.get(&name).cloned() {
                files.entry(written::name(number)).or_insert(bytes);
            }
        }
        // A segment that was not finished.
        3 => {
            if let Some(bytes) = files.get(&name).cloned() {
                files.insert(format!("{}.new", written::name(number)), bytes);
            }
        }
        // A file of another log.
        4 => {
            let label = Label {
                stream: [input.u8(); 16],
                replaces: [0; 16],
                number,
                salt: 3,
                codec: 1,
                rest: 0,
                first: 1,
                watermark: 0,
                watermark_epoch: 0,
                epoch: 1,
                epoch_first: 1,
            };
            files.entry(written::name(number)).or_insert(label.header(1, 104));
        }
        // Files that are none of ours.
        5 => {
            files.insert("procmond-1.wal".to_owned(), vec![1; 300]);
            files.insert("procmond-00000.wal".to_owned(), vec![2; 300]);
        }
        // Bytes change.
        _ => {
            if let Some(bytes) = files.get_mut(&name) {
                mutate(input, bytes, 2);
            }
        }
    }
}

/// What the document says of a directory: what is read from it, and its last sequence.
fn by_the_document<'a>(files: &'a BTreeMap<String, Vec<u8>>) -> (Account, u64) {
    let number = |name: &str| {
        let digits = name.strip_prefix("procmond-")?.strip_suffix(".wal")?;
        let number = digits.parse().ok().filter(|&number| number > 0)?;
        (written::name(number) == name).then_some(number)
    };
    let readable = |label: Result<&'a [u8], Refusal>| match label {
        Ok(label) => Some(label),
        Err(Refusal::Unreadable) => None,
        Err(Refusal::Newer) => panic!("nobody wrote that"),
    };
    let mut segments: Vec<_> = files
        .iter()
        .filter_map(|(name, bytes)| {
            number(name).map(|number| (number, bytes, readable(decoder::label(bytes, number))))
        })
        .collect();
    segments.sort_by_key(|segment| segment.0);
    let stream_of = |label: &[u8]| label[..16].to_vec();
    let vouched: Vec<_> = segments
        .iter()
        .filter_map(|(number, bytes, _)| decoder::header(bytes, *number).ok()?.map(stream_of))
        .collect();
    for (number, bytes, label) in &mut segments {
        if !vouched.is_empty() && label.is_some_and(|label| !vouched.contains(&stream_of(label))) {
            *label = readable(decoder::label_of_controls(bytes, *number, &vouched));
        }
    }
    let stream = segments.iter().rev().find_map(|(_, _, label)| label.map(stream_of));
    let Some(stream) = stream else { return Default::default() };
    segments.retain(|(_, _, label)| label.is_none_or(|label| stream_of(label) == stream));

    let mut account = Account::default();
    // Segments missing between, of which only what lies above the watermark is a loss.
    let mut missing = Vec::new();
    let mut last = None;
    let mut watermark = 0;
    // Records that may have stood at a damaged end.
    let mut beyond = 0;
    let first_of = |label: &[u8]| le(label, 48, 8);
    for (index, (number, bytes, label)) in segments.iter().enumerate() {
        let later = segments.get(index + 1);
        let next_known = segments[index + 1..].iter().find_map(|later| later.2.map(first_of));
        let Some(label) = *label else {
            // A file has room for so many records and no more.
            let room = (bytes.len() as u64).saturating_sub(224) / 32;
            let mut first = last.unwrap_or(0) + 1;
            let upto = next_known.map_or(first - 1 + room + beyond, |next| next - 1);
            beyond = 0;
            if last.is_none() && next_known.is_some() {
                let begins = first.max((upto + 1).saturating_sub(room));
                if begins <= upto {
                    missing.push((first, begins - 1));
                    account.lose(first, begins - 1);
                }
                first = begins;
            }
            account.lose(first, upto);
            last = last.max((first <= upto).then_some(upto));
            continue;
        };
        // Also before the oldest: deletion is from the front, and of what was acknowledged.
        let (expected, first) = (last.unwrap_or(0) + 1, first_of(label));
        if first > expected {
            missing.push((expected, first - 1));
            account.lose(expected, first - 1);
        }
        let next = later.filter(|later| later.0 == number + 1).and_then(|later| later.2);
        let next_first = match (next, later) {
            (Some(next), _) => Some(first_of(next).max(first)),
            (None, Some(_)) => Some(u64::MAX),
            (None, None) => None,
        };
        let segment = decoder::read(bytes, label, next_first);
        beyond = if next.is_none() { (bytes.len() - segment.torn.start) as u64 / 32 } else { 0 };
        watermark = watermark.max(segment.watermark);
        for entry in &segment.entries {
            match *entry {
                decoder::Entry::Lost { first, last, .. } => account.lose(first, last),
                decoder::Entry::Record(frame) => {
                    let payload = frame.payload.to_vec();
                    let record = Record { kind: frame.kind, time_ns: frame.time_ns, payload };
                    account.records.insert(frame.sequence, record);
                }
            }
        }
        last = last.max(Some(segment.last));
    }
    for (first, upto) in missing.into_iter().filter(|(first, _)| *first <= watermark) {
        account.forgive(first, upto.min(watermark));
    }
    (account, last.unwrap_or(0).max(watermark))
}

impl Account {
    fn above(&self, watermark: u64) -> Self {
        let records = self.records.range(watermark + 1..);
        let lost = self.lost.iter().filter(|(_, last)| *last > watermark);
        Self {
            records: records.map(|(sequence, record)| (*sequence, record.clone())).collect(),
            lost: lost.map(|&(first, last)| (first.max(watermark + 1), last)).collect(),
        }
    }

    /// These were acknowledged, so that they are gone is no loss.
    fn forgive(&mut self, first: u64, upto: u64) {
        let mut kept = Vec::new();
        for (from, to) in std::mem::take(&mut self.lost) {
            if from < first {
                kept.push((from, to.min(first - 1)));
            }
            if to > upto {
                kept.push((from.max(upto + 1), to));
            }
        }
        kept.retain(|(from, to)| from <= to);
        kept.dedup();
        self.lost = kept;
    }
}

/// Labels and frames with right checksums that no writer would write, and bytes at random.
fn hostile(input: &mut Input<'_>) {
    let mut files = BTreeMap::new();
    for _ in 0..1 + input.below(3) {
        let odd = input.u8();
        let number = match odd % 8 {
            0 => 999_999_999_999,
            1 => input.number(5),
            _ => 1 + u64::from(input.u8() % 5),
        };
        let label = Label {
            stream: [1 + input.u8() % 2; 16],
            replaces: [input.u8() % 3; 16],
            number,
            salt: 7,
            codec: 1 + u16::from(odd == 255),
            rest: u16::from(input.u8() % 3),
            first: input.odd(),
            watermark: input.odd(),
            watermark_epoch: input.odd(),
            epoch: input.odd(),
            epoch_first: input.odd(),
        };
        let mut bytes = label.header(1 + u16::from(odd == 254), 104);
        let mut sequence = label.first;
        for _ in 0..input.below(6) {
            let choice = input.u8();
            let before_in_commit = if choice & 4 == 0 { 0 } else { input.odd() };
            let payload = match choice & 3 {
                0 => Label { watermark: input.odd(), ..label.clone() }.bytes(),
                _ => vec![choice; 10],
            };
            let kind = choice & 3;
            bytes.extend(written::frame(7, kind, before_in_commit, sequence, 1, &payload));
            sequence = match choice >> 4 {
                0 => input.odd(),
                1 => sequence.wrapping_add(u64::from(choice)),
                _ => sequence.wrapping_add(u64::from(kind != 0)),
            };
        }
        let name = written::name(number);
        let name = if odd & 0x30 == 0x30 { format!("{name}.next") } else { name };
        mutate(input, &mut bytes, usize::from(odd >> 7));
        files.insert(name, bytes);
    }
    let dir = lay(&files);
    match open(&dir) {
        Ok((wal, recovery)) => {
            let found = read(&wal);
            // A writer of ours stays far below the highest sequence there can be.
            if recovery.last.0 < 1 << 61 {
                go_on(&dir, wal, &found, recovery.last.0);
            }
        }
        Err(WalError::UnknownFormat { .. }) => {}
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
        }
    }
}

fn lay(files: &BTreeMap<String, Vec<u8>>) -> Scratch {
    let dir = Scratch::new();
    if std::env::var_os("FUZZ_SHOW").is_some() {
        show(files);
    }
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).expect("there is room");
    }
    dir
}

/// For people who look into a find.
fn show(files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        eprintln!("{name}: {} bytes, {:?}", bytes.len(), bytes.get(16..104).map(label_text));
        for frame in (0..bytes.len()).filter_map(|at| decoder::frame(bytes, at)) {
            let label = (frame.payload.len() == 88).then(|| label_text(frame.payload));
            eprintln!(
                "  {:?} kind {} sequence {} behind {} salt {:x} {label:?}",
                frame.span, frame.kind, frame.sequence, frame.before_in_commit, frame.salt
            );
        }
    }
}

fn label_text(label: &[u8]) -> String {
    let fields = [40, 48, 56, 64, 72, 80].map(|at| le(label, at, if at == 40 { 4 } else { 8 }));
    format!(
        "stream {:?} replaces {:?} number {} rest {} salt/first/watermark/epoch/epoch/first {fields:x?}",
        &label[..2],
        &label[16..18],
        le(label, 32, 8),
        le(label, 46, 2)
    )
}

fn open(dir: &Path) -> Result<(WriteAheadLog, procmond::wal::Recovery), WalError> {
    let options = WalOptions {
        segment_bytes: 4096,
        commit_delay: Duration::ZERO,
        queue_bytes: 1 << 16,
        ..WalOptions::default()
    };
    bounded(1 << 20, || WriteAheadLog::open(dir, options))
}

/// Everything a reader returns, in order and without a hole.
fn read(wal: &WriteAheadLog) -> Account {
    let mut account = Account::default();
    let mut reader = wal.reader(Sequence::FIRST);
    let mut before = 0;
    loop {
        let batch = reader.next_batch(1 << 10).expect("the files can be read");
        if batch.is_empty() {
            break;
        }
        for entry in batch {
            match entry {
                Entry::Record(record) => {
                    assert!(record.sequence.0 > before, "in order, none twice");
                    before = record.sequence.0;
                    let payload = record.payload.to_vec();
                    let (kind, time_ns) = (record.kind, record.timestamp_ns);
                    account.records.insert(before, Record { kind, time_ns, payload });
                }
                Entry::Lost { first, last, reason } => {
                    assert!(first.0 > before && last >= first, "in order, none twice");
                    assert!(matches!(reason, LostReason::Damaged | LostReason::Missing));
                    before = last.0;
                    account.lose(first.0, last.0);
                }
            }
        }
    }
    assert_eq!(reader.position(), wal.last_durable().next(), "nothing left out at the end");
    account
}

/// Appends, reads back, and opens once more: nothing has changed but what was appended.
fn go_on(dir: &Path, wal: WriteAheadLog, found: &Account, last: u64) {
    // What was acknowledged may be deleted meanwhile.
    let watermark = wal.watermark().0;
    let mut expected = found.above(watermark);
    let mut epoch = None;
    for opening in 0..2_u8 {
        let (wal, recovered) = match opening {
            0 => (wal.clone(), last),
            _ => {
                wal.close().expect("closes");
                let (wal, recovery) = match open(dir) {
                    // The first opening had the last number there is.
                    Err(WalError::NumbersSpent { .. }) => return,
                    opened => opened.expect("opens again"),
                };
                assert!(recovery.torn.is_none(), "{recovery:?}");
                (wal, recovery.last.0)
            }
        };
        assert_eq!(recovered, last + u64::from(opening) * 3);
        for number in 1..=3 {
            let payload = vec![opening; number as usize];
            let sequence = wal.submit(9, -1, &payload).expect("there is room");
            assert_eq!(sequence.0, recovered + number, "no sequence twice, none left out");
            expected.records.insert(sequence.0, Record { kind: 9, time_ns: -1, payload });
        }
        let Receipt { epoch: ours, .. } =
            wal.durable_blocking(Sequence(recovered + 3)).expect("becomes durable");
        let later = epoch.is_none_or(|before| before < ours || ours.count() == u32::MAX);
        assert!(later, "each opening has a later epoch, until they have been counted out");
        epoch = Some(ours);
        assert_eq!(read(&wal).above(watermark), expected);
        wal.close().expect("closes");
    }
}
