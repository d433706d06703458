//! A pack in training.

use crate::ahead::{Upcoming, ahead, read_example};
use crate::batch::{Batch, Form, Truth};
use crate::clock::monotonic;
use crate::dropout::LayerMask;
use crate::error::TrainerError;
use crate::evaluation::{EvaluatePlan, EvaluateSummary, Tagged, span_labels};
use crate::examples::{Examples, Sequence};
use crate::model::{Model, Operators, StepOutcome};
use crate::runtime::Runtime;
use crate::sample::sample;
use ndarray::{Array2, ArrayD};
use skiff_models::Pack;
use skiff_models::memory::{Plan, Policy, Step};
use skiff_models::tensors::{NamedTensors, TensorSpec, rank_axis};
use std::ops::ControlFlow;
use std::sync::Arc;

/// A model in training: its sessions and the present values of the trainable tensors.
pub struct Trainer {
    model: Model,
    pub(super) pack: Arc<Pack>,
    pub(super) weights: NamedTensors,
}

impl Trainer {
    /// Opens the pack's sessions and takes its initial weights.
    ///
    /// # Errors
    /// A graph that ONNX Runtime refuses; weights that cannot be read.
    pub fn open(runtime: &Runtime, pack: Arc<Pack>) -> Result<Self, TrainerError> {
        Self::open_with(runtime, pack, Operators::Fused)
    }

    /// Opens a pack like [`Trainer::open`], with a choice of the graphs.
    ///
    /// # Errors
    /// The errors of [`Trainer::open`].
    pub fn open_with(runtime: &Runtime, pack: Arc<Pack>, operators: Operators) -> Result<Self, TrainerError> {
        let weights = pack.initial_weights()?;
        Ok(Self { model: Model::open(runtime, &pack, operators)?, pack, weights })
    }

    /// Sets the policy for activations that layers keep for the backward pass; at first it is [`Policy::Keep`].
    pub fn set_policy(&mut self, policy: Policy) {
        self.model.set_policy(policy);
    }

    /// Plans the steps of this pack if each may take `room` bytes beyond the memory of the process itself.
    ///
    /// # Errors
    /// The pack's graphs cannot be built.
    pub fn plan(&self, step: Step, room: u64) -> Result<Plan, TrainerError> {
        let design = &self.pack.manifest().design;
        let stages = if self.model.fuses() { design.fused_stages() } else { design.stages() };
        let stages = stages.map_err(|error| TrainerError::Stages { what: error.to_string() })?;
        Ok(Plan::of(design, &stages, step, room))
    }

    /// Returns the present values of the trainable tensors.
    #[must_use]
    pub fn weights(&self) -> &NamedTensors {
        &self.weights
    }

    /// Replaces the values of all trainable tensors. LoRA's tensors may have fewer ranks than the pack's, if every `A` has as
    /// many as its `B`. The scale of the pack does not change.
    ///
    /// # Errors
    /// Tensors that do not follow the schema.
    pub fn set_weights(&mut self, weights: NamedTensors) -> Result<(), TrainerError> {
        let schema = self.pack.schema();
        let fits = |name: &String, tensor: &ArrayD<f32>| {
            let Some(spec) = schema.find(name) else { return false };
            let partner = spec.rank_partner().and_then(|partner| weights.get_key_value(&partner));
            fits(spec, tensor, partner)
        };
        if let Some((name, _)) = weights.iter().find(|(name, tensor)| !fits(name, tensor)) {
            return Err(TrainerError::Weights { name: name.clone() });
        }
        if let Some(spec) = schema.tensors.iter().find(|spec| !weights.contains_key(&spec.name)) {
            return Err(TrainerError::Weights { name: spec.name.clone() });
        }
        self.weights = weights;
        Ok(())
    }

    /// Runs one batch forward and backward through the layers of `mask`. The weights stay as they are.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn step(&mut self, batch: &Batch, mask: &LayerMask) -> Result<StepOutcome, TrainerError> {
        self.model.step(&self.weights, batch, mask)
    }

    /// Returns the scores with the layers of `mask`: `[B, C]`, or `[T, C]` of the tokens of text for a task on tokens.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn logits(&mut self, batch: &Batch, mask: &LayerMask) -> Result<Array2<f32>, TrainerError> {
        let classes = self.model.form().layout.classes;
        let mut logits = Array2::zeros((batch.truths.len(), classes));
        let mut fits = true;
        self.model.scores(&self.weights, batch, mask, false, &mut |row, scores| {
            fits &= scores.len() == classes;
            logits.row_mut(row).iter_mut().zip(scores).for_each(|(to, from)| *to = *from);
        })?;
        if !fits {
            return Err(TrainerError::Stages { what: format!("the head does not score {classes} classes") });
        }
        Ok(logits)
    }

    /// Computes scores with every layer active, and passes each row's number and scores to `visit`. A row belongs to an example,
    /// or to a token if the task is on tokens. A language model's rows without a target may be left out.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn score(&mut self, batch: &Batch, visit: &mut dyn FnMut(usize, &[f32])) -> Result<(), TrainerError> {
        let mask = LayerMask::all(self.pack.manifest().layers);
        self.model.scores(&self.weights, batch, &mask, true, visit)
    }

    /// Returns the activations `[T, D]` of the tokens of text after the layers of `mask`.
    ///
    /// # Errors
    /// A graph that fails.
    pub fn hidden(&mut self, batch: &Batch, mask: &LayerMask) -> Result<ArrayD<f32>, TrainerError> {
        self.model.hidden(&self.weights, batch, mask)
    }

    /// Sets the number of tokens for which a language model's head computes scores at once; by default the size of the vocabulary
    /// determines this number. Losses and gradients differ only in rounding.
    pub fn set_chunk_rows(&mut self, rows: usize) {
        self.model.set_chunk_rows(rows);
    }

    /// Runs `sequences` forward and backward as one batch, at most `at_once` at a time. The weights stay as they are.
    ///
    /// Losses and gradients of the parts are weighted by their counted rows ([`Batch::cut`]) and added up in order. The sums
    /// equal the whole batch's except for rounding, and have the same bits every time.
    ///
    /// # Errors
    /// A graph that fails; a sequence that the model does not take.
    pub fn step_in_parts(
        &mut self,
        sequences: &[Sequence],
        mask: &LayerMask,
        at_once: usize,
    ) -> Result<StepOutcome, TrainerError> {
        let form = self.form().clone();
        let mut loss = 0.0;
        let mut gradients = NamedTensors::new();
        for batch in Batch::cut(sequences, &form, at_once)? {
            let part = self.step(&batch, mask)?;
            loss += f64::from(part.loss);
            for (name, gradient) in part.gradients {
                match gradients.get_mut(&name) {
                    Some(sum) => *sum += &gradient,
                    None => drop(gradients.insert(name, gradient)),
                }
            }
        }
        Ok(StepOutcome { loss: loss as f32, gradients })
    }

    /// Evaluates `examples` with every layer active, and reports the number of finished examples to `watch`. If there are more
    /// than the plan allows, it evaluates a sample of them, which is always the same. The sample comes evenly from the whole
    /// file, and keeps the share of each class.
    ///
    /// # Errors
    /// A graph that fails; an example that cannot be read.
    pub fn evaluate(
        &mut self,
        examples: &dyn Examples,
        plan: &EvaluatePlan,
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<EvaluateSummary, TrainerError> {
        let started = monotonic();
        let mut chosen = sample(examples, plan.examples);
        // Neighbours of similar length need less padding inside attention, and the order does not change the sums.
        chosen.sort_by_key(|&at| (examples.length_hint(at), at));
        let total = chosen.len();
        let form = self.form().clone();
        let read = |at| read_example(examples, &form, at);
        let mut summary = ahead(chosen.into_iter(), plan.batch, read, |upcoming| {
            self.evaluate_on(total, plan.batch.max(1), upcoming, watch)
        })?;
        summary.elapsed = monotonic().saturating_sub(started);
        Ok(summary)
    }

    /// Evaluates `total` examples while they arrive.
    fn evaluate_on(
        &mut self,
        total: usize,
        batch: usize,
        upcoming: &mut Upcoming<'_>,
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<EvaluateSummary, TrainerError> {
        let manifest = self.pack.manifest();
        let mask = LayerMask::all(manifest.layers);
        let mut summary = EvaluateSummary::new(manifest.layout.task, manifest.layout.classes);
        let labels = span_labels(manifest.layout.task, &manifest.labels);
        let mut tagged = Tagged::default();
        for first in (0..total).step_by(batch) {
            let batch = self.batch(upcoming, batch.min(total - first))?;
            let mut ends = batch.ends.iter().copied().peekable();
            self.model.scores(&self.weights, &batch, &mask, true, &mut |row, scores| {
                let truth = batch.truths.get(row).unwrap_or(&Truth::None);
                summary.add(truth, scores);
                if let Some(labels) = &labels {
                    tagged.add(truth, scores);
                    if ends.next_if_eq(&row).is_some() {
                        tagged.count(labels, &mut summary.metrics);
                    }
                }
            })?;
            summary.examples += batch.examples as u64;
            if watch(summary.examples as usize).is_break() {
                break;
            }
        }
        Ok(summary)
    }

    /// Returns the form of this pack's batches.
    #[must_use]
    pub fn form(&self) -> &Form {
        self.model.form()
    }

    /// Lays out the next `size` examples.
    fn batch(&self, upcoming: &mut Upcoming<'_>, size: usize) -> Result<Batch, TrainerError> {
        let sequences = upcoming.take(size).collect::<Result<Vec<_>, TrainerError>>()?;
        Ok(Batch::new(&sequences, self.form())?)
    }
}

/// Returns true if a tensor has the shape of `spec`, or has fewer ranks and the same number as its partner.
fn fits(spec: &TensorSpec, tensor: &ArrayD<f32>, partner: Option<(&String, &ArrayD<f32>)>) -> bool {
    let Some(axis) = rank_axis(&spec.name).filter(|&axis| axis < tensor.ndim()) else {
        return spec.shape == tensor.shape();
    };
    let rank = tensor.shape()[axis];
    let rank_of_partner = partner.and_then(|(name, tensor)| tensor.shape().get(rank_axis(name)?).copied());
    // If A is frozen, B has no partner here, and must have all of its ranks.
    let agrees = rank_of_partner.map_or(rank == spec.shape[axis], |other| rank == other);
    let same_but_rank = |(at, (&size, &found)): (usize, (&usize, &usize))| {
        if at == axis { (1..=size).contains(&found) } else { size == found }
    };
    agrees && spec.shape.len() == tensor.ndim() && spec.shape.iter().zip(tensor.shape()).enumerate().all(same_but_rank)
}
