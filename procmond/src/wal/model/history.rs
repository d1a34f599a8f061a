//! What may happen to a log, drawn at random and made smaller when it went wrong.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::super::storage::sim::{Armed, Fault, Which};
use super::super::{ArchiveOptions, Compression, Retire, RotateEvery, SyncMode, WalOptions};

/// A log's life.
#[derive(Debug, Clone)]
pub(super) struct History {
    pub(super) setup: Setup,
    pub(super) actions: Vec<Action>,
    /// Decides over everything that the actions leave open.
    pub(super) seed: u64,
}

/// The options that matter here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    pub(super) segment_bytes: u64,
    pub(super) commit_delay: Duration,
    pub(super) queue_bytes: usize,
    pub(super) disk_budget_bytes: u64,
    pub(super) sync: SyncMode,
    pub(super) prepare: bool,
    pub(super) rotate: Option<RotateEvery>,
    /// How what is committed is archived, if it is, and what all archives may take.
    pub(super) archive: Option<(Compression, Option<u64>)>,
}

impl Setup {
    pub(super) fn options(&self, dir: &Path) -> WalOptions {
        let retire = self.archive.map_or(Retire::Delete, |(compression, keep_bytes)| {
            let kept = ArchiveOptions::new(&dir.join("archive"));
            Retire::Archive(ArchiveOptions { compression, keep_bytes, keep_for: None, ..kept })
        });
        WalOptions {
            segment_bytes: self.segment_bytes,
            commit_delay: self.commit_delay,
            queue_bytes: self.queue_bytes,
            disk_budget_bytes: self.disk_budget_bytes,
            sync: self.sync,
            prepare: self.prepare,
            rotate: self.rotate,
            retire,
            ..WalOptions::default()
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Records with payloads of these lengths.
    Append(Vec<u16>, How),
    /// Acknowledge this share of what is durable, in percent.
    Acknowledge(u8),
    /// Keep from this share of what is durable on, in percent.
    Retain(u8),
    Flush,
    /// Read from this share of what is durable on, so many bytes at a time.
    Read(u8, u16),
    /// Begin a new stream, with a record in front or without.
    NewStream(bool),
    /// Close and open.
    Reopen,
    /// Open what the system knows when the process is no more.
    Kill,
    /// Open what a power cut has left.
    PowerCut,
    /// Something is to go wrong.
    Arm(Armed),
    /// Only this much room is left.
    Full(u16),
    /// There is room again.
    Room,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Submit one by one and wait for the last.
    Each,
    /// Submit together and wait.
    Together,
    /// Submit one by one and do not wait.
    NoWait,
    /// Append and wait, one by one.
    Awaiting,
    /// Append together, writing on the thread that appends.
    Blocking,
}

pub(super) fn history() -> impl Strategy<Value = History> {
    let many = 3..32;
    let actions = prop_oneof![
        2 => prop::collection::vec(action(), many.clone()),
        1 => prop::collection::vec(without_room(), many),
    ];
    (setup(), actions, any::<u64>()).prop_map(|(setup, actions, seed)| History {
        setup,
        actions,
        seed,
    })
}

fn setup() -> impl Strategy<Value = Setup> {
    let delay = prop_oneof![3 => Just(Duration::ZERO), 1 => Just(Duration::from_millis(1))];
    let queue = prop_oneof![6 => Just(4 << 20), 1 => Just(2000_usize), 1 => Just(1_usize)];
    let budget = prop_oneof![3 => Just(1 << 30), 1 => Just(64_u64 << 10), 1 => Just(20_u64 << 10)];
    let segment = prop_oneof![4 => Just(4096_u64), 1 => Just(9000_u64), 1 => Just(200_000_u64)];
    let sync = prop_oneof![
        8 => Just(SyncMode::Always),
        1 => Just(SyncMode::Interval { every: Duration::from_millis(2), bytes: 3000 }),
        1 => Just(SyncMode::Interval { every: Duration::from_secs(3600), bytes: 1 << 20 }),
        1 => Just(SyncMode::Os),
    ];
    let prepare = prop_oneof![3 => Just(true), 1 => Just(false)];
    let rotate = prop_oneof![
        6 => Just(None),
        1 => Just(Some(RotateEvery::Age(Duration::ZERO))),
        1 => Just(Some(RotateEvery::Age(Duration::from_millis(2)))),
    ];
    let compression = prop_oneof![
        2 => Just(Compression::None),
        1 => Just(Compression::Gzip),
        1 => Just(Compression::Zstd),
    ];
    let keep = prop_oneof![3 => Just(None), 1 => Just(Some(9000_u64))];
    let archive = prop_oneof![2 => Just(None), 1 => (compression, keep).prop_map(Some)];
    let sizes = (segment, queue, budget);
    (sizes, delay, sync, prepare, rotate, archive).prop_map(
        |(
            (segment_bytes, queue_bytes, disk_budget_bytes),
            commit_delay,
            sync,
            prepare,
            rotate,
            archive,
        )| {
            Setup {
                segment_bytes,
                commit_delay,
                queue_bytes,
                disk_budget_bytes,
                sync,
                prepare,
                rotate,
                archive,
            }
        },
    )
}

fn length() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0_u16..400, 3 => 400_u16..1500, 1 => 3500_u16..9000]
}

fn action() -> impl Strategy<Value = Action> {
    let how = prop_oneof![
        1 => Just(How::Each),
        1 => Just(How::Together),
        2 => Just(How::NoWait),
        1 => Just(How::Awaiting),
        2 => Just(How::Blocking),
    ];
    prop_oneof![
        16 => (prop::collection::vec(length(), 1..12), how)
            .prop_map(|(lengths, how)| Action::Append(lengths, how)),
        5 => (0_u8..=100).prop_map(Action::Acknowledge),
        1 => (0_u8..=100).prop_map(Action::Retain),
        2 => Just(Action::Flush),
        2 => (0_u8..=100, 1_u16..4000).prop_map(|(from, bytes)| Action::Read(from, bytes)),
        2 => any::<bool>().prop_map(Action::NewStream),
        2 => Just(Action::Reopen),
        1 => Just(Action::Kill),
        2 => Just(Action::PowerCut),
        5 => armed().prop_map(Action::Arm),
        1 => (0_u16..6000).prop_map(Action::Full),
        2 => Just(Action::Room),
    ]
}

/// On a disk that is full most of the time, and fails to name files. Drawn from everything, what goes
/// wrong there took thousands of histories to come about.
fn without_room() -> impl Strategy<Value = Action> {
    let how = prop_oneof![Just(How::Each), Just(How::NoWait), Just(How::Awaiting)];
    let which =
        prop_oneof![3 => Just(Which::SyncDir), 1 => Just(Which::Name), 1 => Just(Which::Sync)];
    let kind = prop_oneof![
        Just(ErrorKind::Other),
        Just(ErrorKind::StorageFull),
        Just(ErrorKind::ReadOnlyFilesystem),
    ];
    let fails = (which, 0_u32..2, kind).prop_map(|(which, after, kind)| Armed {
        which,
        after,
        fault: Fault::Error(kind),
    });
    prop_oneof![
        9 => (prop::collection::vec(0_u16..1500, 1..6), how)
            .prop_map(|(lengths, how)| Action::Append(lengths, how)),
        5 => (0_u8..=100).prop_map(Action::Acknowledge),
        4 => (0_u16..1000).prop_map(Action::Full),
        4 => fails.prop_map(Action::Arm),
        2 => Just(Action::Room),
        1 => any::<bool>().prop_map(Action::NewStream),
        1 => Just(Action::Reopen),
        1 => Just(Action::PowerCut),
    ]
}

fn armed() -> impl Strategy<Value = Armed> {
    use Fault::{Error, Interrupted, Lie, PowerCut, Short, ShortThenFull};
    let eio = || Just(Error(ErrorKind::Other));
    let full = || Just(Error(ErrorKind::StorageFull));
    let which_and_how = prop_oneof![
        8 => (Just(Which::Change), Just(PowerCut)),
        2 => (Just(Which::Sync), eio()),
        1 => (Just(Which::Sync), full()),
        1 => (Just(Which::Write), eio()),
        1 => (Just(Which::Write), full()),
        1 => (Just(Which::Write), (1_usize..500).prop_map(ShortThenFull)),
        2 => (Just(Which::Write), (1_usize..500).prop_map(Short)),
        1 => (Just(Which::Write), Just(Interrupted)),
        1 => (Just(Which::Read), (1_usize..500).prop_map(Short)),
        1 => (Just(Which::Read), Just(Interrupted)),
        1 => (Just(Which::Read), eio()),
        2 => (Just(Which::SyncDir), eio()),
        1 => (Just(Which::SyncDir), full()),
        1 => (Just(Which::SyncDir), Just(Error(ErrorKind::ReadOnlyFilesystem))),
        2 => (Just(Which::Name), eio()),
        1 => (Just(Which::Name), full()),
        1 => (Just(Which::Name), Just(Error(ErrorKind::ReadOnlyFilesystem))),
        1 => (Just(Which::Allocate), eio()),
        1 => (Just(Which::Allocate), full()),
        1 => (Just(Which::Sync), Just(Lie)),
        1 => (Just(Which::SyncDir), Just(Lie)),
    ];
    (which_and_how, 0_u32..12).prop_map(|((which, fault), after)| Armed { which, after, fault })
}
