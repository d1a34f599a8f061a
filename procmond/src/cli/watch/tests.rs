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
    ObservedProcess { pid, start_centis: 100, facts: Some(Box::new(facts)), ended: None }
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
    let (sender, receiver) = mpsc::channel(8);
    for look in looks() {
        sender.try_send(look).unwrap();
    }
    drop(sender);
    let mut output = Output { out: Vec::new(), form, counts: Counts::default() };
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
    let mut output = Output { out: Gone, form: Form::Json, counts: Counts::default() };
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
