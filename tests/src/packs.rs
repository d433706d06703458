//! Packs for tests.

use crate::places;
use skiff_models::Pack;
use skiff_models::pack::{BuildOptions, build};
use skiff_models::peft::Lora;
use std::path::{Path, PathBuf};

/// The golden case `name`: its folder.
#[must_use]
pub fn golden_case(name: &str) -> PathBuf {
    places::tree().join("tests/golden/bert").join(name)
}

/// Makes the pack of a golden case in `folder`.
///
/// # Panics
/// Where that fails.
#[must_use]
pub fn golden(name: &str, folder: &Path) -> Pack {
    let case = golden_case(name);
    let text = std::fs::read_to_string(case.join("case.json")).expect("a golden case has a case.json");
    let sizes: serde_json::Value = serde_json::from_str(&text).expect("case.json is JSON");
    let number = |key: &str| sizes[key].as_u64().unwrap_or_else(|| panic!("case.json has {key}"));
    let options = BuildOptions {
        checkpoint: case.join("checkpoint"),
        out: folder.join(name),
        labels: (0..number("classes")).map(|class| class.to_string()).collect(),
        lora: Lora { rank: number("rank") as usize, alpha: number("alpha") as f32, ..Lora::default() },
        seed: 0,
    };
    build(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{name}: {error}"));
    Pack::open(&options.out).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Makes the MiniLM pack with `labels` in `folder`.
///
/// # Panics
/// Where that fails.
#[must_use]
pub fn minilm(labels: &[&str], folder: &Path) -> Pack {
    let options = BuildOptions {
        checkpoint: places::minilm(),
        out: folder.join("minilm"),
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        lora: Lora::default(),
        seed: 0,
    };
    build(&options, &mut |_| {}).unwrap_or_else(|error| panic!("MiniLM: {error}"));
    Pack::open(&options.out).unwrap_or_else(|error| panic!("MiniLM: {error}"))
}
