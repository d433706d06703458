//! The blocks of a model: the sessions of each layer, and the forward and backward pass through them.

use super::graph::{Given, Rows, Scope, add_gradients};
use super::head::Flow;
use super::stack::Stack;
use super::stage::Stage;
use crate::dropout::LayerMask;
use crate::error::TrainerError;
use crate::runtime::Runtime;
use ort::value::DynValue;
use skiff_models::memory::Policy;
use skiff_models::stage::{StageSpec, StageSpecs};
use skiff_models::tensors::NamedTensors;
use std::path::PathBuf;

/// One stage for each kind of layer.
pub(super) struct Blocks {
    pub(super) stages: Vec<Stage>,
    /// One stage for each kind of layer, for the highest layer that runs. These stages compute only the row of each example that
    /// the head reads. The list is empty if the head reads all rows.
    last: Vec<Stage>,
    /// Index in `stages` for each layer.
    kinds: Vec<usize>,
    policy: Policy,
}

/// The activations above the blocks, and the values for the backward pass.
pub(super) struct Ascent {
    pub(super) hidden: DynValue,
    /// The active layers from the lowest that trains to the highest.
    pub(super) kept: Vec<Kept>,
}

/// A layer that the backward pass differentiates.
pub(super) struct Kept {
    /// Position of the layer among the active layers.
    at: usize,
    input: DynValue,
    /// Residuals of the layer; `None` if the backward pass computes them again.
    residuals: Option<Vec<DynValue>>,
}

/// Rows that the highest layer computes in an evaluation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needed {
    All,
    /// Only the rows that the head reads.
    Read,
}

impl Blocks {
    pub(super) fn open(
        runtime: &Runtime,
        file: &dyn Fn(&str) -> PathBuf,
        stages: &StageSpecs,
        scope: &Scope<'_>,
    ) -> Result<Self, TrainerError> {
        let open = |(kind, spec): (usize, &StageSpec)| {
            let layers: Vec<usize> = (0..stages.kinds.len()).filter(|&layer| stages.kinds[layer] == kind).collect();
            Stage::open(runtime, file, spec, &layers, scope, true)
        };
        Ok(Self {
            stages: stages.blocks.iter().enumerate().map(open).collect::<Result<_, _>>()?,
            last: stages.last_blocks.iter().enumerate().map(open).collect::<Result<_, _>>()?,
            kinds: stages.kinds.clone(),
            policy: Policy::default(),
        })
    }

    /// Returns the number of layers.
    pub(super) fn layers(&self) -> usize {
        self.kinds.len()
    }

    /// Sets the policy for the values that layers keep. If the pack has no graphs for half precision, they keep everything.
    pub(super) fn set_policy(&mut self, policy: Policy) {
        let halves = self.stages.iter().all(|stage| stage.half.is_some());
        self.policy = if policy == Policy::Half && !halves { Policy::Keep } else { policy };
    }

    /// Returns true if the highest layer of `mask` computes only the rows that the head reads.
    pub(super) fn picks(&self, mask: &LayerMask) -> bool {
        !self.last.is_empty() && !mask.active().is_empty()
    }

    /// Returns the stage of the active layer at position `at`.
    fn stage(&mut self, mask: &LayerMask, at: usize, needed: Needed) -> &mut Stage {
        let highest = at + 1 == mask.active().len();
        let picks = needed == Needed::Read && highest && self.picks(mask);
        let stages = if picks { &mut self.last } else { &mut self.stages };
        &mut stages[self.kinds[mask.active()[at]]]
    }

    /// Runs the layers of `mask` and keeps nothing.
    pub(super) fn evaluate(
        &mut self,
        given: &Given<'_>,
        mask: &LayerMask,
        needed: Needed,
        mut hidden: DynValue,
    ) -> Result<DynValue, TrainerError> {
        for (at, &layer) in mask.active().iter().enumerate() {
            let graph = &mut self.stage(mask, at, needed).evaluate;
            let results = graph.run(layer, &Given { hidden: Some(Rows::Value(&hidden)), ..*given })?;
            hidden = graph.required(results.hidden, "activations")?;
        }
        Ok(hidden)
    }

    /// Runs the layers of `mask`, and keeps the values for their gradients on `stack`. Layers below the lowest one that trains
    /// keep nothing.
    pub(super) fn forward(
        &mut self,
        stack: &mut Stack,
        given: &Given<'_>,
        mask: &LayerMask,
        mut hidden: DynValue,
    ) -> Result<Ascent, TrainerError> {
        let policy = self.policy;
        let lowest = mask.active().iter().position(|&layer| self.stages[self.kinds[layer]].trains);
        let mut kept = Vec::with_capacity(mask.active().len());
        for (at, &layer) in mask.active().iter().enumerate() {
            let highest = at + 1 == mask.active().len();
            let stage = self.stage(mask, at, Needed::Read);
            let given = Given { hidden: Some(Rows::Value(&hidden)), ..*given };
            if lowest.is_none_or(|lowest| at < lowest) {
                let results = stage.evaluate.run(layer, &given)?;
                hidden = stage.evaluate.required(results.hidden, "activations")?;
                continue;
            }
            // The highest layer's residuals are read immediately.
            let again = policy == Policy::Recompute && !highest;
            let graph = if again { &mut stage.evaluate } else { &mut stage.passes(policy).forward };
            let results = graph.run_on(stack, layer, &given)?;
            let output = graph.required(results.hidden, "activations")?;
            let input = std::mem::replace(&mut hidden, output);
            kept.push(Kept { at, input, residuals: (!again).then_some(results.residuals) });
        }
        Ok(Ascent { hidden, kept })
    }

    /// Differentiates the layers in `kept`, from the highest down. Drops each layer's kept values as soon as they are used.
    /// `flowing` is the gradient of the activations above the layers.
    pub(super) fn backward(
        &mut self,
        stack: &mut Stack,
        given: &Given<'_>,
        mask: &LayerMask,
        mut kept: Vec<Kept>,
        mut flowing: Option<Flow>,
        gradients: &mut NamedTensors,
    ) -> Result<(), TrainerError> {
        let policy = self.policy;
        while let Some(Kept { at, input, residuals }) = kept.pop() {
            let layer = mask.active()[at];
            let stage = self.stage(mask, at, Needed::Read);
            let given = Given { hidden: Some(Rows::Value(&input)), ..*given };
            let mark = stack.mark();
            let residuals = match residuals {
                Some(residuals) => residuals,
                None => stage.passes(policy).forward.run_on(stack, layer, &given)?.residuals,
            };
            let residuals: Vec<&DynValue> = residuals.iter().collect();
            let hidden_gradient = flowing.as_ref().map(Flow::rows);
            let graph = stage.passes(policy).backward(kept.is_empty())?;
            let mut results = graph.run(layer, &Given { hidden_gradient, residuals: &residuals, ..given })?;
            stack.release(mark);
            add_gradients(gradients, results.gradients.drain(..))?;
            flowing = results.hidden_gradient.map(Flow::Value);
        }
        Ok(())
    }
}
