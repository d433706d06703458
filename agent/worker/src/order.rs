//! Turns an order into an update: runs the trainer as ordered, and divides the weights into tensors to upload and tensors to keep.

use crate::sharing::shared_layers;
use anyhow::{Context, bail};
use skiff_contract::Trained;
use skiff_contract::memory::own_memory;
use skiff_models::pack::Pack;
use skiff_models::tensors::{NamedTensors, Schema, cut, pad, write};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::{Probe, TrainOrder, TrainReport};
use skiff_trainer::{
    AdamWOptions, EvaluatePlan, EvaluateSummary, Examples, Schedule, StepReport, TrainPlan, TrainSummary, Trainer, Ways,
};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

/// Limit for gradient norms; orders do not clip gradients.
const CLIP_NORM: f32 = f32::INFINITY;

/// An order, with everything that this device needs for it.
pub struct OrderedTraining<'a> {
    /// The pack.
    pub pack: &'a Pack,
    /// Name of the device, which seeds masks and batches.
    pub device: &'a DeviceId,
    /// The round.
    pub round: u32,
    /// The order.
    pub order: &'a TrainOrder,
    /// Examples to train on.
    pub train: &'a dyn Examples,
    /// Examples to measure the gain of the training on.
    pub probe: &'a dyn Examples,
    /// Ways of doing the steps within the memory limit.
    pub ways: Ways,
}

impl OrderedTraining<'_> {
    /// Trains as ordered, from `weights`, which hold every trainable tensor and may have larger ranks than the order asks for.
    /// Calls `watch` after each step.
    ///
    /// # Errors
    /// A plan that does not fit, a graph that fails, a training that diverges.
    pub fn run(
        &self,
        trainer: &mut Trainer,
        weights: NamedTensors,
        watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> anyhow::Result<Trained> {
        trainer.set_weights(cut(weights, &self.pack.schema().at_rank(self.order.rank as usize)))?;
        let before = self.measure(trainer)?;
        let summary = trainer.train(&self.plan(), self.train, watch).context("training")?;
        if summary.skipped_steps > 0 {
            tracing::warn!(
                round = self.round,
                skipped = summary.skipped_steps,
                steps = summary.steps,
                "steps whose loss or gradients were not finite changed nothing; the learning rate may be too high"
            );
        }
        let after = self.measure(trainer)?;
        let probe = before.zip(after).and_then(|(before, after)| gain(&before, &after));
        hand_in(self.pack.schema(), trainer.weights(), self.order, summary, self.train.len(), probe)
    }

    fn plan(&self) -> TrainPlan {
        let order = self.order;
        TrainPlan {
            seed: order.seed,
            device: self.device.to_string(),
            round: self.round,
            data: String::new(),
            rates: order.rates.clone(),
            most_active: order.most_active as usize,
            proximal: order.proximal,
            steps: order.steps,
            batch: order.batch as usize,
            ways: self.ways.clone(),
            learning_rate: order.learning_rate,
            schedule: Schedule::default(),
            optimizer: AdamWOptions::default(),
            clip_norm: CLIP_NORM,
        }
    }

    /// Evaluates the model with all layers on a sample of the examples, if the order asks for it.
    fn measure(&self, trainer: &mut Trainer) -> anyhow::Result<Option<EvaluateSummary>> {
        if self.order.probe_examples == 0 {
            return Ok(None);
        }
        let plan = EvaluatePlan { examples: self.order.probe_examples as usize, batch: self.order.batch as usize };
        let summary =
            trainer.evaluate(self.probe, &plan, &mut |_| ControlFlow::Continue(())).context("measuring the gain")?;
        Ok(Some(summary))
    }
}

/// Returns the gain of a training; `None` if a loss is not finite, or nothing was counted.
fn gain(before: &EvaluateSummary, after: &EvaluateSummary) -> Option<Probe> {
    let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let loss = |summary: &EvaluateSummary| Some(summary.mean_loss() as f32).filter(|loss| loss.is_finite());
    (before.counted > 0).then_some(())?;
    Some(Probe {
        examples: count(before.counted),
        loss_before: loss(before)?,
        loss_after: loss(after)?,
        correct_before: count(before.correct),
        correct_after: count(after.correct),
    })
}

/// Returns the tensors of `layers`, without the head.
#[must_use]
pub fn only_layers(schema: &Schema, layers: &[u32]) -> Schema {
    let is_own = |layer: usize| layers.iter().any(|own| *own as usize == layer);
    let tensors = schema.tensors.iter().filter(|spec| spec.layer.is_some_and(is_own));
    Schema { tensors: tensors.cloned().collect() }
}

/// Divides the trained weights into the update and the layers that stay on this device, and writes the report. The device has
/// `texts` examples.
fn hand_in(
    schema: &Schema,
    weights: &NamedTensors,
    order: &TrainOrder,
    summary: TrainSummary,
    texts: usize,
    probe: Option<Probe>,
) -> anyhow::Result<Trained> {
    if let Some((name, _)) = weights.iter().find(|(_, tensor)| tensor.iter().any(|value| !value.is_finite())) {
        bail!("the training diverged: {name} is not finite any more; lower the run's learning rate");
    }
    let importance: Vec<f32> =
        summary.importance.iter().map(|norm| if norm.is_finite() { norm.max(0.0) } else { 0.0 }).collect();
    let shared = shared_layers(&order.sharing, &importance);
    let kept: Vec<u32> = (0..).take(importance.len()).filter(|layer| !shared.contains(layer)).collect();
    let shared_indices: Vec<usize> = shared.iter().map(|layer| *layer as usize).collect();
    let update = write(&selected(weights, &schema.of_layers(&shared_indices)))?;
    // The layers that stay are padded to all ranks, so that they fit the next order's rank.
    let weights = &pad(weights.clone(), schema);
    let personal = match kept.is_empty() {
        true => None,
        false => Some((kept.clone(), write(&selected(weights, &only_layers(schema, &kept)))?)),
    };
    let report = TrainReport {
        examples: summary.examples.min(texts as u64),
        tokens: summary.tokens,
        steps: summary.steps,
        mean_loss: summary.mean_loss,
        shared_layers: shared,
        importance,
        mean_active_layers: summary.mean_active_layers,
        train_ms: millis(summary.elapsed),
        step_ms: summary.median_step.as_secs_f32() * 1000.0,
        peak_rss_bytes: own_memory(Path::new("/")).peak_bytes,
        probe,
    };
    Ok(Trained { update, personal, report })
}

fn selected(weights: &NamedTensors, schema: &Schema) -> NamedTensors {
    let is_selected = |(name, _): &(&String, _)| schema.find(name).is_some();
    weights.iter().filter(is_selected).map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use ndarray::{ArrayD, IxDyn};
    use skiff_models::tensors::TensorSpec;
    use skiff_protocol::Digest;
    use skiff_protocol::messages::SharingPlan;

    const LAYERS: usize = 3;

    /// Returns a schema with a tensor for each layer and one for the head.
    pub(crate) fn schema() -> Schema {
        let spec = |name: String, layer| TensorSpec { name, shape: vec![2], layer };
        let layers = (0..LAYERS).map(|layer| spec(format!("layer.{layer}"), Some(layer)));
        Schema { tensors: [spec("head".to_owned(), None)].into_iter().chain(layers).collect() }
    }

    pub(crate) fn all_of(schema: &Schema, value: f32) -> NamedTensors {
        let tensor = |shape: &[usize]| ArrayD::from_elem(IxDyn(shape), value);
        schema.tensors.iter().map(|spec| (spec.name.clone(), tensor(&spec.shape))).collect()
    }

    fn names(tensors: &NamedTensors) -> Vec<&str> {
        tensors.keys().map(String::as_str).collect()
    }

    pub(crate) fn order(weights: Digest, sharing: SharingPlan) -> TrainOrder {
        TrainOrder {
            weights,
            schema: Digest(schema().hash()),
            seed: 1,
            rates: vec![0.5; LAYERS],
            most_active: 3,
            proximal: 0.0,
            rank: 0,
            probe_examples: 0,
            steps: 4,
            batch: 5,
            max_tokens: 16,
            learning_rate: 1e-3,
            sharing,
            deadline_ms: 1,
        }
    }

    fn summary() -> TrainSummary {
        TrainSummary {
            examples: 20,
            tokens: 200,
            steps: 4,
            skipped_steps: 0,
            mean_loss: 0.5,
            recent_loss: 0.5,
            importance: vec![3.0, 1.0, 0.0],
            mean_active_layers: 1.5,
            elapsed: Duration::from_secs(2),
            median_step: Duration::from_millis(500),
        }
    }

    fn handed_in(sharing: SharingPlan, texts: usize) -> Trained {
        hand_in(&schema(), &all_of(&schema(), 1.0), &order(Digest([0; 32]), sharing), summary(), texts, None).unwrap()
    }

    #[test]
    fn only_the_named_layers_are_kept_and_never_the_head() {
        assert_eq!(names(&all_of(&only_layers(&schema(), &[1]), 0.0)), ["layer.1"]);
        assert!(only_layers(&schema(), &[]).tensors.is_empty());
    }

    #[test]
    fn an_update_is_the_head_and_the_shared_layers_and_the_others_stay() {
        let trained = handed_in(SharingPlan::LeastImportant { k: 1 }, 100);
        let update = schema().of_layers(&[1]).read(&trained.update).unwrap();
        assert_eq!(names(&update), ["head", "layer.1"]);
        let (kept, own) = trained.personal.unwrap();
        assert_eq!(kept, [0, 2], "the layer that never ran is not shared before one that did");
        assert_eq!(names(&only_layers(&schema(), &kept).read(&own).unwrap()), ["layer.0", "layer.2"]);
        assert_eq!(trained.report.shared_layers, [1]);
    }

    #[test]
    fn if_all_layers_are_shared_none_stays() {
        let trained = handed_in(SharingPlan::All, 100);
        assert_eq!(schema().read(&trained.update).unwrap(), all_of(&schema(), 1.0));
        assert_eq!(trained.personal, None);
    }

    #[test]
    fn an_example_counts_once_however_often_it_was_trained_on() {
        for (texts, counted) in [(7, 7), (20, 20), (2_000, 20)] {
            assert_eq!(handed_in(SharingPlan::All, texts).report.examples, counted);
        }
    }

    #[test]
    fn weights_that_diverged_are_not_handed_in() {
        let mut weights = all_of(&schema(), 1.0);
        weights.extend(all_of(&only_layers(&schema(), &[2]), f32::NAN));
        let order = order(Digest([0; 32]), SharingPlan::All);
        let error = hand_in(&schema(), &weights, &order, summary(), 7, None).unwrap_err();
        assert!(error.to_string().contains("layer.2"), "{error}");
    }
}
