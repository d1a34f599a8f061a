//! Digests of files that were read before.

use std::collections::HashMap;

use daemoneye_lib::models::process::Sha256;

use crate::source::FileIdentity;

/// Digests in each of the two halves.
const HALF: usize = 2048;

/// The digests that were asked for last, some thousands: a half is thrown away when the other is
/// full, and what was asked for meanwhile has moved.
#[derive(Debug, Default)]
pub(super) struct Cache {
    new: HashMap<FileIdentity, Sha256>,
    old: HashMap<FileIdentity, Sha256>,
}

impl Cache {
    pub(super) fn get(&mut self, identity: &FileIdentity) -> Option<Sha256> {
        if let Some(digest) = self.new.get(identity) {
            return Some(*digest);
        }
        let digest = self.old.remove(identity)?;
        self.put(*identity, digest);
        Some(digest)
    }

    pub(super) fn put(&mut self, identity: FileIdentity, digest: Sha256) {
        if self.new.len() >= HALF {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(identity, digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(inode: u64) -> FileIdentity {
        FileIdentity { device: 1, inode, size: 2, ctime_sec: 3, ctime_nsec: 4 }
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let mut cache = Cache::default();
        let digest = |inode: u64| Sha256([inode as u8; 32]);
        let count = 5 * HALF as u64;
        for inode in 0..count {
            cache.put(identity(inode), digest(inode));
            assert_eq!(cache.get(&identity(0)), Some(digest(0)), "asked for all the time");
            assert!(cache.new.len() + cache.old.len() <= 2 * HALF);
        }
        assert_eq!(cache.get(&identity(1)), None);
        assert_eq!(cache.get(&identity(count - 1)), Some(digest(count - 1)));
        for other in [
            FileIdentity { device: 2, ..identity(0) },
            FileIdentity { size: 3, ..identity(0) },
            FileIdentity { ctime_sec: 4, ..identity(0) },
            FileIdentity { ctime_nsec: 5, ..identity(0) },
        ] {
            assert_eq!(cache.get(&other), None, "{other:?}");
        }
    }
}
