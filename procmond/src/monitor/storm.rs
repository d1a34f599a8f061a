//! A limit for the starts that one control group may have told in a second.
//!
//! Each group has a bucket that holds a second's worth of starts and fills at the limit's pace, by
//! the processes' own start times: whatever saw them and however late, the same ones pass.

use std::collections::HashMap;
use std::num::NonZeroU32;

use daemoneye_lib::display;
use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::control::Summarised;
use daemoneye_lib::models::event::EventKind;
use daemoneye_lib::models::gap::{GapEvent, GapReason};
use daemoneye_lib::stream::wall_clock_ns;

/// What one start takes out of a bucket: the limit per second puts in that much each nanosecond.
const START: u64 = 1_000_000_000;
/// Groups that have a bucket of their own; the others share one.
const GROUPS_MAX: usize = 1024;

/// Limits the starts of each control group.
#[derive(Debug)]
pub(super) struct Storms {
    starts_per_second: NonZeroU32,
    groups: HashMap<Option<ByteString>, Group>,
    /// Of the groups for which there is no room.
    others: Group,
    /// The newest start, in nanoseconds since boot, when room was last made.
    pruned_ns: u64,
    total: Summarised,
}

/// A control group: its bucket, and what was left out of it since that was last told.
#[derive(Debug, Default)]
struct Group {
    room: Option<u64>,
    filled_ns: u64,
    left_out: Option<LeftOut>,
}

#[derive(Debug)]
struct LeftOut {
    counts: Summarised,
    since_ns: i64,
    until_ns: i64,
}

impl Storms {
    pub(super) fn new(starts_per_second: NonZeroU32) -> Self {
        Self {
            starts_per_second,
            groups: HashMap::new(),
            others: Group::default(),
            pruned_ns: 0,
            total: Summarised::default(),
        }
    }

    /// Whether the start of a process may be told that began in a group so many nanoseconds after
    /// boot.
    pub(super) fn admits(&mut self, cgroup: Option<&ByteString>, began_ns: u64) -> bool {
        let pace = u64::from(self.starts_per_second.get());
        let most = pace.saturating_mul(START);
        let group = self.group(cgroup, began_ns);
        let passed_ns = began_ns.saturating_sub(group.filled_ns).min(START);
        group.filled_ns = group.filled_ns.max(began_ns);
        let room = (group.room.unwrap_or(most) + passed_ns * pace).min(most);
        let left = room.checked_sub(START);
        group.room = Some(left.unwrap_or(room));
        left.is_some()
    }

    /// Counts an event of a process in a group that is not told.
    pub(super) fn leave_out(
        &mut self,
        cgroup: Option<&ByteString>,
        kind: EventKind,
        time_ns: i64,
        began_ns: u64,
    ) {
        self.total.count(kind);
        let group = self.group(cgroup, began_ns);
        let left_out = group.left_out.get_or_insert(LeftOut {
            counts: Summarised::default(),
            since_ns: time_ns,
            until_ns: time_ns,
        });
        left_out.counts.count(kind);
        left_out.since_ns = left_out.since_ns.min(time_ns);
        left_out.until_ns = left_out.until_ns.max(time_ns);
    }

    /// What was left out since the last time, one gap for each group.
    pub(super) fn summarise(&mut self) -> Vec<GapEvent> {
        let pace = self.starts_per_second;
        let mut gaps = Vec::new();
        for (cgroup, group) in &mut self.groups {
            let name = cgroup.as_ref().map_or_else(
                || "an unknown control group".to_owned(),
                |path| format!("the control group {}", display::escape(path.as_bytes())),
            );
            gaps.extend(group.left_out.take().map(|left_out| left_out.gap(&name, pace)));
        }
        let name = format!("control groups beyond the first {GROUPS_MAX}");
        gaps.extend(self.others.left_out.take().map(|left_out| left_out.gap(&name, pace)));
        gaps
    }

    /// What was left out since the beginning.
    pub(super) const fn total(&self) -> Summarised {
        self.total
    }

    fn group(&mut self, cgroup: Option<&ByteString>, now_ns: u64) -> &mut Group {
        let cgroup = cgroup.cloned();
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&cgroup) {
            // Once a second: who makes groups all the time must not make us look for room as often.
            if now_ns.saturating_sub(self.pruned_ns) >= START {
                self.pruned_ns = now_ns;
                // A bucket that nothing was taken from for a second is full, as a new one is.
                self.groups.retain(|_, group| {
                    group.left_out.is_some() || now_ns.saturating_sub(group.filled_ns) < START
                });
            }
            if self.groups.len() >= GROUPS_MAX {
                return &mut self.others;
            }
        }
        self.groups.entry(cgroup).or_default()
    }
}

impl LeftOut {
    fn gap(&self, name: &str, pace: NonZeroU32) -> GapEvent {
        let Summarised { starts_total, stops_total, modifies_total } = self.counts;
        let detail = format!(
            "{starts_total} starts, {stops_total} stops and {modifies_total} changes in {name} were \
             left out: more than {pace} processes a second began there"
        );
        GapEvent {
            missing: Some(starts_total + stops_total + modifies_total),
            since_ns: Some(self.since_ns),
            until_ns: Some(self.until_ns),
            ..GapEvent::new(GapReason::Shed, wall_clock_ns(), detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn storms(starts_per_second: u32) -> Storms {
        Storms::new(NonZeroU32::new(starts_per_second).unwrap())
    }

    #[test]
    fn a_second_holds_as_many_starts_as_the_limit_says() {
        let mut storms = storms(10);
        let group = ByteString::from("/a");
        let mut admitted = |at_ms: u64, count: usize| {
            (0..count).filter(|_| storms.admits(Some(&group), at_ms * MS)).count()
        };
        assert_eq!(admitted(5000, 100), 10, "a second's worth at once");
        assert_eq!(admitted(5099, 5), 0);
        assert_eq!(admitted(5100, 5), 1);
        assert_eq!(admitted(5350, 5), 2, "and a half is kept");
        assert_eq!(admitted(5400, 5), 1);
        assert_eq!(admitted(5000, 5), 0, "what comes late fills nothing");
        assert_eq!(admitted(99_000, 100), 10, "no more than a second's worth gathers");
        let slow = (0..1000).map(|n| admitted(100_000 + n * 100, 1)).sum::<usize>();
        assert_eq!(slow, 1000, "who keeps the pace loses none");
    }

    #[test]
    fn groups_do_not_take_from_each_other_and_each_is_summarised_by_itself() {
        let mut storms = storms(1);
        let (a, b) = (ByteString::from("/a\n"), ByteString::from("/b"));
        for group in [Some(&a), Some(&b), None] {
            assert!(storms.admits(group, 5 * START));
            assert!(!storms.admits(group, 5 * START));
        }
        assert_eq!(storms.summarise(), [], "nothing was left out");
        for (group, kind, time_ns) in [
            (Some(&a), EventKind::Start, 70),
            (Some(&a), EventKind::Start, 50),
            (None, EventKind::Start, 60),
            (Some(&a), EventKind::Modify, 80),
            (Some(&a), EventKind::Stop, 75),
        ] {
            storms.leave_out(group, kind, time_ns, 5 * START);
        }
        let mut gaps = storms.summarise();
        gaps.sort_by_key(|gap| gap.missing);
        let [unknown, of_a] = &gaps[..] else { panic!("{gaps:?}") };
        assert_eq!((of_a.reason, of_a.missing), (GapReason::Shed, Some(4)));
        assert_eq!((of_a.since_ns, of_a.until_ns), (Some(50), Some(80)));
        let wanted = "2 starts, 1 stops and 1 changes in the control group /a\\n were left out";
        assert!(of_a.detail.starts_with(wanted), "{}", of_a.detail);
        assert_eq!((unknown.missing, unknown.since_ns), (Some(1), Some(60)));
        assert!(storms.summarise().is_empty(), "told once");
        let total = Summarised { starts_total: 3, stops_total: 1, modifies_total: 1 };
        assert_eq!(storms.total(), total);
    }

    #[test]
    fn however_many_groups_there_are_memory_is_bounded_and_nothing_is_lost_count_of() {
        let mut storms = storms(1);
        let mut left_out = 0;
        for second in 1..=3 {
            for n in 0..3 * GROUPS_MAX as u64 {
                let group = ByteString::from(format!("/{second}/{n}").as_str());
                let began_ns = (10 + second) * START;
                for _ in 0..2 {
                    if !storms.admits(Some(&group), began_ns) {
                        storms.leave_out(Some(&group), EventKind::Start, 7, began_ns);
                        left_out += 1;
                    }
                }
                assert!(storms.groups.len() <= GROUPS_MAX);
            }
            let gaps = storms.summarise();
            assert_eq!(gaps.len(), GROUPS_MAX + 1);
            assert!(gaps[GROUPS_MAX].detail.contains("beyond the first 1024"));
            assert_eq!(gaps.iter().filter_map(|gap| gap.missing).sum::<u64>(), left_out);
            // The next second's groups have the room of this one's.
            left_out = 0;
        }
    }
}
