//! Trains and evaluates a pack: layer masks, batches, the step, the optimizer.
//!
//! It is synchronous. It does not know the network, the coordinator, file formats of texts or tokenizers.
//!
//! Modules, in the order in which an example passes through them: [`examples`] (the caller's side), [`inputs`] (examples from a
//! file of tensors), `ahead` (reads examples while a step runs), [`batch`] (the tokens of many examples in one row, and all
//! inputs of the graphs that follow from them), [`dropout`] (the layers that a step runs), `model` (the graphs, over [`runtime`],
//! which loads ONNX Runtime, and [`provider`], the device that it computes on), [`trainer`] (a pack in training).
//!
//! Many steps: `plan` (settings of a training), `epochs` (the order of examples), `sample` (the examples of an evaluation), [`training`] and [`evaluation`] (the loops),
//! [`optimizer`] and [`schedule`] (how gradients change weights), [`tally`] (sums over steps), `report` (results),
//! [`checkpoint`] (the saved state of a training). [`clock`] measures durations, [`roof`] the machine's speed at products.

mod ahead;
pub mod batch;
pub mod checkpoint;
pub mod clock;
pub mod dropout;
mod epochs;
mod error;
pub mod evaluation;
pub mod examples;
pub mod inputs;
mod model;
pub mod optimizer;
mod plan;
pub mod provider;
mod report;
pub mod roof;
pub mod runtime;
mod sample;
pub mod schedule;
pub mod tally;
pub mod trainer;
pub mod training;

pub use batch::{Batch, BatchError, Form, Part};
pub use checkpoint::CheckpointError;
pub use dropout::LayerMask;
pub use error::TrainerError;
pub use evaluation::{EvaluatePlan, EvaluateSummary};
pub use examples::{Examples, Sequence, Target, tiny};
pub use model::{Operators, StepOutcome};
pub use optimizer::{AdamW, AdamWOptions};
pub use plan::TrainPlan;
pub use report::{StepReport, TrainSummary};
pub use roof::roof;
pub use runtime::{LIBRARY_VARIABLE, Runtime, RuntimeError};
pub use schedule::{Decay, Schedule};
pub use skiff_contract::Provider;
pub use skiff_models::memory::{Policy, Way, Ways};
pub use trainer::Trainer;
pub use training::Training;
