//! Reading a process that may end meanwhile, part by part: first what goes first when it does.

use daemoneye_lib::models::process::Completeness;

use super::details::{Account, ReadError};
use super::files::Files;
use super::first_sight;
use super::stat::{self, Stat};
use crate::source::Facts;

/// More than `stat` and `status` have.
const ENTRY_BYTES_MAX: usize = 64 * 1024;

/// What has been read of a process by now.
pub(in crate::source) struct Reading {
    pid: u32,
    account: Account,
    facts: Facts,
    stat: Option<Stat>,
    next: Part,
}

/// What is read next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Its file and its directory, which it has until it ends.
    Program,
    /// What the list itself says, which stays until it is reaped.
    Entry,
    /// Where it runs.
    Surroundings,
    /// Everything has been read, or it is gone.
    Nothing,
}

impl Reading {
    /// Reads its arguments. `None` if it is gone, or we are out of files or memory.
    pub(super) fn begin(files: &mut Files, pid: u32) -> Option<Self> {
        let mut account = Account::default();
        let argv = account.argv(files, pid).ok()?;
        if argv.is_none() && !account.refused {
            return None;
        }
        // Only a thread of the kernel, and what has ended or is about to, has none at all.
        let argv = argv.filter(|argv| argv.iter().next().is_some());
        let facts = Facts { argv, ..Facts::unknown(Completeness::EnrichedLate) };
        Some(Self { pid, account, facts, stat: None, next: Part::Program })
    }

    /// It has ended: at most its entry in the list is left.
    pub(in crate::source) fn has_ended(&mut self) {
        if self.next == Part::Program {
            self.next = Part::Entry;
        }
    }

    /// When it began, in 10 ms units since boot, if that has been read.
    pub(in crate::source) fn ticks(&self) -> Option<u64> {
        self.stat.as_ref().map(|stat| stat.start_ticks)
    }

    /// What has been read by now.
    pub(in crate::source) fn into_facts(mut self) -> Facts {
        let is_kernel_thread = self.stat.as_ref().is_some_and(|stat| stat.is_kernel_thread);
        self.account.gone |= self.next != Part::Nothing || self.stat.is_none();
        self.account.gone |= self.facts.argv.is_none() && !is_kernel_thread;
        Facts { completeness: self.account.completeness(is_kernel_thread), ..self.facts }
    }

    /// Reads its entry in the list, if it was not read yet.
    pub(super) fn read_entry(&mut self, files: &mut Files) {
        if self.stat.is_none()
            && let Ok(Some(bytes)) = self.account.file(files, self.pid, "stat", ENTRY_BYTES_MAX)
        {
            self.stat = stat::parse(bytes);
        }
    }

    /// Reads the next part; false if that was the last.
    pub(super) fn read_on(&mut self, files: &mut Files) -> bool {
        self.try_read_on(files).is_ok_and(|()| self.next != Part::Nothing) || {
            self.next = Part::Nothing;
            false
        }
    }

    fn try_read_on(&mut self, files: &mut Files) -> Result<(), ReadError> {
        self.next = match self.next {
            Part::Program => {
                self.account.program(files, self.pid, &mut self.facts)?;
                Part::Entry
            }
            Part::Entry => {
                self.read_entry(files);
                match &self.stat {
                    Some(stat) => {
                        let status =
                            self.account.file(files, self.pid, "status", ENTRY_BYTES_MAX)?;
                        let listed = first_sight(stat, status.and_then(stat::parse_ids));
                        let unknown = Facts::unknown(Completeness::EnrichedLate);
                        self.facts = std::mem::replace(&mut self.facts, unknown).or(listed);
                        Part::Surroundings
                    }
                    None => Part::Nothing,
                }
            }
            Part::Surroundings => {
                self.account.surroundings(files, self.pid, &mut self.facts)?;
                Part::Nothing
            }
            Part::Nothing => Part::Nothing,
        };
        Ok(())
    }
}
