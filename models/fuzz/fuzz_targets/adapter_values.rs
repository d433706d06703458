//! Reads any bytes as the values of an adapter. They must be accepted or refused without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::adapter::{Adapter, CONFIG_FILE, TENSORS_FILE};
use skiff_models::architectures::Model;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const NAMES: [&str; 2] = ["base_model.model.bert.a.lora_A.weight", "base_model.model.bert.a.lora_B.weight"];

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let config = golden().join("config.json");
    let config = std::fs::read(config).expect("the golden model is there");
    Model::read(&serde_json::from_slice(&config).expect("it is JSON")).expect("it is a model")
});

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert/checkpoint")
}

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = br#"{"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":["a"]}"#;
    std::fs::write(folder.path().join(CONFIG_FILE), settings).expect("it can be written");
    std::fs::write(folder.path().join(TENSORS_FILE), bytes).expect("it can be written");
    let Ok(mut adapter) = Adapter::open(folder.path()) else { return };
    for (name, shape) in NAMES.into_iter().zip([[1, 2], [2, 1]]) {
        if let Ok(Some(values)) = adapter.take(&MODEL, name, &shape) {
            assert_eq!(values.shape(), shape);
            assert!(values.iter().all(|value| value.is_finite()));
        }
    }
    let _ = adapter.finish();
});
