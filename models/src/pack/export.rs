//! Turns tuned weights into the formats of other programs: a Hugging Face PEFT adapter, or a plain checkpoint with everything
//! merged.
//!
//! An export is written into a folder beside the target, synced to the disk, and renamed. The target therefore holds either
//! the complete export or the earlier contents. A record among the files lists them, so that a later export knows which
//! folders it may replace.

use super::card::{self, About, Form};
use super::origin::name_problem;
use super::staging::Staging;
use super::tie::Tie;
use super::{Pack, PackError, Progress};
use crate::adapter::{self, AdapterError};
use crate::architectures::Model;
use crate::checkpoint::{Checkpoint, CheckpointError, TensorFile, read_bounded};
use crate::peft::{PREFIX, Peft};
use crate::stage::{StageSpec, of_layer};
use crate::task::Task;
use crate::tensors::{NamedTensors, TensorError};
use crate::tokenizer::SIDE_FILES;
use ndarray::{Array2, ArrayD, ArrayView2, Ix2, s};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Contents of an export, also written to its file `skiff-export.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// The version of Skiff that made the export.
    pub made_by: String,
    /// The digest of the pack, 64 hexadecimal digits.
    pub pack: String,
    /// Size of each file except the record, in bytes.
    pub files: BTreeMap<String, u64>,
    /// Number of tensors in the files.
    pub tensors: usize,
    /// Number of elements in the tensors.
    pub parameters: usize,
}

/// Reason why tuned weights cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target exists and is not an earlier export.
    #[error("{path} exists and is not an unchanged earlier export; choose another --out or remove it", path = path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
    },
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
    /// The weights do not belong to the pack.
    #[error("exporting the tuned weights")]
    Weights(#[source] TensorError),
    /// The pack's copy of `config.json` is malformed.
    #[error("the pack's config.json is not a JSON object; make the pack again with `skiff-pack build`")]
    Config,
    /// The given checkpoint does not have the pack's tensors.
    #[error("reading the checkpoint")]
    Checkpoint(#[from] CheckpointError),
    /// The pack is broken.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The adapter cannot be written.
    #[error("writing the adapter")]
    Adapter(#[from] AdapterError),
    /// The base model's name is not valid.
    #[error("{what}")]
    BaseModel {
        /// The fault.
        what: String,
    },
    /// The pack has Houlsby adapters, which are separate layers and cannot be merged.
    #[error("Houlsby adapters are separate layers and cannot be merged into a plain checkpoint")]
    Houlsby,
}

/// File name of the record.
const RECORD: &str = "skiff-export.json";
/// Prefix of the record's `made_by`.
const MAKER: &str = "skiff-pack ";
const TENSORS: &str = "model.safetensors";
/// Number of elements computed at a time, unless a row is longer.
const PIECE: usize = 1 << 20;
/// Prefix of the names of rotary tables, which are computed and are in no checkpoint.
const ROTARY: &str = "rotary.";
/// Files other than tensors that `transformers` reads. A merged checkpoint keeps them.
const COMPANIONS: [&str; 13] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spm.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];
/// Maximum size of each of these files, in bytes.
const MAX_COMPANION_BYTES: u64 = 64 << 20;

/// Writes `weights`, the pack's trainable tensors, as an adapter of Hugging Face PEFT in the folder `out`, with a model card
/// that tells what is known `about` them. Reports each stage of the work to `progress`.
///
/// The folder appears complete or not at all. An earlier export or an empty folder is replaced; anything else is refused.
///
/// # Errors
/// A target that is not an export or an empty folder; a pack that does not train LoRA; a full disk.
pub fn export_adapter(
    pack: &Pack,
    weights: &NamedTensors,
    about: &About,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Exported, ExportError> {
    refuse_occupied(out)?;
    check_name(about)?;
    check(pack, weights)?;
    progress(Progress { doing: "writing the adapter", bytes: None });
    let mut all = weights.clone();
    if let Peft::Lora(lora) = &pack.manifest().design.peft
        && lora.freeze_a
    {
        // The pack freezes A, but PEFT's adapter contains it.
        for (name, tensor) in pack.frozen().tensors().filter(|(name, _)| name.ends_with(".lora_A.weight")) {
            let values = pack.frozen().values(name).expect("the tensor was just there");
            let tensor = ArrayD::from_shape_vec(tensor.shape, values).expect("as many values as the shape says");
            all.insert(format!("{PREFIX}{name}"), tensor);
        }
    }
    let contents = Contents { tensors: all.len(), parameters: all.values().map(ArrayD::len).sum() };
    put_in_place(pack, out, |staging| {
        let base = about.base_model.as_deref().or(pack.manifest().base_model.as_deref());
        adapter::write(staging, pack.manifest(), base, &all)?;
        put(&staging.join(card::FILE), card::write(pack, Form::Adapter, about).as_bytes())?;
        Ok(contents)
    })
}

/// Writes the model with `weights` merged as a plain checkpoint in the folder `out`: `config.json`, `model.safetensors`,
/// `tokenizer.json`, and a model card that tells what is known `about` the weights. The folder is replaced as in [`export_adapter`].
///
/// A merged matrix is `W + s B A`, summed in f32. Frozen matrices come from the pack in its storage format, or in full
/// precision from the checkpoint in `original`. The tokenizer's settings come from the pack, and its further files from that
/// checkpoint, if it has them.
/// The largest tensor bounds the memory.
///
/// # Errors
/// A target that is not an export or an empty folder; a pack with Houlsby adapters; a checkpoint that does not belong to the
/// pack; a full disk.
pub fn export_merged(
    pack: &Pack,
    weights: &NamedTensors,
    original: Option<&Path>,
    about: &About,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Exported, ExportError> {
    refuse_occupied(out)?;
    if matches!(pack.manifest().design.peft, Peft::Houlsby { .. }) {
        return Err(ExportError::Houlsby);
    }
    check_name(about)?;
    check(pack, weights)?;
    let mut checkpoint = original.map(Checkpoint::open).transpose()?;
    if let Some(checkpoint) = &mut checkpoint {
        // The same as in the build: a checkpoint of a tied model may have either table.
        let mut model = pack.manifest().design.model.clone();
        Tie::settle(&mut model, pack.manifest().design.head.task, checkpoint)?;
    }
    let merge = Merge { pack, weights, original: checkpoint.as_ref() };
    let config = serde_json::to_vec_pretty(&merge.config()?).expect("JSON has string keys only");
    let tensors = merge.tensors()?;
    let parameters = tensors.values().map(Merged::parameters).sum();
    put_in_place(pack, out, |staging| {
        write_tensors(&tensors, &staging.join(TENSORS), progress)?;
        progress(Progress { doing: "copying the tokenizer", bytes: None });
        put(&staging.join("config.json"), &config)?;
        put(&staging.join(card::FILE), card::write(pack, Form::Merged, about).as_bytes())?;
        copy(&pack.tokenizer_path(), &staging.join("tokenizer.json"))?;
        for name in SIDE_FILES.into_iter().filter(|name| pack.manifest().files.contains_key(*name)) {
            copy(&pack.file(name), &staging.join(name))?;
        }
        for name in COMPANIONS {
            // Links are followed, because the folders of the hub's own client have them.
            let companion = original.map(|folder| folder.join(name)).filter(|path| path.is_file());
            companion.map_or(Ok(()), |path| copy(&path, &staging.join(name)))?;
        }
        Ok(Contents { tensors: tensors.len(), parameters })
    })
}

fn check_name(about: &About) -> Result<(), ExportError> {
    let problem = about.base_model.as_deref().and_then(name_problem);
    problem.map_or(Ok(()), |what| Err(ExportError::BaseModel { what }))
}

/// Checks that `weights` are exactly the pack's trainable tensors.
fn check(pack: &Pack, weights: &NamedTensors) -> Result<(), ExportError> {
    let schema = pack.schema();
    let unknown = weights.keys().find(|name| schema.find(name).is_none());
    let unknown = unknown.map(|name| TensorError::Unknown { name: name.clone() });
    let wrong = schema.tensors.iter().find_map(|spec| {
        let name = spec.name.clone();
        match weights.get(&name) {
            None => Some(TensorError::Missing { name }),
            Some(tensor) if tensor.shape() != spec.shape => {
                Some(TensorError::Shape { name, expected: spec.shape.clone(), found: tensor.shape().to_vec() })
            }
            Some(_) => None,
        }
    });
    unknown.or(wrong).map_or(Ok(()), |problem| Err(ExportError::Weights(problem)))
}

struct Contents {
    tensors: usize,
    parameters: usize,
}

fn refuse_occupied(out: &Path) -> Result<(), ExportError> {
    let free = match fs::symlink_metadata(out) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound && out.file_name().is_some(),
        Ok(found) => found.is_dir() && out.file_name().is_some() && (is_empty(out) || is_an_export(out)),
    };
    if free { Ok(()) } else { Err(ExportError::Occupied { path: out.to_owned() }) }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Returns true if the folder has the record, the listed files with the listed sizes, and nothing else.
fn is_an_export(folder: &Path) -> bool {
    let record = folder.join(RECORD);
    if !is_a_file(&record) {
        return false;
    }
    let record: Option<Exported> = read_bounded(&record).ok().and_then(|text| serde_json::from_slice(&text).ok());
    record.is_some_and(|record| {
        record.made_by.starts_with(MAKER)
            && sizes(folder).is_ok_and(|mut found| found.remove(RECORD).is_some() && found == record.files)
    })
}

fn is_a_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Returns the names and sizes of the files in a folder that holds only files.
fn sizes(folder: &Path) -> std::io::Result<BTreeMap<String, u64>> {
    let size = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        let found = entry.metadata()?;
        let name = entry.file_name().into_string().ok().filter(|_| found.is_file());
        Ok((name.ok_or_else(|| std::io::Error::other("not a file with a plain name"))?, found.len()))
    };
    fs::read_dir(folder)?.map(size).collect()
}

/// Lets `fill` write a folder beside `out`, and renames it to `out` once all of it is on the disk.
fn put_in_place(
    pack: &Pack,
    out: &Path,
    fill: impl FnOnce(&Path) -> Result<Contents, ExportError>,
) -> Result<Exported, ExportError> {
    let staging = Staging::begin(out).map_err(failed_at(out))?;
    let contents = fill(staging.path())?;
    let exported = record(pack, staging.path(), &contents)?;
    // Another program may have filled the target meanwhile.
    refuse_occupied(out)?;
    staging.commit().map_err(failed_at(out))?;
    Ok(exported)
}

fn record(pack: &Pack, folder: &Path, contents: &Contents) -> Result<Exported, ExportError> {
    let files = sizes(folder).map_err(|source| ExportError::Read { path: folder.to_owned(), source })?;
    let exported = Exported {
        made_by: format!("{MAKER}{}", env!("CARGO_PKG_VERSION")),
        pack: blake3::Hash::from(pack.digest()).to_hex().to_string(),
        files,
        tensors: contents.tensors,
        parameters: contents.parameters,
    };
    put(&folder.join(RECORD), &serde_json::to_vec_pretty(&exported).expect("JSON has string keys only"))?;
    Ok(exported)
}

fn failed_at(path: &Path) -> impl FnOnce(std::io::Error) -> ExportError {
    let path = path.to_owned();
    move |source| ExportError::Write { path, source }
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    fs::write(path, bytes).map_err(failed_at(path))
}

fn copy(from: &Path, to: &Path) -> Result<(), ExportError> {
    let unread = |source| ExportError::Read { path: from.to_owned(), source };
    let mut source = File::open(from).map_err(unread)?.take(MAX_COMPANION_BYTES + 1);
    let mut target = File::create(to).map_err(failed_at(to))?;
    let bytes = std::io::copy(&mut source, &mut target).map_err(failed_at(to))?;
    match bytes > MAX_COMPANION_BYTES {
        true => Err(unread(std::io::Error::other(format!("more than {MAX_COMPANION_BYTES} bytes")))),
        false => Ok(()),
    }
}

/// Writes the header from the shapes alone, then one tensor after another in the order of their names.
fn write_tensors(
    tensors: &BTreeMap<String, Merged<'_>>,
    path: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ExportError> {
    let header = header(tensors);
    let mut file = File::create(path).map_err(failed_at(path))?;
    let total = (header.len() + tensors.values().map(|tensor| 4 * tensor.parameters()).sum::<usize>()) as u64;
    let mut done = 0;
    let mut put = |bytes: &[u8]| {
        file.write_all(bytes).map_err(failed_at(path))?;
        done += bytes.len() as u64;
        progress(Progress { doing: "merging", bytes: Some((done, total)) });
        Ok::<_, ExportError>(())
    };
    put(&header)?;
    let mut bytes = Vec::new();
    for tensor in tensors.values() {
        tensor.pieces(&mut |values| {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            put(&bytes)
        })?;
    }
    Ok(())
}

fn header(tensors: &BTreeMap<String, Merged<'_>>) -> Vec<u8> {
    // transformers requires the key `format`.
    let mut entries = serde_json::Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut begin = 0;
    for (name, tensor) in tensors {
        let end = begin + 4 * tensor.parameters();
        entries.insert(name.clone(), json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end] }));
        begin = end;
    }
    let mut text = serde_json::to_vec(&entries).expect("JSON has string keys only");
    text.resize(text.len().next_multiple_of(8), b' ');
    [(text.len() as u64).to_le_bytes().as_slice(), &text].concat()
}

/// A tensor of the new checkpoint, with values that are computed when it is written.
struct Merged<'a> {
    shape: Vec<usize>,
    base: Base<'a>,
    update: Option<Update<'a>>,
}

/// Source of the values, without LoRA's part.
enum Base<'a> {
    Pack(&'a Pack, String),
    Checkpoint(&'a TensorFile, String),
    Trained(&'a ArrayD<f32>),
}

/// LoRA's part, `s B A`.
struct Update<'a> {
    scale: f32,
    up: ArrayView2<'a, f32>,
    down: Array2<f32>,
}

impl Merged<'_> {
    fn parameters(&self) -> usize {
        self.shape.iter().product()
    }

    /// Passes the values to `take` in order, some rows at a time.
    fn pieces(&self, take: &mut dyn FnMut(&[f32]) -> Result<(), ExportError>) -> Result<(), ExportError> {
        let row = self.shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>()).max(1);
        let (mut rows, mut sums) = (0, Vec::new());
        let mut add = |values: &[f32]| {
            let Some(Update { scale, up, down }) = &self.update else { return take(values) };
            let end = rows + values.len() / row;
            let update = up.slice(s![rows..end, ..]).dot(down) * *scale;
            rows = end;
            sums.clear();
            sums.extend(values.iter().zip(&update).map(|(base, update)| base + update));
            take(&sums)
        };
        match &self.base {
            Base::Checkpoint(file, name) => file.pieces(name, &self.shape, row, &mut add),
            Base::Pack(pack, name) => stored(pack, name)?.chunks((PIECE / row).max(1) * row).try_for_each(add),
            Base::Trained(tensor) => add(&tensor.iter().copied().collect::<Vec<_>>()),
        }
    }
}

/// Returns a frozen tensor's values in the pack's storage format.
fn stored(pack: &Pack, name: &str) -> Result<Vec<f32>, PackError> {
    pack.frozen().values(name).ok_or_else(|| absent(pack, name))
}

fn absent(pack: &Pack, name: &str) -> PackError {
    PackError::Tensors { path: pack.file("frozen.safetensors"), source: TensorError::Missing { name: name.to_owned() } }
}

struct Merge<'a> {
    pack: &'a Pack,
    weights: &'a NamedTensors,
    original: Option<&'a Checkpoint>,
}

impl<'a> Merge<'a> {
    /// Returns every tensor of the plain model, by its name in the plain model.
    fn tensors(&self) -> Result<BTreeMap<String, Merged<'a>>, ExportError> {
        let mut tensors = BTreeMap::new();
        for name in self.of_checkpoint() {
            let shape = self.pack.frozen().tensor(&name).ok_or_else(|| absent(self.pack, &name))?.shape.to_vec();
            let update = name.strip_suffix(".weight").map(|module| self.update(module)).transpose()?.flatten();
            let base = self.base(&name, &shape)?;
            tensors.insert(name, Merged { shape, base, update });
        }
        for (name, tensor) in self.weights {
            let plain = name.strip_prefix(PREFIX).unwrap_or(name);
            if !plain.contains(".lora_") {
                let merged = Merged { shape: tensor.shape().to_vec(), base: Base::Trained(tensor), update: None };
                tensors.insert(plain.to_owned(), merged);
            }
        }
        Ok(tensors)
    }

    /// Returns the names of the model's own frozen tensors: all tensors that graphs read, except scales and LoRA's tensors.
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

    /// Finds a frozen tensor's values in the original checkpoint or in the pack. A checkpoint without the tensor, or with another
    /// shape of it, is refused before anything is written.
    fn base(&self, name: &str, shape: &[usize]) -> Result<Base<'a>, ExportError> {
        let Some(checkpoint) = self.original else { return Ok(Base::Pack(self.pack, name.to_owned())) };
        let (file, found) = checkpoint.require(name, self.pack.manifest().design.model.base())?;
        file.check(found, shape)?;
        Ok(Base::Checkpoint(file, found.to_owned()))
    }

    /// Returns LoRA's part of a linear layer, if the layer has one.
    fn update(&self, module: &str) -> Result<Option<Update<'a>>, ExportError> {
        let Peft::Lora(lora) = &self.pack.manifest().design.peft else { return Ok(None) };
        let up = self.weights.get(&format!("{PREFIX}{module}.lora_B.weight"));
        let (Some(settings), Some(up)) = (lora.on(module), up) else { return Ok(None) };
        let name = format!("{module}.lora_A.weight");
        let down = match self.weights.get(&format!("{PREFIX}{name}")) {
            Some(trained) => trained.clone(),
            None => {
                let shape = self.pack.frozen().tensor(&name).ok_or_else(|| absent(self.pack, &name))?.shape;
                ArrayD::from_shape_vec(shape, stored(self.pack, &name)?).expect("as many values as the shape says")
            }
        };
        let up = up.view().into_dimensionality::<Ix2>().expect("LoRA has matrices");
        let down = down.into_dimensionality::<Ix2>().expect("LoRA has matrices");
        Ok(Some(Update { scale: settings.scale, up, down }))
    }

    /// Returns the checkpoint's settings, completed with the task's head.
    fn config(&self) -> Result<Value, ExportError> {
        let path = self.pack.file("config.json");
        let text = read_bounded(&path).map_err(|source| ExportError::Read { path, source })?;
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
        // The export is f32, whatever the checkpoint was.
        settings.remove("quantization_config");
        let is_relative = settings.get("relative_attention").and_then(Value::as_bool).unwrap_or(false);
        if matches!(manifest.design.model, Model::Deberta(_)) && !is_relative {
            // Without relative positions nothing reads their norm, so a pack does not contain it.
            settings.insert("norm_rel_ebd".to_owned(), json!("none"));
        }
        if task == Task::CausalLm {
            // The checkpoint may have two tables, although its settings say that they are one.
            settings.insert("tie_word_embeddings".to_owned(), json!(manifest.design.model.is_tied()));
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};

    #[test]
    fn a_matrix_of_many_pieces_is_merged_a_few_rows_at_a_time() {
        let (rows, columns) = (5, 450_000);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TENSORS);
        let value = |at: usize| (at % 1021) as f32 / 64.0;
        let bytes: Vec<u8> = (0..rows * columns).flat_map(|at| value(at).to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![rows, columns], &bytes).unwrap();
        safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let up = Array2::from_shape_fn((rows, 2), |(row, rank)| (row + 2 * rank) as f32);
        let down = Array2::from_shape_fn((2, columns), |(rank, column)| ((column + rank) % 7) as f32);
        let expected = Array2::from_shape_fn((rows, columns), |(row, column)| {
            value(row * columns + column) + 0.5 * (0..2).map(|r| up[[row, r]] * down[[r, column]]).sum::<f32>()
        });
        let update = Some(Update { scale: 0.5, up: up.view(), down });
        let merged = Merged { shape: vec![rows, columns], base: Base::Checkpoint(&file, "w".to_owned()), update };
        let (mut found, mut pieces) = (Vec::new(), 0);
        merged
            .pieces(&mut |values| {
                assert!(values.len() <= PIECE && values.len().is_multiple_of(columns));
                found.extend_from_slice(values);
                pieces += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(pieces, 3);
        assert!(found.iter().eq(&expected), "these values are exact in f32, in whatever order they are summed");
    }
}
