use super::*;

#[derive(PartialEq, Debug)]
struct Settings {
    dir: PathBuf,
    budget: u64,
    interval: Duration,
    count: u64,
    verbose: bool,
    level: u8,
}

fn load(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &'static str, &str)],
) -> Result<Settings, ConfigError> {
    let mut loader = Loader::new("PROCMOND");
    loader.file("p.toml", file);
    loader.environment(environment.iter().copied());
    for (key, name, value) in flags {
        loader.flag(key, name, value);
    }
    loader.not_an_option("PROCMOND_SOCKET");
    let second = Duration::from_secs(1);
    let settings = Settings {
        dir: loader.path("wal.dir", Path::new("/var/x"), "The log's directory."),
        budget: loader.bytes("wal.disk_budget_bytes", 1000, 10..=1 << 40, "Its size."),
        interval: loader.millis("monitor.interval_ms", second, second / 100..=second, "How often."),
        count: loader.integer("monitor.count", 5, 1..=9, "How many."),
        verbose: loader.boolean("log.verbose", false, "More."),
        level: loader.choice("log.level", "info", &[("info", 1), ("debug", 2)], "What."),
    };
    let options = loader.finish()?;
    assert_eq!(options.len(), 6);
    assert_eq!(options[1].variable, "PROCMOND_WAL__DISK_BUDGET_BYTES");
    assert_eq!(options[1].default, "1000");
    Ok(settings)
}

fn problems(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &'static str, &str)],
) -> Vec<String> {
    let error = load(file, environment, flags).unwrap_err();
    error.problems.iter().map(|p| format!("{}: {}", p.origin, p.message)).collect()
}

#[test]
fn a_later_source_overrides_an_earlier_one() {
    let none = load("", &[], &[]).unwrap();
    assert_eq!(none.dir, Path::new("/var/x"));
    assert_eq!((none.budget, none.count, none.verbose, none.level), (1000, 5, false, 1));

    let file = "[wal]\ndir = \"/file\"\ndisk_budget_bytes = 20\n[monitor]\ncount = 2\n\
                interval_ms = 0x10\n[log]\nverbose = true\nlevel = \"debug\"\n";
    let from_file = load(file, &[], &[]).unwrap();
    assert_eq!(from_file.dir, Path::new("/file"));
    assert_eq!(from_file.interval, Duration::from_millis(16));
    assert_eq!((from_file.budget, from_file.count), (20, 2));
    assert_eq!((from_file.verbose, from_file.level), (true, 2));

    let environment = [
        ("PROCMOND_WAL__DIR", "/env"),
        ("PROCMOND_WAL__DISK_BUDGET_BYTES", "3 KiB"),
        ("PROCMOND_MONITOR__COUNT", "3"),
        ("PROCMOND_SOCKET", "no option"),
        ("PATH", "/bin"),
    ];
    let over_file = load(file, &environment, &[]).unwrap();
    assert_eq!(over_file.dir, Path::new("/env"));
    assert_eq!((over_file.budget, over_file.count, over_file.level), (3072, 3, 2));

    let flags = [("wal.dir", "--wal-dir", "/flag")];
    let over_all = load(file, &environment, &flags).unwrap();
    assert_eq!((over_all.dir.as_path(), over_all.count), (Path::new("/flag"), 3));
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_is_right() {
    let file =
        "[wal]\ndisk_budget_bytes = 5\ndri = \"/x\"\n\n[monitor]\ncount = 1.5\n[strange]\na = 1\n";
    let environment = [
        ("PROCMOND_MONITOR__INTERVAL_MS", "soon"),
        ("PROCMOND_WAL_DIR", "/x"),
        ("PROCMOND_LOG__VERBOSE", "yes"),
    ];
    let flags = [("log.level", "--log-level", "\x1b[31mloud")];
    assert_eq!(
        problems(file, &environment, &flags),
        [
            "p.toml:2: wal.disk_budget_bytes: 5 is not allowed; it takes from 10 to 1099511627776 \
         bytes, as a number or with a unit (\"80 MB\", \"1 GiB\")",
            "PROCMOND_MONITOR__INTERVAL_MS: monitor.interval_ms: \"soon\" is not allowed; it takes a \
         whole number of milliseconds from 10 to 1000",
            "p.toml:6: monitor.count: 1.5 is not allowed; it takes a whole number from 1 to 9",
            "PROCMOND_LOG__VERBOSE: log.verbose: \"yes\" is not allowed; it takes true or false",
            r#"--log-level: log.level: "\x1b[31mloud" is not allowed; it takes one of info, debug"#,
            "p.toml:8: there is no option strange.a; the options are in the documented configuration \
         file",
            "p.toml:3: there is no option wal.dri; did you mean wal.dir?",
            "PROCMOND_WAL_DIR: no option has this name; did you mean PROCMOND_WAL__DIR?",
        ]
    );
}

#[test]
fn a_bad_value_is_told_even_if_another_overrides_it() {
    let found = problems("[monitor]\ncount = 0\n", &[("PROCMOND_MONITOR__COUNT", "3")], &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("p.toml:2: monitor.count: 0 "), "{found:?}");
}

#[test]
fn a_broken_file_is_told_by_line() {
    let found = problems("[wal]\ndir = \n", &[("PROCMOND_MONITOR__COUNT", "0")], &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("p.toml:2: not TOML: "), "{found:?}");
    let outside = problems("dir = \"x\"\n", &[], &[]);
    assert_eq!(outside, ["p.toml:1: dir stands outside a section; write it below its [section]"]);
}

#[test]
fn sizes_have_units() {
    let size = |text: &str| {
        load("", &[("PROCMOND_WAL__DISK_BUDGET_BYTES", text)], &[]).map(|s| s.budget).ok()
    };
    assert_eq!(size("80 MB"), Some(80_000_000));
    assert_eq!(size("1GiB"), Some(1 << 30));
    assert_eq!(size(" 64 KiB "), Some(65536));
    assert_eq!(size("12"), Some(12));
    for bad in ["", "MB", "1.5 GB", "-1", "99999999999 GiB", "5", "10 mb"] {
        assert_eq!(size(bad), None, "{bad:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_path_may_be_any_bytes_and_another_value_may_not() {
    use std::os::unix::ffi::OsStringExt;
    let strange = OsString::from_vec(b"/x\xff".to_vec());
    let mut loader = Loader::new("P");
    loader.environment([("P_A__DIR", strange.clone()), ("P_A__TEXT", strange.clone())]);
    assert_eq!(loader.path("a.dir", Path::new("/"), "A path."), Path::new(&strange));
    assert_eq!(loader.text("a.text", "x", "A text."), "x");
    let error = loader.finish().unwrap_err();
    assert_eq!(
        error.to_string(),
        "1 mistake in the configuration:\n  P_A__TEXT: a.text: \"/x\\xff\" is not allowed; it \
         takes a text that is not empty"
    );
}

#[test]
fn a_parsed_option_says_what_it_takes() {
    let load = |text| {
        let mut loader = Loader::new("P");
        loader.file("f", text);
        let even = |text: &str| text.parse().ok().filter(|number: &u32| number.is_multiple_of(2));
        let value = loader.parsed("a.b", "4", "an even number", even, "");
        loader.finish().map(|_| value)
    };
    assert_eq!(load(""), Ok(4));
    assert_eq!(load("[a]\nb = \"6\""), Ok(6));
    let error = load("[a]\nb = \"7\"").unwrap_err();
    assert!(error.problems[0].message.contains("it takes an even number"), "{error}");
}

/// The names and the users of a rule.
type TestRule = (Vec<String>, Vec<u64>);

/// Tables of the option `monitor.rule`, and what is wrong.
fn rules(file: &str, environment: &[(&str, &str)]) -> Result<Vec<TestRule>, Vec<String>> {
    let mut loader = Loader::new("PROCMOND");
    loader.file("p.toml", file);
    loader.environment(environment.iter().copied());
    let text = |text: &str| match text {
        "bad" => Err("it is bad".to_owned()),
        good => Ok(good.to_owned()),
    };
    let rules = loader.tables(
        "monitor.rule",
        "rules",
        |row| {
            let rule = (row.texts("name", text), row.integers("uid", &(0..=9)));
            if row.is_empty() {
                row.refuse("an empty rule");
            }
            rule
        },
        "Rules.",
    );
    let shown = |error: ConfigError| {
        error.problems.iter().map(|p| format!("{}: {}", p.origin, p.message)).collect()
    };
    loader.finish().map(|_| rules).map_err(shown)
}

#[test]
fn a_list_of_tables_is_read_in_order_and_from_the_environment() {
    let one = |name: &str, uid: &[u64]| (vec![name.to_owned()], uid.to_vec());
    assert_eq!(rules("", &[]).unwrap(), []);
    let file = "[monitor]\nrule = [{ name = \"a\", uid = 1 }]\n";
    assert_eq!(rules(file, &[]).unwrap(), [one("a", &[1])]);
    let file = "[[monitor.rule]]\nname = \"a\"\n[[monitor.rule]]\nname = [\"b\"]\nuid = [1, 2]\n";
    assert_eq!(rules(file, &[]).unwrap(), [one("a", &[]), one("b", &[1, 2])]);
    let environment = [("PROCMOND_MONITOR__RULE", "[{ name = \"c\" }]")];
    assert_eq!(rules(file, &environment).unwrap(), [one("c", &[])], "it replaces the file's");
}

#[test]
fn every_mistake_in_a_list_of_tables_is_named_with_its_line() {
    let file = "[[monitor.rule]]\nname = \"a\"\nnaem = 1\n\n[[monitor.rule]]\nname = [\"ok\", \"bad\", 7]\n\
                uid = 10\n[[monitor.rule]]\n[[monitor.rule]]\nuid = []\n";
    assert_eq!(
        rules(file, &[]).unwrap_err(),
        [
            "p.toml:3: monitor.rule: there is no naem here; there are name, uid",
            "p.toml:6: monitor.rule: name: \"bad\" is not allowed: it is bad",
            "p.toml:6: monitor.rule: name: 7 is not allowed: a text is wanted",
            "p.toml:7: monitor.rule: uid: 10 is not allowed: a whole number from 0 to 9 is wanted",
            "p.toml:8: monitor.rule: an empty rule",
            "p.toml:10: monitor.rule: uid: an empty list",
        ]
    );
    for wrong in
        ["rule = 5", "rule = [5]", "rule = [{ name = \"a\" }, 5]", "rule = { name = \"a\" }"]
    {
        let problems = rules(&format!("[monitor]\n{wrong}\n"), &[]).unwrap_err();
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.starts_with("p.toml:2: monitor.rule: "), "{problem}");
        assert!(problem.ends_with(" is not allowed; it takes rules"), "{problem}");
    }
    for wrong in ["", "5", "[5]", "[{ name = \"a\" }", "[]\nother = 1", "[{ name = \"bad\" }]"] {
        let problems = rules("", &[("PROCMOND_MONITOR__RULE", wrong)]).unwrap_err();
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.starts_with("PROCMOND_MONITOR__RULE: monitor.rule: "), "{problem}");
    }
}
