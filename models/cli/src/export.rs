//! `skiff-pack export`.

use crate::progress;
use anyhow::Context;
use serde_json::json;
use skiff_models::Pack;
use skiff_models::design::Design;
use skiff_models::files::read_bounded;
use skiff_models::pack::{About, Progress, Storage, export_adapter, export_merged};
use skiff_screen::live::Live;
use skiff_screen::units::{bytes, count, counted};
use skiff_screen::{output, text};
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  skiff-pack export --pack minilm.pack --weights tuned.safetensors --out adapter\n\
    \x20 skiff-pack export --pack minilm.pack --weights tuned.safetensors --merged --out tuned\n\n\
    The adapter loads with peft.PeftModel.from_pretrained(model, DIR), the merged checkpoint with\n\
    transformers' AutoModelFor...from_pretrained(DIR). README.md is a model card for the Hugging Face hub.\n\n\
    The folder appears whole or not at all: it is written as DIR.partial beside DIR and renamed at the end. \
    An earlier export is replaced if it is as it was written: its skiff-export.json lists every file there with its size. \
    An empty folder is filled. Anything else there is an error and stays as it is. \
    What a kill leaves in DIR.partial is written over by the next export.")]
pub(crate) struct Arguments {
    /// The pack's folder.
    #[arg(long, value_name = "PACK")]
    pack: PathBuf,
    /// Tuned values of the trainable tensors, as `skiff-agent train --out` writes them [default: the pack's initial values].
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// The folder to write; an earlier export there is replaced, anything else is refused.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Merge the tuned values into the model's own weights and write a plain checkpoint.
    #[arg(long)]
    merged: bool,
    /// Take the model's own weights and the tokenizer's other files from this checkpoint. The pack may store the weights in
    /// fewer bits.
    #[arg(long, value_name = "DIR", requires = "merged")]
    checkpoint: Option<PathBuf>,
    /// Name of the base model in the adapter and the model card [default: the pack's].
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Returns the facts about the weights: only whether they are trained.
    fn about(&self) -> About {
        let untrained = || vec![("weights", "the pack's initial values, untrained".to_owned())];
        let training = self.weights.as_ref().map_or_else(untrained, |_| Vec::new());
        About { base_model: self.base_model.clone(), training, ..About::default() }
    }
}

/// Maximum size of the file of weights, in bytes. The trainable tensors are a small part of a model.
const MAX_WEIGHTS_BYTES: u64 = 8 << 30;

/// Writes the adapter or the checkpoint.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let live = Live::new();
    live.say("checking the pack");
    let write = || -> anyhow::Result<_> {
        let pack =
            Pack::open(&arguments.pack).with_context(|| format!("opening the pack {}", arguments.pack.display()))?;
        pack.check_weights()?;
        let weights = match &arguments.weights {
            None => pack.initial_weights()?,
            Some(path) => {
                let bytes =
                    read_bounded(path, MAX_WEIGHTS_BYTES).with_context(|| format!("reading {}", path.display()))?;
                pack.schema().read(&bytes).with_context(|| format!("reading {}", path.display()))?
            }
        };
        let Arguments { checkpoint, out, .. } = arguments;
        let about = &arguments.about();
        let progress = &mut |made: Progress<'_>| progress::show(&live, made);
        let exported = match arguments.merged {
            true => export_merged(&pack, &weights, checkpoint.as_deref(), about, out, progress)?,
            false => export_adapter(&pack, &weights, about, out, progress)?,
        };
        let Design { frozen, .. } = pack.manifest().design;
        Ok((exported, arguments.merged && frozen != Storage::F32 && checkpoint.is_none()))
    };
    let written = write();
    live.clear();
    let (exported, rounded) = written?;
    if arguments.weights.is_none() {
        output::remark("skiff-pack", "no --weights: the export holds the pack's initial, untrained values");
    }
    if rounded {
        let text = "the pack and the exported checkpoint have rounded weights; give --checkpoint for the original ones";
        output::remark("skiff-pack", text);
    }
    let mut out = output::stdout();
    let total: u64 = exported.files.values().sum();
    if arguments.json {
        let kind = if arguments.merged { "merged" } else { "adapter" };
        let mut written = json!({ "out": arguments.out, "kind": kind, "bytes": total });
        let parts = serde_json::to_value(&exported)?;
        written.as_object_mut().into_iter().for_each(|all| all.extend(parts.as_object().cloned().unwrap_or_default()));
        writeln!(out, "{written}")?;
        return Ok(());
    }
    let what = match arguments.merged {
        true => "a plain checkpoint, tuned weights merged",
        false => "an adapter in Hugging Face PEFT's format",
    };
    let told = format!(
        "{} holds {what}: {} parameters in {}, {} in {}",
        arguments.out.display(),
        count(exported.parameters),
        counted(exported.tensors, "tensor"),
        bytes(total),
        counted(exported.files.len(), "file")
    );
    writeln!(out, "{}", text::fold(&told, 2, output::width()))?;
    Ok(())
}
