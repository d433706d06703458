//! `skiff-pack inspect`.

use anyhow::{Context, ensure};
use serde_json::json;
use skiff_models::Pack;
use skiff_models::graph::DType;
use skiff_models::memory::{Policy, Prediction, Step, predict};
use skiff_models::pack::{EndToken, Manifest};
use skiff_models::peft::Peft;
use skiff_models::stage::{Binding, StageSpec};
use skiff_models::task::Task;
use skiff_screen::live::Live;
use skiff_screen::output;
use skiff_screen::table::{Column, Table};
use skiff_screen::text::{Facts, fold};
use skiff_screen::units::{bytes, count, counted};
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
    let live = Live::new();
    live.say("checking every file");
    let pack = Pack::open(path).with_context(|| format!("opening the pack {}", path.display()));
    live.clear();
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
    let mut out = output::stdout();
    if json {
        let memory: Vec<_> = predictions
            .iter()
            .map(|(active, policy, bytes)| {
                json!({ "active_layers": active, "policy": policy, "bytes": bytes, "total_bytes": bytes.total() })
            })
            .collect();
        let digest = blake3::Hash::from(pack.digest()).to_hex().to_string();
        let step = json!({ "batch": batch.batch, "tokens": tokens, "predictions": memory });
        let shown = json!({ "digest": digest, "manifest": manifest, "memory": step });
        writeln!(out, "{}", serde_json::to_string_pretty(&shown)?)?;
        return Ok(());
    }
    let width = output::width();
    let step = format!("{} x {tokens} tokens", batch.batch);
    let title = format!("memory predicted for a training step of {step}, beside the process itself:");
    write!(
        out,
        "{}\n{}\n{}\n{}",
        summary(path, &pack).text(width),
        stages_table(manifest).text(width),
        fold(&title, 0, width),
        memory(&predictions).text(width)
    )?;
    Ok(())
}

fn memory(predictions: &[(usize, Policy, Prediction)]) -> Table {
    let mut table = Table::new([
        Column::number("active layers"),
        Column::text("policy"),
        Column::number("total"),
        Column::number("mapped").rank(1),
        Column::number("trained").rank(2),
        Column::number("kept").rank(4),
        Column::number("working").rank(3),
    ]);
    for (active, policy, prediction) in predictions {
        let Prediction { mapped, trained, kept, working } = *prediction;
        let parts = [prediction.total(), mapped, trained, kept, working].map(bytes);
        table.add([active.to_string(), policy.name().to_owned()].into_iter().chain(parts));
    }
    table
}

fn summary(path: &Path, pack: &Pack) -> Facts {
    let manifest = pack.manifest();
    let (model, sizes, layout) = (&manifest.design.model, manifest.design.model.sizes(), &manifest.layout);
    let trainable: usize = manifest.schema.tensors.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let frozen: usize = pack
        .frozen()
        .tensors()
        .filter(|(name, _)| !name.ends_with(".scale"))
        .map(|(_, tensor)| tensor.shape.iter().product::<usize>())
        .sum();
    let mut facts = Facts::new();
    facts.add("pack", format!("{} (every file verified)", path.display()));
    facts.add("digest", blake3::Hash::from(pack.digest()).to_hex().to_string());
    facts.add(
        "model",
        format!(
            "{}, {} layers x {}, {} heads, feed-forward {}, {} words, up to {} tokens",
            model.name(),
            sizes.layers,
            sizes.hidden,
            sizes.heads,
            sizes.intermediate,
            count(sizes.vocabulary),
            count(layout.max_tokens)
        ),
    );
    facts.add("task", task(manifest));
    if manifest.design.head.task != Task::TokenClassification {
        facts.add("texts", format!("title and description are joined with {:?}", manifest.separator));
    }
    if manifest.design.head.task == Task::CausalLm {
        let told = match &manifest.end_token {
            Some(EndToken { text, id }) => format!("{text} ({id}) after each text that is not cut"),
            None => "none: the model does not learn to stop".to_owned(),
        };
        facts.add("end token", told);
    }
    facts.add(
        "trains",
        format!(
            "{}: {} parameters in {}, {:.2} % of all",
            peft(&manifest.design.peft),
            count(trainable),
            counted(manifest.schema.tensors.len(), "tensor"),
            100.0 * trainable as f64 / (trainable + frozen) as f64
        ),
    );
    let stored = bytes(pack.frozen().tensors().map(|(_, tensor)| tensor.bytes.len() as u64).sum::<u64>());
    facts.add("frozen", format!("{} parameters, {}: {stored}, memory-mapped", count(frozen), storage(pack)));
    if let Some(rounding) = &manifest.rounding {
        facts.add(
            "rounding",
            format!(
                "relative error {:.2e} (root mean square), largest {:.2e}; worst {:.2e} in {}",
                rounding.relative_rms, rounding.largest, rounding.worst_relative_rms, rounding.worst
            ),
        );
    }
    facts
}

fn stages_table(manifest: &Manifest) -> Table {
    let stages = &manifest.stages;
    let mut table = Table::new([
        Column::text("stage"),
        Column::number("layers"),
        Column::number("graphs"),
        Column::number("frozen"),
        Column::number("trained"),
        Column::number("size"),
    ]);
    let mut row = |name: &str, stage: &StageSpec, layers: String| {
        let named = |of: fn(&Binding) -> Option<&str>| {
            let ports = stage.graphs().flat_map(|graph| &graph.inputs);
            ports.filter(|port| of(&port.binding).is_some()).map(|port| &port.name).collect::<BTreeSet<_>>().len()
        };
        let files: Vec<&str> = stage.graphs().map(|graph| graph.file.as_str()).collect();
        let size: u64 = files.iter().filter_map(|file| manifest.files.get(*file)).map(|entry| entry.bytes).sum();
        let counts = [files.len(), named(Binding::frozen), named(Binding::trained)].map(|number| number.to_string());
        table.add([name.to_owned(), layers].into_iter().chain(counts).chain([bytes(size)]));
    };
    row("embed", &stages.embed, String::new());
    for (kind, stage) in stages.blocks.iter().enumerate() {
        let name = if kind == 0 { "block".to_owned() } else { format!("block_{kind}") };
        let layers = stages.kinds.iter().filter(|&&other| other == kind).count();
        row(&name, stage, layers.to_string());
    }
    row("head", &stages.head, String::new());
    table
}

fn list_tensors(pack: &Pack) -> anyhow::Result<()> {
    let list = || Table::new([Column::text("tensor"), Column::text("type"), Column::text("shape")]);
    let (mut trained, mut frozen) = (list(), list());
    for spec in &pack.schema().tensors {
        trained.add([spec.name.clone(), dtype(DType::F32).to_owned(), format!("{:?}", spec.shape)]);
    }
    for (name, tensor) in pack.frozen().tensors() {
        frozen.add([name.to_owned(), dtype(tensor.dtype).to_owned(), format!("{:?}", tensor.shape)]);
    }
    let width = output::width();
    let text = format!("\ntrained:\n{}\nfrozen:\n{}", trained.text(width), frozen.text(width));
    Ok(output::stdout().write_all(text.as_bytes())?)
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
