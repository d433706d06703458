//! The state folder, which survives `kill -9`: the agent's [`Memory`] and its blobs.
//!
//! ```text
//! {state}/lock      held while an agent runs: two agents never share a folder
//! {state}/memory    the newest command and its outcome; replaced as a whole
//! {state}/blobs/…   global weights, the update that waits for its upload, the personal layers
//! ```
//! Blobs are written first, then the memory that names them: one rename moves the agent from one consistent state to the next. A
//! memory whose digest does not match is set aside with a warning and the agent starts with none: it loses its personal layers,
//! and repeats a training whose update had not arrived. A file that another program or a newer agent wrote is an error, and is
//! not changed.

use crate::participant::{Memory, MemoryOfFormat1};
use serde::de::DeserializeOwned;
use skiff_base::files::{Access, make_private_folder, replace};
use skiff_base::lock::{Lock, LockError};
use skiff_blobs::{BlobError, Blobs as _, DiskBlobs};
use skiff_protocol::Digest;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Limit of all blobs together, in bytes.
const QUOTA_BYTES: u64 = 4 << 30;
/// Limit of the memory file, in bytes. The file may hold the largest answer, which is smaller than the largest message.
const MAX_MEMORY_BYTES: u64 = 256 * 1024;
const MAGIC: [u8; 8] = *b"SKIFFMEM";
/// Format in which the file is written. Format 1 can still be read.
const VERSION: u32 = 2;
const DIGEST_AT: usize = MAGIC.len() + 4;
const BODY_AT: usize = DIGEST_AT + 32;

/// The open state folder; see the module's documentation.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    blobs: DiskBlobs,
    _lock: Lock,
}

/// The state that an agent finds when it starts.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The newest command and its outcome.
    pub memory: Option<Memory>,
    /// The blobs that exist and are intact.
    pub blobs: BTreeSet<Digest>,
}

/// A reason why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// Verb for the attempt, for example `writing`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another agent uses the folder.
    #[error("{path} is in use: another skiff-agent runs with this state folder; stop it, or give each its own", path = path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The file was not written by an agent.
    #[error("{path} was not written by skiff-agent: move it away, or choose another state folder", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file has the format of another version.
    #[error("{path} has format {found}, this agent reads 1 to {VERSION}: use the agent that wrote it, or move it away", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Format of the file.
        found: u32,
    },
    /// The blobs cannot be used.
    #[error("using the blobs of the state folder")]
    Blobs(#[from] BlobError),
}

impl Store {
    /// Opens the folder and recovers its contents. A missing folder is created, readable by its owner only.
    ///
    /// Removes damaged blobs and blobs that the memory does not name.
    ///
    /// # Errors
    /// Every [`StoreError`]. A damaged memory is not an error: it is set aside.
    pub fn open(folder: &Path) -> Result<(Self, Recovered), StoreError> {
        let lock = lock(folder)?;
        let memory = read_memory(&folder.join("memory"))?;
        let blobs = DiskBlobs::open(folder, QUOTA_BYTES)?;
        let store = Self { folder: folder.to_owned(), blobs, _lock: lock };
        let named = memory.as_ref().map(Memory::blobs).unwrap_or_default();
        store.keep_only(&named)?;
        let mut recovered = Recovered { memory, blobs: BTreeSet::new() };
        for digest in named {
            match store.blobs.read(digest) {
                Ok(_) => drop(recovered.blobs.insert(digest)),
                Err(BlobError::Missing { .. }) => {}
                Err(error @ BlobError::Corrupt { .. }) => {
                    tracing::warn!(%error, "removing a damaged blob");
                    store.blobs.remove(digest)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((store, recovered))
    }

    /// Reads the folder's memory without changing anything; an agent may be running with it.
    ///
    /// # Errors
    /// A memory that is missing ([`StoreError::Io`]) or cannot be read.
    pub fn peek(folder: &Path) -> Result<Memory, StoreError> {
        let path = folder.join("memory");
        let io = |source| StoreError::Io { doing: "reading", path: path.clone(), source };
        let mut bytes = Vec::new();
        File::open(&path).and_then(|file| file.take(MAX_MEMORY_BYTES + 1).read_to_end(&mut bytes)).map_err(io)?;
        decode(&bytes).map_err(|flaw| match flaw {
            Flaw::Foreign => StoreError::Foreign { path: path.clone() },
            Flaw::Version(found) => StoreError::Version { path: path.clone(), found },
            Flaw::Torn => io(io::Error::new(ErrorKind::InvalidData, "its digest does not match")),
        })
    }

    /// Replaces the memory, so that a restart finds it, and removes blobs that it does not name.
    ///
    /// # Errors
    /// [`StoreError::Io`]: the old memory remains.
    pub fn remember(&self, memory: &Memory) -> Result<(), StoreError> {
        let path = self.folder.join("memory");
        replace(&path, &encode(memory), Access::Owner).map_err(|source| StoreError::Io {
            doing: "writing",
            path,
            source,
        })?;
        if let Err(error) = self.keep_only(&memory.blobs()) {
            tracing::warn!(error = %skiff_base::chain(&error), "blobs that are no longer needed could not be removed");
        }
        Ok(())
    }

    /// Returns the blobs. Threads may share them.
    #[must_use]
    pub fn blobs(&self) -> &DiskBlobs {
        &self.blobs
    }

    fn keep_only(&self, named: &BTreeSet<Digest>) -> Result<(), StoreError> {
        for (digest, _) in self.blobs.list()? {
            if !named.contains(&digest) {
                self.blobs.remove(digest)?;
            }
        }
        for digest in self.blobs.partials()? {
            if !named.contains(&digest) {
                self.blobs.abandon(digest)?;
            }
        }
        Ok(())
    }
}

/// Makes the folder if it is missing, and locks it.
fn lock(folder: &Path) -> Result<Lock, StoreError> {
    let private = make_private_folder(folder).map_err(|source| StoreError::Io {
        doing: "making the state folder",
        path: folder.to_owned(),
        source,
    })?;
    if !private {
        tracing::warn!(
            folder = %folder.display(),
            "other users can read the state folder; run chmod 700 on it to keep the device's layers private"
        );
    }
    Lock::file(&folder.join("lock")).map_err(|error| match error {
        LockError::InUse { .. } => StoreError::InUse { path: folder.to_owned() },
        LockError::Io { path, source } => StoreError::Io { doing: "locking", path, source },
    })
}

/// A fault in the bytes of a memory file.
enum Flaw {
    Foreign,
    Version(u32),
    Torn,
}

fn read_memory(path: &Path) -> Result<Option<Memory>, StoreError> {
    let io = |doing| move |source| StoreError::Io { doing, path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("opening")(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_MEMORY_BYTES + 1).read_to_end(&mut bytes).map_err(io("reading"))?;
    match decode(&bytes) {
        Ok(memory) => Ok(Some(memory)),
        Err(Flaw::Foreign) => Err(StoreError::Foreign { path: path.to_owned() }),
        Err(Flaw::Version(found)) => Err(StoreError::Version { path: path.to_owned(), found }),
        Err(Flaw::Torn) => {
            let aside = path.with_extension("torn");
            std::fs::rename(path, &aside).map_err(io("setting aside"))?;
            tracing::warn!(
                file = %path.display(),
                aside = %aside.display(),
                "the agent's memory is damaged; it was set aside and the agent starts without it"
            );
            Ok(None)
        }
    }
}

fn encode(memory: &Memory) -> Vec<u8> {
    let body = postcard::to_stdvec(memory).expect("plain values can be written");
    [&MAGIC[..], &VERSION.to_le_bytes(), blake3::hash(&body).as_bytes(), &body].concat()
}

fn decode(bytes: &[u8]) -> Result<Memory, Flaw> {
    if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
        return Err(Flaw::Foreign);
    }
    let (head, body) = bytes.split_at_checked(BODY_AT).ok_or(Flaw::Torn)?;
    let (_, rest) = head.split_at(MAGIC.len());
    let (version, digest) = rest.split_at(DIGEST_AT - MAGIC.len());
    let version = version.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
    if !(1..=VERSION).contains(&version) {
        return Err(Flaw::Version(version));
    }
    if digest != blake3::hash(body).as_bytes() {
        return Err(Flaw::Torn);
    }
    let read = match version {
        1 => whole::<MemoryOfFormat1>(body).map(Memory::from),
        _ => whole(body),
    };
    read.ok_or(Flaw::Torn)
}

/// Reads a value, and refuses bytes after it.
fn whole<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Some(value),
        Ok(_) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::participant::Settled;
    use proptest::prelude::*;
    use skiff_contract::Personal;
    use skiff_protocol::RunId;
    use skiff_protocol::messages::{EvaluationReport, Outcome};
    use skiff_protocol::metrics::TaskMetrics;
    use std::os::unix::fs::PermissionsExt;

    fn memory(epoch: u64, personal: Option<Digest>) -> Memory {
        Memory {
            run: RunId(1),
            started_ms: 3,
            round: 2,
            epoch,
            weights: None,
            received: None,
            settled: Settled::Open,
            personal: personal.map(|blob| Personal { run: RunId(1), layers: vec![1], blob }),
        }
    }

    fn memory_of(folder: &Path) -> Option<Memory> {
        Store::open(folder).unwrap().1.memory
    }

    #[test]
    fn what_was_remembered_is_recovered_with_its_blobs_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (store, recovered) = Store::open(folder.path()).unwrap();
        assert!(recovered.memory.is_none());
        let own = store.blobs().put(b"own").unwrap();
        let stray = store.blobs().put(b"stray").unwrap();
        store.remember(&memory(7, Some(own))).unwrap();
        assert!(!store.blobs().contains(stray));
        drop(store);
        let (_store, recovered) = Store::open(folder.path()).unwrap();
        assert_eq!(recovered.memory, Some(memory(7, Some(own))));
        assert_eq!(recovered.blobs, BTreeSet::from([own]));
    }

    #[test]
    fn two_agents_never_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::InUse { path }) if path == folder.path()));
        drop(first);
        Store::open(folder.path()).unwrap();
    }

    #[test]
    fn a_new_folder_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state");
        Store::open(&path).unwrap();
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_damaged_memory_is_set_aside_and_the_agent_starts_without() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let whole = encode(&memory(7, None));
        for cut in [0, 3, BODY_AT - 1, BODY_AT, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(memory_of(folder.path()), None, "cut to {cut}");
            assert_eq!(std::fs::read(path.with_extension("torn")).unwrap(), &whole[..cut]);
        }
    }

    /// A file that the last agent with format 1 wrote.
    const FORMAT_1: &[u8] = include_bytes!("../golden/memory-1.bin");

    #[test]
    fn a_memory_of_format_1_is_read_and_replaced_by_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        std::fs::write(&path, FORMAT_1).unwrap();
        let (store, recovered) = Store::open(folder.path()).unwrap();
        let report = EvaluationReport {
            examples: 127,
            correct: 100,
            loss_sum: 64.5,
            evaluate_ms: 1500,
            peak_rss_bytes: 250_000_000,
            metrics: TaskMetrics::Unknown,
        };
        let expected = Memory {
            run: RunId(0xfeed),
            started_ms: 1_790_000_000_000,
            round: 3,
            epoch: 70_000,
            weights: None,
            received: None,
            settled: Settled::Answered(Outcome::Evaluated(report)),
            personal: None,
        };
        assert_eq!(recovered.memory.as_ref(), Some(&expected));
        store.remember(&expected).unwrap();
        drop(store);
        assert_ne!(std::fs::read(&path).unwrap(), FORMAT_1);
        assert_eq!(memory_of(folder.path()), Some(expected));
    }

    #[test]
    fn an_interrupted_write_leaves_the_memory_before() {
        let folder = tempfile::tempdir().unwrap();
        Store::open(folder.path()).unwrap().0.remember(&memory(7, None)).unwrap();
        std::fs::write(folder.path().join("memory.new"), b"SKIFFMEM half").unwrap();
        assert_eq!(memory_of(folder.path()), Some(memory(7, None)));
    }

    #[test]
    fn a_foreign_memory_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        std::fs::write(&path, b"dear diary").unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Foreign { path: named }) if named == path));
        let mut newer = encode(&memory(7, None));
        newer[MAGIC.len()] = 9;
        std::fs::write(&path, &newer).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Version { found: 9, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), newer);
    }

    #[test]
    fn a_damaged_blob_is_removed_and_not_recovered() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        let own = store.blobs().put(b"own").unwrap();
        store.remember(&memory(7, Some(own))).unwrap();
        drop(store);
        std::fs::write(folder.path().join("blobs").join(own.to_string()), b"owl").unwrap();
        let (store, recovered) = Store::open(folder.path()).unwrap();
        assert!(recovered.blobs.is_empty() && !store.blobs().contains(own));
        assert_eq!(recovered.memory, Some(memory(7, Some(own))));
    }

    #[test]
    fn a_state_folder_that_is_a_file_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(file.path()).unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }

    proptest! {
        #[test]
        fn prop_any_change_of_a_byte_is_noticed(at in 0..encode(&memory(7, None)).len(), flip in 1..=255_u8) {
            let mut bytes = encode(&memory(7, None));
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn prop_any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let framed = [&MAGIC[..], &VERSION.to_le_bytes(), blake3::hash(&bytes).as_bytes(), &bytes].concat();
            let _ = decode(&framed);
        }
    }
}
