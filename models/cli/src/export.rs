//! `skiff-pack export`.

use anyhow::Context;
use skiff_models::Pack;
use skiff_models::design::Design;
use skiff_models::pack::{Storage, export_adapter, export_merged};
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  skiff-pack export --pack minilm.pack --weights tuned.safetensors --out adapter\n\
    \x20 skiff-pack export --pack minilm.pack --weights tuned.safetensors --merged --out tuned\n\n\
    The adapter loads with peft.PeftModel.from_pretrained(model, DIR), the merged checkpoint with\n\
    transformers' AutoModelFor...from_pretrained(DIR).")]
pub(crate) struct Arguments {
    /// The pack's folder.
    #[arg(long, value_name = "PACK")]
    pack: PathBuf,
    /// Tuned values of the trainable tensors, as `skiff-agent train --out` writes them [default: the pack's first values].
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// The new folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Merge what was tuned into the model's own weights and write a plain checkpoint.
    #[arg(long)]
    merged: bool,
    /// Take the model's own weights from this checkpoint instead of the pack, which may hold them in fewer bits.
    #[arg(long, value_name = "DIR", requires = "merged")]
    checkpoint: Option<PathBuf>,
}

/// Writes the adapter or the checkpoint.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pack = Pack::open(&arguments.pack).with_context(|| format!("opening the pack {}", arguments.pack.display()))?;
    let weights = match &arguments.weights {
        None => pack.initial_weights()?,
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            pack.schema().read(&bytes).with_context(|| format!("reading {}", path.display()))?
        }
    };
    let mut out = std::io::stdout().lock();
    let folder = arguments.out.display();
    if !arguments.merged {
        export_adapter(&pack, &weights, &arguments.out)?;
        writeln!(out, "{folder} holds an adapter of {} tensors in Hugging Face PEFT's format", weights.len())?;
        return Ok(());
    }
    let Design { frozen, .. } = pack.manifest().design;
    if frozen != Storage::F32 && arguments.checkpoint.is_none() {
        eprintln!(
            "skiff-pack: the pack holds rounded weights, and so will the checkpoint; give --checkpoint for the original ones"
        );
    }
    export_merged(&pack, &weights, arguments.checkpoint.as_deref(), &arguments.out)?;
    writeln!(out, "{folder} holds a plain checkpoint, tuned weights merged")?;
    Ok(())
}
