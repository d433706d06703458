//! A stage of a model, and the graphs cut from it: forward, backward, evaluate.
//!
//! A stage is one graph from its inputs to its result. An architecture writes it as a formula with the methods here, which
//! declare the frozen and trainable tensors as they are used: what a pack has to hold is what its graphs read. Its
//! derivative is appended to the same graph; then each file is a cut. What the backward file needs of the forward one is
//! carried over as *residuals*: every computed value that a gradient node reads, except movements (permutations, reshapes)
//! and the widening of stored weights, which are done again.

use crate::gradient::gradient;
use crate::graph::{DType, Dim, Extract, Graph, GraphError, Id, Op, Shape, Value};
use crate::onnx;
use crate::pack::Storage;
use crate::peft::{LoraSettings, PREFIX, Peft};
use crate::tensors::TensorSpec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What an input or output of a graph file is tied to when it runs. `{layer}` in a tensor's name stands for the layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// The activations that flow from stage to stage, `[T, D]`.
    Hidden,
    /// The loss's gradient with respect to them.
    HiddenGradient,
    /// A part of the batch.
    Batch(BatchPart),
    /// A frozen tensor, by its name in `frozen.safetensors`.
    Frozen(String),
    /// A trainable tensor, by its name in `peft.safetensors`.
    Trainable(String),
    /// The gradient of a trainable tensor.
    Gradient(String),
    /// Carried from the forward to the backward graph of the same stage and layer, under this name.
    Residual(String),
    /// Made once for a batch by the `embed` stage, read by the blocks, under this name.
    Context(String),
    /// Scores, `[B, C]` or `[T, C]`.
    Logits,
    /// The loss, a scalar.
    Loss,
}

impl Binding {
    /// The name of the frozen tensor, where it is one.
    #[must_use]
    pub fn frozen(&self) -> Option<&str> {
        if let Self::Frozen(name) = self { Some(name) } else { None }
    }

    /// The name of the trainable tensor that it is, or is the gradient of.
    #[must_use]
    pub fn trained(&self) -> Option<&str> {
        if let Self::Trainable(name) | Self::Gradient(name) = self { Some(name) } else { None }
    }
}

/// A tensor's name for `layer`.
#[must_use]
pub fn of_layer(template: &str, layer: usize) -> String {
    template.replace("{layer}", &layer.to_string())
}

/// The parts of a batch of `B` examples with `T` tokens in all, padded to `S` tokens only inside attention.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchPart {
    /// `[T]` i64: vocabulary indices.
    InputIds,
    /// `[T]` i64: segment of each token.
    TokenTypeIds,
    /// `[T]` i64: place of each token in its example, counted from the layout's first position.
    PositionIds,
    /// `[B, h, S]` i64: where attention finds each query head's part of a token in `[T*h, d]`.
    ToHeads,
    /// `[T, h]` i64: the way back, from `[B*h*S, d]`.
    ToTokens,
    /// `[B, k, S]` i64: the same as `ToHeads` for key heads, where there are fewer.
    ToKeyHeads,
    /// `[T, k]` i64: the way back.
    ToKeyTokens,
    /// `[B, S]` i64: the same for whole tokens, in `[T, D]`.
    ToSlots,
    /// `[T]` i64: the way back, from `[B*S, D]`.
    FromSlots,
    /// `[B, S, 1]` f32: 1 for a token, 0 for padding.
    SlotMask,
    /// `[B, 1, 1, S]` f32: 0 for a token, a large negative number for padding.
    KeyBias,
    /// `[S, S]` f32: 0 where the key (column) is not after the query (row), a large negative number where it is.
    CausalBias,
    /// `[S, S]` f32: the same, and the large negative number too where the key is before the layout's window.
    WindowBias,
    /// `[2*S]` i64: in place `c` the relative embedding's row for a query `S - 1 - c` tokens after its key.
    KeyDistances,
    /// `[2*S]` i64: in place `c` the row for a query `c - (S - 1)` tokens after its key.
    QueryDistances,
    /// `[B]` i64: the first token of each example.
    FirstTokens,
    /// `[B]` i64: the last token of each example.
    LastTokens,
    /// `[B, C]` or `[T, C]` f32. Classes: their weights in the loss, which sum to 1 over the batch. Regression: the numbers.
    Targets,
    /// `[B, 1]` f32: the weight of each squared error, `1 / (B C)`.
    ExampleWeights,
    /// `[T]` i64: the vocabulary index of the token to be foretold; 0 where none counts.
    NextTokens,
    /// `[T, 1]` f32: its weight in the loss; all weights of a batch sum to 1.
    TokenWeights,
}

impl BatchPart {
    /// Whether its elements are integers.
    #[must_use]
    pub const fn dtype(self) -> DType {
        match self {
            Self::SlotMask
            | Self::KeyBias
            | Self::CausalBias
            | Self::WindowBias
            | Self::Targets
            | Self::ExampleWeights
            | Self::TokenWeights => DType::F32,
            Self::InputIds
            | Self::TokenTypeIds
            | Self::PositionIds
            | Self::ToHeads
            | Self::ToTokens
            | Self::ToKeyHeads
            | Self::ToKeyTokens
            | Self::ToSlots
            | Self::FromSlots
            | Self::KeyDistances
            | Self::QueryDistances
            | Self::FirstTokens
            | Self::LastTokens
            | Self::NextTokens => DType::I64,
        }
    }
}

/// One input or output of a graph file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name in the file.
    pub name: String,
    /// What it is tied to.
    pub binding: Binding,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions, numbers and letters.
    pub shape: Vec<String>,
}

/// A graph file: where it is and what goes in and out, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GraphSpec {
    /// Path in the pack.
    pub file: String,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
}

/// The graph files of a stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageSpec {
    /// Result and residuals.
    pub forward: GraphSpec,
    /// Gradients of the stage's trainable tensors and of its input; absent where the stage has neither.
    pub backward: Option<GraphSpec>,
    /// `backward` without the gradient of the input, for the lowest layer that trains; absent where that is the same.
    pub backward_lowest: Option<GraphSpec>,
    /// The result alone.
    pub evaluate: GraphSpec,
    /// `forward` and its gradients with the large residuals in half precision; only blocks of fused operators have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half: Option<HalfSpec>,
}

/// Graph files of a stage that keep in half precision what a layer keeps.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HalfSpec {
    /// As [`StageSpec::forward`].
    pub forward: GraphSpec,
    /// As [`StageSpec::backward`].
    pub backward: GraphSpec,
    /// As [`StageSpec::backward_lowest`].
    pub backward_lowest: Option<GraphSpec>,
}

impl StageSpec {
    /// The graph files there are.
    pub fn graphs(&self) -> impl Iterator<Item = &GraphSpec> {
        let whole = [Some(&self.forward), self.backward.as_ref(), self.backward_lowest.as_ref(), Some(&self.evaluate)];
        let half = self.half.iter();
        let half = half.flat_map(|half| [Some(&half.forward), Some(&half.backward), half.backward_lowest.as_ref()]);
        whole.into_iter().chain(half).flatten()
    }
}

/// The graph files of a model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpecs {
    /// Tokens to activations, and what all blocks read.
    pub embed: StageSpec,
    /// One for each kind of layer.
    pub blocks: Vec<StageSpec>,
    /// For each layer, which of `blocks` it is.
    pub kinds: Vec<usize>,
    /// Activations to scores and loss.
    pub head: StageSpec,
    /// As `blocks`, for the highest layer that runs, where the head reads one row of each example and no other has to be
    /// computed there: its activations are `[B, D]`. Empty where there is no such thing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_blocks: Vec<StageSpec>,
}

impl StageSpecs {
    /// All stages.
    pub fn all(&self) -> impl Iterator<Item = &StageSpec> {
        [&self.embed, &self.head].into_iter().chain(&self.blocks).chain(&self.last_blocks)
    }
}

/// A frozen tensor that a stage reads, and where its values come from.
#[derive(Clone, PartialEq, Debug)]
pub struct FrozenTensor {
    /// Its name in the pack.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub storage: Storage,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// Its values.
    pub source: FrozenSource,
}

/// Where a frozen tensor's values come from.
#[derive(Clone, PartialEq, Debug)]
pub enum FrozenSource {
    /// The checkpoint's tensor of that name.
    Checkpoint,
    /// These.
    Values(Vec<f32>),
    /// An adapter's tensor of that name, or values drawn as for one that trains.
    Initial(Initial),
}

/// A trainable tensor of a stage, and its first values.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainableTensor {
    /// Name, shape, layer.
    pub spec: TensorSpec,
    /// Its first values.
    pub initial: Initial,
}

/// The first values of a tensor that trains.
#[derive(Clone, PartialEq, Debug)]
pub enum Initial {
    /// Zeros.
    Zeros,
    /// Uniform between minus and plus this.
    Uniform(f32),
    /// The checkpoint's tensor of that name.
    Checkpoint(String),
    /// The checkpoint's tensor of that name if it is there in that shape, else uniform between minus and plus this.
    CheckpointOr(String, f32),
}

/// Whether a linear layer adds a bias.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bias {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// Standard deviation 0.02, as BERT draws its matrices, as the bound of a uniform draw (which needs no logarithm and so has
/// the same bits on every machine).
const MATRIX_BOUND: f32 = 0.034_641_016;

/// A stage under construction.
///
/// Tensors are named as in the model's own checkpoints. A name may start with the block's prefix, in which `{layer}` stands
/// for the layer: the graphs of two layers that differ in nothing else are then the same.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The computation.
    pub graph: Graph,
    peft: &'a Peft,
    storage: Storage,
    /// In front of every tensor's name, with `{layer}` in it for a block.
    prefix: String,
    layer: Option<usize>,
    bindings: BTreeMap<Id, Binding>,
    known: BTreeMap<String, Id>,
    frozen: Vec<FrozenTensor>,
    trainable: Vec<(Id, TrainableTensor)>,
    hidden: Option<Id>,
    contexts: Vec<Id>,
    only: Option<BatchPart>,
}

/// What a stage ends in.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// Activations for the next stage.
    Hidden(Id),
    /// The loss, and the scores it comes from.
    Loss {
        /// Scalar.
        loss: Id,
        /// `[B, C]` or `[T, C]`.
        logits: Id,
    },
}

/// The graph files of a stage with their bytes, and the tensors that they read.
#[derive(Clone, PartialEq, Debug)]
pub struct CompiledStage {
    /// Names and ports.
    pub spec: StageSpec,
    /// Path in the pack and bytes.
    pub files: Vec<(String, Vec<u8>)>,
    /// In the order of their use.
    pub frozen: Vec<FrozenTensor>,
    /// In the order of their use.
    pub trainable: Vec<TrainableTensor>,
    /// The whole stage with its derivative.
    pub graph: Graph,
    /// The part of it that each file is.
    pub cuts: Cuts,
    /// The same with the large residuals in half precision, where the stage has it.
    pub half: Option<(Graph, Cuts)>,
}

/// The parts of a stage's graph, by file.
#[derive(Clone, PartialEq, Debug)]
pub struct Cuts {
    /// Result and residuals.
    pub forward: Extract,
    /// Gradients.
    pub backward: Option<Extract>,
    /// The result alone.
    pub evaluate: Extract,
}

/// Parts of a stage's graph while it is cut.
struct Passes {
    forward: Extract,
    backward: Option<Extract>,
    lowest: Option<Extract>,
}

/// An activation in half precision, and that widened again.
#[derive(Clone, Copy)]
struct Halved {
    narrow: Id,
    widened: Id,
}

impl<'a> Stage<'a> {
    /// An empty stage whose tensors' names begin with `prefix`; `layer` takes the place of `{layer}` in it.
    #[must_use]
    pub fn new(peft: &'a Peft, storage: Storage, prefix: &str, layer: Option<usize>) -> Self {
        Self {
            graph: Graph::default(),
            peft,
            storage,
            prefix: prefix.to_owned(),
            layer,
            bindings: BTreeMap::new(),
            known: BTreeMap::new(),
            frozen: Vec::new(),
            trainable: Vec::new(),
            hidden: None,
            contexts: Vec::new(),
            only: None,
        }
    }

    /// Lets the stage have fused operators.
    #[must_use]
    pub fn with_fused_operators(self) -> Self {
        Self { graph: Graph::fused(), ..self }
    }

    /// Has a block compute no other rows than those that `part` names, one of each example.
    #[must_use]
    pub fn for_rows(self, part: BatchPart) -> Self {
        Self { only: Some(part), ..self }
    }

    /// The rows of `x` (`[T, D]`) that the block computes, and their places where those are not all.
    ///
    /// # Errors
    /// As [`Graph::apply`].
    pub fn computed_rows(&mut self, x: Id) -> Result<(Id, Option<Id>), GraphError> {
        let Some(part) = self.only else { return Ok((x, None)) };
        let name = if part == BatchPart::LastTokens { "last_tokens" } else { "first_tokens" };
        let rows = self.batch(part, name, vec!["B".into()]);
        Ok((self.graph.op(Op::Gather, &[x, rows])?, Some(rows)))
    }

    /// The activations from the stage before.
    pub fn hidden(&mut self, shape: Shape) -> Id {
        let id = self.graph.input("hidden", DType::F32, shape);
        self.bindings.insert(id, Binding::Hidden);
        self.hidden = Some(id);
        id
    }

    /// A part of the batch; asked for again, it is the same value.
    pub fn batch(&mut self, part: BatchPart, name: &str, shape: Shape) -> Id {
        self.input(name, Binding::Batch(part), part.dtype(), shape)
    }

    /// Offers a value of the `embed` stage to every block.
    pub fn offer_context(&mut self, name: &str, value: Id) {
        self.graph.rename(value, name);
        self.bindings.insert(value, Binding::Context(name.to_owned()));
        self.contexts.push(value);
    }

    /// A value that the `embed` stage offers.
    pub fn context(&mut self, name: &str, shape: Shape) -> Id {
        self.input(name, Binding::Context(name.to_owned()), DType::F32, shape)
    }

    /// Lets `build` add to the stage with tensors whose names begin otherwise.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn within<R>(&mut self, prefix: &str, build: impl FnOnce(&mut Self) -> R) -> R {
        let outer = std::mem::replace(&mut self.prefix, prefix.to_owned());
        let built = build(self);
        self.prefix = outer;
        built
    }

    /// `x W^T + b` with the model's own `W` (`[outputs, inputs]`) and `b`, and what PEFT adds to it there: for LoRA
    /// (Hu et al., arXiv 2106.09685) `s B A x`, for an adapter (Houlsby et al., arXiv 1902.00751) `y + U gelu(D y + d) + u`
    /// with `y` the layer's result. The scale `s` is an input of the graph and the rank a free dimension, so one graph serves
    /// layers, and devices, of different ranks.
    ///
    /// `x` is `[T, inputs]`, the result `[T, outputs]`.
    ///
    /// # Errors
    /// A shape of `x` that does not fit.
    pub fn linear(&mut self, name: &str, x: Id, [inputs, outputs]: [usize; 2], bias: Bias) -> Result<Id, GraphError> {
        let weight = self.matrix(&format!("{name}.weight"), &[outputs, inputs])?;
        let mut operands = vec![x, weight];
        if bias == Bias::Yes {
            operands.push(self.bias(&format!("{name}.bias"), outputs));
        }
        let base = self.graph.op(TIMES_TRANSPOSED, &operands)?;
        match self.peft {
            Peft::Lora(lora) => match lora.on(&self.full_name(name)) {
                Some(settings) => self.low_rank(name, x, base, [inputs, outputs], settings, lora.freeze_a),
                None => Ok(base),
            },
            Peft::Houlsby { .. } | Peft::BitFit => Ok(base),
        }
    }

    /// As [`Stage::linear`], for the last linear layer of a part that is added to its own input: the place of a Houlsby adapter.
    ///
    /// # Errors
    /// A shape of `x` that does not fit.
    pub fn linear_before_sum(
        &mut self,
        name: &str,
        x: Id,
        [inputs, outputs]: [usize; 2],
        bias: Bias,
    ) -> Result<Id, GraphError> {
        let y = self.linear(name, x, [inputs, outputs], bias)?;
        let Peft::Houlsby { width } = self.peft else { return Ok(y) };
        let bound = 1.0 / (outputs as f32).sqrt();
        let of = |part: &str| format!("{name}.{part}");
        let down = self.train(&of("adapter_down.weight"), &[*width, outputs], Initial::Uniform(bound));
        let down_bias = self.train(&of("adapter_down.bias"), &[*width], Initial::Zeros);
        let up = self.train(&of("adapter_up.weight"), &[outputs, *width], Initial::Zeros);
        let up_bias = self.train(&of("adapter_up.bias"), &[outputs], Initial::Zeros);
        let narrow = self.graph.op(TIMES_TRANSPOSED, &[y, down, down_bias])?;
        let activated = self.graph.op(Op::Gelu, &[narrow])?;
        let wide = self.graph.op(TIMES_TRANSPOSED, &[activated, up, up_bias])?;
        self.graph.add(y, wide)
    }

    /// `x W^T + b` with `W` and `b` both in training: a layer of the task's head. They begin as the checkpoint has them if it
    /// has them in that shape.
    ///
    /// # Errors
    /// A shape of `x` that does not fit.
    pub fn trained_linear(
        &mut self,
        name: &str,
        x: Id,
        [inputs, outputs]: [usize; 2],
        bias: Bias,
    ) -> Result<Id, GraphError> {
        let mut part = |part: &str, shape: &[usize], bound: f32| {
            let name = format!("{name}.{part}");
            let initial = Initial::CheckpointOr(self.full_name(&name), bound);
            self.train(&name, shape, initial)
        };
        let mut operands = vec![x, part("weight", &[outputs, inputs], MATRIX_BOUND)];
        if bias == Bias::Yes {
            operands.push(part("bias", &[outputs], 0.0));
        }
        self.graph.op(TIMES_TRANSPOSED, &operands)
    }

    /// [`Op::LayerNorm`] with the model's own weight and bias.
    ///
    /// # Errors
    /// A last dimension of `x` other than `size`.
    pub fn layer_norm(&mut self, name: &str, x: Id, size: usize, epsilon: f32) -> Result<Id, GraphError> {
        let weight = self.vector(&format!("{name}.weight"), size);
        let bias = self.bias(&format!("{name}.bias"), size);
        self.graph.op(Op::LayerNorm { epsilon }, &[x, weight, bias])
    }

    /// [`Op::RmsNorm`] with the model's own weight.
    ///
    /// # Errors
    /// A last dimension of `x` other than `size`.
    pub fn rms_norm(&mut self, name: &str, x: Id, size: usize, epsilon: f32) -> Result<Id, GraphError> {
        let weight = self.vector(&format!("{name}.weight"), size);
        self.graph.op(Op::RmsNorm { epsilon }, &[x, weight])
    }

    /// Rows of the table `name` (`[rows, size]`) at the integers `index`; only those rows are widened.
    ///
    /// # Errors
    /// An index that is not of integers.
    pub fn rows(&mut self, name: &str, [rows, size]: [usize; 2], index: Id) -> Result<Id, GraphError> {
        let (table, scale) = self.stored(name, &[rows, size], self.storage);
        let picked = self.graph.op(Op::Gather, &[table, index])?;
        match scale {
            Some(scale) => {
                let scales = self.graph.op(Op::Gather, &[scale, index])?;
                self.graph.op(Op::Dequantize, &[picked, scales])
            }
            None => self.widened(picked),
        }
    }

    /// A frozen tensor of rank 2 or more, as f32 whatever it is stored as.
    ///
    /// # Errors
    /// None for the shapes a model has.
    pub fn matrix(&mut self, name: &str, shape: &[usize]) -> Result<Id, GraphError> {
        let widened = format!("{}{name} as f32", self.prefix);
        if let Some(&id) = self.known.get(&widened) {
            return Ok(id);
        }
        let (stored, scale) = self.stored(name, shape, self.storage);
        let id = match scale {
            Some(scale) => self.graph.op(Op::Dequantize, &[stored, scale])?,
            None => self.widened(stored)?,
        };
        self.known.insert(widened, id);
        Ok(id)
    }

    /// A frozen vector.
    pub fn vector(&mut self, name: &str, size: usize) -> Id {
        self.stored(name, &[size], Storage::F32).0
    }

    /// A vector of the model that BitFit (Ben Zaken et al., arXiv 2106.10199) trains where it stands in a block; frozen
    /// otherwise.
    pub fn bias(&mut self, name: &str, size: usize) -> Id {
        match (self.peft, self.layer) {
            (Peft::BitFit, Some(_)) => {
                let initial = Initial::Checkpoint(self.full_name(name));
                self.train(name, &[size], initial)
            }
            _ => self.vector(name, size),
        }
    }

    /// A frozen tensor whose values are known here.
    pub fn given(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Id {
        self.declare_frozen(name, shape, Storage::F32, FrozenSource::Values(values))
    }

    /// The tensor's name in the model's own checkpoint: with prefix and layer.
    fn full_name(&self, name: &str) -> String {
        let template = format!("{}{name}", self.prefix);
        self.layer.map_or_else(|| template.clone(), |layer| of_layer(&template, layer))
    }

    fn low_rank(
        &mut self,
        name: &str,
        x: Id,
        base: Id,
        [inputs, outputs]: [usize; 2],
        settings: LoraSettings,
        freeze_a: bool,
    ) -> Result<Id, GraphError> {
        let of = |part: &str| format!("{name}.{part}");
        let rank = Dim::from(format!("R.{name}").as_str());
        let drawn = Initial::Uniform(1.0 / (inputs as f32).sqrt());
        let a_shape = (vec![rank.clone(), inputs.into()], [settings.rank, inputs]);
        let down = if freeze_a {
            let tensor =
                self.frozen_tensor(&of("lora_A.weight"), &a_shape.1, Storage::F32, FrozenSource::Initial(drawn));
            self.bind_frozen(&of("lora_A.weight"), DType::F32, a_shape.0, tensor)
        } else {
            self.train_shaped(&of("lora_A.weight"), a_shape.0, &a_shape.1, drawn)
        };
        let up = vec![outputs.into(), rank];
        let up = self.train_shaped(&of("lora_B.weight"), up, &[outputs, settings.rank], Initial::Zeros);
        let scale = self.given(&of("lora_scale"), &[1], vec![settings.scale]);
        let narrow = self.graph.op(TIMES_TRANSPOSED, &[x, down])?;
        let scaled = self.graph.mul(narrow, scale)?;
        self.graph.op(TIMES_TRANSPOSED, &[scaled, up, base])
    }

    /// The stored form of a frozen tensor of the checkpoint, and its scales where it is int8.
    fn stored(&mut self, name: &str, shape: &[usize], storage: Storage) -> (Id, Option<Id>) {
        let stored = self.declare_frozen(name, shape, storage, FrozenSource::Checkpoint);
        let scale = (storage == Storage::Int8).then(|| {
            let binding = Binding::Frozen(format!("{}{name}.scale", self.prefix));
            self.input(&format!("{name}.scale"), binding, DType::F32, vec![shape[0].into()])
        });
        (stored, scale)
    }

    fn widened(&mut self, stored: Id) -> Result<Id, GraphError> {
        match self.graph.value(stored).dtype {
            DType::F32 => Ok(stored),
            DType::F16 | DType::I8 | DType::I64 => self.graph.op(Op::Cast, &[stored]),
        }
    }

    fn declare_frozen(&mut self, name: &str, shape: &[usize], storage: Storage, source: FrozenSource) -> Id {
        let tensor = self.frozen_tensor(name, shape, storage, source);
        let dims = shape.iter().map(|&size| size.into()).collect();
        self.bind_frozen(name, storage.dtype(), dims, tensor)
    }

    fn frozen_tensor(&self, name: &str, shape: &[usize], storage: Storage, source: FrozenSource) -> FrozenTensor {
        FrozenTensor { name: self.full_name(name), shape: shape.to_vec(), storage, layer: self.layer, source }
    }

    fn bind_frozen(&mut self, name: &str, dtype: DType, dims: Shape, tensor: FrozenTensor) -> Id {
        if !self.known.contains_key(name) {
            self.frozen.push(tensor);
        }
        self.input(name, Binding::Frozen(format!("{}{name}", self.prefix)), dtype, dims)
    }

    /// A trainable tensor; its name in the pack is the one that Hugging Face PEFT gives it.
    fn train(&mut self, name: &str, shape: &[usize], initial: Initial) -> Id {
        let dims = shape.iter().map(|&size| size.into()).collect();
        self.train_shaped(name, dims, shape, initial)
    }

    fn train_shaped(&mut self, name: &str, dims: Shape, shape: &[usize], initial: Initial) -> Id {
        let declared = self.known.contains_key(name);
        let id = self.input(name, Binding::Trainable(format!("{PREFIX}{}{name}", self.prefix)), DType::F32, dims);
        if !declared {
            let name = format!("{PREFIX}{}", self.full_name(name));
            let spec = TensorSpec { name, shape: shape.to_vec(), layer: self.layer };
            self.trainable.push((id, TrainableTensor { spec, initial }));
        }
        id
    }

    /// An input of the graph; asked for again, it is the same value.
    fn input(&mut self, name: &str, binding: Binding, dtype: DType, shape: Shape) -> Id {
        if let Some(&id) = self.known.get(name) {
            return id;
        }
        let id = self.graph.input(name, dtype, shape);
        self.known.insert(name.to_owned(), id);
        self.bindings.insert(id, binding);
        id
    }

    /// Differentiates the stage and cuts its files, called `graphs/{stem}.….onnx`.
    ///
    /// # Errors
    /// What differentiation or writing refuses.
    pub fn compile(mut self, stem: &str, ending: Ending) -> Result<CompiledStage, GraphError> {
        let (result, evaluated, flowing) = match ending {
            Ending::Hidden(hidden) => {
                self.graph.rename(hidden, "hidden_out");
                self.bindings.insert(hidden, Binding::Hidden);
                (hidden, [vec![hidden], self.contexts.clone()].concat(), [vec![hidden], self.contexts.clone()].concat())
            }
            Ending::Loss { loss, logits } => {
                self.graph.rename(loss, "loss");
                self.graph.rename(logits, "logits");
                self.bindings.insert(loss, Binding::Loss);
                (loss, vec![logits], vec![loss])
            }
        };
        let computed = self.forward_values();
        // Made before the gradient's nodes, which read them in the one variant of the graph.
        let halves = self.halves(ending, &computed)?;
        let first_gradient = self.graph.nodes().len();
        let gradients = self.differentiate(ending, result)?;
        let evaluate = self.graph.extract(&evaluated, &BTreeSet::new());
        let mut files = Vec::new();

        let whole = self.passes(&flowing, &gradients, &computed);
        let forward_file = self.file(stem, "forward", &whole.forward, &mut files)?;
        let backward_file = self.optional_file(stem, "backward", whole.backward.as_ref(), &mut files)?;
        let lowest_file = self.optional_file(stem, "backward_lowest", whole.lowest.as_ref(), &mut files)?;
        // Scores that the backward graph needs were a residual so far.
        if let Ending::Loss { logits, .. } = ending {
            self.bindings.insert(logits, Binding::Logits);
        }
        let evaluate_file = self.file(stem, "evaluate", &evaluate, &mut files)?;

        let graph = self.graph.clone();
        let (mut half_spec, mut half) = (None, None);
        if !halves.is_empty() && whole.backward.is_some() {
            self.graph.redirect(first_gradient, &|node, operand| {
                let (own, direct) = (halves.get(&node.inputs[operand])?, node.op.halves());
                let all = node.inputs[direct.clone()].iter().all(|id| halves.contains_key(id));
                Some(if all && direct.contains(&operand) { own.narrow } else { own.widened })
            });
            let computed = computed.iter().copied().chain(halves.values().map(|half| half.narrow)).collect();
            let passes = self.passes(&flowing, &gradients, &computed);
            let forward = self.file(stem, "half.forward", &passes.forward, &mut files)?;
            let backward = self.optional_file(stem, "half.backward", passes.backward.as_ref(), &mut files)?;
            let backward_lowest =
                self.optional_file(stem, "half.backward_lowest", passes.lowest.as_ref(), &mut files)?;
            half_spec = backward.map(|backward| HalfSpec { forward, backward, backward_lowest });
            let cuts = Cuts { forward: passes.forward, backward: passes.backward, evaluate: evaluate.clone() };
            half = Some((std::mem::replace(&mut self.graph, graph.clone()), cuts));
        }
        let spec = StageSpec {
            forward: forward_file,
            backward: backward_file,
            backward_lowest: lowest_file,
            evaluate: evaluate_file,
            half: half_spec,
        };
        let trainable = self.trainable.into_iter().map(|(_, tensor)| tensor).collect();
        let cuts = Cuts { forward: whole.forward, backward: whole.backward, evaluate };
        Ok(CompiledStage { spec, files, frozen: self.frozen, trainable, graph, cuts, half })
    }

    /// Cuts what computes `flowing` from what computes `gradients`; of `computed`, the values that both need are carried over.
    fn passes(&mut self, flowing: &[Id], gradients: &[Id], computed: &BTreeSet<Id>) -> Passes {
        let cut: BTreeSet<Id> = computed.iter().filter(|id| !self.is_done_again(**id)).copied().collect();
        let backward = (!gradients.is_empty()).then(|| self.graph.extract(gradients, &cut));
        let of_trainables = &gradients[..self.trainable.len()];
        let lowest = (!of_trainables.is_empty() && of_trainables.len() < gradients.len())
            .then(|| self.graph.extract(of_trainables, &cut));
        let residuals: Vec<Id> =
            backward.iter().flat_map(|part| part.inputs.iter()).filter(|id| computed.contains(id)).copied().collect();
        for &id in &residuals {
            let name = self.graph.value(id).name.clone();
            self.bindings.entry(id).or_insert(Binding::Residual(name));
        }
        let forward = self.graph.extract(&[flowing, &residuals].concat(), &BTreeSet::new());
        Passes { forward, backward, lowest }
    }

    /// Adds to a block of fused operators each of its activations in half precision, and widened again. Not its statistics of
    /// rows: they would save little, and their rounding would move whole rows.
    fn halves(&mut self, ending: Ending, computed: &BTreeSet<Id>) -> Result<BTreeMap<Id, Halved>, GraphError> {
        const NARROWEST: usize = 16;
        let block = self.layer.is_some() && self.only.is_none() && matches!(ending, Ending::Hidden(_));
        if !block || !self.graph.is_fused() {
            return Ok(BTreeMap::new());
        }
        let large = |value: &Value| {
            let [first, .., last] = value.shape.as_slice() else { return false };
            let wide = last.known().map_or(value.shape.len() > 2, |size| size >= NARROWEST);
            value.dtype == DType::F32 && first.known().is_none() && wide
        };
        let mut halves = BTreeMap::new();
        for &id in computed {
            let value = self.graph.value(id);
            if !large(value) {
                continue;
            }
            let name = value.name.clone();
            let narrow = self.graph.op(Op::Narrow, &[id])?;
            let widened = self.graph.op(Op::Cast, &[narrow])?;
            self.graph.rename(narrow, &format!("{name}.half"));
            halves.insert(id, Halved { narrow, widened });
        }
        Ok(halves)
    }

    /// Writes one file of the stage.
    fn file(
        &self,
        stem: &str,
        kind: &str,
        part: &Extract,
        files: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<GraphSpec, GraphError> {
        let stem = format!("{stem}.{kind}");
        let path = format!("graphs/{stem}.onnx");
        files.push((path.clone(), onnx::write(&stem, &self.graph, part)?));
        let ports = |ids: &mut dyn Iterator<Item = Id>| ids.map(|id| self.port(id)).collect();
        let (inputs, outputs) = (ports(&mut part.inputs.iter().copied()), ports(&mut part.outputs.iter().copied()));
        Ok(GraphSpec { file: path, inputs, outputs })
    }

    fn optional_file(
        &self,
        stem: &str,
        kind: &str,
        part: Option<&Extract>,
        files: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<Option<GraphSpec>, GraphError> {
        part.map(|part| self.file(stem, kind, part, files)).transpose()
    }

    fn forward_values(&self) -> BTreeSet<Id> {
        self.graph.nodes().iter().flat_map(|node| node.outputs.iter().copied()).collect()
    }

    /// What costs less to do again in the backward graph than to carry over.
    fn is_done_again(&self, id: Id) -> bool {
        let again = |op: &Op| matches!(op, Op::Permute(_) | Op::Reshape(_) | Op::Cast | Op::Dequantize);
        self.graph.producer(id).is_some_and(|node| again(&node.op))
    }

    /// The gradients of the trainable tensors, then that of the stage's input where it has one.
    fn differentiate(&mut self, ending: Ending, result: Id) -> Result<Vec<Id>, GraphError> {
        let wanted: Vec<Id> = self.trainable.iter().map(|(id, _)| *id).chain(self.hidden).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let seed = match ending {
            Ending::Loss { .. } => self.graph.constant(1.0),
            Ending::Hidden(_) => {
                let shape = self.graph.shape(result).clone();
                let seed = self.graph.input("hidden_gradient", DType::F32, shape);
                self.bindings.insert(seed, Binding::HiddenGradient);
                seed
            }
        };
        let gradients = gradient(&mut self.graph, result, seed, &wanted)?;
        for (&of, &gradient) in wanted.iter().zip(&gradients) {
            let binding = if let Binding::Trainable(tensor) = &self.bindings[&of] {
                Binding::Gradient(tensor.clone())
            } else {
                Binding::HiddenGradient
            };
            let name = format!("{}.gradient", self.graph.value(of).name);
            self.graph.rename(gradient, &name);
            self.bindings.insert(gradient, binding);
        }
        Ok(gradients)
    }

    fn port(&self, id: Id) -> Port {
        let value = self.graph.value(id);
        let binding = self.bindings.get(&id).cloned().expect("every port of a stage was bound when it was made");
        let shape = value.shape.iter().map(ToString::to_string).collect();
        Port { name: value.name.clone(), binding, dtype: value.dtype, shape }
    }
}

/// `x W^T + b`.
pub(crate) const TIMES_TRANSPOSED: Op = Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true };
