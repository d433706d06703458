//! Runs a pack's graphs: the one place that knows ONNX Runtime's values.
//!
//! A step keeps, for each active layer, its input and the residuals of its forward graph, and drops them as the backward
//! pass has used them. Nothing of a skipped layer is looked up, bound or run.

use super::TrainerError;
use super::batch::{Batch, Sequence};
use super::dropout::LayerMask;
use super::runtime::Runtime;
use ndarray::{ArrayD, IxDyn};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, Shape, TensorRef, TensorRefMut};
use skiff_models::Pack;
use skiff_models::stage::{BatchPart, Binding, GraphSpec, StageSpec};
use skiff_models::tensors::NamedTensors;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a training step computed.
#[derive(Debug)]
pub struct StepOutcome {
    /// Mean cross-entropy of the batch, in nats.
    pub loss: f32,
    /// `[B, C]`.
    pub logits: ArrayD<f32>,
    /// The gradient of every trainable tensor of the active layers and the head.
    pub gradients: NamedTensors,
}

/// The sessions of a pack and its frozen weights, which stay in the mapped file.
pub(super) struct Model {
    embed: Stage,
    block: Stage,
    head: Stage,
    // Dropped before the pack, whose mapping they point into.
    frozen: BTreeMap<String, TensorRefMut<'static, f32>>,
    pack: Arc<Pack>,
}

struct Stage {
    forward: Graph,
    backward: Option<Graph>,
    backward_lowest: Option<Graph>,
    evaluate: Graph,
}

struct Graph {
    session: Session,
    spec: GraphSpec,
}

/// The outputs of a graph, sorted by what they are tied to.
#[derive(Default)]
struct Results {
    hidden: Option<DynValue>,
    hidden_gradient: Option<DynValue>,
    loss: Option<DynValue>,
    logits: Option<DynValue>,
    residuals: BTreeMap<String, DynValue>,
    gradients: Vec<(String, DynValue)>,
}

/// What a graph's inputs are looked up in.
struct Given<'a> {
    batch: &'a Batch,
    frozen: &'a BTreeMap<String, TensorRefMut<'static, f32>>,
    weights: &'a NamedTensors,
    layer: usize,
    hidden: Option<&'a DynValue>,
    hidden_gradient: Option<&'a DynValue>,
    residuals: Option<&'a BTreeMap<String, DynValue>>,
    options: Option<&'a RunOptions>,
}

impl Model {
    pub(super) fn open(runtime: &Runtime, pack: Arc<Pack>) -> Result<Self, TrainerError> {
        let frozen = pack.manifest().model.frozen().into_iter().map(|(name, _)| map_frozen(&pack, name));
        let frozen = frozen.collect::<Result<_, _>>()?;
        let stages = &pack.manifest().stages;
        let open = |spec: &StageSpec| Stage::open(runtime, &pack, spec);
        let (embed, block, head) = (open(&stages.embed)?, open(&stages.block)?, open(&stages.head)?);
        Ok(Self { embed, block, head, frozen, pack })
    }

    pub(super) fn pack(&self) -> &Pack {
        &self.pack
    }

    /// Forward and backward through the layers of `mask`.
    pub(super) fn step(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
    ) -> Result<StepOutcome, TrainerError> {
        let Self { embed, block, head, frozen, .. } = self;
        let given = |layer| Given::new(batch, frozen, weights, layer);
        let mut hidden = embed.forward.run(&given(0))?.hidden()?;
        let mut kept = Vec::with_capacity(mask.active().len());
        for &layer in mask.active() {
            let mut results = block.forward.run(&Given { hidden: Some(&hidden), ..given(layer) })?;
            let output = results.hidden()?;
            kept.push((layer, std::mem::replace(&mut hidden, output), results.residuals));
        }
        let scored = head.forward.run(&Given { hidden: Some(&hidden), ..given(0) })?;
        let (loss, logits) = (first(&scored.loss)?, array(scored.logits.as_ref())?);
        let given_head = Given { hidden: Some(&hidden), residuals: Some(&scored.residuals), ..given(0) };
        let mut results = head.backward(kept.is_empty())?.run(&given_head)?;
        let mut gradients = NamedTensors::new();
        take_gradients(&mut gradients, &mut results)?;
        let mut flowing = results.hidden_gradient;
        drop((hidden, scored.residuals));
        while let Some((layer, input, residuals)) = kept.pop() {
            let given = Given {
                hidden: Some(&input),
                hidden_gradient: flowing.as_ref(),
                residuals: Some(&residuals),
                ..given(layer)
            };
            let mut results = block.backward(kept.is_empty())?.run(&given)?;
            take_gradients(&mut gradients, &mut results)?;
            flowing = results.hidden_gradient;
        }
        Ok(StepOutcome { loss, logits, gradients })
    }

    /// The class scores with the layers of `mask`, nothing kept: `[B, C]`.
    pub(super) fn evaluate(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
    ) -> Result<ArrayD<f32>, TrainerError> {
        let hidden = self.hidden(weights, batch, mask)?;
        let given = Given { hidden: Some(&hidden), ..Given::new(batch, &self.frozen, weights, 0) };
        array(self.head.evaluate.run(&given)?.logits.as_ref())
    }

    /// Gives what the arena holds and does not use back to the system. It only does so after a run, so one token is embedded.
    pub(super) fn shrink(&mut self, weights: &NamedTensors) -> Result<(), TrainerError> {
        let batch = Batch::new(&[Sequence { ids: vec![0], types: vec![0], label: 0 }], 1, 1);
        let options = RunOptions::new().and_then(|mut options| {
            options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
            Ok(options)
        });
        let options =
            options.map_err(|source| TrainerError::Run { graph: "shrinking the arena".to_owned(), source })?;
        let given = Given { options: Some(&options), ..Given::new(&batch, &self.frozen, weights, 0) };
        self.embed.evaluate.run(&given).map(drop)
    }

    /// The activations after the layers of `mask`: `[T, D]`.
    pub(super) fn hidden(
        &mut self,
        weights: &NamedTensors,
        batch: &Batch,
        mask: &LayerMask,
    ) -> Result<DynValue, TrainerError> {
        let mut hidden = self.embed.evaluate.run(&Given::new(batch, &self.frozen, weights, 0))?.hidden()?;
        for &layer in mask.active() {
            let given = Given { hidden: Some(&hidden), ..Given::new(batch, &self.frozen, weights, layer) };
            hidden = self.block.evaluate.run(&given)?.hidden()?;
        }
        Ok(hidden)
    }
}

impl Stage {
    fn open(runtime: &Runtime, pack: &Pack, spec: &StageSpec) -> Result<Self, TrainerError> {
        let graph = |spec: &GraphSpec| Graph::open(runtime, pack, spec);
        Ok(Self {
            forward: graph(&spec.forward)?,
            backward: spec.backward.as_ref().map(graph).transpose()?,
            backward_lowest: spec.backward_lowest.as_ref().map(graph).transpose()?,
            evaluate: graph(&spec.evaluate)?,
        })
    }

    /// The backward graph, without the gradient of the stage's input where nobody needs it.
    fn backward(&mut self, lowest: bool) -> Result<&mut Graph, TrainerError> {
        let shorter = if lowest { self.backward_lowest.as_mut() } else { None };
        shorter.or(self.backward.as_mut()).ok_or(TrainerError::Unbound { port: "backward".to_owned() })
    }
}

impl Graph {
    fn open(runtime: &Runtime, pack: &Pack, spec: &GraphSpec) -> Result<Self, TrainerError> {
        let path = pack.file(&spec.file);
        let session = Session::builder(runtime.environment())
            .and_then(|builder| Ok(builder.with_env_allocators()?))
            .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::All)?))
            .and_then(|mut builder| builder.commit_from_file(&path))
            .map_err(|source| TrainerError::Session { path, source })?;
        Ok(Self { session, spec: spec.clone() })
    }

    fn run(&mut self, given: &Given<'_>) -> Result<Results, TrainerError> {
        let failed = |source| TrainerError::Run { graph: self.spec.file.clone(), source };
        let mut inputs = Vec::with_capacity(self.spec.inputs.len());
        for port in &self.spec.inputs {
            let value = given.find(&port.binding).map_err(failed)?;
            let value = value.ok_or_else(|| TrainerError::Unbound { port: port.name.clone() })?;
            inputs.push((Cow::from(port.name.as_str()), value));
        }
        let mut outputs = match given.options {
            Some(options) => self.session.run_with_options(inputs, options),
            None => self.session.run(inputs),
        }
        .map_err(failed)?;
        let mut results = Results::default();
        for port in &self.spec.outputs {
            let value = outputs.remove(&port.name).ok_or_else(|| TrainerError::Unbound { port: port.name.clone() })?;
            match &port.binding {
                Binding::Hidden => results.hidden = Some(value),
                Binding::HiddenGradient => results.hidden_gradient = Some(value),
                Binding::Loss => results.loss = Some(value),
                Binding::Logits => results.logits = Some(value),
                Binding::Residual(name) => drop(results.residuals.insert(name.clone(), value)),
                Binding::Gradient(name) => results.gradients.push((of_layer(name, given.layer), value)),
                Binding::Batch(_) | Binding::Frozen(_) | Binding::Trainable(_) => {
                    return Err(TrainerError::Unbound { port: port.name.clone() });
                }
            }
        }
        Ok(results)
    }
}

impl<'a> Given<'a> {
    fn new(
        batch: &'a Batch,
        frozen: &'a BTreeMap<String, TensorRefMut<'static, f32>>,
        weights: &'a NamedTensors,
        layer: usize,
    ) -> Self {
        Self { batch, frozen, weights, layer, hidden: None, hidden_gradient: None, residuals: None, options: None }
    }

    /// The value tied to an input; nothing is copied.
    fn find(&self, binding: &Binding) -> ort::Result<Option<SessionInputValue<'a>>> {
        let batch = self.batch;
        Ok(match binding {
            Binding::Hidden => self.hidden.map(Into::into),
            Binding::HiddenGradient => self.hidden_gradient.map(Into::into),
            Binding::Residual(name) => self.residuals.and_then(|all| all.get(name)).map(Into::into),
            Binding::Frozen(name) => self.frozen.get(&of_layer(name, self.layer)).map(|value| (&**value).into()),
            Binding::Trainable(name) => match self.weights.get(&of_layer(name, self.layer)) {
                Some(tensor) => Some(TensorRef::from_array_view(tensor)?.into()),
                None => None,
            },
            Binding::Batch(part) => Some(match part {
                BatchPart::InputIds => TensorRef::from_array_view(&batch.input_ids)?.into(),
                BatchPart::TokenTypeIds => TensorRef::from_array_view(&batch.token_type_ids)?.into(),
                BatchPart::PositionIds => TensorRef::from_array_view(&batch.position_ids)?.into(),
                BatchPart::ToHeads => TensorRef::from_array_view(&batch.to_heads)?.into(),
                BatchPart::ToTokens => TensorRef::from_array_view(&batch.to_tokens)?.into(),
                BatchPart::KeyBias => TensorRef::from_array_view(&batch.key_bias)?.into(),
                BatchPart::FirstTokens => TensorRef::from_array_view(&batch.first_tokens)?.into(),
                BatchPart::Targets => TensorRef::from_array_view(&batch.targets)?.into(),
            }),
            Binding::Gradient(_) | Binding::Loss | Binding::Logits => None,
        })
    }
}

impl Results {
    fn hidden(&mut self) -> Result<DynValue, TrainerError> {
        self.hidden.take().ok_or_else(|| TrainerError::Unbound { port: "hidden".to_owned() })
    }
}

fn of_layer(template: &str, layer: usize) -> String {
    template.replace("{layer}", &layer.to_string())
}

fn take_gradients(into: &mut NamedTensors, results: &mut Results) -> Result<(), TrainerError> {
    for (name, value) in results.gradients.drain(..) {
        into.insert(name, array(Some(&value))?);
    }
    Ok(())
}

fn first(value: &Option<DynValue>) -> Result<f32, TrainerError> {
    let scalar = array(value.as_ref())?;
    scalar.first().copied().ok_or_else(|| TrainerError::Unbound { port: "loss".to_owned() })
}

/// Copies a value out of ONNX Runtime.
pub(super) fn array(value: Option<&DynValue>) -> Result<ArrayD<f32>, TrainerError> {
    let unbound = || TrainerError::Unbound { port: "output".to_owned() };
    let failed = |source| TrainerError::Run { graph: "output".to_owned(), source };
    let (shape, values) = value.ok_or_else(unbound)?.try_extract_tensor::<f32>().map_err(failed)?;
    let sizes: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
    ArrayD::from_shape_vec(IxDyn(&sizes), values.to_vec()).map_err(|_| unbound())
}

/// A view of a frozen tensor for ONNX Runtime, which reads it where it is.
fn map_frozen(pack: &Pack, name: String) -> Result<(String, TensorRefMut<'static, f32>), TrainerError> {
    let tensor = pack.frozen().tensor(&name).ok_or_else(|| TrainerError::Unbound { port: name.clone() })?;
    let shape = Shape::new(tensor.shape.iter().map(|&size| size as i64));
    let failed = |source| TrainerError::Run { graph: name.clone(), source };
    let memory =
        MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default).map_err(failed)?;
    let address = tensor.bytes.as_ptr().cast_mut().cast();
    #[expect(
        unsafe_code,
        reason = "a graph input is read only; the pack outlives the view, see the order of Model's fields"
    )]
    let view = unsafe { TensorRefMut::from_raw(memory, address, shape) }.map_err(failed)?;
    Ok((name, view))
}
