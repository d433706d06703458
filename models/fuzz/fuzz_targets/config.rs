//! Reads any `config.json`. It must be refused, or give a model whose sizes are within bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::architectures::Model;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = serde_json::from_slice(bytes) else { return };
    if let Ok(model) = Model::read(&config) {
        assert_eq!(model.problem(), None);
        for &task in model.tasks() {
            let _ = model.layout(task, 2);
        }
    }
});
