//! Simulates kills of the process for tests: records the state folder that a kill at each write would leave.
//!
//! The store and [`WatchedBlobs`] call [`pass`] before and after every write. While [`record`] runs, each call copies the folder.
//! A copy holds what another process would find if this one were killed at that moment, without the data that SQLite and this
//! process still hold in memory.

use skiff_blobs::{Assembly, BlobError, Blobs, DiskBlobs};
use skiff_protocol::Digest;
use skiff_protocol::transfer::Held;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

struct Recorder {
    state: PathBuf,
    kills: Vec<Kill>,
}

/// A simulated kill, and the state that it leaves.
pub(crate) struct Kill {
    /// The write before or after which the process was killed.
    pub(crate) moment: String,
    /// Copy of the state folder.
    pub(crate) folder: TempDir,
}

/// Records a moment. Two moments in a row with the same files count once.
pub(crate) fn pass(moment: impl Into<String>) {
    note(moment.into(), |_| {});
}

/// Records a moment in the middle of the write to the journal's log, and a moment after it.
pub(crate) fn pass_commit() {
    note("in the middle of a commit".to_owned(), |files| {
        if let Some(Some(log)) = files.get_mut(&PathBuf::from(format!("{}-wal", super::FILE))) {
            log.pop();
        }
    });
    pass("after a commit");
}

fn note(moment: String, change: impl FnOnce(&mut Files)) {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(Recorder { state, kills }) = recorder else { return };
        let mut found = files(state);
        change(&mut found);
        if kills.last().is_none_or(|last| files(last.folder.path()) != found) {
            let folder = TempDir::new().expect("a temporary folder");
            restore(folder.path(), &found);
            kills.push(Kill { moment, folder });
        }
    });
}

/// Calls `work`, and returns the contents of the folder `state` that a kill at each moment would have left.
pub(crate) fn record<T>(state: &Path, work: impl FnOnce() -> T) -> (T, Vec<Kill>) {
    RECORDER.set(Some(Recorder { state: state.to_owned(), kills: Vec::new() }));
    let done = work();
    let kills = RECORDER.take().map(|recorder| recorder.kills).unwrap_or_default();
    (done, kills)
}

/// Files and folders below a folder; folders have no content.
type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn files(folder: &Path) -> Files {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        for entry in fs::read_dir(folder.join(&below)).into_iter().flatten().flatten() {
            let name = below.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(name.clone());
                found.insert(name, None);
            } else if !entry.file_name().to_string_lossy().ends_with("-shm") {
                // SQLite makes the index of its log again.
                found.insert(name, fs::read(entry.path()).ok());
            }
        }
    }
    found
}

fn restore(folder: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = folder.join(name);
        match bytes {
            None => fs::create_dir_all(path).expect("a folder"),
            Some(bytes) => fs::write(path, bytes).expect("a file"),
        }
    }
}

/// Blobs on disk whose writes are recorded as moments.
#[derive(Debug)]
pub(crate) struct WatchedBlobs {
    blobs: DiskBlobs,
    root: PathBuf,
}

impl WatchedBlobs {
    /// Opens the folder `root`.
    pub(crate) fn open(root: PathBuf) -> Self {
        Self { blobs: DiskBlobs::open(&root, 1 << 24).expect("a folder of blobs"), root }
    }
}

/// Carries out a write, and records a moment before it and a moment after it.
fn watched<T>(write: &str, work: impl FnOnce() -> T) -> T {
    pass(format!("before {write}"));
    let done = work();
    pass(format!("after {write}"));
    done
}

impl Blobs for WatchedBlobs {
    fn room_bytes(&self) -> u64 {
        self.blobs.room_bytes()
    }

    fn disk_free_bytes(&self) -> Result<u64, BlobError> {
        self.blobs.disk_free_bytes()
    }

    fn owner(&self) -> Result<Option<String>, BlobError> {
        self.blobs.owner()
    }

    fn set_owner(&self, journal: &str) -> Result<(), BlobError> {
        watched("the marker of the blobs", || self.blobs.set_owner(journal))
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        watched("a blob", || self.blobs.put(bytes))
    }

    fn contains(&self, digest: Digest) -> bool {
        self.blobs.contains(digest)
    }

    fn size_bytes(&self, digest: Digest) -> Result<u64, BlobError> {
        self.blobs.size_bytes(digest)
    }

    fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        self.blobs.read(digest)
    }

    fn chunk(&self, digest: Digest, index: u32) -> Result<Vec<u8>, BlobError> {
        self.blobs.chunk(digest, index)
    }

    fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        watched("a blob's removal", || self.blobs.remove(digest))
    }

    fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        self.blobs.list()
    }

    fn held(&self, digest: Digest, total_bytes: u64) -> Result<Held, BlobError> {
        self.blobs.held(digest, total_bytes)
    }

    fn put_chunk(&self, digest: Digest, total_bytes: u64, index: u32, bytes: &[u8]) -> Result<(), BlobError> {
        watched("a chunk", || self.blobs.put_chunk(digest, total_bytes, index, bytes))
    }

    fn assemble(&self, digest: Digest, total_bytes: u64) -> Result<Assembly, BlobError> {
        let partial = self.root.join("partial").join(digest.to_string());
        let chunks = files(&partial);
        let assembled = watched("an update is assembled", || self.blobs.assemble(digest, total_bytes));
        if !chunks.is_empty() {
            // Between the blob's new name and the removal of its chunks, both are there.
            fs::create_dir_all(&partial).expect("a folder");
            restore(&partial, &chunks);
            pass("between an update and the removal of its chunks");
            fs::remove_dir_all(&partial).expect("no chunks");
        }
        assembled
    }

    fn abandon(&self, digest: Digest) -> Result<(), BlobError> {
        watched("the removal of chunks", || self.blobs.abandon(digest))
    }

    fn partials(&self) -> Result<Vec<Digest>, BlobError> {
        self.blobs.partials()
    }

    fn place(&self) -> PathBuf {
        self.blobs.place()
    }
}
