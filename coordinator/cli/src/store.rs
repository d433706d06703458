//! `skiff store`: check, migrate and clean up a state folder while no coordinator uses it.

use crate::door::Door;
use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::json;
use skiff_base::lock::Lock;
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_coordinator::store::check::{self, Report};
use skiff_coordinator::store::collector::{self, Collected};
use skiff_coordinator::store::{Migrated, SqliteStore};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Subcommands of `skiff store`. The coordinator must not be running.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Verify every journal record and every blob without changing anything. Exit status 1 if there is a fault
    Check(CheckArguments),
    /// Convert the journal to the layout of this version, as `skiff serve` does when it starts
    Migrate(ChangeArguments),
    /// Remove weights and updates that a later round superseded, as `skiff serve` does after each round
    Gc(ChangeArguments),
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

/// Arguments of `skiff store migrate` and `skiff store gc`.
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
            let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { check_text(&report) };
            write!(std::io::stdout(), "{text}")?;
            match report.faults.len() {
                0 => Ok(()),
                faults => bail!("{} has {faults} faults; nothing was changed", state.display()),
            }
        }
        Action::Migrate(arguments) => {
            let (state, _lock) = locked(&arguments.door)?;
            let migrated = SqliteStore::migrate_folder(&state, !arguments.dry_run)?;
            if !arguments.dry_run {
                // Opening writes what this layout keeps beside the database: the last record's number, the blobs' owner.
                SqliteStore::open(&state, &DiskBlobs::open(state.join("blobs"), u64::MAX)?)?;
            }
            Ok(write!(std::io::stdout(), "{}", migrate_text(&migrated, arguments))?)
        }
        Action::Gc(arguments) => {
            let (state, _lock) = locked(&arguments.door)?;
            let store = SqliteStore::open_existing(&state)?;
            let blobs = DiskBlobs::of_another(state.join("blobs"));
            if blobs.owner()?.is_none_or(|owner| owner != store.identity()) {
                bail!("the blobs in {} do not belong to the journal there; nothing was removed", state.display());
            }
            let in_use = collector::in_use(&store)?;
            let collected = collector::collect(&store, &blobs, &|blob| in_use.contains(&blob), !arguments.dry_run)?;
            let text =
                if arguments.json { serde_json::to_string(&collected)? + "\n" } else { gc_text(&collected, arguments) };
            Ok(write!(std::io::stdout(), "{text}")?)
        }
    }
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
    let mut text = format!("journal {}: {} records in {} runs\n", report.journal, report.records, report.runs.len());
    let unknown = report.blobs.iter().filter(|blob| blob.name.is_none()).count();
    let bytes: u64 = report.blobs.iter().map(|blob| blob.bytes).sum();
    text += &format!("{} blobs, {}; no run's journal names {unknown} of them\n", report.blobs.len(), ByteSize(bytes));
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

fn gc_text(collected: &Collected, arguments: &ChangeArguments) -> String {
    let verb = if arguments.dry_run { "would be removed" } else { "removed" };
    let mut text: String = collected.removed.iter().map(|blob| format!("{verb}: {blob}\n")).collect();
    text += &format!("{} blobs, {}, {verb}\n", collected.removed.len(), ByteSize(collected.removed_bytes));
    text += &format!("{} blobs stay because a run needs them\n", collected.kept);
    if !collected.unknown.is_empty() {
        let (blobs, bytes) = (collected.unknown.len(), ByteSize(collected.unknown_bytes));
        text += &format!("{blobs} blobs, {bytes}, stay because no journal ever named them:\n");
        text += &collected.unknown.iter().map(|blob| format!("  {blob}\n")).collect::<String>();
    }
    text
}
