//! Tuned heads: their rows follow the labels, and a language model's own table is used as in transformers. The expected scores
//! are PyTorch's scores for the cases of these merged checkpoints.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use ndarray::{ArrayD, Axis};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use skiff_base::chain;
use skiff_models::Pack;
use skiff_models::pack::{About, BuildOptions, Built, HeadRows, Matching, Tie, build, export_merged};
use skiff_models::peft::Peft;
use skiff_tests::compare::{CLOSE, Tensors, assert_close, read};
use skiff_tests::packs::Case;
use skiff_tests::places;
use skiff_trainer::inputs::read_batch;
use skiff_trainer::{Batch, LayerMask, Trainer};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The merged checkpoint of a golden case, which a test may change before it builds a pack from it.
struct Tuned {
    case: Case,
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(name: &str) -> Self {
        let (case, folder) = (Case::open(name), tempfile::tempdir().unwrap());
        let pack = case.pack(folder.path());
        let weights = pack.schema().read(&case.read("weights.safetensors")).unwrap();
        export_merged(&pack, &weights, None, &About::default(), &folder.path().join("merged"), &mut |_| {}).unwrap();
        Self { case, folder }
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.path().join("merged")
    }

    fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.checkpoint().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    fn change_tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let path = self.checkpoint().join("model.safetensors");
        let mut tensors = read(&fs::read(&path).unwrap());
        change(&mut tensors);
        let bytes = |tensor: &ArrayD<f64>| tensor.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
        let all: Vec<(&String, Vec<usize>, Vec<u8>)> =
            tensors.iter().map(|(name, tensor)| (name, tensor.shape().to_vec(), bytes(tensor))).collect();
        let views =
            all.iter().map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }

    fn options(&self, labels: Option<Vec<String>>) -> BuildOptions {
        BuildOptions {
            checkpoint: self.checkpoint(),
            labels,
            peft: Peft::default(),
            adapter: None,
            ..self.case.options(&self.folder.path().join("again"))
        }
    }

    fn build(&self, labels: Option<Vec<String>>) -> Built {
        build(&self.options(labels), &mut |_| {}).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    fn refusal(&self, options: &BuildOptions) -> String {
        chain(&build(options, &mut |_| {}).unwrap_err()).clone()
    }

    /// Returns the scores of the pack that was built last.
    fn scores(&self) -> Tensors {
        scores(&self.folder.path().join("again"), &self.case)
    }

    /// Returns PyTorch's scores.
    fn expected(&self) -> ArrayD<f64> {
        read(&self.case.read("expected.safetensors")).remove("all/logits").unwrap()
    }
}

fn scores(pack: &Path, case: &Case) -> Tensors {
    let pack = Pack::open(pack).unwrap();
    let sequences = read_batch(&case.read("batch.safetensors"), &pack.manifest().layout).unwrap();
    let layers = pack.manifest().layers;
    let mut trainer = Trainer::open(&places::runtime(), Arc::new(pack)).unwrap();
    let batch = Batch::new(&sequences, trainer.form()).unwrap();
    logits(trainer.logits(&batch, &LayerMask::all(layers)).unwrap().mapv(f64::from).into_dyn())
}

fn logits(values: ArrayD<f64>) -> Tensors {
    [("logits".to_owned(), values)].into()
}

/// One for each layout of a head: one layer after the pooler, one after the first token, two layers, one for tokens, and one
/// without a bias.
const HEADS: [&str; 6] = [
    "bert/sequence-lora",
    "roberta/sequence-lora",
    "roberta/token-lora",
    "deberta-v3/sequence-lora",
    "mistral/sequence-lora",
    "qwen2/token-lora",
];

fn weather(count: usize) -> Vec<String> {
    ["sun", "rain", "snow", "fog", "wind", "hail", "storm"][..count].iter().map(|&name| name.to_owned()).collect()
}

fn name_classes(config: &mut Value, names: &[String]) {
    let by_number = names.iter().enumerate().map(|(row, name)| (row.to_string(), json!(name)));
    config["id2label"] = Value::Object(by_number.collect());
    let by_name = names.iter().enumerate().map(|(row, name)| (name.clone(), json!(row)));
    config["label2id"] = Value::Object(by_name.collect());
}

#[test]
fn the_rows_of_a_tuned_head_follow_their_labels() {
    for name in HEADS {
        let tuned = Tuned::new(name);
        let expected = tuned.expected();
        let count = expected.shape()[1];
        let names = weather(count);
        tuned.change_config(|config| name_classes(config, &names));
        let order: Vec<usize> = (1..count).chain([0]).collect();
        let asked = order.iter().map(|&row| names[row].clone()).collect();
        let classes = tuned.build(Some(asked)).classes.unwrap();
        assert_eq!(classes.rows, HeadRows::Kept { order: order.clone(), by: Matching::Names }, "{name}");
        assert_close(name, &tuned.scores(), &logits(expected.select(Axis(1), &order)), CLOSE);
    }
}

#[test]
fn placeholders_leave_the_rows_in_their_order_and_other_names_need_a_new_head() {
    let tuned = Tuned::new("bert/sequence-lora");
    let expected = tuned.expected();
    let count = expected.shape()[1];
    let names = weather(count);
    tuned.change_config(|config| {
        config
            .as_object_mut()
            .unwrap()
            .retain(|key, _| !["id2label", "label2id", "num_labels"].contains(&key.as_str()));
    });
    assert_eq!(tuned.build(None).manifest.labels, (0..count).map(|row| format!("LABEL_{row}")).collect::<Vec<_>>());
    tuned.build(Some(names.clone()));
    assert_close("without names", &tuned.scores(), &logits(expected), CLOSE);

    tuned.change_config(|config| name_classes(config, &names));
    let one_more = Some([names, vec!["tide".to_owned()]].concat());
    let message = tuned.refusal(&tuned.options(one_more.clone()));
    assert!(message.contains("--new-head") && message.contains("classifier.weight"), "{message}");
    let built = build(&BuildOptions { new_head: true, ..tuned.options(one_more) }, &mut |_| {}).unwrap();
    assert_eq!(built.drawn, ["classifier.bias", "classifier.weight"]);
    let left_out: Vec<&str> = built.ignored.iter().map(|ignored| ignored.name.as_str()).collect();
    assert_eq!(left_out, ["classifier.bias", "classifier.weight"]);
}

#[test]
fn a_table_that_differs_from_the_tied_one_is_used_as_in_transformers() {
    for name in ["llama/causal-lora-every", "mistral/causal-lora", "qwen3/causal-lora"] {
        let tuned = Tuned::new(name);
        tuned.change_config(|config| config["tie_word_embeddings"] = json!(true));
        let built = tuned.build(None);
        assert_eq!((built.tie, built.ignored.len()), (Tie::Differs, 0), "{name}");
        assert_close(name, &tuned.scores(), &logits(tuned.expected()), CLOSE);
        let (again, out) = (Pack::open(&tuned.folder.path().join("again")).unwrap(), tuned.folder.path().join("out"));
        export_merged(
            &again,
            &again.initial_weights().unwrap(),
            Some(&tuned.checkpoint()),
            &About::default(),
            &out,
            &mut |_| {},
        )
        .unwrap();
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], json!(false), "{name}");
    }
}

#[test]
fn one_of_two_equal_tables_is_left_out_and_either_serves_as_both() {
    const WORDS: &str = "model.embed_tokens.weight";
    const NEXT: &str = "lm_head.weight";
    for name in ["llama-plain/causal-lora", "qwen2/causal-lora"] {
        let tuned = Tuned::new(name);
        tuned.change_tensors(|tensors| drop(tensors.insert(NEXT.to_owned(), tensors[WORDS].clone())));
        let built = tuned.build(None);
        assert_eq!((built.tie, built.ignored[0].name.as_str()), (Tie::AsConfigured, NEXT), "{name}");
        assert_close(name, &tuned.scores(), &logits(tuned.expected()), CLOSE);

        tuned.change_tensors(|tensors| drop(tensors.remove(WORDS)));
        assert_eq!(tuned.build(None).tie, Tie::HeadAlone, "{name}");
        assert_close(name, &tuned.scores(), &logits(tuned.expected()), CLOSE);
    }
}

#[test]
fn every_tensor_is_read_or_left_out_for_a_reason_and_missing_ones_are_named() {
    let tuned = Tuned::new("bert/token-lora");
    let one = || ArrayD::zeros(vec![2, 3]);
    for (name, reason) in [
        ("cls.predictions.transform.dense.weight", "masked words"),
        ("bert.pooler.dense.weight", "pooler"),
        ("qa_outputs.weight", "another task"),
        ("bert.embeddings.position_ids", "not trained"),
    ] {
        tuned.change_tensors(|tensors| drop(tensors.insert(name.to_owned(), one())));
        let ignored = tuned.build(None).ignored;
        let found = ignored.iter().find(|ignored| ignored.name == name).unwrap();
        assert!(found.reason.contains(reason), "{found:?}");
    }
    tuned.change_tensors(|tensors| drop(tensors.insert("bert.encoder.layer.9.gate.weight".to_owned(), one())));
    let message = tuned.refusal(&tuned.options(None));
    assert!(message.contains("1 trained tensors") && message.contains("bert.encoder.layer.9.gate.weight"), "{message}");
    tuned.change_tensors(|tensors| {
        tensors.remove("bert.encoder.layer.9.gate.weight");
        tensors.retain(|name, _| !name.starts_with("bert.encoder.layer.1.output"));
    });
    let message = tuned.refusal(&tuned.options(None));
    assert!(message.contains("lacks 4 tensors") && message.contains("layer.1.output.LayerNorm.bias"), "{message}");

    let untied = Tuned::new("qwen3/causal-lora");
    untied.change_tensors(|tensors| drop(tensors.remove("lm_head.weight")));
    let message = untied.refusal(&untied.options(None));
    assert!(message.contains("\"lm_head.weight\"") && message.contains("tie_word_embeddings"), "{message}");
}
