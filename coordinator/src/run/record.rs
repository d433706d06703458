//! What is journalled: the facts from which a run can be told again.

use super::settings::RunSettings;
use crate::run::configurator::Choice;
use crate::run::sharing::{Policy, Share};
use serde::{Deserialize, Serialize};
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest, RunId};
use std::collections::BTreeMap;

/// A fact and when it happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds of the coordinator's clock; never less than the entry before.
    pub at_ms: u64,
    /// The fact.
    pub record: Record,
}

/// The facts of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// The first record of every run.
    RunStarted(Start),
    /// A coordinator took the run up again. The time it was away does not count: the phase's deadline begins anew.
    Resumed,
    /// Devices were ordered to train.
    TrainingStarted {
        /// Of the command.
        epoch: u64,
        /// What each device is to do.
        assignments: BTreeMap<DeviceId, Assignment>,
    },
    /// An update was received whole, found good, and stored.
    UpdateStored {
        /// From whom.
        device: DeviceId,
        /// The blob.
        update: Digest,
        /// What the device says of it.
        report: TrainReport,
        /// How far it is from the weights that the device started from.
        distance: f64,
    },
    /// A device will not deliver in this round.
    DeviceOut {
        /// Which.
        device: DeviceId,
        /// Why, in its words or ours.
        reason: String,
    },
    /// Enough updates are there; merging begins.
    Collected,
    /// The round's terminal state: merged.
    Merged(Merged),
    /// The round's terminal state: skipped; the weights stay as they were.
    Skipped {
        /// Why.
        reason: String,
    },
    /// Devices were ordered to evaluate.
    EvaluationStarted {
        /// Of the command.
        epoch: u64,
        /// How many examples each device is to evaluate.
        examples: BTreeMap<DeviceId, u64>,
    },
    /// An evaluation ended.
    Evaluated(Evaluation),
    /// The last record of a run.
    RunEnded {
        /// `None`: all rounds are done. Otherwise the run was stopped, and why.
        stopped: Option<String>,
    },
    /// The operator changed who shares what; orders that were given stay as they are.
    PolicySet(Policy),
}

/// What one device is to do in a round, and why.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// Its dropout rates.
    pub choice: Choice,
    /// Which layers it shares.
    pub share: Share,
}

/// What a merge made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Merged {
    /// The new global weights.
    pub weights: Digest,
    /// The server optimizer's moments, where it has any.
    pub moments: Option<Digest>,
}

/// What a run is about.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Its name.
    pub run: RunId,
    /// What the operator asked for.
    pub settings: Box<RunSettings>,
    /// The model's layers.
    pub layers: u32,
    /// Digest of the pack.
    pub pack: Digest,
    /// Digest of the schema of the trainable tensors.
    pub schema: Digest,
    /// The weights it starts from.
    pub weights: Digest,
}

/// What devices found, summed.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Evaluation {
    /// Devices that reported.
    pub devices: u32,
    /// Examples evaluated.
    pub examples: u64,
    /// Of which the label was right.
    pub correct: u64,
    /// Sum of the cross-entropy loss in nats.
    pub loss_sum: f64,
}

impl Evaluation {
    /// Share of right labels; `None` where nothing was evaluated.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        (self.examples > 0).then(|| self.correct as f64 / self.examples as f64)
    }

    /// Mean loss per example; `None` where nothing was evaluated.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        (self.examples > 0).then(|| self.loss_sum / self.examples as f64)
    }
}
