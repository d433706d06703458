//! Runs a pack's graphs: the one place that knows ONNX Runtime's values.
//!
//! A step keeps, for each active layer that is differentiated, its input and the residuals of its forward graph, and drops
//! them as the backward pass has used them. Layers below the lowest one that trains are not differentiated. Nothing of a
//! skipped layer is bound or run.
//!
//! A language model's scores are the largest tensor of all, `[T, V]`. Its head is therefore run over a few rows at a time;
//! that number depends on the vocabulary alone, so a step gives the same bits everywhere.

mod frozen;
mod graph;
mod stack;
#[cfg(test)]
mod tests;

use crate::batch::{Batch, Form, Truth};
use crate::dropout::LayerMask;
use crate::error::TrainerError;
use crate::runtime::Runtime;
use frozen::Views;
use graph::{Given, Graph, Rows, Scope, array, contents};
use ndarray::{ArrayD, IxDyn};
use ort::value::DynValue;
use skiff_models::Pack;
use skiff_models::layout::Layout;
use skiff_models::memory::Policy;
use skiff_models::pack::Frozen;
use skiff_models::stage::{BatchPart, Binding, GraphSpec, HalfSpec, Port, StageSpec, StageSpecs};
use skiff_models::task::Task;
use skiff_models::tensors::{NamedTensors, Schema};
use stack::Stack;
use std::any::Any;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// The key under which the embedding's and the head's tables are: they belong to no layer.
const WHOLE: usize = 0;

/// Which of a pack's graphs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Operators {
    /// Those with fused operators, where the pack has them and the provider is the processor.
    #[default]
    Fused,
    /// Those of plain ONNX operators.
    Plain,
}

/// What a training step computed.
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
    blocks: Vec<Stage>,
    /// As `blocks`, for the highest layer that runs, where it computes only the rows that the head reads; else empty.
    last_blocks: Vec<Stage>,
    policy: Policy,
    stack: Stack,
    kinds: Vec<usize>,
    head: Stage,
    chunk_rows: usize,
    // Dropped before what owns the mapping that they point into.
    frozen: Views,
    _mapping: Arc<dyn Any + Send + Sync>,
}

/// What a model is opened from.
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

struct Stage {
    passes: Passes,
    /// The same, but that what they keep is in half precision.
    half: Option<Passes>,
    evaluate: Graph,
    /// Whether it has something to train.
    trains: bool,
}

/// Forward and backward.
struct Passes {
    forward: Graph,
    backward: Option<Graph>,
    backward_lowest: Option<Graph>,
}

/// What the head gave: the loss, and the gradient of the activations where it was asked for.
struct Headed {
    loss: f32,
    flowing: Option<Flow>,
}

/// The gradient of activations on its way down.
enum Flow {
    Value(DynValue),
    /// `D`, and the values.
    Buffer(usize, Vec<f32>),
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
        let block = |(kind, spec): (usize, &StageSpec)| {
            let layers: Vec<usize> = (0..stages.kinds.len()).filter(|&layer| stages.kinds[layer] == kind).collect();
            Stage::open(runtime, file, spec, &layers, &inner, true)
        };
        let blocks = stages.blocks.iter().enumerate().map(block).collect::<Result<_, _>>()?;
        let last_blocks = stages.last_blocks.iter().enumerate().map(block).collect::<Result<_, _>>()?;
        // What a language model's head reads is cut into rows, which a context is not made of.
        let above = if layout.task == Task::CausalLm { Scope { contexts: &[], ..inner } } else { inner };
        let head = Stage::open(runtime, file, &stages.head, &[WHOLE], &above, false)?;
        if let Some(name) = vocabulary_table(spec, layout)
            && let (Some(from), Some(to)) = (frozen.place(name), frozen.by_rows(mapped, name)?)
        {
            embed.redirect(from, to);
        }
        let form = Form::new(layout.clone(), stages);
        let chunk_rows = layout.head_rows();
        let kinds = stages.kinds.clone();
        let policy = Policy::default();
        Ok(Self {
            form,
            fuses,
            embed,
            blocks,
            last_blocks,
            policy,
            stack: Stack::default(),
            kinds,
            head,
            chunk_rows,
            frozen,
            _mapping: mapping,
        })
    }

    /// What it asks of a batch.
    pub(super) fn form(&self) -> &Form {
        &self.form
    }

    /// Whether its graphs have fused operators.
    pub(super) fn fuses(&self) -> bool {
        self.fuses
    }

    /// Rows of scores that a language model's head computes at once.
    pub(super) fn set_chunk_rows(&mut self, rows: usize) {
        self.chunk_rows = rows.max(1);
    }

    /// What layers keep from now on. Where there are no graphs that keep halves, they keep all of it.
    pub(super) fn set_policy(&mut self, policy: Policy) {
        let halves = self.blocks.iter().all(|block| block.half.is_some());
        self.policy = if policy == Policy::Half && !halves { Policy::Keep } else { policy };
    }

    /// Forward and backward through the layers of `mask`.
    pub(super) fn step(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
    ) -> Result<StepOutcome, TrainerError> {
        self.check_mask(mask)?;
        self.stack.clear();
        self.frozen.bring(batch.ids())?;
        let Self { embed, blocks, last_blocks, kinds, frozen, policy, stack, .. } = self;
        let (policy, picked) = (*policy, !last_blocks.is_empty() && !mask.active().is_empty());
        let given = Given::new(batch, frozen, weights);
        let embedded = embed.run_on(stack, WHOLE, &given)?;
        frozen.forget();
        let given = Given { contexts: &embedded.contexts, ..given };
        let mut hidden = embed.required(embedded.hidden, "activations")?;
        let lowest = mask.active().iter().position(|&layer| blocks[kinds[layer]].trains);
        let mut kept = Vec::with_capacity(mask.active().len());
        for (at, &layer) in mask.active().iter().enumerate() {
            let highest = at + 1 == mask.active().len();
            let stages = if picked && highest { &mut *last_blocks } else { &mut *blocks };
            let stage = &mut stages[kinds[layer]];
            let given = Given { hidden: Some(Rows::Value(&hidden)), ..given };
            if lowest.is_none_or(|lowest| at < lowest) {
                let results = stage.evaluate.run(layer, &given)?;
                hidden = stage.evaluate.required(results.hidden, "activations")?;
                continue;
            }
            // The highest layer's residuals are read at once.
            let again = policy == Policy::Recompute && !highest;
            let graph = if again { &mut stage.evaluate } else { &mut stage.passes(policy).forward };
            let results = graph.run_on(stack, layer, &given)?;
            let output = graph.required(results.hidden, "activations")?;
            let input = std::mem::replace(&mut hidden, output);
            kept.push((layer, input, (!again).then_some(results.residuals)));
        }
        let mut gradients = NamedTensors::new();
        let given = Given { contexts: &embedded.contexts, ..Given::new(batch, &self.frozen, weights) };
        let above = Given { picked, ..given };
        let chunks = (self.form.layout.task == Task::CausalLm).then_some(self.chunk_rows);
        let headed = match chunks {
            None => self.head.step(&above, &hidden, lowest.is_some(), &mut gradients)?,
            Some(rows) => self.head.step_in_chunks(&given, &hidden, rows, lowest.is_some(), &mut gradients)?,
        };
        drop(hidden);
        let mut flowing = headed.flowing;
        let mut highest = true;
        while let Some((layer, input, residuals)) = kept.pop() {
            let stages = if picked && highest { &mut self.last_blocks } else { &mut self.blocks };
            highest = false;
            let stage = &mut stages[self.kinds[layer]];
            let given = Given { hidden: Some(Rows::Value(&input)), ..given };
            let mark = self.stack.mark();
            let residuals = match residuals {
                Some(residuals) => residuals,
                None => stage.passes(policy).forward.run_on(&mut self.stack, layer, &given)?.residuals,
            };
            let residuals: Vec<&DynValue> = residuals.iter().collect();
            let hidden_gradient = flowing.as_ref().map(Flow::rows);
            let graph = stage.passes(policy).backward(kept.is_empty())?;
            let mut results = graph.run(layer, &Given { hidden_gradient, residuals: &residuals, ..given })?;
            self.stack.release(mark);
            add_gradients(&mut gradients, results.gradients.drain(..))?;
            flowing = results.hidden_gradient.map(Flow::Value);
        }
        Ok(StepOutcome { loss: headed.loss, gradients })
    }

    /// The scores with the layers of `mask`, nothing kept: each row of text (of examples, where the task scores those) is
    /// shown to `visit` with its number. Where `counted` is set, rows that have no truth may be left out.
    pub(super) fn scores(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
        counted: bool,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), TrainerError> {
        let (hidden, contexts) = self.flow(weights, batch, mask, true)?;
        let (shape, values) = contents(&hidden)?;
        let width = shape.get(1).copied().unwrap_or(0);
        let picked = !self.last_blocks.is_empty() && !mask.active().is_empty();
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

    /// The activations after the layers of `mask`: `[T, D]`, without the extra token.
    pub(super) fn hidden(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
    ) -> Result<ArrayD<f32>, TrainerError> {
        let (hidden, _) = self.flow(weights, batch, mask, false)?;
        let (shape, values) = contents(&hidden)?;
        let width = shape.get(1).copied().unwrap_or(0);
        let values = values[..batch.tokens * width].to_vec();
        Ok(ArrayD::from_shape_vec(IxDyn(&[batch.tokens, width]), values).expect("so many rows were taken"))
    }

    /// The activations after the layers of `mask`, and the contexts. `read`: only the rows that the head reads.
    fn flow(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
        read: bool,
    ) -> Result<(DynValue, Vec<DynValue>), TrainerError> {
        self.check_mask(mask)?;
        self.frozen.bring(batch.ids())?;
        let given = Given::new(batch, &self.frozen, weights);
        let embedded = self.embed.run(WHOLE, &given)?;
        self.frozen.forget();
        let mut hidden = self.embed.required(embedded.hidden, "activations")?;
        for (at, &layer) in mask.active().iter().enumerate() {
            let picked = read && !self.last_blocks.is_empty() && at + 1 == mask.active().len();
            let stages = if picked { &mut self.last_blocks } else { &mut self.blocks };
            let graph = &mut stages[self.kinds[layer]].evaluate;
            let given = Given { hidden: Some(Rows::Value(&hidden)), contexts: &embedded.contexts, ..given };
            let results = graph.run(layer, &given)?;
            hidden = graph.required(results.hidden, "activations")?;
        }
        Ok((hidden, embedded.contexts))
    }

    fn check_mask(&self, mask: &LayerMask) -> Result<(), TrainerError> {
        let layers = self.kinds.len();
        match mask.active().iter().find(|&&layer| layer >= layers) {
            Some(layer) => Err(TrainerError::Plan { what: format!("layer {layer} of a model of {layers}") }),
            None => Ok(()),
        }
    }
}

impl Stage {
    fn open(
        runtime: &Runtime,
        file: &dyn Fn(&str) -> PathBuf,
        spec: &StageSpec,
        layers: &[usize],
        scope: &Scope<'_>,
        hidden_gradient: bool,
    ) -> Result<Self, TrainerError> {
        let graph = |spec: &GraphSpec, scope: &Scope<'_>| Graph::open(runtime, file(&spec.file), spec, layers, scope);
        let passes = |forward: &GraphSpec, backward: Option<&GraphSpec>, lowest: Option<&GraphSpec>| {
            let residuals =
                names(
                    &forward.outputs,
                    |binding| if let Binding::Residual(name) = binding { Some(name) } else { None },
                );
            let back = Scope { residuals: &residuals, hidden_gradient, ..*scope };
            let back = |spec: Option<&GraphSpec>| spec.map(|spec| graph(spec, &back)).transpose();
            Ok::<_, TrainerError>(Passes {
                forward: graph(forward, scope)?,
                backward: back(backward)?,
                backward_lowest: back(lowest)?,
            })
        };
        let half = |half: &HalfSpec| passes(&half.forward, Some(&half.backward), half.backward_lowest.as_ref());
        Ok(Self {
            passes: passes(&spec.forward, spec.backward.as_ref(), spec.backward_lowest.as_ref())?,
            half: spec.half.as_ref().map(half).transpose()?,
            evaluate: graph(&spec.evaluate, scope)?,
            trains: trains(spec),
        })
    }

    fn passes(&mut self, policy: Policy) -> &mut Passes {
        match (policy, &mut self.half) {
            (Policy::Half, Some(half)) => half,
            (Policy::Keep | Policy::Half | Policy::Recompute, _) => &mut self.passes,
        }
    }

    /// The head over all rows at once.
    fn step(
        &mut self,
        given: &Given<'_>,
        hidden: &DynValue,
        flows: bool,
        gradients: &mut NamedTensors,
    ) -> Result<Headed, TrainerError> {
        let given = Given { hidden: Some(Rows::Value(hidden)), ..*given };
        let scored = self.passes.forward.run(WHOLE, &given)?;
        let loss = first(&self.passes.forward.required(scored.loss, "the loss")?)?;
        if !(flows || self.trains) {
            return Ok(Headed { loss, flowing: None });
        }
        let graph = self.passes.backward(!flows)?;
        let mut results =
            graph.run(WHOLE, &Given { residuals: &scored.residuals.iter().collect::<Vec<_>>(), ..given })?;
        add_gradients(gradients, results.gradients.drain(..))?;
        Ok(Headed { loss, flowing: results.hidden_gradient.map(Flow::Value) })
    }

    /// The head over `rows` rows at a time: losses and gradients add up, for the weights of the tokens are those of the whole
    /// batch. Rows that do not count are left out, and their gradient is zero.
    fn step_in_chunks(
        &mut self,
        given: &Given<'_>,
        hidden: &DynValue,
        rows: usize,
        flows: bool,
        gradients: &mut NamedTensors,
    ) -> Result<Headed, TrainerError> {
        let (shape, values) = contents(hidden)?;
        let width = shape.get(1).copied().unwrap_or(0);
        let mut buffer = if flows { vec![0.0; values.len()] } else { Vec::new() };
        let mut loss = 0.0;
        let all = || chunks(given.batch.tokens, rows);
        let mut counting: Vec<_> = all().filter(|rows| any_counts(given.batch, rows)).collect();
        if counting.is_empty() {
            // Where nothing counts, the gradients are zeros all the same.
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
        Ok(Headed { loss: loss as f32, flowing: flows.then_some(Flow::Buffer(width, buffer)) })
    }
}

impl Passes {
    /// The backward graph, without the gradient of the stage's input where nobody needs it.
    fn backward(&mut self, lowest: bool) -> Result<&mut Graph, TrainerError> {
        let shorter = if lowest { self.backward_lowest.as_mut() } else { None };
        let missing = || TrainerError::Stages { what: "a stage below which something trains has no derivative".into() };
        shorter.or(self.backward.as_mut()).ok_or_else(missing)
    }
}

impl Flow {
    fn rows(&self) -> Rows<'_> {
        match self {
            Self::Value(value) => Rows::Value(value),
            Self::Buffer(width, values) => Rows::Slice(*width, values),
        }
    }
}

/// What cannot be seen port by port.
fn check(stages: &StageSpecs, layout: &Layout) -> Result<(), TrainerError> {
    let fail = |what: String| Err(TrainerError::Stages { what });
    if let Some((layer, kind)) = stages.kinds.iter().enumerate().find(|(_, kind)| **kind >= stages.blocks.len()) {
        return fail(format!("layer {layer} is of kind {kind}, but there are {}", stages.blocks.len()));
    }
    if trains(&stages.embed) {
        return fail("the embedding cannot train".to_owned());
    }
    let by_rows = |part| matches!(part, BatchPart::NextTokens | BatchPart::TokenWeights);
    let whole = |port: &&Port| matches!(port.binding, Binding::Batch(part) if !by_rows(part));
    let mut head = stages.head.graphs().flat_map(|graph| &graph.inputs);
    match head.find(whole).filter(|_| layout.task == Task::CausalLm) {
        Some(port) => fail(format!("a language model's head cannot read {:?} row by row", port.name)),
        None => Ok(()),
    }
}

/// The one frozen tensor of the embedding that has a row for each entry of the vocabulary.
fn vocabulary_table<'a>(embed: &'a GraphSpec, layout: &Layout) -> Option<&'a String> {
    let rows = layout.vocabulary.to_string();
    let fits = |port: &&Port| port.shape.len() == 2 && port.shape[0] == rows;
    let mut tables = embed
        .inputs
        .iter()
        .filter(fits)
        .filter_map(|port| if let Binding::Frozen(name) = &port.binding { Some(name) } else { None });
    tables.next().filter(|_| tables.next().is_none())
}

/// Whether a stage has something to train.
fn trains(spec: &StageSpec) -> bool {
    let outputs = spec.backward.iter().flat_map(|graph| &graph.outputs);
    outputs.into_iter().any(|port| matches!(port.binding, Binding::Gradient(_)))
}

fn chunks(rows: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(at_once).map(move |start| start..(start + at_once).min(rows))
}

fn any_counts(batch: &Batch, rows: &Range<usize>) -> bool {
    batch.truths[rows.clone()].iter().any(|truth| *truth != Truth::None)
}

fn names(ports: &[Port], name: impl Fn(&Binding) -> Option<&String>) -> Vec<String> {
    ports.iter().filter_map(|port| name(&port.binding)).cloned().collect()
}

fn add_gradients(
    into: &mut NamedTensors,
    gradients: impl Iterator<Item = (String, DynValue)>,
) -> Result<(), TrainerError> {
    for (name, value) in gradients {
        let gradient = array(&value)?;
        match into.get_mut(&name) {
            Some(sum) => *sum += &gradient,
            None => drop(into.insert(name, gradient)),
        }
    }
    Ok(())
}

fn first(value: &DynValue) -> Result<f32, TrainerError> {
    let (_, values) = contents(value)?;
    values.first().copied().ok_or_else(|| TrainerError::Stages { what: "the loss is empty".to_owned() })
}
