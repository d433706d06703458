//! `skiff-agent step`: one training step on given tensors, so that numbers can be compared and problems reproduced.

use anyhow::Context;
use ndarray::{Array2, ArrayD, IxDyn};
use skiff_models::Pack;
use skiff_models::tensors::{self, NamedTensors};
use skiff_trainer::inputs::read_batch;
use skiff_trainer::{Batch, LayerMask, Provider, Runtime, StepOutcome, Trainer};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Does one training step on tensors from a file and writes loss, scores and gradients.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Inputs (safetensors), I64 or I32: input_ids [B, S], attention_mask [B, S] with padding on the right, \
                        token_type_ids [B, S] if the model has them, and labels: [B] for sequence-classification, [B, S] with -100 for \
                        none for token-classification and causal-lm (there not shifted; absent: input_ids), [B] or [B, C] of F32 or F64 \
                        for regression.\nOutputs: loss [], logits [B, C] (token tasks: [T, C], the tokens of all rows without padding), \
                        and grad.NAME for every trainable tensor of the active layers and the head, NAME as in Hugging Face PEFT's \
                        adapter_model.safetensors.\n\nExample:\n  skiff-agent step --pack minilm.pack --inputs batch.safetensors \
                        --active 0,2,3 --out step.safetensors"
)]
pub struct Arguments {
    /// The pack's folder.
    #[arg(long)]
    pack: PathBuf,
    /// The batch, as safetensors.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// The layers that run, from 0 [default: all].
    #[arg(long, value_delimiter = ',')]
    active: Option<Vec<usize>>,
    /// Values of the trainable tensors, with PEFT's names [default: the pack's first values].
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// File for the results, as safetensors.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Number of threads.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Execution provider, if ONNX Runtime's library has it: cpu, cuda, xnnpack.
    #[arg(long, env = "SKIFF_PROVIDER", value_name = "NAME", default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Path of libonnxruntime.so [default: searched for; see `skiff-agent doctor`].
    #[arg(long, env = "SKIFF_ONNXRUNTIME")]
    onnxruntime: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// A file, a pack or an ONNX Runtime that cannot be used; a step that fails.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pack = Arc::new(Pack::open(&arguments.pack).context("opening the pack")?);
    let manifest = pack.manifest().clone();
    let reading = || format!("reading the batch {}", arguments.inputs.display());
    let bytes = std::fs::read(&arguments.inputs).with_context(reading)?;
    let sequences = read_batch(&bytes, &manifest.layout).with_context(reading)?;
    let mask = match &arguments.active {
        None => LayerMask::all(manifest.layers),
        Some(active) => LayerMask::of(active.clone(), manifest.layers)
            .with_context(|| format!("--active {active:?}: expected layers from 0 to {}", manifest.layers - 1))?,
    };
    let runtime = Runtime::load(arguments.onnxruntime.as_deref(), arguments.threads.into())?.on(arguments.provider)?;
    let mut trainer = Trainer::open(&runtime, Arc::clone(&pack))?;
    if let Some(path) = &arguments.weights {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let weights = pack.schema().read(&bytes).with_context(|| format!("reading {}", path.display()))?;
        trainer.set_weights(weights)?;
    }
    let batch = Batch::new(&sequences, trainer.form())?;
    let outcome = trainer.step(&batch, &mask)?;
    let loss = outcome.loss;
    let bytes = tensors::write(&named(outcome, trainer.logits(&batch, &mask)?))?;
    std::fs::write(&arguments.out, bytes).with_context(|| format!("writing {}", arguments.out.display()))?;
    writeln!(
        std::io::stdout(),
        "loss {loss}, {} of {} layers active, results in {}",
        mask.active().len(),
        manifest.layers,
        arguments.out.display()
    )?;
    Ok(())
}

fn named(outcome: StepOutcome, logits: Array2<f32>) -> NamedTensors {
    let gradients = outcome.gradients.into_iter().map(|(name, gradient)| (format!("grad.{name}"), gradient));
    let loss = ArrayD::from_elem(IxDyn(&[]), outcome.loss);
    gradients.chain([("loss".to_owned(), loss), ("logits".to_owned(), logits.into_dyn())]).collect()
}
