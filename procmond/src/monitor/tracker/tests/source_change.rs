//! Another source takes the place of the one that has told of everything so far.

use std::collections::BTreeMap;

use super::*;

const MS: u64 = 1_000_000;
/// When the first source begins, and when all ends, in nanoseconds since boot.
const BEGIN: u64 = 1000 * MS;
const END: u64 = 2600 * MS;

/// How a source sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// It is told of everything, to the nanosecond.
    Exact,
    /// It is told of everything a little later, and knows when processes began in 10 ms.
    Ticks,
    /// It looks every so many milliseconds, and may be told of ends.
    Looks { every_ms: u64, ends: bool },
}

/// A process of the world that is seen, in nanoseconds since boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Truth {
    pid: u32,
    start: u64,
    end: u64,
    /// Until then it is listed.
    reaped: u64,
}

/// When things happen to the sources, in nanoseconds since boot.
#[derive(Clone, Copy, Debug)]
struct Moments {
    /// The first one has told of everything before this.
    until: u64,
    /// The second one is told of everything from this on.
    attached: u64,
    /// It looks then for the first time.
    looked: u64,
}

fn table(way: Way, now: u64, world: &[Truth], is_first: bool) -> Observation {
    // Those whose end it has told are in no table of its own any more.
    let tells_ends = !is_first && matches!(way, Way::Looks { ends: true, .. });
    let until = |truth: &Truth| if tells_ends { truth.end } else { truth.reaped };
    let there = world.iter().filter(|truth| truth.start <= now && now < until(truth));
    let process = |truth: &Truth| ObservedProcess {
        start_ns: (way == Way::Exact).then_some(truth.start),
        ended: (truth.end <= now).then(Exit::default),
        ..alive(truth.pid, truth.start / CENTI_NS)
    };
    Observation::Snapshot(ProcessTable {
        source: SourceName::Ebpf,
        is_told: !matches!(way, Way::Looks { .. }),
        boot_id: BOOT,
        precision: KeyPrecision::Tick,
        time_ns: i64::try_from(now).unwrap(),
        // The clock of the process table.
        uptime_ns: if way == Way::Exact { now } else { now / CENTI_NS * CENTI_NS },
        processes: there.map(process).collect(),
    })
}

/// What a source tells from one moment to another, after a first look.
fn observations(way: Way, world: &[Truth], from: u64, look: u64, until: u64) -> Vec<Observation> {
    let mut all = vec![table(way, look, world, true)];
    let (late, tick) = match way {
        Way::Exact => (0, 1),
        Way::Ticks => (2000, CENTI_NS),
        Way::Looks { every_ms, ends } => {
            let mut last = look;
            let mut known: Vec<Truth> = world.to_vec();
            loop {
                let next = (last + every_ms * MS).min(until);
                known.retain(|truth| truth.start <= last && last < truth.end);
                let mut ended: Vec<&Truth> =
                    known.iter().filter(|truth| ends && truth.end <= next).collect();
                ended.sort_by_key(|truth| truth.end);
                for truth in ended {
                    let (pid, start_centis) = (truth.pid, truth.start / CENTI_NS);
                    let end = End { pid, start_centis, at_ns: truth.end, exit: Exit::default() };
                    let ends = vec![end];
                    let source = SourceName::Poll;
                    all.push(Observation::Ended(Ends {
                        source,
                        boot_id: BOOT,
                        wall_offset_ns: 0,
                        ends,
                    }));
                }
                if last + every_ms * MS > until {
                    return all;
                }
                last = next;
                all.push(table(way, last, world, false));
                known = world.to_vec();
            }
        }
    };
    let mut happenings: Vec<Happening> = Vec::new();
    for truth in world {
        for (at, what) in [(truth.start, forked(1, "p")), (truth.end, exited(0))] {
            let at_ns = at + late;
            if (from..until).contains(&at_ns) {
                let start_ns = truth.start / tick * tick;
                let precision = KeyPrecision::Tick;
                happenings.push(Happening { pid: truth.pid, start_ns, precision, at_ns, what });
            }
        }
    }
    happenings.sort_by_key(|happening| happening.at_ns);
    all.extend(happenings.chunks(3).map(|some| seen(some.to_vec())));
    all
}

/// Lives of a few pids, no two of one pid in the same 10 ms.
fn world() -> impl Strategy<Value = Vec<Truth>> {
    let life = (0_u64..150, 1_u64..200, 0_u64..60);
    let pid = proptest::collection::vec(life, 1..8);
    proptest::collection::vec(pid, 1..5).prop_map(|pids| {
        let mut world = Vec::new();
        for (pid, lives) in (10..).zip(pids) {
            let mut at = BEGIN - 100 * MS;
            for (pause, duration, zombie) in lives {
                let start = (at / CENTI_NS + 1) * CENTI_NS + pause * MS + 1234;
                let end = start + duration * MS * duration / 200 + 77;
                let reaped = end + zombie * MS + 5;
                // A pid that is given again within a moment is another matter.
                at = reaped + 2 * MS;
                world.push(Truth { pid, start, end, reaped });
            }
        }
        world
    })
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::Exact),
        Just(Way::Ticks),
        (5_u64..300, any::<bool>()).prop_map(|(every_ms, ends)| Way::Looks { every_ms, ends }),
    ]
}

/// The second takes over some time after the first has failed, or is in place before.
fn moments() -> impl Strategy<Value = Moments> {
    // Often within what a clock of 10 ms cannot tell apart.
    let span = || prop_oneof![0..100_u64, 0..2000_u64].prop_map(|tenths| tenths * MS / 10);
    (BEGIN..END - 500 * MS, span(), span(), any::<bool>()).prop_map(
        |(until, apart, look, overlap)| {
            let apart = apart + 33;
            let attached =
                if overlap { until.saturating_sub(apart).max(BEGIN) } else { until + apart };
            Moments { until, attached, looked: attached + look + 55 }
        },
    )
}

#[derive(Default, Debug)]
struct Told {
    starts: u32,
    stops: u32,
    /// Of these, marked as inferred.
    inferred: [bool; 2],
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever sees, whenever it fails, and however long both see: no life has two starts or two
    /// stops, none that began or ended while one of them was told of things lacks either, and what
    /// only the first look of the second shows is marked.
    #[test]
    fn c1_every_life_is_told_once_across_a_change_of_source(
        world in world(),
        (first, second) in (way(), way()),
        mut moments in moments(),
    ) {
        // What is changed back to is never one that looks.
        if matches!(second, Way::Looks { .. }) {
            moments.attached = moments.attached.max(moments.until + 33);
            moments.looked = moments.looked.max(moments.attached);
        }
        let Moments { until, attached, looked } = moments;
        let mut tracker = new();
        let mut told: BTreeMap<ProcessKey, Told> = BTreeMap::new();
        let mut take = |tracker: &mut Tracker, observation, is_first_look: bool| {
            for event in tracker.observe(observation) {
                let event = process(&event);
                let of = told.entry(event.key).or_default();
                match event.kind {
                    ProcessEventKind::Start { .. } => {
                        of.starts += 1;
                        of.inferred[0] = event.inferred;
                    }
                    ProcessEventKind::Stop(_) => {
                        of.stops += 1;
                        of.inferred[1] = event.inferred;
                    }
                    ProcessEventKind::Modify { .. } => {}
                }
                prop_assert!(of.starts == 1 && of.stops <= 1, "{event:?}: {of:?}");
                prop_assert!(event.inferred || !is_first_look, "{event:?}");
            }
            Ok(())
        };
        for observation in observations(first, &world, BEGIN, BEGIN, until) {
            take(&mut tracker, observation, false)?;
        }
        tracker.change_source(attached <= until);
        let rest = observations(second, &world, attached, looked, END);
        for (index, observation) in rest.into_iter().enumerate() {
            take(&mut tracker, observation, index == 0)?;
        }
        take(&mut tracker, table(second, END, &world, false), false)?;

        let is_told = |way| !matches!(way, Way::Looks { .. });
        for truth in &world {
            let Truth { pid, start, end, .. } = *truth;
            let start_centis = start / CENTI_NS;
            let key = ProcessKey { boot_id: BOOT, pid, start_centis, generation: 0 };
            let told = told.remove(&key).unwrap_or_default();
            // What happened while nobody saw.
            let blind = until..attached;
            prop_assert!(!blind.contains(&start) || told.starts == 0 || told.inferred[0]);
            prop_assert!(!blind.contains(&end) || told.stops == 0 || told.inferred[1]);
            let lives = |from: u64, to: u64| start < to && end > from;
            // While both see, only what the first one tells counts.
            let heard = if is_told(first) { attached } else { attached.max(until) };
            let looked = looked.max(until);
            // Of a pid that was given again before the first look, only the later life is known.
            let is_reused = world.iter().any(|other| {
                other.pid == pid && start < other.start && other.start <= looked
            });
            let is_seen = is_told(first) && lives(BEGIN, until - 2001)
                || is_told(second) && (heard..END - 2001).contains(&start) && !is_reused
                || lives(looked, looked + 1);
            if is_seen {
                prop_assert_eq!(told.starts, 1, "{:?} in {:?}", truth, moments);
                prop_assert_eq!(told.stops, u32::from(end < END - 2001), "{:?} in {:?}", truth, moments);
            }
        }
        prop_assert!(told.is_empty(), "nobody lived so: {told:?}");
    }
}

#[test]
fn c1_what_only_the_new_source_shows_is_marked_and_what_is_known_is_the_same() {
    let mut tracker = told();
    let listed = |pid, start_ns| ObservedProcess {
        start_ns: Some(start_ns),
        ..unchanged(pid, start_ns / CENTI_NS)
    };
    tracker.observe(look_of_told(10, vec![listed(1, 5), listed(20, 500_000_007)]));
    let events = tracker.observe(seen(vec![
        at(1000, LIFE, forked(20, "p30")),
        at(1100, (40, 1_001_100_000), forked(20, "p40")),
        at(1200, (40, 1_001_100_000), exited(0)),
        at(1300, (41, 1_001_300_000), forked(20, "p41")),
    ]));
    assert_eq!(short(&events), ["+30@100.0", "+40@100.0", "-40@100.0", "+41@100.0"]);
    tracker.change_source(false);
    // 40 has ended and is still listed; 50 began since and has ended, 60 began, 20 and 41 are gone.
    // The clock of the process table is up to 10 ms behind.
    let there = vec![alive(1, 0), alive(30, 100), over(40, 100), over(50, 101), alive(60, 101)];
    let events = tracker.observe(look(100, there.clone()));
    assert_eq!(short(&events), ["?20@50.0", "?41@100.0", "!50@101.0", "!60@101.0", "?50@101.0"]);
    // From then on it is as with any source.
    let mut later = there;
    later.push(alive(70, 103));
    assert_eq!(short(&tracker.observe(look(104, later))), ["+70@103.0"]);
    assert_eq!(tracker.len(), 4);
}
