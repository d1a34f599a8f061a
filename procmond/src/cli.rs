//! The sub-commands of `procmond`: their arguments, and a `run` each that gives the exit code
//! (0 clean, 1 runtime failure, 2 usage or configuration).

pub mod check;
pub mod run;
pub mod wal;
pub mod watch;

use std::path::Path;

/// Gives up what none of the commands that see processes needs, and says what could not be given
/// up. To be done first of all, while there is one thread.
pub(crate) fn confine() -> Vec<String> {
    #[cfg(target_os = "linux")]
    return crate::privileges::confine().iter().map(ToString::to_string).collect();
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// What to do about a path that this user may not write because it is somebody else's: root without
/// its capabilities is a user like others.
#[cfg(unix)]
pub(crate) fn whose(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let there = path.ancestors().find_map(|path| Some((path, path.metadata().ok()?)));
    let (path, owner) = there.map(|(path, metadata)| (path, metadata.uid()))?;
    let own = rustix::process::geteuid().as_raw();
    (owner != own).then(|| {
        format!(
            "{} belongs to user {owner} and this is user {own}, which may write only what is its \
             own (procmond has none of root's power over files): run it as user {owner}, or give \
             the directory and all in it to user {own}",
            daemoneye_lib::display::escape(path.as_os_str().as_encoded_bytes())
        )
    })
}

/// Who owns what is not asked here.
#[cfg(not(unix))]
pub(crate) fn whose(_path: &Path) -> Option<String> {
    None
}
