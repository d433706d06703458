//! Events that the engine handles, and the actions that it returns.

use super::configurator::Pace;
use super::record::{Entry, Merged};
use crate::merge::Merging;
use skiff_api::policy::Policy;
use skiff_protocol::messages::{Answer, Command, Place, StepMemory, TrainReport};
use skiff_protocol::{BootId, DeviceId, Digest, RunId};

/// An event for the engine.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A device with our pack is online.
    DeviceHere(DeviceId, Here),
    /// A device went offline, or holds another pack now.
    DeviceGone(DeviceId),
    /// The operator removed a device from the fleet. No phase waits for it any more.
    DeviceRemoved(DeviceId),
    /// A device answered a command.
    Answered(DeviceId, Answer),
    /// A device's update is complete and checked, and its blob is stored.
    UpdateStored {
        /// Device that sent the update.
        device: DeviceId,
        /// Epoch of the order.
        epoch: u64,
        /// Digest of the update's blob.
        update: Digest,
        /// Report of the device.
        report: TrainReport,
        /// Distance from the weights that the device started from.
        distance: f64,
    },
    /// A device's update is complete, but failed the checks.
    UpdateUnfit {
        /// Device that sent the update.
        device: DeviceId,
        /// Epoch of the order.
        epoch: u64,
        /// Reason why the update is unfit.
        reason: String,
    },
    /// The merge of the order with this epoch ended.
    MergeEnded {
        /// Run of the order. The merge of a stopped run may end during the next run, whose epochs start again.
        run: RunId,
        /// Epoch of the order.
        epoch: u64,
        /// The new weights, or the reason why there are none.
        merged: Result<Merged, String>,
    },
    /// The operator changes which layers devices share, from the next order on. A policy that does not fit the model changes
    /// nothing.
    PolicySet(Policy),
    /// The operator stops the run.
    StopRequested {
        /// Reason, for the journal.
        reason: String,
    },
    /// Time has passed.
    Tick,
}

/// An online device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Here {
    /// Boot of the device.
    pub boot: BootId,
    /// Number of examples that the device can train on.
    pub train_examples: u64,
    /// Number of examples that the device can evaluate on.
    pub test_examples: u64,
    /// Class, region and labels that the owner gave the device.
    pub place: Place,
    /// Memory that the device predicts for a step.
    pub memory: StepMemory,
}

/// Condition of a device.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Condition {
    /// Temperature of the hottest sensor in degrees Celsius.
    pub celsius: Option<f32>,
    /// Battery level in percent, if the device runs on battery.
    pub battery_percent: Option<f32>,
    /// Pace of the current step. It is known even for a device that is too slow to ever deliver.
    pub pace: Option<Pace>,
}

/// An action for the shell. The actions of a list are carried out in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Commit this entry before the actions that follow.
    Journal(Entry),
    /// Confirm to the device that its update is stored and counted.
    ConfirmUpdate(DeviceId, Digest),
    /// Tell the device that its update came too late.
    RefuseUpdate(DeviceId, Digest, String),
    /// Send a command.
    SendCommand(DeviceId, Command),
    /// Offer the global weights to a device.
    OfferWeights(DeviceId, Digest),
    /// Merge. The result returns as [`Event::MergeEnded`].
    Merge(MergeJob),
}

/// A merge to carry out.
#[derive(Clone, PartialEq, Debug)]
pub struct MergeJob {
    /// Run of the order.
    pub run: RunId,
    /// Epoch of the order.
    pub epoch: u64,
    /// Digest of the weights that the round started from.
    pub base: Digest,
    /// Digest of the server optimizer's moments, if there are any yet.
    pub moments: Option<Digest>,
    /// Settings of the merge.
    pub merging: Merging,
    /// Updates, ordered by device.
    pub updates: Vec<MergeInput>,
}

/// One device's part in a merge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeInput {
    /// Device that sent the update.
    pub device: DeviceId,
    /// Digest of the update's blob.
    pub update: Digest,
    /// Number of distinct examples that the device trained on, which is the update's weight.
    pub examples: u64,
    /// Layers in the update.
    pub shared_layers: Vec<u32>,
    /// LoRA rank of the update; 0 for the rank of the pack.
    pub rank: u32,
    /// Digest of the weights that the update started from, and the number of merges since then. `None` if these are the round's
    /// own weights.
    pub stale: Option<(Digest, u32)>,
}

/// Answer to an update that a device offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The device should send the update.
    Wanted,
    /// The update is stored already.
    Stored,
    /// The update is refused for this reason; the device may drop it.
    Refused(String),
}
