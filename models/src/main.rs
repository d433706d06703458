//! `skiff-pack`: makes and shows packs.

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use skiff_models::Pack;
use skiff_models::pack::{BuildOptions, build};
use skiff_models::peft::Lora;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Makes packs: what an agent needs of a model, from a checkpoint to ONNX training graphs.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a pack from a Hugging Face checkpoint folder.
    #[command(after_help = "Example:\n  skiff-pack build --checkpoint minilm --labels labels.txt --out minilm.pack\n\
                            where labels.txt has one class name a line.")]
    Build(Build),
    /// Verifies a pack and says what is in it.
    Inspect {
        /// The pack's folder.
        pack: PathBuf,
        /// Print the manifest as JSON instead.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Build {
    /// Folder with config.json, model.safetensors and tokenizer.json.
    #[arg(long)]
    checkpoint: PathBuf,
    /// The pack's folder; an existing pack is replaced.
    #[arg(long)]
    out: PathBuf,
    /// File with one class name a line, or a number of classes.
    #[arg(long)]
    labels: String,
    /// LoRA's rank.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    rank: u16,
    /// LoRA's alpha; the update is scaled by alpha / rank.
    #[arg(long, default_value_t = 16.0)]
    alpha: f32,
    /// The linear layers that get LoRA, by the last part of their name.
    #[arg(long, value_delimiter = ',', default_value = "query,value")]
    targets: Vec<String>,
    /// Seed of the first values.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Build(arguments) => build_pack(arguments),
        Command::Inspect { pack, json } => inspect(&pack, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skiff-pack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build_pack(arguments: Build) -> anyhow::Result<()> {
    let labels = read_labels(&arguments.labels)?;
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let options = BuildOptions {
        checkpoint: arguments.checkpoint,
        out: arguments.out,
        labels,
        lora: Lora { rank: arguments.rank.into(), alpha: arguments.alpha, targets: arguments.targets },
        seed: arguments.seed,
    };
    let built = build(&options, &mut |doing| bar.set_message(doing.to_owned()));
    bar.finish_and_clear();
    built.with_context(|| format!("making a pack from {}", options.checkpoint.display()))?;
    inspect(&options.out, false)
}

/// A file of names, or a count that names the classes `0`, `1`, ...
fn read_labels(argument: &str) -> anyhow::Result<Vec<String>> {
    if let Ok(count) = argument.parse::<u32>() {
        if count > 65_536 {
            bail!("--labels {count}: at most 65,536 classes");
        }
        return Ok((0..count).map(|class| class.to_string()).collect());
    }
    let text = std::fs::read_to_string(argument).with_context(|| format!("reading the labels in {argument}"))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn inspect(path: &Path, json: bool) -> anyhow::Result<()> {
    let pack = Pack::open(path).with_context(|| format!("opening the pack {}", path.display()))?;
    let manifest = pack.manifest();
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, manifest)?;
        writeln!(out)?;
        return Ok(());
    }
    let model = &manifest.model;
    let trainable: usize = manifest.schema.tensors.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let graphs: u64 =
        manifest.files.iter().filter(|(name, _)| name.starts_with("graphs/")).map(|(_, entry)| entry.bytes).sum();
    writeln!(out, "pack          {} (every file verified)", path.display())?;
    writeln!(out, "digest        {}", blake3::Hash::from(pack.digest()).to_hex())?;
    writeln!(
        out,
        "model         {}, {} layers x {}, {} heads, feed-forward {}, {} words, up to {} tokens",
        manifest.architecture,
        model.num_hidden_layers,
        model.hidden_size,
        model.num_attention_heads,
        model.intermediate_size,
        model.vocab_size,
        model.max_position_embeddings
    )?;
    writeln!(
        out,
        "trainable     LoRA rank {} alpha {} on {}, and the head: {trainable} parameters in {} tensors",
        manifest.lora.rank,
        manifest.lora.alpha,
        manifest.lora.targets.join(" and "),
        manifest.schema.tensors.len()
    )?;
    writeln!(out, "frozen        {:.1} MB, f32, memory-mapped", pack.frozen().bytes() as f64 / 1e6)?;
    writeln!(out, "graphs        {:.0} kB in {} files", graphs as f64 / 1e3, manifest.files.len() - 3)?;
    writeln!(out, "labels        {}: {}", manifest.labels.len(), shorten(&manifest.labels))?;
    Ok(())
}

fn shorten(labels: &[String]) -> String {
    let shown = labels.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
    if labels.len() > 8 { format!("{shown}, ...") } else { shown }
}
