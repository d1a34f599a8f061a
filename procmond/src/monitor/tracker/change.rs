//! From facts to events.

use daemoneye_lib::models::ByteString;
use daemoneye_lib::models::event::Event;
use daemoneye_lib::models::process::{
    Completeness, Exit, FieldChange, ProcessEvent, ProcessEventKind, ProcessKey,
};

use super::{CENTI_NS, Entry, Look};
use crate::source::Facts;

/// The start of a process. Its parent is for the table to find.
pub(super) fn start_event(
    key: ProcessKey,
    start_ns: u64,
    facts: Option<&Facts>,
    existing: bool,
    look: Look,
) -> ProcessEvent {
    let age_ns = look.uptime_ns.saturating_sub(start_ns);
    let age_ns = i64::try_from(age_ns).unwrap_or(i64::MAX);
    let unknown = Facts::unknown(Completeness::EnrichedLate);
    let facts = facts.unwrap_or(&unknown).clone();
    ProcessEvent {
        kind: ProcessEventKind::Start { existing },
        key,
        key_precision: look.precision,
        ppid: facts.ppid,
        parent_key: None,
        name: facts.name,
        exe: facts.exe,
        exe_deleted: facts.exe_deleted,
        argv: facts.argv,
        cwd: facts.cwd,
        uid: facts.uid,
        euid: facts.euid,
        gid: facts.gid,
        egid: facts.egid,
        login_uid: facts.login_uid,
        session: facts.session,
        cgroup: facts.cgroup,
        container_id: facts.container_id,
        namespaces: facts.namespaces,
        start_time_ns: Some(look.time_ns.saturating_sub(age_ns)),
        time_ns: look.time_ns,
        monotonic_ns: Some(look.uptime_ns),
        source: look.source,
        completeness: facts.completeness,
        inferred: false,
        capabilities: facts.capabilities,
        exe_sha256: facts.exe_sha256,
    }
}

/// Whether both are the name of one thread of the kernel: where some sources see all of it, others
/// see the first fifteen bytes. Nobody else's name has more.
fn is_one_cut(one: Option<&ByteString>, other: Option<&ByteString>) -> bool {
    let Some((one, other)) = one.zip(other) else { return false };
    let (short, long) = if one.len() < other.len() { (one, other) } else { (other, one) };
    short.len() == 15 && long.len() > 15 && long.as_bytes().starts_with(short.as_bytes())
}

impl Entry {
    /// The end of this process.
    pub(super) fn stop(&self, mut exit: Exit, look: Look) -> Event {
        let started_ns =
            self.start_ns.unwrap_or_else(|| self.start.key.start_centis.saturating_mul(CENTI_NS));
        // When one ended that ended while nobody looked is not known.
        exit.run_time_ns = exit
            .run_time_ns
            .or_else(|| (!look.is_inferred).then(|| look.uptime_ns.saturating_sub(started_ns)));
        self.event(ProcessEventKind::Stop(exit), look)
    }

    /// Takes up new facts and tells what changed, if anything did.
    pub(super) fn change(&mut self, facts: &Facts, look: Look) -> Option<Event> {
        let mut changes = Vec::new();
        let known = &mut self.start;
        // What was cut when it was told is not another when all of it is seen.
        if let (Some(before), Some(now)) = (&known.argv, &facts.argv)
            && before.is_cut_from(now)
        {
            known.argv.clone_from(&facts.argv);
        }
        macro_rules! take {
            ($field:ident, $change:ident) => {
                // What cannot be read now is not known to have changed.
                if facts.$field.is_some() && known.$field != facts.$field {
                    changes.push(FieldChange::$change(known.$field.take()));
                }
                known.$field.clone_from(&facts.$field);
            };
        }
        if is_one_cut(known.name.as_ref(), facts.name.as_ref()) {
            // The whole one comes behind its beginning.
            known.name = known.name.take().max(facts.name.clone());
        } else {
            take!(name, Name);
        }
        take!(exe, Exe);
        take!(argv, Argv);
        take!(uid, Uid);
        take!(euid, Euid);
        take!(gid, Gid);
        take!(egid, Egid);
        take!(login_uid, LoginUid);
        take!(session, Session);
        take!(cgroup, Cgroup);
        take!(capabilities, Capabilities);
        known.exe_deleted = facts.exe_deleted;
        known.cwd.clone_from(&facts.cwd);
        known.container_id.clone_from(&facts.container_id);
        known.namespaces = facts.namespaces;
        known.exe_sha256 = facts.exe_sha256;
        known.completeness = facts.completeness;
        // The parent stays the one that it was seen with first: a new one only adopted it.
        // Of one that is over, the stop was told, or not even the start.
        (!changes.is_empty() && !self.is_over)
            .then(|| self.event(ProcessEventKind::Modify { changes }, look))
    }

    /// Takes up what it is found to be, whatever program it runs, and tells what changed.
    pub(super) fn found(&mut self, facts: &Facts, look: Look) -> Option<Event> {
        let known = &self.start;
        let namespaces = facts.namespaces.or(known.namespaces);
        let mut differs = namespaces != known.namespaces;
        macro_rules! differs {
            ($($field:ident),*) => {
                $(differs |= facts.$field.is_some() && known.$field != facts.$field;)*
            };
        }
        if !is_one_cut(known.name.as_ref(), facts.name.as_ref()) {
            differs!(name);
        }
        differs!(uid, euid, gid, egid, login_uid, session, capabilities, cgroup);
        if !differs {
            return None;
        }
        let mut new = Facts { namespaces, ..self.facts() };
        macro_rules! take {
            ($($field:ident),*) => {
                $(if facts.$field.is_some() {
                    new.$field.clone_from(&facts.$field);
                })*
            };
        }
        take!(name, uid, euid, gid, egid, login_uid, session, capabilities);
        if facts.cgroup.is_some() {
            new.cgroup.clone_from(&facts.cgroup);
            new.container_id.clone_from(&facts.container_id);
        }
        self.change(&new, look)
    }

    /// What is known of it.
    pub(super) fn facts(&self) -> Facts {
        let start = self.start.clone();
        Facts {
            ppid: start.ppid,
            name: start.name,
            exe: start.exe,
            exe_deleted: start.exe_deleted,
            exe_file: None,
            argv: start.argv,
            cwd: start.cwd,
            uid: start.uid,
            euid: start.euid,
            gid: start.gid,
            egid: start.egid,
            login_uid: start.login_uid,
            session: start.session,
            cgroup: start.cgroup,
            container_id: start.container_id,
            namespaces: start.namespaces,
            capabilities: start.capabilities,
            exe_sha256: start.exe_sha256,
            completeness: start.completeness,
        }
    }

    pub(super) fn event(&self, kind: ProcessEventKind, look: Look) -> Event {
        ProcessEvent {
            kind,
            time_ns: look.time_ns,
            monotonic_ns: Some(look.uptime_ns),
            source: look.source,
            inferred: look.is_inferred,
            ..self.start.clone()
        }
        .into()
    }
}
