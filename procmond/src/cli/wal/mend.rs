//! `procmond wal repair` and `compact`: they hold the directory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use daemoneye_lib::display::escape;
use serde_json::json;

use super::export::one_line;
use super::{failed, print_problems, progress, total_json, usage, written};
use crate::wal::{self, Compaction, Progress, RepairAction};

#[derive(Args, Debug)]
pub(super) struct MendArgs {
    /// The log directory; no procmond may be using it
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl MendArgs {
    /// Makes sure that there is a log, before a lock file is left where there is none.
    fn check(&self) -> Result<(), ExitCode> {
        let shown = shown(&self.dir);
        if !self.dir.is_dir() {
            return Err(usage(&format!(
                "{shown} is not a directory; name a log directory with --dir"
            )));
        }
        let inspected = std::fs::read_dir(&self.dir).map_err(|error| {
            eprintln!("procmond: cannot list {shown}: {error}");
            ExitCode::FAILURE
        })?;
        let is_segment = |name: &str| name.starts_with("procmond-") && name.ends_with(".wal");
        let mut names = inspected.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        if names.any(|name| is_segment(&name)) {
            return Ok(());
        }
        Err(usage(&format!("{shown} holds no log: it has no file like procmond-00001.wal")))
    }
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes()).to_string()
}

pub(super) fn repair(args: &MendArgs) -> Result<ExitCode, ExitCode> {
    args.check()?;
    let progress = Progress::default();
    let repaired = progress::shown(&progress, || wal::repair(&args.dir, &progress))
        .map_err(|error| failed(&error))?;
    let mut out = io::stdout().lock();
    let printed = (|| {
        for (path, action) in &repaired.actions {
            let name = shown(Path::new(path.file_name().unwrap_or_default()));
            let (word, sentence) = match action {
                RepairAction::Rewritten => ("rewritten", "written anew with all that is whole"),
                RepairAction::MovedAway => ("moved_away", "moved to the copies: not readable"),
                RepairAction::Renamed => ("renamed", "given its proper name"),
            };
            if args.json {
                let path = path.to_string_lossy();
                let object = json!({"type": "action", "path": path, "action": word});
                writeln!(out, "{}", one_line(&object))?;
            } else {
                writeln!(out, "{name}: {sentence}")?;
            }
        }
        if args.json {
            let mut total = total_json(&repaired.after);
            total["copies"] = repaired.copies.as_ref().map(|path| path.to_string_lossy()).into();
            return writeln!(out, "{}", one_line(&total));
        }
        if let Some(copies) = &repaired.copies {
            writeln!(out, "what was changed is kept in {}", shown(copies))?;
        }
        print_problems(&mut out, &repaired.after)
    })();
    written(printed.and_then(|()| out.flush()))?;
    let sound = repaired.after.is_sound();
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn compact(args: &MendArgs) -> Result<ExitCode, ExitCode> {
    args.check()?;
    let progress = Progress::default();
    let compacted = progress::shown(&progress, || wal::compact(&args.dir, &progress))
        .map_err(|error| failed(&error))?;
    let Compaction::Done { watermark, removed, rewritten, bytes_before, bytes_after } = compacted
    else {
        let shown = shown(&args.dir);
        eprintln!(
            "procmond: the log in {shown} is damaged, and compacting would hide where; see `procmond wal verify`, mend it with `procmond wal repair`"
        );
        return Ok(ExitCode::FAILURE);
    };
    let mut out = io::stdout().lock();
    let printed = if args.json {
        let object = json!({
            "type": "compaction",
            "watermark": watermark,
            "removed": removed,
            "rewritten": rewritten,
            "bytes_before": bytes_before,
            "bytes_after": bytes_after,
        });
        writeln!(out, "{object}")
    } else {
        writeln!(
            out,
            "{removed} segments removed, {rewritten} written anew: {bytes_before} bytes became {bytes_after}; everything up to {watermark} is committed and gone"
        )
    };
    written(printed.and_then(|()| out.flush()))?;
    Ok(ExitCode::SUCCESS)
}
