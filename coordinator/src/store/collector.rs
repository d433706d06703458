//! Removes only superseded blobs.
//!
//! A blob is removed only if a record once named it and nothing needs it any more: not the current run, not the last or best
//! weights of any run, not a damaged run. Blobs that no record named stay, and are reported. An operator may remove them by
//! [`remove_unknown`]. Usually they are updates that arrived completely shortly before the coordinator was killed, so that no
//! record was written.

use super::{Store, StoreError};
use serde::Serialize;
use skiff_blobs::Blobs;
use skiff_protocol::Digest;
use std::collections::BTreeSet;

/// Result of a collection: blobs that were removed or, without removal, would be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Collected {
    /// Names of the superseded blobs, 64 hexadecimal digits each.
    pub removed: Vec<String>,
    /// Size of these blobs in bytes.
    pub removed_bytes: u64,
    /// Number of blobs that stay because something needs them.
    pub kept: u64,
    /// Names of the blobs that stay because no record ever named them.
    pub unknown: Vec<String>,
    /// Size of these blobs in bytes.
    pub unknown_bytes: u64,
}

/// Removes superseded blobs, or only finds them if `remove` is false. `in_use` returns the blobs that the current run needs.
///
/// # Errors
/// Failures of the disk.
pub fn collect(
    store: &dyn Store,
    blobs: &dyn Blobs,
    in_use: &dyn Fn(Digest) -> bool,
    remove: bool,
) -> Result<Collected, StoreError> {
    let kept = store.kept()?;
    let mut collected = Collected::default();
    for (digest, bytes) in blobs.list()? {
        if kept.contains(&digest) || in_use(digest) {
            collected.kept += 1;
        } else if store.is_named(digest)? {
            if remove {
                blobs.remove(digest)?;
            }
            collected.removed.push(digest.to_string());
            collected.removed_bytes += bytes;
        } else {
            collected.unknown.push(digest.to_string());
            collected.unknown_bytes += bytes;
        }
    }
    Ok(collected)
}

/// Removes the unknown blobs in `collected`. The caller must have checked that the journal lost no record.
///
/// # Errors
/// Failures of the disk.
pub fn remove_unknown(blobs: &dyn Blobs, collected: &Collected) -> Result<(), StoreError> {
    for blob in collected.unknown.iter().filter_map(|blob| Digest::parse(blob)) {
        blobs.remove(blob)?;
    }
    Ok(())
}

/// Returns the blobs that the current run needs, for a journal that no coordinator has open.
///
/// # Errors
/// Failures of the disk. A current run that cannot be read is not an error: everything that it names is kept.
pub fn in_use(store: &dyn Store) -> Result<BTreeSet<Digest>, StoreError> {
    let Some(row) = store.runs()?.pop().filter(|row| row.damage.is_none()) else { return Ok(BTreeSet::new()) };
    let entries = store.entries(row.run)?;
    let replayed = crate::run::Ledger::replay(&entries);
    let ledger = replayed.map_err(|source| StoreError::OutOfPlace { run: row.run, source })?;
    Ok(ledger.needed())
}
