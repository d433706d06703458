//! Cost of training, each line a process of its own on two threads: steps on three sizes of BERT, real text, and with `--xxl` a
//! large DeBERTa in little memory. If `--peers PYTHON` is given, PyTorch and PEFT take their turn between Skiff's lines. Tables on standard
//! output; with `--json FILE` the same for programs; `--quick` leaves all but `MiniLM` out, and most of the text; `--data FOLDER` takes
//! your texts in place of the generated ones.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may stop")]

mod limited;
mod peers;
mod process;
mod sizes;
mod texts;

use peers::Peers;
use skiff_models::pack::{BuildOptions, Storage};
use skiff_tests::{packs, results};
use std::path::{Path, PathBuf};

/// Number of threads of each program.
const THREADS: &str = "2";
/// Storage of Skiff's frozen matrices.
const STORED: [(&str, Storage); 2] = [("int8", Storage::Int8), ("f16", Storage::F16)];

fn main() {
    let flag = |name: &str| std::env::args().any(|argument| argument == name);
    let quick = flag("--quick");
    let peers = Peers::find();
    results::store("steps", sizes::measure(quick, peers.as_ref()).into());
    results::store("text", texts::measure(quick, peers.as_ref()).into());
    if flag("--xxl") {
        results::store("limited", limited::measure().into());
    }
}

/// A folder for packs, gone with the value. The `Makefile` removes those that an interrupted run leaves.
fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Makes a pack for classes with these names in `folder`.
fn pack(checkpoint: &Path, (name, frozen): (&str, Storage), labels: &[String], folder: &Path) -> PathBuf {
    let out = folder.join(name);
    drop(packs::made(&BuildOptions { frozen, ..BuildOptions::new(checkpoint, &out, labels.to_vec()) }));
    out
}
