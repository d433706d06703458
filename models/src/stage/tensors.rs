//! The tensors that a stage declares, and the source of their first values.

use crate::storage::Storage;
use crate::tensors::TensorSpec;

/// A frozen tensor that a stage reads, and the source of its values.
#[derive(Clone, PartialEq, Debug)]
pub struct FrozenTensor {
    /// Its name in the pack.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its storage.
    pub storage: Storage,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// Its values.
    pub source: FrozenSource,
    /// The part of it that a batch reads.
    pub extent: Extent,
}

/// The part of a frozen tensor that a batch reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// The whole tensor.
    Whole,
    /// A table: the rows that the batch names.
    Rows,
}

/// The source of a frozen tensor's values.
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
