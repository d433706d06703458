//! The coordinator's disk: writes can be made to fail, as if the process were killed before or after one of them.

use skiff_api::removal::Removal;
use skiff_blobs::{Assembly, BlobError, Blobs, DiskBlobs};
use skiff_coordinator::run::Entry;
use skiff_coordinator::store::{Finding, RunRow, SqliteStore, Store, StoreError, Traffic};
use skiff_protocol::transfer::Held;
use skiff_protocol::{DeviceId, Digest, RunId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Records of all runs, in the order in which they were committed.
pub(crate) type Journal = Arc<Mutex<BTreeMap<RunId, Vec<Entry>>>>;

/// Ends the process at one of its next writes.
#[derive(Debug, Default)]
pub(crate) struct Killer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Number of writes until the kill. The flag is true if the last write is still done.
    armed: Option<(u32, bool)>,
    dead: bool,
}

impl Killer {
    /// Kills the process before or after the write that follows `writes` others.
    pub(crate) fn arm(&self, writes: u32, after: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).armed = Some((writes, after));
    }

    /// Cancels a kill of [`Killer::arm`] that has not happened yet.
    pub(crate) fn disarm(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).armed = None;
    }

    /// Returns true if the process was killed.
    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).dead
    }

    /// Carries out a write, unless the process is dead.
    fn write<T, E>(&self, dead: impl Fn() -> E, write: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let after = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.dead {
                return Err(dead());
            }
            match &mut state.armed {
                Some((0, after)) => {
                    let after = *after;
                    state.dead = true;
                    Some(after)
                }
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        match after {
            None => write(),
            Some(true) => write().and_then(|_| Err(dead())),
            Some(false) => Err(dead()),
        }
    }
}

fn killed() -> io::Error {
    io::Error::other("the process was killed")
}

fn killed_blobs() -> BlobError {
    BlobError::Io { doing: "writing", path: PathBuf::new(), source: killed() }
}

/// Blobs whose writes the [`Killer`] may end.
#[derive(Debug)]
pub(crate) struct MortalBlobs {
    /// The blobs on disk.
    pub(crate) disk: DiskBlobs,
    /// Ends the process.
    pub(crate) killer: Arc<Killer>,
}

impl Blobs for MortalBlobs {
    fn room_bytes(&self) -> u64 {
        self.disk.room_bytes()
    }
    fn disk_free_bytes(&self) -> Result<u64, BlobError> {
        self.disk.disk_free_bytes()
    }
    fn owner(&self) -> Result<Option<String>, BlobError> {
        self.disk.owner()
    }
    fn set_owner(&self, journal: &str) -> Result<(), BlobError> {
        self.killer.write(killed_blobs, || self.disk.set_owner(journal))
    }
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        self.killer.write(killed_blobs, || self.disk.put(bytes))
    }
    fn contains(&self, digest: Digest) -> bool {
        self.disk.contains(digest)
    }
    fn size_bytes(&self, digest: Digest) -> Result<u64, BlobError> {
        self.disk.size_bytes(digest)
    }
    fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        self.disk.read(digest)
    }
    fn chunk(&self, digest: Digest, index: u32) -> Result<Vec<u8>, BlobError> {
        self.disk.chunk(digest, index)
    }
    fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        self.killer.write(killed_blobs, || self.disk.remove(digest))
    }
    fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        self.disk.list()
    }
    fn held(&self, digest: Digest, total_bytes: u64) -> Result<Held, BlobError> {
        self.disk.held(digest, total_bytes)
    }
    fn put_chunk(&self, digest: Digest, total_bytes: u64, index: u32, bytes: &[u8]) -> Result<(), BlobError> {
        self.killer.write(killed_blobs, || self.disk.put_chunk(digest, total_bytes, index, bytes))
    }
    fn assemble(&self, digest: Digest, total_bytes: u64) -> Result<Assembly, BlobError> {
        self.killer.write(killed_blobs, || self.disk.assemble(digest, total_bytes))
    }
    fn abandon(&self, digest: Digest) -> Result<(), BlobError> {
        self.killer.write(killed_blobs, || self.disk.abandon(digest))
    }
    fn partials(&self) -> Result<Vec<Digest>, BlobError> {
        self.disk.partials()
    }
    fn place(&self) -> PathBuf {
        self.disk.place()
    }
}

/// A journal whose commits the [`Killer`] may end. It remembers what was committed.
pub(crate) struct MortalStore {
    /// The journal on disk.
    pub(crate) disk: SqliteStore,
    /// Ends the process.
    pub(crate) killer: Arc<Killer>,
    /// All records that were committed in any life of the coordinator.
    pub(crate) committed: Journal,
}

fn killed_store() -> StoreError {
    StoreError::Io { attempt: "writing", path: PathBuf::new(), source: killed() }
}

impl Store for MortalStore {
    fn append(&mut self, run: RunId, entries: &[Entry], round: u32, traffic: Traffic) -> Result<(), StoreError> {
        let Self { disk, killer, committed } = self;
        killer.write(killed_store, || {
            disk.append(run, entries, round, traffic)?;
            let mut committed = committed.lock().unwrap_or_else(PoisonError::into_inner);
            committed.entry(run).or_default().extend_from_slice(entries);
            Ok(())
        })
    }
    fn runs(&self) -> Result<Vec<RunRow>, StoreError> {
        self.disk.runs()
    }
    fn entries(&self, run: RunId) -> Result<Vec<Entry>, StoreError> {
        self.disk.entries(run)
    }
    fn traffic(&self, run: RunId) -> Result<BTreeMap<u32, Traffic>, StoreError> {
        self.disk.traffic(run)
    }
    fn stop_damaged(&mut self, run: RunId, reason: &str) -> Result<(), StoreError> {
        self.disk.stop_damaged(run, reason)
    }
    fn delete(&mut self, run: RunId) -> Result<(), StoreError> {
        self.disk.delete(run)
    }
    fn add_removal(&mut self, removal: &Removal) -> Result<(), StoreError> {
        self.killer.write(killed_store, || self.disk.add_removal(removal))
    }
    fn mark_cleared(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError> {
        self.killer.write(killed_store, || self.disk.mark_cleared(device, at_ms))
    }
    fn mark_returned(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError> {
        self.killer.write(killed_store, || self.disk.mark_returned(device, at_ms))
    }
    fn removals(&self) -> Result<Vec<Removal>, StoreError> {
        self.disk.removals()
    }
    fn kept(&self) -> Result<BTreeSet<Digest>, StoreError> {
        self.disk.kept()
    }
    fn is_named(&self, blob: Digest) -> Result<bool, StoreError> {
        self.disk.is_named(blob)
    }
    fn findings(&self) -> &[Finding] {
        self.disk.findings()
    }
}
