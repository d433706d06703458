//! LoRA adapters in Hugging Face PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensors in a pack already have PEFT's names. This module handles the settings, and the differences between programs that write
//! adapters. `settings` reads every key that changes the model or refuses it, `select` finds the adapted layers by PEFT's rules,
//! and `write` makes an adapter from a pack.
//!
//! `lora_dropout` is ignored, like the model's own dropouts (see [`crate::architectures`]).

mod select;
mod settings;
mod write;

pub use write::write;

use crate::architectures::Model;
use crate::checkpoint::{CheckpointError, TensorFile};
use crate::peft::{Lora, PREFIX};
use crate::task::Task;
use crate::tensors::TensorError;
use ndarray::ArrayD;
use serde_json::json;
use settings::{MERGE, Refusal, Settings};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// File name of the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File name of the tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// File name of the tensors in PEFT before 0.7. The file is a pickle, which can run code in Python.
const PICKLE_FILE: &str = "adapter_model.bin";

/// An adapter in a folder.
#[derive(Debug)]
pub struct Adapter {
    settings: Settings,
    folder: PathBuf,
    tensors: TensorFile,
    /// Names of the tensors that the pack has not taken yet.
    unused: BTreeSet<String>,
}

/// Reason why a folder is not a supported adapter, or cannot become one.
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
    #[error("{path}: {key} is {found}, which is not supported; {advice}", path = path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// Key of the setting.
        key: String,
        /// Value of the setting.
        found: String,
        /// Advice for the user.
        advice: String,
    },
    /// The tensors are a pickle.
    #[error(
        "{folder} has {PICKLE_FILE}, which only Python can read, and no {TENSORS_FILE}; convert it, in that folder, with: \
         {CONVERT_PICKLE}",
        folder = folder.display()
    )]
    Pickle {
        /// The adapter's folder.
        folder: PathBuf,
    },
    /// A tensor has no place in a pack.
    #[error("{path} has {name:?}, which a pack of this model does not train; {advice}", path = path.display())]
    Superfluous {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Advice for the user.
        advice: String,
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
    /// PEFT has no format for the pack's method of fine-tuning.
    #[error("a pack tuned with {kind} has no adapter in Hugging Face PEFT's format; {hint}")]
    Kind {
        /// The method of fine-tuning.
        kind: &'static str,
        /// Advice for the user.
        hint: &'static str,
    },
}

impl Adapter {
    /// Reads the settings in `folder` and the header of its tensors.
    ///
    /// # Errors
    /// Files that cannot be read or are malformed; settings with an unsupported effect on the computation.
    pub fn open(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(CONFIG_FILE);
        let text = crate::checkpoint::read_bounded(&path)
            .map_err(|source| AdapterError::Read { path: path.clone(), source })?;
        let malformed = |source| AdapterError::Malformed { path: path.clone(), source };
        let all = serde_json::from_slice(&text).map_err(malformed)?;
        if let Some(refusal) = settings::refused(&all) {
            return Err(refused(folder, refusal));
        }
        // Parsed from the text again: the order of patterns counts, and a map of values does not keep it.
        let settings: Settings = serde_json::from_slice(&text).map_err(malformed)?;
        if let Some(refusal) = settings.refused() {
            return Err(refused(folder, refusal));
        }
        let tensors = folder.join(TENSORS_FILE);
        if !tensors.exists() && folder.join(PICKLE_FILE).is_file() {
            return Err(AdapterError::Pickle { folder: folder.to_owned() });
        }
        let tensors = TensorFile::open(&tensors)?;
        let unused = tensors.names().map(str::to_owned).collect();
        Ok(Self { settings, folder: folder.to_owned(), tensors, unused })
    }

    /// Returns the adapter's LoRA settings for `model`, with the layers that PEFT would adapt.
    ///
    /// # Errors
    /// Settings that select no layer of the model; regular expressions that cannot be read.
    pub fn lora(&self, model: &Model, task: Task) -> Result<Lora, AdapterError> {
        let base = format!("{PREFIX}{}", model.base());
        let bare = !self.tensors.names().any(|name| name.starts_with(&base));
        self.settings.lora(model, task, bare).map_err(|refusal| refused(&self.folder, refusal))
    }

    /// Fails if the adapter was trained for a task other than `task`. An adapter without a task, or for feature extraction, fits
    /// all tasks.
    ///
    /// # Errors
    /// Another task; the error names the setting.
    pub fn check_task(&self, task: Task) -> Result<(), AdapterError> {
        match self.settings.task_type.as_deref() {
            None | Some("FEATURE_EXTRACTION") => Ok(()),
            Some(found) if found == task_type(task) => Ok(()),
            Some(found) => {
                let advice = format!("for {task} it must be {} or null", task_type(task));
                Err(refused(&self.folder, Refusal::new("task_type", json!(found), advice)))
            }
        }
    }

    /// Returns true if the adapter holds all parameters of the module with this name in a pack of `model`.
    #[must_use]
    pub fn has_trained(&self, model: &Model, module: &str) -> bool {
        names_in_file(model, &format!("{PREFIX}{module}.weight")).iter().any(|name| self.tensors.has(name))
    }

    /// Returns the number of rows of the tensor `name` in a pack of `model`, if the adapter has it.
    #[must_use]
    pub fn rows(&self, model: &Model, name: &str) -> Option<usize> {
        let found = names_in_file(model, name).into_iter().find(|name| self.tensors.has(name))?;
        self.tensors.shape(&found)?.first().copied()
    }

    /// Returns the tensor with the name `name` in a pack of `model`, if the adapter has it. An adapter of the bare model lacks
    /// the prefix of the model's names.
    ///
    /// # Errors
    /// A tensor of another shape; values that cannot be read.
    pub fn take(&mut self, model: &Model, name: &str, shape: &[usize]) -> Result<Option<ArrayD<f32>>, AdapterError> {
        let Some(found) = names_in_file(model, name).into_iter().find(|name| self.tensors.has(name)) else {
            return Ok(None);
        };
        self.unused.remove(&found);
        Ok(Some(self.tensors.read(&found, shape)?))
    }

    /// Fails if the adapter has a tensor that is not among `names`, the tensors of a pack of `model`. This finds such a tensor
    /// before the builder spends minutes on the weights.
    ///
    /// # Errors
    /// A superfluous tensor; the error names it.
    pub fn check_names<'n>(&self, model: &Model, names: impl Iterator<Item = &'n str>) -> Result<(), AdapterError> {
        let known: BTreeSet<String> = names.flat_map(|name| names_in_file(model, name)).collect();
        self.tensors.names().find(|name| !known.contains(*name)).map_or(Ok(()), |name| Err(self.superfluous(name)))
    }

    /// Fails if the adapter has a tensor that the pack did not take, because the model would differ without it.
    ///
    /// # Errors
    /// An unused tensor; the error names it.
    pub fn finish(self) -> Result<(), AdapterError> {
        self.unused.first().map_or(Ok(()), |name| Err(self.superfluous(name)))
    }

    fn superfluous(&self, name: &str) -> AdapterError {
        let what = match name {
            _ if name.contains(".lora_embedding_") => "it is LoRA on an embedding",
            _ if name.contains(".lora_magnitude_vector") => "it belongs to DoRA",
            _ if name.contains(".lora_") => "the layer has no LoRA here",
            _ => "the adapter replaces the tensor (modules_to_save, a bias, or embeddings)",
        };
        let path = self.folder.join(TENSORS_FILE);
        AdapterError::Superfluous { path, name: name.to_owned(), advice: format!("{what}, so {MERGE}") }
    }

    /// Returns the error for a tensor that is missing from the adapter.
    #[must_use]
    pub fn missing(&self, name: &str) -> AdapterError {
        let source = TensorError::Missing { name: name.to_owned() };
        AdapterError::Tensor { path: self.folder.join(TENSORS_FILE), source }
    }
}

/// Command that turns the pickle in the current folder into safetensors, without running the code in the pickle.
const CONVERT_PICKLE: &str = "python3 -c 'import torch; from safetensors.torch import save_file; \
    save_file({k: v.clone().contiguous() for k, v in torch.load(\"adapter_model.bin\", map_location=\"cpu\", \
    weights_only=True).items()}, \"adapter_model.safetensors\")'";

fn refused(folder: &Path, Refusal { key, found, advice }: Refusal) -> AdapterError {
    AdapterError::Setting { path: folder.join(CONFIG_FILE), key, found: found.to_string(), advice }
}

/// Returns the names that the pack's tensor `name` may have in an adapter. An adapter of the bare model lacks the prefix of
/// the model's names.
fn names_in_file(model: &Model, name: &str) -> Vec<String> {
    let bare = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(model.base()));
    std::iter::once(name.to_owned()).chain(bare.map(|rest| format!("{PREFIX}{rest}"))).collect()
}

/// Returns PEFT's name of a task.
const fn task_type(task: Task) -> &'static str {
    match task {
        Task::SequenceClassification | Task::Regression => "SEQ_CLS",
        Task::TokenClassification => "TOKEN_CLS",
        Task::CausalLm => "CAUSAL_LM",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::peft::ALL_LINEAR;
    use std::error::Error;
    use std::fs;

    const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

    /// Opens an adapter without tensors, with `target_modules` and these further settings.
    fn open_with(targets: &str, more: &str) -> Result<Adapter, AdapterError> {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":16,"target_modules":{targets}{more}}}"#);
        fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
        fs::write(folder.path().join(TENSORS_FILE), NO_TENSORS).unwrap();
        Adapter::open(folder.path())
    }

    fn open(more: &str) -> Result<Adapter, AdapterError> {
        open_with(r#"["query"]"#, more)
    }

    fn bert() -> Model {
        let config = json!({
            "model_type": "bert", "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 3,
            "intermediate_size": 20, "vocab_size": 31, "max_position_embeddings": 16, "type_vocab_size": 2,
        });
        Model::read(&config).unwrap()
    }

    /// Returns LoRA on BERT for sequence classification. The adapter's names have the prefix `bert.`.
    fn lora(targets: &str, more: &str) -> Result<Lora, AdapterError> {
        let adapter = open_with(targets, more)?;
        adapter
            .settings
            .lora(&bert(), Task::SequenceClassification, false)
            .map_err(|refusal| refused(Path::new(""), refusal))
    }

    /// Returns the short names of the adapted layers, such as `1.query` and `pooler`.
    fn adapted(targets: &str, more: &str) -> String {
        let lora = lora(targets, more).unwrap();
        let names = bert().linear_names(Task::SequenceClassification);
        let names = names.iter().filter(|name| lora.on(name).is_some()).map(|name| {
            let short = name.trim_start_matches("bert.").trim_start_matches("encoder.layer.").replace("attention.", "");
            short.replace("self.", "").replace("output.dense", "output").replace(".dense", "")
        });
        names.collect::<Vec<_>>().join(" ")
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
    fn a_pickle_is_refused_with_the_command_that_converts_it() {
        let folder = tempfile::tempdir().unwrap();
        let settings = r#"{"peft_type":"LORA","r":8,"lora_alpha":16,"target_modules":["query"]}"#;
        fs::write(folder.path().join(CONFIG_FILE), settings).unwrap();
        fs::write(folder.path().join(PICKLE_FILE), "PK").unwrap();
        let text = Adapter::open(folder.path()).unwrap_err().to_string();
        assert!(
            text.contains("adapter_model.bin") && text.contains("save_file(") && text.contains("weights_only"),
            "{text}"
        );
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
    fn targets_are_selected_as_by_peft() {
        for (targets, more, expected) in [
            (r#"["query"]"#, "", "0.query 1.query 2.query"),
            ("null", "", "0.query 0.value 1.query 1.value 2.query 2.value"),
            (r#""bert.*\\.(query|key)""#, "", "0.query 0.key 1.query 1.key 2.query 2.key"),
            (r#""query""#, r#","exclude_modules":["key"]"#, ""),
            (r#"".*[02].*query""#, "", "0.query 2.query"),
            (r#""^(?!.*layer\\.1).*\\.query$""#, "", "0.query 2.query"),
            (r#""All-Linear""#, r#","exclude_modules":".*(dense|value)""#, "0.query 0.key 1.query 1.key 2.query 2.key"),
            (
                r#"["dense"]"#,
                r#","exclude_modules":["output.dense"]"#,
                "0.intermediate 1.intermediate 2.intermediate pooler",
            ),
            (
                r#"["dense"]"#,
                r#","exclude_modules":["output.dense"],"modules_to_save":["pooler"]"#,
                "0.intermediate 1.intermediate 2.intermediate",
            ),
            (r#"["query"]"#, r#","layers_to_transform":1"#, "1.query"),
            (r#"["query"]"#, r#","layers_to_transform":[0,2,99]"#, "0.query 2.query"),
            (r#"["query"]"#, r#","layers_to_transform":[]"#, "0.query 1.query 2.query"),
            (r#"["query"]"#, r#","layers_to_transform":[1],"layers_pattern":"layer""#, "1.query"),
            (r#"["query","bert.pooler.dense"]"#, r#","layers_to_transform":[1]"#, "1.query pooler"),
            (r#"["query","q_proj"]"#, "", "0.query 1.query 2.query"),
        ] {
            match lora(targets, more) {
                Ok(_) => assert_eq!(adapted(targets, more), expected, "{targets}{more}"),
                Err(error) => assert!(expected.is_empty() && error.to_string().contains("target_modules"), "{error}"),
            }
        }
        let text =
            lora(r#"["query"]"#, r#","layers_to_transform":[1],"layers_pattern":["blocks"]"#).unwrap_err().to_string();
        assert!(text.contains("target_modules") && text.contains("attention.self.query"), "{text}");
    }

    #[test]
    fn an_adapter_of_the_bare_model_sees_names_without_their_prefix() {
        for (pattern, of_bare) in [(r"encoder.*query", true), (r"bert\\.encoder.*query", false)] {
            let adapter = open_with(&format!("\"{pattern}\""), "").unwrap();
            for bare in [true, false] {
                let found = adapter.settings.lora(&bert(), Task::SequenceClassification, bare);
                assert_eq!(found.is_ok(), of_bare == bare, "{pattern}");
            }
        }
    }

    #[test]
    fn settings_that_a_pack_can_hold_stay_as_they_are() {
        let more = r#","layers_to_transform":[0,2],"rank_pattern":{"query":4,"nothing":1},"use_rslora":true"#;
        let found = lora(r#"["query","value"]"#, more).unwrap();
        assert_eq!((found.targets.len(), found.layers, found.rslora), (2, Some(vec![0, 2]), true));
        assert_eq!(
            found.rank_pattern.ends().collect::<Vec<_>>(),
            ["query"],
            "PEFT ignores a pattern that fits nothing"
        );
        assert_eq!(lora(r#""All-Linear""#, "").unwrap().targets, [ALL_LINEAR]);
        assert_eq!(lora(r#"".*query""#, "").unwrap().targets, ["attention.self.query"]);
    }

    #[test]
    fn the_first_pattern_in_the_files_order_holds_as_in_peft() {
        let rank = |more: &str| {
            let lora = lora(r#"["query"]"#, more).unwrap();
            lora.on("bert.encoder.layer.1.attention.self.query").map(|settings| settings.rank)
        };
        let (short, long) = (r#""attention.self.query":4"#, r#""layer.1.attention.self.query":2"#);
        assert_eq!(rank(&format!(r#","rank_pattern":{{{short},{long}}}"#)), Some(4));
        assert_eq!(rank(&format!(r#","rank_pattern":{{{long},{short}}}"#)), Some(2));
        let pattern = r#""layer\\.[12].*":3"#;
        assert_eq!(rank(&format!(r#","rank_pattern":{{{pattern},{short}}}"#)), Some(3));
        assert_eq!(rank(r#","rank_pattern":{"encoder":3}"#), Some(8));
    }

    #[test]
    fn regular_expressions_that_python_reads_otherwise_are_refused() {
        for (targets, more) in [
            (r#""[[a]query""#, ""),
            (r#""(query""#, ""),
            (r#"".*query\\b{start}""#, ""),
            (r#"["query"]"#, r#","rank_pattern":{"(":3}"#),
            (r#"["query"]"#, r#","exclude_modules":"a&&b""#),
        ] {
            let text = lora(targets, more).unwrap_err().to_string();
            assert!(text.contains("regular expression") && text.contains("give a list"), "{text}");
        }
        let steps = lora(r#""(?=((((.*)*)*)*)*x)y.*""#, "").unwrap_err().to_string();
        assert!(steps.contains("target_modules"), "{steps}");
    }

    #[test]
    fn settings_that_change_the_model_are_refused_with_what_to_do() {
        for (setting, advice) in [
            (r#""use_dora":true"#, "merge_and_unload"),
            (r#""lora_bias":true"#, "merge_and_unload"),
            (r#""bias":"all""#, "merge_and_unload"),
            (r#""trainable_token_indices":[1]"#, "merge_and_unload"),
            (r#""layer_replication":[[0,2],[1,3]]"#, "plain LoRA"),
            (r#""alora_invocation_tokens":[5]"#, "plain LoRA"),
            (r#""some_new_setting":0.5"#, "does not know"),
        ] {
            let text = refusal(&format!(",{setting}"));
            let key = setting.split('"').nth(1).unwrap();
            assert!(text.contains(key) && text.contains(advice), "{text}");
        }
        for harmless in [r#""fan_in_fan_out":true"#, r#""some_new_setting":false"#, r#""lora_dropout":0.1"#] {
            open(&format!(",{harmless}")).unwrap();
        }
    }

    #[test]
    fn other_methods_of_peft_are_refused_by_name() {
        for (method, advice) in [("IA3", "merge_and_unload"), ("PREFIX_TUNING", "plain LoRA")] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(CONFIG_FILE), format!(r#"{{"peft_type":"{method}"}}"#)).unwrap();
            let text = Adapter::open(folder.path()).unwrap_err().to_string();
            assert!(text.contains(method) && text.contains(advice), "{text}");
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
