use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a directory with binaries to test, instead of building them: for users who cannot build.
const DIRECTORY_VARIABLE: &str = "E2E_BIN_DIR";

/// The path of one of the workspace's binaries, built with the profile of the running test.
///
/// Cargo builds binaries only for the tests of their own package, so the first call builds them.
///
/// # Panics
/// If they do not build.
pub fn bin(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let given = || std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from);
    DIRECTORY.get_or_init(|| given().unwrap_or_else(build)).join(name)
}

fn build() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    // <target>/<profile>/deps/<test>
    let profile = test.parent().and_then(Path::parent).expect("a test below the target directory");
    let target = profile.parent().expect("a profile below the target directory");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--locked", "--quiet", "--bins"])
        .args(
            ["procmond", "daemoneye-agent", "daemoneye-eventbus", env!("CARGO_PKG_NAME")]
                .map(|package| format!("--package={package}")),
        )
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be run");
    assert!(status.success(), "the binaries do not build: {status}");
    profile.to_path_buf()
}
