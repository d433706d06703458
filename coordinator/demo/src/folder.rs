//! The folder of a demo: the pack, a folder for each agent, the coordinator's state, the log.

use anyhow::{Context, bail};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The folder of a demo. Only its owner can read it, because it holds passwords and keys. Dropping the value removes the folder,
/// unless the user wants to keep it.
pub(super) enum RunFolder {
    Passing(TempDir),
    Kept(PathBuf),
}

impl RunFolder {
    /// Makes the folder `keep`, or a temporary one if that is `None`.
    pub(super) fn make(keep: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = keep else {
            let made = tempfile::Builder::new().prefix("skiff-demo-").tempdir();
            return made.map(Self::Passing).with_context(|| {
                format!(
                    "making a folder in {}; set TMPDIR to a folder that you can write to",
                    std::env::temp_dir().display()
                )
            });
        };
        if path.exists() {
            bail!("{} exists already; --keep takes the name of a new folder", path.display());
        }
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            path.canonicalize()
        };
        make().map(Self::Kept).with_context(|| format!("making the folder {}", path.display()))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Passing(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }

    /// Returns the folder of agent `name`.
    pub(super) fn agent(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_passing_folder_goes_and_a_kept_one_stays() {
        let passing = RunFolder::make(None).unwrap();
        let path = passing.path().to_owned();
        std::fs::write(path.join("file"), "").unwrap();
        drop(passing);
        assert!(!path.exists());

        let outer = tempfile::tempdir().unwrap();
        let kept = outer.path().join("a/b");
        drop(RunFolder::make(Some(&kept)).unwrap());
        assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_is_there_is_never_touched() {
        let there = tempfile::tempdir().unwrap();
        let refused = RunFolder::make(Some(there.path())).err().unwrap().to_string();
        assert!(refused.contains("--keep takes the name of a new folder"), "{refused}");
    }
}
