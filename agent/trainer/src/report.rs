//! Results of one step and of a whole training.

use std::time::Duration;

/// Number of steps behind the mean in [`TrainSummary::recent_loss`].
pub(crate) const RECENT: usize = 20;

/// A finished step.
#[derive(Clone, PartialEq, Debug)]
pub struct StepReport {
    /// Number of the step, counted from 1.
    pub step: u32,
    /// The planned number of steps.
    pub steps: u32,
    /// The task's loss over the batch.
    pub loss: f32,
    /// Whether the step was skipped, because its loss or gradients were not finite. A skipped step changes nothing.
    pub skipped: bool,
    /// Number of layers that ran.
    pub active_layers: usize,
    /// Number of text tokens in the batch.
    pub tokens: usize,
    /// Wall time of the step.
    pub elapsed: Duration,
}

/// Results of a training.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainSummary {
    /// Number of examples trained on, with repetitions.
    pub examples: u64,
    /// Number of text tokens trained on.
    pub tokens: u64,
    /// Number of steps that changed weights; below the plan if steps were skipped or the training was stopped.
    pub steps: u32,
    /// Number of steps skipped because their loss or gradients were not finite. Only `elapsed` also counts them.
    pub skipped_steps: u32,
    /// Mean loss over the steps.
    pub mean_loss: f32,
    /// Mean loss over the last 20 steps.
    pub recent_loss: f32,
    /// Mean norm of each layer's gradient before clipping, over the batches in which the layer ran. It is a mean rather than a
    /// sum, so that the layer's dropout rate does not bias it. 0 if the layer never ran.
    pub importance: Vec<f32>,
    /// Mean number of active layers, over the steps.
    pub mean_active_layers: f32,
    /// Wall time of all steps.
    pub elapsed: Duration,
    /// Median time of a step in this process.
    pub median_step: Duration,
}
