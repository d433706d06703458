//! A stage of a model, and the graphs cut from it: forward, backward, evaluate.
//!
//! A stage is one graph from its inputs to its result. An architecture writes it as a formula with the methods of [`Stage`],
//! which declare the frozen and trainable tensors as they are used: a pack holds exactly what its graphs read. The stage's
//! derivative is appended to the same graph, and each file is a cut of it. The values that the backward file needs of the
//! forward one are carried over as *residuals*: every computed value that a gradient node reads, except movements
//! (permutations, reshapes) and the widening of stored weights, which are done again.
//!
//! Rooms: `ports` (the contract of the files), `tensors` (what a stage declares), `build` (the methods for formulas), `cut`
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
