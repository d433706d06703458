//! Folders and files that tests need: the source tree, the cache, the built programs.

use skiff_trainer::{Provider, Runtime};
use std::path::{Path, PathBuf};

/// Returns the folder of the source tree.
#[must_use]
pub fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the source tree")
}

/// Returns the folder of the MiniLM checkpoint in the cache.
///
/// # Panics
/// If it was not fetched; the message says how to.
#[must_use]
pub fn minilm() -> PathBuf {
    let folder = tree().join(".cache/minilm");
    assert!(folder.join("model.safetensors").is_file(), "{} is not there: run `cross/fetch`", folder.display());
    folder
}

/// Loads ONNX Runtime from the cache, or from `SKIFF_ONNXRUNTIME`, with one thread. If `SKIFF_PROVIDER` is set, it computes on
/// that processor, which is then compared with the golden numbers.
///
/// # Panics
/// If the library is missing; the message says how to get it.
#[must_use]
pub fn runtime() -> Runtime {
    let cached = tree().join(".cache/onnxruntime/libonnxruntime.so");
    let named = std::env::var_os("SKIFF_ONNXRUNTIME").is_none().then_some(cached.as_path());
    let provider = std::env::var("SKIFF_PROVIDER").map_or(Provider::Cpu, |name| name.parse().expect("SKIFF_PROVIDER"));
    let runtime = Runtime::load(named, 1).unwrap_or_else(|error| panic!("{error}: run `cross/fetch`"));
    runtime.on(provider).expect("SKIFF_PROVIDER starts")
}

/// Returns the path of a program of this build, beside the test's own folder.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let path = test.ancestors().nth(2).expect("tests run from target/PROFILE/deps").join(name);
    assert!(path.is_file(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// Which build of the programs a test starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Build {
    /// The programs of this tree.
    Present,
    /// The programs of the last commit that spoke only protocol version 2.
    Protocol2,
}

impl Build {
    /// Returns the path of a program of this build.
    ///
    /// # Panics
    /// If it was not built; the message says how to build it.
    #[must_use]
    pub fn program(self, name: &str) -> PathBuf {
        match self {
            Self::Present => binary(name),
            Self::Protocol2 => {
                let path = tree().join(".cache/previous/protocol-2").join(name);
                assert!(path.is_file(), "{} is not built: run `cross/previous`", path.display());
                path
            }
        }
    }
}
