//! Times steps for `skiff-agent bench`, and reads the memory that they take.

use super::arguments::Arguments;
use crate::commands::profile;
use anyhow::Context;
use serde::Serialize;
use skiff_contract::memory::own_memory;
use skiff_models::Pack;
use skiff_models::design::Stages;
use skiff_models::memory::{Prediction, Step, predict};
use skiff_models::task::Task;
use skiff_models::work::{evaluation_flops, flops};
use skiff_screen::table::{Column, Running};
use skiff_screen::units::bytes;
use skiff_trainer::clock::monotonic;
use skiff_trainer::optimizer::AdamW;
use skiff_trainer::{Batch, LayerMask, Operators, Runtime, Sequence, Target, Trainer, roof};
use std::path::Path;
use std::sync::Arc;

/// Number of steps before the timed ones.
const WARM_UP: usize = 2;

/// The result for one number of active layers: a line of the table, or an object in JSON.
#[derive(Serialize)]
pub(super) struct Measurement {
    active: usize,
    layers: usize,
    batch: usize,
    tokens: usize,
    policy: &'static str,
    /// Median over the timed steps.
    step_seconds: f64,
    min_step_seconds: f64,
    gflop: f64,
    gflops_per_second: f64,
    roof_gflops_per_second: f64,
    share_of_roof: f64,
    /// Time until the trainer was ready for its first step.
    open_seconds: f64,
    peak_rss_bytes: u64,
    anonymous_bytes: u64,
    file_bytes: u64,
    /// Growth of the process's address space during the timed steps: 0 if they reused the memory of the steps before.
    grown_bytes: u64,
    /// Resident memory when the trainer was open, before the first step.
    open_bytes: u64,
    /// Memory of the step that the graphs predict, in addition to `open_bytes`.
    predicted: Prediction,
    /// Sum of `open_bytes` and the prediction.
    predicted_bytes: u64,
}

/// An open trainer, and the graphs from which the operations of its steps are counted.
pub(super) struct Bench<'a> {
    arguments: &'a Arguments,
    pack: Arc<Pack>,
    runtime: Runtime,
    trainer: Trainer,
    fused: Stages,
    plain: Stages,
    open_seconds: f64,
    open_bytes: u64,
}

impl<'a> Bench<'a> {
    /// Opens the pack on ONNX Runtime, as the arguments say.
    pub(super) fn open(arguments: &'a Arguments) -> anyhow::Result<Self> {
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
        let open_bytes = own_memory(Path::new("/")).resident_bytes;
        let design = &pack.manifest().design;
        let fused = design.fused_stages().context("building the graphs that are measured")?;
        let plain = design.stages().context("building the graphs that are counted")?;
        Ok(Self { arguments, pack, runtime, trainer, fused, plain, open_seconds, open_bytes })
    }

    /// Returns the number of the model's layers.
    pub(super) fn layers(&self) -> usize {
        self.pack.manifest().layers
    }

    /// Times steps with `active` layers. Also returns the number of all steps, including the warm-up, and their duration in
    /// seconds.
    pub(super) fn measure(&mut self, active: usize) -> anyhow::Result<(Measurement, usize, f64)> {
        let Self { arguments, pack, runtime, trainer, fused, plain, open_seconds, open_bytes } = self;
        let (layers, examples, tokens) = (pack.manifest().layers, arguments.batch.into(), arguments.tokens.into());
        let batch = Batch::new(&random_examples(pack, examples, tokens), trainer.form()).context("--tokens")?;
        reset_peak();
        let (all_times, grown_bytes) = time(trainer, &batch, &spread(active, layers), arguments)?;
        let [peak_rss_bytes, anonymous_bytes, file_bytes] = memory();
        // After the steps, so that the operands of the roof are not in the steps' memory.
        let roof = roof(runtime)?;
        let mut times = all_times[WARM_UP..].to_vec();
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let step = Step { examples, tokens, active };
        let stages = if arguments.plain || !runtime.fuses() { &*plain } else { &*fused };
        let predicted = predict(&pack.manifest().design, stages, step, arguments.policy);
        let work = if arguments.evaluate { evaluation_flops(plain, step) } else { flops(plain, step) };
        let gflop = work as f64 / 1e9;
        let measurement = Measurement {
            active,
            layers,
            batch: examples,
            tokens,
            policy: arguments.policy.name(),
            step_seconds: median,
            min_step_seconds: times[0],
            gflop,
            gflops_per_second: gflop / median,
            roof_gflops_per_second: roof / 1e9,
            share_of_roof: gflop * 1e9 / median / roof,
            open_seconds: *open_seconds,
            peak_rss_bytes,
            anonymous_bytes,
            file_bytes,
            grown_bytes,
            open_bytes: *open_bytes,
            predicted,
            predicted_bytes: *open_bytes + predicted.total(),
        };
        Ok((measurement, all_times.len(), all_times.iter().sum()))
    }
}

impl Measurement {
    /// Returns the table, without rows.
    pub(super) fn table(width: Option<usize>) -> Running {
        let columns = [
            Column::number("active"),
            Column::number("median s"),
            Column::number("min s").room(8).rank(3),
            Column::number("GFLOP/s").room(8).rank(2),
            Column::number("of roof"),
            Column::number("peak").room(8),
            Column::number("anonymous").rank(4),
            Column::number("file").room(8).rank(5),
        ];
        Running::new(columns, width)
    }

    /// Returns the cells of its row.
    pub(super) fn cells(&self) -> [String; 8] {
        [
            self.active.to_string(),
            format!("{:.4}", self.step_seconds),
            format!("{:.4}", self.min_step_seconds),
            format!("{:.1}", self.gflops_per_second),
            format!("{:.0}%", 100.0 * self.share_of_roof),
            bytes(self.peak_rss_bytes),
            bytes(self.anonymous_bytes),
            bytes(self.file_bytes),
        ]
    }
}

/// Returns the seconds of each step, warm-up included, and the growth of the address space in bytes during the timed ones.
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

/// Returns `active` of `layers` layers, evenly spread and including the highest.
fn spread(active: usize, layers: usize) -> LayerMask {
    let chosen = (1..=active).map(|at| at * layers / active - 1).collect();
    LayerMask::of(chosen, layers).unwrap_or_else(|| LayerMask::all(layers))
}

/// Draws examples of pseudo-random tokens, all of one length.
fn random_examples(pack: &Pack, examples: usize, tokens: usize) -> Vec<Sequence> {
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

/// Resets the kernel's record of the largest resident size.
fn reset_peak() {
    // If the file cannot be written, the peak covers the whole life of the process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Returns the largest resident size, and the anonymous and the file-backed part of the present one, in bytes.
fn memory() -> [u64; 3] {
    status(["VmHWM:", "RssAnon:", "RssFile:"])
}

/// Reads figures of this process from the kernel by their keys, in bytes.
fn status<const N: usize>(keys: [&str; N]) -> [u64; N] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    keys.map(|key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kilobytes.unwrap_or(0).saturating_mul(1024)
    })
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
