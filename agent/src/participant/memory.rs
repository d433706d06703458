//! What the agent must still know after `kill -9`.

use serde::{Deserialize, Serialize};
use skiff_contract::Personal;
use skiff_protocol::messages::{Outcome, TrainReport};
use skiff_protocol::{Digest, RunId};
use std::collections::BTreeSet;

/// The newest command and what became of it, with the layers that the device keeps for itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// The command's run.
    pub run: RunId,
    /// When that run started, by the coordinator's clock.
    pub started_ms: u64,
    /// The command's round.
    pub round: u32,
    /// The command's epoch.
    pub epoch: u64,
    /// The global weights that it needs.
    pub weights: Option<Digest>,
    /// What became of it.
    pub settled: Settled,
    /// The layers that were not in the device's last update.
    pub personal: Option<Personal>,
}

/// What became of a command.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Settled {
    /// Nothing yet: when it is repeated after a restart, it is begun again.
    Open,
    /// It was answered so, and will be again.
    Answered(Outcome),
    /// It was trained; the update is offered whenever the command is repeated.
    Trained(Update),
}

/// An update as it is handed in.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Its blob: the tensors of the head and of the shared layers.
    pub blob: Digest,
    /// The blob's size.
    pub total_bytes: u64,
    /// What goes with it.
    pub report: TrainReport,
}

impl Memory {
    /// The blobs that are needed as long as this is so.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let update = match &self.settled {
            Settled::Trained(update) => Some(update.blob),
            Settled::Open | Settled::Answered(_) => None,
        };
        let personal = self.personal.as_ref().map(|personal| personal.blob);
        [self.weights, update, personal].into_iter().flatten().collect()
    }
}
