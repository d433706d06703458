//! Blobs in a folder. The documentation of the crate lists the folder's files.

use crate::{Assembly, BlobError, Blobs};
use skiff_base::files::Access;
use skiff_protocol::Digest;
use skiff_protocol::transfer::{CHUNK_BYTES, Held, chunk_bytes, chunk_count};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Name of the file that identifies the owning journal.
const OWNER: &str = "journal";

/// A folder of blobs; see the crate's documentation.
#[derive(Debug)]
pub struct DiskBlobs {
    root: PathBuf,
    quota_bytes: u64,
    used_bytes: AtomicU64,
    next_aside: AtomicU64,
    /// Lock that a thread holds while it names, renames or removes a file or folder. It keeps names and `used_bytes` consistent.
    names: Mutex<()>,
}

impl DiskBlobs {
    /// Opens the store in the folder `root` for at most `quota_bytes`. Creates the folder if it is missing.
    ///
    /// # Errors
    /// [`BlobError::Io`].
    pub fn open(root: impl Into<PathBuf>, quota_bytes: u64) -> Result<Self, BlobError> {
        let root = root.into();
        let blobs = Self {
            root,
            quota_bytes,
            used_bytes: AtomicU64::new(0),
            next_aside: AtomicU64::new(0),
            names: Mutex::new(()),
        };
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

    /// Returns a read-only view of the store that another process has open in the folder `root`.
    #[must_use]
    pub fn of_another(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            quota_bytes: 0,
            used_bytes: AtomicU64::new(0),
            next_aside: AtomicU64::new(0),
            names: Mutex::new(()),
        }
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

    /// Writes a temporary file and flushes it to the disk.
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

    /// Renames a temporary file to the name of its digest, durably. If the blob exists already, removes the temporary file and
    /// returns false.
    fn rename_into_place(&self, aside: &Path, digest: Digest) -> Result<bool, BlobError> {
        let path = self.blob_path(digest);
        let names = self.lock_names();
        let is_new = !path.is_file();
        let placed = if is_new { fs::rename(aside, &path) } else { fs::remove_file(aside) };
        drop(names);
        placed.map_err(|error| {
            let _ = fs::remove_file(aside);
            io_error("writing", &path)(error)
        })?;
        let folder = self.root.join("blobs");
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io_error("flushing", &folder))?;
        Ok(is_new)
    }

    fn lock_names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renames a temporary file to the name of its chunk. Returns false if the whole blob exists, because then no chunk is
    /// needed.
    fn name_chunk(&self, aside: &Path, digest: Digest, index: u32, bytes: u64) -> Result<bool, BlobError> {
        let folder = self.partial_path(digest);
        let path = folder.join(index.to_string());
        let _names = self.lock_names();
        if self.blob_path(digest).is_file() {
            return Ok(false);
        }
        let replaced = fs::metadata(&path).map_or(0, |meta| meta.len());
        self.claim(bytes)?;
        let named = fs::create_dir_all(&folder).and_then(|()| fs::rename(aside, &path));
        self.release(if named.is_ok() { replaced } else { bytes });
        named.map(|()| true).map_err(io_error("writing", &path))
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

impl Blobs for DiskBlobs {
    fn room_bytes(&self) -> u64 {
        self.quota_bytes.saturating_sub(self.used_bytes.load(Ordering::Relaxed))
    }

    fn disk_free_bytes(&self) -> Result<u64, BlobError> {
        let found = rustix::fs::statvfs(&self.root).map_err(io::Error::from);
        let found = found.map_err(io_error("asking for the free space of", &self.root))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn owner(&self) -> Result<Option<String>, BlobError> {
        let path = self.root.join(OWNER);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    fn set_owner(&self, journal: &str) -> Result<(), BlobError> {
        let path = self.root.join(OWNER);
        let written = skiff_base::files::replace(&path, format!("{journal}\n").as_bytes(), Access::Owner);
        written.map_err(io_error("writing", &path))
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        match self.read(digest) {
            Ok(_) => return Ok(digest),
            Err(BlobError::Corrupt { .. }) => self.remove(digest)?,
            Err(_) => {}
        }
        self.claim(bytes.len() as u64)?;
        let written =
            self.write_aside(|file| file.write_all(bytes)).and_then(|aside| self.rename_into_place(&aside, digest));
        if !matches!(written, Ok(true)) {
            self.release(bytes.len() as u64);
        }
        written.map(|_| digest)
    }

    fn contains(&self, digest: Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    fn size_bytes(&self, digest: Digest) -> Result<u64, BlobError> {
        let path = self.blob_path(digest);
        fs::metadata(&path).map(|meta| meta.len()).map_err(|error| self.absent_or(error, "looking at", digest, path))
    }

    fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).map_err(|error| self.absent_or(error, "reading", digest, path.clone()))?;
        if Digest::of(&bytes) == digest { Ok(bytes) } else { Err(BlobError::Corrupt { path }) }
    }

    fn chunk(&self, digest: Digest, index: u32) -> Result<Vec<u8>, BlobError> {
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

    fn remove(&self, digest: Digest) -> Result<(), BlobError> {
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

    fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
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

    fn held(&self, digest: Digest, total_bytes: u64) -> Result<Held, BlobError> {
        let mut held = Held::default();
        let folder = self.partial_path(digest);
        // Another thread may remove the folder at any moment, because the payload is whole or wrong.
        let found = match entries(&folder) {
            Err(BlobError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(held),
            found => found?,
        };
        for entry in found {
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

    fn put_chunk(&self, digest: Digest, total_bytes: u64, index: u32, bytes: &[u8]) -> Result<(), BlobError> {
        let expected = chunk_bytes(total_bytes, index);
        if bytes.len() != expected || bytes.is_empty() {
            return Err(BlobError::WrongChunk { digest, index, found: bytes.len(), expected });
        }
        let aside = self.aside_path();
        let written = fs::write(&aside, bytes).map_err(io_error("writing", &aside));
        let stored = written.and_then(|()| self.name_chunk(&aside, digest, index, bytes.len() as u64));
        if !matches!(stored, Ok(true)) {
            let _ = fs::remove_file(&aside);
        }
        stored.map(drop)
    }

    fn assemble(&self, digest: Digest, total_bytes: u64) -> Result<Assembly, BlobError> {
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
        if self.rename_into_place(&aside, digest)? {
            self.used_bytes.fetch_add(total_bytes, Ordering::Relaxed);
        }
        self.abandon(digest)?;
        Ok(Assembly::Whole)
    }

    fn abandon(&self, digest: Digest) -> Result<(), BlobError> {
        let (folder, aside) = (self.partial_path(digest), self.aside_path());
        let names = self.lock_names();
        match fs::rename(&folder, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            moved => moved.map_err(io_error("removing", &folder))?,
        }
        drop(names);
        // No other thread can reach it under this name.
        let bytes = folder_bytes(&aside)?;
        remove_folder(&aside)?;
        self.release(bytes);
        Ok(())
    }

    fn partials(&self) -> Result<Vec<Digest>, BlobError> {
        let names = entries(&self.root.join("partial"))?.into_iter().map(|entry| entry.file_name());
        let mut digests: Vec<_> = names.filter_map(|name| Digest::parse(name.to_str()?)).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    fn place(&self) -> PathBuf {
        self.root.clone()
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
#[path = "disk_tests.rs"]
mod tests;
