//! Packs of the benchmark, and the settings that all its programs share.

use skiff_models::pack::{BuildOptions, Storage};
use std::path::{Path, PathBuf};

/// Number of threads of each program.
pub(crate) const THREADS: &str = "2";
/// Storage of Skiff's frozen matrices.
pub(crate) const STORED: [(&str, Storage); 2] = [("int8", Storage::Int8), ("f16", Storage::F16)];

/// A folder for packs, gone with the value. The `Makefile` removes the packs of an interrupted run.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Makes a pack for classes with these names in `folder`.
pub(crate) fn pack(checkpoint: &Path, (name, frozen): (&str, Storage), labels: &[String], folder: &Path) -> PathBuf {
    let out = folder.join(name);
    drop(skiff_tests::packs::made(&BuildOptions { frozen, ..BuildOptions::new(checkpoint, &out, labels.to_vec()) }));
    out
}
