use std::ops::{Deref, DerefMut};
use std::process::Child;

/// A child that does not outlive the test.
pub struct Guarded(Child);

impl Guarded {
    /// Kills the child when dropped, if it still runs.
    pub fn new(child: Child) -> Self {
        Self(child)
    }
}

impl Deref for Guarded {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // A child that has ended needs neither.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
