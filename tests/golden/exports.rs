//! Exports can be imported again: adapters in Hugging Face PEFT's format, and merged checkpoints. `make golden` loads the same
//! folders with PEFT and transformers.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use serde_json::Value;
use skiff_models::Pack;
use skiff_models::pack::{About, BuildOptions, ExportError, Storage, export_adapter, export_merged};
use skiff_models::peft::{Lora, Peft};
use skiff_tests::compare::{CLOSE, Tensors, assert_close, read};
use skiff_tests::packs::{Case, made};
use skiff_tests::places;
use skiff_trainer::inputs::read_batch;
use skiff_trainer::{Batch, LayerMask, Trainer};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The scores of a pack with its first values, all layers active.
fn logits(pack: Pack, case: &Case) -> Tensors {
    let sequences = read_batch(&case.read("batch.safetensors"), &pack.manifest().layout).unwrap();
    let layers = pack.manifest().layers;
    let mut trainer = Trainer::open(&places::runtime(), Arc::new(pack)).unwrap();
    let batch = Batch::new(&sequences, trainer.form()).unwrap();
    let logits = trainer.logits(&batch, &LayerMask::all(layers)).unwrap();
    [("logits".to_owned(), logits.mapv(f64::from).into_dyn())].into()
}

/// PyTorch's.
fn expected(case: &Case) -> Tensors {
    let logits = read(&case.read("expected.safetensors")).remove("all/logits").unwrap();
    [("logits".to_owned(), logits)].into()
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn an_adapter_that_peft_wrote_gives_its_scores_and_goes_out_as_it_came_in() {
    for name in [
        "bert/sequence-lora",
        "bert/sequence-lora-every",
        "bert/sequence-lora-ffa",
        "roberta/token-lora",
        "deberta-v3/regression-lora",
        "deberta-v2-plain/sequence-lora-position",
        "llama/causal-lora-every",
        "qwen2/sequence-lora",
    ] {
        let case = Case::open(name);
        let folder = tempfile::tempdir().unwrap();
        let adapter = case.folder.join("adapter");
        let adapter_options = |out: &str, adapter: &Path| BuildOptions {
            adapter: Some(adapter.to_owned()),
            // The pack keeps only whether A is frozen. All other settings come from the adapter.
            peft: Peft::Lora(Lora { freeze_a: name.ends_with("-ffa"), ..Lora::default() }),
            ..case.options(&folder.path().join(out))
        };
        let pack = made(&adapter_options("pack", &adapter));
        let out = folder.path().join("adapter");
        export_adapter(&pack, &pack.initial_weights().unwrap(), &About::default(), &out, &mut |_| {}).unwrap();
        let tensors = |folder: &Path| read(&fs::read(folder.join("adapter_model.safetensors")).unwrap());
        assert_eq!(tensors(&out), tensors(&adapter), "{name}: not a bit is lost");
        let (found, wrote) = (config(&out), config(&adapter));
        for key in ["peft_type", "task_type", "r", "rank_pattern", "use_rslora", "bias"] {
            assert_eq!(found[key], wrote[key], "{name}: {key}");
        }
        assert_eq!(found["lora_alpha"].as_f64(), wrote["lora_alpha"].as_f64(), "{name}: lora_alpha");
        let set = |value: &Value| -> BTreeSet<String> {
            value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(set(&found["target_modules"]), set(&wrote["target_modules"]), "{name}: targets");
        // The adapter of a pack is an adapter for the next one.
        let again = made(&adapter_options("again", &out));
        assert_close(name, &logits(again, &case), &expected(&case), CLOSE);
    }
}

#[test]
fn a_merged_checkpoint_has_the_tuned_models_scores() {
    for name in [
        "bert/regression-bitfit",
        "bert/sequence-lora-every",
        "bert/sequence-lora-ffa",
        "bert-odd/sequence-lora",
        "roberta/sequence-lora",
        "xlm-roberta/sequence-lora",
        "deberta-v2-conv/sequence-lora",
        "deberta-v3/token-bitfit",
        "llama/causal-lora-every",
        "llama-plain/causal-lora",
        "mistral/sequence-lora",
        "qwen3/causal-lora",
    ] {
        let case = Case::open(name);
        let folder = tempfile::tempdir().unwrap();
        let pack = case.pack(folder.path());
        let weights = pack.schema().read(&case.read("weights.safetensors")).unwrap();
        let merged = folder.path().join("merged");
        export_merged(&pack, &weights, None, &About::default(), &merged, &mut |_| {}).unwrap();
        // A new LoRA changes nothing. Labels and head are in the checkpoint.
        let options = BuildOptions {
            checkpoint: merged,
            labels: None,
            peft: Peft::default(),
            adapter: None,
            ..case.options(&folder.path().join("again"))
        };
        let again = made(&options);
        assert_eq!(again.manifest().labels, pack.manifest().labels, "{name}");
        assert_close(name, &logits(again, &case), &expected(&case), CLOSE);
    }
}

#[test]
fn a_pack_of_rounded_weights_merges_with_the_original_ones() {
    let case = Case::open("bert/sequence-lora");
    let folder = tempfile::tempdir().unwrap();
    let int8 = BuildOptions { frozen: Storage::Int8, ..case.options(&folder.path().join("int8")) };
    let (exact, rounded) = (case.pack(folder.path()), made(&int8));
    let weights = exact.schema().read(&case.read("weights.safetensors")).unwrap();
    let merged = |pack: &Pack, original: Option<&Path>, name: &str| {
        let out = folder.path().join(name);
        export_merged(pack, &weights, original, &About::default(), &out, &mut |_| {}).unwrap();
        read(&fs::read(out.join("model.safetensors")).unwrap())
    };
    let expected = merged(&exact, None, "exact");
    assert_eq!(merged(&rounded, Some(&int8.checkpoint), "original"), expected);
    assert_ne!(merged(&rounded, None, "rounded"), expected);
}

#[test]
fn what_has_no_such_form_is_refused() {
    let case = Case::open("bert/sequence-houlsby");
    let folder = tempfile::tempdir().unwrap();
    let pack = case.pack(folder.path());
    let weights = pack.initial_weights().unwrap();
    let out = folder.path().join("out");
    assert!(matches!(
        export_merged(&pack, &weights, None, &About::default(), &out, &mut |_| {}),
        Err(ExportError::Houlsby)
    ));
    assert!(matches!(
        export_adapter(&pack, &weights, &About::default(), &out, &mut |_| {}),
        Err(ExportError::Adapter(_))
    ));
    assert!(!out.exists());
    assert!(matches!(
        export_merged(&pack, &weights, None, &About::default(), folder.path(), &mut |_| {}),
        Err(ExportError::Occupied { .. })
    ));
}
