//! Replaces files so that a crash leaves either the old contents or the complete new ones.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Users who may read a file that [`replace`] writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Only the owner (mode 0600).
    Owner,
    /// Everybody whom the process's umask allows.
    Shared,
}

/// Replaces the file at `path` as a whole, through `{path}.new` beside it. A reader finds either the old or the new bytes, even
/// after a crash. File and folder are flushed to the disk before it returns.
///
/// Two processes must not replace one file at the same time: hold a [`crate::lock::Lock`].
///
/// # Errors
/// Errors of the file system; then the old file is still there.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    // A leftover may have another mode, which `mode` below would not change.
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mode = if access == Access::Owner { 0o600 } else { 0o666 };
    let written = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    written().inspect_err(|_| drop(std::fs::remove_file(&aside)))?;
    sync_folder_of(path)
}

/// Flushes the folder that holds `path`, so that a rename in it survives a power cut.
///
/// # Errors
/// Errors of the file system.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Creates `folder` with mode 0700, and its parents, if it is missing. An existing folder keeps its mode. Returns true if only
/// the owner can read the folder.
///
/// # Errors
/// Errors of the file system.
pub fn make_private_folder(folder: &Path) -> io::Result<bool> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    Ok(std::fs::metadata(folder)?.permissions().mode() & 0o077 == 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("key");
        std::fs::write(folder.path().join("key.new"), "half a").unwrap();
        replace(&path, b"one", Access::Owner).unwrap();
        replace(&path, b"two", Access::Owner).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_no_other() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("occupied");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), "").unwrap();
        assert!(replace(&path, b"bytes", Access::Shared).is_err());
        assert!(path.join("inside").exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_folder_is_private_and_an_open_one_is_reported() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a/b");
        assert!(make_private_folder(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!make_private_folder(&path).unwrap());
    }
}
