//! W4 under random damage: bits flipped, blocks zeroed, blocks of other files in their place, ends
//! cut off, in a log that was closed, killed or cut off from power.
//!
//! What must survive is worked out from the bytes alone: every whole record whose bytes are as they
//! were, in a segment of which a header or a control record is as it was. In the newest segment a
//! hole that no later frame proves to have been durable ends the log, because it looks like a
//! commit that a crash has torn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemoneye_lib::stream::{Epoch, Sequence};

use super::super::format::{FrameHead, HEADER_BYTES, KIND_CONTROL};
use super::super::scan::{Accept, Scanner, Step};
use super::super::segment::{self, FileName};
use super::super::storage::Storage;
use super::super::storage::sim::{Dice, SECTOR_BYTES, SimDisk};
use super::super::{Entry, NewRecord, Recovery, WalOptions, WriteAheadLog};
use super::expect::{Checked, Expect, must, torn_tail_is_kept};
use super::history::{Action, How};
use super::number;
use super::run::{End, Run};

/// What a round came to.
#[derive(Debug, Default)]
struct Tally {
    damages: u64,
    lost: u64,
    survived: u64,
    /// Logs that end earlier, because what was damaged looks like a torn commit.
    cut: u64,
    /// Segments of which nothing says any more what they are.
    nameless: u64,
    /// Logs without a header.
    headless: u64,
    /// Segments whose header is gone and that are known all the same.
    mended: u64,
}

/// A segment as it was before it was damaged.
struct Sound {
    number: u64,
    path: PathBuf,
    bytes: Vec<u8>,
    first: Sequence,
    watermark: Sequence,
    frames: Vec<(u64, FrameHead)>,
}

/// A segment as it is after.
struct Hurt<'a> {
    sound: &'a Sound,
    /// The frames that are as they were.
    frames: Vec<FrameHead>,
    header: bool,
    /// Something says what it is.
    named: bool,
    cut: bool,
}

/// What must be found.
struct Answer {
    /// `None` if the newest segment is nobody's: its records may have been any.
    last: Option<Sequence>,
    /// The whole records.
    records: Vec<Sequence>,
    watermark_min: Sequence,
}

/// Who has which sequence: a record, or nobody.
type Account = BTreeMap<u64, Option<(u8, i64, Vec<u8>, Epoch)>>;

fn sound(disk: &SimDisk, dir: &Path) -> Vec<Sound> {
    let disk = disk.snapshot();
    let mut segments = Vec::new();
    for name in disk.names(dir) {
        let Some(FileName::Segment(number)) = FileName::parse(&name) else { continue };
        let path = dir.join(&name);
        let bytes = disk.bytes(&path).unwrap();
        let file = disk.open(&path, false).unwrap();
        let label = segment::read_label(&*file, &path, number).unwrap().unwrap();
        let accept = Accept::Of { salt: label.salt, first: label.first };
        let mut scanner = Scanner::new(HEADER_BYTES as u64);
        let mut frames = Vec::new();
        loop {
            match scanner.step(&*file, accept, bytes.len() as u64).unwrap() {
                Step::Frame { offset, head } => frames.push((offset, head)),
                Step::Damage { .. } => {}
                Step::Tail { .. } => break,
            }
        }
        let (first, watermark) = (label.first, label.watermark);
        segments.push(Sound { number, path, bytes, first, watermark, frames });
    }
    segments
}

impl Hurt<'_> {
    fn look<'a>(disk: &SimDisk, sound: &'a Sound) -> Option<Hurt<'a>> {
        let now = disk.bytes(&sound.path)?;
        let same = |from: usize, to: usize| now.get(from..to) == sound.bytes.get(from..to);
        let whole = |(offset, head): &&(u64, FrameHead)| {
            same(*offset as usize, *offset as usize + head.frame_bytes())
        };
        let frames: Vec<_> = sound.frames.iter().filter(whole).map(|(_, head)| *head).collect();
        let header = same(0, HEADER_BYTES);
        let named = header || frames.iter().any(|head| head.kind == KIND_CONTROL);
        let cut = now.len() < sound.bytes.len();
        Some(Hurt { sound, frames, header, named, cut })
    }

    fn records_upto(&self, last: Sequence) -> impl Iterator<Item = Sequence> {
        let records = self.frames.iter().filter(|head| head.kind != KIND_CONTROL);
        records.map(|head| head.sequence).filter(move |&sequence| sequence <= last)
    }

    /// The last record that counts, and the last before anything that looks torn.
    fn end(&self) -> (Sequence, Sequence) {
        let proven = self.frames.iter().map(FrameHead::proves).max().unwrap_or_default();
        let mut seen = self.sound.first.prev();
        for head in &self.frames {
            let hole_upto = head.place().prev();
            if hole_upto > seen && hole_upto > proven {
                return (seen.max(proven), seen);
            }
            seen = seen.max(head.sequence);
        }
        (seen, seen)
    }
}

/// Whether a file was cut short of those that might say where the log ends.
fn end_is_cut(segments: &[Hurt<'_>]) -> bool {
    let named = segments.iter().rposition(|segment| segment.named).unwrap_or_default();
    segments[named..].iter().any(|segment| segment.cut)
}

fn answer(segments: &[Hurt<'_>]) -> Answer {
    let mut records = Vec::new();
    let mut last = None;
    for (at, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.named) {
        let newest = at + 1 == segments.len();
        let next = segments
            .get(at + 1)
            .filter(|next| next.named && next.sound.number == segment.sound.number + 1);
        let upto = match next {
            Some(next) => next.sound.first.prev(),
            None if newest => {
                let (end, whole) = segment.end();
                last = Some(end);
                whole
            }
            None => Sequence(u64::MAX),
        };
        records.extend(segment.records_upto(upto));
    }
    let named = segments.iter().rev().find(|segment| segment.header);
    let watermark_min = named.map_or(Sequence::NONE, |segment| segment.sound.watermark);
    Answer { last, records, watermark_min }
}

/// What a reader is told of everything that was not acknowledged.
fn account(log: &WriteAheadLog) -> Checked<Account> {
    let mut account = Account::new();
    let mut reader = log.reader(log.watermark().next());
    loop {
        let batch = reader.next_batch(3000).map_err(|error| error.to_string())?;
        if batch.is_empty() {
            return Ok(account);
        }
        for entry in batch {
            let (first, last, what) = match entry {
                Entry::Record(it) => {
                    let what = (it.kind, it.timestamp_ns, it.payload.to_vec(), it.epoch);
                    (it.sequence, it.sequence, Some(what))
                }
                Entry::Lost { first, last, .. } => (first, last, None),
            };
            for sequence in first.0..=last.0 {
                must!(
                    account.insert(sequence, what.clone()).is_none(),
                    "{sequence} comes more than once"
                );
            }
        }
    }
}

fn hurt(disk: &SimDisk, segments: &[Sound], dice: &mut Dice) -> Vec<String> {
    let count = 1 + dice.below(5);
    let mut said = Vec::new();
    for _ in 0..count {
        let target = &segments[dice.below(segments.len() as u64) as usize];
        let other = &segments[dice.below(segments.len() as u64) as usize];
        let length = target.bytes.len() as u64;
        let at = match dice.below(6) {
            0 => dice.below(length.min(300)),
            1 => length - 1 - dice.below(length.min(300)),
            _ => dice.below(length),
        } as usize;
        let sector = at / SECTOR_BYTES * SECTOR_BYTES;
        let what = dice.below(12);
        let random = dice.next();
        disk.hurt(&target.path, |bytes| {
            let upto = (sector + SECTOR_BYTES).min(bytes.len());
            match what {
                // A bit.
                0..=4 if at < bytes.len() => bytes[at] ^= 1 << (random % 8),
                // A few bytes.
                5 | 6 if at < bytes.len() => {
                    let mut dice = Dice::new(random);
                    let upto = (at + 1 + dice.below(64) as usize).min(bytes.len());
                    bytes[at..upto].iter_mut().for_each(|byte| *byte = dice.next() as u8);
                }
                // A sector that was never written.
                7 | 8 if sector < bytes.len() => bytes[sector..upto].fill(0),
                // One that was written for another file.
                9 | 10 if sector < bytes.len() && other.path != target.path => {
                    let from = other.bytes.get(sector..).unwrap_or_default();
                    let count = from.len().min(upto - sector);
                    bytes[sector..sector + count].copy_from_slice(&from[..count]);
                }
                // The end.
                11 => bytes.truncate(at.max(1)),
                _ => {}
            }
        });
        said.push(format!("{what} at {at} of {}", target.number));
    }
    said
}

/// Opens a damaged log, and again, and checks that nothing is missing but what was damaged.
fn check(
    disk: &SimDisk,
    dir: &Path,
    options: &WalOptions,
    before: (&[Sound], &Expect),
    tally: &mut Tally,
) -> Checked<()> {
    let (segments, expect) = before;
    let segments: Vec<_> = segments.iter().filter_map(|sound| Hurt::look(disk, sound)).collect();
    let answer = answer(&segments);
    let as_it_was = disk.snapshot();
    let open = || -> Checked<(WriteAheadLog, Recovery)> {
        let disk = Arc::new(disk.clone());
        WriteAheadLog::open_on(disk, dir, options.clone()).map_err(|error| error.to_string())
    };
    let (log, recovery) = open()?;
    torn_tail_is_kept(&as_it_was, disk, &recovery, false)?;
    if !segments.iter().any(|segment| segment.named) && recovery.new_stream {
        must!(recovery.foreign.len() == segments.len(), "{recovery:?}");
        tally.nameless += segments.len() as u64;
        return Ok(());
    }
    if !segments.iter().any(|segment| segment.header) {
        // Nothing contradicts what a payload may say.
        tally.headless += 1;
        return Ok(());
    }
    must!(Some(log.stream()) == expect.stream, "the stream is another");
    let (last, watermark) = (log.last(), log.watermark());
    must!(
        watermark >= answer.watermark_min && watermark.0 <= expect.watermark_max,
        "the watermark is {watermark}"
    );
    match answer.last {
        Some(due) => {
            must!(last == due.max(watermark), "the log ends at {last}, not at {due}: {recovery:?}")
        }
        // What is left of a file that was cut short does not say how long that was.
        None => must!(
            last.0 >= expect.last() || end_is_cut(&segments),
            "it ends at {last} and may have had more"
        ),
    }
    let first = account(&log)?;
    for &sequence in answer.records.iter().filter(|&&sequence| sequence > watermark) {
        let known = &expect.records[sequence.0 as usize - 1];
        let due = (known.kind(), known.timestamp_ns(), known.payload());
        let found = first.get(&sequence.0).and_then(Option::as_ref);
        must!(
            found.is_some_and(|(kind, time, payload, epoch)| {
                (*kind, *time, payload) == (due.0, due.1, &due.2)
                    && known.epoch.is_none_or(|known| known == *epoch)
            }),
            "record {sequence} is whole and is not found: {found:?}\n{recovery:?}"
        );
    }
    for sequence in watermark.next().0..=last.0 {
        let whole = answer.records.contains(&Sequence(sequence));
        let found = first.get(&sequence);
        must!(found.is_some(), "{sequence} is passed over\n{recovery:?}");
        must!(found == Some(&None) || whole, "{sequence} is damaged and was found");
        tally.lost += u64::from(!whole);
        tally.survived += u64::from(whole);
    }
    for lost in &recovery.damage {
        let mut all = lost.first.0..=lost.last.0;
        must!(all.all(|sequence| first.get(&sequence) == Some(&None)), "{lost:?} is not lost");
    }
    log.close().map_err(|error| error.to_string())?;

    let (log, again) = open()?;
    must!(again.torn.is_none(), "W3: torn once more: {again:?}");
    must!(log.last() == last && log.watermark() == watermark, "then {recovery:?}, now {again:?}");
    let second = account(&log)?;
    must!(first == second, "the second account differs\nthen {recovery:?}\nnow {again:?}");
    let record = NewRecord { kind: 1, timestamp_ns: 0, payload: b"on it goes" };
    let receipt = log.append_blocking(&[record]).map_err(|error| error.to_string())?;
    must!(receipt.sequence == last.next(), "W6: {} follows {last}", receipt.sequence);

    tally.cut += u64::from(last.0 < expect.last());
    for segment in &segments {
        tally.nameless += u64::from(!segment.named);
        tally.mended += u64::from(segment.named && !segment.header);
    }
    Ok(())
}

/// A log of a few segments, and how it ended.
fn live(
    dice: &mut Dice,
    options: &WalOptions,
) -> Checked<(SimDisk, tempfile::TempDir, Expect, End)> {
    let mut run = Run::new(|_| options.clone(), dice.next());
    run.open(false)?;
    for _ in 0..4 + dice.below(10) {
        let lengths = (0..1 + dice.below(8)).map(|_| match dice.below(8) {
            0 => dice.below(3000) as u16,
            _ => dice.below(400) as u16,
        });
        let lengths = lengths.collect();
        let how = [How::Each, How::Together, How::Awaiting, How::Blocking][dice.below(4) as usize];
        run.act(&Action::Append(lengths, how))?;
        match dice.below(12) {
            0 => run.act(&Action::Acknowledge(dice.below(60) as u8))?,
            1 => run.act(&Action::Reopen)?,
            2 => run.act(&Action::PowerCut)?,
            _ => {}
        }
    }
    let end = match dice.below(3) {
        0 => End::Closed,
        1 => End::Killed,
        _ => {
            run.act(&Action::Append(vec![100, 700, 30, 200], How::NoWait))?;
            End::PowerCut
        }
    };
    let (disk, dir, expect) = run.leave(end)?;
    Ok((disk, dir, expect, end))
}

fn round(seed: u64, tally: &mut Tally) -> Checked {
    let mut dice = Dice::new(seed);
    let options = WalOptions {
        segment_bytes: [4096, 4096, 9000][dice.below(3) as usize],
        commit_delay: Duration::ZERO,
        prepare: dice.one_in(2),
        ..WalOptions::default()
    };
    let (disk, dir, mut expect, end) = live(&mut dice, &options)?;
    // What opening finds without damage is what there was.
    let copy = Arc::new(disk.snapshot());
    let (log, recovery) = WriteAheadLog::open_on(copy, dir.path(), options.clone())
        .map_err(|error| error.to_string())?;
    expect.opened(&log, &recovery, end == End::PowerCut)?;
    drop(log);
    let segments = sound(&disk, dir.path());
    for _ in 0..4 {
        let damaged = disk.snapshot();
        let said = hurt(&damaged, &segments, &mut dice);
        tally.damages += said.len() as u64;
        check(&damaged, dir.path(), &options, (&segments, &expect), tally)
            .map_err(|wrong| format!("W4: {wrong}\nafter {end:?} and damage {said:?}"))?;
    }
    Ok(())
}

#[test]
fn w4_random_damage_costs_what_it_hits_and_no_more() {
    let first = number("E2E_SEED", 1);
    let rounds = number("E2E_ROUNDS", 150);
    let mut tally = Tally::default();
    for seed in first..first + rounds {
        round(seed, &mut tally).unwrap_or_else(|wrong| panic!("{wrong}\nE2E_SEED={seed}"));
    }
    eprintln!("{rounds} rounds from {first} on: {tally:?}");
    assert!(tally.lost > 0 && tally.survived > tally.lost, "{tally:?}");
    assert!(tally.cut > 0 && tally.mended > 0 && tally.nameless > 0, "{tally:?}");
}
