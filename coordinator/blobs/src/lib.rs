//! Payloads on disk: whole ones by their digest, and those that are still arriving by chunk. Both sides keep theirs here.
//!
//! It knows nothing of messages or rounds, decides nothing, and never lets a payload out that is not what its name says.
//!
//! ```text
//! root/blobs/{digest}              whole: written aside, flushed to the disk, then renamed into place
//! root/partial/{digest}/{index}    chunks of one that is arriving; not flushed, for the digest is checked at the end
//! root/aside/{number}              being written; emptied when the store is opened
//! root/journal                     identity of the journal that the blobs belong to
//! ```
//! A crash at any moment leaves blobs whole, at most repeats a chunk, and at worst makes a transfer start over.
//!
//! **Bounds.** Blobs and chunks together stay below the quota; what would not fit is refused with
//! [`BlobError::QuotaExceeded`]. Memory is O(chunk), except for [`Blobs::read`] and [`Blobs::put`]. One process at a time
//! may have the folder open, and its threads may share the [`Blobs`]; others may read ([`Blobs::of_another`]).

mod disk;
mod memory;

pub use disk::DiskBlobs;
pub use memory::MemoryBlobs;

use skiff_protocol::Digest;
use skiff_protocol::transfer::Held;
use std::io;
use std::path::PathBuf;

/// Fate of a payload's chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Assembly {
    /// The blob is there now, flushed to the disk.
    Whole,
    /// They are not what the digest says; they are thrown away.
    WrongDigest,
    /// Some are missing.
    Incomplete,
}

/// Failure of an operation on a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The file system did not do it.
    #[error("{doing} {}", path.display())]
    Io {
        /// Attempted operation.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no such blob.
    #[error("no blob {digest} in {}", root.display())]
    Missing {
        /// The blob.
        digest: Digest,
        /// The store's folder.
        root: PathBuf,
    },
    /// The disk changed it. Remove it and fetch it again.
    #[error("blob {} is damaged: its content does not match its name; remove it to have it fetched again", path.display())]
    Corrupt {
        /// Its file.
        path: PathBuf,
    },
    /// A chunk beyond the payload's end, or of another size.
    #[error("chunk {index} of {digest} has {found} bytes instead of {expected}")]
    WrongChunk {
        /// The payload.
        digest: Digest,
        /// The chunk's position.
        index: u32,
        /// Its bytes.
        found: usize,
        /// Bytes it should have.
        expected: usize,
    },
    /// No room.
    #[error("{wanted_bytes} bytes do not fit: {} may hold {quota_bytes} and holds {used_bytes}; raise the quota", root.display())]
    QuotaExceeded {
        /// The store's folder.
        root: PathBuf,
        /// Bytes to add.
        wanted_bytes: u64,
        /// Bytes there.
        used_bytes: u64,
        /// Bytes allowed.
        quota_bytes: u64,
    },
}

/// Keeps payloads by their digest.
///
/// Laws, for every implementation: `read` returns what `put` was given or an error; chunks in any order, repeated at will,
/// assemble to the payload or are thrown away; bytes in blobs and chunks never exceed the quota.
pub trait Blobs: Send + Sync + std::fmt::Debug {
    /// Returns the bytes that still fit below the quota.
    #[must_use]
    fn room_bytes(&self) -> u64;

    /// Returns the bytes that are free on the disk.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn disk_free_bytes(&self) -> Result<u64, BlobError>;

    /// Returns the identity of the journal that the blobs belong to, if a marker says so.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn owner(&self) -> Result<Option<String>, BlobError>;

    /// Writes durably which journal owns the blobs.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn set_owner(&self, journal: &str) -> Result<(), BlobError>;

    /// Stores `bytes` durably under their digest; one that is there already stays, unless it is damaged.
    ///
    /// # Errors
    /// [`BlobError::Io`], [`BlobError::QuotaExceeded`].
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError>;

    /// Whether the blob is there.
    #[must_use]
    fn contains(&self, digest: Digest) -> bool;

    /// The blob's size.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Io`].
    fn size_bytes(&self, digest: Digest) -> Result<u64, BlobError>;

    /// The whole blob, checked against its digest.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Corrupt`], [`BlobError::Io`].
    fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError>;

    /// Chunk `index` of a blob, to be sent; empty beyond its end. The receiver checks the whole.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Io`].
    fn chunk(&self, digest: Digest, index: u32) -> Result<Vec<u8>, BlobError>;

    /// Removes the blob; one that is not there is as good as removed.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn remove(&self, digest: Digest) -> Result<(), BlobError>;

    /// Every blob and its size, by digest.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError>;

    /// Which chunks of a payload of `total_bytes` are there.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn held(&self, digest: Digest, total_bytes: u64) -> Result<Held, BlobError>;

    /// Keeps chunk `index` of a payload of `total_bytes`; an earlier one is replaced. Does nothing if the whole blob exists.
    ///
    /// Two devices may send one payload at the same time, and a third thread may assemble it meanwhile.
    ///
    /// # Errors
    /// [`BlobError::WrongChunk`], [`BlobError::QuotaExceeded`], [`BlobError::Io`].
    fn put_chunk(&self, digest: Digest, total_bytes: u64, index: u32, bytes: &[u8]) -> Result<(), BlobError>;

    /// Makes the blob of its chunks, where they are all there and the digest is right.
    ///
    /// Until the chunks are removed again the payload is on the disk twice; the quota counts it once.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn assemble(&self, digest: Digest, total_bytes: u64) -> Result<Assembly, BlobError>;

    /// Throws the chunks of a payload away.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn abandon(&self, digest: Digest) -> Result<(), BlobError>;

    /// The payloads of which chunks are there, by digest: what a start-up has to resume or abandon.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    fn partials(&self) -> Result<Vec<Digest>, BlobError>;

    /// Returns the place of the blobs, for messages.
    fn place(&self) -> PathBuf;
}

#[cfg(test)]
mod tests;
