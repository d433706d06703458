//! Payloads on disk. Complete payloads are stored under their digest, incoming ones as chunks. Agents and the coordinator both
//! use this crate.
//!
//! It knows nothing of messages or rounds, decides nothing, and never returns a payload that does not match its digest.
//!
//! ```text
//! root/blobs/{digest}              complete: written to a temporary file, flushed to the disk, then renamed
//! root/partial/{digest}/{index}    chunks of an incoming payload; not flushed, because the digest is checked at the end
//! root/aside/{number}              temporary files; deleted when the store is opened
//! root/journal                     identity of the journal that the blobs belong to
//! ```
//! A crash at any moment leaves every blob intact. At worst, a chunk is sent again or a transfer starts over.
//!
//! **Bounds.** Blobs and chunks together stay below the quota; anything that would exceed it is refused with
//! [`BlobError::QuotaExceeded`]. Memory is O(chunk), except for [`Blobs::read`] and [`Blobs::put`]. Only one process at a time
//! may have the folder open, and its threads may share the [`Blobs`]. Other processes may read them ([`Blobs::of_another`]).

mod disk;
mod memory;

pub use disk::DiskBlobs;
pub use memory::MemoryBlobs;

use skiff_protocol::Digest;
use skiff_protocol::transfer::Held;
use std::io;
use std::path::PathBuf;

/// Result of assembling a payload from its chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Assembly {
    /// The blob exists, flushed to the disk.
    Whole,
    /// The chunks did not have the digest and were deleted.
    WrongDigest,
    /// Some chunks are missing.
    Incomplete,
}

/// Failure of an operation on a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The file system reported an error.
    #[error("{doing} {}", path.display())]
    Io {
        /// The attempted operation.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The blob does not exist.
    #[error("no blob {digest} in {}", root.display())]
    Missing {
        /// The blob.
        digest: Digest,
        /// Folder of the store.
        root: PathBuf,
    },
    /// The contents of the blob do not match its digest. Remove it and fetch it again.
    #[error("blob {} is damaged: its content does not match its name; remove it, so that it is fetched again", path.display())]
    Corrupt {
        /// File of the blob.
        path: PathBuf,
    },
    /// A chunk is beyond the payload's end, or has the wrong size.
    #[error("chunk {index} of {digest} has {found} bytes instead of {expected}")]
    WrongChunk {
        /// The payload.
        digest: Digest,
        /// Index of the chunk.
        index: u32,
        /// Size of the chunk, in bytes.
        found: usize,
        /// Expected size of the chunk, in bytes.
        expected: usize,
    },
    /// The quota does not allow more bytes.
    #[error("{wanted_bytes} bytes do not fit: {} may hold {quota_bytes} and holds {used_bytes}; raise the quota", root.display())]
    QuotaExceeded {
        /// Folder of the store.
        root: PathBuf,
        /// Number of bytes to add.
        wanted_bytes: u64,
        /// Number of bytes in the store.
        used_bytes: u64,
        /// Maximum number of bytes in the store.
        quota_bytes: u64,
    },
}

/// Stores payloads under their digest.
///
/// Laws, for every implementation: `read` returns the bytes given to `put`, or an error; chunks in any order, repeated any number
/// of times, assemble to the payload or are deleted; bytes in blobs and chunks never exceed the quota.
pub trait Blobs: Send + Sync + std::fmt::Debug {
    /// Returns the number of bytes that can still be added below the quota.
    #[must_use]
    fn room_bytes(&self) -> u64;

    /// Returns the number of free bytes on the disk.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn disk_free_bytes(&self) -> Result<u64, BlobError>;

    /// Returns the identity of the journal that the blobs belong to, if a marker says so.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn owner(&self) -> Result<Option<String>, BlobError>;

    /// Records durably which journal owns the blobs.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn set_owner(&self, journal: &str) -> Result<(), BlobError>;

    /// Stores `bytes` durably under their digest. An existing blob is kept, unless it is damaged.
    ///
    /// # Errors
    /// [`BlobError::Io`], [`BlobError::QuotaExceeded`].
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError>;

    /// Returns true if the blob exists.
    #[must_use]
    fn contains(&self, digest: Digest) -> bool;

    /// Returns the blob's size in bytes.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Io`].
    fn size_bytes(&self, digest: Digest) -> Result<u64, BlobError>;

    /// Returns the whole blob, after checking it against its digest.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Corrupt`], [`BlobError::Io`].
    fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError>;

    /// Returns chunk `index` of a blob, for sending; empty beyond the blob's end. The chunk is not checked here: the receiver
    /// checks the whole payload.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Io`].
    fn chunk(&self, digest: Digest, index: u32) -> Result<Vec<u8>, BlobError>;

    /// Removes the blob. Does nothing if it does not exist.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn remove(&self, digest: Digest) -> Result<(), BlobError>;

    /// Returns every blob with its size, ordered by digest.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError>;

    /// Returns the stored chunks of a payload of `total_bytes`.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn held(&self, digest: Digest, total_bytes: u64) -> Result<Held, BlobError>;

    /// Stores chunk `index` of a payload of `total_bytes`, and replaces an earlier copy. Does nothing if the whole blob exists.
    ///
    /// Two devices may send one payload at the same time, and a third thread may assemble it meanwhile.
    ///
    /// # Errors
    /// [`BlobError::WrongChunk`], [`BlobError::QuotaExceeded`], [`BlobError::Io`].
    fn put_chunk(&self, digest: Digest, total_bytes: u64, index: u32, bytes: &[u8]) -> Result<(), BlobError>;

    /// Assembles the blob from its chunks, if all are stored and the digest is right.
    ///
    /// Until the chunks are removed, the payload is on the disk twice; the quota counts it once.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn assemble(&self, digest: Digest, total_bytes: u64) -> Result<Assembly, BlobError>;

    /// Deletes the chunks of a payload.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn abandon(&self, digest: Digest) -> Result<(), BlobError>;

    /// Returns the payloads that have stored chunks, ordered by digest. The caller resumes or abandons them when it starts.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn partials(&self) -> Result<Vec<Digest>, BlobError>;

    /// Returns the location of the blobs, for messages.
    fn place(&self) -> PathBuf;
}

#[cfg(test)]
mod tests;
