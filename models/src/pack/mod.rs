//! The pack: a model's folder on a device.
//!
//! ```text
//! manifest.json          sizes, labels, trainable tensors, ports of every graph, blake3 of every file
//! graphs/*.onnx          forward, backward, backward_lowest, evaluate of each stage; no weights inside
//! frozen.safetensors     frozen tensors, memory-mapped
//! peft.safetensors       initial values of the trainable tensors
//! tokenizer.json         the checkpoint's own, with all settings of the files beside it applied
//! tokenizer_config.json  the checkpoint's own, like special_tokens_map.json, added_tokens.json and chat_template.jinja; for exports
//! config.json            the checkpoint's own
//! license.txt            name of the checkpoint's licence, if its model card has one
//! ```
//! A pack opens only if it is complete: every file is read once and compared with its digest.

mod build;
mod card;
mod export;
mod frozen;
mod labels;
mod leftover;
mod origin;
mod staging;
mod storage;
mod tie;

pub use crate::storage::Storage;
pub use build::{BuildError, BuildOptions, Built, Progress, build};
pub use card::{About, Figure};
pub use export::{ExportError, Exported, export_adapter, export_merged};
pub use frozen::{Frozen, FrozenTensor, check};
pub use labels::{Classes, HeadRows, Matching};
pub use leftover::Ignored;
pub use storage::{Rounding, StorageError};
pub use tie::Tie;

use crate::design::{Design, Stages};
use crate::files;
use crate::graph::DType;
use crate::layout::Layout;
use crate::stage::{FrozenSource, Port, StageSpec, StageSpecs, of_layer};
use crate::task::Task;
use crate::tensors::{NamedTensors, Schema, TensorError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// Newest pack format that this build reads and writes.
pub const FORMAT: u32 = 4;
/// Oldest pack format that this build reads. Format 3 has no settings for texts: their parts are joined with [`SEPARATOR`], and a
/// language model's texts get no end token. A pack with just these settings is written in format 3, so that older agents of a fleet
/// read it too.
pub const OLDEST_FORMAT: u32 = 3;
/// Text between a title and a description, unless a build sets another one.
pub const SEPARATOR: &str = ". ";
/// Maximum length of a separator, in bytes.
const MAX_SEPARATOR_BYTES: usize = 256;
/// Maximum size of the manifest, in bytes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// Contents of `manifest.json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, from [`OLDEST_FORMAT`] to [`FORMAT`].
    pub format: u32,
    /// Version of Skiff that made the pack.
    pub made_by: String,
    /// Name under which other programs load the checkpoint: a repository on the Hugging Face hub, or the path of its folder.
    pub base_model: Option<String>,
    /// Model, task, method of fine-tuning, and storage of the frozen tensors.
    pub design: Design,
    /// Names of the classes, in the order of the scores, or names of the numbers. A language model has none.
    pub labels: Vec<String>,
    /// Text between a title and a description, in examples that have both instead of one text.
    #[serde(default = "usual_separator", skip_serializing_if = "is_usual_separator")]
    pub separator: String,
    /// Token after every text of a language model that is not cut; `None` for other tasks, or if texts get none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_token: Option<EndToken>,
    /// Properties that determine the form of a batch.
    pub layout: Layout,
    /// Number of layers that can be skipped.
    pub layers: usize,
    /// The trainable tensors.
    pub schema: Schema,
    /// The graphs with plain operators.
    pub stages: StageSpecs,
    /// The graphs with fused operators.
    pub fused: StageSpecs,
    /// Rounding errors of the frozen matrices, if they are stored with fewer bits.
    pub rounding: Option<Rounding>,
    /// Size and digest of every other file of the pack.
    pub files: BTreeMap<String, FileEntry>,
}

/// The token that ends a text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndToken {
    /// The token, for example `<|endoftext|>`.
    pub text: String,
    /// Number of the token in the tokenizer.
    pub id: u32,
}

fn usual_separator() -> String {
    SEPARATOR.to_owned()
}

fn is_usual_separator(separator: &str) -> bool {
    separator == SEPARATOR
}

/// Returns the oldest pack format that has these settings for texts.
fn format_with(separator: &str, end_token: Option<&EndToken>) -> u32 {
    if is_usual_separator(separator) && end_token.is_none() { OLDEST_FORMAT } else { FORMAT }
}

/// A file of the pack.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// blake3 digest of the file, 64 hexadecimal digits.
    pub blake3: String,
}

/// Reason why a folder is not a valid pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file cannot be read.
    #[error("reading {path}; make the pack again with `skiff-pack build`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The manifest cannot be parsed.
    #[error("reading the manifest {path}; make the pack again with `skiff-pack build`", path = path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The parser's error, with its position in the file.
        source: serde_json::Error,
    },
    /// The pack was made for another version of Skiff.
    #[error("{path} has pack format {found}, this build reads {OLDEST_FORMAT} to {FORMAT}; use the matching Skiff or make the pack again", path = path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// The value that was found.
        found: u64,
    },
    /// The manifest names a file outside the pack, or does not list a file.
    #[error("the manifest names {name:?}, which is not a file of the pack")]
    Foreign {
        /// The name.
        name: String,
    },
    /// A file's bytes do not match the manifest's digest.
    #[error("{path} is damaged: its blake3 is {found}, the manifest says {expected}; copy or make the pack again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The manifest's digest.
        expected: String,
        /// The size of the file.
        found: String,
    },
    /// A file does not have the length in the manifest, or is not a file.
    #[error("{path} is damaged: it has {found} bytes, the manifest says {expected}; copy or make the pack again", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The manifest's size.
        expected: u64,
        /// The file's.
        found: u64,
    },
    /// The parts of the manifest contradict each other.
    #[error("{path}: {what}; make the pack again with `skiff-pack build`", path = path.display())]
    Inconsistent {
        /// The manifest.
        path: PathBuf,
        /// The mismatch.
        what: String,
    },
    /// The pack differs from the graphs that this version of Skiff makes for the manifest's design.
    #[error("{path} does not agree with its own design: {what}; make the pack again with `skiff-pack build`", path = path.display())]
    Design {
        /// The manifest, or a graph.
        path: PathBuf,
        /// The difference.
        what: String,
    },
    /// The design's graphs cannot be made.
    #[error("making the graphs of the design again")]
    Graph(#[from] crate::graph::GraphError),
    /// A tensor file is malformed.
    #[error("reading tensors of {path}", path = path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TensorError,
    },
}

/// File name of the frozen weights.
const FROZEN: &str = "frozen.safetensors";

/// An open pack, with mapped frozen weights and verified other files.
#[derive(Debug)]
pub struct Pack {
    directory: PathBuf,
    manifest: Manifest,
    digest: [u8; 32],
    frozen: Frozen,
}

impl Pack {
    /// Opens the pack in `directory` and verifies everything except the values of the frozen weights. [`Pack::check_weights`]
    /// verifies these, which takes as long as reading them.
    ///
    /// # Errors
    /// A missing, damaged or foreign file; another format; a manifest that contradicts itself.
    pub fn open(directory: &Path) -> Result<Self, PackError> {
        let path = directory.join("manifest.json");
        let text = files::read_json_bounded(&path, MAX_MANIFEST_BYTES);
        let text = text.map_err(|source| PackError::Read { path: path.clone(), source })?;
        let manifest = parse_manifest(&path, &text)?;
        for (name, entry) in &manifest.files {
            check_size(directory, name, entry)?;
            if name != FROZEN {
                check_digest(directory, name, entry)?;
            }
        }
        check_consistency(&path, &manifest)?;
        let tensors = directory.join(FROZEN);
        let frozen = Frozen::open(&tensors).map_err(|source| PackError::Tensors { path: tensors, source })?;
        let pack = Self { directory: directory.to_owned(), manifest, digest: *blake3::hash(&text).as_bytes(), frozen };
        pack.check_ports()?;
        Ok(pack)
    }

    /// Reads the frozen weights and compares their digest with the manifest's.
    ///
    /// # Errors
    /// A damaged file, or one that cannot be read.
    pub fn check_weights(&self) -> Result<(), PackError> {
        let Some(entry) = self.manifest.files.get(FROZEN) else {
            return Err(PackError::Foreign { name: FROZEN.to_owned() });
        };
        check_digest(&self.directory, FROZEN, entry)
    }

    /// Returns the path of the frozen weights.
    #[must_use]
    pub fn weights_path(&self) -> PathBuf {
        self.directory.join(FROZEN)
    }

    /// Returns the pack's manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns blake3 of the manifest, which contains the digest of every other file. Packs with the same digest are the same.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Returns the trainable tensors.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.manifest.schema
    }

    /// Returns the frozen tensors.
    #[must_use]
    pub fn frozen(&self) -> &Frozen {
        &self.frozen
    }

    /// Returns the name of the base model's licence, for example `apache-2.0`, if the checkpoint's model card had one.
    #[must_use]
    pub fn license(&self) -> Option<String> {
        let entry = self.manifest.files.get(origin::LICENSE_FILE)?;
        let bytes =
            files::read_bounded(&self.file(origin::LICENSE_FILE), entry.bytes.min(origin::MAX_LICENSE_BYTES)).ok()?;
        let name = String::from_utf8(bytes).ok()?;
        Some(name.trim().to_owned()).filter(|name| origin::is_license(name))
    }

    /// Returns the first values of the trainable tensors.
    ///
    /// # Errors
    /// A file that cannot be read or does not follow the schema.
    pub fn initial_weights(&self) -> Result<NamedTensors, PackError> {
        let path = self.directory.join("peft.safetensors");
        let most = self.manifest.files.get("peft.safetensors").map_or(0, |entry| entry.bytes);
        let bytes =
            files::read_bounded(&path, most).map_err(|source| PackError::Read { path: path.clone(), source })?;
        self.schema().read(&bytes).map_err(|source| PackError::Tensors { path, source })
    }

    /// Builds the graphs of the manifest's design again and compares tensors and ports. If this version of Skiff made the pack,
    /// it also compares every byte, and returns `true`.
    ///
    /// The comparison proves that the graphs compute the design. Digests only prove that nothing changed after the pack was made.
    ///
    /// # Errors
    /// A design that differs from the graphs' own; the error names the first difference.
    pub fn check_design(&self) -> Result<bool, PackError> {
        let Manifest { design, schema, stages, fused, made_by, .. } = &self.manifest;
        let differs = |path: PathBuf, what: &str| Err(PackError::Design { path, what: what.to_owned() });
        let manifest = self.file("manifest.json");
        let again = design.stages()?;
        if again.schema() != *schema {
            return differs(manifest, "its trainable tensors differ from `schema`");
        }
        if again.specs() != *stages {
            return differs(manifest, "the ports of its graphs differ from `stages`");
        }
        for crate::stage::FrozenTensor { name, source, .. } in &again.frozen {
            // Scalings, frequencies and distances come from the design instead of the checkpoint.
            if let FrozenSource::Values(values) = source
                && self.frozen.values(name).as_deref() != Some(values)
            {
                return differs(self.file(FROZEN), &format!("{name:?} has other values"));
            }
        }
        let fused_again = design.fused_stages()?;
        if fused_again.specs() != *fused {
            return differs(manifest, "the ports of its fused graphs differ from `fused`");
        }
        let same_maker = *made_by == build::maker();
        for (name, bytes) in [&again, &fused_again].into_iter().flat_map(Stages::files).filter(|_| same_maker) {
            let found = self.manifest.files.get(name).map(|entry| entry.blake3.as_str());
            if found != Some(blake3::hash(bytes).to_hex().as_str()) {
                return differs(self.file(name), "the graph differs");
            }
        }
        Ok(same_maker)
    }

    /// Returns the path of the tokenizer.
    #[must_use]
    pub fn tokenizer_path(&self) -> PathBuf {
        self.directory.join("tokenizer.json")
    }

    /// Returns the path of a file that the manifest names.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Checks that every tensor that a graph reads exists, with the graph's type and shape.
    fn check_ports(&self) -> Result<(), PackError> {
        for (stage, layer) in [&self.manifest.stages, &self.manifest.fused].into_iter().flat_map(of_layers) {
            for graph in stage.graphs() {
                // A rank is a letter, with the same value everywhere in one graph.
                let mut letters = BTreeMap::new();
                for port in graph.inputs.iter().chain(&graph.outputs) {
                    self.check_port(port, layer, &mut letters)?;
                }
            }
        }
        Ok(())
    }

    fn check_port(&self, port: &Port, layer: usize, letters: &mut BTreeMap<String, usize>) -> Result<(), PackError> {
        let (name, file, found) = if let Some(template) = port.binding.frozen() {
            let name = of_layer(template, layer);
            let found = self.frozen.tensor(&name).map(|tensor| (tensor.shape, tensor.dtype));
            (name, FROZEN, found)
        } else if let Some(template) = port.binding.trained() {
            let name = of_layer(template, layer);
            let found = self.schema().find(&name).map(|spec| (spec.shape.as_slice(), DType::F32));
            (name, "peft.safetensors", found)
        } else {
            return Ok(());
        };
        let path = self.directory.join(file);
        let fail = |source| Err(PackError::Tensors { path: path.clone(), source });
        let Some((shape, dtype)) = found else { return fail(TensorError::Missing { name }) };
        if dtype != port.dtype {
            return fail(TensorError::Type { name, expected: port.dtype, found: dtype });
        }
        let fits = shape.len() == port.shape.len()
            && shape.iter().zip(&port.shape).all(|(&size, dim)| match dim.parse::<usize>() {
                Ok(known) => known == size,
                Err(_) => *letters.entry(dim.clone()).or_insert(size) == size,
            });
        if fits {
            return Ok(());
        }
        // A letter that occurs only once may be any number, which 0 stands for.
        let size = |dim: &String| dim.parse().unwrap_or_else(|_| letters.get(dim).copied().unwrap_or(0));
        let expected = port.shape.iter().map(size).collect();
        fail(TensorError::Shape { name, expected, found: shape.to_vec() })
    }
}

/// Parses the format before anything else, so that the error for a newer pack says so, instead of calling it malformed.
fn parse_manifest(path: &Path, text: &[u8]) -> Result<Manifest, PackError> {
    let malformed = |source| PackError::Manifest { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(text).map_err(malformed)?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if !(u64::from(OLDEST_FORMAT)..=u64::from(FORMAT)).contains(&found) => {
            Err(PackError::Format { path: path.to_owned(), found })
        }
        _ => serde_json::from_value(value).map_err(malformed),
    }
}

fn check_size(directory: &Path, name: &str, entry: &FileEntry) -> Result<(), PackError> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !inside {
        return Err(PackError::Foreign { name: name.to_owned() });
    }
    let path = directory.join(name);
    let read = |source| PackError::Read { path: path.clone(), source };
    let found = std::fs::metadata(&path).map_err(read)?;
    if !found.is_file() || found.len() != entry.bytes {
        if let Some(foreign) = files::foreign_start(&path) {
            return Err(read(std::io::Error::new(std::io::ErrorKind::InvalidData, foreign)));
        }
        return Err(PackError::Size { path, expected: entry.bytes, found: found.len() });
    }
    Ok(())
}

fn check_digest(directory: &Path, name: &str, entry: &FileEntry) -> Result<(), PackError> {
    let path = directory.join(name);
    let found = digest_of_file(&path).map_err(|source| PackError::Read { path: path.clone(), source })?;
    if found == entry.blake3 { Ok(()) } else { Err(PackError::Damaged { path, expected: entry.blake3.clone(), found }) }
}

/// Returns what is wrong with the settings for texts, if anything.
fn texts_problem(separator: &str, end_token: Option<&EndToken>, design: &Design) -> Option<String> {
    if separator.len() > MAX_SEPARATOR_BYTES {
        return Some(format!("the separator has {} bytes, expected at most {MAX_SEPARATOR_BYTES}", separator.len()));
    }
    let EndToken { text, id } = end_token?;
    let vocabulary = design.model.sizes().vocabulary;
    if design.head.task != Task::CausalLm {
        return Some(format!("{} has no end token, and {text:?} is given", design.head.task));
    }
    (*id as usize >= vocabulary)
        .then(|| format!("the end token {text:?} has the number {id}, but the model knows {vocabulary} tokens"))
}

/// Computes the digest of a file. Reads the file instead of mapping it, so that no pages stay resident.
fn digest_of_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Returns every stage with each of its layers.
fn of_layers(stages: &StageSpecs) -> impl Iterator<Item = (&StageSpec, usize)> {
    let kinds = stages.kinds.iter().enumerate();
    let blocks = kinds.flat_map(|(layer, &kind)| {
        [stages.blocks.get(kind), stages.last_blocks.get(kind)].into_iter().flatten().map(move |stage| (stage, layer))
    });
    [(&stages.embed, 0), (&stages.head, 0)].into_iter().chain(blocks)
}

fn check_consistency(path: &Path, manifest: &Manifest) -> Result<(), PackError> {
    let fail = |what: String| Err(PackError::Inconsistent { path: path.to_owned(), what });
    let Manifest { design, labels, layers, schema, stages, .. } = manifest;
    if let Some(problem) = design.problem() {
        return fail(problem);
    }
    if *layers != design.model.sizes().layers || stages.kinds.len() != *layers {
        let (kinds, model) = (stages.kinds.len(), design.model.sizes().layers);
        return fail(format!("{layers} layers with {kinds} kinds, but the model has {model}"));
    }
    for stages in [stages, &manifest.fused] {
        let lasts = stages.last_blocks.len();
        if stages.kinds.len() != *layers || stages.kinds.iter().any(|&kind| kind >= stages.blocks.len()) {
            return fail("a layer has a kind that does not exist".to_owned());
        }
        if lasts != 0 && lasts != stages.blocks.len() {
            return fail(format!("{lasts} kinds of highest layer for {} kinds of layer", stages.blocks.len()));
        }
    }
    // The tokenizer's settings may allow less than the model's positions.
    let positions = design.layout().max_tokens;
    let max_tokens = manifest.layout.max_tokens.clamp(1, positions.max(1));
    if manifest.layout != (Layout { max_tokens, ..design.layout() }) {
        return fail("the layout does not belong to this design".to_owned());
    }
    if design.head.task != Task::CausalLm && labels.len() != design.head.labels {
        return fail(format!("{} labels, but the head has {}", labels.len(), design.head.labels));
    }
    if let Some(problem) = labels::names_problem(labels) {
        return fail(problem);
    }
    if let Some(problem) = texts_problem(&manifest.separator, manifest.end_token.as_ref(), design) {
        return fail(problem);
    }
    if schema.tensors.windows(2).any(|pair| pair[0].name >= pair[1].name) {
        return fail("the schema is not ordered by name".to_owned());
    }
    if let Some(spec) = schema.tensors.iter().find(|spec| spec.layer.is_some_and(|layer| layer >= *layers)) {
        return fail(format!("tensor {:?} is of layer {:?}, but there are {layers}", spec.name, spec.layer));
    }
    let stages = [stages, &manifest.fused].into_iter().flat_map(StageSpecs::all);
    let graphs = stages.flat_map(StageSpec::graphs).map(|graph| graph.file.as_str());
    let needed = graphs.chain([FROZEN, "peft.safetensors", "tokenizer.json"]);
    match needed.into_iter().find(|name| !manifest.files.contains_key(*name)) {
        Some(name) => Err(PackError::Foreign { name: name.to_owned() }),
        None => Ok(()),
    }
}
