use std::collections::{BTreeMap, BTreeSet};

use daemoneye_lib::models::process::{Completeness, Exit, KeyPrecision, SourceName};
use proptest::prelude::*;
use uuid::Uuid;

use super::super::filter::tests::filter;
use super::super::tracker::{TableImage, Tracker};
use super::*;
use crate::source::{
    Facts, Happening, Happenings, Observation, ObservedProcess, ProcessTable, What,
};

const BOOT: Uuid = Uuid::from_u128(7);

/// What a process is: the number of its program, whether it is root's, its parent.
type Kind = (u8, bool, u32);

fn facts((program, root, ppid): Kind) -> Box<Facts> {
    let mut facts = Facts::unknown(Completeness::Complete);
    facts.ppid = Some(ppid);
    facts.exe = Some(format!("/bin/{program}").as_str().into());
    facts.uid = Some(if root { 0 } else { 1000 });
    Box::new(facts)
}

fn look(at_ns: u64, processes: impl IntoIterator<Item = (u32, u64, Kind)>) -> Observation {
    let observed = |(pid, start_ns, kind)| ObservedProcess {
        pid,
        start_centis: start_ns / 10_000_000,
        start_ns: None,
        facts: Some(facts(kind)),
        ended: None,
    };
    Observation::Snapshot(ProcessTable {
        source: SourceName::Poll,
        is_told: true,
        boot_id: BOOT,
        precision: KeyPrecision::Tick,
        time_ns: at_ns as i64,
        uptime_ns: at_ns,
        processes: processes.into_iter().map(observed).collect(),
    })
}

fn seen(happenings: Vec<Happening>) -> Observation {
    let source = SourceName::Ebpf;
    Observation::Seen(Happenings { source, boot_id: BOOT, wall_offset_ns: 0, happenings })
}

/// A tracker and its gate.
struct Bench {
    tracker: Tracker,
    gate: Gate,
    limit: Option<NonZeroU32>,
    summarised: u64,
}

impl Bench {
    fn new(rules: &str) -> Self {
        Self::limited(rules, 0)
    }

    /// With a limit for each control group.
    fn limited(rules: &str, limit: u32) -> Self {
        let (tracker, limit) = (Tracker::new(), NonZeroU32::new(limit));
        let gate = Gate::new(filter(rules).unwrap(), limit, &tracker);
        Self { gate, tracker, limit, summarised: 0 }
    }

    /// What is told of an observation.
    fn tell(&mut self, observation: Observation) -> Vec<ProcessEvent> {
        let events = self.tracker.observe(observation).into_iter();
        let told = events.filter_map(|event| self.gate.pass(event));
        told.map(|event| match event {
            Event::Process(event) => *event,
            Event::Gap(gap) => panic!("{gap:?}"),
        })
        .collect()
    }

    /// Has summaries told, counts what is in them, and gives who lives on and has room.
    fn summarise(&mut self, now_ns: u64) -> Vec<ProcessEvent> {
        self.summarised += self.gate.summaries().iter().filter_map(|gap| gap.missing).sum::<u64>();
        let survivors = self.gate.survivors(&self.tracker, now_ns).into_iter();
        survivors
            .map(|event| match event {
                Event::Process(event) => *event,
                Event::Gap(gap) => panic!("{gap:?}"),
            })
            .collect()
    }

    /// As a restart goes on from the saved table.
    fn restart(&mut self, rules: &str) {
        let mut bytes = Vec::new();
        self.tracker.encode(|key| self.gate.withholds(key)).encode_into(&mut bytes);
        self.tracker = Tracker::restore(&TableImage::decode(&bytes).unwrap());
        self.gate = Gate::new(filter(rules).unwrap(), self.limit, &self.tracker);
    }
}

/// `=` start of one that was there, `+` start, `-` stop, `~` change; and the pid.
fn short(events: &[ProcessEvent]) -> Vec<String> {
    let sign = |event: &ProcessEvent| match event.kind {
        ProcessEventKind::Start { existing: true } => '=',
        ProcessEventKind::Start { existing: false } => '+',
        ProcessEventKind::Stop(_) => '-',
        ProcessEventKind::Modify { .. } => '~',
    };
    events.iter().map(|event| format!("{}{}", sign(event), event.pid())).collect()
}

fn at(at_ns: u64, pid: u32, what: What) -> Happening {
    // Each pid lives once here.
    Happening {
        pid,
        start_ns: 1_000_000_000 + u64::from(pid) * 20_000_000,
        precision: KeyPrecision::Nanosecond,
        at_ns,
        what,
    }
}

fn forked(forker: u32) -> What {
    What::Forked { forker, inherits_group: true, facts: facts((0, false, forker)) }
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_life_is_told_as_a_whole_or_not_at_all() {
    let mut bench = Bench::new("exclude = [{ exe = '/bin/1' }]");
    let there = look(SECOND, [(1, 0, (0, true, 0)), (2, 0, (1, true, 1))]);
    assert_eq!(short(&bench.tell(there)), ["=1"]);
    let told = bench.tell(seen(vec![
        at(2 * SECOND, 30, forked(1)),
        at(2 * SECOND + 1, 30, What::Executed(facts((1, false, 1)))),
        at(2 * SECOND + 2, 30, What::Renamed("other".into())),
        at(2 * SECOND + 3, 30, What::Exited(Exit::default(), facts((1, false, 1)))),
        at(2 * SECOND + 4, 31, forked(1)),
        at(2 * SECOND + 5, 31, What::Executed(facts((2, false, 1)))),
        // Once told, told to the end: else a stop would have to come from nowhere.
        at(2 * SECOND + 6, 31, What::Executed(facts((1, false, 1)))),
        at(2 * SECOND + 7, 31, What::Exited(Exit::default(), facts((1, false, 1)))),
    ]));
    assert_eq!(short(&told), ["+31", "~31", "-31"]);
    assert_eq!(bench.gate.excluded(), Excluded { processes_total: 2, events_total: 4 });
    assert_eq!(bench.gate.withheld.len(), 1, "what ended is forgotten");
}

#[test]
fn one_that_runs_another_program_is_judged_again_and_then_its_start_is_told() {
    let mut bench = Bench::new("include = [{ exe = '/bin/2' }]");
    let there = look(SECOND, [(1, 0, (0, true, 0)), (2, 0, (0, true, 1))]);
    assert_eq!(short(&bench.tell(there)), [""; 0]);
    let told = bench.tell(seen(vec![
        at(2 * SECOND, 30, forked(1)),
        at(2 * SECOND + 1, 31, forked(1)),
        at(2 * SECOND + 2, 31, What::Exited(Exit::default(), facts((0, false, 1)))),
    ]));
    assert_eq!(short(&told), [""; 0]);
    let told = bench.tell(seen(vec![
        at(3 * SECOND, 30, What::Renamed("two".into())),
        at(3 * SECOND + 1, 30, What::Executed(facts((2, false, 1)))),
        at(3 * SECOND + 2, 30, What::Renamed("three".into())),
        at(3 * SECOND + 3, 30, What::Exited(Exit::default(), facts((2, false, 1)))),
    ]));
    assert_eq!(short(&told), ["+30", "~30", "-30"]);
    let start = &told[0];
    assert_eq!((start.exe.clone(), start.time_ns), (Some("/bin/2".into()), 3_000_000_001));
    assert_eq!(start.start_time_ns, Some(1_600_000_000), "it began before");
    assert_eq!(start.parent_key.map(|key| key.pid), Some(1), "whose start was not told");
    // Of one that was there before, this stays known.
    let told = bench.tell(seen(vec![Happening {
        pid: 2,
        start_ns: 0,
        precision: KeyPrecision::Nanosecond,
        at_ns: 4 * SECOND,
        what: What::Executed(facts((2, true, 1))),
    }]));
    assert_eq!(short(&told), ["=2"]);
}

#[test]
fn one_that_has_another_user_or_control_group_is_judged_again() {
    let mut bench =
        Bench::new("exclude = [{ uid = 1000 }, { cgroup = '/quiet' }, { exe = '/bin/9' }]");
    bench.tell(look(SECOND, [(1, 0, (0, false, 0))]));
    let moved = |to: &str| What::Moved { cgroup: to.into(), container_id: None };
    let drops = |uid| {
        let uid = Some(uid);
        What::Changed(Box::new(Facts { uid, ..Facts::unknown(Completeness::Complete) }))
    };
    let told = bench.tell(seen(vec![
        at(2 * SECOND, 30, forked(1)),
        at(2 * SECOND + 1, 30, moved("/quiet")),
        at(2 * SECOND + 2, 30, drops(7)),
        // Only now nothing speaks against it.
        at(2 * SECOND + 3, 30, moved("/loud")),
        at(2 * SECOND + 4, 30, drops(1000)),
        at(2 * SECOND + 5, 31, forked(1)),
        at(2 * SECOND + 6, 31, drops(8)),
    ]));
    assert_eq!(short(&told), ["+30", "~30", "+31"]);
    assert_eq!((told[0].uid, told[0].cgroup.clone()), (Some(7), Some("/loud".into())));
    assert_eq!(bench.gate.excluded(), Excluded { processes_total: 3, events_total: 5 });
}

/// A parent that ran another program, or ended, before its child was judged, in the same batch.
#[test]
fn the_parent_is_what_it_was_when_the_child_began() {
    let mut bench = Bench::new("exclude = [{ parent = '/bin/5' }]");
    bench.tell(look(SECOND, [(1, 0, (5, true, 0))]));
    let told = bench.tell(seen(vec![
        at(2 * SECOND, 30, forked(1)),
        Happening {
            pid: 1,
            start_ns: 0,
            precision: KeyPrecision::Nanosecond,
            at_ns: 2 * SECOND + 1,
            what: What::Executed(facts((6, true, 0))),
        },
        at(2 * SECOND + 2, 31, forked(1)),
        Happening {
            pid: 1,
            start_ns: 0,
            precision: KeyPrecision::Nanosecond,
            at_ns: 2 * SECOND + 3,
            what: What::Exited(Exit::default(), facts((6, true, 0))),
        },
    ]));
    assert_eq!(short(&told), ["~1", "+31", "-1"], "30 is a child of what ran 5");
    let ran = What::Executed(facts((9, false, 1)));
    assert_eq!(short(&bench.tell(seen(vec![at(3 * SECOND, 30, ran)]))), [""; 0], "and stays one");
    bench.restart("exclude = [{ parent = '/bin/0' }]");
    assert_eq!(bench.gate.programs.as_ref().unwrap().len(), 1, "31 was told");
}

#[test]
fn without_rules_nothing_is_remembered() {
    let mut bench = Bench::new("");
    let told = bench.tell(look(SECOND, [(1, 0, (5, true, 0))]));
    assert_eq!(short(&told), ["=1"]);
    assert!(bench.gate.withheld.is_empty() && bench.gate.programs.is_none());
    assert_eq!(bench.gate.excluded(), Excluded::default());
}

#[test]
fn c3_after_a_restart_only_what_was_told_is_ended() {
    let mut bench = Bench::new("exclude = [{ uid = 0 }]");
    let user = (0, false, 1);
    bench.tell(look(SECOND, [(1, 0, (0, true, 0)), (2, 0, user), (3, 0, (1, true, 1))]));
    bench.restart("exclude = [{ uid = 0 }]");
    // 2 and 3 have ended, and two of the same kind began.
    let told = bench.tell(look(
        5 * SECOND,
        [(1, 0, (0, true, 0)), (4, 3 * SECOND, user), (5, 3 * SECOND, (0, true, 1))],
    ));
    assert_eq!(short(&told), ["-2", "+4"]);
    assert_eq!(told[1].parent_key.map(|key| key.pid), Some(1), "all are in the table");
    // With other rules, what is alive is told as what it is: there already.
    bench.restart("exclude = [{ uid = 1000 }]");
    let (init, user, root) =
        ((1, 0, (0, true, 0)), (4, 3 * SECOND, user), (5, 3 * SECOND, (0, true, 1)));
    let told = bench.tell(look(6 * SECOND, [init, user, root]));
    assert_eq!(short(&told), ["=1", "=5"], "and 4 goes on being told");
    assert_eq!(short(&bench.tell(look(7 * SECOND, [init]))), ["-4", "-5"]);
}

/// A life of a moment, as each of a fork bomb's.
fn brief(at_ns: u64, pid: u32) -> [Happening; 2] {
    let start_ns = at_ns;
    let facts = || facts((3, false, 1));
    let what = What::Forked { forker: 1, inherits_group: false, facts: facts() };
    let ends = What::Exited(Exit::default(), facts());
    let precision = KeyPrecision::Nanosecond;
    [
        Happening { pid, start_ns, precision, at_ns, what },
        Happening { pid, start_ns, precision, at_ns: at_ns + 1, what: ends },
    ]
}

#[test]
fn c4_of_a_storm_what_is_told_and_what_is_summarised_is_all_of_it() {
    let mut bench = Bench::limited("exclude = [{ exe = '/bin/9' }]", 10);
    bench.tell(look(SECOND, [(1, 0, (0, true, 0))]));
    let mut told = Vec::new();
    // 1,000 in a tenth of a second, among them one that stays and one that stays excluded.
    for n in 0..1000 {
        let mut life = brief(2 * SECOND + u64::from(n) * 100_000, 100 + n).to_vec();
        if n == 500 {
            life.truncate(1);
        }
        told.extend(bench.tell(seen(life)));
    }
    let starts = |told: &[ProcessEvent]| {
        told.iter()
            .filter(|event| event.kind == ProcessEventKind::Start { existing: false })
            .count()
    };
    let stops = |told: &[ProcessEvent]| {
        told.iter().filter(|event| matches!(event.kind, ProcessEventKind::Stop(_))).count()
    };
    assert_eq!((starts(&told), stops(&told)), (10, 10), "a second's worth");
    assert!(bench.gate.owes());
    assert_eq!(short(&bench.summarise(2 * SECOND)), [""; 0], "there is no room yet");
    assert_eq!(bench.summarised, 990 + 989);
    assert!(bench.gate.owes(), "one lives on");
    let survivors = bench.summarise(4 * SECOND);
    assert_eq!(short(&survivors), ["=600"]);
    assert_eq!((bench.summarised, bench.summarise(5 * SECOND).len()), (990 + 989, 0));
    assert!(!bench.gate.owes());
    let exits = What::Exited(Exit::default(), facts((3, false, 1)));
    let start_ns = 2 * SECOND + 500 * 100_000;
    let told = bench.tell(seen(vec![Happening {
        pid: 600,
        start_ns,
        precision: KeyPrecision::Nanosecond,
        at_ns: 6 * SECOND,
        what: exits,
    }]));
    assert_eq!(short(&told), ["-600"], "its start was told");
    let wanted = Summarised { starts_total: 990, stops_total: 989, modifies_total: 0 };
    assert_eq!((bench.gate.summarised(), bench.gate.excluded()), (wanted, Excluded::default()));
}

#[test]
fn what_was_there_is_no_storm_and_who_survives_may_have_become_excluded() {
    let mut bench = Bench::limited("exclude = [{ exe = '/bin/2' }]", 1);
    let there = (1..=50).map(|pid| (pid, 0, (0, true, 0)));
    assert_eq!(bench.tell(look(SECOND, there)).len(), 50);
    let told = bench.tell(seen(vec![
        at(2 * SECOND, 60, forked(1)),
        at(2 * SECOND, 61, forked(1)),
        at(2 * SECOND, 62, forked(1)),
        // A change of one that is summarised is summarised.
        at(2 * SECOND + 1, 61, What::Renamed("x".into())),
        at(2 * SECOND + 2, 62, What::Renamed("y".into())),
    ]));
    assert_eq!(short(&told), ["+60"]);
    let told = bench.tell(seen(vec![at(2 * SECOND + 3, 62, What::Executed(facts((2, true, 1))))]));
    assert_eq!(short(&told), [""; 0]);
    assert_eq!(short(&bench.summarise(9 * SECOND)), ["=61"]);
    assert_eq!(bench.summarised, 2 + 3);
    assert_eq!(bench.gate.excluded(), Excluded { processes_total: 1, events_total: 0 });
    bench.summarise(10 * SECOND);
    assert!(!bench.gate.owes());
}

/// What may happen next.
#[derive(Clone, Debug)]
enum Step {
    /// Something happens to a pid, told at once: 0 fork, 1 exec, 2 exit.
    Told(Vec<(u32, u8, Kind)>),
    /// A look finds these, each with a kind or as it was.
    Look(Vec<(u32, Kind)>),
    /// A second is over.
    Summary,
    /// The program is killed or ended, and started with one of the filters.
    Restart(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = (0_u8..3, any::<bool>(), 0_u32..6);
    let told = proptest::collection::vec((1_u32..6, 0_u8..3, kind.clone()), 1..6);
    let found = proptest::collection::vec((1_u32..6, kind), 0..5);
    let step = prop_oneof![
        4 => told.prop_map(Step::Told),
        2 => found.prop_map(Step::Look),
        1 => Just(Step::Summary),
        1 => (0_usize..5).prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 1..25)
}

const FILTERS: [&str; 5] = [
    "",
    "exclude = [{ exe = '/bin/1' }]",
    "include = [{ exe = ['/bin/1', '/bin/2'] }]\nexclude = [{ uid = 0 }]",
    "include = [{ parent = '/bin/1' }]",
    "exclude = [{ parent = '/bin/0', uid = 1000 }]",
];

proptest! {
    /// Whatever the filter and the limit, whatever is seen, and wherever the program ends and goes on with
    /// another filter: each start that is told has its stop or lives, each stop and each change
    /// has a start; and what is alive and told is what the table and the gate say.
    #[test]
    fn every_told_stop_has_a_told_start_and_the_other_way_round(
        first in 0_usize..5,
        limit in 0_u32..3,
        steps in steps(),
    ) {
        let mut bench = Bench::limited(FILTERS[first], limit);
        let mut open = BTreeSet::new();
        let mut closed = BTreeSet::new();
        let mut lives: BTreeMap<u32, u64> = BTreeMap::new();
        let mut now = SECOND;
        for step in steps {
            now += 30_000_000;
            let observation = match step {
                Step::Restart(which) => {
                    bench.restart(FILTERS[which]);
                    continue;
                }
                Step::Summary => {
                    for event in bench.summarise(now) {
                        prop_assert!(!closed.contains(&event.key), "{} again", event.key);
                        prop_assert!(open.insert(event.key), "{} twice", event.key);
                    }
                    continue;
                }
                Step::Look(found) => {
                    let mut seen = BTreeMap::new();
                    for (pid, kind) in found {
                        let start = *lives.get(&pid).unwrap_or(&(now - 20_000_000));
                        seen.insert(pid, (pid, start, kind));
                    }
                    lives = seen.values().map(|(pid, start, _)| (*pid, *start)).collect();
                    look(now, seen.into_values())
                }
                Step::Told(all) => {
                    let mut happenings = Vec::new();
                    for (pid, what, kind) in all {
                        now += 1000;
                        // Whoever is not there begins, or is met at something else.
                        let start_ns = *lives.entry(pid).or_insert(now);
                        let what = match what {
                            0 if start_ns == now => What::Forked {
                                forker: kind.2, inherits_group: true, facts: facts(kind),
                            },
                            0 | 1 => What::Executed(facts(kind)),
                            _ => What::Exited(Exit::default(), facts(kind)),
                        };
                        if matches!(what, What::Exited(..)) {
                            lives.remove(&pid);
                        }
                        let precision = KeyPrecision::Nanosecond;
                        happenings.push(Happening { pid, start_ns, precision, at_ns: now, what });
                    }
                    seen(happenings)
                }
            };
            for event in bench.tell(observation) {
                match event.kind {
                    ProcessEventKind::Start { .. } => {
                        prop_assert!(!closed.contains(&event.key), "{} again", event.key);
                        prop_assert!(open.insert(event.key), "{} twice", event.key);
                    }
                    ProcessEventKind::Stop(_) => {
                        prop_assert!(open.remove(&event.key), "{} unknown", event.key);
                        closed.insert(event.key);
                    }
                    ProcessEventKind::Modify { .. } => {
                        prop_assert!(open.contains(&event.key), "{} unknown", event.key);
                    }
                }
            }
            let told: BTreeSet<_> = bench.tracker.processes().map(|process| process.key)
                .filter(|key| !bench.gate.withholds(*key)).collect();
            prop_assert_eq!(&told, &open);
            let alive: BTreeSet<_> = bench.tracker.processes().map(|process| process.key).collect();
            prop_assert!(bench.gate.withheld.keys().all(|key| alive.contains(key)), "left over");
        }
    }
}
