use daemoneye_lib::config::{ConfigError, Loader};
use daemoneye_lib::redaction::RawArgv;

use super::super::tests::life;
use super::*;
use daemoneye_lib::models::event::Event;

/// The filter that these lines of TOML make, `include` and `exclude` among them.
pub(in super::super) fn filter(text: &str) -> Result<Filter, ConfigError> {
    let mut loader = Loader::new("PROCMOND");
    loader.file("f.toml", &format!("[monitor]\n{text}\n"));
    let mut rules = |key| loader.tables(key, Rule::ALLOWED, Rule::read, "");
    let filter = Filter { include: rules("monitor.include"), exclude: rules("monitor.exclude") };
    loader.finish().map(|_| filter)
}

/// A start with an executable, a user, a control group and arguments.
fn start(exe: &str, uid: u32, cgroup: &str, args: &[&str]) -> ProcessEvent {
    let [Event::Process(mut event), ..] = life() else { panic!("a start") };
    event.exe = Some(exe.into());
    event.uid = Some(uid);
    event.cgroup = Some(cgroup.into());
    event.argv = Some(RawArgv::from_args(args).redact());
    *event
}

fn admits(text: &str, event: &ProcessEvent, parent_exe: Option<&str>) -> bool {
    let parent_exe = parent_exe.map(ByteString::from);
    filter(text).unwrap().admits(&Subject::new(event, parent_exe.as_ref()))
}

#[test]
fn exclude_beats_include_in_whatever_order_they_stand() {
    let curl = start("/usr/bin/curl", 1000, "/", &["curl"]);
    for (text, told) in [
        ("", true),
        ("include = [{ exe = '/usr/bin/curl' }]", true),
        ("include = [{ exe = '/usr/bin/wget' }]", false),
        ("include = [{ exe = '/usr/bin/wget' }, { uid = 1000 }]", true),
        ("exclude = [{ exe = '/usr/bin/wget' }]", true),
        ("exclude = [{ exe = '/usr/bin/wget' }, { uid = 1000 }]", false),
        ("exclude = [{ uid = 1000 }]\ninclude = [{ exe = '/usr/bin/curl' }]", false),
        ("include = [{ exe = '/usr/bin/curl' }]\nexclude = [{ uid = 1000 }]", false),
    ] {
        assert_eq!(admits(text, &curl, None), told, "{text}");
    }
}

#[test]
fn all_conditions_of_a_rule_must_hold_and_one_value_of_each() {
    let git = start("/usr/bin/git", 7, "/user.slice/a.scope", &["git", "status", "-s"]);
    for (condition, holds) in [
        ("exe = '/usr/bin/git', uid = 7", true),
        ("exe = '/usr/bin/git', uid = 8", false),
        ("exe = ['/bin/x', '/usr/**'], uid = [1, 7]", true),
        ("cgroup = '/user.slice/**'", true),
        ("cgroup = '/user.slice'", false),
        ("parent = '/usr/bin/make'", true),
        ("parent = ['/bin/sh', '*/m?ke']", false),
        ("argv = '^git status'", true),
        ("argv = ['nothing', 'status -s$']", true),
        ("argv = '(?i)STATUS'", true),
        ("argv = 'status -s x'", false),
        ("argv = '^git status', parent = '/bin/sh'", false),
    ] {
        let text = format!("exclude = [{{ {condition} }}]");
        assert_eq!(!admits(&text, &git, Some("/usr/bin/make")), holds, "{condition}");
    }
}

#[test]
fn a_condition_on_what_is_not_known_does_not_hold() {
    let [Event::Process(mut unknown), ..] = life() else { panic!("a start") };
    unknown.exe = None;
    for condition in ["exe = '**'", "parent = '**'", "cgroup = '**'", "uid = 0", "argv = ''"] {
        // An empty text is no pattern; one that matches everything is.
        let condition = condition.replace("''", "'.*'");
        let (exclude, include) =
            (format!("exclude = [{{ {condition} }}]"), format!("include = [{{ {condition} }}]"));
        assert!(admits(&exclude, &unknown, None), "{condition}");
        assert!(!admits(&include, &unknown, None), "{condition}");
    }
}

#[test]
fn patterns_see_bytes_and_no_secrets() {
    let mut event = start("/bin/x", 0, "/", &["x", "--password=hunter2"]);
    assert!(!admits("exclude = [{ argv = 'password=' }]", &event, None));
    assert!(admits("exclude = [{ argv = 'hunter2' }]", &event, None), "it is redacted");
    event.argv = Some(RawArgv::from_args([&b"x"[..], b"\xff\xfe"]).redact());
    assert!(!admits(r"exclude = [{ argv = '^x \xff.$' }]", &event, None));
}

#[test]
fn what_cannot_be_a_pattern_is_refused_with_its_reason() {
    for (text, wanted) in [
        ("exclude = [{ argv = 'a(b' }]", "unclosed group"),
        ("exclude = [{ argv = '(a{1000}){1000}' }]", "size"),
        ("exclude = [{ exe = 'bash' }]", "**/bash"),
        ("include = [{ }]", "without a condition"),
        ("include = [{ uid = 4294967296 }]", "from 0 to 4294967295"),
        ("include = [{ exe = 5 }]", "a text is wanted"),
        ("include = [{ path = '/x' }]", "there are uid, exe, parent, cgroup, argv"),
        ("include = ['/bin/true']", "one or more of exe"),
    ] {
        let problems = filter(text).unwrap_err().problems;
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!(problem.origin, "f.toml:2");
        assert!(problem.message.contains(wanted), "{}", problem.message);
    }
}
