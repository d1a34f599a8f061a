use super::*;
use crate::event_bus_connector::window::tests::record;

const WINDOW: u64 = 1000;

/// A machine with the commands of its last step, and a clock that tests move.
struct Bench {
    machine: Machine,
    now: Instant,
    epoch: Epoch,
    next: u64,
}

impl Bench {
    fn new() -> Self {
        Self::with_log(Sequence::NONE, Sequence::NONE, 0)
    }

    fn with_log(watermark: Sequence, last: Sequence, backlog_bytes: u64) -> Self {
        let now = Instant::now();
        let log = LogPosition { watermark, last, backlog_bytes };
        Self {
            machine: Machine::new(WINDOW, log, now),
            now,
            epoch: Epoch::first(),
            next: last.0 + 1,
        }
    }

    fn step(&mut self, input: Input) -> Vec<Command> {
        let mut commands = Vec::new();
        self.machine.step(input, self.now, &mut commands);
        assert!(self.machine.window().bytes() <= WINDOW, "D4: the window overflows");
        commands
    }

    /// `count` records of `bytes` each become durable and were kept in memory.
    fn append(&mut self, count: u64, bytes: usize) -> Vec<Command> {
        let records =
            (self.next..self.next + count).map(|s| record(s, bytes, self.epoch)).collect();
        self.next += count;
        self.step(Input::Durable { records, through: Sequence(self.next - 1), skipped_bytes: 0 })
    }

    fn connect(&mut self, committed: u64) -> Vec<Command> {
        let mut commands = self.step(Input::Tick);
        if !commands.contains(&Command::Dial) {
            self.now = self.machine.wake_at().expect("a dial is due some time");
            commands = self.step(Input::Tick);
        }
        assert!(commands.contains(&Command::Dial), "{commands:?}");
        self.welcome(committed, None, None)
    }

    fn welcome(
        &mut self,
        sequence: u64,
        epoch: Option<Epoch>,
        ours: Option<Epoch>,
    ) -> Vec<Command> {
        let committed = Sequence(sequence);
        let theirs = epoch.or(ours).unwrap_or(self.epoch);
        let held = match sequence {
            0 => Vec::new(),
            _ => vec![Held { sequence: committed, theirs, ours }],
        };
        self.step(Input::Welcomed { committed, held, credit_bytes: 4 * 132 })
    }

    /// The log answers a read with records of `bytes` each, as many as `bytes_max` allows.
    fn answer_read(&mut self, commands: &[Command], bytes: usize) -> Vec<Command> {
        let (from, bytes_max) = read_of(commands).expect("a read");
        let count = (bytes_max / bytes as u64).min(self.next - from.0);
        let records = (from.0..from.0 + count).map(|s| record(s, bytes, self.epoch)).collect();
        self.step(Input::Read(records))
    }
}

fn sent(commands: &[Command]) -> Vec<u64> {
    let batches = commands.iter().filter_map(|command| match command {
        Command::Send(unsent) => Some(&unsent.records),
        _ => None,
    });
    batches.flatten().map(|record| record.sequence.0).collect()
}

fn read_of(commands: &[Command]) -> Option<(Sequence, u64)> {
    commands.iter().find_map(|command| match command {
        Command::Read { from, bytes_max } => Some((*from, *bytes_max)),
        _ => None,
    })
}

fn signals(commands: &[Command]) -> Vec<BackpressureSignal> {
    let signal = |command: &Command| match command {
        Command::Signal(signal) => Some(*signal),
        _ => None,
    };
    commands.iter().filter_map(signal).collect()
}

#[test]
fn dials_at_once_and_sends_what_becomes_durable() {
    let mut bench = Bench::new();
    assert_eq!(bench.append(2, 10), [Command::Dial]);
    assert_eq!(sent(&bench.welcome(0, None, None)), [1, 2]);
    assert_eq!(sent(&bench.append(3, 10)), [3, 4, 5]);
    assert_eq!(bench.step(Input::Acked(Sequence(4))), [Command::Acknowledge(Sequence(4))]);
    assert_eq!(bench.step(Input::Acked(Sequence(4))), [], "an ack may be repeated");
    assert_eq!(bench.step(Input::Acked(Sequence(2))), [], "an ack may come late");
}

#[test]
fn d1_what_was_in_flight_is_sent_again_after_a_lost_session() {
    let mut bench = Bench::new();
    bench.connect(0);
    bench.append(5, 10);
    bench.step(Input::Acked(Sequence(2)));
    bench.step(Input::Disconnected);
    bench.append(1, 10);
    assert_eq!(sent(&bench.connect(2)), [3, 4, 5, 6]);
}

#[test]
fn d5_sending_stops_at_the_credit_and_goes_on_with_acks() {
    let mut bench = Bench::new();
    bench.connect(0);
    assert_eq!(sent(&bench.append(6, 100)), [1, 2, 3, 4]);
    assert_eq!(sent(&bench.step(Input::Acked(Sequence(1)))), [5]);
    assert_eq!(sent(&bench.step(Input::Acked(Sequence(5)))), [6]);
}

#[test]
fn d6_a_session_resumes_after_what_welcome_says_is_committed() {
    let mut bench = Bench::with_log(Sequence(10), Sequence(30), 200);
    let commands = bench.connect(25);
    assert!(commands.contains(&Command::Acknowledge(Sequence(25))), "{commands:?}");
    assert_eq!(read_of(&commands).map(|(from, _)| from), Some(Sequence(26)));
    assert_eq!(sent(&bench.answer_read(&commands, 10)), [26, 27, 28, 29, 30]);
}

#[test]
fn d6_a_store_ahead_of_the_log_makes_it_begin_a_new_stream() {
    let mut bench = Bench::with_log(Sequence(10), Sequence(30), 200);
    let commands = bench.connect(31);
    let begin = Command::BeginStream { committed: Some(Sequence(31)) };
    assert_eq!(commands, [Command::HangUp, begin]);
    assert_eq!(bench.step(Input::Disconnected), [], "we hung up ourselves");
    let began =
        Input::StreamBegan { watermark: Sequence::NONE, last: Sequence(21), backlog_bytes: 210 };
    assert_eq!(bench.step(began), [Command::Dial]);
    let commands = bench.welcome(0, None, None);
    assert_eq!(read_of(&commands).map(|(from, _)| from), Some(Sequence(1)));
}

#[test]
fn d6_a_fork_is_noticed_by_the_epoch_even_where_the_sequence_fits() {
    let (theirs, ours) = (Epoch::first(), Epoch::first());
    let mut bench = Bench::with_log(Sequence(10), Sequence(30), 200);
    bench.step(Input::Tick);
    let commands = bench.welcome(20, Some(theirs), Some(ours));
    assert!(matches!(commands[..], [Command::HangUp, Command::BeginStream { .. }]), "{commands:?}");

    let mut bench = Bench::with_log(Sequence(10), Sequence(30), 200);
    bench.step(Input::Tick);
    bench.welcome(20, Some(ours), Some(ours));
    assert_eq!(bench.machine.health_state(), ConnectorState::Connected);
}

#[test]
fn a_fenced_log_begins_a_new_stream_and_tries_again_when_it_cannot() {
    let mut bench = Bench::with_log(Sequence(10), Sequence(30), 200);
    bench.step(Input::Tick);
    let begin = Command::BeginStream { committed: None };
    assert_eq!(
        bench.step(Input::Fenced),
        [Command::HangUp, Command::BeginStream { committed: None }]
    );
    assert_eq!(bench.step(Input::StreamFailed), []);
    bench.now = bench.machine.wake_at().expect("a retry");
    assert_eq!(bench.step(Input::Tick), [begin]);
}

#[test]
fn an_ack_beyond_the_log_ends_the_session() {
    let mut bench = Bench::new();
    bench.connect(0);
    bench.append(3, 10);
    assert_eq!(bench.step(Input::Acked(Sequence(4))), [Command::HangUp]);
    assert_eq!(bench.machine.health_state(), ConnectorState::Disconnected);
    assert_eq!(bench.machine.window().acked(), Sequence::NONE);
}

/// D4 through a whole outage: twenty windows are produced, then everything is read back and sent.
#[test]
fn d4_one_engage_and_one_release_for_one_outage_and_the_window_stays_bounded() {
    let mut bench = Bench::new();
    bench.connect(0);
    bench.step(Input::Disconnected);
    let mut seen = Vec::new();
    for _ in 0..200 {
        seen.extend(signals(&bench.append(1, 100)));
    }
    assert_eq!(seen, [BackpressureSignal::Engage { level: 80 }]);
    assert_eq!(bench.machine.window().bytes(), WINDOW);
    assert_eq!(bench.machine.backlog_bytes(), 20_000);

    let mut delivered = Vec::new();
    let mut commands = bench.connect(0);
    while delivered.len() < 200 {
        delivered.extend(sent(&commands));
        seen.extend(signals(&commands));
        commands = if read_of(&commands).is_some() {
            bench.answer_read(&commands, 100)
        } else {
            bench.step(Input::Acked(Sequence(delivered.len() as u64)))
        };
    }
    seen.extend(signals(&bench.step(Input::Acked(Sequence(200)))));
    assert_eq!(delivered, (1..=200).collect::<Vec<_>>(), "D2: once each, in order");
    assert!(
        matches!(
            seen[..],
            [BackpressureSignal::Engage { .. }, BackpressureSignal::Release { level: ..=50 }]
        ),
        "{seen:?}"
    );
    assert_eq!(bench.machine.backlog_bytes(), 0);
}

#[test]
fn d7_dials_go_on_for_ever_less_than_a_second_apart() {
    let mut bench = Bench::new();
    assert_eq!(bench.step(Input::Tick), [Command::Dial]);
    for _ in 0..1000 {
        let failed_at = bench.now;
        assert_eq!(bench.step(Input::Disconnected), []);
        let due = bench.machine.wake_at().expect("another dial");
        assert!(due > failed_at && due - failed_at < Duration::from_secs(1));
        bench.now = due;
        assert_eq!(bench.step(Input::Tick), [Command::Dial], "no event is needed");
    }
}

#[test]
fn records_that_were_read_back_and_offered_as_well_are_sent_once() {
    let mut bench = Bench::with_log(Sequence::NONE, Sequence(3), 30);
    let commands = bench.connect(0);
    let records = (4..=5).map(|s| record(s, 10, bench.epoch)).collect();
    let durable = Input::Durable { records, through: Sequence(5), skipped_bytes: 0 };
    assert_eq!(sent(&bench.step(durable)), [] as [u64; 0]);
    bench.next = 6;
    assert_eq!(sent(&bench.answer_read(&commands, 10)), [1, 2, 3, 4, 5]);
}

#[test]
fn a_log_that_gives_nothing_is_asked_again_later() {
    let mut bench = Bench::with_log(Sequence::NONE, Sequence(3), 30);
    bench.connect(0);
    assert_eq!(bench.step(Input::Read(Vec::new())), []);
    assert_eq!(bench.step(Input::Tick), []);
    bench.now = bench.machine.wake_at().expect("a retry");
    let commands = bench.step(Input::Tick);
    assert_eq!(sent(&bench.answer_read(&commands, 10)), [1, 2, 3]);
}

#[test]
fn draining_ends_when_all_is_acknowledged_or_at_the_deadline() {
    let mut bench = Bench::new();
    bench.connect(0);
    bench.append(2, 10);
    let until = bench.now + Duration::from_secs(5);
    assert_eq!(bench.step(Input::Drain { until }), []);
    let commands = bench.step(Input::Acked(Sequence(2)));
    assert_eq!(commands, [Command::Acknowledge(Sequence(2)), Command::Finish]);

    let mut bench = Bench::new();
    bench.step(Input::Tick);
    bench.append(2, 10);
    let until = bench.now + Duration::from_secs(5);
    bench.step(Input::Drain { until });
    assert_eq!(bench.machine.wake_at(), Some(until));
    bench.now = until;
    assert_eq!(bench.step(Input::Tick), [Command::Finish]);
    assert_eq!(bench.step(Input::Tick), []);
}
