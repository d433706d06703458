//! A stage of a model, and the graphs cut from it: forward, backward, evaluate.
//!
//! A stage is one graph from its inputs to its result. An architecture writes it as a formula with the methods of [`Stage`].
//! These declare the frozen and trainable tensors at their first use, so that a pack holds exactly the tensors of its graphs.
//!
//! The stage's derivative is appended to the same graph, and each file is a part of it. Values are carried from the forward
//! to the backward file as *residuals*. These are all computed values that gradient nodes read. Movements (permutations,
//! reshapes) and the widening of stored weights are computed again instead.
//!
//! Modules: `ports` (the contract of the files), `tensors` (declared tensors), `build` (the methods for formulas), `cut`
//! (differentiates a stage and writes its files).

mod build;
mod cut;
mod ports;
mod tensors;

pub use build::{Bias, Stage};
pub use cut::{CompiledStage, Cuts, Ending};
pub use ports::{BatchPart, Binding, GraphSpec, HalfSpec, Port, StageSpec, StageSpecs, of_layer};
pub use tensors::{Extent, FrozenSource, FrozenTensor, Initial, TrainableTensor};

pub(crate) use build::TIMES_TRANSPOSED;
