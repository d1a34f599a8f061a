//! `procmond wal` on sound, live, torn and damaged logs, and on directories that somebody has
//! prepared.
#![cfg(test)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use daemoneye_lib::stream::Sequence;
use procmond::wal::{WalOptions, WriteAheadLog};
#[cfg(unix)]
use rustix::fs::FileType;
use serde_json::Value;

fn command_of(args: &[&str], path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_procmond"));
    command.args(args).arg(path);
    command
}

/// Runs it to its end, which has to come.
fn output_of(mut command: Command) -> Output {
    const PATIENCE: Duration = Duration::from_secs(60);
    let named = format!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id();
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    end.recv_timeout(PATIENCE).map_or_else(
        |_| {
            #[cfg(unix)]
            if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            panic!("{named} (pid {pid}) does not end");
        },
        Result::unwrap,
    )
}

/// Exit code, standard output and standard error.
fn procmond(args: &[&str], dir: &Path) -> (i32, String, String) {
    let output = output_of(command_of(&[&["wal"], args, &["--dir"]].concat(), dir));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(args: &[&str], dir: &Path) -> (i32, Vec<Value>) {
    let (code, out, err) = procmond(&[args, &["--json"]].concat(), dir);
    assert_eq!(err, "");
    (code, out.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A log of 300 records in several segments, still open.
fn log(dir: &Path) -> WriteAheadLog {
    let options =
        WalOptions { segment_bytes: 6000, commit_delay: Duration::ZERO, ..WalOptions::default() };
    let (log, _) = WriteAheadLog::open(dir, options).unwrap();
    for n in 1..=300 {
        let sequence = log.submit(1, n, format!("payload {n:04}").as_bytes()).unwrap();
        log.durable_blocking(sequence).unwrap();
    }
    log
}

fn segment(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("procmond-{number:05}.wal"))
}

fn damage(path: &Path, needle: &[u8], with: u8) -> usize {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at] = with;
    fs::write(path, bytes).unwrap();
    at
}

#[test]
fn a_sound_log_is_listed_and_verified_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(dir.path());
    let (code, segments) = json(&["inspect"], dir.path());
    assert_eq!(code, 0);
    let (total, segments) = segments.split_last().unwrap();
    assert_eq!(segments.len(), log.stats().segments);
    let mut next = 1;
    for (index, segment) in segments.iter().enumerate() {
        assert_eq!(segment["number"], index as u64 + 1);
        assert_eq!(segment["stream"], log.stream().to_string());
        assert_eq!(segment["epoch"], log.epoch().to_string());
        assert_eq!(segment["first"], next);
        assert_eq!(segment["sound"], true);
        next = segment["last"].as_u64().unwrap() + 1;
    }
    assert_eq!(next, 301);
    assert_eq!((&total["records"], &total["lost"]), (&300.into(), &0.into()));
    assert_eq!(total["last"], 300);
    let (code, out, _) = procmond(&["inspect"], dir.path());
    assert_eq!(code, 0);
    assert!(out.contains(&format!("stream {}", log.stream())), "{out}");
    assert!(out.contains("segments, 300 records, "), "{out}");
    assert!(out.ends_with(" bytes, 0 lost, last sequence 300\n"), "{out}");
    let (code, out, _) = procmond(&["verify"], dir.path());
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("sound: "), "{out}");
}

#[test]
fn the_watermark_and_the_epochs_of_several_openings_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let first = log(dir.path());
    first.acknowledge(Sequence(20)).unwrap();
    let first_epoch = first.epoch().to_string();
    drop(first);
    let (second, _) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    let (_, segments) = json(&["inspect"], dir.path());
    let (total, segments) = segments.split_last().unwrap();
    assert_eq!(total["watermark"], 20);
    assert_eq!(segments[0]["epoch"], first_epoch);
    assert_eq!(segments[segments.len() - 1]["epoch"], second.epoch().to_string());
    assert_eq!(segments[segments.len() - 1]["first"], Value::Null, "it has no record yet");
}

#[test]
fn damage_is_named_exactly() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let at = damage(&segment(dir.path(), 2), b"payload 0150", b'P') as u64;
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!(code, 1);
    let [problem, total] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(problem["kind"], "damaged");
    assert_eq!(problem["number"], 2);
    assert_eq!((&problem["first_lost"], &problem["last_lost"]), (&150.into(), &150.into()));
    // The frame begins 32 bytes before its payload of 12.
    assert_eq!((&problem["from"], &problem["to"]), (&(at - 32).into(), &(at + 12).into()));
    assert_eq!((&total["sound"], &total["lost"]), (&false.into(), &1.into()));
    let (code, out, _) = procmond(&["verify"], dir.path());
    assert_eq!(code, 1);
    assert!(out.contains("procmond-00002.wal: damaged from byte"), "{out}");
    assert!(out.contains("record 150 lost"), "{out}");
    let (code, out, _) = procmond(&["inspect"], dir.path());
    assert_eq!(code, 0, "inspect shows, verify judges");
    assert!(out.contains("record 150 lost"), "{out}");
}

#[test]
fn a_header_a_tail_and_a_missing_segment_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    damage(&segment(dir.path(), 1), b"DEYEWAL", 0);
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!((code, &problems[0]["kind"]), (1, &"header".into()));
    assert_eq!(problems[1]["lost"], 0);
    damage(&segment(dir.path(), 1), b"\0EYEWAL", b'D');
    assert_eq!(json(&["verify"], dir.path()).0, 0, "mended");

    let last = segment(dir.path(), 3);
    let whole = fs::read(&last).unwrap();
    fs::write(&last, &whole[..whole.len() - 125]).unwrap();
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!((code, &problems[0]["kind"]), (1, &"torn_tail".into()));
    assert_eq!(problems[0]["to"], whole.len() as u64 - 125);
    fs::write(&last, whole).unwrap();

    fs::remove_file(segment(dir.path(), 2)).unwrap();
    let (code, problems) = json(&["verify"], dir.path());
    assert_eq!((code, &problems[0]["kind"]), (1, &"predecessor_missing".into()));
    assert_eq!(problems[0]["number"], 3);
    let lost = problems[0]["last_lost"].as_u64().unwrap()
        - problems[0]["first_lost"].as_u64().unwrap()
        + 1;
    assert_eq!(problems[1]["lost"], lost);
    assert_eq!(problems[1]["records"].as_u64().unwrap() + lost, 300);
}

#[test]
fn nothing_is_changed_by_looking() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let last = segment(dir.path(), 3);
    let whole = fs::read(&last).unwrap();
    fs::write(&last, &whole[..whole.len() - 125]).unwrap();
    let state = || {
        let mut files: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (fs::read(&path).unwrap(), path))
            .collect();
        files.sort();
        files
    };
    let before = state();
    procmond(&["inspect"], dir.path());
    procmond(&["verify"], dir.path());
    assert_eq!(state(), before);
}

#[test]
fn a_wrong_directory_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = procmond(&["verify"], &dir.path().join("nowhere"));
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("nowhere is not a directory"), "{err}");
    let (code, _, err) = procmond(&["inspect"], dir.path());
    assert_eq!(code, 2);
    assert!(err.contains("holds no log"), "{err}");
}

/// What every record that can be read says, by its sequence, and the gaps.
fn exported(dir: &Path, more: &[&str]) -> (Vec<u64>, Vec<(u64, u64, String)>) {
    let (code, out, _) = procmond(&[&["export", "--json"], more].concat(), dir);
    assert_eq!(code, 0);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (mut records, mut gaps) = (Vec::new(), Vec::new());
    for line in lines {
        if line["type"] == "gap" {
            let number = |name: &str| line[name].as_u64().unwrap();
            let reason = line["reason"].as_str().unwrap().to_owned();
            gaps.push((number("first_sequence"), number("last_sequence"), reason));
        } else {
            let sequence = line["sequence"].as_u64().unwrap();
            let payload: String = format!("payload {sequence:04}")
                .bytes()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(line["event"]["undecodable"], payload, "these are no events");
            assert_eq!(line["time_ns"], sequence);
            records.push(sequence);
        }
    }
    (records, gaps)
}

#[test]
fn records_are_exported_with_the_gaps_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let live = log(dir.path());
    assert_eq!(exported(dir.path(), &[]), ((1..=300).collect(), vec![]), "a live log");
    assert_eq!(
        exported(dir.path(), &["--from", "99", "--to", "201"]).0,
        (99..=201).collect::<Vec<_>>()
    );
    assert_eq!(exported(dir.path(), &["--since", "1970-01-01T00:00:00.000000250Z"]).0.len(), 51);
    assert_eq!(exported(dir.path(), &["--kind", "start"]).0.len(), 300, "kind 1 is a start");
    assert_eq!(exported(dir.path(), &["--kind", "stop,gap"]).0.len(), 0);
    drop(live);
    damage(&segment(dir.path(), 2), b"payload 0150", b'P');
    let (records, gaps) = exported(dir.path(), &[]);
    assert_eq!(records, (1..=300).filter(|&n| n != 150).collect::<Vec<_>>());
    assert_eq!(gaps, [(150, 150, "damaged".to_owned())]);
    fs::remove_file(segment(dir.path(), 2)).unwrap();
    let (records, gaps) = exported(dir.path(), &[]);
    assert_eq!(gaps.len(), 1);
    assert_eq!(gaps[0].2, "missing");
    assert_eq!(records.len() as u64 + gaps[0].1 - gaps[0].0 + 1, 300);
    let (code, out, _) = procmond(&["export"], dir.path());
    assert_eq!(code, 0);
    assert!(out.contains(&format!("records up to {} are missing --", gaps[0].1)), "{out}");
}

#[test]
fn one_record_is_explained_byte_by_byte() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let (code, lines) = json(&["inspect", "--record", "150"], dir.path());
    assert_eq!(code, 0);
    let [record] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(record["segment"], 2);
    let bytes = fs::read(segment(dir.path(), 2)).unwrap();
    let offset = record["offset"].as_u64().unwrap() as usize;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut at = 0;
    for field in record["fields"].as_array().unwrap() {
        assert_eq!(field["at"], at, "no byte is left out");
        let length = field["bytes"].as_str().unwrap().len() / 2;
        assert_eq!(field["bytes"], hex(&bytes[offset + at..offset + at + length]));
        at += length;
    }
    assert_eq!(at, 32);
    assert_eq!(record["payload"], hex(b"payload 0150"));
    let (code, out, _) = procmond(&["inspect", "--record", "150"], dir.path());
    assert_eq!(code, 0);
    assert!(out.contains("right: CRC-32 of bytes 8 to 44"), "{out}");
    let (code, _, err) = procmond(&["inspect", "--record", "301"], dir.path());
    assert_eq!(code, 1);
    assert!(err.contains("record 301 is not in these files"), "{err}");
    damage(&segment(dir.path(), 2), b"payload 0150", b'P');
    let (code, _, err) = procmond(&["inspect", "--record", "150"], dir.path());
    assert_eq!((code, err.as_str()), (1, "procmond: record 150 is damaged\n"));
}

/// Repairs, and checks that all is accounted for and stays so when the log is opened.
fn repaired(dir: &Path) -> Vec<(u64, u64)> {
    let before = exported(dir, &[]);
    let (code, out, err) = procmond(&["repair"], dir);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(procmond(&["verify"], dir).0, 0, "{out}");
    let after = exported(dir, &[]);
    assert_eq!(after.0, before.0, "{out}");
    let gaps: Vec<_> = after.1.iter().map(|(first, last, _)| (*first, *last)).collect();
    let lost: Vec<_> = before.1.iter().map(|(first, last, _)| (*first, *last)).collect();
    assert_eq!(gaps[..lost.len()], lost, "{out}");
    let (_, again, _) = procmond(&["repair"], dir);
    assert!(again.starts_with("sound: ") || again.contains("known gap"), "{again}");
    assert!(!again.contains("kept in"), "nothing is left to mend: {again}");
    let (log, recovery) = WriteAheadLog::open(dir, WalOptions::default()).unwrap();
    assert_eq!(recovery.torn, None);
    let first = log.last().next();
    let sequence = log.submit(1, first.0 as i64, format!("payload {first:04}").as_bytes()).unwrap();
    log.durable_blocking(sequence).unwrap();
    drop(log);
    let (mut records, _) = exported(dir, &[]);
    assert_eq!(records.pop(), Some(sequence.0));
    assert_eq!(records, before.0);
    gaps
}

#[test]
fn repair_keeps_every_record_that_can_be_read() {
    type Case = (&'static str, fn(&Path), &'static [(u64, u64)]);
    let cases: [Case; 6] = [
        (
            "a record",
            |dir| {
                damage(&segment(dir, 2), b"payload 0150", b'P');
            },
            &[(150, 150)],
        ),
        (
            "a header",
            |dir| {
                damage(&segment(dir, 1), b"DEYEWAL", 0);
            },
            &[],
        ),
        (
            "a torn tail",
            |dir| {
                let whole = fs::read(segment(dir, 3)).unwrap();
                fs::write(segment(dir, 3), &whole[..whole.len() - 125]).unwrap();
            },
            &[],
        ),
        (
            "a foreign file",
            |dir| {
                let other = tempfile::tempdir().unwrap();
                drop(log(other.path()));
                fs::copy(segment(other.path(), 1), segment(dir, 1)).unwrap();
            },
            &[(1, 128)],
        ),
        ("a missing segment", |dir| fs::remove_file(segment(dir, 2)).unwrap(), &[(129, 256)]),
        (
            "a segment that nothing names",
            |dir| fs::write(segment(dir, 2), [0x55; 6000]).unwrap(),
            &[(129, 256)],
        ),
    ];
    for (what, hurt, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        drop(log(dir.path()));
        hurt(dir.path());
        let state: Vec<_> = (1..=3).map(|n| fs::read(segment(dir.path(), n)).ok()).collect();
        assert_eq!(procmond(&["verify"], dir.path()).0, 1, "{what}");
        let gaps = repaired(dir.path());
        assert_eq!(gaps.len(), expected.len(), "{what}: {gaps:?}");
        for (gap, expected) in gaps.iter().zip(expected) {
            assert_eq!(gap, expected, "{what}");
        }
        // Each file that is not what it was is among the copies.
        let copies: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("repair-"))
            .collect();
        let [copies] = &copies[..] else { panic!("{what}: {copies:?}") };
        for (index, before) in state.iter().enumerate() {
            let path = segment(dir.path(), index as u64 + 1);
            let now = fs::read(&path).ok();
            if before.is_some() && &now != before {
                let copy = fs::read(copies.join(path.file_name().unwrap())).ok();
                assert!(&copy == before, "{what}: {path:?}");
            }
        }
    }
}

#[test]
fn a_lost_newest_segment_gives_no_sequence_twice() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    let bytes = fs::metadata(segment(dir.path(), 3)).unwrap().len();
    fs::write(segment(dir.path(), 3), vec![0x55; bytes as usize]).unwrap();
    let gaps = repaired(dir.path());
    assert_eq!(gaps.len(), 1);
    assert!(gaps[0].0 == 257 && gaps[0].1 >= 300, "{gaps:?}");
}

#[test]
fn repair_and_compact_refuse_a_directory_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _live = log(dir.path());
    for command in ["repair", "compact"] {
        let (code, out, err) = procmond(&[command], dir.path());
        assert_eq!((code, out.as_str()), (1, ""), "{command}");
        let pid = format!("the process with pid {}", std::process::id());
        assert!(err.contains(&pid), "{command}: {err}");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(procmond(&[command], empty.path()).0, 2);
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "no lock file is left");
    }
}

#[test]
fn compacting_leaves_what_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let live = log(dir.path());
    live.acknowledge(Sequence(200)).unwrap();
    live.close().unwrap();
    let (stream, epoch) = (live.stream(), live.epoch_at(Sequence(200)));
    drop(live);
    let (code, lines) = json(&["compact"], dir.path());
    assert_eq!(code, 0);
    assert_eq!(lines[0]["watermark"], 200);
    assert!(lines[0]["bytes_after"].as_u64() < lines[0]["bytes_before"].as_u64());
    assert_eq!(procmond(&["verify"], dir.path()).0, 0);
    assert_eq!(exported(dir.path(), &[]), ((201..=300).collect(), vec![]));
    let (again, recovery) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    assert_eq!((again.stream(), again.epoch_at(Sequence(200))), (stream, epoch));
    assert_eq!((recovery.watermark, recovery.last), (Sequence(200), Sequence(300)));
    assert_eq!(recovery.damage, []);
    again.acknowledge(Sequence(300)).unwrap();
    again.close().unwrap();
    assert_eq!(procmond(&["compact"], dir.path()).0, 0);
    assert_eq!(exported(dir.path(), &[]), (vec![], vec![]));
    let (empty, recovery) = WriteAheadLog::open(dir.path(), WalOptions::default()).unwrap();
    assert_eq!(empty.stream(), stream);
    assert_eq!((recovery.watermark, recovery.last), (Sequence(300), Sequence(300)));
    drop(empty);

    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path()));
    damage(&segment(dir.path(), 2), b"payload 0150", b'P');
    let (code, out, err) = procmond(&["compact"], dir.path());
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is damaged"), "{err}");
}

/// What may stand under a segment's name, how it is made, and what it is called.
#[cfg(unix)]
type Odd = (&'static str, fn(&Path), &'static str);

#[cfg(unix)]
const ODD: [Odd; 6] = [
    ("a pipe", |path| make_node(path, FileType::Fifo), "it is a named pipe"),
    ("a device", |path| make_node(path, FileType::CharacterDevice), "it is a device"),
    (
        "a socket",
        |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "it is a socket",
    ),
    ("a directory", |path| fs::create_dir(path).unwrap(), "it is a directory"),
    (
        "a link to a file elsewhere",
        |path| {
            let elsewhere = outside(path).join("precious");
            fs::write(&elsewhere, "precious").unwrap();
            std::os::unix::fs::symlink(elsewhere, path).unwrap();
        },
        "it is a symbolic link",
    ),
    (
        "a sparse file with something at its far end",
        |path| {
            let file = fs::File::create(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"far", 1 << 40).unwrap();
        },
        "it is a sparse file, longer than any segment",
    ),
];

/// Past the harness, which would keep it to itself.
#[cfg(unix)]
fn told(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// A place beside the log that nothing of the log has any business in.
#[cfg(unix)]
fn outside(path: &Path) -> PathBuf {
    let outside = path.parent().unwrap().with_extension("outside");
    fs::create_dir_all(&outside).unwrap();
    outside
}

#[cfg(unix)]
fn make_node(path: &Path, kind: FileType) {
    use rustix::fs::{CWD, Mode, makedev, mknodat};
    let null = makedev(1, 3);
    match mknodat(CWD, path, kind, Mode::from(0o600), null) {
        Err(rustix::io::Errno::PERM) if kind != FileType::Fifo => {
            told("not privileged to make a device: a pipe stands for it");
            assert!(std::env::var_os("CI").is_none(), "CI makes devices");
            make_node(path, FileType::Fifo);
        }
        made => made.unwrap(),
    }
}

/// A log in a directory of its own, closed, and what of it may not change. What lies outside of the
/// log directory is removed with the rest.
struct Prepared {
    top: tempfile::TempDir,
}

impl Prepared {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        drop(log(&top.path().join("log")));
        Self { top }
    }

    fn dir(&self) -> PathBuf {
        self.top.path().join("log")
    }
}

/// Nothing a terminal would act upon, but for the ends of lines.
fn assert_plain(text: &str) {
    let acts = |character: char| character.is_control() && character != '\n';
    assert!(!text.contains(acts), "{text:?}");
}

#[test]
#[cfg(unix)]
fn what_is_no_segment_is_named_and_not_opened() {
    for (what, make, said) in ODD {
        let prepared = Prepared::new();
        let dir = prepared.dir();
        fs::remove_file(segment(&dir, 2)).unwrap();
        make(&segment(&dir, 2));
        let is_device = fs::symlink_metadata(segment(&dir, 2)).unwrap().file_type();
        let said = if what == "a device" && std::os::unix::fs::FileTypeExt::is_fifo(&is_device) {
            "it is a named pipe"
        } else {
            said
        };
        let named = format!("procmond-00002.wal: not read: {said}");
        let (code, out, _) = procmond(&["verify"], &dir);
        assert_eq!(code, 1, "{what}: {out}");
        assert!(out.contains(&named), "{what}: {out}");
        assert!(out.contains("records 129 to 256 lost"), "{what}: {out}");
        let (code, lines) = json(&["inspect"], &dir);
        assert_eq!((code, &lines[1]["fault"]), (0, &said.into()), "{what}");
        assert_eq!(lines[1]["problems"][0]["kind"], "not_a_segment", "{what}");
        let (code, _, err) = procmond(&["export"], &dir);
        assert_eq!(code, 0, "{what}");
        let path = segment(&dir, 2);
        assert!(err.contains(&format!("{} is not read: {said}", path.display())), "{what}: {err}");
        assert_eq!(procmond(&["inspect", "--record", "150"], &dir).0, 1, "{what}");
        let (code, _, err) = procmond(&["compact"], &dir);
        assert_eq!(code, 1, "{what}");
        assert!(err.contains("is damaged"), "{what}: {err}");
        assert_eq!(repaired(&dir), [(129, 256)], "{what}");
        if what.starts_with("a link") {
            let precious = fs::read(outside(&segment(&dir, 2)).join("precious")).unwrap();
            assert_eq!(precious, b"precious");
        }
    }
}

/// The same among the archives, and as the one file asked for.
#[test]
#[cfg(unix)]
fn what_is_no_archive_is_named_and_not_opened() {
    for (what, make, _) in ODD {
        let prepared = Prepared::new();
        let dir = prepared.dir();
        let path = dir.join("procmond_20260131_235959-00002.wal");
        make(&path);
        let run = |command: &str, path: &Path| {
            let output = output_of(command_of(&["wal", command, "--archive"], path));
            (output.status.code().unwrap(), format!("{output:?}"))
        };
        let (code, out) = run("verify", &dir);
        assert_eq!(code, 1, "{what}: {out}");
        assert!(
            out.contains("procmond_20260131_235959-00002.wal: not read: it is"),
            "{what}: {out}"
        );
        // Whoever names a link means what it leads to.
        if !what.starts_with("a link") && !what.starts_with("a directory") {
            for command in ["inspect", "verify", "export"] {
                let (code, out) = run(command, &path);
                assert_eq!(code, 1, "{what}, {command}: {out}");
                assert!(out.contains("-00002.wal") && out.contains("it is a"), "{what}: {out}");
            }
        }
    }
}

#[test]
#[cfg(unix)]
fn nothing_is_written_through_a_link() {
    let prepared = Prepared::new();
    let dir = prepared.dir();
    let precious = outside(&segment(&dir, 1)).join("precious");
    let link = |name: &str| {
        fs::write(&precious, "precious").unwrap();
        let link = dir.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&precious, &link).unwrap();
    };
    // The lock is written to: the pid.
    for command in ["repair", "compact"] {
        link("procmond.lock");
        let (code, out, err) = procmond(&[command], &dir);
        assert_eq!((code, &*out), (1, ""), "{command}: {err}");
        assert!(err.contains("procmond.lock") && err.contains("it is no file"), "{command}: {err}");
        assert_eq!(fs::read(&precious).unwrap(), b"precious", "{command}");
    }
    fs::remove_file(dir.join("procmond.lock")).unwrap();
    fs::remove_file(&precious).unwrap();
    link("procmond.lock");
    fs::remove_file(&precious).unwrap();
    assert_eq!(procmond(&["repair"], &dir).0, 1);
    assert!(!precious.exists(), "and none is made where a link leads to nothing");
    fs::remove_file(dir.join("procmond.lock")).unwrap();

    // A segment is made under this name before it takes another's place.
    damage(&segment(&dir, 2), b"payload 0150", b'P');
    link("procmond-00002.wal.new");
    assert_eq!(repaired(&dir), [(150, 150)]);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(fs::symlink_metadata(segment(&dir, 2)).unwrap().is_file());
    let (log, _) = WriteAheadLog::open(&dir, WalOptions::default()).unwrap();
    log.acknowledge(Sequence(200)).unwrap();
    log.close().unwrap();
    drop(log);
    let partly = fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.ends_with(".wal"))
        .collect::<Vec<_>>();
    for name in &partly {
        link(&format!("{name}.new"));
    }
    let (code, _, err) = procmond(&["compact"], &dir);
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(exported(&dir, &[]).0.first(), Some(&201));
}

#[test]
#[cfg(unix)]
fn names_are_shown_so_that_no_terminal_acts_upon_them() {
    use std::os::unix::ffi::OsStrExt;
    let names: [&[u8]; 3] =
        [b"\x1b[2J\x1b]0;owned\x07", b"\xff\xfe\x9b31m", "\u{9b}31m\u{202e}".as_bytes()];
    for name in names {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join(std::ffi::OsStr::from_bytes(name));
        drop(log(&dir));
        damage(&segment(&dir, 2), b"payload 0150", b'P');
        // Beside the segments, and almost one of them.
        for stem in [&b"procmond-00001.wal"[..], b"procmond-", b""] {
            let path = dir.join(std::ffi::OsStr::from_bytes(&[stem, name].concat()));
            fs::write(path, "not ours").unwrap();
        }
        fs::create_dir(segment(&dir, 9)).unwrap();
        let archive = dir.join(std::ffi::OsStr::from_bytes(&[name, b".wal"].concat()));
        fs::copy(segment(&dir, 1), &archive).unwrap();
        for args in [
            &["inspect"][..],
            &["verify"],
            &["export"],
            &["inspect", "--record", "150"],
            &["inspect", "--record", "151"],
            &["repair"],
            &["compact"],
        ] {
            for json in [&["--json"][..], &[]] {
                let args = [&["wal"], args, json, &["--dir"]].concat();
                let output = output_of(command_of(&args, &dir));
                for text in [output.stdout, output.stderr] {
                    assert_plain(&String::from_utf8(text).unwrap());
                }
            }
        }
        for path in
            [&archive, &dir.join("nowhere"), &top.path().join("nowhere").join(name_of(name))]
        {
            for json in [&["--json"][..], &[]] {
                for command in ["inspect", "verify", "export"] {
                    let args = [&["wal", command], json, &["--archive"]].concat();
                    let output = output_of(command_of(&args, path));
                    for text in [output.stdout, output.stderr] {
                        assert_plain(&String::from_utf8(text).unwrap());
                    }
                }
            }
        }
        let (code, _, err) = procmond(&["verify"], &top.path().join(name_of(name)).join("nowhere"));
        assert_eq!(code, 2);
        assert_plain(&err);
    }
}

#[cfg(unix)]
fn name_of(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

/// A segment with a hole of a terabyte behind it is read to the end of its data.
#[test]
#[cfg(target_os = "linux")]
fn a_hole_behind_a_segment_is_not_read() {
    let prepared = Prepared::new();
    let dir = prepared.dir();
    damage(&segment(&dir, 2), b"payload 0150", b'P');
    for number in [2, 3] {
        let file = fs::File::options().write(true).open(segment(&dir, number)).unwrap();
        if let Err(error) = file.set_len(1 << 40) {
            told(&format!("skipped: this file system has no files of a terabyte ({error})"));
            return;
        }
    }
    let expected = (1..=300).filter(|&n| n != 150).collect::<Vec<_>>();
    assert_eq!(exported(&dir, &[]), (expected.clone(), vec![(150, 150, "damaged".to_owned())]));
    let (_, lines) = json(&["verify"], &dir);
    let total = lines.last().unwrap();
    assert_eq!((&total["records"], &total["lost"]), (&299.into(), &1.into()));
    assert_eq!(procmond(&["compact"], &dir).0, 1);
    let (code, out, err) = procmond(&["repair"], &dir);
    assert_eq!(code, 0, "{out}{err}");
    assert!(
        fs::metadata(segment(&dir, 2)).unwrap().len() < 10_000,
        "mended, it ends where it ends"
    );
    assert_eq!(exported(&dir, &[]).0, expected);
    assert_eq!(procmond(&["compact"], &dir).0, 0);
    assert!(fs::metadata(segment(&dir, 3)).unwrap().len() < 10_000);
    assert_eq!(exported(&dir, &[]).0, expected);
}

/// Somebody appends to the newest segment as fast as they can, and they are no log.
#[test]
fn a_file_that_grows_meanwhile_is_read_to_where_it_ended() {
    let prepared = Prepared::new();
    let dir = prepared.dir();
    let stop = AtomicBool::new(false);
    let path = segment(&dir, 3);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Of the file that has the name, which is another once it has been mended.
            while !stop.load(Ordering::Relaxed) {
                let mut file = fs::File::options().append(true).open(&path).unwrap();
                for _ in 0..100 {
                    file.write_all(&[0x55; 4096]).unwrap();
                }
                if file.metadata().unwrap().len() > 64 << 20 {
                    file.set_len(4096).unwrap();
                }
            }
        });
        for command in ["inspect", "verify", "export", "repair", "compact"] {
            let (code, _, err) = procmond(&[command], &dir);
            assert!(code < 2, "{command}: {err}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(exported(&dir, &["--to", "256"]).0.len(), 256, "nothing was harmed");
}

/// Run as an ordinary user on files that only root may read.
#[test]
#[cfg(unix)]
fn a_file_that_may_not_be_read_is_named() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let prepared = Prepared::new();
    let dir = prepared.dir();
    let before = fs::read(segment(&dir, 1)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        for path in [prepared.top.path(), &dir] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    fs::set_permissions(segment(&dir, 2), fs::Permissions::from_mode(0o0)).unwrap();
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if root && path != segment(&dir, 2) {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    for command in ["inspect", "verify", "export", "repair", "compact"] {
        let mut run = command_of(&["wal", command, "--dir"], &dir);
        if root {
            // The program itself may stand where only root gets to: it is given as an open file.
            let program = fs::File::open(env!("CARGO_BIN_EXE_procmond")).unwrap();
            run = Command::new("/proc/self/fd/0");
            run.args(["wal", command, "--dir"]).arg(&dir).stdin(program).uid(NOBODY).gid(NOBODY);
        }
        let output = output_of(run);
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}: {err}");
        let named = err.contains("procmond-00002.wal") && err.contains("Permission denied");
        assert!(named, "{command}: {err}");
    }
    assert_eq!(fs::read(segment(&dir, 1)).unwrap(), before);
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.map(|name| name.into_string().unwrap()).any(|name| name.starts_with("repair-")));
}
