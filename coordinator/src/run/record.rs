//! Records of the journal: the facts from which a run is replayed.

use super::evaluation::{Evaluation, ModelTask};
use super::settings::RunSettings;
use crate::run::configurator::Choice;
use serde::{Deserialize, Serialize};
use skiff_api::names::RunName;
use skiff_api::policy::{Policy, Share};
use skiff_protocol::messages::TrainReport;
use skiff_protocol::{DeviceId, Digest, RunId};
use std::collections::BTreeMap;

/// Beginning of the reason with which a run ends if it has merged no update.
pub const NOTHING_MERGED: &str = "no update was merged";

/// Returns true if a run that ended with this reason has failed: it merged no update, and nobody stopped it. A run of an earlier version
/// that merged nothing in all its rounds has no reason.
#[must_use]
pub fn is_failure(merged_rounds: u32, stopped: Option<&str>) -> bool {
    merged_rounds == 0 && stopped.is_none_or(|reason| reason.starts_with(NOTHING_MERGED))
}

/// A fact, and the time at which it happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Time of the coordinator's clock in milliseconds; never earlier than the entry before.
    pub at_ms: u64,
    /// The fact.
    pub record: Record,
}

/// The facts of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// The first record of every run.
    RunStarted(Start),
    /// A coordinator resumed the run. Time without a coordinator does not count, so the deadline of the phase starts again.
    Resumed,
    /// Devices were ordered to train.
    TrainingStarted {
        /// Epoch of the command.
        epoch: u64,
        /// Order of each device.
        assignments: BTreeMap<DeviceId, Assignment>,
    },
    /// An update arrived completely, passed the checks, and was stored.
    UpdateStored {
        /// Device that sent the update.
        device: DeviceId,
        /// Digest of the update's blob.
        update: Digest,
        /// Report of the device.
        report: TrainReport,
        /// Distance from the weights that the device started from.
        distance: f64,
    },
    /// A device will not deliver in this round.
    DeviceOut {
        /// Device that left.
        device: DeviceId,
        /// Reason that the device or the coordinator gave.
        reason: String,
    },
    /// Enough updates have arrived; merging begins.
    Collected,
    /// The round ended with merged weights.
    Merged(Merged),
    /// The round ended without a merge; the weights stay the same.
    Skipped {
        /// Reason.
        reason: String,
    },
    /// Devices were ordered to evaluate.
    EvaluationStarted {
        /// Epoch of the command.
        epoch: u64,
        /// Number of examples that each device evaluates.
        examples: BTreeMap<DeviceId, u64>,
    },
    /// An evaluation ended.
    Evaluated(Evaluation),
    /// The last record of a run.
    RunEnded {
        /// Reason why the run was stopped, or why it failed ([`is_failure`]); `None` if all rounds are done.
        stopped: Option<String>,
    },
    /// The operator changed which layers devices share. Orders given earlier stay the same.
    PolicySet(Policy),
}

/// Order of one device in a round, with the reason for it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// Dropout rates, with the reason for them.
    pub choice: Choice,
    /// Layers that the device shares.
    pub share: Share,
}

/// Result of a merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Merged {
    /// Digest of the new global weights.
    pub weights: Digest,
    /// Digest of the server optimizer's moments, if the optimizer has any.
    pub moments: Option<Digest>,
}

/// Facts about a run at its start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Id of the run.
    pub run: RunId,
    /// Name that the operator gave the run.
    pub name: Option<RunName>,
    /// Settings of the operator.
    pub settings: Box<RunSettings>,
    /// Number of the model's layers.
    pub layers: u32,
    /// Digest of the pack.
    pub pack: Digest,
    /// Digest of the schema of the trainable tensors.
    pub schema: Digest,
    /// Digest of the weights from which the run starts.
    pub weights: Digest,
    /// Task of the model; `None` in older runs, which did not record it.
    pub task: Option<ModelTask>,
}
