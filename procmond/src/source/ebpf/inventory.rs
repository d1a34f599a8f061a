//! The iterators: every process that is there, and every one that is not as it was last told.
//!
//! Passing over ten thousand processes in the kernel takes a few milliseconds; opening and reading
//! as many files takes a tenth of a second. What programs are run with, an iterator cannot read:
//! of a process that nobody has told of, or not of its present program, `/proc` says that.

use std::collections::HashMap;
use std::io::{self, Read};

use aya::programs::Iter;
use aya::{Btf, Ebpf};
use daemoneye_lib::models::process::{Completeness, KeyPrecision, SourceName};
use daemoneye_lib::stream::wall_clock_ns;

use super::record::Record;
use super::{check, missing, refused};
use crate::source::clock::since_boot_ns;
use crate::source::procfs::{Procfs, TICK_NS};
use crate::source::{Facts, ObservedProcess, ProcessTable, SourceError};

const LOOK: &str = "on_look";
const SWEEP: &str = "on_sweep";
/// One record of a look.
const RECORD_BYTES: usize = 148;

/// The iterators, and what is known of the processes that they find.
pub(super) struct Inventory {
    /// Detaches all programs when dropped.
    loaded: Ebpf,
    /// False if the kernel did not take them: the process table is read then.
    works: bool,
    known: HashMap<u32, Known>,
}

/// Which process, and which of its programs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    start_ns: u64,
    exec_id: u32,
}

impl Known {
    fn of(record: &Record<'_>) -> Self {
        Self { start_ns: record.start_ns, exec_id: record.exec_id }
    }
}

impl Inventory {
    /// Has the kernel check the iterators. That it refuses them is no failure.
    pub(super) fn new(mut loaded: Ebpf, btf: &Btf) -> Self {
        let result = [LOOK, SWEEP].into_iter().try_for_each(|name| {
            let program = iterator(&mut loaded, name)?;
            check(|| program.load("task", btf)).map_err(refused)
        });
        if let Err(error) = &result {
            tracing::warn!(%error, "looking at the process table takes longer than it might");
        }
        Self { loaded, works: result.is_ok(), known: HashMap::new() }
    }

    /// Takes note that this program of this process has been told of.
    pub(super) fn take(&mut self, record: &Record<'_>) {
        if self.works {
            self.known.insert(record.pid, Known::of(record));
        }
    }

    /// Takes note that a process has ended.
    pub(super) fn forget(&mut self, record: &Record<'_>) {
        if self.known.get(&record.pid).is_some_and(|known| known.start_ns == record.start_ns) {
            self.known.remove(&record.pid);
        }
    }

    /// Whether this program of this process has been told of.
    pub(super) fn knows(&self, record: &Record<'_>) -> bool {
        self.known.get(&record.pid) == Some(&Known::of(record))
    }

    /// Has every process told of that has changed since that was done last.
    pub(super) fn sweep(&mut self) {
        if self.works
            && let Err(error) = self.read(SWEEP)
        {
            self.give_up(&error);
        }
    }

    /// Everything that is there. `None` if it cannot be had so.
    pub(super) fn list(
        &mut self,
        procfs: &mut Procfs,
    ) -> Result<Option<ProcessTable>, SourceError> {
        let (time_ns, uptime_ns) = (wall_clock_ns(), since_boot_ns());
        if !self.works {
            return Ok(None);
        }
        let bytes = match self.read(LOOK) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.give_up(&error);
                return Ok(None);
            }
        };
        let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
        let mut processes = Vec::with_capacity(records.len());
        let mut known = HashMap::with_capacity(records.len());
        for record in records.iter().filter_map(|bytes| Record::read(bytes)) {
            let Record { pid, start_ns, .. } = record;
            let ended = record.exit_found();
            let mut facts = None;
            if !self.knows(&record) {
                let read = match ended {
                    Some(_) => None,
                    None => procfs.facts_of(pid, start_ns)?,
                };
                // Of one that has ended there is no more than this.
                let late = || Facts { completeness: Completeness::EnrichedLate, ..record.facts() };
                facts = Some(Box::new(read.unwrap_or_else(late)));
            }
            known.insert(pid, Known::of(&record));
            let start_centis = start_ns / TICK_NS;
            let start_ns = Some(start_ns);
            processes.push(ObservedProcess { pid, start_centis, start_ns, facts, ended });
        }
        self.known = known;
        Ok(Some(ProcessTable {
            source: SourceName::Ebpf,
            is_told: true,
            boot_id: procfs.boot_id(),
            precision: KeyPrecision::Nanosecond,
            time_ns,
            uptime_ns,
            processes,
        }))
    }

    /// Has an iterator pass over all processes, and gives what it writes.
    fn read(&mut self, name: &str) -> Result<Vec<u8>, SourceError> {
        let program = iterator(&mut self.loaded, name)?;
        let link = program.attach().and_then(|id| program.take_link(id)).map_err(refused)?;
        let mut file = link.into_file().map_err(refused)?;
        let mut bytes = Vec::new();
        loop {
            match file.read_to_end(&mut bytes) {
                Ok(_) => return Ok(bytes),
                // It takes a rest after a million.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(refused(error)),
            }
        }
    }

    pub(super) fn give_up(&mut self, error: &SourceError) {
        tracing::warn!(%error, "processes can no longer be passed over in the kernel");
        self.works = false;
        self.known = HashMap::new();
    }
}

fn iterator<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut Iter, SourceError> {
    loaded.program_mut(name).ok_or_else(|| missing(name))?.try_into().map_err(refused)
}
