//! A stage under construction. An architecture writes its formula with these methods.

use super::ports::{BatchPart, Binding, of_layer};
use super::tensors::{Extent, FrozenSource, FrozenTensor, Initial, TrainableTensor};
use crate::graph::{DType, Dim, Graph, GraphError, Id, Op, Shape};
use crate::peft::{LoraSettings, PREFIX, Peft};
use crate::storage::Storage;
use crate::tensors::TensorSpec;
use std::collections::BTreeMap;

/// Whether a linear layer has a bias.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bias {
    /// Add a bias.
    Yes,
    /// Add no bias.
    No,
}

/// Bound of a uniform draw with BERT's standard deviation of 0.02. A uniform draw needs no logarithm and therefore has the
/// same bits on every machine.
const MATRIX_BOUND: f32 = 0.034_641_016;

/// A stage under construction.
///
/// Tensors are named as in the model's own checkpoints. A name may start with the block's prefix, in which `{layer}` stands for
/// the layer. Two layers without any other difference therefore have the same graph.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The computation so far.
    pub graph: Graph,
    /// Whether the stage may have fused operators, such as [`Op::Attention`] and adjoints.
    pub(super) fused: bool,
    peft: &'a Peft,
    storage: Storage,
    /// Prefix of every tensor's name, which contains `{layer}` for a block.
    prefix: String,
    pub(super) layer: Option<usize>,
    pub(super) bindings: BTreeMap<Id, Binding>,
    known: BTreeMap<String, Id>,
    pub(super) frozen: Vec<FrozenTensor>,
    pub(super) trainable: Vec<(Id, TrainableTensor)>,
    pub(super) hidden: Option<Id>,
    pub(super) contexts: Vec<Id>,
    pub(super) only: Option<BatchPart>,
}

impl<'a> Stage<'a> {
    /// Starts an empty stage. The names of its tensors begin with `prefix`, in which `layer` replaces `{layer}`.
    #[must_use]
    pub fn new(peft: &'a Peft, storage: Storage, prefix: &str, layer: Option<usize>) -> Self {
        Self {
            graph: Graph::default(),
            fused: false,
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
        Self { fused: true, ..self }
    }

    /// Returns true if the stage may have fused operators.
    #[must_use]
    pub fn is_fused(&self) -> bool {
        self.fused
    }

    /// Lets a block compute only the rows in `part`, one of each example.
    #[must_use]
    pub fn for_rows(self, part: BatchPart) -> Self {
        Self { only: Some(part), ..self }
    }

    /// Returns the rows of `x` (`[T, D]`) that the block computes, and their places if some rows are left out.
    ///
    /// # Errors
    /// The errors of [`Graph::apply`].
    pub fn computed_rows(&mut self, x: Id) -> Result<(Id, Option<Id>), GraphError> {
        let Some(part) = self.only else { return Ok((x, None)) };
        let name = if part == BatchPart::LastTokens { "last_tokens" } else { "first_tokens" };
        let rows = self.batch(part, name, vec!["B".into()]);
        Ok((self.graph.op(Op::Gather, &[x, rows])?, Some(rows)))
    }

    /// Declares the activations from the previous stage.
    pub fn hidden(&mut self, shape: Shape) -> Id {
        let id = self.graph.input("hidden", DType::F32, shape);
        self.bindings.insert(id, Binding::Hidden);
        self.hidden = Some(id);
        id
    }

    /// Declares a part of the batch. A second call returns the same value.
    pub fn batch(&mut self, part: BatchPart, name: &str, shape: Shape) -> Id {
        self.input(name, Binding::Batch(part), part.dtype(), shape)
    }

    /// Offers a value of the `embed` stage to every block.
    pub fn offer_context(&mut self, name: &str, value: Id) {
        self.graph.rename(value, name);
        self.bindings.insert(value, Binding::Context(name.to_owned()));
        self.contexts.push(value);
    }

    /// Declares a value that the `embed` stage offers.
    pub fn context(&mut self, name: &str, shape: Shape) -> Id {
        self.input(name, Binding::Context(name.to_owned()), DType::F32, shape)
    }

    /// Lets `build` add to the stage with another prefix of tensors' names.
    ///
    /// # Errors
    /// The errors of `build`.
    pub fn within<R>(&mut self, prefix: &str, build: impl FnOnce(&mut Self) -> R) -> R {
        let outer = std::mem::replace(&mut self.prefix, prefix.to_owned());
        let built = build(self);
        self.prefix = outer;
        built
    }

    /// Applies `x W^T + b` with the model's own `W` (`[outputs, inputs]`) and `b`, and the additions of fine-tuning.
    ///
    /// LoRA (Hu et al., arXiv 2106.09685) adds `s B A x`. An adapter (Houlsby et al., arXiv 1902.00751) gives
    /// `y + U gelu(D y + d) + u`, with `y` the layer's result. The scale `s` is an input of the graph and the rank a free
    /// dimension, so one graph serves layers and devices with different ranks.
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

    /// Same as [`Stage::linear`], but for the last layer before a residual sum, after which a Houlsby adapter is placed.
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
        let part_name = |part: &str| format!("{name}.{part}");
        let down = self.train(&part_name("adapter_down.weight"), &[*width, outputs], Initial::Uniform(bound));
        let down_bias = self.train(&part_name("adapter_down.bias"), &[*width], Initial::Zeros);
        let up = self.train(&part_name("adapter_up.weight"), &[outputs, *width], Initial::Zeros);
        let up_bias = self.train(&part_name("adapter_up.bias"), &[outputs], Initial::Zeros);
        let narrow = self.graph.op(TIMES_TRANSPOSED, &[y, down, down_bias])?;
        let activated = self.graph.op(Op::Gelu, &[narrow])?;
        let wide = self.graph.op(TIMES_TRANSPOSED, &[activated, up, up_bias])?;
        self.graph.add(y, wide)
    }

    /// Applies `x W^T + b` with trainable `W` and `b`, a layer of the task's head. Their first values come from the checkpoint,
    /// if it has them in this shape.
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

    /// Applies [`Op::LayerNorm`] with the model's own weight and bias.
    ///
    /// # Errors
    /// A last dimension of `x` other than `size`.
    pub fn layer_norm(&mut self, name: &str, x: Id, size: usize, epsilon: f32) -> Result<Id, GraphError> {
        let weight = self.vector(&format!("{name}.weight"), size);
        let bias = self.bias(&format!("{name}.bias"), size);
        self.graph.op(Op::LayerNorm { epsilon }, &[x, weight, bias])
    }

    /// Applies [`Op::RmsNorm`] with the model's own weight.
    ///
    /// # Errors
    /// A last dimension of `x` other than `size`.
    pub fn rms_norm(&mut self, name: &str, x: Id, size: usize, epsilon: f32) -> Result<Id, GraphError> {
        let weight = self.vector(&format!("{name}.weight"), size);
        self.graph.op(Op::RmsNorm { epsilon }, &[x, weight])
    }

    /// Declares a table `name` (`[rows, size]`) and returns its rows at the integers `index`. Only those rows are widened.
    ///
    /// # Errors
    /// An index with other elements than integers.
    pub fn rows(&mut self, name: &str, [rows, size]: [usize; 2], index: Id) -> Result<Id, GraphError> {
        let declared = self.frozen.len();
        let (table, scale) = self.stored(name, &[rows, size], self.storage);
        self.frozen[declared..].iter_mut().for_each(|table| table.extent = Extent::Rows);
        let picked = self.graph.op(Op::Gather, &[table, index])?;
        match scale {
            Some(scale) => {
                let scales = self.graph.op(Op::Gather, &[scale, index])?;
                self.graph.op(Op::Dequantize, &[picked, scales])
            }
            None => self.widened(picked),
        }
    }

    /// Declares a frozen tensor of rank 2 or more. The value is f32 for every storage format.
    ///
    /// # Errors
    /// None for the shapes of models.
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

    /// Declares a frozen vector.
    pub fn vector(&mut self, name: &str, size: usize) -> Id {
        self.stored(name, &[size], Storage::F32).0
    }

    /// Declares a vector of the model. BitFit (Ben Zaken et al., arXiv 2106.10199) trains it if it belongs to a block;
    /// otherwise it is frozen.
    pub fn bias(&mut self, name: &str, size: usize) -> Id {
        match (self.peft, self.layer) {
            (Peft::BitFit, Some(_)) => {
                let initial = Initial::Checkpoint(self.full_name(name));
                self.train(name, &[size], initial)
            }
            _ => self.vector(name, size),
        }
    }

    /// Declares a frozen tensor with the given values.
    pub fn given(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Id {
        self.declare_frozen(name, shape, Storage::F32, FrozenSource::Values(values))
    }

    /// Returns the tensor's name in the model's own checkpoint, with prefix and layer.
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
        let part_name = |part: &str| format!("{name}.{part}");
        let rank = Dim::from(format!("R.{name}").as_str());
        let drawn = Initial::Uniform(1.0 / (inputs as f32).sqrt());
        let a_shape = (vec![rank.clone(), inputs.into()], [settings.rank, inputs]);
        let down = if freeze_a {
            let tensor =
                self.frozen_tensor(&part_name("lora_A.weight"), &a_shape.1, Storage::F32, FrozenSource::Initial(drawn));
            self.bind_frozen(&part_name("lora_A.weight"), DType::F32, a_shape.0, tensor)
        } else {
            self.train_shaped(&part_name("lora_A.weight"), a_shape.0, &a_shape.1, drawn)
        };
        let up = vec![outputs.into(), rank];
        let up = self.train_shaped(&part_name("lora_B.weight"), up, &[outputs, settings.rank], Initial::Zeros);
        let scale = self.given(&part_name("lora_scale"), &[1], vec![settings.scale]);
        let narrow = self.graph.op(TIMES_TRANSPOSED, &[x, down])?;
        let scaled = self.graph.mul(narrow, scale)?;
        self.graph.op(TIMES_TRANSPOSED, &[scaled, up, base])
    }

    /// Declares the stored form of a frozen tensor of the checkpoint, and its scales if it is int8.
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
        let (name, shape, layer) = (self.full_name(name), shape.to_vec(), self.layer);
        FrozenTensor { name, shape, storage, layer, source, extent: Extent::Whole }
    }

    fn bind_frozen(&mut self, name: &str, dtype: DType, dims: Shape, tensor: FrozenTensor) -> Id {
        if !self.known.contains_key(name) {
            self.frozen.push(tensor);
        }
        self.input(name, Binding::Frozen(format!("{}{name}", self.prefix)), dtype, dims)
    }

    /// Declares a trainable tensor. Its name in the pack is Hugging Face PEFT's.
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

    /// Declares an input of the graph. A second call returns the same value.
    fn input(&mut self, name: &str, binding: Binding, dtype: DType, shape: Shape) -> Id {
        if let Some(&id) = self.known.get(name) {
            return id;
        }
        let id = self.graph.input(name, dtype, shape);
        self.known.insert(name.to_owned(), id);
        self.bindings.insert(id, binding);
        id
    }
}

/// Appends `x W^T + b`.
pub(crate) const TIMES_TRANSPOSED: Op = Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true };
