//! What a watcher sees: the fleet, the run, and every closed round, as one value.
//!
//! A coordinator keeps the present [`Progress`] in a watch channel: who reads it gets the newest state and is woken when
//! it changes, nobody can fall behind, and nothing is queued. What must not be missed (closed rounds, the end of the
//! run) stays in the value. `skiff run watch`, `skiff fleet` and `skiff-demo` draw their tables from it; as JSON it is
//! the line that the control socket sends.

use crate::measures::{Figures, Measure, Parts};
use crate::run::RunSettings;
use crate::store::summary::Kept;
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;

/// How many of the last closed rounds a [`RunProgress`] carries.
pub const ROUNDS_SHOWN: usize = 200;

/// Everything there is to see at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// True while the connection to the broker stands.
    pub connected: bool,
    /// Every known device, ordered by name.
    pub devices: Vec<DeviceProgress>,
    /// The present run, or the last one of this process.
    pub run: Option<RunProgress>,
    /// Messages that were refused, by reason.
    pub refused_messages: BTreeMap<String, u64>,
}

/// One device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceProgress {
    /// Its name.
    pub device: DeviceId,
    /// Whether it is there, and fit for work.
    pub presence: Presence,
    /// What it does, as it last said; `idle`, `fetching`, `training`, `evaluating`, `uploading`, or `unknown`.
    pub state: String,
    /// Steps done in this round.
    pub step: u32,
    /// Steps ordered for this round.
    pub steps: u32,
    /// The last step's time in milliseconds; 0 before the first.
    pub step_ms: f32,
    /// Tokens of text per second over the last step.
    pub tokens_per_second: f32,
    /// Layers that were active in the last step.
    pub active_layers: u32,
    /// Active layers over all its updates in the run, weighted by steps; `None` before its first update.
    pub mean_active_layers: Option<f32>,
    /// Mean dropout rate of its layers in this round; `None` when it has no training order.
    pub mean_rate: Option<f32>,
    /// Updates stored in the run.
    pub updates: u32,
    /// Resident memory of the agent, in bytes.
    pub rss_bytes: u64,
    /// Largest resident memory of the agent so far, in bytes.
    pub peak_rss_bytes: u64,
    /// CPU use of the agent's process, 100 for one core.
    pub agent_cpu_percent: f32,
    /// The hottest sensor in degrees Celsius.
    pub temperature: Option<f32>,
    /// Age of the last telemetry in milliseconds.
    pub telemetry_age_ms: Option<u64>,
    /// Why it was last refused, or refused work.
    pub note: Option<String>,
}

/// Whether a device is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// There, with our pack.
    Here,
    /// There, with another pack: never selected.
    WrongPack,
    /// It left in order.
    Left,
    /// Its connection broke (last will).
    Lost,
}

/// A run of training.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RunProgress {
    /// Its name, 16 hexadecimal digits.
    pub run: String,
    /// What it is doing.
    pub phase: Phase,
    /// The present round, from 1; 0 in the evaluation before the first.
    pub round: u32,
    /// How many rounds there will be.
    pub rounds: u32,
    /// Devices that were given an order in the present phase.
    pub ordered: u32,
    /// Of those, how many have answered it in full.
    pub answered: u32,
    /// Accuracy of the initial weights.
    pub accuracy_before: Option<f64>,
    /// The last accuracy found.
    pub accuracy: Option<f64>,
    /// Accuracy found by the evaluation that ended the run.
    pub accuracy_after: Option<f64>,
    /// Main measure of the task.
    #[serde(default)]
    pub measure: Measure,
    /// Figures of the initial weights.
    #[serde(default)]
    pub metrics_before: Option<Figures>,
    /// Last figures found.
    #[serde(default)]
    pub metrics: Option<Figures>,
    /// Figures found by the evaluation that ended the run.
    #[serde(default)]
    pub metrics_after: Option<Figures>,
    /// Since the run started (frozen at its end), in milliseconds; the time in which no coordinator ran counts.
    pub elapsed_ms: u64,
    /// Bytes that devices sent, topics and headers included.
    pub bytes_up: u64,
    /// Bytes sent to devices.
    pub bytes_down: u64,
    /// The last [`ROUNDS_SHOWN`] closed rounds, oldest first.
    pub closed: Vec<RoundProgress>,
    /// Why the run ended, where it did so early.
    pub reason: Option<String>,
}

/// Everything that the journal knows about a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RunDetails {
    /// The run, with all its closed rounds.
    #[serde(flatten)]
    pub run: RunProgress,
    /// Time of its start, in milliseconds since 1970.
    pub started_ms: u64,
    /// Digest of the pack that it trains; `None` if its records are damaged.
    pub pack: Option<String>,
    /// Evaluated weights with the best measure; they are kept.
    pub best: Option<Kept>,
    /// Weights of the last merged round; they are kept.
    pub last: Option<Kept>,
    /// The devices that took part, by name.
    pub devices: Vec<Contribution>,
    /// Parts of the last evaluation: F1 by label and the confusion matrix.
    pub parts: Option<Parts>,
    /// Settings of the run; `None` if its records are damaged.
    pub settings: Option<RunSettings>,
    /// Damage of the journal for which the run was stopped.
    pub damage: Option<String>,
}

/// The work of a device in a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Contribution {
    /// The device.
    pub device: DeviceId,
    /// Number of merged or stored updates.
    pub updates: u32,
    /// Number of steps.
    pub steps: u64,
    /// Mean number of active layers over its steps.
    pub mean_active_layers: Option<f32>,
    /// Largest resident memory that it reported, in bytes.
    pub peak_rss_bytes: u64,
    /// Number of orders that it refused or could not deliver.
    pub failures: u32,
    /// Reason of the last failure.
    pub last_failure: Option<String>,
}

impl Contribution {
    /// Returns the contribution of a device that has done nothing yet.
    #[must_use]
    pub fn of(device: DeviceId) -> Self {
        Self {
            device,
            updates: 0,
            steps: 0,
            mean_active_layers: None,
            peak_rss_bytes: 0,
            failures: 0,
            last_failure: None,
        }
    }
}

/// What a run is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for devices.
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
}

impl Phase {
    /// True for the phases that nothing follows.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Stopped)
    }
}

/// A closed round.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RoundProgress {
    /// Which one, from 1.
    pub round: u32,
    /// `None`: merged. Otherwise why the round was skipped.
    pub skipped: Option<String>,
    /// Devices that were given an order.
    pub selected: u32,
    /// Updates that were merged.
    pub updates: u32,
    /// Accuracy after the round, where it was evaluated.
    pub accuracy: Option<f64>,
    /// Figures after the round, if it was evaluated.
    #[serde(default)]
    pub metrics: Option<Figures>,
    /// Devices that were left out of the evaluation, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// Mean loss per example in nats after the round, where it was evaluated.
    pub loss: Option<f64>,
    /// Examples that the accuracy rests on.
    pub evaluated_examples: u64,
    /// Mean over the devices of their mean training loss.
    pub train_loss: Option<f64>,
    /// Mean dropout rate that was ordered, over devices and layers.
    pub mean_rate: f32,
    /// Mean number of active layers over the updates.
    pub mean_active_layers: f32,
    /// Median step time in milliseconds, mean over the updates.
    pub step_ms: f32,
    /// From the first order to the merged weights, in milliseconds.
    pub train_ms: u64,
    /// From the order to the last report of the evaluation, in milliseconds.
    pub evaluate_ms: u64,
    /// The longest training any device reported, in milliseconds; `train_ms` less this is what the round cost beyond it.
    pub longest_training_ms: u64,
    /// Bytes that devices sent in the round.
    pub bytes_up: u64,
    /// Bytes sent to devices in the round.
    pub bytes_down: u64,
}
