//! The documents name tests: they must exist.

use std::collections::BTreeSet;
use std::path::Path;

const ARCHITECTURE: &str = include_str!("../../docs/architecture.md");

/// The names of all functions in the sources below a directory.
fn functions(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("a source");
            for line in source.lines() {
                let line = line.trim_start().trim_start_matches("async ");
                if let Some(rest) = line.strip_prefix("fn ") {
                    names.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
                }
            }
        }
    }
}

#[test]
fn every_promise_of_delivery_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let mut names = BTreeSet::new();
    for directory in ["daemoneye-eventbus/tests", "procmond/src", "procmond/tests", "tests/tests"] {
        functions(&root.join(directory), &mut names);
    }
    let mut promises = 0;
    for row in ARCHITECTURE.lines().filter(|line| line.starts_with("| D")) {
        promises += 1;
        let named: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for name in named {
            assert!(names.contains(name), "there is no test `{name}`: {row}");
        }
    }
    assert_eq!(promises, 7, "D1 to D7");
}
