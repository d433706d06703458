//! The tensors that a stage declares, and the source of their first values.

use crate::storage::Storage;
use crate::tensors::TensorSpec;

/// A frozen tensor that a stage reads, and the source of its values.
#[derive(Clone, PartialEq, Debug)]
pub struct FrozenTensor {
    /// Name of the tensor in the pack.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Storage format of the tensor.
    pub storage: Storage,
    /// Layer of the tensor.
    pub layer: Option<usize>,
    /// Source of the tensor's values.
    pub source: FrozenSource,
    /// Part of the tensor that a batch reads.
    pub extent: Extent,
}

/// The part of a frozen tensor that a batch reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// The whole tensor.
    Whole,
    /// The rows of a table that the batch names.
    Rows,
}

/// The source of a frozen tensor's values.
#[derive(Clone, PartialEq, Debug)]
pub enum FrozenSource {
    /// The checkpoint's tensor of that name.
    Checkpoint,
    /// The given values.
    Values(Vec<f32>),
    /// The adapter's tensor of that name, or values drawn as for a trainable tensor.
    Initial(Initial),
}

/// A trainable tensor of a stage, and its first values.
#[derive(Clone, PartialEq, Debug)]
pub struct TrainableTensor {
    /// Name, shape and layer of the tensor.
    pub spec: TensorSpec,
    /// Source of the tensor's first values.
    pub initial: Initial,
}

/// Source of the first values of a trainable tensor.
#[derive(Clone, PartialEq, Debug)]
pub enum Initial {
    /// Zeros.
    Zeros,
    /// Values drawn uniformly between minus and plus this bound.
    Uniform(f32),
    /// The checkpoint's tensor of that name.
    Checkpoint(String),
    /// The checkpoint's tensor of that name if it has this shape, otherwise values drawn uniformly between minus and plus this
    /// bound.
    CheckpointOr(String, f32),
}
