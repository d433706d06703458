#![allow(clippy::unwrap_used, reason = "a failing test may panic")]
use super::*;
use serde_json::from_slice;
use std::fs;

/// Returns a `tokenizer.json` with words as tokens, which changes no letter.
fn words() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null, "decoder": null,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "good": 5, "Good": 6},
        },
    })
}

/// Reads a folder with these files; `tokenizer.json` is [`words`].
fn folder(model: &str, files: &[(&str, Value)]) -> Result<ResolvedTokenizer, TokenizerError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), json!({"model_type": model, "type_vocab_size": 2}).to_string())
        .unwrap();
    fs::write(folder.path().join("tokenizer.json"), words().to_string()).unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    read(folder.path())
}

fn with(settings: Value) -> Result<ResolvedTokenizer, TokenizerError> {
    folder("bert", &[("tokenizer_config.json", settings)])
}

#[test]
fn the_class_is_the_stated_one_or_the_one_of_the_models_type() {
    let class = |model: &str, class: &str| {
        folder(model, &[("tokenizer_config.json", json!({"tokenizer_class": class}))]).unwrap().class
    };
    assert_eq!(folder("bert", &[]).unwrap().class, "BertTokenizer");
    assert_eq!(folder("mistral", &[]).unwrap().class, "TokenizersBackend");
    assert_eq!(class("bert", "MPNetTokenizerFast"), "MPNetTokenizer");
    assert_eq!(class("bert", "PreTrainedTokenizerFast"), "TokenizersBackend");
    assert_eq!(class("bert", "TokenizerOfNobody"), "TokenizersBackend");
    assert_eq!(class("mistral", "LlamaTokenizer"), "TokenizersBackend");
    assert_eq!(class("qwen2", "PreTrainedTokenizerFast"), "Qwen2Tokenizer");
}

#[test]
fn a_file_that_the_settings_do_not_change_stays_byte_by_byte() {
    let resolved = with(json!({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["token_type_ids"]}));
    let resolved = resolved.unwrap();
    assert!(resolved.changes.is_empty());
    assert_eq!(resolved.json, words().to_string().into_bytes());
}

#[test]
fn changes_name_the_setting_behind_them() {
    let resolved =
        with(json!({"tokenizer_class": "BertTokenizer", "do_lower_case": false, "truncation_side": "left"})).unwrap();
    let told: Vec<String> =
        resolved.changes.iter().map(|change| format!("{} {}", change.part, change.because)).collect();
    assert!(told.contains(&"normalizer do_lower_case false".to_owned()), "{told:?}");
    assert!(told.contains(&"truncation truncation_side \"left\"".to_owned()), "{told:?}");
    let made: Value = from_slice(&resolved.json).unwrap();
    assert_eq!(made["normalizer"]["lowercase"], false);
    assert_eq!(made["truncation"]["direction"], "Left");
}

#[test]
fn new_tokens_follow_the_vocabulary_in_the_order_of_their_stated_numbers() {
    let added = json!({"[BOT]": 900, "[USER]": 800, "good": 700});
    let resolved = folder("bert", &[("added_tokens.json", added)]).unwrap();
    let made: Value = from_slice(&resolved.json).unwrap();
    let id = |content: &str| {
        let all = made["added_tokens"].as_array().unwrap();
        all.iter().find(|token| token["content"] == content).unwrap()["id"].as_u64().unwrap()
    };
    assert_eq!([id("[USER]"), id("[BOT]"), id("good"), id("[CLS]")], [7, 8, 5, 2]);
}

#[test]
fn a_token_that_only_the_class_names_is_left_out_if_the_model_has_no_row_for_it() {
    let mut own = words();
    own["model"]["vocab"] = json!({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "good": 3});
    let config = json!({"model_type": "bert", "vocab_size": 4});
    let contents = |settings: Value| -> Vec<String> {
        let files =
            [("config.json", config.clone()), ("tokenizer.json", own.clone()), ("tokenizer_config.json", settings)];
        let made: Value = from_slice(&folder("bert", &files).unwrap().json).unwrap();
        let all = made["added_tokens"].as_array().unwrap();
        all.iter().map(|token| token["content"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(contents(json!({})), ["[UNK]", "[CLS]", "[SEP]"]);
    assert_eq!(contents(json!({"mask_token": "[MASK]"})), ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]);
}

#[test]
fn the_table_of_sentence_piece_stays_and_other_normalizers_go() {
    let table = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let mut own = words();
    own["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, table]});
    own["model"] =
        json!({"type": "Unigram", "unk_id": 3, "vocab": [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]});
    let resolved = folder("xlm-roberta", &[("tokenizer.json", own)]).unwrap();
    let made: Value = from_slice(&resolved.json).unwrap();
    assert_eq!(made["normalizer"], table);
}

#[test]
fn settings_and_classes_without_a_form_are_refused_by_their_names() {
    let cases = [
        (json!({"split_special_tokens": true}), "split_special_tokens"),
        (json!({"auto_map": {"AutoTokenizer": [null, "code.Fast"]}}), "auto_map"),
        (json!({"fix_mistral_regex": true}), "fix_mistral_regex"),
        (json!({"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}), "fast_tokenizer_files"),
        (json!({"do_lower_case": "no"}), "do_lower_case"),
        (json!({"model_max_length": "long"}), "model_max_length"),
        (json!({"truncation_side": "middle"}), "truncation_side"),
        (json!({"cls_token": null}), "cls_token"),
        (json!({"cls_token": 7}), "cls_token"),
        (json!({"added_tokens_decoder": {"seven": {"content": "x"}}}), "added_tokens_decoder"),
        (json!({"tokenizer_class": "BertJapaneseTokenizer"}), "BertJapaneseTokenizer"),
        (json!({"tokenizer_class": "CanineTokenizer"}), "CanineTokenizer is written in Python"),
        (json!({"tokenizer_class": "HerbertTokenizerFast"}), "HerbertTokenizerFast builds"),
        (json!({"tokenizer_class": "XLMRobertaTokenizer"}), "WordPiece"),
    ];
    for (settings, name) in cases {
        let error = with(settings).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
}

#[test]
fn only_a_length_below_the_largest_number_is_a_limit() {
    let limit = |value: Value| with(json!({"model_max_length": value})).unwrap().max_tokens;
    assert_eq!([limit(json!(128)), limit(json!(1e30)), limit(Value::Null)], [Some(128), None, None]);
    assert_eq!(with(json!({"max_len": 64})).unwrap().max_tokens, Some(64));
}

#[test]
fn a_folder_with_a_vocabulary_alone_works_for_words_and_not_for_pieces() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), r#"{"model_type": "bert"}"#).unwrap();
    fs::write(folder.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\n").unwrap();
    let made: Value = from_slice(&read(folder.path()).unwrap().json).unwrap();
    assert_eq!(made["model"]["vocab"]["good"], 5);
    fs::write(folder.path().join("config.json"), r#"{"model_type": "xlm-roberta"}"#).unwrap();
    assert!(matches!(read(folder.path()).unwrap_err(), TokenizerError::Missing { .. }));
}
