//! Reads any bytes as a manifest, alone and beside the files of a pack; they must be refused. Also changes a few bytes of a sound
//! manifest, which must be refused or fit the files of the pack.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_models::Pack;
use skiff_models::pack::{BuildOptions, build};
use std::path::Path;
use std::sync::LazyLock;

struct Sound {
    folder: tempfile::TempDir,
    manifest: Vec<u8>,
}

static SOUND: LazyLock<Sound> = LazyLock::new(|| {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert/checkpoint");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("pack");
    let options = BuildOptions::new(&golden, &out, vec!["no".to_owned(), "yes".to_owned()]);
    build(&options, &mut |_| {}).expect("the golden model makes a pack");
    let manifest = std::fs::read(out.join("manifest.json")).expect("it has a manifest");
    Sound { folder, manifest }
});

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("manifest.json"), bytes).expect("it can be written");
    assert!(Pack::open(folder.path()).is_err(), "nothing in it has a sound digest");

    let Some((place, text)) = bytes.split_first_chunk::<2>() else { return };
    let mut manifest = SOUND.manifest.clone();
    let begin = usize::from(u16::from_le_bytes(*place)) % manifest.len();
    let end = (begin + text.len()).min(manifest.len());
    manifest.splice(begin..end, text.iter().copied());
    let pack = SOUND.folder.path().join("pack");
    for text in [bytes, &manifest] {
        std::fs::write(pack.join("manifest.json"), text).expect("it can be written");
        if let Ok(pack) = Pack::open(&pack) {
            let _ = pack.initial_weights();
        }
    }
});
