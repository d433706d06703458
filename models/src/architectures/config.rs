//! Reads a checkpoint's `config.json`.

use super::SUPPORTED;
use serde::de::value::MapDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::{Map, Value};
use std::cell::Cell;

/// Reason why a `config.json` cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is missing, or a value that should be an object is not.
    #[error("reading the model's sizes")]
    Malformed(#[from] serde_json::Error),
    /// The value of a key has another type than it should have.
    #[error("reading {key}")]
    Key {
        /// Dotted path of the key, for example `rope.theta`.
        key: String,
        /// The parser's error, which names the found and the expected type.
        source: serde_json::Error,
    },
    /// This version does not support the model.
    #[error("model_type {found:?} is not supported; supported: {}", SUPPORTED.join(", "))]
    Architecture {
        /// The value in the file.
        found: String,
    },
    /// This version does not support the setting.
    #[error("{key} is {found}, which is not supported; supported: {supported}")]
    Setting {
        /// The key.
        key: &'static str,
        /// The value in the file.
        found: String,
        /// The supported values.
        supported: &'static str,
    },
    /// The sizes are impossible.
    #[error("{what}")]
    Sizes {
        /// The fault.
        what: String,
    },
}

/// Reads the keys of a `config.json` that `T` names. An error names the key that failed.
pub(super) fn keys<T: DeserializeOwned>(config: &Value) -> Result<T, ConfigError> {
    let Some(object) = config.as_object() else { return Ok(T::deserialize(config)?) };
    let mut entries = object.iter();
    // The key that is being read. After the last one it is none: then only a missing key can still be wrong.
    let at = Cell::new(None);
    let pairs = std::iter::from_fn(|| {
        let (key, value) = entries.next().unzip();
        at.set(key);
        key.map(String::as_str).zip(value)
    });
    T::deserialize(MapDeserializer::new(pairs)).map_err(|source| match at.get() {
        Some(key) => ConfigError::Key { key: key.clone(), source },
        None => ConfigError::Malformed(source),
    })
}

/// Same as [`keys`], but reads the object at `outer` in `config`; `None` if it is missing or empty.
pub(super) fn keys_within<T: DeserializeOwned>(config: &Value, outer: &str) -> Result<Option<T>, ConfigError> {
    let Some(inner) = config.get(outer).filter(|inner| !inner.is_null() && inner.as_object() != Some(&Map::new()))
    else {
        return Ok(None);
    };
    keys(inner).map(Some).map_err(|error| match error {
        ConfigError::Key { key, source } => ConfigError::Key { key: format!("{outer}.{key}"), source },
        ConfigError::Malformed(source) => ConfigError::Key { key: outer.to_owned(), source },
        other @ (ConfigError::Architecture { .. } | ConfigError::Setting { .. } | ConfigError::Sizes { .. }) => other,
    })
}

/// Reads a key whose null value differs in meaning from its absence: `Some(None)` is null. The field needs `serde(default)`.
pub(super) fn null_or<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Refuses settings that any architecture may have but that no architecture here implements.
pub(super) fn refuse_unsupported(config: &Value) -> Result<(), ConfigError> {
    let is_set = |key: &str| config.get(key).filter(|value| !value.is_null() && value.as_object() != Some(&Map::new()));
    for (key, supported) in [
        (
            "quantization_config",
            "floating-point weights; load the model with transformers, dequantize() it and save it",
        ),
        ("pruned_heads", "no pruned heads"),
        ("per_layer_config", "the same settings in every layer"),
    ] {
        if let Some(value) = is_set(key) {
            let keys = value.as_object().map(|object| object.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
            let found = keys.map_or_else(|| value.to_string(), |keys| format!("{{{keys}}}"));
            return Err(ConfigError::Setting { key, found, supported });
        }
    }
    let problem = is_set("problem_type").filter(|problem| !KNOWN_PROBLEMS.iter().any(|known| *problem == known));
    match problem {
        None => Ok(()),
        Some(found) => Err(ConfigError::Setting {
            key: "problem_type",
            found: found.to_string(),
            supported: "single_label_classification, regression or none; the tasks are sequence-classification (one class \
                        for a text), regression, token-classification, causal-lm",
        }),
    }
}

const KNOWN_PROBLEMS: [&str; 2] = ["single_label_classification", "regression"];

/// Returns a message about the first size that is out of bounds. Each entry holds a name, a size and its maximum; the minimum is
/// 1.
pub(super) fn out_of_bounds(sizes: &[(&str, usize, usize)]) -> Option<String> {
    let (name, size, most) = sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size))?;
    Some(format!("{name} is {size}, expected 1 to {most}"))
}

/// Returns what is wrong with a norm's epsilon, if anything.
pub(super) fn bad_epsilon(name: &str, epsilon: f32) -> Option<String> {
    let sound = epsilon > 0.0 && epsilon < 1.0;
    (!sound).then(|| format!("{name} is {epsilon}, expected a small positive number"))
}

pub(super) const MAX_LAYERS: usize = 512;
pub(super) const MAX_HIDDEN: usize = 1 << 16;
pub(super) const MAX_HEADS: usize = 1 << 10;
pub(super) const MAX_INTERMEDIATE: usize = 1 << 18;
pub(super) const MAX_VOCABULARY: usize = 1 << 24;
pub(super) const MAX_POSITIONS: usize = 1 << 21;
pub(super) const MAX_SEGMENTS: usize = 1 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use crate::architectures::Model;
    use crate::task::Task;
    use serde_json::{Value, json};
    use std::error::Error;

    fn small(model_type: &str, more: &Value) -> Value {
        let mut config = json!({
            "model_type": model_type, "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8,
            "vocab_size": 16, "max_position_embeddings": 16, "num_key_value_heads": 2,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    fn read(model_type: &str, more: &Value) -> Model {
        Model::read(&small(model_type, more)).unwrap()
    }

    /// Returns the error for a small model's settings, changed by `more`.
    fn refusal(model_type: &str, more: &Value) -> String {
        let error = Model::read(&small(model_type, more)).unwrap_err();
        error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
    }

    #[test]
    fn a_value_of_another_kind_is_refused_with_its_key() {
        for (model_type, key, value) in [
            ("bert", "hidden_size", json!("384")),
            ("bert", "layer_norm_eps", json!([1e-12])),
            ("bert", "hidden_act", json!("mish")),
            ("bert", "vocab_size", json!(-1)),
            ("deberta-v2", "pos_att_type", json!(2)),
            ("deberta-v2", "relative_attention", json!("yes")),
            ("llama", "rms_norm_eps", json!("1e-6")),
            ("llama", "num_hidden_layers", json!(2.5)),
            ("qwen2", "layer_types", json!("full_attention")),
            ("llama", "rope_theta", json!("10000")),
            ("llama", "rope_scaling", json!(["linear"])),
        ] {
            let message = refusal(model_type, &json!({ key: value }));
            assert!(message.starts_with(&format!("reading {key}: ")), "{message}");
        }
        let message = refusal("llama", &json!({"rope_scaling": {"rope_type": "linear", "factor": "2"}}));
        assert!(message.starts_with("reading rope_scaling.factor: "), "{message}");
    }

    #[test]
    fn what_no_architecture_computes_is_refused() {
        for model_type in ["bert", "deberta-v2", "llama"] {
            for (key, value, hint) in [
                ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "dequantize"),
                ("pruned_heads", json!({"0": [1]}), "no pruned heads"),
                ("per_layer_config", json!({"1": {"hidden_size": 4}}), "every layer"),
                ("problem_type", json!("multi_label_classification"), "token-classification"),
            ] {
                let message = refusal(model_type, &json!({ key: value }));
                assert!(message.contains(key) && message.contains(hint), "{message}");
                read(model_type, &json!({ key: null }));
            }
            read(model_type, &json!({"pruned_heads": {}, "problem_type": "regression"}));
        }
    }

    #[test]
    fn of_two_bad_keys_one_is_named_and_a_missing_key_is_called_missing() {
        let message = refusal("bert", &json!({"hidden_size": "8", "intermediate_size": "8"}));
        assert!(message.starts_with("reading hidden_size: "), "{message}");
        let error = Model::read(&json!({"model_type": "bert"})).unwrap_err();
        assert_eq!(error.to_string(), "reading the model's sizes");
        assert!(error.source().unwrap().to_string().contains("missing field `num_hidden_layers`"));
    }

    #[test]
    fn only_positions_depend_on_the_padding_token() {
        let first = |model_type: &str, more: &Value| {
            read(model_type, more).layout(Task::SequenceClassification, 2).first_position
        };
        for (id, of_roberta) in [(json!(0), Some(1)), (json!(3), Some(4)), (json!(-1), Some(0)), (json!(null), None)] {
            let key = json!({ "pad_token_id": id });
            assert_eq!(first("bert", &key), 0);
            read("deberta-v2", &key);
            read("llama", &key);
            match of_roberta {
                Some(position) => assert_eq!(first("roberta", &key), position, "{id}"),
                None => assert!(refusal("xlm-roberta", &key).contains("pad_token_id is null"), "{id}"),
            }
        }
        assert_eq!(first("roberta", &json!({})), 2);
        assert!(refusal("roberta", &json!({"pad_token_id": -2})).contains("pad_token_id is -2"));
        assert!(refusal("roberta", &json!({"pad_token_id": 15})).contains("positions begin at"));
    }
}
