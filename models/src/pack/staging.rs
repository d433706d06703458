//! Writes a folder that appears complete or not at all.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use skiff_base::files::sync_folder_of;
use skiff_base::lock::{Lock, LockError};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder `NAME.partial` beside a new folder `NAME`, until `NAME` is complete.
///
/// It is locked during the writing, so that two processes never write to the same folder. The next process overwrites the
/// remains of a killed one.
#[derive(Debug)]
pub(super) struct Staging {
    out: PathBuf,
    path: PathBuf,
    _lock: Lock,
    done: bool,
}

impl Staging {
    /// Locks and empties the folder that [`Staging::commit`] turns into `out`.
    pub(super) fn begin(out: &Path) -> io::Result<Self> {
        let mut name = out.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        name.push(".partial");
        let path = out.with_file_name(name);
        let lock = lock(&path)?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
        Ok(Self { out: out.to_owned(), path, _lock: lock, done: false })
    }

    /// Returns the folder to write to.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the folder to its final place and flushes it to the disk. An older folder there is swapped out in one step and then
    /// removed, so that a reader finds either the old or the new folder.
    pub(super) fn commit(mut self) -> io::Result<()> {
        sync(&self.path)?;
        if self.out.exists() {
            match renameat_with(CWD, &self.path, CWD, &self.out, RenameFlags::EXCHANGE) {
                Ok(()) => fs::remove_dir_all(&self.path)?,
                // Not every file system can swap two names.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    fs::remove_dir_all(&self.out)?;
                    fs::rename(&self.path, &self.out)?;
                }
                Err(error) => return Err(error.into()),
            }
        } else {
            fs::rename(&self.path, &self.out)?;
        }
        self.done = true;
        sync_folder_of(&self.out)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Creates the folder, or takes over one that no process writes to.
fn lock(path: &Path) -> io::Result<Lock> {
    loop {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let lock = Lock::folder(path).map_err(|error| match error {
            LockError::InUse { .. } => io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it"),
            LockError::Io { source, .. } => source,
        })?;
        // Another process may have moved the folder into its place meanwhile.
        let found = fs::symlink_metadata(path);
        if found.is_ok_and(|found| lock.metadata().is_ok_and(|own| own.ino() == found.ino())) {
            return Ok(lock);
        }
    }
}

/// Flushes every file and folder below, so that a folder that exists after a power cut is complete.
fn sync(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_appears_when_it_is_done_and_takes_the_place_of_the_one_there() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        for text in ["one", "two"] {
            let staging = Staging::begin(&out).unwrap();
            fs::write(staging.path().join("file"), text).unwrap();
            staging.commit().unwrap();
            assert_eq!(fs::read_to_string(out.join("file")).unwrap(), text);
            assert_eq!(names(folder.path()), ["out"]);
        }
    }

    #[test]
    fn one_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::begin(&folder.path().join("out")).unwrap();
        fs::write(staging.path().join("file"), "half").unwrap();
        drop(staging);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_a_killed_process_left_is_written_over_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        fs::create_dir_all(folder.path().join("out.partial/graphs")).unwrap();
        fs::write(folder.path().join("out.partial/graphs/old"), "left").unwrap();
        let staging = Staging::begin(&out).unwrap();
        assert!(names(staging.path()).is_empty());
        assert_eq!(Staging::begin(&out).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        staging.commit().unwrap();
        assert_eq!(names(folder.path()), ["out"]);
    }
}
