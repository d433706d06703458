//! `skiff-pack build`.

use crate::{data, ending, inspect, notes, progress, tokenizer};
use anyhow::{Context, bail};
use clap::ValueEnum;
use skiff_models::design::MAX_LABELS;
use skiff_models::files::{foreign_start, read_bounded, read_json_bounded};
use skiff_models::pack::{BuildOptions, SEPARATOR, Storage, build};
use skiff_models::peft::{Lora, Peft};
use skiff_models::task::Task;
use skiff_screen::live::Live;
use skiff_screen::output::{remark, stdout, width};
use std::io::Write as _;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(
    after_help = "Architectures: bert, roberta, xlm-roberta, deberta-v2 (and v3), llama, mistral, qwen2, qwen3.\n\n\
    Examples:\n  skiff-pack build --checkpoint minilm --labels labels.txt --out minilm.pack\n\
    \x20 skiff-pack build --checkpoint qwen --task causal-lm --frozen int8 --target all-linear --out qwen.pack\n\
    \x20 skiff-pack build --checkpoint roberta --labels 2 --adapter tuned-elsewhere --out go-on.pack\n\n\
    A labels file has one class name a line, in any order: the rows of a tuned head follow the names in config.json (id2label). \
    If those are placeholders such as LABEL_0, or missing, or if --labels is a number, the rows stay in their order. \
    Other names, or another number of them, need --new-head.\n\n\
    Every tensor of the checkpoint is used, or listed with the reason for leaving it out; an unknown one is an error.\n\n\
    The pack's tokenizer is the one that transformers' AutoTokenizer loads from the folder: tokenizer_config.json, \
    special_tokens_map.json and added_tokens.json beside tokenizer.json count. Where they disagree with tokenizer.json, build \
    says so; a setting that a device cannot have is refused by its name. Examples are cut to model_max_length or the model's \
    positions, whichever is smaller."
)]
pub(crate) struct Arguments {
    /// Folder with config.json, model.safetensors (or shards and their index), tokenizer.json, and the tokenizer's other files if
    /// there are any.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The pack's folder; an existing pack is replaced.
    #[arg(long, value_name = "PACK")]
    out: PathBuf,
    /// Task that the model is tuned for.
    #[arg(long, value_enum, default_value = "sequence-classification")]
    task: TaskName,
    /// File with one class name a line, or a number of classes (of numbers, for regression) [default: those in config.json, or
    /// else one for each row of the checkpoint's head; without a head 2 classes, or 1 number].
    #[arg(long, value_name = "FILE|N")]
    labels: Option<String>,
    /// Take the labels from this file of examples, in natural order; every form that `skiff-pack data` reads.
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
    labels_from: Option<PathBuf>,
    /// Column or key of the label in --labels-from [default: label, class, category or another usual name].
    #[arg(long, value_name = "NAME", requires = "labels_from")]
    label_column: Option<String>,
    /// Draw a new last layer of the head (see --seed) in place of the checkpoint's. Labels that differ from the checkpoint's need it.
    #[arg(long)]
    new_head: bool,
    /// Method of fine-tuning, in addition to the task's head [default: lora].
    #[arg(long, value_enum)]
    peft: Option<PeftName>,
    /// LoRA's rank, or a Houlsby adapter's width [default: 8, or 64].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    rank: Option<u16>,
    /// LoRA's alpha; the update is scaled by alpha / rank [default: 16].
    #[arg(long)]
    alpha: Option<f32>,
    /// Linear layers that get LoRA, by the end of their names, or all-linear [default: those of query and value].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', alias = "targets")]
    target: Vec<String>,
    /// Different ranks by the ends of layers' names: END_OF_NAME=RANK.
    #[arg(long, value_name = "PATTERN=RANK", value_delimiter = ',', value_parser = pattern::<usize>)]
    rank_pattern: Vec<(String, usize)>,
    /// Different alphas by the ends of layers' names: END_OF_NAME=ALPHA.
    #[arg(long, value_name = "PATTERN=ALPHA", value_delimiter = ',', value_parser = pattern::<f32>)]
    alpha_pattern: Vec<(String, f32)>,
    /// Scale LoRA's update by alpha / sqrt(rank) (rsLoRA).
    #[arg(long)]
    rslora: bool,
    /// Keep the drawn values of LoRA's A and train only B (FFA-LoRA), which halves the bytes to send.
    #[arg(long)]
    freeze_a: bool,
    /// Storage of the frozen matrices.
    #[arg(long, value_enum, default_value = "f32")]
    frozen: StorageName,
    /// Folder with an adapter of Hugging Face PEFT, whose settings and values replace new ones.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["peft", "rank", "alpha", "target", "rank_pattern", "alpha_pattern", "rslora"])]
    adapter: Option<PathBuf>,
    /// Name of the base model in exported adapters and model cards, for example a repository on the Hugging Face hub [default:
    /// the repository's name, if the checkpoint is in the hub's cache, otherwise the path in --checkpoint].
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,
    /// Seed of the initial values.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Text between a title and a description, in examples with these two columns in place of one text; \n is a new line.
    #[arg(long, value_name = "TEXT", default_value = SEPARATOR)]
    join_with: String,
    /// Token after every text and completion of a language model, so that it learns to stop; texts that are cut get none. `none`
    /// turns it off [default: the tokenizer's eos_token].
    #[arg(long, value_name = "TOKEN")]
    end_token: Option<String>,
    /// Print the manifest as JSON when done.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TaskName {
    SequenceClassification,
    Regression,
    TokenClassification,
    CausalLm,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PeftName {
    Lora,
    Houlsby,
    Bitfit,
}

#[derive(Clone, Copy, ValueEnum)]
enum StorageName {
    F32,
    F16,
    Int8,
}

impl From<TaskName> for Task {
    fn from(name: TaskName) -> Self {
        match name {
            TaskName::SequenceClassification => Self::SequenceClassification,
            TaskName::Regression => Self::Regression,
            TaskName::TokenClassification => Self::TokenClassification,
            TaskName::CausalLm => Self::CausalLm,
        }
    }
}

impl From<StorageName> for Storage {
    fn from(name: StorageName) -> Self {
        match name {
            StorageName::F32 => Self::F32,
            StorageName::F16 => Self::F16,
            StorageName::Int8 => Self::Int8,
        }
    }
}

/// Builds the pack and shows it.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let json = arguments.json;
    check_folder(&arguments.checkpoint)?;
    let options = arguments.options()?;
    let told = check_tokenizer(&options.checkpoint)
        .with_context(|| format!("making a pack from {}", options.checkpoint.display()))?;
    let live = Live::new();
    let built = build(&options, &mut |made| progress::show(&live, made));
    live.clear();
    let built = built.with_context(|| format!("making a pack from {}", options.checkpoint.display()))?;
    for told in [told.changes, tokenizer::limit(&built.manifest, told.max_tokens)].into_iter().flatten() {
        remark("skiff-pack", &told);
    }
    // Standard output is for the manifest alone.
    match json {
        true => write!(std::io::stderr(), "{}", notes::facts(&built).text(None))?,
        false => write!(stdout(), "{}", notes::facts(&built).text(width()))?,
    }
    inspect::show(&options.out, &inspect::Batch::default(), json)
}

impl Arguments {
    fn options(self) -> anyhow::Result<BuildOptions> {
        let task = Task::from(self.task);
        let labels = match &self.labels {
            None if let Some(path) = &self.labels_from => Some(data::labels(path, self.label_column.as_deref(), task)?),
            None => None,
            Some(labels) => Some(read_labels(labels)?),
        };
        let peft = self.peft()?;
        let separator = self.join_with.replace("\\n", "\n");
        let end_token = match task {
            Task::CausalLm => ending::end_token(&self.checkpoint, self.end_token.as_deref())?,
            Task::SequenceClassification | Task::Regression | Task::TokenClassification if self.end_token.is_some() => {
                bail!("--end-token is a setting of language models; leave it out, or choose --task causal-lm")
            }
            Task::SequenceClassification | Task::Regression | Task::TokenClassification => None,
        };
        let Self { checkpoint, out, frozen, adapter, seed, base_model, new_head, .. } = self;
        let frozen = frozen.into();
        Ok(BuildOptions {
            checkpoint,
            out,
            task,
            labels,
            peft,
            frozen,
            adapter,
            seed,
            base_model,
            new_head,
            separator,
            end_token,
        })
    }

    fn peft(&self) -> anyhow::Result<Peft> {
        let kind = self.peft.unwrap_or(PeftName::Lora);
        once("--rank-pattern", &self.rank_pattern)?;
        once("--alpha-pattern", &self.alpha_pattern)?;
        let of_lora = [
            ("--alpha", self.alpha.is_some()),
            ("--target", !self.target.is_empty()),
            ("--rank-pattern", !self.rank_pattern.is_empty()),
            ("--alpha-pattern", !self.alpha_pattern.is_empty()),
            ("--rslora", self.rslora),
            ("--freeze-a", self.freeze_a),
            ("--rank", self.rank.is_some() && kind == PeftName::Bitfit),
        ];
        if let Some((flag, _)) = of_lora.into_iter().find(|(_, given)| *given && kind != PeftName::Lora) {
            bail!("{flag} is a setting of LoRA; leave it out, or choose --peft lora");
        }
        Ok(match kind {
            PeftName::Bitfit => Peft::BitFit,
            PeftName::Houlsby => Peft::Houlsby { width: self.rank.map_or(64, usize::from) },
            PeftName::Lora => {
                let usual = Lora::default();
                Peft::Lora(Lora {
                    rank: self.rank.map_or(usual.rank, usize::from),
                    alpha: self.alpha.unwrap_or(usual.alpha),
                    targets: self.target.clone(),
                    rank_pattern: self.rank_pattern.iter().cloned().collect(),
                    alpha_pattern: self.alpha_pattern.iter().cloned().collect(),
                    layers: None,
                    rslora: self.rslora,
                    freeze_a: self.freeze_a,
                })
            }
        })
    }
}

/// Reads a file of names, or a count that names the classes `0`, `1`, ...
fn read_labels(argument: &str) -> anyhow::Result<Vec<String>> {
    /// Maximum size of the file in bytes, enough for the maximum number of names of maximum length.
    const MAX_BYTES: u64 = 32 << 20;
    if let Ok(count) = argument.parse::<usize>() {
        if count > MAX_LABELS {
            bail!("--labels {count}: at most {MAX_LABELS} classes");
        }
        return Ok((0..count).map(|class| class.to_string()).collect());
    }
    let reading =
        || format!("reading the labels in {argument} (a number of classes, or a file with one class name a line)");
    if let Some(foreign) = foreign_start(Path::new(argument)) {
        return Err(anyhow::Error::new(foreign).context(reading()));
    }
    let text = read_bounded(Path::new(argument), MAX_BYTES).with_context(reading)?;
    let text = String::from_utf8(text).with_context(reading)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Maximum size of `tokenizer.json`, in bytes; the largest known ones have 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Maximum size of `config.json`, in bytes.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// Checks that the folder exists, and that its small files have the expected kind of contents.
fn check_folder(checkpoint: &Path) -> anyhow::Result<()> {
    let shown = checkpoint.display();
    if checkpoint.is_file() {
        bail!("--checkpoint {shown} is a file; name the folder that holds config.json, the weights and tokenizer.json");
    }
    if !checkpoint.exists() {
        bail!(
            "--checkpoint {shown}: no such folder; a model of Hugging Face is downloaded first, for example with \
             `hf download NAME --local-dir DIR`"
        );
    }
    for name in ["config.json", "tokenizer.json"] {
        let path = checkpoint.join(name);
        if path.exists() {
            read_json_bounded(&path, MAX_TOKENIZER_BYTES).with_context(|| format!("reading {}", path.display()))?;
        }
    }
    Ok(())
}

/// Checks the tokenizer before the builder spends minutes on the weights. The builder reports faults of `config.json`.
fn check_tokenizer(checkpoint: &Path) -> anyhow::Result<tokenizer::Told> {
    if !checkpoint.join("config.json").exists() {
        return Ok(tokenizer::Told::default());
    }
    let config = read_bounded(&checkpoint.join("config.json"), MAX_CONFIG_BYTES).ok();
    let config: Option<serde_json::Value> = config.and_then(|text| serde_json::from_slice(&text).ok());
    let vocabulary = config.and_then(|config| usize::try_from(config.get("vocab_size")?.as_u64()?).ok());
    tokenizer::examine(checkpoint, vocabulary)
}

/// Fails if a pattern has two settings, since one of them would be ignored.
fn once<T>(flag: &str, patterns: &[(String, T)]) -> anyhow::Result<()> {
    let twice = |(at, (name, _)): (usize, &(String, T))| patterns[..at].iter().any(|(other, _)| other == name);
    match patterns.iter().enumerate().find(|pair| twice(*pair)) {
        Some((_, (name, _))) => bail!("{flag} is given twice for {name:?}"),
        None => Ok(()),
    }
}

fn pattern<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let parsed = text.rsplit_once('=').filter(|(name, _)| !name.is_empty());
    let parsed = parsed.and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
    parsed.ok_or_else(|| "expected END_OF_NAME=NUMBER".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use std::fs;

    fn said(result: anyhow::Result<()>) -> String {
        result.map_or_else(|error| format!("{error:#}"), |()| String::new())
    }

    #[test]
    fn a_folder_that_is_no_checkpoint_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        assert!(said(check_folder(&folder.path().join("org/model"))).contains("hf download NAME"));
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\nsize 7\n").unwrap();
        assert!(said(check_folder(folder.path())).contains("git lfs pull"));
        assert!(said(check_folder(&path)).contains("name the folder"));
        assert!(said(read_labels(path.to_str().unwrap()).map(drop)).contains("Git LFS pointer"));
    }
}
