//! Reads damaged copies of real files, which must be accepted or refused without a panic. The fuzz targets in `models/fuzz` go
//! further.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use skiff_models::Pack;
use skiff_models::adapter::{Adapter, TENSORS_FILE};
use skiff_models::architectures::Model;
use skiff_models::onnx::{input_names, nodes};
use skiff_models::pack::{BuildOptions, build};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Returns a golden variant's folder.
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

/// Way to damage bytes.
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
}

/// Builds a pack of the golden BERT, with the adapter of a case if one is named.
fn pack(folder: &Path, adapter: Option<&str>) -> Pack {
    let out = folder.join("pack");
    // The number in the cases' adapters.
    let labels = (0..4).map(|label| label.to_string()).collect();
    let options = BuildOptions::new(&golden("bert/checkpoint"), &out, labels);
    build(&BuildOptions { adapter: adapter.map(golden), ..options }, &mut |_| {}).unwrap();
    Pack::open(&out).unwrap()
}

/// Passes `cases` damaged copies of `sound` to `read`, the same in every run. If a reader hangs, the test fails instead of
/// running forever.
fn each_damaged(sound: Vec<u8>, cases: u32, read: impl Fn(&[u8]) + Send + 'static) {
    const LONGEST: Duration = Duration::from_secs(120);
    let config =
        ProptestConfig { rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let (ended, end) = channel();
    let work = std::thread::spawn(move || {
        let damages = prop::collection::vec(damage(), 1..4);
        let result = TestRunner::new(config).run(&damages, |damages| {
            let mut bytes = sound.clone();
            for damage in damages {
                if !bytes.is_empty() {
                    damage.apply(&mut bytes);
                }
            }
            read(&bytes);
            Ok(())
        });
        result.unwrap();
        ended.send(()).unwrap();
    });
    match end.recv_timeout(LONGEST) {
        Err(RecvTimeoutError::Timeout) => panic!("{cases} cases took more than {LONGEST:?}"),
        // A panic is passed on.
        Ok(()) | Err(RecvTimeoutError::Disconnected) => work.join().unwrap(),
    }
}

#[test]
fn a_damaged_manifest_is_refused_or_is_a_pack_that_fits_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = pack(folder.path(), None).file("manifest.json");
    let out = folder.path().join("pack");
    each_damaged(fs::read(&manifest).unwrap(), 500, move |bytes| {
        fs::write(&manifest, bytes).unwrap();
        if let Ok(pack) = Pack::open(&out) {
            let _ = pack.initial_weights();
        }
    });
}

#[test]
fn damaged_weights_are_those_of_the_schema_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pack = pack(folder.path(), None);
    let sound = fs::read(pack.file("peft.safetensors")).unwrap();
    let schema = pack.schema().clone();
    assert!(schema.read(&sound).is_ok());
    each_damaged(sound, 2000, move |bytes| {
        let Ok(tensors) = schema.read(bytes) else { return };
        assert_eq!(tensors.len(), schema.tensors.len());
        for spec in &schema.tensors {
            assert_eq!(tensors[&spec.name].shape(), spec.shape);
            assert!(tensors[&spec.name].iter().all(|value| value.is_finite()), "{}", spec.name);
        }
    });
}

#[test]
fn weights_are_read_or_refused_by_a_damaged_schema() {
    let folder = tempfile::tempdir().unwrap();
    let pack = pack(folder.path(), None);
    let weights = fs::read(pack.file("peft.safetensors")).unwrap();
    each_damaged(serde_json::to_vec(pack.schema()).unwrap(), 2000, move |bytes| {
        if let Ok(schema) = serde_json::from_slice::<skiff_models::tensors::Schema>(bytes) {
            let _ = schema.read(&weights);
        }
    });
}

#[test]
fn a_damaged_adapters_values_fit_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (case, copied) = ("bert/sequence-lora-every/adapter", folder.path().join("adapter"));
    copy(&golden(case), &copied);
    let pack = pack(folder.path(), Some(case));
    let sound = fs::read(copied.join(TENSORS_FILE)).unwrap();
    let read = move |bytes: &[u8]| {
        fs::write(copied.join(TENSORS_FILE), bytes).unwrap();
        let Ok(mut adapter) = Adapter::open(&copied) else { return false };
        for spec in &pack.schema().tensors {
            match adapter.take(&pack.manifest().design.model, &spec.name, &spec.shape) {
                Ok(None) | Err(_) => return false,
                Ok(Some(values)) => {
                    assert_eq!(values.shape(), spec.shape);
                    assert!(values.iter().all(|value| value.is_finite()), "{}", spec.name);
                }
            }
        }
        adapter.finish().is_ok()
    };
    assert!(read(&sound));
    each_damaged(sound, 1000, move |bytes| {
        let _ = read(bytes);
    });
}

#[test]
fn a_damaged_models_nodes_and_inputs_are_listed_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pack = pack(folder.path(), None);
    let stages = pack.manifest().stages.blocks.iter().chain(&pack.manifest().fused.blocks);
    for graph in stages.flat_map(skiff_models::stage::StageSpec::graphs) {
        let sound = fs::read(pack.file(&graph.file)).unwrap();
        let inputs: Vec<String> = graph.inputs.iter().map(|port| port.name.clone()).collect();
        assert_eq!(input_names(&sound).unwrap(), inputs);
        assert!(!nodes(&sound).unwrap().is_empty());
        each_damaged(sound, 500, |bytes| {
            let (nodes, inputs) = (nodes(bytes), input_names(bytes));
            assert_eq!(nodes.is_ok(), inputs.is_ok());
            // Each takes at least two bytes, so the number of bytes read bounds the memory.
            assert!(nodes.unwrap_or_default().len() + inputs.unwrap_or_default().len() <= bytes.len());
        });
    }
}
