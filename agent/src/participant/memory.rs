//! The facts that the agent must still know after `kill -9`.

use serde::{Deserialize, Serialize};
use skiff_contract::Personal;
use skiff_protocol::messages::{Outcome, TrainReport};
use skiff_protocol::{Digest, RunId, v2};
use std::collections::BTreeSet;

/// The newest command and its outcome, with the layers that the device keeps for itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// The command's run.
    pub run: RunId,
    /// Start of the run in milliseconds, by the coordinator's clock.
    pub started_ms: u64,
    /// The command's round.
    pub round: u32,
    /// The command's epoch.
    pub epoch: u64,
    /// The global weights that the command needs.
    pub weights: Option<Digest>,
    /// The newest global weights that arrived completely before the weights of the command. Together with the personal layers
    /// they are this device's model.
    pub received: Option<Digest>,
    /// The command's outcome.
    pub settled: Settled,
    /// The layers that were not in the device's last update.
    pub personal: Option<Personal>,
}

/// The outcome of a command.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Settled {
    /// No outcome yet. If the command is repeated after a restart, its work begins again.
    Open,
    /// The answer. The agent sends it again if the command is repeated.
    Answered(Outcome),
    /// The update. The agent offers it again if the command is repeated.
    Trained(Update),
}

/// An update for the coordinator.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Update {
    /// The blob with the tensors of the head and of the shared layers.
    pub blob: Digest,
    /// Size of the blob in bytes.
    pub total_bytes: u64,
    /// The report that goes with the update.
    pub report: TrainReport,
}

impl Memory {
    /// Returns the blobs that this memory needs.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let update = match &self.settled {
            Settled::Trained(update) => Some(update.blob),
            Settled::Open | Settled::Answered(_) => None,
        };
        let personal = self.personal.as_ref().map(|personal| personal.blob);
        [self.weights, self.received, update, personal].into_iter().flatten().collect()
    }
}

/// Layout of a [`Memory`] before evaluations carried the metrics of their task. It never changes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the newest type documents these fields")]
pub struct MemoryOfFormat1 {
    pub run: RunId,
    pub started_ms: u64,
    pub round: u32,
    pub epoch: u64,
    pub weights: Option<Digest>,
    pub settled: SettledOfFormat1,
    pub personal: Option<Personal>,
}

/// The [`Settled`] of a [`MemoryOfFormat1`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the newest type documents these variants")]
pub enum SettledOfFormat1 {
    Open,
    Answered(v2::Outcome),
    Trained(Update),
}

impl From<MemoryOfFormat1> for Memory {
    fn from(memory: MemoryOfFormat1) -> Self {
        let MemoryOfFormat1 { run, started_ms, round, epoch, weights, settled, personal } = memory;
        let settled = match settled {
            SettledOfFormat1::Open => Settled::Open,
            SettledOfFormat1::Answered(outcome) => Settled::Answered(outcome.into()),
            SettledOfFormat1::Trained(update) => Settled::Trained(update),
        };
        Self { run, started_ms, round, epoch, weights, received: None, settled, personal }
    }
}
