//! Runs a pack's graphs. No other module uses ONNX Runtime's values.
//!
//! A step keeps the input and the residuals of each layer to differentiate, and drops them once the backward pass has used
//! them. Layers below the lowest one that trains are not differentiated. Skipped layers are not run, and none of their
//! tensors is bound.
//!
//! A language model's scores are the largest tensor, `[T, V]`. Its head therefore runs over a few rows at a time; that number
//! depends only on the vocabulary, so a step gives the same bits everywhere.
//!
//! Modules: `blocks` (forward and backward pass through the layers), `head`, `stage` (the sessions of one stage), `graph` (one
//! session and its ports), `frozen` and `stack` (memory).

mod blocks;
mod frozen;
mod graph;
mod head;
mod stack;
mod stage;
#[cfg(test)]
mod tests;

use crate::batch::{Batch, Form};
use crate::dropout::LayerMask;
use crate::error::TrainerError;
use crate::runtime::Runtime;
use blocks::{Ascent, Blocks, Needed};
use frozen::Views;
use graph::{Given, Graph, Rows, Scope, WHOLE, contents};
use head::{any_counts, chunks};
use ndarray::{ArrayD, IxDyn};
use ort::value::DynValue;
use skiff_models::Pack;
use skiff_models::layout::Layout;
use skiff_models::memory::Policy;
use skiff_models::pack::Frozen;
use skiff_models::stage::{BatchPart, Binding, GraphSpec, Port, StageSpecs};
use skiff_models::task::Task;
use skiff_models::tensors::{NamedTensors, Schema};
use stack::Stack;
use stage::{Stage, names, trains};
use std::any::Any;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Choice between a pack's sets of graphs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Operators {
    /// Graphs with fused operators, if the pack has them and the provider is the processor.
    #[default]
    Fused,
    /// Graphs of plain ONNX operators.
    Plain,
}

/// Results of a training step.
#[derive(Debug)]
pub struct StepOutcome {
    /// The task's loss over the batch.
    pub loss: f32,
    /// The gradient of every trainable tensor of the active layers and the head.
    pub gradients: NamedTensors,
}

/// The sessions of a pack and its frozen weights, which stay in the mapped file.
pub(super) struct Model {
    form: Form,
    /// Whether the graphs have fused operators.
    fuses: bool,
    embed: Graph,
    blocks: Blocks,
    stack: Stack,
    head: Stage,
    chunk_rows: usize,
    // Dropped before the owner of the mapping that they point into.
    frozen: Views,
    _mapping: Arc<dyn Any + Send + Sync>,
}

/// Parts from which a model is opened.
pub(super) struct Parts<'a> {
    layout: &'a Layout,
    stages: &'a StageSpecs,
    schema: &'a Schema,
    frozen: &'a Frozen,
    file: &'a dyn Fn(&str) -> PathBuf,
    fuses: bool,
    /// The owner of `frozen`.
    mapping: Arc<dyn Any + Send + Sync>,
}

impl Model {
    pub(super) fn open(runtime: &Runtime, pack: &Arc<Pack>, operators: Operators) -> Result<Self, TrainerError> {
        let manifest = pack.manifest();
        let fused = (operators == Operators::Fused && runtime.fuses()).then_some(&manifest.fused);
        let mapping = Arc::clone(pack) as Arc<dyn Any + Send + Sync>;
        Self::of(
            runtime,
            Parts {
                layout: &manifest.layout,
                stages: fused.unwrap_or(&manifest.stages),
                schema: &manifest.schema,
                frozen: pack.frozen(),
                file: &|name| pack.file(name),
                fuses: fused.is_some(),
                mapping,
            },
        )
    }

    fn of(runtime: &Runtime, parts: Parts<'_>) -> Result<Self, TrainerError> {
        let Parts { layout, stages, schema, frozen, file, fuses, mapping } = parts;
        check(stages, layout)?;
        let mapped = frozen;
        let mut frozen = Views::of(mapped)?;
        let contexts =
            names(
                &stages.embed.evaluate.outputs,
                |binding| if let Binding::Context(name) = binding { Some(name) } else { None },
            );
        let bare =
            Scope { frozen: &frozen, schema, contexts: &[], residuals: &[], hidden: false, hidden_gradient: false };
        let inner = Scope { contexts: &contexts, hidden: true, ..bare };
        let spec = &stages.embed.evaluate;
        let mut embed = Graph::open(runtime, file(&spec.file), spec, &[WHOLE], &bare)?;
        let blocks = Blocks::open(runtime, file, stages, &inner)?;
        // The inputs of a language model's head are cut into rows, and a context has no such rows.
        let above = if layout.task == Task::CausalLm { Scope { contexts: &[], ..inner } } else { inner };
        let head = Stage::open(runtime, file, &stages.head, &[WHOLE], &above, false)?;
        if let Some(name) = vocabulary_table(spec, layout)
            && let (Some(from), Some(to)) = (frozen.place(name), frozen.by_rows(mapped, name)?)
        {
            embed.redirect(from, to);
        }
        Ok(Self {
            form: Form::new(layout.clone(), stages),
            fuses,
            embed,
            blocks,
            stack: Stack::default(),
            head,
            chunk_rows: layout.head_rows(),
            frozen,
            _mapping: mapping,
        })
    }

    /// Returns the form of the pack's batches.
    pub(super) fn form(&self) -> &Form {
        &self.form
    }

    /// Returns true if the graphs have fused operators.
    pub(super) fn fuses(&self) -> bool {
        self.fuses
    }

    /// Sets the number of rows of scores that a language model's head computes at once.
    pub(super) fn set_chunk_rows(&mut self, rows: usize) {
        self.chunk_rows = rows.max(1);
    }

    /// Sets the policy for the values that layers keep. They keep everything if the pack has no graphs for half precision.
    pub(super) fn set_policy(&mut self, policy: Policy) {
        self.blocks.set_policy(policy);
    }

    /// Runs a batch forward and backward through the layers of `mask`.
    pub(super) fn step(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
    ) -> Result<StepOutcome, TrainerError> {
        self.check_mask(mask)?;
        self.stack.clear();
        self.frozen.bring(batch.ids())?;
        let given = Given::new(batch, &self.frozen, weights);
        let embedded = self.embed.run_on(&mut self.stack, WHOLE, &given)?;
        self.frozen.forget();
        let given = Given { contexts: &embedded.contexts, ..given };
        let hidden = self.embed.required(embedded.hidden, "activations")?;
        let Ascent { hidden, kept } = self.blocks.forward(&mut self.stack, &given, mask, hidden)?;
        let mut gradients = NamedTensors::new();
        let flows = !kept.is_empty();
        let result = if self.form.layout.task == Task::CausalLm {
            self.head.step_in_chunks(&given, &hidden, self.chunk_rows, flows, &mut gradients)?
        } else {
            let given = Given { picked: self.blocks.picks(mask), ..given };
            self.head.step(&given, &hidden, flows, &mut gradients)?
        };
        drop(hidden);
        self.blocks.backward(&mut self.stack, &given, mask, kept, result.flowing, &mut gradients)?;
        Ok(StepOutcome { loss: result.loss, gradients })
    }

    /// Computes the scores with the layers of `mask` and keeps nothing. Passes the scores of each row of text, or of each example
    /// if the task scores examples, to `visit` with the row's number. If `counted` is true, rows without a truth may be left out.
    pub(super) fn scores(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
        counted: bool,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), TrainerError> {
        let (hidden, contexts) = self.flow(weights, batch, mask, Needed::Read)?;
        let (shape, values) = contents(&hidden)?;
        let width = shape.get(1).copied().unwrap_or(0);
        let picked = self.blocks.picks(mask);
        let given = Given { contexts: &contexts, picked, ..Given::new(batch, &self.frozen, weights) };
        let graph = &mut self.head.evaluate;
        let mut show = |rows: Range<usize>, given: &Given<'_>| {
            let logits = graph.run(WHOLE, given)?.logits;
            let logits = graph.required(logits, "scores")?;
            let (shape, scores) = contents(&logits)?;
            let classes = shape.get(1).copied().unwrap_or(1).max(1);
            rows.zip(scores.chunks_exact(classes)).for_each(|(row, scores)| visit(row, scores));
            Ok::<_, TrainerError>(())
        };
        if self.form.layout.task != Task::CausalLm {
            return show(0..batch.truths.len(), &Given { hidden: Some(Rows::Value(&hidden)), ..given });
        }
        for rows in chunks(batch.tokens, self.chunk_rows) {
            if counted && !any_counts(batch, &rows) {
                continue;
            }
            let slice = Rows::Slice(width, &values[rows.start * width..rows.end * width]);
            show(rows.clone(), &Given { hidden: Some(slice), rows: Some((rows.start, rows.end)), ..given })?;
        }
        Ok(())
    }

    /// Returns the activations after the layers of `mask`: `[T, D]`, without the extra token.
    pub(super) fn hidden(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
    ) -> Result<ArrayD<f32>, TrainerError> {
        let (hidden, _) = self.flow(weights, batch, mask, Needed::All)?;
        let (shape, values) = contents(&hidden)?;
        let width = shape.get(1).copied().unwrap_or(0);
        let values = values[..batch.tokens * width].to_vec();
        Ok(ArrayD::from_shape_vec(IxDyn(&[batch.tokens, width]), values).expect("exactly `tokens` rows were taken"))
    }

    /// Returns the activations after the layers of `mask`, and the contexts.
    fn flow(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
        needed: Needed,
    ) -> Result<(DynValue, Vec<DynValue>), TrainerError> {
        self.check_mask(mask)?;
        self.frozen.bring(batch.ids())?;
        let given = Given::new(batch, &self.frozen, weights);
        let embedded = self.embed.run(WHOLE, &given)?;
        self.frozen.forget();
        let hidden = self.embed.required(embedded.hidden, "activations")?;
        let given = Given { contexts: &embedded.contexts, ..given };
        let hidden = self.blocks.evaluate(&given, mask, needed, hidden)?;
        Ok((hidden, embedded.contexts))
    }

    fn check_mask(&self, mask: &LayerMask) -> Result<(), TrainerError> {
        let layers = self.blocks.layers();
        match mask.active().iter().find(|&&layer| layer >= layers) {
            Some(layer) => Err(TrainerError::Plan { what: format!("layer {layer} of a model of {layers}") }),
            None => Ok(()),
        }
    }
}

/// Checks the properties that concern several ports or stages together.
fn check(stages: &StageSpecs, layout: &Layout) -> Result<(), TrainerError> {
    let fail = |what: String| Err(TrainerError::Stages { what });
    if let Some((layer, kind)) = stages.kinds.iter().enumerate().find(|(_, kind)| **kind >= stages.blocks.len()) {
        return fail(format!("layer {layer} is of kind {kind}, but there are {}", stages.blocks.len()));
    }
    if trains(&stages.embed) {
        return fail("the embedding cannot train".to_owned());
    }
    let by_rows = |part| matches!(part, BatchPart::NextTokens | BatchPart::TokenWeights);
    let is_whole = |port: &&Port| matches!(port.binding, Binding::Batch(part) if !by_rows(part));
    let mut head = stages.head.graphs().flat_map(|graph| &graph.inputs);
    match head.find(is_whole).filter(|_| layout.task == Task::CausalLm) {
        Some(port) => fail(format!("a language model's head cannot read {:?} row by row", port.name)),
        None => Ok(()),
    }
}

/// Returns the one frozen tensor of the embedding that has a row for each entry of the vocabulary.
fn vocabulary_table<'a>(embed: &'a GraphSpec, layout: &Layout) -> Option<&'a String> {
    let rows = layout.vocabulary.to_string();
    let is_table = |port: &&Port| port.shape.len() == 2 && port.shape[0] == rows;
    let mut tables = embed
        .inputs
        .iter()
        .filter(is_table)
        .filter_map(|port| if let Binding::Frozen(name) = &port.binding { Some(name) } else { None });
    tables.next().filter(|_| tables.next().is_none())
}
