//! Blobs in memory, for tests and simulations. They are lost when the process ends.

use crate::{Assembly, BlobError, Blobs};
use skiff_protocol::Digest;
use skiff_protocol::transfer::{CHUNK_BYTES, Held, chunk_bytes, chunk_count};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blobs in memory.
#[derive(Debug)]
pub struct MemoryBlobs {
    quota_bytes: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    blobs: BTreeMap<Digest, Vec<u8>>,
    partials: BTreeMap<Digest, BTreeMap<u32, Vec<u8>>>,
    owner: Option<String>,
}

impl Kept {
    fn used_bytes(&self) -> u64 {
        let chunks = self.partials.values().flat_map(BTreeMap::values);
        self.blobs.values().chain(chunks).map(|bytes| bytes.len() as u64).sum()
    }
}

impl MemoryBlobs {
    /// Creates an empty store for at most `quota_bytes`.
    #[must_use]
    pub fn new(quota_bytes: u64) -> Self {
        Self { quota_bytes, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, kept: &Kept, wanted_bytes: u64) -> Result<(), BlobError> {
        let used_bytes = kept.used_bytes();
        if used_bytes.saturating_add(wanted_bytes) <= self.quota_bytes {
            return Ok(());
        }
        Err(BlobError::QuotaExceeded { root: self.place(), wanted_bytes, used_bytes, quota_bytes: self.quota_bytes })
    }

    fn missing(&self, digest: Digest) -> BlobError {
        BlobError::Missing { digest, root: self.place() }
    }
}

impl Blobs for MemoryBlobs {
    fn room_bytes(&self) -> u64 {
        self.quota_bytes.saturating_sub(self.kept().used_bytes())
    }

    fn disk_free_bytes(&self) -> Result<u64, BlobError> {
        Ok(self.room_bytes())
    }

    fn owner(&self) -> Result<Option<String>, BlobError> {
        Ok(self.kept().owner.clone())
    }

    fn set_owner(&self, journal: &str) -> Result<(), BlobError> {
        self.kept().owner = Some(journal.to_owned());
        Ok(())
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        let mut kept = self.kept();
        if !kept.blobs.contains_key(&digest) {
            self.claim(&kept, bytes.len() as u64)?;
            kept.blobs.insert(digest, bytes.to_vec());
        }
        Ok(digest)
    }

    fn contains(&self, digest: Digest) -> bool {
        self.kept().blobs.contains_key(&digest)
    }

    fn size_bytes(&self, digest: Digest) -> Result<u64, BlobError> {
        let kept = self.kept();
        kept.blobs.get(&digest).map(|bytes| bytes.len() as u64).ok_or_else(|| self.missing(digest))
    }

    fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        self.kept().blobs.get(&digest).cloned().ok_or_else(|| self.missing(digest))
    }

    fn chunk(&self, digest: Digest, index: u32) -> Result<Vec<u8>, BlobError> {
        let bytes = self.read(digest)?;
        Ok(bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap_or_default().to_vec())
    }

    fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        self.kept().blobs.remove(&digest);
        Ok(())
    }

    fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        Ok(self.kept().blobs.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64)).collect())
    }

    fn held(&self, digest: Digest, total_bytes: u64) -> Result<Held, BlobError> {
        let mut held = Held::default();
        for (&index, bytes) in self.kept().partials.get(&digest).into_iter().flatten() {
            if bytes.len() == chunk_bytes(total_bytes, index) {
                held.insert(index);
            }
        }
        Ok(held)
    }

    fn put_chunk(&self, digest: Digest, total_bytes: u64, index: u32, bytes: &[u8]) -> Result<(), BlobError> {
        let expected = chunk_bytes(total_bytes, index);
        if bytes.len() != expected || bytes.is_empty() {
            return Err(BlobError::WrongChunk { digest, index, found: bytes.len(), expected });
        }
        let mut kept = self.kept();
        self.claim(&kept, bytes.len() as u64)?;
        kept.partials.entry(digest).or_default().insert(index, bytes.to_vec());
        Ok(())
    }

    fn assemble(&self, digest: Digest, total_bytes: u64) -> Result<Assembly, BlobError> {
        let chunks = chunk_count(total_bytes);
        let is_complete = self.held(digest, total_bytes)?.count(chunks) == chunks;
        let mut kept = self.kept();
        if kept.blobs.contains_key(&digest) {
            kept.partials.remove(&digest);
            return Ok(Assembly::Whole);
        }
        if !is_complete {
            return Ok(Assembly::Incomplete);
        }
        let bytes =
            kept.partials.remove(&digest).into_iter().flat_map(BTreeMap::into_values).flatten().collect::<Vec<_>>();
        if Digest::of(&bytes) != digest {
            return Ok(Assembly::WrongDigest);
        }
        kept.blobs.insert(digest, bytes);
        Ok(Assembly::Whole)
    }

    fn abandon(&self, digest: Digest) -> Result<(), BlobError> {
        self.kept().partials.remove(&digest);
        Ok(())
    }

    fn partials(&self) -> Result<Vec<Digest>, BlobError> {
        Ok(self.kept().partials.keys().copied().collect())
    }

    fn place(&self) -> PathBuf {
        PathBuf::from("memory")
    }
}
