use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::models::ByteString;
use crate::models::gap::GapReason;
use crate::models::process::{
    Capabilities, Completeness, Exit, FieldChange, KeyPrecision, Namespaces, ProcessEventKind,
    ProcessKey, Sha256, SourceName,
};
use crate::redaction::RawArgv;
use crate::stream::Sequence;

fn key(pid: u32) -> ProcessKey {
    ProcessKey {
        boot_id: Uuid::from_u128(0x3f2a_9c1e_0102_4304_8506_0708_090a_0b0c),
        pid,
        start_centis: 123_456,
        generation: 0,
    }
}

fn process(kind: ProcessEventKind) -> ProcessEvent {
    ProcessEvent {
        kind,
        key: key(4711),
        key_precision: KeyPrecision::Tick,
        ppid: Some(1),
        parent_key: Some(ProcessKey { start_centis: 2, ..key(1) }),
        name: Some("sleep".into()),
        exe: Some("/bin/sleep".into()),
        exe_deleted: Some(false),
        argv: Some(RawArgv::from_args(["sleep", "--token=abc", "9"]).redact()),
        cwd: Some(ByteString::new(b"/tmp/\xff".to_vec())),
        uid: Some(1000),
        euid: Some(0),
        gid: Some(1000),
        egid: Some(1000),
        login_uid: None,
        session: Some(4700),
        cgroup: Some("/user.slice".into()),
        container_id: None,
        namespaces: Some(Namespaces { pid: Some(4_026_531_836), ..Namespaces::default() }),
        start_time_ns: Some(1_700_000_000_000_000_000),
        time_ns: 1_700_000_001_000_000_000,
        monotonic_ns: Some(1_235_560_000_000),
        source: SourceName::Poll,
        completeness: Completeness::Complete,
        inferred: false,
        capabilities: Some(Capabilities(0x1_0021)),
        exe_sha256: Some(Sha256([0xab; 32])),
    }
}

/// Only what every event has.
fn bare(kind: ProcessEventKind) -> ProcessEvent {
    ProcessEvent {
        ppid: None,
        parent_key: None,
        name: None,
        exe: None,
        exe_deleted: None,
        argv: None,
        cwd: None,
        uid: None,
        euid: None,
        gid: None,
        egid: None,
        session: None,
        cgroup: None,
        namespaces: None,
        start_time_ns: None,
        monotonic_ns: None,
        capabilities: None,
        exe_sha256: None,
        ..process(kind)
    }
}

fn gap() -> GapEvent {
    GapEvent {
        reason: GapReason::LogDamaged,
        missing: Some(3),
        first_sequence: Some(Sequence(7)),
        last_sequence: Some(Sequence(9)),
        since_ns: Some(-1),
        until_ns: None,
        time_ns: 300,
        detail: "bad checksum".into(),
    }
}

fn samples() -> [(Event, EventKind, &'static str); 4] {
    [
        (
            process(ProcessEventKind::Start { existing: true }).into(),
            EventKind::Start,
            concat!(
                "010000013f2a9c1e0102430485060708090a0b0cfb6712fc40e2010000010101",
                "013f2a9c1e0102430485060708090a0b0c0102000105736c656570010a2f6269",
                "6e2f736c6565700100011b736c656570002d2d746f6b656e3d5b524544414354",
                "45445d0039000001062f746d702fff01fbe803010001fbe80301fbe8030001fb",
                "5c12010b2f757365722e736c696365000101fcfcffffef00000000000001fd00",
                "00546cfc392f2ffd009489e3fc392f2f01fd006a1dad1f01000002000001fc21",
                "00010001abababababababababababababababababababababababababababab",
                "abababab",
            ),
        ),
        (
            bare(ProcessEventKind::Stop(Exit {
                exit_code: Some(-1),
                signal: Some(9),
                core_dumped: Some(true),
                run_time_ns: Some(1_000_000_000),
                cpu_time_ns: None,
                peak_memory_bytes: Some(4096),
            }))
            .into(),
            EventKind::Stop,
            concat!(
                "01000101010112010101fc00ca9a3b0001fb00103f2a9c1e0102430485060708",
                "090a0b0cfb6712fc40e2010000010000000000000000000000000000000000fd",
                "009489e3fc392f2f000200000000",
            ),
        ),
        (
            bare(ProcessEventKind::Modify {
                changes: vec![
                    FieldChange::Name(Some("sh".into())),
                    FieldChange::Argv(None),
                    FieldChange::Cgroup(Some("/".into())),
                    FieldChange::Capabilities(Some(Capabilities(1))),
                ],
            })
            .into(),
            EventKind::Modify,
            concat!(
                "01000204000102736802000901012f0a01013f2a9c1e0102430485060708090a",
                "0b0cfb6712fc40e2010000010000000000000000000000000000000000fd0094",
                "89e3fc392f2f000200000000",
            ),
        ),
        (gap().into(), EventKind::Gap, "010102010301070109010100fb58020c62616420636865636b73756d"),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The encoding is frozen: logs written today are read by every later program. If this fails, the
/// schema needs a new version, and this one must stay readable.
#[test]
fn the_encoding_of_version_1_is_frozen() {
    for (event, kind, golden) in samples() {
        let bytes = event.encode();
        assert_eq!(hex(&bytes), golden, "{kind:?}");
        assert_eq!(Event::decode(&bytes).unwrap(), event);
        assert_eq!(event.kind(), kind);
        assert_eq!(EventKind::from_u8(kind.as_u8()), Some(kind));
    }
    assert_eq!(EventKind::from_u8(0), None);
    assert_eq!(EventKind::from_u8(5), None);
}

/// So are the numbers of the reasons.
#[test]
fn each_reason_for_a_gap_keeps_its_number() {
    use GapReason::*;
    let reasons = [
        (StreamBegan, "stream_began"),
        (LogReplaced, "log_replaced"),
        (LogDamaged, "log_damaged"),
        (LogFull, "log_full"),
        (CaptureOverrun, "capture_overrun"),
        (Shed, "shed"),
        (ConsumerBehind, "consumer_behind"),
        (Unseen, "unseen"),
        (SourceChanged, "source_changed"),
    ];
    for (number, (reason, word)) in (0..).zip(reasons) {
        let event = Event::from(GapEvent { reason, ..gap() });
        let bytes = event.encode();
        assert_eq!(
            hex(&bytes),
            format!("0101{number:02x}010301070109010100fb58020c62616420636865636b73756d")
        );
        assert_eq!(Event::decode(&bytes).unwrap(), event);
        assert_eq!(reason.as_str(), word);
        assert_eq!(serde_json::to_value(event).unwrap()["reason"], word);
    }
}

#[test]
fn json_is_flat_and_leaves_out_what_is_unknown() {
    let json = |event: Event| serde_json::to_value(event).unwrap();
    assert_eq!(
        json(process(ProcessEventKind::Start { existing: true }).into()),
        serde_json::json!({
            "type": "process", "kind": "start", "existing": true,
            "pid": 4711, "process_key": "3f2a9c1e-4711-123456.0", "key_precision": "tick",
            "ppid": 1, "parent_key": "3f2a9c1e-1-2.0", "name": "sleep", "exe": "/bin/sleep",
            "exe_deleted": false, "argv": ["sleep", "--token=[REDACTED]", "9"],
            "cwd": {"bytes": "2f746d702fff"}, "uid": 1000, "euid": 0, "gid": 1000, "egid": 1000,
            "session": 4700, "cgroup": "/user.slice", "namespaces": {"pid": 4_026_531_836_u64},
            "start_time_ns": 1_700_000_000_000_000_000_i64,
            "time_ns": 1_700_000_001_000_000_000_i64, "monotonic_ns": 1_235_560_000_000_u64,
            "source": "poll", "completeness": "complete", "inferred": false,
            "capabilities": "0000000000010021", "exe_sha256": "ab".repeat(32),
        })
    );
    let modify = ProcessEventKind::Modify { changes: vec![FieldChange::Uid(Some(1))] };
    assert_eq!(
        json(bare(modify).into()),
        serde_json::json!({
            "type": "process", "kind": "modify", "changes": [{"field": "uid", "old": 1}],
            "pid": 4711, "process_key": "3f2a9c1e-4711-123456.0", "key_precision": "tick",
            "time_ns": 1_700_000_001_000_000_000_i64, "source": "poll",
            "completeness": "complete", "inferred": false,
        })
    );
    assert_eq!(
        json(gap().into()),
        serde_json::json!({
            "type": "gap", "reason": "log_damaged", "missing": 3, "first_sequence": 7,
            "last_sequence": 9, "since_ns": -1, "time_ns": 300, "detail": "bad checksum",
        })
    );
}

#[test]
fn what_is_not_an_event_is_refused() {
    let good = Event::from(gap()).encode();
    assert!(matches!(Event::decode(&[]), Err(DecodeError::Empty)));
    assert!(matches!(Event::decode(&[2, 0]), Err(DecodeError::Version { found: 2 })));
    let trailing = [&good[..], &[0]].concat();
    assert!(matches!(Event::decode(&trailing), Err(DecodeError::Trailing { bytes: 1 })));
    for cut in 1..good.len() {
        assert!(matches!(Event::decode(&good[..cut]), Err(DecodeError::Malformed(_))), "{cut}");
    }
    let long = vec![SCHEMA_VERSION; EVENT_BYTES_MAX + 1];
    assert!(matches!(Event::decode(&long), Err(DecodeError::TooLong { .. })));
}

#[test]
fn a_length_from_outside_claims_no_memory() {
    // A gap whose detail says that it has 2^62 bytes.
    let mut bytes = vec![SCHEMA_VERSION, 1, 0, 0, 0, 0, 0, 0, 0, 253];
    bytes.extend_from_slice(&(1_u64 << 62).to_le_bytes());
    assert!(matches!(Event::decode(&bytes), Err(DecodeError::Malformed(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Event::decode(&bytes);
    }

    /// Also bytes that are nearly an event; and what decodes says the same when encoded again.
    #[test]
    fn flipped_bytes_are_read_or_refused(sample in 0..4_usize, at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut bytes = samples()[sample].0.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(event) = Event::decode(&bytes) {
            prop_assert_eq!(Event::decode(&event.encode()).unwrap(), event);
        }
    }
}
