//! What the kernel's records mean.

use aya::maps::{Array, MapData};
use daemoneye_lib::models::process::{Completeness, KeyPrecision, SourceName};

use super::Intake;
use super::inventory::Inventory;
use super::record::{Kind, Lost, Record};
use crate::source::poll::Scan;
use crate::source::procfs::Procfs;
use crate::source::teller::{Feed, Told};
use crate::source::{Facts, Happening, ProcessTable, SourceError, What};

/// What is taken out of the ring, and what the iterators find.
pub(super) struct Records {
    lost: Array<MapData, [u32; 3]>,
    inventory: Inventory,
    page_bytes: u64,
}

impl Feed for Records {
    const NAME: SourceName = SourceName::Ebpf;
    type Intake = Intake;
    const CHUNKS: usize = 4;
    type Lost = Lost;

    fn unpack(&mut self, chunk: Vec<u8>, table: &mut Procfs) -> Vec<Told<Lost>> {
        let mut told = Vec::new();
        let mut rest = chunk.as_slice();
        while let Some((length, bytes)) = rest.split_first_chunk() {
            let length = u32::from_ne_bytes(*length) as usize;
            let Some((bytes, behind)) = bytes.split_at_checked(length) else { break };
            rest = behind;
            let Some(record) = Record::read(bytes) else {
                tracing::error!(bytes = length, "a record of the kernel's ring cannot be read");
                continue;
            };
            let happening = self.happening(&record, table);
            told.push(Told { lost: record.lost, at_ns: record.time_ns, happening });
        }
        told
    }

    fn lost(&self) -> Result<Lost, SourceError> {
        let broke = |source| SourceError::Broke { name: Self::NAME, source };
        self.lost.get(&0, 0).map(Lost).map_err(|error| broke(error.into()))
    }

    fn look(&mut self, table: &mut Procfs) -> Result<ProcessTable, SourceError> {
        let listed = self.inventory.list(table).transpose();
        listed.unwrap_or_else(|| table.scan())
    }

    fn sweep(&mut self) {
        self.inventory.sweep();
    }
}

impl Records {
    pub(super) fn new(lost: Array<MapData, [u32; 3]>, inventory: Inventory) -> Self {
        Self { lost, inventory, page_bytes: rustix::param::page_size() as u64 }
    }

    fn happening(&mut self, record: &Record<'_>, table: &mut Procfs) -> Option<Happening> {
        let pid = record.pid;
        let what = match record.kind {
            Kind::Fork => {
                self.inventory.take(record);
                let inherits_group = !record.is_in_other_group();
                let facts = self.with_group(record, table);
                What::Forked { forker: record.forker, inherits_group, facts: Box::new(facts) }
            }
            Kind::Exec => {
                self.inventory.take(record);
                let mut facts = record.facts();
                // Of one that is still there all of them can be had.
                if let Some(beginning) = record.cut_argv()
                    && let Some(argv) = table.argv_of(pid, record.start_ns, beginning)
                {
                    let cut = argv.is_truncated() || record.is_path_cut();
                    facts.completeness =
                        if cut { Completeness::Truncated } else { Completeness::Complete };
                    facts.argv = Some(argv);
                }
                What::Executed(Box::new(facts))
            }
            Kind::Rename => What::Renamed(record.name()),
            Kind::Move => {
                // Of one that is gone already, its group is of no interest any more.
                let (cgroup, container_id) = table.cgroup_of(pid)?;
                What::Moved { cgroup, container_id }
            }
            Kind::Look if self.inventory.knows(record) => {
                What::Found(Box::new(self.with_group(record, table)))
            }
            // What it runs found no room to be told.
            Kind::Look => {
                let facts = table.facts_of(pid, record.start_ns).ok().flatten()?;
                self.inventory.take(record);
                What::Executed(Box::new(facts))
            }
            Kind::Exit => {
                self.inventory.forget(record);
                What::Exited(record.exit(self.page_bytes), Box::new(record.facts()))
            }
        };
        let precision = KeyPrecision::Nanosecond;
        Some(Happening { pid, start_ns: record.start_ns, precision, at_ns: record.time_ns, what })
    }

    /// What the record says, with the control group where that is another than was told.
    fn with_group(&self, record: &Record<'_>, table: &mut Procfs) -> Facts {
        let mut facts = record.facts();
        if record.is_in_other_group()
            && let Some((cgroup, container_id)) = table.cgroup_of(record.pid)
        {
            facts.cgroup = Some(cgroup);
            facts.container_id = container_id;
        }
        facts
    }
}
