//! A folder with any bytes for a manifest is never a pack: nothing in it has a sound digest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::Pack;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("manifest.json"), bytes).expect("it can be written");
    assert!(Pack::open(folder.path()).is_err());
});
