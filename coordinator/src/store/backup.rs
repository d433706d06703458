//! A consistent copy of a state folder, made while a coordinator may be working with it.
//!
//! The journal is copied first, as SQLite sees it at one moment. Then come the weights and updates that this journal needs. If the
//! coordinator removed one of them meanwhile, a newer journal is copied. The copy appears complete or not at all.

use super::{FILE, SqliteStore, Store as _, StoreError, check, collector, keys, policy};
use serde::Serialize;
use skiff_base::files::{Access, make_private_folder, replace, sync_folder_of};
use skiff_blobs::{BlobError, Blobs as _, DiskBlobs};
use skiff_protocol::Digest;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Number of attempts to copy a journal with all its weights.
const ATTEMPTS: u32 = 5;

/// A finished copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Backup {
    /// Folder of the copy.
    pub folder: PathBuf,
    /// Number of runs.
    pub runs: usize,
    /// Number of records that the journal ever held.
    pub records: u64,
    /// Number of copied weights and updates.
    pub blobs: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Faults of the original that the copy has too, in words.
    pub faults: Vec<String>,
}

/// Copies the state folder `state` to the new folder `to`. A coordinator may be running.
///
/// # Errors
/// `to` exists already, the journal cannot be read, or the disk fails. Nothing remains then but a folder `to.partial`.
pub fn backup(state: &Path, to: &Path) -> Result<Backup, StoreError> {
    let io = |attempt, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { attempt, path, source }
    };
    if to.exists() {
        return Err(io("making the new folder", to)(ErrorKind::AlreadyExists.into()));
    }
    let partial = partial(to);
    let mut attempt = 0;
    let (records, runs) = loop {
        attempt += 1;
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("removing", &partial)(error)),
            Ok(()) | Err(_) => {}
        }
        make_private_folder(&partial).map_err(io("making", &partial))?;
        SqliteStore::open_existing(state)?.copy_to(&partial.join(FILE))?;
        if copy_blobs(state, &partial)? || attempt == ATTEMPTS {
            let copy = SqliteStore::open(&partial, &DiskBlobs::open(partial.join("blobs"), u64::MAX)?)?;
            break (copy.records()?, copy.runs()?.len());
        }
    };
    for (name, access) in [
        (keys::SECRET_FILE, Access::Owner),
        (keys::PUBLIC_FILE, Access::Shared),
        (policy::FILE, Access::Shared),
        (crate::serve::PACK_FILE, Access::Shared),
    ] {
        match fs::read(state.join(name)) {
            Ok(bytes) => replace(&partial.join(name), &bytes, access).map_err(io("writing", &partial.join(name)))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io("reading", &state.join(name))(error)),
        }
    }
    fs::rename(&partial, to).map_err(io("renaming to", to))?;
    sync_folder_of(to).map_err(io("syncing the folder of", to))?;
    let report = check::check(to)?;
    let (blobs, bytes) = (report.blobs.len(), report.blobs.iter().map(|blob| blob.bytes).sum());
    Ok(Backup { folder: to.to_owned(), runs, records, blobs, bytes, faults: report.faults })
}

/// Copies the weights and updates that the copied journal needs. Returns false if one is missing.
fn copy_blobs(state: &Path, partial: &Path) -> Result<bool, StoreError> {
    let from = DiskBlobs::of_another(state.join("blobs"));
    let into = DiskBlobs::open(partial.join("blobs"), u64::MAX)?;
    let copy = SqliteStore::open_existing(partial)?;
    into.set_owner(&copy.identity())?;
    let mut needed: BTreeSet<Digest> = copy.kept()?;
    needed.extend(collector::in_use(&copy)?);
    let mut is_whole = true;
    for blob in needed {
        match from.read(blob) {
            Ok(bytes) => drop(into.put(&bytes)?),
            Err(BlobError::Missing { .. }) => is_whole = false,
            // It stays damaged in the original, which `skiff store check` reports.
            Err(BlobError::Corrupt { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(is_whole)
}

fn partial(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use tempfile::TempDir;

    /// Makes a copy while the store is open for writing, as a coordinator has it.
    #[test]
    fn a_copy_of_a_folder_in_use_is_whole_and_opens_like_the_original() {
        let folder = TempDir::new().unwrap();
        let (state, to) = (folder.path().join("state"), folder.path().join("copy"));
        fs::create_dir(&state).unwrap();
        let blobs = DiskBlobs::open(state.join("blobs"), 1 << 20).unwrap();
        let store = SqliteStore::open(&state, &blobs).unwrap();
        keys::load_or_create(&state).unwrap();
        let made = backup(&state, &to).unwrap();
        assert_eq!((made.runs, made.faults.len()), (0, 0));
        let copied = DiskBlobs::open(to.join("blobs"), 1 << 20).unwrap();
        assert_eq!(SqliteStore::open(&to, &copied).unwrap().identity(), store.identity());
        let key = |folder: &Path| keys::load(folder).unwrap().unwrap().verifier();
        assert_eq!(key(&to), key(&state));
        assert!(backup(&state, &to).unwrap_err().to_string().contains("making the new folder"));
    }
}
