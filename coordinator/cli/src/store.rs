//! `skiff store`: checks, migrates and cleans up a state folder while no coordinator uses it.

use crate::door::Door;
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use skiff_base::lock::Lock;
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_coordinator::store::backup::{self, Backup};
use skiff_coordinator::store::check::{self, Report};
use skiff_coordinator::store::collector::{self, Collected};
use skiff_coordinator::store::{Migrated, SqliteStore};
use skiff_screen::output::{stdout, width};
use skiff_screen::text::fold;
use skiff_screen::units::{bytes, counted};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Subcommands of `skiff store`. Only `backup` works while the coordinator runs.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Verify every journal record and every blob without changing anything. Exit status 1 if there is a fault
    Check(CheckArguments),
    /// Copy the journal, the weights that it needs, the key and the policy to a new folder. The coordinator may be running
    Backup(BackupArguments),
    /// Convert the journal to the layout of this version, as `skiff serve` does when it starts
    Migrate(ChangeArguments),
    /// Remove weights and updates that a later round superseded, as `skiff serve` does after each round
    Gc(GcArguments),
}

/// Arguments of `skiff store check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArguments {
    #[command(flatten)]
    door: Door,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff store backup`.
#[derive(Args, Debug)]
pub(crate) struct BackupArguments {
    /// Folder to make. It has the signing key, so keep it as safe as the state folder
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    door: Door,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff store gc`.
#[derive(Args, Debug)]
pub(crate) struct GcArguments {
    /// Remove also the weights and updates that no journal record ever named, if every record and blob is whole. Usually they
    /// are updates that arrived shortly before the coordinator was killed. Look at them with --dry-run first
    #[arg(long)]
    unknown: bool,
    #[command(flatten)]
    change: ChangeArguments,
}

/// Arguments that `skiff store migrate` and `skiff store gc` share.
#[derive(Args, Debug)]
pub(crate) struct ChangeArguments {
    #[command(flatten)]
    door: Door,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// A coordinator is using the folder, the journal cannot be opened, or `check` found a fault.
pub(crate) fn run(action: &Action) -> anyhow::Result<()> {
    match action {
        Action::Check(arguments) => {
            let (state, _lock) = locked(&arguments.door)?;
            let report = check::check(&state)?;
            let text = match arguments.json {
                true => serde_json::to_string(&report)? + "\n",
                false => fold(&check_text(&report), 2, width()),
            };
            write!(stdout(), "{text}")?;
            match report.faults.len() {
                0 => Ok(()),
                faults => bail!("{} has {faults} faults; nothing was changed", state.display()),
            }
        }
        Action::Backup(arguments) => {
            let made = backup::backup(&arguments.door.state()?, &arguments.to)?;
            let text = match arguments.json {
                true => serde_json::to_string(&made)? + "\n",
                false => fold(&backup_text(&made), 2, width()),
            };
            Ok(write!(stdout(), "{text}")?)
        }
        Action::Migrate(arguments) => {
            let (state, _lock) = locked(&arguments.door)?;
            let migrated = SqliteStore::migrate_folder(&state, !arguments.dry_run)?;
            if !arguments.dry_run {
                // Opening writes what this layout keeps beside the database: the last record's number, the blobs' owner.
                SqliteStore::open(&state, &DiskBlobs::open(state.join("blobs"), u64::MAX)?)?;
            }
            Ok(write!(stdout(), "{}", migrate_text(&migrated, arguments))?)
        }
        Action::Gc(arguments) => {
            let (state, _lock) = locked(&arguments.change.door)?;
            let collected = collect(&state, arguments)?;
            let text = if arguments.change.json {
                serde_json::to_string(&collected)? + "\n"
            } else {
                fold(&gc_text(&collected, arguments), 2, width())
            };
            Ok(write!(stdout(), "{text}")?)
        }
    }
}

fn collect(state: &Path, arguments: &GcArguments) -> anyhow::Result<Collected> {
    let store = SqliteStore::open_existing(state)?;
    let blobs = DiskBlobs::of_another(state.join("blobs"));
    if blobs.owner()?.is_none_or(|owner| owner != store.identity()) {
        bail!("the blobs in {} do not belong to the journal there; nothing was removed", state.display());
    }
    // A blob that no record names may belong to a record that was lost.
    if arguments.unknown && !check::check(state)?.is_good() {
        bail!(
            "{} has faults (`skiff store check` lists them), so unknown blobs stay; nothing was removed",
            state.display()
        );
    }
    let in_use = collector::in_use(&store)?;
    let removes = !arguments.change.dry_run;
    let collected = collector::collect(&store, &blobs, &|blob| in_use.contains(&blob), removes)?;
    if arguments.unknown && removes {
        collector::remove_unknown(&blobs, &collected)?;
    }
    Ok(collected)
}

fn locked(door: &Door) -> anyhow::Result<(PathBuf, Lock)> {
    let state = door.state()?;
    if !state.is_dir() {
        bail!("there is no state folder {}", state.display());
    }
    let lock = lock(&state)?;
    Ok((state, lock))
}

fn lock(state: &Path) -> anyhow::Result<Lock> {
    let lock = Lock::file(&state.join("lock"));
    lock.with_context(|| format!("a coordinator may be using {}: stop it first", state.display()))
}

fn check_text(report: &Report) -> String {
    let mut text =
        format!("journal {}: {} records in {}\n", report.journal, report.records, counted(report.runs.len(), "run"));
    let unknown = report.blobs.iter().filter(|blob| blob.name.is_none()).count();
    let size = bytes(report.blobs.iter().map(|blob| blob.bytes).sum());
    text += &format!("{}, {size}; no run's journal names {unknown} of them\n", counted(report.blobs.len(), "blob"));
    for fault in &report.faults {
        text += &format!("FAULT  {fault}\n");
    }
    for note in &report.notes {
        text += &format!("note   {note}\n");
    }
    if report.is_good() {
        text += "every record and every blob is whole\n";
    }
    text
}

fn backup_text(made: &Backup) -> String {
    let Backup { folder, runs, records, blobs, bytes: size, faults } = made;
    let (runs, blobs) = (counted(*runs, "run"), counted(*blobs, "blob"));
    let mut text = format!(
        "{} has {records} records in {runs}, {blobs} ({}), the key and the policy; to use it: skiff serve --state {0}\n",
        folder.display(),
        bytes(*size)
    );
    for fault in faults {
        text += &format!("FAULT  {fault} (as in the original)\n");
    }
    text
}

fn migrate_text(migrated: &Migrated, arguments: &ChangeArguments) -> String {
    let Migrated { from, to, runs, records, damaged } = migrated;
    let damaged: Vec<String> = damaged.iter().map(ToString::to_string).collect();
    if arguments.json {
        let is_done = !arguments.dry_run;
        return json!({ "from": from, "to": to, "runs": runs, "records": records, "damaged": damaged, "is_done": is_done })
            .to_string()
            + "\n";
    }
    let verb = if arguments.dry_run { "would be migrated" } else { "migrated" };
    let mut text = format!("{runs} runs with {records} records {verb} from layout {from} to {to}\n");
    for run in damaged {
        text += &format!("run {run} has a damaged record and is stopped\n");
    }
    text
}

fn gc_text(collected: &Collected, arguments: &GcArguments) -> String {
    let verb = if arguments.change.dry_run { "would be removed" } else { "removed" };
    let mut text: String = collected.removed.iter().map(|blob| format!("{verb}: {blob}\n")).collect();
    let removed = counted(collected.removed.len(), "blob");
    text += &format!("{removed}, {}, {verb}\n", bytes(collected.removed_bytes));
    text += &format!("{} blobs stay because a run needs them\n", collected.kept);
    if !collected.unknown.is_empty() {
        let (blobs, size) = (counted(collected.unknown.len(), "blob"), bytes(collected.unknown_bytes));
        text += &match arguments.unknown {
            true => format!("{blobs}, {size}, that no journal ever named, {verb}:\n"),
            false => {
                format!("{blobs}, {size}, stay because no journal ever named them (--unknown removes them):\n")
            }
        };
        text += &collected.unknown.iter().map(|blob| format!("  {blob}\n")).collect::<String>();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use tempfile::TempDir;

    fn gc(state: &TempDir, unknown: bool, dry_run: bool) -> anyhow::Result<Collected> {
        let door = Door { state: Some(state.path().to_owned()), config: None };
        collect(state.path(), &GcArguments { unknown, change: ChangeArguments { door, dry_run, json: false } })
    }

    #[test]
    fn unknown_blobs_go_only_if_asked_for_and_if_nothing_is_damaged() {
        let state = TempDir::new().unwrap();
        let blobs = DiskBlobs::open(state.path().join("blobs"), 1 << 20).unwrap();
        drop(SqliteStore::open(state.path(), &blobs).unwrap());
        let [late, torn] = [b"late", b"torn"].map(|bytes| blobs.put(bytes).unwrap());
        let path = state.path().join("blobs/blobs").join(torn.to_string());
        std::fs::write(&path, b"tor").unwrap();
        let refused = gc(&state, true, false).unwrap_err().to_string();
        assert!(refused.contains("has faults") && blobs.contains(late), "{refused}");
        std::fs::write(&path, b"torn").unwrap();
        let found = gc(&state, true, true).unwrap();
        assert!(found.unknown.contains(&late.to_string()) && found.removed.is_empty());
        assert_eq!(gc(&state, false, false).unwrap(), found);
        assert!(blobs.contains(late), "neither a dry run nor a plain one removes it");
        assert_eq!(gc(&state, true, false).unwrap(), found);
        assert_eq!(blobs.list().unwrap(), []);
    }
}
