//! Locks for one process at a time. The system releases a lock when its holder ends, even after a crash.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A lock that is held until it is dropped or its process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Reason why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it.
    InUse {
        /// The locked file or folder.
        path: PathBuf,
    },
    /// The file cannot be opened or locked.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl std::fmt::Display for LockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse { path } => write!(f, "{} is in use by another process", path.display()),
            Self::Io { path, .. } => write!(f, "locking {}", path.display()),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::InUse { .. } => None,
            Self::Io { source, .. } => Some(source),
        }
    }
}

impl Lock {
    /// Locks the file at `path`. Creates it if it is missing, and never removes it.
    ///
    /// # Errors
    /// [`LockError::InUse`] if another process holds it; [`LockError::Io`].
    pub fn file(path: &Path) -> Result<Self, LockError> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        Self::take(file, path)
    }

    /// Locks an existing folder itself. The lock stays with the folder when it is renamed.
    ///
    /// # Errors
    /// The errors of [`Lock::file`].
    pub fn folder(path: &Path) -> Result<Self, LockError> {
        Self::take(File::open(path), path)
    }

    /// Returns the metadata of the locked file or folder, even if it was renamed.
    ///
    /// # Errors
    /// The system's error.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    fn take(opened: io::Result<File>, path: &Path) -> Result<Self, LockError> {
        let path = path.to_owned();
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(LockError::Io { path, source }),
        };
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn a_lock_is_held_once_and_free_again_when_it_is_dropped() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::file(&path).unwrap();
        assert!(matches!(Lock::file(&path), Err(LockError::InUse { .. })));
        drop(held);
        Lock::file(&path).unwrap();
    }

    #[test]
    fn a_locked_folder_may_be_renamed() {
        let folder = TempDir::new().unwrap();
        let (before, after) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::create_dir(&before).unwrap();
        let held = Lock::folder(&before).unwrap();
        std::fs::rename(&before, &after).unwrap();
        assert!(matches!(Lock::folder(&after), Err(LockError::InUse { .. })));
        assert!(matches!(Lock::folder(&before), Err(LockError::Io { .. })));
        assert!(held.metadata().unwrap().is_dir());
    }
}
