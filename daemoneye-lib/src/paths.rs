//! Where things are unless somebody says otherwise.
//!
//! The environment comes in as arguments: nothing here looks at the machine.

use std::path::{Path, PathBuf};

/// The lock file in a log's directory; it holds the pid of the process that has the log open.
pub const WAL_LOCK_FILE: &str = "procmond.lock";

/// The directory below the state directory that procmond's log is in.
pub const WAL_DIR: &str = "wal";

/// The broker's socket in the state directory, where no other was configured.
pub const BROKER_SOCKET_FILE: &str = "broker.sock";

/// The variable that says where the broker's socket is.
pub const BROKER_SOCKET_VARIABLE: &str = "DAEMONEYE_BROKER_SOCKET";

/// The most bytes the path of a Unix socket may have: the kernel's 108 less the final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The state directory: `/var/lib/daemoneye` for root, else `$XDG_STATE_HOME/daemoneye`, else
/// `~/.local/state/daemoneye`.
///
/// Relative directories in the environment are ignored, as the XDG specification asks. `None` if
/// an ordinary user has neither variable: then it must be given.
#[must_use]
pub fn default_state_dir(
    is_root: bool,
    xdg_state_home: Option<&Path>,
    home: Option<&Path>,
) -> Option<PathBuf> {
    if is_root {
        return Some(PathBuf::from("/var/lib/daemoneye"));
    }
    let absolute = |dir: &&Path| dir.is_absolute();
    xdg_state_home
        .filter(absolute)
        .map(Path::to_path_buf)
        .or_else(|| home.filter(absolute).map(|home| home.join(".local/state")))
        .map(|base| base.join("daemoneye"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_where_the_user_may_write() {
        let dir = |root, xdg: Option<&str>, home: Option<&str>| {
            default_state_dir(root, xdg.map(Path::new), home.map(Path::new))
                .map(|dir| dir.display().to_string())
        };
        assert_eq!(dir(true, Some("/x"), Some("/h")).as_deref(), Some("/var/lib/daemoneye"));
        assert_eq!(dir(false, Some("/x"), Some("/h")).as_deref(), Some("/x/daemoneye"));
        assert_eq!(dir(false, Some("x"), Some("/h")).as_deref(), Some("/h/.local/state/daemoneye"));
        assert_eq!(dir(false, None, None), None);
    }
}
