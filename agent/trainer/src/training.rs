//! A stretch of training: which examples each step takes, and what came of all steps.

use crate::dropout::{LayerMask, stream};
use crate::error::TrainerError;
use crate::optimizer::square_sum;
use skiff_models::tensors::{NamedTensors, Schema};
use std::time::Duration;

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
    /// The task's loss over the batch.
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

pub(super) fn check(plan: &TrainPlan, layers: usize, examples: usize) -> Result<(), TrainerError> {
    let fail = |what: String| Err(TrainerError::Plan { what });
    if plan.rates.len() != layers {
        return fail(format!("{} dropout rates for {layers} layers", plan.rates.len()));
    }
    if let Some(rate) = plan.rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        return fail(format!("dropout rate {rate} is not between 0 and 1"));
    }
    if examples == 0 {
        return fail("there is nothing to train on".to_owned());
    }
    if plan.batch == 0 || plan.steps == 0 {
        return fail("a training needs at least one step of at least one example".to_owned());
    }
    Ok(())
}

/// The examples of step `step` of a device: positions `(k - 1) batch .. k batch` in an endless sequence of epochs, each
/// the corpus in another seeded order, where `k` counts steps over rounds.
pub(super) fn examples_of_step(plan: &TrainPlan, examples: usize, step: u32) -> Vec<usize> {
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

/// Sums over the steps of a training.
pub(super) struct Tally {
    examples: u64,
    tokens: u64,
    loss_sum: f64,
    active_sum: usize,
    durations: Vec<Duration>,
    norm_sums: Vec<f64>,
    active_steps: Vec<u32>,
}

impl Tally {
    pub(super) fn new(layers: usize) -> Self {
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

    pub(super) fn add(&mut self, report: &StepReport, examples: usize) {
        self.examples += examples as u64;
        self.tokens += report.tokens as u64;
        self.loss_sum += f64::from(report.loss);
        self.active_sum += report.active_layers;
        self.durations.push(report.elapsed);
    }

    pub(super) fn add_importance(&mut self, schema: &Schema, mask: &LayerMask, gradients: &NamedTensors) {
        let mut squares = vec![0.0; self.norm_sums.len()];
        for (name, gradient) in gradients {
            if let Some(layer) = schema.find(name).and_then(|spec| spec.layer) {
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

    pub(super) fn summary(mut self, elapsed: Duration) -> TrainSummary {
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
}
