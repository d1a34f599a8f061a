//! What archives hold, as somebody finds them after a crash.

use std::collections::BTreeSet;
use std::path::Path;

use daemoneye_lib::stream::{Epoch, StreamId};

use super::super::archive::ArchiveName;
use super::super::archive::pack::open_unpacked;
use super::super::format::{FRAME_BYTES, HEADER_BYTES, KIND_CONTROL};
use super::super::scan::{Accept, Scanner, Step};
use super::super::segment;
use super::super::storage::sim::SimDisk;
use super::expect::{Checked, must};

/// A record as it stands in an archive.
pub(super) struct Archived {
    pub(super) sequence: u64,
    pub(super) kind: u8,
    pub(super) timestamp_ns: i64,
    pub(super) payload: Vec<u8>,
}

/// An archive under its final name.
pub(super) struct Archive {
    pub(super) name: String,
    pub(super) stream: StreamId,
    pub(super) epoch: Epoch,
    /// The sequences it is there for; none if the last comes before the first.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) records: Vec<Archived>,
}

/// The archives on a disk as it is now, and what is wrong with those that are not whole.
pub(super) fn read_archives(disk: &SimDisk, dir: &Path) -> (Vec<Archive>, Vec<(String, String)>) {
    // Nobody counts these reads, and no fault is for them.
    let disk = disk.snapshot();
    let (mut whole, mut hurt) = (Vec::new(), Vec::new());
    for name in disk.names(dir) {
        let Some(parsed) = ArchiveName::parse(&name) else { continue };
        match read(&disk, &dir.join(&name), name.clone(), parsed.number) {
            Ok(archive) => whole.push(archive),
            Err(wrong) => hurt.push((name, wrong)),
        }
    }
    (whole, hurt)
}

/// Reads an archive, of which nothing may be other than whole frames from its header to its end.
fn read(disk: &SimDisk, path: &Path, name: String, number: u64) -> Checked<Archive> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let archive = open_unpacked(disk, path).map_err(|error| failed(&error))?;
    let file = archive.file();
    must!(
        segment::has_whole_header(file, path, number).map_err(|error| failed(&error))?,
        "it has no whole header"
    );
    let label = segment::read_label(file, path, number).map_err(|error| failed(&error))?;
    let label = label.ok_or("it is not the segment of its name")?;
    let length = file.len().map_err(|error| failed(&error))?;
    let accept = Accept::Of { salt: label.salt, first: label.first };
    let mut scanner = Scanner::new(HEADER_BYTES as u64);
    let mut last = None;
    let mut records = Vec::new();
    loop {
        match scanner.step(file, accept, length).map_err(|error| failed(&error))? {
            Step::Frame { head, .. } => {
                last = (head.kind == KIND_CONTROL).then_some(head.sequence.0);
                if head.kind != KIND_CONTROL {
                    records.push(Archived {
                        sequence: head.sequence.0,
                        kind: head.kind,
                        timestamp_ns: head.timestamp_ns,
                        payload: scanner.frame()[FRAME_BYTES..].to_vec(),
                    });
                }
            }
            Step::Damage { from, to } => return Err(format!("{from} to {to} are damaged")),
            Step::Tail { from, to } => {
                must!(from == to, "{from} to {to} are torn");
                break;
            }
        }
    }
    must!(archive.fault().is_none(), "it does not unpack: {:?}", archive.fault());
    let last = last.ok_or("it does not end with a control record")?;
    Ok(Archive {
        name,
        stream: label.stream,
        epoch: label.epoch,
        first: label.first.0,
        last,
        records,
    })
}

/// The sequences of a stream that archives hold.
pub(super) fn archived(archives: &[Archive], stream: StreamId) -> BTreeSet<u64> {
    let ours = archives.iter().filter(|archive| archive.stream == stream);
    ours.flat_map(|archive| archive.records.iter().map(|record| record.sequence)).collect()
}
