//! LoRA adapters in Hugging Face PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensors in a pack already have PEFT's names. This room deals with the settings and the differences between writers.
//!
//! `lora_dropout` is ignored, like the model's own dropouts (see [`crate::architectures`]).

use crate::architectures::Model;
use crate::checkpoint::{CheckpointError, TensorFile};
use crate::design::Design;
use crate::pack::Manifest;
use crate::peft::{ALL_LINEAR, Lora, PREFIX, Patterns, Peft};
use crate::task::Task;
use crate::tensors::{self, NamedTensors, TensorError};
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// File name of the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File name of the tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// An adapter in a folder.
#[derive(Debug)]
pub struct Adapter {
    /// Its settings.
    pub lora: Lora,
    /// PEFT's name of the task that it was trained for, if it is given.
    task_type: Option<String>,
    folder: PathBuf,
    tensors: TensorFile,
    /// Names of the tensors that were not taken yet.
    unused: BTreeSet<String>,
}

/// Reason for which a folder is not a supported adapter, or cannot become one.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("writing {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The settings are not JSON of the right kind.
    #[error("reading the adapter's settings in {path}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's error, with its position in the file.
        source: serde_json::Error,
    },
    /// This version does not support a setting.
    #[error("{path}: {key} is {found}, which is not supported; supported: {supported}", path = path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// Its key.
        key: String,
        /// Its value.
        found: String,
        /// The supported values.
        supported: &'static str,
    },
    /// The tensors cannot be read.
    #[error("reading the adapter's tensors")]
    Tensors(#[from] CheckpointError),
    /// A tensor is missing, or should not be there.
    #[error("{path}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor and the fault.
        source: TensorError,
    },
    /// PEFT has no form for the pack's method of fine-tuning.
    #[error("a pack tuned with {kind} has no adapter in Hugging Face PEFT's format; {hint}")]
    Kind {
        /// The method of fine-tuning.
        kind: &'static str,
        /// Advice for the user.
        hint: &'static str,
    },
}

/// Settings of PEFT with an unsupported effect on the computation, unless they are absent, null, false or empty.
const MUST_BE_OFF: [&str; 17] = [
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "use_qalora",
    "trainable_token_indices",
    "target_parameters",
    "exclude_modules",
    "alora_invocation_tokens",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    // These belong to the values of `init_lora_weights` that change the frozen weights.
    "loftq_config",
    "corda_config",
    "lora_ga_config",
];

/// Values of `init_lora_weights`, besides null, true and false, with which PEFT does not change the frozen weights.
const HARMLESS_INITIAL: [&str; 3] = ["gaussian", "eva", "orthogonal"];

#[derive(Deserialize)]
struct Keys {
    peft_type: String,
    task_type: Option<String>,
    r: usize,
    lora_alpha: f32,
    target_modules: Option<Targets>,
    #[serde(default)]
    rank_pattern: Patterns<usize>,
    #[serde(default)]
    alpha_pattern: Patterns<f32>,
    #[serde(default)]
    use_rslora: bool,
    layers_to_transform: Option<Layers>,
    bias: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    List(Vec<String>),
    Pattern(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Layers {
    One(usize),
    Many(Vec<usize>),
}

/// An unsupported setting: its key, its value, and the supported values.
type Refusal = (&'static str, Value, &'static str);

impl Keys {
    /// Returns the settings, if they are supported.
    fn lora(self) -> Result<Lora, Refusal> {
        const NAMES: &str = "a list of names, or all-linear";
        if self.peft_type != "LORA" {
            return Err(("peft_type", json!(self.peft_type), "LORA"));
        }
        if let Some(bias) = self.bias.filter(|bias| bias != "none") {
            return Err(("bias", json!(bias), "none"));
        }
        let targets = match self.target_modules {
            Some(Targets::List(targets)) if !targets.is_empty() => targets,
            Some(Targets::Pattern(pattern)) if pattern.to_lowercase() == ALL_LINEAR => vec![ALL_LINEAR.to_owned()],
            Some(Targets::Pattern(pattern)) => return Err(("target_modules", json!(pattern), NAMES)),
            Some(Targets::List(_)) | None => return Err(("target_modules", Value::Null, NAMES)),
        };
        let mut patterns = self.rank_pattern.ends().chain(self.alpha_pattern.ends());
        if let Some(pattern) = patterns.find(|pattern| !is_plain(pattern)) {
            let supported = "ends of names, no regular expressions";
            return Err(("rank_pattern or alpha_pattern", json!(pattern), supported));
        }
        drop(patterns);
        let layers = self.layers_to_transform.map(|layers| match layers {
            Layers::One(layer) => vec![layer],
            Layers::Many(layers) => layers,
        });
        Ok(Lora {
            rank: self.r,
            alpha: self.lora_alpha,
            targets,
            rank_pattern: self.rank_pattern,
            alpha_pattern: self.alpha_pattern,
            layers,
            rslora: self.use_rslora,
            freeze_a: false,
        })
    }
}

/// Fails if a setting has an unsupported effect on the computation.
fn check_switches(all: &Map<String, Value>) -> Result<(), Refusal> {
    for key in MUST_BE_OFF {
        if let Some(found) = all.get(key).filter(|value| is_on(value)) {
            return Err((key, found.clone(), "only where it is off"));
        }
    }
    match all.get("init_lora_weights").filter(|value| !is_harmless(value)) {
        Some(found) => Err((
            "init_lora_weights",
            found.clone(),
            "null, true, false, gaussian, eva, orthogonal; with others PEFT changes the frozen weights too, so convert the \
             adapter: save it with save_pretrained's path_initial_model_for_weight_conversion",
        )),
        None => Ok(()),
    }
}

impl Adapter {
    /// Reads the settings in `folder` and the header of its tensors.
    ///
    /// # Errors
    /// Files that cannot be read or are malformed; settings with an unsupported effect on the computation.
    pub fn open(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(CONFIG_FILE);
        let text = read_bounded(&path)?;
        let malformed = |source| AdapterError::Malformed { path: path.clone(), source };
        let refused = |(key, found, supported): Refusal| {
            let key = key.to_owned();
            AdapterError::Setting { path: path.clone(), key, found: found.to_string(), supported }
        };
        check_switches(&serde_json::from_slice(&text).map_err(malformed)?).map_err(refused)?;
        // Parsed from the text again: the order of patterns counts, and a map of values does not keep it.
        let keys: Keys = serde_json::from_slice(&text).map_err(malformed)?;
        let task_type = keys.task_type.clone();
        let lora = keys.lora().map_err(refused)?;
        let tensors = TensorFile::open(&folder.join(TENSORS_FILE))?;
        let unused = tensors.names().map(str::to_owned).collect();
        Ok(Self { lora, task_type, folder: folder.to_owned(), tensors, unused })
    }

    /// Fails if the adapter was trained for another task than `task`. An adapter without a task, or one trained for features
    /// alone, fits all tasks.
    ///
    /// # Errors
    /// Another task; the error names the setting.
    pub fn check_task(&self, task: Task) -> Result<(), AdapterError> {
        match self.task_type.as_deref() {
            None | Some("FEATURE_EXTRACTION") => Ok(()),
            Some(found) if found == task_type(task) => Ok(()),
            Some(found) => Err(AdapterError::Setting {
                path: self.folder.join(CONFIG_FILE),
                key: "task_type".to_owned(),
                found: json!(found).to_string(),
                supported: match task {
                    Task::SequenceClassification => "SEQ_CLS for sequence-classification, or null",
                    Task::Regression => "SEQ_CLS for regression, or null",
                    Task::TokenClassification => "TOKEN_CLS for token-classification, or null",
                    Task::CausalLm => "CAUSAL_LM for causal-lm, or null",
                },
            }),
        }
    }

    /// Returns the tensor with the name `name` in a pack of `model`, if the adapter has it. An adapter of the bare model lacks
    /// the prefix of the model's names.
    ///
    /// # Errors
    /// A tensor of another shape; values that cannot be read.
    pub fn take(&mut self, model: &Model, name: &str, shape: &[usize]) -> Result<Option<ArrayD<f32>>, AdapterError> {
        let bare = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(model.base()));
        let names = [Some(name.to_owned()), bare.map(|rest| format!("{PREFIX}{rest}"))];
        let Some(found) = names.into_iter().flatten().find(|name| self.tensors.has(name)) else { return Ok(None) };
        self.unused.remove(&found);
        Ok(Some(self.tensors.read(&found, shape)?))
    }

    /// Fails if the adapter has a tensor that was not taken: without it, the model would not be the same.
    ///
    /// # Errors
    /// An unused tensor; the error names it.
    pub fn finish(self) -> Result<(), AdapterError> {
        match self.unused.into_iter().next() {
            None => Ok(()),
            Some(name) => {
                let path = self.folder.join(TENSORS_FILE);
                Err(AdapterError::Tensor { path, source: TensorError::Unknown { name } })
            }
        }
    }

    /// Returns the error for a tensor that is missing from the adapter.
    #[must_use]
    pub fn missing(&self, name: &str) -> AdapterError {
        let source = TensorError::Missing { name: name.to_owned() };
        AdapterError::Tensor { path: self.folder.join(TENSORS_FILE), source }
    }
}

/// Writes an adapter into the new folder `folder`: `weights`, which are all trainable tensors of the manifest's pack, and
/// the adapter's frozen tensors.
///
/// # Errors
/// A pack that does not train LoRA; a folder that cannot be written.
pub fn write(folder: &Path, manifest: &Manifest, weights: &NamedTensors) -> Result<(), AdapterError> {
    let Peft::Lora(lora) = &manifest.design.peft else {
        let kind = manifest.design.peft.name();
        let hint = match manifest.design.peft {
            Peft::BitFit => "export it with --merged",
            Peft::Houlsby { .. } | Peft::Lora(_) => "its weights file is the result",
        };
        return Err(AdapterError::Kind { kind, hint });
    };
    fs::create_dir_all(folder).map_err(|source| AdapterError::Write { path: folder.to_owned(), source })?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| AdapterError::Write { path, source })
    };
    let bytes =
        tensors::write(weights).map_err(|source| AdapterError::Tensor { path: folder.join(TENSORS_FILE), source })?;
    put(TENSORS_FILE, &bytes)?;
    let text = serde_json::to_vec_pretty(&config(manifest, lora)).expect("JSON has string keys only");
    put(CONFIG_FILE, &text)
}

/// Contents of the settings' file. It is a structure because the order of patterns counts.
#[derive(Serialize)]
struct Config<'a> {
    peft_type: &'static str,
    task_type: &'static str,
    base_model_name_or_path: Option<&'a str>,
    r: usize,
    lora_alpha: f32,
    target_modules: Vec<&'a str>,
    rank_pattern: &'a Patterns<usize>,
    alpha_pattern: &'a Patterns<f32>,
    layers_to_transform: Option<&'a [usize]>,
    use_rslora: bool,
    modules_to_save: Option<BTreeSet<&'a str>>,
    lora_dropout: f32,
    bias: &'static str,
    fan_in_fan_out: bool,
    inference_mode: bool,
}

fn config<'a>(manifest: &'a Manifest, lora: &'a Lora) -> Config<'a> {
    Config {
        peft_type: "LORA",
        task_type: task_type(manifest.design.head.task),
        base_model_name_or_path: manifest.base_model.as_deref(),
        r: lora.rank,
        lora_alpha: lora.alpha,
        target_modules: targets(manifest, lora),
        rank_pattern: &lora.rank_pattern,
        alpha_pattern: &lora.alpha_pattern,
        layers_to_transform: lora.layers.as_deref(),
        use_rslora: lora.rslora,
        modules_to_save: head_modules(manifest),
        lora_dropout: 0.0,
        bias: "none",
        fan_in_fan_out: false,
        inference_mode: true,
    }
}

/// Returns PEFT's name of a task.
const fn task_type(task: Task) -> &'static str {
    match task {
        Task::SequenceClassification | Task::Regression => "SEQ_CLS",
        Task::TokenClassification => "TOKEN_CLS",
        Task::CausalLm => "CAUSAL_LM",
    }
}

/// Returns the targets by name. PEFT would apply `all-linear` also to a head that trains whole, and would fail if the
/// head is a single layer.
fn targets<'a>(manifest: &'a Manifest, lora: &'a Lora) -> Vec<&'a str> {
    if !lora.targets.iter().any(|target| target == ALL_LINEAR) {
        return lora.targets.iter().map(String::as_str).collect();
    }
    let Design { model, head, .. } = &manifest.design;
    let is_adapted = |name: &&str| manifest.schema.find(&format!("{PREFIX}{name}.lora_B.weight")).is_some();
    model.linears().into_iter().chain(model.pooler(head.task).filter(is_adapted)).collect()
}

/// Returns the trainable parts of the head, by the prefixes of their tensors' names.
fn head_modules(manifest: &Manifest) -> Option<BTreeSet<&str>> {
    let names = manifest.schema.tensors.iter().filter(|spec| spec.layer.is_none()).map(|spec| spec.name.as_str());
    let whole = names.filter(|name| !name.contains(".lora_")).filter_map(|name| name.strip_prefix(PREFIX));
    let base = manifest.design.model.base();
    let first = |name: &'_ str| -> usize {
        let skipped = if name.starts_with(base) { base.len() } else { 0 };
        name[skipped..].find('.').map_or(name.len(), |at| skipped + at)
    };
    let modules: BTreeSet<&str> = whole.map(|name| &name[..first(name)]).collect();
    (!modules.is_empty()).then_some(modules)
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

/// Returns true if a pattern is the end of a name and no regular expression.
fn is_plain(pattern: &str) -> bool {
    pattern.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, AdapterError> {
    crate::checkpoint::read_bounded(path).map_err(|source| AdapterError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use std::error::Error;

    /// Opens an adapter without tensors, with the necessary settings and these.
    fn open(more: &str) -> Result<Adapter, AdapterError> {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":16,"target_modules":["query"]{more}}}"#);
        fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
        fs::write(folder.path().join(TENSORS_FILE), [2u64.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
        Adapter::open(folder.path())
    }

    #[test]
    fn settings_and_tensors_that_are_no_files_are_refused_without_waiting_for_them() {
        for name in [CONFIG_FILE, TENSORS_FILE] {
            let folder = tempfile::tempdir().unwrap();
            let settings = r#"{"peft_type":"LORA","r":8,"lora_alpha":16,"target_modules":["query"]}"#;
            fs::write(folder.path().join(CONFIG_FILE), settings).unwrap();
            let path = folder.path().join(name);
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            let error = Adapter::open(folder.path()).unwrap_err();
            let text = skiff_base::chain(&error);
            assert!(text.contains(name) && text.ends_with("not a regular file"), "{text}");
        }
    }

    fn refusal(more: &str) -> String {
        let error = open(more).unwrap_err();
        assert!(error.source().is_none(), "the settings' value is refused, not its form: {more}");
        error.to_string()
    }

    #[test]
    fn an_adapter_for_another_task_is_refused() {
        for (fits, tasks) in [
            ("null", &Task::ALL[..]),
            ("\"FEATURE_EXTRACTION\"", &Task::ALL),
            ("\"SEQ_CLS\"", &[Task::SequenceClassification, Task::Regression]),
            ("\"TOKEN_CLS\"", &[Task::TokenClassification]),
            ("\"CAUSAL_LM\"", &[Task::CausalLm]),
            ("\"QUESTION_ANS\"", &[]),
        ] {
            let adapter = open(&format!(r#","task_type":{fits}"#)).unwrap();
            for task in Task::ALL {
                let checked = adapter.check_task(task);
                assert_eq!(checked.is_ok(), tasks.contains(&task), "{fits} {task}");
                let message = checked.err().map(|error| error.to_string()).unwrap_or_default();
                let names = [CONFIG_FILE, "task_type", task.name()];
                assert!(message.is_empty() || names.iter().all(|name| message.contains(name)), "{message}");
            }
        }
    }

    #[test]
    fn all_linear_is_read_in_any_case_as_in_peft() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(TENSORS_FILE), [2u64.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
        let settings = r#"{"peft_type":"LORA","r":8,"lora_alpha":16,"target_modules":"All-Linear"}"#;
        fs::write(folder.path().join(CONFIG_FILE), settings).unwrap();
        assert_eq!(Adapter::open(folder.path()).unwrap().lora.targets, [ALL_LINEAR]);
    }

    #[test]
    fn the_first_pattern_in_the_files_order_holds_as_in_peft() {
        let rank = |more: &str| {
            open(more).unwrap().lora.on("bert.encoder.layer.1.attention.self.query").map(|settings| settings.rank)
        };
        let (short, long) = (r#""attention.self.query":4"#, r#""layer.1.attention.self.query":2"#);
        assert_eq!(rank(&format!(r#","rank_pattern":{{{short},{long}}}"#)), Some(4));
        assert_eq!(rank(&format!(r#","rank_pattern":{{{long},{short}}}"#)), Some(2));
    }

    #[test]
    fn patterns_that_are_regular_expressions_are_refused() {
        for pattern in ["layer.[01].query", "qu.*", "query|key", "^query", "(query)", "query$", r"layer\\.1"] {
            let message = refusal(&format!(r#","alpha_pattern":{{"{pattern}":2}}"#));
            assert!(message.contains("no regular expressions"), "{message}");
        }
    }

    #[test]
    fn ways_to_begin_that_change_the_frozen_weights_are_refused() {
        for harmless in ["null", "true", "false", "\"gaussian\"", "\"eva\"", "\"orthogonal\""] {
            open(&format!(r#","init_lora_weights":{harmless},"loftq_config":{{}},"corda_config":null"#)).unwrap();
        }
        for way in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "mica", "new"] {
            let message = refusal(&format!(r#","init_lora_weights":"{way}""#));
            assert!(message.contains(way) && message.contains("path_initial_model_for_weight_conversion"), "{message}");
        }
        for key in ["loftq_config", "corda_config", "lora_ga_config"] {
            assert!(refusal(&format!(r#","{key}":{{"bits":4}}"#)).contains(key));
        }
    }
}
