//! Tokenizers of the common families, with files of settings, compared with the tokens of transformers.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use serde::Deserialize;
use skiff_models::tokenizer::{ResolvedTokenizer, SIDE_FILES, read};
use skiff_tests::packs;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::{Tokenizer, TruncationParams};

/// Contents of `expected.json`.
#[derive(Deserialize)]
struct Expected {
    tokenizer_class: String,
    max_tokens: Option<usize>,
    cases: Vec<Case>,
}

/// A text or a pair, whole or cut to a number of tokens, with its tokens and their segments.
#[derive(Deserialize)]
struct Case {
    text: String,
    pair: Option<String>,
    most: Option<usize>,
    ids: Vec<u32>,
    segments: Vec<u32>,
}

#[test]
fn every_family_has_the_tokens_of_transformers() {
    let families = families();
    assert!(families.len() >= 20, "{} families", families.len());
    for (family, folder) in families {
        let expected = expected(&folder);
        let resolved = read(&folder).unwrap_or_else(|error| panic!("{family}: {error}"));
        assert_eq!(resolved.class, expected.tokenizer_class, "{family}");
        assert_eq!(resolved.max_tokens, expected.max_tokens, "{family}");
        let tokenizer = Tokenizer::from_bytes(&resolved.json).unwrap();
        for case in &expected.cases {
            let (ids, segments) = encode(&tokenizer, case);
            let shown = format!("{family}: {:?} and {:?}, at most {:?}", case.text, case.pair, case.most);
            assert_eq!(ids, case.ids, "{shown}");
            assert_eq!(segments, case.segments, "{shown}");
        }
    }
}

#[test]
fn without_its_settings_most_families_have_other_tokens() {
    let disagrees = |folder: &Path| {
        let alone = read(folder).unwrap().alone?;
        let alone = Tokenizer::from_bytes(&alone).unwrap();
        Some(
            expected(folder).cases.iter().any(|case| encode(&alone, case) != (case.ids.clone(), case.segments.clone())),
        )
    };
    let disagreeing = families().values().filter(|folder| disagrees(folder) == Some(true)).count();
    assert!(disagreeing >= 15, "only {disagreeing} families show that their settings count");
}

/// An export holds the pack's `tokenizer.json` and the settings beside it, and must load like the checkpoint.
#[test]
fn settings_applied_twice_change_nothing_more() {
    for (family, folder) in families() {
        let first = read(&folder).unwrap();
        let export = tempfile::tempdir().unwrap();
        std::fs::copy(folder.join("config.json"), export.path().join("config.json")).unwrap();
        std::fs::write(export.path().join("tokenizer.json"), &first.json).unwrap();
        for (name, bytes) in &first.side_files {
            std::fs::write(export.path().join(name), bytes).unwrap();
        }
        let ResolvedTokenizer { json, changes, .. } = read(export.path()).unwrap();
        assert!(changes.is_empty() && json == first.json, "{family}: {changes:?}");
        assert!(first.side_files.iter().all(|(name, _)| SIDE_FILES.contains(name)), "{family}");
    }
}

fn families() -> BTreeMap<String, PathBuf> {
    let folders = std::fs::read_dir(packs::golden("tokenizers")).unwrap().map(|entry| entry.unwrap().path());
    folders.map(|folder| (folder.file_name().unwrap().to_string_lossy().into_owned(), folder)).collect()
}

fn expected(folder: &Path) -> Expected {
    serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

/// Encodes as the agent does: the order sets the length, and the tokenizer sets the side.
fn encode(tokenizer: &Tokenizer, case: &Case) -> (Vec<u32>, Vec<u32>) {
    let mut tokenizer = tokenizer.clone();
    let direction = tokenizer.get_truncation().map_or_else(Default::default, |own| own.direction);
    let cut = case.most.map(|max_length| TruncationParams { max_length, direction, ..TruncationParams::default() });
    tokenizer.with_padding(None).with_truncation(cut).unwrap();
    let encoding = match &case.pair {
        Some(pair) => tokenizer.encode_fast((case.text.as_str(), pair.as_str()), true),
        None => tokenizer.encode_fast(case.text.as_str(), true),
    };
    let encoding = encoding.unwrap();
    (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec())
}
