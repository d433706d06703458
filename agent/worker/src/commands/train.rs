//! `skiff-agent train`: trains on local files, without a fleet.

mod course;
mod metrics;

use super::bench::policy;
use super::figures::{Found, Part};
use crate::corpus::Corpus;
use crate::memory;
use anyhow::Context;
use bytesize::ByteSize;
use course::{Course, Evaluation};
use metrics::Metrics;
use serde::Serialize;
use skiff_base::files::{Access, replace};
use skiff_contract::limits::Limit;
use skiff_contract::memory::own_memory;
use skiff_data::Columns;
use skiff_models::memory::{Plan, Step};
use skiff_models::{Pack, tensors};
use skiff_screen::live::Live;
use skiff_screen::output::{self, note};
use skiff_screen::text::Facts;
use skiff_screen::units::{bytes, count, counted};
use skiff_trainer::{
    AdamWOptions, Decay, EvaluatePlan, Examples, Policy, Provider, Runtime, Schedule, StepReport, TrainPlan,
    TrainSummary, Trainer, Training, Way, Ways,
};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Trains on local files, and prints speed and accuracy.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skiff-agent train --pack minilm.pack --train train.csv --test test.csv --steps 300 --lr 1e-3 --dropout 0.5\n  \
                  skiff-agent train --pack qwen.pack --train notes.txt --test other.txt --batch 2 --max-tokens 256\n  \
                  skiff-agent train --pack qwen.pack --train notes.txt --test other.txt --batch 32 --micro-batch 2 --clip 1 \\\n      \
                  --warm-up 50 --schedule linear --steps 2000 --checkpoint notes.ckpt\n\n\
                  What a file holds, by the pack's task:\n  \
                  classification  texts or pairs with a label: .csv (AG News' three columns, or a header), .tsv, .jsonl\n  \
                  regression      the same with a number, or numbers in a JSON array, for the label\n  \
                  tokens          words with a label each: .jsonl (tokens, labels or ner_tags), .conll\n  \
                  causal-lm       plain texts: .txt (one a line), .csv, .tsv, .jsonl (text, or prompt and completion); the pack's end token\n                  \
                                  follows each text that is not cut (skiff-pack build --end-token)\n\
                  Pairs: columns text and text_pair, sentence1 and sentence2, premise and hypothesis, question and sentence.\n\
                  Columns title and description in place of a text are joined with the pack's separator (skiff-pack build --join-with).\n\
                  Other names: --text-column, --pair-column, --prompt-column, --label-column; without a header: --columns label,text.\n\
                  Other encodings, compressed files, Parquet: `skiff-pack data` converts them. docs/data.md has all of this.\n\n\
                  A step whose loss or gradients are not finite changes nothing and is counted; ten in a row end the training."
)]
pub struct Arguments {
    /// The pack's folder, made by `skiff-pack build`.
    #[arg(long)]
    pack: PathBuf,
    /// Examples to train on.
    #[arg(long, value_name = "FILE")]
    train: PathBuf,
    /// Examples to evaluate on.
    #[arg(long, value_name = "FILE")]
    test: PathBuf,
    #[command(flatten)]
    columns: Columns,
    /// Number of optimizer steps.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Number of examples in a step.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// Compute at most this many of a step's examples at once and add their gradients up. That takes less memory and differs
    /// only by rounding [default: all of them].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    micro_batch: Option<u16>,
    /// Values that layers keep for the backward pass: keep (all), half (all, in half precision) or recompute (none; they are
    /// computed again).
    #[arg(long, default_value = "keep", value_parser = policy)]
    policy: Policy,
    /// Memory limit, for example 300MB. Each step runs in the fastest way that stays below; the plan is printed at the start.
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["micro_batch", "policy"])]
    memory: Option<ByteSize>,
    /// AdamW's highest learning rate.
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
    lr: f32,
    /// Let the learning rate rise evenly over the first N steps, while AdamW has seen few gradients.
    #[arg(long, value_name = "N", default_value_t = 0)]
    warm_up: u32,
    /// Course of the learning rate after the warm-up: constant, or linear, which falls to zero over the remaining steps.
    #[arg(long, value_enum, default_value_t = Falling::Constant)]
    schedule: Falling,
    /// AdamW's weight decay: each step a weight shrinks by this share of itself times the learning rate; 0 turns it off.
    #[arg(long, value_name = "SHARE", default_value_t = AdamWOptions::default().weight_decay, value_parser = not_negative)]
    weight_decay: f32,
    /// Probability that a step skips a layer, the same for every layer.
    #[arg(long, default_value_t = 0.0)]
    dropout: f32,
    /// Dropout rate of each layer, separated by commas, instead of --dropout.
    #[arg(long, value_delimiter = ',', conflicts_with = "dropout")]
    rates: Option<Vec<f32>>,
    /// Scale gradients down above this global norm [default: never].
    #[arg(long, value_parser = positive)]
    clip: Option<f32>,
    /// Cut texts to this many tokens.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Evaluate on at most N examples of --test. If the file has more, they are drawn from all of it, with each label in its
    /// share, and the same in every run; 0 means no evaluation.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    evaluate: usize,
    /// Evaluate after every N steps and after the last one, and end with the best weights.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    eval_every: Option<u32>,
    /// Stop after this many evaluations in a row without a better one: accuracy, F1 over spans, RMSE or loss decides.
    #[arg(long, value_name = "K", requires = "eval_every", value_parser = clap::value_parser!(u32).range(1..))]
    patience: Option<u32>,
    /// End with the last weights, not with the best ones.
    #[arg(long, requires = "eval_every")]
    last: bool,
    /// Write a CSV file with a row for each step, and the figures of the evaluations.
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Write the same figures as events for TensorBoard to this folder.
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    /// Seed for masks and batches.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of threads [default: all processors].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Execution provider, if ONNX Runtime's library has it: cpu, cuda, xnnpack.
    #[arg(long, env = "SKIFF_PROVIDER", value_name = "NAME", default_value_t = Provider::Cpu)]
    provider: Provider,
    /// Path of libonnxruntime.so [default: searched for; see `skiff-agent doctor`].
    #[arg(long, env = "SKIFF_ONNXRUNTIME")]
    onnxruntime: Option<PathBuf>,
    /// Write the trained tensors to this file, as safetensors with PEFT's names.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Keep the state of the training in this file, and resume from it if it exists: after an interruption, give the same command
    /// again. The same number of threads gives the same result, bit for bit, as without an interruption.
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Write --checkpoint after every N steps, and at the end.
    #[arg(long, value_name = "N", default_value_t = 100, requires = "checkpoint", value_parser = clap::value_parser!(u32).range(1..))]
    checkpoint_every: u32,
    /// Print the result as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Values of `--schedule`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Falling {
    Constant,
    Linear,
}

/// The result that `--json` prints.
#[derive(Serialize)]
struct Outcome {
    /// Number of steps that changed weights.
    steps: u32,
    /// Number of steps that changed nothing, because their loss or gradients were not finite.
    skipped_steps: u32,
    /// Number of steps of both kinds that earlier processes did, before the checkpoint.
    resumed_steps: u32,
    batch: usize,
    /// Speed of the training over the wall time of all steps, tokenising included.
    examples_per_second: f64,
    tokens_per_second: f64,
    /// Median time of a step.
    step_seconds: f64,
    mean_active_layers: f32,
    mean_loss: f32,
    /// Mean loss over the last 20 steps.
    loss_last_20: f32,
    /// Token after each text of a language model that is not cut; absent if there is none.
    end_token: Option<String>,
    /// Number of examples that the evaluation used; absent with `--evaluate 0`.
    evaluated_examples: Option<u64>,
    /// Number of examples in the file of the evaluation.
    test_examples: usize,
    /// Result of the evaluation; absent with `--evaluate 0`.
    #[serde(flatten)]
    found: Found,
    evaluate_examples_per_second: Option<f64>,
    /// Counts of each label or type of span that occurs in the evaluation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
    /// Evaluations during the training.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evaluations: Vec<Evaluation>,
    /// Step of the weights at the end, if evaluations chose them.
    best_step: Option<u32>,
    /// True if the training ended before its last step, because it did not improve any more.
    stopped_early: bool,
    /// The plan of the steps, if `--memory` was given.
    memory: Option<Plan>,
    train_seconds: f64,
    peak_rss_bytes: u64,
}

/// Runs the command.
///
/// # Errors
/// A file, a pack or an ONNX Runtime that cannot be used; a training that fails.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pack = Arc::new(Pack::open(&arguments.pack).context("opening the pack")?);
    arguments.out.as_deref().map_or(Ok(()), writable)?;
    let load = |path| Corpus::load(path, &arguments.columns, &pack, arguments.max_tokens as usize);
    let (train, test) = (load(&arguments.train)?, load(&arguments.test)?);
    let cores = || std::thread::available_parallelism().map_or(1, Into::into);
    let threads = arguments.threads.map_or_else(cores, usize::from);
    let runtime = Runtime::load(arguments.onnxruntime.as_deref(), threads)?.on(arguments.provider)?;
    let (layers, task, labels) = (pack.manifest().layers, pack.manifest().layout.task, pack.manifest().labels.clone());
    let end_token = pack.manifest().end_token.as_ref().map(|token| token.text.clone());
    let schema = pack.schema().clone();
    let mut trainer = Trainer::open(&runtime, pack)?;

    let memory = arguments.memory.map(|limit| arguments.within(limit, &trainer, layers)).transpose()?;
    let plan = arguments.plan(layers, memory.as_ref())?;
    let live = Live::new();
    let mut training = trainer.begin(&plan, &train)?;
    if let Some(path) = &arguments.checkpoint {
        resume(&mut training, path)?;
    }
    let resumed_steps = training.done();
    let mut course = Course::new(task, arguments.patience, arguments.checkpoint.as_deref());
    course.resume(resumed_steps, &schema)?;
    let mut metrics = Metrics::open(arguments.metrics.as_deref(), arguments.tensorboard.as_deref(), resumed_steps)?;
    let evaluate_plan = EvaluatePlan { examples: arguments.evaluate, batch: 8 };
    // An earlier process may have ended for want of improvement.
    let was_over = course.is_over();
    let mut stopped_early = was_over;
    #[cfg(debug_assertions)]
    let mut barrier = crate::barrier::Barrier::from_environment(&plan.device, plan.round);
    let mut watch = |training: &mut Training<'_>, report: &StepReport| -> anyhow::Result<ControlFlow<()>> {
        show_step(&live, report);
        let is_due =
            arguments.eval_every.is_some_and(|every| report.step.is_multiple_of(every) || report.step == report.steps);
        let evaluation = if is_due && arguments.evaluate > 0 {
            let summary = training.evaluate(&test, &evaluate_plan, &mut |done| {
                live.say(&format!("after step {}: evaluating, {done} examples", report.step));
                ControlFlow::Continue(())
            })?;
            let found = Found::of(task, &labels, &summary);
            let is_over = course.add(report.step, &summary, found, training.weights())?;
            stopped_early |= is_over && report.step < report.steps;
            let newest = course.newest().cloned();
            if let Some(evaluation) = newest.as_ref().filter(|_| !arguments.json) {
                live.print(&evaluation.line(task))?;
            }
            newest
        } else {
            None
        };
        metrics.add(report, evaluation.as_ref())?;
        // The checkpoint comes last: a kill before it makes the next process do the step and its figures again.
        if let Some(path) = &arguments.checkpoint
            && (report.step.is_multiple_of(arguments.checkpoint_every) || report.step == report.steps)
        {
            save(training, path)?;
        }
        if stopped_early {
            return Ok(ControlFlow::Break(()));
        }
        #[cfg(debug_assertions)]
        if let Some(barrier) = barrier.take() {
            return Ok(barrier.wait(&mut || ControlFlow::Continue(())));
        }
        Ok(ControlFlow::Continue(()))
    };
    if !was_over {
        training.run(&mut watch)?;
    }
    let summary = training.summary();
    let best = course.take_best().filter(|_| !arguments.last);
    let best_step = best.as_ref().map(|(evaluation, _)| evaluation.step);
    if let Some((_, weights)) = best {
        trainer.set_weights(weights)?;
    }
    if let Some(path) = &arguments.out {
        let bytes = tensors::write(trainer.weights())?;
        replace(path, &bytes, Access::Shared).with_context(|| format!("writing {}", path.display()))?;
    }
    let evaluated = if arguments.evaluate > 0 {
        let total = test.len().min(arguments.evaluate);
        Some(trainer.evaluate(&test, &evaluate_plan, &mut |done| {
            live.count(&format!("evaluating, {done} of {total} examples"), done as u64, total as u64);
            ControlFlow::Continue(())
        })?)
    } else {
        None
    };
    live.clear();
    let outcome = Outcome {
        found: evaluated.as_ref().map(|summary| Found::of(task, &labels, summary)).unwrap_or_default(),
        end_token,
        parts: evaluated.as_ref().map(|summary| Part::all_of(&labels, &summary.metrics)).unwrap_or_default(),
        evaluations: course.into_evaluations(),
        best_step,
        stopped_early,
        evaluated_examples: evaluated.as_ref().map(|found| found.examples),
        test_examples: test.len(),
        evaluate_examples_per_second: evaluated
            .as_ref()
            .map(|found| found.examples as f64 / found.elapsed.as_secs_f64()),
        resumed_steps,
        memory,
        peak_rss_bytes: own_memory(Path::new("/")).peak_bytes,
        ..Outcome::of(&summary, arguments.batch.into())
    };
    outcome.print(arguments.json)
}

/// Checks before a long training that its result can be written to `path`.
fn writable(path: &Path) -> anyhow::Result<()> {
    let known = path.exists();
    let tried = File::options().append(true).create(true).open(path);
    tried.with_context(|| format!("--out {}: no file can be written there", path.display()))?;
    if !known {
        // The file comes with the result.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

impl Arguments {
    /// Plans the steps within `limit`, and prints the plan on standard error.
    fn within(&self, limit: ByteSize, trainer: &Trainer, layers: usize) -> anyhow::Result<Plan> {
        let process = memory::of_processes(0);
        let tokens = trainer.form().layout.max_tokens.min(self.max_tokens as usize);
        let active = self.rates(layers).iter().filter(|rate| **rate < 1.0).count().max(1);
        let limit = Limit::set(limit.0);
        let plan = memory::planned(trainer, &limit, process, Step { examples: self.batch.into(), tokens, active })?;
        note(&format!("memory {}", memory::explained(&plan, &limit, process).trim_end()));
        Ok(plan)
    }

    fn rates(&self, layers: usize) -> Vec<f32> {
        self.rates.clone().unwrap_or_else(|| vec![self.dropout; layers])
    }

    fn plan(&self, layers: usize, memory: Option<&Plan>) -> anyhow::Result<TrainPlan> {
        let decay = match self.schedule {
            Falling::Constant => Decay::Constant,
            Falling::Linear => Decay::Linear,
        };
        let data = if self.checkpoint.is_some() { self.data()? } else { String::new() };
        Ok(TrainPlan {
            seed: self.seed,
            device: "local".to_owned(),
            round: 0,
            data,
            rates: self.rates(layers),
            most_active: layers,
            proximal: 0.0,
            steps: self.steps,
            batch: self.batch.into(),
            ways: match memory {
                Some(plan) => plan.ways(),
                None => {
                    Ways::Fixed(Way { policy: self.policy, micro_batch: self.micro_batch.unwrap_or(self.batch).into() })
                }
            },
            learning_rate: self.lr,
            schedule: Schedule { warm_up: self.warm_up, decay },
            optimizer: AdamWOptions { weight_decay: self.weight_decay, ..AdamWOptions::default() },
            clip_norm: self.clip.unwrap_or(f32::INFINITY),
        })
    }

    /// Returns a text that identifies the examples.
    fn data(&self) -> anyhow::Result<String> {
        let mut hasher = blake3::Hasher::new();
        let hashed = File::open(&self.train).and_then(|file| hasher.update_reader(file).map(drop));
        hashed.with_context(|| format!("reading {}", self.train.display()))?;
        Ok(format!("{}, cut to {} tokens", hasher.finalize().to_hex(), self.max_tokens))
    }
}

/// Resumes from the checkpoint at `path`. If there is none, writes the first one, so that an unwritable path is found before the
/// work.
fn resume(training: &mut Training<'_>, path: &Path) -> anyhow::Result<()> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return save(training, path),
        Err(error) => return Err(error).with_context(|| format!("reading the checkpoint {}", path.display())),
    };
    training.resume(&bytes).with_context(|| {
        let path = path.display();
        format!(
            "resuming from the checkpoint {path} (to start a new training, move it away or name another file with --checkpoint)"
        )
    })?;
    note(&format!("resuming from {}, after step {}", path.display(), training.done()));
    Ok(())
}

fn save(training: &Training<'_>, path: &Path) -> anyhow::Result<()> {
    let writing = || format!("writing the checkpoint {}", path.display());
    let bytes = training.checkpoint().with_context(writing)?;
    replace(path, &bytes, Access::Shared).with_context(writing)
}

impl Outcome {
    fn of(summary: &TrainSummary, batch: usize) -> Self {
        let seconds = summary.elapsed.as_secs_f64();
        Self {
            steps: summary.steps,
            skipped_steps: summary.skipped_steps,
            resumed_steps: 0,
            batch,
            examples_per_second: summary.examples as f64 / seconds,
            tokens_per_second: summary.tokens as f64 / seconds,
            step_seconds: summary.median_step.as_secs_f64(),
            mean_active_layers: summary.mean_active_layers,
            mean_loss: summary.mean_loss,
            loss_last_20: summary.recent_loss,
            found: Found::default(),
            end_token: None,
            evaluated_examples: None,
            test_examples: 0,
            evaluate_examples_per_second: None,
            parts: Vec::new(),
            evaluations: Vec::new(),
            best_step: None,
            stopped_early: false,
            memory: None,
            train_seconds: seconds,
            peak_rss_bytes: 0,
        }
    }

    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = output::stdout();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        write!(out, "{}", self.facts().text(output::width()))?;
        if !self.parts.is_empty() {
            write!(out, "\n{}", Part::table(&self.parts, output::width()))?;
        }
        Ok(())
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new();
        facts.add("steps", format!("{} of {}", count(self.steps as usize), counted(self.batch, "example")));
        if self.skipped_steps > 0 {
            let why = "their loss or gradients were not finite; lower --lr, or give --clip or --warm-up";
            facts.add("skipped", format!("{}: {why}", counted(self.skipped_steps as usize, "step")));
        }
        let speed = (self.examples_per_second, self.tokens_per_second);
        facts.add("speed", format!("{:.1} examples/s, {:.0} tokens/s", speed.0, speed.1));
        // All steps may be an earlier process's.
        if self.step_seconds > 0.0 {
            let ms = self.step_seconds * 1e3;
            facts.add("step", format!("{ms:.1} ms (median), {:.1} layers active (mean)", self.mean_active_layers));
        }
        facts.add("loss", format!("{:.4} (mean), {:.4} (last 20 steps)", self.mean_loss, self.loss_last_20));
        if let Some(token) = &self.end_token {
            facts.add("end token", format!("{token} after each text that is not cut"));
        }
        if let Some(used) = self.evaluated_examples {
            let how =
                if used < self.test_examples as u64 { "; drawn from the whole file (see --evaluate)" } else { "" };
            facts.add("evaluated", format!("{used} of {}{how}", counted(self.test_examples, "example")));
        }
        if let Some(step) = self.best_step {
            let early = if self.stopped_early { "; stopped, because later ones were not better" } else { "" };
            facts.add(
                "weights",
                format!("after step {step}, the best of {}{early}", counted(self.evaluations.len(), "evaluation")),
            );
        }
        for (name, value) in self.found.whole() {
            facts.add(name, format!("{value:.4}"));
        }
        if let Some(speed) = self.evaluate_examples_per_second {
            facts.add("evaluation", format!("{speed:.0} examples/s"));
        }
        facts.add("peak memory", format!("{} resident", bytes(self.peak_rss_bytes)));
        facts
    }
}

fn show_step(live: &Live, report: &StepReport) {
    let StepReport { step, steps, loss, .. } = report;
    let text =
        format!("training, step {step} of {steps}, loss {loss:.3}, {:.0} ms", report.elapsed.as_secs_f64() * 1e3);
    live.count(&text, (*step).into(), (*steps).into());
}

fn not_negative(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(number) if number >= 0.0 && f32::is_finite(number) => Ok(number),
        _ => Err("expected a number from 0".to_owned()),
    }
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f32::is_finite(number) => Ok(number),
        _ => Err("expected a positive number".to_owned()),
    }
}
