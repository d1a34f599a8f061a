//! A directory for one run at a time, in memory where the system has such a place.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A directory that goes with this value. That of a run that failed stays, to be looked at.
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = parent.join(format!("daemoneye-fuzz-{}", std::process::id()));
        fs::create_dir(&dir).expect("each process has one at a time");
        Self { dir }
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).expect("nobody else uses it");
    }
}
