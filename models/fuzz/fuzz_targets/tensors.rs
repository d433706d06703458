//! Reads any bytes as a pack's frozen tensors, a checkpoint's tensors, and an index of shards. They must be accepted or refused
//! without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::checkpoint::Checkpoint;
use skiff_models::pack::check;

fuzz_target!(|bytes: &[u8]| {
    let _ = check(bytes);
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["model.safetensors.index.json", "model.safetensors"] {
        std::fs::write(folder.path().join(name), bytes).expect("it can be written");
        if let Ok(checkpoint) = Checkpoint::open(folder.path())
            && let Some((file, name)) = checkpoint.find("bert.a.weight", "bert.")
        {
            let shape = file.shape(name).expect("it was found").to_vec();
            let _ = file.read(name, &shape);
        }
    }
});
