//! Sums over the steps of a training.

use crate::dropout::LayerMask;
use crate::optimizer::square_sum;
use crate::report::{RECENT, StepReport, TrainSummary};
use serde::{Deserialize, Serialize};
use skiff_models::tensors::{NamedTensors, Schema};
use std::collections::VecDeque;
use std::time::Duration;

/// Sums over the steps so far. A checkpoint holds everything except the time of each step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tally {
    examples: u64,
    tokens: u64,
    steps: u32,
    skipped: u32,
    skipped_in_a_row: u32,
    loss_sum: f64,
    /// Losses of the last steps, the latest first.
    recent: VecDeque<f64>,
    active_sum: u64,
    norm_sums: Vec<f64>,
    active_steps: Vec<u32>,
    elapsed: Duration,
    #[serde(skip)]
    durations: Vec<Duration>,
}

impl Tally {
    pub(super) fn new(layers: usize) -> Self {
        Self {
            examples: 0,
            tokens: 0,
            steps: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            loss_sum: 0.0,
            recent: VecDeque::new(),
            active_sum: 0,
            norm_sums: vec![0.0; layers],
            active_steps: vec![0; layers],
            elapsed: Duration::ZERO,
            durations: Vec::new(),
        }
    }

    /// Returns true if steps of a model with `layers` layers can have these sums. Sums from a file may be impossible.
    pub(super) fn is_possible(&self, layers: usize) -> bool {
        let steps = self.steps.checked_add(self.skipped).is_some() && self.skipped_in_a_row <= self.skipped;
        let layers = self.norm_sums.len() == layers && self.active_steps.len() == layers;
        steps && layers && self.active_steps.iter().all(|&active| active <= self.steps) && self.recent.len() <= RECENT
    }

    /// Returns the number of steps so far, skipped ones included.
    pub(super) fn passed(&self) -> u32 {
        self.steps + self.skipped
    }

    /// Returns the number of skipped steps in a row up to the last one.
    pub(super) fn skipped_in_a_row(&self) -> u32 {
        self.skipped_in_a_row
    }

    pub(super) fn add(&mut self, report: &StepReport, examples: usize) {
        self.elapsed = self.elapsed.saturating_add(report.elapsed);
        if report.skipped {
            self.skipped += 1;
            self.skipped_in_a_row += 1;
            return;
        }
        self.steps += 1;
        self.skipped_in_a_row = 0;
        self.examples = self.examples.saturating_add(examples as u64);
        self.tokens = self.tokens.saturating_add(report.tokens as u64);
        self.loss_sum += f64::from(report.loss);
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(report.loss.into());
        self.active_sum = self.active_sum.saturating_add(report.active_layers as u64);
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

    pub(super) fn summary(mut self) -> TrainSummary {
        self.durations.sort_unstable();
        let mean = |sum: f64, count: usize| if count == 0 { 0.0 } else { (sum / count as f64) as f32 };
        let importance = self.norm_sums.iter().zip(&self.active_steps);
        TrainSummary {
            examples: self.examples,
            tokens: self.tokens,
            steps: self.steps,
            skipped_steps: self.skipped,
            mean_loss: mean(self.loss_sum, self.steps as usize),
            recent_loss: mean(self.recent.iter().sum(), self.recent.len()),
            importance: importance.map(|(sum, &steps)| (sum / f64::from(steps.max(1))) as f32).collect(),
            mean_active_layers: mean(self.active_sum as f64, self.steps as usize),
            elapsed: self.elapsed,
            median_step: self.durations.get(self.durations.len() / 2).copied().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(loss: f32, skipped: bool) -> StepReport {
        let elapsed = Duration::from_millis(10);
        StepReport { step: 1, steps: 9, loss, skipped, active_layers: 2, tokens: 7, elapsed }
    }

    #[test]
    fn importance_is_a_mean_over_the_batches_where_a_layer_was_active() {
        let mut tally = Tally::new(3);
        tally.add_norms([(0, 3.0), (1, 8.0)]);
        tally.add_norms([(0, 5.0)]);
        assert_eq!(tally.summary().importance, [4.0, 8.0, 0.0]);
    }

    #[test]
    fn a_skipped_step_counts_as_skipped_and_in_nothing_else_but_the_time() {
        let mut tally = Tally::new(1);
        let steps = [(2.0, false), (f32::NAN, true), (f32::INFINITY, true), (4.0, false), (f32::NAN, true)];
        steps.iter().for_each(|&(loss, skipped)| tally.add(&report(loss, skipped), 3));
        assert_eq!((tally.passed(), tally.skipped_in_a_row()), (5, 1));
        let summary = tally.summary();
        assert_eq!((summary.steps, summary.skipped_steps, summary.examples, summary.tokens), (2, 3, 6, 14));
        assert_eq!((summary.mean_loss, summary.recent_loss, summary.mean_active_layers), (3.0, 3.0, 2.0));
        assert_eq!(summary.elapsed, Duration::from_millis(50));
    }

    #[test]
    fn the_recent_loss_is_of_the_last_steps() {
        let mut tally = Tally::new(1);
        (0..=RECENT).for_each(|step| tally.add(&report(if step == 0 { 1e6 } else { 1.5 }, false), 1));
        assert!((tally.summary().recent_loss - 1.5).abs() < 1e-6);
    }
}
