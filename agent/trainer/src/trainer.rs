//! Trains and evaluates a pack on the device: layer masks, batches, the step, the optimizer.
//!
//! It is synchronous and runs on a thread of its own; it knows no network and no coordinator.

pub mod batch;
pub mod dropout;
mod model;
pub mod optimizer;
mod runtime;

pub use model::StepOutcome;
pub use runtime::{LIBRARY_VARIABLE, Runtime, RuntimeError};

use crate::clock::monotonic;
use crate::corpus::{Corpus, CorpusError};
use batch::Batch;
use dropout::{LayerMask, stream};
use model::Model;
use ndarray::{ArrayD, Axis};
use optimizer::{AdamW, clip, square_sum};
use skiff_models::Pack;
use skiff_models::pack::PackError;
use skiff_models::tensors::NamedTensors;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A model in training: its sessions, and the present values of what trains.
pub struct Trainer {
    model: Model,
    weights: NamedTensors,
}

/// One stretch of training.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainPlan {
    /// With device, round and step it determines masks and batches.
    pub seed: u64,
    /// The device's name.
    pub device: String,
    /// The round; 0 outside a fleet.
    pub round: u32,
    /// Dropout rate of each layer.
    pub rates: Vec<f32>,
    /// Optimizer steps.
    pub steps: u32,
    /// Examples in a step.
    pub batch: usize,
    /// AdamW's.
    pub learning_rate: f32,
    /// Global gradient norm above which gradients are scaled down; infinite for never.
    pub clip_norm: f32,
}

/// A finished step.
#[derive(Clone, PartialEq, Debug)]
pub struct StepReport {
    /// From 1.
    pub step: u32,
    /// Of how many.
    pub steps: u32,
    /// Mean cross-entropy of the batch.
    pub loss: f32,
    /// How many layers ran.
    pub active_layers: usize,
    /// Tokens of text in the batch.
    pub tokens: usize,
    /// Wall time of the step.
    pub elapsed: Duration,
}

/// What a stretch of training did.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainSummary {
    /// Examples trained on, repetitions counted.
    pub examples: u64,
    /// Tokens of text trained on.
    pub tokens: u64,
    /// Steps done; fewer than planned where the watcher stopped it.
    pub steps: u32,
    /// Mean over the steps.
    pub mean_loss: f32,
    /// For each layer, the mean over the batches where it was active of the norm of its gradient, before clipping. A mean
    /// and no sum, so that a layer's dropout rate does not bias it. 0: the layer never ran.
    pub importance: Vec<f32>,
    /// Mean over the steps.
    pub mean_active_layers: f32,
    /// Wall time.
    pub elapsed: Duration,
    /// Median over the steps.
    pub median_step: Duration,
}

/// How much to evaluate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvaluatePlan {
    /// At most this many examples, from the first.
    pub examples: usize,
    /// Examples at a time.
    pub batch: usize,
}

/// What an evaluation found.
#[derive(Clone, PartialEq, Debug)]
pub struct EvaluateSummary {
    /// Examples evaluated.
    pub examples: u64,
    /// Of which the label was right.
    pub correct: u64,
    /// Sum of the cross-entropy, in nats.
    pub loss_sum: f64,
    /// Wall time.
    pub elapsed: Duration,
}

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// ONNX Runtime refuses a graph.
    #[error("loading the graph {path}; make the pack again with `skiff-pack build`", path = path.display())]
    Session {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ort::Error,
    },
    /// A graph failed.
    #[error("running {graph}")]
    Run {
        /// Which.
        graph: String,
        /// Why.
        source: ort::Error,
    },
    /// A graph's input or output is tied to nothing.
    #[error("port {port:?} of the pack's graphs is tied to nothing; make the pack again with `skiff-pack build`")]
    Unbound {
        /// Which.
        port: String,
    },
    /// Weights that are not this pack's.
    #[error("the weights do not follow the pack's schema: tensor {name:?}")]
    Weights {
        /// The first that does not fit.
        name: String,
    },
    /// The plan does not fit the pack or the data.
    #[error("{what}")]
    Plan {
        /// What does not fit.
        what: String,
    },
    /// A loss or gradient that is NaN or infinite.
    #[error("step {step} gave a loss of {loss} and a gradient norm of {norm}; lower the learning rate")]
    NotFinite {
        /// The step, from 1.
        step: u32,
        /// Its loss.
        loss: f32,
        /// Its gradient norm.
        norm: f64,
    },
    /// The data failed.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The pack failed.
    #[error(transparent)]
    Pack(#[from] PackError),
}

impl Trainer {
    /// Opens the pack's sessions and takes its first weights.
    ///
    /// # Errors
    /// A graph that ONNX Runtime refuses, weights that cannot be read.
    pub fn open(runtime: &Runtime, pack: Arc<Pack>) -> Result<Self, TrainerError> {
        let weights = pack.initial_weights()?;
        Ok(Self { model: Model::open(runtime, pack)?, weights })
    }

    /// The present values of the trainable tensors.
    #[must_use]
    pub fn weights(&self) -> &NamedTensors {
        &self.weights
    }

    /// Replaces them all.
    ///
    /// # Errors
    /// Tensors that are not the schema's.
    pub fn set_weights(&mut self, weights: NamedTensors) -> Result<(), TrainerError> {
        let schema = self.model.pack().schema();
        let fits =
            |name: &String, tensor: &ArrayD<f32>| schema.find(name).is_some_and(|spec| spec.shape == tensor.shape());
        if let Some((name, _)) = weights.iter().find(|(name, tensor)| !fits(name, tensor)) {
            return Err(TrainerError::Weights { name: name.clone() });
        }
        if let Some(spec) = schema.tensors.iter().find(|spec| !weights.contains_key(&spec.name)) {
            return Err(TrainerError::Weights { name: spec.name.clone() });
        }
        self.weights = weights;
        Ok(())
    }

    /// Forward and backward of one batch through the layers of `mask`; weights stay as they are.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn step(&mut self, batch: &Batch, mask: &LayerMask) -> Result<StepOutcome, TrainerError> {
        self.model.step(&self.weights, batch, mask)
    }

    /// The activations `[T, D]` after the layers of `mask`.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn hidden(&mut self, batch: &Batch, mask: &LayerMask) -> Result<ArrayD<f32>, TrainerError> {
        let hidden = self.model.hidden(&self.weights, batch, mask)?;
        model::array(Some(&hidden))
    }

    /// Gives memory that no tensor uses at the moment back to the system.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn shrink(&mut self) -> Result<(), TrainerError> {
        self.model.shrink(&self.weights)
    }

    /// Trains as planned, with a fresh optimizer, reporting each step to `watch`, which may stop it.
    ///
    /// Which examples a step takes: the corpus is run through again and again, each time in another seeded order.
    ///
    /// # Errors
    /// A plan that does not fit, a graph that fails, a loss that is not finite. The weights then are those of the last
    /// good step.
    pub fn train(
        &mut self,
        plan: &TrainPlan,
        corpus: &Corpus,
        watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<TrainSummary, TrainerError> {
        let layers = self.model.pack().manifest().layers;
        check(plan, layers, corpus)?;
        let started = monotonic();
        let mut optimizer = AdamW::default();
        let mut tally = Tally::new(layers);
        for step in 1..=plan.steps {
            let begun = monotonic();
            let mask = LayerMask::draw(&plan.rates, plan.seed, &plan.device, plan.round, step);
            let batch = self.batch(corpus, &examples_of_step(plan, corpus.len(), step))?;
            let mut outcome = self.step(&batch, &mask)?;
            let norm = optimizer::global_norm(&outcome.gradients);
            if !(outcome.loss.is_finite() && norm.is_finite()) {
                return Err(TrainerError::NotFinite { step, loss: outcome.loss, norm });
            }
            tally.add_importance(self.model.pack(), &mask, &outcome.gradients);
            clip(&mut outcome.gradients, plan.clip_norm);
            optimizer.step(&mut self.weights, &outcome.gradients, plan.learning_rate);
            let report = StepReport {
                step,
                steps: plan.steps,
                loss: outcome.loss,
                active_layers: mask.active().len(),
                tokens: batch.tokens,
                elapsed: monotonic().saturating_sub(begun),
            };
            tally.add(&report, batch.examples());
            if watch(&report).is_break() {
                break;
            }
        }
        Ok(tally.summary(monotonic().saturating_sub(started)))
    }

    /// Evaluates the first examples of `corpus` with every layer active, telling `watch` how many are done.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn evaluate(
        &mut self,
        corpus: &Corpus,
        plan: &EvaluatePlan,
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<EvaluateSummary, TrainerError> {
        let started = monotonic();
        let mask = LayerMask::all(self.model.pack().manifest().layers);
        let mut summary = EvaluateSummary { examples: 0, correct: 0, loss_sum: 0.0, elapsed: Duration::ZERO };
        let wanted: Vec<usize> = (0..corpus.len().min(plan.examples)).collect();
        // Texts of like length side by side leave less padding inside attention; the sums do not mind the order.
        let ordered = corpus.by_length(wanted);
        for chunk in ordered.chunks(plan.batch.max(1)) {
            let batch = self.batch(corpus, chunk)?;
            let logits = self.model.evaluate(&self.weights, &batch, &mask)?;
            for (scores, &label) in logits.axis_iter(Axis(0)).zip(&batch.labels) {
                let scores: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
                summary.correct += u64::from(best(&scores) == label);
                summary.loss_sum += cross_entropy(&scores, label);
            }
            summary.examples += batch.examples() as u64;
            if watch(summary.examples as usize).is_break() {
                break;
            }
        }
        summary.elapsed = monotonic().saturating_sub(started);
        Ok(summary)
    }

    /// Lays out the examples at `chosen`.
    fn batch(&self, corpus: &Corpus, chosen: &[usize]) -> Result<Batch, TrainerError> {
        let sequences = chosen.iter().map(|&at| corpus.encode(at)).collect::<Result<Vec<_>, _>>()?;
        let manifest = self.model.pack().manifest();
        Ok(Batch::new(&sequences, manifest.model.num_attention_heads, manifest.labels.len()))
    }
}

fn check(plan: &TrainPlan, layers: usize, corpus: &Corpus) -> Result<(), TrainerError> {
    let fail = |what: String| Err(TrainerError::Plan { what });
    if plan.rates.len() != layers {
        return fail(format!("{} dropout rates for {layers} layers", plan.rates.len()));
    }
    if let Some(rate) = plan.rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        return fail(format!("dropout rate {rate} is not between 0 and 1"));
    }
    if corpus.is_empty() {
        return fail("there is nothing to train on".to_owned());
    }
    if plan.batch == 0 || plan.steps == 0 {
        return fail("a training needs at least one step of at least one example".to_owned());
    }
    Ok(())
}

/// The examples of step `step` of a device: positions `(k - 1) batch .. k batch` in an endless sequence of epochs, each
/// the corpus in another seeded order, where `k` counts steps over rounds.
fn examples_of_step(plan: &TrainPlan, examples: usize, step: u32) -> Vec<usize> {
    let (batch, examples_of_epoch) = (plan.batch as u128, examples as u128);
    let before = u128::from(plan.round.saturating_sub(1)) * u128::from(plan.steps) + u128::from(step - 1);
    let mut chosen = Vec::with_capacity(plan.batch);
    let mut epoch = None;
    for position in before * batch..(before + 1) * batch {
        let number = position / examples_of_epoch;
        let order = match epoch.take() {
            Some((known, order)) if known == number => order,
            _ => epoch_order(plan, examples, number),
        };
        chosen.push(order[(position % examples_of_epoch) as usize]);
        epoch = Some((number, order));
    }
    chosen
}

fn epoch_order(plan: &TrainPlan, examples: usize, epoch: u128) -> Vec<usize> {
    let mut order: Vec<usize> = (0..examples).collect();
    stream("epoch", plan.seed, &plan.device, epoch as u32, 0).shuffle(&mut order);
    order
}

/// The largest score's place; the lower of equals.
fn best(scores: &[f64]) -> usize {
    (0..scores.len()).reduce(|best, at| if scores[at] > scores[best] { at } else { best }).unwrap_or(0)
}

/// `log sum exp(scores) - scores[label]`, in nats, shifted by the largest score so that it cannot overflow.
fn cross_entropy(scores: &[f64], label: usize) -> f64 {
    let largest = scores[best(scores)];
    scores.iter().map(|score| (score - largest).exp()).sum::<f64>().ln() + largest - scores[label]
}

/// Sums over the steps of a training.
struct Tally {
    examples: u64,
    tokens: u64,
    loss_sum: f64,
    active_sum: usize,
    durations: Vec<Duration>,
    norm_sums: Vec<f64>,
    active_steps: Vec<u32>,
}

impl Tally {
    fn new(layers: usize) -> Self {
        Self {
            examples: 0,
            tokens: 0,
            loss_sum: 0.0,
            active_sum: 0,
            durations: Vec::new(),
            norm_sums: vec![0.0; layers],
            active_steps: vec![0; layers],
        }
    }

    fn add(&mut self, report: &StepReport, examples: usize) {
        self.examples += examples as u64;
        self.tokens += report.tokens as u64;
        self.loss_sum += f64::from(report.loss);
        self.active_sum += report.active_layers;
        self.durations.push(report.elapsed);
    }

    fn add_importance(&mut self, pack: &Pack, mask: &LayerMask, gradients: &NamedTensors) {
        let mut squares = vec![0.0; self.norm_sums.len()];
        for (name, gradient) in gradients {
            if let Some(layer) = pack.schema().find(name).and_then(|spec| spec.layer) {
                squares[layer] += square_sum(gradient);
            }
        }
        self.add_norms(mask.active().iter().map(|&layer| (layer, squares[layer].sqrt())));
    }

    /// Adds the gradient norms of the active layers of a step.
    fn add_norms(&mut self, norms: impl IntoIterator<Item = (usize, f64)>) {
        for (layer, norm) in norms {
            self.norm_sums[layer] += norm;
            self.active_steps[layer] += 1;
        }
    }

    fn summary(mut self, elapsed: Duration) -> TrainSummary {
        let steps = self.durations.len();
        self.durations.sort_unstable();
        let mean = |sum: f64| if steps == 0 { 0.0 } else { (sum / steps as f64) as f32 };
        let importance = self.norm_sums.iter().zip(&self.active_steps);
        TrainSummary {
            examples: self.examples,
            tokens: self.tokens,
            steps: steps as u32,
            mean_loss: mean(self.loss_sum),
            importance: importance.map(|(sum, &steps)| (sum / f64::from(steps.max(1))) as f32).collect(),
            mean_active_layers: mean(self.active_sum as f64),
            elapsed,
            median_step: self.durations.get(steps / 2).copied().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(round: u32) -> TrainPlan {
        let (seed, device, rates) = (5, "a".to_owned(), vec![0.0; 2]);
        TrainPlan { seed, device, round, rates, steps: 3, batch: 4, learning_rate: 1e-3, clip_norm: 1.0 }
    }

    #[test]
    fn rounds_walk_through_the_corpus_without_repetition_until_it_is_used_up() {
        let steps = |round| (1..=3).flat_map(move |step| examples_of_step(&plan(round), 24, step));
        let mut seen: Vec<usize> = steps(1).chain(steps(2)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..24).collect::<Vec<_>>());
        assert_ne!(steps(1).collect::<Vec<_>>(), steps(3).collect::<Vec<_>>());
    }

    #[test]
    fn a_corpus_smaller_than_a_batch_is_repeated() {
        let chosen = examples_of_step(&plan(1), 3, 1);
        assert_eq!(chosen.len(), 4);
        assert!(chosen.iter().all(|&at| at < 3));
    }

    #[test]
    fn the_last_step_of_the_last_round_has_its_examples() {
        let endless = TrainPlan { steps: u32::MAX, batch: 4096, ..plan(u32::MAX) };
        let chosen = examples_of_step(&endless, 3, u32::MAX);
        assert_eq!(chosen.len(), 4096);
        assert!((0..3).all(|example| chosen.contains(&example)) && chosen.iter().all(|&at| at < 3));
    }

    #[test]
    fn importance_is_a_mean_over_the_batches_where_a_layer_was_active() {
        let mut tally = Tally::new(3);
        tally.add_norms([(0, 3.0), (1, 8.0)]);
        tally.add_norms([(0, 5.0)]);
        assert_eq!(tally.summary(Duration::ZERO).importance, [4.0, 8.0, 0.0]);
    }

    #[test]
    fn cross_entropy_is_exact_for_known_scores_and_does_not_overflow() {
        assert!((cross_entropy(&[0.0, 0.0], 1) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((cross_entropy(&[1e4, 0.0], 1) - 1e4).abs() < 1e-9);
    }
}
