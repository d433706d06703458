//! A graph file in a session, and the values bound to its ports, which are looked up once when the pack is opened.

use super::frozen::Views;
use super::stack::Stack;
use crate::batch::{Batch, Part};
use crate::error::TrainerError;
use crate::runtime::Runtime;
use ndarray::{ArrayD, IxDyn};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef};
use skiff_models::graph::DType;
use skiff_models::stage::{BatchPart, Binding, GraphSpec, Port};
use skiff_models::tensors::{NamedTensors, Schema};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Key of the tables of embedding and head, which belong to no layer.
pub(super) const WHOLE: usize = 0;

static OPENING: Mutex<()> = Mutex::new(());

/// One session, which serves every layer of its kind.
pub(super) struct Graph {
    file: String,
    session: Session,
    inputs: Vec<String>,
    outputs: Vec<Output>,
    /// One table for each layer.
    pub(super) tables: BTreeMap<usize, Table>,
}

/// An output, and its size if the inputs determine it.
struct Output {
    name: String,
    dtype: TensorElementType,
    shape: Option<Vec<Extent>>,
}

/// A dimension of an output.
#[derive(Clone, Copy)]
enum Extent {
    Fixed(i64),
    /// This dimension is as large as one of an input's.
    Like {
        input: usize,
        axis: usize,
    },
}

/// Values bound to the ports of a graph in one layer, in the order of the ports.
pub(super) struct Table {
    feeds: Vec<Feed>,
    yields: Vec<Yield>,
}

enum Feed {
    Hidden,
    HiddenGradient,
    Part(BatchPart),
    Frozen(usize),
    Trainable(String),
    Residual(usize),
    Context(usize),
}

enum Yield {
    Hidden,
    HiddenGradient,
    Gradient(String),
    Residual,
    Context,
    Logits,
    Loss,
}

/// Values that may be bound to the ports of a graph.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) frozen: &'a Views,
    pub(super) schema: &'a Schema,
    /// Names of the contexts from the embedding, in order.
    pub(super) contexts: &'a [String],
    /// Names of the residuals from the forward graph.
    pub(super) residuals: &'a [String],
    /// Whether activations are an input.
    pub(super) hidden: bool,
    /// Whether the gradient of the activations is an input.
    pub(super) hidden_gradient: bool,
}

/// Sources of the inputs of a run.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) batch: &'a Batch,
    pub(super) frozen: &'a Views,
    pub(super) weights: &'a NamedTensors,
    pub(super) contexts: &'a [DynValue],
    pub(super) residuals: &'a [&'a DynValue],
    pub(super) hidden: Option<Rows<'a>>,
    pub(super) hidden_gradient: Option<Rows<'a>>,
    /// Rows of the batch's parts to use; `None` for all.
    pub(super) rows: Option<(usize, usize)>,
    /// Whether the activations have only one row of each example: the row that the head reads.
    pub(super) picked: bool,
}

/// Activations or their gradients, `[T, D]`, or some rows of them.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    Value(&'a DynValue),
    /// Values, with their number of features `D`.
    Slice(usize, &'a [f32]),
}

/// Outputs of a run, sorted by binding.
#[derive(Default)]
pub(super) struct Results {
    pub(super) hidden: Option<DynValue>,
    pub(super) hidden_gradient: Option<DynValue>,
    pub(super) loss: Option<DynValue>,
    pub(super) logits: Option<DynValue>,
    pub(super) residuals: Vec<DynValue>,
    pub(super) contexts: Vec<DynValue>,
    pub(super) gradients: Vec<(String, DynValue)>,
}

impl Graph {
    /// Opens the graph for `layers`, each of which gets its own tensors.
    pub(super) fn open(
        runtime: &Runtime,
        path: PathBuf,
        spec: &GraphSpec,
        layers: &[usize],
        scope: &Scope<'_>,
    ) -> Result<Self, TrainerError> {
        let table = |&layer: &usize| Ok::<_, TrainerError>((layer, scope.table(spec, layer)?));
        let tables = layers.iter().map(table).collect::<Result<_, _>>()?;
        // Two threads that open sessions with our operators at once would both register the domain, which is an error.
        let _alone = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let trace = runtime.traces.as_ref().map(|folder| folder.join(spec.file.replace('/', "_")));
        let session = Session::builder(runtime.environment())
            .and_then(|builder| Ok(builder.with_env_allocators()?))
            .and_then(|builder| Ok(builder.with_operators(skiff_kernels::operators::domain()?)?))
            .and_then(|builder| Ok(builder.with_memory_pattern(false)?))
            .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::All)?))
            .and_then(|builder| Ok(builder.with_execution_providers(runtime.providers())?))
            .and_then(|builder| Ok(if let Some(trace) = trace { builder.with_profiling(trace)? } else { builder }))
            .and_then(|mut builder| builder.commit_from_file(&path))
            .map_err(|source| TrainerError::Session { path, source })?;
        let names = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect();
        Ok(Self {
            file: spec.file.clone(),
            session,
            inputs: names(&spec.inputs),
            outputs: spec.outputs.iter().map(|port| Output::of(port, &spec.inputs)).collect(),
            tables,
        })
    }

    /// Runs the graph as `layer`, with its results in the arena.
    pub(super) fn run(&mut self, layer: usize, given: &Given<'_>) -> Result<Results, TrainerError> {
        self.run_in(None, layer, given)
    }

    /// Runs the graph as `layer`. Outputs for the backward pass are in the stack if their size is known before the run.
    pub(super) fn run_on(
        &mut self,
        stack: &mut Stack,
        layer: usize,
        given: &Given<'_>,
    ) -> Result<Results, TrainerError> {
        self.run_in(Some(stack), layer, given)
    }

    fn run_in(&mut self, stack: Option<&mut Stack>, layer: usize, given: &Given<'_>) -> Result<Results, TrainerError> {
        let failed = |source| TrainerError::Run { graph: self.file.clone(), source };
        let no_layer = || TrainerError::Stages { what: format!("{} does not serve layer {layer}", self.file) };
        let table = self.tables.get(&layer).ok_or_else(no_layer)?;
        let mut inputs = Vec::with_capacity(table.feeds.len());
        for (name, feed) in self.inputs.iter().zip(&table.feeds) {
            let value = given.find(feed).map_err(failed)?;
            let unbound = || TrainerError::Unbound {
                graph: self.file.clone(),
                port: name.clone(),
                binding: "a value that this run does not have".to_owned(),
            };
            inputs.push((Cow::from(name.as_str()), value.ok_or_else(unbound)?));
        }
        let placed;
        let mut outputs = match stack {
            Some(stack) => {
                let places = places(&self.outputs, table, &inputs, stack).map_err(failed)?;
                placed = RunOptions::new().map_err(failed)?.with_outputs(places);
                self.session.run_with_options(inputs, &placed)
            }
            None => self.session.run(inputs),
        }
        .map_err(failed)?;
        let mut results = Results::default();
        for (Output { name, .. }, target) in self.outputs.iter().zip(&table.yields) {
            let missing = || TrainerError::Unbound {
                graph: self.file.clone(),
                port: name.clone(),
                binding: "an output that the file lacks".to_owned(),
            };
            let value = outputs.remove(name).ok_or_else(missing)?;
            match target {
                Yield::Hidden => results.hidden = Some(value),
                Yield::HiddenGradient => results.hidden_gradient = Some(value),
                Yield::Loss => results.loss = Some(value),
                Yield::Logits => results.logits = Some(value),
                Yield::Residual => results.residuals.push(value),
                Yield::Context => results.contexts.push(value),
                Yield::Gradient(name) => results.gradients.push((name.clone(), value)),
            }
        }
        Ok(results)
    }

    /// Uses the frozen tensor at the place `to` instead of the tensor at `from` in all later runs.
    pub(super) fn redirect(&mut self, from: usize, to: usize) {
        for feed in self.tables.values_mut().flat_map(|table| &mut table.feeds) {
            if let Feed::Frozen(place) = feed
                && *place == from
            {
                *place = to;
            }
        }
    }

    /// Returns an output, or an error if the graph lacks it.
    pub(super) fn required<T>(&self, output: Option<T>, binding: &'static str) -> Result<T, TrainerError> {
        output.ok_or_else(|| TrainerError::NoOutput { graph: self.file.clone(), binding })
    }
}

impl Output {
    fn of(port: &Port, inputs: &[Port]) -> Self {
        let extent = |dim: &String| {
            let like = |(input, other): (usize, &Port)| {
                other.shape.iter().position(|known| known == dim).map(|axis| Extent::Like { input, axis })
            };
            let fixed = dim.parse().ok().map(Extent::Fixed);
            fixed.or_else(|| inputs.iter().enumerate().find_map(like))
        };
        let dtype = match port.dtype {
            DType::F32 => TensorElementType::Float32,
            DType::F16 => TensorElementType::Float16,
            DType::I8 => TensorElementType::Int8,
            DType::I64 => TensorElementType::Int64,
        };
        Self { name: port.name.clone(), dtype, shape: port.shape.iter().map(extent).collect() }
    }
}

/// Takes memory in `stack` for the outputs that stay until the backward pass.
fn places(
    outputs: &[Output],
    table: &Table,
    inputs: &[(Cow<'_, str>, SessionInputValue<'_>)],
    stack: &mut Stack,
) -> ort::Result<OutputSelector> {
    let mut places = OutputSelector::default();
    for (Output { name, dtype, shape }, target) in outputs.iter().zip(&table.yields) {
        let (Yield::Hidden | Yield::Residual | Yield::Context, Some(shape)) = (target, shape) else { continue };
        let size = |extent: &Extent| match *extent {
            Extent::Fixed(size) => Some(size),
            Extent::Like { input, axis } => inputs[input].1.dtype().tensor_shape()?.get(axis).copied(),
        };
        if let Some(shape) = shape.iter().map(size).collect::<Option<Vec<i64>>>() {
            places = places.preallocate(name.clone(), stack.tensor(*dtype, &shape)?);
        }
    }
    Ok(places)
}

impl Scope<'_> {
    fn table(&self, spec: &GraphSpec, layer: usize) -> Result<Table, TrainerError> {
        let unbound = |port: &Port| TrainerError::Unbound {
            graph: spec.file.clone(),
            port: port.name.clone(),
            binding: described(&port.binding, layer),
        };
        let feed = |port: &Port| self.feed(&port.binding, layer).ok_or_else(|| unbound(port));
        let target = |port: &Port| self.target(&port.binding, layer).ok_or_else(|| unbound(port));
        Ok(Table {
            feeds: spec.inputs.iter().map(feed).collect::<Result<_, _>>()?,
            yields: spec.outputs.iter().map(target).collect::<Result<_, _>>()?,
        })
    }

    fn feed(&self, binding: &Binding, layer: usize) -> Option<Feed> {
        let place = |names: &[String], name: &String| names.iter().position(|known| known == name);
        match binding {
            Binding::Hidden => self.hidden.then_some(Feed::Hidden),
            Binding::HiddenGradient => self.hidden_gradient.then_some(Feed::HiddenGradient),
            Binding::Batch(part) => Some(Feed::Part(*part)),
            Binding::Frozen(name) => self.frozen.place(&of_layer(name, layer)).map(Feed::Frozen),
            Binding::Trainable(name) => self.trainable(name, layer).map(Feed::Trainable),
            Binding::Residual(name) => place(self.residuals, name).map(Feed::Residual),
            Binding::Context(name) => place(self.contexts, name).map(Feed::Context),
            Binding::Gradient(_) | Binding::Loss | Binding::Logits => None,
        }
    }

    fn target(&self, binding: &Binding, layer: usize) -> Option<Yield> {
        match binding {
            Binding::Hidden => Some(Yield::Hidden),
            Binding::HiddenGradient => Some(Yield::HiddenGradient),
            Binding::Gradient(name) => self.trainable(name, layer).map(Yield::Gradient),
            Binding::Residual(_) => Some(Yield::Residual),
            Binding::Context(_) => Some(Yield::Context),
            Binding::Logits => Some(Yield::Logits),
            Binding::Loss => Some(Yield::Loss),
            Binding::Batch(_) | Binding::Frozen(_) | Binding::Trainable(_) => None,
        }
    }

    fn trainable(&self, name: &str, layer: usize) -> Option<String> {
        let name = of_layer(name, layer);
        self.schema.find(&name).is_some().then_some(name)
    }
}

fn of_layer(template: &str, layer: usize) -> String {
    template.replace("{layer}", &layer.to_string())
}

fn described(binding: &Binding, layer: usize) -> String {
    match binding {
        Binding::Hidden => "activations".to_owned(),
        Binding::HiddenGradient => "the gradient of activations".to_owned(),
        Binding::Batch(part) => format!("the batch's {part:?}"),
        Binding::Frozen(name) => format!("the frozen tensor {:?}", of_layer(name, layer)),
        Binding::Trainable(name) | Binding::Gradient(name) => {
            format!("the trainable tensor {:?}", of_layer(name, layer))
        }
        Binding::Residual(name) => format!("the residual {name:?}"),
        Binding::Context(name) => format!("the context {name:?}"),
        Binding::Logits => "scores".to_owned(),
        Binding::Loss => "the loss".to_owned(),
    }
}

impl<'a> Given<'a> {
    pub(super) fn new(batch: &'a Batch, frozen: &'a Views, weights: &'a NamedTensors) -> Self {
        Self {
            batch,
            frozen,
            weights,
            contexts: &[],
            residuals: &[],
            hidden: None,
            hidden_gradient: None,
            rows: None,
            picked: false,
        }
    }

    /// Returns the value bound to an input, without copying it.
    fn find(&self, feed: &Feed) -> ort::Result<Option<SessionInputValue<'a>>> {
        match feed {
            Feed::Hidden => self.hidden.map(Rows::input).transpose(),
            Feed::HiddenGradient => self.hidden_gradient.map(Rows::input).transpose(),
            Feed::Frozen(place) => Ok(Some(self.frozen.at(*place).into())),
            Feed::Residual(place) => Ok(self.residuals.get(*place).map(|value| (*value).into())),
            Feed::Context(place) => Ok(self.contexts.get(*place).map(Into::into)),
            Feed::Trainable(name) => {
                let tensor = self.weights.get(name);
                tensor.map(|tensor| Ok(TensorRef::from_array_view(tensor)?.into())).transpose()
            }
            Feed::Part(BatchPart::FirstTokens | BatchPart::LastTokens) if self.picked => {
                Some(self.part(&self.batch.order)).transpose()
            }
            Feed::Part(part) => self.batch.parts.get(part).map(|part| self.part(part)).transpose(),
        }
    }

    fn part(&self, part: &'a Part) -> ort::Result<SessionInputValue<'a>> {
        match (part, self.rows) {
            (Part::Integers(array), None) => Ok(TensorRef::from_array_view(array)?.into()),
            (Part::Numbers(array), None) => Ok(TensorRef::from_array_view(array)?.into()),
            (Part::Integers(array), Some((from, to))) => rows_of(array, from..to),
            (Part::Numbers(array), Some((from, to))) => rows_of(array, from..to),
        }
    }
}

/// Returns the part of a tensor with a range of indices of the first dimension.
fn rows_of<T: PrimitiveTensorElementType + Clone + Debug + 'static>(
    array: &ArrayD<T>,
    rows: Range<usize>,
) -> ort::Result<SessionInputValue<'_>> {
    let mut shape = array.shape().to_vec();
    let width: usize = shape[1..].iter().product();
    shape[0] = rows.len();
    let values = array.as_slice().map_or(&[][..], |values| &values[rows.start * width..rows.end * width]);
    Ok(TensorRef::from_array_view((shape, values))?.into())
}

impl<'a> Rows<'a> {
    fn input(self) -> ort::Result<SessionInputValue<'a>> {
        match self {
            Self::Value(value) => Ok(value.into()),
            Self::Slice(width, values) => {
                Ok(TensorRef::from_array_view(([values.len() / width.max(1), width], values))?.into())
            }
        }
    }
}

/// Returns the shape of a tensor and its values, without copying them.
pub(super) fn contents(value: &DynValue) -> Result<(Vec<usize>, &[f32]), TrainerError> {
    let failed = |source| TrainerError::Run { graph: "an output that is not f32".to_owned(), source };
    let (shape, values) = value.try_extract_tensor::<f32>().map_err(failed)?;
    Ok((shape.iter().map(|&size| size as usize).collect(), values))
}

/// Copies a value out of ONNX Runtime.
pub(super) fn array(value: &DynValue) -> Result<ArrayD<f32>, TrainerError> {
    let (shape, values) = contents(value)?;
    Ok(ArrayD::from_shape_vec(IxDyn(&shape), values.to_vec()).expect("ONNX Runtime gives as many values as it says"))
}

/// Adds gradients to the sums over the other parts of a step.
pub(super) fn add_gradients(
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
