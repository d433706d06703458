//! `skiff-agent bench`: how fast this device trains a pack, and in how much memory.

use super::profile::{self, Profile};
use anyhow::Context;
use serde::Serialize;
use skiff_contract::memory::own_memory;
use skiff_models::Pack;
use skiff_models::memory::{Prediction, Step, predict};
use skiff_models::task::Task;
use skiff_models::work::{evaluation_flops, flops};
use skiff_trainer::clock::monotonic;
use skiff_trainer::optimizer::AdamW;
use skiff_trainer::{Batch, LayerMask, Operators, Policy, Provider, Runtime, Sequence, Target, Trainer, roof};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Times training steps on random tokens: seconds, share of the machine's peak, memory.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A step is forward, backward and AdamW. GFLOP counts 2 m n k for every matrix product of the plain forward and \
                  backward graphs of the active layers, whatever this implementation leaves out (with --evaluate, of the \
                  evaluation's). The roof is the fastest of up to 48 \
                  products of [1024, 768] and [768, 3072] in the same run.\n\n\
                  Examples:\n  skiff-agent bench --pack minilm.pack\n  skiff-agent bench --pack minilm.pack --active 3 --policy recompute --json\n  \
                  skiff-agent bench --pack minilm.pack --table"
)]
pub struct Arguments {
    /// The pack's folder.
    #[arg(long)]
    pack: PathBuf,
    /// Examples in a step.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// Tokens of each example.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    tokens: u16,
    /// Layers that run, evenly spread; `all`, or how many.
    #[arg(long, default_value = "all", value_name = "K", conflicts_with = "table")]
    active: String,
    /// One line for every number of active layers, from 1.
    #[arg(long)]
    table: bool,
    /// What layers keep for the backward pass: keep, half (half precision) or recompute.
    #[arg(long, default_value = "keep", value_parser = policy)]
    policy: Policy,
    /// Use the graphs of plain ONNX operators.
    #[arg(long)]
    plain: bool,
    /// Only evaluate.
    #[arg(long)]
    evaluate: bool,
    /// Have ONNX Runtime time every operator: adds a table of them, and leaves its traces in this new folder (for
    /// chrome://tracing). Steps take a little longer then.
    #[arg(long, value_name = "DIR", conflicts_with = "table")]
    profile: Option<PathBuf>,
    /// Timed steps, after two that are not.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Threads of the computation [default: all processors].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// What computes, where ONNX Runtime's library has it: cpu, cuda, xnnpack.
    #[arg(long, env = "SKIFF_PROVIDER", value_name = "NAME", default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Path of libonnxruntime.so [default: searched for; see `skiff-agent doctor`].
    #[arg(long, env = "SKIFF_ONNXRUNTIME")]
    onnxruntime: Option<PathBuf>,
    /// Print each result as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Steps before those that count.
const WARM_UP: usize = 2;

/// What one line says.
#[derive(Serialize)]
struct Found {
    active: usize,
    layers: usize,
    batch: usize,
    tokens: usize,
    policy: &'static str,
    /// Median.
    step_seconds: f64,
    min_step_seconds: f64,
    gflop: f64,
    gflops_per_second: f64,
    roof_gflops_per_second: f64,
    share_of_roof: f64,
    /// From nothing to a trainer that can step.
    open_seconds: f64,
    peak_rss_bytes: u64,
    anonymous_bytes: u64,
    file_bytes: u64,
    /// How much the process's address space grew during the timed steps: 0 where none of them allocated what those before had
    /// not.
    grown_bytes: u64,
    /// Resident once the trainer was open, before the first step.
    open_bytes: u64,
    /// What the graphs say that the step takes beside that.
    predicted: Prediction,
    /// Both together.
    predicted_bytes: u64,
}

/// Runs the command.
///
/// # Errors
/// Anything that keeps it from finishing.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cores = || std::thread::available_parallelism().map_or(1, Into::into);
    let threads = arguments.threads.map_or_else(cores, usize::from);
    let begun = monotonic();
    let pack = Arc::new(Pack::open(&arguments.pack).context("opening the pack")?);
    let mut runtime = Runtime::load(arguments.onnxruntime.as_deref(), threads)?.on(arguments.provider)?;
    if let Some(folder) = &arguments.profile {
        profile::prepare(folder)?;
        runtime = runtime.tracing_into(folder.clone());
    }
    let operators = if arguments.plain { Operators::Plain } else { Operators::Fused };
    let mut trainer = Trainer::open_with(&runtime, Arc::clone(&pack), operators)?;
    trainer.set_policy(arguments.policy);
    let open_seconds = monotonic().saturating_sub(begun).as_secs_f64();
    let layers = pack.manifest().layers;
    let counts: Vec<usize> = match arguments.active.as_str() {
        _ if arguments.table => (1..=layers).collect(),
        "all" => vec![layers],
        count => {
            let count = count.parse().ok().filter(|count| (1..=layers).contains(count));
            vec![count.with_context(|| format!("--active: expected all, or a number from 1 to {layers}"))?]
        }
    };
    let open_bytes = own_memory(Path::new("/")).resident_bytes;
    let design = &pack.manifest().design;
    let fused = design.fused_stages().context("building the graphs that are measured")?;
    let plain = pack.manifest().design.stages().context("building the graphs that are counted")?;
    let (examples, tokens) = (arguments.batch.into(), usize::from(arguments.tokens));
    let mut out = std::io::stdout().lock();
    if !arguments.json {
        writeln!(out, "active  median s     min s   GFLOP/s  of roof  peak MB   anon MB   file MB")?;
    }
    let (mut steps, mut seconds) = (0, 0.0);
    for active in counts {
        let batch = Batch::new(&random(&pack, examples, tokens), trainer.form()).context("--tokens")?;
        let mask = spread(active, layers);
        reset_peak();
        let (all_times, grown) = time(&mut trainer, &batch, &mask, arguments)?;
        let memory = memory();
        // After the steps, so that its operands are not in their memory.
        let peak = roof(&runtime)?;
        (steps, seconds) = (all_times.len(), all_times.iter().sum());
        let mut times = all_times[WARM_UP..].to_vec();
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let stages = if arguments.plain || !runtime.fuses() { &plain } else { &fused };
        let step = Step { examples, tokens, active };
        let predicted = predict(design, stages, step, arguments.policy);
        let work = if arguments.evaluate { evaluation_flops(&plain, step) } else { flops(&plain, step) };
        let gflop = work as f64 / 1e9;
        let found = Found {
            active,
            layers,
            batch: examples,
            tokens,
            policy: arguments.policy.name(),
            step_seconds: median,
            min_step_seconds: times[0],
            gflop,
            gflops_per_second: gflop / median,
            roof_gflops_per_second: peak / 1e9,
            share_of_roof: gflop * 1e9 / median / peak,
            open_seconds,
            peak_rss_bytes: memory[0],
            anonymous_bytes: memory[1],
            file_bytes: memory[2],
            grown_bytes: grown,
            open_bytes,
            predicted,
            predicted_bytes: open_bytes + predicted.total(),
        };
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(&found)?)?;
        } else {
            let share = 100.0 * found.share_of_roof;
            let [peak, anonymous, file] = memory.map(|bytes| bytes as f64 / 1e6);
            let speed = found.gflops_per_second;
            writeln!(
                out,
                "{active:>6}  {median:>8.4}  {:>8.4}  {speed:>8.1}  {share:>6.0}%  {peak:>7.0}  {anonymous:>8.0}  {file:>8.0}",
                times[0]
            )?;
        }
    }
    if let Some(folder) = &arguments.profile {
        // The traces are written as the sessions go.
        drop(trainer);
        let profile = Profile::read(folder, steps, seconds)?;
        if arguments.json {
            writeln!(out, "{}", serde_json::json!({ "profile": profile }))?;
        } else {
            profile.print(&mut out)?;
        }
    }
    Ok(())
}

/// Seconds of each step, those before the timed ones too, and how much address space the timed ones added.
fn time(
    trainer: &mut Trainer,
    batch: &Batch,
    mask: &LayerMask,
    arguments: &Arguments,
) -> anyhow::Result<(Vec<f64>, u64)> {
    let mut optimizer = AdamW::default();
    let mut weights = trainer.weights().clone();
    let mut times = Vec::new();
    let mut before = 0;
    for step in 0..WARM_UP + usize::from(arguments.steps) {
        if step == WARM_UP {
            [before] = status(["VmPeak:"]);
        }
        let begun = monotonic();
        if arguments.evaluate {
            trainer.logits(batch, mask)?;
        } else {
            let outcome = trainer.step(batch, mask)?;
            optimizer.step(&mut weights, &outcome.gradients, 5e-4);
            trainer.set_weights(weights.clone())?;
        }
        times.push(monotonic().saturating_sub(begun).as_secs_f64());
    }
    let [after] = status(["VmPeak:"]);
    Ok((times, after.saturating_sub(before)))
}

/// `active` of `layers` layers, evenly spread, the highest among them.
fn spread(active: usize, layers: usize) -> LayerMask {
    let chosen = (1..=active).map(|at| at * layers / active - 1).collect();
    LayerMask::of(chosen, layers).unwrap_or_else(|| LayerMask::all(layers))
}

/// Examples of pseudo-random tokens, all of one length.
fn random(pack: &Pack, examples: usize, tokens: usize) -> Vec<Sequence> {
    let layout = &pack.manifest().layout;
    let tokens = tokens.min(layout.max_tokens);
    let mut state = 1_u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let mut example = || {
        let ids: Vec<u32> = (0..tokens).map(|_| draw(layout.vocabulary) as u32).collect();
        let target = match layout.task {
            Task::SequenceClassification => Target::Class(draw(layout.classes)),
            Task::Regression => Target::Numbers(vec![0.5; layout.classes]),
            Task::TokenClassification => Target::Tokens((0..tokens).map(|_| Some(draw(layout.classes))).collect()),
            Task::CausalLm => Target::Next(ids.iter().map(|&id| Some(id)).collect()),
        };
        Sequence { types: vec![0; tokens], ids, target }
    };
    (0..examples).map(|_| example()).collect()
}

/// Has the kernel forget the largest resident size so far.
fn reset_peak() {
    // Where it may not be written, the peak is that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Largest resident size, and of the present one what is anonymous and what is of files; bytes.
fn memory() -> [u64; 3] {
    status(["VmHWM:", "RssAnon:", "RssFile:"])
}

/// What the kernel says of this process, in bytes.
fn status<const N: usize>(keys: [&str; N]) -> [u64; N] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    keys.map(|key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kilobytes.unwrap_or(0).saturating_mul(1024)
    })
}

/// A policy by its name.
pub(super) fn policy(text: &str) -> Result<Policy, String> {
    let known = Policy::ALL.into_iter().find(|policy| policy.name() == text);
    known.ok_or_else(|| "expected keep, half or recompute".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_spread_and_the_highest_runs() {
        assert_eq!(spread(3, 6).active(), [1, 3, 5]);
        assert_eq!(spread(1, 12).active(), [11]);
        for active in 1..=7 {
            assert_eq!(spread(active, 7).active().len(), active);
        }
    }
}
