//! Checks a state folder without a coordinator: every record, the stored place of the last record, and every blob. Changes
//! nothing.

use super::tail::Tail;
use super::{SqliteStore, Store as _, StoreError, Summary, tail};
use serde::Serialize;
use skiff_blobs::{BlobError, Blobs, DiskBlobs};
use std::path::Path;

/// Result of a check.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Identity of the journal, 32 hexadecimal digits.
    pub journal: String,
    /// Number of records that the journal ever held.
    pub records: u64,
    /// Findings for every run, oldest first.
    pub runs: Vec<RunCheck>,
    /// Findings for every blob.
    pub blobs: Vec<BlobCheck>,
    /// Every fault, in words. The list is empty if there is none.
    pub faults: Vec<String>,
    /// Findings that are not faults.
    pub notes: Vec<String>,
}

/// Findings for one run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RunCheck {
    /// Name of the run, 16 hexadecimal digits.
    pub run: String,
    /// Number of the run's records.
    pub records: u64,
    /// The run in a few numbers.
    pub summary: Summary,
    /// Damage because of which the run was stopped.
    pub damage: Option<String>,
}

/// Findings for one blob.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BlobCheck {
    /// Name of the blob, 64 hexadecimal digits.
    pub digest: String,
    /// Size of the blob in bytes.
    pub bytes: u64,
    /// True if the content matches the digest in the name.
    pub is_whole: bool,
    /// Role of the blob in the first run that names it, for instance `weights of run 00000000000000a1`. `None` if the journal
    /// never named it; it is then kept.
    pub name: Option<String>,
    /// True if the blob is kept until its run is deleted.
    pub is_kept: bool,
}

impl Report {
    /// Returns true if there is no fault.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Checks the state folder `state`, whose lock the caller holds.
///
/// # Errors
/// The journal cannot be opened, or the disk fails.
pub fn check(state: &Path) -> Result<Report, StoreError> {
    let store = SqliteStore::open_existing(state)?;
    let blobs = DiskBlobs::of_another(state.join("blobs"));
    let (mut faults, mut notes) = (Vec::new(), Vec::new());
    let runs = check_runs(&store, &mut faults)?;
    check_place(&store, state, &mut faults)?;
    check_owner(&store, &blobs, &mut faults)?;
    let checked = check_blobs(&store, &blobs, &mut faults)?;
    let missing = |weights: &str| !checked.iter().any(|blob| blob.digest == weights);
    for RunCheck { run, summary, .. } in &runs {
        if let Some(last) = summary.last.as_ref().filter(|last| missing(&last.weights)) {
            faults.push(format!("the last weights of run {run}, {}, are missing", last.weights));
        }
        if let Some(best) =
            summary.best.as_ref().filter(|best| missing(&best.weights) && summary.last.as_ref() != Some(*best))
        {
            notes.push(format!(
                "the best weights of run {run}, {}, are not there: versions before layout 5 kept only the last ones",
                best.weights
            ));
        }
    }
    Ok(Report { journal: store.identity(), records: store.records()?, runs, blobs: checked, faults, notes })
}

fn check_runs(store: &SqliteStore, faults: &mut Vec<String>) -> Result<Vec<RunCheck>, StoreError> {
    let mut runs = Vec::new();
    for row in store.runs()? {
        let run = row.run;
        match (&row.damage, store.journal(run)) {
            (Some(damage), _) => faults.push(format!("run {run} was stopped: {damage}")),
            (None, Ok(entries)) if Summary::of_entries(&entries) != row.summary => {
                faults.push(format!("run {run}: its summary does not match its records; the next start corrects it"));
            }
            (None, Ok(_)) => {
                let replayed = store.entries(run).and_then(|entries| {
                    crate::run::Ledger::replay(&entries).map_err(|source| StoreError::OutOfPlace { run, source })
                });
                faults.extend(replayed.err().map(|fault| skiff_base::chain(&fault)));
            }
            (None, Err(fault)) if fault.is_of_one_run() => faults.push(skiff_base::chain(&fault)),
            (None, Err(fault)) => return Err(fault),
        }
        let (records, summary, damage) = (row.records, row.summary, row.damage);
        runs.push(RunCheck { run: run.to_string(), records, summary, damage });
    }
    Ok(runs)
}

fn check_place(store: &SqliteStore, state: &Path, faults: &mut Vec<String>) -> Result<(), StoreError> {
    let path = state.join(tail::FILE);
    let last = Tail::read(state).map_err(|source| StoreError::Io { attempt: "reading", path: path.clone(), source })?;
    let records = store.records()?;
    match last {
        Some(last) if super::sqlite::hex(last.journal) != store.identity() => {
            faults.push(format!("{} belongs to another journal", path.display()));
        }
        Some(last) if last.records > records => {
            let (lost, run) = (last.records - records, last.run);
            faults.push(format!("the last {lost} records are missing; the very last was of run {run}"));
        }
        Some(_) => {}
        None if records > 0 => faults.push(format!("{} is missing or cannot be read", path.display())),
        None => {}
    }
    Ok(())
}

fn check_owner(store: &SqliteStore, blobs: &dyn Blobs, faults: &mut Vec<String>) -> Result<(), StoreError> {
    if let Some(owner) = blobs.owner()?.filter(|owner| *owner != store.identity()) {
        faults.push(format!("the blobs belong to another journal, {owner}"));
    }
    Ok(())
}

fn check_blobs(store: &SqliteStore, blobs: &dyn Blobs, faults: &mut Vec<String>) -> Result<Vec<BlobCheck>, StoreError> {
    let kept = store.kept()?;
    let present = blobs.list()?;
    let mut checked = Vec::new();
    for &(digest, bytes) in &present {
        let is_whole = match blobs.read(digest) {
            Ok(_) => true,
            Err(BlobError::Corrupt { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        let name = store.name_of(digest)?.map(|(run, kind)| format!("{kind} of run {run}"));
        if !is_whole {
            let of = name.as_deref().unwrap_or("named by no run");
            faults.push(format!("blob {digest} ({of}) is damaged: its content does not match its name"));
        }
        checked.push(BlobCheck { digest: digest.to_string(), bytes, is_whole, name, is_kept: kept.contains(&digest) });
    }
    Ok(checked)
}
