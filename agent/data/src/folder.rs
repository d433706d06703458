//! Finds the training and the test part of a data set in a folder.

use crate::error::DataError;
use std::path::{Path, PathBuf};

const TRAINING_NAMES: [&str; 2] = ["train", "kfold1_train"];
const TEST_NAMES: [&str; 5] = ["test", "dev", "validation", "valid", "kfold1_test"];
const EXTENSIONS: [&str; 3] = ["csv", "tsv", "jsonl"];
/// Extension that says little about the format. Files with it are used only if no file has another extension.
const LAST_EXTENSION: &str = "txt";

/// A data set in a folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataSet {
    /// The folder's name.
    pub name: String,
    /// The training part.
    pub train: PathBuf,
    /// The test part.
    pub test: PathBuf,
}

/// Finds the parts of the data set in `folder`: `train` and `test` (or `dev`, `validation`, `valid`), also `kfold1_train` and
/// `kfold1_test`, each as `.csv`, `.tsv` or `.jsonl`, or as `.txt` if no file has one of these extensions.
///
/// # Errors
/// [`DataError::Open`] if `folder` is missing, [`DataError::MissingPart`] with the expected names.
pub fn dataset(folder: &Path) -> Result<DataSet, DataError> {
    let open = |source| DataError::Open { path: folder.to_owned(), source };
    let absolute = folder.canonicalize().map_err(open)?;
    std::fs::read_dir(&absolute).map_err(open)?;
    let name = absolute.file_name().map_or_else(|| "data".to_owned(), |name| name.to_string_lossy().into_owned());
    Ok(DataSet { name, train: find(folder, "training", &TRAINING_NAMES)?, test: find(folder, "test", &TEST_NAMES)? })
}

fn find(folder: &Path, part: &'static str, names: &[&str]) -> Result<PathBuf, DataError> {
    let candidates = || {
        let usual = names.iter().flat_map(|name| EXTENSIONS.iter().map(move |ending| format!("{name}.{ending}")));
        usual.chain(names.iter().map(|name| format!("{name}.{LAST_EXTENSION}")))
    };
    candidates().map(|name| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| DataError::MissingPart {
        folder: folder.to_owned(),
        part,
        looked_for: candidates().collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        folder
    }

    #[test]
    fn the_parts_are_found_by_their_names() {
        for (names, train, test) in [
            (["train.csv", "test.csv", "classes.txt"], "train.csv", "test.csv"),
            (["kfold1_train.jsonl", "kfold1_test.jsonl", "x"], "kfold1_train.jsonl", "kfold1_test.jsonl"),
            (["train.tsv", "dev.tsv", "test.txt"], "train.tsv", "dev.tsv"),
            (["train.jsonl", "dev.jsonl", "test.jsonl"], "train.jsonl", "test.jsonl"),
            (["train.tsv", "test.txt", "README.txt"], "train.tsv", "test.txt"),
        ] {
            let folder = folder_with(&names);
            let set = dataset(folder.path()).unwrap();
            assert_eq!((set.train, set.test), (folder.path().join(train), folder.path().join(test)));
            assert_eq!(set.name, folder.path().file_name().unwrap().to_string_lossy());
        }
    }

    #[test]
    fn a_missing_part_is_named_with_what_was_looked_for() {
        let folder = folder_with(&["train.tsv", "classes.txt"]);
        let message = dataset(folder.path()).unwrap_err().to_string();
        assert!(message.contains("holds no test part") && message.contains("\"dev.tsv\""), "{message}");
    }

    #[test]
    fn what_is_not_a_folder_is_refused() {
        let folder = folder_with(&["train.csv"]);
        for path in [folder.path().join("train.csv"), folder.path().join("away")] {
            assert!(matches!(dataset(&path), Err(DataError::Open { .. })));
        }
    }
}
