//! `skiff-agent step`: one training step on given tensors, so that numbers can be compared and problems reproduced.

use crate::trainer::batch::{Batch, Sequence};
use crate::trainer::dropout::LayerMask;
use crate::trainer::{Runtime, StepOutcome, Trainer};
use anyhow::{Context, bail, ensure};
use ndarray::ArrayD;
use safetensors::tensor::{Dtype, SafeTensors};
use skiff_models::tensors::{self, NamedTensors};
use skiff_models::{Pack, pack::Manifest};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Does one training step on tensors from a file and writes loss, scores and gradients.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Inputs (safetensors): input_ids [B, S], attention_mask [B, S], labels [B], and token_type_ids [B, S] \
                        where there are any; I64 or I32. Padding is on the right.\nOutputs: loss [], logits [B, C], and grad.NAME for every \
                        trainable tensor of the active layers and the head, NAME as in Hugging Face PEFT's \
                        adapter_model.safetensors.\n\nExample:\n  skiff-agent step --pack minilm.pack --inputs batch.safetensors \
                        --active 0,2,3 --out step.safetensors"
)]
pub struct Arguments {
    /// The pack's folder.
    #[arg(long)]
    pack: PathBuf,
    /// The batch.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// The layers that run, from 0 [default: all].
    #[arg(long, value_delimiter = ',')]
    active: Option<Vec<usize>>,
    /// Values of the trainable tensors, with PEFT's names [default: the pack's first values].
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Where the results go.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Threads of the computation.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Path of libonnxruntime.so [default: searched for; see `skiff-agent doctor`].
    #[arg(long, env = "SKIFF_ONNXRUNTIME")]
    onnxruntime: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Anything that keeps it from finishing.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pack = Arc::new(Pack::open(&arguments.pack).context("opening the pack")?);
    let manifest = pack.manifest().clone();
    let sequences = read_batch(&arguments.inputs, &manifest)
        .with_context(|| format!("reading the batch {}", arguments.inputs.display()))?;
    let mask = match &arguments.active {
        None => LayerMask::all(manifest.layers),
        Some(active) => LayerMask::of(active.clone(), manifest.layers)
            .with_context(|| format!("--active {active:?}: expected layers from 0 to {}", manifest.layers - 1))?,
    };
    let runtime = Runtime::load(arguments.onnxruntime.as_deref(), arguments.threads.into())?;
    let mut trainer = Trainer::open(&runtime, Arc::clone(&pack))?;
    if let Some(path) = &arguments.weights {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let weights = pack.schema().read(&bytes).with_context(|| format!("reading {}", path.display()))?;
        trainer.set_weights(weights)?;
    }
    let batch = Batch::new(&sequences, manifest.model.num_attention_heads, manifest.labels.len());
    let outcome = trainer.step(&batch, &mask)?;
    let loss = outcome.loss;
    let bytes = tensors::write(&named(outcome))?;
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

fn named(outcome: StepOutcome) -> NamedTensors {
    let gradients = outcome.gradients.into_iter().map(|(name, gradient)| (format!("grad.{name}"), gradient));
    let loss = ArrayD::from_elem(ndarray::IxDyn(&[]), outcome.loss);
    gradients.chain([("loss".to_owned(), loss), ("logits".to_owned(), outcome.logits)]).collect()
}

/// Reads the padded batch of a file (see the command's help for its tensors) as sequences.
///
/// # Errors
/// A tensor that is missing, misshaped, of another type or out of range, named.
pub fn read_batch(path: &Path, manifest: &Manifest) -> anyhow::Result<Vec<Sequence>> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let (shape, ids) = integers(&file, "input_ids")?;
    let [examples, width] = shape[..] else { bail!("input_ids has shape {shape:?}, expected [B, S]") };
    ensure!(examples > 0 && width > 0, "input_ids has shape {shape:?}: there is nothing in it");
    ensure!(
        width <= manifest.model.max_position_embeddings,
        "{width} tokens, but the model takes at most {}",
        manifest.model.max_position_embeddings
    );
    let same_shape = |name: &str| -> anyhow::Result<Vec<i64>> {
        let (found, values) = integers(&file, name)?;
        ensure!(found == shape, "{name} has shape {found:?}, expected that of input_ids, {shape:?}");
        Ok(values)
    };
    let mask = same_shape("attention_mask")?;
    let types =
        if file.names().contains(&"token_type_ids") { same_shape("token_type_ids")? } else { vec![0; ids.len()] };
    let (label_shape, labels) = integers(&file, "labels")?;
    ensure!(label_shape == [examples], "labels has shape {label_shape:?}, expected [{examples}]");
    (0..examples)
        .map(|example| {
            let row = example * width..(example + 1) * width;
            let length = right_padded_length(&mask[row.clone()]).with_context(|| {
                format!("attention_mask, row {example}: expected ones (at least one) and then zeros")
            })?;
            let bounded = |name: &str, values: &[i64], size: usize| -> anyhow::Result<Vec<u32>> {
                let value = |(at, &value): (usize, &i64)| match u32::try_from(value) {
                    Ok(value) if (value as usize) < size => Ok(value),
                    _ => bail!("{name}[{example}, {at}] is {value}, expected 0 to {}", size - 1),
                };
                values.iter().take(length).enumerate().map(value).collect()
            };
            let label = usize::try_from(labels[example]).ok().filter(|&label| label < manifest.labels.len());
            let label = label.with_context(|| {
                format!("labels[{example}] is {}, expected 0 to {}", labels[example], manifest.labels.len() - 1)
            })?;
            Ok(Sequence {
                ids: bounded("input_ids", &ids[row.clone()], manifest.model.vocab_size)?,
                types: bounded("token_type_ids", &types[row], manifest.model.type_vocab_size)?,
                label,
            })
        })
        .collect()
}

fn right_padded_length(mask: &[i64]) -> Option<usize> {
    let length = mask.iter().take_while(|&&bit| bit == 1).count();
    (length > 0 && mask[length..].iter().all(|&bit| bit == 0)).then_some(length)
}

fn integers(file: &SafeTensors<'_>, name: &str) -> anyhow::Result<(Vec<usize>, Vec<i64>)> {
    let view = file.tensor(name).with_context(|| format!("tensor {name:?}"))?;
    let values = if view.dtype() == Dtype::I64 {
        view.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    } else if view.dtype() == Dtype::I32 {
        view.data().as_chunks::<4>().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect()
    } else {
        bail!("tensor {name:?} has type {:?}, expected I64 or I32", view.dtype());
    };
    Ok((view.shape().to_vec(), values))
}
