//! Runs the head of a model in a step: over all rows at once, or over a few at a time.

use super::graph::{Given, Rows, WHOLE, add_gradients, contents};
use super::stage::Stage;
use crate::batch::{Batch, Truth};
use crate::error::TrainerError;
use ort::value::DynValue;
use skiff_models::tensors::NamedTensors;
use std::ops::Range;

/// Results of the head: the loss and, if requested, the gradient of the activations.
pub(super) struct HeadResult {
    pub(super) loss: f32,
    pub(super) flowing: Option<Flow>,
}

/// Gradient of the activations during the backward pass.
pub(super) enum Flow {
    Value(DynValue),
    /// Values, with their number of features `D`.
    Buffer(usize, Vec<f32>),
}

impl Stage {
    /// Runs the head over all rows at once.
    pub(super) fn step(
        &mut self,
        given: &Given<'_>,
        hidden: &DynValue,
        flows: bool,
        gradients: &mut NamedTensors,
    ) -> Result<HeadResult, TrainerError> {
        let given = Given { hidden: Some(Rows::Value(hidden)), ..*given };
        let scored = self.passes.forward.run(WHOLE, &given)?;
        let loss = first(&self.passes.forward.required(scored.loss, "the loss")?)?;
        if !(flows || self.trains) {
            return Ok(HeadResult { loss, flowing: None });
        }
        let graph = self.passes.backward(!flows)?;
        let mut results =
            graph.run(WHOLE, &Given { residuals: &scored.residuals.iter().collect::<Vec<_>>(), ..given })?;
        add_gradients(gradients, results.gradients.drain(..))?;
        Ok(HeadResult { loss, flowing: results.hidden_gradient.map(Flow::Value) })
    }

    /// Runs the head over `rows` rows at a time. Losses and gradients add up, because each token has the same weight as in the
    /// whole batch. Rows without a target are left out, and their gradient is zero.
    pub(super) fn step_in_chunks(
        &mut self,
        given: &Given<'_>,
        hidden: &DynValue,
        rows: usize,
        flows: bool,
        gradients: &mut NamedTensors,
    ) -> Result<HeadResult, TrainerError> {
        let (shape, values) = contents(hidden)?;
        let width = shape.get(1).copied().unwrap_or(0);
        let mut buffer = if flows { vec![0.0; values.len()] } else { Vec::new() };
        let mut loss = 0.0;
        let all = || chunks(given.batch.tokens, rows);
        let mut counting: Vec<_> = all().filter(|rows| any_counts(given.batch, rows)).collect();
        if counting.is_empty() {
            // Gradients are needed even if no row counts: they are zeros then.
            counting.extend(all().next());
        }
        for rows in counting {
            let span = rows.start * width..rows.end * width;
            let hidden = Some(Rows::Slice(width, &values[span.clone()]));
            let given = Given { hidden, rows: Some((rows.start, rows.end)), ..*given };
            let scored = self.passes.forward.run(WHOLE, &given)?;
            loss += f64::from(first(&self.passes.forward.required(scored.loss, "the loss")?)?);
            if !(flows || self.trains) {
                continue;
            }
            let graph = self.passes.backward(!flows)?;
            let mut results =
                graph.run(WHOLE, &Given { residuals: &scored.residuals.iter().collect::<Vec<_>>(), ..given })?;
            add_gradients(gradients, results.gradients.drain(..))?;
            if flows {
                let gradient = graph.required(results.hidden_gradient, "the gradient of activations")?;
                buffer[span].copy_from_slice(contents(&gradient)?.1);
            }
        }
        Ok(HeadResult { loss: loss as f32, flowing: flows.then_some(Flow::Buffer(width, buffer)) })
    }
}

impl Flow {
    pub(super) fn rows(&self) -> Rows<'_> {
        match self {
            Self::Value(value) => Rows::Value(value),
            Self::Buffer(width, values) => Rows::Slice(*width, values),
        }
    }
}

/// Splits rows into ranges of at most `at_once`.
pub(super) fn chunks(rows: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(at_once).map(move |start| start..(start + at_once).min(rows))
}

/// Returns true if a row has a target.
pub(super) fn any_counts(batch: &Batch, rows: &Range<usize>) -> bool {
    batch.truths[rows.clone()].iter().any(|truth| *truth != Truth::None)
}

fn first(value: &DynValue) -> Result<f32, TrainerError> {
    let (_, values) = contents(value)?;
    values.first().copied().ok_or_else(|| TrainerError::Stages { what: "the loss is empty".to_owned() })
}
