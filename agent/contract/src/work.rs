//! An order for the worker, and the product of carrying it out.

use serde::{Deserialize, Serialize};
use skiff_protocol::messages::{EvaluateOrder, EvaluationReport, TrainOrder, TrainReport, WorkSample};
use skiff_protocol::{Digest, RunId};
use std::ops::ControlFlow;

/// Identifies a piece of work. The agent ignores results of any work but the one in hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ticket {
    /// The command's run.
    pub run: RunId,
    /// The command's epoch.
    pub epoch: u64,
}

/// A piece of work.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Work {
    /// Identity of the work.
    pub ticket: Ticket,
    /// The round.
    pub round: u32,
    /// The order, after this device's own rules were applied.
    pub job: Job,
    /// Layers of this device that replace the global ones.
    pub personal: Option<Personal>,
}

/// The kinds of work. The weights are in the agent's store.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Job {
    /// A training.
    Train(TrainOrder),
    /// An evaluation.
    Evaluate(EvaluateOrder),
}

impl Job {
    /// Returns the digest of the global weights to start from.
    #[must_use]
    pub const fn weights(&self) -> Digest {
        match self {
            Self::Train(order) => order.weights,
            Self::Evaluate(order) => order.weights,
        }
    }

    /// Returns the digest of the schema that the weights must have.
    #[must_use]
    pub const fn schema(&self) -> Digest {
        match self {
            Self::Train(order) => order.schema,
            Self::Evaluate(order) => order.schema,
        }
    }

    /// Returns the time that the work may take, in milliseconds.
    #[must_use]
    pub const fn deadline_ms(&self) -> u64 {
        match self {
            Self::Train(order) => order.deadline_ms,
            Self::Evaluate(order) => order.deadline_ms,
        }
    }
}

/// Layers that stay on the device. They belong to a run; another run starts without them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Personal {
    /// The run in which they were trained.
    pub run: RunId,
    /// The layers, ascending.
    pub layers: Vec<u32>,
    /// The blob with their tensors.
    pub blob: Digest,
}

/// The product of a training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Trained {
    /// The tensors of the head and of the shared layers.
    pub update: Vec<u8>,
    /// The layers that are not shared, and their tensors; `None` if all are shared.
    pub personal: Option<(Vec<u32>, Vec<u8>)>,
    /// The report that goes with the update.
    pub report: TrainReport,
}

/// The product of a piece of work.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Product {
    /// The product of a training.
    Trained(Trained),
    /// The product of an evaluation.
    Evaluated(EvaluationReport),
}

/// A function that is called after each step, with a sample if the step has one; it returns whether to continue.
pub type Watch<'a> = dyn FnMut(Option<WorkSample>) -> ControlFlow<()> + 'a;

/// Does pieces of work.
pub trait Workshop {
    /// Does `work` and returns its product, which is discarded if `step` returned `Break`.
    ///
    /// # Errors
    /// A reason for the operator, with its causes.
    fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product>;
}
