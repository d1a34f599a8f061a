//! The process table that is saved beside the log.

use std::fs;

use procmond::monitor::snapshot::{SNAPSHOT_FILE, Snapshot};
use procmond::monitor::tracker::Tracker;

use crate::allocations::bounded;
use crate::scratch::Scratch;

pub fn snapshot(data: &[u8]) {
    let Some((&mend, content)) = data.split_first() else { return };
    let mut file = content.to_vec();
    if mend % 4 != 0 {
        // The checksum stands against chance, not against somebody who can write here.
        if mend % 4 != 3 && file.len() >= 12 {
            file[..12].copy_from_slice(b"DEYEPROC\x01\x00\x00\x00");
        }
        file.extend(crc32fast::hash(&file).to_le_bytes());
    }
    let dir = Scratch::new();
    let path = dir.join(SNAPSHOT_FILE);
    fs::write(&path, &file).expect("there is room");
    let loaded = bounded((512 << 10) + 4 * file.len(), || Snapshot::load(&path));
    let Some(snapshot) = loaded else { return };
    let tracker = Tracker::restore(&snapshot.table);
    assert!(tracker.len() <= snapshot.table.len());
    snapshot.save(&path).expect("there is room");
    assert_eq!(Snapshot::load(&path).as_ref(), Some(&snapshot), "what we save we read");
    let image = tracker.encode(|_| false);
    let again = Tracker::restore(&image);
    assert_eq!(again.len(), tracker.len());
}
