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

use skiff_base::files::Access;
use skiff_protocol::Digest;
use skiff_protocol::transfer::{CHUNK_BYTES, Held, chunk_bytes, chunk_count};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// File that names the owning journal.
const OWNER: &str = "journal";

/// A folder of blobs; see the crate's text.
#[derive(Debug)]
pub struct Blobs {
    root: PathBuf,
    quota_bytes: u64,
    used_bytes: AtomicU64,
    next_aside: AtomicU64,
}

/// What became of the chunks of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Assembly {
    /// The blob is there now, flushed to the disk.
    Whole,
    /// They are not what the digest says; they are thrown away.
    WrongDigest,
    /// Some are missing.
    Incomplete,
}

/// What went wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The file system did not do it.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was attempted.
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

impl Blobs {
    /// Opens the store in the folder `root`, made where it is missing, for at most `quota_bytes`.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn open(root: impl Into<PathBuf>, quota_bytes: u64) -> Result<Self, BlobError> {
        let root = root.into();
        let blobs = Self { root, quota_bytes, used_bytes: AtomicU64::new(0), next_aside: AtomicU64::new(0) };
        remove_folder(&blobs.root.join("aside"))?;
        for folder in ["aside", "blobs", "partial"] {
            let path = blobs.root.join(folder);
            fs::create_dir_all(&path).map_err(io_error("making the folder", &path))?;
        }
        let mut used = blobs.list()?.iter().map(|(_, bytes)| bytes).sum();
        for digest in blobs.partials()? {
            used += folder_bytes(&blobs.partial_path(digest))?;
        }
        blobs.used_bytes.store(used, Ordering::Relaxed);
        Ok(blobs)
    }

    /// The store that another process has open in the folder `root`, to read from.
    #[must_use]
    pub fn of_another(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), quota_bytes: 0, used_bytes: AtomicU64::new(0), next_aside: AtomicU64::new(0) }
    }

    /// The store's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the bytes that still fit below the quota.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.quota_bytes.saturating_sub(self.used_bytes.load(Ordering::Relaxed))
    }

    /// Returns the bytes that are free on the disk.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn disk_free_bytes(&self) -> Result<u64, BlobError> {
        let found = rustix::fs::statvfs(&self.root).map_err(io::Error::from);
        let found = found.map_err(io_error("asking for the free space of", &self.root))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Returns the identity of the journal that the blobs belong to, if a marker says so.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn owner(&self) -> Result<Option<String>, BlobError> {
        let path = self.root.join(OWNER);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    /// Marks the blobs as those of a journal, durably.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn set_owner(&self, journal: &str) -> Result<(), BlobError> {
        let path = self.root.join(OWNER);
        let written = skiff_base::files::replace(&path, format!("{journal}\n").as_bytes(), Access::Owner);
        written.map_err(io_error("writing", &path))
    }

    /// Stores `bytes` durably under their digest; one that is there already stays, unless it is damaged.
    ///
    /// # Errors
    /// [`BlobError::Io`], [`BlobError::QuotaExceeded`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        match self.read(digest) {
            Ok(_) => return Ok(digest),
            Err(BlobError::Corrupt { .. }) => self.remove(digest)?,
            Err(_) => {}
        }
        self.claim(bytes.len() as u64)?;
        let written = self.write_aside(|file| file.write_all(bytes)).and_then(|aside| self.place(&aside, digest));
        if written.is_err() {
            self.release(bytes.len() as u64);
        }
        written.map(|()| digest)
    }

    /// Whether the blob is there.
    #[must_use]
    pub fn contains(&self, digest: Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// The blob's size.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Io`].
    pub fn size_bytes(&self, digest: Digest) -> Result<u64, BlobError> {
        let path = self.blob_path(digest);
        fs::metadata(&path).map(|meta| meta.len()).map_err(|error| self.absent_or(error, "looking at", digest, path))
    }

    /// The whole blob, checked against its digest.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Corrupt`], [`BlobError::Io`].
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).map_err(|error| self.absent_or(error, "reading", digest, path.clone()))?;
        if Digest::of(&bytes) == digest { Ok(bytes) } else { Err(BlobError::Corrupt { path }) }
    }

    /// Chunk `index` of a blob, to be sent; empty beyond its end. The receiver checks the whole.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Io`].
    pub fn chunk(&self, digest: Digest, index: u32) -> Result<Vec<u8>, BlobError> {
        let path = self.blob_path(digest);
        let read = |path: &Path| {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(u64::from(index) * CHUNK_BYTES as u64))?;
            let mut bytes = Vec::with_capacity(CHUNK_BYTES);
            file.take(CHUNK_BYTES as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read(&path).map_err(|error| self.absent_or(error, "reading", digest, path))
    }

    /// Removes the blob; one that is not there is as good as removed.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        let path = self.blob_path(digest);
        let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
        match fs::remove_file(&path) {
            Ok(()) => {
                self.release(bytes);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("removing", &path)(error)),
        }
    }

    /// Every blob and its size, by digest.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let folder = self.root.join("blobs");
        let mut found = Vec::new();
        for entry in entries(&folder)? {
            if let Some(digest) = entry.file_name().to_str().and_then(Digest::parse) {
                let bytes = entry.metadata().map_err(io_error("looking at", &entry.path()))?.len();
                found.push((digest, bytes));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Which chunks of a payload of `total_bytes` are there.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn held(&self, digest: Digest, total_bytes: u64) -> Result<Held, BlobError> {
        let mut held = Held::default();
        let folder = self.partial_path(digest);
        if !folder.is_dir() {
            return Ok(held);
        }
        for entry in entries(&folder)? {
            let index = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let bytes = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                found => found.map_err(io_error("looking at", &entry.path()))?.len(),
            };
            match index {
                Some(index) if bytes != 0 && bytes == chunk_bytes(total_bytes, index) as u64 => held.insert(index),
                Some(_) | None => {}
            }
        }
        Ok(held)
    }

    /// Keeps chunk `index` of a payload of `total_bytes`; an earlier one is replaced. Does nothing if the whole blob exists.
    ///
    /// Two devices may send one payload at the same time, and a third thread may assemble it meanwhile.
    ///
    /// # Errors
    /// [`BlobError::WrongChunk`], [`BlobError::QuotaExceeded`], [`BlobError::Io`].
    pub fn put_chunk(&self, digest: Digest, total_bytes: u64, index: u32, bytes: &[u8]) -> Result<(), BlobError> {
        let expected = chunk_bytes(total_bytes, index);
        if bytes.len() != expected || bytes.is_empty() {
            return Err(BlobError::WrongChunk { digest, index, found: bytes.len(), expected });
        }
        if self.contains(digest) {
            return Ok(());
        }
        let folder = self.partial_path(digest);
        let path = folder.join(index.to_string());
        let replaced = fs::metadata(&path).map_or(0, |meta| meta.len());
        self.claim(bytes.len() as u64)?;
        let aside = self.aside_path();
        let place = || fs::create_dir_all(&folder).and_then(|()| fs::rename(&aside, &path));
        // Another thread may abandon the folder in between, because the payload is whole or wrong: it is made once more.
        let written = fs::write(&aside, bytes).and_then(|()| place().or_else(|_| place()));
        match written {
            Ok(()) => self.release(replaced),
            Err(_) => {
                let _ = fs::remove_file(&aside);
                self.release(bytes.len() as u64);
            }
        }
        written.map_err(io_error("writing", &path))
    }

    /// Makes the blob of its chunks, where they are all there and the digest is right.
    ///
    /// Until the chunks are removed again the payload is on the disk twice; the quota counts it once.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn assemble(&self, digest: Digest, total_bytes: u64) -> Result<Assembly, BlobError> {
        if self.contains(digest) {
            self.abandon(digest)?;
            return Ok(Assembly::Whole);
        }
        let chunks = chunk_count(total_bytes);
        if self.held(digest, total_bytes)?.count(chunks) < chunks {
            return Ok(Assembly::Incomplete);
        }
        let folder = self.partial_path(digest);
        let mut hasher = blake3::Hasher::new();
        let written = self.write_aside(|file| {
            for index in 0..chunks {
                let bytes = fs::read(folder.join(index.to_string()))?;
                hasher.update(&bytes);
                file.write_all(&bytes)?;
            }
            Ok(())
        });
        let aside = match written {
            // Another thread was faster, and has removed the chunks.
            Err(BlobError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(if self.contains(digest) { Assembly::Whole } else { Assembly::Incomplete });
            }
            written => written?,
        };
        if Digest(*hasher.finalize().as_bytes()) != digest {
            fs::remove_file(&aside).map_err(io_error("removing", &aside))?;
            self.abandon(digest)?;
            return Ok(Assembly::WrongDigest);
        }
        self.place(&aside, digest)?;
        self.used_bytes.fetch_add(total_bytes, Ordering::Relaxed);
        self.abandon(digest)?;
        Ok(Assembly::Whole)
    }

    /// Throws the chunks of a payload away.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn abandon(&self, digest: Digest) -> Result<(), BlobError> {
        // Moved aside in one step: another thread may be storing a chunk of it.
        let (folder, aside) = (self.partial_path(digest), self.aside_path());
        match fs::rename(&folder, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            moved => moved.map_err(io_error("removing", &folder))?,
        }
        let bytes = folder_bytes(&aside)?;
        // A chunk that was being stored may still have landed in it.
        remove_folder(&aside).or_else(|_| remove_folder(&aside))?;
        self.release(bytes);
        Ok(())
    }

    /// The payloads of which chunks are there, by digest: what a start-up has to resume or abandon.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn partials(&self) -> Result<Vec<Digest>, BlobError> {
        let names = entries(&self.root.join("partial"))?.into_iter().map(|entry| entry.file_name());
        let mut digests: Vec<_> = names.filter_map(|name| Digest::parse(name.to_str()?)).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join(digest.to_string())
    }

    fn partial_path(&self, digest: Digest) -> PathBuf {
        self.root.join("partial").join(digest.to_string())
    }

    fn aside_path(&self) -> PathBuf {
        self.root.join("aside").join(self.next_aside.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Writes a file aside and flushes it to the disk.
    fn write_aside(&self, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<PathBuf, BlobError> {
        let path = self.aside_path();
        let written = File::create(&path).and_then(|mut file| {
            write(&mut file)?;
            file.sync_all()
        });
        match written {
            Ok(()) => Ok(path),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(io_error("writing", &path)(error))
            }
        }
    }

    /// Gives a file that was written aside its name, for good.
    fn place(&self, aside: &Path, digest: Digest) -> Result<(), BlobError> {
        let path = self.blob_path(digest);
        fs::rename(aside, &path).map_err(|error| {
            let _ = fs::remove_file(aside);
            io_error("writing", &path)(error)
        })?;
        let folder = self.root.join("blobs");
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io_error("flushing", &folder))
    }

    fn claim(&self, wanted_bytes: u64) -> Result<(), BlobError> {
        let fits = |used: u64| used.checked_add(wanted_bytes).filter(|used| *used <= self.quota_bytes);
        match self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used_bytes) => Err(BlobError::QuotaExceeded {
                root: self.root.clone(),
                wanted_bytes,
                used_bytes,
                quota_bytes: self.quota_bytes,
            }),
        }
    }

    fn release(&self, bytes: u64) {
        let _ =
            self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }

    fn absent_or(&self, error: io::Error, doing: &'static str, digest: Digest, path: PathBuf) -> BlobError {
        if error.kind() == ErrorKind::NotFound {
            BlobError::Missing { digest, root: self.root.clone() }
        } else {
            BlobError::Io { doing, path, source: error }
        }
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> BlobError {
    move |source| BlobError::Io { doing, path: path.to_owned(), source }
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>, BlobError> {
    fs::read_dir(folder).and_then(Iterator::collect).map_err(io_error("listing", folder))
}

fn folder_bytes(folder: &Path) -> Result<u64, BlobError> {
    entries(folder)?
        .iter()
        .map(|entry| entry.metadata().map(|meta| meta.len()).map_err(io_error("looking at", &entry.path())))
        .sum()
}

fn remove_folder(folder: &Path) -> Result<(), BlobError> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("removing", folder)(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert_eq, proptest};
    use tempfile::TempDir;

    const QUOTA: u64 = 1 << 20;

    fn store() -> (TempDir, Blobs) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("a/b"), QUOTA).unwrap();
        (folder, blobs)
    }

    fn reopened(blobs: &Blobs) -> Blobs {
        Blobs::open(&blobs.root, blobs.quota_bytes).unwrap()
    }

    fn payload(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
    }

    fn chunk_of(bytes: &[u8], index: u32) -> &[u8] {
        bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap()
    }

    #[test]
    fn a_blob_is_there_for_the_next_process_until_it_is_removed() {
        let (_folder, blobs) = store();
        let bytes = payload(100_000);
        let digest = blobs.put(&bytes).unwrap();
        assert_eq!(blobs.put(&bytes).unwrap(), digest);
        let blobs = reopened(&blobs);
        assert_eq!(blobs.read(digest).unwrap(), bytes);
        assert_eq!(blobs.size_bytes(digest).unwrap(), 100_000);
        assert_eq!(blobs.list().unwrap(), [(digest, 100_000)]);
        assert_eq!(blobs.room_bytes(), QUOTA - 100_000);
        assert_eq!(blobs.chunk(digest, 1).unwrap(), chunk_of(&bytes, 1));
        assert!(blobs.chunk(digest, 2).unwrap().is_empty());
        blobs.remove(digest).unwrap();
        blobs.remove(digest).unwrap();
        assert!(matches!(blobs.read(digest), Err(BlobError::Missing { .. })));
        assert_eq!(blobs.room_bytes(), QUOTA);
    }

    #[test]
    fn a_blob_that_the_disk_changed_is_not_let_out() {
        let (_folder, blobs) = store();
        let digest = blobs.put(&payload(1000)).unwrap();
        fs::write(blobs.blob_path(digest), payload(999)).unwrap();
        let message = blobs.read(digest).unwrap_err().to_string();
        assert!(message.contains(&digest.to_string()) && message.contains("remove it"), "{message}");
    }

    #[test]
    fn a_transfer_goes_on_after_a_restart_where_the_chunks_are() {
        let (_folder, blobs) = store();
        let bytes = payload(150_000);
        let (digest, total) = (Digest::of(&bytes), 150_000);
        blobs.put_chunk(digest, total, 2, chunk_of(&bytes, 2)).unwrap();
        blobs.put_chunk(digest, total, 0, chunk_of(&bytes, 0)).unwrap();
        blobs.put_chunk(digest, total, 0, chunk_of(&bytes, 0)).unwrap();
        // A chunk that was torn by the crash, and one whose writing was interrupted.
        fs::write(blobs.partial_path(digest).join("1"), b"torn").unwrap();
        fs::write(blobs.root.join("aside/7"), b"half").unwrap();

        let blobs = reopened(&blobs);
        assert_eq!(blobs.partials().unwrap(), [digest]);
        let held = blobs.held(digest, total).unwrap();
        assert_eq!(held.missing(3).collect::<Vec<_>>(), [1]);
        assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Incomplete);
        blobs.put_chunk(digest, total, 1, chunk_of(&bytes, 1)).unwrap();
        assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
        assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
        assert_eq!(blobs.read(digest).unwrap(), bytes);
        assert_eq!(blobs.partials().unwrap(), []);
        assert_eq!(blobs.room_bytes(), QUOTA - total);
        assert_eq!(reopened(&blobs).room_bytes(), QUOTA - total);
        assert_eq!(entries(&blobs.root.join("aside")).unwrap().len(), 0);
    }

    #[test]
    fn chunks_of_something_else_are_thrown_away() {
        let (_folder, blobs) = store();
        let digest = Digest::of(b"right");
        blobs.put_chunk(digest, 5, 0, b"wrong").unwrap();
        assert_eq!(blobs.assemble(digest, 5).unwrap(), Assembly::WrongDigest);
        assert!(!blobs.contains(digest));
        assert_eq!(blobs.held(digest, 5).unwrap(), Held::default());
        assert_eq!(blobs.room_bytes(), QUOTA);
        assert_eq!(entries(&blobs.root.join("aside")).unwrap().len(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let (_folder, blobs) = store();
        let kept = blobs.put(&payload(1_000_000)).unwrap();
        let message = blobs.put(&payload(60_000)).unwrap_err().to_string();
        assert!(message.contains("60000") && message.contains("raise the quota"), "{message}");
        let bytes = payload(CHUNK_BYTES);
        let refused = blobs.put_chunk(Digest::of(&bytes), CHUNK_BYTES as u64, 0, &bytes);
        assert!(matches!(refused, Err(BlobError::QuotaExceeded { .. })));
        assert_eq!(blobs.list().unwrap(), [(kept, 1_000_000)]);
        assert_eq!(blobs.room_bytes(), QUOTA - 1_000_000);
        blobs.remove(kept).unwrap();
        blobs.put(&payload(60_000)).unwrap();
    }

    #[test]
    fn what_cannot_be_put_in_place_leaves_nothing_aside() {
        let (_folder, blobs) = store();
        let digest = Digest::of(b"right");
        // A folder where the file should be: it cannot be renamed there.
        fs::create_dir_all(blobs.partial_path(digest).join("0")).unwrap();
        assert!(matches!(blobs.put_chunk(digest, 5, 0, b"right"), Err(BlobError::Io { .. })));
        fs::create_dir(blobs.blob_path(digest)).unwrap();
        assert!(matches!(blobs.put(b"right"), Err(BlobError::Io { .. })));
        assert_eq!(entries(&blobs.root.join("aside")).unwrap().len(), 0);
        assert_eq!(blobs.room_bytes(), QUOTA);
    }

    #[test]
    fn a_chunk_of_the_wrong_size_is_named() {
        let (_folder, blobs) = store();
        let digest = Digest::of(b"x");
        for (index, bytes) in [(0, 4), (0, 6), (1, 5), (1, 0), (u32::MAX, 5)] {
            let refused = blobs.put_chunk(digest, 5, index, &payload(bytes));
            assert!(matches!(refused, Err(BlobError::WrongChunk { .. })), "{index} {bytes}");
        }
        assert_eq!(blobs.room_bytes(), QUOTA);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Any order of any chunks, repeated at will, makes the payload when all have come.
        #[test]
        fn any_order_of_chunks_makes_the_same_blob(
            (bytes, order) in (1..400_000_usize).prop_flat_map(|bytes| {
                let all: Vec<u32> = (0..chunk_count(bytes as u64)).chain(0..chunk_count(bytes as u64)).collect();
                (Just(bytes), Just(all).prop_shuffle())
            }),
        ) {
            let (_folder, blobs) = store();
            let bytes = payload(bytes);
            let (digest, total) = (Digest::of(&bytes), bytes.len() as u64);
            for index in order {
                blobs.put_chunk(digest, total, index, chunk_of(&bytes, index)).unwrap();
            }
            prop_assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
            prop_assert_eq!(blobs.read(digest).unwrap(), bytes);
            prop_assert_eq!(blobs.room_bytes(), QUOTA - total);
        }
    }

    #[test]
    fn threads_store_and_assemble_one_payload_at_the_same_time() {
        let folder = TempDir::new().unwrap();
        let store = Blobs::open(folder.path(), 1 << 24).unwrap();
        for round in 0..50_u8 {
            let bytes = vec![round; 2 * CHUNK_BYTES];
            let (digest, total) = (Digest::of(&bytes), bytes.len() as u64);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for (index, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
                            store.put_chunk(digest, total, index as u32, chunk).unwrap();
                        }
                        store.assemble(digest, total).unwrap();
                    });
                }
            });
            assert_eq!(store.read(digest).unwrap(), bytes);
        }
    }
}
