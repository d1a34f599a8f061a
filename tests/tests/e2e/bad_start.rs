use std::path::Path;
use std::process::{Command, Output};

use daemoneye_tests::{AgentBuilder, beside_others, bin};

const SOCKET: &str = "DAEMONEYE_BROKER_SOCKET";

fn procmond() -> Command {
    let mut command = Command::new(bin("procmond"));
    command.arg("run").env_remove(SOCKET);
    command
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(output.stdout.is_empty(), "complaints belong on standard error");
}

#[test]
fn bad_start_without_the_variable() {
    let output = procmond().output().expect("procmond can be run");
    assert_ends(&output, 2, &[SOCKET, "daemoneye-agent", "procmond watch"]);
}

#[test]
fn bad_start_with_a_path_of_108_bytes() {
    let path = format!("/{}", "s".repeat(107));
    let output = procmond().env(SOCKET, path).output().expect("procmond can be run");
    assert_ends(&output, 2, &[SOCKET, "108 bytes", "107"]);

    let state = tempfile::tempdir().expect("a directory");
    let output = Command::new(bin("daemoneye-agent"))
        .args(["run", "--no-collectors", "--state-dir"])
        .arg(state.path())
        .arg("--socket")
        .arg(format!("/{}", "s".repeat(107)))
        .output()
        .expect("the agent can be run");
    assert_ends(&output, 2, &["108", "107", "--socket"]);
}

#[test]
fn bad_start_in_a_directory_that_cannot_be_written() {
    let parent = tempfile::tempdir().expect("a directory");
    let file = parent.path().join("file");
    std::fs::write(&file, "").expect("a file");
    // Not even root can make a directory below a file.
    let below = file.join("wal");
    let run = |directory: &Path| {
        let socket = parent.path().join("no-broker");
        let mut command = procmond();
        command.env(SOCKET, socket).arg("--wal-dir").arg(directory);
        command.output().expect("procmond can be run")
    };
    assert_ends(&run(&below), 1, &[below.to_str().expect("a path"), "check"]);

    if rustix::process::geteuid().is_root() {
        eprintln!("not run as root: root writes to directories without write permission");
        return;
    }
    let locked = parent.path().join("locked");
    std::fs::create_dir(&locked).expect("a directory");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o500);
    std::fs::set_permissions(&locked, permissions).expect("permissions");
    let below = locked.join("wal");
    assert_ends(&run(&below), 1, &[below.to_str().expect("a path"), "Permission denied"]);
}

#[test]
fn bad_start_with_three_mistakes_in_the_configuration() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("procmond.toml");
    let text = "[wal]\nsegment_bites = 5\n[monitor]\ninterval_ms = \"soon\"\nsource = \"magic\"\n";
    std::fs::write(&file, text).expect("a file");
    let output = procmond()
        .env(SOCKET, directory.path().join("no-broker"))
        .arg("--config")
        .arg(&file)
        .output()
        .expect("procmond can be run");
    let says = ["3 mistakes", "segment_bytes", "interval_ms", "soon", "magic", "poll"];
    assert_ends(&output, 2, &says);
}

#[test]
fn bad_start_beside_another_instance() {
    let _others = beside_others();
    let agent = AgentBuilder::default().start();
    let pid = agent.monitoring().to_string();
    let setup = agent.setup();
    let output = procmond()
        .env(SOCKET, setup.socket())
        .arg("--wal-dir")
        .arg(setup.wal_dir())
        .output()
        .expect("procmond can be run");
    assert_ends(&output, 1, &[&pid, setup.wal_dir().to_str().expect("a path")]);

    let output = Command::new(bin("daemoneye-agent"))
        .args(["run", "--state-dir"])
        .arg(setup.state_dir())
        .output()
        .expect("the agent can be run");
    assert_ends(&output, 1, &[&agent.pid().to_string()]);
    assert!(agent.stop().success(), "the first ones are not disturbed");
}
