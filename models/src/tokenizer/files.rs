//! Reads the files that `AutoTokenizer` reads.

use super::{SIDE_FILES, TokenizerError};
use crate::files::{read_bounded, read_json_bounded};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Maximum size of `tokenizer.json` or a vocabulary, in bytes; the largest known ones have 35 MB.
const MAX_BYTES: u64 = 256 << 20;

/// A JSON object that keeps the order of its file, because this order determines the numbers of new tokens.
#[derive(Clone, Default, Debug)]
pub(super) struct Ordered(pub(super) Vec<(String, Value)>);

impl Ordered {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;
            fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                to.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = from.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        from.deserialize_map(Entries)
    }
}

/// `extra_special_tokens` in the order of the file.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Extra {
    /// Tokens without names.
    List(Vec<Value>),
    /// Tokens with names, such as `image_token`.
    Named(Ordered),
}

impl Extra {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::List(list) => list.is_empty(),
            Self::Named(named) => named.0.is_empty(),
        }
    }
}

/// The keys of `tokenizer_config.json` whose contents have an order that matters.
#[derive(Default, Deserialize)]
pub(super) struct Extras {
    #[serde(default)]
    pub(super) extra_special_tokens: Option<Extra>,
    #[serde(default)]
    pub(super) additional_special_tokens: Option<Extra>,
}

/// Contents of a folder's tokenizer files.
pub(super) struct Files {
    folder: PathBuf,
    /// `model_type` in `config.json`.
    pub(super) model_type: String,
    /// `tokenizer_class` in `config.json`.
    pub(super) model_class: Option<String>,
    /// `type_vocab_size` in `config.json`.
    pub(super) segments: u64,
    /// `vocab_size` in `config.json`.
    pub(super) rows: Option<u64>,
    /// `tokenizer_config.json`; empty if there is none.
    pub(super) config: Ordered,
    pub(super) extras: Extras,
    pub(super) special_tokens_map: Option<Ordered>,
    pub(super) added_tokens: Option<Ordered>,
    pub(super) tokenizer: Option<Value>,
    pub(super) tokenizer_bytes: Option<Vec<u8>>,
    pub(super) side_files: Vec<(&'static str, Vec<u8>)>,
}

impl Files {
    pub(super) fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let model = optional(&folder.join("config.json"))?.unwrap_or_else(|| b"{}".to_vec());
        let model: Value = parse(&folder.join("config.json"), &model)?;
        let text = |name| model.get(name).and_then(Value::as_str).map(str::to_owned);
        let mut side_files = Vec::new();
        for name in SIDE_FILES {
            if let Some(bytes) = optional(&folder.join(name))? {
                side_files.push((name, bytes));
            }
        }
        let side = |name: &str| side_files.iter().find(|(other, _)| *other == name).map(|(_, bytes)| bytes);
        let object = |name: &str| side(name).map(|bytes| parse(&folder.join(name), bytes)).transpose();
        let extras = side("tokenizer_config.json").map(|bytes| parse(&folder.join("tokenizer_config.json"), bytes));
        let tokenizer_bytes = optional(&folder.join("tokenizer.json"))?;
        let tokenizer = tokenizer_bytes.as_ref().map(|bytes| parse(&folder.join("tokenizer.json"), bytes));
        Ok(Self {
            folder: folder.to_owned(),
            model_type: text("model_type").unwrap_or_default(),
            model_class: text("tokenizer_class"),
            rows: model.get("vocab_size").and_then(Value::as_u64),
            segments: model.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(0),
            config: object("tokenizer_config.json")?.unwrap_or_default(),
            extras: extras.transpose()?.unwrap_or_default(),
            special_tokens_map: object("special_tokens_map.json")?,
            added_tokens: object("added_tokens.json")?,
            tokenizer: tokenizer.transpose()?,
            tokenizer_bytes,
            side_files,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Reads a vocabulary file as text, if the folder has it.
    pub(super) fn vocabulary(&self, name: &str) -> Result<Option<String>, TokenizerError> {
        let path = self.path(name);
        let Some(bytes) = optional(&path)? else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(std::io::Error::other);
        text.map(Some).map_err(|source| TokenizerError::Read { path, source })
    }

    pub(super) fn missing(&self) -> TokenizerError {
        TokenizerError::Missing { path: self.path("tokenizer.json") }
    }

    pub(super) fn setting(&self, setting: &str, what: String) -> TokenizerError {
        let path = self.path("tokenizer_config.json");
        TokenizerError::Setting { path, setting: setting.to_owned(), what }
    }

    /// Returns the value of a setting, unless it is missing or null.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.config.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, TokenizerError> {
        let wrong = |value: &Value| self.setting(name, format!("is {value}; expected true or false"));
        self.value(name).map(|value| value.as_bool().ok_or_else(|| wrong(value))).transpose()
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, TokenizerError> {
        let wrong = |value: &Value| self.setting(name, format!("is {value}; expected a text"));
        self.value(name).map(|value| value.as_str().ok_or_else(|| wrong(value))).transpose()
    }

    /// Fails if a setting changes tokens in a way that a `tokenizer.json` cannot hold.
    pub(super) fn refuse_settings(&self) -> Result<(), TokenizerError> {
        let why = |setting: &str, what: &str| Err(self.setting(setting, what.to_owned()));
        if self.flag("split_special_tokens")? == Some(true) {
            return why("split_special_tokens", "is true, which a tokenizer.json cannot say; set it to false");
        }
        if self.flag("fix_mistral_regex")? == Some(true) {
            return why(
                "fix_mistral_regex",
                "is true; load the tokenizer with AutoTokenizer, save it with save_pretrained, and remove the setting",
            );
        }
        if self.value("auto_map").is_some_and(|map| map.get("AutoTokenizer").is_some() || map.is_array()) {
            return why("auto_map", "names program code of the model's author, which Skiff does not run");
        }
        if let Some(Value::Array(names)) = self.value("fast_tokenizer_files")
            && names.iter().any(|name| name.as_str() != Some("tokenizer.json"))
        {
            return why("fast_tokenizer_files", "names a tokenizer file for each version of transformers; remove it");
        }
        Ok(())
    }

    /// Returns true if `tokenizer.json` names `ByteLevel` anywhere.
    pub(super) fn is_byte_level(&self) -> bool {
        const NAME: &[u8] = b"\"ByteLevel\"";
        self.tokenizer_bytes.as_ref().is_some_and(|bytes| bytes.windows(NAME.len()).any(|part| part == NAME))
    }

    /// Returns `model_max_length`. Transformers writes 1e30 for a tokenizer without a limit.
    pub(super) fn max_tokens(&self) -> Result<Option<usize>, TokenizerError> {
        let name = if self.value("model_max_length").is_some() { "model_max_length" } else { "max_len" };
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.as_f64() {
            Some(limit) if limit >= f64::from(u32::MAX) => Ok(None),
            Some(limit) if limit >= 1.0 => Ok(Some(limit as usize)),
            Some(_) | None => Err(self.setting(name, format!("is {value}; expected a number of tokens"))),
        }
    }
}

/// Reads a file, which must hold JSON if its name says so. Returns `None` if there is no such file.
fn optional(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let read = if is_json { read_json_bounded } else { read_bounded };
    match read(path, MAX_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_owned(), source }),
    }
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path, bytes: &[u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|source| TokenizerError::Json { path: path.to_owned(), source })
}
