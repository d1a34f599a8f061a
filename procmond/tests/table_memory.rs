//! What the process table takes in memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use daemoneye_lib::models::process::{Completeness, KeyPrecision, Namespaces, SourceName};
use daemoneye_lib::redaction::RawArgv;
use procmond::monitor::tracker::{ANCESTORS_MAX, Tracker};
use procmond::source::{Facts, Observation, ObservedProcess, ProcessTable};
use uuid::Uuid;

/// Counts what is allocated and not freed.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe to write; this one leaves all to another")]
// SAFETY: every call is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those of this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PROCESSES: u32 = 10_000;
/// Of the 32 MB that procmond may take with so many, 12 are what it takes without any.
const BYTES_MAX: usize = 20_000_000;

/// A process as services and shells have them, with everything that can be known.
fn process(pid: u32) -> ObservedProcess {
    let dir = "/usr/lib/x86_64-linux-gnu/some-service";
    let args: Vec<String> = (0..8).map(|n| format!("--option-{n}=/var/lib/{pid}/value")).collect();
    let mut argv = vec![format!("{dir}/worker")];
    argv.extend(args);
    let mut facts = Facts::unknown(Completeness::Complete);
    // Families of ten.
    facts.ppid = Some(if pid % 10 == 1 { 1 } else { pid - 1 });
    facts.name = Some("worker".into());
    facts.exe = Some(format!("{dir}/worker").as_str().into());
    facts.exe_deleted = Some(false);
    facts.argv = Some(RawArgv::from_args(&argv).redact());
    facts.cwd = Some("/var/lib/some-service/instances".into());
    facts.cgroup = Some("/system.slice/some-service.service/instance-0123456789".into());
    facts.container_id = Some("0123456789abcdef".repeat(4).into());
    facts.namespaces = Some(Namespaces::default());
    let start_centis = u64::from(pid);
    ObservedProcess { pid, start_centis, start_ns: None, facts: Some(Box::new(facts)), ended: None }
}

#[test]
fn ten_thousand_processes_with_their_ancestors_fit_into_20_mb() {
    let mut tracker = Tracker::new();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let events = tracker.observe(Observation::Snapshot(ProcessTable {
        source: SourceName::Poll,
        is_told: false,
        boot_id: Uuid::nil(),
        precision: KeyPrecision::Tick,
        time_ns: 0,
        uptime_ns: 10_000_000 * u64::from(PROCESSES),
        processes: (1..=PROCESSES).map(process).collect(),
    }));
    assert_eq!(events.len(), PROCESSES as usize);
    drop(events);
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;
    eprintln!("{bytes} bytes, {} a process", bytes / PROCESSES as usize);
    assert!(bytes <= BYTES_MAX, "{bytes} bytes");
    let longest = tracker.ancestry(PROCESSES);
    assert_eq!((longest.len(), longest[9].pid), (10, 1));
    assert!(longest.len() < ANCESTORS_MAX);
}
