use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use daemoneye_tests::{Guarded, beside_others, signal, until};
use rustix::process::Signal;

const README: &str = include_str!("../../../README.md");

/// The code block that follows `<!-- readme: <name> -->`.
fn block(name: &str) -> &'static str {
    let mark = format!("<!-- readme: {name} -->");
    let (_, rest) = README.split_once(&mark).unwrap_or_else(|| panic!("{mark} is in the README"));
    let (_, rest) = rest.split_once("```").expect("a code block");
    let (_, rest) = rest.split_once('\n').expect("a code block");
    rest.split_once("\n```").expect("the end of the code block").0
}

/// The project's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// What a newcomer would have: every file that git tracks or would, as it is now.
fn fresh_copy(to: &Path) {
    let files = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(files.status.success());
    for name in files.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).expect("our file names are UTF-8");
        let (from, to) = (root().join(name), to.join(name));
        if !from.exists() {
            continue;
        }
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
        std::fs::copy(&from, &to).expect("a copy");
    }
}

/// A command line of the README in a directory, as typed there.
fn typed(line: &str, directory: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec 2>&1; {line}")]).current_dir(directory);
    // What cargo tells this test is not what a newcomer's shell knows.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO") && name != "CARGO_HOME" {
            command.env_remove(&*name);
        }
    }
    command.stdin(Stdio::null());
    command
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().expect("a shell can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// The README's commands in a clean copy: the main job, the query, the subscriber, the tests.
#[test]
fn readme() {
    let _others = beside_others();
    let fresh = tempfile::tempdir().expect("a temporary directory");
    fresh_copy(fresh.path());
    let example = std::fs::read_to_string(root().join("daemoneye-eventbus/examples/subscribe.rs"));
    assert_eq!(block("example"), example.expect("the example").trim_end());

    let (build, run) = block("main").split_once(" && ").expect("build and run");
    succeeds(typed(build, fresh.path()));
    let shown = fresh.path().join("shown");
    let agent = typed(&format!("exec {run} > shown"), fresh.path()).spawn();
    let mut agent = Guarded::new(agent.expect("a shell can be started"));
    let text = || std::fs::read_to_string(&shown).unwrap_or_default();
    until("events appear", || text().contains("processes were there already"));
    let subscriber = block("subscribe");
    let seen = fresh.path().join("seen");
    let live = typed(&format!("exec {subscriber} > seen"), fresh.path()).spawn();
    let mut live = Guarded::new(live.expect("a shell can be started"));
    // The subscription stands once it has seen something: processes come until it has.
    until("the subscriber sees events", || {
        let mark = Command::new("sh").args(["-c", "sleep 1.2", "readme-was-here"]).status();
        assert!(mark.expect("a shell can be started").success());
        std::fs::read_to_string(&seen).unwrap_or_default().contains("readme-was-here")
    });
    until("the events are shown", || text().contains("readme-was-here"));

    if Command::new("sqlite3").arg("--version").output().is_ok() {
        let counts = succeeds(typed(block("query"), fresh.path()));
        assert!(counts.contains("events.process.start|"), "{counts}");
    } else {
        let in_ci = std::env::var_os("CI").is_some();
        assert!(!in_ci, "CI must have the sqlite3 command");
        eprintln!("not run: the README's query, because there is no sqlite3 command here");
    }
    signal(&agent, Signal::INT);
    assert!(agent.wait().expect("the agent ends").success());
    assert!(live.wait().expect("the subscriber ends with the broker").success());

    // The whole suite would run this test again, so of all that the command builds and finds, one
    // part runs.
    let tests = format!("{} readme_of_the_readme", block("tests"));
    let ran = succeeds(typed(&tests, fresh.path()));
    assert!(ran.contains("readme::readme_of_the_readme ... ok"), "{ran}");
}

/// What the README's own test finds when it runs the README's test command.
#[test]
fn readme_of_the_readme() {
    let script = std::fs::read_to_string(root().join(".ci/run")).expect("the CI script");
    let command = block("tests");
    assert!(script.lines().any(|line| line == command), "CI runs {command:?} as it stands");
}
