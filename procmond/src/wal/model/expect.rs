//! What must be true of a log, and whether it is.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use daemoneye_lib::stream::{Epoch, Sequence, StreamId};

use super::super::format::{self, FRAME_BYTES, FrameHead, Label, Rest};
use super::super::storage::sim::SimDisk;
use super::super::{Entry, LostRange, Recovery, SyncMode, WalError, WalReader, WriteAheadLog};

use super::archives::{Archive, archived};

/// What was found wrong, in words.
pub(super) type Checked<T = ()> = Result<T, String>;

/// Says what is wrong unless something holds.
macro_rules! must {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+));
        }
    };
}
pub(super) use must;

/// A record as the model knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Makes its kind, its time and its payload.
    pub(super) id: u64,
    pub(super) len: u32,
    /// Who wrote it; unknown while a new stream is not known to have begun.
    pub(super) epoch: Option<Epoch>,
    /// A disk that lied has lost it.
    pub(super) lost: bool,
    /// It was in the log or in an archive when the log was last opened, or came after that.
    pub(super) kept: bool,
    /// It was in the log when that was last opened.
    held: bool,
}

impl Known {
    pub(super) fn new(id: u64, len: u32, epoch: Epoch) -> Self {
        Self { id, len, epoch: Some(epoch), lost: false, kept: true, held: false }
    }

    /// A record that a lie has made up.
    const fn unknown() -> Self {
        Self { id: 0, len: 0, epoch: None, lost: true, kept: false, held: false }
    }

    pub(super) fn kind(&self) -> u8 {
        1 + (self.id % 200) as u8
    }

    pub(super) fn timestamp_ns(&self) -> i64 {
        self.id as i64 * 1_000_003
    }

    /// Some payloads are what somebody would choose who wants damage to be taken for records.
    pub(super) fn payload(&self) -> Vec<u8> {
        let len = self.len as usize;
        let mut bytes = Vec::new();
        match self.id % 8 {
            0 => bytes.resize(len, 0),
            1 => format::FRAME_MAGIC.iter().cycle().take(len).for_each(|&byte| bytes.push(byte)),
            2 => {
                while bytes.len() < len {
                    let sequence = Sequence(self.id + bytes.len() as u64 / 40);
                    format::encode_frame(&mut bytes, 1, sequence, 0, 1, b"not one");
                }
            }
            3 => {
                let label = Label {
                    stream: StreamId::from_bytes([7; 16]),
                    replaces: None,
                    segment: self.id % 5 + 1,
                    salt: self.id as u32,
                    first: Sequence(1 + self.id),
                    watermark: Sequence(1 << 40),
                    watermark_epoch: None,
                    epoch: Epoch::from_u64(u64::MAX),
                    epoch_first: Sequence(1),
                    rest: Rest::Nothing,
                };
                while bytes.len() < len {
                    bytes.extend_from_slice(&label.to_control(Sequence(self.id), 0, 1));
                }
            }
            _ => (0..len).for_each(|at| bytes.push((self.id as usize * 31 + at * 7) as u8)),
        }
        bytes.truncate(len);
        bytes
    }
}

/// A stream that may begin at any moment.
#[derive(Debug, Clone)]
pub(super) struct NextStream {
    pub(super) records: Vec<Known>,
}

/// A sync said that all was well and was not, or was not asked for.
#[derive(Debug, Clone)]
pub(super) enum Lie {
    /// It was for these records and nothing else.
    About { after: u64, upto: u64, watermark: u64 },
    /// It was for a name or a header.
    Deep,
}

/// What must be true after whatever happens next.
#[derive(Debug, Clone, Default)]
pub(super) struct Expect {
    pub(super) stream: Option<StreamId>,
    pub(super) next_stream: Option<NextStream>,
    /// The stream that this one has replaced: a disk that lied about the name of the new one's first
    /// segment brings it back.
    replaced: Option<Box<Self>>,
    /// What was submitted: record n is at n - 1.
    pub(super) records: Vec<Known>,
    /// Everything up to here has a receipt, and survives the process.
    pub(super) receipted: u64,
    /// Everything up to here is promised to survive a power cut too.
    pub(super) synced: u64,
    /// Acknowledged, and known to be durable.
    pub(super) watermark_min: u64,
    /// Acknowledged.
    pub(super) watermark_max: u64,
    /// The last opening.
    pub(super) epoch: Option<Epoch>,
    pub(super) lies: Vec<Lie>,
    /// A lie has cost a header: that file is nobody's from then on.
    foreign: bool,
    /// A disk that lied about more than records was known when the log was last opened.
    lied_deep: bool,
    /// Archives that a lie has made other than they should be.
    spoiled: BTreeSet<String>,
}

impl Expect {
    pub(super) fn last(&self) -> u64 {
        self.records.len() as u64
    }

    /// The new stream has begun, in this epoch.
    pub(super) fn enter_next_stream(&mut self, stream: StreamId, epoch: Option<Epoch>) -> Checked {
        let Some(next) = self.next_stream.take() else {
            return Err(format!("W6: stream {stream} appeared from nowhere"));
        };
        self.replaced = self.stream.is_some().then(|| Box::new(self.clone()));
        self.stream = Some(stream);
        self.records = next.records;
        self.records.iter_mut().for_each(|record| record.epoch = epoch);
        self.receipted = self.last();
        self.synced = self.last();
        self.watermark_min = 0;
        self.watermark_max = 0;
        self.epoch = epoch;
        Ok(())
    }

    fn is_lied_about(&self, sequence: u64) -> bool {
        self.lies.iter().any(|lie| match lie {
            Lie::About { after, upto, .. } => *after < sequence && sequence <= *upto,
            Lie::Deep => true,
        })
    }

    /// Whether some of this may be lost without anybody's fault but the disk's.
    fn may_be_lost(&self, first: u64, last: u64) -> bool {
        let known = |sequence: u64| {
            self.records.get(sequence as usize - 1).is_some_and(|record| record.lost)
        };
        // It might as well have been deleted.
        let acknowledged = |sequence| sequence <= self.watermark_max;
        (first..=last).all(|s| known(s) || self.is_lied_about(s) || acknowledged(s))
    }

    /// The power goes.
    pub(super) fn cut(&mut self, sync: SyncMode) {
        if !sync.is_always() && self.synced < self.last() {
            // Receipts promised less. What was written behind a hole is kept, and the hole reported.
            let (after, upto) = (self.synced, self.last());
            self.lies.push(Lie::About { after, upto, watermark: self.watermark_min });
        }
        self.receipted = self.synced;
        if let Some(replaced) = &mut self.replaced {
            replaced.cut(sync);
        }
    }

    /// A stream that this one, or one before it, has replaced.
    fn take_replaced(&mut self, stream: StreamId) -> Option<Self> {
        let mut replaced = self.replaced.take()?;
        if replaced.stream == Some(stream) {
            Some(*replaced)
        } else {
            replaced.take_replaced(stream)
        }
    }

    /// Checks a log that has just been opened, and knows from then on what it holds.
    pub(super) fn opened(
        &mut self,
        log: &WriteAheadLog,
        recovery: &Recovery,
        after_power_cut: bool,
    ) -> Checked {
        let deep = self.lies.iter().any(|lie| matches!(lie, Lie::Deep));
        self.foreign |= deep;
        self.lied_deep = deep;
        let stream = log.stream();
        match self.stream {
            Some(old) if old == stream => {
                must!(!recovery.new_stream, "W1: the stream is new and has its old name");
                if let (Some(before), now) = (self.epoch, log.epoch()) {
                    must!(now > before || deep, "W6: epoch {now:?} came after {before:?}");
                }
                self.next_stream = None;
            }
            None => must!(recovery.new_stream || self.receipted == 0, "W1: whose stream is it?"),
            Some(_) if self.next_stream.is_some() => {
                // Carried over by an opening that did not live to tell.
                self.enter_next_stream(stream, None)?;
            }
            Some(old) => {
                must!(deep, "W1: stream {old} is gone, and {stream} in its place");
                let before = self.take_replaced(stream).unwrap_or_default();
                let now = std::mem::replace(self, before);
                self.next_stream = None;
                (self.lies, self.spoiled) = (now.lies, now.spoiled);
                (self.foreign, self.lied_deep) = (now.foreign, now.lied_deep);
            }
        }
        self.stream = Some(stream);
        let last = log.last().0;
        let (receipted, submitted) = (self.receipted, self.last());
        if last < receipted {
            must!(
                self.may_be_lost(last + 1, receipted),
                "W1: {receipted} had a receipt, the log ends at {last}"
            );
        }
        if last > submitted {
            must!(deep, "W2: {last} was never submitted, {submitted} was the last");
            self.records.resize(last as usize, Known::unknown());
        }
        self.records.truncate(last as usize);
        let (min, max) = (self.watermark_min, self.watermark_max);
        let watermark = log.watermark().0;
        let watermark_before_lies = self
            .lies
            .iter()
            .map(|lie| match lie {
                Lie::About { watermark, .. } => *watermark,
                Lie::Deep => 0,
            })
            .min();
        must!(
            watermark >= watermark_before_lies.unwrap_or(min).min(min),
            "W7: the watermark fell from {min} to {watermark}"
        );
        must!(
            watermark <= max || deep,
            "W7: watermark {watermark}, but only {max} was acknowledged"
        );
        for LostRange { first, last, reason } in &recovery.damage {
            must!(
                self.may_be_lost(first.0, last.0),
                "W4: {first} to {last} were reported {reason} and are not"
            );
        }
        must!(
            self.foreign || recovery.foreign.is_empty(),
            "W4: {:?} were taken for another log's",
            recovery.foreign
        );
        must!(
            recovery.last == log.last()
                && log.last_durable() == log.last()
                && recovery.watermark == log.watermark()
                && recovery.records == last - watermark,
            "the report does not fit: {recovery:?}"
        );
        self.receipted = last;
        self.synced = last;
        self.watermark_min = watermark;
        self.watermark_max = watermark;
        self.epoch = Some(log.epoch());
        self.learn(log, after_power_cut)?;
        // Until the power goes the system knows what its disk does not.
        if after_power_cut {
            self.lies.clear();
            self.replaced = None;
        }
        self.read(log, 1, 1000)?;
        self.read(log, watermark + 1, 1 << 20)
    }

    /// Learns who wrote records that a new stream has carried over, and what a lie has cost.
    fn learn(&mut self, log: &WriteAheadLog, after_power_cut: bool) -> Checked {
        let mut held = vec![false; self.records.len()];
        let mut reader = log.reader(Sequence::FIRST);
        loop {
            let batch = read_on(&mut reader, 1 << 16)?;
            if batch.is_empty() {
                break;
            }
            for entry in batch {
                match entry {
                    Entry::Record(record) => {
                        let at = record.sequence.prev().0 as usize;
                        must!(at < held.len(), "W2: a record {} behind the end", record.sequence);
                        held[at] = true;
                        let known = &mut self.records[at];
                        known.epoch = known.epoch.or(Some(record.epoch));
                        must!(!known.lost, "W4: record {} came back", record.sequence);
                    }
                    Entry::Lost { first, last, .. } => {
                        must!(self.may_be_lost(first.0, last.0), "W1: {first} to {last} are lost")
                    }
                }
            }
        }
        for (at, &held) in held.iter().enumerate() {
            let lied_about = self.is_lied_about(at as u64 + 1);
            let known = &mut self.records[at];
            known.held = held;
            known.kept &= held || !lied_about;
        }
        if after_power_cut {
            // What was acknowledged and deleted may come back.
            let open = self.watermark_max as usize;
            for (record, held) in self.records.iter_mut().zip(held).skip(open) {
                record.lost |= !held;
            }
        }
        Ok(())
    }

    /// Checks what archives hold, after the log has been opened: with the log they hold all that was
    /// acknowledged, unless they are removed when they are too many.
    pub(super) fn check_archives(
        &mut self,
        (archives, hurt): (Vec<Archive>, Vec<(String, String)>),
        all_stay: bool,
        after_power_cut: bool,
    ) -> Checked {
        for (name, wrong) in hurt {
            must!(
                self.lied_deep || self.spoiled.contains(&name),
                "W7: archive {name} is not whole: {wrong}"
            );
            self.spoiled.insert(name);
        }
        let Some(stream) = self.stream else { return Ok(()) };
        for archive in archives.iter().filter(|archive| archive.stream == stream) {
            if let Err(wrong) = self.check_archive(archive) {
                let name = archive.name.clone();
                must!(
                    self.lied_deep || self.spoiled.contains(&name),
                    "W7: archive {name} for {} to {}: {wrong}",
                    archive.first,
                    archive.last
                );
                self.spoiled.insert(name);
            }
        }
        let archived = archived(&archives, stream);
        for (sequence, known) in (1..).zip(&mut self.records) {
            let there = known.held || archived.contains(&sequence);
            // The oldest go first, but a power cut may bring back any of those that went together.
            let oldest = after_power_cut || archived.range(..sequence).next().is_none();
            let pruned = !all_stay && oldest;
            must!(
                there || !known.kept || pruned || sequence > self.watermark_max,
                "W7: {sequence} is neither in the log nor archived"
            );
            known.kept = there;
        }
        Ok(())
    }

    /// Only what was acknowledged, as it was appended, and all of it.
    fn check_archive(&self, archive: &Archive) -> Checked {
        must!(
            archive.last <= self.watermark_max,
            "it goes beyond the watermark {}",
            self.watermark_max
        );
        let mut next = archive.first;
        for record in &archive.records {
            let sequence = record.sequence;
            let known = sequence.checked_sub(1).and_then(|at| self.records.get(at as usize));
            let known = known.ok_or_else(|| format!("{sequence} was never written"))?;
            must!(
                known.lost
                    || record.kind == known.kind()
                        && record.timestamp_ns == known.timestamp_ns()
                        && record.payload == known.payload()
                        && known.epoch.is_none_or(|epoch| epoch == archive.epoch),
                "{sequence} is not what was appended"
            );
            must!(sequence >= next, "{sequence} comes behind {next}");
            self.check_left_out(next..sequence)?;
            next = sequence + 1;
        }
        self.check_left_out(next..archive.last + 1)
    }

    fn check_left_out(&self, mut sequences: Range<u64>) -> Checked {
        let kept = |sequence: &u64| {
            self.records.get(*sequence as usize - 1).is_some_and(|known| known.kept)
        };
        match sequences.find(kept) {
            Some(sequence) => Err(format!("{sequence} is not in it")),
            None => Ok(()),
        }
    }

    /// Reads from a sequence to the end: everything above the watermark is there with its bytes,
    /// and nothing else.
    pub(super) fn read(&self, log: &WriteAheadLog, from: u64, max_bytes: usize) -> Checked {
        let upto = log.last_durable().0;
        let mut reader = log.reader(Sequence(from));
        let mut next = from;
        loop {
            let batch = read_on(&mut reader, max_bytes)?;
            if batch.is_empty() {
                break;
            }
            let mut bytes = 0;
            let mut longest = 0;
            for entry in &batch {
                let first = match entry {
                    Entry::Record(record) => record.sequence,
                    Entry::Lost { first, .. } => *first,
                };
                must!(first.0 >= next, "W2: {first} came again or out of order");
                must!(
                    first.0 == next || first.prev() <= log.watermark(),
                    "W1: {next} to {} are not there, watermark {}",
                    first.prev(),
                    log.watermark()
                );
                match entry {
                    Entry::Record(record) => {
                        let sequence = record.sequence;
                        let known = self
                            .records
                            .get(sequence.prev().0 as usize)
                            .ok_or_else(|| format!("W5: record {sequence} was never written"))?;
                        must!(!known.lost, "W5: record {sequence} was lost and came back");
                        must!(
                            record.kind == known.kind()
                                && record.timestamp_ns == known.timestamp_ns()
                                && record.payload[..] == known.payload(),
                            "W1: record {sequence} is not what was appended"
                        );
                        must!(
                            known.epoch.is_none_or(|epoch| epoch == record.epoch),
                            "W6: record {sequence} is of epoch {:?}, not {:?}",
                            record.epoch,
                            known.epoch
                        );
                        if sequence >= log.watermark() && sequence.0 > 0 {
                            let epoch = log.epoch_at(sequence);
                            must!(
                                epoch == Some(record.epoch),
                                "W6: epoch_at({sequence}) is {epoch:?}, not {:?}",
                                record.epoch
                            );
                        }
                        bytes += record.payload.len();
                        longest = longest.max(record.payload.len());
                        next = sequence.next().0;
                    }
                    Entry::Lost { first, last, reason } => {
                        must!(
                            self.may_be_lost(first.0, last.0),
                            "W1: {first} to {last} are {reason}"
                        );
                        next = last.next().0;
                    }
                }
            }
            must!(bytes < max_bytes + longest.max(1), "W9: {bytes} bytes for {max_bytes}");
        }
        let gone = log.watermark().0;
        must!(next.max(gone + 1) > upto, "W1: reading ended at {next}, durable is {upto}");
        let stands = reader.position().0;
        must!(stands >= next, "the reader stands at {stands} and has read up to {next}");
        Ok(())
    }
}

/// The next batch, however often the disk refuses.
fn read_on(reader: &mut WalReader, max_bytes: usize) -> Checked<Vec<Entry>> {
    let mut tries = 0;
    loop {
        match reader.next_batch(max_bytes) {
            Ok(batch) => return Ok(batch),
            Err(WalError::Io { .. }) if tries < 5 => tries += 1,
            Err(error) => return Err(format!("reading failed: {error}")),
        }
    }
}

/// W3: what was torn has been cut off, and what was more than a record kept.
pub(super) fn torn_tail_is_kept(
    before: &SimDisk,
    after: &SimDisk,
    recovery: &Recovery,
    was_full: bool,
) -> Checked {
    let Some(torn) = &recovery.torn else { return Ok(()) };
    let bytes = before.bytes(&torn.path).ok_or("W3: the tail of a file that was not there")?;
    let from = torn.offset as usize;
    let tail = bytes
        .get(from..from + torn.bytes as usize)
        .ok_or_else(|| format!("W3: {torn:?} of {} bytes", bytes.len()))?;
    let announced = FrameHead::read(tail).map_or(FRAME_BYTES, |head| head.frame_bytes());
    if tail.len() > announced {
        match &torn.copy {
            Some(copy) => {
                must!(
                    after.bytes(copy).as_deref() == Some(tail),
                    "W3: the copy is not what was cut"
                );
            }
            None => must!(was_full, "W3: more than a record was cut, and not kept"),
        }
    }
    if let Some(now) = after.bytes(&torn.path) {
        let replaced = now.get(..from) != bytes.get(..from);
        must!(replaced || now.len() == from, "W3: the tail is there still");
    }
    Ok(())
}

/// Bytes of the log's files in a directory, those for people to look at left out.
pub(super) fn log_bytes(disk: &SimDisk, dir: &Path) -> u64 {
    disk.names(dir)
        .iter()
        .filter(|name| name.contains(".wal"))
        .filter_map(|name| Some(disk.bytes(&dir.join(name))?.len() as u64))
        .sum()
}
