//! The settings of an adapter, `adapter_config.json`: this module reads or refuses every key that changes the model.

use crate::peft::Patterns;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A setting that this version does not support.
pub(super) struct Refusal {
    /// Key of the setting.
    pub(super) key: String,
    /// Value of the setting.
    pub(super) found: Value,
    /// Advice for the user.
    pub(super) advice: String,
}

impl Refusal {
    pub(super) fn new(key: &str, found: Value, advice: impl Into<String>) -> Self {
        Self { key: key.to_owned(), found, advice: advice.into() }
    }
}

/// The settings that Skiff reads, with PEFT's defaults.
#[derive(Debug, Deserialize)]
pub(super) struct Settings {
    /// The method, which PEFT requires; [`refused`] checks it.
    #[serde(rename = "peft_type")]
    _method: String,
    pub(super) task_type: Option<String>,
    #[serde(default = "default_rank")]
    pub(super) r: usize,
    #[serde(default = "default_alpha")]
    pub(super) lora_alpha: f32,
    pub(super) target_modules: Option<Modules>,
    pub(super) exclude_modules: Option<Modules>,
    pub(super) modules_to_save: Option<Vec<String>>,
    pub(super) rank_pattern: Option<Patterns<usize>>,
    pub(super) alpha_pattern: Option<Patterns<f32>>,
    #[serde(default)]
    pub(super) use_rslora: bool,
    pub(super) layers_to_transform: Option<Layers>,
    pub(super) layers_pattern: Option<Modules>,
    bias: Option<String>,
}

/// Names of modules, or a regular expression.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Modules {
    Names(Vec<String>),
    Pattern(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Layers {
    One(usize),
    Many(Vec<usize>),
}

const fn default_rank() -> usize {
    8
}

const fn default_alpha() -> f32 {
    8.0
}

/// Advice for an adapter that PEFT can merge into its model.
pub(super) const MERGE: &str = "merge the adapter into its model with PEFT (model.merge_and_unload().save_pretrained(DIR)) \
     and build the pack from DIR, without --adapter";
/// Advice for a method of fine-tuning that PEFT may not be able to merge.
const RETRAIN: &str = "train a plain LoRA adapter instead, or merge this one into its model if PEFT can";

/// Keys that [`Settings`] or [`refused`] read.
const READ: [&str; 14] = [
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
];

/// Keys without an effect on the model's scores.
///
/// PEFT itself ignores `fan_in_fan_out` on linear layers, and the supported models have no others. `eva_config` only draws
/// initial values. The last three belong to ms-swift and affect only its training.
const WITHOUT_EFFECT: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "lora_dropout",
    "fan_in_fan_out",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "runtime_config",
    "ensure_weight_tying",
    "merge_weights",
    "lora_dtype",
    "lorap_lr_ratio",
    "lorap_emb_lr",
];

/// Keys that must be absent, null, false or empty, with the advice for any other value.
const MUST_BE_OFF: [(&str, &str); 16] = [
    ("use_dora", MERGE),
    ("lora_bias", MERGE),
    ("layer_replication", RETRAIN),
    ("use_qalora", RETRAIN),
    ("trainable_token_indices", MERGE),
    ("target_parameters", MERGE),
    ("alora_invocation_tokens", RETRAIN),
    ("use_bdlora", RETRAIN),
    ("arrow_config", RETRAIN),
    ("kasa_config", RETRAIN),
    ("velora_config", RETRAIN),
    ("monteclora_config", RETRAIN),
    ("enable_lora", RETRAIN),
    // These belong to the values of `init_lora_weights` that change the frozen weights.
    ("loftq_config", CONVERT),
    ("corda_config", CONVERT),
    ("lora_ga_config", CONVERT),
];

/// Advice for an adapter whose initial values were subtracted from the frozen weights.
const CONVERT: &str = "this way to begin changes the frozen weights too, so convert the adapter: save it with \
     save_pretrained's path_initial_model_for_weight_conversion; null, true, false, gaussian, eva and orthogonal are supported";

/// Values of `init_lora_weights`, besides null, true and false, with which PEFT does not change the frozen weights.
const HARMLESS_INITIAL: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Methods of PEFT that train other inputs or prompts, or choose among adapters: they have no merged weights.
const UNMERGED: [&str; 8] = [
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "POLY",
    "XLORA",
];

/// Returns the setting in `all` that has an unsupported effect on the model, if there is one.
pub(super) fn refused(all: &Map<String, Value>) -> Option<Refusal> {
    // Other methods have other keys, so the method comes first.
    if let Some(method) = all.get("peft_type").and_then(Value::as_str).filter(|method| *method != "LORA") {
        let advice = if UNMERGED.contains(&method) { RETRAIN } else { MERGE };
        return Some(Refusal::new("peft_type", json!(method), format!("only LORA is supported; {advice}")));
    }
    for (key, advice) in MUST_BE_OFF {
        if let Some(found) = all.get(key).filter(|value| is_on(value)) {
            return Some(Refusal::new(key, found.clone(), advice));
        }
    }
    if let Some(found) = all.get("init_lora_weights").filter(|value| !is_harmless(value)) {
        return Some(Refusal::new("init_lora_weights", found.clone(), CONVERT));
    }
    let is_known = |key: &str| {
        READ.contains(&key) || WITHOUT_EFFECT.contains(&key) || MUST_BE_OFF.iter().any(|(other, _)| *other == key)
    };
    let (key, found) = all.iter().find(|(key, value)| !is_known(key) && is_on(value))?;
    let advice = "this version of Skiff does not know what the key does; if it does not change the model's scores, \
        remove it from the file";
    Some(Refusal::new(key, found.clone(), advice))
}

impl Settings {
    /// Returns the unsupported setting among those that were read, if there is one.
    pub(super) fn refused(&self) -> Option<Refusal> {
        let bias = self.bias.as_ref().filter(|bias| *bias != "none")?;
        Some(Refusal::new("bias", json!(bias), format!("only \"none\" is supported; {MERGE}")))
    }
}

fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => true,
    }
}

/// Returns true if PEFT does not change the frozen weights.
fn is_harmless(initial: &Value) -> bool {
    match initial {
        Value::Null | Value::Bool(_) => true,
        Value::String(way) => HARMLESS_INITIAL.contains(&way.to_lowercase().as_str()),
        Value::Number(_) | Value::Array(_) | Value::Object(_) => false,
    }
}
