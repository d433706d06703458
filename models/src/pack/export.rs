//! Turns tuned weights back into what others read: a Hugging Face PEFT adapter, or a plain checkpoint with everything merged.

use super::{Pack, PackError};
use crate::adapter::{self, AdapterError};
use crate::architectures::Model;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::peft::{PREFIX, Peft};
use crate::stage::{StageSpec, of_layer};
use crate::task::Task;
use crate::tensors::NamedTensors;
use ndarray::{Array2, ArrayD, Ix2};
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Why tuned weights cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The folder is there already.
    #[error("{path} exists; choose another --out or remove it", path = path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("writing {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tensors cannot be written.
    #[error("writing {path}", path = path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// The pack's copy of `config.json` is malformed.
    #[error("the pack's config.json is not a JSON object; make the pack again with `skiff-pack build`")]
    Config,
    /// The checkpoint that was given does not have the pack's tensors.
    #[error("reading the checkpoint")]
    Checkpoint(#[from] CheckpointError),
    /// The pack is broken.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The adapter cannot be written.
    #[error("writing the adapter")]
    Adapter(#[from] AdapterError),
    /// Houlsby adapters are layers of their own.
    #[error("Houlsby adapters are layers of their own and cannot be merged into a plain checkpoint")]
    Houlsby,
}

/// Writes `weights`, the pack's trainable tensors, as an adapter of Hugging Face PEFT in the new folder `out`.
///
/// # Errors
/// A folder that is there, a pack that trains something else than LoRA.
pub fn export_adapter(pack: &Pack, weights: &NamedTensors, out: &Path) -> Result<(), ExportError> {
    refuse_occupied(out)?;
    let mut all = weights.clone();
    if let Peft::Lora(lora) = &pack.manifest().design.peft
        && lora.freeze_a
    {
        // A is frozen here, and is a part of the adapter there.
        for (name, tensor) in pack.frozen().tensors().filter(|(name, _)| name.ends_with(".lora_A.weight")) {
            let values = pack.frozen().values(name).expect("the tensor was just there");
            let tensor = ArrayD::from_shape_vec(tensor.shape, values).expect("as many values as the shape says");
            all.insert(format!("{PREFIX}{name}"), tensor);
        }
    }
    Ok(adapter::write(out, pack.manifest(), &all)?)
}

/// Writes the model with `weights` merged as a plain checkpoint in the new folder `out`: `config.json`, `model.safetensors`,
/// `tokenizer.json`. A merged matrix is `W + s B A`, summed in f32. Frozen matrices come from the pack as it stores them, or in
/// full from the checkpoint in `original`.
///
/// # Errors
/// A folder that is there, a pack with Houlsby adapters, a checkpoint that is not the pack's, a disk that is full.
pub fn export_merged(
    pack: &Pack,
    weights: &NamedTensors,
    original: Option<&Path>,
    out: &Path,
) -> Result<(), ExportError> {
    refuse_occupied(out)?;
    let design = &pack.manifest().design;
    if matches!(design.peft, Peft::Houlsby { .. }) {
        return Err(ExportError::Houlsby);
    }
    let original = original.map(Checkpoint::open).transpose()?;
    let merge = Merge { pack, weights, original: original.as_ref() };
    let config = merge.config()?;
    let tensors: BTreeMap<String, MergedTensor<'_>> = merge.tensors()?;

    fs::create_dir_all(out).map_err(|source| ExportError::Write { path: out.to_owned(), source })?;
    let path = out.join("model.safetensors");
    // The format is what transformers looks for.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(tensors, Some(metadata), &path)
        .map_err(|source| ExportError::Tensors { path, source })?;
    let put = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        fs::write(&path, bytes).map_err(|source| ExportError::Write { path, source })
    };
    put("config.json", &serde_json::to_vec_pretty(&config).expect("JSON has string keys only"))?;
    let tokenizer = pack.tokenizer_path();
    put("tokenizer.json", &fs::read(&tokenizer).map_err(|source| ExportError::Read { path: tokenizer, source })?)
}

fn refuse_occupied(out: &Path) -> Result<(), ExportError> {
    match out.exists() {
        true => Err(ExportError::Occupied { path: out.to_owned() }),
        false => Ok(()),
    }
}

struct Merge<'a> {
    pack: &'a Pack,
    weights: &'a NamedTensors,
    original: Option<&'a Checkpoint>,
}

/// A tensor of the checkpoint to be; its values are made when it is written, one tensor at a time.
struct MergedTensor<'a> {
    shape: Vec<usize>,
    values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

impl View for MergedTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.values)().iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

impl<'a> Merge<'a> {
    /// Every tensor of the plain model, by its name there.
    fn tensors(&self) -> Result<BTreeMap<String, MergedTensor<'a>>, ExportError> {
        let mut tensors = BTreeMap::new();
        for name in self.of_checkpoint() {
            let frozen = self.pack.frozen();
            let Some(tensor) = frozen.tensor(&name) else { continue };
            let shape = tensor.shape.to_vec();
            let update = name.strip_suffix(".weight").and_then(|module| self.update(module));
            let base = self.base(&name, &shape)?;
            let values = Box::new(move || match &update {
                None => base(),
                Some(update) => base().iter().zip(update()).map(|(base, update)| base + update).collect(),
            });
            tensors.insert(name, MergedTensor { shape, values });
        }
        for (name, tensor) in self.weights {
            let plain = name.strip_prefix(PREFIX).unwrap_or(name);
            if !plain.contains(".lora_") {
                let values = Box::new(move || tensor.iter().copied().collect());
                tensors.insert(plain.to_owned(), MergedTensor { shape: tensor.shape().to_vec(), values });
            }
        }
        Ok(tensors)
    }

    /// The frozen tensors that the model itself has: those that graphs read, but for scales and what LoRA brought.
    fn of_checkpoint(&self) -> BTreeSet<String> {
        let stages = &self.pack.manifest().stages;
        let blocks = stages.kinds.iter().enumerate().map(|(layer, &kind)| (&stages.blocks[kind], layer));
        let all = [(&stages.embed, 0), (&stages.head, 0)].into_iter().chain(blocks);
        let names = all.flat_map(|(stage, layer)| {
            let ports = StageSpec::graphs(stage).flat_map(|graph| &graph.inputs);
            ports.filter_map(move |port| port.binding.frozen().map(|name| of_layer(name, layer)))
        });
        let own = |name: &String| !name.ends_with(".scale") && !name.contains(".lora_") && !name.starts_with(ROTARY);
        names.filter(|name| own(&name.replace(self.pack.manifest().design.model.base(), ""))).collect()
    }

    /// A frozen tensor's values: from the original checkpoint, or as the pack stores them.
    fn base(&self, name: &str, shape: &[usize]) -> Result<Box<dyn Fn() -> Vec<f32> + 'a>, ExportError> {
        let frozen = self.pack.frozen();
        let Some(checkpoint) = self.original else {
            let name = name.to_owned();
            return Ok(Box::new(move || frozen.values(&name).unwrap_or_default()));
        };
        let (file, found) = checkpoint.require(name, self.pack.manifest().design.model.base())?;
        let values: Vec<f32> = file.read(found, shape)?.into_iter().collect();
        Ok(Box::new(move || values.clone()))
    }

    /// `s B A` of a linear layer, where LoRA sits on it.
    fn update(&self, module: &str) -> Option<Box<dyn Fn() -> Array2<f32> + 'a>> {
        let Peft::Lora(lora) = &self.pack.manifest().design.peft else { return None };
        let scale = lora.on(module)?.scale;
        let up = self.weights.get(&format!("{PREFIX}{module}.lora_B.weight"))?;
        let down = format!("{module}.lora_A.weight");
        let (pack, trained) = (self.pack, self.weights.get(&format!("{PREFIX}{down}")));
        Some(Box::new(move || {
            let frozen = || {
                let shape = pack.frozen().tensor(&down).map_or([0, 0].as_slice(), |tensor| tensor.shape);
                let values = pack.frozen().values(&down).unwrap_or_default();
                ArrayD::from_shape_vec(shape, values).expect("as many values as the shape says")
            };
            let matrix = |tensor: ArrayD<f32>| tensor.into_dimensionality::<Ix2>().expect("LoRA has matrices");
            let down = matrix(trained.cloned().unwrap_or_else(frozen));
            matrix(up.clone()).dot(&down) * scale
        }))
    }

    /// The checkpoint's settings with the task's head written in.
    fn config(&self) -> Result<Value, ExportError> {
        let path = self.pack.file("config.json");
        let text = fs::read(&path).map_err(|source| ExportError::Read { path, source })?;
        let mut config: Value = serde_json::from_slice(&text).map_err(|_| ExportError::Config)?;
        let settings = config.as_object_mut().ok_or(ExportError::Config)?;
        let manifest = self.pack.manifest();
        let task = manifest.design.head.task;
        let class = match &manifest.design.model {
            Model::Bert(_) if manifest.design.model.name() == "bert" => "Bert",
            Model::Bert(_) if manifest.design.model.name() == "roberta" => "Roberta",
            Model::Bert(_) => "XLMRoberta",
            Model::Deberta(_) => "DebertaV2",
            Model::Decoder(_) => match manifest.design.model.name() {
                "llama" => "Llama",
                "mistral" => "Mistral",
                "qwen2" => "Qwen2",
                _ => "Qwen3",
            },
        };
        let suffix = match task {
            Task::SequenceClassification | Task::Regression => "ForSequenceClassification",
            Task::TokenClassification => "ForTokenClassification",
            Task::CausalLm => "ForCausalLM",
        };
        settings.insert("architectures".to_owned(), json!([format!("{class}{suffix}")]));
        for key in ["torch_dtype", "dtype"] {
            if settings.contains_key(key) {
                settings.insert(key.to_owned(), json!("float32"));
            }
        }
        if task != Task::CausalLm {
            let numbered = manifest.labels.iter().enumerate();
            let by_number: BTreeMap<String, &String> =
                numbered.clone().map(|(at, label)| (at.to_string(), label)).collect();
            let by_name: BTreeMap<&String, usize> = numbered.map(|(at, label)| (label, at)).collect();
            settings.insert("id2label".to_owned(), json!(by_number));
            settings.insert("label2id".to_owned(), json!(by_name));
            settings.insert("num_labels".to_owned(), json!(manifest.labels.len()));
        }
        let kind = match task {
            Task::SequenceClassification => Some("single_label_classification"),
            Task::Regression => Some("regression"),
            Task::TokenClassification | Task::CausalLm => None,
        };
        if let Some(kind) = kind {
            settings.insert("problem_type".to_owned(), json!(kind));
        }
        Ok(config)
    }
}

/// What the names of the rotary tables begin with, which are computed and in no checkpoint.
const ROTARY: &str = "rotary.";
