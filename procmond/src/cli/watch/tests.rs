use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision, SourceName};
use daemoneye_lib::redaction::RawArgv;
use uuid::Uuid;

use super::*;
use crate::source::{Facts, ObservedProcess, ProcessTable};

fn process(pid: u32, ppid: u32, args: &[&str]) -> ObservedProcess {
    let mut facts = Facts::unknown(Completeness::Complete);
    facts.ppid = Some(ppid);
    facts.name = Some(args[0].into());
    facts.argv = Some(RawArgv::from_args(args).redact());
    facts.uid = Some(1000);
    facts.euid = Some(1000);
    ObservedProcess {
        pid,
        start_centis: 100,
        start_ns: None,
        facts: Some(Box::new(facts)),
        ended: None,
    }
}

fn table(uptime_ns: u64, processes: Vec<ObservedProcess>) -> Observation {
    Observation::Snapshot(ProcessTable {
        source: SourceName::Poll,
        is_told: false,
        boot_id: Uuid::nil(),
        precision: KeyPrecision::Tick,
        time_ns: 1_700_000_000_000_000_000,
        uptime_ns,
        processes,
    })
}

/// A look with only pid 1, one in which pid 7 begins, one in which it ends.
fn looks() -> Vec<Observation> {
    let begun = process(7, 1, &["x\x1b[2J", "--password=hunter2", "two words", "\u{202e}"]);
    let mut over = process(7, 1, &["x"]);
    over.ended = Some(Exit { exit_code: Some(3), ..Exit::default() });
    vec![
        table(1_000_000_000, vec![process(1, 0, &["init"])]),
        table(2_000_000_000, vec![process(1, 0, &["init"]), begun]),
        table(3_500_000_000, vec![process(1, 0, &["renamed"]), over]),
    ]
}

fn shown(form: Form) -> (String, Counts) {
    shown_of(looks(), form, false)
}

fn shown_of(looks: Vec<Observation>, form: Form, tree: bool) -> (String, Counts) {
    let (sender, receiver) = mpsc::channel(8);
    for look in looks {
        sender.try_send(look).unwrap();
    }
    drop(sender);
    let tree = tree.then(Departed::default);
    let mut output = Output { out: Vec::new(), form, tree, counts: Counts::default() };
    let mut tracker = Tracker::new();
    assert!(matches!(output.show_all(receiver, &mut tracker, ""), End::Asked));
    (String::from_utf8(output.out).unwrap(), output.counts)
}

fn lines(colour: bool) -> Form {
    Form::Lines(LineStyle {
        colour,
        follow_width: false,
        zone: TimeZone::UTC,
        users: Users::parse(b"root:x:0:0::/root:/bin/sh\nnobroken\nbob:x:1000:1000::/:/bin/sh\n"),
    })
}

#[test]
fn lines_are_plain_and_aligned_and_keep_secrets_and_escapes_from_the_terminal() {
    let (text, counts) = shown(lines(false));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            r"22:13:19.000 +       7 ← init[1]                bob      'x\x1b[2J' --password=[REDACTED] 'two words' \u{202e}",
            r"22:13:20.000 ~       1 ← [0]                    bob      renamed  name init → renamed",
            r"22:13:20.000 -       7 ← renamed[1]             bob      'x\x1b[2J' --password=[REDACTED] 'two words' \u{202e}  ran 2.5 s, exit 3",
        ]
    );
    assert_eq!(counts, Counts { starts: 1, stops: 1, changes: 1 });
    assert_eq!(counts.text(), "1 start, 1 stop and 1 change");
}

/// A shell with an odd name starts a program and is gone with the same look.
fn descent() -> Vec<Observation> {
    let there = || vec![process(1, 0, &["init"]), process(3, 1, &["x[1] › y\x1b[2J"])];
    let over = |process| ObservedProcess { ended: Some(Exit::default()), ..process };
    let mut begun = there();
    begun.push(process(7, 3, &["curl", "-s"]));
    vec![
        table(1_000_000_000, there()),
        table(2_000_000_000, begun),
        table(3_500_000_000, vec![process(1, 0, &["init"]), over(process(7, 3, &["curl"]))]),
    ]
}

#[test]
fn a_tree_shows_what_a_process_descends_from_and_no_name_poses_as_a_chain() {
    let (text, _) = shown_of(descent(), lines(false), true);
    let chain = r"init[1] › 'x[1] › y\x1b[2J'[3] › curl -s";
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            format!("22:13:19.000 +       7 bob      {chain}"),
            r"22:13:20.000 -       3 bob      init[1] › 'x[1] › y\x1b[2J'  ran 2.5 s".to_owned(),
            format!("22:13:20.000 -       7 bob      {chain}  ran 2.5 s"),
        ]
    );
}

#[test]
fn json_has_the_ancestry_only_where_it_is_asked_for() {
    let ancestry = |tree| -> Vec<serde_json::Value> {
        let (text, _) = shown_of(descent(), Form::Json, tree);
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let of_seven = events.filter(|event: &serde_json::Value| event["pid"] == 7);
        of_seven.map(|event| event["ancestry"].clone()).collect()
    };
    let expected = serde_json::json!([
        { "pid": 3, "name": "x[1] › y\u{1b}[2J", "process_key": "00000000-3-100.0" },
        { "pid": 1, "name": "init", "process_key": "00000000-1-100.0" },
    ]);
    assert_eq!(ancestry(true), [expected.clone(), expected]);
    assert_eq!(ancestry(false), [serde_json::Value::Null, serde_json::Value::Null]);
}

#[test]
fn a_chain_that_is_too_long_loses_its_oldest_links() {
    let mut tracker = Tracker::new();
    let all = (1..=80).map(|pid| process(pid, pid - 1, &["sh"])).collect();
    tracker.observe(table(2_000_000_000, all));
    let chain = |pid, room| line::chain(&tracker.ancestry(pid), room);
    assert_eq!(chain(4, None), "sh[1] › sh[2] › sh[3] › ");
    assert_eq!(chain(4, Some(24)), "sh[1] › sh[2] › sh[3] › ");
    assert_eq!(chain(4, Some(23)), "… › sh[2] › sh[3] › ");
    assert_eq!(chain(4, Some(3)), "… › ");
    assert_eq!(chain(1, Some(0)), "");
    let deep = chain(80, None);
    assert!(deep.starts_with("… › sh[49] › ") && deep.ends_with(" › sh[79] › "), "{deep}");
}

#[test]
fn colours_are_the_only_escape_sequences() {
    let (text, _) = shown(lines(true));
    assert!(text.contains("\x1b[32m"), "{text:?}");
    let without: String = text
        .split('\x1b')
        .map(|part| part.split_once('m').map_or(part, |(_, rest)| rest))
        .collect();
    assert!(!without.contains('\x1b'));
    assert!(!text.contains("[2J\x1b") && text.contains(r"\x1b[2J"), "{text:?}");
}

#[test]
fn json_is_one_object_a_line_with_what_was_there() {
    let (text, counts) = shown(Form::Json);
    let kinds: Vec<(String, bool)> = text
        .lines()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            (event["kind"].as_str().unwrap().to_owned(), event["existing"] == true)
        })
        .collect();
    let kind = |kind: &str, existing| (kind.to_owned(), existing);
    assert_eq!(
        kinds,
        [kind("start", true), kind("start", false), kind("modify", false), kind("stop", false)]
    );
    assert_eq!(counts.starts, 2);
}

#[test]
fn a_reader_that_has_gone_is_a_clean_end() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, receiver) = mpsc::channel(8);
    for look in looks() {
        sender.try_send(look).unwrap();
    }
    let mut output = Output { out: Gone, form: Form::Json, tree: None, counts: Counts::default() };
    let mut tracker = Tracker::new();
    // The sender is still there: it is the write that ends it.
    assert!(matches!(output.show_all(receiver, &mut tracker, ""), End::Asked));
}

#[test]
fn an_interval_is_seconds_within_limits() {
    assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
    for bad in ["", "x", "-1", "0", "NaN", "inf", "1e9"] {
        assert!(interval(bad).is_err(), "{bad:?}");
    }
}
