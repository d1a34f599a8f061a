use std::process::{Child, Command, Stdio};

use crate::until;

/// Processes that can be told from all others by an argument.
pub struct Marked {
    children: Vec<(String, Child)>,
}

impl Marked {
    /// Starts `count` processes that live until they are told to end, each with an argument
    /// `<tag>-<number>` and `extra` more arguments.
    ///
    /// # Panics
    /// If they cannot be started.
    pub fn start(tag: &str, count: usize, extra: &[&str]) -> Self {
        let children = (0..count)
            .map(|number| {
                let mark = format!("{tag}-{number}");
                let child = Command::new("/bin/sh")
                    // `read` is part of the shell: the process that waits is the one that is marked.
                    .args(["-c", "read line", &mark])
                    .args(extra)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn()
                    .expect("a shell can be started");
                (mark, child)
            })
            .collect();
        Self { children }
    }

    /// The marks with the pids of their processes.
    pub fn pids(&self) -> impl Iterator<Item = (&str, u32)> {
        self.children.iter().map(|(mark, child)| (mark.as_str(), child.id()))
    }

    /// Ends and reaps them all.
    ///
    /// # Panics
    /// If one cannot be waited for.
    pub fn end(mut self) {
        self.finish();
    }

    /// Ends them once `progress` has grown: then somebody has looked at them.
    ///
    /// # Panics
    /// If it does not grow in time.
    pub fn end_after_a_look(self, progress: impl Fn() -> u64) {
        let before = progress();
        until("somebody looks at the processes", || progress() > before);
        self.end();
    }

    fn finish(&mut self) {
        for (_, child) in &mut self.children {
            drop(child.stdin.take());
        }
        for (_, mut child) in self.children.drain(..) {
            child.wait().expect("a child can be waited for");
        }
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.finish();
    }
}
