//! Tokens around a text and between two texts.

use super::TokenizerError;
use super::added::Added;
use super::class::Class;
use super::files::Files;
use super::specials::Stated;
use serde_json::{Map, Value, json};

/// Returns the post-processor that the class builds, or `None` if the class uses the post-processor in `tokenizer.json`.
pub(super) fn of(class: Class, files: &Files, stated: &Stated, added: &Added) -> Result<Option<Value>, TokenizerError> {
    let own = files.tokenizer.as_ref().and_then(|own| own.get("post_processor")).filter(|own| !own.is_null());
    let around = |first: &str, last: &str, pair: &[(&str, u8)]| -> Result<Value, TokenizerError> {
        let (first, last) = (stated.required(first, files)?, stated.required(last, files)?);
        let names = |part: &(&str, u8)| match part.0 {
            "first" => (first.to_owned(), part.1),
            "last" => (last.to_owned(), part.1),
            other => (other.to_owned(), part.1),
        };
        let single = [("first", 0), ("$A", 0), ("last", 0)];
        Ok(template(&single.iter().map(names).collect::<Vec<_>>(), &pair.iter().map(names).collect::<Vec<_>>(), added))
    };
    const SEGMENTS: [(&str, u8); 5] = [("first", 0), ("$A", 0), ("last", 0), ("$B", 1), ("last", 1)];
    const DOUBLE: [(&str, u8); 6] = [("first", 0), ("$A", 0), ("last", 0), ("last", 0), ("$B", 0), ("last", 0)];
    Ok(match class {
        Class::Bert | Class::DistilBert | Class::DebertaV2 => Some(around("cls_token", "sep_token", &SEGMENTS)?),
        Class::Albert if own.is_none() => Some(around("cls_token", "sep_token", &SEGMENTS)?),
        Class::Deberta => Some(around("cls_token", "sep_token", &DOUBLE)?),
        Class::XlmRoberta | Class::Camembert => Some(around("bos_token", "eos_token", &DOUBLE)?),
        Class::Roberta | Class::MpNet => {
            let pair = |name: &str| -> Result<Value, TokenizerError> {
                let token = stated.required(name, files)?;
                Ok(json!([token, added.id(token)]))
            };
            let roberta = class == Class::Roberta;
            let trim = !roberta || files.flag("trim_offsets")?.unwrap_or(true);
            let space = roberta && files.flag("add_prefix_space")?.unwrap_or(false);
            let (sep, cls) = (pair("sep_token")?, pair("cls_token")?);
            Some(
                json!({"type": "RobertaProcessing", "sep": sep, "cls": cls, "trim_offsets": trim, "add_prefix_space": space}),
            )
        }
        Class::T5 => {
            let end = |pair: &[(&str, u8)]| pair.iter().map(|part| (part.0.to_owned(), part.1)).collect::<Vec<_>>();
            let (single, both) = ([("$A", 0), ("</s>", 0)], [("$A", 0), ("</s>", 0), ("$B", 0), ("</s>", 0)]);
            // The name is fixed, and the number belongs to the stated end.
            let last = added.id(stated.required("eos_token", files)?);
            let mut made = template(&end(&single), &end(&both), added);
            made["special_tokens"]["</s>"]["ids"] = json!([last]);
            Some(made)
        }
        Class::GptNeoX => Some(begin_and_end(files, stated, added)?),
        // Only a folder without tokenizer.json still says here whether begin and end are added.
        _ if files.tokenizer.is_none() => Some(begin_and_end(files, stated, added)?),
        Class::Albert | Class::Backend | Class::Gemma | Class::Gpt2 | Class::Llama | Class::Qwen2 => None,
    })
}

/// Returns the template of `add_bos_token` and `add_eos_token`. Transformers ignores both if there is a `tokenizer.json`.
fn begin_and_end(files: &Files, stated: &Stated, added: &Added) -> Result<Value, TokenizerError> {
    let wanted = |flag: &str, token: &str| -> Result<Option<String>, TokenizerError> {
        let wanted = files.tokenizer.is_none() && files.flag(flag)?.unwrap_or(false);
        Ok(stated.token(token).filter(|_| wanted).map(str::to_owned))
    };
    let (first, last) = (wanted("add_bos_token", "bos_token")?, wanted("add_eos_token", "eos_token")?);
    let text = |sequence: &str, segment| {
        let first = first.iter().cloned().map(move |token| (token, segment));
        let last = last.iter().cloned().map(move |token| (token, segment));
        first.chain([(sequence.to_owned(), segment)]).chain(last).collect::<Vec<_>>()
    };
    let single = text("$A", 0);
    let pair = [single.clone(), text("$B", 1)].concat();
    Ok(template(&single, &pair, added))
}

/// Returns a `TemplateProcessing` for tokens with their segments; `$A` and `$B` stand for the texts.
fn template(single: &[(String, u8)], pair: &[(String, u8)], added: &Added) -> Value {
    let piece = |(name, segment): &(String, u8)| match name.strip_prefix('$') {
        Some(sequence) => json!({"Sequence": {"id": sequence, "type_id": segment}}),
        None => json!({"SpecialToken": {"id": name, "type_id": segment}}),
    };
    let special = |name: &str| json!({"id": name, "ids": [added.id(name).unwrap_or(0)], "tokens": [name]});
    let names = pair.iter().map(|(name, _)| name).filter(|name| !name.starts_with('$'));
    let specials: Map<String, Value> = names.map(|name| (name.clone(), special(name))).collect();
    json!({
        "type": "TemplateProcessing",
        "single": single.iter().map(piece).collect::<Vec<_>>(),
        "pair": pair.iter().map(piece).collect::<Vec<_>>(),
        "special_tokens": specials,
    })
}

/// Gives every token the segment 0, like a tokenizer that passes no segments to the model.
pub(super) fn without_segments(processor: &mut Value) {
    let kind = processor.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    match kind.as_str() {
        "TemplateProcessing" => {
            for form in ["single", "pair"] {
                let pieces = processor.get_mut(form).and_then(Value::as_array_mut);
                pieces.into_iter().flatten().for_each(clear_segment);
            }
        }
        "BertProcessing" => {
            let (first, last) = (processor["cls"].clone(), processor["sep"].clone());
            *processor = bert_template(&first, &last);
        }
        "RobertaProcessing" => {}
        "Sequence" if has_template(processor) => {
            let parts = processor["processors"].as_array_mut().into_iter().flatten();
            parts.filter(|part| is_template(part)).for_each(without_segments);
        }
        _ => {
            let before = (!processor.is_null()).then(|| processor.take());
            let plain = json!({
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {},
            });
            *processor =
                json!({"type": "Sequence", "processors": before.into_iter().chain([plain]).collect::<Vec<_>>()});
        }
    }
}

fn has_template(processor: &Value) -> bool {
    let parts = processor.get("processors").and_then(Value::as_array);
    parts.into_iter().flatten().any(is_template)
}

fn is_template(processor: &Value) -> bool {
    const KINDS: [&str; 3] = ["TemplateProcessing", "BertProcessing", "RobertaProcessing"];
    processor.get("type").and_then(Value::as_str).is_some_and(|kind| KINDS.contains(&kind))
}

fn clear_segment(piece: &mut Value) {
    for part in piece.as_object_mut().into_iter().flat_map(Map::values_mut) {
        part["type_id"] = json!(0);
    }
}

fn bert_template(first: &Value, last: &Value) -> Value {
    let token = |token: &Value| json!({"SpecialToken": {"id": token[0], "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let special = |token: &Value| json!({"id": token[0], "ids": [token[1]], "tokens": [token[0]]});
    let name = |token: &Value| token[0].as_str().unwrap_or_default().to_owned();
    json!({
        "type": "TemplateProcessing",
        "single": [token(first), text("A"), token(last)],
        "pair": [token(first), text("A"), token(last), text("B"), token(last)],
        "special_tokens": Map::from_iter([(name(first), special(first)), (name(last), special(last))]),
    })
}
