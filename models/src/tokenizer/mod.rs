//! Makes the same tokenizer from a checkpoint folder as transformers' `AutoTokenizer`.
//!
//! `tokenizer.json` is only one of these files. Most classes of transformers 5 take the vocabulary from it and build everything
//! else anew from `tokenizer_config.json`; `special_tokens_map.json` and `added_tokens.json` supply further tokens. The result
//! here is one `tokenizer.json` that needs no other file, so devices need no code for settings
//! (docs/decisions/2026-12-01-tokenizer-settings.md).
//!
//! Modules: [`files`] (reading), [`class`] (the choice of the class), [`specials`] (all special tokens: those that
//! the settings name, as [`named`] tokens, and the [`defaults`] of the class), [`added`] (numbering of added tokens), [`families`] (what each class builds), [`templates`] (tokens around a text).

mod added;
mod class;
mod defaults;
mod families;
mod files;
mod named;
mod specials;
mod templates;
#[cfg(test)]
mod tests;

use added::Added;
use class::Class;
use files::Files;
use serde_json::{Value, json};
use specials::Stated;
use std::path::{Path, PathBuf};

/// Files beside `tokenizer.json` that `AutoTokenizer` reads. A pack keeps them, so that an export loads like the checkpoint.
pub const SIDE_FILES: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"];

/// Reason why a folder's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not JSON of the expected form.
    #[error("reading {path}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's error, with its position in the file.
        source: serde_json::Error,
    },
    /// A setting has a value that cannot be applied.
    #[error("{path}: {setting} {what}", path = path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting's name.
        setting: String,
        /// The fault, and what to do.
        what: String,
    },
    /// The folder names a class that a `tokenizer.json` cannot represent, or that Skiff does not build.
    #[error("{path}: tokenizer_class {class} {what}", path = path.display())]
    Class {
        /// The file that names the class.
        path: PathBuf,
        /// The class.
        class: String,
        /// The fault, and what to do.
        what: String,
    },
    /// The tokenizer is missing.
    #[error("{path} is missing; load the tokenizer with transformers' AutoTokenizer and save it with save_pretrained, which writes it", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The vocabulary does not belong to the class.
    #[error("{path}: {what}", path = path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The fault.
        what: String,
    },
}

/// A part of `tokenizer.json` that the settings change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Name of the part.
    pub part: &'static str,
    /// Settings that lead to the change, with their values.
    pub because: String,
}

/// A folder's tokenizer with all settings applied.
#[derive(Debug)]
pub struct ResolvedTokenizer {
    /// Name of the class of transformers.
    pub class: &'static str,
    /// File or rule that led to the class.
    pub chosen_by: &'static str,
    /// Contents of the folder's `tokenizer.json`, unless there are only vocabulary files.
    pub alone: Option<Vec<u8>>,
    /// Contents of a `tokenizer.json` that gives the same tokens as `AutoTokenizer`. The same as `alone` if nothing changed.
    pub json: Vec<u8>,
    /// Parts that differ between the two.
    pub changes: Vec<Change>,
    /// Largest number of tokens of an example, if `model_max_length` names one.
    pub max_tokens: Option<usize>,
    /// The [`SIDE_FILES`] of the folder, with their contents.
    pub side_files: Vec<(&'static str, Vec<u8>)>,
}

/// Reads the tokenizer in `folder` and applies all settings.
///
/// # Errors
/// A missing or malformed file; a class or a setting that cannot be applied, which the error names.
pub fn read(folder: &Path) -> Result<ResolvedTokenizer, TokenizerError> {
    let files = Files::read(folder)?;
    let choice = class::choose(&files)?;
    let class = choice.class;
    files.refuse_settings()?;
    let stated = Stated::collect(&files, class)?;
    let as_it_is = class == Class::Backend;
    let mut made = match as_it_is {
        true => files.tokenizer.clone().ok_or_else(|| files.missing())?,
        false => families::build(class, &files, &stated)?,
    };
    let mut added = Added::of(&made, as_it_is);
    let tokens = stated.to_add(&added);
    added.add(&tokens);
    if class == Class::Qwen2 {
        added.add(&stated.plain_specials());
    }
    if let Some(processor) = templates::of(class, &files, &stated, &added)? {
        made["post_processor"] = processor;
    }
    if let Some(rows) = files.rows {
        // The class's own token for masks or padding, which the model has no row for. Transformers fails on a text with it.
        let around = made["post_processor"].to_string();
        added.remove_from(rows, |content| stated.is_by_class(content) && !around.contains(content));
    }
    made["added_tokens"] = added.to_json();
    if files.segments > 1 && !class.returns_segments(&files) {
        templates::without_segments(&mut made["post_processor"]);
    }
    cut_at(&files, &mut made)?;
    let changes = changes(class, &files, &made);
    let json = match &files.tokenizer_bytes {
        Some(bytes) if changes.is_empty() => bytes.clone(),
        _ => serde_json::to_vec(&made).expect("JSON has string keys only"),
    };
    Ok(ResolvedTokenizer {
        class: class.name(),
        chosen_by: choice.by,
        json,
        changes,
        max_tokens: files.max_tokens()?,
        alone: files.tokenizer_bytes,
        side_files: files.side_files,
    })
}

/// Writes the side at which long texts are cut. A device reads only the side from this entry.
fn cut_at(files: &Files, made: &mut Value) -> Result<(), TokenizerError> {
    let side = files.text("truncation_side")?;
    let own = made.get("truncation").and_then(|own| own.get("direction")?.as_str()).unwrap_or("Right").to_owned();
    let wanted = match side {
        None => return Ok(()),
        Some("left") => "Left",
        Some("right") => "Right",
        Some(other) => {
            return Err(files.setting("truncation_side", format!("is {other:?}; expected \"left\" or \"right\"")));
        }
    };
    if wanted != own {
        let cut = json!({"direction": wanted, "max_length": 512, "strategy": "LongestFirst", "stride": 0});
        made["truncation"] = cut;
    }
    Ok(())
}

/// Names the parts that differ from the folder's own `tokenizer.json`, with the settings that cause this.
fn changes(class: Class, files: &Files, made: &Value) -> Vec<Change> {
    const PARTS: [&str; 6] = ["normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens", "truncation"];
    let Some(own) = &files.tokenizer else {
        return vec![Change { part: "everything", because: "the folder has vocabulary files only".to_owned() }];
    };
    let empty = |part: &str| if part == "added_tokens" { json!([]) } else { Value::Null };
    let differs = |part: &&str| own.get(*part).unwrap_or(&empty(part)) != made.get(*part).unwrap_or(&Value::Null);
    PARTS.into_iter().filter(differs).map(|part| Change { part, because: because(class, part, files, made) }).collect()
}

fn because(class: Class, part: &str, files: &Files, made: &Value) -> String {
    if part == "added_tokens" {
        return added::difference(files.tokenizer.as_ref(), made);
    }
    let settings = if part == "truncation" { &["truncation_side"][..] } else { families::settings(class, part) };
    let stated = settings.iter().filter_map(|name| Some(format!("{name} {}", files.value(name)?)));
    let stated = stated.collect::<Vec<_>>().join(", ");
    match (stated.is_empty(), settings.is_empty()) {
        (false, _) => stated,
        (true, false) => format!("{}'s own values of {}", class.name(), settings.join(", ")),
        (true, true) if part == "post_processor" => "the model gets no segment numbers (token_type_ids)".to_owned(),
        (true, true) => format!("{}'s own", class.name()),
    }
}
