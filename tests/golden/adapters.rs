//! Adapters from PEFT and from a real fleet give the same scores as in PEFT, or are refused by name.
//! tests/golden/adapters.py and tests/golden/fleet.py write the numbers.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use serde::Deserialize;
use serde_json::Value;
use skiff_base::chain;
use skiff_models::Pack;
use skiff_models::pack::{About, BuildOptions, build, export_adapter, export_merged};
use skiff_models::task::Task;
use skiff_tests::compare::{CLOSE, Tensors, assert_close, read};
use skiff_tests::packs::{golden, made};
use skiff_tests::places;
use skiff_trainer::inputs::read_batch;
use skiff_trainer::{Batch, LayerMask, Trainer};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An adapter of the table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    variant: String,
    task: Task,
    labels: usize,
    /// A word of the error, if the adapter is refused.
    refused: Option<String>,
}

impl Row {
    fn options(&self, name: &str, out: &Path) -> BuildOptions {
        let labels = (self.labels > 0).then(|| (0..self.labels).map(|label| label.to_string()).collect());
        let checkpoint = golden(&self.variant).join("checkpoint");
        BuildOptions {
            task: self.task,
            labels,
            adapter: Some(golden("adapters").join(name)),
            ..BuildOptions::new(&checkpoint, out, Vec::new())
        }
    }
}

fn bytes(path: PathBuf) -> Vec<u8> {
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the scores of a pack with its first values, all layers active.
fn logits(pack: Pack, batch: &[u8]) -> Tensors {
    let sequences = read_batch(batch, &pack.manifest().layout).unwrap();
    let layers = pack.manifest().layers;
    let mut trainer = Trainer::open(&places::runtime(), Arc::new(pack)).unwrap();
    let batch = Batch::new(&sequences, trainer.form()).unwrap();
    let logits = trainer.logits(&batch, &LayerMask::all(layers)).unwrap();
    [("logits".to_owned(), logits.mapv(f64::from).into_dyn())].into()
}

#[test]
fn an_adapter_of_peft_gives_its_scores_or_is_refused_by_name() {
    let table: BTreeMap<String, Row> = serde_json::from_slice(&bytes(golden("adapters/table.json"))).unwrap();
    let expected = read(&bytes(golden("adapters/expected.safetensors")));
    assert!(table.len() > 30 && expected.len() > 20, "{} adapters, {} with scores", table.len(), expected.len());
    for (name, row) in &table {
        let folder = tempfile::tempdir().unwrap();
        let options = row.options(name, &folder.path().join("pack"));
        if let Some(word) = &row.refused {
            let error = build(&options, &mut |_| {}).expect_err(name);
            assert!(chain(&error).contains(word), "{name}: {}", chain(&error));
            continue;
        }
        let batch = bytes(golden("adapters").join(format!("batch.{}.safetensors", row.variant)));
        let wanted = [("logits".to_owned(), expected[name].clone())].into();
        let pack = made(&options);
        let out = folder.path().join("adapter");
        export_adapter(&pack, &pack.initial_weights().unwrap(), &About::default(), &out, &mut |_| {}).unwrap();
        assert_close(name, &logits(pack, &batch), &wanted, CLOSE);
        let again = BuildOptions { adapter: Some(out), ..row.options(name, &folder.path().join("again")) };
        assert_close(name, &logits(made(&again), &batch), &wanted, CLOSE);
    }
}

/// PEFT and transformers loaded these files from a fleet of real programs, and computed the scores.
#[test]
fn what_a_fleet_exported_gives_the_scores_of_peft_and_transformers() {
    let batch = bytes(golden("fleet/batch.safetensors"));
    let expected = read(&bytes(golden("fleet/expected.safetensors")));
    let labels = ["warm", "light", "sound"].map(str::to_owned).to_vec();
    for name in ["adapter", "own-oak"] {
        let adapter = golden("fleet").join(name);
        let folder = tempfile::tempdir().unwrap();
        let options = BuildOptions::new(&golden("fleet/checkpoint"), &folder.path().join("pack"), labels.clone());
        let options =
            BuildOptions { adapter: Some(adapter.clone()), base_model: Some("./checkpoint".into()), ..options };
        let pack = made(&options);
        let weights = pack.schema().read(&bytes(adapter.join("adapter_model.safetensors"))).unwrap();
        let (out, merged) = (folder.path().join("out"), folder.path().join("merged"));
        export_adapter(&pack, &weights, &About::default(), &out, &mut |_| {}).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            assert!(bytes(out.join(file)) == bytes(adapter.join(file)), "{name}/{file} is not what PEFT loaded");
        }
        export_merged(&pack, &weights, None, &About::default(), &merged, &mut |_| {}).unwrap();
        let wanted = [("logits".to_owned(), expected[name].clone())].into();
        assert_close(name, &logits(pack, &batch), &wanted, CLOSE);
        let plain = BuildOptions {
            checkpoint: merged,
            labels: None,
            ..BuildOptions::new(Path::new(""), &folder.path().join("plain"), Vec::new())
        };
        assert_close(name, &logits(made(&plain), &batch), &wanted, CLOSE);
    }
    let apart = [("logits".to_owned(), expected["merged"].clone())].into();
    let adapter = [("logits".to_owned(), expected["adapter"].clone())].into();
    assert_close("the merged checkpoint", &apart, &adapter, CLOSE);
    let config: Value = serde_json::from_slice(&bytes(golden("fleet/adapter/adapter_config.json"))).unwrap();
    assert_eq!(config["base_model_name_or_path"], "./checkpoint");
    let card = String::from_utf8(bytes(golden("fleet/adapter/README.md"))).unwrap();
    for fact in
        ["library_name: peft", "license: \"apache-2.0\"", "federated-learning", "| round | 3 of 3 |", "| devices | 2 |"]
    {
        assert!(card.contains(fact), "{fact} is missing: {card}");
    }
}
