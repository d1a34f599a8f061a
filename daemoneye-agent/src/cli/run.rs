//! `daemoneye-agent run`: the agent itself, until a signal ends it.

use std::path::{Path, PathBuf};

use crate::agent::{Agent, FollowOptions, Launch};
use crate::cli::CliError;
use crate::config::{CollectorsConfig, Config};
use crate::render::Format;

/// What `run` takes besides the common options.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RunArgs {
    /// procmond's executable [default: the one beside daemoneye-agent, else the one on PATH]
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::ExecutablePath)]
    pub procmond: Option<PathBuf>,
    /// Start no procmond; collectors that come by themselves are served all the same
    #[arg(long)]
    pub no_collectors: bool,
    /// Also show each event on standard output as it is stored
    #[arg(long)]
    pub follow: bool,
    /// With --follow: one JSON object a line
    #[arg(long, requires = "follow")]
    pub json: bool,
}

/// procmond is nowhere to be found.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what}; build it with `cargo build -p procmond`, put it beside {} or name it with --procmond (collectors.procmond), or start none with --no-collectors",
    own.display()
)]
struct NoProcmond {
    what: String,
    own: PathBuf,
}

/// Runs the agent until a signal, or the end of whoever reads the events, ends it.
///
/// # Errors
/// When procmond is not found, or the state directory, the store or the socket cannot be had.
pub fn run(config: &Config, args: &RunArgs) -> Result<(), CliError> {
    let launch = config.collectors.as_ref().map(launch).transpose().map_err(CliError::usage)?;
    let follow = args.follow.then(|| FollowOptions { format: Format::for_stdout(args.json) });
    let agent = Agent::prepare(config.clone(), launch, follow).map_err(CliError::failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("agent")
        .build()
        .map_err(CliError::failed)?;
    let result = runtime.block_on(agent.run()).map_err(CliError::failed);
    // After a second signal the orderly end is cut short; nothing is waited for.
    runtime.shutdown_background();
    result
}

fn launch(collectors: &CollectorsConfig) -> Result<Launch, NoProcmond> {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("daemoneye-agent"));
    let program =
        find_procmond(collectors.procmond.as_deref(), &own, std::env::var_os("PATH").as_deref())
            .map_err(|what| NoProcmond { what, own })?;
    Ok(Launch { program, collectors: collectors.clone() })
}

/// The executable that was named; else the one beside ours; else the first on the search path.
fn find_procmond(
    named: Option<&Path>,
    own: &Path,
    search: Option<&std::ffi::OsStr>,
) -> Result<PathBuf, String> {
    let file = format!("procmond{}", std::env::consts::EXE_SUFFIX);
    if let Some(named) = named {
        return if is_executable(named) {
            Ok(std::path::absolute(named).unwrap_or_else(|_| named.to_owned()))
        } else {
            Err(format!("{} is not there or not an executable file", named.display()))
        };
    }
    let beside = own.parent().map(|directory| directory.join(&file));
    let on_path =
        search.map(std::env::split_paths).into_iter().flatten().map(|dir| dir.join(&file));
    beside
        .into_iter()
        .chain(on_path)
        .find(|candidate| candidate.is_absolute() && is_executable(candidate))
        .ok_or_else(|| format!("{file} is neither beside the agent nor on PATH"))
}

fn is_executable(path: &Path) -> bool {
    let Ok(metadata) = path.metadata() else { return false };
    #[cfg(unix)]
    let runnable = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
    #[cfg(not(unix))]
    let runnable = true;
    metadata.is_file() && runnable
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn procmond_is_named_or_beside_us_or_on_the_path() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let own = make("bin/daemoneye-agent", 0o755);
        let other = make("path/procmond", 0o755);
        let plain = make("plain", 0o644);
        let search = dir.path().join("path").into_os_string();
        let find = |named: Option<&Path>| find_procmond(named, &own, Some(&search));
        assert_eq!(find(None).unwrap(), other);
        let beside = make("bin/procmond", 0o755);
        assert_eq!(find(None).unwrap(), beside);
        assert_eq!(find(Some(&other)).unwrap(), other);
        assert!(find(Some(&plain)).unwrap_err().contains("not an executable"));
        assert!(find(Some(dir.path())).unwrap_err().contains("not an executable"));
        std::fs::remove_file(beside).unwrap();
        assert!(find_procmond(None, &own, None).unwrap_err().contains("PATH"));
    }
}
