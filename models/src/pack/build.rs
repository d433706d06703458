//! Makes a pack from a Hugging Face checkpoint folder.

use super::labels::{Classes, HeadRows, Question};
use super::leftover::{Ignored, Leftovers};
use super::origin;
use super::staging::Staging;
use super::storage::{self, Piece, Rounding, StorageError, Values};
use super::tie::Tie;
use super::{EndToken, FileEntry, Manifest, SEPARATOR, digest_of_file, format_with, texts_problem};
use crate::adapter::{Adapter, AdapterError};
use crate::architectures::{ConfigError, Head, Model};
use crate::checkpoint::{Checkpoint, CheckpointError, read_bounded};
use crate::design::{Design, Stages};
use crate::graph::GraphError;
use crate::layout::Layout;
use crate::peft::{PREFIX, Peft, draw};
use crate::stage::{FrozenSource, FrozenTensor, Initial};
use crate::storage::Storage;
use crate::task::Task;
use crate::tensors::{self, NamedTensors, TensorError};
use crate::tokenizer::{self, ResolvedTokenizer, SIDE_FILES, TokenizerError};
use ndarray::{ArrayD, Axis};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Settings of a build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Folder with `config.json`, `model.safetensors` (or shards and their index) and `tokenizer.json`.
    pub checkpoint: PathBuf,
    /// The pack's folder. An existing pack there is replaced; anything else is refused.
    pub out: PathBuf,
    /// The task.
    pub task: Task,
    /// Names of the classes, in the order of the scores, or names of the numbers. `None`: the checkpoint's own labels. A language
    /// model has none.
    pub labels: Option<Vec<String>>,
    /// Method of fine-tuning. Without targets, LoRA targets query and value.
    pub peft: Peft,
    /// Storage of frozen matrices.
    pub frozen: Storage,
    /// Folder with an adapter of Hugging Face PEFT, whose settings and values replace LoRA's.
    pub adapter: Option<PathBuf>,
    /// Seed for the first values.
    pub seed: u64,
    /// Name of the base model for adapters and model cards. `None` stands for the repository's name, if the checkpoint is in the
    /// cache of the Hugging Face hub, and otherwise for the checkpoint's path.
    pub base_model: Option<String>,
    /// Whether to draw a new last layer of the head, even if the checkpoint has one.
    pub new_head: bool,
    /// Text between a title and a description, in examples that have both instead of one text.
    pub separator: String,
    /// Token after every text of a language model; other tasks have none.
    pub end_token: Option<EndToken>,
}

impl BuildOptions {
    /// Returns options for sequence classification with LoRA on query and value, and unchanged weights.
    #[must_use]
    pub fn new(checkpoint: &Path, out: &Path, labels: Vec<String>) -> Self {
        Self {
            checkpoint: checkpoint.to_owned(),
            out: out.to_owned(),
            task: Task::SequenceClassification,
            labels: Some(labels),
            peft: Peft::default(),
            frozen: Storage::F32,
            adapter: None,
            seed: 0,
            base_model: None,
            new_head: false,
            separator: SEPARATOR.to_owned(),
            end_token: None,
        }
    }
}

/// A finished build, and its treatment of the checkpoint.
#[derive(Clone, PartialEq, Debug)]
pub struct Built {
    /// The pack's manifest.
    pub manifest: Manifest,
    /// The labels, and the source of the head's last layer; `None` for a language model.
    pub classes: Option<Classes>,
    /// Tensors of the head that are in neither the checkpoint nor an adapter, and were drawn.
    pub drawn: Vec<String>,
    /// The word table and the table that scores the next token.
    pub tie: Tie,
    /// Tensors of the checkpoint that the pack leaves out.
    pub ignored: Vec<Ignored>,
}

/// Progress of a build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress<'a> {
    /// The work in progress.
    pub doing: &'a str,
    /// Finished and total bytes, while bytes are written.
    pub bytes: Option<(u64, u64)>,
}

/// Reason why a checkpoint cannot become a pack.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file of the pack cannot be written.
    #[error("writing {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// `config.json` is not JSON.
    #[error("reading {path}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's error, with its position in the file.
        source: serde_json::Error,
    },
    /// `config.json` lacks a key, is malformed, or describes a model that this version does not support.
    #[error("{path}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The fault.
        source: ConfigError,
    },
    /// The tokenizer is missing, or one of its settings cannot be applied.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The base model's name is not valid.
    #[error("{what}; give another one with --base-model")]
    BaseModel {
        /// The fault.
        what: String,
    },
    /// The checkpoint has trained tensors that the model does not read, so the pack would be a different model.
    #[error("{path} has {count} trained tensors that the {model} of config.json does not read: {names}; correct config.json, or load the \
             checkpoint with transformers and save it with save_pretrained, which leaves out what the model does not read", path = path.display())]
    Unread {
        /// The checkpoint.
        path: PathBuf,
        /// The model's name.
        model: String,
        /// Number of tensors.
        count: usize,
        /// The names of the first tensors.
        names: String,
    },
    /// The labels are not valid.
    #[error("{what}")]
    Labels {
        /// The fault.
        what: String,
    },
    /// A tensor of the checkpoint is missing, misshaped or of another type, or the checkpoint is malformed.
    #[error("reading the checkpoint")]
    Checkpoint(#[from] CheckpointError),
    /// The frozen tensors cannot be written.
    #[error("storing the frozen weights")]
    Storage(#[from] StorageError),
    /// The adapter cannot be used.
    #[error("reading the adapter")]
    Adapter(#[from] AdapterError),
    /// The first values cannot be written.
    #[error("writing {path}", path = path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TensorError,
    },
    /// The model does not support the task or the method of fine-tuning.
    #[error("{what}")]
    Design {
        /// The fault.
        what: String,
    },
    /// The target exists and is not a pack.
    #[error("{path} exists and is not a pack; choose another --out or remove it", path = path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
    },
    /// The result is not a valid pack, because the checkpoint has a value that no manifest may have.
    #[error("the pack from this checkpoint cannot be read; nothing was replaced")]
    Unreadable(#[source] super::PackError),
    /// The graphs cannot be made for these sizes.
    #[error("building the graphs")]
    Graph(#[from] GraphError),
}

/// Makes the pack, and reports each stage of the work to `progress`. The target appears complete or not at all: the new pack
/// replaces an existing one in a single step.
///
/// # Errors
/// A checkpoint that is unreadable, unsupported or incomplete; a target that cannot be written.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Built, BuildError> {
    if options.out.exists() && !is_a_pack(&options.out) {
        return Err(BuildError::Occupied { path: options.out.clone() });
    }
    let source = Source::open(options)?;
    let failed = |source| BuildError::Write { path: options.out.clone(), source };
    let staging = Staging::begin(&options.out).map_err(failed)?;
    let built = source.write(options, staging.path(), progress)?;
    super::Pack::open(staging.path()).and_then(|pack| pack.check_weights()).map_err(BuildError::Unreadable)?;
    staging.commit().map_err(failed)?;
    Ok(built)
}

/// Returns this version of Skiff in the format of manifests.
pub(super) fn maker() -> String {
    format!("skiff-pack {}", env!("CARGO_PKG_VERSION"))
}

/// Returns true if a folder is a pack of any format and holds nothing else. The builder replaces only such a folder.
fn is_a_pack(folder: &Path) -> bool {
    const NAMES: [&str; 7] = [
        "manifest.json",
        "config.json",
        "tokenizer.json",
        origin::LICENSE_FILE,
        "peft.safetensors",
        "frozen.safetensors",
        "graphs",
    ];
    let known = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| NAMES.iter().chain(&SIDE_FILES).any(|name| entry.file_name() == *name))
    };
    let manifest = fs::File::open(folder.join("manifest.json")).ok();
    let manifest: Option<serde_json::Value> = manifest.and_then(|file| {
        use std::io::Read;
        serde_json::from_reader(std::io::BufReader::new(file.take(super::MAX_MANIFEST_BYTES))).ok()
    });
    let made_by = manifest.as_ref().and_then(|manifest| manifest.get("made_by")?.as_str());
    made_by.is_some_and(|made_by| made_by.starts_with("skiff-pack "))
        && fs::read_dir(folder).is_ok_and(|mut entries| entries.all(known))
}

/// The sources of a pack.
struct Source {
    config: Vec<u8>,
    base_model: String,
    checkpoint: Checkpoint,
    adapter: Option<Adapter>,
    tokenizer: ResolvedTokenizer,
    design: Design,
    /// The labels; `None` for a language model.
    classes: Option<Classes>,
    tie: Tie,
    /// Tensors of the head that were drawn.
    drawn: Vec<String>,
}

impl Source {
    fn open(options: &BuildOptions) -> Result<Self, BuildError> {
        let path = options.checkpoint.join("config.json");
        let config = read_bounded(&path).map_err(|source| BuildError::Read { path: path.clone(), source })?;
        let value: Value =
            serde_json::from_slice(&config).map_err(|source| BuildError::Json { path: path.clone(), source })?;
        let mut model = Model::read(&value).map_err(|source| BuildError::Config { path, source })?;
        let tokenizer = tokenizer::read(&options.checkpoint)?;
        let mut checkpoint = Checkpoint::open(&options.checkpoint)?;
        let tie = Tie::settle(&mut model, options.task, &mut checkpoint)?;
        let adapter = options.adapter.as_deref().map(Adapter::open).transpose()?;
        if let Some(adapter) = &adapter {
            adapter.check_task(options.task)?;
        }
        let classes = classes(options, &value, &model, &checkpoint, adapter.as_ref())?;
        let lacks_pooler = |name: &str| checkpoint.find(&format!("{name}.weight"), model.base()).is_none();
        let has_trained = |name: &str| adapter.as_ref().is_some_and(|adapter| adapter.has_trained(&model, name));
        let train_pooler = model.pooler(options.task).is_some_and(|name| lacks_pooler(name) || has_trained(name));
        let peft = peft(options, &model, adapter.as_ref())?;
        let labels = classes.as_ref().map_or(0, |classes| classes.names.len());
        let head = Head { task: options.task, labels, train_pooler };
        let design = Design { model, head, peft, frozen: options.frozen };
        let of_texts = || texts_problem(&options.separator, options.end_token.as_ref(), &design);
        if let Some(what) = design.problem().or_else(of_texts) {
            return Err(BuildError::Design { what });
        }
        let base_model = options.base_model.clone().unwrap_or_else(|| origin::name_of(&options.checkpoint));
        if let Some(what) = origin::name_problem(&base_model) {
            return Err(BuildError::BaseModel { what });
        }
        Ok(Self { config, base_model, checkpoint, adapter, tokenizer, design, classes, tie, drawn: Vec::new() })
    }

    fn write(
        mut self,
        options: &BuildOptions,
        staging: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Built, BuildError> {
        let graphs = staging.join("graphs");
        fs::create_dir_all(&graphs).map_err(|source| BuildError::Write { path: graphs, source })?;
        let mut files = Files { staging, names: Vec::new() };

        progress(Progress { doing: "differentiating the graphs", bytes: None });
        let stages = self.design.stages()?;
        self.check_shapes(&stages)?;
        self.check_adapter(&stages)?;
        let ignored = self.leftovers(&stages)?;
        let fused = self.design.fused_stages()?;
        for (name, bytes) in stages.files().chain(fused.files()) {
            files.put(name, bytes)?;
        }
        files.put("config.json", &self.config)?;
        files.put("tokenizer.json", &self.tokenizer.json)?;
        for (name, bytes) in &self.tokenizer.side_files {
            files.put(name, bytes)?;
        }

        if let Some(license) = origin::license_of(&options.checkpoint) {
            files.put(origin::LICENSE_FILE, format!("{license}\n").as_bytes())?;
        }

        progress(Progress { doing: "drawing the first values of the trainable tensors", bytes: None });
        let weights = self.first_weights(&stages, options.seed)?;
        let path = staging.join("peft.safetensors");
        files.put(
            "peft.safetensors",
            &tensors::write(&weights).map_err(|source| BuildError::Tensors { path, source })?,
        )?;

        let rounding = self.write_frozen(&stages, options.seed, staging, progress)?;
        files.names.push("frozen.safetensors".to_owned());
        if let Some(adapter) = self.adapter.take() {
            adapter.finish()?;
        }

        progress(Progress { doing: "computing digests", bytes: None });
        let layout = self.layout();
        let manifest = Manifest {
            format: format_with(&options.separator, options.end_token.as_ref()),
            made_by: maker(),
            base_model: Some(self.base_model),
            labels: self.classes.as_ref().map(|classes| classes.names.clone()).unwrap_or_default(),
            separator: options.separator.clone(),
            end_token: options.end_token.clone(),
            layout,
            layers: self.design.model.sizes().layers,
            schema: stages.schema(),
            stages: stages.specs(),
            fused: fused.specs(),
            rounding,
            files: files.entries()?,
            design: self.design,
        };
        let text = serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys only");
        let path = staging.join("manifest.json");
        fs::write(&path, text).map_err(|source| BuildError::Write { path, source })?;
        Ok(Built { manifest, classes: self.classes, drawn: self.drawn, tie: self.tie, ignored })
    }

    /// Returns the design's layout, with examples no longer than the tokenizer's settings allow.
    fn layout(&self) -> Layout {
        let layout = self.design.layout();
        let max_tokens = self.tokenizer.max_tokens.map_or(layout.max_tokens, |most| most.min(layout.max_tokens));
        Layout { max_tokens, ..layout }
    }

    /// Checks that the checkpoint has the tensors that the sizes in `config.json` require, before it allocates memory for them.
    fn check_shapes(&self, stages: &Stages) -> Result<(), BuildError> {
        let base = self.design.model.base();
        let needed = || stages.frozen.iter().filter(|tensor| tensor.source == FrozenSource::Checkpoint);
        self.checkpoint.require_all(needed().map(|tensor| tensor.name.as_str()), base)?;
        for tensor in needed() {
            let (file, name) = self.checkpoint.require(&tensor.name, base)?;
            file.check(name, &tensor.shape)?;
        }
        Ok(())
    }

    /// Checks that the pack uses every tensor of the adapter.
    fn check_adapter(&self, stages: &Stages) -> Result<(), BuildError> {
        let Some(adapter) = &self.adapter else { return Ok(()) };
        let drawn = stages.frozen.iter().filter(|tensor| matches!(tensor.source, FrozenSource::Initial(_)));
        let drawn: Vec<String> = drawn.map(|tensor| format!("{PREFIX}{}", tensor.name)).collect();
        let trained = stages.trainable.iter().map(|tensor| tensor.spec.name.as_str());
        Ok(adapter.check_names(&self.design.model, trained.chain(drawn.iter().map(String::as_str)))?)
    }

    /// Returns the tensors of the checkpoint that no graph reads, each with the reason.
    fn leftovers(&self, stages: &Stages) -> Result<Vec<Ignored>, BuildError> {
        /// Number of names that an error shows.
        const SHOWN: usize = 6;
        let (model, task) = (&self.design.model, self.design.head.task);
        let read = stages.frozen.iter().filter(|tensor| tensor.source == FrozenSource::Checkpoint);
        let first = stages.trainable.iter().filter_map(|tensor| match &tensor.initial {
            Initial::Checkpoint(source) => Some(source),
            Initial::CheckpointOr(source, _) => Some(source).filter(|source| !self.is_drawn(source)),
            Initial::Zeros | Initial::Uniform(_) => None,
        });
        let names = read.map(|tensor| &tensor.name).chain(first);
        let found = names.filter_map(|name| self.checkpoint.find(name, model.base()));
        let used = found.map(|(_, name)| name).collect();
        let replaced = match self.classes.as_ref().map(|classes| &classes.rows) {
            Some(HeadRows::New { .. }) => Some("replaced by the new classifier (--new-head)"),
            Some(HeadRows::Kept { .. } | HeadRows::Drawn) | None => None,
        };
        let replaced = model.classifier(task).zip(replaced);
        Leftovers { checkpoint: &self.checkpoint, model, task, replaced }.ignored(&used).map_err(|names| {
            let more = names.len().saturating_sub(SHOWN);
            let shown = names[..names.len() - more].join(", ");
            let (path, model, count) = (self.checkpoint.folder().to_owned(), model.name().to_owned(), names.len());
            let names = if more == 0 { shown } else { format!("{shown} and {more} more") };
            BuildError::Unread { path, model, count, names }
        })
    }

    /// Returns true if `source` is a tensor of the head's last layer, and the build draws this layer even if the checkpoint has it.
    fn is_drawn(&self, source: &str) -> bool {
        let new = self.classes.as_ref().is_some_and(|classes| !matches!(classes.rows, HeadRows::Kept { .. }));
        new && self.is_classifier(source)
    }

    fn is_classifier(&self, source: &str) -> bool {
        let layer = self.design.model.classifier(self.design.head.task);
        layer.is_some_and(|layer| source.rsplit_once('.').is_some_and(|(name, _)| name == layer))
    }

    /// Moves the rows of the head's last layer to the positions of their labels.
    fn in_order_of_labels(&self, source: &str, values: ArrayD<f32>) -> ArrayD<f32> {
        match self.classes.as_ref().map(|classes| &classes.rows) {
            Some(HeadRows::Kept { order, .. }) if self.is_classifier(source) => values.select(Axis(0), order),
            _ => values,
        }
    }

    fn first_weights(&mut self, stages: &Stages, seed: u64) -> Result<NamedTensors, BuildError> {
        let mut weights = NamedTensors::new();
        for tensor in &stages.trainable {
            let (name, shape) = (&tensor.spec.name, &tensor.spec.shape);
            weights.insert(name.clone(), self.first_values(name, shape, &tensor.initial, seed)?);
        }
        Ok(weights)
    }

    /// Takes the values from the adapter if it has the tensor, otherwise the values that `initial` names.
    fn first_values(
        &mut self,
        name: &str,
        shape: &[usize],
        initial: &Initial,
        seed: u64,
    ) -> Result<ArrayD<f32>, BuildError> {
        let base = self.design.model.base();
        if let Some(adapter) = &mut self.adapter {
            if let Some(values) = adapter.take(&self.design.model, name, shape)? {
                return Ok(self.in_order_of_labels(name.strip_prefix(PREFIX).unwrap_or(name), values));
            }
            if matches!(initial, Initial::Zeros | Initial::Uniform(_)) {
                return Err(adapter.missing(name).into());
            }
        }
        match initial {
            Initial::Zeros => Ok(ArrayD::zeros(shape)),
            Initial::Uniform(bound) => Ok(draw(name, shape, *bound, seed)),
            Initial::Checkpoint(source) => {
                let (file, found) = self.checkpoint.require(source, base)?;
                Ok(file.read(found, shape)?)
            }
            Initial::CheckpointOr(source, bound) => match self.checkpoint.find(source, base) {
                Some((file, found)) if !self.is_drawn(source) => {
                    Ok(self.in_order_of_labels(source, file.read(found, shape)?))
                }
                _ => {
                    self.drawn.push(source.clone());
                    Ok(draw(name, shape, *bound, seed))
                }
            },
        }
    }

    fn write_frozen(
        &mut self,
        stages: &Stages,
        seed: u64,
        staging: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<Rounding>, BuildError> {
        let mut drawn = BTreeMap::new();
        for FrozenTensor { name, shape, source, .. } in &stages.frozen {
            if let FrozenSource::Initial(initial) = source {
                let values = self.first_values(&format!("{PREFIX}{name}"), shape, initial, seed)?;
                drawn.insert(name, values.into_iter().collect::<Vec<f32>>());
            }
        }
        let piece = |tensor: &'_ FrozenTensor| -> Result<Values<'_>, BuildError> {
            Ok(match &tensor.source {
                FrozenSource::Values(values) => Values::Given(values.clone()),
                FrozenSource::Initial(_) => Values::Given(drawn[&tensor.name].clone()),
                FrozenSource::Checkpoint => {
                    let (file, name) = self.checkpoint.require(&tensor.name, self.design.model.base())?;
                    Values::File(file, name)
                }
            })
        };
        let pieces = stages.frozen.iter().map(|tensor| Ok(Piece { tensor, values: piece(tensor)? }));
        let pieces = pieces.collect::<Result<Vec<_>, BuildError>>()?;
        let mut watch =
            |done, total| progress(Progress { doing: "storing the frozen weights", bytes: Some((done, total)) });
        Ok(storage::write(&staging.join("frozen.safetensors"), &pieces, &mut watch)?)
    }
}

/// Writes files into the folder that becomes the pack.
struct Files<'a> {
    staging: &'a Path,
    names: Vec<String>,
}

impl Files<'_> {
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), BuildError> {
        let path = self.staging.join(name);
        self.names.push(name.to_owned());
        fs::write(&path, bytes).map_err(|source| BuildError::Write { path, source })
    }

    fn entries(&self) -> Result<BTreeMap<String, FileEntry>, BuildError> {
        let entry = |name: &String| {
            let path = self.staging.join(name);
            let read = |source| BuildError::Read { path: path.clone(), source };
            let bytes = fs::metadata(&path).map_err(read)?.len();
            Ok((name.clone(), FileEntry { bytes, blake3: digest_of_file(&path).map_err(read)? }))
        };
        self.names.iter().map(entry).collect()
    }
}

/// Returns the method of fine-tuning: the adapter's, or the choice in the options with the default targets filled in.
fn peft(options: &BuildOptions, model: &Model, adapter: Option<&Adapter>) -> Result<Peft, BuildError> {
    let mut peft = options.peft.clone();
    if let Some(adapter) = adapter {
        let freeze_a = matches!(&peft, Peft::Lora(lora) if lora.freeze_a);
        peft = Peft::Lora(crate::peft::Lora { freeze_a, ..adapter.lora(model, options.task)? });
    }
    if let Peft::Lora(lora) = &mut peft
        && lora.targets.is_empty()
    {
        lora.targets = model.usual_targets().map(str::to_owned).to_vec();
    }
    Ok(peft)
}

/// Decides the labels and the rows of the head that belong to them. A language model has none.
fn classes(
    options: &BuildOptions,
    config: &Value,
    model: &Model,
    checkpoint: &Checkpoint,
    adapter: Option<&Adapter>,
) -> Result<Option<Classes>, BuildError> {
    let fail = |what: &str| Err(BuildError::Labels { what: what.to_owned() });
    let Some(layer) = model.classifier(options.task) else {
        return match (&options.labels, options.new_head) {
            (None, false) => Ok(None),
            (Some(_), _) => fail("a language model has no labels; leave out --labels, or choose another --task"),
            (None, true) => fail("a language model has no labels; leave out --new-head, or choose another --task"),
        };
    };
    let layer = format!("{layer}.weight");
    let of_adapter = adapter.and_then(|adapter| adapter.rows(model, &format!("{PREFIX}{layer}")));
    if of_adapter.is_some() && options.new_head {
        return fail("the adapter has a classifier of its own; leave out --new-head");
    }
    let of_checkpoint = || {
        let (file, name) = checkpoint.find(&layer, model.base())?;
        file.shape(name)?.first().copied()
    };
    let question = |config| Question {
        asked: options.labels.as_deref(),
        task: options.task,
        config,
        layer: &layer,
        rows: of_adapter.or_else(of_checkpoint),
        new_head: options.new_head,
    };
    let answer = question(config).answer();
    // The names of an adapter's classes are in none of its files, so the names in `config.json` may be others.
    let answer = if of_adapter.is_some() { answer.or_else(|_| question(&Value::Null).answer()) } else { answer };
    answer.map(Some).map_err(|what| BuildError::Labels { what })
}
