//! Packs that were damaged, forged or made for another version: an error that names the file, never a panic.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_contract::{ColumnNames, Provider, Setup, Training};
use skiff_models::Pack;
use skiff_models::architectures::ConfigError;
use skiff_models::pack::{BuildError, BuildOptions, EndToken, PackError, build};
use skiff_models::peft::{Lora, Peft};
use skiff_models::task::Task;
use skiff_protocol::messages::Place;
use skiff_tests::packs::{self, Case};
use skiff_worker::inventory::look;
use std::fs;
use std::path::{Path, PathBuf};

fn pack() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    drop(Case::open("bert-odd/sequence-lora").pack(folder.path()));
    let path = folder.path().join("pack");
    (folder, path)
}

fn rewrite_manifest(pack: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = pack.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

#[test]
fn a_flipped_byte_in_any_file_is_refused_by_name() {
    let (_folder, pack) = pack();
    let files: Vec<PathBuf> = ["frozen.safetensors", "peft.safetensors", "tokenizer.json", "graphs/block.forward.onnx"]
        .map(|name| pack.join(name))
        .to_vec();
    for file in files {
        let sound = fs::read(&file).unwrap();
        let mut damaged = sound.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        fs::write(&file, damaged).unwrap();
        let error = Pack::open(&pack).and_then(|pack| pack.check_weights()).unwrap_err();
        assert!(matches!(&error, PackError::Damaged { path, .. } if *path == file), "{error}");
        fs::write(&file, sound).unwrap();
    }
    Pack::open(&pack).unwrap().check_weights().unwrap();
}

#[test]
fn every_cut_of_the_manifest_is_an_error() {
    let (_folder, pack) = pack();
    let path = pack.join("manifest.json");
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(97) {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Pack::open(&pack).unwrap_err();
        // The first cut leaves an empty file, which is a different error.
        assert!(matches!(error, PackError::Manifest { .. } | PackError::Read { .. }), "cut at {length}: {error}");
    }
}

#[test]
fn a_pack_of_another_format_is_called_that() {
    let (_folder, pack) = pack();
    rewrite_manifest(&pack, |manifest| manifest["format"] = 999.into());
    let error = Pack::open(&pack).unwrap_err();
    assert!(error.to_string().contains("pack format 999"), "{error}");
}

#[test]
fn a_manifest_cannot_reach_outside_its_folder() {
    for name in ["../secret", "/etc/hostname", "graphs/../../secret", ""] {
        let (_folder, pack) = pack();
        rewrite_manifest(&pack, |manifest| {
            manifest["files"][name] = serde_json::json!({ "bytes": 1, "blake3": "00" });
        });
        let error = Pack::open(&pack).unwrap_err();
        assert!(matches!(error, PackError::Foreign { .. }), "{name:?}: {error}");
    }
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    for (field, value) in [("hidden", u64::MAX >> 12), ("layers", 1 << 40), ("heads", 0)] {
        let (_folder, pack) = pack();
        rewrite_manifest(&pack, |manifest| manifest["design"]["model"][field] = value.into());
        let error = Pack::open(&pack).unwrap_err();
        assert!(matches!(error, PackError::Inconsistent { .. }), "{field}: {error}");
    }
}

#[test]
fn a_design_that_is_not_that_of_the_graphs_is_found() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 4] = [
        ("other values", |manifest| manifest["design"]["peft"]["alpha"] = 99.0.into()),
        ("trainable tensors", |manifest| manifest["design"]["peft"]["rank"] = 7.into()),
        ("trainable tensors", |manifest| manifest["design"]["peft"]["targets"] = serde_json::json!(["key"])),
        ("the ports of its graphs differ", |manifest| {
            manifest["stages"]["blocks"][0]["forward"]["outputs"][1]["name"] = "other".into()
        }),
    ];
    let (_folder, pack) = pack();
    assert!(Pack::open(&pack).unwrap().check_design().unwrap(), "made by this version");
    let sound = fs::read(pack.join("manifest.json")).unwrap();
    for (what, change) in changes {
        fs::write(pack.join("manifest.json"), &sound).unwrap();
        rewrite_manifest(&pack, change);
        let error = Pack::open(&pack).unwrap().check_design().unwrap_err();
        assert!(matches!(error, PackError::Design { .. }) && error.to_string().contains(what), "{what}: {error}");
    }
}

#[test]
fn a_pack_with_the_usual_settings_for_texts_is_one_that_older_builds_read() {
    let (_folder, pack) = pack();
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(pack.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(
        (manifest["format"].as_u64(), manifest.get("separator"), manifest.get("end_token")),
        (Some(3), None, None)
    );
    let opened = Pack::open(&pack).unwrap();
    assert_eq!((opened.manifest().separator.as_str(), &opened.manifest().end_token), (". ", &None));
    rewrite_manifest(&pack, |manifest| manifest["separator"] = " | ".into());
    assert_eq!(Pack::open(&pack).unwrap().manifest().separator, " | ");
    let other = tempfile::tempdir().unwrap();
    let usual = options(packs::golden("bert-odd/checkpoint"), other.path().join("pack"));
    let built = build(&BuildOptions { separator: " | ".to_owned(), ..usual }, &mut |_| {}).unwrap();
    assert_eq!((built.manifest.format, built.manifest.separator.as_str()), (4, " | "));
}

#[test]
fn an_end_token_belongs_to_a_language_model_that_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let end = |id| Some(EndToken { text: "</s>".to_owned(), id });
    let encoder = options(packs::golden("bert-odd/checkpoint"), folder.path().join("encoder"));
    let error = build(&BuildOptions { end_token: end(2), ..encoder }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("sequence-classification has no end token"), "{error}");
    let decoder = |id| {
        let decoder = options(packs::golden("llama/checkpoint"), folder.path().join("decoder"));
        BuildOptions { task: Task::CausalLm, labels: None, end_token: end(id), ..decoder }
    };
    let error = build(&decoder(59), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("the model knows 59 tokens"), "{error}");
    assert_eq!(build(&decoder(2), &mut |_| {}).unwrap().manifest.end_token, end(2));
}

#[test]
fn labels_that_are_no_names_are_refused() {
    for label in ["", "two\nlines", "World", &"x".repeat(300)] {
        let (_folder, pack) = pack();
        rewrite_manifest(&pack, |manifest| {
            let labels = manifest["labels"].as_array_mut().unwrap();
            labels[1] = "World".into();
            labels[0] = label.into();
        });
        let error = Pack::open(&pack).unwrap_err();
        assert!(matches!(&error, PackError::Inconsistent { what, .. } if what.contains("label")), "{label:?}: {error}");
    }
}

#[test]
fn a_port_that_fits_no_tensor_is_named() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 4] = [
        ("is missing", |port| port["binding"]["frozen"] = "nowhere".into()),
        ("has type", |port| port["dtype"] = "i8".into()),
        ("has shape", |port| port["shape"][0] = "5".into()),
        ("has shape", |port| port["shape"] = serde_json::json!([])),
    ];
    for (what, change) in changes {
        let (_folder, pack) = pack();
        rewrite_manifest(&pack, |manifest| {
            let inputs = manifest["stages"]["blocks"][0]["forward"]["inputs"].as_array_mut().unwrap();
            change(inputs.iter_mut().find(|port| port["binding"].get("frozen").is_some()).unwrap());
        });
        let error = Pack::open(&pack).unwrap_err();
        let PackError::Tensors { source, .. } = &error else { panic!("{what}: {error}") };
        assert!(source.to_string().contains(what), "{what}: {source}");
    }
}

#[test]
fn a_checkpoint_without_tokenizer_is_told_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    for file in ["model.safetensors", "config.json"] {
        fs::copy(packs::golden("bert-odd/checkpoint").join(file), checkpoint.join(file)).unwrap();
    }
    let error = build(&options(checkpoint, folder.path().join("out")), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("AutoTokenizer"), "{error}");
}

#[test]
fn a_pack_keeps_the_settings_of_its_tokenizer_and_the_length_that_they_allow() {
    let folder = tempfile::tempdir().unwrap();
    let (checkpoint, out) = (folder.path().join("checkpoint"), folder.path().join("out"));
    fs::create_dir(&checkpoint).unwrap();
    for file in ["tokenizer.json", "model.safetensors", "config.json"] {
        fs::copy(packs::golden("bert-odd/checkpoint").join(file), checkpoint.join(file)).unwrap();
    }
    let positions = 16;
    for (stated, expected) in [(7, 7), (900, positions)] {
        let settings = format!(r#"{{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": {stated}}}"#);
        fs::write(checkpoint.join("tokenizer_config.json"), &settings).unwrap();
        let built = build(&options(checkpoint.clone(), out.clone()), &mut |_| {}).unwrap();
        assert_eq!(built.manifest.layout.max_tokens, expected);
        assert_eq!(Pack::open(&out).unwrap().manifest().layout.max_tokens, expected);
        assert_eq!(fs::read_to_string(out.join("tokenizer_config.json")).unwrap(), settings);
    }
}

#[test]
fn a_task_that_a_model_does_not_have_is_told_which_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = options(packs::golden("bert-odd/checkpoint"), folder.path().join("out"));
    let error = build(&BuildOptions { task: Task::CausalLm, labels: None, ..encoder }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("sequence-classification, regression, token-classification"), "{error}");
    let decoder = options(packs::golden("llama/checkpoint"), folder.path().join("out"));
    let error = build(&BuildOptions { peft: Peft::BitFit, ..decoder }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("biases"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let (_folder, pack) = pack();
    fs::remove_file(pack.join("tokenizer.json")).unwrap();
    let error = Pack::open(&pack).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}

fn options(checkpoint: PathBuf, out: PathBuf) -> BuildOptions {
    BuildOptions::new(&checkpoint, &out, vec!["no".to_owned(), "yes".to_owned()])
}

#[test]
fn a_checkpoint_of_an_unknown_kind_is_told_which_are_known() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), r#"{"model_type": "t5"}"#).unwrap();
    let error = build(&options(folder.path().to_owned(), folder.path().join("out")), &mut |_| {}).unwrap_err();
    let BuildError::Config { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(source, ConfigError::Architecture { found } if found == "t5"), "{source}");
    assert!(source.to_string().contains("supported: bert, roberta, xlm-roberta, deberta-v2, llama"), "{source}");
}

#[test]
fn a_checkpoint_that_lacks_a_tensor_is_told_which_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    for file in ["tokenizer.json", "model.safetensors", "config.json"] {
        fs::copy(packs::golden("bert-odd/checkpoint").join(file), checkpoint.join(file)).unwrap();
    }
    let config = fs::read_to_string(checkpoint.join("config.json")).unwrap();
    fs::write(checkpoint.join("config.json"), config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"))
        .unwrap();
    let error = build(&options(checkpoint, folder.path().join("out")), &mut |_| {}).unwrap_err();
    let source = skiff_base::chain(&error);
    assert!(source.contains("\"bert.encoder.layer.2.") && source.contains("lacks 16 tensors"), "{source}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the checkpoint is there");
}

#[test]
fn a_folder_that_is_not_a_pack_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("precious"), "text").unwrap();
    let error = build(&options(packs::golden("bert-odd/checkpoint"), folder.path().to_owned()), &mut |_| {});
    assert!(matches!(error, Err(BuildError::Occupied { .. })));
    assert!(folder.path().join("precious").is_file());
}

#[test]
fn a_folder_with_another_programs_manifest_or_other_files_is_never_replaced() {
    let (_folder, pack) = pack();
    let again = || build(&options(packs::golden("bert-odd/checkpoint"), pack.clone()), &mut |_| {});
    fs::write(pack.join("thesis.txt"), "precious").unwrap();
    assert!(matches!(again(), Err(BuildError::Occupied { .. })));
    fs::remove_file(pack.join("thesis.txt")).unwrap();
    again().unwrap();
    fs::write(pack.join("manifest.json"), r#"{"name": "my web app"}"#).unwrap();
    assert!(matches!(again(), Err(BuildError::Occupied { .. })));
}

#[test]
fn a_tensor_of_another_number_of_dimensions_than_its_port_is_an_error() {
    for shape in [vec![], vec![36], vec![36, 36, 36]] {
        let (_folder, pack) = pack();
        rewrite_manifest(&pack, |manifest| manifest["schema"][0]["shape"] = shape.clone().into());
        let error = Pack::open(&pack).unwrap_err();
        assert!(matches!(&error, PackError::Tensors { .. }), "{shape:?}: {error}");
    }
}

#[test]
fn a_lora_that_cannot_be_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let sound = Lora::default();
    let unknown = Lora { targets: vec!["qurey".to_owned()], ..sound.clone() };
    for lora in [unknown, Lora { alpha: f32::NAN, ..sound.clone() }, Lora { rank: 0, ..sound }] {
        let checkpoint = packs::golden("bert-odd/checkpoint");
        let options = BuildOptions { peft: Peft::Lora(lora), ..options(checkpoint, folder.path().join("out")) };
        let error = build(&options, &mut |_| {}).unwrap_err();
        assert!(matches!(error, BuildError::Design { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_agent_reads_the_weights_when_somebody_wrote_to_them_and_only_then() {
    let (_folder, pack) = pack();
    let state = tempfile::tempdir().unwrap();
    let training = Training {
        pack: pack.clone(),
        train: None,
        test: None,
        columns: ColumnNames::default(),
        threads: 1,
        memory: None,
        provider: Provider::default(),
        onnxruntime: None,
        protected: Vec::new(),
        place: Place::default(),
    };
    let device = "oak".parse().unwrap();
    let setup = Setup { training, device, state: state.path().to_owned(), agent_bytes: 0 };
    let start = || look(&setup);
    start().unwrap();
    let note = state.path().join("weights-checked");
    let noted = fs::read(&note).unwrap();
    start().unwrap();
    assert_eq!(fs::read(&note).unwrap(), noted);

    let file = pack.join("frozen.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = start().unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(PackError::Damaged { path, .. }) if *path == file), "{error}");
}
