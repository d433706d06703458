//! Makes a pack from a Hugging Face checkpoint folder.

use super::{FORMAT, FileEntry, Manifest, digest_of_file};
use crate::architectures::bert::{Bert, LINEARS};
use crate::graph::GraphError;
use crate::peft::{Lora, initial};
use crate::stage::StageSpecs;
use crate::tensors::{self, TensorError};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What to make.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// A folder with `config.json`, `model.safetensors` and `tokenizer.json`.
    pub checkpoint: PathBuf,
    /// Where the pack goes; an existing pack there is replaced, anything else is not.
    pub out: PathBuf,
    /// Class names, in the order of the scores.
    pub labels: Vec<String>,
    /// What trains.
    pub lora: Lora,
    /// Seed of the first values.
    pub seed: u64,
}

/// Why a checkpoint cannot become a pack.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the pack cannot be written.
    #[error("writing {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `config.json` lacks something or is malformed.
    #[error("reading the sizes in {path}", path = path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A model this version cannot take.
    #[error("{path}: model_type {found:?} is not supported; supported: bert", path = path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Sizes that cannot be.
    #[error("{path}: {what}", path = path.display())]
    Sizes {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Labels that cannot be.
    #[error("{what}")]
    Labels {
        /// What is wrong.
        what: String,
    },
    /// A tensor is missing, misshaped or of another type.
    #[error("reading {path}", path = path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Which and why.
        source: TensorError,
    },
    /// A LoRA that cannot be.
    #[error("{what}")]
    Lora {
        /// What is wrong.
        what: String,
    },
    /// The target exists and is not a pack.
    #[error("{path} exists and is not a pack; choose another --out or remove it", path = path.display())]
    Occupied {
        /// The target.
        path: PathBuf,
    },
    /// The graphs cannot be made for these sizes.
    #[error("building the graphs")]
    Graph(#[from] GraphError),
}

/// Makes the pack, telling `progress` what it is at (a short phrase) as it goes. The target appears complete or not at all;
/// a pack that was there is moved aside first and removed last.
///
/// # Errors
/// A checkpoint that cannot be read, is unsupported or incomplete; a target that cannot be written.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(&str)) -> Result<Manifest, BuildError> {
    check_labels(&options.labels)?;
    if options.out.exists() && !options.out.join("manifest.json").is_file() {
        return Err(BuildError::Occupied { path: options.out.clone() });
    }
    if let Some(what) = options.lora.problem(&LINEARS) {
        return Err(BuildError::Lora { what });
    }
    let model = read_config(&options.checkpoint.join("config.json"))?;
    let staging = beside(&options.out, "partial");
    let _ = fs::remove_dir_all(&staging);
    let made = write_files(options, &model, &staging, progress);
    let made = made.and_then(|manifest| {
        let failed = |source| BuildError::Write { path: options.out.clone(), source };
        let replaced = beside(&options.out, "replaced");
        if options.out.exists() {
            fs::rename(&options.out, &replaced).map_err(failed)?;
        }
        fs::rename(&staging, &options.out).map_err(failed)?;
        if replaced.exists() {
            fs::remove_dir_all(&replaced).map_err(|source| BuildError::Write { path: replaced, source })?;
        }
        Ok(manifest)
    });
    if made.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    made
}

/// A name of this process's own in the same folder.
fn beside(out: &Path, what: &str) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}-{}", std::process::id()));
    out.with_file_name(name)
}

fn check_labels(labels: &[String]) -> Result<(), BuildError> {
    let mut sorted: Vec<&String> = labels.iter().collect();
    sorted.sort();
    let fail = |what: String| Err(BuildError::Labels { what });
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return fail(format!("label {:?} is given twice", pair[0]));
    }
    match labels.len() {
        0 | 1 => fail("a classifier needs at least two labels".to_owned()),
        2..=65_536 => Ok(()),
        many => fail(format!("{many} labels are more than 65,536")),
    }
}

fn read_config(path: &Path) -> Result<Bert, BuildError> {
    let text = fs::read(path).map_err(|source| BuildError::Read { path: path.to_owned(), source })?;
    let malformed = |source| BuildError::Config { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(malformed)?;
    let found = value.get("model_type").and_then(serde_json::Value::as_str).unwrap_or("(none)");
    if found != "bert" {
        return Err(BuildError::Architecture { path: path.to_owned(), found: found.to_owned() });
    }
    let model: Bert = serde_json::from_value(value).map_err(malformed)?;
    match model.problem() {
        Some(what) => Err(BuildError::Sizes { path: path.to_owned(), what }),
        None => Ok(model),
    }
}

fn write_files(
    options: &BuildOptions,
    model: &Bert,
    staging: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Manifest, BuildError> {
    let mut files = Vec::new();
    let mut put = |name: &str, bytes: &[u8]| {
        let path = staging.join(name);
        files.push(name.to_owned());
        fs::write(&path, bytes).map_err(|source| BuildError::Write { path, source })
    };
    let graphs = staging.join("graphs");
    fs::create_dir_all(&graphs).map_err(|source| BuildError::Write { path: graphs, source })?;

    progress("differentiating the graphs");
    let stages = model.stages(&options.lora, options.labels.len())?;
    for stage in [&stages.embed, &stages.block, &stages.head] {
        for (name, bytes) in &stage.files {
            put(name, bytes)?;
        }
    }

    progress("drawing the first values of the trainable tensors");
    let schema = model.schema(&options.lora, options.labels.len());
    let peft = staging.join("peft.safetensors");
    let written = tensors::write(&initial(&schema, options.seed));
    put("peft.safetensors", &written.map_err(|source| BuildError::Tensors { path: peft, source })?)?;

    progress("copying the tokenizer");
    let tokenizer = options.checkpoint.join("tokenizer.json");
    let bytes = fs::read(&tokenizer).map_err(|source| BuildError::Read { path: tokenizer, source })?;
    put("tokenizer.json", &bytes)?;

    progress("copying the frozen weights");
    copy_frozen(model, &options.checkpoint.join("model.safetensors"), &staging.join("frozen.safetensors"))?;
    files.push("frozen.safetensors".to_owned());

    progress("computing digests");
    let manifest = Manifest {
        format: FORMAT,
        made_by: format!("skiff-pack {}", env!("CARGO_PKG_VERSION")),
        architecture: "bert".to_owned(),
        model: model.clone(),
        lora: options.lora.clone(),
        labels: options.labels.clone(),
        layout: model.layout(options.labels.len()),
        layers: model.num_hidden_layers,
        schema,
        stages: StageSpecs {
            embed: stages.embed.spec,
            blocks: vec![stages.block.spec],
            kinds: vec![0; model.num_hidden_layers],
            head: stages.head.spec,
        },
        files: file_entries(staging, &files)?,
    };
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys only");
    let path = staging.join("manifest.json");
    fs::write(&path, text).map_err(|source| BuildError::Write { path, source })?;
    Ok(manifest)
}

fn file_entries(staging: &Path, files: &[String]) -> Result<BTreeMap<String, FileEntry>, BuildError> {
    let entry = |name: &String| {
        let path = staging.join(name);
        let read = |source| BuildError::Read { path: path.clone(), source };
        let bytes = fs::metadata(&path).map_err(read)?.len();
        Ok((name.clone(), FileEntry { bytes, blake3: digest_of_file(&path).map_err(read)? }))
    };
    files.iter().map(entry).collect()
}

/// Copies the tensors of `model` from a checkpoint, straight from its mapped pages. Names may carry the prefix `bert.`.
fn copy_frozen(model: &Bert, from: &Path, to: &Path) -> Result<(), BuildError> {
    let read = |source| BuildError::Read { path: from.to_owned(), source };
    let tensors = |source| BuildError::Tensors { path: from.to_owned(), source };
    let file = fs::File::open(from).map_err(read)?;
    #[expect(unsafe_code, reason = "a checkpoint that changes while it is packed gives a pack whose digests say so")]
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    let checkpoint = SafeTensors::deserialize(&map).map_err(|source| tensors(TensorError::Header(source)))?;
    let views: Result<Vec<(String, TensorView<'_>)>, BuildError> = model
        .frozen()
        .into_iter()
        .map(|(name, shape)| {
            let found = checkpoint.tensor(&name).or_else(|_| checkpoint.tensor(&format!("bert.{name}")));
            let view = found.map_err(|_| tensors(TensorError::Missing { name: name.clone() }))?;
            if view.dtype() != Dtype::F32 {
                return Err(tensors(TensorError::Type { name, found: format!("{:?}", view.dtype()) }));
            }
            if view.shape() != shape {
                let found = view.shape().to_vec();
                return Err(tensors(TensorError::Shape { name, expected: shape, found }));
            }
            Ok((name, view))
        })
        .collect();
    safetensors::serialize_to_file(views?, None, to)
        .map_err(|source| BuildError::Tensors { path: to.to_owned(), source: TensorError::Write(source) })
}
