//! Checks that an export leaves either its complete result under the target's name, or the earlier contents.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use safetensors::SafeTensors;
use serde_json::Value;
use skiff_base::chain;
use skiff_models::Pack;
use skiff_models::pack::{About, BuildOptions, ExportError, Figure, Storage, build, export_adapter, export_merged};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A copy of a golden checkpoint, and its pack.
struct Fixture {
    folder: tempfile::TempDir,
    checkpoint: PathBuf,
    pack: Pack,
}

impl Fixture {
    fn new() -> Self {
        Self::of("bert")
    }

    fn of(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("checkpoint");
        fs::create_dir(&checkpoint).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(model).join("checkpoint");
            fs::copy(golden.join(name), checkpoint.join(name)).unwrap();
        }
        let out = folder.path().join("pack");
        let options = BuildOptions::new(&checkpoint, &out, vec!["no".to_owned(), "yes".to_owned()]);
        build(&BuildOptions { frozen: Storage::F16, ..options }, &mut |_| {}).unwrap();
        let pack = Pack::open(&out).unwrap();
        Self { folder, checkpoint, pack }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn merge(&self) -> Result<(), ExportError> {
        let weights = self.pack.initial_weights().unwrap();
        export_merged(&self.pack, &weights, Some(&self.checkpoint), &About::default(), &self.out(), &mut |_| {})
            .map(drop)
    }

    fn adapt(&self) -> Result<(), ExportError> {
        let weights = self.pack.initial_weights().unwrap();
        export_adapter(&self.pack, &weights, &About::default(), &self.out(), &mut |_| {}).map(drop)
    }

    /// Returns the names in the folder besides the checkpoint and the pack.
    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name != "checkpoint" && name != "pack");
        names.sort();
        names
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default()))
        .collect();
    files.sort();
    files
}

#[test]
fn an_interrupted_export_leaves_nothing_or_the_earlier_one_under_the_targets_name() {
    let fixture = Fixture::new();
    let weights = fixture.pack.initial_weights().unwrap();
    // A panic at a step of the progress stands for a kill at this step: nothing is cleaned up.
    let stop_at = |step: usize| {
        let mut steps = 0;
        let mut progress = |_: skiff_models::pack::Progress<'_>| {
            assert_ne!(steps, step, "killed");
            steps += 1;
        };
        let work =
            || export_merged(&fixture.pack, &weights, None, &About::default(), &fixture.out(), &mut progress).map(drop);
        catch_unwind(AssertUnwindSafe(work))
    };
    for step in 0.. {
        match stop_at(step) {
            Err(_) => assert!(!fixture.out().exists(), "step {step}"),
            Ok(done) => {
                done.unwrap();
                assert!(step > 20, "only {step} steps");
                break;
            }
        }
    }
    assert_eq!(fixture.left(), ["out"], "what was partial is used again or removed");
    let earlier = files(&fixture.out());
    assert!(stop_at(7).is_err());
    assert_eq!(files(&fixture.out()), earlier);
}

#[test]
fn an_export_that_fails_leaves_nothing_behind() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.pack.tokenizer_path()).unwrap();
    let error = fixture.merge().unwrap_err();
    assert!(matches!(&error, ExportError::Read { path, .. } if *path == fixture.pack.tokenizer_path()), "{error}");
    assert!(fixture.left().is_empty(), "{:?}", fixture.left());
}

#[test]
fn an_earlier_export_is_replaced_whatever_its_kind() {
    let fixture = Fixture::new();
    fixture.adapt().unwrap();
    let adapter = files(&fixture.out());
    fixture.merge().unwrap();
    assert!(fixture.out().join("model.safetensors").is_file() && !fixture.out().join("adapter_config.json").exists());
    fixture.adapt().unwrap();
    assert_eq!(files(&fixture.out()), adapter, "the same weights give the same bytes");
    assert_eq!(fixture.left(), ["out"]);
}

#[test]
fn an_empty_folder_is_filled() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.out()).unwrap();
    fixture.adapt().unwrap();
    assert_eq!(fixture.left(), ["out"]);
}

#[test]
fn anything_else_at_the_target_stays_as_it_is() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 7] = [
        ("a file more", |out| fs::write(out.join("notes.txt"), "mine").unwrap()),
        ("a folder more", |out| fs::create_dir(out.join("runs")).unwrap()),
        ("a file less", |out| fs::remove_file(out.join("adapter_config.json")).unwrap()),
        ("another size", |out| fs::write(out.join("adapter_config.json"), "{}").unwrap()),
        ("no record", |out| fs::remove_file(out.join("skiff-export.json")).unwrap()),
        ("a record that is none", |out| fs::write(out.join("skiff-export.json"), "{}").unwrap()),
        ("a link", |out| {
            let elsewhere = out.with_file_name("elsewhere");
            fs::rename(out, &elsewhere).unwrap();
            std::os::unix::fs::symlink(elsewhere, out).unwrap();
        }),
    ];
    for (what, change) in changes {
        let fixture = Fixture::new();
        fixture.adapt().unwrap();
        change(&fixture.out());
        let (before, left) = (files(&fixture.out()), fixture.left());
        for again in [fixture.adapt(), fixture.merge()] {
            assert!(matches!(again, Err(ExportError::Occupied { .. })), "{what}: {again:?}");
        }
        assert_eq!(files(&fixture.out()), before, "{what}");
        assert_eq!(fixture.left(), left, "{what}");
    }
    let fixture = Fixture::new();
    fs::write(fixture.out(), "a file").unwrap();
    assert!(matches!(fixture.adapt(), Err(ExportError::Occupied { .. })));
    let weights = fixture.pack.initial_weights().unwrap();
    for name in [".", "..", "/"] {
        let done = export_adapter(&fixture.pack, &weights, &About::default(), Path::new(name), &mut |_| {});
        assert!(matches!(done, Err(ExportError::Occupied { .. })), "{name}");
    }
}

#[test]
fn the_record_names_every_file_and_counts_what_is_in_them() {
    let fixture = Fixture::new();
    fixture.merge().unwrap();
    let text = fs::read(fixture.out().join("skiff-export.json")).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    let sizes: Vec<(String, usize)> =
        files(&fixture.out()).into_iter().map(|(name, bytes)| (name, bytes.len())).collect();
    let listed = record["files"].as_object().unwrap();
    assert_eq!(listed.len() + 1, sizes.len());
    for (name, size) in sizes.iter().filter(|(name, _)| name != "skiff-export.json") {
        assert_eq!(listed[name].as_u64(), Some(*size as u64), "{name}");
    }
    let bytes = fs::read(fixture.out().join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let parameters: usize = tensors.tensors().iter().map(|(_, view)| view.data().len() / 4).sum();
    assert_eq!(record["tensors"].as_u64(), Some(tensors.len() as u64));
    assert_eq!(record["parameters"].as_u64(), Some(parameters as u64));
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1;
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn a_weight_that_the_checkpoint_lacks_or_has_otherwise_is_named() {
    let fixture = Fixture::new();
    let path = fixture.checkpoint.join("model.safetensors");
    let sound = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&sound).unwrap();
    let name = tensors.names().into_iter().find(|name| name.ends_with("layer.1.output.dense.weight")).unwrap();
    let others = tensors.tensors().into_iter().filter(|(other, _)| other != name);
    safetensors::serialize_to_file(others, None, &path).unwrap();
    let error = fixture.merge().unwrap_err();
    assert!(chain(&error).contains("layer.1.output.dense.weight\" is missing"), "{}", chain(&error));
    assert!(fixture.left().is_empty());

    let mut all = tensors.tensors();
    let reshaped = all.iter_mut().find(|(other, _)| other == name).unwrap();
    let flat = vec![reshaped.1.shape().iter().product()];
    reshaped.1 = safetensors::tensor::TensorView::new(reshaped.1.dtype(), flat, reshaped.1.data()).unwrap();
    safetensors::serialize_to_file(all, None, &path).unwrap();
    let error = fixture.merge().unwrap_err();
    assert!(chain(&error).contains("layer.1.output.dense.weight\" has shape"), "{}", chain(&error));
    assert!(fixture.left().is_empty());
}

#[test]
fn weights_that_are_not_the_packs_are_named() {
    let fixture = Fixture::new();
    let weights = fixture.pack.initial_weights().unwrap();
    let name = weights.keys().find(|name| name.contains("lora_B")).unwrap().clone();
    let (mut fewer, mut more, mut other) = (weights.clone(), weights.clone(), weights.clone());
    fewer.remove(&name);
    more.insert("z".to_owned(), weights[&name].clone());
    other.insert(name.clone(), weights[&name].t().to_owned());
    for (weights, named) in [(fewer, name.as_str()), (more, "z"), (other, name.as_str())] {
        let error =
            export_merged(&fixture.pack, &weights, None, &About::default(), &fixture.out(), &mut |_| {}).unwrap_err();
        assert!(chain(&error).contains(&format!("{named:?}")), "{}", chain(&error));
        let error =
            export_adapter(&fixture.pack, &weights, &About::default(), &fixture.out(), &mut |_| {}).unwrap_err();
        assert!(chain(&error).contains(&format!("{named:?}")), "{}", chain(&error));
    }
    assert!(fixture.left().is_empty());
}

#[test]
fn the_tokenizers_other_files_come_along_where_they_are_files_of_bounded_size() {
    let fixture = Fixture::new();
    let beside = |name: &str| fixture.checkpoint.join(name);
    fs::write(beside("tokenizer_config.json"), r#"{"do_lower_case":true}"#).unwrap();
    fs::write(beside("vocab.txt"), "[PAD]\n[UNK]\n").unwrap();
    fs::write(beside("optimizer.pt"), "not a tokenizer's").unwrap();
    fs::create_dir(beside("vocab.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", beside("merges.txt")).unwrap();
    fixture.merge().unwrap();
    let names: Vec<String> = files(&fixture.out()).into_iter().map(|(name, _)| name).collect();
    let expected = [
        "README.md",
        "config.json",
        "model.safetensors",
        "skiff-export.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ];
    assert_eq!(names, expected);
    assert_eq!(fs::read(fixture.out().join("vocab.txt")).unwrap(), b"[PAD]\n[UNK]\n");

    fs::File::create(beside("spm.model")).unwrap().set_len((64 << 20) + 1).unwrap();
    let error = fixture.merge().unwrap_err();
    assert!(matches!(&error, ExportError::Read { path, .. } if *path == beside("spm.model")), "{error}");
    assert_eq!(fixture.left(), ["out"]);
}

#[test]
fn a_merged_checkpoint_without_relative_positions_asks_for_no_norm_of_them() {
    let fixture = Fixture::of("deberta-v2-absolute");
    fixture.merge().unwrap();
    let config: Value = serde_json::from_slice(&fs::read(fixture.out().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["norm_rel_ebd"], "none");
    let bytes = fs::read(fixture.out().join("model.safetensors")).unwrap();
    let written = SafeTensors::deserialize(&bytes).unwrap();
    assert!(written.names().iter().all(|name| !name.contains("encoder.LayerNorm")));
}

#[test]
fn a_merged_checkpoint_is_not_called_quantised() {
    let fixture = Fixture::new();
    // In the state that the build left.
    let path = fixture.pack.file("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = serde_json::json!({ "quant_method": "bitsandbytes", "load_in_8bit": true });
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    fixture.merge().unwrap();
    let config: Value = serde_json::from_slice(&fs::read(fixture.out().join("config.json")).unwrap()).unwrap();
    assert!(config.get("quantization_config").is_none() && config.get("hidden_size").is_some());
}

fn text(fixture: &Fixture, file: &str) -> String {
    fs::read_to_string(fixture.out().join(file)).unwrap()
}

#[test]
fn an_adapter_names_the_packed_model_and_never_that_ones_parent() {
    let fixture = Fixture::new();
    let path = fixture.checkpoint.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["_name_or_path"] = "somebody/parent".into();
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let out = fixture.folder.path().join("pack");
    let options = BuildOptions::new(&fixture.checkpoint, &out, vec!["no".to_owned(), "yes".to_owned()]);
    let base = |options: &BuildOptions, about: &About| {
        build(options, &mut |_| {}).unwrap();
        let pack = Pack::open(&out).unwrap();
        export_adapter(&pack, &pack.initial_weights().unwrap(), about, &fixture.out(), &mut |_| {}).unwrap();
        let config: Value = serde_json::from_str(&text(&fixture, "adapter_config.json")).unwrap();
        config["base_model_name_or_path"].as_str().unwrap().to_owned()
    };
    assert_eq!(base(&options, &About::default()), fixture.checkpoint.to_str().unwrap());
    let named = BuildOptions { base_model: Some("somebody/child".to_owned()), ..options };
    assert_eq!(base(&named, &About::default()), "somebody/child");
    let other = About { base_model: Some("elsewhere/child".to_owned()), ..About::default() };
    assert_eq!(base(&named, &other), "elsewhere/child");
    assert!(text(&fixture, "README.md").contains("base_model: \"elsewhere/child\"\nbase_model_relation: adapter\n"));
    let broken = BuildOptions { base_model: Some("a\nlicense: mit".to_owned()), ..named };
    assert!(build(&broken, &mut |_| {}).unwrap_err().to_string().contains("--base-model"));
}

#[test]
fn a_model_card_tells_what_is_known_and_leaves_out_what_is_not() {
    let fixture = Fixture::new();
    fixture.adapt().unwrap();
    let card = text(&fixture, "README.md");
    let header = card.split("---\n").nth(1).unwrap();
    assert_eq!(
        header,
        "library_name: peft\npipeline_tag: text-classification\ntags:\n- skiff\n- lora\n- transformers\n"
    );
    for known in
        ["0. `no`\n1. `yes`\n", "num_labels=2", "title. description", "rank 8", "float16", env!("CARGO_PKG_VERSION")]
    {
        assert!(card.contains(known), "{known} is missing: {card}");
    }

    fs::write(fixture.checkpoint.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    let (pack, labels) = (fixture.folder.path().join("pack"), vec!["a`|<b>".to_owned(), "---".to_owned()]);
    build(&BuildOptions::new(&fixture.checkpoint, &pack, labels), &mut |_| {}).unwrap();
    let pack = Pack::open(&pack).unwrap();
    let about = About {
        is_federated: true,
        training: vec![("round", "3 of 9".to_owned())],
        data: vec![("devices", "4".to_owned())],
        results: vec![Figure { name: "macro F1", metric: "f1", value: "0.5000".to_owned() }],
        ..About::default()
    };
    let weights = pack.initial_weights().unwrap();
    export_merged(&pack, &weights, None, &about, &fixture.out(), &mut |_| {}).unwrap();
    let card = text(&fixture, "README.md");
    for known in [
        "library_name: transformers\nlicense: \"mit\"\n",
        "- federated-learning\n",
        "metrics:\n- f1\n---\n",
        "0. ``a`|<b>``\n1. `---`\n",
        "| round | 3 of 9 |",
        "| devices | 4 |",
        "| macro F1 | 0.5000 |",
    ] {
        assert!(card.contains(known), "{known} is missing: {card}");
    }
}
