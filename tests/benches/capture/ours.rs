//! Ours: the agent with everything, asked what its store holds.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use daemoneye_eventbus::{Client, ClientOptions, LiveItem, LiveOptions, Role, TopicPattern};
use daemoneye_lib::models::event::{Event, EventKind};
use daemoneye_tests::{Agent, AgentBuilder};

use crate::load::since_boot_ns;
use crate::tool::{Seen, Tool, Watching};

/// One way of seeing.
struct Ours {
    name: &'static str,
    source: &'static str,
    tick_ms: u32,
}

static OURS: [Ours; 5] = [
    Ours { name: "ebpf", source: "ebpf", tick_ms: 2 },
    Ours { name: "ebpf-low-latency", source: "ebpf", tick_ms: 0 },
    Ours { name: "ebpf-economy", source: "ebpf", tick_ms: 10 },
    Ours { name: "netlink", source: "netlink", tick_ms: 2 },
    Ours { name: "poll", source: "poll", tick_ms: 2 },
];

pub(crate) fn all() -> impl Iterator<Item = Box<dyn Tool>> {
    OURS.iter().map(|ours| Box::new(ours) as Box<dyn Tool>)
}

struct Running {
    agent: Agent,
    procmond: u32,
    /// The first argument of each start that the subscriber got, and how long it took.
    received: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Tool for &'static Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn start(&self) -> Result<Box<dyn Watching>, String> {
        let agent = AgentBuilder::default()
            .env("PROCMOND_MONITOR__SOURCE", self.source)
            .env("PROCMOND_MONITOR__TICK_MS", self.tick_ms)
            .start();
        let procmond = agent.monitoring();
        let received = Arc::default();
        subscribe(&agent, Arc::clone(&received));
        Ok(Box::new(Running { agent, procmond, received }))
    }
}

impl Watching for Running {
    fn pid(&self) -> u32 {
        self.procmond
    }

    fn has_seen(&self, mark: &str) -> bool {
        let with_mark = format!("SELECT count(*) FROM events WHERE cmdline LIKE '% {mark} %'");
        self.agent.store().number(&with_mark) > 0
    }

    fn seen(&self, mark: &str) -> Seen {
        let of = |topic: &str| -> HashSet<u32> {
            let rows = self.agent.store().rows(&format!("topic = 'events.process.{topic}'"));
            rows.iter().filter_map(|row| row.pid).collect()
        };
        let with_mark = self.agent.store().rows(&format!("cmdline LIKE '% {mark}-%'"));
        let whole =
            with_mark.iter().filter_map(|row| crate::peers::whole(row.cmdline.as_deref()?, mark));
        Seen { whole: whole.collect(), starts: of("start"), stops: Some(of("stop")) }
    }

    fn latencies_ns(&self, mark: &str) -> Vec<u64> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let of_load = received.iter().filter(|(argument, _)| argument.starts_with(mark));
        of_load.map(|(_, latency_ns)| *latency_ns).collect()
    }
}

/// Takes the time at which starts come, until the broker goes.
fn subscribe(agent: &Agent, received: Arc<Mutex<Vec<(String, u64)>>>) {
    let socket = agent.setup().socket();
    let (ready, subscribed) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a tokio runtime");
        runtime.block_on(async {
            let options = ClientOptions::new("capture-bench", Role::Subscriber);
            let client = Client::connect(&socket, options).await.expect("the broker listens");
            let pattern = TopicPattern::new("events.process.*").expect("a pattern");
            let live = client.subscribe(&[pattern], LiveOptions::default()).await;
            let mut live = live.expect("the broker takes subscriptions");
            ready.send(()).expect("somebody waits");
            while let Some(item) = live.next().await {
                let now_ns = since_boot_ns();
                let LiveItem::Event(event) = item else { continue };
                let Ok(Event::Process(event)) = Event::decode(&event.payload) else { continue };
                if event.event_kind() == EventKind::Stop {
                    continue;
                }
                let Some(argv) = event.argv else { continue };
                let mut arguments = argv.iter().skip(1).map(String::from_utf8_lossy);
                if let (Some(mark), Some(Ok(made_ns))) =
                    (arguments.next(), arguments.next().map(|argument| argument.parse::<u64>()))
                {
                    let latency_ns = now_ns.saturating_sub(made_ns);
                    received
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((mark.into_owned(), latency_ns));
                }
            }
        });
    });
    subscribed.recv().expect("the subscriber subscribes");
}
