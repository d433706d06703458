//! Results of a training: of one step, and of all.

use std::time::Duration;

/// Number of the last steps over which [`TrainSummary::recent_loss`] is a mean.
pub(crate) const RECENT: usize = 20;

/// A finished step.
#[derive(Clone, PartialEq, Debug)]
pub struct StepReport {
    /// The step's number, from 1.
    pub step: u32,
    /// The planned number of steps.
    pub steps: u32,
    /// The task's loss over the batch.
    pub loss: f32,
    /// Its loss or its gradients were not finite: it changed nothing.
    pub skipped: bool,
    /// Number of layers that ran.
    pub active_layers: usize,
    /// Tokens of text in the batch.
    pub tokens: usize,
    /// Wall time of the step.
    pub elapsed: Duration,
}

/// Results of a training.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainSummary {
    /// Examples trained on, repetitions counted.
    pub examples: u64,
    /// Tokens of text trained on.
    pub tokens: u64,
    /// Steps that changed weights; fewer than planned if some were skipped, or the training was stopped.
    pub steps: u32,
    /// Steps that changed nothing, because their loss or gradients were not finite. Nothing else counts them, but `elapsed`.
    pub skipped_steps: u32,
    /// Mean over the steps.
    pub mean_loss: f32,
    /// Mean over the last 20 steps.
    pub recent_loss: f32,
    /// For each layer, the mean over the batches where it was active of the norm of its gradient, before clipping. A mean
    /// and no sum, so that a layer's dropout rate does not bias it. 0: the layer never ran.
    pub importance: Vec<f32>,
    /// Mean over the steps.
    pub mean_active_layers: f32,
    /// Wall time of all steps.
    pub elapsed: Duration,
    /// Median over the steps of this process.
    pub median_step: Duration,
}
