//! Packs for tests.

use crate::places;
use serde::Deserialize;
use skiff_base::chain;
use skiff_models::Pack;
use skiff_models::pack::{BuildOptions, SEPARATOR, Storage, build};
use skiff_models::peft::Peft;
use skiff_models::task::Task;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A golden case: a model of a variant, tuned for a task in one way.
#[derive(Debug)]
pub struct Case {
    /// Its folder.
    pub folder: PathBuf,
    /// Its description.
    pub settings: Settings,
}

/// The `case.json` of a golden case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The task.
    pub task: Task,
    /// Number of classes, or of numbers to predict; 0 for a language model.
    pub labels: usize,
    /// Trainable part.
    pub peft: Peft,
    /// Storage to which the frozen matrices of the expected numbers were rounded.
    pub frozen: Storage,
    /// The layers that run, by the name of the mask.
    pub masks: BTreeMap<String, Vec<usize>>,
}

impl Case {
    /// Opens the case in `tests/golden/{name}`, for instance `bert/sequence-lora`.
    ///
    /// # Panics
    /// If it does not exist.
    #[must_use]
    pub fn open(name: &str) -> Self {
        let folder = golden(name);
        let text = std::fs::read(folder.join("case.json")).unwrap_or_else(|error| panic!("{name}: {error}"));
        let settings = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { folder, settings }
    }

    /// Opens every case of a variant, by name.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn all_of(variant: &str) -> BTreeMap<String, Self> {
        let entries = std::fs::read_dir(golden(variant)).unwrap_or_else(|error| panic!("{variant}: {error}"));
        let folders = entries.map(|entry| entry.expect("a readable folder").path());
        let names = folders.filter(|folder| folder.join("case.json").is_file()).map(|folder| {
            let name = folder.file_name().expect("a named folder").to_string_lossy().into_owned();
            format!("{variant}/{name}")
        });
        let cases: BTreeMap<String, Self> = names.map(|name| (name.clone(), Self::open(&name))).collect();
        assert!(!cases.is_empty(), "{variant} has no cases");
        cases
    }

    /// Returns the options that make its pack at `out`. A case with a frozen `A` has its values in an adapter.
    #[must_use]
    pub fn options(&self, out: &Path) -> BuildOptions {
        let Settings { task, labels, peft, frozen, .. } = &self.settings;
        let checkpoint = self.folder.parent().expect("a case is in its variant").join("checkpoint");
        let names = (*task != Task::CausalLm).then(|| (0..*labels).map(|label| label.to_string()).collect());
        let frozen_a = matches!(peft, Peft::Lora(lora) if lora.freeze_a);
        BuildOptions {
            checkpoint,
            out: out.to_owned(),
            task: *task,
            labels: names,
            peft: peft.clone(),
            frozen: *frozen,
            adapter: frozen_a.then(|| self.folder.join("adapter")),
            seed: 0,
            base_model: None,
            new_head: false,
            separator: SEPARATOR.to_owned(),
            end_token: None,
        }
    }

    /// Makes its pack in `folder`.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn pack(&self, folder: &Path) -> Pack {
        made(&self.options(&folder.join("pack")))
    }

    /// Reads one of its files.
    ///
    /// # Panics
    /// If it does not exist.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.folder.join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// Returns a path below the golden numbers.
#[must_use]
pub fn golden(name: &str) -> PathBuf {
    places::tree().join("tests/golden").join(name)
}

/// Makes the MiniLM pack with `labels` in `folder`.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn minilm(labels: &[&str], folder: &Path) -> Pack {
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    made(&BuildOptions::new(&places::minilm(), &folder.join("minilm"), labels))
}

/// Makes a pack and opens it.
///
/// # Panics
/// If that fails.
#[must_use]
pub fn made(options: &BuildOptions) -> Pack {
    build(options, &mut |_| {}).unwrap_or_else(|error| panic!("{}: {}", options.checkpoint.display(), chain(&error)));
    Pack::open(&options.out).unwrap_or_else(|error| panic!("{}: {}", options.out.display(), chain(&error)))
}
