//! A connection may end after any byte, in either direction: whoever comes back goes on, the
//! consumer's data are exact, and the publisher gets everything acknowledged.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use daemoneye_eventbus::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::common::*;

/// How many cuts every test run tries, spread over all; `E2E_ROUNDS` asks for more.
const ROUNDS: usize = 150;
const STATUS: &str = "control.health.status";
const BATCHES: [(u64, &str); 4] = [(1, START), (2, STOP), (1, START), (3, STOP)];
const EVENTS: u64 = 7;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Publisher,
    Consumer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToBroker,
    FromBroker,
}

/// Where a session is cut: before the byte at this offset is passed on.
#[derive(Debug, Clone, Copy)]
struct Cut {
    side: Side,
    direction: Direction,
    offset: usize,
    /// Only this direction ends; the other goes on until its peers close.
    half: bool,
}

/// Passes bytes on between clients and the broker, and counts those of its first connection, which
/// it cuts if told to.
struct Proxy {
    socket: PathBuf,
    counted: Rc<[Cell<usize>; 2]>,
    connections: Rc<Cell<usize>>,
    task: JoinHandle<()>,
}

impl Proxy {
    fn start(bus: &Bus, side: Side, cut: Option<Cut>) -> Self {
        let socket = bus.directory.path().join(format!("{side:?}"));
        let listener = UnixListener::bind(&socket).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&socket, permissions).unwrap();
        let counted = Rc::new([Cell::new(0), Cell::new(0)]);
        let connections = Rc::new(Cell::new(0));
        let (counts, accepted, broker) =
            (Rc::clone(&counted), Rc::clone(&connections), bus.socket());
        let cut = cut.filter(|cut| cut.side == side);
        let task = spawn_local(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let first = accepted.replace(accepted.get() + 1) == 0;
                let broker = UnixStream::connect(&broker).await.unwrap();
                let counts = first.then(|| Rc::clone(&counts));
                spawn_local(pass(client, broker, counts, cut.filter(|_| first)));
            }
        });
        Self { socket, counted, connections, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    client: UnixStream,
    broker: UnixStream,
    counts: Option<Rc<[Cell<usize>; 2]>>,
    cut: Option<Cut>,
) {
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let half = cut.is_some_and(|cut| cut.half);
    let limit = |direction| cut.filter(|cut| cut.direction == direction).map(|cut| cut.offset);
    let count = |n: usize, bytes: usize| {
        if let Some(counts) = &counts {
            counts[n].set(counts[n].get() + bytes);
        }
    };
    let up = pump(from_client, to_broker, limit(Direction::ToBroker), |n| count(0, n));
    let down = pump(from_broker, to_client, limit(Direction::FromBroker), |n| count(1, n));
    tokio::pin!(up, down);
    // Either ends by itself: the connection is over, as it is when a machine in between dies. What
    // was read before has been passed on.
    tokio::select! {
        _ = &mut up => if half { down.await; },
        _ = &mut down => if half { up.await; },
    }
}

/// Passes bytes on until there are none or `limit` have been passed.
async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: tokio::net::unix::OwnedWriteHalf,
    limit: Option<usize>,
    count: impl Fn(usize),
) {
    let mut left = limit.unwrap_or(usize::MAX);
    let mut buffer = [0; 4096];
    while left > 0 {
        let most = left.min(buffer.len());
        let Ok(read @ 1..) = from.read(&mut buffer[..most]).await else { return };
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        count(read);
        left -= read;
    }
}

async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

/// Publishes the log and answers questions, until everything is acknowledged.
async fn publish(socket: PathBuf, log: Log) {
    while publish_once(&socket, log).await.is_none() {
        pause().await;
    }
}

async fn publish_once(socket: &Path, log: Log) -> Option<()> {
    let options = ClientOptions::new("procmond", Role::Collector);
    let position = Position {
        stream: log.stream,
        epoch: log.epoch,
        first_unacknowledged: Sequence(1),
        last: Sequence(EVENTS),
    };
    let (client, mut publisher) = match Client::connect_publisher(socket, options, position).await {
        Ok(connected) => connected,
        Err(error) => {
            assert!(error.may_retry(), "{error}");
            return None;
        }
    };
    let status = [STATUS.parse().unwrap()];
    let questions = client.subscribe(&status, LiveOptions::default()).await.ok()?;
    let answering = spawn_local(answer(client.clone(), questions));
    let committed = publisher.committed().map_or(0, |committed| committed.sequence.0);
    let mut after = 0;
    for (count, topic) in BATCHES {
        let through = after + count;
        if through > committed {
            let skipped = committed.saturating_sub(after);
            let batch = log.batch(after + skipped, count - skipped, topic);
            publisher.publish(&batch).await.ok()?;
        }
        after = through;
    }
    let mut acked = committed;
    while acked < EVENTS {
        match publisher.acked().await {
            Ok(ack) => acked = ack.sequence.0,
            Err(_) => {
                let reason = client.closed().await;
                assert!(reason.may_retry(), "{reason}");
                return None;
            }
        }
    }
    answering.abort();
    client.goodbye().await;
    Some(())
}

async fn answer(client: Client, mut questions: LiveSubscription) {
    while let Some(LiveItem::Message(question)) = questions.next().await {
        // If it cannot be sent, it is asked again.
        let _ = client.reply(&question, "well".into()).await;
    }
}

/// What the consumer has on its disk.
struct Stored {
    events: Vec<Entry>,
    position: Option<(StreamId, Committed)>,
    answered: bool,
    /// Watched live by the same connection, one list a session.
    live: Vec<Vec<u64>>,
}

/// Stores and commits, watches, and asks, until it is told to end.
async fn consume(socket: PathBuf, stored: Rc<RefCell<Stored>>, mut end: watch::Receiver<bool>) {
    while !*end.borrow() {
        tokio::select! {
            _ = consume_once(&socket, &stored) => pause().await,
            _ = end.wait_for(|end| *end) => {}
        }
    }
}

async fn consume_once(socket: &Path, stored: &Rc<RefCell<Stored>>) -> Option<()> {
    let options = ClientOptions::new("store", Role::Subscriber);
    let client = match Client::connect(socket, options).await {
        Ok(client) => client,
        Err(error) => {
            assert!(error.may_retry(), "{error}");
            return None;
        }
    };
    let patterns = ["events.#".parse().unwrap()];
    let mut live = client.subscribe(&patterns, LiveOptions::default()).await.ok()?;
    let positions = stored.borrow().position.into_iter().collect();
    let mut durable = match client.subscribe_durable("store", &patterns, positions).await {
        Ok(durable) => durable,
        Err(SubscribeError::Disconnected(_) | SubscribeError::Refused { retry: true, .. }) => {
            return None;
        }
        Err(error) => panic!("it may come back: {error}"),
    };
    stored.borrow_mut().live.push(Vec::new());
    let watched = async {
        while let Some(item) = live.next().await {
            match item {
                LiveItem::Event(event) => {
                    let mut stored = stored.borrow_mut();
                    stored.live.last_mut().unwrap().push(event.origin.sequence.0);
                }
                other => panic!("an event, not {other:?}"),
            }
        }
    };
    let kept = async {
        while let Some(delivery) = durable.next().await {
            {
                let mut stored = stored.borrow_mut();
                let have = stored.events.len() as u64;
                assert_eq!(delivery.after.0, have, "what follows from the position it named");
                stored.events.extend(delivery.entries);
                let at = Committed { sequence: delivery.through, epoch: delivery.epoch };
                stored.position = Some((delivery.stream, at));
            }
            // The publisher is there until the last commit.
            while !stored.borrow().answered {
                let answered = ask(&client).await?;
                stored.borrow_mut().answered = answered;
            }
            let _ = durable.commit(delivery.stream, delivery.through, delivery.epoch);
        }
        None::<()>
    };
    tokio::join!(watched, kept).1
}

/// Whether there was an answer; `None` if the connection is gone.
async fn ask(client: &Client) -> Option<bool> {
    let status = STATUS.parse().unwrap();
    // The question or its answer may be lost with the publisher's connection.
    match client.request(&status, "?".into(), std::time::Duration::from_millis(50)).await {
        Ok(answer) => {
            assert_eq!(answer, "well");
            Some(true)
        }
        Err(RequestError::NoResponder { .. }) => {
            pause().await;
            Some(false)
        }
        Err(RequestError::Timeout { .. }) => Some(false),
        Err(RequestError::Send(SendError::Disconnected(_))) => None,
        Err(error) => panic!("an answer, not {error}"),
    }
}

/// One session of each side, cut or not, and what follows. Gives the bytes of the first connection
/// of the publisher and of the consumer, to and from the broker, and whether one of them had to
/// come back.
async fn session(cut: Option<Cut>) -> ([[usize; 2]; 2], bool) {
    let bus = Bus::with(|options| {
        options.required_consumers = vec!["store".to_owned()];
        // Pings would come at moments of their own.
        options.heartbeat = std::time::Duration::from_secs(60);
    })
    .await;
    let log = Log::new();
    let publisher = Proxy::start(&bus, Side::Publisher, cut);
    let consumer = Proxy::start(&bus, Side::Consumer, cut);
    let stored = Stored { events: vec![], position: None, answered: false, live: vec![] };
    let stored = Rc::new(RefCell::new(stored));
    let (end, ended) = watch::channel(false);
    let consuming = spawn_local(consume(consumer.socket.clone(), Rc::clone(&stored), ended));
    // Else the publisher would be refused as long as the consumer is not there, and that session
    // be cut.
    until(|| !bus.broker.stats().consumers.is_empty()).await;
    let publishing = spawn_local(publish(publisher.socket.clone(), log));
    within(publishing).await.unwrap();
    end.send_replace(true);
    within(consuming).await.unwrap();
    until(|| bus.broker.stats().connections.is_empty()).await;

    let stored = stored.borrow();
    let expected: Vec<Entry> = (1..=EVENTS)
        .zip(BATCHES.iter().flat_map(|(count, topic)| (0..*count).map(move |_| topic)))
        .map(|(sequence, topic)| Log::entry(sequence, topic))
        .collect();
    assert_eq!(stored.events, expected, "{cut:?}");
    assert!(stored.answered, "{cut:?}");
    for live in &stored.live {
        assert!(live.is_sorted_by(|a, b| a + 1 == *b), "{cut:?}: {live:?}");
    }
    let stats = &bus.broker.stats().streams[0];
    assert_eq!((stats.last, stats.acked), (Sequence(EVENTS), Sequence(EVENTS)), "{cut:?}");
    if let Some(cut) = cut {
        let proxy = if cut.side == Side::Publisher { &publisher } else { &consumer };
        let counted = proxy.counted[cut.direction as usize].get();
        assert!(counted <= cut.offset, "{cut:?}: {counted} bytes were passed on");
    }
    let came_back = publisher.connections.get() + consumer.connections.get() > 2;
    let lengths = [publisher, consumer].map(|proxy| [0, 1].map(|n| proxy.counted[n].get()));
    (lengths, came_back)
}

#[tokio::test]
async fn a_connection_cut_at_any_byte_loses_and_repeats_nothing() {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seed = number("E2E_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let rounds = number("E2E_ROUNDS").map_or(ROUNDS, |rounds| rounds as usize);
    println!("E2E_SEED={seed}");
    LocalSet::new()
        .run_until(async {
            let (lengths, _) = session(None).await;
            let mut cuts = Vec::new();
            for (side, lengths) in [Side::Publisher, Side::Consumer].into_iter().zip(lengths) {
                let directions = [Direction::ToBroker, Direction::FromBroker];
                for (direction, length) in directions.into_iter().zip(lengths) {
                    for half in [false, true] {
                        cuts.extend((0..=length).map(|offset| Cut {
                            side,
                            direction,
                            offset,
                            half,
                        }));
                    }
                }
            }
            let step = cuts.len().div_ceil(rounds).max(1);
            let first = seed as usize % step;
            let (mut done, mut came_back) = (0, 0);
            for cut in cuts.iter().skip(first).step_by(step) {
                came_back += usize::from(session(Some(*cut)).await.1);
                done += 1;
            }
            // A cut behind the last byte that matters is not noticed.
            assert!(came_back > done / 2, "{came_back} of {done} cuts were noticed");
            let all = cuts.len();
            println!("{done} of {all} cuts, {came_back} noticed; sessions of {lengths:?} bytes");
        })
        .await;
}
