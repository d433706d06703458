//! Builds the parts of a tokenizer that each class of transformers makes from a vocabulary and its settings.

use super::TokenizerError;
use super::class::Class;
use super::files::Files;
use super::specials::Stated;
use serde_json::{Map, Value, json};

/// Qwen2's pattern of words.
const QWEN_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Builds the parts of `tokenizer.json`, except added tokens and the post-processor.
pub(super) fn build(class: Class, files: &Files, stated: &Stated) -> Result<Value, TokenizerError> {
    let own = files.tokenizer.as_ref();
    let part = |name: &str| own.and_then(|own| own.get(name)).cloned().unwrap_or(Value::Null);
    Ok(json!({
        "version": "1.0",
        "truncation": part("truncation"),
        "padding": part("padding"),
        "added_tokens": [],
        "normalizer": normalizer(class, files)?,
        "pre_tokenizer": pre_tokenizer(class, files)?,
        "post_processor": part("post_processor"),
        "decoder": part("decoder"),
        "model": model(class, files, stated)?,
    }))
}

/// Returns the settings that determine a part of the tokenizer.
pub(super) fn settings(class: Class, part: &str) -> &'static [&'static str] {
    match (class, part) {
        (Class::Bert | Class::DistilBert | Class::MpNet, "normalizer") => {
            &["do_lower_case", "strip_accents", "tokenize_chinese_chars"]
        }
        (Class::Albert, "normalizer") => &["do_lower_case", "keep_accents"],
        (Class::DebertaV2, "normalizer") => &["do_lower_case"],
        (Class::DebertaV2, "pre_tokenizer") => &["split_by_punct", "add_prefix_space"],
        (Class::Llama, "pre_tokenizer") => &["add_prefix_space", "legacy"],
        (
            Class::Albert
            | Class::Camembert
            | Class::Deberta
            | Class::Gpt2
            | Class::GptNeoX
            | Class::Qwen2
            | Class::Roberta
            | Class::XlmRoberta,
            "pre_tokenizer",
        ) => &["add_prefix_space"],
        (Class::Bert | Class::DistilBert | Class::MpNet | Class::Gemma, "model") => &["unk_token"],
        (Class::Camembert | Class::XlmRoberta, "post_processor") => &["bos_token", "eos_token", "model_input_names"],
        (
            Class::Bert | Class::DistilBert | Class::MpNet | Class::Roberta | Class::Deberta | Class::DebertaV2,
            "post_processor",
        ) => &["cls_token", "sep_token", "model_input_names"],
        _ => &[],
    }
}

fn normalizer(class: Class, files: &Files) -> Result<Value, TokenizerError> {
    let flag = |name: &str, default| Ok::<_, TokenizerError>(files.flag(name)?.unwrap_or(default));
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    Ok(match class {
        Class::Bert | Class::DistilBert | Class::MpNet => json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": flag("tokenize_chinese_chars", true)?,
            "strip_accents": files.flag("strip_accents")?,
            "lowercase": flag("do_lower_case", true)?,
        }),
        Class::DebertaV2 => {
            let lower = flag("do_lower_case", false)?.then(|| json!({"type": "Lowercase"}));
            let rest = [
                json!({"type": "Replace", "pattern": {"Regex": "\\s{2,}|[\\n\\r\\t]"}, "content": " "}),
                json!({"type": "NFC"}),
                json!({"type": "Strip", "strip_left": false, "strip_right": true}),
            ];
            sequence(lower.into_iter().chain(rest).collect())
        }
        Class::Albert => {
            let quotes =
                ["``", "''"].map(|quotes| json!({"type": "Replace", "pattern": {"String": quotes}, "content": "\""}));
            let mut steps = Vec::from(quotes);
            if !flag("keep_accents", false)? {
                steps.extend([json!({"type": "NFKD"}), json!({"type": "StripAccents"})]);
            }
            if flag("do_lower_case", true)? {
                steps.push(json!({"type": "Lowercase"}));
            }
            steps.extend(precompiled(files));
            sequence(steps)
        }
        Class::Camembert | Class::T5 | Class::XlmRoberta => precompiled(files).unwrap_or(Value::Null),
        Class::GptNeoX | Class::Qwen2 => json!({"type": "NFC"}),
        Class::Gemma => json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        Class::Backend | Class::Deberta | Class::Gpt2 | Class::Llama | Class::Roberta => Value::Null,
    })
}

/// Returns SentencePiece's table of characters from the folder's normalizer.
fn precompiled(files: &Files) -> Option<Value> {
    let own = files.tokenizer.as_ref()?.get("normalizer")?;
    let steps = match own.get("normalizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![own],
    };
    let found = steps.into_iter().find(|step| step.get("type").and_then(Value::as_str) == Some("Precompiled"))?;
    found.get("precompiled_charsmap").map(|table| json!({"type": "Precompiled", "precompiled_charsmap": table}))
}

fn pre_tokenizer(class: Class, files: &Files) -> Result<Value, TokenizerError> {
    let space = |default| Ok::<_, TokenizerError>(files.flag("add_prefix_space")?.unwrap_or(default));
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
    let pieces = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let bytes = |space: bool, trim: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": trim, "use_regex": regex});
    Ok(match class {
        Class::Bert | Class::DistilBert | Class::MpNet => json!({"type": "BertPreTokenizer"}),
        Class::DebertaV2 => {
            let split = files.flag("split_by_punct")?.unwrap_or(false);
            let split = split.then(|| json!({"type": "Punctuation", "behavior": "Isolated"}));
            let scheme = if space(true)? { "always" } else { "first" };
            sequence(split.into_iter().chain([pieces(scheme, true)]).collect())
        }
        Class::Albert | Class::Camembert | Class::XlmRoberta | Class::T5 => {
            let scheme = if class == Class::T5 || space(true)? { "always" } else { "never" };
            sequence(vec![json!({"type": "WhitespaceSplit"}), pieces(scheme, true)])
        }
        Class::Llama => {
            let scheme = match (space(true)?, files.flag("legacy")?.unwrap_or(false)) {
                (true, true) => "always",
                (true, false) => "first",
                (false, _) => "never",
            };
            pieces(scheme, false)
        }
        Class::Qwen2 => sequence(vec![
            json!({"type": "Split", "pattern": {"Regex": QWEN_WORDS}, "behavior": "Isolated", "invert": false}),
            bytes(space(false)?, true, false),
        ]),
        Class::GptNeoX => bytes(space(false)?, files.flag("trim_offsets")?.unwrap_or(true), true),
        Class::Deberta | Class::Gpt2 | Class::Roberta => bytes(space(false)?, true, true),
        Class::Gemma => {
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false})
        }
        Class::Backend => Value::Null,
    })
}

fn model(class: Class, files: &Files, stated: &Stated) -> Result<Value, TokenizerError> {
    match class {
        Class::Bert | Class::DistilBert | Class::MpNet => {
            let unknown = stated.required("unk_token", files)?;
            Ok(json!({
                "type": "WordPiece",
                "unk_token": unknown,
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": words(files, class, "vocab.txt")?,
            }))
        }
        Class::Albert | Class::Camembert | Class::DebertaV2 | Class::T5 | Class::XlmRoberta => {
            let pieces = pieces(files, class)?;
            let unknown = unknown_piece(class, files, stated, &pieces)?;
            if unknown >= pieces.len() as u64 {
                let what = format!(
                    "has {} pieces, but {} takes number {unknown} for unknown ones",
                    pieces.len(),
                    class.name()
                );
                return Err(TokenizerError::Vocabulary { path: files.path("tokenizer.json"), what });
            }
            Ok(json!({"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": false}))
        }
        Class::Backend
        | Class::Deberta
        | Class::Gemma
        | Class::Gpt2
        | Class::GptNeoX
        | Class::Llama
        | Class::Qwen2
        | Class::Roberta => {
            let decoder = matches!(class, Class::Llama | Class::Gemma);
            let affix = if decoder { Value::Null } else { json!("") };
            let unknown = (class == Class::Gemma).then(|| stated.required("unk_token", files)).transpose()?;
            let (vocabulary, merges) = merges(files, class)?;
            Ok(json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown,
                "continuing_subword_prefix": affix,
                "end_of_word_suffix": affix,
                "fuse_unk": decoder,
                "byte_fallback": decoder,
                "ignore_merges": false,
                "vocab": vocabulary,
                "merges": merges,
            }))
        }
    }
}

/// Returns the index of the piece for unknown characters.
fn unknown_piece(class: Class, files: &Files, stated: &Stated, pieces: &[Value]) -> Result<u64, TokenizerError> {
    let unknown = stated.token("unk_token").unwrap_or_default();
    let named = |piece: &Value| piece[0].as_str() == Some(unknown);
    if class == Class::Camembert {
        return Ok(pieces.iter().position(named).unwrap_or(0) as u64);
    }
    if class == Class::DebertaV2 {
        let without_score = |piece: &Value| named(piece) && piece[1].as_f64() == Some(0.0);
        if let Some(at) = pieces.iter().position(without_score) {
            return Ok(at as u64);
        }
        let Some(value) = files.value("unk_id") else { return Ok(1) };
        let number = value.as_u64();
        return number.ok_or_else(|| files.setting("unk_id", format!("is {value}; expected a whole number")));
    }
    let fixed = [(Class::Albert, 1), (Class::T5, 2)].into_iter().find(|(other, _)| *other == class);
    Ok(fixed.map_or(3, |(_, number)| number))
}

/// Returns the numbers of words, from `tokenizer.json` or a file with one word on each line.
fn words(files: &Files, class: Class, name: &str) -> Result<Value, TokenizerError> {
    if let Some(own) = &files.tokenizer {
        return match own.pointer("/model/vocab") {
            Some(Value::Object(words)) => Ok(Value::Object(words.clone())),
            Some(Value::Array(pieces)) => {
                let word = |(piece, id): (&Value, u32)| Some((piece.get(0)?.as_str()?.to_owned(), json!(id)));
                Ok(Value::Object(pieces.iter().zip(0..).filter_map(word).collect()))
            }
            Some(_) | None => Err(other_kind(files, class)),
        };
    }
    let text = files.vocabulary(name)?.ok_or_else(|| files.missing())?;
    let lines = text.lines().zip(0..).map(|(word, id): (&str, u32)| (word.trim_end().to_owned(), json!(id)));
    Ok(Value::Object(Map::from_iter(lines)))
}

fn pieces(files: &Files, class: Class) -> Result<Vec<Value>, TokenizerError> {
    let Some(own) = &files.tokenizer else { return Err(files.missing()) };
    match own.pointer("/model/vocab") {
        Some(Value::Array(pieces)) => Ok(pieces.clone()),
        Some(_) | None => Err(other_kind(files, class)),
    }
}

/// Returns the vocabulary and the merges of byte pairs, from `tokenizer.json` or `vocab.json` and `merges.txt`.
fn merges(files: &Files, class: Class) -> Result<(Value, Value), TokenizerError> {
    if files.tokenizer.is_some() {
        let own = files.tokenizer.as_ref().and_then(|own| own.pointer("/model/merges"));
        return Ok((words(files, class, "vocab.json")?, own.cloned().unwrap_or_else(|| json!([]))));
    }
    let (Some(vocabulary), Some(merges)) = (files.vocabulary("vocab.json")?, files.vocabulary("merges.txt")?) else {
        return Err(files.missing());
    };
    let vocabulary = serde_json::from_str(&vocabulary)
        .map_err(|source| TokenizerError::Json { path: files.path("vocab.json"), source })?;
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with("#version")).collect();
    Ok((vocabulary, json!(merges)))
}

fn other_kind(files: &Files, class: Class) -> TokenizerError {
    let model = files.tokenizer.as_ref().and_then(|own| own.pointer("/model/type")?.as_str()).unwrap_or("unknown");
    let what = format!(
        "has a vocabulary of the kind {model}, from which transformers cannot build a {name} (the class by \
         tokenizer_config.json or the model's type); to use the file as it is, write \"tokenizer_class\": \
         \"PreTrainedTokenizerFast\" into tokenizer_config.json",
        name = class.name()
    );
    TokenizerError::Vocabulary { path: files.path("tokenizer.json"), what }
}
