//! Damaged copies of real files: read or refused, never a panic. The fuzz targets in `models/fuzz` go further.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use proptest::prelude::*;
use skiff_models::Pack;
use skiff_models::adapter::Adapter;
use skiff_models::architectures::Model;
use skiff_models::pack::{BuildOptions, build};
use std::fs;
use std::path::{Path, PathBuf};

/// A golden variant's folder.
fn golden(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(variant)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// How bytes are damaged.
#[derive(Clone, Debug)]
enum Damage {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Swap(prop::sample::Index, String),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Flip(at, bits) => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Self::Swap(at, text) => {
                let at = at.index(bytes.len());
                let end = (at + text.len()).min(bytes.len());
                bytes.splice(at..end, text.bytes());
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    const WORDS: [&str; 10] = ["-1", "null", "1e99", "99999999999999999999", "\"\"", "{}", "[", "0", "\u{0}", "true"];
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Damage::Cut),
        (any::<prop::sample::Index>(), 1..=255u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        (any::<prop::sample::Index>(), prop::sample::select(&WORDS[..]))
            .prop_map(|(at, text)| Damage::Swap(at, text.to_owned())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_damaged_config_is_read_within_bounds_or_refused(
        variant in prop::sample::select(&["bert", "roberta", "deberta-v2-conv", "llama", "llama-yarn", "qwen2", "mistral"][..]),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let mut bytes = fs::read(golden(variant).join("checkpoint/config.json")).unwrap();
        for damage in &damages {
            if !bytes.is_empty() {
                damage.apply(&mut bytes);
            }
        }
        if let Ok(config) = serde_json::from_slice(&bytes)
            && let Ok(model) = Model::read(&config)
        {
            prop_assert_eq!(model.problem(), None);
        }
    }

    #[test]
    fn damaged_adapter_settings_are_read_or_refused(damages in prop::collection::vec(damage(), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        copy(&golden("bert/sequence-lora-every/adapter"), folder.path());
        let path = folder.path().join("adapter_config.json");
        let mut bytes = fs::read(&path).unwrap();
        for damage in &damages {
            if !bytes.is_empty() {
                damage.apply(&mut bytes);
            }
        }
        fs::write(&path, bytes).unwrap();
        let _ = Adapter::open(folder.path());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_pack_of_a_damaged_checkpoint_is_made_whole_or_not_at_all(
        file in prop::sample::select(&["config.json", "model.safetensors"][..]),
        damage in damage(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("checkpoint");
        copy(&golden("bert/checkpoint"), &checkpoint);
        let mut bytes = fs::read(checkpoint.join(file)).unwrap();
        damage.apply(&mut bytes);
        fs::write(checkpoint.join(file), bytes).unwrap();
        let out = folder.path().join("pack");
        let options = BuildOptions::new(&checkpoint, &out, vec!["no".to_owned(), "yes".to_owned()]);
        match build(&options, &mut |_| {}) {
            Ok(_) => drop(Pack::open(&out).unwrap()),
            Err(_) => prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the checkpoint is there"),
        }
    }

    #[test]
    fn a_damaged_manifest_is_refused_or_is_a_pack_that_fits_its_files(damage in damage()) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pack");
        let options = BuildOptions::new(&golden("bert/checkpoint"), &out, vec!["no".to_owned(), "yes".to_owned()]);
        build(&options, &mut |_| {}).unwrap();
        let path = out.join("manifest.json");
        let mut bytes = fs::read(&path).unwrap();
        damage.apply(&mut bytes);
        fs::write(&path, bytes).unwrap();
        if let Ok(pack) = Pack::open(&out) {
            let _ = pack.initial_weights();
        }
    }
}
