//! Reads any bytes as the settings of an adapter. They must be accepted or refused without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::adapter::{Adapter, CONFIG_FILE, TENSORS_FILE};

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join(CONFIG_FILE), bytes).expect("it can be written");
    // No tensors: two bytes of a header.
    let empty = [2u64.to_le_bytes().as_slice(), b"{}"].concat();
    std::fs::write(folder.path().join(TENSORS_FILE), empty).expect("it can be written");
    if let Ok(adapter) = Adapter::open(folder.path()) {
        assert!(!adapter.lora.targets.is_empty());
        let _ = adapter.lora.on("bert.encoder.layer.0.attention.self.query");
    }
});
