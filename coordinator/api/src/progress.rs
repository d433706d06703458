//! The state that watchers see: the fleet, the run, and the closed rounds, as one value.
//!
//! Facts that no reader may miss (closed rounds, the end of the run) stay in the value. `skiff run watch`, `skiff fleet` and
//! `skiff-demo` draw their tables from it.

use crate::measures::{Figures, Measure};
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// Maximum number of closed rounds in a [`RunProgress`].
pub const ROUNDS_SHOWN: usize = 200;

/// State of the fleet and the run at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Time of the coordinator, in milliseconds since 1970; 0 if an older coordinator does not send it.
    #[serde(default)]
    pub now_ms: u64,
    /// True while the coordinator is connected to the broker.
    pub connected: bool,
    /// All known devices, ordered by name.
    pub devices: Vec<DeviceProgress>,
    /// The current run, or the last run of this process.
    pub run: Option<RunProgress>,
    /// Number of refused messages, by reason.
    pub refused_messages: BTreeMap<String, u64>,
    /// Faults of the whole fleet, each with its remedy, such as a second coordinator.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// State of one device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceProgress {
    /// Name of the device.
    pub device: DeviceId,
    /// Whether the device is connected and can train.
    pub presence: Presence,
    /// Last reported state: `idle`, `fetching`, `training`, `evaluating`, `uploading`, or `unknown`.
    pub state: String,
    /// Number of steps done in this round.
    pub step: u32,
    /// Number of steps ordered for this round.
    pub steps: u32,
    /// Duration of the last step in milliseconds; 0 before the first.
    pub step_ms: f32,
    /// Tokens of text per second in the last step.
    pub tokens_per_second: f32,
    /// Number of active layers in the last step.
    pub active_layers: u32,
    /// Mean number of active layers over the device's updates in the run, weighted by steps; `None` before the first update.
    pub mean_active_layers: Option<f32>,
    /// Mean dropout rate of the device's layers in this round; `None` if it has no training order.
    pub mean_rate: Option<f32>,
    /// Number of the device's updates stored in the run.
    pub updates: u32,
    /// Resident memory of the agent, in bytes.
    pub rss_bytes: u64,
    /// Largest resident memory of the agent so far, in bytes.
    pub peak_rss_bytes: u64,
    /// CPU use of the agent's process in percent of one core.
    pub agent_cpu_percent: f32,
    /// Temperature of the hottest sensor in degrees Celsius.
    pub temperature: Option<f32>,
    /// Time of the last telemetry by the coordinator's clock, in milliseconds since 1970.
    pub telemetry_at_ms: Option<u64>,
    /// Reason for the last refusal, by the device or of its message.
    pub note: Option<String>,
}

/// Whether a device is connected and can train.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Connected, with the same pack as the coordinator.
    Here,
    /// Connected, with another pack. It is never selected.
    WrongPack,
    /// The device said goodbye.
    Left,
    /// The connection of the device broke (last will).
    Lost,
}

/// State of a training run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunProgress {
    /// Id of the run, 16 hexadecimal digits.
    pub run: String,
    /// Name that the operator gave the run.
    #[serde(default)]
    pub name: Option<String>,
    /// Current phase.
    pub phase: Phase,
    /// Number of the current round, from 1; 0 in the evaluation before the first.
    pub round: u32,
    /// Number of rounds in the whole run.
    pub rounds: u32,
    /// Number of devices with an order in the current phase.
    pub ordered: u32,
    /// Number of those devices that have carried out their order.
    pub answered: u32,
    /// Accuracy of the initial weights.
    pub accuracy_before: Option<f64>,
    /// Accuracy in the last evaluation.
    pub accuracy: Option<f64>,
    /// Accuracy in the evaluation that ended the run.
    pub accuracy_after: Option<f64>,
    /// Main measure of the task.
    #[serde(default)]
    pub measure: Measure,
    /// Figures of the initial weights.
    #[serde(default)]
    pub metrics_before: Option<Figures>,
    /// Figures of the last evaluation.
    #[serde(default)]
    pub metrics: Option<Figures>,
    /// Figures of the evaluation that ended the run.
    #[serde(default)]
    pub metrics_after: Option<Figures>,
    /// Time from the start of the run to now or to its end, in milliseconds. It includes time without a coordinator.
    pub elapsed_ms: u64,
    /// Number of bytes that devices sent, including topics and headers.
    pub bytes_up: u64,
    /// Number of bytes sent to devices.
    pub bytes_down: u64,
    /// The last [`ROUNDS_SHOWN`] closed rounds, oldest first.
    pub closed: Vec<RoundProgress>,
    /// Reason for an early end of the run.
    pub reason: Option<String>,
    /// Current wait of the run; `None` if it waits for nothing, or if an older coordinator does not say it.
    #[serde(default)]
    pub waits: Option<Waits>,
}

/// A wait of a run, with its end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Waits {
    /// The devices or the work that the run waits for.
    pub what: String,
    /// Time of the coordinator's clock at which the wait ends, in milliseconds since 1970; `None` for work of the coordinator itself.
    pub until_ms: Option<u64>,
    /// Next step of the run if the wait ends first.
    pub then: String,
}

/// Phase of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The run waits for devices.
    Gathering,
    /// Devices train.
    Training,
    /// Updates are being merged.
    Merging,
    /// Devices evaluate the global weights.
    Evaluating,
    /// All rounds are done.
    Completed,
    /// Stopped by the operator.
    Stopped,
    /// Ended without a single merged update; the reason says why.
    Failed,
}

impl Phase {
    /// Returns true for the phases that no other phase follows.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Stopped | Self::Failed)
    }
}

/// Figures of a closed round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RoundProgress {
    /// Number of the round, from 1.
    pub round: u32,
    /// Reason for skipping the round; `None` if it was merged.
    pub skipped: Option<String>,
    /// Number of devices with a training order.
    pub selected: u32,
    /// Number of merged updates.
    pub updates: u32,
    /// Number of devices that refused their order, failed, or were put out.
    #[serde(default)]
    pub refused: u32,
    /// Number of distinct examples behind the updates.
    #[serde(default)]
    pub examples: u64,
    /// Time of the first order in milliseconds since 1970; `None` if no device got one.
    #[serde(default)]
    pub started_ms: Option<u64>,
    /// Time at which the round, its evaluation included, ended, in milliseconds since 1970.
    #[serde(default)]
    pub ended_ms: u64,
    /// Lowest and highest ordered dropout rate of a layer.
    #[serde(default)]
    pub rates: Option<(f32, f32)>,
    /// Accuracy after the round, if it was evaluated.
    pub accuracy: Option<f64>,
    /// Figures after the round, if it was evaluated.
    #[serde(default)]
    pub metrics: Option<Figures>,
    /// Devices that were left out of the evaluation, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// Mean loss per example in nats after the round, if it was evaluated.
    pub loss: Option<f64>,
    /// Number of examples behind the accuracy.
    pub evaluated_examples: u64,
    /// Mean of the devices' mean training losses.
    pub train_loss: Option<f64>,
    /// Mean of the ordered dropout rates, over devices and layers.
    pub mean_rate: f32,
    /// Mean number of active layers over the updates.
    pub mean_active_layers: f32,
    /// Median step time in milliseconds, mean over the updates.
    pub step_ms: f32,
    /// Time from the first order to the merged weights, in milliseconds.
    pub train_ms: u64,
    /// Time from the order of the evaluation to its last report, in milliseconds.
    pub evaluate_ms: u64,
    /// Longest training time that a device reported, in milliseconds. `train_ms` minus this is the overhead of the round.
    pub longest_training_ms: u64,
    /// Number of bytes that devices sent in the round.
    pub bytes_up: u64,
    /// Number of bytes sent to devices in the round.
    pub bytes_down: u64,
}
