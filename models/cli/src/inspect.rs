//! `skiff-pack inspect`.

use crate::screen::{Screen, bytes, count};
use anyhow::{Context, ensure};
use serde_json::json;
use skiff_models::Pack;
use skiff_models::graph::DType;
use skiff_models::memory::{Policy, Prediction, Step, predict};
use skiff_models::pack::{EndToken, Manifest};
use skiff_models::peft::Peft;
use skiff_models::stage::{Binding, StageSpec};
use skiff_models::task::Task;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  skiff-pack inspect minilm.pack --batch 4 --tokens 256")]
pub(crate) struct Arguments {
    /// The pack's folder.
    pack: PathBuf,
    #[command(flatten)]
    batch: Batch,
    /// Print the manifest and the predicted memory as JSON.
    #[arg(long)]
    json: bool,
    /// Also list every tensor.
    #[arg(long, conflicts_with = "json")]
    tensors: bool,
}

/// Size of the step whose memory is predicted.
#[derive(clap::Args)]
pub(crate) struct Batch {
    /// Number of examples in the step for the prediction of memory.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Number of tokens of each example [default: 128, or the model's maximum].
    #[arg(long)]
    tokens: Option<u32>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { batch: 8, tokens: None }
    }
}

/// Opens the pack and shows it.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    show(&arguments.pack, &arguments.batch, arguments.json)?;
    if arguments.tensors {
        let pack = Pack::open(&arguments.pack)?;
        list_tensors(&pack)?;
    }
    Ok(())
}

/// Shows the pack in `path`.
pub(crate) fn show(path: &Path, batch: &Batch, json: bool) -> anyhow::Result<()> {
    let screen = Screen::new();
    screen.say("checking every file");
    let pack = Pack::open(path).with_context(|| format!("opening the pack {}", path.display()));
    screen.clear();
    let pack = pack?;
    let manifest = pack.manifest();
    let most = manifest.layout.max_tokens;
    let tokens = batch.tokens.map_or(most.min(128), |tokens| tokens as usize);
    ensure!((1..=most).contains(&tokens), "--tokens {tokens}: this model takes 1 to {most}");
    let stages = manifest.design.fused_stages()?;
    let step = |active| Step { examples: batch.batch.into(), tokens, active };
    let mut actives = vec![manifest.layers, manifest.layers.div_ceil(2), 1];
    actives.dedup();
    let ways = actives.into_iter().flat_map(|active| Policy::ALL.map(|policy| (active, policy)));
    let predictions: Vec<(usize, Policy, Prediction)> = ways
        .map(|(active, policy)| (active, policy, predict(&manifest.design, &stages, step(active), policy)))
        .collect();
    let mut out = std::io::stdout().lock();
    if json {
        let memory: Vec<_> = predictions
            .iter()
            .map(|(active, policy, bytes)| {
                json!({ "active_layers": active, "policy": policy, "bytes": bytes, "total_bytes": bytes.total() })
            })
            .collect();
        let digest = blake3::Hash::from(pack.digest()).to_hex().to_string();
        let step = json!({ "batch": batch.batch, "tokens": tokens, "predictions": memory });
        serde_json::to_writer_pretty(&mut out, &json!({ "digest": digest, "manifest": manifest, "memory": step }))?;
        writeln!(out)?;
        return Ok(());
    }
    write_summary(&mut out, path, &pack)?;
    write_stages(&mut out, manifest)?;
    writeln!(
        out,
        "\nmemory predicted for a training step of {} x {tokens} tokens, beside the process itself:",
        batch.batch
    )?;
    writeln!(
        out,
        "  {:<15}{:<10}{:>12}{:>12}{:>12}{:>12}{:>12}",
        "active layers", "policy", "total", "mapped", "trained", "kept", "working"
    )?;
    for (active, policy, prediction) in predictions {
        let Prediction { mapped, trained, kept, working } = prediction;
        write!(out, "  {active:<15}{:<10}{:>12}", policy.name(), bytes(prediction.total()))?;
        for part in [mapped, trained, kept, working] {
            write!(out, "{:>12}", bytes(part))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_summary(out: &mut dyn Write, path: &Path, pack: &Pack) -> anyhow::Result<()> {
    let manifest = pack.manifest();
    let (model, sizes, layout) = (&manifest.design.model, manifest.design.model.sizes(), &manifest.layout);
    let trainable: usize = manifest.schema.tensors.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let frozen: usize = pack
        .frozen()
        .tensors()
        .filter(|(name, _)| !name.ends_with(".scale"))
        .map(|(_, tensor)| tensor.shape.iter().product::<usize>())
        .sum();
    writeln!(out, "pack          {} (every file verified)", path.display())?;
    writeln!(out, "digest        {}", blake3::Hash::from(pack.digest()).to_hex())?;
    writeln!(
        out,
        "model         {}, {} layers x {}, {} heads, feed-forward {}, {} words, up to {} tokens",
        model.name(),
        sizes.layers,
        sizes.hidden,
        sizes.heads,
        sizes.intermediate,
        count(sizes.vocabulary),
        count(layout.max_tokens)
    )?;
    writeln!(out, "task          {}", task(manifest))?;
    if manifest.design.head.task != Task::TokenClassification {
        writeln!(out, "texts         title and description are joined with {:?}", manifest.separator)?;
    }
    if manifest.design.head.task == Task::CausalLm {
        match &manifest.end_token {
            Some(EndToken { text, id }) => {
                writeln!(out, "end token     {text} ({id}) after each text that is not cut")?
            }
            None => writeln!(out, "end token     none: the model does not learn to stop")?,
        }
    }
    writeln!(
        out,
        "trains        {}: {} parameters in {} tensors, {:.2} % of all",
        peft(&manifest.design.peft),
        count(trainable),
        manifest.schema.tensors.len(),
        100.0 * trainable as f64 / (trainable + frozen) as f64
    )?;
    let stored = pack.frozen().tensors().map(|(_, tensor)| tensor.bytes.len() as u64).sum::<u64>();
    writeln!(out, "frozen        {} parameters, {}: {}, memory-mapped", count(frozen), storage(pack), bytes(stored))?;
    if let Some(rounding) = &manifest.rounding {
        writeln!(
            out,
            "rounding      relative error {:.2e} (root mean square), largest {:.2e}; worst {:.2e} in {}",
            rounding.relative_rms, rounding.largest, rounding.worst_relative_rms, rounding.worst
        )?;
    }
    Ok(())
}

fn write_stages(out: &mut dyn Write, manifest: &Manifest) -> anyhow::Result<()> {
    let stages = &manifest.stages;
    writeln!(out, "\n{:<16}{:>8}{:>10}{:>10}{:>10}{:>12}", "stage", "layers", "graphs", "frozen", "trained", "bytes")?;
    let mut row = |name: &str, stage: &StageSpec, layers: String| {
        let named = |of: fn(&Binding) -> Option<&str>| {
            let ports = stage.graphs().flat_map(|graph| &graph.inputs);
            ports.filter(|port| of(&port.binding).is_some()).map(|port| &port.name).collect::<BTreeSet<_>>().len()
        };
        let files: Vec<&str> = stage.graphs().map(|graph| graph.file.as_str()).collect();
        let size: u64 = files.iter().filter_map(|file| manifest.files.get(*file)).map(|entry| entry.bytes).sum();
        let (frozen, trained) = (named(Binding::frozen), named(Binding::trained));
        writeln!(out, "{name:<16}{layers:>8}{:>10}{frozen:>10}{trained:>10}{:>12}", files.len(), bytes(size))
    };
    row("embed", &stages.embed, String::new())?;
    for (kind, stage) in stages.blocks.iter().enumerate() {
        let name = if kind == 0 { "block".to_owned() } else { format!("block_{kind}") };
        let layers = stages.kinds.iter().filter(|&&other| other == kind).count();
        row(&name, stage, layers.to_string())?;
    }
    row("head", &stages.head, String::new())?;
    Ok(())
}

fn list_tensors(pack: &Pack) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\ntrained:")?;
    for spec in &pack.schema().tensors {
        writeln!(out, "  {:<80} f32  {:?}", spec.name, spec.shape)?;
    }
    writeln!(out, "\nfrozen:")?;
    for (name, tensor) in pack.frozen().tensors() {
        writeln!(out, "  {name:<80} {:<4} {:?}", dtype(tensor.dtype), tensor.shape)?;
    }
    Ok(())
}

fn task(manifest: &Manifest) -> String {
    let labels = &manifest.labels;
    let shown = labels.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if labels.len() > 8 { ", ..." } else { "" };
    let task = manifest.design.head.task;
    if task == Task::CausalLm { task.to_string() } else { format!("{task}, {} labels: {shown}{more}", labels.len()) }
}

fn peft(peft: &Peft) -> String {
    match peft {
        Peft::Lora(lora) => {
            let others = if lora.rank_pattern.is_empty() { "" } else { " (others by pattern)" };
            let frozen = if lora.freeze_a { ", A frozen" } else { "" };
            let scaled = if lora.rslora { ", rank-stabilised" } else { "" };
            format!(
                "LoRA rank {}{others} alpha {}{scaled}{frozen} on {}",
                lora.rank,
                lora.alpha,
                lora.targets.join(", ")
            )
        }
        Peft::Houlsby { width } => format!("Houlsby adapters of width {width}"),
        Peft::BitFit => "biases of the blocks (BitFit)".to_owned(),
    }
}

fn storage(pack: &Pack) -> &'static str {
    let types: BTreeSet<&str> = pack.frozen().tensors().map(|(_, tensor)| dtype(tensor.dtype)).collect();
    if types.contains("int8") {
        "int8 matrices, f32 vectors"
    } else if types.contains("f16") {
        "f16 matrices, f32 vectors"
    } else {
        "f32"
    }
}

const fn dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::I8 => "int8",
        DType::I64 => "i64",
    }
}
