//! The journal: the state that must survive a crash, kept by a [`Store`].
//!
//! ```text
//! Entry (engine) ── convert ──► journal::Entry ── encode, checksum ──► SqliteStore, in state/journal.sqlite
//!                                     │                                     │ after each commit
//!                                     └─ summary, named blobs               └─► state/journal.last (tail)
//! ```
//! A run is the sequence of its records. The journal also holds the traffic of each round in bytes, a [`Summary`], and the names
//! of all blobs that records ever named, and the removals of devices. Blobs (weights, updates) are in a separate folder, in which a marker says which journal
//! they belong to.
//!
//! **Nothing that was trained is lost.** A journal is refused if the folder holds the blobs of another journal. Only blobs that
//! a journal once named may be removed, and not the last and best weights of a run. A damaged or missing record ends only its
//! own run.

pub mod backup;
pub mod check;
pub mod collector;
mod convert;
pub mod journal;
pub mod keys;
#[cfg(test)]
pub(crate) mod kills;
mod layout;
mod memory;
mod migrations;
pub mod policy;
mod removals;
pub mod room;
mod sqlite;
pub mod summary;
mod tables;
mod tail;

pub use memory::MemoryStore;
pub use migrations::Migrated;
pub use sqlite::{FILE, SqliteStore};
pub use summary::Summary;
pub use tables::LAYOUT;

use crate::run::{Action, Entry, OutOfPlace, Run};
use journal::RecordFault;
use skiff_api::removal::Removal;
use skiff_blobs::BlobError;
use skiff_protocol::{DeviceId, Digest, RunId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

/// Keeps the journal of every run.
///
/// Laws, for every implementation: records for which `append` returned `Ok` survive a crash; `entries` returns the appended
/// records in order; a run's summary is computed from its entries; a blob that a record named stays named for ever, even after
/// the run was deleted.
pub trait Store: Send {
    /// Adds records to a run, and the traffic in `round`, durably and in one transaction. The first records create the run.
    ///
    /// # Errors
    /// Failures of the disk. Nothing was added then.
    fn append(&mut self, run: RunId, entries: &[Entry], round: u32, traffic: Traffic) -> Result<(), StoreError>;

    /// Returns all runs, oldest first, from their summaries.
    ///
    /// # Errors
    /// Failures of the disk.
    fn runs(&self) -> Result<Vec<RunRow>, StoreError>;

    /// Returns a run's records in order; none if the run does not exist.
    ///
    /// # Errors
    /// [`StoreError::Record`] for the first record that is damaged or missing; failures of the disk.
    fn entries(&self, run: RunId) -> Result<Vec<Entry>, StoreError>;

    /// Returns the traffic in each round of a run.
    ///
    /// # Errors
    /// Failures of the disk.
    fn traffic(&self, run: RunId) -> Result<BTreeMap<u32, Traffic>, StoreError>;

    /// Ends a run whose records or blobs are damaged; all blobs that it names stay.
    ///
    /// # Errors
    /// Failures of the disk.
    fn stop_damaged(&mut self, run: RunId, reason: &str) -> Result<(), StoreError>;

    /// Removes a run. Its blobs stay named, so the collector may remove them.
    ///
    /// # Errors
    /// Failures of the disk.
    fn delete(&mut self, run: RunId) -> Result<(), StoreError>;

    /// Adds a removal of a device, durably.
    ///
    /// # Errors
    /// Failures of the disk. Nothing was added then.
    fn add_removal(&mut self, removal: &Removal) -> Result<(), StoreError>;

    /// Records at which time the broker removed the retained message of a removed device.
    ///
    /// # Errors
    /// Failures of the disk.
    fn mark_cleared(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError>;

    /// Records at which time a removed device joined again.
    ///
    /// # Errors
    /// Failures of the disk.
    fn mark_returned(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError>;

    /// Returns all removals of devices, oldest first.
    ///
    /// # Errors
    /// A removal that cannot be read; failures of the disk.
    fn removals(&self) -> Result<Vec<Removal>, StoreError>;

    /// Returns the blobs that stay: the last and best weights of every run, and all blobs that a damaged run names.
    ///
    /// # Errors
    /// Failures of the disk.
    fn kept(&self) -> Result<BTreeSet<Digest>, StoreError>;

    /// Returns true if a record of any run, present or deleted, ever named the blob.
    ///
    /// # Errors
    /// Failures of the disk.
    fn is_named(&self, blob: Digest) -> Result<bool, StoreError>;

    /// Returns the faults that were found when the store was opened. Each affected run has been stopped.
    fn findings(&self) -> &[Finding];

    /// Resumes a run where its journal ends.
    ///
    /// # Errors
    /// The same as for [`Store::entries`]; records that contradict each other.
    fn resume(&self, run: RunId, now: Timestamp) -> Result<(Run, Vec<Action>), StoreError> {
        Run::resume(&self.entries(run)?, now).map_err(|source| StoreError::OutOfPlace { run, source })
    }
}

/// A run in a list of runs.
#[derive(Clone, PartialEq, Debug)]
pub struct RunRow {
    /// The run.
    pub run: RunId,
    /// Number of the run's records.
    pub records: u64,
    /// The run in a few numbers.
    pub summary: Summary,
    /// Traffic of all rounds.
    pub traffic: Traffic,
    /// Damage because of which the run was stopped; its records may not be readable.
    pub damage: Option<String>,
}

/// A fault in what is stored, which stopped a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The run.
    pub run: RunId,
    /// The fault, in words.
    pub reason: String,
}

/// Traffic between the coordinator and the devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Number of bytes from devices.
    pub up: u64,
    /// Number of bytes to devices.
    pub down: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.up += other.up;
        self.down += other.down;
    }
}

/// Reason why the journal cannot be used. In every case, nothing was changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no journal.
    #[error("there is no journal {}; is that the state folder of `skiff serve`?", path.display())]
    None {
        /// The expected file.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("{attempt} in the journal {}", path.display())]
    Sqlite {
        /// The attempted operation.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Error from SQLite.
        source: rusqlite::Error,
    },
    /// A file beside the database cannot be read or written.
    #[error("{attempt} {}", path.display())]
    Io {
        /// The attempted operation.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The blobs beside the journal cannot be read.
    #[error("reading the blobs beside the journal")]
    Blobs(#[from] BlobError),
    /// The file is not a journal, or is damaged as a whole.
    #[error(
        "{} is damaged or not a journal of Skiff ({finding}); nothing was changed. Restore the whole state folder, journal \
         and blobs, from one backup, or serve with another, empty state folder and keep this one", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Finding, in words.
        finding: String,
    },
    /// A newer version of Skiff wrote the journal.
    #[error("{} has layout {found}, this version knows {LAYOUT}: update Skiff; nothing was changed", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Layout of the journal.
        found: i64,
    },
    /// The journal has an old layout that this version cannot migrate.
    #[error(
        "{} has layout {found}, this version migrates from layout {oldest} on: keep this state folder, open it with the \
         version that wrote it, and serve with another, empty one; nothing was changed", path.display()
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Layout of the journal.
        found: i64,
        /// The oldest layout that can be migrated.
        oldest: i64,
    },
    /// The journal must be migrated before it can be read.
    #[error("{} has layout {found}, this version reads {LAYOUT}: run `skiff store migrate`, or start `skiff serve`", path.display())]
    NotMigrated {
        /// The file.
        path: PathBuf,
        /// Layout of the journal.
        found: i64,
    },
    /// The journal is empty, although there are blobs.
    #[error(
        "the journal {} is {}, but the folder beside it holds {blobs} blobs of trained weights or updates that it does not \
         know; nothing was removed. Put the journal back (journal.sqlite and, if there is one, journal.sqlite-wal), restore \
         the whole state folder from one backup, or serve with another, empty state folder and keep this one",
        path.display(), if *is_new { "missing or empty" } else { "without any of these blobs" }
    )]
    UnknownBlobs {
        /// The file.
        path: PathBuf,
        /// True if the journal has no content at all.
        is_new: bool,
        /// Number of blobs.
        blobs: usize,
    },
    /// The blobs belong to another journal.
    #[error(
        "the blobs beside {} belong to another journal ({owner}; this one is {identity}); nothing was removed. Put the \
         journal back that belongs to them, or serve with another, empty state folder and keep this one", path.display()
    )]
    OtherJournal {
        /// The file.
        path: PathBuf,
        /// Identity of the journal.
        identity: String,
        /// Identity in the blobs' marker.
        owner: String,
    },
    /// A record is damaged or missing.
    #[error("record {at} of run {run}")]
    Record {
        /// The run.
        run: RunId,
        /// The record's position in the run, from 0.
        at: u64,
        /// Defect of the record.
        source: RecordFault,
    },
    /// Records contradict each other.
    #[error("run {run}")]
    OutOfPlace {
        /// The run.
        run: RunId,
        /// The record that is out of place.
        source: OutOfPlace,
    },
}

impl StoreError {
    /// Returns true if only one run is affected.
    #[must_use]
    pub fn is_of_one_run(&self) -> bool {
        matches!(self, Self::Record { .. } | Self::OutOfPlace { .. })
    }
}

#[cfg(test)]
mod tests;
